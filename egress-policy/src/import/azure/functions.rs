//! Functions of ARM templates that say the same wherever the template is used.

use std::cmp::Ordering;

use crate::read::{Node, Value};

/// Longest text that an expression may make.
const TEXT_BYTES: usize = 16 * 1024;

/// Most items that an expression may count.
const ITEMS: i64 = 10_000;

/// The value of a call. `None` if the function or what it is given is not known here.
pub(super) fn call(name: &str, values: Vec<Node>) -> Option<Node> {
    match (name, values.as_slice()) {
        ("concat", [first, ..]) if matches!(first.value, Value::List(_)) => {
            let lists: Option<Vec<Vec<Node>>> = values.into_iter().map(items).collect();
            Some(list_node(lists?.into_iter().flatten().collect()))
        }
        ("concat", values) => {
            let texts: Option<Vec<&str>> = values.iter().map(text_of).collect();
            bounded(texts?.concat())
        }
        ("format", [form, values @ ..]) => format(text_of(form)?, values),
        ("tolower", [text]) => bounded(text_of(text)?.to_lowercase()),
        ("toupper", [text]) => bounded(text_of(text)?.to_uppercase()),
        ("trim", [text]) => bounded(text_of(text)?.trim().to_owned()),
        ("string", [text]) => bounded(text_of(text)?.to_owned()),
        ("int", [text]) => Some(number(number_of(text)?)),
        ("bool", [text]) => Some(truth_node(truth(text)?)),
        ("null", []) => Some(null_node()),
        ("true", []) => Some(truth_node(true)),
        ("false", []) => Some(truth_node(false)),
        ("createarray" | "array", [one])
            if name == "array" && matches!(one.value, Value::List(_)) =>
        {
            values.into_iter().next()
        }
        ("createarray", _) | ("array", [_]) => Some(list_node(values)),
        ("createobject", _) => object(values),
        ("replace", [text, from, to]) => {
            let (from, to) = (text_of(from)?, text_of(to)?);
            let is_known = !from.is_empty() && to.len() <= TEXT_BYTES;
            let text = text_of(text)?;
            is_known.then(|| bounded(text.replace(from, to)))?
        }
        ("split", [text, signs]) => {
            let parts = match &signs.value {
                Value::List(signs) => {
                    let signs: Option<Vec<char>> = signs.iter().map(sign).collect();
                    texts(text_of(text)?.split(signs?.as_slice()))
                }
                Value::Null | Value::Text(_) | Value::Map(_) => {
                    let sign = text_of(signs).filter(|sign| !sign.is_empty())?;
                    texts(text_of(text)?.split(sign))
                }
            };
            Some(parts)
        }
        ("join", [list, sign]) => {
            let parts: Option<Vec<&str>> = borrowed(list)?.iter().map(text_of).collect();
            bounded(parts?.join(text_of(sign)?))
        }
        ("startswith", [text, part]) => {
            let (text, part) = (text_of(text)?.to_lowercase(), text_of(part)?.to_lowercase());
            Some(truth_node(text.starts_with(&part)))
        }
        ("endswith", [text, part]) => {
            let (text, part) = (text_of(text)?.to_lowercase(), text_of(part)?.to_lowercase());
            Some(truth_node(text.ends_with(&part)))
        }
        ("length", [of]) => {
            let length = match &of.value {
                Value::List(items) => items.len(),
                Value::Map(pairs) => pairs.len(),
                Value::Text(text) => text.chars().count(),
                Value::Null => return None,
            };
            Some(number(i64::try_from(length).ok()?))
        }
        ("empty", [of]) => Some(truth_node(match &of.value {
            Value::Null => true,
            Value::List(items) => items.is_empty(),
            Value::Map(pairs) => pairs.is_empty(),
            Value::Text(text) => text.is_empty(),
        })),
        ("first", [of]) => match &of.value {
            Value::List(items) => items.first().cloned(),
            Value::Text(text) => bounded(text.chars().take(1).collect()),
            Value::Null | Value::Map(_) => None,
        },
        ("last", [of]) => match &of.value {
            Value::List(items) => items.last().cloned(),
            Value::Text(text) => bounded(text.chars().last().into_iter().collect()),
            Value::Null | Value::Map(_) => None,
        },
        ("take" | "skip", [of, count]) => {
            let count = usize::try_from(number_of(count)?.max(0)).ok()?;
            let is_take = name == "take";
            match &of.value {
                Value::List(items) if is_take => {
                    Some(list_node(items.iter().take(count).cloned().collect()))
                }
                Value::List(items) => Some(list_node(items.iter().skip(count).cloned().collect())),
                Value::Text(text) if is_take => bounded(text.chars().take(count).collect()),
                Value::Text(text) => bounded(text.chars().skip(count).collect()),
                Value::Null | Value::Map(_) => None,
            }
        }
        ("contains", [of, what]) => Some(truth_node(match &of.value {
            Value::List(items) => items.iter().any(|item| is_same(item, what)),
            Value::Map(pairs) => {
                let what = text_of(what)?;
                let mut keys = pairs.iter().filter_map(|(key, _)| text_of(key));
                keys.any(|key| key.eq_ignore_ascii_case(what))
            }
            Value::Text(text) => text.contains(text_of(what)?),
            Value::Null => return None,
        })),
        ("intersection", [first, rest @ ..]) => {
            let kept = borrowed(first)?.iter().filter(|item| {
                rest.iter().all(|list| {
                    borrowed(list).is_some_and(|list| list.iter().any(|one| is_same(one, item)))
                })
            });
            let kept = kept.cloned().collect();
            rest.iter()
                .all(|list| borrowed(list).is_some())
                .then(|| list_node(distinct(kept)))
        }
        ("flatten", [list]) => {
            let lists: Option<Vec<&[Node]>> = borrowed(list)?.iter().map(borrowed).collect();
            Some(list_node(lists?.concat()))
        }
        ("range", [from, count]) => {
            let (from, count) = (number_of(from)?, number_of(count)?);
            let end = from.checked_add(count)?;
            let is_known = (0..=ITEMS).contains(&count);
            is_known.then(|| list_node((from..end).map(number).collect()))
        }
        ("equals", [a, b]) => Some(truth_node(match (&a.value, &b.value) {
            (Value::Text(a), Value::Text(b)) => a.eq_ignore_ascii_case(b),
            _ => is_same(a, b),
        })),
        ("not", [value]) => Some(truth_node(!truth(value)?)),
        ("and", values) => {
            let truths: Option<Vec<bool>> = values.iter().map(truth).collect();
            Some(truth_node(truths?.into_iter().all(|truth| truth)))
        }
        ("or", values) => {
            let truths: Option<Vec<bool>> = values.iter().map(truth).collect();
            Some(truth_node(truths?.into_iter().any(|truth| truth)))
        }
        ("less" | "lessorequals" | "greater" | "greaterorequals", [a, b]) => {
            let order = number_of(a)?.cmp(&number_of(b)?);
            Some(truth_node(match name {
                "less" => order == Ordering::Less,
                "lessorequals" => order != Ordering::Greater,
                "greater" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }))
        }
        ("add" | "sub" | "mul" | "div" | "mod", [a, b]) => {
            let (a, b) = (number_of(a)?, number_of(b)?);
            let result = match name {
                "add" => a.checked_add(b),
                "sub" => a.checked_sub(b),
                "mul" => a.checked_mul(b),
                "div" => a.checked_div(b),
                _ => a.checked_rem(b),
            };
            result.map(number)
        }
        ("min" | "max", [_, ..]) => {
            let all = match values.as_slice() {
                [list] => borrowed(list)?,
                all => all,
            };
            let numbers: Option<Vec<i64>> = all.iter().map(number_of).collect();
            let numbers = numbers?.into_iter();
            let found = if name == "min" {
                numbers.min()
            } else {
                numbers.max()
            };
            found.map(number)
        }
        // What counts is the last part, by which groups are found.
        ("resourceid", [.., kind, name]) => {
            bounded(format!("{}/{}", text_of(kind)?, text_of(name)?))
        }
        _ => None,
    }
}

