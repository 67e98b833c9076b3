//! Records that the kernel sends to the agent through ring buffers.

use crate::{address::Address, hello::SERVER_NAME_BYTES};

/// The sending process: the one that connects, or that made the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Process {
    /// Its number (thread group), in the machine's own PID namespace; 0 where it is not known.
    pub pid: u32,
    /// Its name, ended by zeroes.
    pub command: [u8; 16],
}
const _: () = assert!(size_of::<Process>() == 20 && align_of::<Process>() == 4);

impl Process {
    /// Not known.
    pub const UNKNOWN: Self = Self {
        pid: 0,
        command: [0; 16],
    };
}

/// A verdict, as the ring buffer `EVENTS` carries it: denials and first packets of allowed flows, rate-limited.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictEvent {
    /// When, nanoseconds of the clock since boot.
    pub at_ns: u64,
    /// Cgroup of the sender; 0 where it is not known.
    pub cgroup_id: u64,
    /// Rule that decided; 0 for none.
    pub rule: u64,
    /// Source address; zero at connect, where it is not chosen yet.
    pub saddr: Address,
    /// Destination address.
    pub daddr: Address,
    /// Scope of the sender.
    pub scope_id: u32,
    /// Policy that judged.
    pub policy_id: u16,
    /// Source port, host byte order; 0 where there is none.
    pub sport: u16,
    /// Destination port, host byte order; 0 where there is none.
    pub dport: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// A [`Hook`](crate::verdict::Hook) as a number.
    pub hook: u8,
    /// A [`Verdict`](crate::verdict::Verdict) as a number.
    pub verdict: u8,
    /// A [`Reason`](crate::verdict::Reason) as a number.
    pub reason: u8,
    /// Padding, always zero.
    pub _pad: [u8; 2],
    /// Number of the sender's network namespace; 0 where it is not known.
    pub netns: u32,
    /// The sender's process: of a refused `connect()` always; of packets where processes are noted.
    pub process: Process,
    /// Padding, always zero.
    pub _pad2: u32,
}
const _: () = assert!(size_of::<VerdictEvent>() == 104 && align_of::<VerdictEvent>() == 8);

/// The name that a connection gives itself, in the ring buffer `EVENTS`, before the verdict on it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameEvent {
    /// Destination address.
    pub daddr: Address,
    /// Network namespace of the sender; 0 where it is not known.
    pub netns: u32,
    /// Source port, host byte order.
    pub sport: u16,
    /// Destination port, host byte order.
    pub dport: u16,
    /// Bytes of the name.
    pub name_bytes: u32,
    /// Padding, always zero.
    pub _pad: u32,
    /// The name, as the hello has it.
    pub name: [u8; SERVER_NAME_BYTES],
}
const _: () = assert!(size_of::<NameEvent>() == 288 && align_of::<NameEvent>() == 4);
// The agent distinguishes them by their size.
const _: () = assert!(size_of::<NameEvent>() > size_of::<VerdictEvent>());

/// Most events per second and CPU of one kind (denied, allowed), beyond those that every scope has for itself
/// ([`OWN_EVENTS_PER_SECOND`]). Events above are counted as suppressed.
pub const EVENTS_PER_SECOND: u64 = 1000;

/// Most events of one scope, per second, CPU and kind: a flood is reported often enough, and costs its scope.
pub const SCOPE_EVENTS_PER_SECOND: u64 = 500;

/// Events of a scope, per second, CPU and kind, that no other scope can take away.
pub const OWN_EVENTS_PER_SECOND: u64 = 20;

/// Scopes with budgets of their own; two whose numbers differ by a multiple of this share theirs. A power of two. Numbers
/// are given one after the other, so that on a node with fewer workloads few do.
pub const EVENT_SCOPES: u32 = 1024;

/// Capacity of `EVENT_BUDGETS`: two kinds for each scope, and for all.
pub const EVENT_BUDGETS_CAPACITY: u32 = EVENT_SCOPES * 2 + 2;

/// Where the budget of a scope, or of all scopes, is.
#[inline(always)]
#[must_use]
pub const fn budget_index(scope_id: Option<u32>, is_allowed: bool) -> u32 {
    let scope = match scope_id {
        Some(scope_id) => scope_id & (EVENT_SCOPES - 1),
        None => EVENT_SCOPES,
    };
    scope.wrapping_mul(2).wrapping_add(is_allowed as u32)
}

