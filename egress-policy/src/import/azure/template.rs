//! ARM templates: expressions whose value stands in the template or a parameters file are replaced by it.

use std::{cell::Cell, collections::HashMap};

use super::{
    expression::{Expression, inside, parse},
    functions::{self, null_node, text_node, text_of, truth, union},
};
use crate::{
    import::input::Item,
    read::{Node, Value},
};

/// Most steps on the way from an expression to its value.
const DEPTH: usize = 32;

/// Most values that the expressions of one template may stand for, and most steps to them.
const VALUES: usize = 100_000;

/// Values by name in lower case, for ARM does not tell cases apart.
pub(super) type Values = HashMap<String, Node>;

/// The values of names, in one template.
struct Scope<'a> {
    parameters: Values,
    variables: Values,
    /// Variables that a loop makes: a mapping with that loop.
    loops: Values,
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
                *value = scope.resolve_resources(value, Env::new(depth));
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
        let mut scope = Self {
            parameters,
            variables: Values::new(),
            loops: Values::new(),
            left,
        };
        if let Some(Value::Map(pairs)) = field(template, "variables").map(|node| &node.value) {
            for (key, value) in pairs {
                match (&key.value, &value.value) {
                    (Value::Text(name), Value::List(loops)) if name == "copy" => {
                        for one in loops {
                            // Its input may need variables that follow: it is a variable of one loop.
                            if let Some(name) = field(one, "name").and_then(text_of) {
                                let list = Node {
                                    line: one.line,
                                    value: Value::List(vec![one.clone()]),
                                };
                                let map = Value::Map(vec![(key.clone(), list)]);
                                let value = Node {
                                    line: one.line,
                                    value: map,
                                };
                                scope.loops.insert(name.to_lowercase(), value);
                            }
                        }
                    }
                    (Value::Text(name), _) => {
                        scope.variables.insert(name.to_lowercase(), value.clone());
                    }
                    _ => {}
                }
            }
        }
        scope
    }

    /// Resolves resources, and templates inside of them in their own scope if they have one.
    fn resolve_resources(&self, resources: &Node, env: Env<'_>) -> Node {
        let value = match &resources.value {
            Value::List(items) => Value::List(
                items
                    .iter()
                    .flat_map(|item| self.resolve_copies(item, env))
                    .collect(),
            ),
            Value::Map(pairs) => {
                let resolved = pairs.iter().flat_map(|(key, item)| {
                    let copies = self.resolve_copies(item, env);
                    copies.into_iter().map(|item| (key.clone(), item))
                });
                Value::Map(resolved.collect())
            }
            Value::Null | Value::Text(_) => resources.value.clone(),
        };
        Node {
            line: resources.line,
            value,
        }
    }

    /// A resource as often as its `copy` says. If that is not known it stays, with its `copy`.
    fn resolve_copies(&self, resource: &Node, env: Env<'_>) -> Vec<Node> {
        let copy = field(resource, "copy").filter(|copy| matches!(copy.value, Value::Map(_)));
        let Some(copy) = copy else {
            return vec![self.resolve_resource(resource, env)];
        };
        let name = field(copy, "name").and_then(text_of).unwrap_or_default();
        let Some(count) = self.count_of(copy, env) else {
            return vec![self.resolve_resource(resource, env)];
        };
        let mut one = resource.clone();
        if let Value::Map(pairs) = &mut one.value {
            pairs.retain(|(key, _)| text_of(key) != Some("copy"));
        }
        let copies = (0..count).map(|index| {
            let of = Loop {
                name,
                index,
                is_of_resource: true,
                around: env.around,
            };
            self.resolve_resource(
                &one,
                Env {
                    around: Some(&of),
                    ..env
                },
            )
        });
        copies.collect()
    }

    fn resolve_resource(&self, resource: &Node, env: Env<'_>) -> Node {
        let properties = field(resource, "properties");
        let options = properties.and_then(|node| field(node, "expressionEvaluationOptions"));
        let scope = options.and_then(|node| field(node, "scope"));
        let is_inner = scope.is_some_and(
            |scope| matches!(&scope.value, Value::Text(text) if text.eq_ignore_ascii_case("inner")),
        );
        let template = properties.and_then(|node| field(node, "template"));
        let Some(template) = template.filter(|_| is_inner && env.depth < DEPTH) else {
            let mut resolved = self.resolve_with_children(resource, env);
            // A template that shares what names stand for.
            if let Some(resources) = template.and_then(|template| field(template, "resources"))
                && env.depth < DEPTH
            {
                let env = Env {
                    depth: env.depth.saturating_add(1),
                    ..env
                };
                let resources = self.resolve_resources(resources, env);
                let place = field_mut(&mut resolved, "properties");
                let place = place.and_then(|node| field_mut(node, "template"));
                if let Some(place) = place.and_then(|node| field_mut(node, "resources")) {
                    *place = resources;
                }
            }
            return resolved;
        };
        let mut given = Values::new();
        let parameters = properties.and_then(|node| field(node, "parameters"));
        if let Some(Value::Map(pairs)) = parameters.map(|node| &node.value) {
            for (key, value) in pairs {
                if let (Value::Text(name), Some(value)) = (&key.value, field(value, "value")) {
                    given.insert(name.to_lowercase(), self.resolve(value, env));
                }
            }
        }
        let template = inner(template, &given, self.left, env.depth.saturating_add(1));
        let mut resolved = resource.clone();
        let place = field_mut(&mut resolved, "properties");
        if let Some(place) = place.and_then(|node| field_mut(node, "template")) {
            *place = template;
        }
        if let Some(condition) = field_mut(&mut resolved, "condition") {
            *condition = self.resolve(condition, env);
        }
        resolved
    }

    /// A resource, and those inside of it with loops of their own.
    fn resolve_with_children(&self, resource: &Node, env: Env<'_>) -> Node {
        let Value::Map(pairs) = &resource.value else {
            return self.resolve(resource, env);
        };
        let copy = field(resource, "copy").cloned();
        let rest = Node {
            line: resource.line,
            value: Value::Map(
                pairs
                    .iter()
                    .filter(|(key, _)| !matches!(text_of(key), Some("copy" | "resources")))
                    .cloned()
                    .collect(),
            ),
        };
        let mut resolved = self.resolve(&rest, env);
        if let Value::Map(fields) = &mut resolved.value {
            for (key, value) in pairs {
                match text_of(key) {
                    Some("copy") => fields.extend(copy.clone().map(|copy| (key.clone(), copy))),
                    Some("resources") if env.depth < DEPTH => {
                        let env = Env {
                            depth: env.depth.saturating_add(1),
                            ..env
                        };
                        fields.push((key.clone(), self.resolve_resources(value, env)));
                    }
                    Some("resources") => fields.push((key.clone(), value.clone())),
                    _ => {}
                }
            }
        }
        resolved
    }

    /// How often a `copy` repeats. `None` if it is not known, or too much.
    fn count_of(&self, copy: &Node, env: Env<'_>) -> Option<usize> {
        let count = self.resolve(field(copy, "count")?, env);
        let count: usize = text_of(&count)?.parse().ok()?;
        let weight = values_in(copy);
        self.spend(count.checked_mul(weight)?).then_some(count)
    }

    fn resolve(&self, node: &Node, env: Env<'_>) -> Node {
        let value = match &node.value {
            Value::Null => Value::Null,
            Value::Text(text) => match inside(text) {
                Some(expression) => {
                    let value = parse(expression).and_then(|parsed| self.value_of(&parsed, env));
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
                Value::List(items.iter().map(|item| self.resolve(item, env)).collect())
            }
            Value::Map(pairs) => {
                let mut resolved = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    if let (Value::List(loops), Some("copy")) = (&value.value, text_of(key)) {
                        resolved.extend(loops.iter().map(|one| self.looped(key, one, env)));
                    } else {
                        resolved.push((key.clone(), self.resolve(value, env)));
                    }
                }
                Value::Map(resolved)
            }
        };
        Node {
            line: node.line,
            value,
        }
    }

    /// The field that a loop makes. If it is not known how often, the field is the expression that says so.
    fn looped(&self, key: &Node, copy: &Node, env: Env<'_>) -> (Node, Node) {
        let parts = (
            field(copy, "name").and_then(text_of),
            field(copy, "count"),
            field(copy, "input"),
        );
        let (Some(name), Some(count), Some(input)) = parts else {
            // No loop, and nothing that is known.
            return (key.clone(), copy.clone());
        };
        let value = match self.count_of(copy, env) {
            Some(times) => {
                let items = (0..times).map(|index| {
                    let of = Loop {
                        name,
                        index,
                        is_of_resource: false,
                        around: env.around,
                    };
                    self.resolve(
                        input,
                        Env {
                            around: Some(&of),
                            ..env
                        },
                    )
                });
                Value::List(items.collect())
            }
            None => {
                let shown = text_of(count).and_then(inside).unwrap_or("copy()");
                Value::Text(format!("[{shown}]"))
            }
        };
        let key = Node {
            line: copy.line,
            value: Value::Text(name.to_owned()),
        };
        let line = copy.line;
        (key, Node { line, value })
    }

    /// The value of an expression. `None` if it is not known here.
    fn value_of(&self, expression: &Expression, env: Env<'_>) -> Option<Node> {
        let env = env.deeper()?;
        self.spend(1).then_some(())?;
        match expression {
            Expression::Text(text) => Some(text_node(text.clone())),
            Expression::Field(of, name) => {
                let of = self.value_of(of, env)?;
                field_of_any_case(&of, name).cloned()
            }
            Expression::Item(of, index) => item(self.value_of(of, env)?, *index),
            Expression::Key(of, key) => {
                let (of, key) = (self.value_of(of, env)?, self.value_of(key, env)?);
                match &of.value {
                    Value::List(_) => item(of, text_of(&key)?.parse().ok()?),
                    Value::Null | Value::Text(_) | Value::Map(_) => {
                        field_of_any_case(&of, text_of(&key)?).cloned()
                    }
                }
            }
            Expression::Call(name, arguments) => self.call(&name.to_lowercase(), arguments, env),
        }
    }

    fn call(&self, name: &str, arguments: &[Expression], env: Env<'_>) -> Option<Node> {
        // These do not need all that they name.
        match (name, arguments) {
            ("if", [condition, yes, no]) => {
                let condition = truth(&self.value_of(condition, env)?)?;
                return self.value_of(if condition { yes } else { no }, env);
            }
            ("coalesce", arguments) => {
                for argument in arguments {
                    let value = self.value_of(argument, env)?;
                    if !matches!(value.value, Value::Null) {
                        return Some(value);
                    }
                }
                return Some(null_node());
            }
            _ => {}
        }
        let values = arguments
            .iter()
            .map(|argument| self.value_of(argument, env));
        let values: Option<Vec<Node>> = values.collect();
        let values = values?;
        match (name, values.as_slice()) {
            ("parameters", [name]) => self.named(&self.parameters, name, env),
            ("variables", [name]) => {
                let value = self.named(&self.variables, name, env);
                value.or_else(|| {
                    let of_loop = self.named(&self.loops, name, env)?;
                    let Value::Map(mut pairs) = of_loop.value else {
                        return None;
                    };
                    let (_, list) = pairs.pop()?;
                    matches!(list.value, Value::List(_)).then_some(list)
                })
            }
            ("copyindex", values) => copy_index(values, env),
            ("union", _) => {
                let values = union(values)?;
                self.spend(values_in(&values)).then_some(values)
            }
            _ => functions::call(name, values),
        }
    }

    fn named(&self, values: &Values, name: &Node, env: Env<'_>) -> Option<Node> {
        let value = values.get(&text_of(name)?.to_lowercase())?;
        self.spend(values_in(value)).then_some(())?;
        // Loops around the name are none of the value's.
        let value = self.resolve(value, Env::new(env.depth));
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

/// Where an expression stands.
#[derive(Clone, Copy)]
struct Env<'l> {
    /// Steps on the way to it.
    depth: usize,
    around: Option<&'l Loop<'l>>,
}

