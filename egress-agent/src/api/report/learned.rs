//! Learned addresses.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use egress_common::{address::Address, learned::Grant};

use super::rule::{gone_rule_text, rule_text};
use crate::{
    api::{LearnedFilter, model::LearnedAddress},
    datapath::LearnedEntry,
    dns::SeenName,
    policy::{NamePattern, RuleSource, address_text, port_range_text},
};

/// Stands for a name that the agent did not see resolved.
const UNKNOWN_NAME: &str = "?";

const NS_PER_S: u64 = 1_000_000_000;

/// Facts of learned addresses that the agent knows and the kernel does not.
pub struct LearnedContext<'a> {
    /// Now, nanoseconds of the clock since boot.
    pub now_ns: u64,
    /// Names that a scope resolved to an address.
    pub names: &'a dyn Fn(u32, &Address) -> Vec<SeenName>,
    /// Name of a scope; `None` for a scope that is gone, whose entries are left out.
    pub scope: &'a dyn Fn(u32) -> Option<&'a str>,
    /// Source of a rule that a scope has.
    pub rule: &'a dyn Fn(u32, u64) -> Option<&'a RuleSource>,
}

impl fmt::Debug for LearnedContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LearnedContext")
            .field("now_ns", &self.now_ns)
            .finish_non_exhaustive()
    }
}

/// The words of rows about rules, made once for each rule.
#[derive(Debug, Default)]
pub struct RuleTexts(HashMap<u64, RuleWords>);

#[derive(Debug)]
struct RuleWords {
    text: String,
    pattern: Option<NamePattern>,
}

impl RuleTexts {
    fn of<'a>(&mut self, rule: u64, source: impl FnOnce() -> Option<&'a RuleSource>) -> &RuleWords {
        self.0.entry(rule).or_insert_with(|| {
            let source = source();
            RuleWords {
                text: source.map_or_else(|| gone_rule_text(rule), rule_text),
                pattern: source.and_then(RuleSource::pattern),
            }
        })
    }
}

/// One name's share of an address.
#[derive(Default)]
struct Share {
    ports: BTreeSet<(u8, u16, u16)>,
    port_texts: Vec<String>,
    rules: BTreeSet<String>,
    expires_at_ns: u64,
}

impl Share {
    fn add(&mut self, grant: &Grant, rule: &str) {
        let ports = &grant.ports;
        if self.ports.insert((ports.proto, ports.first, ports.last)) {
            self.port_texts.push(port_range_text(ports));
        }
        self.rules.insert(rule.to_owned());
        self.expires_at_ns = self.expires_at_ns.max(grant.end_ns());
    }
}

/// Makes rows of learned addresses: live grants only, an entry's by name.
///
/// A grant belongs to those known names that its rule covers.
#[must_use]
pub fn learned_rows(
    entries: &[LearnedEntry],
    filter: &LearnedFilter,
    context: &LearnedContext<'_>,
    texts: &mut RuleTexts,
) -> Vec<LearnedAddress> {
    let mut rows = Vec::with_capacity(entries.len());
    for entry in entries {
        let address = address_text(&entry.address);
        let scope = (context.scope)(entry.scope_id);
        let Some(scope) = scope.filter(|scope| filter.pods.shows(scope)) else {
            continue;
        };
        for (name, share) in shares(entry, context, texts) {
            if filter.shows(&name, address) {
                rows.push(learned_address(name, address, scope, share, context.now_ns));
            }
        }
    }
    rows
}

/// The order in which people read learned addresses: by name, address and scope.
pub fn sort_learned(rows: &mut [LearnedAddress]) {
    let key = |row: &LearnedAddress| (row.name.clone(), row.address, row.scope.clone());
    rows.sort_by_cached_key(key);
}

fn shares(
    entry: &LearnedEntry,
    context: &LearnedContext<'_>,
    texts: &mut RuleTexts,
) -> BTreeMap<String, Share> {
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    let live = entry
        .grants
        .iter()
        .filter(|grant| grant.end_ns() > context.now_ns);
    let mut names = None;
    for grant in live {
        let known = names.get_or_insert_with(|| (context.names)(entry.scope_id, &entry.address));
        let rule = texts.of(grant.rule, || (context.rule)(entry.scope_id, grant.rule));
        let mut covered = known
            .iter()
            .filter(|seen| {
                let pattern = rule.pattern.as_ref();
                pattern.is_some_and(|pattern| pattern.covers(&seen.name))
            })
            .peekable();
        if covered.peek().is_none() {
            let share = shares.entry(UNKNOWN_NAME.to_owned()).or_default();
            share.add(grant, &rule.text);
        }
        for seen in covered {
            let share = shares.entry(seen.name.to_string()).or_default();
            share.add(grant, &rule.text);
        }
    }
    shares
}

