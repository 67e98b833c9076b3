//! Reads copied answers with hickory-proto, and learns from them what the kernel could not.
//!
//! The meaning is the kernel's (`egress_common::dns`), record by record and in
//! the same order; only the limits are wider: 64 KiB and [`ALIASES`] aliases.
//! This module does not know if an answer *may* teach: [`is_left_to_the_agent`] says
//! what the kernel has left, and for a segment of a TCP connection, of which the kernel
//! knows only that an answer is waited for there, the caller looks up the query
//! ([`Answer::id`], [`Answer::question_hash`]).

use std::collections::HashMap;

use egress_common::{
    address::{Address, from_v4, is_unteachable},
    dns::QuestionHasher,
    hash::SipKey,
    learned::{Grant, LearnRequest, LearnedKey},
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
    /// True if rules can match it.
    pub is_matchable: bool,
    /// Shortest TTL on the way to it, seconds; `u32::MAX` for the question.
    pub ttl_s: u32,
    /// Place in the chain of the name that it is an alias of; its own for the question.
    pub led_by: usize,
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

/// The content of an answer.
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
    /// True if the answer says that it is cut short.
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

/// True if the kernel has left the answer to the agent: only then may the agent learn from it.
#[must_use]
pub const fn is_left_to_the_agent(outcome: Tally) -> bool {
    matches!(outcome, Tally::AnswerOversized | Tally::AnswerSegmented)
}

/// The name that a query asks for; `None` for what is no query.
#[must_use]
pub fn asked_name(query: &[u8]) -> Option<String> {
    let message = Message::from_vec(query).ok()?;
    let question = message.queries.first()?;
    Some(chain_name(question.name(), 0, 0).name)
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
            chain: vec![chain_name(question.name(), u32::MAX, 0)],
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

    /// The places in the chain on the way from the question to `place`, both included.
    #[must_use]
    pub fn way_to(&self, place: usize) -> Vec<usize> {
        let mut way = vec![place];
        let mut at = place;
        // Each is reached from one before it.
        while let Some(name) = self.chain.get(at)
            && name.led_by < at
        {
            at = name.led_by;
            way.push(at);
        }
        way.reverse();
        way
    }

    /// Every name from the question to the owner `place`, a space between them.
    #[must_use]
    pub fn chain_to(&self, place: usize) -> String {
        let way = self.way_to(place).into_iter();
        let names = way.filter_map(|place| self.chain.get(place));
        let names: Vec<&str> = names.map(|one| one.name.as_str()).collect();
        names.join(" ")
    }

    /// The end of the alias chain that holds an address; `None` where it is the question itself.
    #[must_use]
    pub fn alias_of(&self, address: &ChainAddress) -> Option<&str> {
        let owner = self.chain.get(address.owner)?;
        (address.owner != 0).then_some(owner.name.as_str())
    }

    /// The hash under which the kernel has noted the query.
    #[must_use]
    pub fn question_hash(&self, key: &SipKey) -> u64 {
        let mut hasher = QuestionHasher::new(key);
        for chunk in [&self.question_labels[..], &[0]].concat().chunks(8) {
            let mut word = [0; 8];
            for (slot, byte) in word.iter_mut().zip(chunk) {
                *slot = *byte;
            }
            if hasher.word(u64::from_le_bytes(word)) {
                break;
            }
        }
        let kind = u32::from(self.question_type);
        let hash = hasher.finish(kind << 16 | u32::from(self.question_class));
        // 0 stands for none in the kernel.
        hash.max(1)
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
                    self.chain.push(chain_name(target, ttl_s, owner));
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

/// The lesson that the kernel would have learned from an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// For every address and every allowed port range one request.
    pub requests: Vec<LearnRequest>,
    /// Names that an allowed name is an alias of now, with the rules under which answers about them teach.
    pub aliases: Vec<TaughtAlias>,
}

/// A name that an allowed name is an alias of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaughtAlias {
    /// Lower case, without the final dot.
    pub name: String,
    /// When it ends.
    pub expires_at_ns: u64,
    /// The rules of the name that led there.
    pub rules: NameRules,
}

/// Facts of an answer's receiver.
#[derive(Clone, Copy, Debug)]
pub struct Receiver<'a> {
    /// Its scope.
    pub scope_id: u32,
    /// Its network namespace.
    pub netns: u32,
    /// Now, nanoseconds of the clock since boot.
    pub now_ns: u64,
    /// Rules of the name that the question is a noted alias of.
    pub by_alias: Option<&'a NameRules>,
}

/// Rules under which a chain teaches: those of each of its owners, and the auditor of any of them.
#[derive(Clone, Debug, Default)]
pub struct Teaching {
    sets: Vec<NameRules>,
    auditor: u64,
}

