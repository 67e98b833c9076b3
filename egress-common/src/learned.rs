//! Learned addresses: who may use which, on which ports, until when.
//!
//! One entry for a scope and an address holds up to [`GRANTS`] grants, one for
//! each port range. Only kernel code writes entries, under the entry's lock
//! (`egress-ebpf`'s `learn`); the agent asks for writes by running a program.
//! Readers take no lock: the port range of a used slot never changes while the
//! entry lives, and its end only grows, so that a reader sees a grant or not,
//! never a mixture. A freed entry may be given to another key while a reader
//! still looks at it, which is why readers compare `owner` after reading.

use crate::{
    address::Address,
    hash::{mix, mix_address},
    policy::{NAME_ENTRIES, PortRange},
};

/// Key of `LEARNED`: an address that a scope's own lookup returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LearnedKey {
    /// Scope that resolved it.
    pub scope_id: u32,
    /// Padding, always zero: the kernel hashes every byte of a key.
    pub _pad: u32,
    /// The address.
    pub address: Address,
}
const _: () = assert!(size_of::<LearnedKey>() == 24 && align_of::<LearnedKey>() == 4);

impl LearnedKey {
    /// The key of an address in a scope.
    #[inline(always)]
    #[must_use]
    pub const fn new(scope_id: u32, address: Address) -> Self {
        Self {
            scope_id,
            _pad: 0,
            address,
        }
    }

    /// What the entry of this key carries as its `owner`.
    #[inline(always)]
    #[must_use]
    pub const fn owner(&self) -> u64 {
        mix_address(
            mix(0x6f77_6e65_7220_6f66, self.scope_id as u64),
            &self.address,
        )
    }
}

/// Most grants of one learned address.
pub const GRANTS: usize = NAME_ENTRIES;

/// One port range of a learned address with its own end. What names teach that a policy in audit denies lies apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Grant {
    /// When it ends, nanoseconds of the monotonic clock; 0 for a slot that was never used.
    pub expires_at_ns: u64,
    /// Identity of the rule that it rests on.
    pub rule: u64,
    /// Identity of the rule by which a policy in audit denies the name that taught it; 0 for none.
    pub auditor: u64,
    /// The ports.
    pub ports: PortRange,
    /// Padding, always zero.
    pub _pad: u16,
}
const _: () = assert!(size_of::<Grant>() == 32 && align_of::<Grant>() == 8);

impl Grant {
    /// Whether both can share a slot: the same ports, and, unless `in_any`, audited or not. Who asks for a name that
    /// nobody audits is not to be reported for another one that leads to the same address.
    #[inline(always)]
    #[must_use]
    pub const fn shares_slot(&self, other: &Self, in_any: bool) -> bool {
        self.ports.word() == other.ports.word()
            && (in_any || (self.auditor == 0) == (other.auditor == 0))
    }
}

/// A lock as `bpf_spin_lock` knows it. The kernel finds it by this very name in the value's type information.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(non_camel_case_types, reason = "the kernel looks for this name")]
pub struct bpf_spin_lock {
    /// Owned by the kernel.
    pub val: u32,
}

/// Value of `LEARNED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Learned {
    /// [`LearnedKey::owner`] of the key.
    pub owner: u64,
    /// Guards every write to `grants`.
    pub lock: bpf_spin_lock,
    /// Padding, always zero.
    pub _pad: u32,
    /// The grants; used slots come first.
    pub grants: [Grant; GRANTS],
}
const _: () = assert!(size_of::<Learned>() == 272 && align_of::<Learned>() == 8);

/// What a look at a learned address gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A live grant for the port, resting on this rule.
    Live(u64),
    /// The same, and every live one comes from a name that a policy in audit denies.
    Audited(u64),
    /// A grant for the port that has ended, resting on this rule.
    Expired(u64),
    /// Grants, but none for the port.
    OtherPorts,
    /// Nothing.
    Unknown,
}

impl Learned {
    /// Looks for a grant. An end is exclusive: at its very nanosecond the grant is dead.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, owner: u64, proto: u8, port: Option<u16>, now_ns: u64) -> Found {
        let mut found = Found::Unknown;
        for grant in &self.grants {
            if grant.expires_at_ns == 0 {
                break;
            }
            if grant.ports.covers(proto, port) {
                if grant.expires_at_ns > now_ns {
                    if grant.auditor == 0 {
                        found = Found::Live(grant.rule);
                        break;
                    }
                    found = Found::Audited(grant.rule);
                } else if !matches!(found, Found::Audited(_)) {
                    found = Found::Expired(grant.rule);
                }
            } else if matches!(found, Found::Unknown) {
                found = Found::OtherPorts;
            }
        }
        // SAFETY-relevant order: the owner is read after the grants (see the module's head).
        if read_owner(self) == owner {
            found
        } else {
            Found::Unknown
        }
    }

    /// Identity of the rule by which a policy in audit denies the names behind the live grants for the port; 0 for none.
    #[inline(always)]
    #[must_use]
    pub fn auditor(&self, owner: u64, proto: u8, port: Option<u16>, now_ns: u64) -> u64 {
        let mut auditor = 0;
        for grant in &self.grants {
            if grant.expires_at_ns == 0 {
                break;
            }
            if grant.expires_at_ns > now_ns && grant.ports.covers(proto, port) {
                auditor = grant.auditor;
            }
        }
        if read_owner(self) == owner {
            auditor
        } else {
            0
        }
    }
}

