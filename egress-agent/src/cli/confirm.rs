//! `confirm`: say in time that enforcing left the node reachable.

use clap::Args;

use super::{
    exit::ExitCode,
    output::Screen,
    remote::{RemoteArgs, wait_for},
    status::confirmation,
    table::Table,
};
use crate::api::model::ConfirmationStatus;

const EXAMPLES: &str = "\
Examples:
  egress-agent run --policy /etc/egress/policies --confirm 60s
      then, in a new session, so that it shows that one can still be opened:
  egress-agent confirm
      the agent goes on enforcing

Comes it too late, the agent has fallen back to audit. It then enforces again
on probation: confirm once more.

Exit status: 0 done, or awaited once more; 1 nothing is awaited, or no agent
answers.";

/// Options of `confirm`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Confirm {
    /// Where to ask and what to print.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

impl Confirm {
    /// Confirms and prints what follows from it.
    ///
    /// # Errors
    ///
    /// Nothing is awaited, or no agent answers.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let client = self.remote.client();
        let status = wait_for(client.confirm())?;
        let output = self.remote.output;
        output.print(&status, |screen| render(&status, screen))?;
        Ok(ExitCode::Ok)
    }
}

/// The confirmation's status, for people.
pub(super) fn render(status: &ConfirmationStatus, screen: Screen) -> String {
    let mut table = Table::new().word("").text("");
    table.row(["confirm".into(), confirmation(status)]);
    table.render(screen)
}
