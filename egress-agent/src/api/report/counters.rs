//! Counters.

use std::collections::BTreeMap;

use egress_common::{
    tally::Tally,
    verdict::{Hook, Reason, Verdict},
};

use super::rule::{gone_rule_text, rule_ports, rule_text};
use crate::{
    api::model::{
        CountersReport, HookCount, PolicyCount, ReasonCount, RuleCount, Text, VerdictCount,
        WorkloadCount,
    },
    datapath::{Counter, Counters, RuleCounter},
    policy::RuleSource,
};

/// True if a counter is part of the totals, so that nothing is in them twice.
///
/// The packet hooks judge every packet. A connect counts where it is refused
/// (no packet will follow) and not where it is allowed (its packets count).
/// Packets that tc hands to the cgroup hooks count there.
const fn is_total(counter: &Counter) -> bool {
    match counter.hook {
        Hook::SkbEgress => true,
        Hook::TcEgress => !matches!(counter.reason, Reason::SocketJudged),
        Hook::Connect4 | Hook::Connect6 => matches!(counter.verdict, Verdict::Deny),
        Hook::SkbIngress
        | Hook::TcIngress
        | Hook::SockCreate
        | Hook::AskConnect4
        | Hook::AskConnect6
        | Hook::AskSendmsg4
        | Hook::AskSendmsg6 => false,
    }
}

/// Makes the report of what the kernel counts.
///
/// `rule` finds the source of a rule by its number; it gives `None` for rules
/// that no loaded policy holds any more. `workload` finds the name of a workload
/// by its identity; those that are gone are left out.
#[must_use]
pub fn counters_report<'a>(
    counters: &Counters,
    rule: impl Fn(u64) -> Option<&'a RuleSource>,
    workload: impl Fn(u32) -> Option<&'a str>,
) -> CountersReport {
    let mut report = CountersReport::default();
    let mut by_reason: BTreeMap<(Reason, Verdict), u64> = BTreeMap::new();
    let mut by_hook: BTreeMap<Hook, HookCount> = BTreeMap::new();
    for counter in &counters.verdicts {
        let of_hook = by_hook.entry(counter.hook).or_insert_with(|| HookCount {
            hook: counter.hook.name().into(),
            allowed: 0,
            denied: 0,
            would_deny: 0,
        });
        let (in_hook, in_total) = match counter.verdict {
            Verdict::Allow => (&mut of_hook.allowed, &mut report.allowed),
            Verdict::Deny => (&mut of_hook.denied, &mut report.denied),
            Verdict::WouldDeny => (&mut of_hook.would_deny, &mut report.would_deny),
        };
        *in_hook = in_hook.saturating_add(counter.count);
        if is_total(counter) {
            *in_total = in_total.saturating_add(counter.count);
            let of_reason = by_reason
                .entry((counter.reason, counter.verdict))
                .or_default();
            *of_reason = of_reason.saturating_add(counter.count);
        }
    }
    report.by_reason = by_reason
        .into_iter()
        .map(|((reason, verdict), count)| ReasonCount {
            reason: reason.name().into(),
            verdict: verdict.name().into(),
            count,
            words: reason.words().into(),
        })
        .collect();
    report.by_hook = by_hook.into_values().collect();
    report.by_rule = counters
        .rules
        .iter()
        .map(|counter| rule_count(counter, rule(counter.rule)))
        .collect();
    report.by_rule.sort_by(|a, b| {
        let place = |rule: &RuleCount| (rule.policy.clone(), rule.list.clone(), rule.index);
        place(a).cmp(&place(b)).then_with(|| a.rule.cmp(&b.rule))
    });
    let mut by_policy: BTreeMap<&str, PolicyCount> = BTreeMap::new();
    for rule in &report.by_rule {
        let of_policy = by_policy.entry(&rule.policy).or_default();
        of_policy.allowed = of_policy.allowed.saturating_add(rule.allowed);
        of_policy.denied = of_policy.denied.saturating_add(rule.denied);
        of_policy.would_deny = of_policy.would_deny.saturating_add(rule.would_deny);
    }
    let by_policy = by_policy.into_iter().map(|(policy, count)| PolicyCount {
        policy: policy.to_owned(),
        ..count
    });
    report.by_policy = by_policy.collect();
    let by_workload = counters.workloads.iter().filter_map(|counter| {
        Some(WorkloadCount {
            workload: workload(counter.identity)?.to_owned(),
            allowed: counter.allowed,
            denied: counter.denied,
            would_deny: counter.would_deny,
        })
    });
    report.by_workload = by_workload.collect();
    report
        .by_workload
        .sort_by(|a, b| a.workload.cmp(&b.workload));
    report.verdicts = counters
        .verdicts
        .iter()
        .map(|counter| VerdictCount {
            hook: counter.hook.name().into(),
            verdict: counter.verdict.name().into(),
            reason: counter.reason.name().into(),
            count: counter.count,
        })
        .collect();
    report.dns = tallies(counters, |_| true);
    report
}

/// Things that were lost or refused for lack of room, for [`crate::api::model::Status::lost`].
#[must_use]
pub fn lost(counters: &Counters) -> BTreeMap<String, u64> {
    tallies(counters, Tally::is_alarm)
        .into_iter()
        .map(|(name, count)| (name.into_owned(), count))
        .collect()
}

fn tallies(counters: &Counters, is_wanted: impl Fn(Tally) -> bool) -> BTreeMap<Text, u64> {
    let wanted = counters
        .tallies
        .iter()
        .filter(|(tally, _)| is_wanted(*tally));
    wanted
        .map(|(tally, count)| (Text::from(tally.name()), *count))
        .collect()
}

