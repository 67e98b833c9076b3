//! DNS messages (RFC 1035) as step machines.
//!
//! The kernel drives the machines from bounded loops in global functions, the
//! host with [`read_answer`]; the steps are the same code. Two machines:
//! [`NameReader`] takes one byte of a name at a step, [`AnswerReader`] one
//! record. A step returns its needs from outside (a name to be read, an address
//! to be taught) as [`Next`].

mod answer;
mod host;
mod message;
mod name_reader;
mod question;
#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod tests;

pub use answer::{ALIASES, ANSWER_STEPS, ANSWER_WORK, AnswerReader, Next, STEP_WORK};
pub use host::{Answer, Taught, read_answer};
pub use message::{HEADER_BYTES, MESSAGE_BYTES, Message};
pub use name_reader::{NAME_STEPS, NameReader, NameStep};
pub use question::{
    NAME_BYTES, NAME_WORDS, OPTIONS_BYTES, QUERY_BYTES, QuestionHasher, is_plain_query,
    is_query_header, question_of,
};

/// The port of DNS, host byte order.
pub const DNS_PORT: u16 = 53;
