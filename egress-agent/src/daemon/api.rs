//! The daemon's answers to the API.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use egress_common::{maps::RESOLVERS_CAPACITY, tally::Tally, verdict::Mode};
use tokio::sync::broadcast;
use tracing::info;

use super::{
    confirm::{Answer, Moment},
    faults::{FLOW_LOG_LINES, LOG_LINES},
    learned::LearnedRows,
    node::Found,
    observe::NAMES_EVICTED,
    shared::{InForce, Shared, lock},
    time::now_ns,
};
use crate::{
    api::{
        AgentState, ExplainQuery, FlowFilter, LearnedFilter, NotAwaited, Rows, Timestamp,
        model::{
            ConfirmationStatus, CountersReport, Explanation, FlowReport, FoundStatus, HookStatus,
            KubernetesStatus, LearnedAddress, LifelineStatus, MapStatus, Observations, PolicyFacts,
            PolicyStatus, ScopeStatus, ServiceTagsStatus, Status,
        },
        report::{counters_report, lost},
    },
    datapath::{Anchors, AttachedHook, PutBack},
    log_queue::dropped_log_lines,
    observed::DROPPED,
    policy::{Compiled, RuleSource, ServiceTagsFacts, port_range_text},
    workload::resolver_text,
};

/// Fill of a map, in percent, that raises an alarm.
const FILL_ALARM_PERCENT: u64 = 90;

/// The order in which maps are shown.
const MAPS: &[&str] = &[
    "LEARNED",
    "ALIASES",
    "NAMES",
    "CIDRS",
    "RULES",
    "RULE_COUNTERS",
    "WORKLOADS",
];

