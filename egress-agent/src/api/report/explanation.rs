//! Explanations: a verdict, the rule behind it, and what lies behind a denial.

use std::net::IpAddr;

use egress_common::{
    address::{Address, is_loopback},
    decision::Decision,
    learned::Grant,
    policy::{Binding, ONLY_ALLOWED_QUERIES, RuleEntry},
    verdict::Reason,
};

use super::{cause::Cause, rule::rule_text};
use crate::{
    api::model::{AddressVerdict, CauseReport, Explanation, RuleReport},
    dns::{Refusal, RefusalKind, SeenName},
    policy::{
        Compiled, Cut, Destination, Host, Nearness, RuleSource, address_text, port_range_text,
        telling,
    },
};

/// Most addresses that one sentence names.
const TOLD: usize = 3;

const NS_PER_S: u64 = 1_000_000_000;

/// Facts that an agent knows beyond the policy.
#[derive(Clone, Debug)]
pub struct ExplainFacts {
    /// Now, nanoseconds of the clock since boot.
    pub now_ns: u64,
    /// Name of the scope that would send.
    pub scope: String,
    /// How it is bound.
    pub binding: Binding,
    /// The address that is asked for, or those that the scope resolved the name to.
    pub addresses: Vec<AddressFacts>,
    /// Where else the name, or a name of the address, is resolved now.
    pub elsewhere: Vec<Elsewhere>,
    /// Answers for the name, or with the address, that taught the scope nothing.
    pub refusals: Vec<Refusal>,
}

/// The kernel's decision on an address, and what is known of it.
#[derive(Clone, Debug)]
pub struct AddressFacts {
    /// The address.
    pub address: Address,
    /// The kernel's decision.
    pub decision: Decision,
    /// Grants that the scope has learned for it, live or ended.
    pub grants: Vec<Grant>,
    /// Names that the scope resolved to it.
    pub names: Vec<SeenName>,
    /// True if the scope resolved the name to it, rather than somebody else or by a refused answer.
    pub is_own: bool,
}

/// A live address of a name in another scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Name of the scope.
    pub scope: String,
    /// The name.
    pub name: String,
    /// The address.
    pub address: Address,
}

/// Explains what a policy decides about a destination: with `facts` what the kernel decides now, without them for a
/// workload that has just resolved the name.
#[must_use]
pub fn explanation(
    compiled: &Compiled,
    destination: &Destination,
    facts: Option<&ExplainFacts>,
) -> Explanation {
    let decision = decision(compiled, destination, facts);
    let mut causes = Causes {
        compiled,
        destination,
        facts,
        found: Vec::new(),
        add: None,
    };
    let mut rule = compiled.rule_of(&decision);
    if decision.reason.is_audited() {
        rule = causes.audited(&decision);
    } else if !decision.reason.allows() {
        causes.find(&decision);
    }
    let Causes { found, add, .. } = causes;
    // Below a ceiling one more rule of a namespace would open nothing.
    let is_bounded = found.iter().any(|told| told.cause == Cause::Ceiling.name());
    let add = add.filter(|_| !is_bounded);
    let mode = facts.map_or(compiled.mode, |facts| facts.binding.mode());
    Explanation {
        destination: destination.to_string(),
        default_port: destination.is_default_port,
        scope: facts.map(|facts| facts.scope.clone()),
        mode: mode.name().into(),
        verdict: decision.verdict.name().into(),
        reason: decision.reason.name().into(),
        words: decision.reason.words().into(),
        rule: rule.map(rule_report),
        ports: open_ports(compiled, &destination.host),
        addresses: facts
            .map(|facts| address_verdicts(destination, facts))
            .unwrap_or_default(),
        causes: found,
        add,
    }
}

