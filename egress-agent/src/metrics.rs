//! Metrics as Prometheus reads them. No name or address is ever in a label.

use std::fmt::{Display, Write};

use crate::api::model::{CountersReport, KubernetesStatus, Status};

/// Content type of [`render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text of `/metrics`, <https://prometheus.io/docs/instrumenting/exposition_formats/>.
#[must_use]
pub fn render(status: &Status, counters: &CountersReport) -> String {
    let mut text = Text::default();
    text.family("egress_build_info", "gauge", "Version of the agent.");
    text.sample(&[("version", &status.version)], 1);
    text.family(
        "egress_uptime_seconds",
        "gauge",
        "How long the agent has been running.",
    );
    text.sample(&[], status.uptime_s);
    text.family(
        "egress_enforcing",
        "gauge",
        "1 when everything that should be enforced or audited is.",
    );
    text.sample(&[], u8::from(status.enforcing));
    text.family("egress_alarms", "gauge", "Alarms that status shows.");
    text.sample(&[], status.alarms.len());
    policy(&mut text, status);
    kernel(&mut text, status);
    verdicts(&mut text, counters);
    if let Some(cluster) = &status.kubernetes {
        kubernetes(&mut text, cluster);
    }
    text.text
}

fn policy(text: &mut Text, status: &Status) {
    text.family(
        "egress_policy_generation",
        "gauge",
        "Raised at every policy switch.",
    );
    text.sample(&[], status.policy.generation);
    text.family(
        "egress_policy_reload_failed",
        "gauge",
        "1 while the newest policy change is refused and the one before it applies.",
    );
    text.sample(&[], u8::from(status.policy.error.is_some()));
    text.family("egress_policy_rules", "gauge", "Rules in the policy.");
    text.sample(&[], status.policy.rules);
    let tags = status.policy.service_tags.as_ref();
    if let Some(age_s) = tags.and_then(|tags| tags.age_s) {
        text.family(
            "egress_service_tags_age_seconds",
            "gauge",
            "How old the file of service tags is.",
        );
        text.sample(&[], age_s);
    }
}

fn kernel(text: &mut Text, status: &Status) {
    text.family(
        "egress_hook_attached",
        "gauge",
        "1 for a hook that is attached, 0 for one that should be.",
    );
    for hook in &status.hooks {
        let labels = [
            ("hook", &*hook.hook),
            ("kind", &*hook.kind),
            ("target", hook.target.as_str()),
        ];
        text.sample(&labels, u8::from(hook.attached));
    }
    text.family(
        "egress_hook_pinned",
        "gauge",
        "1 for a hook that outlives the agent, 0 for one that goes with it.",
    );
    for hook in &status.hooks {
        let labels = [("hook", &*hook.hook), ("target", hook.target.as_str())];
        text.sample(&labels, u8::from(hook.pinned));
    }
    text.family(
        "egress_put_back_total",
        "counter",
        "What was gone from the kernel and was put back: hooks, programs, pins of hooks and maps, the bpffs.",
    );
    for what in ["hook", "program", "pin", "map", "bpffs"] {
        let count = status.put_back.counts.get(what).copied();
        text.sample(&[("what", what)], count.unwrap_or_default());
    }
    text.family("egress_map_entries", "gauge", "Entries in a kernel map.");
    for map in &status.maps {
        text.sample(&[("map", &map.name)], map.entries);
    }
    text.family("egress_map_capacity", "gauge", "Most entries that fit.");
    for map in &status.maps {
        text.sample(&[("map", &map.name)], map.capacity);
    }
    text.family(
        "egress_lost_total",
        "counter",
        "What was lost or refused for lack of room.",
    );
    for (what, count) in &status.lost {
        text.sample(&[("what", what)], count);
    }
}

fn verdicts(text: &mut Text, counters: &CountersReport) {
    text.family(
        "egress_verdicts_total",
        "counter",
        "Packets and connects by hook, verdict and reason.",
    );
    for counter in &counters.verdicts {
        let labels = [
            ("hook", &*counter.hook),
            ("verdict", &*counter.verdict),
            ("reason", &*counter.reason),
        ];
        text.sample(&labels, counter.count);
    }
    text.family(
        "egress_tallies_total",
        "counter",
        "What became of DNS queries and answers, and of what they teach.",
    );
    for (tally, count) in &counters.dns {
        text.sample(&[("tally", tally)], count);
    }
}

fn kubernetes(text: &mut Text, cluster: &KubernetesStatus) {
    text.family(
        "egress_kubernetes_synced",
        "gauge",
        "1 when the API server has told everything since the agent started.",
    );
    text.sample(&[], u8::from(cluster.is_synced));
    text.family(
        "egress_kubernetes_watch_connected",
        "gauge",
        "1 for a kind of objects that the API server tells of now.",
    );
    for (kind, tells) in &cluster.watches {
        text.sample(&[("kind", kind)], u8::from(*tells));
    }
    if let Some(age_s) = cluster.age_s {
        text.family(
            "egress_kubernetes_age_seconds",
            "gauge",
            "How long ago everything that is known of the cluster was last heard to be so.",
        );
        text.sample(&[], age_s);
    }
    text.family(
        "egress_kubernetes_complete",
        "gauge",
        "1 when every pod here is judged as it should be, as far as its policies are right.",
    );
    text.sample(&[], u8::from(cluster.is_complete));
    text.family(
        "egress_kubernetes_pods",
        "gauge",
        "Pods here: known with their policies, or pending until they are.",
    );
    let known = cluster.pods.saturating_sub(cluster.pending);
    text.sample(&[("state", "known")], known);
    text.sample(&[("state", "pending")], cluster.pending);
    text.family(
        "egress_kubernetes_policies",
        "gauge",
        "Policies in the cluster: accepted and refused of those that select something here, and the others.",
    );
    let here = cluster.accepted.saturating_add(cluster.refused);
    text.sample(&[("state", "accepted")], cluster.accepted);
    text.sample(&[("state", "refused")], cluster.refused);
    text.sample(
        &[("state", "elsewhere")],
        cluster.policies.saturating_sub(here),
    );
    text.family(
        "egress_kubernetes_policy_delay_seconds",
        "gauge",
        "From the moment a pod's cgroup was seen to its policy, of the last 1,024 pods.",
    );
    let delay = &cluster.delay;
    for (quantile, us) in [
        ("0.5", delay.p50_us),
        ("0.99", delay.p99_us),
        ("1", delay.max_us),
    ] {
        let (s, us) = (us / 1_000_000, us % 1_000_000);
        text.sample(&[("quantile", quantile)], format_args!("{s}.{us:06}"));
    }
}

