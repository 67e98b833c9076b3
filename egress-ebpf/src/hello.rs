//! Connections that are to name their destination: the first bytes that leave are read, segment by segment and by sequence
//! numbers, before anything behind them may leave.
//!
//! The handshake passes, and the parts of a hello pass as they are read; the name in it, and what is wrong with it, decides
//! about the packet that holds its last byte, and every packet after it. Until then nothing is remembered of the
//! flow, so that each of its packets comes here.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_NO_WAKEUP, bpf_sock},
    helpers::{bpf_ringbuf_output, bpf_skb_load_bytes, generated::bpf_probe_read_kernel},
};
use egress_common::{
    decision::Decision,
    dns::{NAME_STEPS, NameStep},
    event::NameEvent,
    hello::{
        FIELD_MASK, HELLO_READ, HELLO_READING, HELLO_REFUSED, HELLO_STEPS, HELLO_STREAM_BYTES,
        HelloReader, Piece, SERVER_NAME_BYTES, Taken,
    },
    learned::LearnedKey,
    origin::is_tcp,
    packet::PacketBytes as _,
    policy::{Binding, EntryKind, NAME_ENTRIES, REQUIRE_TLS, protocol},
    tally::Tally,
    verdict::Reason,
};

use crate::{
    dns::{ALLOWED, dns_rules},
    egress::UNCONFIGURED,
    learn::keep_open,
    lookup::{READING, trouble_of},
    maps::{EVENTS, HELLOS, LEARNED},
    netns,
    record::{self, forget as forget_registers, opaque},
    scratch::{QUERY, Scratch},
    skb::{
        Header, Payload, ReadHeader as _, ReadSocket as _, Skb, Socket, full_socket,
        packet_payload, packet_sequence,
    },
    time::now_ns,
};

/// `URG`, byte 13 of the TCP header.
const TCP_URG: u8 = 0x20;

/// Decides on a packet of a socket whose flow is to name its destination; every other packed decision is left as it is.
#[inline(always)]
pub fn follow(raw: *mut __sk_buff, header: Header, binding: &Binding, packed: u64) -> u64 {
    let reason = Decision::packed_reason(packed);
    if reason == Reason::AwaitsName as u8 || reason == Reason::Expired as u8 {
        hello_leaves(raw, header.pack(), binding.pack(), packed)
    } else {
        packed
    }
}

/// 1 if a packet belongs to a connection that was begun while its address was known, and has yet to name its
/// destination: what ended since does not count for it. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_has_begun(raw: *mut __sk_buff, header: u64, scope_id: u32) -> u32 {
    let header = Header::unpack(header);
    if header.proto() != protocol::TCP || header.opens_tcp() || header.is_later_fragment() {
        return 0;
    }
    let Some(hello) = full_socket(raw).and_then(|sk| HELLOS.get(sk)) else {
        return 0;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let (state, begun_at_ns) = unsafe { ((*hello).state, (*hello).begun_at_ns) };
    if state == HELLO_REFUSED {
        return 0;
    }
    let skb = Skb { raw, base: 0 };
    let key = LearnedKey::new(scope_id, netns::of_packet(raw), header.daddr(&skb));
    // SAFETY: readers of a learned entry tolerate its writers (egress_common::learned).
    let Some(entry) = (unsafe { LEARNED.get(&key) }) else {
        return 0;
    };
    u32::from(entry.named(&key, Some(header.dport()), begun_at_ns) != 0)
}

/// A decision packed: this reason and rule.
#[inline(always)]
fn packed(reason: Reason, rule: u64, binding: &Binding) -> u64 {
    Decision::new(reason, rule, binding).pack()
}

