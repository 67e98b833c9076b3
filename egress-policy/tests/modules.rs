//! ARCHITECTURE.md lists the folders of this crate, and none imports one that stands below it there.

#![allow(clippy::unwrap_used, reason = "tests panic")]

mod product;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use product::{code, files, imports};

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The row of each folder in the table.
fn rows() -> BTreeMap<String, usize> {
    let page = sources().join("../../ARCHITECTURE.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("\nIn `egress-policy`, where").unwrap();
    let (_, table) = section.split_once("| --- | --- |\n").unwrap();
    let names = table.lines().take_while(|line| !line.is_empty());
    let names = names.map(|line| line.split('`').nth(1).unwrap().to_owned());
    names.enumerate().map(|(row, name)| (name, row)).collect()
}

/// The most `super` in a row that a text has.
fn steps_up(code: &str) -> usize {
    let parts = code.split(|letter: char| !(letter.is_alphanumeric() || "_:".contains(letter)));
    let steps = parts.map(|path| path.matches("super::").count());
    steps.max().unwrap_or(0)
}

#[test]
fn no_folder_imports_one_that_stands_below_it() {
    let rows = rows();
    let library = fs::read_to_string(sources().join("lib.rs")).unwrap();
    let modules = code(&library);
    let modules = modules.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    let modules: BTreeSet<&str> = modules.collect();
    let listed: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    let of_tests = BTreeSet::from(["golden", "tests"]);
    assert_eq!(&modules - &of_tests, listed);

    let mut edges = 0_u32;
    for (folder, row) in &rows {
        let mut found = Vec::new();
        files(&sources().join(folder), &mut found);
        for path in found {
            let code = code(&fs::read_to_string(&path).unwrap());
            let shown = path.display();
            for import in imports(&code) {
                // All that is not of the folder itself says which folder it is of, none comes by way of the root.
                let its_row = rows.get(&import);
                let its_row = its_row.unwrap_or_else(|| panic!("{shown}: crate::{import}"));
                assert!(its_row <= row, "{shown}: {folder} imports {import}");
                edges = edges.saturating_add(1);
            }
            let inside = path.strip_prefix(sources().join(folder)).unwrap();
            let is_root = path.file_name().is_some_and(|name| name == "mod.rs");
            let depth = inside.components().count();
            let depth = if is_root {
                depth.saturating_sub(1)
            } else {
                depth
            };
            assert!(steps_up(&code) <= depth, "{shown} goes up to the root");
        }
    }
    assert!(edges > 50, "{edges}");
}
