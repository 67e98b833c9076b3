//! The presets against the documents that they are made from, entry by entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
};

use super::{
    super::{Condition, Given, Kind, Preset, Presets, Site, template::Values},
    documents::{self, Item, Table},
    flat,
    prose::{AKS, ISOLATED, LATER, LATER_DOCUMENTS, MACHINE_LEARNING, NO_DESTINATIONS, PROSE},
};

/// What the documents want of each preset, by cloud.
struct Documents {
    texts: BTreeMap<&'static str, String>,
    /// Tables by document.
    tables: Vec<(&'static str, Table)>,
}

impl Documents {
    fn read(folder: &Path) -> Self {
        let aks = documents::read(folder, "000");
        let newer = documents::read(folder, "001");
        let isolated = documents::read(folder, "002");
        let machine_learning = documents::read(folder, "003");
        let mut aks_tables = documents::markdown_tables(&aks);
        let newer_tables = documents::loose_tables(&newer);
        // The newer edition is a translation: the same tables in the same order.
        assert_eq!(aks_tables.len(), newer_tables.len());
        for (table, newer) in aks_tables.iter_mut().zip(newer_tables) {
            let kept = table.items.intersection(&newer.items).count();
            assert_eq!(
                kept,
                table.items.len(),
                "{} is not {}: {:?}",
                table.heading,
                newer.heading,
                newer.items
            );
            table.items.extend(newer.items);
        }
        let mut tables: Vec<_> = aks_tables.into_iter().map(|table| (AKS, table)).collect();
        let flat = flat::flat_tables(&machine_learning);
        tables.extend(flat.into_iter().map(|table| (MACHINE_LEARNING, table)));
        let texts = [
            (AKS, aks),
            ("the newer edition", newer),
            (ISOLATED, isolated),
            (MACHINE_LEARNING, machine_learning),
        ];
        Self {
            texts: texts.into_iter().collect(),
            tables,
        }
    }

    /// The tables that a preset says it is made from.
    fn tables_of(&self, preset: &Preset) -> Vec<&Table> {
        let mut tables = Vec::new();
        for source in &preset.sources {
            let is_later = LATER_DOCUMENTS.contains(&source.document.as_str());
            assert!(
                is_later || self.texts.contains_key(source.document.as_str()),
                "document {}",
                source.document
            );
            for wanted in &source.tables {
                let mut found = self.tables.iter().filter(|(document, table)| {
                    let rest = table.heading.strip_suffix(wanted.as_str());
                    *document == source.document
                        && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with(" > "))
                });
                let table = found
                    .next()
                    .unwrap_or_else(|| panic!("{}: no table {wanted}", preset.name));
                assert!(
                    found.next().is_none(),
                    "{}: two tables {wanted}",
                    preset.name
                );
                tables.push(&table.1);
            }
        }
        tables
    }

    /// What a preset is to allow, by cloud: `any` if it has no such variable.
    fn wanted(&self, preset: &Preset) -> BTreeSet<(String, Item)> {
        let clouds = clouds(preset);
        let mut wanted = BTreeSet::new();
        for table in self.tables_of(preset) {
            for (destination, port) in &table.items {
                let cloud = cloud_of(&table.heading, destination);
                let at = |cloud: &str| (cloud.to_owned(), (destination.clone(), port.clone()));
                match clouds.as_slice() {
                    [only] => {
                        wanted.insert(at(only));
                    }
                    // Of a table without clouds, what is no cloud's own is every cloud's.
                    clouds if cloud.is_none() => {
                        wanted.extend(clouds.iter().map(|cloud| at(cloud)))
                    }
                    _ => {
                        wanted.extend(cloud.map(at));
                    }
                }
            }
        }
        for (_, document, words, items) in PROSE.iter().filter(|(name, ..)| *name == preset.name) {
            assert!(
                self.texts[document].contains(words),
                "{document} does not say {words}"
            );
            for (destination, port) in *items {
                for cloud in &clouds {
                    wanted.insert((
                        cloud.clone(),
                        ((*destination).to_owned(), (*port).to_owned()),
                    ));
                }
            }
        }
        for (_, _, items) in LATER.iter().filter(|(name, ..)| *name == preset.name) {
            for (destination, port) in *items {
                // Of those with clouds only the public one has changed.
                let cloud = clouds.first().cloned().unwrap_or_default();
                wanted.insert((cloud, ((*destination).to_owned(), (*port).to_owned())));
            }
        }
        wanted
    }
}