#[derive(Default)]
struct Text {
    text: String,
    family: &'static str,
}

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let family = self.family;
        if labels.is_empty() {
            self.line(format_args!("{family} {value}"));
        } else {
            self.line(format_args!("{family}{{{}}} {value}", labels.join(",")));
        }
    }

    fn line(&mut self, line: impl Display) {
        // Writing to a string cannot fail.
        let _ok = writeln!(self.text, "{line}");
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        model::DelayStatus,
        testing::{counters, status},
    };

    #[test]
    fn everything_an_alert_needs_is_there() {
        let text = render(&status(), &counters());
        for line in [
            "egress_build_info{version=\"0.1.0\"} 1",
            "egress_enforcing 1",
            "egress_policy_generation 3",
            "egress_policy_reload_failed 0",
            "egress_hook_attached{hook=\"tc_egress\",kind=\"tcx\",target=\"eth0\"} 1",
            "egress_hook_pinned{hook=\"tc_egress\",target=\"eth0\"} 1",
            "egress_put_back_total{what=\"hook\"} 0",
            "egress_map_entries{map=\"LEARNED\"} 12",
            "egress_map_capacity{map=\"LEARNED\"} 262144",
            "egress_lost_total{what=\"learned_full\"} 7",
            "egress_verdicts_total{hook=\"connect4\",verdict=\"denied\",reason=\"no_rule\"} 2",
            "egress_tallies_total{tally=\"dns_answer_learned\"} 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn no_label_holds_a_name_or_an_address() {
        let text = render(&status(), &counters());
        for word in ["example", "192.0.2", "2001:db8", "203.0.113"] {
            assert!(!text.contains(word), "{word}");
        }
    }

    #[test]
    fn every_family_has_help_type_and_samples_of_its_name() {
        let text = render(&status(), &counters());
        let mut family = "";
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split(' ').next().expect("a name");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                assert!(kind.starts_with(family), "{line}");
            } else {
                let name = line.split(['{', ' ']).next();
                assert_eq!(name, Some(family), "{line}");
            }
        }
    }

    #[test]
    fn a_failed_reload_and_a_missing_hook_show() {
        let mut status = status();
        status.enforcing = false;
        status.policy.error = Some("node.yaml:3: unknown field".to_owned());
        status.hooks[0].attached = false;
        let text = render(&status, &counters());
        assert!(text.contains("\negress_enforcing 0\n"));
        assert!(text.contains("\negress_policy_reload_failed 1\n"));
        assert!(text.contains("target=\"/sys/fs/cgroup\"} 0\n"));
        assert!(!text.contains("unknown field"));
    }

    #[test]
    fn of_a_cluster_its_state_on_this_node_is_told() {
        let alone = render(&status(), &counters());
        assert!(!alone.contains("egress_kubernetes"));
        let cluster = KubernetesStatus {
            node: "node-of-example".to_owned(),
            is_synced: true,
            age_s: Some(17),
            error: Some("pods: example is away".to_owned()),
            watches: [("nodes".to_owned(), true), ("pods".to_owned(), false)].into(),
            policies: 40,
            accepted: 5,
            refused: 2,
            pods: 110,
            pending: 3,
            delay: DelayStatus {
                count: 9,
                p50_us: 4_200,
                p99_us: 41_000,
                max_us: 2_000_001,
            },
            alarms: vec!["example is refused".to_owned()],
            ..KubernetesStatus::default()
        };
        let text = render(
            &Status {
                kubernetes: Some(cluster),
                ..status()
            },
            &counters(),
        );
        for line in [
            "egress_kubernetes_synced 1",
            "egress_kubernetes_watch_connected{kind=\"nodes\"} 1",
            "egress_kubernetes_watch_connected{kind=\"pods\"} 0",
            "egress_kubernetes_age_seconds 17",
            "egress_kubernetes_complete 0",
            "egress_kubernetes_pods{state=\"known\"} 107",
            "egress_kubernetes_pods{state=\"pending\"} 3",
            "egress_kubernetes_policies{state=\"accepted\"} 5",
            "egress_kubernetes_policies{state=\"refused\"} 2",
            "egress_kubernetes_policies{state=\"elsewhere\"} 33",
            "egress_kubernetes_policy_delay_seconds{quantile=\"0.5\"} 0.004200",
            "egress_kubernetes_policy_delay_seconds{quantile=\"0.99\"} 0.041000",
            "egress_kubernetes_policy_delay_seconds{quantile=\"1\"} 2.000001",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("example"), "{text}");
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
