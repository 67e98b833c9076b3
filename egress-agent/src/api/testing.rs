//! Shared parts of the tests of the API and the CLI.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use egress_common::{
    policy::{PortRange, protocol},
    tally::Tally,
    verdict::{Hook, Mode, Reason, Verdict},
};
use tokio::sync::broadcast;

use super::{
    AgentState, BadQuestion, ExplainQuery, FlowFilter, LearnedFilter, NotAwaited, RecentFlows,
    Rows, Timestamp,
    model::{
        AddressVerdict, CauseReport, ConfirmationStatus, CountersReport, Explanation, FlowReport,
        FoundStatus, HookStatus, LearnedAddress, LifelineStatus, MapStatus, Observation,
        Observations, ObservedStatus, PolicyFacts, PolicyStatus, PutBackStatus, RuleReport,
        ScopeStatus, Status,
    },
    report::{Cause, counters_report},
};
use crate::{
    datapath::{Counter, Counters, RuleCounter, WorkloadCounter},
    policy::{RuleList, RuleSource},
};

pub(crate) fn rule(list: RuleList, destination: &str) -> RuleSource {
    RuleSource {
        policy: "node".to_owned(),
        list,
        is_audited: false,
        index: 0,
        preset: None,
        destination: destination.to_owned(),
        ports: vec![PortRange::new(protocol::TCP, 443, 443)],
        file: Some(PathBuf::from("/etc/egress/node.yaml")),
        line: Some(9),
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn instant() -> Timestamp {
    "2026-11-22T02:49:55.120Z".parse().expect("a time")
}

pub(crate) fn flow(port: u16, verdict: Verdict, reason: Reason) -> FlowReport {
    FlowReport {
        at: instant(),
        scope: "node".to_owned(),
        cgroup: "/system.slice/cron.service".to_owned(),
        source: Some(address("192.0.2.10")),
        destination: address("203.0.113.7"),
        port: Some(port),
        protocol: "tcp".into(),
        names: vec!["www.example.org".to_owned()],
        server_name: None,
        verdict: verdict.name().into(),
        reason: reason.name().into(),
        words: reason.words().into(),
        rule: None,
        hook: Hook::SkbEgress.name().into(),
        cause: None,
    }
}

pub(crate) fn allowed_flow(port: u16) -> FlowReport {
    flow(port, Verdict::Allow, Reason::NameRule)
}

pub(crate) fn denied_flow(port: u16) -> FlowReport {
    flow(port, Verdict::Deny, Reason::NoRule)
}

pub(crate) fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        uptime_s: 93_784,
        pid: 4711,
        enforcing: true,
        mode: "enforce".to_owned(),
        policy: PolicyStatus {
            generation: 3,
            files: vec![PathBuf::from("/etc/egress/node.yaml")],
            loaded_at: Some(instant()),
            rules: 2,
            names: 2,
            cidrs: 4,
            service_tags: None,
            error: None,
            policies: vec![PolicyFacts {
                name: "node".to_owned(),
                mode: "enforce".into(),
                file: PathBuf::from("/etc/egress/node.yaml"),
                line: 1,
                rules: 2,
                generation: 2,
            }],
        },
        hooks: vec![
            HookStatus {
                hook: "connect4".into(),
                target: "/sys/fs/cgroup".to_owned(),
                kind: "link".into(),
                attached: true,
                pinned: true,
                program_tag: "0123456789abcdef".to_owned(),
                trouble: None,
            },
            HookStatus {
                hook: "tc_egress".into(),
                target: "eth0".to_owned(),
                kind: "tcx".into(),
                attached: true,
                pinned: true,
                program_tag: "fedcba9876543210".to_owned(),
                trouble: None,
            },
        ],
        maps: vec![
            MapStatus {
                name: "LEARNED".into(),
                entries: 12,
                capacity: 262_144,
            },
            MapStatus {
                name: "FLOWS".into(),
                entries: 130_000,
                capacity: 131_072,
            },
        ],
        lost: [
            ("events_lost".to_owned(), 0),
            ("learned_full".to_owned(), 7),
        ]
        .into(),
        resolvers: vec!["192.0.2.53".to_owned(), "2001:db8::53".to_owned()],
        found: vec![FoundStatus {
            what: "resolver".into(),
            value: "192.0.2.53".to_owned(),
            from: "/etc/resolv.conf".to_owned(),
        }],
        lifeline: vec![LifelineStatus {
            name: "resolver".to_owned(),
            destination: "192.0.2.53/32".to_owned(),
            ports: vec!["53/udp".to_owned(), "53/tcp".to_owned()],
        }],
        scopes: vec![ScopeStatus {
            name: "node".to_owned(),
            id: 1,
            cgroup: None,
            state: "bound".into(),
        }],
        kubernetes: None,
        pod_interfaces: None,
        confirmation: None,
        observed: ObservedStatus {
            observations: 12,
            capacity: 8_192,
            dropped: 0,
            file: PathBuf::from("/var/lib/egress/observations.json"),
            saved_at: Some(instant()),
            error: None,
        },
        put_back: PutBackStatus::default(),
        alarms: vec![],
        impaired: false,
        dns_tunnelling: "allowed resolvers forward any name".to_owned(),
    }
}

