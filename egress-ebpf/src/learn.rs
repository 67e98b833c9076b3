//! Storing learned addresses. The only code that writes `LEARNED`.
//!
//! `egress_common::learned` says what readers rely on. Writers hold the entry's lock and compare its owner twice: before
//! they take the lock and under it. An entry that is doomed, or that belongs to somebody else by now, is left alone;
//! the answer goes to the agent, which learns it when the entry is gone.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use egress_common::{
    barrier::barrier,
    learned::{DOOMED, GRANTS, Grant, LearnRequest, Learned, LearnedKey, MANY_RULES, SWEEP_DELETE},
    maps::ScopeUse,
    tally::Tally,
};

use crate::{
    maps::{LEARNED, SCOPES},
    netns,
    record::{self, NO_EXIST},
    scratch::Scratch,
    skb::{Header, ReadHeader as _, Skb},
    time::now_ns,
};

/// `-EEXIST`.
const EEXIST: i32 = -17;

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// Stores the grant in a slot's `request`; returns a [`Tally`] as a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn learn_grant(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return Tally::LearnedFull as u32;
    };
    // A lesson of a namespace that is not known would count in every such one.
    if scratch.request.key.netns == 0 {
        return Tally::HolderUnknown as u32;
    }
    if let Some(entry) = LEARNED.get_ptr_mut(&scratch.request.key) {
        return add(entry, &scratch.request);
    }
    let outcome = make(scratch);
    if outcome != Tally::AddressLearned as u32 {
        return outcome;
    }
    match LEARNED.get_ptr_mut(&scratch.request.key) {
        Some(entry) => add(entry, &scratch.request),
        None => Tally::LearnedBusy as u32,
    }
}

/// Makes the entry of a slot's request, without grants.
#[inline(always)]
fn make(scratch: &mut Scratch) -> u32 {
    let Some(scope) = SCOPES.get_ptr_mut(scratch.request.key.scope_id) else {
        return Tally::LearnedFull as u32;
    };
    // SAFETY: a map value that is never removed while its scope is bound; other CPUs count, too, so that a scope may be
    // above its share by as many as there are CPUs.
    if unsafe { (*scope).learned } >= u64::from(unsafe { (*scope).learned_share }) {
        // SAFETY: as above.
        record::add(unsafe { &raw mut (*scope).learned_refused }, 1);
        return Tally::LearnedShareFull as u32;
    }
    scratch.fresh.owner = scratch.request.key.words();
    match LEARNED.insert(&scratch.request.key, scratch.fresh.as_learned(), NO_EXIST) {
        Ok(()) => {
            // SAFETY: as above.
            record::add(unsafe { &raw mut (*scope).learned }, 1);
            Tally::AddressLearned as u32
        }
        // Another CPU was faster.
        Err(EEXIST) => Tally::AddressLearned as u32,
        Err(_) => Tally::LearnedFull as u32,
    }
}

/// Prolongs a grant of an entry, or adds it.
#[inline(always)]
fn add(entry: *mut Learned, request: &LearnRequest) -> u32 {
    // SAFETY: the entry is a map value.
    if !unsafe { &*entry }.is_of(&request.key) {
        return Tally::LearnedBusy as u32;
    }
    let mut outcome = prolong(entry, request, 0);
    // No room for a slot apart: better to report too much or too little of an audit than to lose the address.
    if matches!(outcome, Tally::GrantsFull) {
        outcome = prolong(entry, request, 1);
        if matches!(outcome, Tally::AddressLearned) && request.grant.ports.require != 0 {
            record::tally(Tally::GrantsShared);
        }
    }
    outcome as u32
}

/// [`add`] under the entry's lock; in slots of its kind only, or `in_any`.
#[inline(never)]
fn prolong(entry: *mut Learned, request: &LearnRequest, in_any: u32) -> Tally {
    let wanted = &request.grant;
    let mut outcome = Tally::GrantsFull;
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*entry).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    let [first, second, third] = request.key.words();
    // SAFETY: the lock is held.
    let [x, y, z] = unsafe { (*entry).owner };
    let is_own = (x ^ first) | (y ^ second) | (z ^ third) == 0;
    // SAFETY: the lock is held.
    let grants = unsafe { &mut (*entry).grants };
    if !is_own {
        outcome = Tally::LearnedBusy;
    } else if let Some(held) = slot_for(grants, wanted, in_any != 0) {
        let wanted = again(wanted);
        if held.expires_at_ns == 0 {
            held.rule = wanted.rule;
            held.auditor = wanted.auditor;
            held.used_at_s = wanted.used_at_s;
            held.limit_s = wanted.limit_s;
            held.ports.proto = wanted.ports.proto;
            held.ports.require = wanted.ports.require;
            held.ports.first = wanted.ports.first;
            held.ports.last = wanted.ports.last;
            held.grace_s = wanted.grace_s;
            publish(held, wanted.expires_at_ns);
        } else {
            if held.limit_s < wanted.limit_s {
                held.limit_s = wanted.limit_s;
            }
            if held.grace_s < wanted.grace_s {
                held.grace_s = wanted.grace_s;
            }
            if held.used_at_s < wanted.used_at_s {
                held.used_at_s = wanted.used_at_s;
            }
            let rule = held.rule_with(wanted);
            if held.expires_at_ns < wanted.expires_at_ns {
                held.rule = rule;
                held.auditor = wanted.auditor;
                publish(held, wanted.expires_at_ns);
            } else if rule == MANY_RULES {
                held.rule = rule;
            }
        }
        outcome = Tally::AddressLearned;
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    outcome
}

