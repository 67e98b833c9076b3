//! An answer to a question waits until a ring has been read that the kernel wrote to before.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::shared::lock;

/// How long a question waits at most: a ring that fills as fast as it is read has no end.
const PATIENCE: Duration = Duration::from_millis(250);

/// Looks at a ring: asked for by those who answer questions, made by the task that reads it.
#[derive(Debug, Default)]
pub(super) struct Looks {
    wake: Notify,
    numbers: Mutex<Numbers>,
    made: Condvar,
}

#[derive(Debug, Default)]
struct Numbers {
    asked: u64,
    made: u64,
}

/// A look that has begun.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Look {
    number: u64,
    /// True if somebody waits for it.
    pub(super) is_asked: bool,
}

impl Looks {
    /// Waits until everything is read that is in the ring by now, for a while at most. Blocks.
    pub(super) fn catch_up(&self) {
        let Some(end) = Instant::now().checked_add(PATIENCE) else {
            return;
        };
        let mut numbers = lock(&self.numbers);
        numbers.asked = numbers.asked.saturating_add(1);
        let wanted = numbers.asked;
        self.wake.notify_one();
        while numbers.made < wanted {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.made.wait_timeout(numbers, left);
            numbers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until somebody asks for a look.
    pub(super) async fn asked(&self) {
        self.wake.notified().await;
    }

    /// Begins a look: what is read from now on covers all who have asked by now.
    pub(super) fn begin(&self) -> Look {
        let numbers = lock(&self.numbers);
        Look {
            number: numbers.asked,
            is_asked: numbers.asked > numbers.made,
        }
    }

    /// Ends a look that has found the end of the ring, and whose findings can be seen.
    pub(super) fn end(&self, look: Look) {
        let mut numbers = lock(&self.numbers);
        numbers.made = numbers.made.max(look.number);
        drop(numbers);
        if look.is_asked {
            self.made.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn who_asks_waits_for_a_look_that_begins_afterwards() {
        let looks = Arc::new(Looks::default());
        let before = looks.begin();
        let asker = {
            let looks = Arc::clone(&looks);
            thread::spawn(move || {
                looks.catch_up();
                lock(&looks.numbers).made
            })
        };
        while !looks.begin().is_asked {
            thread::yield_now();
        }
        // A look that had begun before is not what was asked for.
        looks.end(before);
        assert_eq!(lock(&looks.numbers).made, 0);
        looks.end(looks.begin());
        assert_eq!(asker.join().expect("no panic"), 1);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let looks = Looks::default();
        let began = Instant::now();
        looks.catch_up();
        assert!(began.elapsed() >= PATIENCE);
    }
}
