//! DNS answers that arrive: parsed, matched and learned before they are queued to the socket.
//!
//! The machines of `egress_common::dns` do the work, a step at a time. Each
//! function below with a C name is verified once for itself, which keeps their
//! nested loops small; what they share lies in the slot of this CPU.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, bpf_sock},
    helpers::{
        bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_ringbuf_output, bpf_skb_load_bytes,
        bpf_spin_lock, bpf_spin_unlock, bpf_tcp_sock,
    },
};
use egress_common::{
    address::is_unteachable,
    dns::{
        ANSWER_STEPS, ANSWER_WORK, DNS_PORT, HEADER_BYTES, MESSAGE_BYTES, NAME_STEPS, NameReader,
        NameStep, Next, STEP_WORK,
    },
    event::{DnsCopy, REFUSED_LEARNED},
    learned::holder_word,
    maps::{ANSWER_LATE_NS, HOLDS_FULL},
    packed::address_words,
    packet::PacketBytes,
    policy::{EntryKind, NameEntry, NameRules, Workload, protocol},
    query::{Asked, Query, query_ports},
    tally::Tally,
};

use crate::{
    alias::{alias_name_read, dns_note_alias, dns_recall_alias},
    ask::resolver_of,
    learn::learn_grant,
    lookup::mark,
    maps::{DNS_COPIES, LOCAL, NAMES, QUERIES, SCOPES, STREAMS},
    netns,
    query::question_in,
    record::{self, forget, opaque},
    resolver::{is_trusted, near_words},
    scratch::{BY_ALIAS, HOOK, NEXT, OF_OWNER, SETS, STEP, Scratch},
    skb::{
        FindPayload as _, Header, Payload, ReadHeader as _, ReadSocket as _, Skb, Socket,
        packet_sequence,
    },
    time::now_ns,
    workload,
};

/// Most parts of [`MESSAGE_BYTES`] in which a longer message or segment is copied.
const COPY_PARTS: u32 = 16;

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// The driver's results that are not a `Next`.
const CONTINUE: u32 = 0;
const STOP: u32 = 1;

/// The receiver of an answer, and how it came.
pub struct Arrival {
    /// Distinguishes the receiver's queries from others.
    pub cookie: u64,
    /// TCP: the sequence number that the receiver expects.
    pub expected_sequence: u32,
    /// 1 when the receiver chose one resolver; else the answer may come from another one than was asked, because the
    /// address that was asked is translated in this network namespace.
    pub is_connected: u32,
    /// TCP: when the last query left on this connection; 0 for never.
    pub asked_at_ns: u64,
    /// True if the receiver asks trusted resolvers alone, so that whoever it has asked is one.
    pub asks_resolvers: bool,
}

/// The arrival of a packet at a socket.
#[inline(always)]
pub fn arrival_at_socket(skb: &Skb, header: Header, sk: *mut bpf_sock) -> Arrival {
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(skb.raw.cast()) };
    let mut expected_sequence = 0;
    let mut asked_at_ns = 0;
    if header.proto() == protocol::TCP {
        // SAFETY: `sk` is a full socket, which the verifier checks.
        let tcp = unsafe { bpf_tcp_sock(sk) };
        if !tcp.is_null() {
            // SAFETY: `tcp` is not null.
            expected_sequence = unsafe { (*tcp).rcv_nxt };
        }
        if let Some(stream) = STREAMS.get(sk) {
            // SAFETY: the storage lives as long as the socket; one aligned word.
            asked_at_ns = unsafe { (*stream).asked_at_ns };
        }
    }
    Arrival {
        cookie,
        expected_sequence,
        is_connected: u32::from(Socket::read(sk).peer_port != 0),
        asked_at_ns,
        asks_resolvers: resolver_of(sk).is_some(),
    }
}

