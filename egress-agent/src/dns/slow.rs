//! Reads copied answers with hickory-proto, and learns from them what the kernel could not.
//!
//! The meaning is the kernel's (`egress_common::dns`), record by record and in
//! the same order; only the limits are wider: 64 KiB and [`ALIASES`] aliases.
//! Whether an answer *may* teach is not known here: the kernel refuses
//! oversized and segmented answers before it has compared them with the query.
//! So the caller looks up the query ([`Answer::id`], [`Answer::question_hash`])
//! and asks [`is_left_to_the_agent`] first.

use std::collections::HashMap;

use egress_common::{
    address::{Address, from_v4, is_unteachable},
    dns::{name_hash, question_hash},
    hash::mix,
    learned::{Grant, LearnRequest, LearnedKey},
    maps::{Alias, AliasKey},
    name::is_matchable,
    policy::{EntryKind, NameRules},
    tally::Tally,
};
use hickory_proto::{
    op::{Message, MessageType, OpCode},
    rr::{
        DNSClass, Name, RData, Record,
        rdata::{HTTPS, SVCB, svcb::SvcParamValue},
    },
    serialize::binary::DecodeError,
};

/// Most aliases on the way from the question to an address.
pub const ALIASES: usize = 64;

/// Why a copied message says nothing.
#[derive(Debug, thiserror::Error)]
pub enum SlowError {
    /// It is not well-formed DNS.
    #[error("message is malformed")]
    Malformed(#[source] DecodeError),
    /// It is a query, an update, or not about exactly one name.
    #[error("message is not an answer to one question")]
    NotAnAnswer,
    /// Its alias chain is longer than [`ALIASES`].
    #[error("answer has more than {ALIASES} aliases")]
    TooManyAliases,
    /// A hint of a service binding on the chain holds no address (RFC 9460 section 7.3).
    #[error("a service binding has an empty hint")]
    EmptyHint,
}

/// A name of the alias chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainName {
    /// Lower case, without the final dot; bytes that no rule can match are written as `\ddd`.
    pub name: String,
    /// Whether rules can match it.
    pub is_matchable: bool,
    /// Shortest TTL on the way to it, seconds; `u32::MAX` for the question.
    pub ttl_s: u32,
}

/// An address on the alias chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainAddress {
    /// The address.
    pub address: Address,
    /// Shortest TTL on the way to it, seconds.
    pub ttl_s: u32,
    /// Which name of the chain holds it.
    pub owner: usize,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Id of the query.
    pub id: u16,
    /// Type of the question.
    pub question_type: u16,
    /// Class of the question.
    pub question_class: u16,
    /// Error code in the header (RFC 1035 section 4.1.1); 0 is none.
    pub response_code: u8,
    /// Whether the answer says that it is cut short.
    pub is_truncated: bool,
    /// The question's name, then the aliases in the order in which they were reached.
    pub chain: Vec<ChainName>,
    /// Addresses on the chain that may be taught, in the order in which they were reached.
    pub addresses: Vec<ChainAddress>,
    /// Addresses on the chain that may never be taught.
    pub unteachable: Vec<Address>,
    /// Addresses and aliases off the chain.
    pub off_chain: usize,
    /// Labels of the question in lower case, each behind its length.
    question_labels: Vec<u8>,
    /// Aliases and addresses in the order in which the kernel would have met them.
    met: Vec<Met>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// A name of `chain`.
    Alias(usize),
    /// One of `addresses`.
    Address(usize),
}

/// Whether the kernel has left the answer to the agent: only then may the agent learn from it.
#[must_use]
pub const fn is_left_to_the_agent(outcome: Tally) -> bool {
    matches!(outcome, Tally::AnswerOversized | Tally::AnswerSegmented)
}

/// The name that a query asks for; `None` for what is no query.
#[must_use]
pub fn asked_name(query: &[u8]) -> Option<String> {
    let message = Message::from_vec(query).ok()?;
    let question = message.queries.first()?;
    Some(chain_name(question.name(), 0).name)
}

