//! `unload`: remove everything from the kernel.
//!
//! A running agent holds its pin directory, which is what refuses here; the
//! socket would tell less, as an agent can have any.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{
    exit::{ExitCode, UsageError},
    output::{OutputArgs, Screen},
    remote::DEFAULT_PIN_DIR,
    table::Table,
};
use crate::{
    api::model::UnloadReport,
    datapath::{self, DatapathError},
};

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
    /// An agent is running, the folder is not an agent's, or the kernel refuses.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let failed = || format!("cannot unload {}", self.pin_dir.display());
        let plan = datapath::Unload::plan(&self.pin_dir).map_err(|error| {
            let is_wrong_folder = matches!(
                error,
                DatapathError::NotBpffs { .. } | DatapathError::NotOurs { .. }
            );
            let error = anyhow::Error::new(error).context(failed());
            if is_wrong_folder {
                UsageError::new(error).into()
            } else {
                error
            }
        })?;
        let hooks = plan.hooks();
        let maps = plan.maps();
        // Each object is named before it is removed.
        for hook in &hooks {
            eprintln!("removing hook {hook}");
        }
        for map in &maps {
            eprintln!("removing map {}", map.display());
        }
        for other in plan.others() {
            eprintln!("leaving {other}, which is not an agent's");
        }
        let report = UnloadReport {
            hooks,
            maps: maps.len(),
            left: plan.others().to_vec(),
            pin_dir: self.pin_dir.clone(),
        };
        plan.remove().with_context(failed)?;
        self.output
            .print(&report, |screen| render(&report, screen))?;
        Ok(ExitCode::Ok)
    }
}

fn render(report: &UnloadReport, screen: Screen) -> String {
    let mut table = Table::new().word("").text("");
    for hook in &report.hooks {
        table.row(["removed".into(), hook.as_str().into()]);
    }
    let maps = match report.maps {
        0 if report.hooks.is_empty() => format!("nothing at {}", report.pin_dir.display()),
        maps => format!("{maps} maps of {}", report.pin_dir.display()),
    };
    table.row(["removed".into(), maps.into()]);
    for other in &report.left {
        table.row(["left".into(), other.as_str().into()]);
    }
    table.render(screen)
}
