//! `policy diff`: what a change of policies opens and closes.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{
    catalog::CatalogArgs,
    exit::{ExitCode, UsageError},
    explain::{compiled, rule_text},
    output::{OutputArgs, Screen, say},
    remote::{SocketArgs, wait_for},
    table::{Cell, Paint, Table, number},
};
use crate::{
    api::{
        Client, Timestamp,
        model::{FlowReport, FollowLine, Observation, Observations, RuleReport},
        report::rule_report,
    },
    policy::{
        Becomes, Compiled, Destination, Difference, Host, address_from, diff, port_range_text,
        protocol_number,
    },
};

const EXAMPLES: &str = "\
Examples:
  egress-agent policy diff /etc/egress/policies new/
      what becomes allowed and what denied; the same meaning is no difference
  egress-agent policy diff old.yaml new.yaml --flows agent
      and which flows that the agent has seen would change
  egress-agent policy learn -o json > seen.json
  egress-agent policy diff old.yaml new.yaml --flows seen.json -o json

Exit status: 0 no difference; 1 differences; 2 policies or flows not usable.";

/// The running agent's name in `--flows`.
const AGENT: &str = "agent";

/// Options of `policy diff`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PolicyDiff {
    /// The policy file or folder that there was
    #[arg(value_name = "A")]
    pub old: PathBuf,
    /// The policy file or folder that is to be
    #[arg(value_name = "B")]
    pub new: PathBuf,
    /// Flows to judge by both: `agent` for those that the running agent keeps, or a file of `policy learn -o json` or
    /// `flows -o json`
    #[arg(long, value_name = "agent|FILE")]
    pub flows: Option<PathBuf>,
    /// What rules may refer to.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Form of the result.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Where the agent listens.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Differences between the decisions of two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct DiffReport {
    /// Destinations: what becomes allowed first.
    pub(super) differences: Vec<DifferenceReport>,
    /// Settings.
    pub(super) settings: Vec<SettingReport>,
    /// Flows whose verdict changes; none if no flows were given.
    pub(super) flows: Option<Vec<ChangedFlow>>,
    /// Flows that were judged by both.
    pub(super) flows_judged: u64,
}

/// A difference for one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DifferenceReport {
    /// `allowed` or `denied`.
    pub(super) becomes: &'static str,
    /// Name pattern, network or service tag.
    pub(super) destination: String,
    /// Ports, as a policy would write them; none where a name is denied that was not allowed.
    pub(super) ports: Vec<String>,
    /// A particularity of it; empty for most.
    pub(super) note: String,
    /// The rules that make it so.
    pub(super) rules: Vec<RuleReport>,
}

/// Another setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct SettingReport {
    /// The field below `spec`.
    pub(super) setting: &'static str,
    /// The old value.
    pub(super) from: String,
    /// The new value.
    pub(super) to: String,
}

/// Flows whose verdict changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ChangedFlow {
    /// `allowed` or `denied`.
    pub(super) becomes: &'static str,
    /// Name of the sender's scope.
    pub(super) scope: String,
    /// Names that led there.
    pub(super) names: Vec<String>,
    /// Destination address.
    pub(super) address: IpAddr,
    /// Port and protocol, as a policy would write them.
    pub(super) ports: String,
    /// The reason under the new policy.
    pub(super) reason: &'static str,
    /// How many flows were seen.
    pub(super) count: u64,
    /// When the last one was seen.
    pub(super) last: Timestamp,
}

impl PolicyDiff {
    /// Prints the differences.
    ///
    /// # Errors
    ///
    /// Policies or flows are not usable.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let report = self.compare().map_err(UsageError::new)?;
        self.output
            .print(&report, |screen| render(&report, screen))?;
        Ok(if report.is_same() {
            ExitCode::Ok
        } else {
            ExitCode::Failure
        })
    }

    fn compare(&self) -> anyhow::Result<DiffReport> {
        let read = |path: &Path| compiled(&[path.to_owned()], &self.catalog);
        let (old, new) = (read(&self.old)?, read(&self.new)?);
        let flows = match &self.flows {
            None => None,
            Some(source) if source.as_os_str() == AGENT => {
                let client = Client::new(&self.socket.socket);
                let seen = wait_for(client.observations())?.observations;
                Some(seen.into_iter().map(SeenFlow::from).collect())
            }
            Some(file) => Some(flows_of(file)?),
        };
        Ok(report(&old, &new, flows.as_deref()))
    }
}

