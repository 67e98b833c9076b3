//! Reads policy files and folders, and what the catalog is made of. The only part of the module that touches the file system.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    catalog::{Catalog, CatalogSources},
    error::DocumentError,
    service_tags::{MAX_SERVICE_TAGS_BYTES, ServiceTagError, ServiceTags},
    set::PolicySet,
};
use crate::{
    preset::{self, Presets},
    read::{Files, Place, PolicyErrors, Problem, Report, read_bounded, text_of, unreadable},
    vocabulary::quoted,
};

/// Reads and checks the policies of one node from files and folders. Their rules may refer to what is in the catalog.
///
/// # Errors
/// As of [`load_any`], and policies that are for what only a cluster knows.
pub fn load(paths: &[PathBuf], catalog: &Catalog) -> Result<PolicySet, PolicyErrors> {
    let set = load_any(paths, catalog)?;
    let mut report = Report::default();
    for policy in set
        .policies()
        .iter()
        .filter(|policy| policy.document.selects())
    {
        report.add(
            Place::field(&policy.file, policy.line, ""),
            DocumentError::Selects {
                name: quoted(policy.name()),
                subjects: policy.document.subjects(),
            },
        );
    }
    report.finish(set)
}

/// Reads and checks policies from files and folders, whomever they are for.
///
/// Of a folder: every `*.yaml` and `*.yml` directly in it, sorted, without
/// names that start with a dot, so that a ConfigMap volume (whose files are
/// symlinks into `..data`) is read once.
///
/// # Errors
/// Everything that is wrong: files that cannot be read, bad policies, a file,
/// a file name or a policy name that occurs twice, an empty folder.
pub fn load_any(paths: &[PathBuf], catalog: &Catalog) -> Result<PolicySet, PolicyErrors> {
    if paths.is_empty() {
        return Err(PolicyErrors::one(
            Place::file(Path::new("--policy")),
            DocumentError::NoFiles,
        ));
    }
    let mut report = Report::default();
    let mut texts = Vec::new();
    let (mut files, mut named) = (Files::default(), HashMap::new());
    for path in paths {
        for file in files_of(path, &mut report) {
            let bytes = files.read(&file);
            let name = file.file_name().map(ToOwned::to_owned);
            if bytes.is_ok()
                && let Some(first) = named.insert(name, file.clone())
            {
                let problem = DocumentError::SameFileName(first.display().to_string());
                report.add(Place::file(&file), problem);
            }
            texts.extend(text_of(file, bytes, &mut report));
        }
    }
    let named = texts
        .iter()
        .map(|(file, text)| (file.as_path(), text.as_str()));
    match PolicySet::from_texts(named, catalog) {
        Ok(set) => report.finish(set),
        Err(errors) => {
            report.extend(errors);
            report.finish(PolicySet::default())
        }
    }
}

impl CatalogSources {
    /// Reads the catalog.
    ///
    /// # Errors
    /// Its files are wrong.
    pub fn load(&self) -> Result<Catalog, PolicyErrors> {
        let service_tags = self.service_tags.as_deref().map(load_service_tags);
        let catalog = Catalog::new(service_tags.transpose()?);
        match &self.preset_dir {
            Some(folder) => Ok(catalog.with_presets(Presets::with_folder(folder)?)),
            None => Ok(catalog),
        }
    }

    /// The files that it is read from now: when one comes, goes or changes, the catalog does.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let folder = self.preset_dir.as_deref().map(preset::files_below);
        let presets = folder.and_then(|files| files.ok().flatten());
        let service_tags = self.service_tags.iter().cloned();
        service_tags.chain(presets.unwrap_or_default()).collect()
    }
}

fn load_service_tags(file: &Path) -> Result<ServiceTags, PolicyErrors> {
    let wrong = |problem: Problem| PolicyErrors::one(Place::file(file), problem);
    let bytes = read_bounded(file, MAX_SERVICE_TAGS_BYTES)
        .map_err(|error| wrong(unreadable(&error).into()))?
        .ok_or_else(|| wrong(ServiceTagError::TooLarge(MAX_SERVICE_TAGS_BYTES).into()))?;
    let modified = fs::metadata(file).and_then(|metadata| metadata.modified());
    ServiceTags::parse(file, &bytes, modified.ok())
}

