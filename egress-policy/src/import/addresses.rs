//! Ranges and exceptions as networks.

use egress_common::address::{Address, is_v4};

use crate::vocabulary::{Cidr, CidrError};

/// Most networks that one network without its exceptions may become.
const PIECES: usize = 256;

/// All IPv6 addresses.
pub(super) fn all_v6() -> Cidr {
    Cidr::containing(&[0; 16], 0)
}

/// Reads a network as the sources mean it: bits behind the prefix do not count.
///
/// # Errors
/// If it is none.
pub(super) fn parse_network(text: &str) -> Result<Cidr, CidrError> {
    match text.parse() {
        Err(CidrError::HostBits { network, .. }) => Ok(network),
        Err(CidrError::Mapped { right, .. }) => Ok(right),
        other => other,
    }
}

/// True if `outer` holds all of `inner`.
pub(super) fn covers(outer: &Cidr, inner: &Cidr) -> bool {
    outer.is_v4() == inner.is_v4() && outer.bits() <= inner.bits() && outer.holds(inner.address())
}

/// Bits of an address that a prefix of this length leaves free.
fn host_bits(bits: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0)
}

/// The networks that hold the addresses from `first` to `last` and no other; none if there are no such addresses.
pub(super) fn range(first: &Address, last: &Address) -> Vec<Cidr> {
    let mut networks = Vec::new();
    if is_v4(first) != is_v4(last) {
        return networks;
    }
    let (mut next, last) = (u128::from_be_bytes(*first), u128::from_be_bytes(*last));
    while next <= last {
        let fits = |bits: &u8| {
            let free = host_bits(*bits);
            next & free == 0 && next | free <= last
        };
        // A single address always fits.
        let bits = (0..=128).find(fits).unwrap_or(128);
        networks.push(Cidr::containing(&next.to_be_bytes(), bits));
        match (next | host_bits(bits)).checked_add(1) {
            Some(after) => next = after,
            None => break,
        }
    }
    networks
}

/// The networks that hold `whole` without `exceptions`; `None` if they are too many.
pub(super) fn without(whole: Cidr, exceptions: &[Cidr]) -> Option<Vec<Cidr>> {
    let mut pieces = vec![whole];
    for exception in exceptions {
        let mut kept = Vec::new();
        for piece in pieces {
            if covers(exception, &piece) {
                continue;
            }
            if !covers(&piece, exception) {
                kept.push(piece);
                continue;
            }
            // On the way from the piece to the exception, each step leaves out the other half.
            for bits in piece.bits().saturating_add(1)..=exception.bits() {
                let half = u128::from_be_bytes(*exception.address()) ^ last_prefix_bit(bits);
                kept.push(Cidr::containing(&half.to_be_bytes(), bits));
            }
        }
        if kept.len() > PIECES {
            return None;
        }
        pieces = kept;
    }
    Some(pieces)
}

/// The last bit of a prefix.
fn last_prefix_bit(bits: u8) -> u128 {
    1_u128
        .checked_shl(128_u32.saturating_sub(u32::from(bits)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::address_from;

    fn texts(networks: &[Cidr]) -> Vec<String> {
        networks.iter().map(ToString::to_string).collect()
    }

    fn of_range(first: &str, last: &str) -> Vec<String> {
        let address = |text: &str| address_from(text.parse().unwrap());
        texts(&range(&address(first), &address(last)))
    }

    fn less(whole: &str, exceptions: &[&str]) -> Option<Vec<String>> {
        let exceptions: Vec<Cidr> = exceptions
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        Some(texts(&without(whole.parse().unwrap(), &exceptions)?))
    }

    #[test]
    fn a_range_is_its_addresses_and_no_other() {
        assert_eq!(of_range("10.0.0.0", "10.0.0.255"), ["10.0.0.0/24"]);
        assert_eq!(of_range("10.0.0.7", "10.0.0.7"), ["10.0.0.7/32"]);
        assert_eq!(
            of_range("10.0.0.1", "10.0.0.6"),
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]
        );
        assert_eq!(of_range("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(
            of_range("fd00::ffff", "fd00::1:0"),
            ["fd00::ffff/128", "fd00::1:0/128"]
        );
        let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(of_range("::", all), ["::/0"]);
        assert_eq!(of_range("10.0.0.2", "10.0.0.1"), [""; 0]);
        assert_eq!(of_range("10.0.0.2", "fd00::1"), [""; 0]);
    }

    #[test]
    fn exceptions_are_cut_out() {
        assert_eq!(
            less("10.0.0.0/8", &["10.0.0.0/10"]).unwrap(),
            ["10.128.0.0/9", "10.64.0.0/10"]
        );
        let all = less("0.0.0.0/0", &["169.254.169.254/32"]).unwrap();
        assert_eq!(all.len(), 32);
        assert_eq!(
            less("10.0.0.0/8", &["192.0.2.0/24"]).unwrap(),
            ["10.0.0.0/8"]
        );
        assert_eq!(less("10.0.0.0/8", &["0.0.0.0/0"]).unwrap(), [""; 0]);
        assert_eq!(less("10.0.0.0/8", &["10.0.0.0/8"]).unwrap(), [""; 0]);
        let many: Vec<String> = (0..40).map(|n| format!("{}.1.1.1/32", n * 6)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(less("0.0.0.0/0", &many), None);
    }

    #[test]
    fn what_is_left_holds_all_but_the_exceptions() {
        let whole: Cidr = "10.1.0.0/28".parse().unwrap();
        let exceptions = ["10.1.0.3/32", "10.1.0.8/30"].map(|text| text.parse::<Cidr>().unwrap());
        let pieces = without(whole, &exceptions).unwrap();
        for last in 0..32 {
            let address = address_from(format!("10.1.0.{last}").parse().unwrap());
            let is_in = last < 16 && last != 3 && !(8..12).contains(&last);
            let count = pieces.iter().filter(|piece| piece.holds(&address)).count();
            assert_eq!(count, usize::from(is_in), "{last}");
        }
    }
}
