//! Parts of a document that has become values: what they are called, and where they were written.

use super::{
    reader::FieldPath,
    yaml::{Node, Value},
};

/// A part of a document: its field path, and where it was written.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    /// The field path.
    pub(crate) path: FieldPath<'a>,
    /// Line, from 1: of what is not there, of what it would stand in. An object has one line.
    pub(crate) line: usize,
    written: Written<'a>,
}

/// How a part was written.
#[derive(Clone, Copy)]
enum Written<'a> {
    /// In an object of an API server, of which the values alone are known.
    Object,
    /// In a file, like this.
    Node(&'a Node),
    /// Not at all, in a file.
    Absent,
}

impl<'a> Part<'a> {
    /// The whole document: of a file its tree, of an object nothing.
    pub(crate) fn document(tree: Option<&'a Node>) -> Self {
        Self {
            path: FieldPath::Root,
            line: tree.map_or(1, |node| node.line),
            written: tree.map_or(Written::Object, Written::Node),
        }
    }

    /// The part, on the line of what it stands in.
    pub(crate) const fn on_line(mut self, line: usize) -> Self {
        self.line = line;
        self
    }

    /// A field of a mapping. Where it stands twice, the last one counts, as it does for its value.
    pub(crate) fn field<'b>(&'b self, name: &'b str) -> Part<'b> {
        let written = match self.written {
            Written::Object => Written::Object,
            Written::Absent => Written::Absent,
            Written::Node(node) => {
                let pairs = match &node.value {
                    Value::Map(pairs) => pairs.as_slice(),
                    Value::Null | Value::Text(_) | Value::List(_) => &[],
                };
                let last = pairs
                    .iter()
                    .rfind(|(key, _)| matches!(&key.value, Value::Text(text) if text == name));
                last.map_or(Written::Absent, |(_, value)| Written::Node(value))
            }
        };
        Part {
            path: FieldPath::Field(&self.path, name),
            line: match written {
                Written::Node(node) => node.line,
                Written::Object | Written::Absent => self.line,
            },
            written,
        }
    }

    /// The items of a list that became values, with their positions: in a file those of a kind, the others were
    /// reported and left out.
    pub(crate) fn items<'b>(
        &'b self,
        became_value: fn(&Value) -> bool,
    ) -> impl Iterator<Item = (usize, Part<'b>)> {
        let (nodes, of_object): (&[Node], usize) = match self.written {
            Written::Object => (&[], usize::MAX),
            Written::Node(Node {
                value: Value::List(items),
                ..
            }) => (items, 0),
            Written::Node(_) | Written::Absent => (&[], 0),
        };
        let item = |index, line, written| {
            let path = FieldPath::Item(&self.path, index);
            let part = Part {
                path,
                line,
                written,
            };
            (index, part)
        };
        let of_file = nodes
            .iter()
            .enumerate()
            .filter(move |(_, node)| became_value(&node.value))
            .map(move |(index, node)| item(index, node.line, Written::Node(node)));
        let of_object = (0..of_object).map(move |index| item(index, self.line, Written::Object));
        of_file.chain(of_object)
    }

    /// The keys and lines of a mapping in a file, in its order; nothing for others.
    pub(crate) fn keys(&self) -> Option<Vec<(&'a str, usize)>> {
        let Written::Node(Node {
            value: Value::Map(pairs),
            ..
        }) = self.written
        else {
            return None;
        };
        let keys = pairs.iter().filter_map(|(key, _)| match &key.value {
            Value::Text(text) => Some((text.as_str(), key.line)),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        });
        Some(keys.collect())
    }

    /// True if a file has it, be it empty.
    pub(crate) const fn is_there(&self) -> bool {
        matches!(self.written, Written::Node(_))
    }

    /// True if a file has it, and not empty.
    pub(crate) const fn is_given(&self) -> bool {
        match self.written {
            Written::Node(node) => !matches!(node.value, Value::Null),
            Written::Object | Written::Absent => false,
        }
    }

    /// True if a file does not have it, so that its value is the default.
    pub(crate) const fn is_default(&self) -> bool {
        match self.written {
            Written::Node(node) => matches!(node.value, Value::Null),
            Written::Absent => true,
            Written::Object => false,
        }
    }

    /// True if its value is what was written: not if a file has something of another kind there, which was reported.
    pub(crate) fn is_read(&self, became_value: fn(&Value) -> bool) -> bool {
        match self.written {
            Written::Node(node) => became_value(&node.value),
            Written::Object | Written::Absent => true,
        }
    }

    /// True if a list that came to `count` values was written without any.
    pub(crate) fn is_empty_list(&self, count: usize) -> bool {
        match self.written {
            Written::Node(node) => match &node.value {
                Value::Null => true,
                Value::List(items) => items.is_empty(),
                Value::Text(_) | Value::Map(_) => false,
            },
            Written::Object | Written::Absent => count == 0,
        }
    }
}

/// True if it is a text.
pub(crate) const fn is_text(value: &Value) -> bool {
    matches!(value, Value::Text(_))
}

/// True if it is a mapping.
pub(crate) const fn is_mapping(value: &Value) -> bool {
    matches!(value, Value::Map(_))
}
