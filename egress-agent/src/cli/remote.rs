//! Shared parts of subcommands that ask the agent.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::output::OutputArgs;
use crate::api::{Client, PodFilter};

/// Where the agent listens by default.
pub const DEFAULT_SOCKET: &str = "/run/egress/agent.sock";

/// Where everything is pinned by default.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/egress";

/// Where what was seen is kept by default.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/egress";

/// Where the agent listens.
#[derive(Clone, Debug, Args)]
pub struct SocketArgs {
    /// Socket of the agent
    #[arg(long, env = "EGRESS_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}

/// Whose things to show.
#[derive(Clone, Debug, Args)]
pub struct PodArgs {
    /// Only of pods in this namespace
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Only of pods of this name
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
}

impl PodArgs {
    /// As a filter.
    #[must_use]
    pub fn filter(&self) -> PodFilter {
        PodFilter {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
        }
    }

    /// True if any was given.
    #[must_use]
    pub const fn is_given(&self) -> bool {
        self.namespace.is_some() || self.pod.is_some()
    }
}

/// Options of subcommands that ask the agent.
#[derive(Clone, Debug, Args)]
pub struct RemoteArgs {
    /// Form of the result.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Where the agent listens.
    #[command(flatten)]
    pub socket: SocketArgs,
}

impl RemoteArgs {
    /// A client of the agent.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.socket.socket)
    }
}

/// Waits for what is asked of the agent.
///
/// # Errors
///
/// There is no runtime, or the question's own error.
pub(super) fn wait_for<T, E: Into<anyhow::Error>>(
    question: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(question).map_err(Into::into)
}
