//! Presets: rules under a name, for which a rule stands with `preset: NAME`.

use super::error::{Problem, quoted};

/// The presets that rules may name.
#[derive(Clone, Debug, Default)]
pub struct Presets;

impl Presets {
    /// What is wrong with a name that none of them has.
    pub(super) fn unknown(&self, name: &str) -> Problem {
        Problem::UnknownPreset {
            name: quoted(name),
            nearest: None,
            known: "none".to_owned(),
        }
    }
}