/// The decision: for a name with several addresses, the one that says most.
fn decision(
    compiled: &Compiled,
    destination: &Destination,
    facts: Option<&ExplainFacts>,
) -> Decision {
    let offline = compiled.judge(destination, &[]);
    let Some(facts) = facts else {
        return offline;
    };
    if facts.binding.policy_id == 0 {
        return Decision::without_rule(Reason::NoPolicy, &facts.binding);
    }
    let all = || facts.addresses.iter();
    let own = telling(all().filter(|one| one.is_own).map(|one| one.decision));
    // An address that a refused answer names may be loopback, which says nothing of the name.
    let others = all().filter(|one| !one.is_own && !is_loopback(&one.address));
    own.or_else(|| telling(others.map(|one| one.decision)))
        .unwrap_or_else(|| {
            // Nobody has resolved it: what a policy says of all addresses is all that counts.
            let of_names = [
                Reason::NameRule,
                Reason::AwaitsName,
                Reason::Quic,
                Reason::PortNotAllowed,
            ];
            if of_names.contains(&offline.reason) {
                Decision::without_rule(Reason::NoRule, &facts.binding)
            } else {
                Decision::new(offline.reason, offline.rule, &facts.binding)
            }
        })
}

fn address_verdicts(destination: &Destination, facts: &ExplainFacts) -> Vec<AddressVerdict> {
    let verdict = |one: &AddressFacts| {
        let open = one
            .grants
            .iter()
            .filter(|grant| grant.ports.covers(destination.proto, destination.port))
            .map(|grant| grant.expires_at_ns.saturating_sub(facts.now_ns))
            .max()
            .filter(|left_ns| *left_ns > 0);
        AddressVerdict {
            address: address_text(&one.address),
            names: one.names.iter().map(|seen| seen.name.to_string()).collect(),
            verdict: one.decision.verdict.name().into(),
            reason: one.decision.reason.name().into(),
            expires_in_s: open.map(|left_ns| left_ns.div_ceil(NS_PER_S)),
        }
    };
    facts.addresses.iter().map(verdict).collect()
}

/// The rule in one line, and where it stands.
#[must_use]
pub fn rule_report(rule: &RuleSource) -> RuleReport {
    RuleReport {
        rule: rule_text(rule),
        policy: rule.policy.clone(),
        destination: rule.destination.clone(),
        file: rule.file.clone(),
        line: rule.line,
    }
}

/// The ports that rules open to a host.
fn open_ports(compiled: &Compiled, host: &Host) -> Vec<String> {
    let texts = |entries: &[RuleEntry]| {
        let used = entries.iter().take_while(|entry| entry.kind != 0);
        let open = used.filter(|entry| entry.opens());
        open.map(|entry| port_range_text(&entry.ports)).collect()
    };
    match host {
        Host::Name(name) => compiled
            .rules_of_name(name)
            .map(|rules| texts(&rules.entries)),
        Host::Address(address) => compiled
            .rules_of_address(address)
            .map(|rules| texts(&rules.entries)),
    }
    .unwrap_or_default()
}

/// Looks for what lies behind a denial.
struct Causes<'a> {
    compiled: &'a Compiled,
    destination: &'a Destination,
    facts: Option<&'a ExplainFacts>,
    found: Vec<CauseReport>,
    add: Option<String>,
}

impl<'a> Causes<'a> {
    fn tell(&mut self, cause: Cause, words: String, rule: Option<&RuleSource>) {
        self.found.push(CauseReport {
            cause: cause.name().into(),
            words,
            advice: cause.advice().into(),
            rule: rule.map(rule_report),
        });
    }

    /// The names that lead to the destination, where that is an address.
    fn names_there(&self) -> Vec<String> {
        match &self.destination.host {
            Host::Name(_) => Vec::new(),
            Host::Address(address) => self.names_of(address),
        }
    }