/// Decides on a packet whose flow is to name its destination: a packed decision. That of a packet that only goes on
/// with the handshake, or with a hello that is not read to its end, names no rule. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_leaves(
    raw: *mut __sk_buff,
    header: u64,
    binding: u64,
    decision: u64,
) -> u64 {
    let unpacked = Header::unpack(header);
    let rules = Binding::unpack(binding);
    if Decision::packed_reason(decision) == Reason::Expired as u8
        && hello_has_begun(raw, header, rules.scope_id) == 0
    {
        return decision;
    }
    let Some(sk) = full_socket(raw) else {
        return packed(Reason::HelloUnseen, 0, &rules);
    };
    let socket = Socket::read(sk);
    if socket.is_raw || !is_tcp(&socket, unpacked) || unpacked.is_later_fragment() {
        return packed(Reason::HelloUnseen, 0, &rules);
    }
    let goes_on = packed(Reason::AwaitsName, 0, &rules);
    let payload = packet_payload(raw, 0);
    let Payload { bytes, .. } = Payload::unpack(payload);
    if unpacked.opens_tcp() {
        // Data with the SYN (TCP fast open): the kernel sends the SYN again, without.
        if bytes != 0 {
            return packed(Reason::HelloSplit, 0, &rules);
        }
        // A connection that joins another one (MPTCP, RFC 8684 section 3.2) carries parts of what that one says.
        if joins_another(raw, payload) != 0 {
            return packed(Reason::HelloUnseen, 0, &rules);
        }
        if hello_open(raw) == 0 {
            record::tally(Tally::SocketStateFailed);
            return packed(Reason::StateUnavailable, 0, &rules);
        }
        return goes_on;
    }
    if bytes == 0 {
        return goes_on;
    }
    // Its SYN left when no name was wanted: what was allowed then goes on by its rule, before this.
    let Some(hello) = HELLOS.get(sk) else {
        return packed(Reason::HelloUnseen, 0, &rules);
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let (state, reason) = unsafe { ((*hello).state, (*hello).reason) };
    if state == HELLO_REFUSED {
        return refusal(reason, &rules);
    }
    if unpacked.tcp_flags() & TCP_URG != 0 && state == HELLO_READING {
        // A byte of urgent data (RFC 6093) is read apart from the others: it would shift what is read here.
        return packed(Reason::HelloSplit, 0, &rules);
    }
    let begun = hello_begin(raw, header, binding, payload);
    if begun == PASSES {
        return goes_on;
    }
    if begun != CONTINUES {
        return refusal(begun, &rules);
    }
    // From here on the slot is in use.
    let read = hello_read(raw);
    hello_end(raw, header, read)
}

/// A refusal for a reason that is given by its number.
#[inline(always)]
fn refusal(reason: u32, binding: &Binding) -> u64 {
    const NAME_DIFFERS: u32 = Reason::NameDiffers as u32;
    const NO_NAME: u32 = Reason::NoName as u32;
    const TOO_LONG: u32 = Reason::HelloTooLong as u32;
    const SPLIT: u32 = Reason::HelloSplit as u32;
    const HIDDEN: u32 = Reason::NameHidden as u32;
    const HELD_OFF: u32 = Reason::HeldOff as u32;
    const UNSEEN: u32 = Reason::HelloUnseen as u32;
    let reason = match reason {
        NAME_DIFFERS => Reason::NameDiffers,
        NO_NAME => Reason::NoName,
        TOO_LONG => Reason::HelloTooLong,
        SPLIT => Reason::HelloSplit,
        HIDDEN => Reason::NameHidden,
        HELD_OFF => Reason::HeldOff,
        UNSEEN => Reason::HelloUnseen,
        _ => Reason::NotTls,
    };
    packed(reason, 0, binding)
}

/// Results of [`hello_begin`], [`hello_read`] and [`hello_step`] beside reasons to refuse: numbers from 32 on.
const PASSES: u32 = 0;
const CONTINUES: u32 = 1;
/// The result of [`option_step`] for an option that joins another connection.
const JOINS: u32 = 2;

/// A socket's words on an earlier connection count for nothing on the next one, which its SYN begins.
#[inline(always)]
pub fn forget(sk: *mut bpf_sock) {
    if let Some(hello) = HELLOS.get(sk) {
        // SAFETY: the storage lives as long as the socket; aligned, stored whole.
        unsafe { (&raw mut (*hello).reason).write_volatile(Reason::HelloUnseen as u32) };
        // SAFETY: as above.
        unsafe { (&raw mut (*hello).state).write_volatile(HELLO_REFUSED) };
    }
}

/// Begins to follow a connection with its SYN; 0 when there is no memory for it. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_open(raw: *mut __sk_buff) -> u32 {
    let next = packet_sequence(raw, 0).wrapping_add(1);
    let Some(hello) = full_socket(raw).and_then(|sk| HELLOS.get_or_create(sk)) else {
        return 0;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let hello = unsafe { &mut *hello };
    hello.begun_at_ns = now_ns();
    hello.rule = 0;
    hello.next = next;
    hello.first = next;
    hello.auditor = 0;
    hello.state = HELLO_READING;
    hello.reason = 0;
    hello.reader = HelloReader::default();
    hello.event.name_bytes = 0;
    1
}

/// `Multipath TCP`, and its subtype that joins a connection (RFC 8684 sections 3 and 3.2).
const MPTCP: u8 = 30;
const MP_JOIN: u8 = 1;
/// Bytes of a TCP header without options.
const TCP_HEADER_BYTES: u32 = 20;
/// Most options that fit into a TCP header.
const TCP_OPTIONS: u32 = 40;

/// 1 if a SYN joins another connection; `payload` is packed. One that cannot be read does. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn joins_another(raw: *mut __sk_buff, payload: u64) -> u32 {
    let skb = Skb { raw, base: 0 };
    let end = Payload::unpack(payload).at;
    let [first, .., next] = skb.load::<7>(0).unwrap_or_default();
    // RFC 791 section 3.1; RFC 8200 section 3, where no extension header comes before TCP.
    let header_bytes = if first >> 4 == 4 {
        u32::from(first & 0xf) << 2
    } else if next == protocol::TCP {
        40
    } else {
        return 1;
    };
    let Some(scratch) = Scratch::get(QUERY) else {
        return 1;
    };
    if !scratch.claim() {
        record::tally(Tally::AnswerReentered);
        return 1;
    }
    // Where the next option begins, and where they end.
    scratch.part_at = header_bytes.wrapping_add(TCP_HEADER_BYTES);
    scratch.part_end = end;
    let mut joins = 1;
    for _ in 0..TCP_OPTIONS {
        let step = option_step(raw);
        if step != CONTINUES {
            joins = step;
            break;
        }
    }
    scratch.release();
    u32::from(joins != PASSES)
}

