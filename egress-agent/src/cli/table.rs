//! Tables that fit the terminal: long texts wrap, nothing is cut off.

use super::output::Screen;
use crate::policy::text::printable;

/// Between two columns.
const GAP: &str = "  ";

/// A column does not shrink below this.
const LEAST_WIDTH: usize = 8;

/// How a cell is shown where colours are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Paint {
    /// As it is.
    #[default]
    Plain,
    /// Green.
    Good,
    /// Yellow.
    Doubtful,
    /// Red.
    Bad,
    /// Bold.
    Title,
}

impl Paint {
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Doubtful => Some("33"),
            Self::Bad => Some("31"),
            Self::Title => Some("1"),
        }
    }

    /// The text, coloured where the screen shows colours.
    #[must_use]
    pub(super) fn on(self, text: &str, screen: Screen) -> String {
        match self.code() {
            Some(code) if screen.colours && !text.is_empty() => {
                format!("\x1b[{code}m{text}\x1b[0m")
            }
            _ => text.to_owned(),
        }
    }
}

/// Text of a table. Control characters are shown escaped: names come from the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// A painted cell.
    #[must_use]
    pub(super) fn painted(text: impl AsRef<str>, paint: Paint) -> Self {
        Self {
            text: printable(text.as_ref()),
            paint,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::painted(text, Paint::Plain)
    }
}

/// A cell that holds a number.
#[must_use]
pub(super) fn number(number: u64) -> Cell {
    number.to_string().into()
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Short words, never wrapped.
    Word,
    /// Numbers: on the right, never wrapped.
    Number,
    /// Text that wraps when the screen is too narrow.
    Text,
}

/// A table without lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    columns: Vec<(&'static str, Kind)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without columns.
    #[must_use]
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds a column of short words.
    #[must_use]
    pub(super) fn word(mut self, title: &'static str) -> Self {
        self.columns.push((title, Kind::Word));
        self
    }

    /// Adds a column of numbers.
    #[must_use]
    pub(super) fn number(mut self, title: &'static str) -> Self {
        self.columns.push((title, Kind::Number));
        self
    }

    /// Adds a column of text.
    #[must_use]
    pub(super) fn text(mut self, title: &'static str) -> Self {
        self.columns.push((title, Kind::Text));
        self
    }

    /// Adds a row; what it has beyond the columns is not shown.
    pub(super) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// Whether there are no rows.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, titles first unless all are empty; each line ends with a newline.
    #[must_use]
    pub(super) fn render(&self, screen: Screen) -> String {
        let widths = self.widths(screen);
        let mut text = String::new();
        if self.columns.iter().any(|(title, _)| !title.is_empty()) {
            let titles: Vec<Cell> = self
                .columns
                .iter()
                .map(|(title, _)| Cell::painted(title, Paint::Title))
                .collect();
            self.render_row(&titles, &widths, screen, &mut text);
        }
        for row in &self.rows {
            self.render_row(row, &widths, screen, &mut text);
        }
        text
    }

    fn widths(&self, screen: Screen) -> Vec<usize> {
        let mut widths: Vec<usize> = Vec::with_capacity(self.columns.len());
        for (index, (title, _)) in self.columns.iter().enumerate() {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            let widest = cells.map(|cell| cell.text.chars().count()).max();
            widths.push(widest.unwrap_or(0).max(title.chars().count()));
        }
        let Some(most) = screen.width else {
            return widths;
        };
        let gaps = GAP.len().saturating_mul(widths.len().saturating_sub(1));
        let mut excess = widths
            .iter()
            .sum::<usize>()
            .saturating_add(gaps)
            .saturating_sub(most);
        // The widest text column gives way first, until all are equally wide.
        while excess > 0 {
            let texts = widths.iter_mut().zip(&self.columns);
            let widest = texts
                .filter(|(width, (_, kind))| *kind == Kind::Text && **width > LEAST_WIDTH)
                .map(|(width, _)| width)
                .max();
            let Some(widest) = widest else { break };
            *widest = widest.saturating_sub(1);
            excess = excess.saturating_sub(1);
        }
        widths
    }

    fn render_row(&self, cells: &[Cell], widths: &[usize], screen: Screen, text: &mut String) {
        let wrapped: Vec<Vec<&str>> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| wrap(&cell.text, *width))
            .collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let mut rendered = String::new();
            // Spaces are written when something follows them: no line ends in one.
            let mut pending = 0_usize;
            let columns = wrapped.iter().zip(widths).zip(&self.columns).zip(cells);
            for (((lines, width), (_, kind)), cell) in columns {
                let part = lines.get(line).copied().unwrap_or_default();
                let free = width.saturating_sub(part.chars().count());
                let (before, after) = match kind {
                    Kind::Number => (free, 0),
                    Kind::Word | Kind::Text => (0, free),
                };
                pending = pending.saturating_add(before);
                if !part.is_empty() {
                    rendered.push_str(&" ".repeat(pending));
                    rendered.push_str(&cell.paint.on(part, screen));
                    pending = 0;
                }
                pending = pending.saturating_add(after).saturating_add(GAP.len());
            }
            text.push_str(&rendered);
            text.push('\n');
        }
    }
}

