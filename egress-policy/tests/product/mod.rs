//! The product code of a crate, and what of its own modules it imports: for the tests of who may import whom, here and in
//! egress-agent.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The files with product code below a folder.
pub(crate) fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let of_tests = ["tests", "testing"];
        if of_tests
            .iter()
            .any(|name| path.file_stem().is_some_and(|stem| stem == *name))
        {
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
pub(crate) fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// What a text names of the crate's root: `crate::name` and the names in `crate::{…}`.
pub(crate) fn imports(code: &str) -> BTreeSet<String> {
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
