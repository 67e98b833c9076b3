//! Offsets of fields in the running kernel's structures, from its type information
//! (BTF, <https://docs.kernel.org/bpf/btf.html>). aya reads it too, but shows no members.

use std::{fs, path::Path};

/// Where the kernel keeps it.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_KIND_STRUCT`, include/uapi/linux/btf.h.
const KIND_STRUCT: u32 = 4;

/// Places in kernel memory that the programs read, offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    /// `struct sock_common`, `skc_net`: the socket's network namespace. `struct sock` begins with it.
    pub(super) sock_net: u32,
    /// `struct net`, `net_cookie`.
    pub(super) net_cookie: u32,
    /// `struct net`, `hash_mix`, where `net_cookie` is given on demand (an `atomic64_t`, before 5.12); else 0.
    pub(super) net_mix: u32,
    /// `struct sock`, `sk_kern_sock`: the byte that holds it; 0 where the kernel has no such field.
    pub(super) kern_sock: u32,
    /// Its bit in that byte, from the lowest.
    pub(super) kern_sock_bit: u32,
}

/// Why the offsets are not known.
#[derive(Debug, thiserror::Error)]
pub enum KernelTypesError {
    /// The kernel shows no type information.
    #[error(
        "cannot read {BTF}, which tells network namespaces apart before kernel 6.15: it needs CONFIG_DEBUG_INFO_BTF"
    )]
    Read(#[source] std::io::Error),
    /// It is not in the form that this agent knows.
    #[error("{BTF} is damaged, or of another form")]
    Form,
    /// A structure lacks the field.
    #[error("the kernel's `struct {structure}` has no `{member}`")]
    Member {
        /// Name of the structure.
        structure: &'static str,
        /// Name of the field.
        member: &'static str,
    },
}

impl Offsets {
    /// Those of the kernel that runs.
    pub(super) fn of_this_kernel() -> Result<Self, KernelTypesError> {
        let bytes = fs::read(Path::new(BTF)).map_err(KernelTypesError::Read)?;
        let types = Types::parse(&bytes).ok_or(KernelTypesError::Form)?;
        let find = |structure, member| {
            types
                .offset(structure, member)
                .ok_or(KernelTypesError::Member { structure, member })
        };
        let kern_sock = types.bits("sock", "sk_kern_sock").unwrap_or(0);
        Ok(Self {
            sock_net: find("sock_common", "skc_net")?,
            net_cookie: find("net", "net_cookie")?,
            net_mix: if types.is_of_type("net", "net_cookie", "atomic64_t") {
                find("net", "hash_mix")?
            } else {
                0
            },
            kern_sock: kern_sock / 8,
            kern_sock_bit: kern_sock % 8,
        })
    }
}

/// The two sections of the data.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

impl<'a> Types<'a> {
    /// Reads the header, `struct btf_header`.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
            return None;
        }
        let header_bytes = u32_at(bytes, 4)?;
        let section = |offset: u32, length: u32| {
            let from = header_bytes.checked_add(offset)? as usize;
            bytes.get(from..from.checked_add(length as usize)?)
        };
        Some(Self {
            types: section(u32_at(bytes, 8)?, u32_at(bytes, 12)?)?,
            strings: section(u32_at(bytes, 16)?, u32_at(bytes, 20)?)?,
        })
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Offset of a member of a structure, in bytes; of the first structure of that name which has it.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        Some(self.bits(structure, member)? / 8)
    }

    /// The same in bits: of a bit field, those before its lowest one.
    fn bits(&self, structure: &str, member: &str) -> Option<u32> {
        Some(self.member(structure, member)?.0)
    }

    /// True if a member's type has this name.
    fn is_of_type(&self, structure: &str, member: &str, name: &str) -> bool {
        let Some((_, wanted)) = self.member(structure, member) else {
            return false;
        };
        // Types are counted from one.
        let mut all = self.all().zip(1_u32..);
        all.any(|((at, _, _), number)| {
            number == wanted && u32_at(self.types, at).is_some_and(|at| self.is_named(at, name))
        })
    }

    /// Every type: where it stands, its kind and word of flags.
    fn all(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        let mut at = 0_usize;
        std::iter::from_fn(move || {
            let here = at;
            let info = u32_at(self.types, here.checked_add(4)?)?;
            let kind = info >> 24 & 0x1f;
            at = here
                .checked_add(12)?
                .checked_add(bytes_behind(kind, info & 0xffff)?)?;
            Some((here, kind, info))
        })
    }

    /// Where a member stands, in bits, and the number of its type; of the first structure of that name which has it.
    fn member(&self, structure: &str, member: &str) -> Option<(u32, u32)> {
        for (at, kind, info) in self.all() {
            let name = u32_at(self.types, at)?;
            if kind != KIND_STRUCT || !self.is_named(name, structure) {
                continue;
            }
            let body = at.checked_add(12)?;
            for index in 0..(info & 0xffff) as usize {
                let at = body.checked_add(index.checked_mul(12)?)?;
                if self.is_named(u32_at(self.types, at)?, member) {
                    let type_number = u32_at(self.types, at.checked_add(4)?)?;
                    let bits = u32_at(self.types, at.checked_add(8)?)?;
                    // With bit fields in the structure the upper byte is a width.
                    let bits = if info >> 31 == 1 {
                        bits & 0xff_ffff
                    } else {
                        bits
                    };
                    return Some((bits, type_number));
                }
            }
        }
        None
    }
}

/// Bytes that follow a type's first twelve; `None` for a kind that is not known.
fn bytes_behind(kind: u32, count: u32) -> Option<usize> {
    let count = count as usize;
    match kind {
        // Pointers, forward declarations, type definitions, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Integers, variables, declaration tags.
        1 | 14 | 17 => Some(4),
        // Arrays, members of structures and unions.
        3 => Some(12),
        4 | 5 | 15 | 19 => count.checked_mul(12),
        // Values of enumerations, parameters.
        6 | 13 => count.checked_mul(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_the_fields() {
        if !Path::new(BTF).exists() {
            println!("SKIPPED the_running_kernel_has_the_fields: no {BTF}");
            return;
        }
        let offsets = Offsets::of_this_kernel().expect("offsets");
        // `skc_net` has stood here since namespaces exist: behind addresses, ports, family, device, list and protocol.
        assert_eq!(offsets.sock_net, 48);
        assert!(offsets.net_cookie > 0 && offsets.net_cookie < 8_192);
        let bytes = fs::read(BTF).expect("readable");
        let types = Types::parse(&bytes).expect("its own form");
        assert!(
            types.is_of_type("net", "ifindex", "int") || types.is_of_type("net", "ifindex", "u32")
        );
        assert!(!types.is_of_type("net", "hash_mix", "atomic64_t"));
        assert!(types.is_of_type("net", "hash_mix", "u32"));
        // Behind what every kind of socket has, and among the first fields of `struct sock`.
        assert!(offsets.kern_sock > 100 && offsets.kern_sock < 1_024 && offsets.kern_sock_bit < 8);
    }

    #[test]
    fn what_is_no_type_information_is_refused() {
        for bytes in [&b""[..], b"\x9f\xeb", &[0; 64]] {
            assert!(Types::parse(bytes).is_none());
        }
    }
}
