//! Connections that were refused for what they said first: their sockets are closed, so that a client hears of it at once
//! instead of when TCP gives up.
//!
//! The programs can only drop. `sock_diag` (`SOCK_DESTROY`, where the kernel was built with `INET_DIAG_DESTROY`) closes a
//! socket by its addresses and ports, in the network namespace of who asks: in the agent's own. In another one, and without
//! an agent, what was refused stays dropped, and the client times out.

use std::os::fd::AsRawFd;

use egress_common::{
    address::{Address, is_v4},
    event::VerdictEvent,
    policy::protocol,
    verdict::{Hook, Reason, Verdict},
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv,
        send, socket,
    },
};
use tracing::{debug, info};

use super::shared::Shared;

/// include/uapi/linux/sock_diag.h.
const SOCK_DESTROY: u16 = 21;
/// include/uapi/linux/netlink.h.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLMSG_ERROR: u16 = 2;
/// `nlmsghdr`.
const HEAD_BYTES: usize = 16;
/// `inet_diag_req_v2`.
const REQUEST_BYTES: usize = 56;

/// Closes sockets, as long as the kernel can.
#[derive(Debug, Default)]
pub(super) struct Abort {
    /// The agent's own network namespace, once it was asked for.
    netns: Option<u32>,
    /// The kernel said that it cannot.
    is_off: bool,
}

impl Abort {
    /// Closes the socket of a verdict that refuses what its connection said first.
    pub(super) fn after(&mut self, shared: &Shared, event: &VerdictEvent) {
        if self.is_off || !is_final(event) {
            return;
        }
        let netns = *self
            .netns
            .get_or_insert_with(|| shared.datapath().node_netns());
        if event.netns != netns {
            return;
        }
        match destroy(event) {
            // Its client closed it before, or it is bound to a device.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno @ (Errno::EOPNOTSUPP | Errno::EPERM | Errno::EPROTONOSUPPORT)) => {
                self.is_off = true;
                info!(
                    %errno,
                    "the kernel closes no sockets for others: clients whose hello is refused time out"
                );
            }
            Err(errno) => debug!(%errno, "a refused connection stays open until it times out"),
        }
    }
}

/// True if nothing that the connection sends from now on passes. A hello that came out of order (`hello_split`) may
/// come again, and one that was not followed (`hello_unseen`) need not come from the socket whose addresses it has.
fn is_final(event: &VerdictEvent) -> bool {
    event.verdict == Verdict::Deny as u8
        && event.hook == Hook::SkbEgress as u8
        && event.proto == protocol::TCP
        && matches!(
            Reason::try_from(event.reason),
            Ok(Reason::NameDiffers
                | Reason::NoName
                | Reason::NotTls
                | Reason::HelloTooLong
                | Reason::NameHidden)
        )
}

/// Asks the kernel to close the socket that sent.
fn destroy(event: &VerdictEvent) -> nix::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(socket.as_raw_fd(), &request(event), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let bytes = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    let answer = answer.get(..bytes).unwrap_or_default();
    let kind = answer.get(4..6).and_then(<[u8]>::first_chunk::<2>);
    let code = answer
        .get(HEAD_BYTES..)
        .and_then(<[u8]>::first_chunk::<4>)
        .map(|code| i32::from_ne_bytes(*code));
    match (kind.map(|kind| u16::from_ne_bytes(*kind)), code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw(code.saturating_neg())),
        _ => Err(Errno::EBADMSG),
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(event: &VerdictEvent) -> Vec<u8> {
    let is_v4 = is_v4(&event.saddr) && is_v4(&event.daddr);
    let family = if is_v4 { libc::AF_INET } else { libc::AF_INET6 };
    let length = HEAD_BYTES.saturating_add(REQUEST_BYTES);
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&SOCK_DESTROY.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence and sender: one request for each socket.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[u8::try_from(family).unwrap_or(0), protocol::TCP, 0, 0]);
    // In whatever state.
    message.extend_from_slice(&u32::MAX.to_ne_bytes());
    message.extend_from_slice(&event.sport.to_be_bytes());
    message.extend_from_slice(&event.dport.to_be_bytes());
    message.extend_from_slice(&place(&event.saddr, is_v4));
    message.extend_from_slice(&place(&event.daddr, is_v4));
    // Any device; the cookie is not known (`INET_DIAG_NOCOOKIE`).
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&[0xff; 8]);
    message
}

/// An address as `inet_diag_sockid` holds it.
fn place(address: &Address, is_v4: bool) -> Address {
    let [.., a, b, c, d] = *address;
    if is_v4 {
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    } else {
        *address
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::{IpAddr, SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use egress_common::{address::from_v4, event::Process};

    use super::*;

    fn words(address: SocketAddr) -> (Address, u16) {
        let bytes = match address.ip() {
            IpAddr::V4(v4) => from_v4(v4.octets()),
            IpAddr::V6(v6) => v6.octets(),
        };
        (bytes, address.port())
    }

    fn refused(from: SocketAddr, to: SocketAddr, reason: Reason) -> VerdictEvent {
        let ((saddr, sport), (daddr, dport)) = (words(from), words(to));
        VerdictEvent {
            at_ns: 0,
            cgroup_id: 0,
            rule: 0,
            saddr,
            daddr,
            scope_id: 0,
            policy_id: 1,
            sport,
            dport,
            proto: protocol::TCP,
            hook: Hook::SkbEgress as u8,
            verdict: Verdict::Deny as u8,
            reason: reason as u8,
            _pad: [0; 2],
            netns: 1,
            process: Process::UNKNOWN,
            _pad2: 0,
        }
    }

    #[test]
    fn what_may_still_pass_is_left_open() {
        let local: SocketAddr = ([127, 0, 0, 1], 1).into();
        let of = |reason| refused(local, local, reason);
        assert!(is_final(&of(Reason::NameDiffers)) && is_final(&of(Reason::NotTls)));
        for reason in [
            Reason::HelloSplit,
            Reason::HelloUnseen,
            Reason::NoRule,
            Reason::Quic,
        ] {
            assert!(!is_final(&of(reason)), "{reason:?}");
        }
        let audited = VerdictEvent {
            verdict: Verdict::WouldDeny as u8,
            ..of(Reason::NameDiffers)
        };
        let frame = VerdictEvent {
            hook: Hook::TcEgress as u8,
            ..of(Reason::NameDiffers)
        };
        assert!(!is_final(&audited) && !is_final(&frame));
    }

    #[test]
    fn the_socket_of_these_ports_is_closed_and_no_other_one() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(address).expect("a server");
            let to = server.local_addr().expect("its address");
            let mut one = TcpStream::connect(to).expect("a connection");
            let mut other = TcpStream::connect(to).expect("another one");
            for stream in [&one, &other] {
                let wait = Some(Duration::from_millis(300));
                stream.set_read_timeout(wait).expect("a limit");
            }
            let from = one.local_addr().expect("an address");
            let event = refused(from, to, Reason::NameDiffers);
            match destroy(&event) {
                Err(Errno::EOPNOTSUPP) => {
                    eprintln!("skipped: this kernel closes no sockets for others");
                    return;
                }
                result => assert_eq!(result, Ok(())),
            }
            let mut byte = [0];
            let error = one.read(&mut byte).expect_err("it is closed");
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            let error = other.read(&mut byte).expect_err("nothing is sent");
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            assert_eq!(destroy(&event), Err(Errno::ENOENT));
        }
    }
}
