//! Growth of the programs' time with learned addresses and rules, and with the records of an answer.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use egress_common::{tally::Tally, verdict::Reason};
use egress_tests::service_tags::TagFile;

use crate::{
    measure::{Row, Series, interleave},
    place,
    rig::Rig,
    suite::Effort,
    wire,
};

const SCALE: &str = "learned, names and networks";
pub(crate) const ANSWERS: &str = "answers";
/// A kind of answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// How the first labels of its names begin.
    pub(crate) label: &'static str,
    /// Words for the table.
    pub(crate) text: &'static str,
    /// Addresses that every such answer adds to the map.
    pub(crate) new: u32,
    /// Nanoseconds of the budget.
    pub(crate) budget: Option<f64>,
}

const fn kind(label: &'static str, text: &'static str, new: u32, budget: Option<f64>) -> Kind {
    Kind {
        label,
        text,
        new,
        budget,
    }
}

/// The answers that are measured.
pub(crate) const KINDS: [Kind; 6] = [
    kind("r", "1 address", 0, Some(500.0)),
    kind("r4-", "4 addresses", 0, None),
    kind("r16-", "16 addresses", 0, Some(3_000.0)),
    kind("c2-", "1 address behind 2 aliases", 0, None),
    kind("n", "1 new address", 1, Some(500.0)),
    kind("n16-", "16 new addresses", 16, Some(3_000.0)),
];
/// Runs of one round, of which the median counts.
const RUNS: u32 = 400;
/// Names below this one are the patterns of the scale rows.
const PATTERNS: &str = "scale.example.net";

/// Median of some runs.
fn median(mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    let times: Result<Vec<f64>> = (0..RUNS).map(|_| run()).collect();
    Ok(Series::new("", times?).median)
}

/// Numbers that look like no order, the same in every run.
fn scattered(state: &mut u32, below: u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    ((u64::from(*state) * u64::from(below)) >> 32) as u32
}

fn learned(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(wire::WIDE) + number)
}

