//! Verdict and reason, always a pair; hooks and modes.

/// Outcome for a packet or a connect.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It passes because a rule or a standing exception says so.
    Allow = 0,
    /// It is dropped (packet) or refused with EPERM (connect).
    Deny = 1,
    /// It passes because the policy only audits; enforcing would deny it.
    WouldDeny = 2,
}

/// Number of verdicts.
pub const VERDICTS: u32 = 3;

impl Verdict {
    /// Every verdict.
    pub const ALL: &[Self] = &[Self::Allow, Self::Deny, Self::WouldDeny];

    /// The name in JSON, metrics and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allowed",
            Self::Deny => "denied",
            Self::WouldDeny => "would_deny",
        }
    }

    /// Return code of cgroup_skb and cgroup_sock_addr programs: 1 passes, 0 drops or refuses with EPERM.
    #[inline(always)]
    #[must_use]
    pub const fn cgroup_code(self) -> i32 {
        match self {
            Self::Allow | Self::WouldDeny => 1,
            Self::Deny => 0,
        }
    }

    /// Return code of a cgroup_skb egress program that drops a packet without an error for its sender, which is to try
    /// again (`BPF_PROG_CGROUP_INET_EGRESS_RUN_ARRAY`, include/linux/bpf.h: `NET_XMIT_DROP` instead of EPERM).
    pub const SILENT_DROP: i32 = 2;

    /// Return code of tc programs, valid for clsact in direct-action mode and for TCX
    /// (include/uapi/linux/pkt_cls.h, include/uapi/linux/bpf.h): -1 hands on, 2 drops.
    #[inline(always)]
    #[must_use]
    pub const fn tc_code(self) -> i32 {
        match self {
            Self::Allow | Self::WouldDeny => -1,
            Self::Deny => 2,
        }
    }
}

impl TryFrom<u8> for Verdict {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            0 => Ok(Self::Allow),
            1 => Ok(Self::Deny),
            2 => Ok(Self::WouldDeny),
            other => Err(other),
        }
    }
}

/// Modes of a policy: a denial stands, or is only reported.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Denied packets are dropped.
    Enforce = 0,
    /// Denied packets pass and are reported as `would_deny`.
    Audit = 1,
}

impl Mode {
    /// The name in policies, JSON and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

/// A place where the kernel asks for a verdict.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// `connect()` of an IPv4 stream socket.
    Connect4 = 0,
    /// `connect()` of an IPv6 stream socket.
    Connect6 = 1,
    /// A packet that a socket sends.
    SkbEgress = 2,
    /// A packet that a socket receives: learned from; judged only when it is a call over loopback with a forged source.
    SkbIngress = 3,
    /// A packet that leaves through a given interface.
    TcEgress = 4,
    /// A packet that enters through a given interface: never judged, only learned from.
    TcIngress = 5,
    /// A process makes a socket: never judged, only noted.
    SockCreate = 6,
    /// `connect()` to an IPv4 address, before programs of others change it: only noted, as the three that follow.
    AskConnect4 = 7,
    /// `connect()` to an IPv6 address.
    AskConnect6 = 8,
    /// `sendto()` an IPv4 address.
    AskSendmsg4 = 9,
    /// `sendto()` an IPv6 address.
    AskSendmsg6 = 10,
}

/// Number of hooks that count: those behind them only note.
pub const HOOKS: u32 = 7;

impl Hook {
    /// Every hook.
    pub const ALL: &[Self] = &[
        Self::Connect4,
        Self::Connect6,
        Self::SkbEgress,
        Self::SkbIngress,
        Self::TcEgress,
        Self::TcIngress,
        Self::SockCreate,
        Self::AskConnect4,
        Self::AskConnect6,
        Self::AskSendmsg4,
        Self::AskSendmsg6,
    ];

    /// It counts verdicts.
    #[must_use]
    pub const fn counts(self) -> bool {
        (self as u32) < HOOKS
    }