pub(crate) fn counters() -> CountersReport {
    let source = rule(RuleList::Allow, "*.example.com");
    let counter = |hook, reason, verdict, count| Counter {
        hook,
        verdict,
        reason,
        count,
    };
    let counters = Counters {
        verdicts: vec![
            counter(Hook::Connect4, Reason::NameRule, Verdict::Allow, 3),
            counter(Hook::Connect4, Reason::NoRule, Verdict::Deny, 2),
            counter(
                Hook::SkbEgress,
                Reason::EstablishedFlow,
                Verdict::Allow,
                1_234_567,
            ),
            counter(Hook::SkbEgress, Reason::NoRule, Verdict::Deny, 40),
        ],
        rules: vec![RuleCounter {
            rule: 7,
            allowed: 3,
            denied: 0,
            would_deny: 0,
        }],
        workloads: vec![WorkloadCounter {
            identity: 1,
            allowed: 3,
            denied: 42,
            would_deny: 0,
        }],
        tallies: vec![(Tally::AnswerLearned, 5), (Tally::EventsLost, 0)],
    };
    counters_report(
        &counters,
        |number| (number == 7).then_some(&source),
        |identity| (identity == 1).then_some("node"),
    )
}

pub(crate) fn learned() -> Vec<LearnedAddress> {
    let one = |name: &str, at: &str| LearnedAddress {
        name: name.to_owned(),
        address: address(at),
        ports: vec!["443/tcp".to_owned()],
        expires_in_s: 29,
        scope: "node".to_owned(),
        rules: vec!["policy/node allow[0] *.example.com 443/tcp".to_owned()],
    };
    vec![
        one("a.example.com", "192.0.2.1"),
        one("b.example.com", "2001:db8::1"),
    ]
}

pub(crate) fn explanation() -> Explanation {
    let rule = RuleReport {
        rule: "policy/node allow[0] *.cdn.example.net 443/tcp".to_owned(),
        policy: "node".to_owned(),
        destination: "*.cdn.example.net".to_owned(),
        file: Some(PathBuf::from("/etc/egress/policies/node.yaml")),
        line: Some(9),
    };
    let cause = |cause: Cause, words: &str, rule| CauseReport {
        cause: cause.name().into(),
        words: words.to_owned(),
        advice: cause.advice().into(),
        rule,
    };
    let words =
        "*.cdn.example.net covers the names below cdn.example.net, not cdn.example.net itself";
    Explanation {
        destination: "cdn.example.net:443/tcp".to_owned(),
        default_port: true,
        scope: Some("node".to_owned()),
        mode: Mode::Enforce.name().into(),
        verdict: Verdict::Deny.name().into(),
        reason: Reason::NoRule.name().into(),
        words: Reason::NoRule.words().into(),
        rule: None,
        ports: Vec::new(),
        addresses: vec![AddressVerdict {
            address: address("203.0.113.7"),
            names: vec!["cdn.example.net".to_owned()],
            verdict: Verdict::Deny.name().into(),
            reason: Reason::NoRule.name().into(),
            expires_in_s: None,
        }],
        causes: vec![
            cause(Cause::Apex, words, Some(rule)),
            cause(Cause::QueryRefused, Cause::QueryRefused.words(), None),
        ],
        add: Some("- { names: [\"cdn.example.net\"], ports: [\"443/tcp\"] }".to_owned()),
    }
}

