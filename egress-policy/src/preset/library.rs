//! All presets: those in the binary, and those of a folder in front of them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use super::{
    decode::decode,
    embedded::EMBEDDED,
    error::PresetError,
    expand::unknown_variable,
    model::{Include, Origin, Preset},
};
use crate::{
    read::{Place, PolicyErrors, Problem, Report},
    vocabulary::quoted,
};

/// Presets by name.
#[derive(Clone, Debug)]
pub struct Presets(Arc<BTreeMap<String, Preset>>);

impl Default for Presets {
    /// Those in the binary.
    fn default() -> Self {
        static BUILT_IN: LazyLock<Presets> =
            LazyLock::new(|| built_in().expect("the presets in the binary are checked by a test"));
        BUILT_IN.clone()
    }
}

/// Reads those in the binary.
fn built_in() -> Result<Presets, PolicyErrors> {
    let mut report = Report::default();
    let mut by_name = BTreeMap::new();
    for (name, text) in EMBEDDED {
        if let Some(preset) = decode(name, Origin::BuiltIn, text, &mut report) {
            by_name.insert((*name).to_owned(), preset);
        }
    }
    report.finish(())?;
    Presets::checked(by_name)
}

impl Presets {
    /// Those in the binary, and those of texts with their names and files, which win.
    ///
    /// # Errors
    /// The texts are wrong, or includes go in circles.
    pub(super) fn with_texts(texts: Vec<(String, PathBuf, String)>) -> Result<Self, PolicyErrors> {
        let mut report = Report::default();
        let mut by_name = BTreeMap::clone(&Self::default().0);
        for (name, file, text) in texts {
            let preset = decode(&name, Origin::File(file), &text, &mut report);
            by_name.extend(preset.map(|preset| (name, preset)));
        }
        report.finish(())?;
        Self::checked(by_name)
    }

    /// Presets whose includes exist and end.
    pub(super) fn checked(by_name: BTreeMap<String, Preset>) -> Result<Self, PolicyErrors> {
        let presets = Self(Arc::new(by_name));
        let mut report = Report::default();
        for preset in presets.all() {
            for (index, include) in preset.includes.iter().enumerate() {
                if let Some((field, problem)) = presets.wrong_include(preset, include) {
                    let file = preset.origin.path(&preset.name);
                    let field = format!("include[{index}].{field}");
                    report.add(Place::field(&file, include.line, field), problem);
                }
            }
        }
        report.finish(presets)
    }

    /// All presets, by name.
    pub fn all(&self) -> impl Iterator<Item = &Preset> {
        self.0.values()
    }

    /// The preset of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Preset> {
        self.0.get(name)
    }

    /// The error of a name that none of them has.
    #[must_use]
    pub fn unknown(&self, name: &str) -> Problem {
        let problem = PresetError::Unknown {
            name: quoted(name),
            nearest: self.nearest(name).map(str::to_owned),
        };
        problem.into()
    }

    /// The preset that ends like this name, or whose name is most like it.
    fn nearest(&self, name: &str) -> Option<&str> {
        const ALIKE: f64 = 0.9;
        let name = name.to_lowercase();
        let likeness = |known: &str| {
            let last = known.rsplit('/').next().unwrap_or(known);
            strsim::jaro_winkler(&name, known).max(strsim::jaro_winkler(&name, last))
        };
        let scored = self.0.keys().map(|known| (likeness(known), known.as_str()));
        scored
            .filter(|(likeness, _)| *likeness > ALIKE)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, known)| known)
    }

    fn wrong_include(&self, preset: &Preset, include: &Include) -> Option<(String, Problem)> {
        let Some(included) = self.get(&include.preset) else {
            return Some(("preset".to_owned(), self.unknown(&include.preset)));
        };
        let unknown = include
            .with
            .iter()
            .find(|(name, _)| included.variable(name).is_none());
        if let Some((name, _)) = unknown {
            let problem = unknown_variable(included, name);
            return Some((format!("with.{name}"), problem.into()));
        }
        let way = self.way(included, &preset.name, &mut Vec::new())?;
        // A loop is told once, at the first of its presets.
        if way.iter().any(|name| *name < preset.name.as_str()) {
            return None;
        }
        let way = [vec![preset.name.as_str()], way].concat().join(" > ");
        Some(("preset".to_owned(), PresetError::Loop(way).into()))
    }

    /// The includes that lead from a preset to the one of this name. Looks into each preset once.
    fn way<'p>(
        &'p self,
        from: &'p Preset,
        to: &str,
        seen: &mut Vec<&'p str>,
    ) -> Option<Vec<&'p str>> {
        if from.name == to {
            return Some(vec![&from.name]);
        }
        if seen.contains(&from.name.as_str()) {
            return None;
        }
        seen.push(&from.name);
        from.includes.iter().find_map(|include| {
            let mut way = self.way(self.get(&include.preset)?, to, seen)?;
            way.insert(0, &from.name);
            Some(way)
        })
    }

    /// The same presets with another in place of one, for tests of what is missed.
    #[cfg(test)]
    pub(super) fn replaced(&self, preset: Preset) -> Self {
        let mut by_name = BTreeMap::clone(&self.0);
        by_name.insert(preset.name.clone(), preset);
        Self(Arc::new(by_name))
    }
}
