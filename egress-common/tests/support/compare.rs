//! Compares the step machines with the oracle on one message.

use std::collections::BTreeSet;

use egress_common::{
    address::is_unteachable,
    dns::{
        ALIASES, ANSWER_STEPS, HEADER_BYTES, MESSAGE_BYTES, Message, NameReader, Taught,
        question_of, read_answer,
    },
    hash::SipKey,
    tally::Tally,
};
use hickory_proto::op::{Message as HickoryMessage, ResponseCode};

use super::oracle::{
    self, Head, Labels, Reach, Read, Record, head, hickory_name, is_unmatchable, plain_name, reach,
    read_hickory, text_of, without_pointers,
};

/// How the machine and hickory-proto stand to each other on a message. Everything that is not listed is a mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Both read it, with the same addresses and TTLs; at least one address.
    AgreeTaught,
    /// Both read it; it holds no address on the chain.
    AgreeEmpty,
    /// Neither takes it for an answer without error: the header says so.
    AgreeHeader,
    /// Both refuse it, nothing was taught.
    AgreeRefused,
    /// Both refuse it in the end; the machine had taught addresses that stand on the chain before the broken place.
    RefusedAfterTeaching,
    /// hickory-proto reads it, the machine refuses: more aliases than it follows, or more steps than it takes.
    RefusedOversized,
    /// hickory-proto reads it, the machine refuses: more pointers in one name than it follows.
    RefusedPointers,
    /// hickory-proto reads it, the machine refuses: a hint of a service binding without an address.
    RefusedEmptyHint,
    /// Longer than the machine's buffer: the kernel leaves it to the agent.
    RefusedLong,
    /// The machine reads it; hickory-proto refuses a record of the answer section that no address depends on.
    ToleratedRecord,
    /// The machine reads it; hickory-proto refuses something behind the answer section.
    ToleratedSection,
    /// The machine reads it; hickory-proto refuses a pointer to bytes that run on into the name that holds it.
    ToleratedOverlap,
    /// Both read it; the OPT record extends the error code, which the header alone does not show.
    ToleratedErrorCode,
}

impl Class {
    /// Every class.
    pub const ALL: &[Self] = &[
        Self::AgreeTaught,
        Self::AgreeEmpty,
        Self::AgreeHeader,
        Self::AgreeRefused,
        Self::RefusedAfterTeaching,
        Self::RefusedOversized,
        Self::RefusedPointers,
        Self::RefusedEmptyHint,
        Self::RefusedLong,
        Self::ToleratedRecord,
        Self::ToleratedSection,
        Self::ToleratedOverlap,
        Self::ToleratedErrorCode,
    ];
}

/// A finding.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The difference in words.
    pub what: String,
}

fn mismatch<T>(what: impl Into<String>) -> Result<T, Mismatch> {
    Err(Mismatch { what: what.into() })
}

/// Result of the machine for a message.
struct Machine {
    outcome: Result<egress_common::dns::Answer, Tally>,
    /// Question, then aliases: text, and whether it is unmatchable.
    names: Vec<(Vec<u8>, bool)>,
    taught: Vec<Taught>,
}

fn run_machine(message: &Message, seed: u64) -> Machine {
    let mut names = Vec::new();
    let mut taught = Vec::new();
    let outcome = read_answer(
        message,
        seed,
        |name: &NameReader, _: u32| {
            let text = name.reversed_text().iter().rev().copied().collect();
            names.push((text, name.is_unmatchable != 0));
            true
        },
        |address| taught.push(address),
    );
    Machine {
        outcome,
        names,
        taught,
    }
}