/// Learns from an answer of a trusted resolver, and copies it to the agent; also one of another server, which teaches nothing.
#[inline(always)]
pub fn answer(skb: &Skb, header: Header, workload: &Workload, arrival: &Arrival) {
    let payload = Payload::find(skb);
    if payload.bytes == 0 {
        return;
    }
    let is_known = is_trusted(near_words(skb, header), header.sport());
    // Behind another address: only from the very address and port that a query went to.
    let is_trusted = is_known || arrival.asks_resolvers;
    if !is_trusted {
        // A packet from another port is no answer.
        if header.proto() != protocol::UDP || header.sport() != DNS_PORT {
            return;
        }
        record::tally(Tally::AnswerUntrusted);
        // It is reported to the agent, for those who ask why nothing was learned: as often as allowed flows.
        let scope_id = workload.current.scope_id;
        if payload.bytes > MESSAGE_BYTES as u32 || !record::has_budget(scope_id, true, now_ns()) {
            return;
        }
    }
    let Some(scratch) = Scratch::get(HOOK) else {
        return;
    };
    if !scratch.claim() {
        if is_trusted {
            record::tally(Tally::AnswerReentered);
        }
        return;
    }
    scratch.current = workload.current;
    scratch.next = workload.next;
    answer_begin(
        skb.raw,
        skb.base,
        header.pack(),
        arrival.cookie,
        u64::from(arrival.expected_sequence) << 32 | u64::from(payload.bytes),
    );
    let outcome = if is_trusted {
        let is_exact = u32::from(!is_known) | arrival.is_connected;
        let outcome = learn(scratch, skb, header, payload, arrival, is_exact);
        let is_unasked = outcome == Tally::AnswerUnsolicited as u32;
        if is_unasked && !is_known && header.sport() == DNS_PORT {
            // Nobody was asked there, not even behind the address of a resolver.
            record::tally(Tally::AnswerUntrusted);
            untrusted(scratch, skb, payload);
            scratch.release();
            return;
        }
        record::tally_number(outcome);
        outcome
    } else {
        Tally::AnswerUntrusted as u32
    };
    scratch.copy.outcome = outcome as u8;
    // Waking the agent costs more than learning the answer: what the kernel has learned by itself waits until the
    // agent looks, which it does often. What only the agent can learn does not.
    scratch.copy_flags = u64::from(BPF_RB_NO_WAKEUP);
    if scratch.copy.refused != 0 && may_wake(workload.current.scope_id, scratch.now_ns) {
        // The agent makes room in the scope's own share.
        scratch.copy_flags = u64::from(BPF_RB_FORCE_WAKEUP);
    }
    if outcome == Tally::AnswerSegmented as u32 || outcome == Tally::AnswerOversized as u32 {
        scratch.copy_flags = u64::from(BPF_RB_FORCE_WAKEUP);
        // It was asked for, and the agent will learn it: until then nothing is refused for not being known.
        mark(holder_word(workload.current.scope_id, scratch.netns));
        copy(scratch, skb, payload);
    } else if payload.bytes <= MESSAGE_BYTES as u32 && is_worth_telling(scratch, outcome) {
        copy(scratch, skb, payload);
    }
    scratch.release();
}

/// Reports to the agent an answer of a server that nobody asked, as often as allowed flows.
#[inline(always)]
fn untrusted(scratch: &mut Scratch, skb: &Skb, payload: Payload) {
    scratch.copy.outcome = Tally::AnswerUntrusted as u8;
    scratch.copy_flags = u64::from(BPF_RB_NO_WAKEUP);
    let scope_id = scratch.current.scope_id;
    if payload.bytes <= MESSAGE_BYTES as u32 && record::has_budget(scope_id, true, scratch.now_ns) {
        copy(scratch, skb, payload);
    }
}

/// A scope without room wakes the agent at most this often.
const WAKE_PAUSE_NS: u64 = 50_000_000;

/// True if a scope without room may wake the agent now.
#[inline(always)]
fn may_wake(scope_id: u32, now_ns: u64) -> bool {
    let Some(scope) = SCOPES.get_ptr_mut(scope_id) else {
        return false;
    };
    // SAFETY: one number of a map value; two CPUs may both wake the agent.
    let woken_at_ns = unsafe { &raw mut (*scope).woken_at_ns };
    // SAFETY: as above.
    if now_ns.wrapping_sub(unsafe { woken_at_ns.read_volatile() }) < WAKE_PAUSE_NS {
        return false;
    }
    // SAFETY: as above.
    unsafe { woken_at_ns.write_volatile(now_ns) };
    true
}

