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

/// The address is IPv4.
#[inline(always)]
#[must_use]
pub const fn is_v4(address: &Address) -> bool {
    has_prefix(address, &V4_MAPPED)
}

/// Packets to the address stay in this network stack: 127.0.0.0/8 or ::1.
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

/// The address is multicast: 224.0.0.0/4 or ff00::/8.
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

/// No router forwards packets to the address: link-local or of link-local scope (RFC 4291 sections 2.5.6 and 2.7, RFC
/// 5771 section 4).
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

/// A range of addresses that no DNS answer teaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeverTaught {
    /// First address.
    pub address: Address,
    /// Bits that are the same in all of them, counted in the common form.
    pub bits: u32,
    /// Use of the range.
    pub what: &'static str,
    /// The RFC or document that says so.
    pub source: &'static str,
}

/// Makes the table and, for the kernel, one comparison for each of its lines.
macro_rules! never_taught {
    (
        $(local v4 $local:expr, $local_bits:literal: $local_what:literal, $local_source:literal;)+
        $(inner v4 $inner:expr, $inner_bits:literal: $inner_what:literal, $inner_source:literal;)+
        $(v6 $v6:expr, $v6_bits:literal: $v6_what:literal, $v6_source:literal;)+
    ) => {
        /// Ranges that no DNS answer teaches; docs/security.md is tested against it.
        pub const NEVER_TAUGHT: &[NeverTaught] = &[
            $(NeverTaught { address: from_v4($local), bits: 96 + $local_bits, what: $local_what, source: $local_source },)+
            $(NeverTaught { address: from_v4($inner), bits: 96 + $inner_bits, what: $inner_what, source: $inner_source },)+
            $(NeverTaught { address: from_groups($v6), bits: $v6_bits, what: $v6_what, source: $v6_source },)+
        ];

        /// Ranges that are dangerous wherever an IPv4 address is found inside another one.
        #[inline(always)]
        const fn is_inner_v4(v4: u32) -> bool {
            $(begins_with(v4, word_of($inner), $inner_bits))||+
        }

        #[inline(always)]
        const fn is_unteachable_v4(v4: u32) -> bool {
            is_inner_v4(v4) $(|| begins_with(v4, word_of($local), $local_bits))+
        }

        #[inline(always)]
        const fn is_listed_v6(address: &Address) -> bool {
            $(is_below(address, &from_groups($v6), $v6_bits))||+
        }
    };
}