impl Teaching {
    /// Takes the rules of the next owner on the chain; `false` when it is denied, and nothing more may be taught.
    pub fn take(&mut self, rules: &NameRules) -> bool {
        if rules.deny != 0 {
            self.sets.clear();
            return false;
        }
        if rules.auditor != 0 {
            self.auditor = rules.auditor;
        }
        let is_same = |known: &NameRules| known.entries == rules.entries;
        if !rules.is_empty() && !self.sets.iter().any(is_same) {
            self.sets.push(*rules);
        }
        true
    }

    /// The rules that every owner so far teaches, each its own; an audit rule of one of them audits all.
    pub fn sets(&self) -> impl Iterator<Item = NameRules> {
        self.sets.iter().map(|rules| NameRules {
            auditor: if self.auditor == 0 {
                rules.auditor
            } else {
                self.auditor
            },
            ..*rules
        })
    }

    /// True if nothing is taught.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The rules that a chain teaches whose names stand with spaces between them; `None` when one of them is denied.
    #[must_use]
    pub fn of_chain(chain: &str, rules_of: impl Fn(&str) -> Option<NameRules>) -> Option<Self> {
        let mut teaching = Self::default();
        for name in chain.split(' ') {
            // Bytes that no rule can match are written as `\\ddd`; the root has no rules.
            if name.is_empty() || name.contains('\\') {
                continue;
            }
            if let Some(rules) = rules_of(name)
                && !teaching.take(&rules)
            {
                return None;
            }
        }
        Some(teaching)
    }
}

/// Learns from an answer what the kernel would have learned.
///
/// `rules_of` gives the rules of the longest pattern that covers a name. Every
/// owner on the chain from the question teaches under its own rules; one that
/// is denied ends the reading, and so does an address that nothing so far has
/// rules for. The node's own addresses, which only the caller knows, have to be
/// taken out by `is_local`.
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
        let rules = can_match.then(|| rules_of(&name.name)).flatten();
        rules.unwrap_or_default()
    };
    let mut lesson = Lesson::default();
    let mut question = Teaching::default();
    if !question.take(&answer.chain.first().map(rules_of).unwrap_or_default()) {
        return lesson;
    }
    if let Some(rules) = receiver.by_alias {
        question.take(rules);
    }
    let mut teaches = !question.is_empty();
    // The rules that each name of the chain that was met so far teaches.
    let mut teachings = HashMap::from([(0, question)]);
    for met in &answer.met {
        match met {
            Met::Alias(place) => {
                let Some(name) = answer.chain.get(*place) else {
                    continue;
                };
                let led = teachings.get(&name.led_by).cloned().unwrap_or_default();
                let mut teaching = led.clone();
                if !teaching.take(&rules_of(name)) {
                    break;
                }
                let led = Teaching {
                    auditor: teaching.auditor,
                    ..led
                };
                if name.is_matchable
                    && let Some(rules) = led.sets().next()
                {
                    lesson.aliases.push(TaughtAlias {
                        name: name.name.clone(),
                        expires_at_ns: end_of(&rules, name.ttl_s, receiver.now_ns),
                        rules,
                    });
                }
                teaches |= !teaching.is_empty();
                teachings.insert(*place, teaching);
            }
            Met::Address(place) => {
                if !teaches {
                    break;
                }
                let Some(one) = answer.addresses.get(*place) else {
                    continue;
                };
                if is_local(&one.address) {
                    continue;
                }
                let key = LearnedKey::new(receiver.scope_id, receiver.netns, one.address);
                let teaching = teachings.get(&one.owner).into_iter();
                for rules in teaching.flat_map(Teaching::sets) {
                    let ends = end_of(&rules, one.ttl_s, receiver.now_ns);
                    let granted = grants(key, &rules, receiver.now_ns, ends);
                    lesson.requests.extend(granted);
                }
            }
        }
    }
    lesson
}

/// When something ends that is learned at a time.
#[must_use]
pub fn end_of(rules: &NameRules, ttl_s: u32, at_ns: u64) -> u64 {
    let lifetime_ns = u64::from(rules.lifetime_s(ttl_s)).saturating_mul(1_000_000_000);
    at_ns.saturating_add(lifetime_ns)
}

/// The grants that an answer of a time gives to an address, under the rules of a name.
pub fn grants(
    key: LearnedKey,
    rules: &NameRules,
    answered_at_ns: u64,
    expires_at_ns: u64,
) -> impl Iterator<Item = LearnRequest> {
    let answered_at_s = answered_at_ns.checked_div(1_000_000_000).unwrap_or(0);
    let limit_s = answered_at_s.saturating_add(u64::from(rules.ttl_max_s));
    let grace_s = rules.grace_s();
    let auditor = rules.auditor;
    let entries = rules.entries.into_iter();
    let entries = entries.take_while(|entry| entry.kind == EntryKind::Allow as u8);
    entries.map(move |entry| LearnRequest {
        key,
        grant: Grant {
            expires_at_ns,
            rule: entry.rule,
            auditor,
            used_at_s: 0,
            limit_s: u32::try_from(limit_s).unwrap_or(u32::MAX),
            ports: entry.ports,
            grace_s,
        },
    })
}

