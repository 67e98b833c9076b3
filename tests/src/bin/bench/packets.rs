//! Packets one by one, connections, streams and datagrams: with egress, and with its peers.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
    sys::{Stats, enable_stats},
};

use crate::{
    client::Sample,
    measure::{Budget, Row, Series, interleave},
    scene::{Judge, Scene},
    suite::Effort,
};

const PEERS: [Judge; 5] = [
    Judge::Egress,
    Judge::None,
    Judge::Empty,
    Judge::NftSet,
    Judge::NftTracked,
];

/// The rounds of each judge as one figure of its samples.
fn series(judges: &[Judge], samples: &[Vec<Sample>], figure: &str) -> Result<Vec<Series>> {
    let all = judges.iter().zip(samples);
    all.map(|(judge, samples)| {
        let rounds: Option<Vec<f64>> = samples.iter().map(|one| one.get(figure).copied()).collect();
        let rounds = rounds.with_context(|| format!("no {figure} was measured"))?;
        Ok(Series::new(judge.name(), rounds))
    })
    .collect()
}

/// A row whose first judge is the subject.
fn row(
    part: &'static str,
    what: &str,
    unit: &'static str,
    judges: &[Judge],
    samples: &[Vec<Sample>],
    figure: &str,
) -> Result<Row> {
    let mut all = series(judges, samples, figure)?;
    let peers = all.split_off(1);
    let subject = all.pop().context("nobody was measured")?;
    Ok(Row::new(part, what, unit, subject, peers))
}

const PACKETS: &str = "one packet";

/// Established, first, denied; then the program alone.
///
/// # Errors
///
/// Something cannot be measured, or a packet passed that should not have.
pub(crate) fn packets(scene: &mut Scene, effort: Effort) -> Result<Vec<Row>> {
    let many = effort.packets.to_string();
    let few = (effort.packets / 4).to_string();
    let mut rows = Vec::new();
    for (what, count, text) in [
        ("established", &many, "established flow (64 bytes, UDP)"),
        (
            "first",
            &few,
            "first packet: new socket, connect, send, close",
        ),
    ] {
        let samples = interleave(text, effort.rounds, PEERS.len(), |subject| {
            scene.client(PEERS[subject], &[what, count])
        })?;
        rows.push(row(PACKETS, text, "ns", &PEERS, &samples, "ns")?);
    }
    if let Some(first) = rows.first_mut() {
        *first = first.clone().budget(Budget::Added(40.0));
    }
    let judges = [
        Judge::Egress,
        Judge::EmptyDenies,
        Judge::NftSet,
        Judge::NftTracked,
    ];
    let samples = interleave("denied packet", effort.rounds, judges.len(), |subject| {
        let sample = scene.client(judges[subject], &["denied", &many])?;
        let refused = sample.get("refused").copied().unwrap_or_default();
        ensure!(
            refused >= 1.0,
            "{:?} let packets pass that it should have denied ({refused})",
            judges[subject]
        );
        Ok(sample)
    })?;
    rows.push(row(
        PACKETS,
        "denied packet",
        "ns",
        &judges,
        &samples,
        "ns",
    )?);
    rows.extend(programs(scene, effort)?);
    Ok(rows)
}

/// Time of `skb_egress` as the kernel measures it, its two clock readings included.
fn programs(scene: &mut Scene, effort: Effort) -> Result<Vec<Row>> {
    let timing = Timing::begin(scene, "skb_egress", "idle_egress")?;
    let mut rows = Vec::new();
    for (what, text) in [
        ("established", "skb_egress alone, established flow"),
        ("first", "skb_egress alone, first packet"),
        ("denied", "skb_egress alone, denied packet"),
    ] {
        let row = alone(scene, effort, &timing, (Judge::Egress, what), text)?;
        rows.push(if what == "established" {
            row.budget(Budget::Added(40.0))
        } else {
            row
        });
    }
    Ok(rows)
}

