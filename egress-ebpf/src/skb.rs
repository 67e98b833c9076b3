//! Parts of a packet and its socket that the programs read.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
};
use egress_common::{
    address::{Address, is_loopback},
    packed::{AddressWords, PlainBytes, address_of, address_words, v4_words},
    packet::{Extensions, Packet, PacketBytes, parse_into, walk_extensions, walk_options},
    verdict::Reason,
};
pub use egress_common::{
    origin::Socket,
    packed::{Header, Payload},
};

/// `SOCK_STREAM`, include/linux/net.h.
const SOCK_STREAM: u32 = 1;
/// `SOCK_RAW`.
const SOCK_RAW: u32 = 3;
/// `TCP_LISTEN`, include/net/tcp_states.h.
const TCP_LISTEN: u32 = 10;
/// `AF_INET`, include/linux/socket.h.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;

/// A packet's bytes from its network header.
#[derive(Clone, Copy)]
pub struct Skb {
    /// The context of the program.
    pub raw: *mut __sk_buff,
    /// Bytes before the network header: link-layer header at tc, none in a cgroup.
    pub base: u32,
}

impl PacketBytes for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let at = self.base.wrapping_add(at);
        // SAFETY: the buffer has N bytes.
        let error =
            unsafe { bpf_skb_load_bytes(self.raw.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
        if error != 0 {
            return None;
        }
        // SAFETY: the helper filled all N bytes.
        Some(unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn addresses<const N: usize>(&self, at: u32, packet: &mut Packet) -> Option<()> {
        let load = |at: u32, address: &mut Address| {
            let bytes = address.last_chunk_mut::<N>()?;
            if load_into(self, at, bytes) {
                Some(())
            } else {
                None
            }
        };
        load(at, &mut packet.saddr)?;
        load(at.wrapping_add(N as u32), &mut packet.daddr)
    }

    #[inline(always)]
    fn options(&self, header_bytes: u32) -> Option<Reason> {
        match packet_options(self.raw, self.base, header_bytes) {
            0 => None,
            number if number == Reason::SourceRouted as u32 => Some(Reason::SourceRouted),
            _ => Some(Reason::Malformed),
        }
    }

    #[inline(always)]
    fn extensions(&self, first: u8) -> Extensions {
        if matches!(first, 0 | 43 | 44 | 51 | 60) {
            return Extensions::unpack(packet_extensions(self.raw, self.base, u32::from(first)));
        }
        Extensions {
            at: 40,
            next: first,
            is_later_fragment: false,
            refusal: Reason::NoPolicy,
        }
    }
}

/// [`walk_options`], verified once for itself; returns a [`Reason`] as a number, 0 for none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_options(raw: *mut __sk_buff, base: u32, header_bytes: u32) -> u32 {
    match walk_options(&Skb { raw, base }, header_bytes) {
        Some(reason) => reason as u32,
        None => 0,
    }
}

/// [`walk_extensions`], verified once for itself; returns [`Extensions`] packed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_extensions(raw: *mut __sk_buff, base: u32, first: u32) -> u64 {
    walk_extensions(&Skb { raw, base }, first as u8).pack()
}

/// `LOOPBACK_IFINDEX`, include/net/flow.h: `lo` has this index in every network namespace.
pub const LOOPBACK_IFINDEX: u32 = 1;

/// True if the packet is on the loopback device: it never leaves this network namespace.
#[inline(always)]
pub fn is_on_loopback(raw: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*raw).ifindex == LOOPBACK_IFINDEX }
}

/// The full socket of a packet: for a packet that a listener answers, the listener.
#[inline(always)]
pub fn full_socket(raw: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() { None } else { Some(sk) }
}

/// Reads a [`Socket`].
pub trait ReadSocket {
    /// Reads a full socket.
    fn read(sk: *mut bpf_sock) -> Self;
}

impl ReadSocket for Socket {
    #[inline(always)]
    fn read(sk: *mut bpf_sock) -> Self {
        // SAFETY: `sk` is a full socket, which the verifier checks.
        let kind = unsafe { (*sk).type_ };
        // SAFETY: as above.
        let state = unsafe { (*sk).state };
        // SAFETY: as above.
        let peer_port = unsafe { (*sk).dst_port };
        Self {
            is_stream: kind == SOCK_STREAM,
            is_raw: kind == SOCK_RAW,
            listens: kind == SOCK_STREAM && state == TCP_LISTEN,
            peer_port: u16::from_be(peer_port),
        }
    }
}

