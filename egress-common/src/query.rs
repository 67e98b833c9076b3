//! Queries that sockets sent, until their answers come: who may teach, and who is asked.
//!
//! `QUERIES` is an array of buckets of [`QUERY_SLOTS`] queries. A bucket is read and written under its lock alone, by the
//! kernel and by the agent: nobody sees half a query, on any architecture. A query belongs to a scope; where a bucket is
//! full, the scope that has most in it loses its oldest, so that one that floods the table loses its own.

use crate::{
    address::Address,
    dns::DNS_PORT,
    hash::mix,
    learned::bpf_spin_lock,
    maps::{ANSWER_LATE_NS, QUERY_BUCKETS},
    packed::address_words,
};

/// Key of `RESOLVERS`: an address and a port whose answers may teach.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResolverKey {
    /// The address, as two words in the order of its bytes.
    pub address: [u64; 2],
    /// The port, host byte order. 0 stands for every other port of a loopback address, whose value is the trusted one: a
    /// container engine translates its resolver's port inside the machine, so that queries to any of them are judged and
    /// noted; answers come from the trusted one.
    pub port: u16,
    /// Padding, always zero: the kernel hashes every byte of a key.
    pub _pad: [u8; 6],
}
const _: () = assert!(size_of::<ResolverKey>() == 24);

impl ResolverKey {
    /// The key of an address and a port.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: u16) -> Self {
        Self::of_words(address_words(&address), port)
    }

    /// The key of an address as two words, and a port.
    #[inline(always)]
    #[must_use]
    pub const fn of_words(address: [u64; 2], port: u16) -> Self {
        Self {
            address,
            port,
            _pad: [0; 6],
        }
    }
}

/// Most ports that [`ResolverPorts`] lists.
pub const LISTED_PORTS: usize = 7;

/// Value of `RESOLVER_PORTS` (array of one): a first look at a packet, before `RESOLVERS` is asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ResolverPorts {
    /// A first look: the bit of a port that is a trusted resolver's is set ([`port_bit`]).
    pub filter: u64,
    /// The ports of the trusted resolvers, host byte order; unused places repeat the first one.
    pub ports: [u16; LISTED_PORTS],
    /// [`OTHER_PORTS`], [`INSIDE_PORTS`], [`UNBALANCED`].
    pub flags: u16,
    /// Ports at which the kernel met a trusted resolver that is behind another address; 0 for none. The last one says
    /// with [`OTHER_PORTS`] that there were more.
    pub found: [u16; FOUND_PORTS],
}
const _: () = assert!(size_of::<ResolverPorts>() == 32);

/// Bit of a port in [`ResolverPorts::filter`].
#[inline(always)]
#[must_use]
pub const fn port_bit(port: u16) -> u64 {
    1_u64.wrapping_shl(port as u32)
}

/// Ports that the kernel notes in [`ResolverPorts::found`], and one place for a flag.
pub const FOUND_PORTS: usize = 4;

/// There are more ports than places: any port may be one.
pub const OTHER_PORTS: u16 = 1;
/// A resolver on loopback is asked at any port of its address.
pub const INSIDE_PORTS: u16 = 2;
/// Nobody else has a program that changes the address of a call: nothing is noted of whom sockets connect to, and no
/// resolver is behind another address. `exec` sets it with its maps, and takes it away for good when it meets such a
/// program: the remotes that were asked meanwhile are not known. `run` never sets it: a balancer may come at any time.
pub const UNBALANCED: u16 = 4;

impl ResolverPorts {
    /// The ports to look for with these resolvers.
    #[must_use]
    pub fn of(resolvers: &[ResolverKey]) -> Self {
        let mut found = Self::default();
        let mut used = 0_usize;
        for resolver in resolvers.iter().filter(|resolver| resolver.port != 0) {
            let known = found.ports.iter().take(used);
            if known.copied().any(|port| port == resolver.port) {
                continue;
            }
            match found.ports.get_mut(used) {
                Some(slot) => *slot = resolver.port,
                None => found.flags |= OTHER_PORTS,
            }
            used = used.saturating_add(1);
        }
        let [first, ..] = found.ports;
        for slot in found.ports.iter_mut().skip(used) {
            *slot = first;
        }
        if resolvers.iter().any(|resolver| resolver.port == 0) {
            found.flags |= INSIDE_PORTS;
        }
        for port in found.ports.iter().filter(|port| **port != 0) {
            found.filter |= port_bit(*port);
        }
        if found.flags & OTHER_PORTS != 0 {
            found.filter = u64::MAX;
        }
        found
    }