    /// The name in JSON, metrics and tables, which is also the program's name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::SkbEgress => "skb_egress",
            Self::SkbIngress => "skb_ingress",
            Self::TcEgress => "tc_egress",
            Self::TcIngress => "tc_ingress",
            Self::SockCreate => "sock_create",
            Self::AskConnect4 => "ask_connect4",
            Self::AskConnect6 => "ask_connect6",
            Self::AskSendmsg4 => "ask_sendmsg4",
            Self::AskSendmsg6 => "ask_sendmsg6",
        }
    }
}

impl TryFrom<u8> for Hook {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            0 => Ok(Self::Connect4),
            1 => Ok(Self::Connect6),
            2 => Ok(Self::SkbEgress),
            3 => Ok(Self::SkbIngress),
            4 => Ok(Self::TcEgress),
            5 => Ok(Self::TcIngress),
            6 => Ok(Self::SockCreate),
            7 => Ok(Self::AskConnect4),
            8 => Ok(Self::AskConnect6),
            9 => Ok(Self::AskSendmsg4),
            10 => Ok(Self::AskSendmsg6),
            other => Err(other),
        }
    }
}

/// Declares [`Reason`] together with its names, its plain words and advice: the one table of reasons.
/// The programs' numbers, the CLI, the metrics and docs/reasons.md are made from it.
macro_rules! reasons {
    ($($number:literal $variant:ident $name:literal $words:literal $advice:literal,)+) => {
        /// Why a verdict is what it is. Numbers below 32 allow, numbers from 32 deny; none is reused.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $words] $variant = $number,)+
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in JSON, metrics and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The reason in a plain sentence without its final stop.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$variant => $words,)+ }
            }

            /// The remedy when it denies what should pass, or allows what should not; without its final stop.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)+ }
            }
        }

        impl TryFrom<u8> for Reason {
            type Error = u8;
            fn try_from(number: u8) -> Result<Self, u8> {
                match number { $($number => Ok(Self::$variant),)+ other => Err(other) }
            }
        }
    };
}

