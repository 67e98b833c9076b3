//! The stack that the programs of the object take, as kernels before 6.6 count it.
//!
//! A chain of functions may have 512 bytes together; each frame counts as the next multiple of 32
//! (`check_max_stack_depth` in kernel/bpf/verifier.c). Which helpers the compiler inlines changes with any edit, and not
//! every kernel looks at every path: a chain that is too long is found here, before a kernel refuses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
};

/// Bytes that a chain may have.
const MOST: u32 = 512;
/// Bytes of which each frame is a multiple.
const ROUNDED_TO: u32 = 32;
/// Bytes of an instruction (RFC 9669, section 3).
const INSTRUCTION: usize = 8;
/// Number of the register that points to the frame's end.
const FRAME: u8 = 10;
/// Opcode of a call.
const CALL: u8 = 0x85;
/// Source register of a call to a function of the object.
const LOCAL: u8 = 1;
/// Opcode by which a register becomes another one's value.
const MOVE: u8 = 0xbf;
/// Opcode by which a constant is added to a register.
const ADD: u8 = 0x07;

/// Section and byte at which a function begins.
type Place = (usize, u64);

#[derive(Debug)]
struct Function {
    name: String,
    bytes: u32,
    calls: BTreeSet<Place>,
}

/// Checks that no chain of functions takes more stack than kernels allow.
///
/// # Errors
///
/// The object cannot be read, or a chain is too long: it is named, with the bytes of each frame.
pub(crate) fn check(object: &Path) -> Result<()> {
    let data = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let functions = functions(&data).with_context(|| format!("{}", object.display()))?;
    let mut too_long = String::new();
    for start in functions.keys() {
        let (bytes, chain) = longest(&functions, *start);
        // Those that this one calls are named as parts of the longest.
        let is_called = functions.values().any(|other| other.calls.contains(start));
        if bytes > MOST && !is_called {
            let _never = write!(too_long, "\n  {bytes}: {}", chain.join(", "));
        }
    }
    if !too_long.is_empty() {
        bail!(
            "chains of functions take more than the {MOST} bytes of stack that a kernel allows (each frame is rounded up to \
             {ROUNDED_TO}):{too_long}"
        );
    }
    Ok(())
}

/// Bytes of the longest chain from a function on, and its frames.
fn longest(functions: &BTreeMap<Place, Function>, start: Place) -> (u32, Vec<String>) {
    let Some(function) = functions.get(&start) else {
        return (0, Vec::new());
    };
    let (below, mut chain) = function
        .calls
        .iter()
        .map(|callee| longest(functions, *callee))
        .max_by_key(|(bytes, _)| *bytes)
        .unwrap_or_default();
    chain.insert(0, format!("{} ({})", function.name, function.bytes));
    let frame = function.bytes.max(1).next_multiple_of(ROUNDED_TO);
    (frame.saturating_add(below), chain)
}

fn functions(data: &[u8]) -> Result<BTreeMap<Place, Function>> {
    let file = object::File::parse(data).context("is no object")?;
    // Calls that the linker would fill in: the symbol's place, to which the call's own number is added.
    let mut linked = BTreeMap::new();
    for section in file.sections() {
        for (at, relocation) in section.relocations() {
            if let RelocationTarget::Symbol(symbol) = relocation.target() {
                let symbol = file.symbol_by_index(symbol)?;
                if let Some(SectionIndex(callee)) = symbol.section_index() {
                    linked.insert((section.index().0, at), (callee, symbol.address()));
                }
            }
        }
    }
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        if symbol.kind() != SymbolKind::Text || symbol.size() == 0 {
            continue;
        }
        let Some(SectionIndex(section)) = symbol.section_index() else {
            continue;
        };
        let start = symbol.address();
        let code = file
            .section_by_index(SectionIndex(section))?
            .data_range(start, symbol.size())?
            .context("a function without code")?;
        let calls = local_calls(code).map(|(offset, relative)| {
            let at = start.saturating_add(offset);
            // Relative to the instruction after the call.
            let next = INSTRUCTION as u64;
            let (section, from) = match linked.get(&(section, at)) {
                Some(&(section, symbol)) => (section, symbol.saturating_add(next)),
                None => (section, at.saturating_add(next)),
            };
            (section, from.saturating_add_signed(relative))
        });
        let function = Function {
            name: symbol.name()?.to_owned(),
            bytes: frame_bytes(code),
            calls: calls.collect(),
        };
        functions.insert((section, start), function);
    }
    Ok(functions)
}

/// Calls of functions of the object: where each is, and how far from its end the callee begins, both in bytes.
fn local_calls(code: &[u8]) -> impl Iterator<Item = (u64, i64)> {
    code.chunks_exact(INSTRUCTION)
        .zip((0_u64..).step_by(INSTRUCTION))
        .filter_map(|(instruction, at)| {
            let &[opcode, registers, _, _, a, b, c, d] = instruction else {
                return None;
            };
            let relative =
                i64::from(i32::from_le_bytes([a, b, c, d])).saturating_mul(INSTRUCTION as i64);
            (opcode == CALL && registers >> 4 == LOCAL).then_some((at, relative))
        })
}

/// Bytes of a function's frame: how far below its end anything lies that it names.
fn frame_bytes(code: &[u8]) -> u32 {
    let mut bytes = 0;
    let mut copied = None;
    for instruction in code.chunks_exact(INSTRUCTION) {
        let &[opcode, registers, low, high, a, b, c, d] = instruction else {
            break;
        };
        let (to, from) = (registers & 15, registers >> 4);
        let offset = i32::from(i16::from_le_bytes([low, high]));
        let below = match opcode & 7 {
            // Loads, and stores of a constant or a register.
            1 if from == FRAME => offset,
            2 | 3 if to == FRAME => offset,
            _ if opcode == ADD && copied == Some(to) => i32::from_le_bytes([a, b, c, d]),
            _ => 0,
        };
        bytes = bytes.max(below.min(0).unsigned_abs());
        copied = (opcode == MOVE && from == FRAME).then_some(to);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(at: u64) -> Place {
        (1, at)
    }

    fn function(name: &str, bytes: u32, calls: &[u64]) -> Function {
        Function {
            name: name.to_owned(),
            bytes,
            calls: calls.iter().copied().map(place).collect(),
        }
    }

    #[test]
    fn each_frame_is_rounded_up_and_the_longest_chain_counts() {
        let functions = BTreeMap::from([
            (place(0), function("hook", 33, &[8, 16])),
            (place(8), function("short", 0, &[])),
            (place(16), function("long", 64, &[24])),
            (place(24), function("leaf", 1, &[])),
        ]);
        let (bytes, chain) = longest(&functions, place(0));
        assert_eq!(bytes, 64 + 64 + 32);
        assert_eq!(chain, ["hook (33)", "long (64)", "leaf (1)"]);
    }

    #[test]
    fn a_frame_is_what_the_instructions_name() {
        let mut code = Vec::new();
        // *(u64 *)(r10 - 8) = r1
        code.extend([0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0]);
        // r2 = r10; r2 += -40
        code.extend([0xbf, 0xa2, 0, 0, 0, 0, 0, 0]);
        code.extend([0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff]);
        // r1 += -400: no address of the frame
        code.extend([0x07, 0x01, 0, 0, 0x70, 0xfe, 0xff, 0xff]);
        // call 3 instructions on; call helper 5
        code.extend([0x85, 0x10, 0, 0, 3, 0, 0, 0]);
        code.extend([0x85, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(frame_bytes(&code), 40);
        assert_eq!(local_calls(&code).collect::<Vec<_>>(), [(32, 24)]);
    }
}