/// Looks at an option of a SYN: [`CONTINUES`], [`PASSES`] at the end of them, or another number for one that joins.
/// Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn option_step(raw: *mut __sk_buff) -> u32 {
    let Some(scratch) = Scratch::get(QUERY) else {
        return JOINS;
    };
    let at = scratch.part_at;
    if at >= scratch.part_end {
        return PASSES;
    }
    let skb = Skb { raw, base: 0 };
    let [kind] = skb.load::<1>(at).unwrap_or_default();
    match kind {
        0 => return PASSES,
        1 => scratch.part_at = at.wrapping_add(1),
        _ => {
            let [bytes] = skb.load::<1>(at.wrapping_add(1)).unwrap_or_default();
            let [subtype] = skb.load::<1>(at.wrapping_add(2)).unwrap_or_default();
            if kind == MPTCP && subtype >> 4 == MP_JOIN {
                return JOINS;
            }
            scratch.part_at = at.wrapping_add(if bytes < 2 { 2 } else { u32::from(bytes) });
        }
    }
    CONTINUES
}

/// Begins with a packet of a hello: [`PASSES`] for one that was read before, [`CONTINUES`], or a reason. Verified once for
/// itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_begin(raw: *mut __sk_buff, header: u64, binding: u64, payload: u64) -> u32 {
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let payload = Payload::unpack(payload);
    let sequence = packet_sequence(raw, 0);
    let (Some(hello), Some(scratch)) = (
        full_socket(raw).and_then(|sk| HELLOS.get(sk)),
        Scratch::get(QUERY),
    ) else {
        return Reason::HelloUnseen as u32;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let hello = unsafe { &mut *hello };
    let mut behind = hello.next.wrapping_sub(sequence);
    if hello.state == HELLO_READING {
        if behind > u32::MAX / 2 {
            // The bytes before this did not leave.
            return Reason::HelloSplit as u32;
        }
        if behind >= payload.bytes {
            return PASSES;
        }
    } else {
        behind = payload.bytes;
    }
    if !scratch.claim() {
        record::tally(Tally::AnswerReentered);
        return Reason::HeldOff as u32;
    }
    scratch.current = Binding::unpack(binding);
    scratch.now_ns = now_ns();
    scratch.netns = netns::of_packet(raw);
    scratch.address = header.daddr(&skb);
    scratch.hello = hello.reader;
    scratch.hello_begun_at_ns = hello.begun_at_ns;
    scratch.hello_rule = hello.rule;
    scratch.hello_reason = hello.reason;
    scratch.auditor = hello.auditor;
    scratch.hello_port = u32::from(header.dport());
    scratch.part_at = payload.at.wrapping_add(behind);
    scratch.part_bytes = payload.bytes.wrapping_sub(behind);
    scratch.part_end = sequence.wrapping_add(payload.bytes);
    if hello.reader.name_bytes != 0 {
        copy_name(
            scratch.message.bytes.as_mut_ptr(),
            hello.event.name.as_ptr(),
        );
    }
    CONTINUES
}

