//! docs/policy.schema.json and the fields in docs/policy.md are made from the schema. `EGRESS_BLESS=1` writes them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use egress_policy::{Catalog, PolicySet, json_schema};
use serde_json::Value;

/// Around the fields in docs/policy.md.
const BEGIN: &str =
    "<!-- fields: written by `cargo xtask docs` from egress-policy/src/document/schema.rs -->\n";
/// See [`BEGIN`].
const END: &str = "<!-- end of fields -->\n";

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name)
}

/// The schema that a `$ref` leads to, with its name.
fn referred<'s>(schema: &'s Value, field: &Value) -> Option<(&'s str, &'s Value)> {
    let name = field["$ref"].as_str()?.strip_prefix("#/$defs/")?;
    schema["$defs"]
        .as_object()?
        .get_key_value(name)
        .map(|(name, schema)| (name.as_str(), schema))
}

/// What stands in a field: `list of Name`, with links to the sections below.
fn kind(schema: &Value, field: &Value) -> String {
    if let Some((name, referred)) = referred(schema, field) {
        let anchor = title(name, referred).to_lowercase().replace(' ', "-");
        return format!("[{}](#{anchor})", words(name));
    }
    if let Some(value) = field["const"].as_str() {
        return format!("`{value}`");
    }
    if let Some(choices) = field["oneOf"].as_array() {
        let choices = choices
            .iter()
            .map(|choice| format!("`{}`", choice["const"].as_str().unwrap()));
        return choices.collect::<Vec<_>>().join(" or ");
    }
    match field["type"].as_str().unwrap() {
        "array" => format!("list of {}", kind(schema, &field["items"])),
        "object" => match &field["additionalProperties"] {
            values if referred(schema, values).is_some() => {
                format!("{} by name", kind(schema, values))
            }
            _ => "texts by name".to_owned(),
        },
        "string" => "text".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        other => panic!("{other}: {field}"),
    }
}

/// How the page calls a schema: `SpecTtl` is ttl, `PolicyName` is policy name.
fn words(name: &str) -> String {
    let short = name.strip_prefix("Spec").filter(|name| !name.is_empty());
    let mut words = String::new();
    for c in short.unwrap_or(name).chars() {
        if c.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(c.to_lowercase());
    }
    words
}

/// Whether a schema is of a mapping with fields of its own.
fn is_mapping(schema: &Value) -> bool {
    schema["properties"].is_object()
}

/// The title of its section.
fn title(name: &str, schema: &Value) -> String {
    let words = words(name);
    if is_mapping(schema) {
        return format!("The fields of {words}");
    }
    let (first, rest) = words.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}

/// A value as YAML writes it on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) if text.starts_with('*') => format!("\"{text}\""),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(inline).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", inline(value)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// What a field means: its description, its choices, its examples.
fn meaning(field: &Value) -> String {
    let mut text = field["description"].as_str().unwrap().replace('\n', " ");
    for choice in field["oneOf"].as_array().into_iter().flatten() {
        let meaning = choice["description"].as_str().unwrap().replace('\n', " ");
        write!(text, " `{}`: {meaning}", choice["const"].as_str().unwrap()).unwrap();
    }
    if let Some(examples) = field["examples"].as_array() {
        let examples: Vec<_> = examples
            .iter()
            .map(|one| format!("`{}`", inline(one)))
            .collect();
        write!(text, " Such as {}.", examples.join(", ")).unwrap();
    }
    text
}

/// The table of a mapping's fields.
fn table(text: &mut String, schema: &Value, mapping: &Value) {
    text.push_str("| field | | default | |\n| --- | --- | --- | --- |\n");
    let required: Vec<&Value> = mapping["required"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    for (name, field) in mapping["properties"].as_object().unwrap() {
        let default = if required.iter().any(|one| *one == name) {
            "required".to_owned()
        } else {
            field
                .get("default")
                .map_or_else(String::new, |value| format!("`{}`", inline(value)))
        };
        let kind = kind(schema, field);
        writeln!(
            text,
            "| `{name}` | {kind} | {default} | {} |",
            meaning(field)
        )
        .unwrap();
    }
}

/// The fields, from the document down, then the forms of texts.
fn fields() -> String {
    let schema = json_schema().to_value();
    let mut text = String::from("\n## Fields\n\n");
    table(&mut text, &schema, &schema);
    let definitions = schema["$defs"].as_object().unwrap();
    // In the order in which they are first met.
    let mut order: Vec<&str> = Vec::new();
    let mut next = vec![&schema];
    while !next.is_empty() {
        let fields = next
            .iter()
            .flat_map(|one| one["properties"].as_object().unwrap().values());
        let met = fields.filter_map(|field| {
            [field, &field["items"], &field["additionalProperties"]]
                .into_iter()
                .find_map(|one| referred(&schema, one))
        });
        let met: Vec<&str> = met.map(|(name, _)| name).collect();
        let mut new = Vec::new();
        for name in met {
            if !order.contains(&name) {
                order.push(name);
                new.push(&definitions[name]);
            }
        }
        next = new.into_iter().filter(|one| is_mapping(one)).collect();
    }
    assert_eq!(order.len(), definitions.len(), "{order:?}");
    for is_text in [false, true] {
        for name in &order {
            let definition = &definitions[*name];
            if is_mapping(definition) == is_text {
                continue;
            }
            write!(text, "\n### {}\n\n", title(name, definition)).unwrap();
            if is_text {
                writeln!(text, "{}", meaning(definition)).unwrap();
            } else {
                writeln!(text, "{}\n", definition["description"].as_str().unwrap()).unwrap();
                table(&mut text, &schema, definition);
            }
        }
    }
    text.push('\n');
    text
}

/// Fails if a file is not what it should be, or writes it.
#[track_caller]
fn keep(path: &Path, wanted: &str) {
    if std::env::var_os("EGRESS_BLESS").is_some() {
        fs::write(path, wanted).unwrap();
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    assert!(
        there == wanted,
        "{} is stale: `cargo xtask docs` makes it anew",
        path.display()
    );
}

#[test]
fn the_policy_reference_is_what_the_schema_says() {
    let schema = serde_json::to_string_pretty(&json_schema()).unwrap();
    keep(&docs("policy.schema.json"), &format!("{schema}\n"));
    let path = docs("policy.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    keep(&path, &format!("{before}{BEGIN}{}{END}{after}", fields()));
}

#[test]
fn the_policies_of_the_reference_load() {
    let page = fs::read_to_string(docs("policy.md")).unwrap();
    let blocks: Vec<&str> = page.split("```yaml\n").skip(1).collect();
    assert!(blocks.len() >= 2, "{} examples", blocks.len());
    for block in blocks {
        let (text, _) = block.split_once("```").unwrap();
        // The one with all fields needs a file of service tags: tests/manifests.rs reads it.
        if text.contains("serviceTags:") {
            continue;
        }
        let set = PolicySet::from_texts([(Path::new("policy.md"), text)], &Catalog::default());
        assert!(set.is_ok(), "{text}\n{}", set.unwrap_err());
    }
}
