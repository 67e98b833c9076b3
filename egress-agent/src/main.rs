//! The `egress-agent` program: parse, start tracing, do, exit.

use std::panic::{self, AssertUnwindSafe};

use egress_agent::{
    cli::{Cli, ExitCode, say, start_logging},
    log_queue::finish_log,
};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    start_logging(&cli);
    // A panic is logged by its hook; it is a failure like others.
    let result = panic::catch_unwind(AssertUnwindSafe(|| cli.execute())).unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "the program panicked, which is a fault in it"
        ))
    });
    if let Err(error) = &result {
        say(&format!("error: {error:#}"));
    }
    finish_log();
    ExitCode::of(&result)
}