#[test]
fn entries_of_later_editions_say_which() {
    let presets = Presets::default();
    for (preset, edition, items) in LATER {
        let entries = &presets.get(preset).unwrap().entries;
        let notes = entries.iter().filter_map(|entry| entry.note.as_deref());
        let dated = notes.filter(|note| note.contains(edition)).count();
        assert!(dated > 0 && dated <= items.len(), "{preset} {edition}");
    }
}

/// What a preset allows that it should not, and the other way round.
fn differences(
    wanted: &BTreeSet<(String, Item)>,
    presets: &Presets,
    preset: &Preset,
) -> Vec<String> {
    let produced = produced(presets, preset);
    let missing = wanted.difference(&produced);
    let missing = missing.map(|item| format!("{}: lacks {item:?}", preset.name));
    let extra = produced.difference(wanted);
    let extra = extra.map(|item| format!("{}: has {item:?}", preset.name));
    missing.chain(extra).collect()
}

/// The clouds of a preset: the values of its variable.
fn clouds(preset: &Preset) -> Vec<String> {
    match preset.variable("cloud").map(|variable| &variable.kind) {
        Some(Kind::Choice(clouds)) => clouds.clone(),
        Some(_) => panic!("{}: cloud is no choice", preset.name),
        None => vec!["any".to_owned()],
    }
}

/// The cloud that a destination is for: by its ending, else by the heading of its table.
fn cloud_of(heading: &str, destination: &str) -> Option<&'static str> {
    if destination.ends_with(".cn") {
        return Some("china-21vianet");
    }
    if destination.ends_with(".us") || destination.ends_with(".usgovcloudapi.net") {
        return Some("us-government");
    }
    let table = heading.rsplit(" > ").next().unwrap();
    if table.contains("21Vianet") {
        return Some("china-21vianet");
    }
    if table.contains("Government") {
        return Some("us-government");
    }
    // A service tag has one name everywhere.
    (!destination.starts_with("tag ")).then_some("azure-global")
}

/// Everything that the preset's own rules allow with some values, in the documents' form, by cloud.
fn produced(presets: &Presets, preset: &Preset) -> BTreeSet<(String, Item)> {
    let mut found = BTreeSet::new();
    let is_include =
        |include: &super::super::Include| (format!("include {}", include.preset), String::new());
    for cloud in clouds(preset) {
        for include in &preset.includes {
            found.insert((cloud.clone(), is_include(include)));
        }
        for given in settings(preset, &cloud) {
            let site = Site::File {
                file: Path::new("test.yaml"),
                line: 1,
                field: "rule",
            };
            let expansion = presets
                .expand(&preset.name, &given, site)
                .unwrap_or_else(|errors| panic!("{errors}"));
            for rule in expansion
                .rules
                .iter()
                .filter(|rule| rule.preset == preset.name)
            {
                let names = rule.names.iter().map(|name| documented_name(preset, name));
                let cidrs = rule.cidrs.iter().map(|cidr| documented_cidr(preset, cidr));
                let tags = rule
                    .service_tags
                    .iter()
                    .map(|tag| format!("tag {}", tag.replace(REGION, "<region>")));
                let destinations: Vec<String> = names.chain(cidrs).chain(tags).collect();
                for port in &rule.ports {
                    for destination in &destinations {
                        found.insert((cloud.clone(), (destination.clone(), port.clone())));
                    }
                }
            }
        }
    }
    // Both families together are the documents' star.
    for (cloud, (destination, port)) in found.clone() {
        let of = |destination: &str| (cloud.clone(), (destination.to_owned(), port.clone()));
        if destination == "cidrs 0.0.0.0/0" && found.contains(&of("cidrs ::/0")) {
            found.remove(&of("cidrs 0.0.0.0/0"));
            found.remove(&of("cidrs ::/0"));
            found.insert(of("any"));
        }
    }
    found
}

