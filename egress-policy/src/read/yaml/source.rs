//! The text that the YAML parser reads, with a bound for how far it reads ahead.
//!
//! A list in brackets may turn out to be a key, so the parser keeps all of it before it tells anything. It keeps at
//! most two tokens for each mark of the flow style.

use std::cell::Cell;

use saphyr_parser::Input;

/// Most marks (brackets, commas, quotes and the like) that are read before the parser tells what it found.
pub(super) const MARKS_AHEAD: usize = 2_000_000;

/// How many characters the parser asks for at once. It makes room for as many in each text.
const AT_ONCE: usize = 31;

/// A text that ends early when too much of it was read ahead.
pub(super) struct Source<'a> {
    rest: &'a str,
    /// Marks that may still be read until the parser tells something.
    left: &'a Cell<usize>,
    lookahead: usize,
}

impl<'a> Source<'a> {
    /// The whole text. Whoever takes what the parser tells sets `left` anew; at 0 the text ended early.
    pub(super) const fn new(text: &'a str, left: &'a Cell<usize>) -> Self {
        Self {
            rest: text,
            left,
            lookahead: 0,
        }
    }

    fn take(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let taken = chars.next()?;
        self.rest = chars.as_str();
        if is_mark(taken) {
            self.count_mark();
        }
        Some(taken)
    }

    fn count_mark(&mut self) {
        let left = self.left.get().saturating_sub(1);
        self.left.set(left);
        if left == 0 {
            self.rest = "";
        }
    }
}

/// True if a token of the flow style may begin or end with it.
const fn is_mark(c: char) -> bool {
    matches!(
        c,
        ',' | '[' | ']' | '{' | '}' | ':' | '?' | '"' | '\'' | '&' | '*' | '!'
    )
}

impl Input for Source<'_> {
    fn lookahead(&mut self, count: usize) {
        self.lookahead = self.lookahead.max(count);
    }

    fn buflen(&self) -> usize {
        self.lookahead
    }

    fn bufmaxlen(&self) -> usize {
        AT_ONCE
    }

    fn raw_read_ch(&mut self) -> char {
        self.take().unwrap_or('\0')
    }

    fn raw_read_non_breakz_ch(&mut self) -> Option<char> {
        let next = self.peek_opt();
        next.filter(|c| !matches!(c, '\n' | '\r' | '\0' | '\u{feff}'))?;
        self.take()
    }

    #[inline]
    fn skip(&mut self) {
        self.take();
    }

    fn skip_while_non_breakz(&mut self) -> usize {
        // A comment, which ends a plain text and counts once, whatever it holds.
        let end = self.rest.find(['\n', '\r', '\0', '\u{feff}']);
        let (comment, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        self.count_mark();
        comment.chars().count()
    }

    #[inline]
    fn skip_n(&mut self, count: usize) {
        for _ in 0..count {
            self.take();
        }
    }

    #[inline]
    fn peek(&self) -> char {
        self.peek_opt().unwrap_or('\0')
    }

    #[inline]
    fn peek_nth(&self, n: usize) -> char {
        self.rest.chars().nth(n).unwrap_or('\0')
    }

    #[inline]
    fn peek_opt(&self) -> Option<char> {
        self.rest.chars().next()
    }
}