impl DiffReport {
    fn is_same(&self) -> bool {
        self.differences.is_empty() && self.settings.is_empty()
    }
}

/// Flows to one destination that were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenFlow {
    scope: String,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    port: Option<u16>,
    protocol: String,
    count: u64,
    last: Timestamp,
}

impl From<FlowReport> for SeenFlow {
    fn from(flow: FlowReport) -> Self {
        Self {
            scope: flow.scope,
            names: flow.names,
            addresses: vec![flow.destination],
            port: flow.port,
            protocol: flow.protocol.into_owned(),
            count: 1,
            last: flow.at,
        }
    }
}

impl From<Observation> for SeenFlow {
    fn from(seen: Observation) -> Self {
        Self {
            scope: seen.scope,
            names: seen.name.into_iter().chain(seen.other_names).collect(),
            addresses: seen.addresses,
            port: seen.port,
            protocol: seen.protocol.into_owned(),
            count: seen.flows,
            last: seen.last,
        }
    }
}

/// Reads what `policy learn -o json` or `flows -o json` printed, the latter also with `--follow`.
fn flows_of(file: &Path) -> anyhow::Result<Vec<SeenFlow>> {
    let name = file.display();
    let right = "make it with `policy learn -o json` or `flows -o json`";
    let text = if file.as_os_str() == "-" {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(file)
    };
    let text =
        text.with_context(|| format!("{name}: cannot be read; {right}, or give `{AGENT}`"))?;
    if text.trim_start().starts_with('[') {
        let flows: Vec<FlowReport> = serde_json::from_str(&text)
            .with_context(|| format!("{name}: is no list of flows; {right}"))?;
        return Ok(flows.into_iter().map(SeenFlow::from).collect());
    }
    if let Ok(seen) = serde_json::from_str::<Observations>(&text) {
        return Ok(seen.observations.into_iter().map(SeenFlow::from).collect());
    }
    let mut flows = Vec::new();
    let lines = (1_usize..).zip(text.lines());
    for (line, text) in lines.filter(|(_, text)| !text.is_empty()) {
        let read = serde_json::from_str(text)
            .with_context(|| format!("{name}:{line}: is no flow; {right}"))?;
        if let FollowLine::Flow(flow) = read {
            flows.push(SeenFlow::from(Arc::unwrap_or_clone(flow)));
        }
    }
    Ok(flows)
}

/// Compares two policies, and what they decide of flows.
pub(super) fn report(old: &Compiled, new: &Compiled, flows: Option<&[SeenFlow]>) -> DiffReport {
    let found = diff(old, new);
    let settings = found.settings.iter().map(|one| SettingReport {
        setting: one.setting,
        from: one.from.clone(),
        to: one.to.clone(),
    });
    let (flows, flows_judged) = match flows {
        None => (None, 0),
        Some(flows) => {
            let (changed, judged) = changed_flows(old, new, flows);
            (Some(changed), judged)
        }
    };
    DiffReport {
        differences: found.differences.iter().map(difference_report).collect(),
        settings: settings.collect(),
        flows,
        flows_judged,
    }
}

fn difference_report(one: &Difference<'_>) -> DifferenceReport {
    let is_name = one.ports.is_empty();
    let (becomes, note) = match (one.becomes, is_name) {
        (Becomes::Allowed, _) => ("allowed", ""),
        (Becomes::Denied, _) => ("denied", ""),
        (Becomes::Undenied, false) => ("allowed", "where an allowed name leads there"),
        (Becomes::Undenied, true) => ("allowed", "as the alias of an allowed name"),
        (Becomes::DeniedToo, false) => ("denied", "even where an allowed name leads there"),
        (Becomes::DeniedToo, true) => ("denied", "even as the alias of an allowed name"),
    };
    let mut note = note.to_owned();
    if one.networks > 1 {
        let separator = if note.is_empty() { "" } else { "; " };
        note = format!("{} networks{separator}{note}", one.networks);
    }
    DifferenceReport {
        becomes,
        destination: one.destination.clone(),
        ports: one.ports.clone(),
        note,
        rules: one.rules.iter().map(|rule| rule_report(rule)).collect(),
    }
}

