//! Single rules of Azure Firewall.

use std::collections::HashMap;

use super::{
    super::{
        input::{Item, some_of},
        rule::Carried,
        sink::Sink,
    },
    groups::{is_open, unknown},
};

/// The groups that a rule may refer to.
pub(super) struct Context<'a, 'n> {
    /// Addresses of IP groups, by the last part of their id in lower case.
    pub(super) ip_groups: &'a HashMap<String, Vec<Item<'n>>>,
    /// The region, if it is known.
    pub(super) location: Option<String>,
}

/// The fields by which a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Names in TLS and HTTP.
    Application,
    /// Addresses and ports.
    Network,
    /// Nothing: it rewrites.
    Nat,
}

/// Fields that a rule may have; others are left out with a note.
const KNOWN: &[&str] = &[
    "name",
    "description",
    "ruleType",
    "sourceAddresses",
    "sourceIpGroups",
    "protocols",
    "ipProtocols",
    "targetFqdns",
    "targetUrls",
    "fqdnTags",
    "webCategories",
    "terminateTLS",
    "httpHeadersToInsert",
    "destinationAddresses",
    "destinationIpGroups",
    "destinationFqdns",
    "destinationPorts",
];

/// The priority of a group or collection. `None` if it stands elsewhere.
pub(super) fn priority(properties: &Item<'_>, sink: &mut Sink) -> Option<u32> {
    let priority = properties.get("priority")?;
    let text = priority.text().unwrap_or_default();
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) if is_open(&priority) => None,
        Err(_) => {
            sink.shape(&priority, "a number", "priority: 100");
            None
        }
    }
}

/// Reads a rule. `None` if it is none.
pub(super) fn rule<'n>(
    item: &Item<'n>,
    title: &str,
    is_deny: bool,
    kind: Option<Kind>,
    context: &Context<'_, 'n>,
    sink: &mut Sink,
) -> Option<(Kind, Carried<'n>)> {
    let kind = match (item.word("ruleType"), kind) {
        (Some("ApplicationRule"), _) | (None, Some(Kind::Application)) => Kind::Application,
        (Some("NetworkRule"), _) | (None, Some(Kind::Network)) => Kind::Network,
        (Some("NatRule"), _) | (None, Some(Kind::Nat)) => Kind::Nat,
        (Some(_), _) | (None, None) => {
            let at = item.get("ruleType");
            sink.choice(
                at.as_ref().unwrap_or(item),
                "ruleType: ApplicationRule or NetworkRule",
            );
            return None;
        }
    };
    let mut reader = Reader {
        item,
        context,
        sink,
        rule: Carried::new(item.clone(), title, is_deny),
    };
    if let Some(text) = item.word("description").filter(|text| !text.is_empty()) {
        reader.rule.remark(text);
    }
    reader.sources();
    match kind {
        Kind::Application => reader.application(),
        Kind::Network => reader.network(),
        Kind::Nat => reader
            .rule
            .left_out(item, "rewrites destinations; here only egress is judged"),
    }
    for (name, field) in item.fields() {
        if !KNOWN.contains(&name) && !field.says_nothing() {
            reader
                .rule
                .left_out(&field, format!("the field {name} is not known here"));
        }
    }
    Some((kind, reader.rule))
}

/// Reads one rule.
pub(super) struct Reader<'a, 'n> {
    pub(super) item: &'a Item<'n>,
    pub(super) context: &'a Context<'a, 'n>,
    pub(super) sink: &'a mut Sink,
    pub(super) rule: Carried<'n>,
}

impl<'n> Reader<'_, 'n> {
    /// The texts of a field, without expressions whose value is not known: those are left out.
    pub(super) fn texts(&mut self, name: &str) -> Vec<(Item<'n>, &'n str)> {
        let Some(field) = self.item.get(name) else {
            return Vec::new();
        };
        if is_open(&field) {
            self.unknown(&field);
            return Vec::new();
        }
        let texts = self.sink.texts(self.item, name);
        let (open, known): (Vec<_>, Vec<_>) = texts.into_iter().partition(|(at, _)| is_open(at));
        open.iter().for_each(|(at, _)| self.unknown(at));
        known
    }

    /// Leaves out an expression whose value is not known.
    pub(super) fn unknown(&mut self, at: &Item<'_>) {
        let text = unknown(at);
        self.rule.left_out(at, text);
    }

    fn sources(&mut self) {
        for (name, what) in [("sourceAddresses", ""), ("sourceIpGroups", "IP group ")] {
            let Some(field) = self.item.get(name).filter(|field| !field.says_nothing()) else {
                continue;
            };
            let texts: Vec<&'n str> = field.items().filter_map(|item| item.text()).collect();
            if texts.iter().any(|text| matches!(*text, "*" | "0.0.0.0/0")) {
                continue;
            }
            let part = |text: &'n str| match what {
                "" => text,
                _ => text.rsplit('/').next().unwrap_or(text),
            };
            let shown = match texts.as_slice() {
                [] => field.shown(),
                texts => some_of(texts.iter().map(|text| part(text))),
            };
            let text = format!(
                "applies to what comes from {what}{shown} there; here to the whole workload"
            );
            self.rule.narrower_there(&field, text);
        }
    }
}
