//! Who taught which address, on disk, so that the next agent can carry it over.
//!
//! The kernel goes on with what it learned while no agent runs, but does not know by which names. Each chain that opened
//! an address is a line here, written when it is first seen and at most once a minute after that. Lines are written
//! without a wait for the disk: they outlive the agent, and with the machine the kernel's tables are gone too. What is
//! lost: chains of the last look of an agent that was killed (50 ms), and of answers that found no room in the kernel's
//! ring while none ran. Their names have to be asked for again after the next change of the policy.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use egress_common::address::Address;

use super::{AliasChain, Memory, ScopeNumber, Seen};

/// Name of the file in the state folder.
const FILE: &str = "learned.log";
/// Identity of this run of the machine: times count from its beginning.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// First words of the file.
const HEAD: &str = "egress-learned 1";
/// A file is written anew when it has this many bytes, and twice as many as it had when it was last.
const COMPACT_BYTES: u64 = 8 << 20;
/// Nanoseconds for which a line may stand for later answers: see [`is_due`].
const MINUTE_NS: u64 = 60_000_000_000;

/// Whether an answer of `at_ns` is worth a line, when one of `before_ns` has one.
#[must_use]
pub(super) const fn is_due(before_ns: u64, at_ns: u64) -> bool {
    at_ns / MINUTE_NS != before_ns / MINUTE_NS
}

/// The journal; without a file where none can be written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<BufWriter<File>>,
    bytes: u64,
    /// Bytes when it was last written anew.
    compact: u64,
}

impl Journal {
    /// Opens the journal in a folder and, if `takes_up`, gives the memory what it says.
    ///
    /// # Errors
    ///
    /// It cannot be read or written. The journal then keeps nothing.
    pub fn open(
        folder: &Path,
        memory: &Memory,
        takes_up: bool,
        now_ns: u64,
    ) -> (Self, io::Result<usize>) {
        let journal = Self {
            path: folder.join(FILE),
            state: Mutex::default(),
        };
        // An empty path: nothing is kept.
        if folder.as_os_str().is_empty() {
            return (journal, Ok(0));
        }
        let taken_up = journal.take_up(memory, takes_up, now_ns);
        let opened = taken_up.and_then(|count| {
            fs::create_dir_all(folder)?;
            journal.write_anew(memory)?;
            Ok(count)
        });
        (journal, opened)
    }

    fn take_up(&self, memory: &Memory, takes_up: bool, now_ns: u64) -> io::Result<usize> {
        if !takes_up {
            return Ok(0);
        }
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut lines = text.lines();
        if lines.next() != Some(head()?.as_str()) {
            return Ok(0);
        }
        // The last line of an agent that was killed may be cut off.
        let lines = lines.filter_map(|line| line.strip_suffix(" ."));
        Ok(lines
            .filter_map(|line| take_up_line(memory, line, now_ns))
            .count())
    }

    /// Notes that an answer opened an address.
    pub fn note_address(&self, memory: &Memory, scope: ScopeNumber, seen: &Seen<'_>) {
        if let Some(name) = memory.scope_name(scope) {
            self.add(&address_line(&name, seen));
        }
    }

    /// Notes that names lead to an alias.
    pub fn note_alias(&self, memory: &Memory, scope: ScopeNumber, noted: &AliasChain) {
        if let Some(name) = memory.scope_name(scope) {
            self.add(&alias_line(&name, noted));
        }
    }

    fn add(&self, line: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { file, bytes, .. } = &mut *state;
        if let Some(open) = file {
            if open.write_all(line.as_bytes()).is_err() {
                *file = None;
            }
            *bytes = bytes.saturating_add(line.len() as u64);
        }
    }

    /// Gives what was noted to the system, and writes the file anew when it has grown.
    ///
    /// # Errors
    ///
    /// The file cannot be written. Nothing more is kept until it can be.
    pub fn flush(&self, memory: &Memory) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut state.file
            && let Err(error) = file.flush()
        {
            state.file = None;
            return Err(error);
        }
        let is_large = state.bytes >= COMPACT_BYTES.max(state.compact.saturating_mul(2));
        // An empty path: nothing is kept.
        let is_lost = state.file.is_none()
            && self
                .path
                .parent()
                .is_some_and(|it| !it.as_os_str().is_empty());
        drop(state);
        if is_large || is_lost {
            self.write_anew(memory)?;
        }
        Ok(())
    }

    /// Writes what the memory has, beside the old file and then in its place.
    fn write_anew(&self, memory: &Memory) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = BufWriter::new(options.open(&beside)?);
        let mut bytes = 0_u64;
        let mut result = writeln!(file, "{}", head()?);
        memory.for_each_scope(|scope, name| {
            let mut put = |line: String| {
                bytes = bytes.saturating_add(line.len() as u64);
                if result.is_ok() {
                    result = file.write_all(line.as_bytes());
                }
            };
            memory.for_each(scope, |address, seen| {
                if seen.allowed {
                    put(address_line(name, &seen.seen(address)));
                }
            });
            memory.for_each_alias(scope, 0, |_, noted| put(alias_line(name, noted)));
        });
        result?;
        file.flush()?;
        fs::rename(&beside, &self.path)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State {
            file: Some(file),
            bytes,
            compact: bytes,
        };
        Ok(())
    }
}