fn rule_count(counter: &RuleCounter, source: Option<&RuleSource>) -> RuleCount {
    let counts = RuleCount {
        rule: gone_rule_text(counter.rule),
        policy: String::new(),
        list: "".into(),
        index: 0,
        preset: None,
        destination: String::new(),
        ports: Vec::new(),
        file: None,
        line: None,
        allowed: counter.allowed,
        denied: counter.denied,
        would_deny: counter.would_deny,
    };
    match source {
        None => counts,
        Some(source) => RuleCount {
            rule: rule_text(source),
            policy: source.policy.clone(),
            list: source.list.name().into(),
            index: source.index,
            preset: source.preset.clone(),
            destination: source.destination.clone(),
            ports: rule_ports(source),
            file: source.file.clone(),
            line: source.line,
            ..counts
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::testing::rule, policy::RuleList};

    fn counter(hook: Hook, reason: Reason, verdict: Verdict, count: u64) -> Counter {
        Counter {
            hook,
            verdict,
            reason,
            count,
        }
    }

    fn report(verdicts: Vec<Counter>) -> CountersReport {
        let counters = Counters {
            verdicts,
            ..Counters::default()
        };
        counters_report(&counters, |_| None, |_| None)
    }

    #[test]
    fn an_allowed_connect_is_counted_by_its_packets_only() {
        let report = report(vec![
            counter(Hook::Connect4, Reason::NameRule, Verdict::Allow, 3),
            counter(Hook::SkbEgress, Reason::NameRule, Verdict::Allow, 20),
            counter(Hook::SkbEgress, Reason::EstablishedFlow, Verdict::Allow, 5),
        ]);
        assert_eq!(
            (report.allowed, report.denied, report.would_deny),
            (25, 0, 0)
        );
        assert_eq!(report.by_reason.len(), 2);
        assert_eq!(report.by_reason.iter().map(|r| r.count).sum::<u64>(), 25);
        assert_eq!(report.by_hook.len(), 2);
        assert_eq!(report.by_hook[0].allowed, 3);
        assert_eq!(report.verdicts.len(), 3);
    }

    #[test]
    fn a_refused_connect_is_counted_beside_dropped_packets() {
        let report = report(vec![
            counter(Hook::Connect4, Reason::NoRule, Verdict::Deny, 2),
            counter(Hook::Connect6, Reason::NoRule, Verdict::Deny, 4),
            // In audit mode its packets follow.
            counter(Hook::Connect4, Reason::NoRule, Verdict::WouldDeny, 3),
            counter(Hook::SkbEgress, Reason::NoRule, Verdict::WouldDeny, 5),
            counter(Hook::SkbEgress, Reason::NoRule, Verdict::Deny, 10),
            counter(Hook::TcEgress, Reason::Fragment, Verdict::Deny, 100),
        ]);
        assert_eq!(
            (report.allowed, report.denied, report.would_deny),
            (0, 116, 5)
        );
        let of = |reason: &str, verdict: &str| {
            let mut counts = report.by_reason.iter();
            counts
                .find(|r| r.reason == reason && r.verdict == verdict)
                .map(|r| r.count)
        };
        assert_eq!(of("no_rule", "denied"), Some(16));
        assert_eq!(of("no_rule", "would_deny"), Some(5));
        assert_eq!(of("fragment", "denied"), Some(100));
        assert_eq!(report.by_reason[0].words, Reason::NoRule.words());
    }

    #[test]
    fn what_tc_hands_to_the_cgroup_hooks_is_not_counted_twice() {
        let report = report(vec![
            counter(Hook::SkbEgress, Reason::CidrRule, Verdict::Allow, 7),
            counter(Hook::TcEgress, Reason::SocketJudged, Verdict::Allow, 7),
        ]);
        assert_eq!(report.allowed, 7);
        assert_eq!(report.by_hook.iter().map(|h| h.allowed).sum::<u64>(), 14);
    }

    #[test]
    fn counts_stop_at_the_largest_number() {
        let report = report(vec![
            counter(Hook::SkbEgress, Reason::NoRule, Verdict::Deny, u64::MAX),
            counter(Hook::TcEgress, Reason::NoRule, Verdict::Deny, 1),
        ]);
        assert_eq!(report.denied, u64::MAX);
    }

    #[test]
    fn rules_are_named_and_one_that_is_gone_says_so() {
        let source = rule(RuleList::Allow, "*.example.com");
        let one = |rule| RuleCounter {
            rule,
            allowed: 1,
            denied: 2,
            would_deny: 3,
        };
        let counters = Counters {
            rules: vec![one(7), one(0xabc)],
            ..Counters::default()
        };
        let report = counters_report(&counters, |rule| (rule == 7).then_some(&source), |_| None);
        assert_eq!(report.by_rule[0].rule, "removed rule 0000000000000abc");
        let named = &report.by_rule[1];
        assert_eq!(named.rule, "policy/node allow[0] *.example.com 443/tcp");
        assert_eq!((named.policy.as_str(), named.line), ("node", Some(9)));
        assert_eq!((named.allowed, named.denied, named.would_deny), (1, 2, 3));
    }

    #[test]
    fn tallies_go_by_name_and_losses_are_told_apart() {
        let counters = Counters {
            tallies: vec![(Tally::AnswerLearned, 4), (Tally::EventsLost, 0)],
            ..Counters::default()
        };
        let report = counters_report(&counters, |_| None, |_| None);
        assert_eq!(report.dns.get("dns_answer_learned"), Some(&4));
        assert_eq!(report.dns.get("events_lost"), Some(&0));
        let lost = lost(&counters);
        assert_eq!(
            lost.into_iter().collect::<Vec<_>>(),
            [("events_lost".to_owned(), 0)]
        );
    }
}
