//! Knowledge of scopes that are about to be judged by other rules.
//!
//! A grant goes over when an answer that the kernel, or the agent, matched to a
//! query shows that a name still teaches it: every name on the chain from the
//! question to the address is looked up under the new policy, and one that is
//! denied ends it. What cannot be shown is left behind; its names have to be
//! asked for again.

use std::{cmp::Reverse, collections::HashMap};

use egress_common::learned::{Grant, LearnRequest, LearnedKey};

use super::shared::Bound;
use crate::{
    datapath::NotedAlias,
    dns::{Memory, Teaching, end_of, grants},
    policy::Compiled,
};

/// How a scope is bound after the switch, by the scope id that it has before.
pub(super) type Successors<'a> = HashMap<u32, &'a Bound>;

/// Everything that a scope under new rules knows from the beginning.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Grants.
    pub(super) requests: Vec<LearnRequest>,
    /// Aliases.
    pub(super) aliases: Vec<NotedAlias>,
}

impl Carried {
    /// Adds what a scope takes along. `held` gives the grants that the kernel has for an address now, live or ended.
    pub(super) fn take(
        &mut self,
        memory: &Memory,
        bound: &Bound,
        held: impl Fn(u32, [u8; 16]) -> Option<Vec<Grant>>,
        now_ns: u64,
    ) {
        let Some(compiled) = bound.compiled() else {
            return;
        };
        let (scope, scope_id) = (bound.scope.number, bound.binding.scope_id);
        let mut taught = Vec::new();
        memory.for_each(scope, |address, seen| {
            if seen.netns == 0 {
                return;
            }
            let Some(teaching) = teaching(compiled, seen.chain()) else {
                return;
            };
            let key = LearnedKey::new(scope_id, seen.netns, address);
            for rules in teaching.sets() {
                let by_answer = end_of(&rules, seen.ttl_s, seen.at_ns);
                let longest = end_of(&rules, u32::MAX >> 1, seen.at_ns);
                let ends = if seen.allowed {
                    seen.expires_at_ns.min(longest).max(by_answer)
                } else {
                    by_answer
                };
                let granted = grants(key, &rules, seen.at_ns, ends);
                taught.extend(granted.map(|request| (request, by_answer)));
            }
        });
        let mut last: Option<(LearnedKey, Option<Vec<Grant>>)> = None;
        for (mut request, by_answer) in taught {
            let known = match &last {
                Some((key, known)) if *key == request.key => known,
                _ => {
                    let known = held(request.key.netns, request.key.address);
                    &last.insert((request.key, known)).1
                }
            };
            let of_ports = known.iter().flatten();
            let of_ports = of_ports.filter(|grant| grant.ports == request.grant.ports);
            let (used, held_until) = of_ports.fold((0, 0), |(used, until), grant| {
                (grant.used_at_s.max(used), grant.expires_at_ns.max(until))
            });
            request.grant.used_at_s = used;
            // The last agent's lines may be a minute too long; the kernel's grants, and the answer itself, are not.
            if held_until != 0 {
                let bound = held_until.max(by_answer);
                request.grant.expires_at_ns = request.grant.expires_at_ns.min(bound);
            }
            // One that has ended goes over for the flows that it allowed, as long as the kernel remembers it.
            if request.grant.end_ns() > now_ns || known.is_some() {
                self.requests.push(request);
            }
        }
        memory.for_each_alias(scope, now_ns, |alias, chain| {
            let Some(teaching) = teaching(compiled, &chain.chain) else {
                return;
            };
            let Some(rules) = teaching.sets().next() else {
                return;
            };
            let longest = end_of(&rules, u32::MAX >> 1, chain.at_ns);
            let by_answer = end_of(&rules, chain.ttl_s, chain.at_ns);
            self.aliases.push(NotedAlias {
                scope_id,
                netns: chain.netns,
                name: alias.to_owned(),
                expires_at_ns: chain.expires_at_ns.min(longest).max(by_answer),
                rules,
            });
        });
    }
}

impl Carried {
    /// Sorts the grants, so that what flows used last finds room first: a scope's share may be smaller.
    pub(super) fn sort(&mut self) {
        let last_used = |request: &LearnRequest| Reverse(request.grant.used_at_s);
        self.requests.sort_by_key(last_used);
    }
}

/// The rules that a chain teaches under a policy; `None` when one of its names is denied.
pub(super) fn teaching(compiled: &Compiled, chain: &str) -> Option<Teaching> {
    Teaching::of_chain(chain, |name| compiled.names.rules_of(name).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_finds_room_first() {
        let request = |last: u8, used_at_s| LearnRequest {
            key: LearnedKey::new(1, 1, [last; 16]),
            grant: Grant {
                used_at_s,
                ..Grant::default()
            },
        };
        let mut carried = Carried {
            requests: vec![request(1, 0), request(2, 90), request(3, 10)],
            ..Carried::default()
        };
        carried.sort();
        let used = carried
            .requests
            .iter()
            .map(|request| request.grant.used_at_s);
        assert_eq!(used.collect::<Vec<_>>(), [90, 10, 0]);
    }
}