impl AgentState for Shared {
    fn status(&self) -> anyhow::Result<Status> {
        let counters = self.reader.counters()?;
        let mut fill = self.reader.fill()?;
        let datapath = self.datapath();
        fill.extend(datapath.fill());
        let generation = datapath.generation()?;
        drop(datapath);
        fill.sort_by_key(|map| MAPS.iter().position(|name| *name == map.name));
        let anchors = self.anchors.as_ref();
        let hooks = anchors.map_or_else(Vec::new, Anchors::hooks);
        let put_back = anchors.map(Anchors::put_back).unwrap_or_default();
        let in_force = self.in_force();
        let is_over = self.is_enforcing_over(now_ns());
        let policies = in_force
            .as_ref()
            .map(|in_force| in_force.policy_facts(is_over))
            .unwrap_or_default();
        let rulesets = in_force
            .as_ref()
            .map(|in_force| in_force.rulesets())
            .unwrap_or_default();
        let entries = |count: fn(&Compiled) -> usize| {
            let counts = rulesets
                .iter()
                .map(|ruleset| count(&ruleset.compiled) as u64);
            counts.fold(0, u64::saturating_add)
        };
        let refused = lock(&self.refused).clone();
        let mut lost = lost(&counters);
        for (name, count) in lock(&self.dns_lost).iter() {
            lost.insert((*name).to_owned(), *count);
        }
        let observed = self.observer.status();
        lost.insert(NAMES_EVICTED.to_owned(), self.memory.counts().evicted);
        lost.insert(LOG_LINES.to_owned(), dropped_log_lines().count);
        if let Some(log) = &self.flow_log {
            lost.insert(FLOW_LOG_LINES.to_owned(), log.dropped().count);
        }
        lost.insert(DROPPED.to_owned(), observed.dropped);
        let mut alarms = self.faults();
        let impaired = !alarms.is_empty();
        let troubles = anchors.map_or_else(Vec::new, Anchors::troubles);
        alarms.extend(hook_alarms(&hooks));
        alarms.extend(troubles.iter().cloned());
        alarms.extend(put_back_alarm(&put_back));
        let unbound = lock(&self.scopes).refused().map(|error| {
            format!("a scope's cgroup cannot be bound, and is judged as the node: {error}")
        });
        alarms.extend(unbound.clone());
        if let Some(error) = &refused {
            alarms.push(format!("the last policy change was refused: {error}"));
        }
        alarms.extend(self.journal.unknown().map(str::to_owned));
        if let Some(error) = &observed.error {
            alarms.push(error.clone());
        }
        for map in &fill {
            let percent = map
                .entries
                .saturating_mul(100)
                .checked_div(map.capacity)
                .unwrap_or(0);
            if percent >= FILL_ALARM_PERCENT {
                alarms.push(format!("map {} is {percent} % full", map.name));
            }
        }
        for scope in self.reader.scopes()? {
            let usage = scope.usage;
            let refused = usage.learned_refused.saturating_add(usage.aliases_refused);
            if let Some(name) = self.scope_of(scope.scope_id).filter(|_| refused > 0) {
                alarms.push(format!(
                    "scope {} is at its share of learned addresses ({} of {}) or aliases ({} of {}): {refused} refused, its \
                     oldest make room; --scope-share",
                    name.name,
                    usage.learned,
                    usage.learned_share,
                    usage.aliases,
                    usage.aliases_share
                ));
            }
        }
        for (tally, count) in &counters.tallies {
            if tally.is_alarm() && *count != 0 {
                alarms.push(format!(
                    "{}: {count} ({})",
                    tally.name(),
                    alarm_words(*tally)
                ));
            }
        }
        let confirmation = self.confirmation.status(Moment::now());
        let fell_back = self.confirmation.is_fallen_back();
        if fell_back {
            alarms.push(fall_back_words(self.mode(), confirmation.as_ref()));
        }
        let kubernetes = self.kubernetes_status();
        if let Some(left_out) = in_force.as_ref().map(|in_force| in_force.facts.left_out)
            && left_out > 0
        {
            alarms.push(format!(
                "{left_out} endpoints of the cluster's DNS are not trusted: {RESOLVERS_CAPACITY} resolvers fit; behind a load balancer at sockets what they answer teaches nothing"
            ));
        }
        let of_cluster = kubernetes.iter().flat_map(|cluster| &cluster.alarms);
        alarms.extend(of_cluster.cloned());
        // A policy that is wrong is its author's: it says so itself, and keeps no agent from being ready.
        let is_pod_missed = kubernetes
            .as_ref()
            .is_some_and(|cluster| !cluster.is_complete);
        let pod_interfaces = lock(&self.pod_interfaces).clone();
        let unjudged = pod_interfaces.iter().flat_map(|status| &status.failed);
        let unjudged = unjudged.map(|text| format!("a pod's interface is not judged: {text}"));
        alarms.extend(unjudged);
        let is_attached = hooks.iter().all(|hook| hook.is_attached && hook.is_pinned)
            && troubles.is_empty()
            && unbound.is_none()
            && pod_interfaces
                .as_ref()
                .is_none_or(|status| status.failed.is_empty());
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            pid: std::process::id(),
            enforcing: is_attached && refused.is_none() && !fell_back && !is_pod_missed,
            mode: in_force
                .as_ref()
                .map_or("open", |in_force| in_force.mode_text(is_over))
                .to_owned(),
            policy: PolicyStatus {
                generation,
                files: files(&policies),
                loaded_at: in_force.as_ref().map(|policy| policy.loaded_at),
                rules: policies.iter().map(|policy| policy.rules).sum(),
                policies,
                names: entries(|compiled| compiled.names.len()),
                cidrs: entries(|compiled| compiled.cidrs.len()),
                service_tags: in_force
                    .as_ref()
                    .and_then(|in_force| in_force.facts.service_tags.as_ref())
                    .map(service_tags_status),
                error: refused,
            },
            hooks: hooks.iter().map(HookStatus::from).collect(),
            maps: fill.iter().map(MapStatus::from).collect(),
            lost,
            resolvers: in_force
                .as_ref()
                .map(|in_force| in_force.facts.resolvers.iter().map(resolver_text).collect())
                .unwrap_or_default(),
            found: in_force
                .as_ref()
                .map(|in_force| in_force.facts.found.iter().map(found_status).collect())
                .unwrap_or_default(),
            lifeline: in_force
                .as_ref()
                .map(|in_force| lifeline_status(&in_force.facts.lifeline))
                .unwrap_or_default(),
            scopes: self.scope_status(),
            kubernetes,
            pod_interfaces,
            confirmation,
            observed,
            put_back: put_back.into(),
            alarms,
            impaired,
            dns_tunnelling: self.dns_tunnelling(),
        })
    }

    fn counters(&self) -> anyhow::Result<CountersReport> {
        let counters = self.reader.counters()?;
        let in_force = self.in_force();
        let rules = in_force.as_deref().map(InForce::rules).unwrap_or_default();
        let bound = in_force.iter().flat_map(|in_force| &in_force.bound);
        let names: HashMap<u32, &str> = bound
            .map(|bound| (bound.scope.identity, bound.scope.name.as_str()))
            .collect();
        Ok(counters_report(
            &counters,
            |rule| rules.get(&rule).copied(),
            |identity| names.get(&identity).copied(),
        ))
    }

    fn learned(self: Arc<Self>, filter: LearnedFilter) -> anyhow::Result<Rows<LearnedAddress>> {
        Ok(Box::new(LearnedRows::new(self, filter)))
    }

    fn recent_flows(&self, filter: FlowFilter) -> anyhow::Result<Vec<Arc<FlowReport>>> {
        self.catch_up();
        Ok(lock(&self.recent).recent(&filter))
    }

    fn explain(&self, query: &ExplainQuery) -> anyhow::Result<Explanation> {
        // Addresses that were looked up just before are open, and are to be found under their names.
        self.dns_looks.catch_up();
        self.explanation(query)
    }

    fn observations(&self) -> anyhow::Result<Observations> {
        self.catch_up();
        // The answers that name them were read before.
        self.observe_waiting(u64::MAX);
        Ok(self.observed())
    }

    fn confirm(&self) -> anyhow::Result<ConfirmationStatus> {
        match self.confirmation.confirm(Moment::now()) {
            Answer::Confirmed => {
                self.settle_probation()?;
                info!("enforcing is confirmed");
            }
            Answer::EnforceAgain => {
                self.enforce_again()?;
                info!("enforcing again, to be confirmed once more");
            }
            Answer::NotAwaited(why) => return Err(NotAwaited(why).into()),
        }
        let status = self.confirmation.status(Moment::now());
        Ok(status.unwrap_or_default())
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<FlowReport>> {
        self.followers.subscribe()
    }
}