never_taught! {
    local v4 [0, 0, 0, 0], 8: "this network, the unspecified address", "RFC 1122 section 3.2.1.3";
    local v4 [224, 0, 0, 0], 4: "multicast", "RFC 5771";
    local v4 [255, 255, 255, 255], 32: "broadcast", "RFC 919 section 7";
    inner v4 [127, 0, 0, 0], 8: "loopback", "RFC 1122 section 3.2.1.3";
    inner v4 [169, 254, 0, 0], 16: "link-local, and the metadata services of AWS, Azure, Google Cloud, Oracle, OpenStack and others", "RFC 3927; the clouds' documentation of 169.254.169.254";
    inner v4 [168, 63, 129, 16], 32: "Azure's platform services (WireServer)", "Azure: What is IP address 168.63.129.16?";
    inner v4 [100, 100, 100, 200], 32: "Alibaba Cloud's metadata service", "Alibaba Cloud ECS: instance metadata";
    inner v4 [192, 0, 0, 192], 32: "Oracle Cloud's classic metadata service", "Oracle Cloud Infrastructure Classic: instance metadata";
    v6 [0, 0, 0, 0, 0, 0, 0, 0], 96: "unspecified, loopback, and the deprecated IPv4-compatible form", "RFC 4291 section 2.5";
    v6 [0xfe80, 0, 0, 0, 0, 0, 0, 0], 10: "link-local", "RFC 4291 section 2.5.6";
    v6 [0xff00, 0, 0, 0, 0, 0, 0, 0], 8: "multicast", "RFC 4291 section 2.7";
    v6 [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0], 32: "the instance services of AWS (metadata, DNS, time)", "AWS EC2: instance metadata and other link-local services, fd00:ec2::/32";
    v6 [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254], 128: "Google Cloud's metadata service", "Google Compute Engine: about VM metadata";
    v6 [0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128: "Oracle Cloud's metadata service", "Oracle Cloud Infrastructure: instance metadata over IPv6";
}

/// Ranges that no line of the table can express: IPv4 addresses inside of IPv6 ones; in words, with their RFC.
pub const NEVER_TAUGHT_INSIDE: &[(&str, &str, &str)] = &[
    (
        "`::ffff:0:0/96` in an AAAA record",
        "IPv4-mapped, which no honest zone holds",
        "RFC 4038 section 4.2",
    ),
    (
        "`64:ff9b::/96`",
        "every IPv4 line above, behind the well-known NAT64 prefix",
        "RFC 6052 section 2.1",
    ),
    (
        "`64:ff9b:1::/48`",
        "loopback, link-local and metadata, behind a local NAT64 prefix of 48, 56, 64 or 96 bits",
        "RFC 8215; RFC 6052 section 2.2",
    ),
    (
        "`2002::/16`",
        "every IPv4 line above, by 6to4",
        "RFC 3056 section 2",
    ),
    (
        "`2001::/32`",
        "loopback, link-local and metadata, as a Teredo server or client",
        "RFC 4380 section 4",
    ),
];

/// No DNS answer may teach this address, whatever its name: [`NEVER_TAUGHT`], also inside of IPv6 addresses that lead
/// to an IPv4 one, and [`NEVER_TAUGHT_INSIDE`]. `from_aaaa`: an AAAA record carried it.
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
    // 64:ff9b:1::/48: how long the prefix is, only its operator knows. Bits 64 to 71 are zero (RFC 6052 section 2.2).
    if first == 0x0064_ff9b && second >> 16 == 1 {
        return is_inner_v4(last)
            || is_inner_v4(second << 16 | third >> 8 & 0xffff)
            || is_inner_v4(second << 24 | third & 0x00ff_ffff)
            || is_inner_v4(third << 8 | last >> 24);
    }
    if first >> 16 == 0x2002 {
        return is_unteachable_v4(first << 16 | second >> 16);
    }
    // Teredo: the server's address, and the client's with every bit flipped.
    if first == 0x2001_0000 {
        return is_inner_v4(second) || is_inner_v4(!last);
    }
    is_listed_v6(address)
}

/// The first `bits` bits (1 to 32) are the same.
#[inline(always)]
const fn begins_with(word: u32, wanted: u32, bits: u32) -> bool {
    (word ^ wanted) >> 32_u32.wrapping_sub(bits) == 0
}

/// The first `bits` bits (1 to 128) are the same. `wanted` and `bits` are constants: the cases they rule out cost
/// nothing.
#[inline(always)]
const fn is_below(address: &Address, wanted: &Address, bits: u32) -> bool {
    let [a, b, c, d] = words(address);
    let [w, x, y, z] = words(wanted);
    part_begins_with(a, w, bits)
        && part_begins_with(b, x, bits.saturating_sub(32))
        && part_begins_with(c, y, bits.saturating_sub(64))
        && part_begins_with(d, z, bits.saturating_sub(96))
}

/// [`begins_with`] for 0 bits and for more than 32.
#[inline(always)]
const fn part_begins_with(word: u32, wanted: u32, bits: u32) -> bool {
    bits == 0 || begins_with(word, wanted, if bits > 32 { 32 } else { bits })
}

#[inline(always)]
const fn word_of(v4: [u8; 4]) -> u32 {
    u32::from_be_bytes(v4)
}