/// One program beside the empty one, while a client of this judge runs.
fn alone(
    scene: &mut Scene,
    effort: Effort,
    timing: &Timing,
    (judge, what): (Judge, &str),
    text: &str,
) -> Result<Row> {
    let count = effort.packets.to_string();
    let judges = [judge, Judge::Empty];
    let samples = interleave(text, effort.rounds, judges.len(), |subject| {
        timing.of(scene, judges[subject], &[what, &count])
    })?;
    let [figure, empty]: [Vec<f64>; 2] = samples
        .try_into()
        .ok()
        .context("two series were measured")?;
    Ok(Row::new(
        PACKETS,
        text,
        "ns",
        Series::new("egress", figure),
        vec![Series::new("empty program", empty)],
    ))
}

/// A pod's packets, which are judged in its cgroup, and looked at once more at the host's end of its interface.
///
/// # Errors
///
/// Something cannot be measured.
pub(crate) fn of_pod(effort: Effort) -> Result<Vec<Row>> {
    let mut scene = Scene::of_pod()?;
    let mut rows = Vec::new();
    for (hook, text) in [
        ("skb_egress", "pod: skb_egress alone, established flow"),
        (
            "tc_egress@pod0",
            "pod: tc_egress alone at its interface, established flow",
        ),
    ] {
        let timing = Timing::begin(&scene, hook, "idle_egress")?;
        let client = (Judge::EgressOfPod, "established");
        rows.push(alone(&mut scene, effort, &timing, client, text)?);
    }
    Ok(rows)
}

/// Run times of an attached program and of the empty one, as long as this lives.
#[derive(Debug)]
pub(crate) struct Timing {
    id: u32,
    idle: &'static str,
    _enabled: OwnedFd,
}

impl Timing {
    /// Finds the program behind the link that the agent has pinned, and lets the kernel take times.
    ///
    /// # Errors
    ///
    /// There is none, or the kernel refuses.
    pub(crate) fn begin(scene: &Scene, hook: &str, idle: &'static str) -> Result<Self> {
        let pin = scene.agent.pins().join("links").join(hook);
        let link = PinnedLink::from_pin(pin).with_context(|| format!("{hook} is not pinned"))?;
        let info = FdLink::from(link).info().context("cannot look at a link")?;
        Ok(Self {
            id: info.program_id(),
            idle,
            _enabled: enable_stats(Stats::RunTime).context("cannot enable statistics")?,
        })
    }

    /// Nanoseconds of one run while a client runs, two readings of the kernel's clock included.
    ///
    /// # Errors
    ///
    /// The client fails, or the program does not run.
    pub(crate) fn of(&self, scene: &mut Scene, judge: Judge, args: &[&str]) -> Result<f64> {
        let before = self.runs(scene, judge)?;
        scene.client(judge, args)?;
        let after = self.runs(scene, judge)?;
        let count = after.1 - before.1;
        ensure!(count > 0, "the program did not run");
        Ok((after.0 - before.0) as f64 / count as f64)
    }

    /// Nanoseconds and runs so far.
    fn runs(&self, scene: &Scene, judge: Judge) -> Result<(u128, u64)> {
        let info = if judge.is_ours() {
            loaded_programs()
                .flatten()
                .find(|info| info.id() == self.id)
                .context("the program is gone")?
        } else {
            let program = scene.empty.program(self.idle)?;
            program.info().context("cannot look at a program")?
        };
        Ok((info.run_time().as_nanos(), info.run_count()))
    }
}

const RATES: &str = "rates";

/// Connections, a TCP stream, small datagrams.
///
/// # Errors
///
/// Something cannot be measured.
pub(crate) fn rates(scene: &mut Scene, effort: Effort) -> Result<Vec<Row>> {
    let ms = effort.ms.to_string();
    let mut rows = Vec::new();
    for (what, figure, text, unit, budget) in [
        (
            "connections",
            "per_s",
            "TCP connect, request, close",
            "/s",
            Some(Budget::Ratio(0.95)),
        ),
        (
            "stream",
            "gbit_per_s",
            "TCP throughput",
            "Gbit/s",
            Some(Budget::Ratio(0.97)),
        ),
        (
            "datagrams",
            "per_s",
            "UDP datagrams of 64 bytes",
            "/s",
            None,
        ),
    ] {
        let samples = interleave(text, effort.rounds, PEERS.len(), |subject| {
            scene.client(PEERS[subject], &[what, &ms])
        })?;
        let row = row(RATES, text, unit, &PEERS, &samples, figure)?;
        rows.push(match budget {
            Some(budget) => row.budget(budget),
            None => row,
        });
    }
    Ok(rows)
}