    /// One of these ports may be that of a trusted resolver, or is 53: a first look, for every packet.
    #[inline(always)]
    #[must_use]
    pub const fn may_have(&self, ports: [u16; 3]) -> bool {
        let [first, second, third] = ports;
        (self.filter | port_bit(DNS_PORT)) & (port_bit(first) | port_bit(second) | port_bit(third))
            != 0
    }

    /// The port may be that of a trusted resolver.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, port: u16) -> bool {
        let [a, b, c, d, e, f, g] = self.ports;
        let [h, i, j, more] = self.found;
        // Without a branch for each: they would be paths for the verifier. A product is 0 where one of the ports is it.
        let first = product(&[a, b, c, d], port);
        let second = product(&[e, f, g, g], port);
        let third = product(&[h, i, j, j], port);
        let is_there = first == 0 || second == 0 || third == 0;
        (is_there && port != 0) || (self.flags | more) & OTHER_PORTS != 0
    }

    /// The same with ports that the kernel has found.
    #[must_use]
    pub const fn with_found(mut self, found: [u16; FOUND_PORTS]) -> Self {
        self.found = found;
        self.filter |= self.found_bits();
        self
    }

    /// The bits of the found ports, for [`Self::filter`].
    #[inline(always)]
    #[must_use]
    pub const fn found_bits(&self) -> u64 {
        let [first, second, third, more] = self.found;
        if more & OTHER_PORTS != 0 {
            return u64::MAX;
        }
        bit_of(first) | bit_of(second) | bit_of(third)
    }

    /// Where a port that is not there yet is to be noted; `None`: there is no place, so that any port may be one.
    #[inline(always)]
    #[must_use]
    pub const fn free(&self) -> Option<usize> {
        match self.found {
            [0, ..] => Some(0),
            [_, 0, ..] => Some(1),
            [_, _, 0, _] => Some(2),
            _ => None,
        }
    }
}

/// The bit of a found port; none of 0, which stands for none.
#[inline(always)]
const fn bit_of(port: u16) -> u64 {
    if port == 0 { 0 } else { port_bit(port) }
}

/// 0 when a port is one of four: four numbers of 16 bits are multiplied without overflow.
#[inline(always)]
const fn product(&[a, b, c, d]: &[u16; 4], port: u16) -> u64 {
    let first = ((a ^ port) as u64).wrapping_mul((b ^ port) as u64);
    let second = ((c ^ port) as u64).wrapping_mul((d ^ port) as u64);
    first.wrapping_mul(second)
}

const BUCKET_MASK: u32 = QUERY_BUCKETS - 1;
const _: () = assert!(QUERY_BUCKETS.is_power_of_two());

/// Queries that one bucket holds.
pub const QUERY_SLOTS: usize = 4;

/// A query that a socket sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Query {
    /// When it was sent, nanoseconds of the clock since boot; 0 for none. With [`SPENT`] once an answer was met.
    pub sent_at_ns: u64,
    /// Hash of its question (`dns::question_of`).
    pub question: u64,
    /// Cookie of the socket, which names it and so its network namespace.
    pub cookie: u64,
    /// The resolver that was asked, as two words in the order of its bytes.
    pub resolver: [u64; 2],
    /// [`query_ports`].
    pub ports: u64,
    /// Scope of the socket.
    pub scope_id: u32,
}

/// What a query is known by, as a bucket holds it: all of [`Query`] but time and scope.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueryKey {
    /// [`Query::question`].
    pub question: u64,
    /// [`Query::cookie`].
    pub cookie: u64,
    /// [`Query::resolver`].
    pub resolver: [u64; 2],
    /// [`Query::ports`].
    pub ports: u64,
}
const _: () = assert!(size_of::<QueryKey>() == 40 && align_of::<QueryKey>() == 8);