/// Compares on one message. `seed` is that of the hashes.
pub fn compare(bytes: &[u8], seed: u64) -> Result<Class, Mismatch> {
    let strict = HickoryMessage::from_vec(bytes);
    let Some(mut message) = Message::from_slice(bytes) else {
        return if bytes.len() > MESSAGE_BYTES {
            Ok(Class::RefusedLong)
        } else {
            mismatch("a message that fits the buffer was refused")
        };
    };
    let machine = run_machine(&message, seed);

    // Bytes of earlier messages behind the end must not matter.
    message.bytes[bytes.len()..].fill(0xc0);
    let again = run_machine(&message, seed);
    if again.outcome != machine.outcome || again.taught != machine.taught {
        return mismatch("the result depends on bytes behind the end");
    }

    let head = head(bytes);
    let is_truncated = match head {
        Head::NotAnAnswer => return without_an_answer(&machine, Tally::AnswerMalformed),
        Head::ErrorCode => return without_an_answer(&machine, Tally::AnswerErrorCode),
        Head::Answer { is_truncated } => is_truncated,
    };
    let plain = oracle::read(bytes, plain_name);
    let by_hickory_names = oracle::read(bytes, hickory_name);
    let has_overlap = by_hickory_names != plain.clone().map(without_pointers);
    if let Ok(strict) = &strict {
        let strict = read_hickory(strict);
        if strict != by_hickory_names || has_overlap {
            return mismatch("the readers of the oracle differ from hickory-proto");
        }
    }
    let Some(read) = plain else {
        // No whole question: nothing can have been taught.
        without_an_answer(&machine, Tally::AnswerMalformed)?;
        return Ok(Class::AgreeRefused);
    };
    let reach = reach(&read);
    check_question(bytes, seed, &machine, &read)?;
    check_names(&machine, &reach)?;
    check_taught(&machine, &reach)?;

    let must_refuse =
        !read.is_complete || reach.has_broken || reach.has_empty_hint || reach.has_many_pointers;
    match machine.outcome {
        Ok(answer) => {
            if must_refuse || reach.names.len() > ALIASES + 1 {
                return mismatch("the machine reads what it had to refuse");
            }
            check_whole(&machine, &reach)?;
            if answer.is_truncated != is_truncated {
                return mismatch("the TC bit differs");
            }
            Ok(match &strict {
                Ok(strict) if strict.response_code != ResponseCode::NoError => {
                    Class::ToleratedErrorCode
                }
                Ok(_) if reach.address_count != 0 => Class::AgreeTaught,
                Ok(_) => Class::AgreeEmpty,
                Err(_) if has_overlap => Class::ToleratedOverlap,
                Err(_) if answers_alone_are_fine(bytes) => Class::ToleratedSection,
                Err(_) => Class::ToleratedRecord,
            })
        }
        Err(Tally::AnswerMalformed) if must_refuse => Ok(match strict {
            Ok(_) if reach.has_many_pointers => Class::RefusedPointers,
            Ok(_) if reach.has_empty_hint => Class::RefusedEmptyHint,
            Ok(_) => return mismatch("hickory-proto reads what has to be refused"),
            Err(_) if machine.taught.is_empty() => Class::AgreeRefused,
            Err(_) => Class::RefusedAfterTeaching,
        }),
        Err(Tally::AnswerOversized) if may_be_oversized(&read, &reach) => {
            Ok(Class::RefusedOversized)
        }
        Err(other) => mismatch(format!("the machine refuses without need: {other:?}")),
    }
}

fn without_an_answer(machine: &Machine, expected: Tally) -> Result<Class, Mismatch> {
    if machine.outcome != Err(expected) || !machine.taught.is_empty() {
        return mismatch(format!(
            "{:?} instead of {expected:?}, {} taught",
            machine.outcome,
            machine.taught.len()
        ));
    }
    Ok(Class::AgreeHeader)
}

/// The query's hash is that of the answer's question, whatever the case of its letters.
fn check_question(bytes: &[u8], seed: u64, machine: &Machine, read: &Read) -> Result<(), Mismatch> {
    if let Some((text, unmatchable)) = machine.names.first() {
        if *text != text_of(&read.question) || *unmatchable != is_unmatchable(&read.question) {
            return mismatch("the question's name differs");
        }
    } else if read.pointers == 0 {
        return mismatch("the question was not matched");
    }
    if machine.outcome.is_err() || is_unmatchable(&read.question) {
        return Ok(());
    }
    let mut query = [0; 12].to_vec();
    query.extend(&read.question);
    query.push(0);
    query.extend(read.type_and_class.to_be_bytes());
    if hash_question(&query, seed) != hash_question(bytes, seed) {
        return mismatch("the question's hash is not that of its query");
    }
    Ok(())
}

