//! Verdict events.

use egress_common::{
    event::VerdictEvent,
    policy::protocol,
    verdict::{Hook, Reason, Verdict},
};

use super::{
    explanation::cause_of,
    rule::{gone_rule_text, rule_text},
};
use crate::{
    api::{
        Timestamp,
        model::{FlowCause, FlowReport, Text},
    },
    dns::Refusal,
    policy::{RuleSource, address_text, protocol_text},
};

/// Facts of a verdict event that the agent knows and the kernel does not.
#[derive(Clone, Debug)]
pub struct FlowContext<'a> {
    /// When it was, by the wall clock.
    pub at: Timestamp,
    /// Name of the sender's scope.
    pub scope: String,
    /// Path of the sender's cgroup, if it is known.
    pub cgroup: Option<String>,
    /// Names that the scope resolved to the destination, allowed or not.
    pub names: Vec<String>,
    /// Source of the event's rule, if a loaded policy holds it.
    pub rule: Option<&'a RuleSource>,
    /// The refused answer that holds the destination, where no other names it.
    pub refusal: Option<Refusal>,
}

/// Makes the report of a verdict event.
#[must_use]
pub fn flow_report(event: &VerdictEvent, mut context: FlowContext<'_>) -> FlowReport {
    let cause = context.refusal.take().map(|refusal| {
        let cause = cause_of(&refusal.kind);
        context.names.push(refusal.name);
        FlowCause {
            cause: cause.name().into(),
            words: cause.words().into(),
        }
    });
    let unknown = |what: &str, number: u8| -> Text { format!("unknown {what} {number}").into() };
    let (reason, words) = match Reason::try_from(event.reason) {
        Ok(reason) => (reason.name().into(), reason.words().into()),
        Err(number) => (
            unknown("reason", number),
            "the programs are newer than this agent".into(),
        ),
    };
    let source = address_text(&event.saddr);
    FlowReport {
        at: context.at,
        scope: context.scope,
        cgroup: context
            .cgroup
            .unwrap_or_else(|| event.cgroup_id.to_string()),
        source: (!source.is_unspecified()).then_some(source),
        destination: address_text(&event.daddr),
        port: (event.dport != 0).then_some(event.dport),
        protocol: match event.proto {
            // The kernel's "not known", as for a frame that is not IP.
            protocol::ANY => "unknown".into(),
            proto => protocol_text(proto).into(),
        },
        names: context.names,
        server_name: None,
        verdict: Verdict::try_from(event.verdict).map_or_else(
            |number| unknown("verdict", number),
            |verdict| verdict.name().into(),
        ),
        reason,
        words,
        rule: match (context.rule, event.rule) {
            (Some(rule), _) => Some(rule_text(rule)),
            (None, 0) => None,
            (None, gone) => Some(gone_rule_text(gone)),
        },
        hook: Hook::try_from(event.hook)
            .map_or_else(|number| unknown("hook", number), |hook| hook.name().into()),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use egress_common::{address::from_v4, event::Process};

    use super::*;
    use crate::{
        api::testing::rule,
        dns::{Memory, MemoryLimits, RefusalKind},
        policy::RuleList,
    };

    fn event() -> VerdictEvent {
        VerdictEvent {
            at_ns: 1,
            cgroup_id: 42,
            rule: 0,
            saddr: [0; 16],
            daddr: from_v4([192, 0, 2, 1]),
            scope_id: 1,
            policy_id: 1,
            sport: 0,
            dport: 443,
            proto: protocol::TCP,
            hook: Hook::Connect4 as u8,
            verdict: Verdict::Deny as u8,
            reason: Reason::NoRule as u8,
            _pad: [0; 2],
            netns: 1,
            process: Process::UNKNOWN,
            _pad2: 0,
        }
    }

    fn context<'a>() -> FlowContext<'a> {
        FlowContext {
            at: UNIX_EPOCH.into(),
            scope: "node".to_owned(),
            cgroup: None,
            names: vec!["evil.example.com".to_owned()],
            rule: None,
            refusal: None,
        }
    }

    #[test]
    fn an_answer_that_was_refused_names_the_flow_and_says_why() {
        let memory = Memory::new(MemoryLimits::default());
        let refusal = Refusal {
            scope: memory.scope("node"),
            name: "slow.example.com".to_owned(),
            kind: RefusalKind::Late,
            resolver: from_v4([192, 0, 2, 53]),
            addresses: vec![from_v4([192, 0, 2, 1])],
            at_ns: 0,
        };
        let context = FlowContext {
            names: Vec::new(),
            refusal: Some(refusal),
            ..context()
        };
        let report = flow_report(&event(), context);
        assert_eq!(report.names, ["slow.example.com"]);
        let cause = report.cause.expect("a cause");
        assert_eq!(cause.cause, "late");
        assert!(cause.words.contains("ten seconds"), "{}", cause.words);
    }

    #[test]
    fn a_denied_connect_tells_name_and_reason_and_has_no_source() {
        let report = flow_report(&event(), context());
        assert_eq!(report.verdict, "denied");
        assert_eq!(report.reason, "no_rule");
        assert_eq!(report.words, Reason::NoRule.words());
        assert_eq!(report.hook, "connect4");
        assert_eq!(report.protocol, "tcp");
        assert_eq!(report.names, ["evil.example.com"]);
        assert_eq!(report.destination.to_string(), "192.0.2.1");
        assert_eq!((report.source, report.port), (None, Some(443)));
        assert_eq!((report.cgroup.as_str(), report.rule), ("42", None));
    }

    #[test]
    fn a_rule_is_told_by_its_source_or_by_its_number() {
        let source = rule(RuleList::Deny, "10.0.0.0/8");
        let by_rule = VerdictEvent { rule: 7, ..event() };
        let named = FlowContext {
            rule: Some(&source),
            ..context()
        };
        let text = flow_report(&by_rule, named).rule;
        assert_eq!(
            text.as_deref(),
            Some("policy/node deny[0] 10.0.0.0/8 443/tcp")
        );
        let text = flow_report(&by_rule, context()).rule;
        assert_eq!(text.as_deref(), Some("removed rule 0000000000000007"));
    }

    #[test]
    fn numbers_of_newer_programs_are_shown_and_no_verdict_is_made_up() {
        let newer = VerdictEvent {
            verdict: 9,
            reason: 200,
            hook: 77,
            proto: 0,
            dport: 0,
            ..event()
        };
        let report = flow_report(&newer, context());
        assert_eq!(report.verdict, "unknown verdict 9");
        assert_eq!(report.reason, "unknown reason 200");
        assert_eq!(report.hook, "unknown hook 77");
        assert_eq!((report.port, &*report.protocol), (None, "unknown"));
    }
}
