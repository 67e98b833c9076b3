//! From a JSON Schema to the structural schema that the API server wants.
//!
//! The schema of policy files says more than Kubernetes understands. What is left out here is either only for editors
//! or refused in another way; a test looks that nothing else gets lost.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// Keywords that only editors read.
const FOR_EDITORS: [&str; 4] = ["$schema", "examples", "patternErrorMessage", "title"];

/// The structural schema of a type.
pub(super) fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    rewrite(&mut schema);
    schema
}

/// Rewrites a schema and those in it.
pub(super) fn rewrite(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    for name in FOR_EDITORS {
        fields.remove(name);
    }
    one_line(fields);
    constants(fields);
    several_types(fields);
    // With fields of its own, a mapping has no others anyhow.
    if fields.get("additionalProperties") == Some(&json!(false)) {
        fields.remove("additionalProperties");
    }
    for name in ["items", "additionalProperties", "not"] {
        if let Some(schema) = fields.get_mut(name) {
            rewrite(schema);
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        let schemas = fields.get_mut(name).and_then(Value::as_array_mut);
        schemas.into_iter().flatten().for_each(rewrite);
    }
    let properties = fields.get_mut("properties").and_then(Value::as_object_mut);
    properties
        .into_iter()
        .flat_map(Map::values_mut)
        .for_each(rewrite);
}

/// A description without the source's line ends.
fn one_line(fields: &mut Map<String, Value>) {
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = text.replace('\n', " ");
    }
}

/// Constants are lists of one value. Alternatives of them are one list, which the description explains.
fn constants(fields: &mut Map<String, Value>) {
    if let Some(value) = fields.remove("const") {
        fields.insert("enum".to_owned(), json!([value]));
    }
    let of_alternatives = |name: &str| -> Option<Vec<Value>> {
        let alternatives = fields.get("oneOf")?.as_array()?.iter();
        alternatives.map(|one| one.get(name).cloned()).collect()
    };
    let values = of_alternatives("const").or_else(|| {
        let lists = of_alternatives("enum")?.into_iter();
        lists.map(|list| list.get(0).cloned()).collect()
    });
    let Some(values) = values else {
        return;
    };
    let meanings = of_alternatives("description").unwrap_or_default();
    let mut text = fields
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    for (value, meaning) in values.iter().zip(&meanings) {
        if let (Some(value), Some(meaning)) = (value.as_str(), meaning.as_str()) {
            text = format!("{text} `{value}`: {}", meaning.replace('\n', " "));
        }
    }
    fields.insert("description".to_owned(), text.trim().into());
    fields.insert("type".to_owned(), "string".into());
    fields.insert("enum".to_owned(), values.into());
    fields.remove("oneOf");
}

/// A value of several types is any value: the server knows no other way. At least it is no mapping.
fn several_types(fields: &mut Map<String, Value>) {
    if !fields.get("type").is_some_and(Value::is_array) {
        return;
    }
    fields.remove("type");
    fields.remove("items");
    fields.insert(
        "x-kubernetes-preserve-unknown-fields".to_owned(),
        true.into(),
    );
    // No mapping has both.
    fields.insert("minProperties".to_owned(), 1.into());
    fields.insert("maxProperties".to_owned(), 0.into());
}
