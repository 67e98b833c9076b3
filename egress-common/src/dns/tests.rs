//! The machines on messages written by hand.

use std::{format, string::String, vec, vec::Vec};

use super::{
    ALIASES, ANSWER_STEPS, ANSWER_WORK, Answer, AnswerReader, MESSAGE_BYTES, Message, NAME_STEPS,
    NameReader, NameStep, Next, STEP_WORK, Taught, question_of, read_answer,
};
use crate::{
    address::{Address, from_v4},
    hash::SipKey,
    tally::Tally,
};

const SEED: u64 = 0x5eed;
const A: u16 = 1;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const RRSIG: u16 = 46;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const V6: Address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
/// A pointer to the question.
const QUESTION: &[u8] = &[0xc0, 12];

/// A name in wire form.
fn wire(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

/// An answer to an A question that holds these records.
fn answer(question: &str, records: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(records.len()).expect("a count");
    let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1];
    bytes.extend(count.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(wire(question));
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(records.iter().flatten());
    bytes
}

fn record(owner: &[u8], kind: u16, ttl_s: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = owner.to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl_s.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).expect("a length").to_be_bytes());
    bytes.extend(data);
    bytes
}

fn a(owner: &[u8], ttl_s: u32, last: u8) -> Vec<u8> {
    record(owner, A, ttl_s, &[192, 0, 2, last])
}

fn cname(from: &[u8], to: &str, ttl_s: u32) -> Vec<u8> {
    record(from, CNAME, ttl_s, &wire(to))
}

fn v4(last: u8) -> Address {
    from_v4([192, 0, 2, last])
}

/// Addresses that an answer teaches, in order, and how it ends.
fn read(bytes: &[u8]) -> (Vec<(Address, u32)>, Result<Answer, Tally>) {
    let message = Message::from_slice(bytes).expect("a message that fits");
    let mut taught = Vec::new();
    let outcome = read_answer(
        &message,
        SEED,
        |_, _| true,
        |Taught { address, ttl_s, .. }| taught.push((address, ttl_s)),
    );
    (taught, outcome)
}

fn refusal(bytes: &[u8]) -> Option<Tally> {
    read(bytes).1.err()
}

#[test]
fn addresses_of_the_question_are_taught_with_their_ttl() {
    let (taught, outcome) = read(&answer(
        "api.example.com",
        &[
            a(QUESTION, 300, 1),
            a(&wire("API.Example.COM"), 60, 2),
            record(QUESTION, AAAA, 30, &V6),
        ],
    ));
    assert_eq!(taught, [(v4(1), 300), (v4(2), 60), (V6, 30)]);
    let outcome = outcome.expect("an answer");
    assert_eq!((outcome.addresses, outcome.off_chain), (3, 0));
}

#[test]
fn an_alias_chain_gives_its_shortest_ttl() {
    let (taught, _) = read(&answer(
        "a.example",
        &[
            cname(QUESTION, "b.example", 300),
            cname(&wire("b.example"), "c.example", 20),
            a(&wire("c.example"), 60, 1),
            a(QUESTION, 600, 2),
        ],
    ));
    assert_eq!(taught, [(v4(1), 20), (v4(2), 600)]);
}

#[test]
fn aliases_out_of_order_are_followed() {
    let (mut taught, outcome) = read(&answer(
        "a.example",
        &[
            a(&wire("c.example"), 60, 1),
            cname(&wire("b.example"), "c.example", 20),
            cname(QUESTION, "b.example", 300),
        ],
    ));
    taught.dedup();
    assert_eq!(taught, [(v4(1), 20)]);
    assert_eq!(outcome.map(|outcome| outcome.off_chain), Ok(0));
}

