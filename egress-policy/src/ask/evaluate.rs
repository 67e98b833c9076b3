//! Verdicts of policies on a destination, without a kernel.
//!
//! The decision is [`decide`]'s. What the maps would say is made from the
//! compiled policy: a name stands for an address that it has just taught.

use egress_common::{
    address::Address,
    decision::{Decision, Trouble, decide},
    learned::{Grant, Learned, LearnedKey},
    policy::{Binding, CidrRules, NameRules},
    verdict::Reason,
};

use crate::{
    compile::{Compiled, RuleSource},
    vocabulary::{Cidr, Destination, Host},
};

/// Any scope and policy but none: their numbers mean nothing here.
const SCOPE: u32 = 1;
const NETNS: u32 = 1;
const POLICY: u16 = 1;

/// A moment before the end of what was taught.
const NOW_NS: u64 = 1;

/// An address of no particular IPv6 network.
const SOME_V6: Address = [0; 16];

impl Compiled {
    /// How a workload is bound to this policy.
    #[must_use]
    pub const fn binding(&self, scope_id: u32, policy_id: u16) -> Binding {
        Binding {
            scope_id,
            policy_id,
            mode: self.mode as u8,
            flags: self.flags,
        }
    }

    /// Decides for a workload that has resolved the name, or, for an address, `names` that lead there.
    ///
    /// Of a name's addresses nothing is known but that each is IPv4 or IPv6: networks count when they hold all of a
    /// family. What is allowed in one of the families, or by one of the names, is allowed.
    #[must_use]
    pub fn judge(&self, destination: &Destination, names: &[&str]) -> Decision {
        match &destination.host {
            Host::Name(name) => {
                let all = [Cidr::ALL_V4, Cidr::containing(&SOME_V6, 0)];
                let judged = all.map(|all| {
                    let rules = self.cidrs.get(&(*all.address(), all.bits()));
                    self.judge_at(destination, *all.address(), rules, Some(name))
                });
                telling(judged).unwrap_or_else(|| self.nothing())
            }
            Host::Address(address) => {
                let rules = self.rules_of_address(address);
                let none = self.judge_at(destination, *address, rules, None);
                let named = names
                    .iter()
                    .map(|name| self.judge_at(destination, *address, rules, Some(name)));
                telling(named.chain([none])).unwrap_or(none)
            }
        }
    }

    /// Decides for one address that a name has taught.
    fn judge_at(
        &self,
        destination: &Destination,
        address: Address,
        rules: Option<&CidrRules>,
        name: Option<&str>,
    ) -> Decision {
        let key = LearnedKey::new(SCOPE, NETNS, address);
        let learned = name
            .and_then(|name| self.rules_of_name(name))
            .map(|rules| taught(rules, &key));
        decide(
            &destination.at(address).flow(address),
            &self.binding(SCOPE, POLICY),
            NOW_NS,
            || rules,
            || learned.as_ref().map(|learned| (learned, &key)),
            || {
                let learned = learned.as_ref();
                learned.map_or(0, |learned| learned.named(&key, destination.port, NOW_NS))
            },
            || Trouble::None,
        )
    }

    const fn nothing(&self) -> Decision {
        Decision::without_rule(Reason::NoRule, &self.binding(SCOPE, POLICY))
    }

    /// The rule that a decision rests on.
    #[must_use]
    pub fn rule_of(&self, decision: &Decision) -> Option<&RuleSource> {
        self.rules.get(&decision.rule)
    }

    /// The rule by which a policy in audit denies what passes: by the address, or by one of the names that lead there.
    #[must_use]
    pub fn auditor_of(&self, destination: &Destination, names: &[&str]) -> Option<&RuleSource> {
        let of_name = |name: &str| {
            let auditor = self.auditor_of_name(name);
            (auditor != 0).then_some(auditor)
        };
        let auditor = match &destination.host {
            Host::Name(name) => of_name(name),
            Host::Address(address) => {
                let rules = self.rules_of_address(address);
                let auditor = rules.map_or(0, |rules| {
                    rules.auditor(destination.proto, destination.port)
                });
                let of_address = (auditor != 0).then_some(auditor);
                of_address.or_else(|| names.iter().copied().find_map(of_name))
            }
        };
        self.rules.get(&auditor?)
    }
}

/// The decision that says most: one that allows, one that passes under audit, one with more than "no rule" for a reason.
#[must_use]
pub fn telling(decisions: impl IntoIterator<Item = Decision>) -> Option<Decision> {
    let worth = |decision: &Decision| {
        if decision.reason.allows() {
            3
        } else if decision.reason.passes() {
            2
        } else {
            u8::from(decision.reason != Reason::NoRule)
        }
    };
    decisions.into_iter().reduce(|best, next| {
        if worth(&next) > worth(&best) {
            next
        } else {
            best
        }
    })
}

/// The entry of an address that a name with these rules has taught. A denied name has no entries.
fn taught(rules: &NameRules, key: &LearnedKey) -> Learned {
    let mut learned = Learned {
        owner: key.words(),
        ..Learned::default()
    };
    let used = rules.entries.iter().take_while(|entry| entry.kind != 0);
    for (slot, entry) in learned.grants.iter_mut().zip(used) {
        *slot = Grant {
            expires_at_ns: u64::MAX,
            rule: entry.rule,
            auditor: rules.auditor,
            ports: entry.ports,
            ..Grant::default()
        };
    }
    learned
}
