//! Copies of DNS answers: remembered, and learned from where the kernel could not.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use egress_common::{
    address::Address,
    dns::name_hash,
    event::DnsCopy,
    maps::{ANSWER_LATE_NS, AliasKey, QueryKey},
    policy::protocol,
    tally::Tally,
};
use tracing::{debug, warn};

use super::{
    events::{Budget, rebinding, refused_query},
    shared::{Bound, Shared, lock},
    time::now_ns,
};
use crate::{
    datapath::{DnsRing, readable},
    dns::{
        Answer, Reassembly, Receiver, Refusal, RefusalKind, Seen, StreamLimits, WholeMessage,
        asked_name, is_left_to_the_agent,
    },
    shutdown::Shutdown,
};

/// Most copies that are read before their messages are taken.
const BATCH: usize = 256;

/// How often a ring is looked at without being told.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// Life of what is remembered of names that no rule allows, at least; seconds.
const REMEMBER_S: u32 = 300;

/// Reads copies until it is told to stop.
///
/// # Errors
///
/// The ring cannot be waited for.
pub(super) async fn run(shared: Arc<Shared>, ring: DnsRing, stop: Shutdown) -> anyhow::Result<()> {
    let mut ring = readable(ring).context("cannot wait for DNS copies")?;
    let mut reassembly = Reassembly::new(StreamLimits::default());
    let mut raised = Budget::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let guard = tokio::select! {
            guard = ring.readable_mut() => Some(guard.context("cannot wait for DNS copies")?),
            // The kernel does not tell of answers that it has learned by itself.
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
            take(&shared, &message, &mut raised);
        }
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

fn take(shared: &Shared, message: &WholeMessage, raised: &mut Budget) {
    let copy = &message.copy;
    let outcome = Tally::try_from(copy.outcome).ok();
    if is_unusable(outcome, copy) {
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
    debug!(
        scope = bound.scope.name,
        question = answer.question(),
        addresses = answer.addresses.len(),
        outcome = outcome.map(Tally::name),
        "DNS answer"
    );
    if let Some(kind) = untold(outcome, copy) {
        let addresses = answer.addresses.iter().map(|one| one.address);
        remember_refusal(shared, bound, copy, &answer, kind, addresses.collect());
        return;
    }
    remember(shared, bound, &answer, copy.at_ns, now_ns);
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
    if outcome.is_some_and(is_left_to_the_agent) && was_asked(shared, copy, &answer, now_ns) {
        learn(shared, copy, &answer, now_ns);
    }
}

/// Answers that say nothing, not even why.
fn is_unusable(outcome: Option<Tally>, copy: &DnsCopy) -> bool {
    match outcome {
        Some(Tally::AnswerOtherQuestion) => copy.proto != protocol::TCP,
        None | Some(Tally::AnswerMalformed) => true,
        Some(_) => false,
    }
}

/// Why an answer is not believed. Over TCP the connection itself speaks for an answer: see [`was_asked`].
fn untold(outcome: Option<Tally>, copy: &DnsCopy) -> Option<RefusalKind> {
    let is_datagram = copy.proto != protocol::TCP;
    let outcome = outcome?;
    if outcome == Tally::AnswerUntrusted {
        Some(RefusalKind::Untrusted)
    } else if outcome == Tally::AnswerUnsolicited && is_datagram {
        Some(RefusalKind::NotAsked)
    } else if outcome == Tally::AnswerLate && is_datagram {
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

/// Whether this answers a query of this socket. A query over TCP that was sent in pieces could not be noted; then
/// the connection, whose sequence numbers the kernel compared, is all there is.
fn was_asked(shared: &Shared, copy: &DnsCopy, answer: &Answer, now_ns: u64) -> bool {
    let key = QueryKey {
        cookie: copy.cookie,
        resolver: copy.resolver,
        id: answer.id.to_be_bytes(),
        port: copy.port,
        proto: copy.proto,
        _pad: [0; 3],
    };
    let datapath = shared.datapath();
    let Some(query) = datapath.query(&key) else {
        return copy.proto == protocol::TCP;
    };
    let Ok(seed) = datapath.seed() else {
        return false;
    };
    query.question == answer.question_hash(seed)
        && now_ns.saturating_sub(query.sent_at_ns) <= ANSWER_LATE_NS
}

/// Keeps what was resolved to what, allowed or not.
fn remember(shared: &Shared, bound: &Bound, answer: &Answer, at_ns: u64, now_ns: u64) {
    let rules = bound.rules_of_name(answer.question());
    for address in &answer.addresses {
        let allowed = rules.filter(|rules| rules.deny == 0);
        let life_s = match allowed {
            Some(rules) => rules.lifetime_s(address.ttl_s),
            None => address.ttl_s.max(REMEMBER_S),
        };
        let life_ns = u64::from(life_s).saturating_mul(1_000_000_000);
        shared.memory.record(
            bound.scope.number,
            &Seen {
                address: address.address,
                name: answer.question(),
                alias: answer.alias_of(address),
                at_ns,
                expires_at_ns: now_ns.saturating_add(life_ns),
                is_allowed: allowed.is_some(),
            },
            now_ns,
        );
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
    // Over TCP two bytes of length come first; what is no query is reported without its name.
    let bytes = if copy.proto == protocol::TCP {
        payload.get(2..)
    } else {
        Some(payload)
    };
    let name = bytes.and_then(asked_name);
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
    let Ok(seed) = datapath.seed() else {
        return;
    };
    let key = AliasKey::new(name_hash(seed, answer.question()), scope_id);
    let noted = datapath
        .alias(&key)
        .filter(|alias| alias.expires_at_ns > now_ns);
    let receiver = Receiver {
        scope_id,
        seed,
        now_ns,
        by_alias: noted.as_ref().map(|alias| &alias.rules),
    };
    let lesson = crate::dns::learn(
        answer,
        receiver,
        |name| compiled.names.rules_of(name).copied(),
        |address| local.contains(address),
    );
    let stored = datapath
        .learn(&lesson.requests)
        .and_then(|_| datapath.note_aliases(&lesson.aliases));
    if let Err(error) = stored {
        warn!(
            error = format!("{:#}", anyhow::Error::new(error)),
            "cannot learn"
        );
    }
}
