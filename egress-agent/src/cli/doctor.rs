//! `doctor`: whether this node has what the agent needs.

use std::path::PathBuf;

use clap::Args;

use super::{
    exit::ExitCode,
    output::{OutputArgs, Screen, say},
    remote::DEFAULT_PIN_DIR,
    run::found_cgroup,
    table::{Cell, Paint, Table},
};
use crate::{api::model::Check, datapath};

const EXAMPLES: &str = "\
Examples:
  egress-agent doctor
  egress-agent doctor -o json | jq '.[] | select(.ok | not)'

Exit status: 0 all is there; 2 something is missing, and `run` would refuse.";

/// Options of `doctor`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    /// Cgroup that `run` would be given [default: the cgroup v2 root]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Folder that `run` would pin everything in
    #[arg(long, default_value = DEFAULT_PIN_DIR, value_name = "PATH")]
    pub pin_dir: PathBuf,
    /// Form of the result.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl Doctor {
    /// Prints what there is and what is missing.
    ///
    /// # Errors
    ///
    /// Stdout cannot be written.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        // Without a cgroup v2, the usual place tells what is wrong.
        let cgroup = self.cgroup.or_else(|| found_cgroup().ok());
        let cgroup = cgroup.unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup"));
        let checks = datapath::doctor(&cgroup, &self.pin_dir);
        let checks: Vec<Check> = checks.into_iter().map(Check::from).collect();
        self.output
            .print(&checks, |screen| render(&checks, screen))?;
        let missing = checks.iter().filter(|check| !check.ok).count();
        if missing == 0 {
            return Ok(ExitCode::Ok);
        }
        say(&format!("{missing} of {} checks failed", checks.len()));
        Ok(ExitCode::Usage)
    }
}

/// The checks for people; what to do comes last.
pub(super) fn render(checks: &[Check], screen: Screen) -> String {
    let mut table = Table::new()
        .word("CHECK")
        .word("OK")
        .text("FOUND")
        .text("NEEDED");
    let mut fixes = Table::new().word("").text("");
    for check in checks {
        let ok = if check.ok {
            Cell::painted("yes", Paint::Good)
        } else {
            Cell::painted("NO", Paint::Bad)
        };
        table.row([
            (&*check.name).into(),
            ok,
            check.found.as_str().into(),
            (&*check.needed).into(),
        ]);
        if !check.ok {
            fixes.row([(&*check.name).into(), (&*check.fix).into()]);
        }
    }
    let mut text = table.render(screen);
    if !fixes.is_empty() {
        text.push_str("\nWhat to do:\n");
        text.push_str(&fixes.render(screen));
    }
    text
}
