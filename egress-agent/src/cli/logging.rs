//! Tracing on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

use super::Cli;

/// Checks a filter.
pub(super) fn filter(text: &str) -> Result<String, ParseError> {
    EnvFilter::try_new(text).map(|_valid| text.to_owned())
}

/// Starts tracing: text on a terminal, one compact line for each event elsewhere.
pub fn start(cli: &Cli) {
    let filter = EnvFilter::new(cli.log.as_deref().unwrap_or(cli.default_log()));
    let is_terminal = io::stderr().is_terminal();
    let colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let subscriber = fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours);
    // Messages of crates that use `log`, such as aya, come along. It fails when
    // tracing was started before, which is what is wanted.
    let _started = if is_terminal {
        subscriber.with_target(false).try_init()
    } else {
        subscriber.compact().try_init()
    };
}
