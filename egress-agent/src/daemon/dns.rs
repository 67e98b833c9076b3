//! Copies of DNS answers: remembered, and learned from where the kernel could not.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use egress_common::{
    address::Address,
    event::DnsCopy,
    maps::ANSWER_LATE_NS,
    packed::address_words,
    policy::{NameRules, protocol},
    query::{Query, query_ports},
    tally::Tally,
};
use tracing::{debug, warn};

use super::{
    carry::teaching,
    events::{Budget, rebinding, refused_query},
    shared::{Bound, Scope, Shared, lock},
    time::now_ns,
    upkeep,
};
use crate::{
    datapath::{NotedAlias, readable},
    dns::{
        AliasChain, Answer, Journal, Memory, Reassembly, Receiver, Refusal, RefusalKind,
        ScopeNumber, Seen, StreamLimits, WholeMessage, asked_name, end_of, is_left_to_the_agent,
    },
    policy::Compiled,
    shutdown::Shutdown,
};

/// Most copies that are read before their messages are taken.
const BATCH: usize = 256;

/// How often a ring is looked at without a wake-up.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// Life of what is remembered of names that no rule allows, at least; seconds.
const REMEMBER_S: u32 = 300;

/// Reads copies until it is asked to stop.
///
/// # Errors
///
/// The ring cannot be waited for.
pub(super) async fn run(shared: Arc<Shared>, stop: Shutdown) -> anyhow::Result<()> {
    let ring = lock(&shared.early_copies).take();
    let ring = ring.context("DNS copies are read already")?;
    let mut ring = readable(ring).context("cannot wait for DNS copies")?;
    let mut reassembly = Reassembly::new(StreamLimits::default());
    let mut raised = Budget::default();
    let mut spent = Spent::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let guard = tokio::select! {
            guard = ring.readable_mut() => Some(guard.context("cannot wait for DNS copies")?),
            // The kernel does not wake the agent for answers that it has learned by itself.
            _ = look.tick() => None,
            () = shared.dns_looks.asked() => None,
            () = stop.requested() => return Ok(()),
        };
        if let Some(mut guard) = guard {
            guard.clear_ready();
        }
        let this = shared.dns_looks.begin();
        let mut messages = Vec::new();
        let mut is_empty = false;
        for _ in 0..BATCH {
            let Some((copy, payload)) = ring.get_mut().next_copy() else {
                is_empty = true;
                break;
            };
            if copy.outcome == Tally::QueryRefused as u8 {
                raise_refused_query(&shared, &copy, &payload, &mut raised);
            } else {
                reassembly.push(&copy, &payload, now_ns(), |message| messages.push(message));
            }
        }
        for message in messages {
            take(&shared, &message, &mut raised, &mut spent);
        }
        shared.journal.flush();
        if is_empty {
            shared.dns_looks.end(this);
        } else {
            look.reset_immediately();
        }
        let counts = reassembly.counts();
        let mut lost = lock(&shared.dns_lost);
        lost.insert("dns_streams_evicted", counts.evicted);
        lost.insert("dns_streams_lost", counts.lost);
    }
}

fn take(shared: &Shared, message: &WholeMessage, raised: &mut Budget, spent: &mut Spent) {
    let copy = &message.copy;
    let outcome = Tally::try_from(copy.outcome).ok();
    if is_unusable(outcome) {
        return;
    }
    let answer = match Answer::read(&message.bytes) {
        Ok(answer) => answer,
        Err(error) => {
            debug!(%error, "DNS answer cannot be read");
            return;
        }
    };
    let Some(bound) = shared.bound_now(copy.scope_id) else {
        return;
    };
    let (bound, number) = (&*bound, bound.scope.number);
    let now_ns = now_ns();
    if copy.refused != 0 {
        upkeep::make_room(shared, copy.scope_id, bound, now_ns);
    }
    debug!(
        scope = bound.scope.name,
        question = answer.question(),
        addresses = answer.addresses.len(),
        outcome = outcome.map(Tally::name),
        "DNS answer"
    );
    if let Some(kind) = untold(outcome) {
        let addresses = answer.addresses.iter().map(|one| one.address);
        remember_refusal(shared, bound, copy, &answer, kind, addresses.collect());
        return;
    }
    let is_left = outcome.is_some_and(is_left_to_the_agent);
    // An answer that nobody asked for is not remembered either: it would count at the next change of the policy.
    if !is_left && !is_of_a_query(outcome) || is_left && !was_asked(shared, copy, &answer, spent) {
        return;
    }
    let facts = Facts::of(copy, &answer, outcome);
    let compiled = bound.compiled().map(|compiled| &**compiled);
    facts.remember(&shared.memory, &shared.journal, number, compiled, now_ns);
    if is_left {
        learn(shared, copy, &answer, now_ns);
    }
    if outcome == Some(Tally::AnswerLearned) {
        shared.refusals.forget(number, answer.question());
    }
    if outcome == Some(Tally::AliasDenied)
        && let Some(denied) = denied_alias(bound, &answer)
    {
        let addresses = answer.addresses.iter().map(|one| one.address);
        let kind = RefusalKind::AliasDenied(denied);
        remember_refusal(shared, bound, copy, &answer, kind, addresses.collect());
    }
    if answer.response_code == 0 {
        raise_rebinding(shared, bound, copy, &answer, raised);
    }
}

