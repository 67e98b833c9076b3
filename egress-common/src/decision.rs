//! The one decision: a flow, the maps' entries for its destination, and the time, make a reason.
//!
//! Every hook, the agent's `explain` and the host tests call [`decide`]. Two
//! hooks that disagree are a security bug, so there is no second place.

use crate::{
    address::is_loopback,
    flow::{Flow, Origin, Starter},
    learned::{Found, Learned, LearnedKey, MANY_RULES},
    policy::{Binding, CidrRules, EntryKind, HAS_AUDITORS, KEEP_PREEXISTING, protocol},
    verdict::{Reason, Verdict},
};

/// A verdict with its reason and the rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The outcome.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The rule behind it; 0 where there is none. For a flow that passes although a policy in audit denies it, the rule
    /// that allows it.
    pub rule: u64,
}

impl Decision {
    /// A decision without a rule, under `binding`'s mode.
    #[inline(always)]
    #[must_use]
    pub const fn without_rule(reason: Reason, binding: &Binding) -> Self {
        Self::new(reason, 0, binding)
    }

    /// A decision by a rule, under `binding`'s mode.
    #[inline(always)]
    #[must_use]
    pub const fn new(reason: Reason, rule: u64, binding: &Binding) -> Self {
        Self {
            verdict: reason.verdict(binding.mode()),
            reason,
            rule,
        }
    }
}

impl Decision {
    /// The flow's next packets pass by the memory of this decision.
    #[inline(always)]
    #[must_use]
    pub const fn is_remembered(&self) -> bool {
        self.rule != 0 && self.reason.passes() && !matches!(self.reason, Reason::AwaitsName)
    }

    /// The workload started a flow that passes without a rule: its policy is in audit, or it has none. Nothing is granted,
    /// but the remote's answer is no call of its own.
    #[inline(always)]
    #[must_use]
    pub const fn is_begun(&self, origin: Origin) -> bool {
        matches!(origin.starter, Starter::Workload)
            && !self.is_remembered()
            && !matches!(self.verdict, Verdict::Deny)
    }

    /// The verdict on a packet that could not be judged by its flow: a workload without a policy may send unreadable
    /// packets, but none in another's name.
    #[inline(always)]
    #[must_use]
    pub const fn refusal(reason: Reason, binding: &Binding) -> Self {
        if binding.policy_id == 0 && !matches!(reason, Reason::ForgedSource) {
            Self::without_rule(Reason::NoPolicy, binding)
        } else {
            Self::without_rule(reason, binding)
        }
    }

    /// Return code of a cgroup_skb program. A deferred packet is dropped without an error: TCP sends it again, and so
    /// do resolvers.
    #[inline(always)]
    #[must_use]
    pub const fn packet_code(&self) -> i32 {
        if matches!(self.verdict, Verdict::Deny) && matches!(self.reason, Reason::HeldOff) {
            Verdict::SILENT_DROP
        } else {
            self.verdict.cgroup_code()
        }
    }
}

