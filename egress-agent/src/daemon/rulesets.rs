//! Policies of the cluster, compiled for those that they select.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::shared::{NodeFacts, PolicyInForce, Rules, Ruleset};
use crate::{
    kube::{self, ClusterView, PolicyKey, PolicyObject},
    policy::{Catalog, Policy, PolicySet, compile},
};
use egress_common::verdict::Mode;

/// One state of a policy: its name, its uid and its generation at the API server.
type Version = (PolicyKey, String, i64);

/// Sets of policies, each compiled once.
#[derive(Debug, Default)]
pub(super) struct Rulesets {
    /// What they were compiled with; if it changes, so do all of them.
    made_with: Option<(Arc<NodeFacts>, Option<Mode>)>,
    by_versions: HashMap<Vec<Version>, Result<Arc<Ruleset>, String>>,
    policies: HashMap<PolicyKey, Checked>,
    /// Sets and policies that were asked for since the last tidying.
    used_sets: HashSet<Vec<Version>>,
    used_policies: HashSet<PolicyKey>,
}

/// A policy as it was checked last.
#[derive(Debug)]
struct Checked {
    uid: String,
    generation: i64,
    /// The last version that was right.
    policy: Option<Arc<Policy>>,
    /// What is wrong with the newest version.
    error: Option<String>,
}

impl Rulesets {
    /// Begins anew if what all rules are compiled with is not what it was.
    pub(super) fn compile_with(&mut self, facts: &Arc<NodeFacts>, mode: Option<Mode>) {
        let is_same = self
            .made_with
            .as_ref()
            .is_some_and(|(facts_before, mode_before)| {
                (Arc::ptr_eq(facts_before, facts) || **facts_before == **facts)
                    && *mode_before == mode
            });
        if is_same {
            return;
        }
        let tags = |facts: &NodeFacts| facts.service_tags.clone();
        let has_same_tags = self
            .made_with
            .as_ref()
            .is_some_and(|(before, _)| tags(before) == tags(facts));
        if !has_same_tags {
            // Rules with service tags are checked with the tags.
            self.policies.clear();
        }
        self.by_versions.clear();
        self.made_with = Some((Arc::clone(facts), mode));
    }

    /// The checked policies of these keys; of one that is wrong its last right version, or nothing.
    pub(super) fn policies_of(
        &mut self,
        view: &ClusterView,
        keys: &[&PolicyKey],
        catalog: &Catalog,
    ) -> Vec<Policy> {
        keys.iter()
            .filter_map(|key| {
                let object = view.policies.get(key)?;
                let policy = self.check(key, object, catalog)?;
                Some(Policy::clone(&policy))
            })
            .collect()
    }

    /// What a workload is judged by that these policies select: no policies restrict nothing.
    ///
    /// # Errors
    ///
    /// They cannot apply together.
    pub(super) fn rules_of(
        &mut self,
        view: &ClusterView,
        keys: &[&PolicyKey],
        catalog: &Catalog,
    ) -> Result<Rules, String> {
        if keys.is_empty() {
            return Ok(Rules::Open);
        }
        self.set_of(view, keys, catalog).map(Rules::Of)
    }

    /// A set of policies compiled; without policies everything but the lifeline is denied.
    ///
    /// # Errors
    ///
    /// They cannot apply together.
    pub(super) fn set_of(
        &mut self,
        view: &ClusterView,
        keys: &[&PolicyKey],
        catalog: &Catalog,
    ) -> Result<Arc<Ruleset>, String> {
        let versions = versions_of(view, keys);
        self.used_policies.extend(keys.iter().copied().cloned());
        if !self.by_versions.contains_key(&versions) {
            let set: PolicySet = self.policies_of(view, keys, catalog).into_iter().collect();
            let compiled = self.compiled(&set);
            self.by_versions.insert(versions.clone(), compiled);
        }
        let ruleset = self.by_versions.get(&versions).cloned();
        self.used_sets.insert(versions);
        ruleset.unwrap_or_else(|| Err("nothing is in force yet".to_owned()))
    }

    fn compiled(&self, set: &PolicySet) -> Result<Arc<Ruleset>, String> {
        let Some((facts, mode)) = &self.made_with else {
            return Err("nothing is in force yet".to_owned());
        };
        let compiled = compile(set, &facts.lifeline, *mode).map_err(|error| error.to_string())?;
        Ok(Arc::new(Ruleset {
            compiled: Arc::new(compiled),
            policies: set.policies().iter().map(PolicyInForce::of).collect(),
        }))
    }

    fn check(
        &mut self,
        key: &PolicyKey,
        object: &PolicyObject,
        catalog: &Catalog,
    ) -> Option<Arc<Policy>> {
        let known = self.policies.get(key);
        if let Some(known) = known
            && known.uid == object.uid
            && known.generation == object.generation
        {
            return known.policy.clone();
        }
        let last_right = known
            .filter(|known| known.uid == object.uid)
            .and_then(|known| known.policy.clone());
        let (policy, error) = match kube::checked(key, object, catalog) {
            Ok(policy) => (Some(Arc::new(policy)), None),
            Err(errors) => (last_right, Some(errors.to_string())),
        };
        let checked = Checked {
            uid: object.uid.clone(),
            generation: object.generation,
            policy: policy.clone(),
            error,
        };
        self.policies.insert(key.clone(), checked);
        policy
    }

    /// Forgets sets and policies that nobody asked for since the last time.
    pub(super) fn tidy(&mut self) {
        let sets = std::mem::take(&mut self.used_sets);
        self.by_versions
            .retain(|versions, _| sets.contains(versions));
        let policies = std::mem::take(&mut self.used_policies);
        self.policies.retain(|key, _| policies.contains(key));
    }

    /// What is wrong with policies that select something here.
    pub(super) fn errors(&self) -> BTreeSet<String> {
        let policies = self.policies.values();
        let of_policies = policies.filter_map(|checked| checked.error.clone());
        let of_sets = self
            .by_versions
            .values()
            .filter_map(|set| set.as_ref().err());
        of_policies.chain(of_sets.cloned()).collect()
    }
}

/// The states of these policies.
pub(super) fn versions_of(view: &ClusterView, keys: &[&PolicyKey]) -> Vec<Version> {
    let objects = keys.iter().filter_map(|key| {
        let object = view.policies.get(key)?;
        Some(((*key).clone(), object.uid.clone(), object.generation))
    });
    objects.collect()
}
