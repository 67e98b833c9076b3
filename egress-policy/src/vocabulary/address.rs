//! Addresses, between the form of the maps and the one of the standard library.

use std::net::{IpAddr, Ipv6Addr};

use egress_common::address::{Address, from_v4};

/// The address as the standard library has it, IPv4 as IPv4.
#[must_use]
pub fn address_text(address: &Address) -> IpAddr {
    Ipv6Addr::from(*address).to_canonical()
}

/// The address in the form of the maps. A v4-mapped address becomes IPv4.
#[must_use]
pub fn address_from(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => from_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_both_ways() {
        for text in ["192.0.2.1", "2001:db8::1", "::", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_text(&address_from(address)), address);
        }
    }
}
