//! Names that allowed names are aliases of. The only code that writes `ALIASES`.
//!
//! Resolvers that follow aliases themselves ask for the target by its own name: its answer teaches under the rules of the
//! name that led there. Written and read as `egress_common::learned` says of `LEARNED`, but for the rules, which are
//! too many words to be read without the lock.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{
        bpf_skb_load_bytes, bpf_spin_lock, bpf_spin_unlock, generated::bpf_probe_read_kernel,
    },
};
use egress_common::{
    barrier::barrier,
    learned::DOOMED,
    maps::{
        ALIAS_BATCH, ALIAS_DELETE, ALIAS_DOOM, ALIAS_WORDS, Alias, AliasKey, AliasName,
        AliasRequest, alias_hash,
    },
    policy::NameRules,
    tally::Tally,
};

use crate::{
    learn::uncount,
    maps::{ALIASES, SCOPES},
    record::{self, NO_EXIST, forget, opaque},
    scratch::{AGENT, BY_ALIAS, Scratch},
    workload,
};

/// `-EEXIST`.
const EEXIST: i32 = -17;

/// Puts the name that was read last into a slot's `alias`, and its hash; returns 0 when no rule can match it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn alias_name_read(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let Some(keys) = workload::keys() else {
        return 0;
    };
    if scratch.name.is_unmatchable != 0 || scratch.name.text_bytes == 0 || scratch.netns == 0 {
        return 0;
    }
    // SAFETY: both are memory of this CPU's slot, of at least that many bytes.
    let error = unsafe {
        bpf_probe_read_kernel(
            (&raw mut scratch.fresh_alias.name).cast(),
            size_of::<AliasName>() as u32,
            scratch.name.text().cast(),
        )
    };
    if error != 0 {
        return 0;
    }
    scratch.alias_hash = alias_hash(&keys.name, &scratch.fresh_alias.name);
    1
}

/// Words of a set of rules.
const RULE_WORDS: usize = size_of::<NameRules>() / 8;

/// Copies rules word by word: at once, they would all wait on the stack.
#[inline(always)]
fn copy_rules(from: *const NameRules, to: *mut NameRules) {
    for index in 0..RULE_WORDS {
        // SAFETY: both have so many words, aligned to eight bytes.
        let word = unsafe { from.cast::<u64>().add(index).read_volatile() };
        // SAFETY: as above.
        unsafe { to.cast::<u64>().add(index).write_volatile(word) };
    }
}

/// True if the entry's name is the one in the slot. A loop whose state is in memory looks the same at each turn.
#[inline(always)]
fn has_name(alias: &Alias, name: &AliasName) -> bool {
    let held: *const u64 = alias.name.as_ptr();
    let wanted: *const u64 = name.as_ptr();
    let mut differ = 0;
    for index in 0..ALIAS_WORDS as u32 {
        let at = (opaque(index) & (ALIAS_WORDS as u32 - 1)) as usize;
        // SAFETY: the mask keeps it in the name; the read must not move before those of the rules.
        let held = unsafe { held.add(at).read_volatile() };
        // SAFETY: as above.
        differ |= held ^ unsafe { wanted.add(at).read_volatile() };
    }
    differ == 0
}

/// Finds the rules of a name that the name of [`alias_name_read`] is an alias of, and fills the set with them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_recall_alias(slot: u32, which: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let scope_id = scratch.binding(which).scope_id;
    // Most scopes have none.
    let Some(scope) = SCOPES.get_ptr(scope_id) else {
        return 0;
    };
    // SAFETY: a map value, and one number.
    if unsafe { (*scope).aliases } == 0 {
        return 0;
    }
    let key = AliasKey::new(scratch.alias_hash, scope_id, scratch.netns);
    let Some(alias) = ALIASES.get_ptr_mut(&key) else {
        return 0;
    };
    // SAFETY: the entry is a map value.
    if unsafe { core::ptr::read_volatile(&raw const (*alias).holder) } != key.holder() {
        return 0;
    }
    let set: *mut NameRules = scratch.set(which | BY_ALIAS);
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*alias).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let expires_at_ns = unsafe { (*alias).expires_at_ns };
    // SAFETY: the lock is held, and the set lies in this CPU's slot.
    copy_rules(unsafe { &raw const (*alias).rules }, set);
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    // After the copy: whose they were.
    barrier();
    // SAFETY: the entry is a map value.
    let alias = unsafe { &*alias };
    // SAFETY: the pointer comes from a reference.
    let holder = unsafe { core::ptr::read_volatile(&raw const alias.holder) };
    if expires_at_ns <= scratch.now_ns
        || holder != key.holder()
        || !has_name(alias, &scratch.fresh_alias.name)
    {
        scratch.clear(which | BY_ALIAS);
        return 0;
    }
    u32::from(scratch.has_rules(which | BY_ALIAS))
}

