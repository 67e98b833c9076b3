//! `learned`: addresses that DNS answers taught.

use clap::Args;

use super::{
    exit::ExitCode,
    output::{Format, Screen, note},
    remote::{PodArgs, RemoteArgs, wait_for},
    status::duration,
    table::{Cell, Table},
};
use crate::api::model::LearnedAddress;

const EXAMPLES: &str = "\
Examples:
  egress-agent learned
  egress-agent learned api.example.com
  egress-agent learned '*.cdn.example.net'
  egress-agent learned 192.0.2.7 -o json
  egress-agent learned --namespace shop --pod payments-7d9c";

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
    /// No agent answers.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let client = self.remote.client();
        let mut learned = wait_for(client.learned(self.query.as_deref()))?;
        let pods = self.pods.filter();
        learned.retain(|one| pods.shows(&one.scope));
        let output = self.remote.output;
        output.print(&learned, |screen| render(&learned, screen))?;
        if learned.is_empty() && output.output == Format::Table {
            note(match self.query {
                None if !self.pods.is_given() => "nothing is learned yet, or all of it has expired",
                _ => "nothing like that is learned, or it has expired",
            });
        }
        Ok(ExitCode::Ok)
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