pub(crate) fn observations() -> Observations {
    Observations {
        observations: vec![Observation {
            scope: "node".to_owned(),
            name: Some("www.example.org".to_owned()),
            port: Some(443),
            protocol: "tcp".into(),
            verdict: Verdict::WouldDeny.name().into(),
            reason: Reason::NoRule.name().into(),
            flows: 3,
            first: instant(),
            last: instant(),
            senders: vec!["/system.slice/cron.service".to_owned()],
            addresses: vec![address("203.0.113.7")],
            other_names: vec![],
            is_cut: false,
            process: None,
            rule: None,
        }],
        losses: vec![],
    }
}

/// An agent that a test drives.
pub(crate) struct FakeAgent {
    pub(crate) status: Mutex<Result<Status, String>>,
    pub(crate) recent: Mutex<RecentFlows>,
    pub(crate) learned: Mutex<Vec<LearnedAddress>>,
    /// Pages of them that were made.
    pub(crate) learned_pages: AtomicUsize,
    pub(crate) is_learned_broken: AtomicBool,
    pub(crate) flows: broadcast::Sender<Arc<FlowReport>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for FakeAgent {
    fn default() -> Self {
        Self {
            status: Mutex::new(Ok(status())),
            recent: Mutex::default(),
            learned: Mutex::new(learned()),
            learned_pages: AtomicUsize::new(0),
            is_learned_broken: AtomicBool::new(false),
            flows: broadcast::channel(4).0,
        }
    }
}

impl AgentState for FakeAgent {
    fn status(&self) -> anyhow::Result<Status> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.clone().map_err(anyhow::Error::msg)
    }

    fn counters(&self) -> anyhow::Result<CountersReport> {
        Ok(counters())
    }

    fn learned(self: Arc<Self>, filter: LearnedFilter) -> anyhow::Result<Rows<LearnedAddress>> {
        let rows = lock(&self.learned).clone();
        let is_broken = self.is_learned_broken.load(Ordering::Relaxed);
        let mut rows = rows.into_iter();
        Ok(Box::new(std::iter::from_fn(move || {
            let page: Vec<_> = rows.by_ref().take(512).collect();
            if page.is_empty() {
                return is_broken.then(|| Err(anyhow::anyhow!("map LEARNED is gone")));
            }
            self.learned_pages.fetch_add(1, Ordering::Relaxed);
            let shown = page.iter().filter(|row| {
                filter.shows(&row.name, row.address) && filter.pods.shows(&row.scope)
            });
            Some(Ok(shown.cloned().collect()))
        })))
    }

    fn recent_flows(&self, filter: FlowFilter) -> anyhow::Result<Vec<Arc<FlowReport>>> {
        Ok(lock(&self.recent).recent(&filter))
    }

    fn explain(&self, query: &ExplainQuery) -> anyhow::Result<Explanation> {
        match &query.from {
            Some(from) if from != "node" => {
                Err(BadQuestion(format!("no scope is called {from:?}")).into())
            }
            _ => Ok(Explanation {
                destination: query.destination.to_string(),
                default_port: query.destination.is_default_port,
                ..Explanation::default()
            }),
        }
    }

    fn observations(&self) -> anyhow::Result<Observations> {
        Ok(observations())
    }

    fn confirm(&self) -> anyhow::Result<ConfirmationStatus> {
        let status = self.status()?;
        status
            .confirmation
            .ok_or_else(|| NotAwaited("the agent was started without --confirm").into())
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<FlowReport>> {
        self.flows.subscribe()
    }
}
