//! CIDRs as rules write them, in the one 128-bit form.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use egress_common::address::{Address, is_v4};
use serde::{Serialize, Serializer};
use thiserror::Error;

use super::{address_from, address_text, quoted};

/// Bits before the IPv4 address in the common form.
pub(crate) const V4_OFFSET: u8 = 96;

/// A network: no host bit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: Address,
    bits: u8,
}

impl Cidr {
    /// All IPv4 addresses.
    pub const ALL_V4: Self = Self {
        address: egress_common::address::from_v4([0, 0, 0, 0]),
        bits: V4_OFFSET,
    };

    /// The network of `bits` bits that `address` is in. More than 128 bits count as 128.
    #[must_use]
    pub fn containing(address: &Address, bits: u8) -> Self {
        let bits = bits.min(128);
        Self {
            address: masked(address, bits),
            bits,
        }
    }

    /// Its first address in the common form.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Prefix length in the common form: an IPv4 /8 has 104.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// True if it is an IPv4 network.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.bits >= V4_OFFSET && is_v4(&self.address)
    }

    /// True if it holds the address, as rules mean it: an IPv6 network, however wide, holds no IPv4 address.
    #[must_use]
    pub fn holds(&self, address: &Address) -> bool {
        self.is_v4() == is_v4(address) && masked(address, self.bits) == self.address
    }
}

/// The address with all bits after the first `bits` cleared.
fn masked(address: &Address, bits: u8) -> Address {
    let keep = u128::MAX
        .checked_shl(128_u32.saturating_sub(u32::from(bits)))
        .unwrap_or(0);
    (u128::from_be_bytes(*address) & keep).to_be_bytes()
}

