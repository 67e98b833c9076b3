//! `policy test`: whether policies decide what files of expectations say.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    catalog::CatalogArgs,
    exit::{ExitCode, UsageError},
    explain::{compiled, rule_text},
    output::{Screen, note, print},
    table::{Cell, Paint, Table},
};
use crate::{
    api::{
        model::{Explanation, RuleReport},
        report::explanation,
    },
    policy::{Compiled, Expectation, Expectations, printable},
};

const EXAMPLES: &str = "\
Examples:
  egress-agent policy test expect.yaml
  egress-agent policy test expect.yaml --policy /etc/egress/policies
  egress-agent policy test tests/*.yaml -o junit > report.xml
  egress-agent policy test expect.yaml -o tap | prove -e cat -

A file of expectations, with paths relative to it:
  policies: [node.yaml]
  expect:
    - { to: api.example.com, verdict: allowed }
    - { to: [\"10.99.1.1:22\", evil.example.com], verdict: denied }
    - { to: \"10.99.1.1:22\", verdict: denied, reason: denied_cidr,
        rule: 10.99.0.0/16 }
A name counts as resolved, the lifeline as not there, audit as enforced.

Exit status: 0 all as expected; 1 not all; 2 a file is not usable.";

/// Options of `policy test`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PolicyTest {
    /// Files of expectations
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Test these policy files or folders instead of those that the files name; may be repeated
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub policy: Vec<PathBuf>,
    /// What rules may refer to.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: TestFormat,
}

/// The form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TestFormat {
    /// For people
    #[default]
    Table,
    /// For programs: field names stay as they are
    Json,
    /// Test Anything Protocol, version 14
    Tap,
    /// JUnit's XML, as CI systems read it
    Junit,
}

/// Results of all files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct TestReport {
    /// Expectations that were met.
    pub(super) passed: usize,
    /// Expectations that were not.
    pub(super) failed: usize,
    /// All of them.
    pub(super) results: Vec<TestResult>,
}

/// The result of an expectation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct TestResult {
    /// File of the expectation.
    pub(super) file: PathBuf,
    /// Line in the file, from 1.
    pub(super) line: usize,
    /// Destination with port and protocol.
    pub(super) to: String,
    /// The expectation, in one line.
    pub(super) expected: String,
    /// True if it was met.
    pub(super) passed: bool,
    /// `allowed` or `denied`.
    pub(super) verdict: &'static str,
    /// Name of the reason.
    pub(super) reason: String,
    /// The rule that decides.
    pub(super) rule: Option<RuleReport>,
    /// The difference from the expectation, and the cause; none if it was met.
    pub(super) failure: Option<String>,
}

impl PolicyTest {
    /// Prints what became of the expectations.
    ///
    /// # Errors
    ///
    /// A file of expectations, or a policy, is not usable.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let report = self.test().map_err(UsageError::new)?;
        let text = match self.output {
            TestFormat::Table => table(&report, Screen::of_stdout()),
            TestFormat::Json => {
                let mut json = serde_json::to_string_pretty(&report)?;
                json.push('\n');
                json
            }
            TestFormat::Tap => tap(&report),
            TestFormat::Junit => junit(&report),
        };
        print(&text).map(|_closed| ())?;
        if self.output == TestFormat::Table {
            note(&format!(
                "{} passed, {} failed",
                report.passed, report.failed
            ));
        }
        Ok(if report.failed == 0 {
            ExitCode::Ok
        } else {
            ExitCode::Failure
        })
    }

    fn test(&self) -> anyhow::Result<TestReport> {
        let mut report = TestReport::default();
        for file in &self.files {
            let expectations = Expectations::load(file)?;
            let policies = if self.policy.is_empty() {
                &expectations.policies
            } else {
                &self.policy
            };
            if policies.is_empty() {
                anyhow::bail!(
                    "{}: names no policies; write policies: [node.yaml], or give --policy",
                    file.display()
                );
            }
            let compiled = compiled(policies, &self.catalog)?;
            for expected in &expectations.expect {
                report.add(result(file, expected, &compiled));
            }
        }
        Ok(report)
    }
}

impl TestReport {
    /// Adds a result.
    pub(super) fn add(&mut self, result: TestResult) {
        let count = if result.passed {
            &mut self.passed
        } else {
            &mut self.failed
        };
        *count = count.saturating_add(1);
        self.results.push(result);
    }
}

/// Compares what is expected with what the policies decide.
pub(super) fn result(file: &Path, expected: &Expectation, compiled: &Compiled) -> TestResult {
    let explained = explanation(compiled, &expected.to, None);
    let is_allowed = explained.verdict == "allowed";
    let verdict = |is_allowed| if is_allowed { "allowed" } else { "denied" };
    // The kernel has no rule for an address that a deny rule for a name keeps from being learned.
    let cause = explained.causes.iter().find(|one| one.cause == "deny_rule");
    let rule = explained.rule.clone();
    let rule = rule.or_else(|| cause.and_then(|one| one.rule.clone()));
    let mut wanted = verdict(expected.is_allowed).to_owned();
    let mut failures = Vec::new();
    if is_allowed != expected.is_allowed {
        failures.push(format!("it is {}", verdict(is_allowed)));
    }
    if let Some(reason) = expected.reason {
        wanted.push_str(&format!(", {}", reason.name()));
        if explained.reason != reason.name() {
            failures.push(format!("the reason is {}", explained.reason));
        }
    }
    if let Some(text) = &expected.rule {
        wanted.push_str(&format!(", by {text}"));
        if rule.as_ref().is_none_or(|rule| rule.destination != *text) {
            let by = rule
                .as_ref()
                .map_or_else(|| "no rule".to_owned(), rule_text);
            failures.push(format!("it is decided by {by}"));
        }
    }
    let failure = (!failures.is_empty()).then(|| {
        let what = failures.join(", and ");
        format!("{what}: {}", why(&explained, rule.as_ref()))
    });
    TestResult {
        file: file.to_owned(),
        line: expected.line,
        to: expected.to.to_string(),
        expected: wanted,
        passed: failure.is_none(),
        verdict: verdict(is_allowed),
        reason: explained.reason.to_string(),
        rule,
        failure,
    }
}

/// The grounds of a verdict, in one line.
fn why(explained: &Explanation, rule: Option<&RuleReport>) -> String {
    let mut parts = vec![explained.words.to_string()];
    parts.extend(rule.map(rule_text));
    if let Some(first) = explained.causes.first() {
        parts.push(first.words.clone());
    }
    if let Some(line) = &explained.add {
        parts.push(format!("to allow it, add {line}"));
    }
    parts.join("; ")
}

/// Results for people: failures in full.
fn table(report: &TestReport, screen: Screen) -> String {
    let mut table = Table::new()
        .word("RESULT")
        .text("DESTINATION")
        .text("EXPECTED")
        .text("DECIDED")
        .text("WHERE");
    for one in &report.results {
        let result = if one.passed {
            Cell::painted("ok", Paint::Good)
        } else {
            Cell::painted("FAILED", Paint::Bad)
        };
        table.row([
            result,
            one.to.as_str().into(),
            one.expected.as_str().into(),
            format!("{}, {}", one.verdict, one.reason).into(),
            place(one).into(),
        ]);
    }
    let mut parts = vec![table.render(screen)];
    for one in &report.results {
        if let Some(failure) = &one.failure {
            let mut told = Table::new().word("").text("");
            told.row([
                format!("{}:", place(one)).into(),
                format!("{}: {failure}", one.to).into(),
            ]);
            parts.push(told.render(screen));
        }
    }
    parts.join("\n")
}

fn place(result: &TestResult) -> String {
    format!("{}:{}", result.file.display(), result.line)
}

/// The name of a test in reports.
fn title(result: &TestResult) -> String {
    printable(&format!("{} is {}", result.to, result.expected))
}

/// TAP version 14, <https://testanything.org/tap-version-14-specification.html>.
fn tap(report: &TestReport) -> String {
    let mut text = format!("TAP version 14\n1..{}\n", report.results.len());
    for (number, one) in (1_usize..).zip(&report.results) {
        let result = if one.passed { "ok" } else { "not ok" };
        let title = title(one).replace('\\', "\\\\").replace('#', "\\#");
        text.push_str(&format!("{result} {number} - {title}\n"));
        if let Some(failure) = &one.failure {
            // JSON strings are YAML.
            let quoted = |text: &str| serde_json::Value::from(text).to_string();
            text.push_str(&format!(
                "  ---\n  message: {}\n  severity: fail\n  found: {}\n  wanted: {}\n  at:\n    file: {}\n    line: {}\n  ...\n",
                quoted(failure),
                quoted(&format!("{}, {}", one.verdict, one.reason)),
                quoted(&one.expected),
                quoted(&one.file.to_string_lossy()),
                one.line
            ));
        }
    }
    text
}

/// JUnit's XML: a suite for each file.
fn junit(report: &TestReport) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"egress-agent policy test\" tests=\"{}\" failures=\"{}\" errors=\"0\">\n",
        report.results.len(),
        report.failed
    );
    for suite in report.results.chunk_by(|one, next| one.file == next.file) {
        let failures = suite.iter().filter(|one| !one.passed).count();
        let Some(first) = suite.first() else { continue };
        let file = xml(&first.file.to_string_lossy());
        text.push_str(&format!(
            "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"0\">\n",
            suite.len()
        ));
        for one in suite {
            text.push_str(&format!(
                "    <testcase classname=\"{file}\" name=\"{}\" file=\"{file}\" line=\"{}\"",
                xml(&title(one)),
                one.line
            ));
            match &one.failure {
                None => text.push_str("/>\n"),
                Some(failure) => {
                    let (what, _) = failure.split_once(": ").unwrap_or((failure, ""));
                    text.push_str(&format!(
                        ">\n      <failure message=\"{}\" type=\"verdict\">{}</failure>\n    </testcase>\n",
                        xml(what),
                        xml(&format!("{}: {failure}", place(one)))
                    ));
                }
            }
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

/// Text as XML 1.0 may hold it, in attributes too; what it may not hold at all is replaced.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", u32::from(character))),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Catalog, Lifeline, PolicySet, compile};

    const POLICY: &str = "apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: node }
spec:
  mode: audit
  allow:
    - { names: [api.example.com, \"*.cdn.example.net\"], ports: [\"443/tcp\"] }
    - { cidrs: [10.0.0.0/8] }
  deny:
    - { names: [evil.cdn.example.net] }
    - { cidrs: [10.99.0.0/16] }
";

    fn report(expect: &str) -> TestReport {
        let file = Path::new("a<&>'\"#\\/expect.yaml");
        let texts = [(Path::new("node.yaml"), POLICY)];
        let set = PolicySet::from_texts(texts, &Catalog::default()).expect("a policy");
        let compiled = compile(&set, &Lifeline::new(), None).expect("compiles");
        let expectations = Expectations::parse(file, expect).expect("expectations");
        let mut report = TestReport::default();
        for expected in &expectations.expect {
            report.add(result(file, expected, &compiled));
        }
        report
    }

    const MIXED: &str = "expect:
- { to: api.example.com, verdict: allowed, reason: name_rule, rule: api.example.com }
- { to: \"api.example.com:80\", verdict: allowed }
- { to: \"10.99.1.1:22\", verdict: denied, reason: denied_cidr, rule: 10.99.0.0/16 }
- { to: evil.cdn.example.net, verdict: denied, rule: evil.cdn.example.net }
- { to: cdn.example.net, verdict: denied, reason: denied_cidr, rule: \"#<'&\\\"\\\\\" }
";

    #[test]
    fn expectations_are_met_or_the_failure_says_why() {
        let report = report(MIXED);
        assert_eq!((report.passed, report.failed), (3, 2));
        let passed: Vec<bool> = report.results.iter().map(|one| one.passed).collect();
        assert_eq!(passed, [true, false, true, true, false]);
        let failures: Vec<&str> = report
            .results
            .iter()
            .filter_map(|one| one.failure.as_deref())
            .collect();
        assert_eq!(
            failures,
            [
                "it is denied: the destination is known, but no rule allows this port and protocol; a rule for \
                 api.example.com covers api.example.com, but not 80/tcp; to allow it, add - { names: \
                 [\"api.example.com\"], ports: [\"80/tcp\"] }",
                "the reason is no_rule, and it is decided by no rule: no rule allows the destination, and no allowed name \
                 resolved to it in this scope; *.cdn.example.net covers the names below cdn.example.net, not \
                 cdn.example.net itself; to allow it, add - { names: [\"cdn.example.net\"], ports: [\"443/tcp\"] }",
            ]
        );
    }

    #[test]
    fn tap_is_numbered_and_escaped() {
        let text = tap(&report(MIXED));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(&lines[..2], ["TAP version 14", "1..5"]);
        assert_eq!(
            lines[2],
            "ok 1 - api.example.com:443/tcp is allowed, name_rule, by api.example.com"
        );
        assert_eq!(lines[3], "not ok 2 - api.example.com:80/tcp is allowed");
        assert!(
            text.contains(
                "not ok 5 - cdn.example.net:443/tcp is denied, denied_cidr, by \\#<'&\"\\\\\\\\\n"
            ) || text.contains("by \\#<'&\"\\\\\n"),
            "{text}"
        );
        // The blocks are YAML.
        let mut blocks = text.split("  ---\n").skip(1);
        let block = blocks.next().expect("a block");
        let (block, _) = block.split_once("  ...\n").expect("an end");
        let read: serde_json::Value = serde_yaml_ng::from_str(block).expect("YAML");
        assert_eq!(read["at"]["line"], 3);
        assert_eq!(read["at"]["file"], "a<&>'\"#\\/expect.yaml");
        assert_eq!(read["found"], "denied, port_not_allowed");
    }

    #[test]
    fn junit_is_xml_that_reads_back() {
        let report = report(MIXED);
        let text = junit(&report);
        let document = roxmltree::Document::parse(&text).expect("XML");
        let root = document.root_element();
        assert_eq!(
            (root.attribute("tests"), root.attribute("failures")),
            (Some("5"), Some("2"))
        );
        let cases: Vec<_> = root
            .descendants()
            .filter(|node| node.has_tag_name("testcase"))
            .collect();
        assert_eq!(cases.len(), 5);
        for (case, one) in cases.iter().zip(&report.results) {
            assert_eq!(case.attribute("name"), Some(title(one).as_str()));
            assert_eq!(case.attribute("file"), one.file.to_str());
            let failure = case.children().find(|node| node.has_tag_name("failure"));
            assert_eq!(failure.is_none(), one.passed);
        }
        assert_eq!(xml("a\u{1}b\tc\u{ffff}"), "a\u{fffd}b&#9;c\u{fffd}");
    }

    #[test]
    fn the_table_tells_failures_whole() {
        let screen = Screen {
            width: Some(80),
            colours: false,
        };
        let text = table(&report(MIXED), screen);
        assert!(text.contains("FAILED"), "{text}");
        assert!(text.contains("to allow it, add"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }
}