/// Fills the slot for an answer; `numbers` are the sequence number that the receiver expects and the answer's length.
/// Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answer_begin(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    cookie: u64,
    numbers: u64,
) -> u32 {
    let Some(scratch) = Scratch::get(HOOK) else {
        return 0;
    };
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let sequence = if header.proto() == protocol::TCP {
        packet_sequence(raw, base)
    } else {
        0
    };
    scratch.seed = workload::seed();
    scratch.now_ns = now_ns();
    scratch.learned = 0;
    scratch.work = 0;
    scratch.copy = DnsCopy {
        at_ns: scratch.now_ns,
        cookie,
        resolver: [0; 16],
        scope_id: scratch.current.scope_id,
        policy_id: scratch.current.policy_id,
        port: header.dport(),
        sequence,
        expected_sequence: (numbers >> 32) as u32,
        total_bytes: numbers as u32,
        offset_bytes: 0,
        payload_bytes: 0,
        outcome: 0,
        proto: header.proto(),
        refused: 0,
        _pad: 0,
        netns: netns::of_frame(raw),
        resolver_port: header.sport(),
        _pad2: 0,
    };
    scratch.copy.resolver = header.saddr(&skb);
    scratch.netns = scratch.copy.netns;
    1
}

/// True if the agent is to have an answer that it will not learn from. Of answers that were not asked for, as many as
/// of allowed flows: it says why nothing was learned, and nobody else's answers are lost for it.
#[inline(always)]
fn is_worth_telling(scratch: &Scratch, outcome: u32) -> bool {
    let is_unasked = outcome == Tally::AnswerUnsolicited as u32
        || outcome == Tally::AnswerOtherQuestion as u32
        || outcome == Tally::AnswerMalformed as u32
        || outcome == Tally::AnswerReplayed as u32;
    !is_unasked
        || (outcome != Tally::AnswerReplayed as u32
            && record::has_budget(scratch.current.scope_id, true, scratch.now_ns))
}

/// Loads the message into the slot and runs the machines over it; returns a [`Tally`] as a number.
///
/// This holds for every size and transport: what was not asked for is known before anything else is done with it.
#[inline(always)]
fn learn(
    scratch: &mut Scratch,
    skb: &Skb,
    header: Header,
    payload: Payload,
    arrival: &Arrival,
    is_exact: u32,
) -> u32 {
    let mut at = payload.at;
    let mut length = payload.bytes;
    if header.proto() == protocol::TCP {
        // Nobody waits for an answer on this connection.
        if scratch.now_ns.wrapping_sub(arrival.asked_at_ns) > ANSWER_LATE_NS {
            return Tally::AnswerUnsolicited as u32;
        }
        // RFC 1035 section 4.2.2: two bytes of length come first. Which question a segment answers that is no whole
        // message, the agent finds out.
        let Some(prefix) = skb.load::<2>(at) else {
            return Tally::AnswerSegmented as u32;
        };
        let message_bytes = u32::from(u16::from_be_bytes(prefix));
        if scratch.copy.sequence != arrival.expected_sequence
            || message_bytes.wrapping_add(2) != length
        {
            return Tally::AnswerSegmented as u32;
        }
        at = at.wrapping_add(2);
        length = message_bytes;
    }
    if length < HEADER_BYTES {
        return Tally::AnswerMalformed as u32;
    }
    let loaded = if length > MESSAGE_BYTES as u32 {
        MESSAGE_BYTES as u32
    } else {
        length
    };
    if !load_message(scratch, skb, at, loaded) {
        return Tally::AnswerMalformed as u32;
    }
    let asked = spend(
        HOOK,
        arrival.cookie,
        u64::from(header.sport()) << 32
            | u64::from(header.dport()) << 16
            | u64::from(header.proto()),
        is_exact,
    );
    if asked != Asked::Yes as u32 {
        return if asked == Asked::OtherQuestion as u32 {
            Tally::AnswerOtherQuestion as u32
        } else if asked == Asked::TooLate as u32 {
            Tally::AnswerLate as u32
        } else if asked == Asked::Before as u32 {
            Tally::AnswerReplayed as u32
        } else if asked == MALFORMED {
            Tally::AnswerMalformed as u32
        } else {
            Tally::AnswerUnsolicited as u32
        };
    }
    if length > MESSAGE_BYTES as u32 {
        return Tally::AnswerOversized as u32;
    }
    scratch.answer.start();
    for _ in 0..ANSWER_STEPS {
        let result = dns_step(HOOK);
        if result != CONTINUE {
            return result.wrapping_sub(STOP);
        }
        // The answer was asked for: the agent reads it to its end.
        if scratch.work > ANSWER_WORK {
            return Tally::AnswerOversized as u32;
        }
    }
    Tally::AnswerOversized as u32
}

