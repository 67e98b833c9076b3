//! State that is stored with a socket.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use egress_common::{
    flow::{LAST_VERSION, Peer, Remembered, SocketState, is_stamp_due, recall, words_of},
    origin::Known,
    packed::{AddressWords, Header, Recalled},
    verdict::Reason,
};

use crate::{maps::SOCKETS, time::stamp_now, workload};

/// The state of a socket. Other CPUs, and a softirq on this one, may read and write it at the same time: each field
/// stands alone, is loaded or stored once and whole, and grants nothing, but for the words, of which each proves itself
/// ([`SocketState::words`]).
#[derive(Clone, Copy)]
pub struct State(*mut SocketState);

impl State {
    /// The state of a socket, if it has one.
    #[inline(always)]
    pub fn get(sk: *mut bpf_sock) -> Option<Self> {
        SOCKETS.get(sk).map(Self)
    }

    /// The state of a full socket, made when it has none; `None` when there is no memory for it.
    #[inline(always)]
    pub fn get_or_create(sk: *mut bpf_sock) -> Option<Self> {
        SOCKETS.get_or_create(sk).map(Self)
    }

    /// The role.
    #[inline(always)]
    pub fn role(self) -> u8 {
        // SAFETY: the storage lives as long as the socket, and the field is aligned.
        unsafe { (&raw const (*self.0).role).read_volatile() }
    }

    /// Stores the role.
    #[inline(always)]
    pub fn set_role(self, role: u8) {
        // SAFETY: as in `role`; one byte is stored.
        unsafe { (&raw mut (*self.0).role).write_volatile(role) }
    }

    /// Stores the role where it changes; what the socket's last flow was allowed does not count for a new one.
    #[inline(always)]
    pub fn enter(self, role: u8, is_new_flow: bool) {
        if role != self.role() {
            self.set_role(role);
        }
        if is_new_flow {
            self.forget();
        }
    }

    /// Makes the words no flow: one of them is enough.
    #[inline(always)]
    pub fn forget(self) {
        // SAFETY: as in `role`. A writer that has the lock may store this word after us: then its flow was allowed
        // meanwhile. Or the others after us: then they differ from this one in their version.
        unsafe { (&raw mut (*self.0).words[0]).write_volatile(0) }
    }

    /// Notes that a UDP packet arrived that the socket had not asked for.
    #[inline(always)]
    pub fn set_serves(self) {
        // SAFETY: as in `role`; one byte is stored.
        unsafe { (&raw mut (*self.0).serves).write_volatile(1) }
    }

    /// Stores the tick of a stamp.
    #[inline(always)]
    pub fn stamp(self, now: u16) {
        // SAFETY: as in `role`; two bytes, aligned.
        unsafe { (&raw mut (*self.0).stamp).write_volatile(now) }
    }

    #[inline(always)]
    fn is_stamp_due(self, now: u16) -> bool {
        // SAFETY: as in `role`.
        is_stamp_due(unsafe { (&raw const (*self.0).stamp).read_volatile() }, now)
    }

    #[inline(always)]
    fn word(self, at: usize) -> u64 {
        // SAFETY: callers give an index below five; aligned, loaded whole.
        unsafe {
            (&raw const (*self.0).words)
                .cast::<u64>()
                .add(at)
                .read_volatile()
        }
    }

    #[inline(always)]
    fn serves(self) -> bool {
        // SAFETY: as in `role`.
        unsafe { (&raw const (*self.0).serves).read_volatile() != 0 }
    }

    /// How the socket's flow to this peer was allowed.
    #[inline(always)]
    pub fn recall(self, peer: Peer, proto: u8, generation: u32) -> Recalled {
        let words = [
            self.word(0),
            self.word(1),
            self.word(2),
            self.word(3),
            self.word(4),
        ];
        Recalled::in_generation(
            recall(words, peer, proto),
            generation,
            self.is_stamp_due(stamp_now()),
        )
    }

    /// The facts of the socket of a packet.
    #[inline(always)]
    pub fn known(self, destination: AddressWords, header: Header, generation: u32) -> Known {
        let [first, second] = destination;
        Known {
            role: self.role(),
            serves: self.serves(),
            recalled: Recalled::unpack(recalled(self.0, first, second, header.pack(), generation)),
        }
    }

    /// Remembers an allowed flow.
    #[inline(always)]
    pub fn remember(self, destination: AddressWords, header: Header, rule: u64) {
        let [first, second] = destination;
        self.stamp(stamp_now());
        remember(self.0, first, second, header.pack(), rule);
    }

    /// True if this very denial was reported lately; from now on it was.
    #[inline(always)]
    pub fn is_audited_again(
        self,
        destination: AddressWords,
        header: Header,
        reason: Reason,
    ) -> bool {
        let [first, second] = destination;
        is_audited_again(self.0, first, second, header.pack(), reason as u32)
    }
}

/// [`State::recall`] in a stack frame of its own.
#[inline(never)]
fn recalled(state: *mut SocketState, first: u64, second: u64, header: u64, generation: u32) -> u64 {
    let header = Header::unpack(header);
    let peer = Peer::new([first, second], header.dport());
    State(state).recall(peer, header.proto(), generation).pack()
}

/// [`State::is_audited_again`] in a stack frame of its own.
#[inline(never)]
fn is_audited_again(
    state: *mut SocketState,
    first: u64,
    second: u64,
    header: u64,
    reason: u32,
) -> bool {
    let (Some(config), Some(keys)) = (workload::config(), workload::keys()) else {
        return false;
    };
    let header = Header::unpack(header);
    let mark = Peer::new([first, second], header.dport()).mark(
        &keys.flow,
        header.proto(),
        config.generation,
        reason as u8,
    );
    let now = stamp_now();
    // SAFETY: as in `State::role`; aligned.
    let last = unsafe { (&raw const (*state).audited).read_volatile() };
    if last == mark && !State(state).is_stamp_due(now) {
        return true;
    }
    // SAFETY: as above; one store.
    unsafe { (&raw mut (*state).audited).write_volatile(mark) };
    State(state).stamp(now);
    false
}

/// [`State::remember`] in a stack frame of its own.
#[inline(never)]
fn remember(state: *mut SocketState, first: u64, second: u64, header: u64, rule: u64) {
    let Some(config) = workload::config() else {
        return;
    };
    let header = Header::unpack(header);
    let remembered = Remembered {
        generation: config.generation,
        rule,
    };
    let peer = Peer::new([first, second], header.dport());
    // The version is still missing.
    let [first, second, third, fourth, fifth] = words_of(peer, header.proto(), remembered, 0);
    // SAFETY: the state has a lock that the kernel knows.
    let lock = unsafe { &raw mut (*state).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held: nobody else writes the version.
    let last = unsafe { (*state).version };
    if last != LAST_VERSION {
        let version = last.wrapping_add(1);
        // SAFETY: as above.
        unsafe { (*state).version = version };
        let version = u64::from(version);
        // SAFETY: as above, and for the four below: aligned, stored whole. Readers take no lock.
        let to = unsafe { &raw mut (*state).words }.cast::<u64>();
        // SAFETY: see above.
        unsafe { to.write_volatile(first | version) };
        // SAFETY: see above.
        unsafe { to.add(1).write_volatile(second | version) };
        // SAFETY: see above.
        unsafe { to.add(2).write_volatile(third | version) };
        // SAFETY: see above.
        unsafe { to.add(3).write_volatile(fourth | version) };
        // SAFETY: see above.
        unsafe { to.add(4).write_volatile(fifth | version) };
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
}