impl Shared {
    fn dns_tunnelling(&self) -> String {
        let in_force = self.in_force();
        let is_restricted = in_force
            .as_ref()
            .and_then(|in_force| in_force.node())
            .is_some_and(|node| node.binding.restricts_queries());
        let search = in_force
            .as_ref()
            .map(|in_force| in_force.facts.search_domains.as_slice())
            .unwrap_or_default();
        if !is_restricted {
            "open: any name may be asked of the trusted resolvers".to_owned()
        } else if search.is_empty() {
            "closed: only queries for allowed names leave".to_owned()
        } else {
            format!(
                "closed, but for names below the search domains: {}",
                search.join(", ")
            )
        }
    }

    /// The cluster as it is known, and how sure that is now.
    fn kubernetes_status(&self) -> Option<KubernetesStatus> {
        let status = lock(&self.kubernetes).clone()?;
        let freshness = self.feed.get()?.borrow().freshness.clone();
        let now = Timestamp::from(SystemTime::now());
        let age = freshness.heard_at.map(|heard| now.since(heard));
        Some(KubernetesStatus {
            is_synced: freshness.is_synced,
            heard_at: freshness.heard_at,
            age_s: age.map(|age| age.as_secs()),
            is_from_disk: freshness.is_from_disk,
            error: freshness.error,
            watches: freshness
                .watches
                .iter()
                .map(|(kind, tells)| ((*kind).to_owned(), *tells))
                .collect(),
            refused: status.refused.saturating_add(freshness.unreadable as u64),
            ..status
        })
    }

    fn scope_status(&self) -> Vec<ScopeStatus> {
        let in_force = self.in_force();
        let bound = in_force.iter().flat_map(|in_force| &in_force.bound);
        let bound: Vec<_> = bound.map(|bound| &bound.scope).collect();
        let own = lock(&self.scopes);
        let is_waiting = |name: &str| own.waiting().any(|waiting| waiting.name == name);
        let is_bound = |name: &str| bound.iter().any(|scope| scope.name == name);
        let never_there = own.waiting().filter(|scope| !is_bound(&scope.name));
        let all = bound.iter().copied().chain(never_there);
        all.map(|scope| ScopeStatus {
            name: scope.name.clone(),
            id: scope.identity,
            cgroup: scope.cgroup.clone(),
            state: if is_waiting(&scope.name) {
                "waiting".into()
            } else {
                "bound".into()
            },
        })
        .collect()
    }
}

/// The alarm of an agent that fell back.
fn fall_back_words(mode: Mode, status: Option<&ConfirmationStatus>) -> String {
    let reason = status.and_then(|status| status.reason.as_deref());
    let reason = reason.unwrap_or("it was not confirmed");
    let advice = "`egress-agent confirm` enforces again";
    if mode == Mode::Audit {
        format!("fell back to audit, nothing is dropped: {reason}; {advice}")
    } else {
        format!("is to fall back to audit, which the kernel refuses so far: {reason}")
    }
}

