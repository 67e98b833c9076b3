//! The kernel side as the agent sees it: load, attach, pin, write maps, read
//! rings. The only module that uses aya.

mod attached;
mod balancers;
mod bulk;
mod doctor;
mod error;
mod filter;
mod judge;
mod kernel_types;
mod layout;
mod load;
mod maps;
mod owned;
mod pod_interfaces;
mod reader;
mod rings;
mod snapshot;
mod sys;
mod unload;
mod unpinned;
mod walk;

use std::{
    collections::BTreeSet, fs, net::SocketAddr, os::unix::fs::MetadataExt, path::Path, sync::Arc,
};

use aya::{
    maps::RingBuf,
    programs::{Program, TestRun, TestRunOptions},
};
use egress_common::{
    address::Address,
    hash::SipKey,
    learned::{Grant, LEARN_BATCH, LearnRequest, Learned, LearnedKey, SWEEP_DELETE},
    maps::{
        ALIAS_BATCH, ALIAS_DELETE, ALIAS_DOOM, ALIAS_NOTE, ALIAS_WORDS, Alias, AliasKey,
        AliasRequest, CGROUP_LEVELS, Config, Keys, NO_LEVEL, ScopeUse, alias_hash, alias_name,
    },
    policy::{NameRules, Workload},
    query::Query,
    tally::Tally,
    verdict::Hook,
};

pub use attached::Anchors;
pub use doctor::{Check, doctor, doctor_unpinned};
pub use error::DatapathError;
pub use judge::Judged;
pub use layout::pinned_room;
pub use load::Options;
pub use maps::Shares;
pub use reader::{LearnedPages, Reader};
pub use rings::{DnsRing, Event, EventRing, Ring, readable};
pub use snapshot::{
    AttachedHook, Counter, Counters, LearnedEntry, MapFill, NotedAlias, PutBack, RuleCounter,
    ScopeFill, WorkloadCounter,
};
pub use sys::release_memory;
pub use unload::Unload;
pub use walk::Pages;

use crate::policy::Compiled;

/// Bytes before the first request of a batch (`egress-ebpf/src/agent.rs`).
const BATCH_HEAD_BYTES: usize = 16;

/// The programs in the kernel, as one agent holds them.
pub struct Datapath {
    loaded: load::Loaded,
    maps: maps::Maps,
    reader: Arc<Reader>,
    pod_interfaces: pod_interfaces::PodInterfaces,
    /// The ids of this agent's programs.
    programs: BTreeSet<u32>,
}

impl Datapath {
    /// Loads the programs over the pinned maps, or over new ones. Nothing is attached yet.
    ///
    /// # Errors
    ///
    /// The step that failed; another agent on the same directory.
    pub fn open(options: Options) -> Result<Self, DatapathError> {
        Self::over(load::load(options)?)
    }

    /// Loads the programs over maps of their own, with nothing pinned: all of it ends with this process and its copies.
    /// Nothing is attached yet.
    ///
    /// # Errors
    ///
    /// The step that failed.
    pub fn open_unpinned(options: Options) -> Result<Self, DatapathError> {
        Self::over(unpinned::load(options)?)
    }

    fn over(mut loaded: load::Loaded) -> Result<Self, DatapathError> {
        let reader = Arc::new(Reader::open(&loaded.ebpf)?);
        let maps = maps::Maps::take(&mut loaded.ebpf)?;
        let programs = loaded.program_ids();
        let mut datapath = Self {
            programs,
            loaded,
            maps,
            reader,
            pod_interfaces: pod_interfaces::PodInterfaces::default(),
        };
        if !datapath.loaded.is_adopted {
            let mut foreign = datapath.loaded.foreign.iter();
            let generation = match foreign.find_map(|foreign| foreign.config) {
                Some(other) => other.generation,
                None => 1,
            };
            let config = load::fresh_config(generation);
            // Shared maps hash under the same keys: these programs know a query that the others noted.
            let mut foreign = datapath.loaded.foreign.iter();
            let keys = match foreign.find_map(layout::Foreign::keys) {
                Some(keys) => keys,
                None => random_keys()?,
            };
            datapath.maps.set_keys(keys)?;
            datapath.maps.set_config(config)?;
        }
        if datapath.loaded.has_older_flows {
            datapath.maps.set_all_called()?;
        }
        datapath.begin_unbalanced()?;
        Ok(datapath)
    }

