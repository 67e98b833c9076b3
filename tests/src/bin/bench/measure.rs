//! Rounds, medians, spread, and the peers of a figure.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use egress_tests::interrupt;
use serde::Serialize;

use crate::suite::say;

/// How often a measurement reports how far it is.
const TICK: Duration = Duration::from_secs(2);

/// Figures of each round, for one subject.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Series {
    /// The subject.
    pub(crate) name: String,
    /// Middle value.
    pub(crate) median: f64,
    /// A tenth of the rounds is below.
    pub(crate) p10: f64,
    /// A tenth of the rounds is above.
    pub(crate) p90: f64,
    /// Every round.
    pub(crate) rounds: Vec<f64>,
}

impl Series {
    /// The figures of the rounds in their order.
    pub(crate) fn new(name: &str, rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        Self {
            name: name.to_owned(),
            median: quantile(&sorted, 50),
            p10: quantile(&sorted, 10),
            p90: quantile(&sorted, 90),
            rounds,
        }
    }
}

/// A value below which this many percent lie, of sorted values.
fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = last as f64 * percent as f64 / 100.0;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}

/// How good is good enough.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Budget {
    /// The figure may be above the baseline by this much.
    Added(f64),
    /// The figure is at least this part of the baseline.
    Ratio(f64),
    /// The figure is at most this.
    AtMost(f64),
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The part of the table that it belongs to.
    pub(crate) part: &'static str,
    /// Name of the figure.
    pub(crate) what: String,
    /// Unit of every figure.
    pub(crate) unit: &'static str,
    /// With egress.
    pub(crate) figure: Series,
    /// Subjects to compare with; the first is the baseline.
    pub(crate) peers: Vec<Series>,
    /// Median of the rounds' differences to the baseline.
    pub(crate) added: Option<f64>,
    /// Median of the rounds' ratios to the baseline.
    pub(crate) ratio: Option<f64>,
    /// The budget in words.
    pub(crate) budget: Option<String>,
    /// The budget is met.
    pub(crate) met: Option<bool>,
    /// A remark that explains the figure.
    pub(crate) note: Option<String>,
}

impl Row {
    /// A line from the subject's rounds and those of its peers.
    pub(crate) fn new(
        part: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        figure: Series,
        peers: Vec<Series>,
    ) -> Self {
        let compare = |with: fn(f64, f64) -> f64| {
            let baseline = peers.first()?;
            let pairs = figure.rounds.iter().zip(&baseline.rounds);
            let each = pairs.map(|(one, other)| with(*one, *other)).collect();
            Some(Series::new("", each).median)
        };
        let (added, ratio) = (compare(|a, b| a - b), compare(|a, b| a / b));
        Self {
            part,
            what: what.into(),
            unit,
            added,
            ratio: ratio.filter(|ratio| ratio.is_finite()),
            figure,
            peers,
            budget: None,
            met: None,
            note: None,
        }
    }

    /// Compares it with a budget.
    pub(crate) fn budget(mut self, budget: Budget) -> Self {
        let unit = self.unit;
        let (text, met) = match budget {
            Budget::Added(most) => (
                format!("≤ +{most} {unit}"),
                self.added.map(|added| added <= most),
            ),
            Budget::Ratio(least) => (format!("≥ {least}"), self.ratio.map(|ratio| ratio >= least)),
            Budget::AtMost(most) => (format!("≤ {most} {unit}"), Some(self.figure.median <= most)),
        };
        self.budget = Some(text.trim_end().to_owned());
        self.met = met;
        self
    }

    /// Says what the figure does not.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// Measures each subject once in every round, in turn; returns the rounds of each subject.
///
/// # Errors
///
/// A measurement fails, or we are asked to end.
pub(crate) fn interleave<T>(
    what: &str,
    rounds: usize,
    subjects: usize,
    mut measure: impl FnMut(usize) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut all: Vec<Vec<T>> = (0..subjects).map(|_| Vec::new()).collect();
    let mut said = Instant::now();
    for round in 1..=rounds {
        for (subject, figures) in all.iter_mut().enumerate() {
            if interrupt::requested() {
                bail!("interrupted");
            }
            figures.push(measure(subject).with_context(|| what.to_owned())?);
        }
        if said.elapsed() >= TICK {
            said = Instant::now();
            say(&format!("{what}: round {round} of {rounds}"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let series = Series::new("x", vec![4.0, 1.0, 3.0, 2.0]);
        assert!((series.median - 2.5).abs() < 1e-9);
        assert!((series.p10 - 1.3).abs() < 1e-9);
    }

    #[test]
    fn rounds_are_compared_in_pairs() {
        let figure = Series::new("egress", vec![110.0, 210.0, 310.0]);
        let peer = Series::new("none", vec![100.0, 200.0, 300.0]);
        let row = Row::new("packets", "x", "ns", figure, vec![peer]);
        assert!((row.added.unwrap() - 10.0).abs() < 1e-9);
        let met = |budget| row.clone().budget(budget).met;
        assert_eq!(met(Budget::Added(10.0)), Some(true));
        assert_eq!(met(Budget::Added(9.0)), Some(false));
        assert_eq!(met(Budget::Ratio(1.1)), Some(false));
        assert_eq!(met(Budget::AtMost(210.0)), Some(true));
    }
}
