//! Programs that only the agent runs, with `BPF_PROG_TEST_RUN`: so that the
//! kernel stays the only writer of `LEARNED`.

use aya_ebpf::programs::TcContext;
use egress_common::{
    learned::{LEARN_BATCH, LearnRequest},
    packet::PacketBytes,
    tally::Tally,
};

use crate::{
    alias,
    learn::{learn_grant, sweep_entry},
    netns, record,
    scratch::{AGENT, Scratch},
    skb::Skb,
};

/// Bytes before the first request: the kernel wants a link-layer header, and reads no more of it than its type.
const HEAD_BYTES: u32 = 16;

/// Reads one request of the batch into the agent's slot.
#[inline(always)]
fn take(skb: &Skb, index: u32) -> bool {
    let at = HEAD_BYTES.wrapping_add(index.wrapping_mul(size_of::<LearnRequest>() as u32));
    let Some(bytes) = skb.load::<{ size_of::<LearnRequest>() }>(at) else {
        return false;
    };
    let Some(scratch) = Scratch::get(AGENT) else {
        return false;
    };
    // SAFETY: any bytes are a request, and the array has its size.
    scratch.request = unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) };
    scratch.request.key.scope_id != 0
}

/// Number of the network namespace in which the program is run: a run without traffic has a socket of its caller's
/// namespace (`bpf_prog_test_run_skb`, net/bpf/test_run.c).
#[inline(always)]
pub fn own_netns(ctx: &TcContext) -> i32 {
    netns::of_packet(ctx.skb.skb) as i32
}

/// Learns a batch of grants; returns how many were stored.
#[inline(always)]
pub fn learn(ctx: &TcContext) -> i32 {
    let skb = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    // Counted in memory: in a register, each turn of the loop would be another one to the verifier.
    let Some(scratch) = Scratch::get(AGENT) else {
        return 0;
    };
    scratch.learned = 0;
    for index in 0..LEARN_BATCH as u32 {
        if !take(&skb, index) {
            break;
        }
        let outcome = learn_grant(AGENT);
        if outcome == Tally::AddressLearned as u32 {
            record::tally(Tally::AddressPushed);
            scratch.learned = scratch.learned.wrapping_add(1);
        } else {
            record::tally_number(outcome);
        }
        record::forget();
    }
    scratch.learned as i32
}

/// Notes, dooms or deletes a batch of aliases; returns how many.
#[inline(always)]
pub fn aliases(ctx: &TcContext) -> i32 {
    alias::requests(ctx.skb.skb, HEAD_BYTES)
}

/// Dooms or deletes a batch of entries; returns how many.
#[inline(always)]
pub fn sweep(ctx: &TcContext) -> i32 {
    let skb = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    let mut swept = 0;
    for index in 0..LEARN_BATCH as u32 {
        if !take(&skb, index) {
            break;
        }
        swept += sweep_entry(AGENT) as i32;
    }
    swept
}
