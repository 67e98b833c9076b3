//! From "the first rule that matches decides" to "deny wins".

use egress_common::policy::{PortRange, protocol};

use super::{
    addresses::{all_v6, covers},
    rule::{Carried, Ports},
};
use crate::vocabulary::Cidr;

/// Most comparisons of destinations; beyond them rules count as overlapping.
const COMPARISONS: usize = 2_000_000;

/// Finds the rules that are never reached in the source, and makes them comments; finds the deny rules that mean
/// something else where deny wins, and says so at them.
///
/// The rules stand in the order in which the source looks at them.
pub(super) fn first_match_to_deny_wins(rules: &mut [Carried<'_>]) {
    let mut budget = Budget(COMPARISONS);
    let mut dead: Vec<(usize, String)> = Vec::new();
    {
        let (denies, allows) = in_force(rules);
        for (index, allow) in allows {
            let mut earlier = denies.iter().take_while(|(deny, _)| *deny < index);
            let by =
                earlier.find(|(_, deny)| !budget.is_spent(deny, allow) && covers_all(deny, allow));
            dead.extend(by.map(|(_, deny)| (index, deny.title().to_owned())));
        }
    }
    for (index, by) in dead {
        if let Some(allow) = rules.get_mut(index) {
            allow.not_needed(format!("it comes after {by:?}, which denies all of it."));
        }
    }
    let mut found = Vec::new();
    let (denies, allows) = in_force(rules);
    for (index, deny) in denies {
        let (before, after) = allows.split_at(allows.partition_point(|(allow, _)| *allow < index));
        let mut first = |allows: &[(usize, &Carried<'_>)], meets: Meets| {
            let mut allows = allows.iter();
            let met = allows.find(|(_, allow)| budget.is_spent(deny, allow) || meets(deny, allow));
            met.map(|(_, allow)| allow.title().to_owned())
        };
        let found_here = Found {
            earlier: first(before, overlap),
            later: first(after, overlap),
            by_address: first(after, stays_open),
        };
        found.push((index, found_here));
    }
    for (index, found) in found {
        if let Some(deny) = rules.get_mut(index) {
            found.tell(deny);
        }
    }
}

type Indexed<'a, 'n> = Vec<(usize, &'a Carried<'n>)>;

/// The rules that deny and those that allow something, with their positions.
fn in_force<'a, 'n>(rules: &'a [Carried<'n>]) -> (Indexed<'a, 'n>, Indexed<'a, 'n>) {
    let in_force = rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| rule.is_in_force());
    in_force.partition(|(_, rule)| rule.is_deny)
}

/// True if the deny rule is about everything that the other one allows.
fn covers_all(deny: &Carried<'_>, allow: &Carried<'_>) -> bool {
    if deny.is_narrower_there {
        return false;
    }
    let within = |a: &PortRange, b: &PortRange| {
        (a.proto == protocol::ANY || a.proto == b.proto) && a.first <= b.first && b.last <= a.last
    };
    let ports = match (&deny.ports, &allow.ports) {
        (Ports::Any, _) => true,
        (Ports::Of(_), Ports::Any) => false,
        (Ports::Of(denied), Ports::Of(allowed)) => {
            allowed.iter().all(|b| denied.iter().any(|a| within(a, b)))
        }
    };
    let is_everything = deny.cidrs.contains(&Cidr::ALL_V4) && deny.cidrs.contains(&all_v6());
    let has_only_cidrs =
        allow.names.is_empty() && allow.service_tags.is_empty() && allow.presets.is_empty();
    let has_cidr = |cidr: &Cidr| deny.cidrs.iter().any(|denied| covers(denied, cidr));
    // A preset's ports are not known here.
    let has_ports = deny.ports == Ports::Any || allow.presets.is_empty() && ports;
    has_ports && (is_everything || has_only_cidrs && allow.cidrs.iter().all(has_cidr))
}

type Meets = fn(&Carried<'_>, &Carried<'_>) -> bool;

/// Titles of rules that allow what a deny rule is about.
struct Found {
    /// Comes before it and allows some of it.
    earlier: Option<String>,
    /// Comes after it and would allow some of it.
    later: Option<String>,
    /// Comes after it and allows addresses, while it denies names.
    by_address: Option<String>,
}

impl Found {
    fn tell(self, deny: &mut Carried<'_>) {
        if let Some(earlier) = self.earlier {
            if self.later.is_none() && self.by_address.is_none() {
                deny.not_needed(format!(
                    "it comes after {earlier:?}, and what no rule allows is denied."
                ));
                return;
            }
            deny.differs_as_a_whole(format!(
                "comes after {earlier:?}, which allows some of it there; here deny wins"
            ));
        }
        if let Some(rule) = self.by_address {
            deny.differs_as_a_whole(format!(
                "a denied name teaches no address here, but its addresses stay open where {rule:?} allows them"
            ));
        }
    }
}