/// The result of [`spend`] for a message without a question.
const MALFORMED: u32 = u32::MAX;

/// Looks for the query that the message in a slot answers, and spends it: an [`Asked`] as a number, or [`MALFORMED`].
/// `numbers` are the ports of resolver and receiver, and the protocol. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn spend(slot: u32, cookie: u64, numbers: u64, is_connected: u32) -> u32 {
    let question = question_in(slot);
    let Some(scratch) = Scratch::get(slot) else {
        return MALFORMED;
    };
    if question == 0 {
        return MALFORMED;
    }
    let id = [scratch.message.byte(0), scratch.message.byte(1)];
    let wanted = Query {
        sent_at_ns: scratch.now_ns,
        question,
        cookie,
        resolver: address_words(&scratch.copy.resolver),
        ports: query_ports(
            (numbers >> 32) as u16,
            (numbers >> 16) as u16,
            id,
            numbers as u8,
        ),
        scope_id: 0,
    };
    let Some(bucket) = QUERIES.get_ptr_mut(wanted.bucket()) else {
        return MALFORMED;
    };
    // SAFETY: the bucket is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*bucket).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let asked = unsafe { (*bucket).spend(&wanted, is_connected != 0) } as u32;
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    asked
}

/// Copies `length` bytes (1 to [`MESSAGE_BYTES`]) of the packet into the slot.
#[inline(always)]
pub fn load_message(scratch: &mut Scratch, skb: &Skb, at: u32, length: u32) -> bool {
    // Older verifiers do not learn "not zero" from a comparison, and the mask
    // must survive the compiler, which knows that it changes nothing.
    let masked = (opaque(length.wrapping_sub(1)) & (MESSAGE_BYTES as u32 - 1)).wrapping_add(1);
    scratch.message.length = length;
    // SAFETY: the buffer has MESSAGE_BYTES bytes, and `masked` is at most that.
    let error = unsafe {
        bpf_skb_load_bytes(
            skb.raw.cast(),
            skb.base.wrapping_add(at),
            scratch.message.bytes.as_mut_ptr().cast(),
            masked,
        )
    };
    error == 0
}

/// Reads the name at `name_at` of the answer machine; returns a [`NameStep`] as a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_name(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return NameStep::Malformed as u32;
    };
    scratch.name.start(scratch.answer.name_at, scratch.seed);
    for _ in 0..NAME_STEPS {
        forget();
        match scratch.name.step(&scratch.message) {
            NameStep::More => {}
            NameStep::Done => return NameStep::Done as u32,
            NameStep::Malformed => return NameStep::Malformed as u32,
        }
    }
    NameStep::Malformed as u32
}

/// One step of the answer machine and what it asks for; returns `CONTINUE`, or `STOP` plus a [`Tally`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_step(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return STOP + Tally::AnswerReentered as u32;
    };
    scratch.work = scratch.work.wrapping_add(STEP_WORK);
    match scratch.answer.step(&scratch.message, &scratch.name) {
        Next::Step => CONTINUE,
        Next::ReadName => {
            if dns_name(slot) == NameStep::Done as u32 {
                scratch.work = scratch.work.wrapping_add(scratch.name.work());
                CONTINUE
            } else {
                STOP + Tally::AnswerMalformed as u32
            }
        }
        Next::Match => dns_match(slot),
        Next::Teach => dns_teach(slot),
        Next::Alias => dns_alias(slot),
        Next::Done => STOP + conclude(scratch) as u32,
        Next::Refused => STOP.wrapping_add(scratch.answer.refusal),
    }
}