/// True if the kernel matched the answer to a query of its receiver, whatever rules then said of it.
fn is_of_a_query(outcome: Option<Tally>) -> bool {
    matches!(
        outcome,
        Some(
            Tally::AnswerLearned
                | Tally::AnswerNoRule
                | Tally::AnswerDeniedName
                | Tally::AliasDenied
                | Tally::AnswerEmpty
                | Tally::AnswerTruncated
                | Tally::AnswerErrorCode
        )
    )
}

/// Answers that say nothing, not even why.
fn is_unusable(outcome: Option<Tally>) -> bool {
    match outcome {
        None
        | Some(Tally::AnswerOtherQuestion | Tally::AnswerMalformed | Tally::AnswerReplayed) => true,
        Some(_) => false,
    }
}

/// Why an answer is not believed.
fn untold(outcome: Option<Tally>) -> Option<RefusalKind> {
    let outcome = outcome?;
    if outcome == Tally::AnswerUntrusted {
        Some(RefusalKind::Untrusted)
    } else if outcome == Tally::AnswerUnsolicited {
        Some(RefusalKind::NotAsked)
    } else if outcome == Tally::AnswerLate {
        Some(RefusalKind::Late)
    } else {
        None
    }
}

/// Keeps why an answer for an allowed name taught nothing.
fn remember_refusal(
    shared: &Shared,
    bound: &Bound,
    copy: &DnsCopy,
    answer: &Answer,
    kind: RefusalKind,
    addresses: Vec<Address>,
) {
    if is_allowed(bound, answer.question()) {
        shared.refusals.record(Refusal {
            scope: bound.scope.number,
            name: answer.question().to_owned(),
            kind,
            resolver: copy.resolver,
            addresses,
            at_ns: copy.at_ns,
        });
    }
}

fn is_allowed(bound: &Bound, name: &str) -> bool {
    let rules = bound.rules_of_name(name);
    rules.is_some_and(|rules| rules.deny == 0)
}

/// The denied name that the aliases of an answer lead to.
fn denied_alias(bound: &Bound, answer: &Answer) -> Option<String> {
    let is_denied = |name: &str| {
        let rules = bound.rules_of_name(name);
        rules.is_some_and(|rules| rules.deny != 0)
    };
    let mut aliases = answer.chain.iter().skip(1);
    let denied = aliases.find(|alias| alias.is_matchable && is_denied(&alias.name))?;
    Some(denied.name.clone())
}

/// True if this answers a query of this socket that nothing has answered yet. The kernel has compared a datagram with
/// its query already; a segment it could not read.
fn was_asked(shared: &Shared, copy: &DnsCopy, answer: &Answer, spent: &mut Spent) -> bool {
    // Whole messages the kernel has compared with their queries itself, whatever their size, and spent them.
    if copy.proto != protocol::TCP || copy.outcome == Tally::AnswerOversized as u8 {
        return true;
    }
    let datapath = shared.datapath();
    let Ok(key) = datapath.question_key() else {
        return false;
    };
    let id = answer.id.to_be_bytes();
    let query = Query {
        sent_at_ns: copy.at_ns,
        question: answer.question_hash(&key),
        cookie: copy.cookie,
        resolver: address_words(&copy.resolver),
        ports: query_ports(copy.resolver_port, copy.port, id, copy.proto),
        scope_id: 0,
    };
    let asked_at = datapath.asked_at(&query);
    drop(datapath);
    match asked_at {
        Ok(asked_at) => asked_at.is_some_and(|sent_at_ns| {
            spent.note(&Query {
                sent_at_ns,
                ..query
            })
        }),
        Err(error) => {
            warn!(
                error = format!("{:#}", anyhow::Error::new(error)),
                "cannot look up a query"
            );
            false
        }
    }
}

/// Queries over TCP that the agent has met an answer to. Only the kernel writes its own list.
#[derive(Debug, Default)]
struct Spent(HashSet<(u64, u64, u64, u64)>);

