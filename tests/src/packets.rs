//! Packets byte by byte, for senders that write their own headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// IPv4 in IP, RFC 2003.
pub const IPIP: u8 = 4;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// IPv6 in IP, RFC 4213.
pub const IPV6_IN_IP: u8 = 41;
/// GRE, RFC 2784.
pub const GRE: u8 = 47;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// TCP flag bits.
pub const FIN: u8 = 0x01;
/// Opens a flow.
pub const SYN: u8 = 0x02;
/// Resets it.
pub const RST: u8 = 0x04;
/// Data to be handed on at once.
pub const PSH: u8 = 0x08;
/// Carries an acknowledgement.
pub const ACK: u8 = 0x10;

/// The Internet checksum, RFC 1071.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(u16::from_be_bytes([*high, 0])),
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("shorter than 64 KiB")
}

/// Source and destination of a packet; one family.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
}

impl Ends {
    /// From their texts.
    ///
    /// # Panics
    ///
    /// If one is no address, or they are of two families.
    #[must_use]
    pub fn new(from: &str, to: &str) -> Self {
        let ends = Self {
            from: crate::expect::ip(from),
            to: crate::expect::ip(to),
        };
        assert_eq!(ends.from.is_ipv4(), ends.to.is_ipv4());
        ends
    }

    /// The pseudo-header that TCP, UDP and ICMPv6 add to their checksum.
    fn pseudo_header(&self, protocol: u8, bytes: usize) -> Vec<u8> {
        let mut pseudo = Vec::new();
        for address in [self.from, self.to] {
            match address {
                IpAddr::V4(address) => pseudo.extend(address.octets()),
                IpAddr::V6(address) => pseudo.extend(address.octets()),
            }
        }
        pseudo.extend(u32::from(length(bytes)).to_be_bytes());
        pseudo.extend([0, 0, 0, protocol]);
        pseudo
    }

    fn sum(&self, protocol: u8, at: usize, bytes: &mut [u8]) {
        let mut all = self.pseudo_header(protocol, bytes.len());
        all.extend_from_slice(bytes);
        bytes[at..at + 2].copy_from_slice(&checksum(&all).to_be_bytes());
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(&self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = from.to_be_bytes().to_vec();
        bytes.extend(to.to_be_bytes());
        bytes.extend(length(8 + payload.len()).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend_from_slice(payload);
        self.sum(UDP, 6, &mut bytes);
        bytes
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(
        &self,
        ports: (u16, u16),
        numbers: (u32, u32),
        flags: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut bytes = ports.0.to_be_bytes().to_vec();
        bytes.extend(ports.1.to_be_bytes());
        bytes.extend(numbers.0.to_be_bytes());
        bytes.extend(numbers.1.to_be_bytes());
        bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend_from_slice(payload);
        self.sum(TCP, 16, &mut bytes);
        bytes
    }

    /// An ICMP or ICMPv6 message of this type.
    #[must_use]
    pub fn icmp(&self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0, 0x77, 0x77, 0, 1];
        bytes.extend_from_slice(payload);
        if self.from.is_ipv4() {
            let sum = checksum(&bytes).to_be_bytes();
            bytes[2..4].copy_from_slice(&sum);
        } else {
            self.sum(ICMPV6, 2, &mut bytes);
        }
        bytes
    }

    /// An IPv4 header with these ends.
    ///
    /// # Panics
    ///
    /// If they are of IPv6.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4 {
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Ipv4::new(from, to),
            _ => panic!("not IPv4"),
        }
    }

    /// An IPv6 packet with these ends.
    ///
    /// # Panics
    ///
    /// If they are of IPv4.
    #[must_use]
    pub fn ipv6(&self, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
        match (self.from, self.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, hops, next, payload),
            _ => panic!("not IPv6"),
        }
    }

    /// The packet with this payload.
    #[must_use]
    pub fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        if self.from.is_ipv4() {
            self.ipv4().packet(protocol, payload)
        } else {
            self.ipv6(64, protocol, payload)
        }
    }
}

/// Header of an IPv4 packet.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    from: Ipv4Addr,
    to: Ipv4Addr,
    options: Vec<u8>,
    /// Flags and offset.
    fragment: u16,
    hops: u8,
}

impl Ipv4 {
    /// A header without options.
    const fn new(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        Self {
            from,
            to,
            options: Vec::new(),
            fragment: 0,
            hops: 64,
        }
    }

    /// Adds options, filled up to four bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.options.resize(options.len().div_ceil(4) * 4, 0);
        self
    }

    /// A fragment: offset in units of eight bytes, and whether more follow.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = offset | if more { 0x2000 } else { 0 };
        self
    }

    /// The hop limit.
    #[must_use]
    pub const fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// The packet with this payload.
    #[must_use]
    pub fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = u8::try_from(header / 4).expect("at most 60 bytes");
        let mut bytes = vec![0x40 | words, 0];
        bytes.extend(length(header + payload.len()).to_be_bytes());
        bytes.extend([0x12, 0x34]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.hops, protocol, 0, 0]);
        bytes.extend(self.from.octets());
        bytes.extend(self.to.octets());
        bytes.extend(&self.options);
        let sum = checksum(&bytes).to_be_bytes();
        bytes[10..12].copy_from_slice(&sum);
        bytes.extend_from_slice(payload);
        bytes
    }
}

/// An IPv6 packet; `next` is the protocol of what follows the fixed header.
fn ipv6(from: Ipv6Addr, to: Ipv6Addr, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length(payload.len()).to_be_bytes());
    bytes.extend([next, hops]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend_from_slice(payload);
    bytes
}

/// Bytes from hexadecimal.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// Bytes in hexadecimal.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
