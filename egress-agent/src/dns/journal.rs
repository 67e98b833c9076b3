//! Names that taught addresses, on disk, so that the next agent can carry them over.
//!
//! The kernel goes on with what it learned while no agent runs, but does not know by which names. Each chain that opened
//! an address is a line here, written when it is first seen and at most once a minute after that. A thread of its own
//! writes them, so that a disk that hangs holds up nobody who reads answers; nothing is synced: lines outlive the agent,
//! and with the machine the kernel's tables are gone too. What is lost: chains of the last look of an agent that was
//! killed (50 ms) and what it had waiting for a slow disk, and those of answers that found no room in the kernel's ring
//! while none ran. Their names have to be asked for again after the next change of the policy.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    mem,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use egress_common::address::Address;
use tracing::warn;

use super::{AliasChain, Memory, ScopeNumber, Seen};
use crate::store::{in_time, unwritten};

/// Name of the file in the state folder.
const FILE: &str = "learned.log";
/// Identity of this run of the machine: times count from its beginning.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// First words of the file.
const HEAD: &str = "egress-learned 1";
/// A file is written anew when it has this many bytes, and twice as many as it had when it was last.
const COMPACT_BYTES: u64 = 8 << 20;
/// Most bytes of lines that wait for the disk: beyond it the whole is written from the memory, which has them too.
const WAITING_BYTES: usize = 4 << 20;
/// How soon a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Nanoseconds for which a line may stand for later answers: see [`is_due`].
const MINUTE_NS: u64 = 60_000_000_000;

/// True if an answer of `at_ns` is worth a line, when one of `before_ns` has one.
#[must_use]
pub(super) const fn is_due(before_ns: u64, at_ns: u64) -> bool {
    at_ns / MINUTE_NS != before_ns / MINUTE_NS
}

/// The journal; without a file where none can be written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    waiting: Option<Arc<Waiting>>,
    /// The lines that could not be taken up, in a sentence.
    unknown: Option<String>,
}

/// Lines that wait for the disk.
#[derive(Debug, Default)]
struct Waiting {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// The whole has to be written.
    is_anew: bool,
    is_writing: bool,
}

impl Journal {
    /// Opens the journal in a folder and, if `takes_up`, gives the memory what it says.
    ///
    /// # Errors
    ///
    /// It cannot be read, or what is there is no journal. What comes is kept all the same, as soon as that can be written.
    pub fn open(
        folder: &Path,
        memory: &Arc<Memory>,
        takes_up: bool,
        now_ns: u64,
    ) -> (Self, io::Result<usize>) {
        let mut journal = Self {
            path: folder.join(FILE),
            waiting: None,
            unknown: None,
        };
        // An empty path: nothing is kept.
        if folder.as_os_str().is_empty() {
            return (journal, Ok(0));
        }
        let opened = journal.take_up(memory, takes_up, now_ns);
        if let Err(error) = &opened {
            journal.unknown = Some(format!(
                "{}: {error}: who taught the addresses of before is not known, so that this start did not carry them over: their \
                 names have to be asked for again",
                journal.path.display()
            ));
        }
        let waiting = Arc::new(Waiting::default());
        waiting.lock().is_anew = true;
        let (path, of_thread, memory) = (
            journal.path.clone(),
            Arc::clone(&waiting),
            Arc::clone(memory),
        );
        let thread = thread::Builder::new().name("journal".to_owned());
        match thread.spawn(move || of_thread.work(&path, &memory)) {
            Ok(_) => journal.waiting = Some(waiting),
            Err(error) => warn!(%error, "no thread can be had to write who taught which address"),
        }
        (journal, opened)
    }

    /// The part of an earlier agent's lines that is not known, in a sentence.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    fn take_up(&self, memory: &Memory, takes_up: bool, now_ns: u64) -> io::Result<usize> {
        if !takes_up {
            return Ok(0);
        }
        let path = self.path.clone();
        let Some(text) = in_time::read_dear(move || read(&path)).flatten()? else {
            return Ok(0);
        };
        // The last line of an agent that was killed may be cut off.
        let lines = text.lines().skip(1);
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
        let Some(waiting) = &self.waiting else {
            return;
        };
        let mut lines = waiting.lock();
        if lines.is_anew {
            // The memory has it already.
        } else if lines.bytes.len().saturating_add(line.len()) > WAITING_BYTES {
            lines.is_anew = true;
            lines.bytes = Vec::new();
        } else {
            lines.bytes.extend_from_slice(line.as_bytes());
        }
    }

    /// Has what was noted written, and waits for nothing.
    pub fn flush(&self) {
        if let Some(waiting) = &self.waiting {
            waiting.changed.notify_all();
        }
    }

    /// Waits until everything is written, at most this long; says whether it is.
    pub fn settle(&self, most: Duration) -> bool {
        let Some(waiting) = &self.waiting else {
            return true;
        };
        waiting.changed.notify_all();
        let is_busy = |lines: &mut Lines| lines.is_busy();
        let waited = waiting
            .changed
            .wait_timeout_while(waiting.lock(), most, is_busy);
        let (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !lines.is_busy()
    }
}