/// The outcome of an answer that was read to its end.
#[inline(always)]
fn conclude(scratch: &mut Scratch) -> Tally {
    if scratch.answer.off_chain() != 0 {
        record::tally(Tally::AddressOffChain);
    }
    let [is_denied, _] = scratch.denied;
    if scratch.left_to_agent != 0 {
        Tally::AnswerOversized
    } else if scratch.learned != 0 {
        Tally::AnswerLearned
    } else if is_denied != 0 {
        Tally::AliasDenied
    } else if !teaches(scratch, 0) {
        Tally::AnswerNoRule
    } else if scratch.answer.is_truncated != 0 {
        Tally::AnswerTruncated
    } else {
        Tally::AnswerEmpty
    }
}

/// True if any set of rules of now (0) or of after the switch ([`NEXT`]) has some.
#[inline(always)]
fn teaches(scratch: &mut Scratch, when: u32) -> bool {
    scratch.has_rules(when)
        || scratch.has_rules(when | BY_ALIAS)
        || scratch.has_rules(when | OF_OWNER)
        || scratch.has_rules(when | OF_OWNER.wrapping_add(STEP))
}

/// Results of [`dns_rules`]: no rule covers the name; rules allow it; a rule denies it.
pub const UNRULED: u32 = 0;
pub const ALLOWED: u32 = 1;
pub const DENIED: u32 = 2;

/// Finds the rules of the name in the slot under a policy. Those that allow are copied into the set `which`, unless that
/// is [`SETS`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_rules(slot: u32, policy_id: u32, which: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return UNRULED;
    };
    scratch.auditor = 0;
    let Some(rules) = find_rules(&mut scratch.name, policy_id as u16) else {
        return UNRULED;
    };
    scratch.auditor = rules.auditor;
    if rules.deny != 0 {
        return DENIED;
    }
    if rules.is_empty() {
        return UNRULED;
    }
    if which < SETS {
        scratch.fill(which, rules);
    }
    ALLOWED
}

#[inline(always)]
fn find_rules(name: &mut NameReader, policy_id: u16) -> Option<&'static NameRules> {
    if policy_id == 0 || name.is_unmatchable != 0 || name.text_bytes == 0 {
        return None;
    }
    let entry = name_entry(name.trie_key(policy_id))?;
    if entry.labels == 0 || entry.tail_bytes != name.tail_bytes() {
        return Some(&entry.rules);
    }
    match name_entry(name.label_key(policy_id, entry.labels)) {
        Some(of_label) => Some(&of_label.rules),
        None => Some(&entry.rules),
    }
}

/// Looks into `NAMES`; `key` points to a key of [`NameReader`].
#[inline(always)]
fn name_entry(key: *const u8) -> Option<&'static NameEntry> {
    let map = (&raw const NAMES).cast_mut().cast();
    // SAFETY: 260 bytes begin there, which is the key's size.
    let entry = unsafe { bpf_map_lookup_elem(map, key.cast()) };
    if entry.is_null() {
        return None;
    }
    // SAFETY: not null; entries are written under policy ids that nobody uses yet, and never changed in place.
    Some(unsafe { &*entry.cast() })
}

/// Finds the rules of the question, for now and for after the switch. A question without rules may still lead to a name
/// that has some.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_match(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return STOP + Tally::AnswerReentered as u32;
    };
    scratch.left_to_agent = 0;
    scratch.denied = [0; 2];
    scratch.chain_auditors = [0; 2];
    for which in 0..SETS {
        scratch.clear(which);
    }
    scratch.links = [0; SETS as usize];
    let has_name = alias_name_read(slot) != 0;
    for when in 0..STEP {
        dns_owner(slot, when, when);
        if has_name && !scratch.is_denied(when) && scratch.binding(when).policy_id != 0 {
            dns_recall_alias(slot, when);
        }
    }
    if goes_on(scratch) {
        CONTINUE
    } else if scratch.is_denied(0) {
        STOP + Tally::AnswerDeniedName as u32
    } else {
        STOP + Tally::AnswerNoRule as u32
    }
}