#[inline(always)]
#[expect(
    unsafe_code,
    reason = "the read must not move before the reads of the grants"
)]
fn read_owner(learned: &Learned) -> u64 {
    // SAFETY: the pointer comes from a reference.
    unsafe { core::ptr::read_volatile(&raw const learned.owner) }
}

/// Most grants in one [`LearnRequest`] batch.
pub const LEARN_BATCH: usize = 32;

/// What the agent asks the kernel to learn: one grant.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnRequest {
    /// Where.
    pub key: LearnedKey,
    /// What.
    pub grant: Grant,
}
const _: () = assert!(size_of::<LearnRequest>() == 56 && align_of::<LearnRequest>() == 8);

impl LearnRequest {
    /// The request as the kernel reads it: its memory, byte by byte, padding zero.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let Self { key, grant } = self;
        let fields: [&[u8]; 10] = [
            &key.scope_id.to_ne_bytes(),
            &[0; 4],
            &key.address,
            &grant.expires_at_ns.to_ne_bytes(),
            &grant.rule.to_ne_bytes(),
            &grant.auditor.to_ne_bytes(),
            &[grant.ports.proto, 0],
            &grant.ports.first.to_ne_bytes(),
            &grant.ports.last.to_ne_bytes(),
            &[0; 2],
        ];
        let mut bytes = [0; size_of::<Self>()];
        let fields = fields.iter().flat_map(|field| field.iter());
        for (slot, byte) in bytes.iter_mut().zip(fields) {
            *slot = *byte;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address::from_v4, policy::protocol::TCP};

    fn learned(ends: &[(u16, u64)]) -> (LearnedKey, Learned) {
        let key = LearnedKey::new(7, from_v4([192, 0, 2, 1]));
        let mut value = Learned {
            owner: key.owner(),
            ..Learned::default()
        };
        for (slot, (port, expires_at_ns)) in value.grants.iter_mut().zip(ends) {
            *slot = Grant {
                expires_at_ns: *expires_at_ns,
                rule: u64::from(*port),
                auditor: 0,
                ports: PortRange::new(TCP, *port, *port),
                _pad: 0,
            };
        }
        (key, value)
    }

    #[test]
    fn entry_is_dead_at_its_expiry_instant() {
        let (key, value) = learned(&[(443, 100)]);
        let at = |now| value.find(key.owner(), TCP, Some(443), now);
        assert_eq!(at(99), Found::Live(443));
        assert_eq!(at(100), Found::Expired(443));
        assert_eq!(at(101), Found::Expired(443));
    }

    #[test]
    fn each_port_keeps_its_own_end() {
        let (key, value) = learned(&[(443, 100), (80, 200)]);
        let at = |port| value.find(key.owner(), TCP, Some(port), 150);
        assert_eq!(at(443), Found::Expired(443));
        assert_eq!(at(80), Found::Live(80));
        assert_eq!(at(22), Found::OtherPorts);
    }

    #[test]
    fn the_auditor_is_that_of_a_live_grant_for_the_port() {
        let (key, mut value) = learned(&[(443, 100), (443, 200), (80, 200)]);
        (value.grants[0].auditor, value.grants[1].auditor) = (7, 8);
        let at = |port, now| value.auditor(key.owner(), TCP, Some(port), now);
        assert_eq!((at(443, 150), at(443, 200), at(80, 150)), (8, 0, 0));
        assert_eq!(value.auditor(key.owner() ^ 1, TCP, Some(443), 150), 0);
    }

    #[test]
    fn grants_share_a_slot_by_ports_and_by_whether_they_are_audited() {
        let grant = Grant {
            ports: PortRange::new(TCP, 443, 443),
            ..Grant::default()
        };
        let audited = Grant {
            auditor: 7,
            ..grant
        };
        assert!(grant.shares_slot(&Grant { rule: 9, ..grant }, false));
        assert!(audited.shares_slot(
            &Grant {
                auditor: 8,
                ..grant
            },
            false
        ));
        assert!(!grant.shares_slot(&audited, false));
        assert!(grant.shares_slot(&audited, true));
        let ports = PortRange::new(TCP, 443, 444);
        assert!(!grant.shares_slot(&Grant { ports, ..grant }, true));
    }

    #[test]
    fn an_entry_of_another_key_grants_nothing() {
        let (_, value) = learned(&[(443, 100)]);
        let other = LearnedKey::new(8, from_v4([192, 0, 2, 1]));
        assert_eq!(value.find(other.owner(), TCP, Some(443), 1), Found::Unknown);
    }
}
