//! Texts of others in messages and on terminals.

/// The text in quotes for a message: control characters escaped, long ones cut.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

/// The text for a message that has quotes of its own: control characters escaped, long ones cut.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 80;
    let mut shown: String = text
        .chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MOST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The text without what could steer a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        // Among others the marks that turn the writing direction.
        let steers =
            character.is_control() || matches!(character, '\u{200b}'..='\u{206f}' | '\u{feff}');
        if steers {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