/// `{0}` and so on, and doubled braces; not with a form, such as `{0:D2}`.
fn format(form: &str, values: &[Node]) -> Option<Node> {
    let mut text = String::new();
    let mut rest = form;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, after) = rest.split_at(at);
        text.push_str(before);
        if let Some(after) = after.strip_prefix("{{") {
            text.push('{');
            rest = after;
        } else if let Some(after) = after.strip_prefix("}}") {
            text.push('}');
            rest = after;
        } else {
            let (index, after) = after.strip_prefix('{')?.split_once('}')?;
            text.push_str(text_of(values.get(index.parse::<usize>().ok()?)?)?);
            rest = after;
        }
        (text.len() <= TEXT_BYTES).then_some(())?;
    }
    text.push_str(rest);
    bounded(text)
}

/// `createObject('a', 1, 'b', 2)`
fn object(values: Vec<Node>) -> Option<Node> {
    let mut pairs = Vec::new();
    let mut values = values.into_iter();
    while let Some(key) = values.next() {
        text_of(&key)?;
        pairs.push((key, values.next()?));
    }
    let value = Value::Map(pairs);
    Some(Node { line: 0, value })
}

/// All items of lists, each once, or all fields of mappings, of which the last counts.
pub(super) fn union(values: Vec<Node>) -> Option<Node> {
    if let [first, ..] = values.as_slice()
        && matches!(first.value, Value::Map(_))
    {
        let mut all: Vec<(Node, Node)> = Vec::new();
        for value in values {
            let Value::Map(pairs) = value.value else {
                return None;
            };
            for (key, value) in pairs {
                match all.iter_mut().find(|(known, _)| is_same(known, &key)) {
                    // Mappings in both are joined too, which is known only where there is nothing to join.
                    Some((_, known)) if matches!(known.value, Value::Map(_)) => return None,
                    Some((_, known)) => *known = value,
                    None => all.push((key, value)),
                }
            }
        }
        let value = Value::Map(all);
        return Some(Node { line: 0, value });
    }
    let lists: Option<Vec<Vec<Node>>> = values.into_iter().map(items).collect();
    Some(list_node(distinct(lists?.into_iter().flatten().collect())))
}

