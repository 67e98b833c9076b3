//! The table of causes: what lies behind a denial, as `explain` tells it.

/// Declares [`Cause`] together with its names, its plain words and what to do about it.
macro_rules! causes {
    ($($variant:ident $name:literal $words:literal $advice:literal,)+) => {
        /// The cause behind a denial.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Cause {
            $(#[doc = $words] $variant,)+
        }

        impl Cause {
            /// Every cause.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in JSON and in the documents.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The cause in a plain sentence without its final stop.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$variant => $words,)+ }
            }

            /// The remedy for it; without its final stop.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)+ }
            }
        }
    };
}

causes! {
    DenyRule "deny_rule"
        "a deny rule covers it"
        "narrow the deny rule or take it out: no rule that allows beats it",
    AuditedRule "audited_rule"
        "it passes, but a deny rule of a policy in audit covers it"
        "nothing, or set that policy to `mode: enforce`: then it is denied",
    AllowedInAudit "allowed_in_audit"
        "a policy in audit allows it, which opens nothing beside policies that are enforced"
        "set that policy to `mode: enforce`, or add the rule to one that is enforced",
    Ceiling "ceiling"
        "a rule of a namespace allows it, but the ceiling of a ClusterEgressPolicy does not"
        "ask who keeps the ClusterEgressPolicy to add it to its allow list",
    OtherPorts "other_ports"
        "a rule allows it, but not on this port and protocol"
        "add the port",
    Apex "apex"
        "a wildcard covers what is below the name, not the name itself"
        "add the name itself",
    ParentOnly "parent_only"
        "a rule names its parent, which covers nothing below"
        "add the name, or a wildcard for all names below the parent",
    OneLabelOff "one_label_off"
        "a rule names something that differs in one label"
        "correct the rule if it means this name, or add the name",
    Alike "alike"
        "a rule names something that differs in a letter or two"
        "correct the rule if it means this name, or add the name",
    NearNetwork "near_network"
        "the network of a rule ends before the address"
        "widen the network, or add the address",
    NothingNear "nothing_near"
        "no rule names it or anything near it"
        "add it, if it is needed",
    NoName "no_name"
        "no name that the scope resolved leads to the address"
        "find out which name it is reached by, and add that; add the address only if it has no name",
    QueryRefused "query_refused"
        "the policy also refuses the lookup of the name"
        "add the name: the lookup is then allowed too",
    NotResolved "not_resolved"
        "a rule allows the name, but the scope has not resolved it by a trusted resolver"
        "let the application resolve the name; if it does, look whom it asks: `egress-agent status` lists the trusted resolvers",
    ResolvedElsewhere "resolved_elsewhere"
        "another scope has resolved the name, which opens it to that scope alone"
        "let the application resolve the name in its own scope",
    Expired "expired"
        "the scope resolved the name, but the TTL of that answer has ended"
        "let the application resolve the name again before it connects, or raise `ttl.min`",
    UntrustedResolver "untrusted_resolver"
        "the name was answered by a server that is no trusted resolver"
        "ask a trusted resolver, or start the agent with this one as `--resolver`",
    NotAsked "not_asked"
        "an answer came that no query of its socket asks for"
        "look who sends it: a resolver that answers twice, or somebody who forges answers",
    Late "late"
        "the answer came more than ten seconds after its query"
        "find out why the resolver is slow",
    Rebinding "rebinding"
        "the answer for the name points to an address that DNS may not open"
        "correct the zone; what has to be reached there needs a CIDR rule",
    AliasDenied "alias_denied"
        "the name is an alias of a denied name"
        "take the denied name out of the deny rule, if it is to be reached",
    NoRoom "no_room"
        "the table of learned addresses had no room for the answer"
        "raise `--max-learned`, or use fewer distinct port ranges; then resolve the name again",
    BeingRead "being_read"
        "an answer that only the agent can read is being learned"
        "try again: it takes at most a second",
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
    }
}
