//! ARM templates: expressions whose value stands in the template or a parameters file are replaced by it.

use std::{cell::Cell, collections::HashMap};

use super::expression::{Expression, inside, parse};
use crate::policy::{
    import::input::Item,
    yaml::{Node, Value},
};

/// Most steps on the way from an expression to its value.
const DEPTH: usize = 16;

/// Most values that the expressions of one template may stand for, and most steps to them.
const VALUES: usize = 100_000;

/// Longest text that an expression may make.
const TEXT_BYTES: usize = 16 * 1024;

/// Values by name in lower case, for ARM does not tell cases apart.
pub(super) type Values = HashMap<String, Node>;

/// What names stand for, in one template.
struct Scope<'a> {
    parameters: Values,
    variables: Values,
    left: &'a Cell<usize>,
}

/// The values of a parameters file.
pub(super) fn parameters_of(file: &Item<'_>) -> Values {
    let parameters = file.get("parameters");
    let fields = parameters.iter().flat_map(Item::fields);
    let values = fields.filter_map(|(name, item)| Some((name.to_lowercase(), item.get("value")?)));
    values
        .map(|(name, item)| (name, item.node().clone()))
        .collect()
}

/// The template with values in the place of expressions; those that have none stay.
pub(super) fn resolved(template: &Item<'_>, given: &Values) -> Node {
    let left = Cell::new(VALUES);
    inner(template.node(), given, &left, 0)
}

fn inner(template: &Node, given: &Values, left: &Cell<usize>, depth: usize) -> Node {
    let scope = Scope::new(template, given, left);
    let mut resolved = template.clone();
    if let Value::Map(pairs) = &mut resolved.value {
        for (key, value) in pairs {
            if matches!(&key.value, Value::Text(name) if name == "resources") {
                *value = scope.resolve_resources(value, depth);
            }
        }
    }
    resolved
}

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    match &node.value {
        Value::Map(pairs) => {
            let mut pairs = pairs.iter();
            let found =
                pairs.find(|(key, _)| matches!(&key.value, Value::Text(text) if text == name));
            found.map(|(_, value)| value)
        }
        Value::Null | Value::Text(_) | Value::List(_) => None,
    }
}

fn field_mut<'n>(node: &'n mut Node, name: &str) -> Option<&'n mut Node> {
    match &mut node.value {
        Value::Map(pairs) => {
            let mut pairs = pairs.iter_mut();
            let found =
                pairs.find(|(key, _)| matches!(&key.value, Value::Text(text) if text == name));
            found.map(|(_, value)| value)
        }
        Value::Null | Value::Text(_) | Value::List(_) => None,
    }
}

impl<'a> Scope<'a> {
    fn new(template: &Node, given: &Values, left: &'a Cell<usize>) -> Self {
        let mut parameters = Values::new();
        let mut variables = Values::new();
        if let Some(Value::Map(pairs)) = field(template, "parameters").map(|node| &node.value) {
            for (key, value) in pairs {
                let Value::Text(name) = &key.value else {
                    continue;
                };
                let name = name.to_lowercase();
                if let Some(value) = given.get(&name).or_else(|| field(value, "defaultValue")) {
                    parameters.insert(name, value.clone());
                }
            }
        }
        if let Some(Value::Map(pairs)) = field(template, "variables").map(|node| &node.value) {
            for (key, value) in pairs {
                if let Value::Text(name) = &key.value {
                    variables.insert(name.to_lowercase(), value.clone());
                }
            }
        }
        Self {
            parameters,
            variables,
            left,
        }
    }

    /// Resolves resources, and templates inside of them in their own scope if they have one.
    fn resolve_resources(&self, resources: &Node, depth: usize) -> Node {
        let value = match &resources.value {
            Value::List(items) => Value::List(
                items
                    .iter()
                    .map(|item| self.resolve_resource(item, depth))
                    .collect(),
            ),
            Value::Map(pairs) => {
                let pairs = pairs.iter();
                let resolved =
                    pairs.map(|(key, item)| (key.clone(), self.resolve_resource(item, depth)));
                Value::Map(resolved.collect())
            }
            Value::Null | Value::Text(_) => resources.value.clone(),
        };
        Node {
            line: resources.line,
            value,
        }
    }

    fn resolve_resource(&self, resource: &Node, depth: usize) -> Node {
        let properties = field(resource, "properties");
        let options = properties.and_then(|node| field(node, "expressionEvaluationOptions"));
        let scope = options.and_then(|node| field(node, "scope"));
        let is_inner = scope.is_some_and(
            |scope| matches!(&scope.value, Value::Text(text) if text.eq_ignore_ascii_case("inner")),
        );
        let template = properties.and_then(|node| field(node, "template"));
        let Some(template) = template.filter(|_| is_inner && depth < DEPTH) else {
            return self.resolve(resource, depth);
        };
        let mut given = Values::new();
        let parameters = properties.and_then(|node| field(node, "parameters"));
        if let Some(Value::Map(pairs)) = parameters.map(|node| &node.value) {
            for (key, value) in pairs {
                if let (Value::Text(name), Some(value)) = (&key.value, field(value, "value")) {
                    given.insert(name.to_lowercase(), self.resolve(value, depth));
                }
            }
        }
        let template = inner(template, &given, self.left, depth.saturating_add(1));
        let mut resolved = resource.clone();
        let place = field_mut(&mut resolved, "properties");
        if let Some(place) = place.and_then(|node| field_mut(node, "template")) {
            *place = template;
        }
        resolved
    }