/// What stands for a region in expansions.
const REGION: &str = "someregion";

/// What stands for the value of a variable in expansions: found again by [`documented_name`] and [`documented_cidr`].
fn marker(preset: &Preset, index: usize) -> Option<String> {
    let variable = &preset.variables[index];
    match variable.kind {
        Kind::Region => Some(REGION.to_owned()),
        Kind::Label => Some(format!("label-{}", variable.name.to_lowercase())),
        Kind::Names => Some(format!("{}.marker.example", variable.name.to_lowercase())),
        Kind::Cidrs => Some(format!("192.0.2.{index}/32")),
        // The default, which is the documents' name.
        Kind::Name => None,
        Kind::Bool | Kind::Choice(_) => unreachable!(),
    }
}

fn documented_name(preset: &Preset, name: &str) -> String {
    for (index, variable) in preset.variables.iter().enumerate() {
        if variable.kind == Kind::Names && marker(preset, index).as_deref() == Some(name) {
            return format!("names <{}>", variable.name);
        }
    }
    let mut name = format!("name {}", name.replace(REGION, "<region>"));
    for variable in preset
        .variables
        .iter()
        .filter(|variable| variable.kind == Kind::Label)
    {
        let marker = format!("label-{}", variable.name.to_lowercase());
        name = name.replace(&marker, &format!("<{}>", variable.name));
    }
    name
}

fn documented_cidr(preset: &Preset, cidr: &str) -> String {
    for (index, variable) in preset.variables.iter().enumerate() {
        if variable.kind == Kind::Cidrs && marker(preset, index).as_deref() == Some(cidr) {
            return format!("cidrs <{}>", variable.name);
        }
    }
    format!("cidrs {cidr}")
}

/// Values that make every entry apply once, with markers for what is not chosen.
fn settings(preset: &Preset, cloud: &str) -> Vec<Vec<Given>> {
    let always = Condition::default();
    let mut conditions = vec![&always];
    conditions.extend(preset.entries.iter().map(|entry| &entry.when));
    let mut all: Vec<Vec<Given>> = Vec::new();
    for condition in conditions {
        let mut wanted = Values::new();
        want(preset, condition, &mut wanted);
        let mut values = Values::new();
        let mut given = Vec::new();
        for (index, variable) in preset.variables.iter().enumerate() {
            if !variable.when.holds(&values) {
                continue;
            }
            let value = match &variable.kind {
                Kind::Choice(_) if variable.name == "cloud" => Some(cloud.to_owned()),
                Kind::Bool | Kind::Choice(_) => {
                    let chosen = wanted.get(&variable.name).or(variable.default.as_ref());
                    chosen.map(|value| value[0].clone())
                }
                Kind::Region | Kind::Label | Kind::Name | Kind::Names | Kind::Cidrs => {
                    marker(preset, index)
                }
            };
            if let Some(value) = value {
                values.insert(variable.name.clone(), vec![value.clone()]);
                let name = variable.name.clone();
                given.push(Given {
                    name,
                    texts: vec![value],
                    line: 1,
                });
            }
        }
        if !all.contains(&given) {
            all.push(given);
        }
    }
    all
}

/// What a condition asks for, and what the variables in it ask for in turn.
fn want(preset: &Preset, condition: &Condition, wanted: &mut Values) {
    for (name, values) in &condition.0 {
        wanted.insert(name.clone(), values.clone());
        want(preset, &preset.variable(name).unwrap().when, wanted);
    }
}