impl Answer {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// When it is not an answer to one question, or cannot be read.
    pub fn read(message: &[u8]) -> Result<Self, SlowError> {
        let message = Message::from_vec(message).map_err(SlowError::Malformed)?;
        let [question] = message.queries.as_slice() else {
            return Err(SlowError::NotAnAnswer);
        };
        if message.message_type != MessageType::Response || message.op_code != OpCode::Query {
            return Err(SlowError::NotAnAnswer);
        }
        let mut answer = Self {
            id: message.id,
            question_type: question.query_type().into(),
            question_class: question.query_class().into(),
            response_code: message.response_code.low(),
            is_truncated: message.truncation,
            chain: vec![chain_name(question.name(), u32::MAX)],
            addresses: Vec::new(),
            unteachable: Vec::new(),
            off_chain: 0,
            question_labels: labels(question.name()),
            met: Vec::new(),
        };
        if answer.response_code == 0 {
            answer.follow(question.name(), &message.answers)?;
        }
        Ok(answer)
    }

    /// The question's name.
    #[must_use]
    pub fn question(&self) -> &str {
        self.chain.first().map_or("", |first| first.name.as_str())
    }

    /// The end of the alias chain that holds an address; `None` where it is the question itself.
    #[must_use]
    pub fn alias_of(&self, address: &ChainAddress) -> Option<&str> {
        let owner = self.chain.get(address.owner)?;
        (address.owner != 0).then_some(owner.name.as_str())
    }

    /// The hash under which the kernel has noted the query, with the seed of its maps.
    #[must_use]
    pub fn question_hash(&self, seed: u64) -> u64 {
        let name = self
            .question_labels
            .iter()
            .fold(seed, |state, byte| mix(state, u64::from(*byte)));
        let kind = u32::from(self.question_type);
        question_hash(name, kind << 16 | u32::from(self.question_class))
    }

    /// Follows the aliases as the kernel does: in the order of the records, and
    /// again from the first one when an alias came after a record that was off the chain.
    fn follow(&mut self, question: &Name, records: &[Record]) -> Result<(), SlowError> {
        let mut places = HashMap::from([(question, 0_usize)]);
        let mut is_met = vec![false; records.len()];
        loop {
            let mut reads_again = false;
            self.off_chain = 0;
            for (record, is_met) in records.iter().zip(&mut is_met) {
                if record.dns_class != DNSClass::IN || !is_followed(&record.data) {
                    continue;
                }
                let Some(owner) = places.get(&record.name).copied() else {
                    self.off_chain = self.off_chain.saturating_add(1);
                    continue;
                };
                if std::mem::replace(is_met, true) {
                    continue;
                }
                let way = self.chain.get(owner).map_or(0, |name| name.ttl_s);
                let ttl_s = plain_ttl(record.ttl).min(way);
                if let Some(target) = target_of(&record.data)
                    && !places.contains_key(target)
                {
                    if self.chain.len() > ALIASES {
                        return Err(SlowError::TooManyAliases);
                    }
                    let place = self.chain.len();
                    places.insert(target, place);
                    self.chain.push(chain_name(target, ttl_s));
                    self.met.push(Met::Alias(place));
                    reads_again |= self.off_chain != 0;
                }
                for (address, from_aaaa) in addresses_of(&record.data)? {
                    if is_unteachable(&address, from_aaaa) {
                        self.unteachable.push(address);
                        continue;
                    }
                    self.met.push(Met::Address(self.addresses.len()));
                    self.addresses.push(ChainAddress {
                        address,
                        ttl_s,
                        owner,
                    });
                }
            }
            if !reads_again {
                return Ok(());
            }
        }
    }
}

/// What the kernel would have learned from an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// For every address and every allowed port range one request.
    pub requests: Vec<LearnRequest>,
    /// Names that the question is an alias of now, with the rules under which answers about them teach.
    pub aliases: Vec<(AliasKey, Alias)>,
}

