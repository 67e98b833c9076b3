//! The page about presets, `docs/presets.md`.
//!
//! `cargo xtask docs` writes it anew.

use std::{fmt::Write as _, fs, path::Path};

use super::super::{Condition, Preset, Presets};

const HEAD: &str = "\
# Presets

<!-- Written by `cargo xtask docs` from egress-policy/presets. -->

Rules that many people need, under a name. In a policy:

```yaml
allow:
  - preset: aks/azure-global
    with: { location: eastus }
```

`egress-agent preset list` shows them, `egress-agent preset show NAME --with VARIABLE=VALUE` what one stands for. A folder given with
`--preset-dir` adds presets, and replaces those of the same name: `aks/azure-global.yaml` in it takes the place of `aks/azure-global`.
Under `deny` the names of a preset are denied on every port.

What a document makes conditional is a variable, and closed unless you say so, but for what nodes of a public cluster need. A
variable that only counts under a condition may be given only then. Values that the documents leave open, such as the names of your
vaults, are variables too.

";

fn page() -> String {
    let presets = Presets::default();
    let mut page = HEAD.to_owned();
    page.push_str("| preset | for |\n| --- | --- |\n");
    for preset in presets.all() {
        let anchor: String = preset.name.chars().filter(|c| *c != '/').collect();
        writeln!(
            page,
            "| [{}](#{anchor}) | {} |",
            preset.name,
            cell(&preset.description)
        )
        .unwrap();
    }
    for preset in presets.all() {
        section(&mut page, preset);
    }
    page
}

fn section(page: &mut String, preset: &Preset) {
    writeln!(
        page,
        "\n## {}\n\n{}.\n",
        preset.name,
        cell(&preset.description)
    )
    .unwrap();
    for source in &preset.sources {
        writeln!(
            page,
            "From \"{}\"{}.",
            cell(&source.document),
            match source.tables.as_slice() {
                [] => ", in prose".to_owned(),
                tables => format!(": {}", cell(&tables.join("; "))),
            }
        )
        .unwrap();
    }
    if !preset.variables.is_empty() {
        page.push_str("\n| variable | type | default | |\n| --- | --- | --- | --- |\n");
        for variable in &preset.variables {
            let default = match &variable.default {
                Some(texts) if !texts.is_empty() => code(texts),
                _ => variable.default_text(),
            };
            let when = condition("Only when ", &variable.when);
            let description = cell(&variable.description);
            let kind = cell(&variable.type_text());
            let text = format!("{description}. {when}");
            let (name, text) = (&variable.name, text.trim());
            writeln!(page, "| `{name}` | {kind} | {default} | {text} |").unwrap();
        }
    }
    if !preset.entries.is_empty() {
        page.push_str("\n| destination | ports | for |\n| --- | --- | --- |\n");
        for entry in &preset.entries {
            let mut destinations: Vec<String> = Vec::new();
            for (lead, list) in [
                ("", &entry.names),
                ("", &entry.cidrs),
                ("service tag ", &entry.service_tags),
            ] {
                destinations.extend(list.iter().map(|text| format!("{lead}`{text}`")));
            }
            let when = condition("When ", &entry.when);
            let note = entry
                .note
                .as_ref()
                .map(|note| format!("{}. ", cell(note)))
                .unwrap_or_default();
            let description = cell(&entry.description);
            let ports = entry.ports.join(", ");
            let text = format!("{description}. {when}{note}");
            writeln!(
                page,
                "| {} | {ports} | {} |",
                destinations.join(", "),
                text.trim()
            )
            .unwrap();
        }
    }
    for include in &preset.includes {
        let when = condition("When ", &include.when);
        let text = format!(
            "\nIncludes `{}`. {}. {when}",
            include.preset,
            cell(&include.description)
        );
        writeln!(page, "{}", text.trim_end()).unwrap();
    }
}

fn condition(lead: &str, condition: &Condition) -> String {
    if condition.is_always() {
        return String::new();
    }
    let parts = condition
        .0
        .iter()
        .map(|(name, wanted)| format!("`{name}` is {}", wanted.join(" or ")));
    format!("{lead}{}. ", parts.collect::<Vec<_>>().join(", "))
}

fn code(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("`{text}`")).collect();
    texts.join(", ")
}

/// Text within a table: nothing in it is taken for a mark.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('*', "\\*")
        .replace('<', "\\<")
}

#[test]
fn the_page_about_presets_is_as_the_data() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/presets.md");
    let page = page();
    if std::env::var_os("EGRESS_BLESS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/presets.md is stale: run `cargo xtask docs`"
    );
}
