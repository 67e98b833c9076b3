//! docs/reasons.md is made from the tables of reasons and causes. `EGRESS_BLESS=1` writes it.

use std::{fs, path::Path};

use egress_agent::api::report::Cause;
use egress_common::verdict::Reason;

/// The page.
fn page() -> String {
    let mut page = String::from(
        "<!-- Made from the tables in the code by `cargo xtask docs`: do not edit. -->\n\n\
         # Reasons\n\n\
         Every verdict has one. The word is the same in `flows`, `counters`, `explain`, in JSON, and in the label `reason` of\n\
         `egress_verdicts_total`; the number is the one that the programs in the kernel count under.\n",
    );
    let table = |page: &mut String, title: &str, allows: bool| {
        page.push_str(&format!(
            "\n## {title}\n\n| number | word | meaning | what to do |\n| ---: | --- | --- | --- |\n"
        ));
        for reason in Reason::ALL
            .iter()
            .filter(|reason| reason.allows() == allows)
        {
            page.push_str(&format!(
                "| {} | `{}` | {} | {} |\n",
                *reason as u8,
                reason.name(),
                reason.words(),
                reason.advice()
            ));
        }
    };
    table(&mut page, "Denied, or would be under `mode: audit`", false);
    table(&mut page, "Allowed; what to do if it should not be", true);
    page.push_str(
        "\n## What `explain` finds behind a denial\n\n\
         The kernel knows addresses. `egress-agent explain` also looks at the rules near what was asked for, at what the scope\n\
         and others resolved, and at answers that taught nothing.\n\n\
         | word | meaning | what to do |\n| --- | --- | --- |\n",
    );
    for cause in Cause::ALL {
        page.push_str(&format!(
            "| `{}` | {} | {} |\n",
            cause.name(),
            cause.words(),
            cause.advice()
        ));
    }
    page
}

#[test]
fn the_page_of_reasons_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reasons.md");
    let page = page();
    if std::env::var_os("EGRESS_BLESS").is_some() {
        fs::write(&path, &page).expect("writes");
    }
    let there = fs::read_to_string(&path).expect("docs/reasons.md");
    assert!(
        there == page,
        "docs/reasons.md is stale: `cargo xtask docs` makes it anew"
    );
}

#[test]
fn every_reason_and_cause_has_one_line_of_each() {
    let reasons = Reason::ALL
        .iter()
        .map(|one| (one.name(), one.words(), one.advice()));
    let causes = Cause::ALL
        .iter()
        .map(|one| (one.name(), one.words(), one.advice()));
    for (name, words, advice) in reasons.chain(causes) {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        assert!(name.bytes().all(is_word), "{name}");
        for text in [words, advice] {
            assert!(!text.is_empty() && !text.ends_with('.'), "{name}: {text}");
            assert!(!text.contains(['|', '\n']), "{name}: {text}");
        }
    }
}