/// What is known of an answer's receiver.
#[derive(Clone, Copy, Debug)]
pub struct Receiver<'a> {
    /// Its scope.
    pub scope_id: u32,
    /// Key of the hashes.
    pub seed: u64,
    /// Now, nanoseconds of the monotonic clock.
    pub now_ns: u64,
    /// Rules of the name that the question is a noted alias of.
    pub by_alias: Option<&'a NameRules>,
}

/// Learns from an answer what the kernel would have learned.
///
/// `rules_of` gives the rules of the longest pattern that covers a name. A
/// question without rules, or a denied one, teaches nothing; an alias that is
/// denied ends the reading. The node's own addresses, which only the caller
/// knows, have to be taken out by `is_local`.
#[must_use]
pub fn learn(
    answer: &Answer,
    receiver: Receiver<'_>,
    rules_of: impl Fn(&str) -> Option<NameRules>,
    is_local: impl Fn(&Address) -> bool,
) -> Lesson {
    let rules_of = |name: &ChainName| {
        // The root has no rules.
        let can_match = name.is_matchable && !name.name.is_empty();
        can_match.then(|| rules_of(&name.name)).flatten()
    };
    let mut lesson = Lesson::default();
    let own = answer.chain.first().and_then(rules_of);
    if own.is_some_and(|rules| rules.deny != 0) {
        return lesson;
    }
    let own = own.filter(|rules| !rules.is_empty());
    let mut sets: Vec<NameRules> = own.iter().chain(receiver.by_alias).copied().collect();
    if sets.is_empty() {
        return lesson;
    }
    for met in &answer.met {
        match met {
            Met::Alias(place) => {
                let Some(name) = answer.chain.get(*place) else {
                    continue;
                };
                let of_alias = rules_of(name).unwrap_or_default();
                if of_alias.deny != 0 {
                    break;
                }
                if of_alias.auditor != 0 {
                    for rules in &mut sets {
                        rules.auditor = of_alias.auditor;
                    }
                }
                let Some(first) = sets.first() else { break };
                if name.is_matchable {
                    let key =
                        AliasKey::new(name_hash(receiver.seed, &name.name), receiver.scope_id);
                    let alias = Alias {
                        owner: key.owner(),
                        expires_at_ns: end_of(first, name.ttl_s, receiver.now_ns),
                        rules: *first,
                    };
                    lesson.aliases.push((key, alias));
                }
            }
            Met::Address(place) => {
                let Some(one) = answer.addresses.get(*place) else {
                    continue;
                };
                if !is_local(&one.address) {
                    for rules in &sets {
                        teach(&mut lesson.requests, one, rules, receiver);
                    }
                }
            }
        }
    }
    lesson
}

/// When something ends that is learned now.
fn end_of(rules: &NameRules, ttl_s: u32, now_ns: u64) -> u64 {
    let lifetime_ns = u64::from(rules.lifetime_s(ttl_s)).saturating_mul(1_000_000_000);
    now_ns.saturating_add(lifetime_ns)
}

fn teach(
    requests: &mut Vec<LearnRequest>,
    one: &ChainAddress,
    rules: &NameRules,
    receiver: Receiver<'_>,
) {
    let grants = rules
        .entries
        .iter()
        .take_while(|entry| entry.kind == EntryKind::Allow as u8);
    requests.extend(grants.map(|entry| LearnRequest {
        key: LearnedKey::new(receiver.scope_id, one.address),
        grant: Grant {
            expires_at_ns: end_of(rules, one.ttl_s, receiver.now_ns),
            rule: entry.rule,
            auditor: rules.auditor,
            ports: entry.ports,
            _pad: 0,
        },
    }));
}

/// RFC 2181 section 8: a TTL with its top bit set is zero.
const fn plain_ttl(ttl_s: u32) -> u32 {
    if ttl_s >> 31 == 1 { 0 } else { ttl_s }
}

/// Whether addresses can depend on a record.
const fn is_followed(data: &RData) -> bool {
    matches!(
        data,
        RData::A(_) | RData::AAAA(_) | RData::CNAME(_) | RData::SVCB(_) | RData::HTTPS(_)
    )
}

