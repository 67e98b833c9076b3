//! Reads the tables of the documents that the presets are made from.
//!
//! Strict: a column, a word in a cell or a shape that it does not know is a panic, so that nothing is passed over.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What a table or a preset allows: destination and port, in a common form.
pub(super) type Item = (String, String);

/// A table of a document.
#[derive(Debug)]
pub(super) struct Table {
    /// The headings above it, the nearest last, joined with ` > `.
    pub(super) heading: String,
    /// What its rows allow.
    pub(super) items: BTreeSet<Item>,
}

/// Columns that name destinations.
const DESTINATION: &[&str] = &[
    "Destination Endpoint",
    "Destination FQDN",
    "FQDN",
    "Endpoint",
    "宛先エンドポイント",
    "送信先 FQDN",
    "FQDN (フル クオリファイド ドメイン ネーム)",
    "エンドポイント",
];
const PORT: &[&str] = &["Port", "港 / ポート", "ポート"];
const PROTOCOL: &[&str] = &["Protocol", "プロトコル"];
const PURPOSE: &[&str] = &["Use", "Purpose", "用途", "目的"];

/// Words that stand between destinations.
const CONNECTORS: &[&str] = &[
    "Or",
    "*Or*",
    "or",
    "又は",
    "または",
    "-",
    "ServiceTag",
    "Regional",
    "CIDRs",
    "リージョンのCIDR",
    "only",
    "known",
    "after",
    "cluster",
    "creation",
    "if",
    "using",
    "custom",
    "DNS",
    "servers",
    "running",
    "pods/deployments",
    "like",
    "Ingress",
    "Controller",
    "that",
    "access",
    "the",
    "API",
    "Server",
    "Azure",
    "Firewall",
    "network",
    "rules",
    "Government",
    "operated",
    "by",
    "21Vianet",
    "が運営する",
    "ネットワーク規則を使用している場合",
];

/// The folder of the documents, if this is a checkout that has it beside it or above.
pub(super) fn folder() -> Option<PathBuf> {
    let start = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = start.ancestors().map(|folder| folder.join("shared/seeds"));
    folders.find(|folder| folder.is_dir())
}

/// The document whose file starts with this number.
pub(super) fn read(folder: &Path, number: &str) -> String {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files = files.filter(|file| file.file_name().to_string_lossy().starts_with(number));
    let file = files
        .next()
        .unwrap_or_else(|| panic!("no document {number}"));
    fs::read_to_string(file.path()).unwrap()
}

/// The tables of a Markdown text: rows between bars, headings with `#`.
pub(super) fn markdown_tables(text: &str) -> Vec<Table> {
    let mut headings: Vec<(usize, &str)> = Vec::new();
    let mut tables = Vec::new();
    let mut rows: Vec<&str> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('|') {
            rows.push(line);
            continue;
        }
        if let [header, ruler, rows @ ..] = rows.as_slice() {
            let cells = |row: &str| -> Vec<String> {
                let row = row.strip_prefix('|').unwrap().trim_end();
                let row = row
                    .strip_suffix('|')
                    .unwrap_or_else(|| panic!("open row: {row}"));
                row.split('|')
                    .map(|cell| plain(cell).trim().to_owned())
                    .collect()
            };
            assert!(ruler.chars().all(|c| "|-: ".contains(c)), "ruler: {ruler}");
            let path: Vec<&str> = headings.iter().map(|(_, heading)| *heading).collect();
            tables.push(table(
                path.join(" > "),
                &cells(header),
                rows.iter().map(|row| cells(row)),
            ));
        }
        rows.clear();
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if level > 0 && line.as_bytes().get(level) == Some(&b' ') {
            headings.retain(|(other, _)| *other < level);
            // The document's own title says nothing.
            if level > 1 {
                headings.push((level, line[level..].trim()));
            }
        }
    }
    tables
}

/// The tables of a text whose rows end with a bar and may go over several lines.
pub(super) fn loose_tables(text: &str) -> Vec<Table> {
    let cells =
        |row: &str| -> Vec<String> { row.split('|').map(|cell| cell.trim().to_owned()).collect() };
    let mut tables = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    while at < lines.len() {
        let is_ruler = lines[at].starts_with("---|");
        if !is_ruler {
            assert!(
                !lines[at].contains('|')
                    || lines
                        .get(at + 1)
                        .is_some_and(|next| next.starts_with("---|")),
                "row outside of a table: {}",
                lines[at]
            );
            at += 1;
            continue;
        }
        let mut header = cells(lines[at - 1]);
        assert_eq!(
            header.pop().as_deref(),
            Some(""),
            "header: {}",
            lines[at - 1]
        );
        let heading = lines[at - 2].to_owned();
        let mut rows = Vec::new();
        let mut row = String::new();
        at += 1;
        while at < lines.len() && (!row.is_empty() || lines[at].contains('|')) {
            row.push_str(lines[at]);
            row.push(' ');
            at += 1;
            let mut found = cells(&row);
            assert!(found.len() <= header.len() + 1, "too many cells: {row}");
            if found.len() == header.len() + 1 {
                found.pop();
                rows.push(found);
                row.clear();
            }
        }
        tables.push(table(heading, &header, rows.into_iter()));
    }
    tables
}

