//! Texts with `<variable>` in them.

use std::collections::HashMap;

use super::{
    error::PresetError,
    model::{Condition, Preset},
};
use crate::vocabulary::quoted;

/// Values of variables, as texts; a variable that does not apply has none.
pub(super) type Values = HashMap<String, Vec<String>>;

/// A part of a text.
enum Part<'a> {
    Text(&'a str),
    Variable(&'a str),
}

fn parts(text: &str) -> Result<Vec<Part<'_>>, PresetError> {
    let odd = || PresetError::Brackets(quoted(text));
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        let (name, behind) = after.split_once('>').ok_or_else(odd)?;
        if before.contains('>') || name.contains('<') || name.is_empty() {
            return Err(odd());
        }
        parts.push(Part::Text(before));
        parts.push(Part::Variable(name));
        rest = behind;
    }
    if rest.contains('>') {
        return Err(odd());
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

/// The variables that a text names.
pub(super) fn variables(text: &str) -> Result<Vec<&str>, PresetError> {
    let parts = parts(text)?;
    let names = parts.into_iter().filter_map(|part| match part {
        Part::Text(_) => None,
        Part::Variable(name) => Some(name),
    });
    Ok(names.collect())
}

/// The variable that a text consists of.
pub(super) fn whole(text: &str) -> Option<&str> {
    let name = text.strip_prefix('<')?.strip_suffix('>')?;
    (!name.contains(['<', '>'])).then_some(name)
}

/// The texts that a text stands for; `None` if a variable in it does not apply.
pub(super) fn fill(text: &str, values: &Values) -> Option<Vec<String>> {
    if let Some(name) = whole(text) {
        return values.get(name).cloned();
    }
    let mut filled = String::with_capacity(text.len());
    for part in parts(text).ok()? {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Variable(name) => filled.push_str(values.get(name)?.first()?),
        }
    }
    Some(vec![filled])
}

/// The texts that several texts stand for.
pub(super) fn fill_all(texts: &[String], values: &Values) -> Option<Vec<String>> {
    let mut filled = Vec::with_capacity(texts.len());
    for text in texts {
        filled.extend(fill(text, values)?);
    }
    Some(filled)
}

/// The reason why a condition does not hold: a variable, its value and those that would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocker {
    pub(super) because: String,
    pub(super) instead: String,
}

impl Condition {
    /// True if it holds.
    pub(super) fn holds(&self, values: &Values) -> bool {
        self.0.iter().all(|(name, wanted)| {
            values
                .get(name)
                .and_then(|value| value.first())
                .is_some_and(|value| wanted.contains(value))
        })
    }

    /// The first thing that keeps it from holding, at the root: of a variable that does not apply, why.
    pub(super) fn blocker(&self, preset: &Preset, values: &Values) -> Option<Blocker> {
        for (name, wanted) in &self.0 {
            match values.get(name).and_then(|value| value.first()) {
                Some(value) if wanted.contains(value) => {}
                Some(value) => {
                    return Some(Blocker {
                        because: format!("{name} is {value}"),
                        instead: format!("{name}: {}", wanted.join(" or ")),
                    });
                }
                // Conditions refer to earlier variables only, so that this ends.
                None => return preset.variable(name)?.when.blocker(preset, values),
            }
        }
        None
    }

    /// The variables that it asks about, separated by commas.
    pub(super) fn variables(&self) -> Option<String> {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &[&str])]) -> Values {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        pairs
            .iter()
            .map(|(name, texts)| ((*name).to_owned(), owned(texts)))
            .collect()
    }

    #[test]
    fn placeholders_are_filled() {
        let values = values(&[
            ("a", &["x"]),
            ("b", &["y"]),
            ("list", &["p", "q"]),
            ("none", &[]),
        ]);
        for (text, filled) in [
            ("plain.example", Some(vec!["plain.example"])),
            ("*.<a>.<b>.example", Some(vec!["*.x.y.example"])),
            ("<list>", Some(vec!["p", "q"])),
            ("<none>", Some(vec![])),
            ("<missing>", None),
            ("<a>.<missing>", None),
        ] {
            let filled = filled.map(|texts| texts.into_iter().map(str::to_owned).collect());
            assert_eq!(fill(text, &values), filled, "{text}");
        }
    }

    #[test]
    fn brackets_come_in_pairs() {
        assert_eq!(variables("<a>.b.<c>").unwrap(), ["a", "c"]);
        for text in ["<a", "a>", "<a<b>>", "<>", "a>b<c>", "><"] {
            assert!(variables(text).is_err(), "{text}");
        }
        assert_eq!(whole("<a>"), Some("a"));
        assert_eq!(whole("<a>.<b>"), None);
    }
}