/// The name that a record makes its owner an alias of. The root as target of a service binding is the owner itself.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "dozens of types, three of which lead to another name"
)]
fn target_of(data: &RData) -> Option<&Name> {
    match data {
        RData::CNAME(target) => Some(&target.0),
        RData::SVCB(service) | RData::HTTPS(HTTPS(service)) => {
            Some(&service.target_name).filter(|target| !target.is_root())
        }
        _ => None,
    }
}

/// Addresses that a record holds, and whether as IPv6 ones.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "dozens of types, four of which hold addresses"
)]
fn addresses_of(data: &RData) -> Result<Vec<(Address, bool)>, SlowError> {
    match data {
        RData::A(a) => Ok(vec![(from_v4(a.octets()), false)]),
        RData::AAAA(aaaa) => Ok(vec![(aaaa.octets(), true)]),
        RData::SVCB(service) | RData::HTTPS(HTTPS(service)) => hints_of(service),
        _ => Ok(Vec::new()),
    }
}

/// Addresses of the hints of a service binding. One that is an alias only has none, whatever its parameters say
/// (RFC 9460 section 2.4.2).
fn hints_of(service: &SVCB) -> Result<Vec<(Address, bool)>, SlowError> {
    let mut addresses = Vec::new();
    if service.svc_priority == 0 {
        return Ok(addresses);
    }
    for (_, value) in &service.svc_params {
        let known = addresses.len();
        if let SvcParamValue::Ipv4Hint(hint) = value {
            addresses.extend(hint.0.iter().map(|a| (from_v4(a.octets()), false)));
        } else if let SvcParamValue::Ipv6Hint(hint) = value {
            addresses.extend(hint.0.iter().map(|aaaa| (aaaa.octets(), true)));
        } else {
            continue;
        }
        if addresses.len() == known {
            return Err(SlowError::EmptyHint);
        }
    }
    Ok(addresses)
}

fn chain_name(name: &Name, ttl_s: u32) -> ChainName {
    let mut text = String::with_capacity(name.len());
    let mut can_match = true;
    for (index, label) in name.iter().enumerate() {
        if index != 0 {
            text.push('.');
        }
        for byte in label {
            let lower = byte.to_ascii_lowercase();
            if is_matchable(lower) {
                text.push(char::from(lower));
            } else {
                can_match = false;
                text.push_str(&format!("\\{lower:03}"));
            }
        }
    }
    ChainName {
        name: text,
        is_matchable: can_match,
        ttl_s,
    }
}

