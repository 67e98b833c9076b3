//! What an API server has is read and checked as files are.

use std::{collections::BTreeSet, fs, path::Path};

use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    Catalog, EgressPolicy, Policy, PolicyErrors, PolicySet, check,
    document::{FIELDS, json_schema},
};

/// The documents of a text as an API server would have them; none if it cannot have one like that.
fn objects(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents
        // After what is no YAML it would not end.
        .map_while(|document| Value::deserialize(document).ok())
        .filter(|value| !value.is_null())
        .collect()
}

/// What is wrong, by field.
fn by_field(errors: &PolicyErrors) -> BTreeSet<String> {
    let errors = errors.errors().iter();
    // An object has all values: which of them were defaults is not known.
    let texts = errors.map(|error| error.by_field().replace(" (the default)", ""));
    texts.collect()
}

/// The checked policies of objects, or what is wrong with each: with its form, or else with what it means.
fn checked(text: &str) -> Vec<Result<Policy, BTreeSet<String>>> {
    let objects = objects(text).into_iter();
    let read = objects.map(|object| {
        let document: EgressPolicy = serde_json::from_value(object).map_err(|error| {
            let error = error.to_string();
            error
                .split("; ")
                .map(str::to_owned)
                .collect::<BTreeSet<_>>()
        })?;
        let checked = check(document, "object".as_ref(), &Catalog::default());
        checked.map_err(|errors| by_field(&errors))
    });
    read.collect()
}

#[test]
fn an_object_gets_the_messages_of_a_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testdata/bad");
    let (mut same, mut files) = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let named = [(Path::new("object"), text.as_str())];
        let Err(errors) = PolicySet::from_texts(named, &Catalog::default()) else {
            continue;
        };
        // What is wrong with the text itself, no object has.
        if errors
            .errors()
            .iter()
            .any(|error| error.place.field.is_empty())
        {
            continue;
        }
        files += 1;
        let of_file = by_field(&errors);
        for errors in checked(&text).into_iter().filter_map(Result::err) {
            for error in errors {
                // Texts of several parts are cut by the test.
                if of_file.iter().any(|known| known.contains(&error)) {
                    same += 1;
                    continue;
                }
                panic!("{}: {error}\nnot in\n{of_file:#?}", path.display());
            }
        }
    }
    assert!(files > 10 && same > 100, "{files} files, {same} messages");
}

#[test]
fn an_object_becomes_the_policy_of_a_file() {
    let set = super::set(super::EXAMPLE);
    let of_objects = checked(super::EXAMPLE);
    assert_eq!(of_objects.len(), set.policies().len());
    for (file, object) in set.policies().iter().zip(of_objects) {
        let object = object.unwrap();
        assert_eq!(object.document, file.document);
        let texts = |policy: &Policy| {
            let rules = policy.allow.iter().chain(&policy.deny);
            let rules = rules.map(|rule| {
                let names = rule.names.iter().map(|name| name.value.to_string());
                let cidrs = rule.cidrs.iter().map(|cidr| cidr.value.to_string());
                let texts: Vec<String> = names.chain(cidrs).collect();
                (rule.index, texts, rule.ports.clone())
            });
            rules.collect::<Vec<_>>()
        };
        assert_eq!(texts(&object), texts(file));
        let facts = |policy: &Policy| {
            (
                policy.mode,
                policy.ttl,
                policy.keeps_preexisting,
                policy.restricts_queries,
            )
        };
        assert_eq!(facts(&object), facts(file));
        let lines = object.allow.iter().chain(&object.deny);
        assert!(lines.map(|rule| rule.line).all(|line| line == 1));
    }
}

#[test]
fn the_reader_knows_the_fields_of_the_schema_and_no_others() {
    let schema = json_schema().to_value();
    for (definition, fields) in FIELDS {
        let part = match *definition {
            "" => &schema,
            name => &schema["$defs"][name],
        };
        let of_schema: BTreeSet<&str> = part["properties"]
            .as_object()
            .unwrap_or_else(|| panic!("{definition}: {part}"))
            .keys()
            .map(String::as_str)
            .collect();
        let known: BTreeSet<&str> = fields.iter().copied().collect();
        assert_eq!(of_schema, known, "{definition}");
    }
}
