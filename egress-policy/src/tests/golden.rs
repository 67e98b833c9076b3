//! Golden files: every bad policy below `testdata/bad` gets exactly the messages beside it.
//!
//! `EGRESS_BLESS=1 cargo test -p egress-policy golden` writes them anew.

use std::{fs, path::Path};

use crate::{
    compile::compile,
    document::{Catalog, PolicySet},
    vocabulary::Lifeline,
};

#[test]
fn every_bad_policy_gets_its_messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testdata/bad");
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    paths.sort();
    assert!(paths.len() >= 25, "{} bad policies", paths.len());
    let mut wrong = Vec::new();
    for path in paths {
        let name = Path::new(path.file_name().unwrap());
        let text = fs::read_to_string(&path).unwrap();
        let errors = PolicySet::from_texts([(name, text.as_str())], &Catalog::default())
            .and_then(|set| compile(&set, &Lifeline::new(), None))
            .expect_err(&path.display().to_string());
        let messages = format!("{errors}\n");
        let golden = path.with_extension("txt");
        let expected = crate::golden::golden(&golden, &messages);
        if messages != expected {
            wrong.push(format!(
                "{}: expected\n{expected}but got\n{messages}",
                name.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