/// The same reference, of which the compiler does not know that it is: it reads again what it would keep on the stack, where
/// 5.10 has no room left.
#[inline(always)]
fn again<T>(held: &T) -> &T {
    let mut pointer: *const T = held;
    // SAFETY: a register is moved to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer) };
    // SAFETY: it is the pointer of the reference.
    unsafe { &*pointer }
}

/// The slot of a grant: one that it shares, or the first that was never used, if it may have that.
#[inline(always)]
fn slot_for<'a>(
    grants: &'a mut [Grant; GRANTS],
    wanted: &Grant,
    in_any: bool,
) -> Option<&'a mut Grant> {
    let room = wanted.room(in_any);
    for (index, held) in grants.iter_mut().enumerate() {
        if held.expires_at_ns == 0 {
            return if index < room { Some(held) } else { None };
        }
        if held.shares_slot(again(wanted), in_any) {
            return Some(held);
        }
    }
    None
}

/// Writes the end, after everything else of the grant and of the entry.
#[inline(always)]
fn publish(grant: &mut Grant, expires_at_ns: u64) {
    barrier();
    // SAFETY: the pointer comes from a reference.
    unsafe { core::ptr::write_volatile(&raw mut grant.expires_at_ns, expires_at_ns) };
}

/// Keeps the address of a live flow open for new flows of its holder: notes the use. `header` is a packed
/// [`Header`](crate::skb::Header).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep_open(raw: *mut __sk_buff, base: u32, header: u64, scope_id: u32) -> u32 {
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let key = LearnedKey::new(scope_id, netns::of_frame(raw), header.daddr(&skb));
    match LEARNED.get_ptr_mut(&key) {
        Some(entry) => note_use(entry, &key, header.proto(), header.rule_port(), now_ns()),
        None => 0,
    }
}

/// Notes that an allowed flow uses an address now, where that was not noted lately: in every grant for the port.
#[inline(always)]
pub fn note_use(
    entry: *mut Learned,
    key: &LearnedKey,
    proto: u8,
    port: Option<u16>,
    now_ns: u64,
) -> u32 {
    let now_s = (now_ns / SECOND_NS) as u32;
    // SAFETY: the entry is a map value.
    let held = unsafe { &*entry };
    let mut is_due = false;
    for grant in &held.grants {
        if grant.expires_at_ns == 0 {
            break;
        }
        is_due |= grant.is_use_due(now_s) && grant.ports.covers(proto, port);
    }
    if !is_due || !held.is_of(key) {
        return 0;
    }
    write_use(entry, key, proto, port, now_s)
}

#[inline(always)]
fn write_use(
    entry: *mut Learned,
    key: &LearnedKey,
    proto: u8,
    port: Option<u16>,
    now_s: u32,
) -> u32 {
    let [first, second, third] = key.words();
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*entry).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let [x, y, z] = unsafe { (*entry).owner };
    let is_own = (x ^ first) | (y ^ second) | (z ^ third) == 0;
    // SAFETY: the lock is held.
    for held in unsafe { &mut (*entry).grants } {
        if !is_own || held.expires_at_ns == 0 {
            break;
        }
        if held.ports.covers(proto, port) && held.used_at_s < now_s {
            held.used_at_s = now_s;
        }
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    1
}

/// Dooms the entry of a slot's `request.key` if it ended and was used last before what the request says, or deletes it
/// if it is doomed: see [`LearnRequest`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sweep_entry(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let request = &scratch.request;
    let Some(entry) = LEARNED.get_ptr_mut(&request.key) else {
        return 0;
    };
    if request.grant.auditor != SWEEP_DELETE {
        return doom(entry, request);
    }
    // SAFETY: the entry is a map value.
    let [holder, ..] = unsafe { (*entry).owner };
    if holder != DOOMED || LEARNED.remove(&request.key).is_err() {
        return 0;
    }
    if let Some(scope) = SCOPES.get_ptr_mut(request.key.scope_id) {
        // SAFETY: the entry is a map value.
        uncount(unsafe { &raw mut (*scope).learned });
    }
    record::tally(Tally::LearnedSwept);
    1
}

/// Takes one from a count of [`ScopeUse`].
#[inline(always)]
pub fn uncount(count: *mut u64) {
    record::add(count, u64::MAX);
}

#[inline(never)]
fn doom(entry: *mut Learned, request: &LearnRequest) -> u32 {
    let before = &request.grant;
    let [first, second, third] = request.key.words();
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*entry).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let [x, y, z] = unsafe { (*entry).owner };
    let mut goes = (x ^ first) | (y ^ second) | (z ^ third) == 0;
    let mut is_filled = false;
    // SAFETY: the lock is held.
    for held in unsafe { &(*entry).grants } {
        if held.expires_at_ns == 0 {
            break;
        }
        is_filled = true;
        goes &= held.end_ns() <= before.expires_at_ns && held.used_at_s <= before.used_at_s;
    }
    // An entry without grants is one that another CPU is about to fill.
    goes &= is_filled;
    if goes {
        // SAFETY: the lock is held. Readers look at it last, so that they see a grant of theirs or nothing.
        unsafe { core::ptr::write_volatile(&raw mut (*entry).owner[0], DOOMED) };
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    u32::from(goes)
}

const _: () = assert!(size_of::<ScopeUse>().is_multiple_of(8));