/// In [`Query::sent_at_ns`]: an answer was met, so that nothing more is learned by it.
pub const SPENT: u64 = 1 << 63;

/// Ports of resolver and socket, id and protocol of a query, as one number. The id as its two bytes stand in the message.
#[inline(always)]
#[must_use]
pub const fn query_ports(resolver_port: u16, port: u16, id: [u8; 2], proto: u8) -> u64 {
    let [high, low] = id;
    (resolver_port as u64) << 48
        | (port as u64) << 32
        | (high as u64) << 24
        | (low as u64) << 16
        | proto as u64
}

/// Result of the search for an answer's query.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// This socket sent none like it.
    Never = 0,
    /// It was sent, and is spent now.
    Yes = 1,
    /// Under these numbers another question was asked.
    OtherQuestion = 2,
    /// It was sent too long ago.
    TooLate = 3,
    /// An answer to it has come before.
    Before = 4,
}

/// Value of `QUERIES`. Its first 64 bytes say which place a query gets: almost always the key of no other is read, which
/// is in no cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueryBucket {
    /// Guards everything else.
    pub lock: bpf_spin_lock,
    /// Padding, always zero.
    pub _pad: u32,
    /// A part of the hash of each key but for the resolver ([`QueryKey::mark`]): one that differs is another query's, and of
    /// one that does not, the key is compared in full.
    pub marks: [u16; QUERY_SLOTS],
    /// Scopes of the sockets.
    pub scope_ids: [u32; QUERY_SLOTS],
    /// [`Query::sent_at_ns`] of each.
    pub sent_at_ns: [u64; QUERY_SLOTS],
    /// What the queries are known by.
    pub keys: [QueryKey; QUERY_SLOTS],
}
const _: () = assert!(size_of::<QueryBucket>() == 224 && align_of::<QueryBucket>() == 8);
const _: () = assert!(core::mem::offset_of!(QueryBucket, keys) == 64);

impl Query {
    /// What it is known by.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> QueryKey {
        QueryKey {
            question: self.question,
            cookie: self.cookie,
            resolver: self.resolver,
            ports: self.ports,
        }
    }

    /// Bucket of a query. It grants nothing and identifies nobody: the queries in it are compared in full.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the mask leaves 14 bits")]
    pub const fn bucket(&self) -> u32 {
        self.key().mixed() as u32 & BUCKET_MASK
    }
}

impl QueryKey {
    /// Cookie, port, id and protocol, without the resolver.
    #[inline(always)]
    const fn mixed(&self) -> u64 {
        mix(mix(self.cookie, self.ports << 16), 0)
    }

    /// Other bits of that than those of the bucket.
    #[inline(always)]
    const fn mark(&self) -> u16 {
        (self.mixed() >> 48) as u16
    }

    /// Both are of one socket, resolver, port, id and protocol: everything but the question, compared in full.
    #[inline(always)]
    const fn has_numbers_of(&self, other: &Self) -> bool {
        let [a, b] = self.resolver;
        let [c, d] = other.resolver;
        self.cookie == other.cookie && self.ports == other.ports && a == c && b == d
    }

    /// The same, but for the resolver.
    #[inline(always)]
    const fn is_from_port_of(&self, other: &Self) -> bool {
        self.cookie == other.cookie && (self.ports ^ other.ports) << 16 == 0
    }
}

/// A place of a bucket.
struct Slot<'a> {
    mark: &'a mut u16,
    scope_id: &'a mut u32,
    sent_at_ns: &'a mut u64,
    key: &'a mut QueryKey,
}

impl Slot<'_> {
    /// How readily it is given up for `new`: the greatest goes.
    #[inline(always)]
    const fn rank(&self, of_scope: u64, new: &Query) -> u64 {
        let age_ns = new.sent_at_ns.wrapping_sub(*self.sent_at_ns & !SPENT);
        if *self.mark == new.key().mark() && self.key.has_numbers_of(&new.key()) {
            return u64::MAX;
        }
        if *self.sent_at_ns == 0 || *self.sent_at_ns & SPENT != 0 || age_ns > ANSWER_LATE_NS {
            return u64::MAX - 1;
        }
        let is_own = (*self.scope_id == new.scope_id) as u64;
        // An age here is below 2^34 ns.
        of_scope << 40 | is_own << 36 | age_ns
    }

    #[inline(always)]
    const fn take(self, query: &Query) {
        *self.mark = query.key().mark();
        *self.scope_id = query.scope_id;
        *self.sent_at_ns = query.sent_at_ns;
        *self.key = query.key();
    }
}

