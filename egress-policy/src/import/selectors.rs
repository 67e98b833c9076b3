//! Selectors of Kubernetes, as those of policies here.

use super::{
    input::Item,
    sink::{Note, NoteKind, Sink},
};
use crate::{
    document::{
        Operator, Requirement, Selector,
        selector::{is_key, is_value},
    },
    write::Draft,
};

/// Whose label a key is.
pub(super) enum Of {
    /// The pod's, or whatever is selected: its key there.
    Subject(String),
    /// That of the namespace, and its key there.
    Namespace(String),
    /// Nobody's that is known here.
    Unknown,
}

/// Reads a selector: what it says of its subject, and of namespaces. What is not known here is noted at the policy.
pub(super) fn selector(
    item: &Item<'_>,
    of: impl Fn(&str) -> Of,
    draft: &mut Draft,
    sink: &mut Sink,
) -> (Selector, Selector) {
    let (mut subject, mut namespaces) = (Selector::default(), Selector::default());
    if !item.is_map() {
        sink.shape(item, "a selector", "{ matchLabels: { app: web } }");
        return (subject, namespaces);
    }
    let wider = |at: &Item<'_>, what: &str, draft: &mut Draft, sink: &mut Sink| {
        let text = format!("{what}: without it the policy is for more here than there");
        sink.note(draft, Note::new(at, NoteKind::Differs, text));
    };
    for (name, field) in item.fields() {
        match name {
            "matchLabels" => {
                for (key, value) in field.fields() {
                    let text = value.text().filter(|text| is_value(text));
                    let place = match of(key) {
                        Of::Subject(key) if is_key(&key) => (&mut subject, key),
                        Of::Namespace(key) if is_key(&key) => (&mut namespaces, key),
                        Of::Subject(_) | Of::Namespace(_) | Of::Unknown => {
                            wider(
                                &value,
                                &format!("the label {key} is not known here"),
                                draft,
                                sink,
                            );
                            continue;
                        }
                    };
                    match text {
                        Some(text) => {
                            let (selector, key) = place;
                            selector.match_labels.insert(key, text.to_owned());
                        }
                        None => sink.shape(&value, "the value of a label", "app: web"),
                    }
                }
            }
            "matchExpressions" => {
                for item in sink.maps(item, name) {
                    let Some(requirement) = requirement(&item, sink) else {
                        continue;
                    };
                    match of(&requirement.key) {
                        Of::Subject(key) if is_key(&key) => subject
                            .match_expressions
                            .push(Requirement { key, ..requirement }),
                        Of::Namespace(key) if is_key(&key) => namespaces
                            .match_expressions
                            .push(Requirement { key, ..requirement }),
                        Of::Subject(_) | Of::Namespace(_) | Of::Unknown => {
                            let what = format!("the label {} is not known here", requirement.key);
                            wider(&item, &what, draft, sink);
                        }
                    }
                }
            }
            _ => wider(&field, &unknown_field(&field), draft, sink),
        }
    }
    (subject, namespaces)
}

fn requirement(item: &Item<'_>, sink: &mut Sink) -> Option<Requirement> {
    const EXAMPLE: &str = "{ key: app, operator: In, values: [web] }";
    let values: Vec<String> = sink
        .texts(item, "values")
        .into_iter()
        .map(|(_, text)| text.to_owned())
        .collect();
    let operator = match item.word("operator") {
        Some("In") => Operator::In,
        Some("NotIn") => Operator::NotIn,
        Some("Exists") => Operator::Exists,
        Some("DoesNotExist") => Operator::DoesNotExist,
        Some(_) | None => {
            sink.shape(item, "what holds for a label", EXAMPLE);
            return None;
        }
    };
    let wants_values = matches!(operator, Operator::In | Operator::NotIn);
    let is_good = values.is_empty() != wants_values && values.iter().all(|value| is_value(value));
    let Some(key) = item.word("key").filter(|_| is_good) else {
        sink.shape(item, "what holds for a label", EXAMPLE);
        return None;
    };
    Some(Requirement {
        key: key.to_owned(),
        operator,
        values,
    })
}

/// The fields of an object that are none of these and say something.
pub(super) fn unknown_fields<'n>(of: &Item<'n>, known: &[&str]) -> Vec<Item<'n>> {
    let fields = of.fields();
    let unknown = fields.filter(|(name, field)| !known.contains(name) && !field.says_nothing());
    unknown.map(|(_, field)| field).collect()
}

/// The note about such a field.
pub(super) fn unknown_field(field: &Item<'_>) -> String {
    format!("the field {} is not known here", field.name())
}