/// True if the rest of the message can teach anything, now or after the switch.
#[inline(always)]
fn goes_on(scratch: &Scratch) -> bool {
    let mut goes_on = false;
    for when in 0..STEP {
        goes_on |= scratch.binding(when).policy_id != 0 && !scratch.is_denied(when);
    }
    goes_on
}

/// Takes the rules of the name in the slot for a name on the chain, into the set `which`, at a time (`when` 0 or
/// [`NEXT`]). A denied one ends what the chain teaches.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_owner(slot: u32, when: u32, which: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return UNRULED;
    };
    let policy_id = u32::from(scratch.binding(when).policy_id);
    let found = dns_rules(slot, policy_id, which);
    if scratch.auditor != 0 {
        scratch.note_auditor(when);
    }
    if found == DENIED {
        scratch.deny(when);
        scratch.clear(when);
        scratch.clear(when | BY_ALIAS);
        scratch.clear(when | OF_OWNER);
        scratch.clear(when | OF_OWNER.wrapping_add(STEP));
    }
    found
}

/// Takes the rules of the name in the slot, which is an alias: into the first free set, unless another one has the same.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_alias_owner(slot: u32, when: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return UNRULED;
    };
    let (first, second) = (when | OF_OWNER, when | OF_OWNER.wrapping_add(STEP));
    let which = if !scratch.has_rules(first) {
        first
    } else if !scratch.has_rules(second) {
        second
    } else {
        SETS
    };
    let found = dns_owner(slot, when, which);
    if found != ALLOWED {
        return found;
    }
    if which == SETS {
        // More owners with rules than fit here.
        scratch.left_to_agent = 1;
        return found;
    }
    let (way, link) = (scratch.answer.way, scratch.answer.alias_link);
    scratch.join_at(which, link);
    let is_known = knows(scratch, which, when, way)
        || knows(scratch, which, when | BY_ALIAS, way)
        || (which != first && knows(scratch, which, first, way));
    if is_known {
        scratch.clear(which);
    }
    found
}

/// True if a set that counts on the same way has the same rules.
#[inline(always)]
fn knows(scratch: &mut Scratch, which: u32, other: u32, way: u32) -> bool {
    scratch.counts_on(other, way) && scratch.has_same(which, other)
}

/// Takes an alias: its own rules, and that what is learned of it by its own name alone counts as this chain does.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_alias(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return STOP + Tally::AnswerReentered as u32;
    };
    let has_name = alias_name_read(slot) != 0;
    for when in 0..STEP {
        if scratch.binding(when).policy_id == 0 || scratch.is_denied(when) {
            continue;
        }
        // The set that led here, before the alias' own rules join them.
        let mut led = SETS;
        let mut which = when | OF_OWNER.wrapping_add(STEP);
        let way = scratch.answer.way;
        for _ in 0..SETS / STEP {
            if scratch.counts_on(which, way) {
                led = which;
            }
            which = which.wrapping_sub(STEP);
        }
        dns_alias_owner(slot, when);
        if has_name && led < SETS && !scratch.is_denied(when) {
            dns_note_alias(slot, led);
        }
    }
    if goes_on(scratch) {
        CONTINUE
    } else {
        STOP + Tally::AliasDenied as u32
    }
}

/// Learns the address that the answer machine holds, on the ports of every rule. A message whose first address has no rule
/// is read no further: most are for names that nobody allows.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_teach(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return STOP + Tally::AnswerReentered as u32;
    };
    let is_refused = is_unteachable(&scratch.answer.address, scratch.answer.from_aaaa != 0);
    if !is_refused && !teaches(scratch, 0) && !teaches(scratch, NEXT) {
        return if scratch.is_denied(0) {
            STOP + Tally::AliasDenied as u32
        } else {
            STOP + Tally::AnswerNoRule as u32
        };
    }
    scratch.address = scratch.answer.address;
    if is_refused || LOCAL.get_ptr(&scratch.address).is_some() {
        record::tally(Tally::AddressUnteachable);
        return CONTINUE;
    }
    for which in 0..SETS {
        dns_grant(slot, which);
    }
    CONTINUE
}