/// Cuts text into lines: after a space or comma, else after a mark inside names and paths, if
/// one is not too near the start of the line.
fn wrap(text: &str, width: usize) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while width > 0 && rest.chars().count() > width {
        let limit = rest
            .char_indices()
            .nth(width)
            .map_or(rest.len(), |(at, _)| at);
        let (head, tail) = rest.split_at_checked(limit).unwrap_or((rest, ""));
        // A space just after the line is the best place.
        let break_at = if tail.starts_with(' ') {
            head.len()
        } else {
            let after = |marks: &[char]| {
                let found = head.rfind(marks).map(|at| at.saturating_add(1));
                found.filter(|at| *at > limit / 3)
            };
            let best = after(&[' ', ',']).or_else(|| after(&['/', ':', '.']));
            best.unwrap_or(head.len())
        };
        let (line, left) = rest.split_at_checked(break_at).unwrap_or((rest, ""));
        lines.push(line.trim_end_matches(' '));
        rest = left.trim_start_matches(' ');
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: Screen = Screen {
        width: Some(30),
        colours: false,
    };

    fn table() -> Table {
        let mut table = Table::new().word("VERDICT").number("COUNT").text("MEANING");
        table.row([
            Cell::painted("denied", Paint::Bad),
            number(7),
            "no rule allows it".into(),
        ]);
        table.row(["allowed".into(), number(12_345), "yes".into()]);
        table
    }

    #[test]
    fn numbers_are_on_the_right_and_no_line_ends_in_spaces() {
        let text = "\
VERDICT  COUNT  MEANING
denied       7  no rule allows it
allowed  12345  yes
";
        assert_eq!(table().render(Screen::PLAIN), text);
    }

    #[test]
    fn text_wraps_at_spaces_until_the_table_fits() {
        let text = "\
VERDICT  COUNT  MEANING
denied       7  no rule allows
                it
allowed  12345  yes
";
        assert_eq!(table().render(NARROW), text);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let colours = Screen {
            colours: true,
            ..Screen::PLAIN
        };
        let text = table().render(colours);
        assert!(
            text.contains("\x1b[31mdenied\x1b[0m       7  no rule"),
            "{text:?}"
        );
        assert!(
            text.starts_with("\x1b[1mVERDICT\x1b[0m  \x1b[1mCOUNT\x1b[0m"),
            "{text:?}"
        );
    }

    #[test]
    fn a_long_word_is_cut_into_lines_and_stays_whole() {
        assert_eq!(wrap("aaaaabbbbbcc", 5), ["aaaaa", "bbbbb", "cc"]);
        assert_eq!(wrap("one/two", 5), ["one/", "two"]);
        assert_eq!(wrap("äöüß", 2), ["äö", "üß"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("ab cd", 2), ["ab", "cd"]);
    }

    #[test]
    fn what_could_steer_a_terminal_is_escaped() {
        let cell = Cell::from("a\x1b[2Jb\u{202e}c");
        assert_eq!(cell.text, "a\\u{1b}[2Jb\\u{202e}c");
    }

    #[test]
    fn a_table_without_titles_starts_with_its_first_row() {
        let mut facts = Table::new().word("").text("");
        facts.row(["mode".into(), "audit".into()]);
        assert!(!facts.is_empty());
        assert_eq!(facts.render(Screen::PLAIN), "mode  audit\n");
    }
}
