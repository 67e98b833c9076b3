//! Goes round the tables that workloads fill, and removes what is due: a little at each tick, whatever they hold.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use egress_common::{
    learned::{DOOMED, Learned, LearnedKey},
    maps::{Alias, AliasKey},
};

use super::{shared::Shared, time::now_ns, upkeep::forget_workloads};
use crate::datapath::{Datapath, DatapathError, Pages};

/// Time that a tick may spend on it: 2 % of one processor.
const BUDGET: Duration = Duration::from_millis(4);
/// A round begins at most this often, unless the table is full.
const ROUND: Duration = Duration::from_secs(10);
/// An entry stays this long after its end, so that a denial can say that it expired, and with which name.
const KEEP_EXPIRED_NS: u64 = 3_600 * 1_000_000_000;
/// An address that a flow used stays this long after the last use: the flow may live, and goes on after a change of the
/// policy only if its address is remembered.
const KEEP_USED_S: u64 = 24 * 3_600;

/// Where the round stands.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    began: Option<Instant>,
    at: Place,
    /// True if the table of learned addresses was full during this round.
    is_full: bool,
}

#[derive(Debug, Default)]
enum Place {
    /// Between two rounds.
    #[default]
    Rests,
    Learned(Pages<LearnedKey, Learned>),
    Aliases(Pages<AliasKey, Alias>),
    Scopes,
}

impl Sweep {
    /// Goes on for a tick. In a full table nothing that has ended is kept for its reason.
    pub(super) fn go_on(&mut self, shared: &Shared, is_full: bool) -> Result<(), DatapathError> {
        self.is_full |= is_full;
        if matches!(self.at, Place::Rests) {
            let is_due = self.began.is_none_or(|began| began.elapsed() >= ROUND);
            if !is_due && !self.is_full {
                return Ok(());
            }
            self.began = Some(Instant::now());
            self.at = Place::Learned(Pages::default());
        }
        let begin = Instant::now();
        let mut datapath = shared.datapath();
        let live = live_scopes(&datapath)?;
        while begin.elapsed() < BUDGET {
            self.at = match std::mem::take(&mut self.at) {
                Place::Rests => break,
                Place::Learned(pages) => self.learned(&mut datapath, &live, pages)?,
                Place::Aliases(pages) => aliases(&mut datapath, &live, pages)?,
                Place::Scopes => {
                    scopes(&mut datapath, &live)?;
                    if let Some(in_force) = shared.in_force() {
                        forget_workloads(&mut datapath, &in_force)?;
                    }
                    self.is_full = false;
                    Place::Rests
                }
            };
        }
        Ok(())
    }

    fn learned(
        &self,
        datapath: &mut Datapath,
        live: &HashSet<u32>,
        mut pages: Pages<LearnedKey, Learned>,
    ) -> Result<Place, DatapathError> {
        let Some(read) = datapath.learned_page(&mut pages)? else {
            return Ok(Place::Aliases(Pages::default()));
        };
        let now_ns = now_ns();
        let keep_ns = if self.is_full { 0 } else { KEEP_EXPIRED_NS };
        let ended_before_ns = now_ns.saturating_sub(keep_ns);
        let keep_used_s = if self.is_full { 0 } else { KEEP_USED_S };
        let used_before = (now_ns / 1_000_000_000).saturating_sub(keep_used_s);
        let used_before = u32::try_from(used_before).unwrap_or(u32::MAX);
        let (mut gone, mut ended) = (Vec::new(), Vec::new());
        for (key, entry) in &read {
            let [holder, ..] = entry.owner;
            let used = entry
                .grants
                .iter()
                .take_while(|grant| grant.expires_at_ns != 0);
            if !live.contains(&key.scope_id) {
                gone.push(*key);
            } else if holder == DOOMED
                || used.clone().count() > 0
                    && used.clone().all(|grant| {
                        grant.end_ns() <= ended_before_ns && grant.used_at_s <= used_before
                    })
            {
                ended.push(*key);
            }
        }
        if !gone.is_empty() {
            // No grant ends later than this: all of them go.
            datapath.sweep(&gone, u64::MAX, u32::MAX)?;
        }
        if !ended.is_empty() {
            datapath.sweep(&ended, ended_before_ns, used_before)?;
        }
        Ok(Place::Learned(pages))
    }
}

fn aliases(
    datapath: &mut Datapath,
    live: &HashSet<u32>,
    mut pages: Pages<AliasKey, Alias>,
) -> Result<Place, DatapathError> {
    let now_ns = now_ns();
    let Some(read) = datapath.aliases_page(&mut pages)? else {
        return Ok(Place::Scopes);
    };
    let (mut gone, mut ended) = (Vec::new(), Vec::new());
    for (key, alias) in &read {
        if !live.contains(&key.scope_id) {
            gone.push(*key);
        } else if alias.holder == DOOMED
            || alias.expires_at_ns != 0 && alias.expires_at_ns <= now_ns
        {
            ended.push(*key);
        }
    }
    if !gone.is_empty() {
        datapath.sweep_aliases(&gone, u64::MAX)?;
    }
    if !ended.is_empty() {
        datapath.sweep_aliases(&ended, now_ns)?;
    }
    Ok(Place::Aliases(pages))
}

/// Forgets the counts of scopes that are gone.
fn scopes(datapath: &mut Datapath, live: &HashSet<u32>) -> Result<(), DatapathError> {
    for scope in datapath.scopes()? {
        let is_empty = scope.usage.learned == 0 && scope.usage.aliases == 0;
        if is_empty && !live.contains(&scope.scope_id) {
            datapath.remove_scope(scope.scope_id)?;
        }
    }
    Ok(())
}

/// Every scope that something is judged by, or will be: also those of programs of another layout.
fn live_scopes(datapath: &Datapath) -> Result<HashSet<u32>, DatapathError> {
    let bound = datapath.workloads()?.into_iter();
    let bound = bound.flat_map(|(_, one)| [one.current, one.next]);
    let own = bound.map(|binding| binding.scope_id);
    Ok(own.chain(datapath.foreign_scope_ids()).collect())
}
