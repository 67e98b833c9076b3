//! One signal that ends every task.
//!
//! [`channel`] makes a [`Trigger`] and a [`Shutdown`] that tasks clone. The
//! signal is given once, by a signal of the operating system ([`signals`](crate::signals)) or the daemon, and stays given.

use std::sync::Arc;

use tokio::sync::watch;

/// Gives the signal. Dropping every clone gives it too: nothing outlives its daemon.
#[derive(Clone, Debug)]
pub struct Trigger {
    sender: Arc<watch::Sender<bool>>,
}

/// Waits for the signal.
#[derive(Clone, Debug)]
pub struct Shutdown {
    receiver: watch::Receiver<bool>,
}

/// A signal and those who wait for it.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (
        Trigger {
            sender: Arc::new(sender),
        },
        Shutdown { receiver },
    )
}

impl Trigger {
    /// Gives the signal.
    pub fn shut_down(&self) {
        self.sender.send_replace(true);
    }
}

impl Shutdown {
    /// Returns once the signal is given, at once if it was.
    pub async fn requested(&self) {
        let mut receiver = self.receiver.clone();
        // An error means that every trigger is gone, which is the signal too.
        let _gone = receiver.wait_for(|given| *given).await;
    }

    /// True if the signal is given.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.receiver.borrow() || self.receiver.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everyone_hears_the_signal_also_late() {
        let (trigger, shutdown) = channel();
        assert!(!shutdown.is_requested());
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.requested().await }
        });
        trigger.shut_down();
        waiting.await.expect("the task ends");
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }

    #[tokio::test]
    async fn a_dropped_trigger_is_the_signal() {
        let (trigger, shutdown) = channel();
        drop(trigger);
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }
}