/// Names `n0.example` … that are aliases in a row, then an address of the last.
fn chain(aliases: usize, is_backwards: bool) -> Vec<u8> {
    let name = |index: usize| wire(&std::format!("n{index}.example"));
    let mut records: Vec<_> = (0..aliases)
        .map(|index| record(&name(index), CNAME, 60, &name(index + 1)))
        .collect();
    records.push(a(&name(aliases), 60, 1));
    if is_backwards {
        records.reverse();
    }
    answer("n0.example", &records)
}

#[test]
fn the_longest_chain_is_followed_in_any_order_and_one_more_alias_is_refused() {
    for is_backwards in [false, true] {
        let (taught, outcome) = read(&chain(ALIASES, is_backwards));
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(taught.first(), Some(&(v4(1), 60)));
        let (taught, outcome) = read(&chain(ALIASES + 1, is_backwards));
        assert_eq!(outcome, Err(Tally::AnswerOversized));
        assert!(taught.is_empty());
    }
}

#[test]
fn an_alias_loop_ends() {
    let (taught, outcome) = read(&answer(
        "a.example",
        &[
            cname(QUESTION, "b.example", 9),
            cname(&wire("b.example"), "a.example", 3),
            cname(&wire("b.example"), "b.example", 3),
            a(QUESTION, 60, 1),
            a(&wire("b.example"), 60, 2),
        ],
    ));
    assert_eq!(taught, [(v4(1), 60), (v4(2), 9)]);
    assert!(outcome.is_ok());
}

#[test]
fn owners_off_the_chain_teach_nothing() {
    let (taught, outcome) = read(&answer(
        "a.example",
        &[
            a(&wire("evil.example"), 60, 1),
            cname(&wire("evil.example"), "a.example", 60),
            a(&wire("aa.example"), 60, 2),
            a(&wire("example"), 60, 3),
            a(QUESTION, 60, 4),
        ],
    ));
    assert_eq!(taught, [(v4(4), 60)]);
    assert_eq!(outcome.map(|outcome| outcome.off_chain), Ok(4));
}

#[test]
fn a_pointer_that_was_off_the_chain_is_looked_at_again_after_an_alias() {
    // The first owner stands whole, the others point to it.
    let mut first = a(&wire("b.example"), 60, 1);
    let at = u8::try_from(answer("a.example", &[]).len()).expect("a place");
    first.extend(a(&[0xc0, at], 60, 2));
    first.extend(cname(QUESTION, "b.example", 60));
    first.extend(a(&[0xc0, at], 60, 3));
    let mut bytes = answer("a.example", &[first]);
    bytes[7] = 4;
    let (taught, outcome) = read(&bytes);
    let last: Vec<_> = taught.iter().map(|(address, _)| address[15]).collect();
    assert_eq!(last, [3, 1, 2, 3]);
    assert_eq!(outcome.map(|outcome| outcome.addresses), Ok(3));
}

#[test]
fn labels_with_a_dot_inside_are_not_two_labels() {
    let dotted = b"\x0bapi.example\x03com\x00";
    let (taught, outcome) = read(&answer("api.example.com", &[a(dotted, 60, 1)]));
    assert!(taught.is_empty());
    assert_eq!(outcome.map(|outcome| outcome.off_chain), Ok(1));
}

#[test]
fn ttl_edges_are_read_as_rfc_2181_says() {
    for (ttl_s, expected) in [
        (0, 0),
        (1, 1),
        (0x7fff_ffff, 0x7fff_ffff),
        (0x8000_0000, 0),
        (u32::MAX, 0),
    ] {
        assert_eq!(
            read(&answer("a.example", &[a(QUESTION, ttl_s, 1)])).0,
            [(v4(1), expected)]
        );
    }
}

#[test]
fn records_of_other_types_are_passed_over() {
    let (taught, outcome) = read(&answer(
        "a.example",
        &[
            record(QUESTION, TXT, 60, b"\x02hi"),
            record(QUESTION, RRSIG, 60, &[7; 40]),
            record(&[0], OPT, 0, &[]),
            record(QUESTION, 0xff00, 60, &[]),
            a(QUESTION, 60, 1),
        ],
    ));
    assert_eq!(taught, [(v4(1), 60)]);
    assert!(outcome.is_ok());
}

