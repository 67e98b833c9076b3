//! Counters of everything that is not a verdict: outcomes of DNS answers, and losses.

/// Declares [`Tally`] together with its names and plain words.
macro_rules! tallies {
    ($($(#[$doc:meta])* $number:literal $variant:ident $name:literal $alarm:literal,)+) => {
        /// One counter. Numbers are never reused.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Tally {
            $($(#[$doc])* $variant = $number,)+
        }

        impl Tally {
            /// Every counter, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in JSON, metrics and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// A count above zero means that something was lost or refused for lack of room.
            #[must_use]
            pub const fn is_alarm(self) -> bool {
                match self { $(Self::$variant => $alarm,)+ }
            }
        }

        impl TryFrom<u8> for Tally {
            type Error = u8;
            fn try_from(number: u8) -> Result<Self, u8> {
                match number { $($number => Ok(Self::$variant),)+ other => Err(other) }
            }
        }
    };
}

tallies! {
    /// A DNS query to a trusted resolver was noted.
    0 QueryNoted "dns_query_noted" false,
    /// A packet to a trusted resolver's DNS port that is not one query: nothing will be learned from its answer.
    1 QueryUnreadable "dns_query_unreadable" false,
    /// A query could not be noted: its answer will not be learned by the kernel.
    2 QueryTableFull "dns_query_table_full" true,
    /// An answer taught at least one address.
    3 AnswerLearned "dns_answer_learned" false,
    /// An answer for a name that no rule allows.
    4 AnswerNoRule "dns_answer_no_rule" false,
    /// An answer for a name that a rule denies.
    5 AnswerDeniedName "dns_answer_denied_name" false,
    /// An answer for an allowed name without any address in it.
    6 AnswerEmpty "dns_answer_empty" false,
    /// An answer with an error code (NXDOMAIN, SERVFAIL …).
    7 AnswerErrorCode "dns_answer_error_code" false,
    /// An answer to no query that this socket sent: forged or unsolicited.
    8 AnswerUnsolicited "dns_answer_unsolicited" false,
    /// An answer whose question is not the one that was asked.
    9 AnswerOtherQuestion "dns_answer_other_question" false,
    /// An answer more than ten seconds after its query.
    10 AnswerLate "dns_answer_late" false,
    /// A DNS answer from an address that is not a trusted resolver.
    11 AnswerUntrusted "dns_answer_untrusted_resolver" false,
    /// An answer that is not well-formed DNS.
    12 AnswerMalformed "dns_answer_malformed" false,
    /// An answer that is cut short (TC bit): the client will ask again over TCP.
    13 AnswerTruncated "dns_answer_truncated" false,
    /// An answer above the kernel's size or record limit: left to the agent.
    14 AnswerOversized "dns_answer_oversized" false,
    /// An answer over TCP that does not start and end in one segment, or whose query did not: left to the agent.
    15 AnswerSegmented "dns_answer_segmented" false,
    /// The parser was interrupted on its own CPU by another answer, which is not learned.
    16 AnswerReentered "dns_answer_reentered" true,
    /// An address refused because a DNS answer may never teach it (rebinding).
    17 AddressUnteachable "address_unteachable" false,
    /// An address in a record whose owner is not on the alias chain of the question.
    18 AddressOffChain "address_off_chain" false,
    /// Addresses learned or prolonged.
    19 AddressLearned "address_learned" false,
    /// An address refused because the table of learned addresses is full.
    20 LearnedFull "learned_full" true,
    /// A grant refused because its address holds the most port ranges that fit.
    21 GrantsFull "grants_full" true,
    /// Verdict events not reported because of the rate limit.
    22 EventsSuppressed "events_suppressed" false,
    /// Verdict events lost because the ring buffer was full.
    23 EventsLost "events_lost" true,
    /// Copies of DNS messages lost because the ring buffer was full.
    24 CopiesLost "dns_copies_lost" true,
    /// Socket state that could not be stored.
    25 SocketStateFailed "socket_state_failed" true,
    /// Inbound or unconnected UDP flows that could not be stored.
    26 FlowTableFailed "flow_table_failed" true,
    /// Rule counters that could not be stored.
    27 RuleCountersFull "rule_counters_full" true,
    /// An alias leads to a denied name: the answer taught nothing from there on.
    28 AliasDenied "dns_alias_denied_name" false,
    /// Addresses learned on the agent's request (slow path, carry-over).
    29 AddressPushed "address_pushed" false,
    /// Expired entries removed.
    30 LearnedSwept "learned_swept" false,
    /// An answer that came over loopback although its resolver is not on this machine.
    31 AnswerForged "dns_answer_forged_source" false,
    /// An alias that could not be noted: answers about its target alone teach nothing.
    32 AliasesFull "dns_aliases_full" true,
    /// A query that the policy does not let through, or would not.
    33 QueryRefused "dns_query_refused" false,
    /// An address refused because its scope holds as many as it may.
    34 LearnedShareFull "learned_share_full" true,
    /// An alias refused because its scope holds as many as it may.
    35 AliasShareFull "dns_aliases_share_full" true,
    /// An address or alias that was about to be removed when an answer named it: left to the agent.
    36 LearnedBusy "learned_busy" false,
    /// An address for a receiver whose network namespace is not known: not learned.
    37 HolderUnknown "holder_unknown" true,
    /// Aliases removed.
    38 AliasSwept "dns_aliases_swept" false,
    /// An answer to a query that an answer had come to before.
    39 AnswerReplayed "dns_answer_replayed" false,
    /// An address that more rules with `require` lead to than it has room for: any of them may be named there.
    40 GrantsShared "grants_shared" false,
}

/// Capacity of the map of tallies.
pub const TALLIES: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_fit_the_map() {
        for tally in Tally::ALL {
            assert_eq!(Tally::try_from(*tally as u8), Ok(*tally));
            assert!((*tally as u32) < TALLIES);
        }
        assert_eq!(Tally::try_from(255), Err(255));
    }
}