    /// True if maps of an earlier agent, of this or of another layout, were found.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.loaded.is_adopted || self.is_taking_over()
    }

    /// True if maps of another layout were found, whose programs may still be attached.
    #[must_use]
    pub fn is_taking_over(&self) -> bool {
        !self.loaded.foreign.is_empty()
    }

    /// How a cgroup is bound in the other layout that was switched last.
    #[must_use]
    pub fn foreign_bound(&self, cgroup_id: u64) -> Option<Workload> {
        let mut foreign = self.loaded.foreign.iter();
        foreign.find_map(|foreign| foreign.bound(cgroup_id))
    }

    /// Every scope of other layouts.
    #[must_use]
    pub fn foreign_scope_ids(&self) -> Vec<u32> {
        let foreign = self.loaded.foreign.iter();
        foreign.flat_map(layout::Foreign::scope_ids).collect()
    }

    /// Learned entries of other layouts, expired ones included.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn foreign_learned(&self) -> Result<Vec<LearnedEntry>, DatapathError> {
        let mut entries = Vec::new();
        for foreign in &self.loaded.foreign {
            let learned = foreign.learned().map_err(|source| DatapathError::Map {
                action: "read",
                map: "LEARNED",
                source,
            })?;
            entries.extend(learned);
        }
        Ok(entries)
    }

    /// Removes the maps of other layouts. Their programs must not be attached any more.
    ///
    /// # Errors
    ///
    /// A map cannot be unpinned.
    pub fn remove_foreign(&mut self) -> Result<(), DatapathError> {
        for foreign in std::mem::take(&mut self.loaded.foreign) {
            layout::remove_maps(&foreign.dir)?;
        }
        Ok(())
    }

    /// True if a policy has a rule that names teach.
    #[must_use]
    pub fn has_rule(&self, policy_id: u16, rule: u64) -> bool {
        self.maps.has_rule(policy_id, rule)
    }

    /// Attaches the hooks that note and learn; programs behind pinned links are replaced atomically.
    ///
    /// # Errors
    ///
    /// The hook that cannot be attached.
    pub fn attach_learning(&mut self) -> Result<(), DatapathError> {
        self.loaded.attach(&[
            Hook::SockCreate,
            Hook::AskConnect4,
            Hook::AskConnect6,
            Hook::AskSendmsg4,
            Hook::AskSendmsg6,
            Hook::SkbIngress,
            Hook::TcIngress,
        ])
    }

    /// Tells the programs which network namespace is the node's, if they do not know it yet.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or the map not be read or written.
    pub fn note_node(&mut self) -> Result<(), DatapathError> {
        let mut config = self.maps.config()?;
        if config.node_netns != 0 {
            return Ok(());
        }
        config.node_netns = self.own_netns()?;
        if config.node_netns == 0 {
            return Ok(());
        }
        self.maps.set_config(config)
    }

    /// Attaches the hooks that judge, packets before connects.
    ///
    /// # Errors
    ///
    /// The hook that cannot be attached.
    pub fn attach_judging(&mut self) -> Result<(), DatapathError> {
        self.note_node()?;
        self.loaded.attach(&[
            Hook::SkbEgress,
            Hook::Connect4,
            Hook::Connect6,
            Hook::TcEgress,
        ])?;
        self.loaded.let_others_go();
        Ok(())
    }

    /// Attaches the hooks to the cgroup, those that learn first, by links that end with this process and its copies.
    ///
    /// # Errors
    ///
    /// The hook that cannot be attached.
    pub fn attach_unpinned(&mut self) -> Result<(), DatapathError> {
        self.loaded.attach_unpinned()
    }

    /// A handle on what is attached and pinned, for who keeps it so; none where nothing is pinned.
    #[must_use]
    pub fn anchors(&self) -> Option<Anchors> {
        self.loaded.anchors.clone()
    }

    /// Takes the ring of verdict events; once.
    ///
    /// # Errors
    ///
    /// The ring cannot be mapped.
    pub fn take_events(&mut self) -> Result<EventRing, DatapathError> {
        let ring: RingBuf<_> = maps::take_ring(&mut self.loaded.ebpf, "EVENTS")?;
        Ok(EventRing(ring))
    }

    /// Takes the ring of DNS copies; once.
    ///
    /// # Errors
    ///
    /// The ring cannot be mapped.
    pub fn take_dns_copies(&mut self) -> Result<DnsRing, DatapathError> {
        let ring: RingBuf<_> = maps::take_ring(&mut self.loaded.ebpf, "DNS_COPIES")?;
        Ok(DnsRing(ring))
    }

    /// Starts to read kernel-side debug messages, if they are on.
    ///
    /// # Errors
    ///
    /// The log's ring buffer is not there.
    pub fn take_log(
        &mut self,
    ) -> Result<Option<aya_log::EbpfLogger<&'static dyn log::Log>>, aya_log::Error> {
        if self.loaded.options.ebpf_log_level == 0 {
            return Ok(None);
        }
        aya_log::EbpfLogger::init(&mut self.loaded.ebpf).map(Some)
    }

    /// Writes a compiled policy under an id that nothing uses yet.
    ///
    /// # Errors
    ///
    /// The map that cannot be written, for example because it is full.
    pub fn install(
        &mut self,
        policy_id: u16,
        compiled: &Arc<Compiled>,
    ) -> Result<(), DatapathError> {
        self.maps.install(policy_id, compiled)
    }

    /// Removes every trace of policies other than `keep`.
    ///
    /// # Errors
    ///
    /// The map that cannot be read or written.
    pub fn remove_policies_but(&mut self, keep: &BTreeSet<u16>) -> Result<(), DatapathError> {
        self.maps.remove_policies_but(keep)
    }

    /// Binds a cgroup (or the node, [`NODE_CGROUP`]) to a workload; atomic.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn bind(&mut self, cgroup_id: u64, workload: Workload) -> Result<(), DatapathError> {
        // Its counts first: a scope without them learns nothing.
        for binding in [workload.current, workload.next] {
            let shares = self.loaded.options.shares;
            self.maps
                .add_scope(binding.scope_id, workload.is_node(), shares)?;
        }
        self.maps
            .workloads
            .insert(cgroup_id, workload, 0)
            .map_err(|source| DatapathError::Map {
                action: "write",
                map: "WORKLOADS",
                source,
            })
    }

    /// Removes the bindings of these cgroups.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn unbind(
        &mut self,
        cgroup_ids: impl IntoIterator<Item = u64>,
    ) -> Result<(), DatapathError> {
        let mut ids = cgroup_ids.into_iter();
        ids.try_for_each(|id| self.maps.unbind(id))
    }

    /// The workloads that have counters.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn counted_workloads(&self) -> Result<Vec<u32>, DatapathError> {
        self.maps.counted_workloads()
    }

    /// Removes the counters of a workload that is gone.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn forget_workload(&mut self, identity: u32) -> Result<(), DatapathError> {
        self.maps.forget_workload(identity)
    }

    /// How a cgroup is bound, if it is.
    #[must_use]
    pub fn bound(&self, cgroup_id: u64) -> Option<Workload> {
        self.maps.workloads.get(&cgroup_id, 0).ok()
    }

    /// Every cgroup that is bound, by its id.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn workloads(&self) -> Result<Vec<(u64, Workload)>, DatapathError> {
        self.maps.workloads()
    }

    /// Tells the kernel at which cgroup depths workloads are bound.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_levels(&mut self, levels: &[i32]) -> Result<(), DatapathError> {
        let mut config = self.maps.config()?;
        config.node_netns = self.own_netns()?;
        config.levels = [NO_LEVEL; CGROUP_LEVELS];
        for (slot, level) in config.levels.iter_mut().zip(levels) {
            *slot = *level;
        }
        self.maps.set_config(config)
    }

    /// Makes every socket check what it remembers against the policy; returns the new generation.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn raise_generation(&mut self) -> Result<u32, DatapathError> {
        let mut config = self.maps.config()?;
        config.generation = config.generation.wrapping_add(1);
        config.node_netns = self.own_netns()?;
        self.maps.set_config(config)?;
        Ok(config.generation)
    }

    /// Lets what enforces audit from this moment of the clock since boot on, whatever becomes of the agent; never for 0.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_enforce_until(&mut self, enforce_until_ns: u64) -> Result<(), DatapathError> {
        let config = self.maps.config()?;
        self.maps.set_config(Config {
            enforce_until_ns,
            ..config
        })
    }

    /// The moment from which on what enforces audits; 0 for never.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn enforce_until(&self) -> Result<u64, DatapathError> {
        Ok(self.maps.config()?.enforce_until_ns)
    }

    /// The generation that is in force.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn generation(&self) -> Result<u32, DatapathError> {
        Ok(self.maps.config()?.generation)
    }

    /// The key of every hash.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn seed(&self) -> Result<u64, DatapathError> {
        Ok(self.maps.keys()?.flow.k0)
    }

    /// When the query was sent that this one is like, if it is not spent.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn asked_at(&self, wanted: &Query) -> Result<Option<u64>, DatapathError> {
        self.maps.asked_at(wanted)
    }

    /// The key of the hashes of questions.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn question_key(&self) -> Result<SipKey, DatapathError> {
        Ok(self.maps.keys()?.question)
    }

    /// Makes the trusted resolvers exactly these.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_resolvers(&mut self, resolvers: &[SocketAddr]) -> Result<(), DatapathError> {
        self.maps.set_resolvers(resolvers)
    }

    /// Makes the node's own addresses exactly these.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_local(&mut self, addresses: &[Address]) -> Result<(), DatapathError> {
        self.maps.set_local(addresses)
    }

    /// Makes the search domains exactly these.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_search_domains(&mut self, wanted: &[String]) -> Result<(), DatapathError> {
        self.maps.set_search_domains(wanted)
    }

    /// The reader of the maps for those who ask.
    #[must_use]
    pub fn reader(&self) -> Arc<Reader> {
        Arc::clone(&self.reader)
    }

    /// The grants of an address of a holder, live or ended; `None` where it is not known.
    #[must_use]
    pub fn grants(&self, key: &LearnedKey) -> Option<Vec<Grant>> {
        self.maps.grants(key)
    }

    /// Notes aliases of names, or prolongs them; returns how many.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub fn note_aliases(&mut self, aliases: &[NotedAlias]) -> Result<u32, DatapathError> {
        let keys = self.maps.keys()?;
        let requests: Vec<AliasRequest> = aliases
            .iter()
            .filter_map(|alias| {
                let name = alias_name(&alias.name)?;
                let hash = alias_hash(&keys.name, &name);
                Some(AliasRequest {
                    key: AliasKey::new(hash, alias.scope_id, alias.netns),
                    action: ALIAS_NOTE,
                    expires_at_ns: alias.expires_at_ns,
                    name,
                    rules: alias.rules,
                })
            })
            .collect();
        let mut noted = self.run_aliases(&requests)?;
        let missing = requests.len().saturating_sub(noted as usize);
        if missing > 0 {
            // Some may be doomed: they are made anew.
            let keys: Vec<AliasKey> = requests.iter().map(|request| request.key).collect();
            if self.delete_doomed_aliases(&keys)? > 0 {
                noted = self.run_aliases(&requests)?;
            }
        }
        Ok(noted)
    }

    /// The rules of the names that a name is a noted alias of, if it is.
    ///
    /// # Errors
    ///
    /// The keys cannot be read.
    pub fn alias(
        &self,
        scope_id: u32,
        netns: u32,
        name: &str,
        now_ns: u64,
    ) -> Result<Option<NameRules>, DatapathError> {
        let Some(words) = alias_name(name) else {
            return Ok(None);
        };
        let hash = alias_hash(&self.maps.keys()?.name, &words);
        let key = AliasKey::new(hash, scope_id, netns);
        let alias = self.maps.all_aliases.find(&key)?;
        let own = alias.filter(|alias| {
            alias.holder == key.holder() && alias.name == words && alias.expires_at_ns > now_ns
        });
        Ok(own.map(|alias| alias.rules))
    }

    /// Removes aliases that ended before a point in time; returns how many.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub fn sweep_aliases(
        &mut self,
        keys: &[AliasKey],
        ended_before_ns: u64,
    ) -> Result<u32, DatapathError> {
        let requests: Vec<AliasRequest> = keys
            .iter()
            .map(|key| alias_request(*key, ALIAS_DOOM, ended_before_ns))
            .collect();
        if self.run_aliases(&requests)? == 0 {
            return Ok(0);
        }
        sys::wait_for_programs();
        self.delete_doomed_aliases(keys)
    }

    fn delete_doomed_aliases(&mut self, keys: &[AliasKey]) -> Result<u32, DatapathError> {
        sys::wait_for_programs();
        let requests: Vec<AliasRequest> = keys
            .iter()
            .map(|key| alias_request(*key, ALIAS_DELETE, 0))
            .collect();
        self.run_aliases(&requests)
    }

    fn run_aliases(&mut self, requests: &[AliasRequest]) -> Result<u32, DatapathError> {
        let batches = requests.chunks(ALIAS_BATCH).map(|batch| {
            let bytes = batch.iter().flat_map(AliasRequest::to_bytes);
            bytes.collect::<Vec<u8>>()
        });
        let batches: Vec<_> = batches.collect();
        self.run("aliases", batches.into_iter())
    }

    /// The next page of learned addresses, ended and doomed ones included; `None` when there are no more.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn learned_page(
        &self,
        pages: &mut Pages<LearnedKey, Learned>,
    ) -> Result<Option<Vec<(LearnedKey, Learned)>>, DatapathError> {
        let page = self.maps.all_learned.next(pages)?;
        Ok(page.map(|page| page.map(|(key, value)| (*key, *value)).collect()))
    }

    /// The next page of aliases, likewise.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn aliases_page(
        &self,
        pages: &mut Pages<AliasKey, Alias>,
    ) -> Result<Option<Vec<(AliasKey, Alias)>>, DatapathError> {
        let page = self.maps.all_aliases.next(pages)?;
        Ok(page.map(|page| page.map(|(key, value)| (*key, *value)).collect()))
    }

    /// Every scope's use of the tables that workloads fill.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn scopes(&self) -> Result<Vec<ScopeFill>, DatapathError> {
        let scopes = self.maps.scopes()?.into_iter();
        Ok(scopes
            .map(|(scope_id, usage)| ScopeFill { scope_id, usage })
            .collect())
    }

    /// One scope's use of them.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn scope_usage(&self, scope_id: u32) -> Result<Option<ScopeUse>, DatapathError> {
        self.maps.scope(scope_id)
    }

    /// Number of the node's own network namespace, for what counts there.
    #[must_use]
    pub fn node_netns(&self) -> u32 {
        let known = self.maps.config().map_or(0, |config| config.node_netns);
        // As the programs do where it is not known (`egress-ebpf/src/netns.rs`).
        if known == 0 { u32::MAX } else { known }
    }

    /// Forgets the counts of a scope of which nothing is left.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn remove_scope(&mut self, scope_id: u32) -> Result<(), DatapathError> {
        self.maps.remove_scope(scope_id)
    }

    /// One count that is not a verdict.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn tally(&self, tally: Tally) -> Result<u64, DatapathError> {
        self.maps.tally(tally)
    }

    /// Fill of the maps that policies fill.
    #[must_use]
    pub fn fill(&self) -> Vec<MapFill> {
        self.maps.fill()
    }

    /// Lets the kernel learn; returns how many grants it stored.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub fn learn(&mut self, requests: &[LearnRequest]) -> Result<u32, DatapathError> {
        let stored = self.run_batches("learn", requests)?;
        if stored as usize >= requests.len() {
            return Ok(stored);
        }
        // Some of the entries may be doomed: they are made anew.
        let keys: Vec<LearnedKey> = requests.iter().map(|request| request.key).collect();
        if self.delete_doomed(&keys)? == 0 {
            return Ok(stored);
        }
        self.run_batches("learn", requests)
    }

    /// Removes the entries of these keys whose grants all ended, and were used last, before points in time; returns how many.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub fn sweep(
        &mut self,
        keys: &[LearnedKey],
        ended_before_ns: u64,
        used_before_s: u32,
    ) -> Result<u32, DatapathError> {
        let requests: Vec<LearnRequest> = keys
            .iter()
            .map(|key| LearnRequest {
                key: *key,
                grant: Grant {
                    expires_at_ns: ended_before_ns,
                    used_at_s: used_before_s,
                    ..Grant::default()
                },
            })
            .collect();
        if self.run_batches("sweep", &requests)? == 0 {
            return Ok(0);
        }
        self.delete_doomed(keys)
    }

    /// Deletes those of the entries that are doomed, when no program can hold one any more.
    fn delete_doomed(&mut self, keys: &[LearnedKey]) -> Result<u32, DatapathError> {
        sys::wait_for_programs();
        let requests: Vec<LearnRequest> = keys
            .iter()
            .map(|key| LearnRequest {
                key: *key,
                grant: Grant {
                    auditor: SWEEP_DELETE,
                    ..Grant::default()
                },
            })
            .collect();
        self.run_batches("sweep", &requests)
    }

    /// Number of the agent's own network namespace, which is the node's; 0 where the kernel shows none.
    fn own_netns(&mut self) -> Result<u32, DatapathError> {
        let name = "own_netns";
        let Some(Program::SchedClassifier(program)) = self.loaded.ebpf.program_mut(name) else {
            return Err(DatapathError::Missing {
                what: "program",
                name,
            });
        };
        let options = TestRunOptions {
            data_in: Some(&[0; BATCH_HEAD_BYTES]),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options);
        let result = result.map_err(|source| DatapathError::Program {
            program: name,
            source,
        })?;
        Ok(result.return_value)
    }

    fn run_batches(
        &mut self,
        name: &'static str,
        requests: &[LearnRequest],
    ) -> Result<u32, DatapathError> {
        let batches = requests.chunks(LEARN_BATCH).map(|batch| {
            let bytes = batch.iter().flat_map(LearnRequest::to_bytes);
            bytes.collect::<Vec<u8>>()
        });
        let batches: Vec<_> = batches.collect();
        self.run(name, batches.into_iter())
    }

    /// Runs a program once for each batch of requests; the sum of what it returns.
    fn run(
        &mut self,
        name: &'static str,
        batches: impl Iterator<Item = Vec<u8>>,
    ) -> Result<u32, DatapathError> {
        let Some(Program::SchedClassifier(program)) = self.loaded.ebpf.program_mut(name) else {
            return Err(DatapathError::Missing {
                what: "program",
                name,
            });
        };
        let mut done = 0_u32;
        for batch in batches {
            let mut input = vec![0; BATCH_HEAD_BYTES];
            input.extend_from_slice(&batch);
            let options = TestRunOptions {
                data_in: Some(&input),
                ..TestRunOptions::new()
            };
            let result = program
                .test_run(options)
                .map_err(|source| DatapathError::Program {
                    program: name,
                    source,
                })?;
            done = done.saturating_add(result.return_value);
        }
        Ok(done)
    }

    /// Verified instructions of each program, for the kernels' report.
    #[must_use]
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        self.loaded
            .ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                Some((name.to_owned(), info.verified_instruction_count()?))
            })
            .collect()
    }
}