#[test]
fn an_address_of_another_class_teaches_nothing() {
    let mut chaos = a(QUESTION, 60, 1);
    chaos[5] = 3;
    let (taught, outcome) = read(&answer("a.example", &[chaos]));
    assert!(taught.is_empty() && outcome.is_ok());
}

#[test]
fn as_many_records_as_the_documented_limit_are_read() {
    // Every owner spelled out, the most steps that a record takes.
    let records: Vec<_> = (0..250).map(|last| a(&wire("a.b"), 60, last)).collect();
    let (taught, outcome) = read(&answer("a.b", &records[..180]));
    assert_eq!((taught.len(), outcome.is_ok()), (180, true));
    let records: Vec<_> = (0..255).map(|last| a(QUESTION, 60, last)).collect();
    let (taught, outcome) = read(&answer("a", &records[..254]));
    assert_eq!((taught.len(), outcome.is_ok()), (254, true));
}

#[test]
fn a_message_of_exactly_the_buffer_is_read_and_one_byte_more_is_not() {
    let mut bytes = answer("a", &[a(QUESTION, 60, 1)]);
    let rest = MESSAGE_BYTES - bytes.len() - 12;
    bytes.extend(record(QUESTION, TXT, 60, &vec![1; rest]));
    bytes[7] = 2;
    assert_eq!(bytes.len(), MESSAGE_BYTES);
    assert!(read(&bytes).1.is_ok());
    let last = bytes.len() - rest - 1;
    bytes[last] += 1;
    assert_eq!(refusal(&bytes), Some(Tally::AnswerMalformed));
    bytes.push(0);
    assert!(Message::from_slice(&bytes).is_none());
}

#[test]
fn a_wrong_data_length_is_refused() {
    for (kind, data) in [
        (A, &[1, 2, 3][..]),
        (A, &[1, 2, 3, 4, 5]),
        (A, &[]),
        (AAAA, &[1; 15]),
        (AAAA, &[1; 17]),
        (AAAA, &[1; 4]),
        (CNAME, b"\x01b\x00\x00"),
        (CNAME, b"\x01b"),
        (CNAME, b"\x04b\x00"),
        (CNAME, &[]),
    ] {
        let bytes = answer("a", &[record(QUESTION, kind, 60, data)]);
        assert_eq!(
            refusal(&bytes),
            Some(Tally::AnswerMalformed),
            "{kind} {data:?}"
        );
    }
}

#[test]
fn counts_that_promise_more_are_refused_and_ones_that_hide_records_are_obeyed() {
    let mut bytes = answer("a.example", &[a(QUESTION, 60, 1), a(QUESTION, 60, 2)]);
    bytes[7] = 3;
    assert_eq!(refusal(&bytes), Some(Tally::AnswerMalformed));
    bytes[7] = 1;
    assert_eq!(read(&bytes).0, [(v4(1), 60)]);
    for questions in [0, 2] {
        bytes[5] = questions;
        assert_eq!(refusal(&bytes), Some(Tally::AnswerMalformed));
    }
}

#[test]
fn the_header_decides_what_is_an_answer() {
    let plain = answer("a.example", &[a(QUESTION, 60, 1)]);
    let with = |high: u8, low: u8| {
        let mut bytes = plain.clone();
        bytes[2] = high;
        bytes[3] = low;
        bytes
    };
    assert_eq!(refusal(&with(0x01, 0x80)), Some(Tally::AnswerMalformed));
    assert_eq!(refusal(&with(0x89, 0x80)), Some(Tally::AnswerMalformed));
    assert_eq!(refusal(&with(0xa9, 0x80)), Some(Tally::AnswerMalformed));
    for code in 1..16 {
        let bytes = with(0x81, 0x80 | code);
        assert_eq!(refusal(&bytes), Some(Tally::AnswerErrorCode));
    }
    let truncated = read(&with(0x83, 0x80)).1.map(|answer| answer.is_truncated);
    assert_eq!(truncated, Ok(true));
    assert_eq!(read(&with(0x85, 0xb0)).0, [(v4(1), 60)]);
}

