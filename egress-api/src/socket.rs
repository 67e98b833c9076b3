//! How each end of the socket knows the other.

use std::io;

use nix::unistd::geteuid;

/// Common reasons why a socket cannot be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no socket, or nobody accepts on it any more.
    NobodyListens,
    /// Its mode, or that of a folder, forbids it.
    NotPermitted,
}

impl Unreachable {
    /// The one that an error means; none if it means something else.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        let kind = error.kind();
        if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&kind) {
            Some(Self::NobodyListens)
        } else if kind == io::ErrorKind::PermissionDenied {
            Some(Self::NotPermitted)
        } else {
            None
        }
    }
}

/// A process of this user may talk to the agent (and is believed to be the agent).
#[must_use]
pub fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}