fn learned_address(
    name: String,
    address: IpAddr,
    scope: &str,
    share: Share,
    now_ns: u64,
) -> LearnedAddress {
    LearnedAddress {
        name,
        address,
        ports: share.port_texts,
        expires_in_s: share
            .expires_at_ns
            .saturating_sub(now_ns)
            .div_ceil(NS_PER_S),
        scope: scope.to_owned(),
        rules: share.rules.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use egress_common::{
        address::from_v4,
        policy::{PortRange, protocol::TCP},
    };

    use super::*;
    use crate::{api::testing::rule, policy::RuleList};

    const NOW_NS: u64 = 1_000 * NS_PER_S;

    fn grant(rule: u64, port: u16, expires_at_ns: u64) -> Grant {
        Grant {
            expires_at_ns,
            rule,
            ports: PortRange::new(TCP, port, port),
            ..Grant::default()
        }
    }

    fn entry(grants: Vec<Grant>) -> LearnedEntry {
        LearnedEntry {
            scope_id: 1,
            netns: 1,
            address: from_v4([192, 0, 2, 1]),
            grants,
        }
    }

    fn report(
        entries: &[LearnedEntry],
        names: &[&str],
        query: Option<&str>,
    ) -> Vec<LearnedAddress> {
        let rules = [
            rule(RuleList::Allow, "*.example.com"),
            rule(RuleList::Allow, "www.example.net"),
        ];
        let filter = LearnedFilter {
            query: query.map(|text| text.parse().expect("infallible")),
            ..LearnedFilter::default()
        };
        let seen = |name: &&str| SeenName {
            name: Arc::from(*name),
            alias: None,
            chain: None,
            at_ns: NOW_NS,
            expires_at_ns: NOW_NS,
            netns: 1,
            ttl_s: 0,
            allowed: true,
        };
        let context = LearnedContext {
            now_ns: NOW_NS,
            names: &|_, _| names.iter().map(seen).collect(),
            scope: &|scope| (scope == 1).then_some("node"),
            rule: &|_, number| rules.get(usize::try_from(number).expect("small")),
        };
        learned_rows(entries, &filter, &context, &mut RuleTexts::default())
    }

    #[test]
    fn each_name_has_the_ports_of_the_rules_that_cover_it() {
        let shared = entry(vec![
            grant(0, 443, NOW_NS + 30 * NS_PER_S),
            grant(0, 80, NOW_NS + 60 * NS_PER_S),
            grant(1, 22, NOW_NS + 1),
        ]);
        let names = ["a.example.com", "www.example.net", "evil.example.org"];
        let report = report(&[shared], &names, None);
        let rows: Vec<_> = report
            .iter()
            .map(|row| (row.name.as_str(), row.ports.join(" "), row.expires_in_s))
            .collect();
        assert_eq!(
            rows,
            [
                ("a.example.com", "443/tcp 80/tcp".to_owned(), 60),
                ("www.example.net", "22/tcp".to_owned(), 1),
            ]
        );
        assert_eq!(report[0].scope, "node");
        assert_eq!(report[0].rules.len(), 1);
    }

    #[test]
    fn an_end_is_exclusive() {
        let at = |end| report(&[entry(vec![grant(0, 443, end)])], &["a.example.com"], None);
        assert!(at(NOW_NS - 1).is_empty());
        assert!(at(NOW_NS).is_empty());
        assert_eq!(at(NOW_NS + 1)[0].expires_in_s, 1);
    }

    #[test]
    fn an_unknown_name_is_a_question_mark_with_its_rule() {
        let live = NOW_NS + NS_PER_S;
        let report = report(
            &[entry(vec![grant(0, 443, live), grant(9, 80, live)])],
            &[],
            None,
        );
        assert_eq!(report.len(), 1);
        assert_eq!(report[0].name, "?");
        assert_eq!(
            report[0].rules,
            [
                "policy/node allow[0] *.example.com 443/tcp",
                "removed rule 0000000000000009"
            ]
        );
    }

    #[test]
    fn entries_of_scopes_that_are_gone_are_left_out() {
        let mut gone = entry(vec![grant(0, 443, NOW_NS + 1)]);
        gone.scope_id = 2;
        assert!(report(&[gone], &["a.example.com"], None).is_empty());
    }

    #[test]
    fn a_query_picks_by_name_or_address() {
        let entries = [entry(vec![grant(0, 443, NOW_NS + 1)])];
        let found = |query| report(&entries, &["a.example.com"], Some(query)).len();
        assert_eq!(found("a.example.com"), 1);
        assert_eq!(found("b.example.com"), 0);
        assert_eq!(found("192.0.2.1"), 1);
        assert_eq!(found("192.0.2.2"), 0);
    }
}