#[test]
fn every_cut_is_refused() {
    let bytes = answer(
        "a.example",
        &[
            cname(QUESTION, "b.example", 60),
            a(&wire("b.example"), 60, 1),
        ],
    );
    assert!(read(&bytes).1.is_ok());
    for end in 0..bytes.len() {
        let (taught, outcome) = read(&bytes[..end]);
        assert_eq!(outcome, Err(Tally::AnswerMalformed), "{end}");
        assert!(taught.is_empty());
    }
}

#[test]
fn pointers_forward_to_themselves_and_in_a_loop_are_refused() {
    let place = u8::try_from(answer("a.example", &[]).len()).expect("a place");
    for target in [place, place + 1, place + 2, 255] {
        let bytes = answer("a.example", &[a(&[0xc0, target], 60, 1)]);
        assert_eq!(refusal(&bytes), Some(Tally::AnswerMalformed), "{target}");
    }
    let question_loop = {
        let mut bytes = answer("a.example", &[]);
        bytes.splice(12..bytes.len() - 4, [1, b'a', 0xc0, 12]);
        bytes
    };
    assert_eq!(refusal(&question_loop), Some(Tally::AnswerMalformed));
    for reserved in [0x40, 0x80] {
        let bytes = answer("a.example", &[a(&[reserved, 12], 60, 1)]);
        assert_eq!(refusal(&bytes), Some(Tally::AnswerMalformed));
    }
}

/// An answer whose last owner goes through this many pointers, one to the next.
fn through_pointers(pointers: u8) -> Vec<u8> {
    let question = wire("a.example");
    let mut steps = Vec::new();
    let first = u8::try_from(answer("a.example", &[]).len()).expect("a place") + 11;
    for index in 0..pointers - 1 {
        let target = if index == 0 {
            12
        } else {
            first + 2 * (index - 1)
        };
        steps.extend([0xc0, target]);
    }
    let last = if pointers == 1 {
        12
    } else {
        first + 2 * (pointers - 2)
    };
    assert_eq!(question.len(), 11);
    answer(
        "a.example",
        &[record(&[0], TXT, 60, &steps), a(&[0xc0, last], 60, 1)],
    )
}

#[test]
fn sixteen_pointers_in_one_name_are_followed_and_seventeen_are_not() {
    for pointers in [1, 2, 16] {
        assert_eq!(
            read(&through_pointers(pointers)).0,
            [(v4(1), 60)],
            "{pointers}"
        );
    }
    assert_eq!(refusal(&through_pointers(17)), Some(Tally::AnswerMalformed));
}

/// A name of `wire_bytes` bytes.
fn long_name(wire_bytes: usize) -> String {
    let mut text = String::new();
    let mut left = wire_bytes - 1;
    while left > 0 {
        // A length byte and the label; never leave one byte over.
        let label = if left == 65 { 62 } else { (left - 1).min(63) };
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(core::iter::repeat_n('x', label));
        left -= label + 1;
    }
    assert_eq!(wire(&text).len(), wire_bytes);
    text
}

#[test]
fn the_longest_name_is_read_and_a_longer_one_is_not() {
    for wire_bytes in [254, 255] {
        let name = long_name(wire_bytes);
        let (taught, _) = read(&answer(
            &name,
            &[a(&wire(&name), 60, 1), a(QUESTION, 60, 2)],
        ));
        assert_eq!(taught.len(), 2, "{wire_bytes}");
    }
    let too_long = answer(&long_name(256), &[a(QUESTION, 60, 1)]);
    assert_eq!(refusal(&too_long), Some(Tally::AnswerMalformed));
}

