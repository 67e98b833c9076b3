//! Calls of a workload that tries everything, and which packets may arrive: for `probe own` and `probe own-watch`.
//!
//! [`Plan`] draws calls from a seed, whatever becomes of them, so that a seed determines a whole run. [`may`] is the
//! model: a pure function of who made a socket, where, and where a packet goes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::zone;

/// The workload's policy. Names and networks have ports, so that those matter.
pub const RULES: &str = "ttl: { min: 2h }\nallow:\n\
    - { cidrs: [10.79.0.0/16, \"fd79::/32\"] }\n\
    - { cidrs: [10.78.20.0/24, \"fd78::20:0/112\"], ports: [443/tcp, 9000/udp] }\n\
    - { names: [api.example.com, www.cdn.example.net], ports: [443/tcp, 9000/udp] }\n\
    deny: [{ cidrs: [10.79.9.0/24, \"fd79:0:9::/48\"] }]";

/// Scopes, and the name that each has resolved in the node's network namespace.
pub const RESOLVED: [(Scope, &str); 2] = [
    (Scope::A, "api.example.com"),
    (Scope::B, "www.cdn.example.net"),
];

/// Scope of a socket: that of the cgroup in which it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A scope that has resolved one name.
    A,
    /// A scope that has resolved another.
    B,
    /// The node's.
    Node,
}

impl Scope {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::Node];

    /// First of the 4,000 ports from which its streams come.
    #[must_use]
    pub const fn first_port(self) -> u16 {
        10_000 + 4_000 * self as u16
    }

    /// The scope whose streams come from this port.
    #[must_use]
    pub fn of_port(port: u16) -> Option<Self> {
        let place = port.checked_sub(10_000)? / 4_000;
        Self::ALL.get(usize::from(place)).copied()
    }
}

/// In which network namespace a socket was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// The node's.
    Node,
    /// A pod's, whose packets the node forwards.
    Pod,
    /// One of the workload's own, without a way out.
    Own,
}

impl Net {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Node, Self::Pod, Self::Own];
}

/// The model's word on a packet: may it arrive?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// It has to.
    Yes,
    /// It must not.
    No,
    /// Nobody says.
    Either,
}

/// Somebody whom the workload calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Allowed, whatever the protocol.
    Open,
    /// Denied inside of what is allowed.
    DeniedInOpen,
    /// Allowed on some ports.
    Ported,
    /// Address that scope A has resolved.
    OfA,
    /// Address that scope B has resolved.
    OfB,
    /// Allowed to nobody.
    Never,
    /// The node.
    Node,
    /// Loopback.
    Loopback,
    /// The trusted resolver.
    Resolver,
}

impl Peer {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::DeniedInOpen,
        Self::Ported,
        Self::OfA,
        Self::OfB,
        Self::Never,
        Self::Node,
        Self::Loopback,
        Self::Resolver,
    ];

    /// Its address.
    #[must_use]
    pub fn address(self, v6: bool) -> IpAddr {
        let [v4_text, v6_text] = match self {
            Self::Open => ["10.79.0.1", "fd79::1"],
            Self::DeniedInOpen => ["10.79.9.1", "fd79:0:9::1"],
            Self::Ported => ["10.78.20.1", "fd78::20:1"],
            Self::OfA => ["10.78.1.1", "fd78::1:1"],
            Self::OfB => ["10.78.2.1", "fd78::2:1"],
            Self::Never => ["10.78.9.1", "fd78::9:1"],
            Self::Node => zone::NODE,
            Self::Loopback => ["127.0.0.1", "::1"],
            Self::Resolver => zone::RESOLVER,
        };
        crate::expect::ip(if v6 { v6_text } else { v4_text })
    }

    /// The peer with this address.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        let has = |peer: &Self| peer.address(address.is_ipv6()) == address;
        Self::ALL.into_iter().find(has)
    }
}

