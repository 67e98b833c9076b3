//! The table of modules in ARCHITECTURE.md has all of them, and what it says of who imports whom is so.

#![allow(clippy::unwrap_used, reason = "tests panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

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

/// The files with product code below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if ["tests", "testing"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules of the crate that a text names: `crate::name` and those of `crate::{…}`.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: String = code
        .lines()
        .map(|line| line.split("//").next().unwrap().to_owned() + "\n")
        .collect();
    let word = |text: &str| -> String {
        let is_part = |letter: &char| letter.is_alphanumeric() || *letter == '_';
        text.trim_start().chars().take_while(is_part).collect()
    };
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        found.insert(word(group));
        let mut depth = 1_u32;
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth = depth.saturating_add(1),
                '}' if depth == 1 => break,
                '}' => depth = depth.saturating_sub(1),
                ',' if depth == 1 => {
                    let next = group.get(at..).unwrap().trim_start_matches(',');
                    found.insert(word(next));
                }
                _ => {}
            }
        }
    }
    found
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
        for import in imports(&fs::read_to_string(&path).unwrap()) {
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