/// The files that a path stands for.
fn files_of(path: &Path, report: &mut Report) -> Vec<PathBuf> {
    match list(path) {
        Ok(Some(files)) => {
            if files.is_empty() {
                report.add(Place::file(path), DocumentError::EmptyFolder);
            }
            files
        }
        Ok(None) => vec![path.to_owned()],
        Err(error) => {
            report.add(Place::file(path), unreadable(&error));
            Vec::new()
        }
    }
}

/// The policy files of a folder, or `None` if the path is no folder.
fn list(path: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(None);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let is_hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_yaml = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        // A broken symlink stays in, so that reading it tells.
        let is_file = fs::metadata(&file).is_ok_and(|metadata| metadata.is_file());
        let is_broken = fs::metadata(&file).is_err();
        if !is_hidden && is_yaml && (is_file || is_broken) {
            files.push(file);
        }
    }
    files.sort();
    Ok(Some(files))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::symlink};

    use super::*;
    use crate::read::{MAX_BYTES, ReadError};

    fn load(paths: &[PathBuf]) -> Result<PolicySet, PolicyErrors> {
        super::load(paths, &Catalog::default())
    }

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: {name} }}\nspec: {{}}\n"
        )
    }

    fn names(set: &PolicySet) -> Vec<&str> {
        set.policies().iter().map(|policy| policy.name()).collect()
    }

    #[test]
    fn policies_of_a_cluster_are_none_of_a_node() {
        let folder = tempfile::tempdir().unwrap();
        let text = |kind: &str, spec: &str, namespace: &str| {
            format!(
                "apiVersion: egress.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: a, namespace: {namespace} }}\n\
                 spec: {spec}\n"
            )
        };
        let of_cluster = [
            text("EgressPolicy", "{ podSelector: {} }", "shop"),
            text(
                "EgressPolicy",
                "{ podSelector: { matchLabels: { app: pay } } }",
                "pay",
            ),
            text("ClusterEgressPolicy", "{}", "shop").replace(", namespace: shop", ""),
        ];
        let file = folder.path().join("a.yaml");
        fs::write(&file, of_cluster.join("---\n")).unwrap();
        let errors = load(std::slice::from_ref(&file)).unwrap_err().to_string();
        let wanted = [
            "a.yaml:1: policy \"a\" is for all pods in shop,",
            "a.yaml:6: policy \"a\" is for pods app=pay in pay,",
            "a.yaml:11: policy \"a\" is for all pods,",
        ];
        assert_eq!(errors.lines().count(), 3, "{errors}");
        for (line, wanted) in errors.lines().zip(wanted) {
            assert!(line.contains(wanted), "{errors}");
        }
        // Of one name, and all different for an API server.
        let set = super::load_any(std::slice::from_ref(&file), &Catalog::default()).unwrap();
        let (of_node, alone) = set.by_subjects();
        assert_eq!((of_node.policies().len(), alone.len()), (0, 3));
        fs::write(&file, text("EgressPolicy", "{}", "shop")).unwrap();
        assert_eq!(
            load(std::slice::from_ref(&file)).unwrap().policies().len(),
            1
        );
        // For a node the namespace makes no difference.
        let twice = [
            text("EgressPolicy", "{}", "shop"),
            text("EgressPolicy", "{}", "pay"),
        ];
        fs::write(&file, twice.join("---\n")).unwrap();
        let errors = load(&[file]).unwrap_err().to_string();
        assert!(errors.contains("already defined"), "{errors}");
    }

    #[test]
    fn a_folder_is_read_in_order_without_hidden_and_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        write("b.yaml", &policy("b"));
        write("a.yml", &policy("a"));
        write(
            "c.yaml",
            &format!("{}---\n{}---\n", policy("c1"), policy("c2")),
        );
        write(".hidden.yaml", "not a policy");
        write("notes.txt", "not a policy");
        fs::create_dir(folder.path().join("sub.yaml")).unwrap();
        let set = load(&[folder.path().to_owned()]).unwrap();
        assert_eq!(names(&set), ["a", "b", "c1", "c2"]);
        assert_eq!(set.policies()[0].file, folder.path().join("a.yml"));
        assert_eq!(set.policies()[3].line, 6);
    }

    #[test]
    fn a_config_map_volume_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("..2026_01_01");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("node.yaml"), policy("node")).unwrap();
        symlink("..2026_01_01", folder.path().join("..data")).unwrap();
        symlink("..data/node.yaml", folder.path().join("node.yaml")).unwrap();
        assert_eq!(names(&load(&[folder.path().to_owned()]).unwrap()), ["node"]);
    }

    #[test]
    fn every_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        fs::write(at("a.yaml"), policy("a")).unwrap();
        symlink("a.yaml", at("link.yaml")).unwrap();
        symlink("nowhere", at("broken.yaml")).unwrap();
        fs::write(at("latin.yaml"), b"\xe4").unwrap();
        fs::write(at("twice.yaml"), policy("a")).unwrap();
        let errors = load(&[folder.path().to_owned(), at("missing.yaml")]).unwrap_err();
        let root = folder.path().display().to_string();
        assert_eq!(
            errors.to_string().replace(&root, "F"),
            "F/broken.yaml: cannot be read: no such file or directory; check the path and its permissions\n\
             F/latin.yaml:1: is not UTF-8 text; save the file as UTF-8\n\
             F/link.yaml: is the same file as F/a.yaml; give it once\n\
             F/missing.yaml: cannot be read: no such file or directory; check the path and its permissions\n\
             F/twice.yaml:1: metadata.name: policy \"a\" is already defined at F/a.yaml:1; rename one of them"
        );
    }

    #[test]
    fn an_empty_folder_and_no_path_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let errors = load(&[folder.path().to_owned()]).unwrap_err();
        let root = folder.path().display().to_string();
        assert_eq!(
            errors.to_string().replace(&root, "F"),
            "F: holds no *.yaml or *.yml file; put at least one policy there"
        );
        assert_eq!(
            load(&[]).unwrap_err().to_string(),
            "--policy: no policy file was given; name at least one file or folder"
        );
    }

    #[test]
    fn a_file_that_is_too_large_is_not_parsed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.yaml");
        File::create(&path).unwrap().set_len(100_000_000).unwrap();
        let errors = load(std::slice::from_ref(&path)).unwrap_err();
        assert_eq!(
            errors.to_string(),
            format!(
                "{}: goes beyond the 32 MiB that may be read; leave out what is not needed",
                path.display()
            )
        );
    }

    #[test]
    fn the_limit_is_for_all_files_together() {
        let folder = tempfile::tempdir().unwrap();
        // Zeros, so that the file that is read is refused at its first byte.
        for file in ["a.yaml", "b.yaml", "c.yaml"] {
            let path = folder.path().join(file);
            File::create(path).unwrap().set_len(17 << 20).unwrap();
        }
        let errors = load(&[folder.path().to_owned()]).unwrap_err();
        let mut problems: Vec<_> = errors.errors().to_vec();
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        let problems: Vec<_> = problems.iter().map(|error| &error.problem).collect();
        let too_large = Problem::from(ReadError::TooLarge(MAX_BYTES));
        let control = Problem::from(ReadError::Control(0));
        assert_eq!(problems, [&control, &too_large, &too_large]);
    }

    #[test]
    fn two_folders_with_one_file_name_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        for (part, name) in [("one", "a"), ("two", "b")] {
            fs::create_dir(at(part)).unwrap();
            fs::write(at(part).join("node.yaml"), policy(name)).unwrap();
        }
        let errors = load(&[at("one"), at("two")]).unwrap_err();
        let root = folder.path().display().to_string();
        assert_eq!(
            errors.to_string().replace(&root, "F"),
            "F/two/node.yaml: has the same file name as F/one/node.yaml, and messages would not tell them apart; rename one of them"
        );
        fs::rename(at("two/node.yaml"), at("two/other.yaml")).unwrap();
        assert_eq!(names(&load(&[at("one"), at("two")]).unwrap()), ["a", "b"]);
    }

    #[test]
    fn other_encodings_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        let text = policy("a");
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for (bytes, message) in [
            ([b"\xff\xfe", little.as_slice()].concat(), "is UTF-16 text"),
            ([b"\xfe\xff", big.as_slice()].concat(), "is UTF-16 text"),
            (little, "holds the byte 0x00"),
            (big, "holds the byte 0x00"),
            (
                text.replace("spec", "sp\u{e9}c").into_bytes(),
                "unknown field",
            ),
        ] {
            fs::write(&path, &bytes).unwrap();
            let errors = load(std::slice::from_ref(&path)).unwrap_err().to_string();
            assert!(errors.contains(message), "{errors}");
        }
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.yaml");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [path.as_path(), Path::new("/dev/zero")] {
            let errors = load(&[path.to_owned()]).unwrap_err();
            assert_eq!(
                errors.to_string(),
                format!(
                    "{}: cannot be read: it is neither a file nor a folder; check the path and its permissions",
                    path.display()
                )
            );
        }
    }
}
