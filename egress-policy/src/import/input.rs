//! Trees of other formats: values that know their place.

use std::path::Path;

use crate::{
    read::{Node, Place, Value},
    vocabulary::quoted,
};

/// Longest value that a note or comment repeats, in characters.
const SHOWN: usize = 120;

/// A value of a file, and the fields that lead to it.
#[derive(Clone, Debug)]
pub(super) struct Item<'n> {
    file: &'n Path,
    path: String,
    node: &'n Node,
}

impl<'n> Item<'n> {
    /// A document.
    pub(super) const fn root(file: &'n Path, node: &'n Node) -> Self {
        Self {
            file,
            path: String::new(),
            node,
        }
    }

    /// The file, as messages call it.
    pub(super) const fn file(&self) -> &'n Path {
        self.file
    }

    /// The value with its line.
    pub(super) const fn node(&self) -> &'n Node {
        self.node
    }

    /// The value.
    pub(super) const fn value(&self) -> &'n Value {
        &self.node.value
    }

    /// The field that it is, or its place in a list.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        Place::field(self.file, self.node.line, self.path.clone())
    }

    /// File and line, for comments.
    pub(super) fn origin(&self) -> String {
        format!("{}:{}", self.file.display(), self.node.line)
    }

    /// Another value at the same place, as an expression stands for one.
    pub(super) fn with_node<'m>(&self, node: &'m Node) -> Item<'m>
    where
        'n: 'm,
    {
        Item {
            file: self.file,
            path: self.path.clone(),
            node,
        }
    }

    /// A field that is there and not empty.
    pub(super) fn get(&self, name: &str) -> Option<Self> {
        let mut fields = self.fields();
        fields.find_map(|(key, item)| (key == name).then_some(item))
    }

    /// A field of a field.
    pub(super) fn at(&self, first: &str, second: &str) -> Option<Self> {
        self.get(first)?.get(second)
    }

    /// A field that is text.
    pub(super) fn word(&self, name: &str) -> Option<&'n str> {
        self.get(name)?.text()
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&'n str> {
        match self.value() {
            Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The fields of a mapping that are not empty; none of another value.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'n str, Self)> {
        let pairs: &[(Node, Node)] = match self.value() {
            Value::Map(pairs) => pairs,
            Value::Null | Value::Text(_) | Value::List(_) => &[],
        };
        pairs.iter().filter_map(|(key, node)| {
            let Value::Text(name) = &key.value else {
                return None;
            };
            if matches!(node.value, Value::Null) {
                return None;
            }
            let path = if self.path.is_empty() {
                name.clone()
            } else {
                format!("{}.{name}", self.path)
            };
            let file = self.file;
            Some((name.as_str(), Self { file, path, node }))
        })
    }

    /// The items of a list; none of another value.
    pub(super) fn items(&self) -> impl Iterator<Item = Self> {
        let nodes: &[Node] = match self.value() {
            Value::List(nodes) => nodes,
            Value::Null | Value::Text(_) | Value::Map(_) => &[],
        };
        nodes.iter().enumerate().map(|(index, node)| Self {
            file: self.file,
            path: format!("{}[{index}]", self.path),
            node,
        })
    }

    /// True if it is a mapping.
    pub(super) const fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// True if it says nothing: no text, no item, no field, or `false`.
    pub(super) fn says_nothing(&self) -> bool {
        match self.value() {
            Value::Null => true,
            Value::Text(text) => text.is_empty() || text == "false",
            Value::List(items) => items.is_empty(),
            Value::Map(pairs) => pairs.is_empty(),
        }
    }

    /// The value on one line, for notes and comments; long ones are cut.
    pub(super) fn shown(&self) -> String {
        let mut text = String::new();
        show(self.node, &mut text);
        cut(&text)
    }
}

/// A text for notes and comments: long ones are cut.
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}

fn show(node: &Node, out: &mut String) {
    // What follows is cut off anyway.
    if out.len() > SHOWN.saturating_mul(4) {
        return;
    }
    match &node.value {
        Value::Null => out.push('~'),
        Value::Text(text) => out.push_str(text),
        Value::List(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push_str(", ");
                }
                show(item, out);
            }
            out.push(']');
        }
        Value::Map(pairs) => {
            out.push('{');
            for (number, (key, value)) in pairs.iter().enumerate() {
                if number > 0 {
                    out.push_str(", ");
                }
                show(key, out);
                out.push_str(": ");
                show(value, out);
            }
            out.push('}');
        }
    }
}

/// The lines of a text, as nodes of it; without the mark of byte order that some editors put before the first one.
pub(super) fn lines(text: &str) -> Vec<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().enumerate().map(|(index, line)| Node {
        line: index.saturating_add(1),
        value: Value::Text(line.to_owned()),
    });
    lines.collect()
}

/// The first texts of a list, and how many more there are.
pub(super) fn some_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    const MOST: usize = 3;
    let texts: Vec<&str> = texts.into_iter().collect();
    let mut shown: Vec<String> = texts.iter().take(MOST).map(|text| cut(text)).collect();
    let hidden = texts.len().saturating_sub(MOST);
    if hidden > 0 {
        shown.push(format!("{hidden} more"));
    }
    shown.join(", ")
}

/// A text in quotes that is a name or address of the source.
pub(super) fn named(text: &str) -> String {
    quoted(text)
}
