//! YAML as a tree that knows its lines.
//!
//! All values are kept as text: whether `443` or `no` is a number or a word is
//! not YAML's to say here. Aliases work, within [`ALIAS_VALUES`]; tags are
//! refused, because what they ask for would not be done.

mod source;

use std::{borrow::Cow, cell::Cell, collections::HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use self::source::{MARKS_AHEAD, Source};
use super::error::ReadError;
use crate::vocabulary::quoted;

/// Most levels of lists and mappings.
const DEPTH: usize = 32;

/// Most values of one file; keys count. The kernel's tables hold fewer rules than this many values can say.
const VALUES: usize = 4_000_000;

/// Most values that the anchors and aliases of one file may repeat; keys count, and a text counts once more for
/// each [`TEXT_BYTES`].
const ALIAS_VALUES: usize = 100_000;

/// Bytes of text that weigh as much as a value.
const TEXT_BYTES: usize = 64;

/// A value and the line on which it starts.
#[derive(Clone, Debug)]
pub struct Node {
    /// Line, from 1.
    pub(crate) line: usize,
    /// The value.
    pub(crate) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Any text, number or truth value.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the file; keys may repeat.
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// Its kind, for messages.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// The error on a line.
pub(crate) type Wrong = (usize, ReadError);

/// The line, from 1, on which the byte at `position` stands.
pub(crate) fn line_at(bytes: &[u8], position: usize) -> usize {
    let before = bytes.iter().take(position);
    let breaks = before.filter(|byte| **byte == b'\n').count();
    breaks.saturating_add(1)
}

/// The documents of a text, those before the error too.
pub(crate) fn documents(text: &str) -> (Vec<Node>, Option<Wrong>) {
    documents_of(text, VALUES, MARKS_AHEAD)
}

fn documents_of(text: &str, values: usize, marks_ahead: usize) -> (Vec<Node>, Option<Wrong>) {
    let is_control = |byte: &u8| byte.is_ascii_control() && !b"\t\r\n".contains(byte);
    if let Some(position) = text.bytes().position(|byte| is_control(&byte)) {
        let line = line_at(text.as_bytes(), position);
        let byte = text.as_bytes().get(position).copied().unwrap_or_default();
        return (Vec::new(), Some((line, ReadError::Control(byte))));
    }
    let mut builder = Builder {
        values_left: values,
        ..Builder::default()
    };
    let mut last_line = 1;
    let left = Cell::new(marks_ahead);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for event in Parser::new(Source::new(text, &left)) {
        if left.replace(marks_ahead) == 0 {
            let line = event.map_or(last_line, |(_, span)| span.start.line());
            let problem = ReadError::FlowTooLong(marks_ahead);
            return (builder.documents, Some((line.max(1), problem)));
        }
        let (event, span) = match event {
            Ok(pair) => pair,
            Err(error) => {
                let line = error.marker().line().max(1);
                let problem = if error.info().contains("unknown anchor") {
                    ReadError::YamlStar
                } else if error.info().contains("recursion limit") {
                    // Its own limit, which it meets where it looks ahead.
                    ReadError::TooDeep(DEPTH)
                } else {
                    ReadError::Yaml(error.info().to_owned())
                };
                return (builder.documents, Some((line, problem)));
            }
        };
        last_line = span.start.line().max(last_line);
        if let Err(problem) = builder.take(event, span.start.line()) {
            return (builder.documents, Some((last_line, problem)));
        }
    }
    (builder.documents, None)
}

/// A list or mapping that is not complete.
struct Open {
    line: usize,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map(Vec<(Node, Node)>, Option<Node>),
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    values_left: usize,
    repeated: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), ReadError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag)?;
                let is_null = style == ScalarStyle::Plain
                    && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let value = if is_null {
                    Value::Null
                } else {
                    Value::Text(text.into_owned())
                };
                self.put(Node { line, value }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(tag)?;
                self.open(line, anchor, OpenKind::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(tag)?;
                self.open(line, anchor, OpenKind::Map(Vec::new(), None))?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Alias(anchor) => {
                // An anchor that is still open would hold itself.
                let node = self
                    .anchors
                    .get(&anchor)
                    .ok_or(ReadError::AliasBomb(ALIAS_VALUES))?;
                self.repeated = repeat(self.repeated, node)?;
                let node = node.clone();
                self.put(node, 0)?;
            }
            Event::DocumentStart(_) => self.anchors.clear(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn open(&mut self, line: usize, anchor: usize, kind: OpenKind) -> Result<(), ReadError> {
        if self.open.len() >= DEPTH {
            return Err(ReadError::TooDeep(DEPTH));
        }
        self.open.push(Open { line, anchor, kind });
        Ok(())
    }

    fn close(&mut self) -> Result<(), ReadError> {
        let Some(Open { line, anchor, kind }) = self.open.pop() else {
            return Ok(());
        };
        let value = match kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map(pairs, _) => Value::Map(pairs),
        };
        self.put(Node { line, value }, anchor)
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), ReadError> {
        self.values_left = self
            .values_left
            .checked_sub(1)
            .ok_or(ReadError::TooManyValues(VALUES))?;
        if anchor > 0 {
            // A copy: anchors within anchors would multiply what they hold.
            self.repeated = repeat(self.repeated, &node)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.documents.push(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map(pairs, key)) => match key.take() {
                None => *key = Some(node),
                Some(key) => pairs.push((key, node)),
            },
        }
        Ok(())
    }
}

/// The repeated weight with this value too.
fn repeat(repeated: usize, node: &Node) -> Result<usize, ReadError> {
    let repeated = repeated.saturating_add(weight(node));
    if repeated > ALIAS_VALUES {
        return Err(ReadError::AliasBomb(ALIAS_VALUES));
    }
    Ok(repeated)
}

/// Lets only those tags pass that say what a value is anyway.
fn refuse_tag(tag: Option<Cow<'_, Tag>>) -> Result<(), ReadError> {
    match tag {
        Some(tag)
            if !(tag.is_yaml_core_schema()
                && matches!(tag.suffix.as_str(), "str" | "seq" | "map")) =>
        {
            Err(ReadError::Tag(quoted(&tag.suffix)))
        }
        Some(_) | None => Ok(()),
    }
}

/// The weight of a tree: its values and keys, itself included, and its texts.
fn weight(node: &Node) -> usize {
    let below: usize = match &node.value {
        Value::Null => 0,
        Value::Text(text) => text.len().checked_div(TEXT_BYTES).unwrap_or(0),
        Value::List(items) => items.iter().map(weight).sum(),
        Value::Map(pairs) => pairs
            .iter()
            .map(|(key, value)| weight(key).saturating_add(weight(value)))
            .sum(),
    };
    below.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> (usize, ReadError) {
        documents(text).1.unwrap()
    }

    #[test]
    fn every_value_knows_its_line() {
        let (documents, wrong) = documents("# comment\na: 1\nb:\n  - x\n  - [y,\n     z]\n");
        assert_eq!(wrong, None);
        let Value::Map(pairs) = &documents[0].value else {
            panic!("no mapping");
        };
        let lines: Vec<_> = pairs
            .iter()
            .map(|(key, value)| (key.line, value.line))
            .collect();
        assert_eq!(lines, [(2, 2), (3, 4)]);
        let Value::List(items) = &pairs[1].1.value else {
            panic!("no list");
        };
        let Value::List(inner) = &items[1].value else {
            panic!("no list");
        };
        assert_eq!((items[0].line, items[1].line, inner[1].line), (4, 5, 6));
    }

    #[test]
    fn documents_before_an_error_are_kept() {
        let (documents, wrong) = documents("a: 1\n---\nb: [\n---\n");
        assert_eq!(documents.len(), 1);
        assert!(matches!(wrong, Some((4, ReadError::Yaml(_)))), "{wrong:?}");
    }

    #[test]
    fn an_alias_repeats_a_value_but_not_without_end() {
        let (docs, wrong) = documents("a: &x [1, 2]\nb: *x\n");
        assert_eq!((weight(&docs[0]), wrong), (9, None));

        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = level - 1;
            let items = vec![format!("*a{below}"); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert_eq!(problem(&bomb).1, ReadError::AliasBomb(ALIAS_VALUES));
        assert_eq!(
            problem("a: &a [*a]\n").1,
            ReadError::AliasBomb(ALIAS_VALUES)
        );
    }

    #[test]
    fn keys_and_long_texts_count_as_well() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = level - 1;
            let items = vec![format!("*a{below}"); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} {{ ? [{items}] : y }}\n"));
        }
        assert_eq!(problem(&bomb).1, ReadError::AliasBomb(ALIAS_VALUES));

        let long = "x".repeat(100_000);
        let aliases = vec!["*a"; 1_000].join(", ");
        let bomb = format!("a: &a {long}\nb: [{aliases}]\n");
        assert_eq!(problem(&bomb).1, ReadError::AliasBomb(ALIAS_VALUES));
    }

    #[test]
    fn anchors_within_anchors_are_counted() {
        let items = vec!["x"; 5_000].join(", ");
        let (open, close) = (
            (0..30).map(|level| format!("&a{level} [")),
            (0..30).map(|_| "]"),
        );
        let text = format!(
            "{}{items}{}\n",
            open.collect::<String>(),
            close.collect::<String>()
        );
        assert_eq!(problem(&text), (1, ReadError::AliasBomb(ALIAS_VALUES)));
        assert_eq!(documents(&format!("&a [{items}]\n")).1, None);
    }

    #[test]
    fn the_number_of_values_is_limited() {
        let text = "a: [x, y]\n";
        assert_eq!(documents_of(text, 5, MARKS_AHEAD).1, None);
        let wrong = documents_of(text, 4, MARKS_AHEAD).1;
        assert_eq!(wrong, Some((2, ReadError::TooManyValues(VALUES))));
    }

    #[test]
    fn a_list_in_brackets_is_read_ahead_to_a_limit() {
        let lines = |lines: &[&str]| documents_of(&lines.join("\n"), VALUES, 6).1;
        assert_eq!(lines(&["- a", "- [d, e, f]", "- [h, i, j]"]), None);
        let wrong = lines(&["- a", "- [d,", "  e, f, g, h, i]"]);
        assert_eq!(wrong, Some((2, ReadError::FlowTooLong(6))));
        assert_eq!(
            lines(&["a:", "- b", "- c", "- d", "- e", "- f", "- g"]),
            None
        );
    }

    #[test]
    fn control_characters_are_refused_where_they_stand() {
        for (text, line, byte) in [
            ("a: 1\nb: \0\n", 2, 0),
            ("a\0:\0", 1, 0),
            ("# \u{1b}[31m\na: 1\n", 1, 0x1b),
            ("a: \u{7f}\n", 1, 0x7f),
        ] {
            assert_eq!(problem(text), (line, ReadError::Control(byte)), "{text:?}");
        }
        assert_eq!(documents("a: b\t# \u{85}\r\n").1, None);
    }

    #[test]
    fn only_tags_that_change_nothing_pass() {
        assert_eq!(documents("a: !!str 1\nb: !!seq [x]\n").1, None);
        for (text, tag) in [
            ("a: !env HOST\n", "env"),
            ("a: 1\nb: !!binary aGk=\n", "binary"),
            ("!include [a]\n", "include"),
        ] {
            assert_eq!(
                problem(text).1,
                ReadError::Tag(format!("\"{tag}\"")),
                "{text}"
            );
        }
    }

    #[test]
    fn depth_is_limited() {
        assert_eq!(problem(&"[".repeat(33)).1, ReadError::TooDeep(DEPTH));
        assert_eq!(problem(&"- ".repeat(33)).1, ReadError::TooDeep(DEPTH));
        for many in ["[", "{", "{ a: ", "- "] {
            let problem = problem(&many.repeat(10_000)).1;
            assert_eq!(problem, ReadError::TooDeep(DEPTH), "{many}");
        }
        // The parser has a limit of its own, for it reads ahead.
        for text in ["[", "{a: ", "- ", "? "] {
            assert!(documents(&text.repeat(100_000)).1.is_some(), "{text}");
        }
    }

    #[test]
    fn only_plain_words_are_null() {
        let (documents, _) = documents("- ~\n- null\n-\n- ''\n- \"null\"\n- no\n");
        let Value::List(items) = &documents[0].value else {
            panic!("no list");
        };
        let nulls: Vec<_> = items
            .iter()
            .map(|item| matches!(item.value, Value::Null))
            .collect();
        assert_eq!(nulls, [true, true, true, false, false, false]);
    }
}