    fn resolve(&self, node: &Node, depth: usize) -> Node {
        let value = match &node.value {
            Value::Null => Value::Null,
            Value::Text(text) => match inside(text) {
                Some(expression) => {
                    let value = parse(expression).and_then(|parsed| self.value_of(&parsed, depth));
                    match value {
                        Some(value) => placed(value, node.line).value,
                        None => node.value.clone(),
                    }
                }
                None => match text.strip_prefix("[[") {
                    Some(rest) => Value::Text(format!("[{rest}")),
                    None => node.value.clone(),
                },
            },
            Value::List(items) => {
                Value::List(items.iter().map(|item| self.resolve(item, depth)).collect())
            }
            Value::Map(pairs) => {
                let pairs = pairs.iter();
                let resolved = pairs.map(|(key, value)| (key.clone(), self.resolve(value, depth)));
                Value::Map(resolved.collect())
            }
        };
        Node {
            line: node.line,
            value,
        }
    }

    /// The value of an expression. `None` if it is not known here.
    fn value_of(&self, expression: &Expression, depth: usize) -> Option<Node> {
        let depth = depth.saturating_add(1);
        if depth > DEPTH || !self.spend(1) {
            return None;
        }
        match expression {
            Expression::Text(text) => Some(text_node(text.clone())),
            Expression::Field(of, name) => {
                let of = self.value_of(of, depth)?;
                field(&of, name).cloned()
            }
            Expression::Item(of, index) => match self.value_of(of, depth)?.value {
                Value::List(items) => items.into_iter().nth(*index),
                Value::Null | Value::Text(_) | Value::Map(_) => None,
            },
            Expression::Call(name, arguments) => self.call(&name.to_lowercase(), arguments, depth),
        }
    }

    fn call(&self, name: &str, arguments: &[Expression], depth: usize) -> Option<Node> {
        let values = arguments
            .iter()
            .map(|argument| self.value_of(argument, depth));
        let values: Option<Vec<Node>> = values.collect();
        let values = values?;
        match (name, values.as_slice()) {
            ("parameters", [name]) => self.named(&self.parameters, name, depth),
            ("variables", [name]) => self.named(&self.variables, name, depth),
            ("concat", [first, ..]) if matches!(first.value, Value::List(_)) => {
                let lists = values.into_iter().map(|node| match node.value {
                    Value::List(items) => Some(items),
                    Value::Null | Value::Text(_) | Value::Map(_) => None,
                });
                let lists: Option<Vec<Vec<Node>>> = lists.collect();
                Some(list_node(lists?.into_iter().flatten().collect()))
            }
            ("concat", values) => {
                let texts: Option<Vec<&str>> = values.iter().map(text_of).collect();
                bounded(texts?.concat())
            }
            ("format", [form, values @ ..]) => {
                let mut text = text_of(form)?.to_owned();
                for (index, value) in values.iter().enumerate() {
                    text = bounded_text(text.replace(&format!("{{{index}}}"), text_of(value)?))?;
                }
                bounded(text)
            }
            ("tolower", [text]) => bounded(text_of(text)?.to_lowercase()),
            ("createarray", _) => Some(list_node(values)),
            // What counts is the last part, by which groups are found.
            ("resourceid", [.., kind, name]) => {
                bounded(format!("{}/{}", text_of(kind)?, text_of(name)?))
            }
            _ => None,
        }
    }

    fn named(&self, values: &Values, name: &Node, depth: usize) -> Option<Node> {
        let value = values.get(&text_of(name)?.to_lowercase())?;
        self.spend(values_in(value)).then_some(())?;
        let value = self.resolve(value, depth);
        let is_open = matches!(&value.value, Value::Text(text) if inside(text).is_some());
        (!is_open).then_some(value)
    }

    /// Takes from what the template may cost; false if too little is left.
    fn spend(&self, count: usize) -> bool {
        match self.left.get().checked_sub(count) {
            Some(left) => {
                self.left.set(left);
                true
            }
            None => false,
        }
    }
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

fn text_node(text: String) -> Node {
    Node {
        line: 0,
        value: Value::Text(text),
    }
}

fn list_node(items: Vec<Node>) -> Node {
    Node {
        line: 0,
        value: Value::List(items),
    }
}

fn bounded_text(text: String) -> Option<String> {
    (text.len() <= TEXT_BYTES).then_some(text)
}

fn bounded(text: String) -> Option<Node> {
    bounded_text(text).map(text_node)
}

/// The value with a line for what an expression made.
fn placed(mut node: Node, line: usize) -> Node {
    if node.line == 0 {
        node.line = line;
    }
    if let Value::List(items) = node.value {
        let items = items.into_iter().map(|item| placed(item, line));
        node.value = Value::List(items.collect());
    }
    node
}

fn values_in(node: &Node) -> usize {
    let below: usize = match &node.value {
        Value::Null | Value::Text(_) => 0,
        Value::List(items) => items.iter().map(values_in).sum(),
        Value::Map(pairs) => pairs.iter().map(|(_, value)| values_in(value)).sum(),
    };
    below.saturating_add(1)
}
