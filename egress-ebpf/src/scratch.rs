//! Per-CPU memory of what is too large for the stack.
//!
//! Slot 0 belongs to the hooks that receive packets. They run in softirq,
//! which does not nest; should a program find the slot in use all the same (a
//! test run that a softirq interrupts), it learns nothing and counts an alarm.
//! Slot 1 belongs to the programs that the agent runs, one at a time. Slot 2
//! belongs to the hooks that judge queries; one that finds it in use, because
//! it interrupts another, refuses its query, which is asked again.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use egress_common::{
    address::Address,
    dns::{AnswerReader, Message, NameReader},
    event::DnsCopy,
    learned::{GRANTS, Grant, LearnRequest, Learned},
    maps::Alias,
    policy::{Binding, NameRules},
};

use crate::record::opaque;

/// Slot of the hooks.
pub const HOOK: u32 = 0;
/// Slot of the agent's programs.
pub const AGENT: u32 = 1;

/// Slot of queries that leave, for policies that restrict them.
pub const QUERY: u32 = 2;

/// A new entry of `LEARNED` on its way into the map. Not a [`Learned`], whose
/// lock the kernel would not allow in a per-CPU map; the same layout.
#[repr(C)]
pub struct Fresh {
    /// Owner of the entry.
    pub owner: u64,
    lock: u64,
    /// Its grants.
    pub grants: [Grant; GRANTS],
}
const _: () = assert!(
    size_of::<Fresh>() == size_of::<Learned>()
        && core::mem::offset_of!(Fresh, grants) == core::mem::offset_of!(Learned, grants)
);

impl Fresh {
    /// The same bytes as the map wants them; the helper copies all but the lock.
    #[inline(always)]
    pub fn as_learned(&self) -> &Learned {
        // SAFETY: the layouts are equal, and any bytes are valid.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}

/// Sets of rules that an answer may teach under: those of its own name, now and after the switch, and those of the name
/// that it is an alias of, likewise. A power of two.
pub const SETS: u32 = 4;
/// Bit of a set's number: after the switch.
pub const NEXT: u32 = 1;
/// Bit of a set's number: by alias.
pub const BY_ALIAS: u32 = 2;

/// What lies in a slot.
#[repr(C)]
pub struct Scratch {
    /// 1 while a program uses the slot.
    pub busy: u64,
    /// Key of every hash.
    pub seed: u64,
    /// When the packet was met.
    pub now_ns: u64,
    /// Hash of the question that was asked; 0 when no query is known.
    pub asked: u64,
    /// When it was asked.
    pub asked_at_ns: u64,
    /// What judges the receiver now.
    pub current: Binding,
    /// What will judge it after the switch that is being prepared.
    pub next: Binding,
    /// Rules of the name: for each of [`SETS`], none when its first entry has kind 0.
    pub sets: [NameRules; SETS as usize],
    /// An alias on its way into the map.
    pub alias: Alias,
    /// What `learn` is to store.
    pub request: LearnRequest,
    /// A new entry on its way into the map.
    pub fresh: Fresh,
    /// Own key of `LOCAL` lookups.
    pub address: Address,
    /// Rule by which a policy in audit denies the name that [`dns_rules`](crate::dns::dns_rules) looked at last; 0 for none.
    pub auditor: u64,
    /// Addresses that were learned from the message.
    pub learned: u64,
    /// 1 when an address found no room.
    pub no_room: u64,
    /// Flags of the copy, `BPF_RB_NO_WAKEUP` or none.
    pub copy_flags: u64,
    /// The answer machine.
    pub answer: AnswerReader,
    /// The name machine.
    pub name: NameReader,
    /// Head of the copy for the agent; the message follows it at once.
    pub copy: DnsCopy,
    /// The message.
    pub message: Message,
}
const _: () = assert!(
    core::mem::offset_of!(Scratch, message)
        == core::mem::offset_of!(Scratch, copy) + size_of::<DnsCopy>()
);

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 3> = PerCpuArray::new();

impl Scratch {
    /// A set of rules.
    #[inline(always)]
    pub fn set(&mut self, which: u32) -> &mut NameRules {
        let index = opaque(which) & (SETS - 1);
        // SAFETY: the index is below SETS.
        unsafe { &mut *self.sets.as_mut_ptr().add(index as usize) }
    }

    /// Fills a set. Copied in place: a detour over the stack would not fit there.
    #[inline(always)]
    pub fn fill(&mut self, which: u32, rules: *const NameRules) {
        let set: *mut NameRules = self.set(which);
        // SAFETY: `rules` is a map value, and no set overlaps it.
        unsafe { core::ptr::copy_nonoverlapping(rules, set, 1) };
    }

    /// Whether a set has rules.
    #[inline(always)]
    pub fn has_rules(&mut self, which: u32) -> bool {
        let [first, ..] = &self.set(which).entries;
        first.kind != 0
    }

    /// Empties a set.
    #[inline(always)]
    pub fn clear(&mut self, which: u32) {
        let [first, ..] = &mut self.set(which).entries;
        first.kind = 0;
    }

    /// The binding that a set of rules belongs to.
    #[inline(always)]
    pub fn binding(&self, which: u32) -> Binding {
        if which & NEXT == 0 {
            self.current
        } else {
            self.next
        }
    }

    /// The slot on this CPU.
    #[inline(always)]
    pub fn get(slot: u32) -> Option<&'static mut Self> {
        let scratch = SCRATCH.get_ptr_mut(slot)?;
        // SAFETY: the value belongs to this CPU and, while `busy`, to this program.
        Some(unsafe { &mut *scratch })
    }
}