fn distinct(items: Vec<Node>) -> Vec<Node> {
    let mut seen = std::collections::HashSet::new();
    let kept = items.into_iter();
    kept.filter(|item| seen.insert(shown(item))).collect()
}

fn is_same(a: &Node, b: &Node) -> bool {
    shown(a) == shown(b)
}

/// The value as a text that no other value has.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Null => "~".to_owned(),
        Value::Text(text) => format!("{text:?}"),
        Value::List(items) => format!("{:?}", items.iter().map(shown).collect::<Vec<_>>()),
        Value::Map(pairs) => {
            let mut pairs: Vec<_> = pairs
                .iter()
                .map(|(key, value)| (shown(key), shown(value)))
                .collect();
            pairs.sort();
            format!("{{{pairs:?}}}")
        }
    }
}

/// True if a value says yes.
pub(super) fn truth(node: &Node) -> Option<bool> {
    match text_of(node)?.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn truth_node(truth: bool) -> Node {
    text_node(truth.to_string())
}

fn number_of(node: &Node) -> Option<i64> {
    text_of(node)?.parse().ok()
}

fn number(number: i64) -> Node {
    text_node(number.to_string())
}

fn sign(node: &Node) -> Option<char> {
    let mut signs = text_of(node)?.chars();
    let sign = signs.next()?;
    signs.next().is_none().then_some(sign)
}

fn texts<'a>(texts: impl Iterator<Item = &'a str>) -> Node {
    list_node(texts.map(|text| text_node(text.to_owned())).collect())
}

