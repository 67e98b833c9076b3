//! `completions`: what shells complete.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, exit::ExitCode, output::print};

const EXAMPLES: &str = "\
Examples:
  egress-agent completions bash > /etc/bash_completion.d/egress-agent
  egress-agent completions zsh > /usr/local/share/zsh/site-functions/_egress-agent
  egress-agent completions fish > ~/.config/fish/completions/egress-agent.fish";

/// Options of `completions`.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// The shell that is to complete
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

impl Completions {
    /// Prints the shell's script.
    ///
    /// # Errors
    ///
    /// Stdout cannot be written.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        print(&self.script()).map(|_closed| ExitCode::Ok)
    }

    fn script(self) -> String {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "egress-agent", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_completes_every_subcommand() {
        for shell in Shell::value_variants() {
            let script = Completions { shell: *shell }.script();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}");
            }
            assert!(script.contains("max-learned"), "{shell}");
        }
    }
}