/// Where a packet goes, as far as a policy looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The peer that is called.
    pub peer: Peer,
    /// Protocol number.
    pub proto: u8,
    /// Port, where the packet shows one.
    pub port: Option<u16>,
}

/// The model: whether a packet of a socket that was made by this scope in this network namespace may leave the node.
#[must_use]
pub fn may(scope: Scope, net: Net, target: Target) -> May {
    let on_ports = match (target.proto, target.port) {
        (6, Some(443)) | (17, Some(9000)) => May::Yes,
        // A later fragment of a packet that was judged by its first.
        (6 | 17, None) => May::Either,
        _ => May::No,
    };
    let owned_by = |owner: Scope| {
        if scope == owner && net == Net::Node {
            on_ports
        } else {
            May::No
        }
    };
    if net == Net::Own {
        return May::No;
    }
    match target.peer {
        Peer::Open => May::Yes,
        Peer::DeniedInOpen | Peer::Never | Peer::Loopback => May::No,
        Peer::Ported => on_ports,
        Peer::OfA => owned_by(Scope::A),
        Peer::OfB => owned_by(Scope::B),
        // Packets to the node's own address do not leave it.
        Peer::Node => May::Either,
        Peer::Resolver if target.port == Some(53) || target.port.is_none() => May::Either,
        Peer::Resolver => May::No,
    }
}

/// First bytes of every payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Scope that made the socket.
    pub scope: Scope,
    /// Network namespace in which it was made.
    pub net: Net,
    /// It is an ordinary datagram that has to arrive.
    pub is_due: bool,
    /// The call's number.
    pub number: u32,
}

/// Begins a tag.
const MAGIC: &[u8; 6] = b"EgOwn#";

impl Tag {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([self.scope as u8, self.net as u8, u8::from(self.is_due)]);
        bytes.extend(self.number.to_be_bytes());
        bytes
    }

    /// The first tag in a packet.
    #[must_use]
    pub fn find(packet: &[u8]) -> Option<Self> {
        let at = packet.windows(MAGIC.len()).position(|part| part == MAGIC)?;
        let rest = packet.get(at + MAGIC.len()..)?;
        let [scope, net, is_due, a, b, c, d] = rest.first_chunk::<7>()?;
        Some(Self {
            scope: *Scope::ALL.get(usize::from(*scope))?,
            net: *Net::ALL.get(usize::from(*net))?,
            is_due: *is_due != 0,
            number: u32::from_be_bytes([*a, *b, *c, *d]),
        })
    }
}

/// A packet as the wire shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// Protocol behind extension headers.
    pub proto: u8,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: Option<u16>,
    /// Options lead it elsewhere.
    pub is_routed: bool,
    /// The first byte behind the headers of IP, if it is there: a type of ICMP.
    pub kind: u8,
}