fn alias_request(key: AliasKey, action: u64, expires_at_ns: u64) -> AliasRequest {
    AliasRequest {
        key,
        action,
        expires_at_ns,
        name: [0; ALIAS_WORDS],
        rules: NameRules::default(),
    }
}

fn random_keys() -> Result<Keys, DatapathError> {
    let path = Path::new("/dev/urandom");
    let random = fs::File::open(path).and_then(|mut file| {
        let mut word = || {
            let mut bytes = [0; 8];
            std::io::Read::read_exact(&mut file, &mut bytes)?;
            Ok::<_, std::io::Error>(u64::from_ne_bytes(bytes))
        };
        let mut key = || {
            Ok::<_, std::io::Error>(SipKey {
                k0: word()?,
                k1: word()?,
            })
        };
        Ok(Keys {
            flow: key()?,
            question: key()?,
            name: key()?,
        })
    });
    match random {
        Ok(keys) => Ok(keys),
        Err(source) => Err(DatapathError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Index of an interface of this network namespace, and bytes of its link-layer header.
fn interface_facts(name: &str) -> Result<(u32, u32), DatapathError> {
    let failed = |source| DatapathError::Io {
        action: "look at interface",
        path: name.into(),
        source,
    };
    let index = nix::net::if_::if_nametoindex(name).map_err(|errno| failed(errno.into()))?;
    let kind = nix::ifaddrs::getifaddrs()
        .map_err(|errno| failed(errno.into()))?
        .filter(|address| address.interface_name == name)
        .find_map(|address| address.address?.as_link_addr().map(|link| link.hatype()));
    // ARPHRD_ETHER and ARPHRD_LOOPBACK (include/uapi/linux/if_arp.h) carry 14 bytes; tunnels of layer 3 none.
    let bytes = match kind {
        Some(libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK) => 14,
        _ => 0,
    };
    Ok((index, bytes))
}

/// Cgroup id of a cgroup v2 directory, and its distance from the root of the hierarchy.
///
/// # Errors
///
/// The path is not a directory below the cgroup v2 mount.
pub fn cgroup_facts(path: &Path) -> Result<(u64, i32), DatapathError> {
    let failed = |source| DatapathError::Io {
        action: "look at cgroup",
        path: path.to_owned(),
        source,
    };
    let path = fs::canonicalize(path).map_err(failed)?;
    let metadata = fs::metadata(&path).map_err(failed)?;
    let root = crate::workload::cgroup_root().unwrap_or_default();
    let depth = path
        .strip_prefix(&root)
        .map(|below| below.components().count())
        .map_err(|error| failed(std::io::Error::other(error)))?;
    // On cgroup v2 the inode number is the cgroup's id (kernfs, 64-bit inodes since 5.5).
    Ok((metadata.ino(), i32::try_from(depth).unwrap_or(i32::MAX)))
}

/// The process that holds a pin directory, from the kernel's list of locks.
fn holder(pin_dir: &Path) -> String {
    let unknown = "its process cannot be told".to_owned();
    let Ok(metadata) = fs::metadata(pin_dir) else {
        return unknown;
    };
    let Ok(locks) = fs::read_to_string("/proc/locks") else {
        return unknown;
    };
    let inode = format!(":{}", metadata.ino());
    locks
        .lines()
        .filter(|line| line.contains("FLOCK"))
        .find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let pid = fields.get(4)?;
            let file = fields.get(5)?;
            file.ends_with(&inode).then(|| format!("process {pid}"))
        })
        .unwrap_or(unknown)
}
