//! Writes state to the disk, so that nobody else waits for it.
//!
//! One thread; of each file the newest state waits, and replaces the one before it. A disk that hangs holds up this
//! thread alone.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::warn;

type Job = Box<dyn FnOnce() + Send>;

/// Where state is given to be written.
#[derive(Clone, Default)]
pub(super) struct StateWriter(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: BTreeMap<&'static str, Job>,
    /// The file that is being written.
    writing: Option<&'static str>,
    /// True if the thread was started: with the first write.
    is_started: bool,
}

impl fmt::Debug for StateWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateWriter").finish_non_exhaustive()
    }
}

impl StateWriter {
    /// Has a file written soon; what waited for the same file is dropped.
    pub(super) fn write(&self, file: &'static str, job: impl FnOnce() + Send + 'static) {
        let mut waiting = self.0.waiting();
        waiting.jobs.insert(file, Box::new(job));
        if !waiting.is_started {
            let of_thread = Arc::clone(&self.0);
            let thread = thread::Builder::new().name("state".to_owned());
            match thread.spawn(move || of_thread.work()) {
                Ok(_) => waiting.is_started = true,
                // Tried again with the next write; until then what waits is an alarm.
                Err(error) => warn!(%error, "no thread can be had to write state"),
            }
        }
        drop(waiting);
        self.0.changed.notify_all();
    }

    /// True if a file waits to be written, or is being written.
    pub(super) fn is_busy_with(&self, file: &str) -> bool {
        let waiting = self.0.waiting();
        waiting.writing == Some(file) || waiting.jobs.contains_key(file)
    }

    /// Waits until everything is written, at most this long; says whether it is.
    pub(super) fn flush(&self, most: Duration) -> bool {
        let waiting = self.0.waiting();
        let is_busy = |waiting: &mut Waiting| waiting.writing.is_some() || !waiting.jobs.is_empty();
        let (waiting, _) = self
            .0
            .changed
            .wait_timeout_while(waiting, most, is_busy)
            .unwrap_or_else(PoisonError::into_inner);
        waiting.writing.is_none() && waiting.jobs.is_empty()
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut waiting = self.waiting();
            let job = loop {
                if let Some((file, job)) = waiting.jobs.pop_first() {
                    waiting.writing = Some(file);
                    break job;
                }
                waiting = self
                    .changed
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(waiting);
            // One that panics (its hook says so) is one file less.
            let _panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            self.waiting().writing = None;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_disk_that_hangs_holds_nobody_up_and_the_newest_state_waits() {
        let writer = StateWriter::default();
        let (answer, disk) = mpsc::channel::<()>();
        let (told, written) = mpsc::channel();
        let of_first = told.clone();
        writer.write("a", move || {
            let _gone = disk.recv();
            of_first.send(1).expect("somebody listens");
        });
        while writer.is_busy_with("a") && !writer.0.waiting().jobs.is_empty() {
            thread::yield_now();
        }
        for number in 2..100 {
            let told = told.clone();
            writer.write("a", move || told.send(number).expect("somebody listens"));
        }
        let of_other = told.clone();
        writer.write("b", move || of_other.send(0).expect("somebody listens"));
        assert!(!writer.flush(Duration::from_millis(50)));
        assert!(writer.is_busy_with("a") && writer.is_busy_with("b"));
        answer.send(()).expect("the disk waits");
        assert!(writer.flush(Duration::from_secs(5)));
        drop(told);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), [1, 99, 0]);
    }

    #[test]
    fn a_write_that_panics_is_not_the_last() {
        let writer = StateWriter::default();
        writer.write("a", || panic!("the disk is odd"));
        assert!(writer.flush(Duration::from_secs(5)));
        let (told, written) = mpsc::channel();
        writer.write("a", move || told.send(()).expect("somebody listens"));
        assert!(writer.flush(Duration::from_secs(5)));
        assert!(written.try_recv().is_ok());
    }
}
