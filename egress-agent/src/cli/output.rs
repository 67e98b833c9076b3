//! How results are printed: stdout is data, stderr is talk.

use std::{
    env,
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use terminal_size::terminal_size_of;

use crate::log_queue;

/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

/// The form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: field names stay as they are
    Json,
}

/// Options of every subcommand that prints a result.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArgs {
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

impl OutputArgs {
    /// Prints a result in the form that is asked for.
    ///
    /// # Errors
    ///
    /// Stdout cannot be written, other than because its reader left.
    pub fn print<T: Serialize + ?Sized>(
        self,
        result: &T,
        table: impl FnOnce(Screen) -> String,
    ) -> anyhow::Result<()> {
        let text = match self.output {
            Format::Table => table(Screen::of_stdout()),
            Format::Json => {
                let mut json = serde_json::to_string_pretty(result).context("cannot write JSON")?;
                json.push('\n');
                json
            }
        };
        print(&text).map(|_closed| ())
    }
}

/// Writes text to stdout. `Break` means that its reader left, which is no error.
///
/// # Errors
///
/// Stdout cannot be written for another reason.
pub(super) fn print(text: &str) -> anyhow::Result<ControlFlow<()>> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// Says something to the person at the terminal, on stderr.
pub fn say(text: &str) {
    if let Some(queue) = log_queue::of_daemon() {
        return queue.push(format!("{text}\n").as_bytes());
    }
    // Nobody is left to be told that stderr is gone.
    let _gone = writeln!(io::stderr().lock(), "{text}");
}

/// Says something that only a person at a terminal wants to know.
pub(super) fn note(text: &str) {
    if io::stderr().is_terminal() {
        say(text);
    }
}

/// The abilities of the terminal, file or pipe that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Columns; none where lines may have any length.
    pub width: Option<usize>,
    /// True if colours are wanted.
    pub colours: bool,
}

impl Screen {
    /// A file or a pipe.
    pub const PLAIN: Self = Self {
        width: None,
        colours: false,
    };

    /// The abilities of stdout. `COLUMNS` is believed before the terminal's own width, `NO_COLOR` forbids colours.
    #[must_use]
    pub fn of_stdout() -> Self {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let columns = || terminal_size_of(io::stdout()).map(|(columns, _)| columns.0);
        Self::of(io::stdout().is_terminal(), columns, variable)
    }

    /// The abilities of stderr, likewise.
    #[must_use]
    pub fn of_stderr() -> Self {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let columns = || terminal_size_of(io::stderr()).map(|(columns, _)| columns.0);
        Self::of(io::stderr().is_terminal(), columns, variable)
    }

    fn of(
        is_terminal: bool,
        columns: impl FnOnce() -> Option<u16>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        if !is_terminal {
            return Self::PLAIN;
        }
        let wanted = variable("COLUMNS").and_then(|columns| columns.parse().ok());
        let wanted = wanted.filter(|columns| *columns > 0);
        let own = || columns().map(usize::from).filter(|columns| *columns > 0);
        Self {
            width: Some(wanted.or_else(own).unwrap_or(COLUMNS)),
            colours: variable("NO_COLOR").is_none()
                && variable("TERM").is_none_or(|term| term != "dumb"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(is_terminal: bool, variables: &[(&str, &str)]) -> Screen {
        sized(is_terminal, None, variables)
    }

    fn sized(is_terminal: bool, columns: Option<u16>, variables: &[(&str, &str)]) -> Screen {
        Screen::of(
            is_terminal,
            || columns,
            |name| {
                let mut variables = variables.iter();
                let found = variables.find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            },
        )
    }

    #[test]
    fn a_pipe_has_neither_width_nor_colours() {
        assert_eq!(screen(false, &[("COLUMNS", "100")]), Screen::PLAIN);
    }

    #[test]
    fn a_terminal_has_colours_unless_told_otherwise() {
        assert!(screen(true, &[]).colours);
        assert!(!screen(true, &[("NO_COLOR", "1")]).colours);
        assert!(!screen(true, &[("TERM", "dumb")]).colours);
    }

    #[test]
    fn a_terminal_is_as_wide_as_it_is_unless_columns_says_otherwise() {
        let columns = |variables: &[_]| sized(true, Some(200), variables).width;
        assert_eq!(columns(&[]), Some(200));
        assert_eq!(columns(&[("COLUMNS", "132")]), Some(132));
        assert_eq!(columns(&[("COLUMNS", "0")]), Some(200));
        assert_eq!(sized(true, Some(0), &[]).width, Some(80));
        assert_eq!(sized(false, Some(200), &[]), Screen::PLAIN);
    }

    #[test]
    fn a_terminal_has_eighty_columns_unless_it_says_so() {
        assert_eq!(screen(true, &[]).width, Some(80));
        assert_eq!(screen(true, &[("COLUMNS", "132")]).width, Some(132));
        assert_eq!(screen(true, &[("COLUMNS", "many")]).width, Some(80));
        assert_eq!(screen(true, &[("COLUMNS", "0")]).width, Some(80));
    }
}