#[test]
fn the_longest_name_behind_sixteen_pointers_is_read() {
    // 255 steps for the name and 16 for the pointers: the most that is honest.
    let name = long_name(255);
    let mut steps = Vec::new();
    let first = u16::try_from(answer(&name, &[]).len()).expect("a place") + 11;
    for index in 0..15_u16 {
        let target = if index == 0 {
            12
        } else {
            first + 2 * (index - 1)
        };
        steps.extend((0xc000 | target).to_be_bytes());
    }
    let last = (0xc000 | (first + 28)).to_be_bytes();
    let bytes = answer(&name, &[record(&[0], TXT, 60, &steps), a(&last, 60, 1)]);
    assert_eq!(read(&bytes).0, [(v4(1), 60)]);
}

/// An answer whose last owner points to a label that runs on to the very end of the message.
fn label_to_the_end() -> Vec<u8> {
    let place = u8::try_from(answer("a.example", &[]).len()).expect("a place") + 11;
    // Pointer, head of the record and address: 16 bytes.
    let last = a(&[0xc0, place], 60, 1);
    assert_eq!(last.len(), 16);
    answer("a.example", &[record(&[0], TXT, 60, &[16]), last])
}

#[test]
fn a_name_that_ends_behind_the_message_is_refused_whatever_stands_there() {
    let bytes = label_to_the_end();
    for behind in [0, 1, 0xc0] {
        let mut message = Message::from_slice(&bytes).expect("a message");
        message.bytes[bytes.len()..].fill(behind);
        let outcome = read_answer(&message, SEED, |_, _| true, |_| {});
        assert_eq!(outcome, Err(Tally::AnswerMalformed), "{behind}");
    }
}

#[test]
fn the_root_is_a_name() {
    assert_eq!(read(&answer("", &[a(&[0], 60, 1)])).0, [(v4(1), 60)]);
}

#[test]
fn unteachable_addresses_are_counted_and_not_taught() {
    let (taught, outcome) = read(&answer(
        "a.example",
        &[
            record(QUESTION, A, 60, &[169, 254, 169, 254]),
            record(QUESTION, A, 60, &[127, 0, 0, 1]),
            record(QUESTION, AAAA, 60, &v4(9)),
            a(QUESTION, 60, 1),
        ],
    ));
    assert_eq!(taught, [(v4(1), 60)]);
    let outcome = outcome.expect("an answer");
    assert_eq!((outcome.addresses, outcome.unteachable), (4, 3));
}

#[test]
fn unteachable_addresses_are_counted_once_when_an_answer_is_read_again() {
    let (_, outcome) = read(&answer(
        "a.example",
        &[
            record(&wire("b.example"), A, 60, &[127, 0, 0, 1]),
            record(QUESTION, A, 60, &[127, 0, 0, 2]),
            cname(QUESTION, "b.example", 60),
        ],
    ));
    let outcome = outcome.expect("an answer");
    assert_eq!((outcome.addresses, outcome.unteachable), (2, 2));
}

#[test]
fn a_refused_name_ends_the_reading() {
    let bytes = answer(
        "a.example",
        &[
            a(QUESTION, 60, 1),
            cname(QUESTION, "Denied.Example", 60),
            a(&wire("denied.example"), 60, 2),
            a(QUESTION, 60, 3),
        ],
    );
    let message = Message::from_slice(&bytes).expect("a message");
    let run = |refused: &[u8]| {
        let mut taught = Vec::new();
        let reversed: Vec<u8> = refused.iter().rev().copied().collect();
        let names = |name: &NameReader, _: u32| name.reversed_text() != reversed;
        let outcome = read_answer(&message, SEED, names, |one| taught.push(one.address));
        (taught, outcome.err())
    };
    assert_eq!(run(b"other"), (vec![v4(1), v4(2), v4(3)], None));
    assert_eq!(
        run(b"denied.example"),
        (vec![v4(1)], Some(Tally::AliasDenied))
    );
    assert_eq!(run(b"a.example"), (vec![], Some(Tally::AnswerNoRule)));
}

