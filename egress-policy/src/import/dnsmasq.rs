//! Lists of dnsmasq: which names it asks for, which it puts into sets of the firewall, and which it refuses.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use super::{
    input::{Item, lines, named, some_of},
    rule::Carried,
    sink::Sink,
};

/// Options that lead to more of the same.
const FILES: &[&str] = &[
    "conf-file",
    "conf-dir",
    "servers-file",
    "addn-hosts",
    "hostsdir",
];

/// True if the text is a file of dnsmasq that is about names.
pub(super) fn is_it(text: &str) -> bool {
    let starts = ["server=/", "local=/", "address=/", "ipset=/", "nftset=/"];
    text.lines()
        .map(str::trim)
        .any(|line| starts.iter().any(|start| line.starts_with(start)))
}

/// Makes a policy of a file.
pub(super) fn import(file: &Path, text: &str, sink: &mut Sink) {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy());
    let mut draft = sink.draft(stem.as_deref().unwrap_or_default());
    let nodes = lines(text);
    let mut rules = Vec::new();
    let mut allowed: BTreeSet<String> = BTreeSet::new();
    let mut others = BTreeSet::new();
    for node in &nodes {
        let at = Item::root(file, node);
        let line = at.text().unwrap_or_default();
        // A # inside of a value is a server's port, or all names.
        let line = line.split(" #").next().unwrap_or(line).trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim(), value.trim());
        if FILES.contains(&key) {
            let mut rule = Carried::new(at.clone(), "", false);
            let text = format!("{key} {}: import that file too", named(value));
            rule.left_out(&at, text);
            rules.push(rule);
            continue;
        }
        let Some(rest) = value.strip_prefix('/') else {
            let mut rule = Carried::new(at.clone(), "", false);
            match key {
                "server" => {
                    let text = format!(
                        "{} is asked for every other name there; here a name needs a rule",
                        named(value)
                    );
                    rule.differs(&at, text);
                }
                "address" | "local" => {
                    rule.left_out(&at, format!("{key} {} has no domain", named(value)))
                }
                _ => {
                    others.insert(key);
                    continue;
                }
            }
            rules.push(rule);
            continue;
        };
        let (domains, target) = rest.rsplit_once('/').unwrap_or((rest, ""));
        let domains: Vec<&str> = domains.split('/').collect();
        let is_nowhere = match target.parse::<IpAddr>() {
            Ok(address) => address.is_unspecified() || address.is_loopback(),
            Err(_) => matches!(target, "" | "#"),
        };
        let is_deny = match key {
            "server" | "local" => target.is_empty(),
            "ipset" | "nftset" => false,
            "address" if is_nowhere => true,
            "address" => {
                let mut rule = Carried::new(at.clone(), "", false);
                let text = format!(
                    "{} is answered with {} by dnsmasq itself there: allow that address where it is needed",
                    some_of(domains),
                    named(target)
                );
                rule.left_out(&at, text);
                rules.push(rule);
                continue;
            }
            _ => {
                others.insert(key);
                continue;
            }
        };
        let mut rule = Carried::new(at.clone(), line, is_deny);
        for domain in domains {
            name(&at, domain, is_deny, &mut rule, &mut allowed);
        }
        rules.push(rule);
    }
    // There the longest domain decides, here deny wins.
    for rule in rules.iter_mut().filter(|rule| rule.is_deny) {
        let is_below = |name: &&String| {
            let mut parents = rule.names.iter().filter(|parent| !parent.starts_with("*."));
            parents.any(|parent| {
                name.strip_suffix(parent.as_str())
                    .is_some_and(|head| head.ends_with('.'))
            })
        };
        let below: Vec<&str> = allowed
            .iter()
            .filter(is_below)
            .map(String::as_str)
            .collect();
        if !below.is_empty() {
            let text = format!("{} stays open there; here deny wins", some_of(below));
            rule.differs_as_a_whole(text);
        }
    }
    if !others.is_empty() {
        let others: Vec<&str> = others.into_iter().collect();
        draft
            .comments
            .push(format!("Not about names: {}.", others.join(", ")));
    }
    for rule in rules {
        rule.finish(&mut draft, sink);
    }
    sink.drafts.push(draft);
}

/// A domain is itself and all below it; `#` is every name, nothing is every name without a dot.
fn name(
    at: &Item<'_>,
    domain: &str,
    is_deny: bool,
    rule: &mut Carried<'_>,
    allowed: &mut BTreeSet<String>,
) {
    match domain {
        "#" if is_deny => rule.remark("every name that no other line has: denied anyway"),
        "#" => {
            rule.add_world();
            rule.differs(
                at,
                "every name there; here every address, whether a name led to it or not",
            );
        }
        "" => rule.left_out(at, "names without a dot: write the names that are meant"),
        _ if domain.contains('*') => {
            let text = format!(
                "{}: a * there is the end of any name: write the names",
                named(domain)
            );
            rule.left_out(at, text);
        }
        _ => {
            let count = rule.names.len();
            rule.add_name(at, domain);
            if rule.names.len() > count {
                rule.add_name(at, &format!("*.{domain}"));
                if !is_deny {
                    allowed.insert(domain.to_ascii_lowercase());
                }
            }
        }
    }
}