impl QueryBucket {
    #[inline(always)]
    const fn slots(&mut self) -> [Slot<'_>; QUERY_SLOTS] {
        let [ma, mb, mc, md] = &mut self.marks;
        let [ca, cb, cc, cd] = &mut self.scope_ids;
        let [sa, sb, sc, sd] = &mut self.sent_at_ns;
        let [ka, kb, kc, kd] = &mut self.keys;
        [
            slot(ma, ca, sa, ka),
            slot(mb, cb, sb, kb),
            slot(mc, cc, sc, kc),
            slot(md, cd, sd, kd),
        ]
    }

    /// Notes a query: sent again, in a free place, or instead of another. Under the lock.
    #[inline(always)]
    pub const fn note(&mut self, query: &Query) {
        let [sa, sb, sc, sd] = self.scope_ids;
        let [a, b, c, d] = self.slots();
        let ra = a.rank(count(sa, [sb, sc, sd]), query);
        let rb = b.rank(count(sb, [sa, sc, sd]), query);
        let rc = c.rank(count(sc, [sa, sb, sd]), query);
        let rd = d.rank(count(sd, [sa, sb, sc]), query);
        if ra >= rb && ra >= rc && ra >= rd {
            a.take(query);
        } else if rb >= rc && rb >= rd {
            b.take(query);
        } else if rc >= rd {
            c.take(query);
        } else {
            d.take(query);
        }
    }

    /// When the query was sent that an answer is to; `None` when it is spent, or was sent too long ago. As [`Self::spend`],
    /// for those who cannot write.
    #[must_use]
    pub fn asked_at(mut self, wanted: &Query) -> Option<u64> {
        let before = self.sent_at_ns;
        if self.spend(wanted, true) != Asked::Yes {
            return None;
        }
        let mut pairs = before.into_iter().zip(self.sent_at_ns);
        pairs
            .find(|(before, after)| before != after)
            .map(|(before, _)| before)
    }

    /// Looks for the query that an answer is to, and spends it. Under the lock. `wanted` is that query, with the time of
    /// the answer. A socket that is not connected may have asked another trusted resolver than the one that answers,
    /// because addresses are translated on the way.
    #[inline(always)]
    pub fn spend(&mut self, wanted: &Query, is_connected: bool) -> Asked {
        let key = wanted.key();
        for slot in self.slots() {
            if *slot.sent_at_ns == 0
                || *slot.mark != key.mark()
                || !slot.key.is_from_port_of(&key)
                || (is_connected && !slot.key.has_numbers_of(&key))
            {
                continue;
            }
            if slot.key.question != key.question {
                return Asked::OtherQuestion;
            }
            if *slot.sent_at_ns & SPENT != 0 {
                return Asked::Before;
            }
            let age_ns = wanted.sent_at_ns.wrapping_sub(*slot.sent_at_ns);
            *slot.sent_at_ns |= SPENT;
            return if age_ns > ANSWER_LATE_NS {
                Asked::TooLate
            } else {
                Asked::Yes
            };
        }
        Asked::Never
    }
}

#[inline(always)]
const fn slot<'a>(
    mark: &'a mut u16,
    scope_id: &'a mut u32,
    sent_at_ns: &'a mut u64,
    key: &'a mut QueryKey,
) -> Slot<'a> {
    Slot {
        mark,
        scope_id,
        sent_at_ns,
        key,
    }
}