/// The documents, or a note that they are not there.
fn documents() -> Option<Documents> {
    let Some(folder) = documents::folder() else {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("test");
        // Not eprintln: the runner counts these lines, also those of passed tests. In one piece: tests run side by side.
        let line = format!("SKIPPED {name}: no shared/seeds beside or above the repository\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        return None;
    };
    Some(Documents::read(&folder))
}

#[test]
fn presets_allow_what_the_documents_say_and_nothing_else() {
    let Some(documents) = documents() else { return };
    let presets = Presets::default();
    let differences: Vec<String> = presets
        .all()
        .flat_map(|preset| differences(&documents.wanted(preset), &presets, preset))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // Every table is some preset's.
    let used: BTreeSet<&str> = presets
        .all()
        .flat_map(|preset| documents.tables_of(preset))
        .map(|table| table.heading.as_str())
        .collect();
    let unused: Vec<&str> = documents
        .tables
        .iter()
        .map(|(_, table)| table.heading.as_str())
        .filter(|heading| !used.contains(heading))
        .collect();
    assert!(unused.is_empty(), "no preset is made from {unused:?}");
    let rows: usize = documents
        .tables
        .iter()
        .map(|(_, table)| table.items.len())
        .sum();
    assert_eq!(
        (documents.tables.len(), rows),
        (27, 164),
        "the reader of the documents passes something over"
    );
}

#[test]
fn every_name_anywhere_in_the_documents_is_allowed_by_some_preset() {
    let Some(documents) = documents() else { return };
    let presets = Presets::default();
    let produced: BTreeSet<String> = presets
        .all()
        .flat_map(|preset| produced(&presets, preset))
        .map(|(_, (destination, _))| destination)
        .collect();
    let mut count = 0;
    for (document, text) in &documents.texts {
        for name in documents::names_in(text) {
            count += 1;
            let is_known =
                produced.contains(&name) || NO_DESTINATIONS.iter().any(|(other, _)| *other == name);
            assert!(is_known, "{document}: {name}");
        }
    }
    assert!(count > 100, "{count} names");
    let ports = flat::explained_ports(&documents.texts[MACHINE_LEARNING]);
    assert_eq!(ports, [80, 443, 445, 8787, 18881]);
    for port in ports {
        let port = format!("{port}/tcp");
        let of_machine_learning = presets
            .all()
            .filter(|preset| preset.name.starts_with("azureml/"));
        let mut entries = of_machine_learning.flat_map(|preset| &preset.entries);
        assert!(entries.any(|entry| entry.ports.contains(&port)), "{port}");
    }
}

/// Takes one thing after the other out of a preset.
fn amputated(preset: &Preset) -> Vec<(String, Preset)> {
    let mut all = Vec::new();
    for index in 0..preset.includes.len() {
        let mut less = preset.clone();
        let include = less.includes.remove(index);
        all.push((include.preset, less));
    }
    for (index, entry) in preset.entries.iter().enumerate() {
        let mut less = preset.clone();
        less.entries.remove(index);
        all.push((format!("rules[{index}]"), less));
        type List = fn(&mut super::super::Entry) -> &mut Vec<String>;
        let lists: [(List, usize); 4] = [
            (|entry| &mut entry.names, entry.names.len()),
            (|entry| &mut entry.cidrs, entry.cidrs.len()),
            (|entry| &mut entry.service_tags, entry.service_tags.len()),
            (|entry| &mut entry.ports, entry.ports.len()),
        ];
        for (list, length) in lists {
            for position in 0..length {
                let mut less = preset.clone();
                let item = list(&mut less.entries[index]).remove(position);
                all.push((format!("rules[{index}]: {item}"), less));
            }
        }
    }
    all
}

#[test]
fn whatever_is_taken_out_of_a_preset_is_missed() {
    let Some(documents) = documents() else { return };
    let presets = Presets::default();
    let mut count = 0;
    for preset in presets.all() {
        let wanted = documents.wanted(preset);
        for (what, less) in amputated(preset) {
            count += 1;
            let presets = presets.replaced(less.clone());
            let differences = differences(&wanted, &presets, &less);
            assert!(
                !differences.is_empty(),
                "{}: {what} is not missed",
                preset.name
            );
        }
        if let Some(entry) = preset.entries.first() {
            let mut more = preset.clone();
            let mut entry = entry.clone();
            entry.names = vec!["more.example.com".to_owned()];
            more.entries.push(entry);
            let presets = presets.replaced(more.clone());
            let differences = differences(&wanted, &presets, &more);
            assert!(
                differences
                    .iter()
                    .any(|text| text.contains("more.example.com")),
                "{}",
                preset.name
            );
        }
    }
    assert!(count > 200, "{count} removals");
}
