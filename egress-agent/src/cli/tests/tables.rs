//! The tables that people see. `EGRESS_BLESS=1 cargo test` renews the golden files in `testdata/`.

use std::path::Path;

use egress_common::verdict::Reason;

use super::super::{Screen, counters, doctor, explain, flows, learned, preset, status};
use crate::{
    api::{
        model::{Check, ConfirmationStatus, ServiceTagsStatus},
        testing,
    },
    policy::Presets,
};

const TERMINAL: Screen = Screen {
    width: Some(80),
    colours: false,
};

/// Compares with a golden file, and checks that it fits the terminal.
fn golden(name: &str, text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "too long: {line}");
        assert_eq!(line, line.trim_end(), "ends in spaces");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/cli/testdata")
        .join(name);
    assert_eq!(text, crate::golden::golden(&path, text), "{name}");
}

#[test]
fn status_fits_a_terminal() {
    let mut status = testing::status();
    status
        .alarms
        .push("FLOWS is 99 % full: flows that do not fit are denied; raise its size".into());
    status.policy.service_tags = Some(ServiceTagsStatus {
        file: "/var/lib/egress/service-tags.json".into(),
        cloud: "Public".to_owned(),
        change_number: "376".to_owned(),
        modified_at: Some(testing::instant()),
        age_s: Some(277_200),
        tags: 3_000,
        ipv4_prefixes: 37_500,
        ipv6_prefixes: 13_400,
        notes: vec![
            "service tag Sql: \"192.0.2.7/24\" has host bits set, 192.0.2.0/24 is used".to_owned(),
        ],
    });
    status.policy.error = Some("/etc/egress/node.yaml:7: spec.allow[0].ports: not a port".into());
    let text = status::render(&status, TERMINAL);
    golden("status.txt", &text);
}

#[test]
fn status_tells_whether_enforcing_was_confirmed() {
    let line = |confirmation: Option<ConfirmationStatus>| {
        let mut status = testing::status();
        status.confirmation = confirmation;
        let text = status::render(&status, Screen::PLAIN);
        let found = text.lines().find(|line| line.starts_with("confirm"));
        found.map(str::to_owned)
    };
    assert_eq!(line(None), None);
    let status = |state: &'static str| ConfirmationStatus {
        state: state.into(),
        ..ConfirmationStatus::default()
    };
    let at = Some(testing::instant());
    assert_eq!(
        line(Some(status("idle"))).expect("a line"),
        "confirm    awaited as soon as a policy enforces"
    );
    let awaited = ConfirmationStatus {
        until: at,
        remaining_s: Some(42),
        ..status("awaited")
    };
    assert_eq!(
        line(Some(awaited)).expect("a line"),
        "confirm    AWAITED until 2026-11-22T02:49:55.120Z (42s): run `egress-agent confirm`, \
         or the agent falls back to audit"
    );
    let confirmed = ConfirmationStatus {
        at,
        ..status("confirmed")
    };
    assert_eq!(
        line(Some(confirmed)).expect("a line"),
        "confirm    confirmed 2026-11-22T02:49:55.120Z"
    );
    let fell_back = ConfirmationStatus {
        at,
        reason: Some("it was not confirmed in time".to_owned()),
        ..status("fell_back")
    };
    assert_eq!(
        line(Some(fell_back)).expect("a line"),
        "confirm    fell back to audit 2026-11-22T02:49:55.120Z: it was not confirmed in time"
    );
}

#[test]
fn status_says_when_not_all_is_enforced() {
    let line = |enforcing, mode: &str| {
        let mut status = testing::status();
        status.enforcing = enforcing;
        status.mode = mode.to_owned();
        let text = status::render(&status, Screen::PLAIN);
        let found = text.lines().find(|line| line.starts_with("enforcing"));
        found.expect("a line").to_owned()
    };
    assert_eq!(line(true, "enforce"), "enforcing  yes");
    assert_eq!(
        line(true, "audit"),
        "enforcing  audit only: nothing is dropped"
    );
    assert_eq!(
        line(false, "enforce"),
        "enforcing  NO: not all that it should"
    );
    assert_eq!(
        line(false, "audit"),
        "enforcing  NO: not all that it should"
    );
}

