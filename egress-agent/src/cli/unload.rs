//! `unload`: remove everything from the kernel.
//!
//! A running agent holds its pin directory, which is what refuses here; the
//! socket would tell less, as an agent can have any.

use std::path::PathBuf;

use clap::Args;

use super::{
    exit::ExitCode,
    output::{OutputArgs, Screen, note},
    remote::DEFAULT_PIN_DIR,
    table::Table,
};
use crate::api::model::UnloadReport;

const EXAMPLES: &str = "\
Examples:
  systemctl stop egress-agent && egress-agent unload

Stopping the agent alone leaves the programs in the kernel, which go on
deciding and learning. After unload nothing is enforced.";

/// Options of `unload`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Unload {
    /// Folder where everything is pinned
    #[arg(long, default_value = DEFAULT_PIN_DIR, value_name = "PATH")]
    pub pin_dir: PathBuf,
    /// Form of the result.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl Unload {
    /// Removes everything.
    ///
    /// # Errors
    ///
    /// An agent is running, or the kernel refuses.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let report = unload(&self.pin_dir)?;
        self.output
            .print(&report, |screen| render(&report, screen))?;
        if report.removed.is_empty() {
            note(&format!("nothing was loaded at {}", self.pin_dir.display()));
        }
        Ok(ExitCode::Ok)
    }
}

fn unload(pin_dir: &std::path::Path) -> anyhow::Result<UnloadReport> {
    anyhow::bail!("cannot unload {}: not built yet", pin_dir.display())
}

fn render(report: &UnloadReport, screen: Screen) -> String {
    let mut table = Table::new().text("REMOVED");
    for removed in &report.removed {
        table.row([removed.as_str().into()]);
    }
    if table.is_empty() {
        return String::new();
    }
    table.render(screen)
}
