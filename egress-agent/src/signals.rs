//! The effect of each signal on the daemon.
//!
//! | signal | effect |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT, SIGXCPU | the agent ends, the data plane stays |
//! | SIGHUP | policies are read again; a terminal that goes ends nothing |
//! | SIGPIPE, SIGXFSZ, SIGTTOU, SIGTTIN | none: what cannot be written is dropped |
//! | all others that can be caught and are no fault of the program | none |
//!
//! SIGKILL, SIGSTOP and faults of the program cannot be or are not caught. The data plane needs no agent for what it
//! does then, the end of enforcing that was not confirmed included.

use std::{io, sync::Arc};

use nix::sys::signal::{SigSet, Signal};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tracing::info;

use crate::shutdown::{Shutdown, Trigger};

/// Says that policies are to be read again.
#[derive(Clone, Debug, Default)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Returns once somebody asked, at once if somebody did since the last time.
    pub async fn requested(&self) {
        self.0.notified().await;
    }
}

/// Blocks what would stop or end a process for what it writes. To be called before there are other threads.
///
/// # Errors
///
/// The kernel refuses.
pub fn block_those_of_writers() -> io::Result<()> {
    let mut blocked = SigSet::empty();
    // Of a terminal that another job has, and of a file that may not grow: a write then goes through or fails.
    for one in [Signal::SIGTTOU, Signal::SIGTTIN, Signal::SIGXFSZ] {
        blocked.add(one);
    }
    Ok(blocked.thread_block()?)
}

const ENDING: &[(&str, SignalKind)] = &[
    ("SIGTERM", SignalKind::terminate()),
    ("SIGINT", SignalKind::interrupt()),
    ("SIGQUIT", SignalKind::quit()),
    ("SIGXCPU", SignalKind::from_raw(libc::SIGXCPU)),
];

/// Those whose default would end the agent, and that ask nothing of it.
fn ignored() -> Vec<SignalKind> {
    let plain = [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
    ];
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    let numbers = plain.into_iter().chain(real_time);
    numbers.map(SignalKind::from_raw).collect()
}

/// Begins to do what signals ask for, until `stop`. Needs a runtime.
///
/// # Errors
///
/// A handler cannot be installed.
pub fn listen(trigger: &Trigger, stop: &Shutdown) -> io::Result<Reload> {
    for (name, kind) in ENDING {
        let mut signals = signal(*kind)?;
        let trigger = trigger.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                info!(signal = name, "shutting down");
                trigger.shut_down();
            }
        });
    }
    // A handler that does nothing stays when its listener goes.
    for kind in ignored() {
        drop(signal(kind)?);
    }
    let reload = Reload::default();
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::spawn({
        let (reload, stop) = (reload.clone(), stop.clone());
        async move {
            loop {
                tokio::select! {
                    Some(()) = hang_up.recv() => reload.0.notify_one(),
                    () = stop.requested() => return,
                }
            }
        }
    });
    Ok(reload)
}
