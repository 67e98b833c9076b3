//! Storing learned addresses. The only code that writes `LEARNED`.
//!
//! Writers hold the entry's lock. A new slot is filled before its end is
//! written, which is what readers look at first; the ports of a used slot
//! never change; nor whether it is audited, unless no slot is left for both.
//! `sweep` deletes an entry whose grants have all ended; should one be prolonged
//! between its look and the deletion, it puts the entry back, and `learn` looks
//! once more whether what it wrote is still there: between the two, no grant is
//! lost.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use egress_common::{
    flow::LIVE_FLOW_NS,
    learned::{GRANTS, Grant, LearnRequest, Learned, LearnedKey},
    tally::Tally,
};

use crate::{
    maps::LEARNED,
    record::{self, NO_EXIST},
    scratch::Scratch,
    skb::{Header, ReadHeader as _, Skb},
    time::now_ns,
};

/// `-EEXIST`.
const EEXIST: i32 = -17;

/// Stores the grant in a slot's `request`; returns a [`Tally`] as a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn learn_grant(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return Tally::LearnedFull as u32;
    };
    let mut outcome = store(scratch);
    // Once more if the entry was swept away meanwhile.
    if outcome == Tally::AddressLearned as u32 && LEARNED.get_ptr(&scratch.request.key).is_none() {
        outcome = store(scratch);
    }
    outcome
}

#[inline(always)]
fn store(scratch: &mut Scratch) -> u32 {
    let request = &scratch.request;
    if let Some(entry) = LEARNED.get_ptr_mut(&request.key) {
        return add(entry, request);
    }
    scratch.fresh.owner = request.key.owner();
    let [first, rest @ ..] = &mut scratch.fresh.grants;
    *first = request.grant;
    for grant in rest {
        grant.expires_at_ns = 0;
    }
    match LEARNED.insert(&request.key, scratch.fresh.as_learned(), NO_EXIST) {
        Ok(()) => Tally::AddressLearned as u32,
        // Another CPU was faster.
        Err(EEXIST) => match LEARNED.get_ptr_mut(&request.key) {
            Some(entry) => add(entry, request),
            None => Tally::LearnedFull as u32,
        },
        Err(_) => Tally::LearnedFull as u32,
    }
}

/// Prolongs a grant of an entry, or adds it.
#[inline(always)]
fn add(entry: *mut Learned, request: &LearnRequest) -> u32 {
    let owner = request.key.owner();
    let mut outcome = prolong(entry, owner, &request.grant, 0);
    // No room for a slot apart: better to tell too much or too little of an audit than to lose the address.
    if matches!(outcome, Tally::GrantsFull) {
        outcome = prolong(entry, owner, &request.grant, 1);
    }
    outcome as u32
}

/// [`add`] under the entry's lock; in slots of its kind only, or `in_any`.
#[inline(never)]
fn prolong(entry: *mut Learned, owner: u64, wanted: &Grant, in_any: u32) -> Tally {
    let mut is_stored = false;
    let mut is_full = true;
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*entry).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held. An entry that was swept away meanwhile may
    // belong to another key by now: that key is not to get this grant.
    if unsafe { (*entry).owner } != owner {
        is_full = false;
    }
    // SAFETY: the lock is held.
    for held in unsafe { &mut (*entry).grants } {
        if !is_full {
            break;
        }
        if held.expires_at_ns == 0 {
            held.rule = wanted.rule;
            held.auditor = wanted.auditor;
            held.ports.proto = wanted.ports.proto;
            held.ports.first = wanted.ports.first;
            held.ports.last = wanted.ports.last;
            publish(held, wanted.expires_at_ns);
            is_stored = true;
            break;
        }
        if held.shares_slot(wanted, in_any != 0) {
            if held.expires_at_ns < wanted.expires_at_ns {
                held.rule = wanted.rule;
                held.auditor = wanted.auditor;
                publish(held, wanted.expires_at_ns);
            }
            is_stored = true;
            break;
        }
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    // An entry of another key: `learn_grant` looks again, and finds its own or none.
    if is_stored || !is_full {
        Tally::AddressLearned
    } else {
        Tally::GrantsFull
    }
}

/// Keeps the address of a live flow open for new flows of the scope: prolongs the grant that the flow rests on, if there
/// is one. `header` is a packed [`Header`](crate::skb::Header), `rule` the flow's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep_open(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    scope_id: u32,
    rule: u64,
) -> u32 {
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let key = LearnedKey::new(scope_id, header.daddr(&skb));
    let Some(entry) = LEARNED.get_ptr_mut(&key) else {
        return 0;
    };
    let owner = key.owner();
    let (proto, port) = (header.proto(), header.rule_port());
    let expires_at_ns = now_ns().wrapping_add(LIVE_FLOW_NS);
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*entry).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held; the entry may belong to another key by now.
    let is_own = unsafe { (*entry).owner } == owner;
    // SAFETY: the lock is held.
    for held in unsafe { &mut (*entry).grants } {
        if !is_own || held.expires_at_ns == 0 {
            break;
        }
        if held.rule == rule && held.ports.covers(proto, port) {
            if held.expires_at_ns < expires_at_ns {
                publish(held, expires_at_ns);
            }
            break;
        }
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    1
}

/// Writes the end, after everything else of the grant.
#[inline(always)]
fn publish(grant: &mut Grant, expires_at_ns: u64) {
    // SAFETY: the pointer comes from a reference.
    unsafe { core::ptr::write_volatile(&raw mut grant.expires_at_ns, expires_at_ns) };
}

/// Deletes the entry of a slot's `request.key` if all its grants ended before `request.grant.expires_at_ns`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sweep_entry(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let key = scratch.request.key;
    let ended_before_ns = scratch.request.grant.expires_at_ns;
    let Some(entry) = LEARNED.get_ptr_mut(&key) else {
        return 0;
    };
    // SAFETY: the entry is a map value; its ends only grow.
    let entry = unsafe { &*entry };
    if is_live(entry, ended_before_ns) {
        return 0;
    }
    if LEARNED.remove(&key).is_err() {
        return 0;
    }
    record::tally(Tally::LearnedSwept);
    // What was written between the look and the deletion is put back, grant by
    // grant: somebody may have made a new entry meanwhile.
    if is_live(entry, ended_before_ns) && entry.owner == key.owner() {
        for index in 0..GRANTS {
            let Some(grant) = entry.grants.get(index) else {
                break;
            };
            scratch.request.grant = *grant;
            if scratch.request.grant.expires_at_ns > ended_before_ns {
                learn_grant(slot);
            }
            record::forget();
        }
    }
    1
}

#[inline(always)]
fn is_live(entry: &Learned, now_ns: u64) -> bool {
    let mut is_live = false;
    for grant in &entry.grants {
        // SAFETY: the pointer comes from a reference; another CPU may prolong the grant.
        let expires_at_ns = unsafe { core::ptr::read_volatile(&raw const grant.expires_at_ns) };
        is_live |= expires_at_ns > now_ns;
    }
    is_live
}