/// Copies a name between a hello and a slot.
#[inline(always)]
fn copy_name(to: *mut u8, from: *const u8) {
    // SAFETY: both have SERVER_NAME_BYTES bytes.
    unsafe { bpf_probe_read_kernel(to.cast(), SERVER_NAME_BYTES as u32, from.cast()) };
}

/// Reads the packet that was begun, up to the end of the hello; returns [`PASSES`] or a reason. Of a hello that was read
/// before, only the name is judged, under the policy of now. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_read(raw: *mut __sk_buff) -> u32 {
    let Some(scratch) = Scratch::get(QUERY) else {
        return Reason::HeldOff as u32;
    };
    if scratch.hello.is_done() {
        hello_name(QUERY);
        return PASSES;
    }
    for _ in 0..HELLO_STEPS {
        let step = hello_step(raw);
        if step != CONTINUES {
            return step;
        }
    }
    if scratch.hello.has_many_extensions() {
        Reason::HelloTooLong as u32
    } else {
        Reason::HelloSplit as u32
    }
}

/// Takes the next piece: [`CONTINUES`], [`PASSES`] at the end of the packet or of the hello, or a reason. Verified once for
/// itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_step(raw: *mut __sk_buff) -> u32 {
    let Some(scratch) = Scratch::get(QUERY) else {
        return Reason::HeldOff as u32;
    };
    let (from, left) = (scratch.part_at, scratch.part_bytes);
    if left == 0 {
        return PASSES;
    }
    let piece = scratch.hello.piece(left);
    let taken = match piece {
        Piece::Done => return PASSES,
        Piece::Skip(bytes) => bytes,
        Piece::Head { at, bytes } => {
            let to = place(scratch.hello.head.as_mut_ptr(), at, FIELD_MASK);
            load(raw, from, to, bytes, FIELD_MASK)
        }
        Piece::Field { at, bytes } => {
            let to = place(scratch.hello.bytes.as_mut_ptr(), at, FIELD_MASK);
            load(raw, from, to, bytes, FIELD_MASK)
        }
        Piece::Name { at, bytes } => {
            let to = place(scratch.message.bytes.as_mut_ptr(), at, NAME_MASK);
            load(raw, from, to, bytes, NAME_MASK)
        }
    };
    if taken == 0 {
        return Reason::NotTls as u32;
    }
    scratch.part_at = from.wrapping_add(taken);
    scratch.part_bytes = left.wrapping_sub(taken);
    match scratch.hello.take(piece) {
        Taken::More => CONTINUES,
        Taken::Name => {
            hello_name(QUERY);
            CONTINUES
        }
        Taken::Refused(reason) => reason as u32,
    }
}