/// How many of the other slots, and itself, are of a scope.
#[inline(always)]
const fn count(scope_id: u32, [a, b, c]: [u32; 3]) -> u64 {
    let others = (a == scope_id) as u64;
    let others = others.wrapping_add((b == scope_id) as u64);
    others.wrapping_add((c == scope_id) as u64).wrapping_add(1)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn query(scope_id: u32, id: u8, sent_at_ns: u64) -> Query {
        Query {
            sent_at_ns,
            question: 99,
            cookie: 5,
            resolver: [1, 2],
            ports: query_ports(53, 40_000, [0, id], 17),
            scope_id,
        }
    }

    fn asked(bucket: &mut QueryBucket, query: &Query) -> Asked {
        let answer = Query {
            sent_at_ns: 1_000,
            ..*query
        };
        bucket.spend(&answer, true)
    }

    #[test]
    fn a_query_is_spent_by_its_first_answer() {
        let mut bucket = QueryBucket::default();
        let one = query(1, 1, 10);
        bucket.note(&one);
        assert_eq!(
            bucket.asked_at(&Query {
                sent_at_ns: 11,
                ..one
            }),
            Some(10)
        );
        assert_eq!(asked(&mut bucket, &one), Asked::Yes);
        assert_eq!(asked(&mut bucket, &one), Asked::Before);
        assert_eq!(
            bucket.asked_at(&Query {
                sent_at_ns: 11,
                ..one
            }),
            None
        );
        // Sent again: a resolver that lost it is asked under the same numbers.
        bucket.note(&query(1, 1, 20));
        assert_eq!(asked(&mut bucket, &one), Asked::Yes);
    }

    #[test]
    fn everything_of_a_query_counts() {
        let one = query(1, 1, 10);
        let others = [
            Query { cookie: 6, ..one },
            Query {
                resolver: [1, 3],
                ..one
            },
            Query {
                resolver: [3, 2],
                ..one
            },
            Query {
                ports: query_ports(5353, 40_000, [0, 1], 17),
                ..one
            },
            Query {
                ports: query_ports(53, 40_001, [0, 1], 17),
                ..one
            },
            Query {
                ports: query_ports(53, 40_000, [1, 1], 17),
                ..one
            },
            Query {
                ports: query_ports(53, 40_000, [0, 1], 6),
                ..one
            },
        ];
        for other in others {
            let mut bucket = QueryBucket::default();
            bucket.note(&one);
            assert_eq!(asked(&mut bucket, &other), Asked::Never, "{other:?}");
        }
        let mut bucket = QueryBucket::default();
        bucket.note(&one);
        let other = Query {
            question: 98,
            ..one
        };
        assert_eq!(asked(&mut bucket, &other), Asked::OtherQuestion);
        // The right question may still be answered.
        assert_eq!(asked(&mut bucket, &one), Asked::Yes);
        assert_eq!(
            asked(&mut QueryBucket::default(), &Query::default()),
            Asked::Never
        );
    }

    #[test]
    fn a_socket_without_a_peer_may_be_answered_by_another_resolver() {
        let one = query(1, 1, 10);
        let other = Query {
            resolver: [8, 9],
            ports: query_ports(5353, 40_000, [0, 1], 17),
            ..one
        };
        assert_eq!(one.bucket(), other.bucket());
        for (is_connected, expected) in [(true, Asked::Never), (false, Asked::Yes)] {
            let mut bucket = QueryBucket::default();
            bucket.note(&one);
            assert_eq!(bucket.spend(&other, is_connected), expected);
        }
        // Everything else counts all the same.
        for odd in [
            Query { cookie: 6, ..other },
            Query {
                ports: query_ports(53, 40_001, [0, 1], 17),
                ..other
            },
            Query {
                ports: query_ports(53, 40_000, [0, 1], 6),
                ..other
            },
        ] {
            let mut bucket = QueryBucket::default();
            bucket.note(&one);
            assert_eq!(bucket.spend(&odd, false), Asked::Never, "{odd:?}");
        }
    }

    #[test]
    fn an_answer_may_come_ten_seconds_late() {
        for (late_ns, expected) in [(0, Asked::Yes), (1, Asked::TooLate)] {
            let mut bucket = QueryBucket::default();
            let one = query(1, 1, 10);
            bucket.note(&one);
            let answer = Query {
                sent_at_ns: 10 + ANSWER_LATE_NS + late_ns,
                ..one
            };
            assert_eq!(bucket.spend(&answer, true), expected);
        }
    }

    #[test]
    fn who_has_most_in_a_bucket_loses_the_oldest() {
        let mut bucket = QueryBucket::default();
        for (scope, id, at) in [(1, 1, 10), (2, 2, 5), (1, 3, 20), (1, 4, 30)] {
            bucket.note(&query(scope, id, at));
        }
        // A polite one finds room, and keeps it while the other floods.
        bucket.note(&query(3, 5, 40));
        for id in 6..200 {
            bucket.note(&query(1, id, 50 + u64::from(id)));
        }
        let left: Vec<_> = [(1, 1), (2, 2), (1, 3), (1, 4), (3, 5), (1, 199)]
            .into_iter()
            .filter(|(scope, id)| asked(&mut bucket, &query(*scope, *id, 0)) == Asked::Yes)
            .collect();
        assert_eq!(left, [(2, 2), (3, 5), (1, 199)]);
    }

    #[test]
    fn what_is_of_no_more_use_goes_first() {
        let mut bucket = QueryBucket::default();
        for id in 1..=4 {
            bucket.note(&query(1, id, 10 * u64::from(id)));
        }
        assert_eq!(asked(&mut bucket, &query(1, 3, 0)), Asked::Yes);
        bucket.note(&query(2, 9, 50));
        for id in [1, 2, 4] {
            assert_eq!(asked(&mut bucket, &query(1, id, 0)), Asked::Yes, "{id}");
        }
        let late = 60 + ANSWER_LATE_NS;
        let mut bucket = QueryBucket::default();
        for (id, at) in [(1, 10), (2, late), (3, late), (4, late)] {
            bucket.note(&query(1, id, at));
        }
        bucket.note(&query(2, 9, late + 1));
        assert_eq!(asked(&mut bucket, &query(1, 1, 0)), Asked::Never);
    }

    #[test]
    fn ports_are_listed_as_long_as_there_are_places() {
        let key = |port| ResolverKey::new([1; 16], port);
        let none = ResolverPorts::of(&[]);
        assert!(!none.has(0) && !none.has(53) && none.flags == 0);
        let two = ResolverPorts::of(&[key(53), key(5353), key(53)]);
        assert!(two.has(53) && two.has(5353) && !two.has(54) && !two.has(0) && two.flags == 0);
        let many: Vec<_> = (1..=8).map(key).collect();
        assert!(ResolverPorts::of(&many).has(9));
        // The first look misses none that is listed, and not 53.
        for ports in [&none, &two, &ResolverPorts::of(&many)] {
            for port in (0..=u16::MAX).filter(|port| ports.has(*port) || *port == 53) {
                assert!(ports.may_have([port, 1, 1]) && ports.may_have([1, port, 1]));
                assert!(ports.may_have([1, 1, port]));
            }
        }
        assert!(!none.may_have([443, 40_000, 0]) && !two.may_have([443, 40_000, 0]));
        // A resolver on loopback may be asked at another port.
        let inside = ResolverPorts::of(&[key(53), key(0)]);
        assert!(inside.flags == INSIDE_PORTS && !inside.has(54));
    }

    #[test]
    fn found_ports_have_three_places_and_a_flag_for_more() {
        let mut ports = ResolverPorts::of(&[ResolverKey::new([1; 16], 53)]);
        for port in [5353, 65_535, 1] {
            assert!(!ports.has(port) && !ports.has(0));
            let place = ports.free().unwrap();
            let mut found = ports.found;
            found[place] = port;
            ports = ports.with_found(found);
            assert!(ports.has(port) && ports.may_have([0, 0, port]) && !ports.has(54));
        }
        assert!(ports.free().is_none() && !ports.may_have([0, 443, 0]));
        let mut found = ports.found;
        found[FOUND_PORTS - 1] = OTHER_PORTS;
        assert!(ports.with_found(found).has(54) && ports.with_found(found).may_have([0, 443, 0]));
    }

    #[test]
    fn the_numbers_of_a_query_do_not_overlap() {
        let numbers = query_ports(0x0102, 0x0304, [5, 6], 7);
        assert_eq!(numbers, 0x0102_0304_0506_0007);
    }
}