fn head() -> io::Result<String> {
    let boot = fs::read_to_string(BOOT_ID)?;
    Ok(format!("{HEAD} {}", boot.trim()))
}

/// Every line ends with a point, so that one that is cut off is not taken for another. No field holds a tab.
fn address_line(scope: &str, seen: &Seen<'_>) -> String {
    let address = u128::from_be_bytes(seen.address);
    format!(
        "a\t{scope}\t{}\t{}\t{}\t{}\t{}\t{}\t{address:032x} .\n",
        seen.netns, seen.at_ns, seen.ttl_s, seen.expires_at_ns, seen.name, seen.chain
    )
}

fn alias_line(scope: &str, noted: &AliasChain) -> String {
    format!(
        "n\t{scope}\t{}\t{}\t{}\t{}\t{} .\n",
        noted.netns, noted.at_ns, noted.ttl_s, noted.expires_at_ns, noted.chain
    )
}

/// Later answers of the same minute have no line: the end is that much later at most. (What the kernel holds bounds it.)
fn take_up_line(memory: &Memory, line: &str, now_ns: u64) -> Option<()> {
    let mut fields = line.split('\t');
    let kind = fields.next()?;
    let scope = memory.scope(fields.next()?);
    let netns = fields.next()?.parse().ok()?;
    let at_ns = fields.next()?.parse().ok()?;
    let ttl_s = fields.next()?.parse().ok()?;
    let expires_at_ns = fields
        .next()?
        .parse::<u64>()
        .ok()?
        .saturating_add(MINUTE_NS);
    match kind {
        "a" => {
            let (name, chain) = (fields.next()?, fields.next()?);
            let address: Address = u128::from_str_radix(fields.next()?, 16).ok()?.to_be_bytes();
            let end = chain.rsplit(' ').next()?;
            let seen = Seen {
                address,
                netns,
                name,
                alias: (end != name).then_some(end),
                chain,
                at_ns,
                ttl_s,
                expires_at_ns,
                is_allowed: true,
            };
            memory.record(scope, &seen, now_ns);
            Some(())
        }
        "n" => {
            let noted = AliasChain {
                chain: fields.next()?.into(),
                netns,
                at_ns,
                ttl_s,
                expires_at_ns,
            };
            memory.note_alias(scope, noted, now_ns);
            Some(())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use egress_common::address::from_v4;

    use super::*;
    use crate::dns::MemoryLimits;

    fn seen(last: u8, chain: &str) -> Seen<'_> {
        Seen {
            address: from_v4([192, 0, 2, last]),
            netns: 7,
            name: chain.split(' ').next().expect("a name"),
            alias: chain
                .contains(' ')
                .then(|| chain.rsplit(' ').next())
                .flatten(),
            chain,
            at_ns: 5,
            ttl_s: 60,
            expires_at_ns: 1_000 * MINUTE_NS,
            is_allowed: true,
        }
    }

    fn chains(memory: &Memory) -> Vec<String> {
        let mut found = Vec::new();
        let scope = memory.scope("pod");
        memory.for_each(scope, |address, seen| {
            found.push(format!("{} {} {}", address[15], seen.netns, seen.chain()));
        });
        memory.for_each_alias(scope, 0, |alias, noted| {
            found.push(format!("{alias}: {}", noted.chain))
        });
        found.sort();
        found
    }

    #[test]
    fn what_was_noted_comes_back_and_a_cut_off_line_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        let memory = Memory::new(MemoryLimits::default());
        let scope = memory.scope("pod");
        let (journal, opened) = Journal::open(&state, &memory, true, 0);
        assert_eq!(opened.expect("opens"), 0);
        let noted = AliasChain {
            chain: "a.example edge.example".into(),
            netns: 7,
            at_ns: 5,
            ttl_s: 60,
            expires_at_ns: 1_000 * MINUTE_NS,
        };
        journal.note_address(&memory, scope, &seen(1, "a.example edge.example"));
        journal.note_address(&memory, scope, &seen(2, "b.example"));
        journal.note_alias(&memory, scope, &noted);
        journal.flush(&memory).expect("writes");
        let file = state.join(FILE);
        let whole = fs::read_to_string(&file).expect("a file");
        let expected = [
            "1 7 a.example edge.example",
            "2 7 b.example",
            "edge.example: a.example edge.example",
        ];
        for (text, expected) in [
            (whole.clone(), &expected[..]),
            (
                format!("{whole}{}", &whole.lines().nth(1).expect("a line")[..30]),
                &expected[..],
            ),
            (
                whole.replace("egress-learned 1 ", "egress-learned 1 x"),
                &[],
            ),
            (String::new(), &[]),
        ] {
            fs::write(&file, text).expect("written");
            let next = Memory::new(MemoryLimits::default());
            let (_, opened) = Journal::open(&state, &next, true, 0);
            assert_eq!(opened.expect("opens"), expected.len());
            assert_eq!(chains(&next), expected);
            // Written anew: the next one finds the same.
            let again = Memory::new(MemoryLimits::default());
            let (_, opened) = Journal::open(&state, &again, true, 0);
            assert_eq!(opened.expect("opens"), expected.len());
            assert_eq!(chains(&again), expected);
            let (_, opened) = Journal::open(&state, &Memory::default(), false, 0);
            assert_eq!(opened.expect("opens"), 0);
        }
    }
}
