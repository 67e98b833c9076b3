//! Folders of presets.

use std::{fs, os::unix::fs::symlink, path::Path};

use super::{super::Presets, SITE, destinations, given};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// What is wrong with the folder, without its path.
fn errors(folder: &Path) -> String {
    let errors = Presets::with_folder(folder).unwrap_err().to_string();
    errors.replace(&folder.display().to_string(), "F")
}

const SMALL: &str = "description: Small\nrules:\n  - description: One\n    names: [one.example.com]\n    ports: [443/tcp]\n";

#[test]
fn a_preset_of_the_folder_wins_and_others_come_with_it() {
    let folder = folder(&[
        ("aks/azure-global.yaml", SMALL),
        ("team/shop.yml", SMALL),
        ("notes.txt", "no preset"),
        (".git/config.yaml", "no preset"),
    ]);
    let presets = Presets::with_folder(folder.path()).unwrap();
    for name in ["aks/azure-global", "team/shop"] {
        let expansion = presets.expand(name, &[], SITE).unwrap();
        assert_eq!(
            destinations(&expansion),
            ["one.example.com 443/tcp".to_owned()].into()
        );
    }
    assert_eq!(presets.all().count(), Presets::default().all().count() + 1);
    let file = presets.get("team/shop").unwrap().origin.file().unwrap();
    assert_eq!(file, folder.path().join("team/shop.yml"));
    assert!(
        presets
            .get("aks/us-government")
            .unwrap()
            .origin
            .file()
            .is_none()
    );
}

#[test]
fn a_preset_in_the_binary_includes_the_one_of_the_folder() {
    let text = "description: Mine\nvariables:\n  cloud: { type: label, description: Any, default: x }\n  vaults: { type: names, default: [], description: Any }\nrules:\n  - description: One\n    names: [\"<cloud>.example.com\"]\n    ports: [443/tcp]\n";
    let folder = folder(&[("aks/addon/key-vault.yaml", text)]);
    let presets = Presets::with_folder(folder.path()).unwrap();
    let expansion = presets
        .expand("aks/addon/istio", &given(&["cloud=us-government"]), SITE)
        .unwrap();
    assert_eq!(
        destinations(&expansion),
        ["us-government.example.com 443/tcp".to_owned()].into()
    );
}

#[test]
fn a_config_map_volume_is_read_once() {
    let folder = folder(&[("..2026_01_01/aks/mine.yaml", SMALL)]);
    symlink("..2026_01_01", folder.path().join("..data")).unwrap();
    symlink("..data/aks", folder.path().join("aks")).unwrap();
    let presets = Presets::with_folder(folder.path()).unwrap();
    assert!(presets.get("aks/mine").is_some());
}

#[test]
fn a_symlink_that_leads_back_ends() {
    let folder = folder(&[("a/one.yaml", SMALL)]);
    symlink(folder.path(), folder.path().join("a/back")).unwrap();
    let presets = Presets::with_folder(folder.path()).unwrap();
    assert!(presets.get("a/one").is_some());
}

#[test]
fn folders_that_cannot_be_used_are_refused() {
    let missing = tempfile::tempdir().unwrap().path().join("missing");
    assert_eq!(
        errors(&missing),
        "F: cannot be read: no such file or directory; check the path and its permissions"
    );
    let empty = folder(&[("a/notes.txt", "")]);
    assert_eq!(
        errors(empty.path()),
        "F: holds no preset; put one there, such as aks/azure-global.yaml"
    );
    let names = folder(&[
        ("Team/a.yaml", SMALL),
        ("a b.yaml", SMALL),
        ("c.yaml", SMALL),
        ("c.yml", SMALL),
    ]);
    assert_eq!(
        errors(names.path()),
        "F/Team/a.yaml: \"Team/a.yaml\" is not a preset name; name folders and files with lower-case letters, digits and -, as in aks/azure-global.yaml\n\
         F/a b.yaml: \"a b.yaml\" is not a preset name; name folders and files with lower-case letters, digits and -, as in aks/azure-global.yaml\n\
         F/c.yml: is preset c as well as F/c.yaml; keep one of them"
    );
    let large = folder(&[("a.yaml", "")]);
    fs::File::create(large.path().join("a.yaml"))
        .unwrap()
        .set_len(2_000_000)
        .unwrap();
    assert_eq!(
        errors(large.path()),
        "F/a.yaml: goes beyond the 1 MiB that may be read; leave out what is not needed"
    );
    let many = tempfile::tempdir().unwrap();
    for number in 0..=1_000 {
        fs::write(many.path().join(format!("{number}.yaml")), SMALL).unwrap();
    }
    assert_eq!(
        errors(many.path()),
        "F: holds more than 1000 files or folders; give the folder of the presets alone"
    );
}

#[test]
fn presets_that_include_each_other_are_refused_once_for_each_loop() {
    let include = |name: &str| {
        format!("description: Loop\ninclude:\n  - description: Other\n    preset: {name}\n")
    };
    let folder = folder(&[
        ("a.yaml", &include("b")),
        ("b.yaml", &include("c")),
        ("c.yaml", &include("b")),
        ("self.yaml", &include("self")),
        ("good.yaml", &include("aks/addon/gpu")),
    ]);
    assert_eq!(
        errors(folder.path()),
        "F/b.yaml:4: include[0].preset: includes itself: b > c > b; take one of these includes out\n\
         F/self.yaml:4: include[0].preset: includes itself: self > self; take one of these includes out"
    );
}

