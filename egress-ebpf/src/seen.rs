//! UDP sockets with a peer that have sent one packet: what that was allowed by, until the second one makes the socket a
//! memory of its own (`egress_common::flow::SeenSocket`).

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, bpf_spin_lock, bpf_spin_unlock},
};
use egress_common::{
    flow::{Peer, Remembered, SeenSocket, is_stamp_due, recall as recall_words, words_of},
    origin::{Known, has_memory},
    packed::{AddressWords, Header, Recalled, RecalledAs},
    policy::protocol,
    tally::Tally,
};

use crate::{
    maps::SEEN,
    record,
    resolver::may_be_at,
    skb::{Socket, full_socket},
    state::State,
    time::stamp_now,
    workload,
};

/// True if the permission of a packet waits here for a second one.
#[inline(always)]
pub fn is_for(socket: &Socket, header: Header) -> bool {
    header.proto() == protocol::UDP && !socket.is_stream && has_memory(socket, header)
}

/// The facts of a socket without a memory of its own.
#[inline(always)]
pub fn known(raw: *mut __sk_buff, destination: AddressWords, header: Header) -> Known {
    let [first, second] = destination;
    Known {
        recalled: Recalled::unpack(seen_recall(raw, first, second, header.pack())),
        ..Known::NOTHING
    }
}

/// Makes a socket a memory of its own, with its second packet: for queries, which are looked at one by one and of which a
/// socket seldom sends more than two, with a later one.
#[inline(always)]
fn settle(
    raw: *mut __sk_buff,
    destination: AddressWords,
    header: Header,
    recalled: Recalled,
    generation: u32,
) {
    let is_due = match recalled.how {
        RecalledAs::Allowed => !may_be_at(header.dport()),
        RecalledAs::Unstamped => true,
        RecalledAs::Earlier | RecalledAs::Started | RecalledAs::Begun | RecalledAs::Nothing => {
            false
        }
    };
    if !is_due {
        return;
    }
    match full_socket(raw).and_then(State::get_or_create) {
        Some(state) => {
            state.remember(destination, header, recalled.rule);
            // Raised meanwhile: the flow was not allowed in the generation that was written.
            if workload::config().is_none_or(|config| config.generation != generation) {
                state.forget();
            }
        }
        // Until its place is taken, it passes by what is here.
        None => record::tally(Tally::SocketStateFailed),
    }
}

/// Notes an allowed flow: in the socket's own memory, if it has one.
#[inline(always)]
pub fn note(raw: *mut __sk_buff, destination: AddressWords, header: Header, rule: u64) {
    let [first, second] = destination;
    seen_note(raw, first, second, header.pack(), rule);
}

/// Recalls a packet's socket, as a packed [`Recalled`]; makes it a memory, if that is due. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn seen_recall(raw: *mut __sk_buff, first: u64, second: u64, header: u64) -> u64 {
    let Some(config) = workload::config() else {
        return 0;
    };
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(raw.cast()) };
    let Some(seen) = SEEN.get_ptr_mut(SeenSocket::place(cookie)) else {
        return 0;
    };
    // Almost always another's: that needs no lock.
    // SAFETY: a map value; aligned, loaded whole.
    if cookie == 0 || unsafe { (&raw const (*seen).cookie).read_volatile() } != cookie {
        return 0;
    }
    // SAFETY: a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*seen).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let (owner, words, stamp) = unsafe { ((*seen).cookie, (*seen).words, (*seen).stamp) };
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    if owner != cookie {
        return 0;
    }
    let header = Header::unpack(header);
    let peer = Peer::new([first, second], header.dport());
    let generation = config.generation;
    let recalled = Recalled::in_generation(
        recall_words(words, peer, header.proto()),
        generation,
        is_stamp_due(stamp, stamp_now()),
    );
    settle(raw, [first, second], header, recalled, generation);
    recalled.pack()
}

/// [`note`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn seen_note(
    raw: *mut __sk_buff,
    first: u64,
    second: u64,
    header: u64,
    rule: u64,
) -> u32 {
    let Some(config) = workload::config() else {
        return 0;
    };
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(raw.cast()) };
    let Some(seen) = SEEN.get_ptr_mut(SeenSocket::place(cookie)) else {
        return 0;
    };
    let header = Header::unpack(header);
    if let Some(state) = full_socket(raw).and_then(State::get) {
        state.remember([first, second], header, rule);
        return 0;
    }
    let remembered = Remembered {
        generation: config.generation,
        rule,
    };
    let words = words_of(
        Peer::new([first, second], header.dport()),
        header.proto(),
        remembered,
        SeenSocket::VERSION,
    );
    let now = stamp_now();
    // SAFETY: a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*seen).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held, and for the two below.
    unsafe { (*seen).cookie = cookie };
    // SAFETY: see above.
    unsafe { (*seen).words = words };
    // SAFETY: see above.
    unsafe { (*seen).stamp = now };
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    0
}
