//! The `egress-agent` program: parse, start tracing, do, exit.

use egress_agent::cli::{Cli, ExitCode, say, start_logging};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    start_logging(&cli);
    let result = cli.execute();
    if let Err(error) = &result {
        say(&format!("error: {error:#}"));
    }
    ExitCode::of(&result)
}
