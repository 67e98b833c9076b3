//! The table of bypasses in docs/security.md, made from [`crate::table`].

use std::{fmt::Write as _, fs, path::Path};

use crate::table::{Outcome, TECHNIQUES, UNTRIED, several};

/// Around the table on the page.
const BEGIN: &str = "<!-- bypasses: written by `cargo xtask docs` from tests/bypass/table.rs -->\n";
/// See [`BEGIN`].
const END: &str = "<!-- end of bypasses -->\n";

/// The table in Markdown: open techniques first.
fn table() -> String {
    let mut text = String::from(
        "The hooks are there from 5.10 on. Unless it says otherwise, each row is what a test in `tests/bypass` shows.\n\n\
         | bypass | | by what, or why not |\n| --- | --- | --- |\n",
    );
    let several: Vec<_> = several().collect();
    for outcome in [
        Outcome::NotStopped,
        Outcome::Gap,
        Outcome::AtInterface,
        Outcome::AtPodInterface,
        Outcome::Stopped,
    ] {
        let untried = UNTRIED.iter().map(|row| (row, ", no test"));
        let tried = TECHNIQUES.iter().chain(&several).map(|row| (row, ""));
        for (row, mark) in untried
            .chain(tried)
            .filter(|(row, _)| row.outcome == outcome)
        {
            let says = match outcome {
                Outcome::NotStopped => "**not stopped**",
                Outcome::Gap => "**not stopped yet**",
                Outcome::AtInterface => "stopped with `--interface`",
                Outcome::AtPodInterface => "stopped with `--pod-interfaces`",
                Outcome::Stopped => "stopped",
            };
            writeln!(text, "| {} | {says}{mark} | {} |", row.name, row.why).unwrap();
        }
    }
    text
}

#[test]
fn the_page_on_security_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let wanted = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("EGRESS_BLESS").is_some() {
        fs::write(path, wanted).unwrap();
        return;
    }
    assert!(
        readme == wanted,
        "the table of docs/security.md is stale: run `cargo xtask docs`"
    );
}
