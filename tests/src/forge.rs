//! Answers of the forging DNS server: the first label of the question selects one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Zone below which the forger answers. Policies of its tests allow `*.forge.example.com`.
pub const ZONE: &str = "forge.example.com";

/// Port in the node to which the unsolicited answer goes.
pub const UNSOLICITED_PORT: u16 = 5555;

/// Kinds of answers. Each teaches an address of its own, were it believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An honest answer: the twin of all others.
    Good,
    /// The id is not the query's.
    WrongId,
    /// The question is another name, and so is the record's owner.
    WrongQuestion,
    /// Another address than the one that was asked sends it, also from port 53.
    WrongSource,
    /// The address that was asked sends it from another port.
    WrongPort,
    /// It goes to a socket that never asked.
    Unsolicited,
    /// It comes after the delay that the server was started with.
    Late,
    /// The record belongs to a name that is not on the question's alias chain.
    OffChain,
    /// The record's owner is a compression pointer to itself.
    Loop,
    /// The message ends in the middle of the record.
    Cut,
    /// The address is one that DNS may never teach.
    Rebinding,
    /// The honest answer twice; the second with another address.
    Twice,
    /// Nothing but an NXDOMAIN code above a record.
    ErrorCode,
    /// Record and question of class CHAOS.
    OtherClass,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::Good,
        Self::WrongId,
        Self::WrongQuestion,
        Self::WrongSource,
        Self::WrongPort,
        Self::Unsolicited,
        Self::Late,
        Self::OffChain,
        Self::Loop,
        Self::Cut,
        Self::Rebinding,
        Self::Twice,
        Self::ErrorCode,
        Self::OtherClass,
    ];

    /// First label of its name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::WrongId => "wrong-id",
            Self::WrongQuestion => "wrong-question",
            Self::WrongSource => "wrong-source",
            Self::WrongPort => "wrong-port",
            Self::Unsolicited => "unsolicited",
            Self::Late => "late",
            Self::OffChain => "off-chain",
            Self::Loop => "loop",
            Self::Cut => "cut",
            Self::Rebinding => "rebinding",
            Self::Twice => "twice",
            Self::ErrorCode => "error-code",
            Self::OtherClass => "other-class",
        }
    }

    /// The name to ask for.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}.{ZONE}", self.label())
    }

    /// The kind of a first label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.label() == label)
    }

    /// The IPv4 address that it would teach.
    #[must_use]
    pub fn v4(self) -> Ipv4Addr {
        match self {
            Self::Rebinding => Ipv4Addr::new(169, 254, 169, 254),
            _ => Ipv4Addr::new(10, 78, 66, self as u8 + 1),
        }
    }

    /// The IPv6 address that it would teach.
    #[must_use]
    pub fn v6(self) -> Ipv6Addr {
        match self {
            Self::Rebinding => Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
            _ => Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 66, self as u16 + 1),
        }
    }

    /// A second address, which only [`Kind::Twice`] sends.
    #[must_use]
    pub const fn second(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 78, 66, 200))
    }
}