/// Learned addresses, names, answers.
///
/// # Errors
///
/// A program cannot be run, or does not do what is measured.
pub(crate) fn rows(effort: Effort) -> Result<Vec<Row>> {
    // On a thread of its own: what the bench starts later must not stay where this does.
    let measured = thread::spawn(move || {
        place::stay_on(place::CLIENT_CPU);
        let mut rows = answers(effort)?;
        rows.extend(addresses(effort)?);
        rows.extend(names(effort)?);
        rows.push(networks(effort)?);
        Ok(rows)
    });
    measured
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn addresses(effort: Effort) -> Result<Vec<Row>> {
    let (large, small) = (Rig::new()?, Rig::new()?);
    small.learn(&mut [learned(0)].into_iter())?;
    let mut known = 0;
    let mut rows = Vec::new();
    let mut state = 1;
    for (count, text) in [
        (1_000, "1,000"),
        (100_000, "100,000"),
        (1_000_000, "1,000,000"),
    ] {
        large.learn(&mut (known..count).map(learned))?;
        known = count;
        let before = large.passed(Reason::NameRule)?;
        let rounds = interleave(text, effort.rounds, 2, |subject| {
            median(|| {
                if subject == 0 {
                    large.first_packet(learned(scattered(&mut state, count)))
                } else {
                    small.first_packet(learned(0))
                }
            })
        })?;
        let passed = large.passed(Reason::NameRule)? - before;
        ensure!(
            passed == u64::from(RUNS) * effort.rounds as u64,
            "only {passed} packets rested on a learned address"
        );
        rows.push(row(
            SCALE,
            format!("first packet, {text} learned addresses"),
            rounds,
            "1 address",
        ));
    }
    Ok(rows)
}

/// One name is asked for whose siblings are patterns: the trie is searched as deep as for a match.
fn names(effort: Effort) -> Result<Vec<Row>> {
    let (mut large, mut small) = (Rig::new()?, Rig::new()?);
    let mut known = 0;
    let mut rows = Vec::new();
    let mut state = 1;
    for (count, text) in [(100, "100"), (10_000, "10,000"), (100_000, "100,000")] {
        for number in known..count {
            large.allow(&pattern(number), number % 2 == 0)?;
        }
        known = count;
        let before = large.tally(Tally::AnswerNoRule)?;
        let rounds = interleave(text, effort.rounds, 2, |subject| {
            median(|| {
                let label = format!("no{}", pattern(scattered(&mut state, count)));
                let message = other_answer(&label);
                let rig = if subject == 0 { &mut large } else { &mut small };
                rig.arrival(&message, 53)
            })
        })?;
        let matched = large.tally(Tally::AnswerNoRule)? - before;
        ensure!(
            matched * 100 > u64::from(RUNS) * effort.rounds as u64 * 95,
            "only {matched} answers got as far as the names"
        );
        rows.push(row(
            SCALE,
            format!("answer matched with {text} patterns"),
            rounds,
            "1 pattern",
        ));
    }
    Ok(rows)
}

/// The networks of all service tags, and packets into them.
fn networks(effort: Effort) -> Result<Row> {
    let (mut large, mut small) = (Rig::new()?, Rig::new()?);
    let file = TagFile::large(0);
    let texts: BTreeSet<&String> = file.tags.values().flatten().collect();
    let mut starts = Vec::new();
    for text in &texts {
        let (address, bits) = text.split_once('/').context("no network")?;
        let address = address.parse()?;
        large.allow_network(address, bits.parse()?)?;
        if let IpAddr::V4(v4) = address {
            starts.push(v4);
        }
    }
    let one = *starts.first().context("no network")?;
    small.allow_network(one.into(), 32)?;
    let before = large.passed(Reason::CidrRule)?;
    let mut state = 1;
    let rounds = interleave("networks", effort.rounds, 2, |subject| {
        median(|| {
            if subject == 0 {
                let index = scattered(&mut state, starts.len() as u32);
                large.first_packet(starts[index as usize])
            } else {
                small.first_packet(one)
            }
        })
    })?;
    let passed = large.passed(Reason::CidrRule)? - before;
    ensure!(
        passed == u64::from(RUNS) * effort.rounds as u64,
        "only {passed} packets rested on a network"
    );
    let (thousands, rest) = (texts.len() / 1_000, texts.len() % 1_000);
    let what = format!("first packet, {thousands},{rest:03} networks of service tags");
    Ok(row(SCALE, what, rounds, "1 network"))
}

fn pattern(number: u32) -> String {
    format!("host{number}.group{}.{PATTERNS}", number % 1_000)
}

/// An answer with one address for a name that is not the bench's.
fn other_answer(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1, 0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4]);
    bytes.extend_from_slice(&[192, 0, 2, 1]);
    bytes
}

fn answers(effort: Effort) -> Result<Vec<Row>> {
    let mut rig = Rig::new()?;
    let mut rows = Vec::new();
    let mut number = 0;
    for Kind { label, text, .. } in KINDS {
        let before = rig.tally(Tally::AnswerLearned)?;
        let rounds = interleave(text, effort.rounds, 2, |subject| {
            let port = if subject == 0 { 53 } else { 1_053 };
            median(|| {
                number += 1;
                let query = wire::query(number as u16, &format!("{label}{number}"));
                rig.arrival(&wire::answer(&query).unwrap_or_default(), port)
            })
        })?;
        let learned = rig.tally(Tally::AnswerLearned)? - before;
        ensure!(
            learned * 100 > u64::from(RUNS) * effort.rounds as u64 * 95,
            "only {learned} answers were learned"
        );
        let what = format!("one run, caches cold: {text}");
        rows.push(row(ANSWERS, what, rounds, "not DNS"));
    }
    Ok(rows)
}

fn row(part: &'static str, what: String, rounds: Vec<Vec<f64>>, peer: &str) -> Row {
    let mut rounds = rounds.into_iter();
    let mut next = |name: &str| Series::new(name, rounds.next().unwrap_or_default());
    let figure = next("egress");
    Row::new(part, what, "ns", figure, vec![next(peer)])
}