/// Notes that the name of [`alias_name_read`] is an alias, under a set of rules.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_note_alias(slot: u32, which: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let ttl_s = scratch.answer.ttl_s;
    let auditor = scratch.auditor_of(which);
    let rules = scratch.set(which);
    rules.auditor = auditor;
    let lifetime_ns = u64::from(rules.lifetime_s(ttl_s)).wrapping_mul(1_000_000_000);
    let rules: *const NameRules = rules;
    scratch.alias_ends_ns = scratch.now_ns.wrapping_add(lifetime_ns);
    let key = AliasKey::new(
        scratch.alias_hash,
        scratch.binding(which).scope_id,
        scratch.netns,
    );
    let outcome = store(scratch, &key, rules);
    if outcome != Tally::AddressLearned as u32 {
        record::tally_number(outcome);
    }
    if outcome == Tally::AliasShareFull as u32 {
        scratch.copy.refused |= egress_common::event::REFUSED_ALIASES;
    }
    u32::from(outcome == Tally::AddressLearned as u32)
}

/// Stores the alias whose name lies in the slot's `fresh_alias`; returns a [`Tally`] as a number, `AddressLearned` when
/// it is noted.
#[inline(always)]
fn store(scratch: &mut Scratch, key: &AliasKey, rules: *const NameRules) -> u32 {
    if ALIASES.get_ptr(key).is_none() {
        let outcome = make(scratch, key);
        if outcome != Tally::AddressLearned as u32 {
            return outcome;
        }
    }
    let Some(alias) = ALIASES.get_ptr_mut(key) else {
        return Tally::LearnedBusy as u32;
    };
    // SAFETY: the entry is a map value.
    let held = unsafe { &*alias };
    // SAFETY: the pointer comes from a reference.
    if unsafe { core::ptr::read_volatile(&raw const held.holder) } != key.holder() {
        return Tally::LearnedBusy as u32;
    }
    // Another name with the same hash: it stays, and this one is not noted.
    if !has_name(held, &scratch.fresh_alias.name) {
        return Tally::AliasesFull as u32;
    }
    fill(alias, key.holder(), rules, scratch.alias_ends_ns)
}

/// Makes an entry, without rules.
#[inline(always)]
fn make(scratch: &mut Scratch, key: &AliasKey) -> u32 {
    let Some(scope) = SCOPES.get_ptr_mut(key.scope_id) else {
        return Tally::AliasesFull as u32;
    };
    // SAFETY: a map value; other CPUs count, too.
    if unsafe { (*scope).aliases } >= u64::from(unsafe { (*scope).aliases_share }) {
        // SAFETY: as above.
        record::add(unsafe { &raw mut (*scope).aliases_refused }, 1);
        return Tally::AliasShareFull as u32;
    }
    scratch.fresh_alias.holder = key.holder();
    match ALIASES.insert(key, scratch.fresh_alias.as_alias(), NO_EXIST) {
        Ok(()) => {
            // SAFETY: as above.
            record::add(unsafe { &raw mut (*scope).aliases }, 1);
            Tally::AddressLearned as u32
        }
        Err(EEXIST) => Tally::AddressLearned as u32,
        Err(_) => Tally::AliasesFull as u32,
    }
}