impl From<IpAddr> for Cidr {
    /// The network of this one address. A v4-mapped address becomes IPv4.
    fn from(address: IpAddr) -> Self {
        Self {
            address: address_from(address),
            bits: 128,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_v4() {
            let bits = self.bits.saturating_sub(V4_OFFSET);
            write!(f, "{}/{bits}", address_text(&self.address))
        } else {
            write!(f, "{}/{}", Ipv6Addr::from(self.address), self.bits)
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is no CIDR.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CidrError {
    /// Not of the form.
    #[error("{0} is not a CIDR; write 10.0.0.0/8, 192.0.2.7 or \"fd00::/8\"")]
    Form(String),
    /// A name.
    #[error("{text} is not a CIDR but looks like a name; write names: [{text}]")]
    Name {
        /// The text, quoted.
        text: String,
    },
    /// The prefix length is too large for the family.
    #[error("{text} has a prefix longer than /{max}; write /{max} or shorter")]
    Prefix {
        /// The text, quoted.
        text: String,
        /// The longest prefix.
        max: u8,
    },
    /// A netmask instead of a prefix length.
    #[error("{text} has a netmask; write {right}")]
    Netmask {
        /// The text, quoted.
        text: String,
        /// The same with a prefix length.
        right: String,
    },
    /// Bits beyond the prefix are set.
    #[error(
        "{text} has host bits set; write {network} for the network or {host} for the one address"
    )]
    HostBits {
        /// The text, quoted.
        text: String,
        /// The network.
        network: Cidr,
        /// The address alone.
        host: Cidr,
    },
    /// IPv4 in IPv6 form.
    #[error("{text} is IPv4 in IPv6 form; write {right}")]
    Mapped {
        /// The text, quoted.
        text: String,
        /// The IPv4 form.
        right: Cidr,
    },
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let form = || {
            let is_name = text.contains('.') && text.chars().any(|c| c.is_ascii_alphabetic());
            let text = quoted(text);
            if is_name && !text.contains([':', '/']) {
                CidrError::Name { text }
            } else {
                CidrError::Form(text)
            }
        };
        let (address_part, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = match address_part.parse() {
            Ok(ip) => ip,
            // The form tells more than the standard library's error.
            Err(_) => return Err(form()),
        };
        let max = if ip.is_ipv4() { 32 } else { 128 };
        let bits = match prefix {
            None => max,
            Some(prefix) => match prefix_bits(prefix) {
                Some(bits) => u8::try_from(bits)
                    .ok()
                    .filter(|bits| *bits <= max)
                    .ok_or_else(|| CidrError::Prefix {
                        text: quoted(text),
                        max,
                    })?,
                None => match netmask_bits(prefix).filter(|_| ip.is_ipv4()) {
                    Some(bits) => {
                        return Err(CidrError::Netmask {
                            text: quoted(text),
                            right: format!("{ip}/{bits}"),
                        });
                    }
                    None => return Err(form()),
                },
            },
        };
        let address = address_from(ip);
        let bits = match ip {
            IpAddr::V4(_) => bits.saturating_add(V4_OFFSET),
            IpAddr::V6(_) => bits,
        };
        let network = Self::containing(&address, bits);
        if ip.is_ipv6() && network.is_v4() {
            return Err(CidrError::Mapped {
                text: quoted(text),
                right: network,
            });
        }
        if network.address != address {
            return Err(CidrError::HostBits {
                text: quoted(text),
                network,
                host: Self::containing(&address, 128),
            });
        }
        Ok(network)
    }
}

/// A prefix length of any size, or `None` if the text is no number, or one with leading zeros.
fn prefix_bits(text: &str) -> Option<u64> {
    let has_zeros = text.len() > 1 && text.starts_with('0');
    let is_number =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && !has_zeros;
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The prefix length that an IPv4 netmask means.
fn netmask_bits(text: &str) -> Option<u32> {
    let mask = u32::from(text.parse::<Ipv4Addr>().ok()?);
    let bits = mask.leading_ones();
    (bits.saturating_add(mask.trailing_zeros()) == 32 || mask == 0).then_some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Cidr>().unwrap_err().to_string()
    }

    #[test]
    fn networks_and_addresses_are_read() {
        for (text, normal, bits) in [
            ("10.0.0.0/8", "10.0.0.0/8", 104),
            ("0.0.0.0/0", "0.0.0.0/0", 96),
            ("192.0.2.7", "192.0.2.7/32", 128),
            ("192.0.2.7/32", "192.0.2.7/32", 128),
            ("fd00::/8", "fd00::/8", 8),
            ("::/0", "::/0", 0),
            ("::1", "::1/128", 128),
            ("2001:DB8:0::/32", "2001:db8::/32", 32),
            ("::fffe:0:0/95", "::fffe:0:0/95", 95),
            ("::/90", "::/90", 90),
        ] {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(
                (cidr.to_string().as_str(), cidr.bits()),
                (normal, bits),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_right_form() {
        for (text, message) in [
            (
                "10.0.0.1/8",
                "\"10.0.0.1/8\" has host bits set; write 10.0.0.0/8 for the network or 10.0.0.1/32 for the one address",
            ),
            (
                "fd00::1/8",
                "\"fd00::1/8\" has host bits set; write fd00::/8 for the network or fd00::1/128 for the one address",
            ),
            (
                "10.0.0.0/33",
                "\"10.0.0.0/33\" has a prefix longer than /32; write /32 or shorter",
            ),
            (
                "fd00::/129",
                "\"fd00::/129\" has a prefix longer than /128; write /128 or shorter",
            ),
            (
                "fd00::/999999999999999999999",
                "\"fd00::/999999999999999999999\" has a prefix longer than /128; write /128 or shorter",
            ),
            (
                "10.0.0.0/255.0.0.0",
                "\"10.0.0.0/255.0.0.0\" has a netmask; write 10.0.0.0/8",
            ),
            (
                "::ffff:10.0.0.0/104",
                "\"::ffff:10.0.0.0/104\" is IPv4 in IPv6 form; write 10.0.0.0/8",
            ),
            (
                "::ffff:192.0.2.7",
                "\"::ffff:192.0.2.7\" is IPv4 in IPv6 form; write 192.0.2.7/32",
            ),
            (
                "::ffff:0:0/96",
                "\"::ffff:0:0/96\" is IPv4 in IPv6 form; write 0.0.0.0/0",
            ),
            (
                "api.example.com",
                "\"api.example.com\" is not a CIDR but looks like a name; write names: [\"api.example.com\"]",
            ),
        ] {
            assert_eq!(refused(text), message, "{text}");
        }
        for text in [
            "",
            "10",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/ 8",
            "10.0.0.0/08",
            "/8",
            "010.0.0.0/8",
            "fe80::1%eth0",
            "10.0.0.0/255.0.255.0",
            "10.0.0.0-10.0.0.9",
            "[::1]",
        ] {
            let message = format!(
                "{} is not a CIDR; write 10.0.0.0/8, 192.0.2.7 or \"fd00::/8\"",
                quoted(text)
            );
            assert_eq!(refused(text), message, "{text}");
        }
    }

    #[test]
    fn a_network_holds_its_first_and_last_address_and_no_other() {
        let cidr: Cidr = "192.0.2.0/30".parse().unwrap();
        let holds = |text: &str| cidr.holds(&address_from(text.parse().unwrap()));
        assert!(holds("192.0.2.0") && holds("192.0.2.3"));
        assert!(!holds("192.0.1.255") && !holds("192.0.2.4"));
    }

    #[test]
    fn the_families_stay_apart() {
        let v4 = address_from("192.0.2.1".parse().unwrap());
        let v6 = address_from("2001:db8::1".parse().unwrap());
        let all_v6: Cidr = "::/0".parse().unwrap();
        assert!(Cidr::ALL_V4.holds(&v4) && !Cidr::ALL_V4.holds(&v6));
        assert!(all_v6.holds(&v6) && !all_v6.holds(&v4));
    }
}
