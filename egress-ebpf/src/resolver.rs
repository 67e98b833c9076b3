//! Trusted resolvers: an address and a port each.

use aya_ebpf::bindings::__sk_buff;
use egress_common::query::{INSIDE_PORTS, OTHER_PORTS, ResolverKey, ResolverPorts, UNBALANCED};

use crate::{
    ask::{is_led, resolver_of},
    maps::{RESOLVER_PORTS, RESOLVERS},
    netns,
    skb::{Header, ReadSocket as _, Skb, Socket, full_socket, packet_address_word, peer_words},
};

/// True if packets from or to this port may be a trusted resolver's: a first look. Port 53 counts always, for those who
/// ask strangers.
#[inline(always)]
pub fn may_be_at(port: u16) -> bool {
    port == egress_common::dns::DNS_PORT
        || RESOLVER_PORTS.get(0).is_some_and(|listed| listed.has(port))
}

/// True if one of these ports is one of [`may_be_at`]: one comparison for almost all packets.
#[inline(always)]
pub fn may_be_at_one(ports: [u16; 3]) -> bool {
    let Some(listed) = RESOLVER_PORTS.get(0) else {
        return true;
    };
    let [first, second, third] = ports.map(u64::from);
    listed.may_have(ports) && resolver_ports(first | second << 16 | third << 32) != 0
}

/// [`may_be_at_one`] without the first look. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn resolver_ports(ports: u64) -> u32 {
    u32::from(
        may_be_at(ports as u16)
            || may_be_at((ports >> 16) as u16)
            || may_be_at((ports >> 32) as u16),
    )
}

/// True if the programs look at a packet to this port.
#[inline(always)]
pub fn is_looked_at(port: u16) -> bool {
    let is_first = RESOLVER_PORTS
        .get(0)
        .is_some_and(|listed| listed.may_have([port; 3]));
    is_first && may_be_at(port)
}

/// Notes a port at which a trusted resolver was met that is behind another address: packets to it are looked at from now on.
/// CPUs may take the same place, or write the first look at the same time: what is lost is noted with the next packet that
/// is looked at for another reason, as the first one of each socket is.
#[inline(always)]
pub fn note_port(port: u16) {
    let Some(listed) = RESOLVER_PORTS.get_ptr_mut(0) else {
        return;
    };
    if !may_be_at(port) {
        // SAFETY: a map value; each number is read and written whole.
        let found = unsafe { (*listed).found };
        let (place, number) = match ResolverPorts::default().with_found(found).free() {
            Some(0) => (0, port),
            Some(1) => (1, port),
            Some(_) => (2, port),
            None => (3, OTHER_PORTS),
        };
        // SAFETY: as above; the place is below FOUND_PORTS.
        unsafe {
            (&raw mut (*listed).found)
                .cast::<u16>()
                .add(place)
                .write_volatile(number)
        };
    }
    // SAFETY: as above.
    let found = unsafe { (&raw const (*listed).found).read_volatile() };
    // SAFETY: as above.
    let filter = unsafe { (*listed).filter };
    let filter = filter | ResolverPorts::default().with_found(found).filter;
    // SAFETY: as above; aligned.
    unsafe { (&raw mut (*listed).filter).write_volatile(filter) };
}

/// True if a resolver on loopback may be asked at any port of its address.
#[inline(always)]
pub fn may_be_inside() -> bool {
    RESOLVER_PORTS
        .get(0)
        .is_some_and(|listed| listed.flags & INSIDE_PORTS != 0)
}

/// True if a resolver may be behind another address: programs of somebody else may change the address of a call.
#[inline(always)]
pub fn may_be_behind() -> bool {
    RESOLVER_PORTS
        .get(0)
        .is_none_or(|listed| listed.flags & UNBALANCED == 0)
}

/// True if an address and port are a trusted resolver's.
#[inline(always)]
pub fn is_trusted(address: [u64; 2], port: u16) -> bool {
    RESOLVERS
        .get_ptr(&ResolverKey::of_words(address, port))
        .is_some()
}

