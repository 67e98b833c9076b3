//! Addresses: one 16-byte form, and which of them a DNS answer may never teach.

/// An address, 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
pub type Address = [u8; 16];

/// The first 12 bytes of every IPv4 address.
const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// The well-known NAT64 prefix, RFC 6052 section 2.1.
const NAT64: [u8; 12] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];

/// Stores an IPv4 address in the common form.
#[inline(always)]
#[must_use]
pub const fn from_v4(v4: [u8; 4]) -> Address {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
const fn word(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

#[inline(always)]
const fn words(address: &Address) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        word(a, b, c, d),
        word(e, f, g, h),
        word(i, j, k, l),
        word(m, n, o, p),
    ]
}

#[inline(always)]
const fn has_prefix(address: &Address, prefix: &[u8; 12]) -> bool {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *prefix;
    let [first, second, third, _] = words(address);
    first == word(a, b, c, d) && second == word(e, f, g, h) && third == word(i, j, k, l)
}

/// Whether the address is IPv4.
#[inline(always)]
#[must_use]
pub const fn is_v4(address: &Address) -> bool {
    has_prefix(address, &V4_MAPPED)
}

/// Whether packets to the address stay in this network stack: 127.0.0.0/8 or ::1.
#[inline(always)]
#[must_use]
pub const fn is_loopback(address: &Address) -> bool {
    let [first, second, third, last] = words(address);
    if is_v4(address) {
        last >> 24 == 127
    } else {
        first == 0 && second == 0 && third == 0 && last == 1
    }
}

/// Whether the address is multicast: 224.0.0.0/4 or ff00::/8.
#[inline(always)]
#[must_use]
pub const fn is_multicast(address: &Address) -> bool {
    let [first, _, _, last] = words(address);
    if is_v4(address) {
        last >> 28 == 0xe
    } else {
        first >> 24 == 0xff
    }
}

/// Whether no router forwards packets to the address: link-local or of link-local scope (RFC 4291 sections 2.5.6 and
/// 2.7, RFC 5771 section 4).
#[inline(always)]
#[must_use]
pub const fn is_link_scoped(address: &Address) -> bool {
    let [first, _, _, last] = words(address);
    if is_v4(address) {
        last >> 8 == word(0, 224, 0, 0)
    } else {
        first >> 22 == 0xfe80 >> 6 || first >> 16 == 0xff02
    }
}

/// Whether a DNS answer may never teach this address, whatever its name.
///
/// Unspecified, loopback, link-local, multicast, broadcast and the cloud
/// metadata services; the same behind the well-known NAT64 prefix; and
/// v4-mapped AAAA records, which no honest zone holds (RFC 4038 section 4.2).
/// `from_aaaa` tells which record type carried the address.
#[inline(always)]
#[must_use]
pub const fn is_unteachable(address: &Address, from_aaaa: bool) -> bool {
    let [first, second, third, last] = words(address);
    if is_v4(address) {
        return from_aaaa || is_unteachable_v4(last);
    }
    if has_prefix(address, &NAT64) {
        return is_unteachable_v4(last);
    }
    // ::/96 holds the unspecified address, loopback and the deprecated v4-compatible form.
    (first == 0 && second == 0 && third == 0)
        || first >> 22 == 0xfe80 >> 6
        || first >> 24 == 0xff
        // fd00:ec2::254, the AWS metadata service.
        || (first == 0xfd00_0ec2 && second == 0 && third == 0 && last == 0x0254)
        // fd20:ce::254, the Google Cloud metadata service.
        || (first == 0xfd20_00ce && second == 0 && third == 0 && last == 0x0254)
}

#[inline(always)]
const fn is_unteachable_v4(v4: u32) -> bool {
    v4 >> 24 == 0
        || v4 >> 24 == 127
        // 169.254.0.0/16: link-local and most metadata services.
        || v4 >> 16 == 0xa9fe
        || v4 >> 28 == 0xe
        || v4 == 0xffff_ffff
        // 168.63.129.16 (Azure), 100.100.100.200 (Alibaba), 192.0.0.192 (Oracle).
        || v4 == word(168, 63, 129, 16)
        || v4 == word(100, 100, 100, 200)
        || v4 == word(192, 0, 0, 192)
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    fn address(text: &str) -> Address {
        match text.parse().expect("an address") {
            IpAddr::V4(v4) => from_v4(Ipv4Addr::octets(&v4)),
            IpAddr::V6(v6) => Ipv6Addr::octets(&v6),
        }
    }

    #[test]
    fn metadata_and_local_addresses_are_unteachable() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "::",
            "::1",
            "::7f00:1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
        ] {
            let from_aaaa = text.contains(':');
            assert!(is_unteachable(&address(text), from_aaaa), "{text}");
        }
    }

    #[test]
    fn ordinary_addresses_are_teachable() {
        for text in [
            "1.1.1.1",
            "10.0.0.1",
            "128.0.0.1",
            "126.255.255.255",
            "169.253.1.1",
            "223.255.255.255",
            "168.63.129.17",
            "2001:db8::1",
            "fd00::1",
            "fec0::1",
            "fd00:ec2::253",
            "64:ff9b::102:304",
        ] {
            let from_aaaa = text.contains(':');
            assert!(!is_unteachable(&address(text), from_aaaa), "{text}");
        }
    }

    #[test]
    fn a_mapped_address_counts_from_an_a_record_only() {
        assert!(is_unteachable(&address("::ffff:1.1.1.1"), true));
        assert!(!is_unteachable(&address("1.1.1.1"), false));
    }

    #[test]
    fn loopback_is_the_whole_v4_net_and_one_v6_address() {
        assert!(is_loopback(&address("127.0.0.1")) && is_loopback(&address("127.9.9.9")));
        assert!(is_loopback(&address("::1")));
        assert!(!is_loopback(&address("128.0.0.1")) && !is_loopback(&address("::2")));
        assert!(!is_loopback(&address("2001:db8::7f00:1")));
    }

    #[test]
    fn multicast_is_one_v4_net_and_one_v6_net() {
        assert!(is_multicast(&address("224.0.0.22")) && is_multicast(&address("239.1.1.1")));
        assert!(is_multicast(&address("ff02::16")));
        assert!(!is_multicast(&address("223.255.255.255")) && !is_multicast(&address("240.0.0.1")));
        assert!(!is_multicast(&address("fe80::1")));
    }
}