/// Learns the address under a set of rules.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_grant(slot: u32, which: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let way = scratch.answer.way;
    if !scratch.counts_on(which, way) {
        return 0;
    }
    let binding = scratch.binding(which);
    let ttl_s = scratch.answer.ttl_s;
    let auditor = scratch.auditor_of(which);
    let rules = scratch.set(which);
    let lifetime_s = rules.lifetime_s(ttl_s);
    let lifetime_ns = u64::from(lifetime_s).wrapping_mul(SECOND_NS);
    let (max_s, grace_s) = (rules.ttl_max_s, rules.grace_s());
    let rules = core::ptr::from_ref(rules);
    let expires_at_ns = scratch.now_ns.wrapping_add(lifetime_ns);
    let limit_s = ((scratch.now_ns / SECOND_NS) as u32).wrapping_add(max_s);
    let mut stored = 0_u32;
    scratch.no_room = 0;
    // SAFETY: the set lies in the slot, which nothing below moves or writes there.
    for entry in unsafe { &(*rules).entries } {
        if entry.kind != EntryKind::Allow as u8 {
            break;
        }
        // Field by field: a whole request would wait on the stack, which is small.
        scratch.request.key.scope_id = binding.scope_id;
        scratch.request.key.netns = scratch.netns;
        scratch.request.key.address = scratch.address;
        scratch.request.grant.expires_at_ns = expires_at_ns;
        scratch.request.grant.rule = entry.rule;
        scratch.request.grant.auditor = auditor;
        scratch.request.grant.used_at_s = 0;
        scratch.request.grant.limit_s = limit_s;
        scratch.request.grant.ports = entry.ports;
        scratch.request.grant.grace_s = grace_s;
        let outcome = learn_grant(slot);
        record::tally_number(outcome);
        if outcome == Tally::AddressLearned as u32 {
            stored = stored.wrapping_add(1);
        } else if outcome == Tally::LearnedFull as u32 || outcome == Tally::LearnedShareFull as u32
        {
            scratch.no_room = 1;
        } else if outcome == Tally::LearnedBusy as u32 {
            scratch.left_to_agent = 1;
        }
    }
    // Kept in memory until here: a mark in the loop would be verified once for each turn.
    if scratch.no_room != 0 {
        scratch.copy.refused |= REFUSED_LEARNED;
        mark(holder_word(binding.scope_id, scratch.netns) | HOLDS_FULL);
    }
    if which & NEXT == 0 && stored != 0 {
        scratch.learned = scratch.learned.wrapping_add(1);
    }
    stored
}

/// Copies the payload to the agent: as it lies in the slot, or, when it is longer, in parts.
#[inline(always)]
fn copy(scratch: &mut Scratch, skb: &Skb, payload: Payload) {
    let payload_bytes = payload.bytes;
    let mut offset = 0_u32;
    for _ in 0..COPY_PARTS {
        let left = payload_bytes.wrapping_sub(offset);
        if offset >= payload_bytes {
            return;
        }
        let part = if left > MESSAGE_BYTES as u32 {
            MESSAGE_BYTES as u32
        } else {
            left
        };
        if !load_message(scratch, skb, payload.at.wrapping_add(offset), part) {
            return record::tally(Tally::CopiesLost);
        }
        scratch.copy.offset_bytes = offset;
        scratch.copy.payload_bytes = part;
        if !send_part(scratch, part) {
            return record::tally(Tally::CopiesLost);
        }
        offset = offset.wrapping_add(part);
    }
    if offset < payload_bytes {
        record::tally(Tally::CopiesLost);
    }
}

/// Sends the copy's head and the message of `bytes` bytes (1 to [`MESSAGE_BYTES`]) that follows it in the slot.
#[inline(always)]
pub fn send_part(scratch: &mut Scratch, bytes: u32) -> bool {
    let masked = (opaque(bytes.wrapping_sub(1)) & (MESSAGE_BYTES as u32 - 1)).wrapping_add(1);
    let map = (&raw const DNS_COPIES).cast_mut().cast();
    // SAFETY: the message follows the head at once, and `masked` is at most its size.
    let error = unsafe {
        bpf_ringbuf_output(
            map,
            (&raw mut scratch.copy).cast(),
            u64::from(masked).wrapping_add(size_of::<DnsCopy>() as u64),
            scratch.copy_flags,
        )
    };
    error == 0
}
