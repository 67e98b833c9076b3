//! The step machines and hickory-proto on the same messages: the same addresses, or a refusal with a reason.
//!
//! Short runs; `tests/fuzz` does the long ones with the same comparison.

mod support;

use proptest::{collection::vec, prelude::*};
use support::{
    compare::{Class, compare},
    generate::{any_message, by_bytes, by_hickory, mutate},
    tape::Tape,
};

fn check(message: &[u8], seed: u64) -> Result<Class, TestCaseError> {
    compare(message, seed)
        .map_err(|found| TestCaseError::fail(format!("{found:?}: {message:02x?}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_that_hickory_built_are_read_alike(tape in vec(any::<u8>(), 0..1500), seed: u64) {
        let message = by_hickory(&mut Tape::new(&tape));
        if message.is_empty() {
            return Ok(());
        }
        let class = check(&message, seed)?;
        prop_assert!(
            matches!(
                class,
                Class::AgreeTaught | Class::AgreeEmpty | Class::RefusedOversized | Class::RefusedLong
                    | Class::RefusedPointers | Class::RefusedEmptyHint
            ),
            "{class:?}"
        );
    }

    #[test]
    fn messages_with_lies_are_read_alike_or_refused(tape in vec(any::<u8>(), 0..1500), seed: u64) {
        check(&by_bytes(&mut Tape::new(&tape)), seed)?;
    }

    #[test]
    fn broken_messages_teach_nothing_off_the_chain(tape in vec(any::<u8>(), 0..1500), seed: u64) {
        let tape = &mut Tape::new(&tape);
        let mut message = any_message(tape);
        mutate(tape, &mut message);
        check(&message, seed)?;
    }

    #[test]
    fn arbitrary_bytes_never_panic(message in vec(any::<u8>(), 0..300), seed: u64) {
        check(&message, seed)?;
    }
}

#[test]
fn a_message_cut_at_any_byte_is_read_alike() {
    for choice in 0..60_u32 {
        let bytes: Vec<u8> = (0..1500_u32)
            .map(|index| {
                (index + 1500 * choice)
                    .wrapping_mul(0x9E37_79B9)
                    .to_be_bytes()[0]
            })
            .collect();
        let whole = by_hickory(&mut Tape::new(&bytes));
        for end in 0..whole.len().min(700) {
            if let Err(found) = compare(&whole[..end], 7) {
                panic!("{found:?} at {end} of {whole:02x?}");
            }
        }
    }
}
