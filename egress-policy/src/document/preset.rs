//! A rule of a policy that stands for those of a preset.

use super::{
    catalog::Catalog,
    check::Check,
    error::DocumentError,
    schema::{PresetValue, SpecRule},
    set::Rule,
};
use crate::{
    preset::{ExpandedRule, Given, PresetError, Site},
    read::{Located, Part, Problem, is_mapping},
    vocabulary::{Cidr, parse_name_pattern, parse_port_range},
};

impl Check<'_> {
    /// The rules of a rule with `preset` or `with`.
    pub(super) fn preset(
        &mut self,
        spec: &SpecRule,
        part: Part<'_>,
        index: usize,
        is_deny: bool,
    ) -> Vec<Rule> {
        for (name, is_set) in [
            ("cidrs", !spec.cidrs.is_empty()),
            ("names", !spec.names.is_empty()),
            ("ports", spec.ports.is_some()),
            ("require", !spec.require.is_none()),
            ("serviceTags", !spec.service_tags.is_empty()),
        ] {
            let part = part.field(name);
            if is_set || part.is_there() {
                self.wrong(part, DocumentError::BesidePreset);
            }
        }
        let with_part = part.field("with");
        let preset_part = part.field("preset");
        if with_part.is_given() && !with_part.is_read(is_mapping) {
            return Vec::new();
        }
        let Some(name) = &spec.preset else {
            if !preset_part.is_there() {
                let example = "preset: aks/azure-global";
                self.wrong(with_part, DocumentError::WithoutPreset(example));
            }
            return Vec::new();
        };
        let given = given(spec, with_part);
        let (file, catalog, line) = (self.file, self.catalog, preset_part.line);
        let site = Site::File {
            file,
            line,
            field: &part.path.to_string(),
        };
        let expansion = match catalog.presets().expand(name, &given, site) {
            Ok(expansion) => expansion,
            Err(errors) => {
                self.extend(errors);
                return Vec::new();
            }
        };
        let mut rules = Vec::with_capacity(expansion.rules.len());
        for rule in &expansion.rules {
            match checked(name, rule, (index, line), is_deny, catalog) {
                Ok(found) => rules.extend(found),
                Err(problem) => self.wrong(preset_part, problem),
            }
        }
        rules
    }
}

/// The values of `with`, in the order of a file, where a variable may stand twice.
fn given(spec: &SpecRule, part: Part<'_>) -> Vec<Given> {
    let of_object = || spec.with.keys().map(|name| (name.as_str(), part.line));
    let keys = part.keys().unwrap_or_else(|| of_object().collect());
    let given = keys.into_iter().filter_map(|(name, line)| {
        let texts = match spec.with.get(name)? {
            PresetValue::Text(text) => vec![text.clone()],
            PresetValue::List(texts) => texts.clone(),
        };
        let name = name.to_owned();
        Some(Given { name, texts, line })
    });
    given.collect()
}

/// The rules of one expanded rule, as if they stood at a place: position in the list, and line.
fn checked(
    preset: &str,
    rule: &ExpandedRule,
    (index, line): (usize, usize),
    is_deny: bool,
    catalog: &Catalog,
) -> Result<Vec<Rule>, Problem> {
    let mut names = Vec::with_capacity(rule.names.len());
    for text in &rule.names {
        let value = parse_name_pattern(text)?;
        let text = text.clone();
        names.push(Located { value, text, line });
    }
    let mut cidrs = Vec::with_capacity(rule.cidrs.len());
    for text in &rule.cidrs {
        let value: Cidr = text.parse()?;
        let text = text.clone();
        cidrs.push(Located { value, text, line });
    }
    let mut service_tags = Vec::with_capacity(rule.service_tags.len());
    for text in &rule.service_tags {
        let value = catalog
            .service_tag(text)
            .map_err(|error| PresetError::ServiceTag {
                preset: preset.to_owned(),
                problem: error.to_string(),
                other_way: rule.chosen_by.clone(),
            })?;
        let text = text.clone();
        service_tags.push(Located { value, text, line });
    }
    let mut ports = Vec::with_capacity(rule.ports.len());
    for text in &rule.ports {
        ports.push(parse_port_range(text)?);
    }
    let rule = Rule {
        index,
        line,
        preset: Some(preset.to_owned()),
        names,
        cidrs,
        service_tags,
        ports,
    };
    if !is_deny {
        return Ok(vec![rule]);
    }
    // A denied name teaches no address at all, whatever the port.
    let of_names = Rule {
        names: rule.names.clone(),
        cidrs: Vec::new(),
        service_tags: Vec::new(),
        ports: Vec::new(),
        ..rule.clone()
    };
    let others = Rule {
        names: Vec::new(),
        ..rule
    };
    Ok(vec![of_names, others])
}
