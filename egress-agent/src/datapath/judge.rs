//! The kernel's decision on a flow at this moment: its function, its maps.

use aya::maps::lpm_trie::Key;
use egress_common::{
    decision::{Decision, Trouble, decide},
    flow::Flow,
    learned::{Grant, LearnedKey, holder_word},
    maps::HOLDS_FULL,
    policy::{Binding, CIDR_KEY_BITS, cidr_key},
};

use super::{
    Datapath,
    maps::{Maps, used_grants},
};

/// A decision, and what the scope knows of the address.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The decision.
    pub decision: Decision,
    /// Grants of the address, live or ended.
    pub grants: Vec<Grant>,
}

impl Datapath {
    /// The binding by which the kernel judges at this moment: audit once its enforcing is over.
    #[must_use]
    pub fn effective(&self, binding: Binding, now_ns: u64) -> Binding {
        self.maps.effective(binding, now_ns)
    }

    /// Decides a flow as the kernel would for the first packet of a socket of this binding in a network namespace.
    #[must_use]
    pub fn judge(&self, flow: &Flow, binding: &Binding, netns: u32, now_ns: u64) -> Judged {
        self.maps.judge(flow, binding, netns, now_ns)
    }
}

impl Maps {
    fn judge(&self, flow: &Flow, binding: &Binding, netns: u32, now_ns: u64) -> Judged {
        let binding = &self.effective(*binding, now_ns);
        let key = Key::new(CIDR_KEY_BITS, cidr_key(binding.policy_id, &flow.daddr));
        let cidr = self.cidrs.get(&key, 0).ok();
        let key = LearnedKey::new(binding.scope_id, netns, flow.daddr);
        let learned = self.learned.get(&key, 0).ok();
        let decision = decide(
            flow,
            binding,
            now_ns,
            || cidr.as_ref(),
            || learned.as_ref().map(|learned| (learned, &key)),
            || {
                let learned = learned.as_ref();
                learned.map_or(0, |learned| learned.named(&key, flow.dport, now_ns))
            },
            || self.trouble(binding.scope_id, netns, now_ns),
        );
        let own = learned.filter(|learned| learned.is_of(&key));
        Judged {
            decision,
            grants: own.as_ref().map(used_grants).unwrap_or_default(),
        }
    }

    fn effective(&self, binding: Binding, now_ns: u64) -> Binding {
        match self.config() {
            Ok(config) => config.effective(binding, || now_ns),
            Err(_) => binding,
        }
    }

    /// The reason why the kernel does not know a holder's addresses.
    fn trouble(&self, scope_id: u32, netns: u32, now_ns: u64) -> Trouble {
        let key = holder_word(scope_id, netns);
        let is_marked = |key: u64| {
            let until_ns = self.holds.get(&key, 0);
            until_ns.is_ok_and(|until_ns| until_ns > now_ns)
        };
        if is_marked(key) {
            Trouble::Reading
        } else if is_marked(key | HOLDS_FULL) {
            Trouble::Full
        } else {
            Trouble::None
        }
    }
}
