//! Rules on their way into an entry: where they stand, what they open, and how many meet.

use std::path::Path;

use egress_common::policy::{EntryKind, PortRange, RuleEntry};

use super::error::{CompileError, Meeting};
use crate::{
    document::{Policy, RuleList},
    read::{Place, Report},
    vocabulary::{lifeline, ports_text},
};

/// Most rules that a message about a full entry lists.
const LISTED: usize = 20;

/// Most port ranges of one pattern or network that are kept, for the message that they are too many.
const MEETING: usize = 64;

/// The field of a rule that stands for others.
pub(super) const PRESET: &str = "preset";

/// One destination of one rule: where it stands.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    /// Identity of the rule.
    pub(super) id: u64,
    /// `None` for the lifeline.
    pub(super) policy: Option<&'a Policy>,
    pub(super) list: RuleList,
    /// Position of the rule in its list.
    pub(super) rule: usize,
    /// `names`, `cidrs` or `serviceTags`, or [`PRESET`].
    pub(super) field: &'static str,
    /// Position of the destination in its field.
    pub(super) position: usize,
    pub(super) line: usize,
}

impl Item<'_> {
    pub(super) fn place(&self) -> Place {
        let Some(policy) = self.policy else {
            return Place::file(Path::new(lifeline::POLICY));
        };
        let Self {
            rule,
            field,
            position,
            ..
        } = self;
        let list = self.list.name();
        let field = if *field == PRESET {
            format!("spec.{list}[{rule}].{field}")
        } else {
            format!("spec.{list}[{rule}].{field}[{position}]")
        };
        Place::field(&policy.file, self.line, field)
    }
}

/// A port range of an item: what becomes an entry.
#[derive(Clone, Copy)]
pub(super) struct Grant<'a> {
    pub(super) item: Item<'a>,
    pub(super) kind: EntryKind,
    pub(super) ports: PortRange,
}

impl Grant<'_> {
    const fn entry(&self) -> RuleEntry {
        RuleEntry {
            rule: self.item.id,
            ports: self.ports,
            kind: self.kind as u8,
            _pad: 0,
        }
    }
}

/// Grants in their order, up to [`MEETING`], so that no input makes the work quadratic.
#[derive(Clone, Default)]
pub(super) struct Grants<'a> {
    pub(super) list: Vec<Grant<'a>>,
    /// More were offered than fit: an error in any case.
    pub(super) is_over: bool,
}

impl<'a> Grants<'a> {
    /// Adds a grant unless `is_known` says of an earlier one that it makes this one useless.
    fn add(&mut self, grant: Grant<'a>, is_known: impl Fn(&Grant<'a>) -> bool) {
        if self.list.iter().any(is_known) {
            return;
        }
        if self.list.len() < MEETING {
            self.list.push(grant);
        } else {
            self.is_over = true;
        }
    }

    /// Adds a grant of a name, unless the same ports are there.
    pub(super) fn add_of_name(&mut self, grant: Grant<'a>) {
        self.add(grant, |known| known.ports == grant.ports);
    }

    /// Adds the grants of a shorter pattern.
    pub(super) fn extend_of_name(&mut self, shorter: &Self) {
        self.is_over |= shorter.is_over;
        for grant in &shorter.list {
            self.add_of_name(*grant);
        }
    }

    /// Adds a grant of a network, unless an earlier one decides for all its ports.
    pub(super) fn add_of_cidr(&mut self, grant: Grant<'a>) {
        self.add(grant, |known| {
            // What only an audit denies is told of what is allowed: neither makes the other useless.
            let is_same_side =
                (known.kind == EntryKind::Audited) == (grant.kind == EntryKind::Audited);
            let comes_first = is_same_side || known.kind.rank() < EntryKind::Allow.rank();
            // An address of the node is one for some senders only.
            let counts_for_all = known.kind != EntryKind::Local || grant.kind == EntryKind::Local;
            comes_first
                && counts_for_all
                && known.kind.rank() <= grant.kind.rank()
                && covers(&known.ports, &grant.ports)
        });
    }

    /// The grants of a network and those of the next network around it, which has those of the ones around itself.
    pub(super) fn with_those_around(&self, wider: Option<&Self>) -> Self {
        let mut union = Self::default();
        for kind in EntryKind::ORDER {
            let own = self.list.iter();
            let all = own.chain(wider.iter().flat_map(|wider| &wider.list));
            for grant in all.filter(|grant| grant.kind == kind) {
                union.add_of_cidr(*grant);
            }
        }
        // Grants around it that are over are told there; here they matter only if these fill the union too.
        let is_filled = union.list.len() >= MEETING;
        union.is_over |= self.is_over || is_filled && wider.is_some_and(|wider| wider.is_over);
        union
    }

    /// The entries, and a problem at the first grant that stands in a file if there are more than `max`.
    pub(super) fn entries(
        &self,
        max: usize,
        report: &mut Report,
        problem: impl FnOnce(Meeting) -> CompileError,
    ) -> impl Iterator<Item = RuleEntry> {
        let is_full = self.is_over || self.list.len() > max;
        if is_full && report.is_full() {
            report.count();
        } else if is_full {
            let written = self.list.iter().find(|grant| grant.item.policy.is_some());
            if let Some(grant) = written.or(self.list.first()) {
                report.add(grant.item.place(), problem(self.meeting(max)));
            }
        }
        self.list.iter().map(Grant::entry)
    }

    fn meeting(&self, max: usize) -> Meeting {
        let count = self.list.len();
        let mut told: Vec<(Place, Vec<PortRange>)> = Vec::new();
        for grant in &self.list {
            let place = grant.item.place();
            match told.last_mut().filter(|(last, _)| *last == place) {
                Some((_, ports)) => ports.push(grant.ports),
                None => told.push((place, vec![grant.ports])),
            }
        }
        let hidden = told.len().saturating_sub(LISTED);
        let mut rules: Vec<String> = told
            .iter()
            .take(LISTED)
            .map(|(place, ports)| format!("{place} ({})", ports_text(ports)))
            .collect();
        if hidden > 0 {
            rules.push(format!("and {hidden} more"));
        }
        Meeting {
            count: if self.is_over {
                format!("more than {count}")
            } else {
                count.to_string()
            },
            max,
            rules: rules.join(", "),
        }
    }
}

/// True if every flow that `inner` covers is covered by `outer`.
pub(super) const fn covers(outer: &PortRange, inner: &PortRange) -> bool {
    let proto = outer.proto == egress_common::policy::protocol::ANY || outer.proto == inner.proto;
    proto && outer.first <= inner.first && inner.last <= outer.last
}
