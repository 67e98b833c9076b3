//! `preset`: the rules that have a name, without an agent.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    exit::{ExitCode, UsageError},
    output::{OutputArgs, Screen},
    table::Table,
};
use crate::policy::{
    self, Draft, PolicyErrors,
    preset::{Condition, ExpandedRule, Expansion, Given, Preset, Presets, Site, Source, Variable},
};

const LIST_EXAMPLES: &str = "\
Examples:
  egress-agent preset list
  egress-agent preset list aks/azure-global            its variables
  egress-agent preset list --preset-dir /etc/egress/presets -o json";

const SHOW_EXAMPLES: &str = "\
Examples:
  egress-agent preset show aks/azure-global --with location=eastus
  egress-agent preset show aks/network-isolated --with registry=contoso \\
      --with location=eastus --with apiServer=10.1.0.4,10.1.0.5 -o json

Prints a policy with the rules that `preset: NAME` stands for.";

/// Options of `preset`.
#[derive(Clone, Debug, Args)]
pub struct PresetArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PresetCommand,
}

/// What to do with presets.
#[derive(Clone, Debug, Subcommand)]
pub enum PresetCommand {
    /// Show which presets there are, or the variables of one
    List(List),
    /// Show the rules that a preset stands for, as a policy
    Show(Show),
}

/// Where presets are looked up.
#[derive(Clone, Debug, Default, Args)]
pub struct PresetDirArgs {
    /// Folder of presets beside those of the agent; aks/azure-global.yaml in it takes the place of aks/azure-global
    #[arg(long, value_name = "DIR")]
    pub preset_dir: Option<PathBuf>,
}

/// Options of `preset list`.
#[derive(Clone, Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct List {
    /// A preset, to see its variables
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Where presets are looked up.
    #[command(flatten)]
    pub dir: PresetDirArgs,
    /// Form of the result.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `preset show`.
#[derive(Clone, Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub struct Show {
    /// The preset
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The value of a variable; commas between the items of a list; may be repeated
    #[arg(long, num_args = 1.., value_name = "VARIABLE=VALUE", value_parser = given)]
    pub with: Vec<Given>,
    /// Where presets are looked up.
    #[command(flatten)]
    pub dir: PresetDirArgs,
    /// Form of the result.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Reads `variable=value`.
fn given(text: &str) -> Result<Given, String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err("write VARIABLE=VALUE, such as location=eastus".to_owned());
    };
    let items = value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    Ok(Given {
        name: name.to_owned(),
        texts: items.map(str::to_owned).collect(),
        line: 0,
    })
}

/// A preset in JSON.
#[derive(Debug, Serialize)]
struct PresetReport<'a> {
    name: &'a str,
    description: &'a str,
    /// Its file; none if it is in the binary.
    file: Option<String>,
    sources: &'a [Source],
    variables: &'a [Variable],
    includes: Vec<&'a str>,
}

/// An expanded preset in JSON.
#[derive(Debug, Serialize)]
struct ExpansionReport<'a> {
    preset: PresetReport<'a>,
    values: serde_json::Map<String, serde_json::Value>,
    rules: &'a [ExpandedRule],
}

impl PresetArgs {
    /// Does what is asked for.
    ///
    /// # Errors
    ///
    /// The preset or its values are not usable.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            PresetCommand::List(list) => list.execute(),
            PresetCommand::Show(show) => show.execute(),
        }
    }
}

impl PresetDirArgs {
    /// The presets.
    fn load(&self) -> Result<Presets, PolicyErrors> {
        match &self.preset_dir {
            Some(folder) => Presets::with_folder(folder),
            None => Ok(Presets::default()),
        }
    }
}

impl List {
    fn execute(self) -> anyhow::Result<ExitCode> {
        let presets = self.dir.load().map_err(UsageError::new)?;
        match &self.name {
            Some(name) => {
                let preset = find(&presets, name)?;
                self.output
                    .print(&report(preset), |screen| variables(preset, screen))?;
            }
            None => {
                let reports: Vec<_> = presets.all().map(report).collect();
                self.output
                    .print(&reports, |screen| list(&presets, screen))?;
            }
        }
        Ok(ExitCode::Ok)
    }
}

