//! Filters of the rows of a list.

use std::{convert::Infallible, net::IpAddr, str::FromStr};

use egress_common::verdict::Verdict;

use crate::model::FlowReport;

/// The workloads whose rows to show: all of them, or some pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFilter {
    /// Only of pods in this namespace.
    pub namespace: Option<String>,
    /// Only of pods of this name.
    pub pod: Option<String>,
}

impl PodFilter {
    /// Rows of a scope of this name are shown.
    #[must_use]
    pub fn shows(&self, scope: &str) -> bool {
        let is =
            |wanted: &Option<String>, what: &str| wanted.as_deref().is_none_or(|it| it == what);
        match scope.split_once('/') {
            Some((namespace, pod)) => is(&self.namespace, namespace) && is(&self.pod, pod),
            None => self.namespace.is_none() && self.pod.is_none(),
        }
    }
}

/// The verdicts to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Only denied ones, and those that audit mode let pass.
    pub denied: bool,
    /// At most this many, the newest.
    pub limit: Option<usize>,
    /// Only of these senders.
    pub pods: PodFilter,
}

impl FlowFilter {
    /// The verdict is shown; the caller applies `limit`.
    #[must_use]
    pub fn shows(&self, flow: &FlowReport) -> bool {
        let is_denied = flow.verdict != Verdict::Allow.name();
        (is_denied || !self.denied) && self.pods.shows(&flow.scope)
    }
}

/// The learned addresses to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LearnedFilter {
    /// Only what a name or an address is about.
    pub query: Option<LearnedQuery>,
    /// Only of these workloads.
    pub pods: PodFilter,
}

impl LearnedFilter {
    /// True for an address, learned through a name, that was asked for.
    #[must_use]
    pub fn shows(&self, name: &str, address: IpAddr) -> bool {
        let query = self.query.as_ref();
        query.is_none_or(|query| query.shows(name, address))
    }
}

/// A name or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LearnedQuery {
    /// This address.
    Address(IpAddr),
    /// This name.
    Name(String),
    /// All names below this one (`*.example.com`).
    Below(String),
}

impl FromStr for LearnedQuery {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        Ok(match name.strip_prefix("*.") {
            Some(parent) => Self::Below(parent.to_owned()),
            None => Self::Name(name),
        })
    }
}

impl LearnedQuery {
    /// True for an address, learned through a name, that was asked for.
    #[must_use]
    pub fn shows(&self, name: &str, address: IpAddr) -> bool {
        match self {
            Self::Address(wanted) => *wanted == address,
            Self::Name(wanted) => wanted == name,
            Self::Below(parent) => is_below(name, parent),
        }
    }
}

/// `name` is one or more labels below `parent`.
fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent)
        .is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_picked_by_namespace_and_name() {
        let filter = |namespace: Option<&str>, pod: Option<&str>| PodFilter {
            namespace: namespace.map(str::to_owned),
            pod: pod.map(str::to_owned),
        };
        let scopes = ["node", "shop/a", "shop/b", "pay/a"];
        for (filter, shown) in [
            (
                filter(None, None),
                vec!["node", "shop/a", "shop/b", "pay/a"],
            ),
            (filter(Some("shop"), None), vec!["shop/a", "shop/b"]),
            (filter(None, Some("a")), vec!["shop/a", "pay/a"]),
            (filter(Some("pay"), Some("a")), vec!["pay/a"]),
            (filter(Some("pay"), Some("b")), vec![]),
        ] {
            let found: Vec<_> = scopes
                .into_iter()
                .filter(|scope| filter.shows(scope))
                .collect();
            assert_eq!(found, shown, "{filter:?}");
        }
    }

    #[test]
    fn a_query_is_an_address_a_name_or_what_is_below_it() {
        let parse = |text: &str| text.parse::<LearnedQuery>().expect("infallible");
        let here: IpAddr = "192.0.2.1".parse().expect("an address");
        assert!(parse("192.0.2.1").shows("a.example.com", here));
        assert!(parse("::ffff:192.0.2.1").shows("a.example.com", here));
        assert!(!parse("192.0.2.2").shows("a.example.com", here));
        assert!(parse("A.Example.com.").shows("a.example.com", here));
        assert!(!parse("example.com").shows("a.example.com", here));
        assert!(parse("*.example.com").shows("a.example.com", here));
        assert!(!parse("*.example.com").shows("example.com", here));
        assert!(!parse("*.example.com").shows("badexample.com", here));
    }
}
