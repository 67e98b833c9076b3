//! Words of comments.

use crate::{api::Timestamp, policy::printable};

/// Lines of a comment: whatever was seen, it cannot end a line.
pub(super) fn said(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| printable(line)).collect();
    lines.join("\n")
}

/// `1 flow`, `2 flows`.
pub(super) fn count(number: u64, what: &str) -> String {
    let end = match (number, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{number} {what}{end}")
}

/// The first of a list, and how many more there are.
pub(super) fn some(list: &[&str], most: usize) -> String {
    let shown: Vec<&str> = list.iter().take(most).copied().collect();
    let more = list.len().saturating_sub(shown.len());
    let mut text = shown.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// From when to when.
pub(super) fn span((first, last): (Timestamp, Timestamp)) -> String {
    if first == last {
        format!("at {first}")
    } else {
        format!("{first} to {last}")
    }
}