fn items(list: Node) -> Option<Vec<Node>> {
    match list.value {
        Value::List(items) => Some(items),
        Value::Null | Value::Text(_) | Value::Map(_) => None,
    }
}

fn borrowed(list: &Node) -> Option<&[Node]> {
    match &list.value {
        Value::List(items) => Some(items),
        Value::Null | Value::Text(_) | Value::Map(_) => None,
    }
}

pub(super) fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

pub(super) const fn text_node(text: String) -> Node {
    Node {
        line: 0,
        value: Value::Text(text),
    }
}

pub(super) const fn null_node() -> Node {
    Node {
        line: 0,
        value: Value::Null,
    }
}

const fn list_node(items: Vec<Node>) -> Node {
    Node {
        line: 0,
        value: Value::List(items),
    }
}

fn bounded(text: String) -> Option<Node> {
    (text.len() <= TEXT_BYTES).then(|| text_node(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Node {
        let (mut documents, wrong) = crate::read::yaml::documents(text);
        assert!(wrong.is_none(), "{text}");
        documents.pop().unwrap()
    }

    #[test]
    fn functions_say_what_they_say_in_templates() {
        for (name, values, result) in [
            ("union", "[[a, b], [b, c, c]]", "[a, b, c]"),
            ("union", "[{a: 1, b: 2}, {b: 3}]", "{a: 1, b: 3}"),
            ("replace", "[a-b-c, '-', '.']", "a.b.c"),
            ("format", "['{0}-{1}-{{x}}', a, 2]", "'a-2-{x}'"),
            ("split", "['a,b;c', [',', ';']]", "[a, b, c]"),
            ("join", "[[a, b], ', ']", "'a, b'"),
            ("length", "[[a, b]]", "2"),
            ("length", "[abc]", "3"),
            ("take", "[[a, b, c], 2]", "[a, b]"),
            ("skip", "[[a, b, c], 2]", "[c]"),
            ("first", "[[a, b]]", "a"),
            ("last", "[abc]", "c"),
            ("contains", "[[a, b], b]", "true"),
            ("contains", "[{a: 1}, A]", "true"),
            ("intersection", "[[a, b, c], [c, a]]", "[a, c]"),
            ("flatten", "[[[a], [b, c]]]", "[a, b, c]"),
            ("range", "[2, 3]", "[2, 3, 4]"),
            ("equals", "[A, a]", "true"),
            ("and", "[true, 'false']", "false"),
            ("or", "[true, 'false']", "true"),
            ("not", "['false']", "true"),
            ("add", "[1, 2]", "3"),
            ("max", "[[1, 3, 2]]", "3"),
            ("createObject", "[a, 1]", "{a: 1}"),
            ("empty", "[[]]", "true"),
            ("toUpper", "[a]", "A"),
        ] {
            let Value::List(arguments) = value(values).value else {
                panic!("{values}");
            };
            let arguments = match values {
                "[[]]" => vec![value("[]")],
                _ => arguments,
            };
            let made = call(&name.to_lowercase(), arguments.clone());
            let made = if name == "union" {
                union(arguments)
            } else {
                made
            };
            let made = made.map(|node| shown(&node));
            assert_eq!(made, Some(shown(&value(result))), "{name} {values}");
        }
    }

    #[test]
    fn what_is_not_known_has_no_value() {
        for (name, values) in [
            ("format", "['{0:D2}', 1]"),
            ("format", "['{1}', 1]"),
            ("replace", "[a, '', b]"),
            ("range", "[0, 999999999]"),
            ("div", "[1, 0]"),
            ("length", "[~]"),
            ("subscription", "[]"),
            ("join", "[a, b]"),
        ] {
            let Value::List(arguments) = value(values).value else {
                panic!("{values}");
            };
            assert!(call(name, arguments).is_none(), "{name} {values}");
        }
        assert!(union(vec![value("[a]"), value("b")]).is_none());
        assert!(union(vec![value("{a: {b: 1}}"), value("{a: {c: 1}}")]).is_none());
    }
}