fn labels(name: &Name) -> Vec<u8> {
    let mut labels = Vec::with_capacity(name.len());
    for label in name.iter() {
        // A label is at most 63 bytes long.
        labels.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        labels.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    labels
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use egress_common::{
        dns::{self, NameReader, Taught},
        policy::{PortRange, RuleEntry, protocol::TCP},
    };
    use hickory_proto::{
        op::Query,
        rr::{
            RecordType,
            rdata::{
                A, CNAME,
                svcb::{IpHint, SvcParamKey},
            },
        },
    };
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::dns::support::{
        compare::hash_question,
        generate::{any_message, by_hickory},
        tape::Tape,
    };

    const SECOND: u64 = 1_000_000_000;

    fn receiver(scope_id: u32, now_ns: u64) -> Receiver<'static> {
        Receiver {
            scope_id,
            seed: 5,
            now_ns,
            by_alias: None,
        }
    }

    fn rules(deny: u64) -> NameRules {
        let mut rules = NameRules {
            deny,
            ttl_min_s: 30,
            ttl_max_s: 86_400,
            ..NameRules::default()
        };
        for (slot, port) in rules.entries.iter_mut().zip([443, 80]) {
            *slot = RuleEntry {
                rule: u64::from(port),
                ports: PortRange::new(TCP, port, port),
                kind: EntryKind::Allow as u8,
                _pad: 0,
            };
        }
        rules
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn message(question: &str, records: Vec<(&str, u32, RData)>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(question), RecordType::A));
        for (owner, ttl_s, data) in records {
            message.add_answer(Record::from_rdata(name(owner), ttl_s, data));
        }
        message.to_vec().expect("a message")
    }

    fn a(last: u8) -> RData {
        RData::A(A::new(192, 0, 2, last))
    }

    fn cname(target: &str) -> RData {
        RData::CNAME(CNAME(name(target)))
    }

    fn taught(answer: &Answer, denied: &str) -> Vec<(u8, u64, u64)> {
        let look = |name: &str| match name {
            "none.example." | "none.example" => None,
            name => Some(rules(u64::from(name == denied))),
        };
        learn(answer, receiver(3, 10 * SECOND), look, |address| {
            address[15] == 200
        })
        .requests
        .iter()
        .map(|request| {
            assert_eq!(request.key.scope_id, 3);
            let grant = request.grant;
            (
                request.key.address[15],
                grant.rule,
                grant.expires_at_ns / SECOND,
            )
        })
        .collect()
    }

    #[test]
    fn every_address_gets_every_port_range_and_the_shortest_ttl_of_its_way() {
        let answer = Answer::read(&message(
            "A.example.",
            vec![
                ("a.example.", 300, cname("b.example.")),
                ("B.example.", 600, a(1)),
                ("a.example.", 1, a(2)),
            ],
        ))
        .expect("an answer");
        assert_eq!(answer.question(), "a.example");
        assert_eq!(answer.alias_of(&answer.addresses[0]), Some("b.example"));
        assert_eq!(answer.alias_of(&answer.addresses[1]), None);
        assert_eq!(
            taught(&answer, ""),
            [(1, 443, 310), (1, 80, 310), (2, 443, 40), (2, 80, 40)]
        );
    }

    /// An HTTPS record with IPv4 hints that end so.
    fn https(priority: u16, target: &str, hints: &[u8]) -> RData {
        let hints = hints.iter().map(|last| A::new(192, 0, 2, *last)).collect();
        let hints = SvcParamValue::Ipv4Hint(IpHint(hints));
        let params = vec![(SvcParamKey::Ipv4Hint, hints)];
        RData::HTTPS(HTTPS(SVCB::new(priority, name(target), params)))
    }

    #[test]
    fn hints_are_addresses_of_their_owner_and_the_target_is_an_alias() {
        let answer = Answer::read(&message(
            "a.example.",
            vec![
                ("a.example.", 300, https(1, "b.example.", &[1, 2])),
                ("a.example.", 200, https(2, ".", &[3])),
                ("a.example.", 200, https(0, "c.example.", &[4])),
                ("b.example.", 600, a(5)),
                ("c.example.", 600, a(6)),
            ],
        ))
        .expect("an answer");
        let ways: Vec<_> = answer
            .addresses
            .iter()
            .map(|one| (one.address[15], one.ttl_s, answer.alias_of(one)))
            .collect();
        assert_eq!(
            ways,
            [
                (1, 300, None),
                (2, 300, None),
                (3, 200, None),
                (5, 300, Some("b.example")),
                (6, 200, Some("c.example")),
            ]
        );
        assert_eq!(taught(&answer, "b.example"), []);
        assert_eq!(taught(&answer, "c.example").len(), 6);
    }

    #[test]
    fn an_empty_hint_is_malformed_unless_it_stands_in_an_alias() {
        for (priority, is_read) in [(0, true), (1, false)] {
            let records = vec![("a.example.", 300, https(priority, ".", &[]))];
            assert_eq!(
                Answer::read(&message("a.example.", records)).is_ok(),
                is_read
            );
        }
    }

    #[test]
    fn a_denied_question_teaches_nothing_and_a_denied_alias_nothing_from_there() {
        let answer = Answer::read(&message(
            "a.example.",
            vec![
                ("a.example.", 60, a(1)),
                ("a.example.", 60, cname("b.example.")),
                ("b.example.", 60, a(2)),
                ("a.example.", 60, a(3)),
            ],
        ))
        .expect("an answer");
        assert_eq!(taught(&answer, "a.example"), []);
        assert_eq!(taught(&answer, "b.example"), [(1, 443, 70), (1, 80, 70)]);
        assert_eq!(taught(&answer, "").len(), 6);
    }

    #[test]
    fn a_question_without_rules_and_a_local_address_teach_nothing() {
        let none = Answer::read(&message("none.example.", vec![("none.example.", 60, a(1))]));
        assert_eq!(taught(&none.expect("an answer"), ""), []);
        let local = Answer::read(&message("a.example.", vec![("a.example.", 60, a(200))]));
        assert_eq!(taught(&local.expect("an answer"), ""), []);
    }

    #[test]
    fn a_name_that_no_rule_can_match_is_never_looked_up() {
        let odd = Name::from_labels([&b"a b"[..], b"example"]).expect("a name");
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(odd.clone(), RecordType::A));
        message.add_answer(Record::from_rdata(odd, 60, a(1)));
        let answer = Answer::read(&message.to_vec().expect("a message")).expect("an answer");
        assert_eq!(answer.question(), "a\\032b.example");
        assert_eq!(answer.addresses.len(), 1);
        let look = |_: &str| -> Option<NameRules> { panic!("it was looked up") };
        assert_eq!(
            learn(&answer, receiver(1, 1), look, |_| false),
            Lesson::default()
        );
    }

    #[test]
    fn an_error_code_keeps_the_question_and_holds_no_addresses() {
        let mut bytes = message("a.example.", vec![("a.example.", 60, a(1))]);
        bytes[3] = 3;
        let answer = Answer::read(&bytes).expect("an answer");
        assert_eq!((answer.response_code, answer.question()), (3, "a.example"));
        assert!(answer.addresses.is_empty());
    }

    #[test]
    fn queries_and_rubbish_are_errors() {
        let mut query = message("a.example.", vec![]);
        query[2] &= 0x7f;
        assert!(matches!(Answer::read(&query), Err(SlowError::NotAnAnswer)));
        assert!(matches!(Answer::read(&[]), Err(SlowError::Malformed(_))));
        let mut two = message("a.example.", vec![]);
        two[5] = 0;
        assert!(Answer::read(&two).is_err());
    }

    #[test]
    fn a_chain_beyond_the_kernels_limit_is_followed_up_to_a_limit() {
        let chain = |aliases: usize| {
            let names: Vec<String> = (0..=aliases).map(|n| format!("n{n}.example.")).collect();
            let mut records: Vec<(&str, u32, RData)> = names
                .windows(2)
                .map(|pair| (pair[0].as_str(), 60, cname(&pair[1])))
                .collect();
            records.push((names[aliases].as_str(), 60, a(1)));
            records.reverse();
            Answer::read(&message("n0.example.", records))
        };
        assert_eq!(chain(ALIASES).expect("an answer").addresses.len(), 1);
        assert!(matches!(chain(ALIASES + 1), Err(SlowError::TooManyAliases)));
    }

    #[test]
    fn only_what_the_kernel_left_over_may_be_learned() {
        let left: Vec<_> = Tally::ALL
            .iter()
            .filter(|one| is_left_to_the_agent(**one))
            .collect();
        assert_eq!(left, [&Tally::AnswerOversized, &Tally::AnswerSegmented]);
    }

    /// Rules that depend on the name alone: about one in four is denied, one in eight has none.
    fn rules_by_hash(name: &str) -> Option<NameRules> {
        match egress_common::hash::fnv1a(name.as_bytes()) >> 40 & 7 {
            0 => None,
            1 | 2 => Some(rules(9)),
            _ => Some(rules(0)),
        }
    }

    /// What the kernel's machine learns under the same rules.
    fn by_machine(
        bytes: &[u8],
        rules_of: fn(&str) -> Option<NameRules>,
    ) -> (Result<dns::Answer, Tally>, BTreeSet<(Address, u32)>) {
        let message = dns::Message::from_slice(bytes).expect("a message that fits");
        let mut is_first = true;
        let mut taught = BTreeSet::new();
        let outcome = dns::read_answer(
            &message,
            5,
            |name: &NameReader| {
                let text: Vec<u8> = name.reversed_text().iter().rev().copied().collect();
                let can_match = name.is_unmatchable == 0 && !text.is_empty();
                let text = String::from_utf8_lossy(&text);
                let rules = can_match.then(|| rules_of(&text)).flatten();
                if std::mem::take(&mut is_first) {
                    rules.is_some_and(|rules| rules.deny == 0)
                } else {
                    rules.is_none_or(|rules| rules.deny == 0)
                }
            },
            |Taught { address, ttl_s }| {
                taught.insert((address, ttl_s));
            },
        );
        (outcome, taught)
    }

    fn compare_with_machine(
        bytes: &[u8],
        rules_of: fn(&str) -> Option<NameRules>,
    ) -> Result<bool, TestCaseError> {
        let Ok(answer) = Answer::read(bytes) else {
            return Ok(false);
        };
        if bytes.len() > dns::MESSAGE_BYTES {
            return Ok(false);
        }
        let (outcome, taught) = by_machine(bytes, rules_of);
        let life = |ttl_s| u64::from(rules(0).lifetime_s(ttl_s)) * SECOND;
        let expected: BTreeSet<_> = taught
            .iter()
            .flat_map(|(address, ttl_s)| {
                [(*address, life(*ttl_s), 443), (*address, life(*ttl_s), 80)]
            })
            .collect();
        let requests: BTreeSet<_> = learn(&answer, receiver(1, 0), rules_of, |_| false)
            .requests
            .iter()
            .map(|one| (one.key.address, one.grant.expires_at_ns, one.grant.rule))
            .collect();
        match outcome {
            // The kernel's limits: the agent goes on where it stopped.
            Err(Tally::AnswerOversized | Tally::AnswerMalformed) => {
                prop_assert!(expected.is_subset(&requests), "{outcome:?} {bytes:02x?}");
            }
            Ok(_) | Err(_) => prop_assert_eq!(&requests, &expected, "{:?} {:02x?}", outcome, bytes),
        }
        if let Ok(machine) = outcome {
            prop_assert_eq!(answer.question_hash(5), machine.question);
            prop_assert_eq!(answer.unteachable.len(), machine.unteachable as usize);
            prop_assert_eq!(answer.off_chain, machine.off_chain as usize);
            // `None` where the question holds a pointer, which no query does.
            let hash = hash_question(&bytes[12..], 5);
            prop_assert!(hash.is_none_or(|hash| hash == machine.question));
        }
        Ok(!requests.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_slow_path_learns_what_the_kernel_learns(tape in vec(any::<u8>(), 0..1200)) {
            let bytes = by_hickory(&mut Tape::new(&tape));
            compare_with_machine(&bytes, rules_by_hash)?;
            compare_with_machine(&bytes, |_| Some(rules(0)))?;
        }

        #[test]
        fn broken_messages_teach_what_the_kernel_learns_or_nothing(tape in vec(any::<u8>(), 0..1200)) {
            let bytes = any_message(&mut Tape::new(&tape));
            compare_with_machine(&bytes, rules_by_hash)?;
        }
    }

    #[test]
    fn the_comparison_is_not_empty() {
        let mut learned = 0;
        for choice in 0..300_u32 {
            let tape: Vec<u8> = (0..800_u32)
                .map(|index| {
                    (index + 800 * choice)
                        .wrapping_mul(0x9E37_79B9)
                        .to_be_bytes()[0]
                })
                .collect();
            let bytes = by_hickory(&mut Tape::new(&tape));
            let has_learned = compare_with_machine(&bytes, rules_by_hash).expect("agreement");
            learned += u32::from(has_learned);
        }
        assert!(learned > 60, "{learned}");
    }
}
