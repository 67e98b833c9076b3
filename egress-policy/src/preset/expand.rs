//! From a preset and values of its variables to plain rules.

use std::path::Path;

use serde::Serialize;

use super::{
    error::PresetError,
    library::Presets,
    model::{Preset, Variable},
    template::{Values, fill_all},
};
use crate::{
    read::{Place, PolicyErrors, Report, nearest},
    vocabulary::quoted,
};

/// Most destinations of one preset with all that it includes.
const MOST: usize = 100_000;

/// The cost of one rule or include beside its destinations: an include of nothing is not free.
const RULE_COST: usize = 1;

/// A value that was given for a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The variable.
    pub name: String,
    /// Its value; several texts are a list.
    pub texts: Vec<String>,
    /// The line in the file.
    pub line: usize,
}

/// Where a preset is named, for messages.
#[derive(Clone, Copy, Debug)]
pub enum Site<'a> {
    /// In a file.
    File {
        /// The file.
        file: &'a Path,
        /// The line.
        line: usize,
        /// The field that holds `preset` and `with`.
        field: &'a str,
    },
    /// On a command line with `--with`.
    CommandLine,
}

impl Site<'_> {
    fn at(&self, line: usize, name: &str) -> Place {
        match self {
            Self::File { file, field, .. } => {
                Place::field(file, line, format!("{field}.with.{name}"))
            }
            Self::CommandLine => Place {
                file: "--with".into(),
                line: None,
                field: name.to_owned(),
            },
        }
    }

    /// The place of the preset's name.
    pub(super) fn preset(&self) -> Place {
        match self {
            Self::File { file, line, field } => {
                Place::field(file, *line, format!("{field}.preset"))
            }
            Self::CommandLine => Place::file(Path::new("NAME")),
        }
    }

    fn missing(&self) -> Place {
        match self {
            Self::File { file, line, field } => Place::field(file, *line, format!("{field}.with")),
            Self::CommandLine => Place::file(Path::new("--with")),
        }
    }

    fn example(&self, variable: &Variable) -> String {
        let (name, value) = (&variable.name, variable.kind.example());
        match self {
            Self::File { .. } if variable.kind.is_list() => {
                format!("with: {{ {name}: [{value}] }}")
            }
            Self::File { .. } => format!("with: {{ {name}: {value} }}"),
            Self::CommandLine => format!("--with {name}={value}"),
        }
    }
}

/// The rules of a preset, with the values that made them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expansion {
    /// The value of each variable that applies, in the order of the preset's file.
    pub values: Vec<(String, Vec<String>)>,
    /// The rules.
    pub rules: Vec<ExpandedRule>,
}

/// A rule of a preset, without placeholders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpandedRule {
    /// The preset that it stands in: the one that was named, or one that it includes.
    pub preset: String,
    /// Its purpose.
    pub description: String,
    /// How it differs from the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Names and patterns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Service tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_tags: Vec<String>,
    /// Ports; empty means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// The variables that could choose another entry.
    #[serde(skip)]
    pub chosen_by: Option<String>,
}

impl Presets {
    /// The rules that a preset stands for.
    ///
    /// # Errors
    /// There is no such preset; values are missing, unknown or of another type; or it expands to too much.
    pub fn expand(
        &self,
        name: &str,
        given: &[Given],
        site: Site<'_>,
    ) -> Result<Expansion, PolicyErrors> {
        let mut run = Run {
            presets: self,
            report: Report::default(),
            rules: Vec::new(),
            left: MOST,
        };
        let values = run.preset(name, given, site);
        if run.left == 0 {
            let preset = name.to_owned();
            run.report
                .add(site.preset(), PresetError::TooMany { preset, most: MOST });
        }
        let expansion = Expansion {
            values: values.unwrap_or_default(),
            rules: run.rules,
        };
        run.report.finish(expansion)
    }
}

/// One expansion.
struct Run<'a> {
    presets: &'a Presets,
    report: Report,
    rules: Vec<ExpandedRule>,
    /// Destinations and rules that may still come.
    left: usize,
}

