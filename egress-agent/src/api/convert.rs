//! Turns facts of the kernel's side into those that travel.

use super::{
    Timestamp,
    model::{Check, HookStatus, MapStatus, PutBackStatus},
};
use crate::datapath::{self, AttachedHook, MapFill, PutBack};

impl From<PutBack> for PutBackStatus {
    fn from(put_back: PutBack) -> Self {
        let counts = put_back.counts.into_iter();
        let (last_at, last) = put_back.last.unzip();
        Self {
            counts: counts
                .map(|(what, count)| (what.to_owned(), count))
                .collect(),
            last_at: last_at.map(Timestamp::from),
            last,
        }
    }
}

impl From<&AttachedHook> for HookStatus {
    fn from(hook: &AttachedHook) -> Self {
        Self {
            hook: hook.hook.name().into(),
            target: hook.target.clone(),
            kind: hook.kind.into(),
            attached: hook.is_attached,
            pinned: hook.is_pinned,
            program_tag: hook.program_tag.clone(),
            trouble: hook.trouble.clone(),
        }
    }
}

impl From<&MapFill> for MapStatus {
    fn from(map: &MapFill) -> Self {
        Self {
            name: map.name.into(),
            entries: map.entries,
            capacity: map.capacity,
        }
    }
}

impl From<datapath::Check> for Check {
    fn from(check: datapath::Check) -> Self {
        Self {
            name: check.name.into(),
            ok: check.ok,
            found: check.found,
            needed: check.needed.into(),
            fix: check.fix.into(),
        }
    }
}