/// Address of the peer that a socket is connected to, as the socket sees it: before any translation.
///
/// Every field is read, at its own place: of two reads the compiler would make one from a place that it computes, which
/// the verifier forbids.
#[inline(always)]
pub fn peer_words(sk: *mut bpf_sock) -> AddressWords {
    // SAFETY: `sk` is a full socket, which the verifier checks.
    let family = unsafe { (&raw const (*sk).family).read_volatile() };
    // SAFETY: as above.
    let v4 = unsafe { (&raw const (*sk).dst_ip4).read_volatile() };
    // SAFETY: as above.
    let first = unsafe { (&raw const (*sk).dst_ip6[0]).read_volatile() };
    // SAFETY: as above.
    let second = unsafe { (&raw const (*sk).dst_ip6[1]).read_volatile() };
    // SAFETY: as above.
    let third = unsafe { (&raw const (*sk).dst_ip6[2]).read_volatile() };
    // SAFETY: as above.
    let last = unsafe { (&raw const (*sk).dst_ip6[3]).read_volatile() };
    if family == AF_INET {
        return v4_words(v4);
    }
    address_words(&address_of_words([first, second, third, last]))
}

/// An address from four words as the kernel's contexts hold them: in network order.
#[inline(always)]
pub fn address_of_words(words: [u32; 4]) -> Address {
    let [first, second, third, last] = words;
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    let [i, j, k, l] = third.to_ne_bytes();
    let [m, n, o, p] = last.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// Reads what a [`Header`] says, and the addresses that it leaves in the packet.
pub trait ReadHeader: Sized {
    /// Reads the headers.
    fn read(skb: &Skb) -> Self;
    /// Source address, as words.
    fn source(self, skb: &Skb) -> AddressWords;
    /// Destination address, as words.
    fn destination(self, skb: &Skb) -> AddressWords;
    /// True if the destination is loopback.
    #[expect(clippy::wrong_self_convention, reason = "a header is a number")]
    fn is_to_loopback(self, skb: &Skb) -> bool;

    /// Source address.
    #[inline(always)]
    fn saddr(self, skb: &Skb) -> Address {
        address_of(self.source(skb))
    }

    /// Destination address.
    #[inline(always)]
    fn daddr(self, skb: &Skb) -> Address {
        address_of(self.destination(skb))
    }
}

impl ReadHeader for Header {
    #[inline(always)]
    fn read(skb: &Skb) -> Self {
        Self::unpack(packet_header(skb.raw, skb.base))
    }

    #[inline(always)]
    fn source(self, skb: &Skb) -> AddressWords {
        if self.is_v4() {
            load_v4::<12>(skb)
        } else {
            load_v6::<8>(skb)
        }
    }

    #[inline(always)]
    fn destination(self, skb: &Skb) -> AddressWords {
        if self.is_v4() {
            load_v4::<16>(skb)
        } else {
            load_v6::<24>(skb)
        }
    }

    #[inline(always)]
    fn is_to_loopback(self, skb: &Skb) -> bool {
        packet_is_to_loopback(skb.raw, skb.base, self.pack()) != 0
    }
}

/// [`ReadHeader::is_to_loopback`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_is_to_loopback(raw: *mut __sk_buff, base: u32, header: u64) -> u32 {
    let skb = Skb { raw, base };
    u32::from(is_loopback(&Header::unpack(header).daddr(&skb)))
}

/// The linear part of a packet, read without a call for each field. Not for a packet behind a link-layer header.
#[derive(Clone, Copy)]
pub struct Linear {
    data: usize,
    end: usize,
}

impl Linear {
    /// The linear part; `None` behind a link-layer header.
    #[inline(always)]
    pub fn of(skb: &Skb) -> Option<Self> {
        if skb.base != 0 {
            return None;
        }
        // SAFETY: the context is valid while the program runs.
        let data = unsafe { (*skb.raw).data } as usize;
        // SAFETY: as above.
        let end = unsafe { (*skb.raw).data_end } as usize;
        Some(Self { data, end })
    }

    /// Reads a number at `at`, which the caller has compared with the packet's end.
    #[inline(always)]
    fn read<T: Copy>(&self, at: usize) -> T {
        // SAFETY: the caller's comparison, which the verifier checks. A packet's network header is aligned to four bytes
        // where the machine needs that, and no field is read that is wider.
        unsafe { *(self.data.wrapping_add(at) as *const T) }
    }

    /// Two words as one.
    #[inline(always)]
    fn double(&self, at: usize) -> u64 {
        let (low, high): (u32, u32) = (self.read(at), self.read(at.wrapping_add(4)));
        u64::from(low) | u64::from(high) << 32
    }
}