/// Decides one flow.
///
/// `cidr` looks the destination up among the policy's CIDRs, `learned` among
/// the scope's learned addresses (with the key that it asked for);
/// each is called at most once. `named` says by which rule the destination is open to connections that name it (see
/// [`Learned::named`]), and is asked where nothing else opens it. `trouble` says whether
/// anything keeps the scope from knowing its addresses.
#[inline(always)]
pub fn decide<'a>(
    flow: &Flow,
    binding: &Binding,
    now_ns: u64,
    cidr: impl FnOnce() -> Option<&'a CidrRules>,
    learned: impl FnOnce() -> Option<(&'a Learned, &'a LearnedKey)>,
    named: impl FnOnce() -> u64,
    trouble: impl FnOnce() -> Trouble,
) -> Decision {
    if let Some(reason) = standing_reason(flow, binding) {
        return Decision::without_rule(reason, binding);
    }
    let mut is_audited = false;
    if let Some(rules) = cidr() {
        is_audited =
            binding.flags & HAS_AUDITORS != 0 && rules.auditor(flow.proto, flow.dport) != 0;
        // For a sender in the node's own namespace its addresses are on loopback, or somebody else's.
        let counts_local = flow.way.is_outside || flow.way.is_unrouted;
        if let Some(entry) = rules.find(flow.proto, flow.dport, counts_local) {
            let reason = if entry.kind == EntryKind::Local as u8 && !flow.way.is_outside {
                return Decision::without_rule(Reason::Loopback, binding);
            } else if entry.kind == EntryKind::Lifeline as u8
                || entry.kind == EntryKind::Local as u8
            {
                Reason::Lifeline
            } else if entry.kind != EntryKind::Allow as u8 {
                Reason::DeniedCidr
            } else if is_audited {
                Reason::AuditedCidr
            } else {
                Reason::CidrRule
            };
            return Decision::new(reason, entry.rule, binding);
        }
    }
    let entry = learned();
    // A name that still teaches the address carried a grant for the port over, which may have ended since.
    if matches!(flow.origin.starter, Starter::Resting)
        && let Some((entry, key)) = entry
        && entry.has_grant(key, flow.proto, flow.dport)
    {
        let rule = flow.origin.rule;
        let reason = if is_audited {
            Reason::AuditedCidr
        } else {
            Reason::EstablishedFlow
        };
        return Decision::new(reason, rule, binding);
    }
    let found = match entry {
        Some((entry, key)) => entry.find(key, flow.proto, flow.dport, now_ns),
        None => Found::Unknown,
    };
    if let Found::Live(rule) | Found::Audited(rule) = found {
        let reason = if is_audited {
            Reason::AuditedCidr
        } else if matches!(found, Found::Audited(_)) {
            Reason::AuditedName
        } else {
            Reason::NameRule
        };
        return Decision::new(reason, rule, binding);
    }
    if flow.is_fragment {
        return Decision::without_rule(Reason::Fragment, binding);
    }
    // Nothing is learned of most destinations that are denied.
    let rule = if matches!(found, Found::Unknown) {
        0
    } else {
        named()
    };
    if rule != 0 {
        let reason = match flow.proto {
            protocol::TCP => Reason::AwaitsName,
            protocol::UDP => Reason::Quic,
            _ => Reason::NotTls,
        };
        let is_one = rule != MANY_RULES || matches!(reason, Reason::AwaitsName);
        return Decision::new(reason, if is_one { rule } else { 0 }, binding);
    }
    unknown(flow, binding, found, trouble())
}

/// Reasons for which a scope does not know addresses that it has resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// An answer is being learned by the agent at this moment.
    Reading,
    /// There was no room for an address lately.
    Full,
}

/// Why a flow without a live grant is denied.
#[inline(always)]
const fn unknown(flow: &Flow, binding: &Binding, found: Found, trouble: Trouble) -> Decision {
    if matches!(trouble, Trouble::Reading) {
        return Decision::without_rule(Reason::HeldOff, binding);
    }
    match found {
        Found::Expired(rule) => Decision::new(Reason::Expired, rule, binding),
        Found::OtherPorts => Decision::without_rule(Reason::PortNotAllowed, binding),
        Found::Live(_) | Found::Audited(_) | Found::Unknown => match flow.origin.starter {
            Starter::Serving => Decision::without_rule(Reason::ReplyForgotten, binding),
            _ if matches!(trouble, Trouble::Full) => {
                Decision::without_rule(Reason::TableFull, binding)
            }
            Starter::Workload
            | Starter::Remote
            | Starter::Preexisting
            | Starter::Kernel
            | Starter::Resting => Decision::without_rule(Reason::NoRule, binding),
        },
    }
}

