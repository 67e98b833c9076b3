//! Policies of the cluster, compiled for those that they select.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::shared::{NodeFacts, PolicyInForce, Rules, Ruleset};
use crate::{
    kube::{self, ClusterView, LastRight, PolicyKey, PolicyObject},
    policy::{Catalog, Policy, PolicyErrors, PolicySet, ServiceTagsFacts, Spec, compile},
};
use egress_common::verdict::Mode;

/// One state of a policy: its name, its uid and its generation at the API server.
type Version = (PolicyKey, String, i64);

/// Sets of policies, each compiled once.
#[derive(Debug, Default)]
pub(super) struct Rulesets {
    /// The facts and the mode that they were compiled with; if one changes, so do all of them.
    made_with: Option<(Arc<NodeFacts>, Option<Mode>)>,
    by_versions: HashMap<Vec<Version>, Result<Arc<Ruleset>, String>>,
    policies: HashMap<PolicyKey, Checked>,
    /// The service tags that policies were checked with.
    tags: Option<ServiceTagsFacts>,
    /// The last known good versions of those that are wrong.
    last_right: LastRight,
    /// Sets and policies that were asked for since the last tidying.
    used_sets: HashSet<Vec<Version>>,
    used_policies: HashSet<PolicyKey>,
}

/// A policy as it was checked last.
#[derive(Debug)]
struct Checked {
    object: Arc<PolicyObject>,
    /// It, or the last version that was right.
    policy: Option<Arc<Policy>>,
    /// The fault of the newest version.
    error: Option<String>,
}

impl Rulesets {
    /// Nothing compiled yet.
    pub(super) fn new(last_right: LastRight) -> Self {
        Self {
            last_right,
            ..Self::default()
        }
    }

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
        self.by_versions.clear();
        self.made_with = Some((Arc::clone(facts), mode));
    }

    /// The checked policies of these keys; of one that is wrong its last known good version, or nothing: of a ceiling
    /// one that is above nothing.
    pub(super) fn policies_of(
        &mut self,
        view: &ClusterView,
        keys: &[&PolicyKey],
        catalog: &Catalog,
    ) -> Vec<Policy> {
        let tags = catalog.service_tags().map(|tags| tags.facts());
        if self.tags.as_ref() != tags {
            // Rules that refer to them are checked with them.
            self.policies.clear();
            self.tags = tags.cloned();
        }
        keys.iter()
            .filter_map(|key| {
                let object = view.policies.get(key)?;
                match self.check(key, object, catalog) {
                    Some(policy) => Some(Policy::clone(&policy)),
                    None if object.spec.ceiling => lowest_ceiling(key, object, catalog),
                    None => None,
                }
            })
            .collect()
    }

    /// The rules for a workload that these policies select: no policies restrict nothing.
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
            // The check of a policy that alone is the set has compiled it.
            if !self.by_versions.contains_key(&versions) {
                let compiled = self.compiled(&set);
                self.by_versions.insert(versions.clone(), compiled);
            }
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
        object: &Arc<PolicyObject>,
        catalog: &Catalog,
    ) -> Option<Arc<Policy>> {
        if let Some(known) = self.policies.get(key)
            && known.object.uid == object.uid
            && known.object.generation == object.generation
        {
            return known.policy.clone();
        }
        let checked = kube::policy_of(key, object, catalog).and_then(|policy| {
            self.compile_alone(version_of(key, object), &policy)?;
            Ok(policy)
        });
        let (policy, error) = match checked {
            Ok(policy) => (Some(Arc::new(policy)), None),
            Err(errors) => (
                self.last_right_of(key, &object.uid, catalog),
                Some(errors.to_string()),
            ),
        };
        let checked = Checked {
            object: Arc::clone(object),
            policy: policy.clone(),
            error,
        };
        self.policies.insert(key.clone(), checked);
        policy
    }

    /// Compiles a policy by itself, as the set that it is for those whom no other one selects.
    ///
    /// # Errors
    ///
    /// It does not compile. One that only the lifeline leaves no room for is right: its sets say so.
    fn compile_alone(&mut self, version: Version, policy: &Policy) -> Result<(), PolicyErrors> {
        let alone = PolicySet::from_iter([policy.clone()]);
        match self.compiled(&alone) {
            Ok(ruleset) => {
                self.by_versions.insert(vec![version], Ok(ruleset));
            }
            Err(_) => {
                kube::compile_alone(policy)?;
            }
        }
        Ok(())
    }

    /// The last known good version of a policy whose newest is wrong.
    fn last_right_of(&self, key: &PolicyKey, uid: &str, catalog: &Catalog) -> Option<Arc<Policy>> {
        let known = self.policies.get(key);
        if let Some(known) = known.filter(|known| known.object.uid == uid)
            && known.error.is_none()
        {
            self.last_right.keep(key, Arc::clone(&known.object));
            return known.policy.clone();
        }
        let object = self.last_right.of(key, uid)?;
        let policy = kube::checked(key, &object, catalog).ok()?;
        Some(Arc::new(policy))
    }

    /// Forgets sets and policies that nobody asked for since the last time, but for those of the node; and what stays in
    /// force of policies that are right again, or gone.
    pub(super) fn tidy(&mut self, view: &ClusterView) {
        let of_node = view.policies_of_node().into_iter().cloned();
        self.used_policies.extend(of_node);
        let sets = std::mem::take(&mut self.used_sets);
        self.by_versions
            .retain(|versions, _| sets.contains(versions));
        let policies = std::mem::take(&mut self.used_policies);
        self.policies.retain(|key, _| policies.contains(key));
        let checked = &self.policies;
        self.last_right.retain(|key, object| {
            let newest = view.policies.get(key);
            let checked = checked.get(key);
            newest.is_some_and(|newest| newest.uid == object.uid)
                && checked.is_none_or(|checked| checked.error.is_some())
        });
    }

    /// How many of the policies that select something here are right, and how many are not.
    pub(super) fn counts(&self) -> (usize, usize) {
        let policies = self.policies.values();
        let wrong = policies.filter(|checked| checked.error.is_some()).count();
        (self.policies.len().saturating_sub(wrong), wrong)
    }

    /// The faults of policies that select something here.
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