/// Places in the buffer of a name, less one.
const NAME_MASK: u32 = SERVER_NAME_BYTES as u32 - 1;

/// A place in a buffer of twice as many bytes as `mask` plus one.
#[inline(always)]
fn place(buffer: *mut u8, at: u32, mask: u32) -> *mut u8 {
    // SAFETY: the place is below half of the buffer.
    unsafe { buffer.add((opaque(at) & mask) as usize) }
}

/// Loads bytes (1 to `mask` plus one) to a place that has room for so many; returns how many, 0 where the packet ends before.
#[inline(always)]
fn load(raw: *mut __sk_buff, from: u32, to: *mut u8, bytes: u32, mask: u32) -> u32 {
    let masked = (opaque(bytes.wrapping_sub(1)) & mask).wrapping_add(1);
    // SAFETY: `place` leaves room for `mask` plus one bytes.
    let error = unsafe { bpf_skb_load_bytes(raw.cast(), from, to.cast(), masked) };
    if error == 0 { bytes } else { 0 }
}

/// Judges the name in a slot: by which rule it is allowed, or why it is not. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_name(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    scratch.hello_rule = 0;
    scratch.hello_reason = Reason::NameDiffers as u32;
    let mut length = scratch.hello.name_bytes;
    // A final dot says nothing.
    if length > 1 && scratch.message.byte(length.wrapping_sub(1)) == b'.' {
        length = length.wrapping_sub(1);
    }
    scratch.message.length = length;
    if hello_text(slot) != NameStep::Done as u32 {
        scratch.hello_reason = Reason::NoName as u32;
        return 0;
    }
    let policy_id = u32::from(scratch.current.policy_id);
    if dns_rules(slot, policy_id, 0) != ALLOWED {
        return 0;
    }
    let rule = leading_rule(slot);
    if rule != 0 {
        scratch.hello_rule = rule;
        scratch.hello_reason = 0;
    }
    1
}

/// Reads the text in a slot as a name; returns a [`NameStep`] as a number. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_text(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return NameStep::Malformed as u32;
    };
    scratch.name.start(0, 0);
    for _ in 0..NAME_STEPS {
        forget_registers();
        match scratch.name.step_text(&scratch.message) {
            NameStep::More => {}
            NameStep::Done => return NameStep::Done as u32,
            NameStep::Malformed => return NameStep::Malformed as u32,
        }
    }
    NameStep::Malformed as u32
}

/// Of the rules in the first set of a slot, the one that led to the address, on the port, for connections that name
/// themselves; 0 for none. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leading_rule(slot: u32) -> u64 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let port = scratch.hello_port as u16;
    let [set, ..] = &scratch.sets;
    for index in 0..NAME_ENTRIES {
        let Some(entry) = set.entries.get(index) else {
            return 0;
        };
        if entry.kind != EntryKind::Allow as u8 {
            return 0;
        }
        if entry.ports.require & REQUIRE_TLS != 0
            && entry.ports.covers(protocol::TCP, Some(port))
            && leads_here(slot, entry.rule) != 0
        {
            return entry.rule;
        }
    }
    0
}

/// 1 if a rule led to the address of the hello in a slot. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leads_here(slot: u32, rule: u64) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let key = LearnedKey::new(scratch.current.scope_id, scratch.netns, scratch.address);
    let (port, begun_at_ns) = (scratch.hello_port as u16, scratch.hello_begun_at_ns);
    // SAFETY: readers of a learned entry tolerate its writers (egress_common::learned).
    let Some(entry) = (unsafe { LEARNED.get(&key) }) else {
        return 0;
    };
    u32::from(entry.is_led_to_by(&key, rule, port, begun_at_ns))
}

