//! The entries of the name trie, and their lookup as the kernel does it.

use std::collections::HashMap;

use egress_common::{
    name::{NameKey, below_key, ending_key, exact_key, label_key},
    policy::{NameEntry, NameRules},
};

use crate::vocabulary::{NamePattern, Star};

/// Where names with one ending are looked up further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// The rules of every name with this ending.
    rules: NameRules,
    /// Number of a set; 0 for none.
    set: u32,
    /// Bytes behind the first label of the names that the set is about, dots included.
    tail_bytes: usize,
}

impl Node {
    /// A node without a set.
    pub(crate) const fn plain(rules: NameRules) -> Self {
        Self {
            rules,
            set: 0,
            tail_bytes: 0,
        }
    }

    fn entry(&self) -> NameEntry {
        NameEntry {
            rules: self.rules,
            labels: self.set,
            // A name has at most 253 bytes.
            tail_bytes: u32::try_from(self.tail_bytes).unwrap_or(u32::MAX),
        }
    }
}

/// The entries of the name trie, each with the union of all rules that cover it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Rules of one name; empty where a set would say something else of it.
    exact: HashMap<String, NameRules>,
    /// Of the names below a name.
    below: HashMap<String, Node>,
    /// Of the names that end in a text which begins inside the first label.
    ending: HashMap<String, Node>,
    /// The beginnings of first labels, by set; the first one has the number 1.
    sets: Vec<HashMap<String, NameRules>>,
}

impl Names {
    /// No entries, with room for so many names and names that others are below.
    pub(crate) fn with_capacity(exact: usize, below: usize) -> Self {
        Self {
            exact: HashMap::with_capacity(exact),
            below: HashMap::with_capacity(below),
            ..Self::default()
        }
    }

    pub(crate) fn add_exact(&mut self, name: String, rules: NameRules) {
        self.exact.insert(name, rules);
    }

    pub(crate) fn add_below(&mut self, name: String, node: Node) {
        self.below.insert(name, node);
    }

    /// Adds the set of the patterns below `parent` whose first label ends in `suffix`; `rules` are those of every name there.
    pub(crate) fn add_set(
        &mut self,
        parent: &str,
        suffix: &str,
        rules: NameRules,
        set: HashMap<String, NameRules>,
    ) {
        self.sets.push(set);
        let node = Node {
            rules,
            // The trie has room for far fewer.
            set: u32::try_from(self.sets.len()).unwrap_or(u32::MAX),
            tail_bytes: parent.len().saturating_add(1),
        };
        if suffix.is_empty() {
            self.below.insert(parent.to_owned(), node);
        } else {
            self.ending.insert(format!("{suffix}.{parent}"), node);
        }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let sets = self.sets.iter().map(HashMap::len);
        sets.chain([self.exact.len(), self.below.len(), self.ending.len()])
            .fold(0, usize::saturating_add)
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every entry's rules.
    pub fn rules(&self) -> impl Iterator<Item = &NameRules> {
        let nodes = self.below.values().chain(self.ending.values());
        let exact = self.exact.values().chain(nodes.map(|node| &node.rules));
        exact.chain(self.sets.iter().flat_map(HashMap::values))
    }

    /// The entries as the kernel stores them.
    pub fn entries(&self, policy_id: u16) -> impl Iterator<Item = (NameKey, NameEntry)> {
        let exact = self.exact.iter().map(move |(name, rules)| {
            let entry = Node::plain(*rules).entry();
            (exact_key(policy_id, name.as_bytes()), entry)
        });
        let below = self.below.iter().map(move |(name, node)| {
            let key = below_key(policy_id, name.as_bytes());
            (key, node.entry())
        });
        let ending = self.ending.iter().map(move |(text, node)| {
            let key = ending_key(policy_id, text.as_bytes());
            (key, node.entry())
        });
        let sets = (1_u32..).zip(&self.sets).flat_map(move |(number, set)| {
            set.iter().map(move |(text, rules)| {
                let entry = Node::plain(*rules).entry();
                (label_key(policy_id, number, text.as_bytes()), entry)
            })
        });
        exact.chain(below).chain(ending).chain(sets)
    }

    /// The rules of a name (lower case, without final dot), as the kernel finds them; they may neither allow nor deny.
    #[must_use]
    pub fn rules_of(&self, name: &str) -> Option<&NameRules> {
        match self.exact.get(name) {
            Some(rules) => Some(rules),
            None => self.rules_of_ending(name),
        }
    }

    /// The rules of every name that a pattern covers; `None` if no rule has this very pattern.
    #[must_use]
    pub fn rules_of_pattern(&self, pattern: &NamePattern) -> Option<&NameRules> {
        let name = pattern.name.as_str();
        match &pattern.star {
            Star::None => self.exact.get(name),
            Star::Below => self.below.get(name).map(|node| &node.rules),
            Star::Label { prefix, suffix } => {
                let node = if suffix.is_empty() {
                    self.below.get(name)
                } else {
                    self.ending.get(&format!("{suffix}.{name}"))
                };
                self.set(node?)?.get(prefix)
            }
        }
    }

    fn set(&self, node: &Node) -> Option<&HashMap<String, NameRules>> {
        let index = usize::try_from(node.set).ok()?.checked_sub(1)?;
        self.sets.get(index)
    }

    fn rules_of_ending(&self, name: &str) -> Option<&NameRules> {
        let node = self.longest_ending(name)?;
        let label = name.split('.').next().unwrap_or_default();
        let tail_bytes = name.len().saturating_sub(label.len());
        let set = self.set(node).filter(|_| node.tail_bytes == tail_bytes);
        let of_label = set.and_then(|set| {
            let mut heads = (0..=label.len()).rev().filter_map(|to| label.get(..to));
            heads.find_map(|head| set.get(head))
        });
        Some(of_label.unwrap_or(&node.rules))
    }

    fn longest_ending(&self, name: &str) -> Option<&Node> {
        let mut rest = name;
        loop {
            if !self.ending.is_empty() {
                let label = rest.split('.').next().unwrap_or_default();
                let ends = (0..label.len()).filter_map(|from| rest.get(from..));
                let found = ends.filter_map(|end| self.ending.get(end)).next();
                if found.is_some() {
                    return found;
                }
            }
            (_, rest) = rest.split_once('.')?;
            if let Some(node) = self.below.get(rest) {
                return Some(node);
            }
        }
    }
}
