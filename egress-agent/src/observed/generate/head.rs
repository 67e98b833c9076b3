//! The words above a learned policy.

use std::collections::BTreeSet;

use super::{
    Findings, GenerateOptions,
    rule::Rule,
    words::{count, said, some, span},
};
use crate::{api::model::Observations, observed::table::DROPPED};

impl Findings {
    /// The words above the policy.
    pub(super) fn head(&self, seen: &Observations, options: &GenerateOptions) -> Vec<String> {
        let mut lines = vec![format!(
            "Written by `egress-agent policy learn` at {}. Read it; it audits until you write `mode: enforce`.",
            options.at
        )];
        let mut all = Rule::default();
        for rule in self.names.values().chain(self.addresses.values()) {
            all.flows = all.flows.saturating_add(rule.flows);
            if let Some((first, last)) = rule.times {
                all.spans(first, last);
            }
        }
        lines.push(match all.times {
            Some(times) => format!(
                "{}, {}: {} and {} without a name.",
                count(all.flows, "flow"),
                span(times),
                count(self.names.len() as u64, "rule"),
                count(self.addresses.len() as u64, "address"),
            ),
            None => "Nothing was seen that it would have to allow.".to_owned(),
        });
        if let Some(scope) = &options.from {
            lines.push(format!("Only what scope {scope} sent."));
        }
        if let Some(since) = options.since {
            lines.push(format!(
                "Only what was seen since {since}; counts and first times go back further."
            ));
        }
        if !seen.losses.is_empty() {
            lines.push("NOT ALL WAS SEEN. Lost, and maybe missing here:".to_owned());
            lines.extend(seen.losses.iter().map(|loss| {
                let times = span((loss.first, loss.last));
                let words = loss_words(&loss.what);
                format!("  {} {}, noticed {times}: {words}", loss.count, loss.what)
            }));
        }
        let left_out = self.left_out();
        if !left_out.is_empty() {
            lines.push("Left out:".to_owned());
            lines.extend(left_out.into_iter().map(|line| format!("  {line}")));
        }
        vec![said(&lines)]
    }

    /// Observations that are no rule here, in sentences.
    fn left_out(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let flows = |lines: &mut Vec<String>, flows: u64, words: &str| {
            if flows > 0 {
                lines.push(format!("{} {words}", count(flows, "flow")));
            }
        };
        flows(
            &mut lines,
            self.allowed_flows,
            "that rules allow (--include-allowed)",
        );
        flows(
            &mut lines,
            self.denied_flows,
            "that enforcing denied (--include-denied)",
        );
        flows(
            &mut lines,
            self.allowed_by_now,
            "that the policy in force allows by now (--include-allowed)",
        );
        let list = |lines: &mut Vec<String>, set: &BTreeSet<String>, words: &str| {
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            if !set.is_empty() {
                lines.push(format!("{words}: {}", some(&set, 20)));
            }
        };
        list(
            &mut lines,
            &self.denied_by_rule,
            "what a rule of the policy in force denies",
        );
        list(
            &mut lines,
            &self.expired,
            "what is allowed, but was used after its TTL had ended (`spec.ttl.min` prolongs that)",
        );
        list(
            &mut lines,
            &self.not_rules,
            "what a rule has no words for (other protocols want `ports: [any]`)",
        );
        for (reason, packets) in &self.beyond_rules {
            let packets = count(*packets, "flow");
            lines.push(format!("{packets} {}: {}", reason.name(), reason.words()));
        }
        lines
    }
}

/// The meaning of a loss, for the reader of the policy.
fn loss_words(what: &str) -> &'static str {
    match what {
        "events_suppressed" => {
            "verdicts above 1,000 a second on one CPU, which the kernel only counts"
        }
        "events_lost" => {
            "verdicts that the agent was too slow to read, or that came while it was not running"
        }
        "dns_copies_lost" | "names_evicted" => {
            "DNS answers, so that addresses may stand below without their names"
        }
        DROPPED => "destinations that the agent had no room for",
        "scope_gone" => "verdicts on scopes that the agent does not know any more",
        _ => "see `egress-agent status`",
    }
}