/// The flows whose verdict changes, and how many were judged.
fn changed_flows(old: &Compiled, new: &Compiled, flows: &[SeenFlow]) -> (Vec<ChangedFlow>, u64) {
    let mut judged = 0_u64;
    let mut found: BTreeMap<(String, Vec<String>, IpAddr, String), ChangedFlow> = BTreeMap::new();
    for flow in flows {
        // A flow that the kernel could not read has no protocol.
        let Some(proto) = protocol_number(&flow.protocol) else {
            continue;
        };
        judged = judged.saturating_add(flow.count);
        let names: Vec<&str> = flow.names.iter().map(String::as_str).collect();
        let differs = flow.addresses.iter().find_map(|address| {
            let destination = Destination {
                host: Host::Address(address_from(*address)),
                proto,
                port: flow.port,
                is_default_port: false,
            };
            let was = old.judge(&destination, &names).reason;
            let is = new.judge(&destination, &names).reason;
            let ports = port_range_text(&destination.ports());
            (was.passes() != is.passes()).then_some((*address, ports, is))
        });
        let Some((address, ports, is)) = differs else {
            continue;
        };
        let key = (flow.scope.clone(), flow.names.clone(), address, ports);
        let changed = found
            .entry(key)
            .or_insert_with_key(|(_, _, _, ports)| ChangedFlow {
                becomes: if is.passes() { "allowed" } else { "denied" },
                scope: flow.scope.clone(),
                names: flow.names.clone(),
                address,
                ports: ports.clone(),
                reason: is.name(),
                count: 0,
                last: flow.last,
            });
        changed.count = changed.count.saturating_add(flow.count);
        changed.last = changed.last.max(flow.last);
    }
    (found.into_values().collect(), judged)
}

/// The verdict that something gets, in its colour.
fn becomes(text: &'static str) -> Cell {
    let paint = if text == "allowed" {
        Paint::Good
    } else {
        Paint::Bad
    };
    Cell::painted(text, paint)
}

/// Differences for people.
pub(super) fn render(report: &DiffReport, screen: Screen) -> String {
    let mut parts = Vec::new();
    if !report.differences.is_empty() {
        parts.push(differences(report).render(screen));
    }
    if !report.settings.is_empty() {
        let mut table = Table::new().word("SETTING").text("FROM").text("TO");
        for one in &report.settings {
            table.row([
                one.setting.into(),
                one.from.as_str().into(),
                one.to.as_str().into(),
            ]);
        }
        parts.push(table.render(screen));
    }
    if let Some(flows) = &report.flows {
        if !flows.is_empty() {
            parts.push(changed(flows).render(screen));
        }
        say(&format!(
            "{} of {} flows would change",
            flows.iter().map(|one| one.count).sum::<u64>(),
            report.flows_judged
        ));
    }
    parts.join("\n")
}

fn differences(report: &DiffReport) -> Table {
    let mut table = Table::new()
        .word("BECOMES")
        .text("DESTINATION")
        .text("PORTS")
        .text("BY");
    for one in &report.differences {
        let mut destination = one.destination.clone();
        if !one.note.is_empty() {
            destination = format!("{destination} ({})", one.note);
        }
        let rules: Vec<String> = one.rules.iter().map(|rule| place(rule, one)).collect();
        table.row([
            becomes(one.becomes),
            destination.into(),
            one.ports.join(", ").into(),
            rules.join("; ").into(),
        ]);
    }
    table
}

/// Where a rule stands; with its destination and ports where they are not those of the row.
fn place(rule: &RuleReport, row: &DifferenceReport) -> String {
    let text = rule_text(rule);
    let ports = row.ports.join(",");
    let told = format!(" {} {ports}", row.destination);
    match text.split_once(&told) {
        Some((before, after)) if after.starts_with(' ') => format!("{before}{after}"),
        _ => text,
    }
}

