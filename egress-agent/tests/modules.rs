//! The table of modules in ARCHITECTURE.md has all of them, and what it says of who imports whom is so.

#![allow(clippy::unwrap_used, reason = "tests panic")]

#[path = "../../egress-policy/tests/product/mod.rs"]
mod product;

use std::{collections::BTreeMap, fs, path::Path};

use product::{code, files, imports};

/// Modules that know each other, although they stand in different rows.
const KNOW_EACH_OTHER: &[(&str, &str)] = &[("workload", "datapath"), ("daemon", "cli")];

fn agent() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The row of each module in the table.
fn rows() -> BTreeMap<String, usize> {
    let page = fs::read_to_string(agent().join("../ARCHITECTURE.md")).unwrap();
    let (_, section) = page.split_once("\nIn `egress-agent`, where").unwrap();
    let (_, table) = section.split_once("| --- | --- |\n").unwrap();
    let mut rows = BTreeMap::new();
    for (row, line) in table
        .lines()
        .take_while(|line| !line.is_empty())
        .enumerate()
    {
        let first = line.split('|').nth(1).unwrap();
        for name in first.split('`').skip(1).step_by(2) {
            assert_eq!(rows.insert(name.to_owned(), row), None, "{name} twice");
        }
    }
    rows
}

#[test]
fn no_module_imports_one_that_stands_below_it() {
    let rows = rows();
    let library = fs::read_to_string(agent().join("src/lib.rs")).unwrap();
    let modules = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(rows.contains_key(module), "{module} is not in the table");
    }
    let mut sources = Vec::new();
    files(&agent().join("src"), &mut sources);
    let mut edges = 0_u32;
    for path in sources {
        let inside = path.strip_prefix(agent().join("src")).unwrap();
        let top = inside.iter().next().unwrap().to_str().unwrap();
        let module = top.strip_suffix(".rs").unwrap_or(top);
        let Some(row) = rows.get(module) else {
            continue;
        };
        for import in imports(&code(&fs::read_to_string(&path).unwrap())) {
            let Some(its_row) = rows.get(&import) else {
                continue;
            };
            edges = edges.saturating_add(1);
            let pair = (module, import.as_str());
            let is_known = KNOW_EACH_OTHER.contains(&pair);
            assert!(its_row <= row || is_known, "{}: {pair:?}", path.display());
        }
    }
    assert!(edges > 100, "{edges}");
}