reasons! {
    0 NoPolicy "no_policy"
        "no policy restricts this workload"
        "nothing, or write a policy and start the agent with it",
    1 Loopback "loopback"
        "it stays on the loopback device, which is always allowed"
        "nothing: it does not leave the machine",
    2 Lifeline "lifeline"
        "the lifeline allows what the node needs to stay manageable"
        "take the part out with `--no-lifeline` and allow in a policy what is still needed",
    3 Reply "reply"
        "it answers a flow that the far end started"
        "nothing: who may call in is for a firewall in front",
    4 EstablishedFlow "established_flow"
        "the flow was allowed when it started"
        "remove the rule that it rests on: then it ends at its next packet",
    5 PreexistingFlow "preexisting_flow"
        "the TCP flow is older than the programs and the policy keeps such flows"
        "write `preexisting: judge`",
    6 CidrRule "cidr_rule"
        "a CIDR rule allows the destination"
        "narrow the rule, or deny a part of it",
    7 NameRule "name_rule"
        "a DNS answer for an allowed name taught the destination"
        "narrow the rule, or deny the name or the address",
    8 LinkControl "link_control"
        "neighbour discovery, group membership and ARP stay on the link and are always allowed"
        "nothing: without them no packet leaves",
    9 KernelReply "kernel_reply"
        "the kernel itself answers (ICMP error, echo reply, TCP reset or final acknowledgement)"
        "nothing",
    10 SocketJudged "socket_judged"
        "the packet belongs to a socket, which the cgroup hooks judge"
        "nothing: look at the verdict of `skb_egress`",
    11 AwaitsName "awaits_name"
        "a DNS answer for an allowed name taught the destination, and the connection is to say in its TLS hello that it goes there"
        "nothing: the hello decides",
    32 NoRule "no_rule"
        "no rule allows the destination, and no allowed name resolved to it in this scope"
        "ask `egress-agent explain`: it shows the nearest rule and the line to add",
    33 DeniedCidr "denied_cidr"
        "a deny rule covers the destination"
        "narrow the deny rule: it beats every rule that allows",
    34 Expired "expired"
        "an allowed name resolved to the destination, but its TTL has ended"
        "let the application resolve the name again before it connects, or raise `ttl.min`",
    35 PortNotAllowed "port_not_allowed"
        "the destination is known, but no rule allows this port and protocol"
        "add the port to the rule of the name",
    36 Malformed "malformed"
        "the packet's headers are cut short or contradict themselves"
        "find the program that makes such packets; no rule allows them",
    37 Fragment "fragment"
        "a fragment without ports can match only rules for any port"
        "send smaller packets, or allow any port of the protocol",
    38 SourceRouted "source_routed"
        "the packet asks to be routed over addresses that it names itself"
        "send it without; no rule allows it",
    39 TooManyHeaders "too_many_headers"
        "the packet has more IPv6 extension headers than are read"
        "send it with at most 8; no rule allows it",
    40 StateUnavailable "state_unavailable"
        "the kernel had no room for the state that this flow needs"
        "look at the alarms of `egress-agent status` and at the memory of the node",
    41 ReplyForgotten "reply_forgotten"
        "the socket serves inbound UDP, but no packet of this far end was seen lately"
        "let the far end speak at least every three minutes, or allow it by a rule",
    42 UnknownEthertype "unknown_ethertype"
        "the frame is neither IPv4, IPv6 nor ARP"
        "find the program that sends such frames; no rule allows them",
    43 NotConfigured "not_configured"
        "the programs have no configuration yet"
        "wait until the agent has started; if it cannot, see its log",
    44 ForgedSource "forged_source"
        "the packet claims a source that its sender cannot have"
        "name a scope that runs a trusted resolver with `--resolver-scope`; nobody else may do this",
    45 HeldOff "held_off"
        "an answer that only the agent can read is being learned: the sender is to try again"
        "nothing: it takes at most a second; if it does not end, see the agent's log",
    46 Rebinding "rebinding"
        "an answer for an allowed name points to an address that DNS may not open"
        "correct the zone; what has to be reached there needs a CIDR rule",
    47 QueryNotAllowed "query_not_allowed"
        "the policy lets only queries for allowed names through, and only to trusted resolvers"
        "allow the name, give `--search-domain`, or ask a trusted resolver",
    48 TableFull "table_full"
        "the table of learned addresses was full lately: an allowed name may have led here and found no room"
        "raise `--max-learned`, and find out who resolves so many names",
    49 AuditedCidr "audited_cidr"
        "it passes, but a deny rule of a policy in audit covers the destination"
        "nothing, or set the policy to `mode: enforce`: then it is denied",
    50 AuditedName "audited_name"
        "it passes, but a policy in audit denies the name that led to the destination"
        "nothing, or set the policy to `mode: enforce`: then it is denied",
    51 LoopbackElsewhere "loopback_elsewhere"
        "the destination is a loopback address, but the packet is on its way to another device, where a neighbour could take it in"
        "send it over loopback: do not bind the socket to another device (or VRF), and route 127.0.0.0/8 and ::1 nowhere else",
    52 NameDiffers "name_differs"
        "the TLS hello names a destination that no rule for this address allows"
        "allow the name that the hello gives, with `require: tls`, and let the application resolve it before it connects",
    53 NoName "no_name"
        "the TLS hello names no destination, or gives an address instead of a name, and the rule requires one"
        "let the application send the server's name (SNI), or write `require: none` in the rule",
    54 NotTls "not_tls"
        "what the connection sends first is not a TLS hello that can be read, and the rule requires one"
        "write `require: none` in the rule if the protocol is another one",
    55 HelloTooLong "hello_too_long"
        "the TLS hello is longer than 16 KiB, or has more than 120 extensions"
        "find the program that makes such hellos, or write `require: none` in the rule",
    56 HelloSplit "hello_split"
        "a part of the TLS hello came where it cannot be read in order: with the SYN, as urgent data, in very many records, or after a gap"
        "nothing if the connection goes on: it is sent again; else turn TCP fast open off for this program",
    57 Quic "quic"
        "the rule requires TLS over TCP, and this is UDP: the names in QUIC are not read"
        "nothing: clients fall back to TCP; or add a rule for UDP without `require`",
    58 NameHidden "name_hidden"
        "the TLS hello is an encrypted one (ECH), and no rule for this address allows its outer name"
        "allow the outer name, which opens whatever is behind it, or turn ECH off in the client",
    59 HelloUnseen "hello_unseen"
        "the rule requires the connection to name its destination, and its beginning cannot be followed: no TCP socket of this node sent it, or it is older than the programs"
        "send it from a socket of a process on this node, and begin the connection anew",
}

