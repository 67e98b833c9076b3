//! The manual pages, made from the command line itself: `cargo xtask docs` leaves them in `target/man`.

#![allow(clippy::unwrap_used, reason = "tests panic")]

use std::{fs, path::Path};

use clap::CommandFactory as _;
use egress_agent::cli::Cli;

/// The pages of a command and of those below it, and whether they are to have examples.
fn commands(command: &clap::Command, name: &str, found: &mut Vec<(String, bool)>) {
    found.push((format!("{name}.1"), !command.has_subcommands()));
    for below in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        commands(below, &format!("{name}-{}", below.get_name()), found);
    }
}

#[test]
fn every_subcommand_has_a_page() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("man");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    clap_mangen::generate_to(Cli::command(), &folder).unwrap();
    let mut wanted = Vec::new();
    commands(&Cli::command(), "egress-agent", &mut wanted);
    assert!(wanted.len() > 10, "{wanted:?}");
    for (page, has_examples) in wanted {
        let text = fs::read_to_string(folder.join(&page)).unwrap_or_default();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
        assert!(
            text.contains("Examples:") || !has_examples,
            "{page} has no examples"
        );
    }
    println!("manual pages: {}", folder.display());
}