impl Spent {
    /// Notes that an answer was met; false when one was before.
    fn note(&mut self, query: &Query) -> bool {
        let at_ns = query.sent_at_ns;
        if self.0.len() >= SPENT_AT_LEAST {
            // Twice as long as an answer may come late: nothing that the kernel still takes for a query is forgotten.
            self.0
                .retain(|(sent_ns, ..)| at_ns.saturating_sub(*sent_ns) <= 2 * ANSWER_LATE_NS);
        }
        self.0
            .insert((at_ns, query.cookie, query.ports, query.question))
    }
}

/// So many spent queries are kept before old ones are looked for.
const SPENT_AT_LEAST: usize = 1_024;

/// Facts that an answer to a query states.
struct Facts<'a> {
    answer: &'a Answer,
    netns: u32,
    at_ns: u64,
    outcome: Option<Tally>,
}

impl<'a> Facts<'a> {
    const fn of(copy: &DnsCopy, answer: &'a Answer, outcome: Option<Tally>) -> Self {
        Self {
            answer,
            netns: copy.netns,
            at_ns: copy.at_ns,
            outcome,
        }
    }

    /// True if the kernel or the agent read the answer to its end, and it taught what it may.
    fn is_read(&self) -> bool {
        let outcome = self.outcome;
        outcome.is_some_and(is_left_to_the_agent)
            || matches!(
                outcome,
                Some(Tally::AnswerLearned | Tally::AnswerEmpty | Tally::AnswerTruncated)
            )
    }

    /// Keeps what was resolved to what, allowed or not, and by which names. Without a policy the rules are not known yet.
    fn remember(
        &self,
        memory: &Memory,
        journal: &Journal,
        number: ScopeNumber,
        compiled: Option<&Compiled>,
        now_ns: u64,
    ) {
        let answer = self.answer;
        let mut led_by = memory.alias_chains(number, self.netns, answer.question(), now_ns);
        led_by.retain(|one| one.chain.contains(' '));
        // Chains from the question on, then those that led to it by another answer.
        let chains = |place: usize| {
            let own = answer.chain_to(place);
            let rest = own.get(answer.question().len()..).unwrap_or_default();
            let longer: Vec<String> = led_by
                .iter()
                .map(|before| format!("{}{rest}", before.chain))
                .collect();
            std::iter::once(own).chain(longer)
        };
        for address in &answer.addresses {
            for (chain, is_own) in
                chains(address.owner).zip([true].into_iter().chain(std::iter::repeat(false)))
            {
                let teaching = compiled.map(|compiled| teaching(compiled, &chain));
                let sets: Vec<NameRules> = match &teaching {
                    Some(Some(teaching)) if self.is_read() => teaching.sets().collect(),
                    _ => Vec::new(),
                };
                let is_allowed = !sets.is_empty()
                    || compiled.is_none() && self.outcome == Some(Tally::AnswerLearned);
                if !is_own && !is_allowed {
                    continue;
                }
                let lives = sets.iter().map(|rules| rules.lifetime_s(address.ttl_s));
                let life_s = match lives.max() {
                    Some(life_s) => life_s,
                    None => address.ttl_s.max(REMEMBER_S),
                };
                let life_ns = u64::from(life_s).saturating_mul(1_000_000_000);
                // Where a denied name ended the reading, what stands beside its chain was not taught: not to be carried.
                let is_beside =
                    self.outcome == Some(Tally::AliasDenied) && !matches!(teaching, Some(None));
                let shown = compiled.filter(|_| is_allowed).and_then(|compiled| {
                    let mut names = chain.split(' ');
                    names.find(|name| teaches_itself(compiled, name))
                });
                let name = shown.unwrap_or_else(|| answer.question());
                let end = chain.rsplit(' ').next().unwrap_or_default();
                let seen = Seen {
                    address: address.address,
                    netns: if is_beside { 0 } else { self.netns },
                    name,
                    alias: (end != name).then_some(end),
                    chain: &chain,
                    at_ns: self.at_ns,
                    ttl_s: address.ttl_s,
                    expires_at_ns: self.at_ns.saturating_add(life_ns),
                    is_allowed,
                };
                if memory.record(number, &seen, now_ns) && is_allowed {
                    journal.note_address(memory, number, &seen);
                }
            }
        }
        if !self.is_read() {
            return;
        }
        for (place, name) in answer.chain.iter().enumerate().skip(1) {
            if !name.is_matchable {
                continue;
            }
            for (chain, before) in chains(place).zip(chains(name.led_by)) {
                let led = compiled.and_then(|compiled| teaching(compiled, &before));
                let rules = led.and_then(|led| led.sets().next());
                let is_denied =
                    compiled.is_some_and(|compiled| teaching(compiled, &chain).is_none());
                if is_denied || compiled.is_some() && rules.is_none() {
                    continue;
                }
                let noted = AliasChain {
                    chain: chain.into(),
                    netns: self.netns,
                    at_ns: self.at_ns,
                    ttl_s: name.ttl_s,
                    expires_at_ns: end_of(&rules.unwrap_or_default(), name.ttl_s, self.at_ns),
                };
                if memory.note_alias(number, noted.clone(), now_ns) {
                    journal.note_alias(memory, number, &noted);
                }
            }
        }
    }
}