impl Env<'_> {
    const fn new(depth: usize) -> Self {
        Self {
            depth,
            around: None,
        }
    }

    fn deeper(self) -> Option<Self> {
        let depth = self.depth.saturating_add(1);
        (depth <= DEPTH).then_some(Self { depth, ..self })
    }
}

/// A pass of a `copy`.
struct Loop<'l> {
    name: &'l str,
    index: usize,
    is_of_resource: bool,
    around: Option<&'l Loop<'l>>,
}

/// `copyIndex()`, `copyIndex(offset)`, `copyIndex('loop')` or `copyIndex('loop', offset)`.
fn copy_index(values: &[Node], env: Env<'_>) -> Option<Node> {
    let (name, offset) = match values {
        [] => (None, 0),
        [one] => match text_of(one)?.parse::<i64>() {
            Ok(offset) => (None, offset),
            Err(_) => (Some(text_of(one)?), 0),
        },
        [name, offset] => (Some(text_of(name)?), text_of(offset)?.parse().ok()?),
        _ => return None,
    };
    let mut around = env.around;
    while let Some(pass) = around {
        let is_it = match name {
            Some(name) => pass.name.eq_ignore_ascii_case(name),
            None => pass.is_of_resource,
        };
        if is_it {
            let index = i64::try_from(pass.index).ok()?.checked_add(offset)?;
            return Some(text_node(index.to_string()));
        }
        around = pass.around;
    }
    None
}

fn item(list: Node, index: usize) -> Option<Node> {
    match list.value {
        Value::List(items) => items.into_iter().nth(index),
        Value::Null | Value::Text(_) | Value::Map(_) => None,
    }
}

/// A field, whose name ARM reads in any case.
fn field_of_any_case<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Map(pairs) = &node.value else {
        return None;
    };
    let found = pairs
        .iter()
        .find(|(key, _)| text_of(key).is_some_and(|key| key.eq_ignore_ascii_case(name)));
    found.map(|(_, value)| value)
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