    /// Tells what passes although a policy in audit denies it; returns the rule of that policy.
    fn audited(&mut self, decision: &Decision) -> Option<&'a RuleSource> {
        let compiled = self.compiled;
        let names = self.names_there();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let on_address = self.facts.iter().flat_map(|facts| &facts.addresses);
        let mut of_addresses = on_address.filter_map(|one| {
            let host = Host::Address(one.address);
            compiled.auditor_of(
                &Destination {
                    host,
                    ..*self.destination
                },
                &[],
            )
        });
        let auditor = compiled.auditor_of(self.destination, &names);
        let auditor = auditor.or_else(|| of_addresses.next());
        let allowing = compiled
            .rule_of(decision)
            .map_or_else(|| "a rule".to_owned(), rule_text);
        let words = format!("{allowing} allows it, but a policy in audit denies it");
        self.tell(Cause::AuditedRule, words, auditor);
        auditor
    }

    /// Tells of a rule that would allow it, were its policy enforced.
    fn allowed_in_audit(&mut self) {
        let Some(others) = &self.compiled.looking_on else {
            return;
        };
        let names = self.names_there();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let judged = others.judge(self.destination, &names);
        if judged.reason.allows()
            && let Some(rule) = others.rule_of(&judged)
        {
            let words = format!(
                "policy {} allows it, but is in audit: it opens nothing beside enforced ones",
                rule.policy
            );
            self.tell(Cause::AllowedInAudit, words, Some(rule));
        }
    }

    /// Tells of rules of namespaces that would allow it, were it not for a ceiling.
    fn cut_by_ceilings(&mut self) {
        let compiled = self.compiled;
        let names = self.names_there();
        let named = names.into_iter().map(|name| Destination {
            host: Host::Name(name),
            ..*self.destination
        });
        let asked: Vec<Destination> = named.chain([self.destination.clone()]).collect();
        let covers = |cut: &&Cut| {
            let mut covered = asked.iter().filter(|asked| cut.covers(asked));
            covered.any(|asked| {
                let is_denied = matches!(&asked.host, Host::Name(name)
                    if compiled.rules_of_name(name).is_some_and(|rules| rules.deny != 0));
                !is_denied && !compiled.judge(asked, &[]).reason.passes()
            })
        };
        for cut in compiled.cuts.iter().filter(covers).take(TOLD) {
            let ceilings = cut.ceilings.join(", ");
            let words = format!(
                "{} allows it, but is bounded by the ceiling of ClusterEgressPolicy {ceilings}, which does not",
                rule_text(&cut.rule)
            );
            self.tell(Cause::Ceiling, words, Some(&cut.rule));
        }
    }

    fn find(&mut self, decision: &Decision) {
        if decision.reason == Reason::DeniedCidr {
            let rule = self.compiled.rule_of(decision);
            let what = rule.map_or("its network", |rule| rule.destination.as_str());
            let words = format!("a deny rule covers {what}");
            self.tell(Cause::DenyRule, words, rule);
        } else if decision.reason == Reason::HeldOff {
            self.tell(Cause::BeingRead, Cause::BeingRead.words().into(), None);
        } else {
            self.allowed_in_audit();
            self.cut_by_ceilings();
            match &self.destination.host {
                Host::Name(name) => self.of_name(name),
                Host::Address(address) => self.of_address(*address),
            }
        }
    }

    /// Why an address is denied: by its networks, and by the names that lead there.
    fn of_address(&mut self, address: Address) {
        self.near_rules(self.destination, |how| how == Nearness::OtherPorts);
        let names = self.names_of(&address);
        for name in &names {
            self.of_name(name);
        }
        if !names.is_empty() {
            return;
        }
        if self.facts.is_some() && self.found.is_empty() {
            let address = address_text(&address);
            let words = format!("no name that the scope resolved leads to {address}");
            self.tell(Cause::NoName, words, None);
        }
        self.near_rules(self.destination, |how| how != Nearness::OtherPorts);
        if self.found.is_empty() {
            self.nothing_near(self.destination);
        }
        self.add = Some(line_for(self.destination));
    }

    /// Names that lead to an address: for the scope itself, by answers that it may not believe, and elsewhere.
    fn names_of(&self, address: &Address) -> Vec<String> {
        let Some(facts) = self.facts else {
            return Vec::new();
        };
        let own = facts
            .addresses
            .iter()
            .filter(|one| one.address == *address)
            .flat_map(|one| &one.names)
            .map(|seen| seen.name.to_string());
        let refused = facts.refusals.iter().map(|one| one.name.clone());
        let elsewhere = facts.elsewhere.iter().map(|one| one.name.clone());
        let mut names: Vec<String> = Vec::new();
        for name in own.chain(refused).chain(elsewhere) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.truncate(TOLD);
        names
    }

    /// Why a name is denied: no rule allows it, or what the rule's name taught.
    fn of_name(&mut self, name: &str) {
        let asked = Destination {
            host: Host::Name(name.to_owned()),
            ..*self.destination
        };
        let offline = self.compiled.judge(&asked, &[]);
        if offline.reason.passes() {
            let rule = self.compiled.rule_of(&offline);
            self.of_resolution(name, rule);
            return;
        }
        let before = self.found.len();
        self.near_rules(&asked, |_| true);
        if self.found.len() == before {
            self.nothing_near(&asked);
        }
        let rules = self.compiled.rules_of_name(name);
        if self.compiled.flags & ONLY_ALLOWED_QUERIES != 0
            && rules.is_none_or(|rules| rules.deny != 0)
        {
            let words = "only queries for allowed names leave: the name cannot even be resolved";
            self.tell(Cause::QueryRefused, words.to_owned(), None);
        }
        if rules.is_none_or(|rules| rules.deny == 0) && self.add.is_none() {
            self.add = Some(line_for(&asked));
        }
    }

    fn nothing_near(&mut self, asked: &Destination) {
        // A rule that a ceiling bounds is as near as it gets.
        let is_bounded = self
            .found
            .iter()
            .any(|told| told.cause == Cause::Ceiling.name());
        if is_bounded {
            return;
        }
        let words = format!("no rule names {} or anything near it", asked.host);
        self.tell(Cause::NothingNear, words, None);
    }

    fn near_rules(&mut self, asked: &Destination, is_wanted: impl Fn(Nearness) -> bool) {
        let compiled = self.compiled;
        let host = &asked.host;
        for near in compiled.nearest(asked) {
            if !is_wanted(near.how) {
                continue;
            }
            let rule = near.rule;
            let theirs = rule.destination.as_str();
            let (cause, words) = match near.how {
                Nearness::Denies => (
                    Cause::DenyRule,
                    format!("a deny rule for {theirs} covers {host}"),
                ),
                Nearness::OtherPorts => (
                    Cause::OtherPorts,
                    format!(
                        "a rule for {theirs} covers {host}, but not {}",
                        port_range_text(&asked.ports())
                    ),
                ),
                Nearness::Apex => (
                    Cause::Apex,
                    format!("{theirs} covers the names below {host}, not {host} itself"),
                ),
                Nearness::ParentOnly => (
                    Cause::ParentOnly,
                    format!("a rule names {theirs}, which does not cover {host} below it"),
                ),
                Nearness::OneLabelOff => (
                    Cause::OneLabelOff,
                    format!("a rule names {theirs}, which differs in one label"),
                ),
                Nearness::Alike => (
                    Cause::Alike,
                    format!("a rule names {theirs}, which differs in a letter or two"),
                ),
                Nearness::NearNetwork => (
                    Cause::NearNetwork,
                    format!("a rule has the network {theirs}, which does not hold {host}"),
                ),
            };
            self.tell(cause, words, Some(rule));
        }
    }

    /// A rule allows the name: what became of its answers in this scope.
    fn of_resolution(&mut self, name: &str, rule: Option<&RuleSource>) {
        let Some(facts) = self.facts else { return };
        let before = self.found.len();
        for refusal in facts.refusals.iter().filter(|one| one.name == name) {
            let (cause, words) = refusal_words(refusal, facts.now_ns);
            self.tell(cause, words, rule);
        }
        let refused = self.found.len();
        for one in &facts.addresses {
            let seen = one.names.iter().find(|seen| *seen.name == *name);
            if let Some(seen) = seen
                && let Some((cause, words)) = self.address_words(one, seen, facts)
            {
                let is_told = cause == Cause::NoRoom && refused > before;
                if !is_told && !self.found.iter().any(|told| told.words == words) {
                    self.tell(cause, words, rule);
                }
            }
        }
        let others: Vec<&Elsewhere> = facts
            .elsewhere
            .iter()
            .filter(|one| one.name == name)
            .collect();
        if let [first, ..] = others.as_slice() {
            let addresses = told_addresses(
                others
                    .iter()
                    .filter(|one| one.scope == first.scope)
                    .map(|one| one.address),
            );
            let words = format!(
                "scope {} resolved {name} to {addresses}, which opens it to scope {} alone",
                first.scope, first.scope
            );
            self.tell(Cause::ResolvedElsewhere, words, rule);
        }
        if self.found.len() == before {
            let words = format!(
                "a rule allows {name}, but scope {} has not resolved it by a trusted resolver",
                facts.scope
            );
            self.tell(Cause::NotResolved, words, rule);
        }
    }

    /// Why an address that the scope resolved the name to is not open.
    fn address_words(
        &self,
        one: &AddressFacts,
        seen: &SeenName,
        facts: &ExplainFacts,
    ) -> Option<(Cause, String)> {
        let (scope, name) = (&facts.scope, &seen.name);
        let address = address_text(&one.address);
        let alias_rules = seen.alias.as_deref().and_then(|alias| {
            let rules = self.compiled.rules_of_name(alias)?;
            (rules.deny != 0).then_some(alias)
        });
        if let Some(alias) = alias_rules {
            return Some((
                Cause::AliasDenied,
                format!("{name} is an alias of {alias}, which a deny rule covers"),
            ));
        }
        let covers = |grant: &&Grant| {
            grant
                .ports
                .covers(self.destination.proto, self.destination.port)
        };
        let grants = one.grants.iter().filter(covers);
        let ended_ns = grants.map(|grant| grant.expires_at_ns).max();
        let ended_ns = ended_ns.unwrap_or(seen.expires_at_ns);
        let is_unknown = [Reason::NoRule, Reason::TableFull].contains(&one.decision.reason);
        let is_full = one.decision.reason == Reason::PortNotAllowed;
        let is_expired = one.decision.reason == Reason::Expired;
        if !(is_unknown || is_full || is_expired) {
            return None;
        }
        if ended_ns <= facts.now_ns {
            let ago = ago(ended_ns, facts.now_ns);
            let words = format!("scope {scope} resolved {name} to {address}, which ended {ago}");
            return Some((Cause::Expired, words));
        }
        let words = if is_full {
            format!("{address} holds as many port ranges as fit: those of {name} found no room")
        } else {
            format!(
                "scope {scope} resolved {name} to {address}, which found no room in the table of learned addresses"
            )
        };
        Some((Cause::NoRoom, words))
    }
}