/// Numbers from this one on deny.
pub const FIRST_DENIAL: u8 = 32;

/// Capacity for reasons in the map of counters.
pub const REASONS: u32 = 64;

impl Reason {
    /// The reason allows.
    #[inline(always)]
    #[must_use]
    pub const fn allows(self) -> bool {
        (self as u8) < FIRST_DENIAL
    }

    /// The flow passes where policies are enforced, and only one in audit denies it.
    #[inline(always)]
    #[must_use]
    pub const fn is_audited(self) -> bool {
        matches!(self, Self::AuditedCidr | Self::AuditedName)
    }

    /// The flow passes where policies are enforced.
    #[inline(always)]
    #[must_use]
    pub const fn passes(self) -> bool {
        self.allows() || self.is_audited()
    }

    /// Turns the reason into a verdict: this is the only place where an error becomes one.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self, mode: Mode) -> Verdict {
        verdict_of(self as u8, mode)
    }
}

/// The verdict on a reason that is given by its number; see [`Reason::verdict`].
#[inline(always)]
#[must_use]
pub const fn verdict_of(reason: u8, mode: Mode) -> Verdict {
    const AUDITED_CIDR: u8 = Reason::AuditedCidr as u8;
    const AUDITED_NAME: u8 = Reason::AuditedName as u8;
    match (reason, mode) {
        (..FIRST_DENIAL, _) => Verdict::Allow,
        (AUDITED_CIDR | AUDITED_NAME, _) | (_, Mode::Audit) => Verdict::WouldDeny,
        (_, Mode::Enforce) => Verdict::Deny,
    }
}

/// Index of a verdict in the map of counters.
#[inline(always)]
#[must_use]
pub const fn counter_index(hook: Hook, verdict: Verdict, reason: Reason) -> u32 {
    ((hook as u32)
        .wrapping_mul(VERDICTS)
        .wrapping_add(verdict as u32))
    .wrapping_mul(REASONS)
    .wrapping_add(reason as u32)
}

/// Size of the map of counters.
pub const COUNTERS: u32 = HOOKS * VERDICTS * REASONS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_fit_the_map() {
        for reason in Reason::ALL {
            assert_eq!(Reason::try_from(*reason as u8), Ok(*reason));
            assert!((*reason as u32) < REASONS);
            for hook in Hook::ALL.iter().filter(|hook| hook.counts()) {
                for verdict in Verdict::ALL {
                    assert!(counter_index(*hook, *verdict, *reason) < COUNTERS);
                }
            }
        }
        assert_eq!(Reason::try_from(31), Err(31));
    }

    #[test]
    fn a_denial_is_only_reported_in_audit_mode() {
        assert_eq!(Reason::NoRule.verdict(Mode::Enforce), Verdict::Deny);
        assert_eq!(Reason::NoRule.verdict(Mode::Audit), Verdict::WouldDeny);
        assert_eq!(Reason::CidrRule.verdict(Mode::Audit), Verdict::Allow);
        assert_eq!(
            Reason::AuditedName.verdict(Mode::Enforce),
            Verdict::WouldDeny
        );
        assert!(Reason::AuditedCidr.passes() && !Reason::AuditedCidr.allows());
    }

    #[test]
    fn only_a_denial_drops() {
        for (verdict, cgroup, tc) in [
            (Verdict::Allow, 1, -1),
            (Verdict::WouldDeny, 1, -1),
            (Verdict::Deny, 0, 2),
        ] {
            assert_eq!((verdict.cgroup_code(), verdict.tc_code()), (cgroup, tc));
        }
    }
}
