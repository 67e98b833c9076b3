//! Presets: rules under a name, for which a rule stands with `preset: NAME`.
//!
//! A preset is a YAML file: where it is from, typed variables, entries and other presets that it includes. Those in
//! `egress-policy/presets` are in the binary; a folder can add others and replace them. [`Presets`] holds all of them,
//! [`Presets::expand`] turns one and the values of its variables into plain rules.
//!
//! An entry, an include and a variable may have a condition (`when`) on other variables. What hangs on a variable that
//! does not apply does not apply either. In texts `<variable>` stands for its value; an item that is a list variable
//! alone stands for all its items, and an entry that is left without destinations is left out.

mod decode;
mod embedded;
mod error;
mod expand;
mod folder;
mod library;
mod model;
mod template;
mod value;
mod variables;

#[cfg(test)]
mod tests;

pub use error::PresetError;
pub use expand::{ExpandedRule, Expansion, Given, Site};
pub(crate) use folder::files_below;
pub use library::Presets;
pub use model::{Condition, Entry, Include, Origin, Preset, Source, Variable};
pub use value::Kind;
