//! Tracing on stderr.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal},
    panic::{self, PanicHookInfo},
};

use thiserror::Error;
use tracing::error;
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, ParseError},
    fmt::{self, writer::BoxMakeWriter},
};

use super::{Cli, Command};
use crate::{
    log_queue::{LogQueue, finish_log},
    signals,
};

/// Why a filter is refused.
#[derive(Debug, Error)]
pub(super) enum FilterError {
    /// `tracing` cannot read it.
    #[error(transparent)]
    Unreadable(#[from] ParseError),
    /// A word alone is a level; for `tracing` it would be a target that nothing logs by.
    #[error(
        "\"{0}\" is no level; write off, error, warn, info, debug or trace, alone or for a module: egress_agent::dns=debug"
    )]
    NoLevel(String),
}

/// Checks a filter.
pub(super) fn filter(text: &str) -> Result<String, FilterError> {
    let _valid = EnvFilter::try_new(text)?;
    let is_target = |part: &str| part.contains(['=', ':', '[', '_']);
    let is_level = |part: &str| part.parse::<LevelFilter>().is_ok();
    let mut parts = text.split(',').map(str::trim);
    match parts.find(|part| !part.is_empty() && !is_target(part) && !is_level(part)) {
        Some(word) => Err(FilterError::NoLevel(word.to_owned())),
        None => Ok(text.to_owned()),
    }
}

/// Starts tracing: text on a terminal, one compact line for each event elsewhere. The daemon never waits for its log.
pub fn start(cli: &Cli) {
    let filter = EnvFilter::new(cli.log.as_deref().unwrap_or(cli.default_log()));
    let is_terminal = io::stderr().is_terminal();
    let colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let queue = match cli.command {
        // Before the first thread, so that all have it.
        Command::Run(_) => signals::block_those_of_writers()
            .and_then(|()| LogQueue::start())
            .ok(),
        Command::Status(_)
        | Command::Confirm(_)
        | Command::Counters(_)
        | Command::Learned(_)
        | Command::Flows(_)
        | Command::Explain(_)
        | Command::Policy(_)
        | Command::Preset(_)
        | Command::Unload(_)
        | Command::Exec(_)
        | Command::Doctor(_)
        | Command::Completions(_) => None,
    };
    let writer = match queue {
        Some(queue) => {
            panic::set_hook(Box::new(log_panic));
            BoxMakeWriter::new(queue)
        }
        None => BoxMakeWriter::new(io::stderr),
    };
    let subscriber = fmt::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colours);
    // Messages of crates that use `log`, such as aya, come along. It fails when
    // tracing was started before, which is what is wanted.
    let _started = if is_terminal {
        subscriber.with_target(false).try_init()
    } else {
        subscriber.compact().try_init()
    };
}

/// Logs a panic: the standard hook writes to stderr, and would wait for its reader.
fn log_panic(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(ToString::to_string);
    let place = place.as_deref().unwrap_or("unknown");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        error!(message, place, %backtrace, "panicked");
    } else {
        error!(message, place, "panicked");
    }
    // A panic of the runtime may abort the process, which would take the line with it.
    finish_log();
    // Or it leaves threads that wait for one that is gone. Whoever started the agent starts it again.
    if info
        .location()
        .is_some_and(|place| is_of_runtime(place.file()))
    {
        std::process::abort();
    }
}

/// A source file is tokio's: `…/tokio-1.47.0/src/runtime/io/driver.rs`.
fn is_of_runtime(file: &str) -> bool {
    file.split('/').any(|part| {
        part.strip_prefix("tokio-")
            .is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
    }) && file.contains("/runtime/")
}

#[cfg(test)]
mod tests {
    use super::{filter, is_of_runtime};

    #[test]
    fn a_panic_of_the_runtime_is_known_by_its_place() {
        assert!(is_of_runtime(
            "/root/.cargo/registry/src/index/tokio-1.47.0/src/runtime/io/driver.rs"
        ));
        for other in [
            "egress-agent/src/daemon/mod.rs",
            "/x/tokio-util-0.7.1/src/runtime/a.rs",
            "/x/tokio-1.47.0/src/sync/mpsc.rs",
        ] {
            assert!(!is_of_runtime(other), "{other}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in [
            "info",
            "WARN",
            "info,egress_agent::dns=debug",
            "off",
            "egress_agent=trace",
            "hyper=warn,debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inf", "info,debgu", "egress_agent=loud"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        let text = filter("inf").expect_err("no level").to_string();
        assert!(
            text.starts_with("\"inf\" is no level; write off, error"),
            "{text}"
        );
    }
}
