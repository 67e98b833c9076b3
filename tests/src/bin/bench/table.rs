//! The table: for terminals, and as markdown between markers of a page.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    measure::{Row, Series},
    suite::Report,
};

/// Widths of the columns: what, figure, peers, change, budget.
const WIDTHS: [usize; 5] = [32, 25, 32, 8, 12];
/// Where the table of a page begins and ends.
const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// A number with as many digits as it is worth.
fn digits(value: f64) -> String {
    if value.abs() >= 100.0 {
        // 12345 reads as 12,345.
        let plain = format!("{value:.0}");
        let (sign, plain) = plain
            .strip_prefix('-')
            .map_or(("", plain.as_str()), |rest| ("-", rest));
        let mut text = String::from(sign);
        for (index, digit) in plain.char_indices() {
            if index > 0 && (plain.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        text
    } else if value.abs() >= 10.0 {
        format!("{value:.0}")
    } else if value == 0.0 {
        "0".to_owned()
    } else {
        format!("{value:.1}")
    }
}

/// Median, unit, and where eight of ten rounds were.
fn figure(series: &Series, unit: &str) -> String {
    let mut text = digits(series.median);
    if !unit.is_empty() {
        let _ = write!(text, " {unit}"); // a string takes everything
    }
    if series.rounds.len() > 1 {
        let _ = write!(text, " ({}–{})", digits(series.p10), digits(series.p90));
    }
    text
}

fn peers(row: &Row) -> Vec<String> {
    let one = |peer: &Series| format!("{} {}", peer.name, digits(peer.median));
    row.peers.iter().map(one).collect()
}

/// Times differ by an amount, rates by a factor.
fn change(row: &Row) -> String {
    match (row.added, row.ratio) {
        (Some(added), _) if row.unit == "ns" => {
            format!("{}{}", if added < 0.0 { "" } else { "+" }, digits(added))
        }
        // A thousandth can be what a budget is missed by.
        (_, Some(ratio)) => format!("× {ratio:.3}"),
        _ => String::new(),
    }
}

fn met(row: &Row) -> &'static str {
    match row.met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    }
}

/// Parts joined by commas, in lines of at most this width.
fn lines(parts: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + part.chars().count() <= width => {
                let _ = write!(line, ", {part}");
            }
            Some(line) => {
                line.push(',');
                lines.push(part.clone());
            }
            None => lines.push(part.clone()),
        }
    }
    lines
}

/// Words in lines of at most this width.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// The table for a terminal of 120 columns.
pub(crate) fn text(report: &Report) -> String {
    let mut text = format!("{}\n", report.facts());
    let [
        what_width,
        figure_width,
        peer_width,
        change_width,
        budget_width,
    ] = WIDTHS;
    let mut line = |cells: [&str; 6]| {
        let [what, figure, peers, change, budget, met] = cells;
        let line = format!(
            "{what:<what_width$} {figure:<figure_width$} {peers:<peer_width$} \
             {change:>change_width$}  {budget:<budget_width$} {met}"
        );
        let _ = writeln!(text, "{}", line.trim_end());
    };
    let mut part = "";
    for row in &report.rows {
        if row.part != part {
            part = row.part;
            line(["", "", "", "", "", ""]);
            let title = part.to_uppercase();
            line([&title, "egress", "compared with", "change", "budget", "met"]);
        }
        let whats = wrapped(&row.what, what_width);
        let others = lines(&peers(row), peer_width);
        let (figure, change) = (figure(&row.figure, row.unit), change(row));
        let budget = row.budget.as_deref().unwrap_or_default();
        for index in 0..whats.len().max(others.len()) {
            let at = |list: &[String]| list.get(index).cloned().unwrap_or_default();
            let (what, other) = (at(&whats), at(&others));
            if index == 0 {
                line([&what, &figure, &other, &change, budget, met(row)]);
            } else {
                line([&what, "", &other, "", "", ""]);
            }
        }
        if let Some(note) = &row.note {
            for words in wrapped(note, 110) {
                line([&format!("    {words}"), "", "", "", "", ""]);
            }
        }
    }
    text
}

/// The table for a page.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = format!("{}\n", report.facts());
    let mut part = "";
    for row in &report.rows {
        if row.part != part {
            part = row.part;
            let _ = write!(
                text,
                "\n| {part} | egress | compared with | change | budget | met |\n\
                 | --- | --- | --- | --- | --- | --- |\n"
            );
        }
        let peers: Vec<String> = row
            .peers
            .iter()
            .map(|peer| format!("{} {}", peer.name, figure(peer, "")))
            .collect();
        let note = row
            .note
            .as_ref()
            .map_or_else(String::new, |note| format!("; {note}"));
        let _ = writeln!(
            text,
            "| {}{note} | {} | {} | {} | {} | {} |",
            row.what,
            figure(&row.figure, row.unit),
            peers.join(", "),
            change(row),
            row.budget.as_deref().unwrap_or_default(),
            met(row)
        );
    }
    text
}

/// Puts the table between the markers of a page.
///
/// # Errors
///
/// The page cannot be read or written, or has no markers.
pub(crate) fn write(report: &Report, page: &Path) -> Result<()> {
    let old =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let new = between(&old, &markdown(report))
        .with_context(|| format!("{} has no {BEGIN} and {END}", page.display()))?;
    fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))
}

fn between(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (1_234_567.0, "1,234,567"),
            (-1_234.0, "-1,234"),
            (123.4, "123"),
            (12.34, "12"),
            (1.234, "1.2"),
            (0.0, "0"),
        ] {
            assert_eq!(digits(value), text);
        }
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between(&page, "new").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(between("no markers", "new"), None);
    }
}
