//! Reads an answer record by record, along the alias chain of its question.

use super::{
    message::{HEADER_BYTES, Message},
    name_reader::NameReader,
};
use crate::{
    address::{Address, from_v4},
    tally::Tally,
};

/// Most aliases (CNAME records, targets of service bindings) on the way from the question to an address.
pub const ALIASES: usize = 8;

/// Most steps of one answer: 255 records, each with an owner and a target to read. Service bindings take one more for
/// each parameter and each address of a hint.
pub const ANSWER_STEPS: u32 = 800;

/// Most work that the kernel does to read one answer, in bytes of names and pointers in them (5 to 6 ns each, so some
/// 18 µs): one that costs more, by many long names behind pointers, is left to the agent. Storing addresses is not in
/// it.
pub const ANSWER_WORK: u64 = 3_000;

/// Cost of a step beside the name that it asks for.
pub const STEP_WORK: u64 = 5;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
/// Service bindings, RFC 9460.
const TYPE_SVCB: u16 = 64;
const TYPE_HTTPS: u16 = 65;
/// Keys of their parameters, RFC 9460 section 14.3.2.
const IPV4_HINT: u32 = 4;
const IPV6_HINT: u32 = 6;
const CLASS_IN: u16 = 1;

/// The driver's work before the next step.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Step = 0,
    /// Read the name at [`AnswerReader::name_at`].
    ReadName = 1,
    /// The question is read, its name is in the reader: find the rules.
    Match = 2,
    /// [`AnswerReader::address`] belongs to the question, for [`AnswerReader::ttl_s`].
    Teach = 3,
    /// An alias on the chain was read, its target is in the reader.
    Alias = 4,
    /// The answer is read.
    Done = 5,
    /// The answer is refused: [`AnswerReader::refusal`].
    Refused = 6,
}

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header = 0,
    Question = 1,
    Owner = 2,
    OwnerRead = 3,
    AliasRead = 4,
    /// The target of a service binding was read.
    TargetRead = 5,
    /// A parameter of a service binding comes next.
    Parameter = 6,
    /// An address of a hint comes next.
    Hint = 7,
}

/// One name of the alias chain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// Hash of the name.
    hash: u64,
    /// Shortest TTL on the way to it, seconds.
    ttl_s: u32,
    /// The links on the way to it and itself: one bit for each.
    way: u32,
}

/// Links of the longest chain, rounded up to a power of two.
const LINKS: usize = 16;
const LINK_MASK: u32 = 15;
const _: () = assert!(LINKS == LINK_MASK as usize + 1);
const NO_LINK: u32 = 0xff;

/// Reads a number from memory, whatever the compiler knows of it.
#[inline(always)]
#[expect(unsafe_code, reason = "a volatile read")]
fn reload(number: &u32) -> u32 {
    // SAFETY: the pointer comes from a reference.
    unsafe { core::ptr::read_volatile(number) }
}

/// State of the machine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AnswerReader {
    /// A `Phase` as a number.
    phase: u32,
    /// Next record.
    at: u32,
    /// First record.
    records_at: u32,
    /// Records in the answer section.
    records: u32,
    /// Records left in this pass.
    records_left: u32,
    /// Links of the chain.
    links: u32,
    /// Link that the owner is, or `NO_LINK`.
    owner: u32,
    /// Target of the last owner that was one pointer; 0 for none.
    memo_target: u32,
    /// Link that it was.
    memo_link: u32,
    /// Records off the chain in this pass.
    off_chain: u32,
    /// 1 when an alias was added after a record was found off the chain: its owner may be on it now.
    read_again: u32,
    /// Where the name stands that the driver has to read.
    pub name_at: u32,
    /// TTL of the address, or of the alias that is being read; seconds.
    pub ttl_s: u32,
    /// The address of [`Next::Teach`].
    pub address: Address,
    /// The links from the question to the owner of the address, or of the alias that is being read: one bit for each.
    pub way: u32,
    /// Number of the link that the alias of [`Next::Alias`] is.
    pub alias_link: u32,
    /// Next parameter of the service binding.
    parameter_at: u32,
    /// Its smallest key: keys increase.
    least_key: u32,
    /// Priority of the service binding; 0 when it is an alias only (RFC 9460 section 2.4.2).
    priority: u32,
    /// Next address of the hint.
    hint_at: u32,
    /// First byte behind the hint.
    hint_end: u32,
    /// 1 when the address came from an AAAA record or an IPv6 hint.
    pub from_aaaa: u32,
    /// Addresses on the chain so far, in this pass.
    pub addresses: u32,
    /// 1 when the answer says that it is cut short.
    pub is_truncated: u32,
    /// A [`Tally`] as a number, after [`Next::Refused`].
    pub refusal: u32,
    chain: [Link; LINKS],
}