/// Writes rules and end under the lock; the same rules are prolonged.
#[inline(never)]
fn fill(alias: *mut Alias, holder: u64, rules: *const NameRules, expires_at_ns: u64) -> u32 {
    let mut outcome = Tally::LearnedBusy;
    // The entry was made before: who sees its rules sees its name.
    barrier();
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*alias).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let held = unsafe { &mut *alias };
    if held.holder == holder {
        // SAFETY: the rules lie in this CPU's slot.
        let wanted = unsafe { &*rules };
        let ([first, ..], [new, ..]) = (&held.rules.entries, &wanted.entries);
        let is_same = first.rule == new.rule && held.rules.auditor == wanted.auditor;
        if !is_same {
            copy_rules(rules, &raw mut held.rules);
        }
        if !is_same || held.expires_at_ns < expires_at_ns {
            held.expires_at_ns = expires_at_ns;
        }
        outcome = Tally::AddressLearned;
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    outcome as u32
}

/// Does what the request in the agent's slot says; returns whether it was done.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn alias_requested(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let key = AliasKey::new(
        scratch.alias_request.key.name,
        scratch.alias_request.key.scope_id,
        scratch.alias_request.key.netns,
    );
    let action = scratch.alias_request.action;
    if action == ALIAS_DOOM {
        return match ALIASES.get_ptr_mut(&key) {
            Some(alias) => doom(alias, key.holder(), scratch.alias_request.expires_at_ns),
            None => 0,
        };
    }
    if action == ALIAS_DELETE {
        return delete(&key);
    }
    if key.netns == 0 {
        return 0;
    }
    for index in 0..ALIAS_WORDS {
        // SAFETY: both lie in the slot and have so many words.
        let word = unsafe {
            (&raw const scratch.alias_request.name)
                .cast::<u64>()
                .add(index)
                .read_volatile()
        };
        // SAFETY: as above.
        unsafe {
            (&raw mut scratch.fresh_alias.name)
                .cast::<u64>()
                .add(index)
                .write_volatile(word)
        };
    }
    scratch.alias_ends_ns = scratch.alias_request.expires_at_ns;
    let rules = &raw const scratch.alias_request.rules;
    let outcome = store(scratch, &key, rules);
    if outcome != Tally::AddressLearned as u32 {
        record::tally_number(outcome);
        return 0;
    }
    1
}

#[inline(always)]
fn delete(key: &AliasKey) -> u32 {
    let Some(alias) = ALIASES.get_ptr(key) else {
        return 0;
    };
    // SAFETY: the entry is a map value.
    if unsafe { (*alias).holder } != DOOMED || ALIASES.remove(key).is_err() {
        return 0;
    }
    if let Some(scope) = SCOPES.get_ptr_mut(key.scope_id) {
        // SAFETY: the entry is a map value.
        uncount(unsafe { &raw mut (*scope).aliases });
    }
    record::tally(Tally::AliasSwept);
    1
}

#[inline(never)]
fn doom(alias: *mut Alias, holder: u64, ended_before_ns: u64) -> u32 {
    let mut goes = false;
    // SAFETY: the entry is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*alias).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let held = unsafe { &mut *alias };
    // An end of 0 is one that another CPU is about to write.
    if held.holder == holder && held.expires_at_ns != 0 && held.expires_at_ns <= ended_before_ns {
        held.holder = DOOMED;
        goes = true;
    }
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    u32::from(goes)
}

/// Does what a batch of requests from byte `at` on says; returns how many were done.
#[inline(always)]
pub fn requests(raw: *mut __sk_buff, at: u32) -> i32 {
    let Some(scratch) = Scratch::get(AGENT) else {
        return 0;
    };
    // Counted in memory: in a register, each turn of the loop would be another one to the verifier.
    scratch.learned = 0;
    for index in 0..ALIAS_BATCH as u32 {
        let from = at.wrapping_add(index.wrapping_mul(size_of::<AliasRequest>() as u32));
        // SAFETY: the request lies in the slot and has that many bytes.
        let error = unsafe {
            bpf_skb_load_bytes(
                raw.cast(),
                from,
                (&raw mut scratch.alias_request).cast(),
                size_of::<AliasRequest>() as u32,
            )
        };
        if error != 0 {
            break;
        }
        scratch.learned = scratch
            .learned
            .wrapping_add(u64::from(alias_requested(AGENT)));
        forget();
    }
    scratch.learned as i32
}