#[test]
fn counters_fit_a_terminal() {
    let report = testing::counters();
    let text = counters::render(&report, None, TERMINAL);
    golden("counters.txt", &text);
    let text = counters::render(&report, Some(counters::By::Rule), TERMINAL);
    golden("counters-by-rule.txt", &text);
    let text = counters::render(&report, Some(counters::By::Hook), TERMINAL);
    golden("counters-by-hook.txt", &text);
}

#[test]
fn learned_addresses_fit_a_terminal() {
    let mut learned = testing::learned();
    learned[0].name = "?".to_owned();
    learned[1].address = "2001:db8:1234:5678:9abc:def0:1234:5678"
        .parse()
        .expect("an address");
    learned[1].name = format!("{}.example.com", "long-label".repeat(6));
    let text = learned::render(&learned, TERMINAL);
    golden("learned.txt", &text);
    assert_eq!(learned::render(&[], TERMINAL), "");
}

#[test]
fn flows_fit_a_terminal_and_explain_denials() {
    let flows = [testing::allowed_flow(443), testing::denied_flow(8443)];
    let text = flows::render(&flows, TERMINAL);
    golden("flows.txt", &text);
    let line = flows::one_line(&flows[1], Screen::PLAIN);
    let expected =
        "02:49:55  denied  no_rule           node      www.example.org 203.0.113.7:8443/tcp";
    assert_eq!(line, expected);
}

#[test]
fn an_explanation_fits_a_terminal_and_its_line_stays_whole() {
    let mut explained = testing::explanation();
    golden("explain.txt", &explain::render(&explained, TERMINAL));
    let line = explained.add.clone().expect("a line");
    (explained.verdict, explained.reason) = ("allowed".into(), "name_rule".into());
    explained.words = Reason::NameRule.words().into();
    explained.addresses[0].verdict = "allowed".into();
    explained.addresses[0].reason = "name_rule".into();
    explained.rule = explained.causes[0].rule.clone();
    explained.ports = vec!["443/tcp".to_owned()];
    (explained.causes, explained.add) = (Vec::new(), None);
    explained.addresses[0].expires_in_s = Some(93);
    golden(
        "explain-allowed.txt",
        &explain::render(&explained, TERMINAL),
    );
    explained.add = Some(line.clone());
    let narrow = Screen {
        width: Some(40),
        colours: false,
    };
    let text = explain::render(&explained, narrow);
    assert!(text.lines().any(|shown| shown.trim() == line), "{text}");
}

#[test]
fn a_name_from_the_network_cannot_steer_the_terminal() {
    let mut flow = testing::denied_flow(443);
    flow.names = vec!["evil\x1b[2J\r.example".to_owned()];
    for text in [
        flows::one_line(&flow, TERMINAL),
        flows::render(&[flow], TERMINAL),
    ] {
        assert!(!text.contains(['\x1b', '\r']), "{text:?}");
        assert!(text.contains("evil\\u{1b}[2J"), "{text:?}");
    }
}

#[test]
fn doctor_says_what_to_do_about_what_is_missing() {
    let check = |name: &'static str, ok: bool| Check {
        name: name.into(),
        ok,
        found: if ok { "6.1.0" } else { "absent" }.to_owned(),
        needed: "5.10 or newer".into(),
        fix: if ok { "" } else { "boot a newer kernel" }.into(),
    };
    let checks = [check("kernel", true), check("bpffs", false)];
    let text = doctor::render(&checks, TERMINAL);
    golden("doctor.txt", &text);
    let fine = doctor::render(&checks[..1], TERMINAL);
    assert!(!fine.contains("What to do"), "{fine}");
}

#[test]
fn presets_fit_a_terminal() {
    let presets = Presets::default();
    golden("presets.txt", &preset::list(&presets, TERMINAL));
    let one = presets.get("aks/azure-global").expect("a preset");
    golden("preset-variables.txt", &preset::variables(one, TERMINAL));
    let one = presets.get("aks/addon/istio").expect("a preset");
    golden("preset-includes.txt", &preset::variables(one, TERMINAL));
}