/// A ceiling under which rules of namespaces open nothing: nobody knows what the one that is wrong was to leave.
fn lowest_ceiling(key: &PolicyKey, object: &PolicyObject, catalog: &Catalog) -> Option<Policy> {
    let spec = Spec {
        mode: object.spec.mode,
        ceiling: true,
        ..Spec::default()
    };
    let object = PolicyObject {
        spec,
        ..object.clone()
    };
    kube::checked(key, &object, catalog).ok()
}

/// The state of a policy.
fn version_of(key: &PolicyKey, object: &PolicyObject) -> Version {
    (key.clone(), object.uid.clone(), object.generation)
}

/// The states of these policies.
pub(super) fn versions_of(view: &ClusterView, keys: &[&PolicyKey]) -> Vec<Version> {
    let objects = keys.iter().filter_map(|key| {
        let object = view.policies.get(key)?;
        Some(version_of(key, object))
    });
    objects.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kube::Policies, policy::Lifeline};

    const RIGHT: &str = "{ subject: node, allow: [{ names: [api.example.com] }] }";
    const WRONG: &str = "{ subject: node, allow: [{ cidrs: [10.0.0.1/8] }] }";

    fn view(uid: &str, generation: i64, spec: &str) -> ClusterView {
        let object = PolicyObject {
            uid: uid.to_owned(),
            generation,
            spec: serde_yaml_ng::from_str(spec).unwrap(),
        };
        ClusterView {
            policies: Arc::new([("nodes".parse().unwrap(), Arc::new(object))].into()),
            ..ClusterView::default()
        }
    }

    fn facts() -> NodeFacts {
        NodeFacts {
            lifeline: Lifeline::new(),
            service_tags: None,
            resolvers: Vec::new(),
            found: Vec::new(),
            left_out: 0,
            search_domains: Vec::new(),
            local: Vec::new(),
        }
    }

    /// How many policies are in force for the node, and how many are wrong.
    fn in_force(rulesets: &mut Rulesets, view: &ClusterView) -> (usize, usize) {
        let keys = view.policies_of_node();
        let policies = rulesets.policies_of(view, &keys, &Catalog::default());
        for policy in &policies {
            assert_eq!(policy.allow.len(), 1);
        }
        let (_, wrong) = rulesets.counts();
        assert_eq!(rulesets.errors().len(), wrong);
        // As after every plan, of which the node's policies are no part.
        rulesets.tidy(view);
        (policies.len(), wrong)
    }

    fn kept(last_right: &LastRight) -> Option<i64> {
        let object = last_right.of(&"nodes".parse().unwrap(), "1");
        object.map(|object| object.generation)
    }

    #[test]
    fn the_last_right_version_stays_in_force_also_for_the_next_agent() {
        let last_right = LastRight::default();
        let mut rulesets = Rulesets::new(last_right.clone());
        assert_eq!(in_force(&mut rulesets, &view("1", 1, RIGHT)), (1, 0));
        assert_eq!(kept(&last_right), None);
        for generation in [2, 3] {
            let wrong = view("1", generation, WRONG);
            assert_eq!(in_force(&mut rulesets, &wrong), (1, 1));
            assert_eq!(kept(&last_right), Some(1));
        }

        let mut next = Rulesets::new(last_right.clone());
        assert_eq!(in_force(&mut next, &view("1", 3, WRONG)), (1, 1));
        // Without it there is nothing to put in force.
        let mut forgetful = Rulesets::default();
        assert_eq!(in_force(&mut forgetful, &view("1", 3, WRONG)), (0, 1));

        // Right again: it is not needed any more.
        assert_eq!(in_force(&mut next, &view("1", 4, RIGHT)), (1, 0));
        assert_eq!(kept(&last_right), None);
    }

    #[test]
    fn a_policy_is_compiled_once_by_its_check_and_as_the_only_one_of_a_set() {
        let mut rulesets = Rulesets::default();
        let facts = Arc::new(facts());
        rulesets.compile_with(&facts, None);
        let view = view("1", 1, RIGHT);
        let keys = view.policies_of_node();
        let policies = rulesets.policies_of(&view, &keys, &Catalog::default());
        assert_eq!(policies.len(), 1);
        let of_check = rulesets.by_versions[&versions_of(&view, &keys)].clone();
        let of_set = rulesets.set_of(&view, &keys, &Catalog::default());
        assert!(Arc::ptr_eq(&of_check.unwrap(), &of_set.unwrap()));
        // With other facts it is compiled anew.
        rulesets.compile_with(&facts, Some(Mode::Audit));
        let anew = rulesets.set_of(&view, &keys, &Catalog::default()).unwrap();
        assert_eq!(anew.compiled.mode, Mode::Audit);
    }

    #[test]
    fn under_a_ceiling_that_was_never_right_nothing_of_a_namespace_is_open() {
        let wrong = "{ ceiling: true, allow: [{ cidrs: [10.0.0.1/8] }] }";
        let mut rulesets = Rulesets::default();
        let view = view("1", 1, wrong);
        let keys: Vec<&PolicyKey> = view.policies.keys().collect();
        let policies = rulesets.policies_of(&view, &keys, &Catalog::default());
        assert_eq!(policies.len(), 1);
        assert!(policies[0].document.spec.ceiling && policies[0].allow.is_empty());
        assert_eq!(rulesets.errors().len(), 1);
    }

    #[test]
    fn a_policy_of_the_same_name_is_another_policy() {
        let object = Arc::clone(&view("1", 1, RIGHT).policies[&"nodes".parse().unwrap()]);
        let kept_before = Policies::from([("nodes".parse().unwrap(), object)]);
        let last_right = LastRight::from(kept_before);
        let mut rulesets = Rulesets::new(last_right.clone());
        assert_eq!(in_force(&mut rulesets, &view("2", 1, WRONG)), (0, 1));
        assert_eq!(kept(&last_right), None);
    }
}