/// RFC 2181 section 8: a TTL with its top bit set is zero.
const fn plain_ttl(ttl_s: u32) -> u32 {
    if ttl_s >> 31 == 1 { 0 } else { ttl_s }
}

/// True if addresses can depend on a record.
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

fn chain_name(name: &Name, ttl_s: u32, led_by: usize) -> ChainName {
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
        led_by,
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
            netns: 1,
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
    fn every_owner_on_the_chain_teaches_under_its_own_rules() {
        let answer = Answer::read(&message(
            "none.example.",
            vec![
                ("none.example.", 60, cname("b.example.")),
                ("b.example.", 60, cname("c.example.")),
                ("c.example.", 60, a(1)),
            ],
        ))
        .expect("an answer");
        assert_eq!(answer.chain_to(1), "none.example b.example");
        let of = |port: u16, auditor| {
            let mut rules = NameRules {
                auditor,
                ttl_max_s: u32::from(port),
                ..NameRules::default()
            };
            rules.entries[0] = RuleEntry {
                rule: u64::from(port),
                ports: PortRange::new(TCP, port, port),
                kind: EntryKind::Allow as u8,
                _pad: 0,
            };
            rules
        };
        let look = |name: &str| match name {
            "b.example" => Some(of(443, 0)),
            "c.example" => Some(of(22, 9)),
            _ => None,
        };
        let lesson = learn(&answer, receiver(1, 0), look, |_| false);
        let grants: Vec<_> = lesson
            .requests
            .iter()
            .map(|one| (one.grant.rule, one.grant.auditor, one.grant.limit_s))
            .collect();
        // The audit rule of one of them audits what the chain teaches.
        assert_eq!(grants, [(443, 9, 443), (22, 9, 22)]);
        let aliases: Vec<_> = lesson
            .aliases
            .iter()
            .map(|one| (one.name.as_str(), one.rules.entries[0].rule))
            .collect();
        assert_eq!(aliases, [("c.example", 443)]);
        let chain = answer.chain_to(2);
        let teaching = Teaching::of_chain(&chain, look).expect("not denied");
        assert_eq!(teaching.sets().count(), 2);
        let denied = |name: &str| (name == "b.example").then(|| rules(7));
        assert!(Teaching::of_chain(&chain, denied).is_none());
        let nothing = Teaching::of_chain("a\\032b.example ", |_| panic!("it was looked up"));
        assert!(nothing.expect("not denied").is_empty());
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

    /// The addresses that the kernel's machine learns under the same rules.
    fn by_machine(
        bytes: &[u8],
        rules_of: fn(&str) -> Option<NameRules>,
    ) -> (Result<dns::Answer, Tally>, BTreeSet<(Address, u32)>) {
        let message = dns::Message::from_slice(bytes).expect("a message that fits");
        let ruled = std::cell::Cell::new(0_u32);
        let is_over = std::cell::Cell::new(false);
        let mut taught = BTreeSet::new();
        let outcome = dns::read_answer(
            &message,
            5,
            |name: &NameReader, link| {
                let text: Vec<u8> = name.reversed_text().iter().rev().copied().collect();
                let can_match = name.is_unmatchable == 0 && !text.is_empty();
                let text = String::from_utf8_lossy(&text);
                let rules = can_match.then(|| rules_of(&text)).flatten();
                if rules.is_some() {
                    ruled.set(ruled.get() | 1 << link);
                }
                rules.is_none_or(|rules| rules.deny == 0)
            },
            |Taught {
                 address,
                 ttl_s,
                 way,
             }| {
                // As the kernel does: the first address that nothing has rules for ends the reading, and the names on its
                // way are what teaches an address.
                if ruled.get() == 0 {
                    is_over.set(true);
                }
                if !is_over.get() && ruled.get() & way != 0 {
                    taught.insert((address, ttl_s));
                }
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
            prop_assert_eq!(answer.unteachable.len(), machine.unteachable as usize);
            prop_assert_eq!(answer.off_chain, machine.off_chain as usize);
            let key = SipKey { k0: 5, k1: !5 };
            // A zero inside a label ends the name for the kernel, and a pointer is none of a question that was sent.
            let is_plain =
                !answer.question_labels.contains(&0) && !bytes[12..].starts_with(&[0xc0]);
            let kernels = hash_question(bytes, 5).filter(|_| is_plain);
            prop_assert!(kernels.is_none_or(|hash| hash == answer.question_hash(&key)));
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