/// Comparisons that may still be made.
struct Budget(usize);

impl Budget {
    /// Takes what it costs to compare two rules. When nothing is left, they count as overlapping.
    fn is_spent(&mut self, a: &Carried<'_>, b: &Carried<'_>) -> bool {
        let pairs = |a: usize, b: usize| a.saturating_mul(b);
        let names = pairs(a.names.len(), b.names.len());
        let cidrs = pairs(a.cidrs.len(), b.cidrs.len());
        let ports = pairs(a.ports.len(), b.ports.len());
        let all = names.saturating_add(cidrs).saturating_add(ports);
        self.0 = self.0.saturating_sub(all.saturating_add(1));
        self.0 == 0
    }
}

/// True if addresses of denied names stay open through a later rule.
fn stays_open(deny: &Carried<'_>, allow: &Carried<'_>) -> bool {
    !deny.names.is_empty() && allow.has_addresses() && ports_overlap(&deny.ports, &allow.ports)
}

/// True if a flow can match both, as the source means them.
fn overlap(deny: &Carried<'_>, allow: &Carried<'_>) -> bool {
    if !ports_overlap(&deny.ports, &allow.ports) {
        return false;
    }
    // What lies behind tags, presets and names is not known: they may hold any address or name.
    let is_open = |rule: &Carried<'_>| !rule.service_tags.is_empty() || !rule.presets.is_empty();
    let is_vague = |rule: &Carried<'_>| is_open(rule) || !rule.names.is_empty();
    if deny.has_addresses() && is_vague(allow)
        || !deny.service_tags.is_empty() && !allow.cidrs.is_empty()
        || !deny.names.is_empty() && !allow.presets.is_empty()
    {
        return true;
    }
    let names = |name: &String| allow.names.iter().any(|other| names_overlap(name, other));
    let cidrs = |cidr: &Cidr| allow.cidrs.iter().any(|other| cidrs_overlap(cidr, other));
    deny.names.iter().any(names) || deny.cidrs.iter().any(cidrs)
}

fn ports_overlap(a: &Ports, b: &Ports) -> bool {
    let (Ports::Of(a), Ports::Of(b)) = (a, b) else {
        return true;
    };
    let any = protocol::ANY;
    a.iter().any(|a| {
        b.iter().any(|b| {
            let same = a.proto == b.proto || a.proto == any || b.proto == any;
            same && a.first <= b.last && b.first <= a.last
        })
    })
}

fn cidrs_overlap(a: &Cidr, b: &Cidr) -> bool {
    covers(a, b) || covers(b, a)
}

/// True if a name can match both patterns. A star inside the first label counts for the whole label.
fn names_overlap(a: &str, b: &str) -> bool {
    match (base(a), base(b)) {
        (None, None) => a == b,
        (Some(a), None) => is_below(b, a),
        (None, Some(b)) => is_below(a, b),
        (Some(a), Some(b)) => a == b || is_below(a, b) || is_below(b, a),
    }
}

/// The name above a pattern's names; `None` for a plain name.
fn base(pattern: &str) -> Option<&str> {
    let (label, rest) = pattern.split_once('.')?;
    label.contains('*').then_some(rest)
}

fn is_below(name: &str, base: &str) -> bool {
    name.strip_suffix(base)
        .is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_overlap_where_a_name_can_match_both() {
        for (a, b, overlap) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("*.example", "a.example", true),
            ("*.example", "example", false),
            ("*.a.example", "*.example", true),
            ("*.a.example", "*.b.example", false),
            ("*.ample", "*.example", false),
            ("md-*.example", "md-1.example", true),
        ] {
            assert_eq!(names_overlap(a, b), overlap, "{a} {b}");
            assert_eq!(names_overlap(b, a), overlap, "{b} {a}");
        }
    }

    #[test]
    fn port_ranges_overlap_where_a_port_is_in_both() {
        let of = |texts: &[&str]| {
            let ranges = texts
                .iter()
                .map(|text| crate::parse_port_range(text).unwrap());
            Ports::Of(ranges.collect())
        };
        assert!(ports_overlap(&Ports::Any, &of(&["443/tcp"])));
        assert!(ports_overlap(
            &of(&["1-443/tcp"]),
            &of(&["53/udp", "443/tcp"])
        ));
        assert!(!ports_overlap(&of(&["443/udp"]), &of(&["443/tcp"])));
        assert!(!ports_overlap(&of(&["444/tcp"]), &of(&["443/tcp"])));
        assert!(ports_overlap(&of(&["any"]), &of(&["443/tcp"])));
    }
}