/// The data of a service binding.
fn binding(priority: u16, target: &str, parameters: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = priority.to_be_bytes().to_vec();
    bytes.extend(wire(target));
    for (key, value) in parameters {
        bytes.extend(key.to_be_bytes());
        let length = u16::try_from(value.len()).expect("a length");
        bytes.extend(length.to_be_bytes());
        bytes.extend(*value);
    }
    bytes
}

const ALPN: (u16, &[u8]) = (1, b"\x02h2");
const HINT: (u16, &[u8]) = (4, &[192, 0, 2, 1, 192, 0, 2, 2]);

#[test]
fn hints_of_service_bindings_are_taught_with_the_ttl_of_their_owner() {
    for kind in [SVCB, HTTPS] {
        let data = binding(
            1,
            "",
            &[ALPN, (3, &[1, 187]), HINT, (6, &V6), (0xffff, &[])],
        );
        let (taught, outcome) = read(&answer(
            "a.example",
            &[
                cname(QUESTION, "b.example", 20),
                record(&wire("b.example"), kind, 60, &data),
                record(
                    QUESTION,
                    kind,
                    9,
                    &binding(2, "A.example", &[(4, &[192, 0, 2, 3])]),
                ),
                a(QUESTION, 60, 4),
            ],
        ));
        let expected = [(v4(1), 20), (v4(2), 20), (V6, 20), (v4(3), 9), (v4(4), 60)];
        assert_eq!(taught, expected);
        let outcome = outcome.expect("an answer");
        assert_eq!((outcome.addresses, outcome.off_chain), (5, 0));
    }
}

#[test]
fn the_target_of_a_service_binding_is_an_alias() {
    for priority in [0, 1] {
        let (taught, outcome) = read(&answer(
            "a.example",
            &[
                a(&wire("b.example"), 60, 3),
                record(QUESTION, HTTPS, 20, &binding(priority, "b.example", &[])),
                record(&wire("b.example"), HTTPS, 60, &binding(1, "", &[HINT])),
            ],
        ));
        let expected = [(v4(1), 20), (v4(2), 20), (v4(3), 20)];
        assert_eq!(taught[..3], [expected[0], expected[1], expected[2]]);
        assert_eq!(outcome.map(|outcome| outcome.addresses), Ok(3));
    }
}

#[test]
fn a_service_binding_that_is_an_alias_only_has_no_parameters() {
    for data in [
        binding(0, "b.example", &[HINT]),
        binding(0, "", &[HINT]),
        binding(0, "b.example", &[HINT, HINT, (4, &[1])]),
        [binding(0, "", &[]), vec![1, 2, 3]].concat(),
    ] {
        let (taught, outcome) = read(&answer("a.example", &[record(QUESTION, HTTPS, 60, &data)]));
        assert!(taught.is_empty() && outcome.is_ok(), "{data:?}");
    }
}

#[test]
fn hints_for_a_refused_target_or_off_the_chain_are_not_taught() {
    let bytes = answer(
        "a.example",
        &[
            record(&wire("c.example"), HTTPS, 60, &binding(1, "", &[HINT])),
            a(QUESTION, 60, 3),
            record(QUESTION, HTTPS, 60, &binding(1, "b.example", &[HINT])),
        ],
    );
    let (taught, outcome) = read(&bytes);
    assert_eq!(taught.first(), Some(&(v4(3), 60)));
    assert_eq!(outcome.map(|outcome| outcome.off_chain), Ok(1));

    let message = Message::from_slice(&bytes).expect("a message");
    let mut taught = Vec::new();
    let names = |name: &NameReader, _: u32| name.reversed_text() != b"elpmaxe.b";
    let outcome = read_answer(&message, SEED, names, |one| taught.push(one.address));
    assert_eq!(
        (taught, outcome.err()),
        (vec![v4(3)], Some(Tally::AliasDenied))
    );
}