/// Value of `EVENT_BUDGETS`, one for each CPU, scope and kind: a window of one second.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EventBudget {
    /// Number of the second that `used` counts in.
    pub second: u64,
    /// Events sent in that second.
    pub used: u64,
}
const _: () = assert!(size_of::<EventBudget>() == 16);

impl EventBudget {
    /// Takes one event out of a scope's budget and, beyond its own part, out of that of all; `false` without room.
    #[inline(always)]
    #[must_use]
    pub fn admits(&mut self, all: &mut Self, second: u64) -> bool {
        if self.second != second {
            *self = Self { second, used: 0 };
        }
        if self.used >= SCOPE_EVENTS_PER_SECOND {
            return false;
        }
        if self.used >= OWN_EVENTS_PER_SECOND {
            if all.second != second {
                *all = Self { second, used: 0 };
            }
            if all.used >= EVENTS_PER_SECOND {
                return false;
            }
            all.used = all.used.wrapping_add(1);
        }
        self.used = self.used.wrapping_add(1);
        true
    }
}

/// Bit of [`DnsCopy::refused`]: an address was refused, because its scope is at its share or the table is full.
pub const REFUSED_LEARNED: u8 = 1;
/// Bit of [`DnsCopy::refused`]: an alias was refused likewise.
pub const REFUSED_ALIASES: u8 = 2;

/// Head of a copied DNS message or TCP segment in the ring buffer `DNS_COPIES`; `payload_bytes` bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsCopy {
    /// When, nanoseconds of the clock since boot.
    pub at_ns: u64,
    /// Cookie of the receiving socket; the same for all parts of one stream.
    pub cookie: u64,
    /// The resolver that answered.
    pub resolver: Address,
    /// Scope of the receiver.
    pub scope_id: u32,
    /// Policy of the receiver.
    pub policy_id: u16,
    /// Port of the receiver, host byte order.
    pub port: u16,
    /// TCP only: sequence number of the first payload byte, host byte order.
    pub sequence: u32,
    /// TCP only: the sequence number that the socket expected next, host byte order.
    pub expected_sequence: u32,
    /// Bytes of the whole message or segment.
    pub total_bytes: u32,
    /// Where in the message this part begins.
    pub offset_bytes: u32,
    /// Bytes that follow this head.
    pub payload_bytes: u32,
    /// A [`Tally`](crate::tally::Tally) as a number: the kernel's outcome for the answer.
    pub outcome: u8,
    /// IANA protocol number: UDP or TCP.
    pub proto: u8,
    /// [`REFUSED_LEARNED`], [`REFUSED_ALIASES`]: the tables in which the answer's scope had no room.
    pub refused: u8,
    /// Padding, always zero.
    pub _pad: u8,
    /// Number of the receiver's network namespace; 0 where it is not known.
    pub netns: u32,
    /// Port of the resolver, host byte order.
    pub resolver_port: u16,
    /// Padding, always zero.
    pub _pad2: u16,
}
const _: () = assert!(size_of::<DnsCopy>() == 72 && align_of::<DnsCopy>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_its_scope_and_leaves_every_other_one_its_own() {
        let mut all = EventBudget::default();
        let sent = |budget: &mut EventBudget, all: &mut EventBudget, tries: u64, second| {
            (0..tries).filter(|_| budget.admits(all, second)).count() as u64
        };
        let mut flooding = [EventBudget::default(); 10];
        let mut polite = EventBudget::default();
        for second in [7, 8] {
            let mut total = 0;
            for scope in &mut flooding {
                let one = sent(scope, &mut all, 100_000, second);
                assert!(
                    (OWN_EVENTS_PER_SECOND..=SCOPE_EVENTS_PER_SECOND).contains(&one),
                    "{one}"
                );
                total += one;
            }
            assert_eq!(total, EVENTS_PER_SECOND + 10 * OWN_EVENTS_PER_SECOND);
            assert_eq!(
                sent(&mut polite, &mut all, OWN_EVENTS_PER_SECOND, second),
                OWN_EVENTS_PER_SECOND
            );
            assert!(!polite.admits(&mut all, second));
        }
    }

    #[test]
    fn every_budget_has_a_place_of_its_own() {
        let mut places: std::vec::Vec<u32> = (0..EVENT_SCOPES)
            .map(Some)
            .chain([None])
            .flat_map(|scope| [budget_index(scope, false), budget_index(scope, true)])
            .collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..EVENT_BUDGETS_CAPACITY));
        assert_eq!(
            budget_index(Some(5), true),
            budget_index(Some(5 + EVENT_SCOPES), true)
        );
    }
}
