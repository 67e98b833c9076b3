//! Reads a folder of presets.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{decode::name_of, error::PresetError, library::Presets};
use crate::read::{Place, PolicyErrors, Problem, Report, read_text, unreadable};

/// Largest file of a preset.
const MAX_PRESET_BYTES: u64 = 1024 * 1024;

/// Most files and folders in a folder of presets.
const MAX_FILES: usize = 1_000;

impl Presets {
    /// The presets in the binary, and those of a folder: `aks/azure-global.yaml` below it is `aks/azure-global`. Of the
    /// same name the folder's wins. Names that start with a dot are left out.
    ///
    /// # Errors
    /// The folder or its files are wrong.
    pub fn with_folder(folder: &Path) -> Result<Self, PolicyErrors> {
        let mut report = Report::default();
        let files = match files_below(folder) {
            Ok(Some(files)) if files.is_empty() => Err(PresetError::EmptyFolder.into()),
            Ok(Some(files)) => Ok(files),
            Ok(None) => Err(PresetError::LargeFolder(MAX_FILES).into()),
            Err(error) => Err(unreadable(&error).into()),
        };
        let files =
            files.map_err(|problem: Problem| PolicyErrors::one(Place::file(folder), problem))?;
        let mut texts: Vec<(String, PathBuf, String)> = Vec::new();
        for file in files {
            let relative = file.strip_prefix(folder).unwrap_or(&file);
            let name = match name_of(relative) {
                Ok(name) => name,
                Err(problem) => {
                    report.add(Place::file(&file), problem);
                    continue;
                }
            };
            if let Some((_, other, _)) = texts.iter().find(|(known, _, _)| *known == name) {
                let other = other.display().to_string();
                report.add(Place::file(&file), PresetError::SameName { name, other });
                continue;
            }
            let text = read_text(file, MAX_PRESET_BYTES, &mut report);
            texts.extend(text.map(|(file, text)| (name, file, text)));
        }
        report.finish(())?;
        Self::with_texts(texts)
    }
}

/// The `*.yaml` and `*.yml` files below a folder, sorted. `None` if there is too much in it.
pub(crate) fn files_below(folder: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    let mut seen = HashSet::new();
    let mut count = 0_usize;
    while let Some(folder) = folders.pop() {
        // A symlink may lead back.
        if !seen.insert(fs::canonicalize(&folder)?) {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            count = count.saturating_add(1);
            if count > MAX_FILES {
                return Ok(None);
            }
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let ending = path.extension().unwrap_or_default();
            if fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                folders.push(path);
            } else if ending == "yaml" || ending == "yml" {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(Some(files))
}
