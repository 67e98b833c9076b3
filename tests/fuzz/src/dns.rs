//! Target `dns`: the step machines against hickory-proto, with the comparison of egress-common's property tests.

use egress_common::tally::Tally;

use crate::{
    Finding, Target,
    rng::Rng,
    support::{
        compare::{Class, compare},
        generate::{any_message, mutate},
        tape::Tape,
    },
};

/// Longest tape; long answers need long tapes.
const TAPE_BYTES: usize = 3072;

/// The target.
pub struct Dns;

impl Target for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    fn classes(&self) -> Vec<String> {
        Class::ALL
            .iter()
            .map(|class| format!("{class:?}"))
            .collect()
    }

    fn make(&self, rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
        let choice = rng.u64();
        let mut bytes = [0; TAPE_BYTES];
        // Most tapes are short: they end in zeros, which makes small messages.
        let length = match choice & 7 {
            0 => TAPE_BYTES,
            1..=3 => 512,
            _ => 160,
        };
        rng.fill(&mut bytes[..length]);
        let mut tape = Tape::new(&bytes[..length]);
        if corpus.is_empty() || choice >> 8 & 3 != 0 {
            return any_message(&mut tape);
        }
        let mut message = corpus[(choice >> 16) as usize % corpus.len()].clone();
        for _ in 0..=choice >> 10 & 1 {
            mutate(&mut tape, &mut message);
        }
        message
    }

    fn check(&self, input: &[u8]) -> Result<usize, Finding> {
        // The seed depends on the input, so that a reproducer needs nothing else.
        let seed = egress_common::hash::fnv1a(input);
        let class = compare(input, seed).map_err(|found| Finding(found.what))?;
        Ok(Class::ALL.iter().position(|one| *one == class).unwrap_or(0))
    }

    fn refusals(&self) -> &'static [&'static str] {
        &["malformed", "error code", "oversized"]
    }

    fn refusal(&self, input: &[u8]) -> Option<usize> {
        let message = egress_common::dns::Message::from_slice(input)?;
        let outcome = egress_common::dns::read_answer(&message, 0, |_, _| true, |_| {});
        match outcome.err()? {
            Tally::AnswerMalformed => Some(0),
            Tally::AnswerErrorCode => Some(1),
            Tally::AnswerOversized => Some(2),
            _ => None,
        }
    }
}
