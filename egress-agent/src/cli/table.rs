//! Tables that fit the terminal: long texts wrap, nothing is cut off.

use comfy_table::{
    Attribute, CellAlignment, Color, ColumnConstraint, ContentArrangement, Width, presets,
};

use super::output::Screen;
use crate::policy::printable;

/// Between two columns.
const GAP: u16 = 2;

/// A column does not shrink below this.
const LEAST_WIDTH: u16 = 8;

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
    /// The cell in this paint.
    fn on(self, cell: comfy_table::Cell) -> comfy_table::Cell {
        match self {
            Self::Plain => cell,
            Self::Good => cell.fg(Color::DarkGreen),
            Self::Doubtful => cell.fg(Color::DarkYellow),
            Self::Bad => cell.fg(Color::DarkRed),
            Self::Title => cell.add_attribute(Attribute::Bold),
        }
    }

    /// A text outside of tables, coloured where the screen shows colours.
    #[must_use]
    pub(super) fn paint(self, text: &str, screen: Screen) -> String {
        let mut table = Table::new().text("");
        table.row([Cell::painted(text, self)]);
        let unbound = Screen {
            width: None,
            ..screen
        };
        table.render(unbound).trim_end().to_owned()
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

/// Kinds of columns.
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

    /// True if there are no rows.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, titles first unless all are empty; each line ends with a newline.
    #[must_use]
    pub(super) fn render(&self, screen: Screen) -> String {
        let mut table = comfy_table::Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .style_text_only();
        if screen.colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if self.columns.iter().any(|(title, _)| !title.is_empty()) {
            let titles = self.columns.iter();
            let titles = titles.map(|(title, _)| Paint::Title.on(comfy_table::Cell::new(title)));
            table.set_header(titles);
        }
        for row in &self.rows {
            let cells = row.iter().take(self.columns.len());
            table.add_row(cells.map(|cell| cell.paint.on(comfy_table::Cell::new(&cell.text))));
        }
        let contents = table.column_max_content_widths();
        let last = self.columns.len().saturating_sub(1);
        for (index, (_, kind)) in self.columns.iter().enumerate() {
            let Some(column) = table.column_mut(index) else {
                continue;
            };
            let gap = if index == last { 0 } else { GAP };
            column.set_padding((0, gap));
            if *kind == Kind::Number {
                column.set_cell_alignment(CellAlignment::Right);
            }
            let content = contents.get(index).copied().unwrap_or(0);
            column.set_constraint(match kind {
                Kind::Word | Kind::Number => ColumnConstraint::ContentWidth,
                Kind::Text => {
                    let least = content.min(LEAST_WIDTH).saturating_add(gap);
                    ColumnConstraint::LowerBoundary(Width::Fixed(least))
                }
            });
        }
        if let Some(width) = screen.width {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
        }
        let mut text = table.trim_fmt();
        text.push('\n');
        text
    }
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
        assert!(text.contains("\x1b[38;5;1mdenied"), "{text:?}");
        assert!(text.starts_with("\x1b[1mVERDICT\x1b[0m  "), "{text:?}");
        // Without what colours it, it is the same.
        let parts = text.split('\x1b');
        let plain: String = parts
            .map(|part| part.split_once('m').map_or(part, |(_, shown)| shown))
            .collect();
        assert_eq!(plain, table().render(Screen::PLAIN));
    }

    #[test]
    fn a_long_word_is_cut_into_lines_and_stays_whole() {
        let mut table = Table::new().word("A").text("B");
        table.row(["x".into(), "aaaaabbbbbcccccdd".into()]);
        let narrow = Screen {
            width: Some(11),
            colours: false,
        };
        assert_eq!(
            table.render(narrow),
            "A  B\nx  aaaaabbb\n   bbcccccd\n   d\n"
        );
    }

    #[test]
    fn wide_letters_take_the_room_that_they_take() {
        let mut table = Table::new().text("A").text("B");
        table.row(["例え".into(), "x".into()]);
        table.row(["abcd".into(), "y".into()]);
        assert_eq!(table.render(Screen::PLAIN), "A     B\n例え  x\nabcd  y\n");
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
