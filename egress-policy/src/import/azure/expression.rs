//! Expressions of ARM templates, as far as they say something by themselves: `[concat(parameters('a'), '-x')]`.

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// `'text'`, or a number.
    Text(String),
    /// `name(arguments)`
    Call(String, Vec<Expression>),
    /// `of.field` or `of['field']`
    Field(Box<Expression>, String),
    /// `of[0]`
    Item(Box<Expression>, usize),
    /// `of[key]`, where an expression makes the key.
    Key(Box<Expression>, Box<Expression>),
}

/// Most levels of an expression.
const DEPTH: usize = 16;

/// The inside of a text that is an expression. `[[` at the beginning is a plain bracket.
pub(super) fn inside(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('[')?.strip_suffix(']')?;
    (!inside.starts_with('[')).then_some(inside)
}

/// Reads an expression. `None` if it is none that is known here.
pub(super) fn parse(text: &str) -> Option<Expression> {
    let mut parser = Parser { rest: text };
    let expression = parser.expression(0)?;
    parser.skip_space();
    parser.rest.is_empty().then_some(expression)
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expression(&mut self, depth: usize) -> Option<Expression> {
        if depth > DEPTH {
            return None;
        }
        let mut expression = self.primary(depth)?;
        for _ in 0..DEPTH {
            if self.take('.') {
                let field = self.word()?;
                expression = Expression::Field(Box::new(expression), field);
            } else if self.take('[') {
                let key = self.expression(depth.saturating_add(1))?;
                if !self.take(']') {
                    return None;
                }
                expression = match key {
                    Expression::Text(key) => match key.parse() {
                        Ok(index) => Expression::Item(Box::new(expression), index),
                        Err(_) => Expression::Field(Box::new(expression), key),
                    },
                    key @ (Expression::Call(..)
                    | Expression::Field(..)
                    | Expression::Item(..)
                    | Expression::Key(..)) => Expression::Key(Box::new(expression), Box::new(key)),
                };
            } else {
                break;
            }
        }
        Some(expression)
    }

    fn primary(&mut self, depth: usize) -> Option<Expression> {
        self.skip_space();
        if let Some(rest) = self.rest.strip_prefix('\'') {
            self.rest = rest;
            return self.quoted().map(Expression::Text);
        }
        self.skip_space();
        let sign = if self.rest.starts_with('-') { "-" } else { "" };
        self.rest = self.rest.strip_prefix('-').unwrap_or(self.rest);
        let word = format!("{sign}{}", self.word()?);
        if !sign.is_empty() || !self.take('(') {
            // Other bare words are no values.
            let is_number = word.parse::<i64>().is_ok();
            return is_number.then_some(Expression::Text(word));
        }
        let mut arguments = Vec::new();
        if self.take(')') {
            return Some(Expression::Call(word, arguments));
        }
        loop {
            arguments.push(self.expression(depth.saturating_add(1))?);
            if self.take(')') {
                return Some(Expression::Call(word, arguments));
            }
            if !self.take(',') {
                return None;
            }
        }
    }

    fn word(&mut self) -> Option<String> {
        self.skip_space();
        let is_other = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let end = self.rest.find(is_other).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }

    /// The rest of a text in quotes; two quotes stand for one.
    fn quoted(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            let (part, rest) = self.rest.split_once('\'')?;
            text.push_str(part);
            match rest.strip_prefix('\'') {
                Some(rest) => {
                    text.push('\'');
                    self.rest = rest;
                }
                None => {
                    self.rest = rest;
                    return Some(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    fn call(name: &str, arguments: Vec<Expression>) -> Expression {
        Expression::Call(name.to_owned(), arguments)
    }

    #[test]
    fn calls_fields_and_items_are_read() {
        let of = |name: &str| call("variables", vec![text(name)]);
        let field = Expression::Field(Box::new(of("a")), "b".to_owned());
        for (source, expression) in [
            ("'it''s'", text("it's")),
            ("parameters('x')", call("parameters", vec![text("x")])),
            (
                " concat( 'a' , variables('a') ) ",
                call("concat", vec![text("a"), of("a")]),
            ),
            ("resourceGroup()", call("resourceGroup", vec![])),
            ("variables('a').b", field.clone()),
            ("variables('a')['b']", field.clone()),
            ("variables('a').b[2]", Expression::Item(Box::new(field), 2)),
            (
                "variables('a')[copyIndex('x')]",
                Expression::Key(
                    Box::new(of("a")),
                    Box::new(call("copyIndex", vec![text("x")])),
                ),
            ),
            ("add(-1, 2)", call("add", vec![text("-1"), text("2")])),
        ] {
            assert_eq!(parse(source), Some(expression), "{source}");
        }
    }

    #[test]
    fn what_is_no_expression_is_none() {
        for source in [
            "",
            "a",
            "'a",
            "a(",
            "a('b'",
            "a('b' 'c')",
            "a()b",
            "a().",
            "a()[b]",
            "a()[b()",
            "-a()",
            "-",
            "a()[0",
        ] {
            assert_eq!(parse(source), None, "{source}");
        }
        assert_eq!(parse(&"a(".repeat(100_000)), None);
    }

    #[test]
    fn double_brackets_are_text() {
        assert_eq!(inside("[a()]"), Some("a()"));
        for text in ["a", "[a", "a]", "[[a]", "["] {
            assert_eq!(inside(text), None, "{text}");
        }
    }
}
