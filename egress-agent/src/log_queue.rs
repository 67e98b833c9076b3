//! The daemon's logs: a bounded queue each, and a thread that writes from it.
//!
//! Nobody who logs waits for whoever reads the log, or fails with it. What finds no room, and what cannot be written
//! (no reader is left, the terminal is gone, the disk is full), is dropped and counted.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that wait at most. A denial is some 300.
const MOST_BYTES: usize = 1 << 20;
/// Cost of each line beside its bytes.
const LINE_BYTES: usize = 64;
/// Time between two tries to write to what takes nothing now.
const PAUSE: Duration = Duration::from_millis(20);
/// Time between two lines that say how many lines were dropped.
const REPORT_PAUSE: Duration = Duration::from_secs(10);

/// Lines of the log that nobody will read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedLines {
    /// How many since the start.
    pub count: u64,
    /// When the last one was dropped.
    pub last: Option<SystemTime>,
}

/// Lines that wait to be written.
#[derive(Clone, Debug)]
pub(crate) struct LogQueue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// A line came, or was written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// True while the thread writes a line that is not among `lines` any more.
    is_writing: bool,
    dropped: DroppedLines,
}

impl Waiting {
    fn drop_line(&mut self) {
        self.dropped.count = self.dropped.count.saturating_add(1);
        self.dropped.last = Some(SystemTime::now());
    }
}

static DAEMON: OnceLock<LogQueue> = OnceLock::new();

/// Lines of the daemon's log that were dropped.
#[must_use]
pub fn dropped_log_lines() -> DroppedLines {
    DAEMON.get().map(LogQueue::dropped).unwrap_or_default()
}

/// Waits a moment for what was logged to be written; not for a reader that does not read.
pub fn finish_log() {
    if let Some(queue) = DAEMON.get() {
        queue.flush(Duration::from_secs(1));
    }
}

/// The queue of the daemon, if this process is one.
pub(crate) fn of_daemon() -> Option<&'static LogQueue> {
    DAEMON.get()
}

impl LogQueue {
    /// A queue that is written to stderr: the daemon's.
    ///
    /// # Errors
    ///
    /// No thread or descriptor can be had.
    pub(crate) fn start() -> io::Result<Self> {
        // A file of its own: stderr's lock would be held as long as a write waits.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let queue = Self::written_to("the log", stderr)?;
        Ok(DAEMON.get_or_init(|| queue).clone())
    }

    /// A queue that is written elsewhere. `what` is what messages about lost lines call it.
    ///
    /// # Errors
    ///
    /// No thread can be had.
    pub(crate) fn written_to(
        what: &'static str,
        output: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Self {
            shared: Arc::default(),
        };
        let shared = Arc::clone(&queue.shared);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_to(what, output))?;
        Ok(queue)
    }

    /// Takes a line; drops it where there is no room.
    pub(crate) fn push(&self, line: &[u8]) {
        let mut waiting = self.shared.waiting();
        let bytes = line.len().saturating_add(LINE_BYTES);
        let with_it = waiting.bytes.saturating_add(bytes);
        if with_it > MOST_BYTES {
            waiting.drop_line();
            return;
        }
        waiting.bytes = with_it;
        waiting.lines.push_back(line.to_vec());
        drop(waiting);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written, at most this long.
    pub(crate) fn flush(&self, most: Duration) {
        let waiting = self.shared.waiting();
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        let changed = &self.shared.changed;
        let _in_time = changed.wait_timeout_while(waiting, most, is_busy);
    }

    /// Lines that were dropped.
    pub(crate) fn dropped(&self) -> DroppedLines {
        self.shared.waiting().dropped
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, what: &str, mut output: impl Write) {
        let mut told = 0;
        let mut told_at: Option<Instant> = None;
        loop {
            let line = self.next_line();
            let is_written = write_line(&mut output, &line).is_ok();
            let mut waiting = self.waiting();
            waiting.is_writing = false;
            if !is_written {
                waiting.drop_line();
            }
            let count = waiting.dropped.count;
            drop(waiting);
            self.changed.notify_all();
            let is_due = told_at.is_none_or(|at| at.elapsed() >= REPORT_PAUSE);
            if is_written && count > told && is_due {
                told_at = Some(Instant::now());
                told = count;
                warn!(
                    lines = count,
                    "lines of {what} were dropped since the start: whatever takes them is slow, was gone or full"
                );
            }
        }
    }

    fn next_line(&self) -> Vec<u8> {
        let mut waiting = self.waiting();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                let bytes = line.len().saturating_add(LINE_BYTES);
                waiting.bytes = waiting.bytes.saturating_sub(bytes);
                waiting.is_writing = true;
                return line;
            }
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes a line, however long that takes.
fn write_line(output: &mut impl Write, line: &[u8]) -> io::Result<()> {
    let mut rest = line;
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody who shares the pipe made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes what is written at once as one line.
#[derive(Debug)]
pub(crate) struct Line<'a>(&'a LogQueue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a write for each message that it is sent; fails once nobody sends any.
    struct Gate(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.recv().is_err() {
                return Err(ErrorKind::BrokenPipe.into());
            }
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (LogQueue, mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (open, gate) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let queue = LogQueue::written_to("the log", Gate(gate, Arc::clone(&written))).unwrap();
        (queue, open, written)
    }

    #[test]
    fn lines_are_written_in_their_order() {
        let (queue, open, written) = gated();
        for line in ["one\n", "two\n", "three\n"] {
            queue.push(line.as_bytes());
            open.send(()).unwrap();
        }
        queue.flush(Duration::from_secs(5));
        assert_eq!(*written.lock().unwrap(), b"one\ntwo\nthree\n");
        assert_eq!(queue.dropped(), DroppedLines::default());
    }

    #[test]
    fn a_reader_that_does_not_read_is_not_waited_for() {
        let (queue, _open, written) = gated();
        let line = [b'x'; 1_000];
        let began = Instant::now();
        for _ in 0..5_000 {
            queue.push(&line);
        }
        queue.flush(Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(5));
        let room = (MOST_BYTES / (line.len() + LINE_BYTES)) as u64;
        let dropped = queue.dropped();
        // The thread may have taken one.
        assert!(
            (5_000 - room - 1..=5_000 - room).contains(&dropped.count),
            "{dropped:?}"
        );
        assert!(dropped.last.is_some());
        assert!(written.lock().unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_what_comes_after_it_is_tried() {
        let (queue, open, written) = gated();
        open.send(()).unwrap();
        queue.push(b"there\n");
        queue.flush(Duration::from_secs(5));
        drop(open);
        queue.push(b"gone\n");
        queue.push(b"gone too\n");
        queue.flush(Duration::from_secs(5));
        assert_eq!(queue.dropped().count, 2);
        assert_eq!(*written.lock().unwrap(), b"there\n");
    }
}