impl Run<'_> {
    fn preset(
        &mut self,
        name: &str,
        given: &[Given],
        site: Site<'_>,
    ) -> Option<Vec<(String, Vec<String>)>> {
        let Some(preset) = self.presets.get(name) else {
            self.report.add(site.preset(), self.presets.unknown(name));
            return None;
        };
        let values = self.values(preset, given, site)?;
        for entry in preset
            .entries
            .iter()
            .filter(|entry| entry.when.holds(&values))
        {
            let lists = [&entry.names, &entry.cidrs, &entry.service_tags];
            let [Some(names), Some(cidrs), Some(service_tags)] =
                lists.map(|list| fill_all(list, &values))
            else {
                continue;
            };
            let count = [&names, &cidrs, &service_tags]
                .map(Vec::len)
                .into_iter()
                .sum::<usize>();
            if count == 0 {
                continue;
            }
            if !self.take(count) {
                return None;
            }
            self.rules.push(ExpandedRule {
                preset: preset.name.clone(),
                description: entry.description.clone(),
                note: entry.note.clone(),
                names,
                cidrs,
                service_tags,
                ports: entry.ports.clone(),
                chosen_by: entry.when.variables(),
            });
        }
        let file = preset.origin.path(&preset.name);
        for (index, include) in preset.includes.iter().enumerate() {
            if !include.when.holds(&values) {
                continue;
            }
            if !self.take(RULE_COST) {
                return None;
            }
            let given = include.with.iter().filter_map(|(name, texts)| {
                Some(Given {
                    name: name.clone(),
                    texts: fill_all(texts, &values)?,
                    line: include.line,
                })
            });
            let given: Vec<Given> = given.collect();
            let site = Site::File {
                file: &file,
                line: include.line,
                field: &format!("include[{index}]"),
            };
            self.preset(&include.preset, &given, site)?;
        }
        let known = |variable: &Variable| {
            Some((variable.name.clone(), values.get(&variable.name)?.clone()))
        };
        Some(preset.variables.iter().filter_map(known).collect())
    }

    fn take(&mut self, count: usize) -> bool {
        self.left = self.left.saturating_sub(count);
        self.left > 0
    }

    /// The values of all variables that apply. `None` if something was reported.
    fn values(&mut self, preset: &Preset, given: &[Given], site: Site<'_>) -> Option<Values> {
        let mut is_good = true;
        for (index, value) in given.iter().enumerate() {
            let problem = if preset.variable(&value.name).is_none() {
                Some(unknown_variable(preset, &value.name))
            } else if given
                .iter()
                .take(index)
                .any(|before| before.name == value.name)
            {
                Some(PresetError::Twice)
            } else {
                None
            };
            if let Some(problem) = problem {
                is_good = false;
                self.report.add(site.at(value.line, &value.name), problem);
            }
        }
        let mut values = Values::new();
        for variable in &preset.variables {
            let given = given.iter().find(|given| given.name == variable.name);
            if !variable.when.holds(&values) {
                // After an error it cannot be said why.
                if let Some(given) = given
                    && let Some(blocker) = variable.when.blocker(preset, &values)
                {
                    is_good = false;
                    let problem = PresetError::NoEffect {
                        because: blocker.because,
                        instead: blocker.instead,
                    };
                    self.report.add(site.at(given.line, &given.name), problem);
                }
                continue;
            }
            match self.value(preset, variable, given, &values, site) {
                Some(value) => {
                    values.insert(variable.name.clone(), value);
                }
                None => is_good = false,
            }
        }
        is_good.then_some(values)
    }

    /// The value of one variable that applies.
    fn value(
        &mut self,
        preset: &Preset,
        variable: &Variable,
        given: Option<&Given>,
        values: &Values,
        site: Site<'_>,
    ) -> Option<Vec<String>> {
        let Some(given) = given else {
            let Some(default) = &variable.default else {
                let problem = PresetError::MissingVariable {
                    preset: preset.name.clone(),
                    name: variable.name.clone(),
                    description: variable.description.clone(),
                    example: site.example(variable),
                };
                self.report.add(site.missing(), problem);
                return None;
            };
            return fill_all(default, values);
        };
        let place = || site.at(given.line, &given.name);
        if !variable.kind.is_list() && given.texts.len() != 1 {
            let problem = PresetError::OneValue {
                count: given.texts.len(),
                example: site.example(variable),
            };
            self.report.add(place(), problem);
            return None;
        }
        if given.texts.is_empty() && variable.default.is_none() {
            let problem = PresetError::NoValue(variable.kind.example());
            self.report.add(place(), problem);
            return None;
        }
        let mut parsed = Vec::with_capacity(given.texts.len());
        for text in &given.texts {
            match variable.kind.parse(text) {
                Ok(value) => parsed.push(value),
                Err(problem) => self.report.add(place(), problem),
            }
        }
        (parsed.len() == given.texts.len()).then_some(parsed)
    }
}

/// The error of a variable that does not exist.
pub(super) fn unknown_variable(preset: &Preset, name: &str) -> PresetError {
    let known: Vec<&str> = preset
        .variables
        .iter()
        .map(|variable| variable.name.as_str())
        .collect();
    PresetError::UnknownVariable {
        preset: preset.name.clone(),
        name: quoted(name),
        nearest: nearest(name, &known).map(str::to_owned),
        known: if known.is_empty() {
            "it has none: leave with out".to_owned()
        } else {
            format!("its variables are {}", known.join(", "))
        },
    }
}
