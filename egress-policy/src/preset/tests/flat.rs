//! Reads the document on Azure Machine Learning, whose tables came without marks: one cell in each line. As strict as
//! the reader of the others.

use std::collections::BTreeSet;

use super::documents::{Table, name, tag};

/// The tables of the text on Azure Machine Learning, which came without marks: one cell in each line.
pub(super) fn flat_tables(text: &str) -> Vec<Table> {
    let lines: Vec<&str> = text.lines().collect();
    let after = |from: usize, line: &str| -> usize {
        let found = lines[from..].iter().position(|other| *other == line);
        from + found.unwrap_or_else(|| panic!("no line {line:?}")) + 1
    };
    let mut tables = Vec::new();
    for (section, end) in [
        ("Basic configuration", "Important"),
        (
            "Recommended configuration for training and deploying models",
            "To allow installation",
        ),
    ] {
        let mut at = after(after(0, section), "Outbound traffic");
        assert_eq!(lines[at..at + 3], ["Service tag(s)", "Ports", "Purpose"]);
        at += 3;
        let mut items = BTreeSet::new();
        while !lines[at].starts_with(end) {
            let tags = tags_of(lines[at]);
            at += 1;
            // The port of AzureFrontDoor.FrontEnd is lost.
            let ports = match ports_of(lines[at]) {
                Some(ports) => {
                    at += 1;
                    ports
                }
                None => vec!["443/tcp".to_owned()],
            };
            assert!(lines[at].ends_with('.'), "no purpose: {}", lines[at]);
            at += 1;
            for tag in tags {
                items.extend(ports.iter().map(|port| (tag.clone(), port.clone())));
            }
        }
        let heading = format!("{section} > Outbound traffic");
        tables.push(Table { heading, items });
    }
    let section = "Recommended configuration for training and deploying models";
    let mut at = after(after(0, section), "Host name");
    assert_eq!(lines[at], "Purpose");
    at += 1;
    let mut items = BTreeSet::new();
    while !lines[at].starts_with("Scenario: ") {
        for word in lines[at].split(' ') {
            items.insert((
                name(word).unwrap_or_else(|| panic!("{word}")),
                "443/tcp".to_owned(),
            ));
        }
        assert!(
            lines[at + 1].ends_with('.'),
            "no purpose: {}",
            lines[at + 1]
        );
        at += 2;
    }
    tables.push(Table {
        heading: format!("{section} > Host name"),
        items,
    });

    let mut at = after(after(0, "Scenario: Visual Studio Code"), "Hosts");
    let mut items = BTreeSet::new();
    while lines[at] != "Ports" {
        let mut words = lines[at].split(' ');
        // The first row has lost its host.
        if let (Some(word), None) = (words.next(), words.next()) {
            items.extend(name(word).map(|name| (name, "443/tcp".to_owned())));
        }
        at += 1;
    }
    tables.push(Table {
        heading: "Hosts".to_owned(),
        items,
    });

    let heading = "Docker images maintained by Azure Machine Learning";
    let mut at = after(0, heading);
    assert_eq!(
        lines[at..at + 4],
        ["Required for", "Hosts", "Protocol", "Ports"]
    );
    at += 4;
    let mut items = BTreeSet::new();
    while lines[at] != "Tip" {
        assert_eq!(lines[at + 2..at + 4], ["TCP", "443"]);
        for word in lines[at + 1].split(' ') {
            items.insert((
                name(word).unwrap_or_else(|| panic!("{word}")),
                "443/tcp".to_owned(),
            ));
        }
        at += 4;
    }
    tables.push(Table {
        heading: heading.to_owned(),
        items,
    });
    tables
}

fn tags_of(line: &str) -> Vec<String> {
    let line = line.split(" * ").next().unwrap();
    let found = line.split(" and ").map(|word| match word {
        "VirtualNetwork" => "cidrs <virtualNetwork>".to_owned(),
        _ => tag(word).unwrap_or_else(|| panic!("{word:?} in {line:?}")),
    });
    found.collect()
}

/// `443, 8787, 18881 UDP: 5831`.
fn ports_of(line: &str) -> Option<Vec<String>> {
    let mut protocol = "tcp";
    let mut ports = Vec::new();
    for word in line.split([',', ' ']).filter(|word| !word.is_empty()) {
        match word {
            "UDP:" => protocol = "udp",
            _ => ports.push(format!("{}/{protocol}", word.parse::<u16>().ok()?)),
        }
    }
    Some(ports)
}

/// The ports that the text on Azure Machine Learning explains.
pub(super) fn explained_ports(text: &str) -> Vec<u16> {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines
        .windows(2)
        .position(|pair| pair == ["Port", "Description"])
        .unwrap()
        + 2;
    let rows = lines[start..]
        .chunks(2)
        .map_while(|row| row[0].parse().ok());
    rows.collect()
}