impl PlainBytes for Linear {
    #[inline(always)]
    fn has(&self, bytes: usize) -> bool {
        self.data.wrapping_add(bytes) <= self.end
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.read(at)
    }

    #[inline(always)]
    fn half(&self, at: usize) -> u16 {
        self.read(at)
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        self.read(at)
    }
}

/// Loads an IPv4 address. What was read once can be read again: this does not fail.
#[inline(always)]
fn load_v4<const AT: usize>(skb: &Skb) -> AddressWords {
    if let Some(linear) = Linear::of(skb)
        && linear.has(AT.wrapping_add(4))
    {
        return v4_words(linear.word(AT));
    }
    let mut v4 = 0_u32;
    load_into(skb, AT as u32, &mut v4);
    v4_words(v4)
}

/// Loads an IPv6 address, likewise.
#[inline(always)]
fn load_v6<const AT: usize>(skb: &Skb) -> AddressWords {
    if let Some(linear) = Linear::of(skb)
        && linear.has(AT.wrapping_add(16))
    {
        return [linear.double(AT), linear.double(AT.wrapping_add(8))];
    }
    let mut words = [0_u64; 2];
    load_into(skb, AT as u32, &mut words);
    words
}

/// Loads bytes of the packet over a number or an array of numbers; `false` where the packet ends before.
#[inline(always)]
fn load_into<T>(skb: &Skb, at: u32, into: &mut T) -> bool {
    let at = skb.base.wrapping_add(at);
    // SAFETY: the buffer has the size of T, and T is made of numbers, for which any bytes are valid.
    unsafe {
        bpf_skb_load_bytes(
            skb.raw.cast(),
            at,
            core::ptr::from_mut(into).cast(),
            size_of::<T>() as u32,
        ) == 0
    }
}

/// Reads the headers; returns a [`Header`] packed. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_header(raw: *mut __sk_buff, base: u32) -> u64 {
    // Almost all of them, and the same as the parser says.
    if let Some(linear) = Linear::of(&Skb { raw, base })
        && let Some(header) = Header::of_plain(&linear)
    {
        return header.pack();
    }
    let mut packet = Packet::EMPTY;
    let header = match parse_into(&Skb { raw, base }, &mut packet) {
        Ok(()) => Header::new(&packet),
        Err(reason) => Header::refused(reason),
    };
    header.pack()
}

/// A word of an address of a packet: 0 and 1 of the destination, 2 and 3 of the source. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_address_word(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    which: u32,
) -> u64 {
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let [first, second] = if which & 2 != 0 {
        header.source(&skb)
    } else {
        header.destination(&skb)
    };
    if which & 1 == 0 { first } else { second }
}

/// [`ReadHeader::destination`] by a helper, for programs whose stack has no room for more.
#[inline(always)]
pub fn loaded_destination(skb: &Skb, header: Header) -> AddressWords {
    if header.is_v4() {
        let mut v4 = 0_u32;
        load_into(skb, 16, &mut v4);
        v4_words(v4)
    } else {
        let mut words = [0_u64; 2];
        load_into(skb, 24, &mut words);
        words
    }
}

/// Finds a [`Payload`].
pub trait FindPayload {
    /// Finds the payload of a packet that could be read.
    fn find(skb: &Skb) -> Self;
}

impl FindPayload for Payload {
    #[inline(always)]
    fn find(skb: &Skb) -> Self {
        Self::unpack(packet_payload(skb.raw, skb.base))
    }
}

/// The payload of almost all packets, which is the same as the parser says; 0 for the others. In a stack frame of its own.
#[inline(never)]
fn plain_payload(raw: *mut __sk_buff, base: u32) -> u64 {
    Linear::of(&Skb { raw, base })
        .and_then(|linear| Payload::of_plain(&linear))
        .map_or(0, Payload::pack)
}

/// Finds the payload; returns a [`Payload`] packed. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_payload(raw: *mut __sk_buff, base: u32) -> u64 {
    let plain = plain_payload(raw, base);
    if plain != 0 {
        return plain;
    }
    let mut packet = Packet::EMPTY;
    if parse_into(&Skb { raw, base }, &mut packet).is_err() {
        return 0;
    }
    let payload = Payload {
        at: packet.payload_at,
        bytes: packet.payload_bytes(),
    };
    payload.pack()
}

/// TCP: the sequence number of a packet that could be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_sequence(raw: *mut __sk_buff, base: u32) -> u32 {
    let mut packet = Packet::EMPTY;
    if parse_into(&Skb { raw, base }, &mut packet).is_err() {
        return 0;
    }
    packet.sequence
}