impl Seen {
    /// Reads a packet; `None` for what is no IP.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::v4(packet),
            6 => Self::v6(packet),
            _ => None,
        }
    }

    fn v4(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 15) * 4;
        let options = packet.get(20..header)?;
        let address = |at: usize| -> Option<IpAddr> {
            let octets = packet.get(at..)?.first_chunk::<4>()?;
            Some(Ipv4Addr::from(*octets).into())
        };
        let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
        let mut seen = Self {
            from: address(12)?,
            to: address(16)?,
            proto: *packet.get(9)?,
            sport: 0,
            dport: None,
            is_routed: options.contains(&131) || options.contains(&137),
            kind: 0,
        };
        if offset == 0 {
            seen.ports(packet.get(header..)?);
        }
        Some(seen)
    }

    fn v6(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| -> Option<IpAddr> {
            let octets = packet.get(at..)?.first_chunk::<16>()?;
            Some(Ipv6Addr::from(*octets).into())
        };
        let mut seen = Self {
            from: address(8)?,
            to: address(24)?,
            proto: *packet.get(6)?,
            sport: 0,
            dport: None,
            is_routed: false,
            kind: 0,
        };
        let mut at = 40;
        for _ in 0..9 {
            let head = packet.get(at..at + 8)?;
            match seen.proto {
                0 | 60 => at += 8 + usize::from(head[1]) * 8,
                43 => {
                    seen.is_routed = true;
                    at += 8 + usize::from(head[1]) * 8;
                }
                44 => {
                    let is_later = u16::from_be_bytes([head[2], head[3]]) >> 3 != 0;
                    seen.proto = head[0];
                    if is_later {
                        return Some(seen);
                    }
                    at += 8;
                    continue;
                }
                _ => {
                    seen.ports(head);
                    return Some(seen);
                }
            }
            seen.proto = head[0];
        }
        Some(seen)
    }

    fn ports(&mut self, bytes: &[u8]) {
        self.kind = bytes.first().copied().unwrap_or_default();
        if let (6 | 17 | 132 | 136, Some([a, b, c, d])) = (self.proto, bytes.first_chunk::<4>()) {
            self.sport = u16::from_be_bytes([*a, *b]);
            self.dport = Some(u16::from_be_bytes([*c, *d]));
        }
    }

    /// It is an error message of the kernel's, which quotes the packet that caused it.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        match self.proto {
            1 => matches!(self.kind, 3 | 11 | 12),
            58 => matches!(self.kind, 1..=4),
            _ => false,
        }
    }

    /// The model's word on a packet with this tag; without one, a stream's port shows who sent it.
    #[must_use]
    pub fn may(&self, tag: Option<Tag>) -> May {
        let Some(peer) = Peer::of(self.to) else {
            return May::Either;
        };
        let target = Target {
            peer,
            proto: self.proto,
            port: self.dport,
        };
        // Nobody may call these, by whatever packet.
        let is_closed = matches!(peer, Peer::Never | Peer::DeniedInOpen | Peer::Loopback);
        // The kernel answers whoever answered.
        if self.is_error() && !is_closed {
            return May::Either;
        }
        if self.is_routed && tag.is_some() {
            return May::No;
        }
        if let Some(tag) = tag {
            return may(tag.scope, tag.net, target);
        }
        let is_of_pod = zone::POD
            .iter()
            .any(|pod| crate::expect::ip(pod) == self.from);
        let net = if is_of_pod { Net::Pod } else { Net::Node };
        match (self.proto, Scope::of_port(self.sport)) {
            (6, Some(scope)) => may(scope, net, target),
            _ if is_closed => May::No,
            _ => May::Either,
        }
    }
}

/// Kinds of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Tcp,
    /// Multipath TCP.
    Mptcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
    /// ICMP by the kernel.
    Ping,
    /// ICMP written by the process.
    RawIcmp,
    /// UDP written by the process.
    RawUdp,
    /// A packet written by the process.
    Packet,
}

/// How something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `send`.
    Send,
    /// `sendto`.
    SendTo,
    /// `sendto` with `MSG_MORE`.
    More,
    /// `sendto` with `MSG_FASTOPEN`.
    FastOpen,
    /// `sendmsg` with another source (`IP_PKTINFO`).
    PacketInfo(Peer),
    /// `sendmmsg` to somebody allowed, and then to the one who is meant.
    Many,
}

/// An option of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `SO_MARK`.
    Mark,
    /// `SO_BINDTODEVICE`: to this one.
    Device(&'static str),
    /// `IP_FREEBIND`.
    Freebind,
    /// `IP_TRANSPARENT`.
    Transparent,
    /// `IP_OPTIONS` with a source route; a routing header.
    Route,
    /// Destination options.
    Extension,
    /// `UDP_SEGMENT`.
    Segment,
    /// `UDP_CORK`, `TCP_CORK`.
    Cork(bool),
    /// `TCP_REPAIR`.
    Repair(bool),
    /// `IP_UNICAST_IF`.
    UnicastDevice,
    /// Time to live.
    Hops(u8),
    /// `IP_MTU_DISCOVER`: fragments or none.
    Discover(u8),
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Makes a socket in a place.
    Socket(Kind, bool),
    /// Binds to an address, which may be somebody else's.
    Bind(Option<Peer>, u16),
    /// `setsockopt`.
    Set(Setting),
    /// `connect`.
    Connect(Peer, u16),
    /// `connect` to nobody.
    Disconnect,
    /// Sends.
    Send(Way, Peer, u16, u16),
    /// `listen`.
    Listen,
    /// Puts an accepted socket in the other place.
    Accept,
    /// `shutdown`.
    Shutdown,
    /// `close`.
    Close,
    /// `dup` into the other place.
    Dup,
    /// Passes it to the other place by `SCM_RIGHTS`.
    Pass,
    /// Moves to the cgroup of this number.
    Cgroup(usize),
    /// Goes to a network namespace.
    Network(Net),
}