#[test]
fn unteachable_hints_are_counted_and_not_taught() {
    let mapped = v4(1);
    let hint = [169, 254, 169, 254, 192, 0, 2, 2, 127, 0, 0, 1];
    let data = binding(1, "", &[(4, &hint), (6, &mapped)]);
    let (taught, outcome) = read(&answer("a.example", &[record(QUESTION, HTTPS, 60, &data)]));
    assert_eq!(taught, [(v4(2), 60)]);
    let outcome = outcome.expect("an answer");
    assert_eq!((outcome.addresses, outcome.unteachable), (4, 3));
}

#[test]
fn a_malformed_service_binding_is_refused() {
    let good = binding(1, "", &[ALPN, HINT, (6, &V6)]);
    for data in [
        vec![],
        vec![0, 1],
        vec![0, 1, 0xc0],
        b"\x00\x01\x02b\x00".to_vec(),
        binding(1, "", &[HINT, ALPN]),
        binding(1, "", &[HINT, HINT]),
        binding(1, "", &[(6, &V6), HINT]),
        binding(1, "", &[(0xffff, &[]), (0, &[])]),
        binding(1, "", &[(4, &[])]),
        binding(1, "", &[(6, &[])]),
        binding(1, "", &[(4, &[192, 0, 2])]),
        binding(1, "", &[(4, &[192, 0, 2, 1, 192])]),
        binding(1, "", &[(6, &V6[..15])]),
        binding(1, "", &[(6, &[1; 20])]),
        // The value of a parameter is longer than the record.
        [binding(1, "", &[ALPN]), vec![0, 4, 0, 4, 192, 0, 2]].concat(),
        [binding(1, "", &[]), vec![0, 4, 0xff, 0xff]].concat(),
    ] {
        for behind in [0, 4] {
            let mut bytes = answer("a.example", &[record(QUESTION, HTTPS, 60, &data)]);
            bytes.extend(vec![0; behind]);
            assert_eq!(refusal(&bytes), Some(Tally::AnswerMalformed), "{data:?}");
        }
    }
    // A record that is cut anywhere but behind a parameter.
    let whole = [3, 10, 22, good.len()];
    for end in 0..=good.len() {
        let bytes = answer("a.example", &[record(QUESTION, HTTPS, 60, &good[..end])]);
        let expected = (!whole.contains(&end)).then_some(Tally::AnswerMalformed);
        assert_eq!(refusal(&bytes), expected, "{end}");
    }
}

#[test]
fn hints_of_more_addresses_than_there_are_steps_are_left_to_the_agent() {
    let with = |addresses: usize| {
        let hint = [192, 0, 2, 1].repeat(addresses);
        let data = binding(1, "", &[(4, &hint)]);
        read(&answer("a.example", &[record(QUESTION, HTTPS, 60, &data)]))
    };
    let (taught, outcome) = with(790);
    assert_eq!((taught.len(), outcome.is_ok()), (790, true));
    assert_eq!(with(800).1, Err(Tally::AnswerOversized));
}

#[test]
fn the_hash_of_a_question_is_that_of_its_query_whatever_its_case() {
    let key = SipKey { k0: 1, k1: 2 };
    let hash = |bytes: &[u8]| question_of(&Message::from_slice(bytes).expect("it fits"), &key);
    let asked = hash(&answer("Api.EXAMPLE.com", &[]));
    // Bytes behind the question, and in the header, do not count.
    let answered = hash(&answer("aPI.example.COM", &[a(QUESTION, 300, 1)]));
    assert!(asked.is_some() && asked == answered);
    for text in [
        "api.example.co",
        "apiexample.com",
        "api.example.con",
        "x.api.example.com",
        "",
    ] {
        let other = hash(&answer(text, &[]));
        assert!(other.is_some() && other != asked, "{text}");
    }
}

