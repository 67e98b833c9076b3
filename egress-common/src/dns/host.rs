//! Drives the machines with a `for`: for the agent and the tests.

use super::{
    answer::{ANSWER_STEPS, AnswerReader, Next},
    message::Message,
    name_reader::{NAME_STEPS, NameReader, NameStep},
};
use crate::{
    address::{Address, is_unteachable},
    tally::Tally,
};

/// An address that an answer teaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taught {
    /// The address.
    pub address: Address,
    /// Shortest TTL on the way to it, seconds.
    pub ttl_s: u32,
    /// The links from the question to its owner, one bit for each.
    pub way: u32,
}

/// Contents of an answer, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Addresses on the alias chain.
    pub addresses: u32,
    /// Those of them that may not be taught.
    pub unteachable: u32,
    /// Addresses and aliases off the chain.
    pub off_chain: u32,
    /// The answer says that it is cut short.
    pub is_truncated: bool,
}

/// Reads the name at `name.at`, as the kernel's loop does.
fn read_name(name: &mut NameReader, message: &Message, at: u32, seed: u64) -> Result<(), Tally> {
    name.start(at, seed);
    for _ in 0..NAME_STEPS {
        match name.step(message) {
            NameStep::More => {}
            NameStep::Done => return Ok(()),
            NameStep::Malformed => break,
        }
    }
    Err(Tally::AnswerMalformed)
}

/// Reads a whole answer.
///
/// `names` is called with the question's name and then with each alias on the
/// chain, and with the number of its link; when it returns false nothing more is taught. `teach` is called for
/// each address on the chain; an answer whose aliases come out of order is
/// read again, so that it can be called more than once for an address.
///
/// # Errors
///
/// Why the answer is refused: malformed, an error code, or above a limit.
/// Addresses that were taught before stay taught.
pub fn read_answer(
    message: &Message,
    seed: u64,
    mut names: impl FnMut(&NameReader, u32) -> bool,
    mut teach: impl FnMut(Taught),
) -> Result<Answer, Tally> {
    let mut name = NameReader::new();
    let mut reader = AnswerReader::new();
    let mut unteachable = 0_u32;
    reader.start();
    for _ in 0..ANSWER_STEPS {
        match reader.step(message, &name) {
            Next::Step => {}
            Next::ReadName => read_name(&mut name, message, reader.name_at, seed)?,
            Next::Match => {
                if !names(&name, 0) {
                    return Err(Tally::AnswerNoRule);
                }
            }
            Next::Alias => {
                if !names(&name, reader.alias_link) {
                    return Err(Tally::AliasDenied);
                }
            }
            Next::Teach => {
                if reader.addresses == 1 {
                    // A further pass begins to count again.
                    unteachable = 0;
                }
                if is_unteachable(&reader.address, reader.from_aaaa != 0) {
                    unteachable = unteachable.wrapping_add(1);
                } else {
                    teach(Taught {
                        address: reader.address,
                        ttl_s: reader.ttl_s,
                        way: reader.way,
                    });
                }
            }
            Next::Done => {
                return Ok(Answer {
                    addresses: reader.addresses,
                    unteachable,
                    off_chain: reader.off_chain(),
                    is_truncated: reader.is_truncated != 0,
                });
            }
            Next::Refused => {
                let refusal = u8::try_from(reader.refusal).ok();
                return Err(refusal
                    .and_then(|number| Tally::try_from(number).ok())
                    .unwrap_or(Tally::AnswerMalformed));
            }
        }
    }
    Err(Tally::AnswerOversized)
}