/// Ends with a packet, and gives the slot back; returns a packed decision. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_end(raw: *mut __sk_buff, header: u64, read: u32) -> u64 {
    let Some(scratch) = Scratch::get(QUERY) else {
        return packed(Reason::HelloUnseen, 0, &UNCONFIGURED);
    };
    let decision = end(raw, header, read, scratch);
    scratch.release();
    decision
}

/// [`hello_end`], while the slot is still this program's.
#[inline(always)]
fn end(raw: *mut __sk_buff, header: u64, read: u32, scratch: &Scratch) -> u64 {
    let rules = scratch.current;
    let Some(hello) = full_socket(raw).and_then(|sk| HELLOS.get(sk)) else {
        return packed(Reason::HelloUnseen, 0, &rules);
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let hello = unsafe { &mut *hello };
    let mut reason = if read != PASSES {
        read
    } else {
        scratch.hello_reason
    };
    if reason == Reason::NameDiffers as u32 && scratch.hello.is_encrypted() {
        reason = Reason::NameHidden as u32;
    }
    if reason == Reason::NameDiffers as u32 && trouble_of(rules.scope_id, scratch.netns) == READING
    {
        // The agent may be about to learn that the name leads here. As if it had not been read: TCP sends it again.
        return refusal(Reason::HeldOff as u32, &rules);
    }
    let is_done = scratch.hello.is_done();
    // Headers of records count, of which a hello may have as many as it has bytes.
    if reason == 0 && !is_done && scratch.part_end.wrapping_sub(hello.first) > HELLO_STREAM_BYTES {
        reason = Reason::HelloTooLong as u32;
    }
    hello.reader = scratch.hello;
    hello.rule = scratch.hello_rule;
    hello.reason = reason;
    hello.next = scratch.part_end;
    hello.auditor = scratch.auditor;
    if scratch.hello.name_bytes != 0 {
        copy_name(
            hello.event.name.as_mut_ptr(),
            scratch.message.bytes.as_ptr(),
        );
    }
    if reason == 0 && !is_done {
        return packed(Reason::AwaitsName, 0, &rules);
    }
    hello.state = if reason == 0 {
        HELLO_READ
    } else {
        HELLO_REFUSED
    };
    hello_report(raw, header, u32::from(reason == 0));
    if reason != 0 {
        return refusal(reason, &rules);
    }
    keep_open(raw, 0, header, rules.scope_id);
    let reason = if scratch.auditor != 0 {
        Reason::AuditedName
    } else {
        Reason::NameRule
    };
    packed(reason, scratch.hello_rule, &rules)
}

/// Reports to the agent what a connection names, if the budget has room. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hello_report(raw: *mut __sk_buff, header: u64, is_allowed: u32) -> u32 {
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let (Some(hello), Some(scratch)) = (
        full_socket(raw).and_then(|sk| HELLOS.get(sk)),
        Scratch::get(QUERY),
    ) else {
        return 0;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let hello = unsafe { &mut *hello };
    if !hello.reader.has_whole_name()
        || !record::has_budget(scratch.current.scope_id, is_allowed != 0, scratch.now_ns)
    {
        return 0;
    }
    hello.event.daddr = header.daddr(&skb);
    hello.event.netns = scratch.netns;
    hello.event.sport = header.sport();
    hello.event.dport = header.dport();
    hello.event.name_bytes = hello.reader.name_bytes;
    let map = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the event has the size that is given. The verdict follows, and wakes the agent.
    let error = unsafe {
        bpf_ringbuf_output(
            map,
            (&raw mut hello.event).cast(),
            size_of::<NameEvent>() as u64,
            u64::from(BPF_RB_NO_WAKEUP),
        )
    };
    if error != 0 {
        record::tally(Tally::EventsLost);
    }
    1
}
