//! A compiled policy: what goes into the kernel's tries, and what the rule numbers mean.

use std::collections::HashMap;

use egress_common::{
    address::Address,
    policy::{CidrRules, NameRules, PortRange},
    verdict::Mode,
};

use super::names::Names;
use crate::{
    document::RuleList,
    vocabulary::{Cidr, Destination, Host, NamePattern, parse_name_pattern},
};

/// Where a rule number comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSource {
    /// `metadata.name` of the policy; `lifeline` for the lifeline.
    pub policy: String,
    /// List in the policy.
    pub list: RuleList,
    /// True if it stands in a policy in audit, beside policies that are enforced: it decides nothing.
    pub is_audited: bool,
    /// Position in the list, from 0.
    pub index: usize,
    /// The preset that it comes from.
    pub preset: Option<String>,
    /// The name pattern or CIDR as the user wrote it, or what the lifeline calls it.
    pub destination: String,
    /// The ports as the user wrote them; empty means any.
    pub ports: Vec<PortRange>,
    /// File, if it came from one.
    pub file: Option<std::path::PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
}

impl RuleSource {
    /// The name pattern that it is about; for display, since a service tag may look like one.
    #[must_use]
    pub fn pattern(&self) -> Option<NamePattern> {
        parse_name_pattern(&self.destination).ok()
    }
}

/// All policies that apply to one workload, compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// True if denials stand: the mode of the policies that decide.
    pub mode: Mode,
    /// Of `egress_common::policy`: `KEEP_PREEXISTING`, `HAS_DENIED_NAMES`, `ONLY_ALLOWED_QUERIES`, `HAS_AUDITORS`.
    pub flags: u8,
    /// Entries of the name trie.
    pub names: Names,
    /// Entries of the CIDR trie: address and prefix length in the common 128-bit form (an IPv4 /8 is /104).
    pub cidrs: HashMap<(Address, u8), CidrRules>,
    /// The sources of the rule numbers in the entries.
    pub rules: HashMap<u64, RuleSource>,
    /// The policies in audit beside those that decide, as they would decide by themselves.
    pub looking_on: Option<Box<Compiled>>,
    /// Allow rules of namespaces that ceilings leave less of.
    pub cuts: Vec<Cut>,
}

/// An allow rule of a namespace of which ceilings do not leave all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The rule, for one destination.
    pub rule: RuleSource,
    /// The ceilings that do not have all of it.
    pub ceilings: Vec<String>,
    /// The networks that it names, which those of a service tag are too; none of a rule for names.
    pub networks: Vec<Cidr>,
}

impl Cut {
    /// True if the rule would allow a destination by itself.
    #[must_use]
    pub fn covers(&self, destination: &Destination) -> bool {
        let ports = &self.rule.ports;
        let is_port = ports.is_empty()
            || ports
                .iter()
                .any(|range| range.covers(destination.proto, destination.port));
        let is_host = match &destination.host {
            Host::Name(name) => {
                self.networks.is_empty()
                    && self
                        .rule
                        .pattern()
                        .is_some_and(|pattern| pattern.covers(name))
            }
            Host::Address(address) => self.networks.iter().any(|cidr| cidr.holds(address)),
        };
        is_port && is_host
    }
}

impl Compiled {
    /// The rules of the patterns that cover `name` (lower case, without final dot), as the kernel finds them; `None` where
    /// they neither allow nor deny.
    #[must_use]
    pub fn rules_of_name(&self, name: &str) -> Option<&NameRules> {
        self.names.rules_of(name).filter(|rules| !rules.is_empty())
    }

    /// The rule by which a policy in audit denies `name`; 0 for none.
    #[must_use]
    pub fn auditor_of_name(&self, name: &str) -> u64 {
        self.names.rules_of(name).map_or(0, |rules| rules.auditor)
    }

    /// The rules of the longest prefix that covers `address`, as the kernel finds them.
    #[must_use]
    pub fn rules_of_address(&self, address: &Address) -> Option<&CidrRules> {
        (0..=128_u8).rev().find_map(|bits| {
            let network = Cidr::containing(address, bits);
            self.cidrs.get(&(*network.address(), bits))
        })
    }
}