/// One step: a call, and the sockets that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Place of the socket.
    pub place: usize,
    /// Another place.
    pub other: usize,
    /// The call.
    pub call: Call,
}

/// Places for sockets.
pub const PLACES: usize = 12;
/// Cgroups that a process moves between: A, one below A, B, the node's.
pub const CGROUPS: [Scope; 4] = [Scope::A, Scope::A, Scope::B, Scope::Node];
/// Ports of peers, and of the workload's own servers.
const PORTS: [u16; 8] = [443, 443, 9000, 9000, 80, 9001, 7001, 53];
/// Peers to call: most often those whom one scope may call and the other may not.
const CALLED: [Peer; 13] = [
    Peer::OfA,
    Peer::OfA,
    Peer::OfB,
    Peer::OfB,
    Peer::Never,
    Peer::Never,
    Peer::Ported,
    Peer::Open,
    Peer::Open,
    Peer::DeniedInOpen,
    Peer::Node,
    Peer::Loopback,
    Peer::Resolver,
];

/// Steps without end, from a seed.
#[derive(Clone, Debug)]
pub struct Plan(u64);

impl Plan {
    /// The plan of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.draw() >> 33).unwrap_or_default() % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        let at = self.below(of.len());
        of[at]
    }

    fn call(&mut self) -> Call {
        let (peer, port) = (self.one(&CALLED), self.one(&PORTS));
        match self.below(1000) {
            0..150 => {
                let kinds = [
                    Kind::Tcp,
                    Kind::Tcp,
                    Kind::Mptcp,
                    Kind::Udp,
                    Kind::Udp,
                    Kind::Udp,
                    Kind::UdpLite,
                    Kind::Ping,
                    Kind::RawIcmp,
                    Kind::RawUdp,
                    Kind::Packet,
                ];
                Call::Socket(self.one(&kinds), self.below(2) == 0)
            }
            150..190 => {
                let from = [Some(peer), None, None];
                Call::Bind(self.one(&from), self.one(&[7001, 7002, 53, 0, port]))
            }
            190..240 => Call::Set(self.setting()),
            240..400 => Call::Connect(peer, port),
            400..420 => Call::Disconnect,
            420..860 => {
                let ways = [
                    Way::Send,
                    Way::Send,
                    Way::SendTo,
                    Way::SendTo,
                    Way::SendTo,
                    Way::More,
                    Way::FastOpen,
                    Way::PacketInfo(self.one(&Peer::ALL)),
                    Way::Many,
                ];
                let size = self.one(&[0, 0, 0, 100, 1400, 3500]);
                Call::Send(self.one(&ways), peer, port, size)
            }
            860..870 => Call::Listen,
            870..880 => Call::Accept,
            880..890 => Call::Shutdown,
            890..930 => Call::Close,
            930..950 => Call::Dup,
            950..965 => Call::Pass,
            965..985 => Call::Network(self.one(&[Net::Node, Net::Node, Net::Node, Net::Pod])),
            985..986 => Call::Network(Net::Own),
            _ => Call::Cgroup(self.below(CGROUPS.len())),
        }
    }

    fn setting(&mut self) -> Setting {
        let settings = [
            Setting::Mark,
            Setting::Device("eth0"),
            Setting::Device("lo"),
            Setting::Device(""),
            Setting::Freebind,
            Setting::Transparent,
            Setting::Route,
            Setting::Extension,
            Setting::Segment,
            Setting::Cork(true),
            Setting::Cork(false),
            Setting::Repair(true),
            Setting::Repair(false),
            Setting::UnicastDevice,
            Setting::Hops(1),
            Setting::Hops(64),
            Setting::Discover(0),
            Setting::Discover(2),
        ];
        self.one(&settings)
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let (place, other) = (self.below(PLACES), self.below(PLACES));
        let call = self.call();
        Some(Step { place, other, call })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{Ends, ICMP, TCP, UDP};

    const TAG: Tag = Tag {
        scope: Scope::A,
        net: Net::Node,
        is_due: true,
        number: 7,
    };

    #[test]
    fn a_seed_tells_a_whole_run() {
        let first: Vec<_> = Plan::new(7).take(5000).collect();
        assert!(Plan::new(7).take(5000).eq(first.iter().copied()));
        assert!(!Plan::new(8).take(5000).eq(first.iter().copied()));
        for peer in Peer::ALL {
            let is_called = |step: &Step| matches!(step.call, Call::Send(_, to, ..) if to == peer);
            assert!(first.iter().any(is_called), "{peer:?}");
        }
    }

    #[test]
    fn the_model_reads_what_a_packet_says() {
        let bytes = TAG.to_bytes();
        assert_eq!(Tag::find(&[b"xx", &bytes[..]].concat()), Some(TAG));
        for (to, proto, port, scope, expected) in [
            ("10.78.1.1", UDP, 9000, Scope::A, May::Yes),
            ("10.78.1.1", UDP, 9001, Scope::A, May::No),
            ("10.78.1.1", UDP, 9000, Scope::B, May::No),
            ("fd78::2:1", UDP, 9000, Scope::B, May::Yes),
            ("fd79::1", UDP, 1, Scope::Node, May::Yes),
            ("10.79.9.1", UDP, 9000, Scope::A, May::No),
        ] {
            let from = zone::NODE[usize::from(to.contains(':'))];
            let ends = Ends::new(from, to);
            let tag = Tag { scope, ..TAG };
            let packet = ends.packet(proto, &ends.udp(1, port, &tag.to_bytes()));
            let seen = Seen::read(&packet).unwrap();
            assert_eq!(seen.may(Tag::find(&packet)), expected, "{to} {port}");
        }
        // A name that was resolved in the node's namespace counts in no other.
        let target = Target {
            peer: Peer::OfA,
            proto: TCP,
            port: Some(443),
        };
        assert_eq!(may(Scope::A, Net::Node, target), May::Yes);
        assert_eq!(may(Scope::A, Net::Pod, target), May::No);
    }

    #[test]
    fn streams_are_known_by_their_ports_and_nobody_calls_whom_none_may() {
        let ends = Ends::new(zone::NODE[0], "10.78.1.1");
        for (scope, expected) in [(Scope::A, May::Yes), (Scope::B, May::No)] {
            let syn = ends.tcp((scope.first_port() + 5, 443), (1, 0), 2, b"");
            let seen = Seen::read(&ends.packet(TCP, &syn)).unwrap();
            assert_eq!(seen.may(None), expected, "{scope:?}");
        }
        let ends = Ends::new(zone::NODE[0], "10.78.9.1");
        let error = Seen::read(&ends.packet(ICMP, &ends.icmp(3, b""))).unwrap();
        assert_eq!(error.may(None), May::No);
        let ends = Ends::new(zone::NODE[0], "10.79.0.1");
        let routed = ends.ipv4().options(&[131, 7, 4, 10, 78, 9, 1]);
        let packet = routed.packet(UDP, &ends.udp(1, 9000, &TAG.to_bytes()));
        assert_eq!(Seen::read(&packet).unwrap().may(Some(TAG)), May::No);
    }
}