fn table(heading: String, header: &[String], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let column = |names: &[&str]| {
        header
            .iter()
            .position(|cell| names.contains(&cell.as_str()))
    };
    for cell in header {
        let known = [DESTINATION, PORT, PROTOCOL, PURPOSE].concat();
        assert!(
            known.contains(&cell.as_str()),
            "unknown column {cell:?} of {heading}"
        );
    }
    let destination = column(DESTINATION).unwrap();
    let port = column(PORT).unwrap();
    let purpose = column(PURPOSE).unwrap();
    let mut items = BTreeSet::new();
    for row in rows {
        assert_eq!(row.len(), header.len(), "cells of {row:?}");
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // Where the purpose is empty, the newer text has the port in its place.
        let port = if row[port].is_empty() && is_number(&row[purpose]) {
            &row[purpose]
        } else {
            &row[port]
        };
        let protocol = match column(PROTOCOL).map(|column| row[column].as_str()) {
            None | Some("TCP") => "tcp",
            Some("UDP" | "UDP(ユーザー・データグラム・プロトコル)") => "udp",
            Some(other) => panic!("protocol {other:?} in {heading}"),
        };
        let port = match port.as_str() {
            "HTTPS:443" | "HTTPS: 443" => 443,
            "HTTP:80" => 80,
            // A translation of 9000.
            "九千" => 9000,
            number => number
                .parse::<u16>()
                .unwrap_or_else(|_| panic!("port {number:?} in {heading}")),
        };
        let found = destinations(&row[destination], port);
        assert!(!found.is_empty(), "no destination in {row:?}");
        items.extend(
            found
                .into_iter()
                .map(|destination| (destination, format!("{port}/{protocol}"))),
        );
    }
    Table { heading, items }
}

/// The destinations of a cell.
fn destinations(cell: &str, row_port: u16) -> Vec<String> {
    let words = cell.split(|c: char| c.is_whitespace() || ",、()".contains(c));
    let mut found = Vec::new();
    for word in words.filter(|word| !word.is_empty() && !CONNECTORS.contains(word)) {
        let base = match word.rsplit_once(':') {
            None => word,
            Some((base, port)) => {
                assert_eq!(
                    port.parse::<u16>().ok(),
                    Some(row_port),
                    "port of {word} in {cell}"
                );
                base
            }
        };
        found.push(match base {
            "*" => "any".to_owned(),
            "CustomDNSIP" => "cidrs <customDns>".to_owned(),
            "APIServerPublicIP" if row_port == 443 => "cidrs <apiServer>".to_owned(),
            "APIServerPublicIP" | "RegionCIDRs" => "cidrs <tunnelCidrs>".to_owned(),
            _ => tag(base)
                .or_else(|| name(base))
                .unwrap_or_else(|| panic!("{word:?} in cell {cell:?}")),
        });
    }
    found
}

/// A service tag in the common form.
pub(super) fn tag(word: &str) -> Option<String> {
    const SERVICES: &[&str] = &[
        "AzureActiveDirectory",
        "AzureCloud",
        "AzureFrontDoor",
        "AzureMachineLearning",
        "AzureMonitor",
        "AzureResourceManager",
        "BatchNodeManagement",
        "Keyvault",
        "MicrosoftContainerRegistry",
        "Storage",
    ];
    let (service, rest) = word.split_once('.').unwrap_or((word, ""));
    if !SERVICES.contains(&service) {
        return None;
    }
    let service = if service == "Keyvault" {
        "AzureKeyVault"
    } else {
        service
    };
    Some(match rest {
        "" => format!("tag {service}"),
        "<Region>" | "<region>" | "Region" => format!("tag {service}.<region>"),
        "FrontEnd" | "FirstParty" => format!("tag {service}.{rest}"),
        _ => return None,
    })
}

/// A name in the common form.
pub(super) fn name(word: &str) -> Option<String> {
    let mut word = word
        .replace("<cluster-region-name>", "<region>")
        .replace("<location>", "<region>");
    // A leading dot is a star that was forgotten.
    if word.starts_with('.') {
        word.insert(0, '*');
    }
    let bare = word.replace("<region>", "region");
    let is_name = bare.contains('.')
        && bare.split('.').all(|label| !label.is_empty())
        && bare
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.*".contains(&byte));
    is_name.then(|| format!("name {word}"))
}

/// A cell without marks of Markdown and HTML.
fn plain(cell: &str) -> String {
    let mut text = cell
        .replace("**", "")
        .replace('`', "")
        .replace("<br/>", " ");
    while let Some(open) = text.find("](") {
        let close = open + text[open..].find(')').unwrap();
        let start = text[..open].rfind('[').unwrap();
        text = format!(
            "{}{}{}",
            &text[..start],
            &text[start + 1..open],
            &text[close + 1..]
        );
    }
    text
}

/// Everything in a text that looks like a name, in the common form.
pub(super) fn names_in(text: &str) -> BTreeSet<String> {
    const ENDINGS: &[&str] = &["cn", "com", "io", "ms", "net", "org", "us"];
    let text = text
        .replace("{REGISTRY_NAME}", "<registry>")
        .replace("{REGISTRY_LOCATION}", "<region>")
        .replace("\\<", "<")
        .replace("\\>", ">");
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-.*<>".contains(c);
    let words = text
        .split(|c: char| !is_part(c))
        .map(|word| word.trim_end_matches('.'));
    let has_ending = |word: &&str| {
        let last = word.rsplit_once('.').map(|(_, last)| last);
        last.is_some_and(|last| ENDINGS.contains(&last))
    };
    words
        .filter(has_ending)
        .map(|word| {
            let word = word.replace("<registry>", "registry");
            name(&word)
                .unwrap_or(word)
                .replace("name registry.", "name <registry>.")
        })
        .collect()
}
