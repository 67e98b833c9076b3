//! `cargo xtask e2e-node`: a real kubelet in a virtual machine, our image as its DaemonSet, pods under a policy.
//!
//! The API server, its controllers and the scheduler run here, on loopback ports. The node is emulated, so it is slow;
//! times in the table say what was waited for and not what it costs.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test tool: a broken assumption should panic"
)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use egress_tests::interrupt;

mod checks;
mod cluster;
mod guest;
mod report;
mod rig;
mod traffic;

use report::Report;
use rig::Rig;

/// Boots a node and checks what the DaemonSet does there; `cargo xtask e2e-node` calls it.
#[derive(Debug, Parser)]
#[command(name = "e2e-node")]
pub(crate) struct Cli {
    /// The node's kernel.
    #[arg(long)]
    kernel: PathBuf,
    /// QEMU's name of its processor.
    #[arg(long)]
    cpu: String,
    /// Its first file system.
    #[arg(long)]
    initramfs: PathBuf,
    /// Its disk, which is copied.
    #[arg(long)]
    disk: PathBuf,
    /// An archive with archives of images.
    #[arg(long)]
    images: PathBuf,
    /// The folder with the manifests.
    #[arg(long)]
    manifests: PathBuf,
    /// The agent's image.
    #[arg(long)]
    agent_image: String,
    /// The image of clients.
    #[arg(long)]
    client_image: String,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    interrupt::catch().context("cannot catch ctrl-c")?;
    let mut report = Report::default();
    let result = Rig::start(cli, &mut report).and_then(|mut rig| {
        let result = checks::all(&mut rig, &mut report);
        if result.is_err() || report.failed() > 0 {
            rig.show_logs();
        }
        result
    });
    print!("{}", report.table());
    result?;
    match report.failed() {
        0 => Ok(()),
        count => bail!("{count} of {} checks failed", report.count()),
    }
}