/// The hash of the question of a message, its case left aside; `None` where there is none.
pub fn hash_question(bytes: &[u8], seed: u64) -> Option<u64> {
    let key = SipKey {
        k0: seed,
        k1: !seed,
    };
    question_of(&Message::from_slice(bytes)?, &key)
}

/// Every alias that was reported is on the chain, with its text.
fn check_names(machine: &Machine, reach: &Reach) -> Result<(), Mismatch> {
    let known = |labels: &Labels| (text_of(labels), is_unmatchable(labels));
    let on_chain: BTreeSet<_> = reach.names.keys().map(known).collect();
    let reported: BTreeSet<_> = machine.names.iter().cloned().collect();
    if !reported.is_subset(&on_chain) {
        return mismatch("an alias off the chain was reported");
    }
    if machine.names.len() > reach.names.len() {
        return mismatch("an alias was reported twice");
    }
    if machine.outcome.is_ok() && machine.names.len() != reach.names.len() {
        return mismatch(format!(
            "{} aliases instead of {}",
            machine.names.len(),
            reach.names.len()
        ));
    }
    Ok(())
}

/// Nothing was taught that is not on the chain, or for longer than the chain is good.
fn check_taught(machine: &Machine, reach: &Reach) -> Result<(), Mismatch> {
    for taught in &machine.taught {
        let Some(best) = reach.best_ttl(&taught.address) else {
            return mismatch(format!("{taught:?} is not on the chain"));
        };
        if taught.ttl_s > best {
            return mismatch(format!("{taught:?} is good for {best} s only"));
        }
        let is_honest = |(address, from_aaaa, _): &(_, bool, u32)| {
            *address == taught.address && !is_unteachable(address, *from_aaaa)
        };
        if !reach.addresses.iter().any(is_honest) {
            return mismatch(format!("{taught:?} must not be taught"));
        }
    }
    Ok(())
}

/// Everything on the chain was taught.
fn check_whole(machine: &Machine, reach: &Reach) -> Result<(), Mismatch> {
    let Ok(answer) = &machine.outcome else {
        return Ok(());
    };
    let teachable = reach
        .addresses
        .iter()
        .filter(|(address, from_aaaa, _)| !is_unteachable(address, *from_aaaa));
    if reach.is_ambiguous {
        let expected: BTreeSet<_> = teachable.map(|(address, _, _)| *address).collect();
        let taught: BTreeSet<_> = machine.taught.iter().map(|one| one.address).collect();
        if expected != taught {
            return mismatch("the addresses differ");
        }
    } else {
        let expected: BTreeSet<_> = teachable.map(|(a, _, ttl_s)| (*a, *ttl_s)).collect();
        let taught: BTreeSet<_> = machine
            .taught
            .iter()
            .map(|t| (t.address, t.ttl_s))
            .collect();
        if expected != taught {
            return mismatch(format!("taught {taught:?} instead of {expected:?}"));
        }
    }
    let counted = (answer.addresses, answer.unteachable, answer.off_chain);
    let expected = (reach.address_count, reach.unteachable, reach.off_chain);
    if counted != expected {
        return mismatch(format!(
            "addresses, unteachable, off the chain: {counted:?} instead of {expected:?}"
        ));
    }
    Ok(())
}

/// The limits can be the reason for a refusal: aliases, or as many steps as passes over all records can take.
fn may_be_oversized(read: &Read, reach: &Reach) -> bool {
    let records: usize = read.records.iter().map(Record::steps).sum();
    let steps = reach.names.len() * (records + 1) + 2;
    reach.names.len() > ALIASES + 1 || steps > ANSWER_STEPS as usize
}

/// hickory-proto reads the message when the sections behind the answers are removed.
fn answers_alone_are_fine(bytes: &[u8]) -> bool {
    let mut copy = bytes.to_vec();
    copy[8..HEADER_BYTES as usize].fill(0);
    HickoryMessage::from_vec(&copy).is_ok()
}