fn changed(flows: &[ChangedFlow]) -> Table {
    let mut table = Table::new()
        .word("BECOMES")
        .text("SCOPE")
        .text("SEEN FLOW")
        .number("COUNT")
        .word("LAST");
    for one in flows {
        let mut flow = one.names.join(",");
        if !flow.is_empty() {
            flow.push(' ');
        }
        flow.push_str(&format!("{} {}", one.address, one.ports));
        table.row([
            becomes(one.becomes),
            one.scope.as_str().into(),
            flow.into(),
            number(one.count),
            one.last.time_of_day().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use egress_common::verdict::{Reason, Verdict};

    use super::*;
    use crate::{
        api::testing::flow,
        policy::{Catalog, Lifeline, PolicySet, compile},
    };

    fn compiled(spec: &str) -> Compiled {
        let text = format!(
            "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: node }}\nspec: {spec}\n"
        );
        let texts = [(Path::new("node.yaml"), text.as_str())];
        let set = PolicySet::from_texts(texts, &Catalog::default()).expect("a policy");
        compile(&set, &Lifeline::new(), None).expect("compiles")
    }

    fn sample() -> DiffReport {
        let old = compiled("{ allow: [{ names: [\"*.example.org\"], ports: [443/tcp] }] }");
        let new = compiled(
            "{ mode: audit, allow: [{ names: [www.example.org], ports: [8443/tcp] }], \
             deny: [{ cidrs: [198.51.100.0/24] }] }",
        );
        let mut unreadable = flow(443, Verdict::Deny, Reason::Malformed);
        unreadable.protocol = "unknown".into();
        let seen = [
            flow(443, Verdict::Allow, Reason::NameRule),
            flow(8443, Verdict::Deny, Reason::PortNotAllowed),
            flow(443, Verdict::Allow, Reason::NameRule),
            flow(80, Verdict::Deny, Reason::PortNotAllowed),
            unreadable,
        ];
        let seen = seen.map(SeenFlow::from);
        report(&old, &new, Some(&seen))
    }

    #[test]
    fn flows_that_would_change_are_counted_once() {
        let report = sample();
        assert_eq!(report.flows_judged, 4);
        let flows = report.flows.expect("flows were given");
        let rows: Vec<_> = flows
            .iter()
            .map(|one| (one.becomes, one.ports.as_str(), one.count, one.reason))
            .collect();
        assert_eq!(
            rows,
            [
                ("denied", "443/tcp", 2, "port_not_allowed"),
                ("allowed", "8443/tcp", 1, "name_rule"),
            ]
        );
    }

    #[test]
    fn a_difference_fits_a_terminal() {
        let screen = Screen {
            width: Some(80),
            colours: false,
        };
        let text = render(&sample(), screen);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "too long: {line}");
        }
        assert_eq!(
            text,
            "\
BECOMES  DESTINATION                              PORTS     BY
allowed  www.example.org                          8443/tcp  policy/node allow[0]
                                                            (node.yaml:4)
denied   *.example.org                            443/tcp   policy/node allow[0]
                                                            (node.yaml:4)
denied   198.51.100.0/24 (even where an allowed   any       policy/node deny[0]
         name leads there)                                  (node.yaml:4)

SETTING  FROM     TO
mode     enforce  audit

BECOMES  SCOPE  SEEN FLOW                             COUNT  LAST
denied   node   www.example.org 203.0.113.7 443/tcp       2  02:49:55
allowed  node   www.example.org 203.0.113.7 8443/tcp      1  02:49:55
"
        );
    }

    #[test]
    fn flows_are_read_from_lists_and_from_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("flows.json");
        let one = flow(443, Verdict::Allow, Reason::NameRule);
        let line = serde_json::to_string(&one).expect("JSON");
        for text in [
            format!("[{line},\n{line}]"),
            format!("{line}\n{{\"lost\":3}}\n\n{line}\n"),
        ] {
            fs::write(&file, &text).expect("writes");
            let seen = SeenFlow::from(one.clone());
            assert_eq!(flows_of(&file).expect("flows"), [seen.clone(), seen]);
        }
        let seen = r#"{ "observations": [ { "scope": "node", "name": "a.example", "port": 443, "protocol": "tcp",
            "verdict": "would_deny", "reason": "no_rule", "flows": 7, "first": "2026-11-22T02:49:55.120Z",
            "last": "2026-11-22T02:49:55.120Z", "senders": [], "addresses": ["192.0.2.1", "192.0.2.2"],
            "other_names": ["b.example"], "is_cut": false } ], "losses": [] }"#;
        fs::write(&file, seen).expect("writes");
        let seen = flows_of(&file).expect("observations");
        let (old, new) = (
            compiled("{}"),
            compiled("{ allow: [{ names: [b.example] }] }"),
        );
        let report = report(&old, &new, Some(&seen));
        assert_eq!(report.flows_judged, 7);
        let changed = report.flows.expect("flows were given");
        assert_eq!((changed.len(), changed[0].count), (1, 7));
        assert_eq!(changed[0].names, ["a.example", "b.example"]);
        for (text, says) in [
            ("[1]", "is no list of flows"),
            ("{}\n", "flows.json:1: is no flow"),
        ] {
            fs::write(&file, text).expect("writes");
            let error = format!("{:#}", flows_of(&file).expect_err("refused"));
            assert!(error.contains(says), "{error}");
        }
        let error = flows_of(&folder.path().join("none")).expect_err("refused");
        assert!(
            error.to_string().contains("cannot be read; make it with"),
            "{error}"
        );
    }
}