impl Show {
    fn execute(self) -> anyhow::Result<ExitCode> {
        let presets = self.dir.load().map_err(UsageError::new)?;
        let preset = find(&presets, &self.name)?;
        let expansion = presets.expand(&self.name, &self.with, Site::CommandLine);
        let expansion = expansion.map_err(UsageError::new)?;
        let report = ExpansionReport {
            preset: report(preset),
            values: values(preset, &expansion),
            rules: &expansion.rules,
        };
        let draft: Draft = preset.draft(&expansion);
        self.output
            .print(&report, |_| policy::write_policies(&[draft]))?;
        Ok(ExitCode::Ok)
    }
}

fn find<'p>(presets: &'p Presets, name: &str) -> Result<&'p Preset, UsageError> {
    presets
        .get(name)
        .ok_or_else(|| UsageError::new(presets.unknown(name)))
}

fn report(preset: &Preset) -> PresetReport<'_> {
    PresetReport {
        name: &preset.name,
        description: &preset.description,
        file: preset.origin.file().map(|file| file.display().to_string()),
        sources: &preset.sources,
        variables: &preset.variables,
        includes: preset
            .includes
            .iter()
            .map(|include| include.preset.as_str())
            .collect(),
    }
}

/// The values as JSON: lists are lists, the rest is text.
fn values(preset: &Preset, expansion: &Expansion) -> serde_json::Map<String, serde_json::Value> {
    let value = |name: &str, texts: &[String]| match preset.variable(name) {
        Some(variable) if variable.kind.is_list() => texts.into(),
        _ => texts.join(",").into(),
    };
    let values = expansion.values.iter();
    values
        .map(|(name, texts)| (name.clone(), value(name, texts)))
        .collect()
}

pub(super) fn list(presets: &Presets, screen: Screen) -> String {
    let mut table = Table::new().word("PRESET").text("NEEDS").text("FOR");
    for preset in presets.all() {
        let needs = preset
            .required()
            .filter(|variable| variable.when.is_always());
        let needs: Vec<&str> = needs.map(|variable| variable.name.as_str()).collect();
        let from = preset
            .origin
            .file()
            .map(|file| format!(" ({})", file.display()));
        table.row([
            preset.name.as_str().into(),
            needs.join(", ").into(),
            format!("{}{}", preset.description, from.unwrap_or_default()).into(),
        ]);
    }
    table.render(screen)
}

pub(super) fn variables(preset: &Preset, screen: Screen) -> String {
    let mut facts = Table::new().word("").text("");
    facts.row(["preset".into(), preset.name.as_str().into()]);
    facts.row(["for".into(), preset.description.as_str().into()]);
    for source in &preset.sources {
        facts.row(["from".into(), source.text().into()]);
    }
    for include in &preset.includes {
        let text = format!(
            "{}{}: {}",
            include.preset,
            when(&include.when),
            include.description
        );
        facts.row(["includes".into(), text.into()]);
    }
    let mut text = facts.render(screen);
    if preset.variables.is_empty() {
        text.push_str("\nno variables\n");
        return text;
    }
    for variable in &preset.variables {
        let mut table = Table::new().text("");
        let kind = variable.type_text();
        let value = match &variable.default {
            Some(_) => format!("default {}", variable.default_text()),
            None => variable.default_text(),
        };
        let facts = format!("{}: {kind}; {value}{}", variable.name, when(&variable.when));
        table.row([facts.into()]);
        text.push('\n');
        text.push_str(&table.render(screen));
        let mut table = Table::new().word("").text("");
        table.row(["  ".into(), variable.description.as_str().into()]);
        text.push_str(&table.render(screen));
    }
    text
}

fn when(condition: &Condition) -> String {
    if condition.is_always() {
        String::new()
    } else {
        format!("; when {condition}")
    }
}
