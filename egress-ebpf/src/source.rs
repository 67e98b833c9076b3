//! Sources that a sender may not claim.
//!
//! A process with a raw, transparent or packet socket writes any source address
//! into its packets. Sent to an address of its own machine, such a packet comes
//! back in over the loopback device and looks like the remote's: like its call,
//! which may be answered, or like an answer of a resolver, which is learned from.

use aya_ebpf::bindings::__sk_buff;
use egress_common::address::is_loopback;

use crate::{
    maps::LOCAL,
    resolver::is_trusted,
    skb::{Header, ReadHeader as _, Skb, is_on_loopback},
};

/// `PACKET_LOOPBACK`, include/uapi/linux/if_packet.h: the kernel's own copy of what leaves to a group.
const PACKET_LOOPBACK: u32 = 5;

/// True if a packet that arrives was sent in this network namespace.
#[inline(always)]
pub fn is_looped(skb: &Skb) -> bool {
    // SAFETY: the context is valid while the program runs.
    is_on_loopback(skb.raw) || unsafe { (*skb.raw).pkt_type == PACKET_LOOPBACK }
}

/// True if a packet was sent in this network namespace in the name of somebody who is not here.
#[inline(always)]
pub fn is_looped_and_foreign(skb: &Skb, header: Header) -> bool {
    is_looped(skb) && is_local(skb.raw, header.pack()) == 0
}

/// 1 if a packet's source is loopback, an address of the node, or the packet's own destination (an address of this
/// network namespace, which the node may not know). Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_local(raw: *mut __sk_buff, header: u64) -> u32 {
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let saddr = header.saddr(&skb);
    u32::from(is_loopback(&saddr) || LOCAL.get_ptr(&saddr).is_some() || saddr == header.daddr(&skb))
}

/// 1 if a packet's source is a trusted resolver. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_resolver(raw: *mut __sk_buff, header: u64) -> u32 {
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    u32::from(is_trusted(header.source(&skb), header.sport()))
}
