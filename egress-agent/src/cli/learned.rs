//! `learned`: addresses that DNS answers taught.

use std::ops::ControlFlow;

use clap::Args;

use super::{
    exit::ExitCode,
    output::{Format, Screen, note, print},
    remote::{PodArgs, RemoteArgs, wait_for},
    status::duration,
    table::{Cell, Table},
};
use crate::api::{ClientError, Listing, Row, model::LearnedAddress, report::sort_learned};

const EXAMPLES: &str = "\
Examples:
  egress-agent learned
  egress-agent learned api.example.com
  egress-agent learned '*.cdn.example.net'
  egress-agent learned 192.0.2.7 -o json
  egress-agent learned --namespace shop --pod payments-7d9c

Up to 10,000 addresses are sorted by name; more are printed as they come, in
JSON one on a line.";

/// Most rows that are held to be sorted. What a list costs here is not to depend on its length: in a pod, this program
/// shares the memory that the agent may use.
const SORTED: usize = 10_000;

/// Rows of a table whose columns have the same widths, where they are not sorted.
const TOGETHER: usize = 1_000;

/// Options of `learned`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Learned {
    /// Only what this name taught (`*.` and a name: the names below it), or only this address
    #[arg(value_name = "NAME|ADDRESS")]
    pub query: Option<String>,
    /// Whose.
    #[command(flatten)]
    pub pods: PodArgs,
    /// Where to ask and what to print.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

impl Learned {
    /// Prints learned addresses.
    ///
    /// # Errors
    ///
    /// No agent answers, or it breaks the list off.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        wait_for(self.list())
    }

    async fn list(self) -> anyhow::Result<ExitCode> {
        let client = self.remote.client();
        let pods = self.pods.filter();
        let mut list = client.learned(self.query.as_deref(), &pods).await?;
        let mut held = Vec::new();
        while held.len() < SORTED {
            let Some(row) = list.next().await? else {
                self.print_all(&held)?;
                return Ok(ExitCode::Ok);
            };
            held.push(row);
        }
        match self.remote.output.output {
            Format::Table => print_tables(held, &mut list).await?,
            Format::Json => print_lines(held, &mut list).await?,
        }
        Ok(ExitCode::Ok)
    }

    /// Prints all that there are.
    fn print_all(&self, rows: &[Row<LearnedAddress>]) -> anyhow::Result<()> {
        let mut learned = read(rows)?;
        sort_learned(&mut learned);
        let output = self.remote.output;
        output.print(&learned, |screen| render(&learned, screen))?;
        if learned.is_empty() && output.output == Format::Table {
            note(match self.query {
                None if !self.pods.is_given() => "nothing is learned yet, or all of it has expired",
                _ => "nothing like that is learned, or it has expired",
            });
        }
        Ok(())
    }
}

fn read(rows: &[Row<LearnedAddress>]) -> Result<Vec<LearnedAddress>, ClientError> {
    rows.iter().map(Row::read).collect()
}

/// Prints rows and those that follow, some at a time.
async fn print_tables(
    held: Vec<Row<LearnedAddress>>,
    list: &mut Listing<LearnedAddress>,
) -> anyhow::Result<()> {
    note("these are many: they are not sorted");
    let screen = Screen::of_stdout();
    let mut rows = held;
    while !rows.is_empty() {
        for together in rows.chunks(TOGETHER) {
            if print(&render(&read(together)?, screen))?.is_break() {
                return Ok(());
            }
        }
        rows.clear();
        while rows.len() < TOGETHER
            && let Some(row) = list.next().await?
        {
            rows.push(row);
        }
    }
    Ok(())
}

/// Prints rows and those that follow as the agent wrote them.
async fn print_lines(
    held: Vec<Row<LearnedAddress>>,
    list: &mut Listing<LearnedAddress>,
) -> anyhow::Result<()> {
    let mut lines = Lines::default();
    for row in held {
        if lines.push(&row)?.is_break() {
            return Ok(());
        }
    }
    while let Some(row) = list.next().await? {
        if lines.push(&row)?.is_break() {
            return Ok(());
        }
    }
    lines.end()
}

/// A list of JSON that is being printed.
#[derive(Debug, Default)]
struct Lines {
    text: String,
    is_begun: bool,
}

impl Lines {
    fn push(&mut self, row: &Row<LearnedAddress>) -> anyhow::Result<ControlFlow<()>> {
        self.text
            .push_str(if self.is_begun { ",\n  " } else { "[\n  " });
        self.is_begun = true;
        self.text.push_str(&String::from_utf8_lossy(row.json()));
        if self.text.len() < 64 << 10 {
            return Ok(ControlFlow::Continue(()));
        }
        let printed = print(&self.text);
        self.text.clear();
        printed
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.text.push_str("\n]\n");
        print(&self.text).map(|_closed| ())
    }
}

/// Learned addresses for people.
pub(super) fn render(learned: &[LearnedAddress], screen: Screen) -> String {
    let mut table = Table::new()
        .text("NAME")
        .text("ADDRESS")
        .text("PORTS")
        .number("ENDS IN")
        .text("SCOPE");
    for row in learned {
        // Without a name, the rule is the best there is.
        let name = match (row.name.as_str(), row.rules.as_slice()) {
            ("?", [rule, ..]) => Cell::from(format!("? ({rule})")),
            (name, _) => name.into(),
        };
        table.row([
            name,
            row.address.to_string().into(),
            row.ports.join(", ").into(),
            duration(row.expires_in_s).into(),
            row.scope.as_str().into(),
        ]);
    }
    if table.is_empty() {
        return String::new();
    }
    table.render(screen)
}
