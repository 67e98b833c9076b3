//! The conditions that hold in every round.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{agent::Status, interrupt, report::Load};
use nix::sys::signal::Signal;

use crate::{
    fault::{Fault, Says},
    random::Random,
    rig::Rig,
};

/// How soon `status` says what is wrong.
const SAID_WITHIN: Duration = Duration::from_secs(8);
/// How soon all is well again, on a machine with little time to spare.
const WELL_WITHIN: Duration = Duration::from_secs(20);
/// Longest time until the traffic has ended: a wait of its own is five seconds.
const LOAD_LIMIT: Duration = Duration::from_secs(20);
/// Most operations that may time out where a link was down.
const MOST_EXCUSED: u64 = 20;

/// Sentences that are exit status 1.
const IMPAIRING: &[&str] = &[
    "is not attached to",
    "is not as it should be",
    "is not pinned",
    "the last policy change was refused",
    "last known good resolvers stay",
    "lines of the log were dropped",
    "state is not written",
];
/// Those of them that end with the fault.
const PRESENT: &[&str] = &[
    "is not attached to",
    "is not as it should be",
    "is not pinned",
    "the last policy change was refused",
    "last known good resolvers stay",
];

/// Result of a round.
pub(crate) struct Report {
    /// From the end of the faults until all was well.
    pub(crate) well_after: Duration,
    pub(crate) operations: u64,
    pub(crate) forbidden: u64,
    pub(crate) excused: u64,
}

/// Injects faults, looks, takes them away, looks again.
pub(crate) fn round(rig: &mut Rig, faults: &[Fault], random: &mut Random) -> Result<Report> {
    let faults: Vec<Fault> = faults
        .iter()
        .copied()
        .filter(|fault| rig.can(*fault))
        .collect();
    rig.past.extend(&faults);
    let mut faults = faults;
    // Pins go first: a living agent's links and maps are pinned again when it ends; those that nobody holds are gone.
    faults.sort_by_key(|fault| *fault != Fault::Pins);
    let mut load = rig.load()?;
    let mut told = Ok(());
    for fault in &faults {
        thread::sleep(random.millis(20..400));
        told = fault
            .inject(rig, random)
            .with_context(|| format!("{} is not injected", fault.name()));
        if told.is_err() {
            break;
        }
    }
    let lasts = random.millis(300..2_000);
    let told = told.and_then(|()| says(rig, &faults));
    thread::sleep(lasts);
    // A policy that cannot be read and an interface that is not there keep an agent from starting, as documented.
    let mut order = faults;
    let first = random.below(order.len().max(1)).min(order.len());
    order.rotate_left(first);
    // A stopped agent takes up no change.
    order.sort_by_key(|fault| !matches!(fault, Fault::Policy | Fault::Links | Fault::Stop));
    for fault in &order {
        fault
            .heal(rig)
            .with_context(|| format!("after {}", fault.name()))?;
        thread::sleep(random.millis(0..200));
    }
    told?;
    let healed = Instant::now();
    is_true(rig, &[], WELL_WITHIN, PRESENT).context("all faults are gone")?;
    let well_after = healed.elapsed();
    // The agent still follows its policy file.
    for is_open in [true, false] {
        rig.write_policy(is_open)?;
        let is_taken = egress_tests::eventually(WELL_WITHIN, || rig.is_open_as_written());
        ensure!(is_taken, "a changed policy is not taken");
    }
    rig.check()?;
    load.signal(Signal::SIGTERM);
    let line = load.wait_for_line(1, LOAD_LIMIT, |line| line.starts_with('{'))?;
    let mut report = judge(&serde_json::from_str(&line)?, order.contains(&Fault::Links))?;
    report.well_after = well_after;
    Ok(report)
}

