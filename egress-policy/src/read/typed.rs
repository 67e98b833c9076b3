//! Trees of what has types of its own, such as the JSON of an API server: it is read as a file is.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use super::{
    reader::{FieldPath, Reader},
    report::{PolicyError, Report},
    yaml::{Node, Value},
};

/// Reads a value by way of its tree.
///
/// # Errors
/// Everything that is wrong with it, by field.
pub(crate) fn read_typed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    read: impl FnOnce(&mut Reader<'_>, &Node, FieldPath<'_>) -> Option<T>,
) -> Result<T, D::Error> {
    let node = Node::deserialize(deserializer)?;
    let mut report = Report::default();
    let mut reader = Reader::new("".as_ref(), &mut report);
    let value = read(&mut reader, &node, FieldPath::Root);
    match (value, report.finish(())) {
        (Some(value), Ok(())) => Ok(value),
        (_, Err(errors)) => {
            let errors = errors.errors().iter().map(PolicyError::by_field);
            Err(D::Error::custom(errors.collect::<Vec<_>>().join("; ")))
        }
        (None, Ok(())) => Err(D::Error::custom("it cannot be read")),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

/// A value of one line.
const fn node(value: Value) -> Node {
    Node { line: 1, value }
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, a truth value, a list or a mapping")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(node(Value::Text(value.to_string())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(node(Value::Text(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(node(Value::Text(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(node(Value::Text(value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(node(Value::Text(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(node(Value::Text(value)))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(node(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(node(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(node(Value::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = entries.next_entry()? {
            pairs.push(pair);
        }
        Ok(node(Value::Map(pairs)))
    }
}
