//! Workflows with `step-security/harden-runner`: its `allowed-endpoints`.

use super::{
    hosts,
    input::{Item, named},
    rule::{Carried, Ports},
    sink::{Note, NoteKind, Sink},
};
use crate::{document::SpecMode, vocabulary::parse_port_range};

const ACTION: &str = "step-security/harden-runner";

/// True if it is a workflow that has the step.
pub(super) fn is_it(document: &Item<'_>) -> bool {
    let jobs = document.get("jobs");
    jobs.iter()
        .flat_map(Item::fields)
        .any(|(_, job)| step(&job).is_some())
}

fn step<'n>(job: &Item<'n>) -> Option<Item<'n>> {
    let steps = job.get("steps")?;
    let mut steps = steps.items();
    steps.find(|step| {
        let uses = step.word("uses").unwrap_or_default();
        uses == ACTION
            || uses
                .strip_prefix(ACTION)
                .is_some_and(|rest| rest.starts_with('@'))
    })
}

/// Makes a policy of each job that has the step.
pub(super) fn import(workflow: &Item<'_>, sink: &mut Sink) {
    let stem = workflow.file().file_stem();
    let stem = stem.map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let jobs = workflow.get("jobs");
    for (name, job) in jobs.iter().flat_map(Item::fields) {
        match step(&job) {
            Some(step) => import_job(&format!("{stem}-{name}"), name, &step, sink),
            None => {
                let text =
                    format!("the job {name} has no step of {ACTION}: no policy is made of it");
                sink.notes.push(Note::new(&job, NoteKind::LeftOut, text));
            }
        }
    }
}

fn import_job(name: &str, job: &str, step: &Item<'_>, sink: &mut Sink) {
    let mut draft = sink.draft(name);
    draft.comments.push(format!(
        "Job {job} of a workflow ({}). What the runner itself needs is always open there; here it needs rules, or `exec`.",
        step.origin()
    ));
    let inputs = step.get("with");
    let mut rules: Vec<Carried<'_>> = Vec::new();
    for (name, field) in inputs.iter().flat_map(Item::fields) {
        match (name, field.text()) {
            ("egress-policy", Some("block")) => {}
            ("egress-policy", Some("audit")) => draft.mode = SpecMode::Audit,
            ("egress-policy", _) => sink.choice(&field, "block or audit"),
            ("allowed-endpoints", Some(text)) => endpoints(&field, text, &mut rules, sink),
            ("allowed-endpoints", None) => sink.shape(&field, "text", "api.github.com:443"),
            _ if field.says_nothing() => {}
            _ => {
                let text = format!("{name}: is not about destinations that stand here");
                sink.note(&mut draft, Note::new(&field, NoteKind::LeftOut, text));
            }
        }
    }
    for rule in rules {
        rule.finish(&mut draft, sink);
    }
    sink.drafts.push(draft);
}

/// `api.github.com:443 *.example.com:443`, by spaces and lines; without a port 443.
fn endpoints<'n>(at: &Item<'n>, text: &str, rules: &mut Vec<Carried<'n>>, sink: &mut Sink) {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, inside)) = rest.split_once("${{") {
        plain.push_str(before);
        let (expression, after) = inside.split_once("}}").unwrap_or((inside, ""));
        // A word around it is no name without its value.
        let cut = plain.trim_end_matches(|c: char| !c.is_whitespace()).len();
        plain.truncate(cut);
        let after = after.trim_start_matches(|c: char| !c.is_whitespace());
        let mut rule = Carried::new(at.clone(), "", false);
        let text = format!(
            "the endpoints of the expression {} do not stand here",
            named(expression.trim())
        );
        rule.left_out(at, text);
        rules.push(rule);
        rest = after;
    }
    plain.push_str(rest);
    let mut by_ports: Vec<Carried<'n>> = Vec::new();
    for word in plain.split_whitespace() {
        let line = match hosts::parse(word) {
            Ok(line) => line,
            Err(error) => {
                sink.report.add(at.place(), error);
                continue;
            }
        };
        let mut ports = line.ports;
        if ports == Ports::Any {
            let https = parse_port_range("443/tcp");
            ports = https.map_or(Ports::Any, |https| Ports::Of(vec![https]));
        }
        let known = by_ports.iter_mut().find(|rule| rule.ports == ports);
        let rule = match known {
            Some(rule) => rule,
            None => {
                let mut rule = Carried::new(at.clone(), "", false);
                rule.ports = ports;
                by_ports.push(rule);
                let Some(rule) = by_ports.last_mut() else {
                    continue;
                };
                rule
            }
        };
        line.destination.add_to(rule);
    }
    rules.extend(by_ports);
}