/// The reasons that need no lookup.
#[inline(always)]
const fn standing_reason(flow: &Flow, binding: &Binding) -> Option<Reason> {
    if binding.policy_id == 0 {
        return Some(Reason::NoPolicy);
    }
    // Packets on the loopback device were passed before. On another one they leave, and a neighbour may take them in.
    if is_loopback(&flow.daddr) {
        return Some(if flow.way.is_unrouted {
            Reason::Loopback
        } else {
            Reason::LoopbackElsewhere
        });
    }
    match flow.origin.starter {
        Starter::Remote => Some(Reason::Reply),
        Starter::Kernel => Some(Reason::KernelReply),
        Starter::Preexisting if binding.flags & KEEP_PREEXISTING != 0 => {
            Some(Reason::PreexistingFlow)
        }
        Starter::Preexisting | Starter::Workload | Starter::Serving | Starter::Resting => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::{Address, from_v4},
        flow::{Origin, Way},
        learned::Grant,
        policy::{PortRange, REQUIRE_TLS, RuleEntry, protocol::TCP},
    };

    const FAR: Address = from_v4([192, 0, 2, 1]);
    const ENFORCED: Binding = Binding {
        scope_id: 1,
        policy_id: 1,
        mode: 0,
        flags: KEEP_PREEXISTING,
    };

    fn flow(origin: Origin) -> Flow {
        Flow {
            daddr: FAR,
            dport: Some(443),
            proto: TCP,
            is_fragment: false,
            way: Way::default(),
            origin,
        }
    }

    fn cidr(kind: EntryKind) -> CidrRules {
        let mut rules = CidrRules::default();
        rules.entries[0] = RuleEntry {
            rule: 9,
            ports: PortRange::new(TCP, 443, 443),
            kind: kind as u8,
            _pad: 0,
        };
        rules
    }

    fn learned(port: u16, expires_at_ns: u64) -> (Learned, LearnedKey) {
        let key = LearnedKey::new(1, 2, FAR);
        let mut entry = Learned {
            owner: key.words(),
            ..Learned::default()
        };
        entry.grants[0] = Grant {
            expires_at_ns,
            rule: 5,
            ports: PortRange::new(TCP, port, port),
            ..Grant::default()
        };
        (entry, key)
    }

    fn reason(
        flow: &Flow,
        cidr: Option<&CidrRules>,
        learned: Option<&(Learned, LearnedKey)>,
    ) -> Reason {
        decide(
            flow,
            &ENFORCED,
            100,
            || cidr,
            || learned.map(|(entry, key)| (entry, key)),
            || learned.map_or(0, |(entry, key)| entry.named(key, flow.dport, 100)),
            || Trouble::None,
        )
        .reason
    }

    #[test]
    fn without_a_rule_the_flow_is_denied() {
        let decision = decide(
            &flow(Origin::WORKLOAD),
            &ENFORCED,
            100,
            || None,
            || None,
            || 0,
            || Trouble::None,
        );
        assert_eq!(decision.verdict, Verdict::Deny);
        assert_eq!(decision.reason, Reason::NoRule);
    }

    #[test]
    fn a_learned_address_is_allowed_on_its_port_until_its_end() {
        let flow = flow(Origin::WORKLOAD);
        assert_eq!(
            reason(&flow, None, Some(&learned(443, 101))),
            Reason::NameRule
        );
        assert_eq!(
            reason(&flow, None, Some(&learned(443, 100))),
            Reason::Expired
        );
        assert_eq!(
            reason(&flow, None, Some(&learned(80, 101))),
            Reason::PortNotAllowed
        );
    }

    #[test]
    fn who_has_to_name_the_destination_passes_until_he_does_and_by_tcp_alone() {
        let (mut entry, key) = learned(443, 101);
        entry.grants[0].ports = PortRange::new(TCP, 443, 443).requiring(REQUIRE_TLS);
        let learned = (entry, key);
        let flow = |proto| Flow {
            proto,
            ..flow(Origin::WORKLOAD)
        };
        let decided = |proto| {
            decide(
                &flow(proto),
                &ENFORCED,
                100,
                || None,
                || Some((&learned.0, &learned.1)),
                || learned.0.named(&learned.1, Some(443), 100),
                || Trouble::None,
            )
        };
        let tcp = decided(TCP);
        assert_eq!((tcp.reason, tcp.rule), (Reason::AwaitsName, 5));
        assert!(tcp.verdict == Verdict::Allow && !tcp.is_remembered());
        let udp = decided(protocol::UDP);
        assert_eq!((udp.reason, udp.verdict), (Reason::Quic, Verdict::Deny));
        // A CIDR rule says nothing of names.
        assert_eq!(
            reason(&flow(TCP), Some(&cidr(EntryKind::Allow)), Some(&learned)),
            Reason::CidrRule
        );
    }

    #[test]
    fn a_denied_cidr_beats_a_learned_grant_and_the_lifeline_beats_both() {
        let flow = flow(Origin::WORKLOAD);
        let grant = learned(443, 101);
        assert_eq!(
            reason(&flow, Some(&cidr(EntryKind::Deny)), Some(&grant)),
            Reason::DeniedCidr
        );
        assert_eq!(
            reason(&flow, Some(&cidr(EntryKind::Lifeline)), None),
            Reason::Lifeline
        );
        assert_eq!(
            reason(&flow, Some(&cidr(EntryKind::Allow)), None),
            Reason::CidrRule
        );
    }

    #[test]
    fn a_reply_passes_even_to_a_denied_cidr() {
        let deny = cidr(EntryKind::Deny);
        assert_eq!(
            reason(&flow(Origin::REMOTE), Some(&deny), None),
            Reason::Reply
        );
        assert_eq!(
            reason(&flow(Origin::KERNEL), Some(&deny), None),
            Reason::KernelReply
        );
    }

    #[test]
    fn a_preexisting_flow_is_kept_or_judged_as_the_policy_says() {
        let flow = flow(Origin::PREEXISTING);
        assert_eq!(reason(&flow, None, None), Reason::PreexistingFlow);
        let judged = Binding {
            flags: 0,
            ..ENFORCED
        };
        let decision = decide(
            &flow,
            &judged,
            100,
            || None,
            || None,
            || 0,
            || Trouble::None,
        );
        assert_eq!(decision.reason, Reason::NoRule);
    }

    #[test]
    fn a_fragment_without_ports_is_denied_with_its_own_reason() {
        let fragment = Flow {
            dport: None,
            is_fragment: true,
            ..flow(Origin::WORKLOAD)
        };
        assert_eq!(
            reason(&fragment, None, Some(&learned(443, 101))),
            Reason::Fragment
        );
    }

    #[test]
    fn no_policy_and_loopback_addresses_need_no_lookup() {
        let free = Binding {
            policy_id: 0,
            ..ENFORCED
        };
        let decision = decide(
            &flow(Origin::WORKLOAD),
            &free,
            100,
            || unreachable!(),
            || unreachable!(),
            || unreachable!(),
            || unreachable!(),
        );
        assert_eq!(decision.reason, Reason::NoPolicy);
        let local = Flow {
            daddr: from_v4([127, 0, 0, 1]),
            ..flow(Origin::WORKLOAD)
        };
        // The device that carries it counts, whoever started it: before there is one it may go on.
        for (is_unrouted, origin, expected) in [
            (true, Origin::WORKLOAD, Reason::Loopback),
            (false, Origin::WORKLOAD, Reason::LoopbackElsewhere),
            (false, Origin::REMOTE, Reason::LoopbackElsewhere),
            (false, Origin::KERNEL, Reason::LoopbackElsewhere),
            (false, Origin::PREEXISTING, Reason::LoopbackElsewhere),
            (false, Origin::resting(5), Reason::LoopbackElsewhere),
        ] {
            let local = Flow {
                way: Way {
                    is_outside: false,
                    is_unrouted,
                },
                origin,
                ..local
            };
            let decision = decide(
                &local,
                &ENFORCED,
                100,
                || unreachable!(),
                || unreachable!(),
                || unreachable!(),
                || unreachable!(),
            );
            assert_eq!(decision.reason, expected);
        }
    }

    #[test]
    fn an_address_of_the_node_is_a_remote_for_other_namespaces_alone() {
        let mut rules = cidr(EntryKind::Local);
        rules.entries[1] = cidr(EntryKind::Deny).entries[0];
        let at = |is_outside, is_unrouted| Flow {
            way: Way {
                is_outside,
                is_unrouted,
            },
            ..flow(Origin::WORKLOAD)
        };
        let grant = learned(443, 101);
        for (flow, cidr, expected) in [
            (at(true, false), &rules, Reason::Lifeline),
            (at(true, true), &rules, Reason::Lifeline),
            (at(false, true), &rules, Reason::Loopback),
            // On a device other than loopback it is somebody else: the other rules decide.
            (at(false, false), &rules, Reason::DeniedCidr),
            (at(false, false), &cidr(EntryKind::Local), Reason::NameRule),
        ] {
            assert_eq!(reason(&flow, Some(cidr), Some(&grant)), expected);
        }
        assert_eq!(
            reason(&at(false, false), Some(&cidr(EntryKind::Local)), None),
            Reason::NoRule
        );
        // Only on its ports: elsewhere the next entry.
        let other = Flow {
            dport: Some(80),
            ..at(true, false)
        };
        assert_eq!(reason(&other, Some(&rules), None), Reason::NoRule);
    }

    #[test]
    fn who_is_not_restricted_may_send_what_cannot_be_read_but_not_in_anothers_name() {
        let free = Binding {
            policy_id: 0,
            ..ENFORCED
        };
        let refusal = Decision::refusal;
        assert_eq!(refusal(Reason::Malformed, &free).reason, Reason::NoPolicy);
        assert_eq!(refusal(Reason::ForgedSource, &free).verdict, Verdict::Deny);
        assert_eq!(
            refusal(Reason::Malformed, &ENFORCED).reason,
            Reason::Malformed
        );
        let code = |reason| Decision::without_rule(reason, &ENFORCED).packet_code();
        assert_eq!(
            [Reason::HeldOff, Reason::NoRule, Reason::Reply].map(code),
            [2, 0, 1]
        );
    }

    #[test]
    fn a_flow_outlives_its_ttl_but_not_a_deny_rule() {
        let resting = flow(Origin::resting(5));
        assert_eq!(
            reason(&resting, None, Some(&learned(443, 100))),
            Reason::EstablishedFlow
        );
        assert_eq!(
            reason(&resting, Some(&cidr(EntryKind::Deny)), None),
            Reason::DeniedCidr
        );
        // Nothing was carried over for its port: no name that may teach it led there.
        assert_eq!(reason(&resting, None, None), Reason::NoRule);
        assert_eq!(
            reason(&resting, None, Some(&learned(80, 100))),
            Reason::PortNotAllowed
        );
    }

    /// The rules, and behind them a deny rule of a policy in audit.
    fn audited(mut rules: CidrRules) -> CidrRules {
        let used = rules.entries.iter().take_while(|entry| entry.kind != 0);
        let free = used.count();
        rules.entries[free] = RuleEntry {
            rule: 77,
            kind: EntryKind::Audited as u8,
            ports: PortRange::ANY,
            _pad: 0,
        };
        rules
    }

    fn mixed(
        flow: &Flow,
        cidr: Option<&CidrRules>,
        learned: Option<&(Learned, LearnedKey)>,
    ) -> Decision {
        let binding = Binding {
            flags: HAS_AUDITORS,
            ..ENFORCED
        };
        let learned = || learned.map(|(entry, key)| (entry, key));
        decide(
            flow,
            &binding,
            100,
            || cidr,
            learned,
            || 0,
            || Trouble::None,
        )
    }

    #[test]
    fn what_only_an_audit_denies_passes_by_the_rule_that_allows_it() {
        let new = flow(Origin::WORKLOAD);
        let grant = learned(443, 101);
        let looks_on = audited(CidrRules::default());
        for (cidr, learned, expected) in [
            (
                audited(cidr(EntryKind::Allow)),
                None,
                (Reason::AuditedCidr, 9),
            ),
            (looks_on, Some(&grant), (Reason::AuditedCidr, 5)),
            (
                audited(cidr(EntryKind::Deny)),
                Some(&grant),
                (Reason::DeniedCidr, 9),
            ),
            (
                audited(cidr(EntryKind::Lifeline)),
                None,
                (Reason::Lifeline, 9),
            ),
            (looks_on, None, (Reason::NoRule, 0)),
        ] {
            let decision = mixed(&new, Some(&cidr), learned);
            assert_eq!((decision.reason, decision.rule), expected);
            let passes = expected.0.passes();
            assert_eq!(decision.is_remembered(), passes);
            assert_eq!(decision.verdict == Verdict::Deny, !passes);
            assert_eq!(
                decision.verdict == Verdict::WouldDeny,
                expected.0.is_audited()
            );
        }
        let resting = flow(Origin::resting(5));
        let decision = mixed(&resting, Some(&looks_on), Some(&learned(443, 100)));
        assert_eq!((decision.reason, decision.rule), (Reason::AuditedCidr, 5));
    }

    #[test]
    fn an_audited_name_is_told_unless_another_one_leads_there_too() {
        let (mut entry, key) = learned(443, 200);
        entry.grants[0].auditor = 77;
        let new = flow(Origin::WORKLOAD);
        let told = |entry: Learned| mixed(&new, None, Some(&(entry, key)));
        assert_eq!(told(entry).reason, Reason::AuditedName);
        assert_eq!(
            (told(entry).verdict, told(entry).rule),
            (Verdict::WouldDeny, 5)
        );
        entry.grants[1] = Grant {
            auditor: 0,
            rule: 6,
            ..entry.grants[0]
        };
        assert_eq!(
            (told(entry).reason, told(entry).rule),
            (Reason::NameRule, 6)
        );
        // Its end: the audited one is left.
        entry.grants[1].expires_at_ns = 100;
        assert_eq!(
            (told(entry).reason, told(entry).rule),
            (Reason::AuditedName, 5)
        );
        entry.grants[0].expires_at_ns = 100;
        assert_eq!(told(entry).reason, Reason::Expired);
    }

    #[test]
    fn a_serving_socket_is_told_that_its_peer_was_forgotten() {
        assert_eq!(
            reason(&flow(Origin::SERVING), None, None),
            Reason::ReplyForgotten
        );
    }

    #[test]
    fn an_unknown_address_may_have_found_no_room() {
        let decision = decide(
            &flow(Origin::WORKLOAD),
            &ENFORCED,
            100,
            || None,
            || None,
            || 0,
            || Trouble::Full,
        );
        assert_eq!(decision.reason, Reason::TableFull);
        let (entry, key) = learned(443, 100);
        let decision = decide(
            &flow(Origin::WORKLOAD),
            &ENFORCED,
            100,
            || None,
            || Some((&entry, &key)),
            || 0,
            || Trouble::Full,
        );
        assert_eq!(decision.reason, Reason::Expired);
    }

    #[test]
    fn a_flow_is_held_off_only_while_nothing_else_speaks() {
        let judged = |learned: Option<&(Learned, LearnedKey)>, cidr: Option<&CidrRules>| {
            let learned = || learned.map(|(entry, key)| (entry, key));
            decide(
                &flow(Origin::WORKLOAD),
                &ENFORCED,
                100,
                || cidr,
                learned,
                || 0,
                || Trouble::Reading,
            )
        };
        assert_eq!(judged(None, None).reason, Reason::HeldOff);
        assert_eq!(judged(None, None).verdict, Verdict::Deny);
        assert_eq!(
            judged(Some(&learned(443, 100)), None).reason,
            Reason::HeldOff
        );
        assert_eq!(
            judged(Some(&learned(443, 101)), None).reason,
            Reason::NameRule
        );
        assert_eq!(
            judged(None, Some(&cidr(EntryKind::Deny))).reason,
            Reason::DeniedCidr
        );
    }
}