/// Checks the report of `status` while the faults last.
fn says(rig: &mut Rig, faults: &[Fault]) -> Result<()> {
    let says: Vec<Says> = faults.iter().map(|fault| fault.says()).collect();
    if says.contains(&Says::NoAgent) {
        let output = rig.agent.cli_within(&["status"], LOAD_LIMIT)?;
        ensure!(
            output.code() == Some(1) && !output.stderr.is_empty(),
            "no agent answers, and status says {}",
            output.shown()
        );
        return Ok(());
    }
    if says.contains(&Says::Anything) {
        return Ok(());
    }
    let wanted: Vec<&str> = says
        .iter()
        .filter_map(|says| match says {
            Says::Impaired(sentence) | Says::Noted(sentence) => Some(*sentence),
            Says::Nothing | Says::NoAgent | Says::Anything => None,
        })
        .collect();
    is_true(rig, &wanted, SAID_WITHIN, &[])
}

/// Waits until `status` says these sentences and none that nothing explains, none of `gone`, and exits as they mean.
fn is_true(rig: &mut Rig, wanted: &[&str], limit: Duration, gone: &[&str]) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let why = match rig.agent.look()? {
            (code, Some(status)) => untrue(rig, code, &status, wanted, gone),
            (code, None) => Some(format!("it does not answer (exit status {code:?})")),
        };
        let Some(why) = why else {
            return Ok(());
        };
        if Instant::now() >= end || interrupt::requested() {
            bail!("status is not true after {limit:?}: {why}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn untrue(
    rig: &Rig,
    code: Option<i32>,
    status: &Status,
    wanted: &[&str],
    gone: &[&str],
) -> Option<String> {
    let alarms = &status.alarms;
    let has = |part: &&str| alarms.iter().any(|alarm| alarm.contains(*part));
    if let Some(missing) = wanted.iter().find(|part| !has(part)) {
        return Some(format!("it does not say \"{missing}\" but {alarms:?}"));
    }
    if let Some(stale) = gone.iter().find(|part| has(part)) {
        return Some(format!("it still says \"{stale}\": {alarms:?}"));
    }
    let is_explained = |alarm: &&String| {
        let mut may = rig.past.iter().flat_map(|fault| fault.may_say());
        may.any(|part| alarm.contains(part))
    };
    if let Some(strange) = alarms.iter().find(|alarm| !is_explained(alarm)) {
        return Some(format!("nothing explains \"{strange}\""));
    }
    let is_impaired = !status.enforcing || IMPAIRING.iter().any(has);
    if code != Some(i32::from(is_impaired)) {
        return Some(format!("it exits with {code:?} and says {alarms:?}"));
    }
    None
}

/// Nothing allowed was lost, nothing forbidden passed.
fn judge(load: &Load, was_down: bool) -> Result<Report> {
    let forbidden = &load.forbidden;
    let is_through = |example: &String| !example.contains("no answer");
    // A lookup that gets no answer was not even an attempt.
    let excused =
        was_down && forbidden.failed <= MOST_EXCUSED && !forbidden.examples.iter().any(is_through);
    ensure!(
        forbidden.failed == 0 || excused,
        "{} of {} forbidden attempts were not refused: {:?}",
        forbidden.failed,
        forbidden.done + forbidden.failed,
        forbidden.examples
    );
    let mut report = Report {
        well_after: Duration::ZERO,
        operations: 0,
        forbidden: forbidden.done,
        excused: forbidden.failed,
    };
    for (name, traffic) in [
        ("streams", &load.streams),
        ("datagrams", &load.datagrams),
        ("connects", &load.connects),
        ("lookups", &load.lookups),
    ] {
        report.operations += traffic.done;
        let is_denied = traffic
            .examples
            .iter()
            .any(|example| example.contains("EPERM"));
        if was_down && !is_denied && traffic.failed <= MOST_EXCUSED {
            report.excused += traffic.failed;
            continue;
        }
        ensure!(
            traffic.failed == 0,
            "{} of {} allowed {name} were lost: {:?}",
            traffic.failed,
            traffic.done + traffic.failed,
            traffic.examples
        );
        ensure!(
            traffic.done > 20,
            "{name}: too little to show anything: {}",
            traffic.done
        );
    }
    Ok(report)
}