impl Lines {
    const fn is_busy(&self) -> bool {
        self.is_anew || self.is_writing || !self.bytes.is_empty()
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until the agent ends.
    fn work(&self, path: &Path, memory: &Memory) {
        let mut file = None;
        loop {
            let mut lines = self.lock();
            while !lines.is_anew && lines.bytes.is_empty() {
                lines = self
                    .changed
                    .wait(lines)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let (is_anew, bytes) = (lines.is_anew, mem::take(&mut lines.bytes));
            (lines.is_anew, lines.is_writing) = (false, true);
            drop(lines);
            unwritten::begin(path);
            let written = match file.take() {
                Some(open) if !is_anew => append(open, &bytes),
                _ => Err(None),
            };
            let written = match written {
                // Written anew: it was asked for, the file is gone from under us, or it has grown.
                Err(_) => write_anew(path, memory),
                Ok(open) if open.is_large() => write_anew(path, memory),
                Ok(open) => Ok(open),
            };
            let mut lines = self.lock();
            lines.is_writing = false;
            match written {
                Ok(open) => {
                    unwritten::end(path);
                    file = Some(open);
                }
                Err(error) => {
                    // Nothing is lost as long as the memory has it.
                    lines.is_anew = true;
                    lines.bytes = Vec::new();
                    drop(lines);
                    warn!(%error, file = %path.display(), "names that opened addresses cannot be kept");
                    self.changed.notify_all();
                    thread::sleep(AGAIN);
                    continue;
                }
            }
            drop(lines);
            self.changed.notify_all();
        }
    }
}

/// The file as it is written.
#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
    /// Bytes when it was last written anew.
    compact: u64,
}

impl Open {
    fn is_large(&self) -> bool {
        self.bytes >= COMPACT_BYTES.max(self.compact.saturating_mul(2))
    }
}

fn append(mut open: Open, bytes: &[u8]) -> Result<Open, Option<io::Error>> {
    open.file.write_all(bytes).map_err(Some)?;
    open.bytes = open.bytes.saturating_add(bytes.len() as u64);
    Ok(open)
}

/// Writes what the memory has, beside the old file and then in its place: never through a link.
fn write_anew(path: &Path, memory: &Memory) -> io::Result<Open> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
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
    let written = result.and_then(|()| file.into_inner().map_err(|error| error.into_error()));
    let renamed = written.and_then(|file| fs::rename(&beside, path).map(|()| file));
    match renamed {
        Ok(file) => Ok(Open {
            file,
            bytes,
            compact: bytes,
        }),
        Err(error) => {
            // Half of a file is of no use, least of all on a disk that is full.
            let _left = fs::remove_file(&beside);
            Err(error)
        }
    }
}

/// What an agent left that ran since the machine did; none where nothing is known. What is no journal is set aside.
fn read(path: &Path) -> io::Result<Option<String>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match text.lines().next() {
        Some(first) if first == head()? => Ok(Some(text)),
        // Of another run of the machine, whose kernel's tables are gone too.
        Some(first) if first.starts_with(HEAD) => Ok(None),
        None => Ok(None),
        Some(_) => {
            let aside = path.with_extension("log.unusable");
            fs::rename(path, &aside)?;
            Err(io::Error::other(format!(
                "is broken, and is now {}",
                aside.display()
            )))
        }
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

    const LONG: Duration = Duration::from_secs(10);

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
        let memory = Arc::new(Memory::new(MemoryLimits::default()));
        let scope = memory.scope("pod");
        let (journal, opened) = Journal::open(&state, &memory, true, 0);
        assert_eq!(opened.expect("opens"), 0);
        // Until the file is there, lines come out of the memory alone.
        assert!(journal.settle(LONG));
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
        assert!(journal.settle(LONG));
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
            let next = Arc::new(Memory::new(MemoryLimits::default()));
            // Each thread has written before the next one reads.
            let opened = |memory: &Arc<Memory>, takes_up| {
                let (journal, opened) = Journal::open(&state, memory, takes_up, 0);
                assert!(journal.settle(LONG));
                opened.expect("opens")
            };
            assert_eq!(opened(&next, true), expected.len());
            assert_eq!(chains(&next), expected);
            // Written anew: the next one finds the same.
            let again = Arc::new(Memory::new(MemoryLimits::default()));
            assert_eq!(opened(&again, true), expected.len());
            assert_eq!(chains(&again), expected);
            assert_eq!(opened(&Arc::default(), false), 0);
        }
    }

    #[test]
    fn garbage_is_set_aside_and_told() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(FILE), "{ garbage").expect("written");
        let (journal, opened) = Journal::open(folder.path(), &Arc::default(), true, 0);
        assert!(opened.is_err());
        let told = journal.unknown().expect("a sentence");
        assert!(told.contains("learned.log.unusable"), "{told}");
        assert!(folder.path().join("learned.log.unusable").is_file());
        assert!(journal.settle(LONG));
        let text = fs::read_to_string(folder.path().join(FILE)).expect("written anew");
        assert!(text.starts_with(HEAD), "{text}");
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let theirs = folder.path().join("theirs");
        fs::write(&theirs, "dear").expect("written");
        let beside = folder.path().join("learned.new");
        std::os::unix::fs::symlink(&theirs, &beside).expect("a link");
        let (journal, _) = Journal::open(folder.path(), &Arc::default(), true, 0);
        assert!(journal.settle(LONG));
        assert_eq!(fs::read_to_string(&theirs).expect("there"), "dear");
        assert!(!beside.exists());
    }
}