impl AnswerReader {
    /// A machine that has read nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: 0,
            at: 0,
            records_at: 0,
            records: 0,
            records_left: 0,
            links: 0,
            owner: 0,
            memo_target: 0,
            memo_link: 0,
            off_chain: 0,
            read_again: 0,
            name_at: 0,
            ttl_s: 0,
            way: 0,
            alias_link: 0,
            parameter_at: 0,
            least_key: 0,
            priority: 0,
            hint_at: 0,
            hint_end: 0,
            address: [0; 16],
            from_aaaa: 0,
            addresses: 0,
            is_truncated: 0,
            refusal: 0,
            chain: [Link {
                hash: 0,
                ttl_s: 0,
                way: 0,
            }; LINKS],
        }
    }

    /// Prepares for a new message.
    #[inline(always)]
    pub const fn start(&mut self) {
        self.phase = Phase::Header as u32;
    }

    /// Addresses and aliases whose owner was not on the chain.
    #[inline(always)]
    #[must_use]
    pub const fn off_chain(&self) -> u32 {
        self.off_chain
    }

    /// Does one step. `name` holds the name that the last step asked for.
    #[inline(always)]
    pub fn step(&mut self, message: &Message, name: &NameReader) -> Next {
        let phase = self.phase;
        if phase == Phase::Header as u32 {
            return self.header(message);
        }
        if phase == Phase::Question as u32 {
            return self.question(message, name);
        }
        if phase == Phase::AliasRead as u32 {
            return self.alias(name);
        }
        if phase == Phase::TargetRead as u32 {
            return self.target(name);
        }
        if phase == Phase::Parameter as u32 {
            return self.parameter(message);
        }
        if phase == Phase::Hint as u32 {
            return self.hint(message);
        }
        if phase == Phase::OwnerRead as u32 {
            self.at = name.end;
            self.owner = self.link_of(name.hash);
            if self.memo_target != 0 {
                self.memo_link = self.owner;
            }
            return self.record(message);
        }
        if self.records_left == 0 {
            return self.end_of_pass();
        }
        self.records_left = self.records_left.wrapping_sub(1);
        let at = self.at;
        if at.wrapping_add(1) < message.length && message.byte(at) & 0xc0 == 0xc0 {
            let target = u32::from(message.u16_at(at) & 0x3fff);
            if target >= HEADER_BYTES && target == self.memo_target {
                self.owner = self.memo_link;
                self.at = at.wrapping_add(2);
                return self.record(message);
            }
            self.memo_target = target;
        } else {
            self.memo_target = 0;
        }
        self.name_at = at;
        self.phase = Phase::OwnerRead as u32;
        Next::ReadName
    }

    #[inline(always)]
    fn refuse(&mut self, tally: Tally) -> Next {
        self.refusal = tally as u32;
        Next::Refused
    }

    #[inline(always)]
    fn header(&mut self, message: &Message) -> Next {
        if message.length < HEADER_BYTES {
            return self.refuse(Tally::AnswerMalformed);
        }
        let flags = message.u16_at(2);
        // QR set, opcode 0 (RFC 1035 section 4.1.1), one question.
        if flags & 0xf800 != 0x8000 || message.u16_at(4) != 1 {
            return self.refuse(Tally::AnswerMalformed);
        }
        if flags & 0xf != 0 {
            return self.refuse(Tally::AnswerErrorCode);
        }
        self.is_truncated = u32::from(flags & 0x0200 != 0);
        self.records = u32::from(message.u16_at(6));
        self.name_at = HEADER_BYTES;
        self.phase = Phase::Question as u32;
        Next::ReadName
    }

    #[inline(always)]
    fn question(&mut self, message: &Message, name: &NameReader) -> Next {
        let records_at = name.end.wrapping_add(4);
        // The bytes that were compared with the query are those that stand here: a pointer would lead to others.
        if records_at > message.length || name.has_pointers() {
            return self.refuse(Tally::AnswerMalformed);
        }
        self.set_link(0, name.hash, u32::MAX, 1);
        self.links = 1;
        self.records_at = records_at;
        self.begin_pass();
        Next::Match
    }

    #[inline(always)]
    const fn begin_pass(&mut self) {
        self.at = self.records_at;
        self.records_left = self.records;
        self.off_chain = 0;
        self.addresses = 0;
        self.read_again = 0;
        // Owners that are one pointer to the question need no reading.
        self.memo_target = HEADER_BYTES;
        self.memo_link = 0;
        self.phase = Phase::Owner as u32;
    }

    #[inline(always)]
    const fn end_of_pass(&mut self) -> Next {
        // Every further pass needs a link that the last one added, so there are at most `ALIASES` of them.
        if self.read_again == 0 {
            return Next::Done;
        }
        self.begin_pass();
        Next::Step
    }

    #[inline(always)]
    fn record(&mut self, message: &Message) -> Next {
        self.phase = Phase::Owner as u32;
        let at = self.at;
        let data_at = at.wrapping_add(10);
        if data_at > message.length {
            return self.refuse(Tally::AnswerMalformed);
        }
        let kind = message.u16_at(at);
        let class = message.u16_at(at.wrapping_add(2));
        let ttl_s = message.u32_at(at.wrapping_add(4));
        let data_bytes = u32::from(message.u16_at(at.wrapping_add(8)));
        let end = data_at.wrapping_add(data_bytes);
        if end > message.length {
            return self.refuse(Tally::AnswerMalformed);
        }
        self.at = end;
        let is_service = matches!(kind, TYPE_SVCB | TYPE_HTTPS);
        if class != CLASS_IN || !(is_service || matches!(kind, TYPE_A | TYPE_AAAA | TYPE_CNAME)) {
            return Next::Step;
        }
        if self.owner == NO_LINK {
            self.off_chain = self.off_chain.wrapping_add(1);
            return Next::Step;
        }
        // RFC 2181 section 8: a TTL with its top bit set is zero.
        let ttl_s = if ttl_s >> 31 == 1 { 0 } else { ttl_s };
        self.ttl_s = ttl_s.min(self.link_ttl(self.owner));
        self.way = self.link_way(self.owner);
        if kind == TYPE_CNAME {
            self.name_at = data_at;
            self.phase = Phase::AliasRead as u32;
            return Next::ReadName;
        }
        if is_service {
            // Priority and at least the root as target.
            if data_bytes < 3 {
                return self.refuse(Tally::AnswerMalformed);
            }
            self.priority = u32::from(message.u16_at(data_at));
            self.name_at = data_at.wrapping_add(2);
            self.phase = Phase::TargetRead as u32;
            return Next::ReadName;
        }
        if kind == TYPE_A {
            if data_bytes != 4 {
                return self.refuse(Tally::AnswerMalformed);
            }
            self.address = from_v4(message.u32_at(data_at).to_be_bytes());
            self.from_aaaa = 0;
        } else {
            if data_bytes != 16 {
                return self.refuse(Tally::AnswerMalformed);
            }
            self.load_v6(message, data_at);
        }
        self.addresses = self.addresses.wrapping_add(1);
        Next::Teach
    }

    #[inline(always)]
    fn alias(&mut self, name: &NameReader) -> Next {
        self.phase = Phase::Owner as u32;
        if name.end != self.at {
            return self.refuse(Tally::AnswerMalformed);
        }
        self.add_link(name)
    }

    /// The target of a service binding: the owner itself (written as the root), or another name, which is then an alias of it.
    #[inline(always)]
    fn target(&mut self, name: &NameReader) -> Next {
        if name.end > self.at {
            return self.refuse(Tally::AnswerMalformed);
        }
        self.parameter_at = name.end;
        self.least_key = 0;
        self.phase = if self.priority == 0 {
            Phase::Owner as u32
        } else {
            Phase::Parameter as u32
        };
        if name.text_bytes == 0 {
            return Next::Step;
        }
        self.add_link(name)
    }

    /// A parameter of a service binding (RFC 9460 section 2.2).
    #[inline(always)]
    fn parameter(&mut self, message: &Message) -> Next {
        let at = self.parameter_at;
        if at == self.at {
            self.phase = Phase::Owner as u32;
            return Next::Step;
        }
        let value_at = at.wrapping_add(4);
        if value_at > self.at {
            return self.refuse(Tally::AnswerMalformed);
        }
        let key = u32::from(message.u16_at(at));
        let bytes = u32::from(message.u16_at(at.wrapping_add(2)));
        let end = value_at.wrapping_add(bytes);
        if end > self.at || key < self.least_key {
            return self.refuse(Tally::AnswerMalformed);
        }
        self.parameter_at = end;
        self.least_key = key.wrapping_add(1);
        if matches!(key, IPV4_HINT | IPV6_HINT) {
            let rest = if key == IPV4_HINT { 3 } else { 15 };
            if bytes == 0 || bytes & rest != 0 {
                return self.refuse(Tally::AnswerMalformed);
            }
            self.from_aaaa = u32::from(key == IPV6_HINT);
            self.hint_at = value_at;
            self.hint_end = end;
            self.phase = Phase::Hint as u32;
        }
        Next::Step
    }

    /// An address of a hint.
    #[inline(always)]
    fn hint(&mut self, message: &Message) -> Next {
        let at = self.hint_at;
        if at >= self.hint_end {
            self.phase = Phase::Parameter as u32;
            return Next::Step;
        }
        if self.from_aaaa != 0 {
            self.load_v6(message, at);
            self.hint_at = at.wrapping_add(16);
        } else {
            self.address = from_v4(message.u32_at(at).to_be_bytes());
            self.hint_at = at.wrapping_add(4);
        }
        self.addresses = self.addresses.wrapping_add(1);
        Next::Teach
    }

    #[inline(always)]
    fn load_v6(&mut self, message: &Message, at: u32) {
        let [a, b, c, d] = message.u32_at(at).to_be_bytes();
        let [e, f, g, h] = message.u32_at(at.wrapping_add(4)).to_be_bytes();
        let [i, j, k, l] = message.u32_at(at.wrapping_add(8)).to_be_bytes();
        let [m, n, o, p] = message.u32_at(at.wrapping_add(12)).to_be_bytes();
        self.address = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
        self.from_aaaa = 1;
    }

    /// Adds the name in the reader to the chain.
    #[inline(always)]
    fn add_link(&mut self, name: &NameReader) -> Next {
        if self.link_of(name.hash) != NO_LINK {
            // Known from an earlier pass, or a loop.
            return Next::Step;
        }
        // Read anew: older verifiers' conclusions about it in the search above contradict each other.
        let links = reload(&self.links) & LINK_MASK;
        if links as usize > ALIASES {
            return self.refuse(Tally::AnswerOversized);
        }
        self.set_link(links, name.hash, self.ttl_s, self.way | 1 << links);
        self.alias_link = links;
        self.links = links.wrapping_add(1);
        // A pointer that was off the chain before may be on it now.
        self.memo_target = 0;
        if self.off_chain != 0 {
            self.read_again = 1;
        }
        Next::Alias
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "the mask keeps the index in bounds"
    )]
    const fn set_link(&mut self, index: u32, hash: u64, ttl_s: u32, way: u32) {
        let link = &mut self.chain[index as usize & (LINKS - 1)];
        link.hash = hash;
        link.ttl_s = ttl_s;
        link.way = way;
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "the mask keeps the index in bounds"
    )]
    const fn link_way(&self, index: u32) -> u32 {
        self.chain[index as usize & (LINKS - 1)].way
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "the mask keeps the index in bounds"
    )]
    const fn link_ttl(&self, index: u32) -> u32 {
        self.chain[index as usize & (LINKS - 1)].ttl_s
    }

    #[inline(always)]
    fn link_of(&self, hash: u64) -> u32 {
        let mut found = NO_LINK;
        let mut index = 0_u32;
        for link in self.chain.iter().take(ALIASES + 1) {
            if index < self.links && link.hash == hash {
                found = index;
            }
            index = index.wrapping_add(1);
        }
        found
    }
}

impl Default for AnswerReader {
    fn default() -> Self {
        Self::new()
    }
}