/// Hooks that are not as they should be, and that the agent says nothing else of.
fn hook_alarms(hooks: &[AttachedHook]) -> Vec<String> {
    let mut alarms = Vec::new();
    for hook in hooks {
        let (name, target) = (hook.hook.name(), &hook.target);
        if !hook.is_attached {
            let why = hook
                .trouble
                .as_deref()
                .unwrap_or("the kernel has it no more");
            alarms.push(format!(
                "{name} is not attached to {target} ({why}): the agent attaches it as soon as it can"
            ));
        } else if !hook.is_pinned {
            alarms.push(format!(
                "{name} at {target} is not pinned, and goes with the agent: it is pinned again within a second"
            ));
        }
    }
    alarms
}

/// How long it is an alarm that something had to be put back.
const PUT_BACK_ALARM: Duration = Duration::from_secs(3_600);

/// The alarm that somebody takes away what the agent needs.
fn put_back_alarm(put_back: &PutBack) -> Option<String> {
    let (at, what) = put_back.last.as_ref()?;
    if at.elapsed().is_ok_and(|age| age > PUT_BACK_ALARM) {
        return None;
    }
    let count = put_back
        .counts
        .values()
        .fold(0, |sum: u64, count| sum.saturating_add(*count));
    let at = Timestamp::from(*at);
    Some(format!(
        "{what} was gone from the kernel at {at}, and the agent put it back ({count} times since it started): find out who removes it"
    ))
}

/// The files that policies stand in, each once.
fn files(policies: &[PolicyFacts]) -> Vec<PathBuf> {
    let files: BTreeSet<_> = policies.iter().map(|policy| &policy.file).collect();
    files.into_iter().cloned().collect()
}

impl InForce {
    /// The meaning of the rule numbers of all scopes.
    fn rules(&self) -> HashMap<u64, &RuleSource> {
        let rulesets = self.rulesets().into_iter();
        let rules = rulesets.flat_map(|ruleset| &ruleset.compiled.rules);
        rules.map(|(rule, source)| (*rule, source)).collect()
    }

    /// The policies of all scopes, each once, with the modes that apply: audit where enforcing is over.
    fn policy_facts(&self, is_over: bool) -> Vec<PolicyFacts> {
        let mut seen = HashSet::new();
        let mut facts = Vec::new();
        for ruleset in self.rulesets() {
            let of_all = (!ruleset.is_mixed()).then_some(ruleset.compiled.mode);
            let of_all = is_over.then_some(Mode::Audit).or(of_all);
            for policy in &ruleset.policies {
                if seen.insert(policy.key()) {
                    facts.push(PolicyFacts {
                        name: policy.name.clone(),
                        mode: of_all.unwrap_or(policy.mode).name().into(),
                        file: policy.file.clone(),
                        line: policy.line,
                        rules: policy.rules as u64,
                        generation: self.since.get(&policy.key()).copied().unwrap_or_default(),
                    });
                }
            }
        }
        facts
    }
}

fn found_status(found: &Found) -> FoundStatus {
    FoundStatus {
        what: found.what.into(),
        value: found.value.clone(),
        from: found.from.clone(),
    }
}

fn service_tags_status(facts: &ServiceTagsFacts) -> ServiceTagsStatus {
    let age = facts
        .modified
        .and_then(|modified| SystemTime::now().duration_since(modified).ok());
    ServiceTagsStatus {
        file: facts.file.clone(),
        cloud: facts.cloud.clone(),
        change_number: facts.change_number.clone(),
        modified_at: facts.modified.map(Timestamp::from),
        age_s: age.map(|age| age.as_secs()),
        tags: facts.tags as u64,
        ipv4_prefixes: facts.ipv4_prefixes as u64,
        ipv6_prefixes: facts.ipv6_prefixes as u64,
        notes: facts.notes.clone(),
    }
}

fn lifeline_status(lifeline: &crate::policy::Lifeline) -> Vec<LifelineStatus> {
    lifeline
        .entries()
        .iter()
        .map(|entry| LifelineStatus {
            name: entry.name.to_string(),
            destination: entry.cidr.to_string(),
            ports: entry.ports.iter().map(port_range_text).collect(),
        })
        .collect()
}

/// The words for an operator about a loss.
fn alarm_words(tally: Tally) -> &'static str {
    if tally == Tally::LearnedFull {
        "addresses were refused for lack of room: raise --max-learned"
    } else if tally == Tally::GrantsFull {
        "an address has more port ranges than fit: use fewer distinct ranges"
    } else if tally == Tally::EventsLost || tally == Tally::CopiesLost {
        "the agent was too slow to read them"
    } else {
        "since the programs were first loaded"
    }
}
