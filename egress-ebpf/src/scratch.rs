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
    hello::HelloReader,
    learned::{GRANTS, Grant, LearnRequest, Learned},
    maps::{Alias, AliasName, AliasRequest},
    policy::{Binding, NAME_ENTRIES, NameRules},
    stream::Framer,
};

use crate::record::{add, opaque};

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
    pub owner: [u64; 3],
    lock: u64,
    /// Its grants: nobody writes here, they are none.
    grants: [Grant; GRANTS],
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

/// A new entry of `ALIASES` on its way into the map; likewise.
#[repr(C)]
pub struct FreshAlias {
    /// Its holder.
    pub holder: u64,
    /// Its name.
    pub name: AliasName,
    lock: u64,
    /// Nobody writes here: it has neither an end nor rules.
    nothing: [u64; 1 + size_of::<NameRules>() / 8],
}
const _: () = assert!(
    size_of::<FreshAlias>() == size_of::<Alias>()
        && core::mem::offset_of!(FreshAlias, nothing)
            == core::mem::offset_of!(Alias, expires_at_ns)
);

impl FreshAlias {
    /// The same bytes as the map wants them; the helper copies all but the lock.
    #[inline(always)]
    pub fn as_alias(&self) -> &Alias {
        // SAFETY: the layouts are equal, and any bytes are valid.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}

/// Sets of rules that an answer may teach under: those of its own name, of the name that it is a noted alias of, and of
/// the first two other owners on its chain that have rules; each now and after the switch. A power of two.
pub const SETS: u32 = 8;
/// Bit of a set's number: after the switch.
pub const NEXT: u32 = 1;
/// Number of the set by alias, now.
pub const BY_ALIAS: u32 = 2;
/// Number of the first set of other owners, now; the second one follows.
pub const OF_OWNER: u32 = 4;
/// From one set to the next that counts at the same time.
pub const STEP: u32 = 2;

/// The content of a slot.
#[repr(C)]
pub struct Scratch {
    /// How many programs use the slot or try to: [`Scratch::claim`].
    pub busy: u64,
    /// Key of every hash.
    pub seed: u64,
    /// When the packet was met.
    pub now_ns: u64,
    /// Cost of the message so far, in units of [`ANSWER_WORK`](egress_common::dns::ANSWER_WORK).
    pub work: u64,
    /// Where in a query of a stream.
    pub framer: Framer,
    /// The rest of the stream's segment: where it begins in the packet, and how long it is.
    pub part_at: u32,
    /// See `part_at`.
    pub part_bytes: u32,
    /// Sequence number behind the segment.
    pub part_end: u32,
    /// The binding that judges the receiver now.
    pub current: Binding,
    /// The binding that will judge it after the switch that is being prepared.
    pub next: Binding,
    /// Rules of the name: for each of [`SETS`], none when its first entry has kind 0.
    pub sets: [NameRules; SETS as usize],
    /// Link of the chain at which each set joined: it counts for what lies behind that link.
    pub links: [u32; SETS as usize],
    /// An alias on its way into the map, or the name of one that is looked for.
    pub fresh_alias: FreshAlias,
    /// Hash of that name.
    pub alias_hash: u64,
    /// When that alias ends.
    pub alias_ends_ns: u64,
    /// The agent's request about an alias.
    pub alias_request: AliasRequest,
    /// The entry that `learn` is to store.
    pub request: LearnRequest,
    /// A new entry on its way into the map.
    pub fresh: Fresh,
    /// Own key of `LOCAL` lookups.
    pub address: Address,
    /// Rule by which a policy in audit denies the name that [`dns_rules`](crate::dns::dns_rules) looked at last; 0 for none.
    pub auditor: u64,
    /// The last such rule for a name on the chain, now and after the switch.
    pub chain_auditors: [u64; 2],
    /// 1 when a name on the chain is denied, now and after the switch.
    pub denied: [u64; 2],
    /// 1 when what the message teaches has to be learned by the agent.
    pub left_to_agent: u64,
    /// The receiver's network namespace.
    pub netns: u32,
    /// Padding.
    pub _pad: u32,
    /// Addresses that were learned from the message.
    pub learned: u64,
    /// 1 when an address found no room.
    pub no_room: u64,
    /// Flags of the copy, `BPF_RB_NO_WAKEUP` or none.
    pub copy_flags: u64,
    /// The machine of hellos.
    pub hello: HelloReader,
    /// When the connection of the hello began.
    pub hello_begun_at_ns: u64,
    /// Rule that allows the name of the hello; 0 for none.
    pub hello_rule: u64,
    /// A reason as a number: why the name is refused; 0 for not.
    pub hello_reason: u32,
    /// Port that the hello goes to.
    pub hello_port: u32,
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

    /// True if a set has rules.
    #[inline(always)]
    pub fn has_rules(&mut self, which: u32) -> bool {
        let [first, ..] = &self.set(which).entries;
        first.kind != 0
    }

    /// True if a set has rules that count on a way: see [`AnswerReader::way`].
    #[inline(always)]
    pub fn counts_on(&mut self, which: u32, way: u32) -> bool {
        let index = (opaque(which) & (SETS - 1)) as usize;
        let link = match self.links.get(index) {
            Some(link) => *link & 15,
            None => return false,
        };
        way >> link & 1 != 0 && self.has_rules(which)
    }

    /// Says at which link of the chain a set joined.
    #[inline(always)]
    pub fn join_at(&mut self, which: u32, link: u32) {
        let index = (opaque(which) & (SETS - 1)) as usize;
        if let Some(slot) = self.links.get_mut(index) {
            *slot = link;
        }
    }

    /// Empties a set.
    #[inline(always)]
    pub fn clear(&mut self, which: u32) {
        let [first, ..] = &mut self.set(which).entries;
        first.kind = 0;
    }

    /// True if two sets have the same rules.
    #[inline(always)]
    pub fn has_same(&mut self, one: u32, other: u32) -> bool {
        let one = core::ptr::from_ref(self.set(one));
        let other = core::ptr::from_ref(self.set(other));
        // SAFETY: both lie in the slot.
        let (one, other) = unsafe { (&(*one).entries, &(*other).entries) };
        let mut differ = 0;
        for index in 0..NAME_ENTRIES {
            let (Some(one), Some(other)) = (one.get(index), other.get(index)) else {
                return false;
            };
            differ |= one.rule ^ other.rule | one.ports.word() ^ other.ports.word();
            differ |= u64::from(one.kind ^ other.kind);
            if one.kind == 0 {
                break;
            }
        }
        differ == 0
    }

    /// True if a name on the chain is denied, now (0) or after the switch.
    #[inline(always)]
    pub fn is_denied(&self, when: u32) -> bool {
        let [now, next] = self.denied;
        (if when & NEXT == 0 { now } else { next }) != 0
    }

    /// Notes that a name on the chain is denied.
    #[inline(always)]
    pub fn deny(&mut self, when: u32) {
        let [now, next] = &mut self.denied;
        *(if when & NEXT == 0 { now } else { next }) = 1;
    }

    /// Notes the auditor of a name on the chain.
    #[inline(always)]
    pub fn note_auditor(&mut self, when: u32) {
        let auditor = self.auditor;
        let [now, next] = &mut self.chain_auditors;
        *(if when & NEXT == 0 { now } else { next }) = auditor;
    }

    /// The auditor of what a set teaches: that of a name on the chain, else that of the rules themselves.
    #[inline(always)]
    pub fn auditor_of(&mut self, which: u32) -> u64 {
        let [now, next] = self.chain_auditors;
        let of_chain = if which & NEXT == 0 { now } else { next };
        if of_chain != 0 {
            of_chain
        } else {
            self.set(which).auditor
        }
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
        // SAFETY: the value belongs to this CPU and, once claimed, to this program.
        Some(unsafe { &mut *scratch })
    }

    /// Takes the slot for this program, until [`Self::release`]; false where a program that this one interrupts has it. Of
    /// two that interrupt each other here, at most one gets it.
    #[inline(always)]
    pub fn claim(&mut self) -> bool {
        let busy = &raw mut self.busy;
        add(busy, 1);
        // SAFETY: a map value; aligned, loaded whole.
        if unsafe { busy.read_volatile() } == 1 {
            return true;
        }
        add(busy, u64::MAX);
        false
    }

    /// Gives the slot back, as the last thing that a program does with it: whoever interrupts this one from here on writes
    /// what it likes there.
    #[inline(always)]
    pub fn release(&mut self) {
        add(&raw mut self.busy, u64::MAX);
    }
}