/// True if a rule allows a name itself.
fn teaches_itself(compiled: &Compiled, name: &str) -> bool {
    let rules = compiled.names.rules_of(name);
    rules.is_some_and(|rules| rules.deny == 0 && !rules.is_empty())
}

impl Shared {
    /// Remembers the answers that came while no agent looked, for scopes by the ids that they had then. The rules of
    /// then are not known: what the kernel learned is looked up under those to come.
    pub(super) fn remember_early(&self, scopes: &HashMap<u32, Arc<Scope>>) {
        lock(&self.earlier).extend(scopes.iter().map(|(id, scope)| (*id, Arc::clone(scope))));
        let mut ring = lock(&self.early_copies);
        let Some(ring) = ring.as_mut() else {
            return;
        };
        let mut reassembly = Reassembly::new(StreamLimits::default());
        let now_ns = now_ns();
        let mut remembered = 0_u64;
        while let Some((copy, payload)) = ring.next_copy() {
            reassembly.push(&copy, &payload, now_ns, |message| {
                let copy = &message.copy;
                let outcome = Tally::try_from(copy.outcome).ok();
                let Some(scope) = scopes.get(&copy.scope_id) else {
                    return;
                };
                if !is_of_a_query(outcome) {
                    return;
                }
                if let Ok(answer) = Answer::read(&message.bytes) {
                    Facts::of(copy, &answer, outcome).remember(
                        &self.memory,
                        &self.journal,
                        scope.number,
                        None,
                        now_ns,
                    );
                    remembered = remembered.saturating_add(1);
                }
            });
        }
        self.journal.flush();
        debug!(remembered, "answers of before remembered");
    }
}

/// Reports addresses that an answer for an allowed name may not open.
fn raise_rebinding(
    shared: &Shared,
    bound: &Bound,
    copy: &DnsCopy,
    answer: &Answer,
    raised: &mut Budget,
) {
    if !is_allowed(bound, answer.question()) {
        return;
    }
    let mut refused = answer.unteachable.clone();
    if let Some(in_force) = shared.in_force() {
        let local = &in_force.facts.local;
        let addresses = answer.addresses.iter().map(|one| one.address);
        refused.extend(addresses.filter(|address| local.contains(address)));
    }
    if refused.is_empty() {
        return;
    }
    refused.sort_unstable();
    refused.dedup();
    for address in &refused {
        rebinding(shared, copy.scope_id, answer.question(), *address, raised);
    }
    remember_refusal(shared, bound, copy, answer, RefusalKind::Rebinding, refused);
}

/// Reports a query that the policy does not let through.
fn raise_refused_query(shared: &Shared, copy: &DnsCopy, payload: &[u8], raised: &mut Budget) {
    let name = asked_name(payload);
    refused_query(shared, copy, name, raised);
}

/// Pushes what the kernel could not learn.
fn learn(shared: &Shared, copy: &DnsCopy, answer: &Answer, now_ns: u64) {
    // Under the lock, so that a switch comes before or after.
    let mut datapath = shared.datapath();
    let Some(in_force) = shared.in_force() else {
        return;
    };
    let Some(bound) = in_force.now_of(copy.scope_id) else {
        return;
    };
    let Some(compiled) = bound.compiled() else {
        return;
    };
    let (scope_id, local) = (bound.binding.scope_id, &in_force.facts.local);
    let stored = datapath
        .alias(scope_id, copy.netns, answer.question(), now_ns)
        .and_then(|by_alias| {
            let receiver = Receiver {
                scope_id,
                netns: copy.netns,
                now_ns,
                by_alias: by_alias.as_ref(),
            };
            let lesson = crate::dns::learn(
                answer,
                receiver,
                |name| compiled.names.rules_of(name).copied(),
                |address| local.contains(address),
            );
            datapath.learn(&lesson.requests)?;
            let aliases: Vec<NotedAlias> = lesson
                .aliases
                .into_iter()
                .map(|alias| NotedAlias {
                    scope_id,
                    netns: copy.netns,
                    name: alias.name,
                    expires_at_ns: alias.expires_at_ns,
                    rules: alias.rules,
                })
                .collect();
            datapath.note_aliases(&aliases)
        });
    if let Err(error) = stored {
        warn!(
            error = format!("{:#}", anyhow::Error::new(error)),
            "cannot learn"
        );
    }
}
