//! A rule of a policy that stands for those of a preset.

use super::error::DocumentError;
use crate::{
    document::{Catalog, Rule, SpecRule},
    preset::{ExpandedRule, Given, PresetError, Site},
    read::{FieldPath, Fields, Located, Node, Problem, Reader, Value},
    vocabulary::{Cidr, parse_name_pattern, parse_port_range},
};

impl Reader<'_> {
    /// Reads the rule at `path`, which has `preset` or `with`.
    pub(crate) fn preset(
        &mut self,
        path: FieldPath<'_>,
        present: &Fields<'_>,
        index: usize,
        is_deny: bool,
        catalog: &Catalog,
    ) -> Option<(SpecRule, Vec<Rule>)> {
        let at = |name| FieldPath::Field(&path, name);
        for (name, node) in present {
            if !matches!(*name, "preset" | "with") {
                self.wrong(node.line, at(name), DocumentError::BesidePreset);
            }
        }
        let given = match present.get("with") {
            Some(node) => self.given(node, at("with"))?,
            None => Vec::new(),
        };
        let example = "preset: aks/azure-global";
        let Some(node) = present.get("preset") else {
            let line = present.get("with").map_or(0, |node| node.line);
            self.wrong(line, at("with"), DocumentError::WithoutPreset(example));
            return None;
        };
        let name = self.text(node, at("preset"), example)?;
        let file = self.file();
        let field = path.to_string();
        let site = Site::File {
            file,
            line: node.line,
            field: &field,
        };
        let expansion = match catalog.presets().expand(name, &given, site) {
            Ok(expansion) => expansion,
            Err(errors) => {
                self.extend(errors);
                return None;
            }
        };
        let mut rules = Vec::with_capacity(expansion.rules.len());
        for rule in &expansion.rules {
            let place = (index, node.line);
            match checked(name, rule, place, is_deny, catalog) {
                Ok(found) => rules.extend(found),
                Err(problem) => self.wrong(node.line, at("preset"), problem),
            }
        }
        let with = given
            .into_iter()
            .map(|given| (given.name, given.texts.into()));
        let spec = SpecRule {
            preset: Some(name.to_owned()),
            with: with.collect(),
            ..SpecRule::default()
        };
        Some((spec, rules))
    }

    /// The values of `with`. `None` if something was reported.
    fn given(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Vec<Given>> {
        let example = "with: { location: eastus }";
        let pairs = match &node.value {
            Value::Map(pairs) => pairs.as_slice(),
            Value::Null => &[],
            Value::Text(_) | Value::List(_) => {
                self.shape(node, path, "a mapping", example);
                return None;
            }
        };
        let mut given = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let name = self.key(key, path)?;
            let path = FieldPath::Field(&path, name);
            let texts = match &value.value {
                Value::Text(text) => vec![text.clone()],
                Value::Null | Value::List(_) | Value::Map(_) => {
                    let read = |text: &str| Ok::<_, Problem>(text.to_owned());
                    let items = self.items(value, path, "a value or a list of values", read);
                    items.into_iter().map(|item| item.value).collect()
                }
            };
            let name = name.to_owned();
            let line = key.line;
            given.push(Given { name, texts, line });
        }
        Some(given)
    }
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