#[test]
fn presets_that_multiply_are_refused() {
    let mut files: Vec<(String, String)> = Vec::new();
    for level in 0..12 {
        let include = format!("  - {{ description: More, preset: level{} }}\n", level + 1);
        files.push((
            format!("level{level}.yaml"),
            format!("description: More\ninclude:\n{}", include.repeat(10)),
        ));
    }
    files.push(("level12.yaml".to_owned(), SMALL.to_owned()));
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let folder = folder(&files);
    let presets = Presets::with_folder(folder.path()).unwrap();
    let errors = presets.expand("level0", &[], SITE).unwrap_err().to_string();
    assert_eq!(
        errors,
        "NAME: preset level0 expands to more than 100000 destinations; split it, or shorten its lists"
    );
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_its_line() {
    for (text, message) in [
        (
            "",
            "F/a.yaml: holds 0 documents; a preset is one: make a file of each",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "F/a.yaml: holds 2 documents; a preset is one: make a file of each",
        ),
        ("rules: [", "F/a.yaml:2: is not valid YAML"),
        (
            "names: [a.example]\n",
            "F/a.yaml:1: names: unknown field \"names\"; the fields here are description, sources, variables, rules, include",
        ),
        (
            "description: A\n",
            "F/a.yaml:1: does nothing; write rules or an include",
        ),
        (
            "rules:\n  - names: [a.example]\n    description: A\n",
            "F/a.yaml:1: description: is missing; write description: What it is for",
        ),
        (
            "description: A\nrules:\n  - description: B\n    names: [\"a..example\"]\n",
            "F/a.yaml:4: rules[0].names[0]: \"a..example\" is not a name: a label is empty; write api.example.com or \"*.example.com\"",
        ),
        (
            "description: A\nrules:\n  - description: B\n    ports: [443]\n    names: [a.example]\n",
            "F/a.yaml:4: rules[0].ports[0]: ",
        ),
        (
            "description: A\nrules:\n  - description: B\n    ports: [443/tcp]\n",
            "F/a.yaml:3: rules[0]: names no destination",
        ),
        (
            "description: A\nrules:\n  - description: B\n    names: [\"<region>.example\"]\n",
            "F/a.yaml:4: rules[0].names[0]: \"<region>.example\" names \"region\", which is no variable of this preset; define it under variables",
        ),
        (
            "description: A\nvariables:\n  on: { type: bool, description: C }\nrules:\n  - description: B\n    names: [\"<on>.example\"]\n",
            "F/a.yaml:6: rules[0].names[0]: \"<on>.example\" uses on, which is bool; write when: { it: true }",
        ),
        (
            "description: A\nvariables:\n  dns: { type: cidrs, description: C }\nrules:\n  - description: B\n    names: [\"<dns>\"]\n",
            "F/a.yaml:6: rules[0].names[0]: \"<dns>\" uses dns, which is cidrs; write it alone, under cidrs",
        ),
        (
            "description: A\nvariables:\n  dns: { type: address, description: C }\nrules:\n  - description: B\n    names: [a.example]\n",
            "F/a.yaml:3: variables.dns.type: \"address\" is not known here; write region, label, name, names, cidrs, bool or choice",
        ),
        (
            "description: A\nvariables:\n  c: { type: choice, description: C }\nrules:\n  - description: B\n    names: [a.example]\n",
            "F/a.yaml:3: variables.c.choices: is missing; write choices: [one, another]",
        ),
        (
            "description: A\nvariables:\n  on: { type: bool, default: yes, description: C }\nrules:\n  - description: B\n    names: [a.example]\n",
            "F/a.yaml:3: variables.on.default: \"yes\" is not a value that exists here; write true or false",
        ),
        (
            "description: A\nrules:\n  - description: B\n    names: [a.example]\n    when: { on: true }\n",
            "F/a.yaml:5: rules[0].when.on: \"when: { on: .. }\" names \"on\", which is no variable above it; define it under variables",
        ),
        (
            "description: A\nvariables:\n  a: { type: label, description: C }\nrules:\n  - description: B\n    names: [a.example]\n    when: { a: x }\n",
            "F/a.yaml:7: rules[0].when.a: a is label, which a condition cannot test; take a bool or a choice",
        ),
        (
            "description: A\nvariables:\n  On: { type: bool, description: C }\nrules:\n  - description: B\n    names: [a.example]\n",
            "F/a.yaml:3: variables.On: \"On\" is not a variable's name; write letters and digits, starting with a lower-case letter",
        ),
        (
            "description: A\nrules:\n  - description: B\n    names: [\"<a.example\"]\n",
            "F/a.yaml:4: rules[0].names[0]: \"<a.example\" has < or > without the other; write <variable>",
        ),
        (
            "description: A\ninclude:\n  - description: B\n    preset: aks/addon/gpus\n",
            "F/a.yaml:4: include[0].preset: \"aks/addon/gpus\" is not a preset; write aks/addon/gpu: `egress-agent preset list` shows all",
        ),
        (
            "description: A\ninclude:\n  - description: B\n    preset: aks/addon/gpu\n    with: { cloud: x }\n",
            "F/a.yaml:4: include[0].with.cloud: preset aks/addon/gpu has no variable \"cloud\"; it has none: leave with out",
        ),
    ] {
        let folder = folder(&[("a.yaml", text)]);
        let errors = errors(folder.path());
        assert!(
            errors.starts_with(message),
            "{text}\nexpected {message}\nbut got  {errors}"
        );
    }
}