/// An address from its eight groups.
const fn from_groups(groups: [u16; 8]) -> Address {
    let [a, b, c, d, e, f, g, h] = groups;
    let ([a, b], [c, d], [e, f], [g, h], [i, j], [k, l], [m, n], [o, p]) = (
        a.to_be_bytes(),
        b.to_be_bytes(),
        c.to_be_bytes(),
        d.to_be_bytes(),
        e.to_be_bytes(),
        f.to_be_bytes(),
        g.to_be_bytes(),
        h.to_be_bytes(),
    );
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
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
            "fd00:ec2::253",
            "fd00:ec2:1::1",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
            "64:ff9b::",
            // A local NAT64 prefix of 96, 48, 56 and 64 bits.
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:2:3:4:a83f:8110",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:12a9:fe:a9fe::",
            "64:ff9b:1:1234:a9:fea9:fe00::",
            "64:ff9b:1:1234:64:6464:c800::",
            // 6to4.
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "2002:a83f:8110:1::1",
            "2002:e000:1::",
            // Teredo: the server, and the client with every bit flipped.
            "2001:0:a9fe:a9fe::1",
            "2001:0:102:304::5601:5601",
            "2001:0:102:304::80ff:fffe",
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
            "fd00:ec3::254",
            "fd00:c1::a9fe:a9ff",
            "64:ff9b::102:304",
            "64:ff9b:1::102:304",
            "64:ff9b:1:102:3:400::",
            "2002:102:304::1",
            "2001:0:102:304::1",
            "2001:1::a9fe:a9fe",
        ] {
            let from_aaaa = text.contains(':');
            assert!(!is_unteachable(&address(text), from_aaaa), "{text}");
        }
    }

    /// The table as a list of networks, against the comparisons that the kernel makes.
    #[test]
    fn both_ends_of_every_line_are_unteachable_and_what_lies_beside_them_is_as_its_own_line_says() {
        let number = u128::from_be_bytes;
        let is_listed = |address: u128| {
            NEVER_TAUGHT.iter().any(|line| {
                (address ^ number(line.address)) >> (128 - line.bits).min(127) == 0
                    || line.bits == 0
            })
        };
        for line in NEVER_TAUGHT {
            let first = number(line.address);
            let last = first | (u128::MAX.checked_shr(line.bits).unwrap_or(0));
            for address in [first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let bytes = address.to_be_bytes();
                if bytes.starts_with(&[0x20, 0x02]) || bytes.starts_with(&[0, 0x64, 0xff, 0x9b]) {
                    continue;
                }
                assert_eq!(
                    is_unteachable(&bytes, false),
                    is_listed(address),
                    "{}",
                    Ipv6Addr::from(bytes)
                );
            }
        }
    }

    #[test]
    fn the_page_about_security_has_the_table() {
        let mut table = std::string::String::from(
            "| addresses | what is there | source |\n| --- | --- | --- |\n",
        );
        for line in NEVER_TAUGHT {
            let text = match Ipv6Addr::from(line.address).to_ipv4_mapped() {
                Some(v4) => std::format!("`{v4}/{}`", line.bits - 96),
                None => std::format!("`{}/{}`", Ipv6Addr::from(line.address), line.bits),
            };
            table += &std::format!("| {text} | {} | {} |\n", line.what, line.source);
        }
        for (text, what, source) in NEVER_TAUGHT_INSIDE {
            table += &std::format!("| {text} | {what} | {source} |\n");
        }
        let begin = "<!-- never taught: written by `cargo xtask docs` from egress-common/src/address.rs -->\n";
        let end = "<!-- end of never taught -->\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
        let page = std::fs::read_to_string(path).expect("docs/security.md");
        let (before, rest) = page.split_once(begin).expect("the table's beginning");
        let (_, after) = rest.split_once(end).expect("the table's end");
        let wanted = std::format!("{before}{begin}{table}{end}{after}");
        if std::env::var_os("EGRESS_BLESS").is_some() {
            std::fs::write(path, wanted).expect("docs/security.md can be written");
            return;
        }
        assert!(
            page == wanted,
            "the table in docs/security.md is stale: run `cargo xtask docs`"
        );
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