#[test]
fn a_question_with_a_pointer_is_none() {
    // The pointer leads to a name in the header: to other bytes than those that were compared with the query.
    let mut bytes = answer("", &[]);
    bytes.splice(12..13, [0xc0, 5]);
    assert_eq!(refusal(&bytes), Some(Tally::AnswerMalformed));
}

/// Steps that the kernel takes for an answer, those of names among them, and whether it reads the answer to its end.
fn worked(bytes: &[u8]) -> (u64, bool) {
    let message = Message::from_slice(bytes).expect("a message that fits");
    let (mut name, mut reader) = (NameReader::new(), AnswerReader::new());
    let (mut work, mut steps) = (0, 0);
    reader.start();
    for _ in 0..ANSWER_STEPS {
        work += STEP_WORK;
        steps += STEP_WORK;
        match reader.step(&message, &name) {
            Next::ReadName => {
                name.start(reader.name_at, SEED);
                let mut last = NameStep::More;
                while last == NameStep::More {
                    last = name.step(&message);
                    steps += 1;
                }
                if last == NameStep::Malformed {
                    return (steps, true);
                }
                work += name.work();
            }
            Next::Done | Next::Refused => return (steps, true),
            Next::Step | Next::Match | Next::Teach | Next::Alias => {}
        }
        if work > ANSWER_WORK {
            return (steps, false);
        }
    }
    (steps, false)
}

#[test]
fn no_answer_takes_the_kernel_more_work_than_its_budget() {
    let long = [
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(57),
    ]
    .join(".");
    // 16 pointers one behind the other, in the data of a record; owners point to the last.
    let behind_pointers = |question: &str, kind: u16, data: &[u8]| {
        let mut bytes = answer(question, &[]);
        let chain_at = bytes.len() + 12;
        let mut chain = vec![0xc0, 12];
        for place in 0..14 {
            let to = 0xc000 | u16::try_from(chain_at + place * 2).expect("a place");
            chain.extend(to.to_be_bytes());
        }
        bytes.extend(record(QUESTION, TXT, 1, &chain));
        let last = 0xc000 | u16::try_from(chain_at + 28).expect("a place");
        let mut count = 1_u16;
        // Two owners in turn: the reader remembers where the last one was.
        while bytes.len() + 24 + data.len() < MESSAGE_BYTES {
            let owner = last - 2 * (count & 1);
            bytes.extend(record(&owner.to_be_bytes(), kind, 1, data));
            count += 1;
        }
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        bytes
    };
    let hints = [&[0, 1, 0][..], &[0, 4, 0, 200], &[192; 200]].concat();
    let crafted = [
        behind_pointers("x", TXT, b""),
        behind_pointers("x", A, &[192, 0, 2, 1]),
        behind_pointers(&long, A, &[192, 0, 2, 1]),
        behind_pointers(&long, TXT, b""),
        behind_pointers("x", CNAME, &[0xc0, 12]),
        behind_pointers("x", HTTPS, &hints),
    ];
    // The step in which the budget ends may read one more name; each name has an end that is no byte of it.
    let most = ANSWER_WORK + STEP_WORK + u64::from(NAME_STEPS) + u64::from(ANSWER_STEPS);
    let mut cut = 0;
    for (place, bytes) in crafted.iter().enumerate() {
        let (steps, is_whole) = worked(bytes);
        assert!(steps <= most, "{place}: {steps}");
        cut += u32::from(!is_whole);
    }
    assert!(cut > 0, "none of them costs too much");
    // The twin: the usual answer of a content network is read to its end.
    let mut usual: Vec<_> = (0..3)
        .map(|hop| {
            cname(
                &wire(&format!("h{hop}.example.com")),
                &format!("h{}.example.com", hop + 1),
                60,
            )
        })
        .collect();
    usual.extend((0..16).map(|last| a(&wire("h3.example.com"), 60, last)));
    let (steps, is_whole) = worked(&answer("h0.example.com", &usual));
    assert!(is_whole && steps < ANSWER_WORK, "{steps}");
}
