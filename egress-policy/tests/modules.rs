//! ARCHITECTURE.md lists the folders of this crate, and none imports one that stands below it there.

#![allow(clippy::unwrap_used, reason = "tests panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

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

/// The files with product code below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The text without comments and without its tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// What a text names of the crate's root: `crate::name` and the names in `crate::{…}`.
fn imports(code: &str) -> BTreeSet<String> {
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
    found.remove("");
    found
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
