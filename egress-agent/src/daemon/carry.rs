//! What scopes know that are about to be judged by other rules.

use std::collections::HashMap;

use egress_common::{
    learned::{Grant, LearnRequest, LearnedKey},
    maps::{Alias, AliasKey},
    policy::{NAME_ENTRIES, NameRules, RuleEntry},
};

use super::{
    shared::{Bound, Scope, Shared},
    time::now_ns,
};
use crate::{
    datapath::LearnedEntry,
    dns::SeenName,
    policy::{Compiled, RuleList},
};

/// How a scope is bound after the switch, by the scope id that it has before.
pub(super) type Successors<'a> = HashMap<u32, &'a Bound>;

impl Shared {
    /// What the new scopes are to know from the beginning.
    pub(super) fn carry_over(
        &self,
        entries: &[LearnedEntry],
        successors: &Successors<'_>,
    ) -> Vec<LearnRequest> {
        let now_ns = now_ns();
        let mut requests = Vec::new();
        for entry in entries {
            let Some(bound) = successors.get(&entry.scope_id) else {
                continue;
            };
            let Some(compiled) = bound.compiled() else {
                continue;
            };
            let live = entry
                .grants
                .iter()
                .filter(|grant| grant.expires_at_ns > now_ns);
            for grant in live {
                let auditor = self.still_rests(&bound.scope, entry, grant, compiled, now_ns);
                requests.extend(auditor.map(|auditor| LearnRequest {
                    key: LearnedKey::new(bound.binding.scope_id, entry.address),
                    grant: Grant { auditor, ..*grant },
                }));
            }
        }
        let by_number: HashMap<_, _> = successors
            .values()
            .map(|bound| (bound.scope.number, *bound))
            .collect();
        self.memory.for_each_live(now_ns, |live| {
            let Some(bound) = by_number.get(&live.scope) else {
                return;
            };
            let Some(compiled) = bound.compiled() else {
                return;
            };
            let Some(rules) = compiled.rules_of_name(&live.seen.name) else {
                return;
            };
            let Some(auditor) = auditor_of_seen(live.seen, rules, compiled) else {
                return;
            };
            for rule in rules.entries.iter().take_while(|rule| rule.kind != 0) {
                requests.push(LearnRequest {
                    key: LearnedKey::new(bound.binding.scope_id, live.address),
                    grant: Grant {
                        expires_at_ns: live.seen.expires_at_ns,
                        rule: rule.rule,
                        auditor,
                        ports: rule.ports,
                        _pad: 0,
                    },
                });
            }
        });
        requests
    }

    /// The auditor of a grant under the new policy (0 for none), if it has the rule and does not deny the name that the
    /// grant rests on.
    fn still_rests(
        &self,
        scope: &Scope,
        entry: &LearnedEntry,
        grant: &Grant,
        compiled: &Compiled,
        now_ns: u64,
    ) -> Option<u64> {
        let source = compiled.rules.get(&grant.rule)?;
        if source.list != RuleList::Allow {
            return None;
        }
        let names = self.memory.names_of(scope.number, &entry.address, now_ns);
        let mut live = names
            .iter()
            .filter(|name| name.expires_at_ns > now_ns)
            .peekable();
        // Learned while no agent looked: its rules are all that is known of it.
        if live.peek().is_none() {
            return match compiled.rules.get(&grant.auditor) {
                None => Some(0),
                // The policy that only looked on is enforced now.
                Some(auditor) => auditor.is_audited.then_some(grant.auditor),
            };
        }
        // A rule with the same content covers the same names. A name that no rule covers was the target of an alias.
        let auditors = live.filter_map(|name| {
            let rules = compiled.names.rules_of(&name.name).copied();
            auditor_of_seen(name, &rules.unwrap_or_default(), compiled)
        });
        // One name that nobody audits is enough.
        auditors.min()
    }
}

/// The rule by which a policy in audit denies a name with these rules, or its alias (0 for none); `None` if either is denied.
fn auditor_of_seen(seen: &SeenName, rules: &NameRules, compiled: &Compiled) -> Option<u64> {
    let is_denied = |name: &str| {
        compiled
            .rules_of_name(name)
            .is_some_and(|rules| rules.deny != 0)
    };
    let alias = seen.alias.as_deref();
    if rules.deny != 0 || alias.is_some_and(is_denied) {
        return None;
    }
    Some(if rules.auditor == 0 {
        alias.map_or(0, |alias| compiled.auditor_of_name(alias))
    } else {
        rules.auditor
    })
}

/// Noted aliases for the new scopes: under the rules that the new policy still has. A target that the new policy denies
/// stays denied, because its own name is matched first.
pub(super) fn carry_over_aliases(
    aliases: &[(AliasKey, Alias)],
    successors: &Successors<'_>,
) -> Vec<(AliasKey, Alias)> {
    let carried = aliases.iter().filter_map(|(key, alias)| {
        let bound = successors.get(&key.scope_id)?;
        let compiled = bound.compiled()?;
        let key = AliasKey::new(key.name, bound.binding.scope_id);
        let is_kept = |rule| {
            let source = compiled.rules.get(&rule);
            source.is_some_and(|source| source.list == RuleList::Allow)
        };
        alias_for(key, alias, is_kept).map(|alias| (key, alias))
    });
    carried.collect()
}

/// An alias as it is noted under another key, with those of its rules that are kept; `None` if there are none.
pub(super) fn alias_for(
    key: AliasKey,
    alias: &Alias,
    is_kept: impl Fn(u64) -> bool,
) -> Option<Alias> {
    let mut rules = alias.rules;
    rules.entries = [RuleEntry::default(); NAME_ENTRIES];
    let entries = alias.rules.entries.iter();
    let kept = entries.filter(|entry| entry.kind != 0 && is_kept(entry.rule));
    for (slot, entry) in rules.entries.iter_mut().zip(kept) {
        *slot = *entry;
    }
    let [first, ..] = rules.entries;
    (first.kind != 0).then_some(Alias {
        owner: key.owner(),
        expires_at_ns: alias.expires_at_ns,
        rules,
    })
}