/// The cause that an answer's refusal is.
pub(super) const fn cause_of(kind: &RefusalKind) -> Cause {
    match kind {
        RefusalKind::Untrusted => Cause::UntrustedResolver,
        RefusalKind::Rebinding => Cause::Rebinding,
        RefusalKind::AliasDenied(_) => Cause::AliasDenied,
        RefusalKind::NotAsked => Cause::NotAsked,
        RefusalKind::Late => Cause::Late,
    }
}

/// The reason why an answer was refused, in words.
fn refusal_words(refusal: &Refusal, now_ns: u64) -> (Cause, String) {
    let name = &refusal.name;
    let server = address_text(&refusal.resolver);
    let ago = ago(refusal.at_ns, now_ns);
    let words = match &refusal.kind {
        RefusalKind::Untrusted => {
            format!("{name} was answered {ago} by {server}, which is no trusted resolver")
        }
        RefusalKind::Rebinding => {
            let addresses = told_addresses(refusal.addresses.iter().copied());
            format!("the answer of {ago} points {name} to {addresses}, which DNS may not open")
        }
        RefusalKind::AliasDenied(denied) => {
            format!("{name} is an alias of {denied}, which a deny rule covers")
        }
        RefusalKind::NotAsked => {
            format!("{server} answered {name} {ago}, but no query of that socket asked it")
        }
        RefusalKind::Late => {
            format!("{server} answered {name} {ago}, more than ten seconds after the query")
        }
    };
    (cause_of(&refusal.kind), words)
}

fn ago(at_ns: u64, now_ns: u64) -> String {
    let seconds = now_ns
        .saturating_sub(at_ns)
        .checked_div(NS_PER_S)
        .unwrap_or(0);
    format!("{seconds} s ago")
}

fn told_addresses(addresses: impl IntoIterator<Item = Address>) -> String {
    let addresses: Vec<IpAddr> = addresses
        .into_iter()
        .map(|address| address_text(&address))
        .collect();
    let mut told: Vec<String> = addresses
        .iter()
        .take(TOLD)
        .map(ToString::to_string)
        .collect();
    let hidden = addresses.len().saturating_sub(TOLD);
    if hidden > 0 {
        told.push(format!("{hidden} more"));
    }
    told.join(", ")
}

/// The rule that allows a destination, as one line of YAML for `spec.allow`.
fn line_for(destination: &Destination) -> String {
    let ports = port_range_text(&destination.ports());
    let host = &destination.host;
    let field = match host {
        Host::Name(_) => "names",
        Host::Address(_) => "cidrs",
    };
    // Quoted, because some names are words of YAML.
    format!("- {{ {field}: [\"{host}\"], ports: [\"{ports}\"] }}")
}

#[cfg(test)]
mod tests;