/// The destination of a packet, as two words.
#[inline(always)]
pub fn far_words(skb: &Skb, header: Header) -> [u64; 2] {
    [0, 1].map(|which| packet_address_word(skb.raw, skb.base, header.pack(), which))
}

/// The source of a packet, as two words.
#[inline(always)]
pub fn near_words(skb: &Skb, header: Header) -> [u64; 2] {
    [2, 3].map(|which| packet_address_word(skb.raw, skb.base, header.pack(), which))
}

/// Which trusted resolver a packet goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Asked(u32);

impl Asked {
    /// None.
    pub const NOBODY: Self = Self(0);
    const DESTINATION: u32 = 1 << 16;
    const PEER: u32 = 2 << 16;

    /// Its port.
    #[inline(always)]
    pub fn port(self) -> u16 {
        self.0 as u16
    }

    /// Its address, as two words.
    #[inline(always)]
    pub fn words(self, skb: &Skb, header: Header) -> [u64; 2] {
        [0, 1].map(|which| asked_word(skb.raw, skb.base, header.pack(), self.0, which))
    }

    /// As one number: what global functions take.
    #[inline(always)]
    pub fn pack(self) -> u32 {
        self.0
    }

    /// Undoes [`Asked::pack`].
    #[inline(always)]
    pub fn unpack(number: u32) -> Self {
        Self(number)
    }

    /// Finds it. Verified once for itself.
    #[inline(always)]
    pub fn find(skb: &Skb, header: Header, is_frame: u32) -> Self {
        Self(asked_resolver(skb.raw, skb.base, header.pack(), is_frame))
    }
}

/// The trusted resolver that a packet goes to: the peer of its socket, if that is one; else its own destination.
///
/// Address translation in this network namespace has been done to the packet, and is undone on the answer before the
/// socket gets it: so a query of a connected socket is known by the peer. A packet to a resolver is a query whoever the
/// socket's peer is. Where a resolver is on loopback, a container engine may have translated its port.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asked_resolver(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    is_frame: u32,
) -> u32 {
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    if is_frame == 0
        && let Some(sk) = full_socket(raw)
    {
        let socket = Socket::read(sk);
        if socket.peer_port != 0 && !socket.is_raw && is_trusted(peer_words(sk), socket.peer_port) {
            return Asked::PEER | u32::from(socket.peer_port);
        }
    }
    let far = far_words(&skb, header);
    if is_trusted(far, header.dport()) {
        return Asked::DESTINATION | u32::from(header.dport());
    }
    // A socket that asks trusted resolvers alone, whose address a program of somebody else has changed on the way: the
    // peer that it has is one of them, or, without a peer, whoever the packet goes to. Not what was translated since in a
    // network namespace that is not the node's.
    if is_frame == 0
        && let Some(sk) = full_socket(raw)
        && resolver_of(sk).is_some()
        && is_led(sk, far, header.dport(), netns::of_packet(raw))
    {
        let socket = Socket::read(sk);
        let (kind, port) = if socket.peer_port != 0 {
            (Asked::PEER, socket.peer_port)
        } else {
            (Asked::DESTINATION, header.dport())
        };
        if !socket.is_raw && !socket.listens {
            return kind | u32::from(port);
        }
    }
    if may_be_inside()
        // SAFETY: one number, which the agent writes once.
        && let Some(port) = unsafe { RESOLVERS.get(&ResolverKey::of_words(far, 0)) }
    {
        return Asked::DESTINATION | (*port & 0xffff);
    }
    0
}

/// The first or second word of the asked resolver's address; `asked` is packed. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asked_word(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    asked: u32,
    which: u32,
) -> u64 {
    if asked & Asked::PEER != 0
        && let Some(sk) = full_socket(raw)
    {
        let [first, second] = peer_words(sk);
        return if which == 0 { first } else { second };
    }
    packet_address_word(raw, base, header, which & 1)
}
