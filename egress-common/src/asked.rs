//! The remotes that a socket has asked, before programs of others (a load balancer of services) changed the address.
//!
//! Such programs run in the same calls as ours, `connect()` and `sendto()`, and the packets go to the address they
//! chose. A socket that asked trusted resolvers alone, in every call since it was made, sends to addresses chosen for
//! trusted resolvers and to nobody else: no other call, thread or failure can have led its packets elsewhere. So
//! nothing has to be known of the address that was chosen.

use crate::packed::AddressWords;

/// The socket asked nobody yet, as far as is known.
pub const ASKED_NOBODY: u16 = 0;
/// Every call was to a trusted resolver.
pub const ASKED_RESOLVERS: u16 = 1;
/// A call was to somebody else, or there were calls before the programs: for good.
pub const ASKED_OTHERS: u16 = 2;

/// Value of `ASKED`. The kernel writes it while it holds the socket's lock; readers take none: half a write is an address
/// that is trusted or is not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AskedOf {
    /// The trusted resolver that was asked last, as two words in the order of its bytes.
    pub resolver: AddressWords,
    /// Its port, host byte order.
    pub port: u16,
    /// An `ASKED_` constant.
    pub state: u16,
    /// Padding, always zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<AskedOf>() == 24 && align_of::<AskedOf>() == 8);

/// State of a socket after a call.
///
/// `is_resolver`: it goes to a trusted resolver. `is_new`: the socket had no peer before, so that a first call is the first
/// one. `is_last_trusted`: the resolver of the call before is still trusted.
#[inline(always)]
#[must_use]
pub const fn asked_after(
    state: u16,
    is_resolver: bool,
    is_new: bool,
    is_last_trusted: bool,
) -> u16 {
    let is_clean = match state {
        ASKED_NOBODY => is_new,
        ASKED_RESOLVERS => is_last_trusted,
        _ => false,
    };
    if is_resolver && is_clean {
        ASKED_RESOLVERS
    } else {
        ASKED_OTHERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_counts_while_it_asks_trusted_resolvers_alone() {
        let first = asked_after(ASKED_NOBODY, true, true, false);
        assert_eq!(first, ASKED_RESOLVERS);
        assert_eq!(asked_after(first, true, false, true), ASKED_RESOLVERS);
        // One who is trusted no more may have been anybody.
        assert_eq!(asked_after(first, true, false, false), ASKED_OTHERS);
        assert_eq!(asked_after(first, false, false, true), ASKED_OTHERS);
        // It was connected before the programs were there.
        assert_eq!(asked_after(ASKED_NOBODY, true, false, false), ASKED_OTHERS);
        assert_eq!(asked_after(ASKED_NOBODY, false, true, false), ASKED_OTHERS);
    }

    #[test]
    fn who_asked_others_once_counts_no_more() {
        for is_resolver in [false, true] {
            for is_new in [false, true] {
                for is_last_trusted in [false, true] {
                    assert_eq!(
                        asked_after(ASKED_OTHERS, is_resolver, is_new, is_last_trusted),
                        ASKED_OTHERS
                    );
                }
            }
        }
    }
}
