//! Filters of kernels without TCX, which have no link: asked for and changed over rtnetlink(7).
//!
//! One is this agent's when it stands at the priority and handle below and its program has the name of the hook. Another
//! one there is somebody else's: it is neither replaced nor removed.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use aya::programs::TcAttachType;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

/// Priority of the filters: early, and unlikely to be used by others.
const PRIORITY: u32 = 0xe6;
/// Handle of the filters, by which a new agent replaces them.
const HANDLE: u32 = 1;

/// include/uapi/linux/rtnetlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// include/uapi/linux/pkt_cls.h.
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// include/uapi/linux/netlink.h.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `TC_H_CLSACT`, and its two sides.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `nlmsghdr` and `tcmsg`.
const HEAD_BYTES: usize = 16;
const TC_BYTES: usize = 20;
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 3;

/// A filter of this agent, or of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) program_id: u32,
}

/// `struct tcmsg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tc {
    interface: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

impl Tc {
    fn of(interface: &str, side: TcAttachType) -> io::Result<Self> {
        Ok(Self {
            interface: nix::net::if_::if_nametoindex(interface)?,
            handle: HANDLE,
            parent: match side {
                TcAttachType::Ingress => INGRESS,
                TcAttachType::Egress | TcAttachType::Custom(_) => EGRESS,
            },
            info: (PRIORITY << 16) | u32::from(EVERY_PROTOCOL.to_be()),
        })
    }

    fn priority(self) -> u32 {
        self.info >> 16
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let word = bytes.get(at..)?.first_chunk::<4>()?;
            Some(u32::from_ne_bytes(*word))
        };
        Some(Self {
            interface: word(4)?,
            handle: word(8)?,
            parent: word(12)?,
            info: word(16)?,
        })
    }
}

/// The filter of this agent's kind on one side of an interface.
pub(super) fn find(interface: &str, side: TcAttachType, name: &str) -> io::Result<Option<Filter>> {
    match found(interface, side)? {
        Some((filter, found)) if found == name => Ok(Some(filter)),
        Some((_, found)) => Err(io::Error::other(format!(
            "priority {PRIORITY} is taken by another's filter, {found:?}"
        ))),
        None => Ok(None),
    }
}

/// The filter at this agent's place, with the name of its program.
fn found(interface: &str, side: TcAttachType) -> io::Result<Option<(Filter, String)>> {
    let asked = Tc::of(interface, side)?;
    let answers = ask(&message(
        RTM_GETTFILTER,
        NLM_F_REQUEST | NLM_F_DUMP,
        Tc {
            handle: 0,
            info: 0,
            ..asked
        },
        &[],
    ));
    let answers = match answers {
        // There is no clsact, so there are no filters.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        answers => answers?,
    };
    let here = answers.iter().find_map(|answer| {
        let there = Tc::read(answer)?;
        if there.handle != HANDLE
            || there.priority() != PRIORITY
            || there.interface != asked.interface
        {
            return None;
        }
        let attributes = answer.get(TC_BYTES..)?;
        let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
        let id = attribute(options, TCA_BPF_ID).and_then(<[u8]>::first_chunk::<4>);
        let name = attribute(options, TCA_BPF_NAME).unwrap_or_default();
        let name = String::from_utf8_lossy(name)
            .trim_end_matches('\0')
            .to_owned();
        let filter = Filter {
            program_id: id.map_or(0, |id| u32::from_ne_bytes(*id)),
        };
        Some((filter, name))
    });
    Ok(here)
}

/// Adds a filter, or replaces that of an earlier agent in one step.
pub(super) fn put(
    interface: &str,
    side: TcAttachType,
    name: &str,
    program: &OwnedFd,
) -> io::Result<()> {
    let tc = Tc::of(interface, side)?;
    let mut kind = Vec::new();
    push(&mut kind, TCA_KIND, b"clsact\0");
    let clsact = Tc {
        handle: CLSACT_HANDLE,
        parent: CLSACT,
        info: 0,
        ..tc
    };
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    match ask(&message(RTM_NEWQDISC, flags | NLM_F_EXCL, clsact, &kind)) {
        // It is there already.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        made => {
            made?;
        }
    }
    let mut options = Vec::new();
    push(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
    push(
        &mut options,
        TCA_BPF_NAME,
        &[name.as_bytes(), b"\0"].concat(),
    );
    push(
        &mut options,
        TCA_BPF_FLAGS,
        &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes(),
    );
    let mut attributes = Vec::new();
    push(&mut attributes, TCA_KIND, b"bpf\0");
    push(&mut attributes, TCA_OPTIONS, &options);
    ask(&message(RTM_NEWTFILTER, flags, tc, &attributes)).map(|_| ())
}

/// Removes the filter of this agent's kind on one side of an interface; says whether there was one.
pub(super) fn remove(interface: &str, side: TcAttachType, name: &str) -> io::Result<bool> {
    if found(interface, side)?.is_none_or(|(_, found)| found != name) {
        return Ok(false);
    }
    let mut attributes = Vec::new();
    push(&mut attributes, TCA_KIND, b"bpf\0");
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    ask(&message(
        RTM_DELTFILTER,
        flags,
        Tc::of(interface, side)?,
        &attributes,
    ))?;
    Ok(true)
}

/// Adds an attribute, padded to four bytes.
fn push(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let bytes = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    attributes.extend_from_slice(&bytes.to_ne_bytes());
    attributes.extend_from_slice(&kind.to_ne_bytes());
    attributes.extend_from_slice(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

/// The value of the attribute of this kind.
fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    loop {
        let [a, b, c, d] = *rest.first_chunk::<4>()?;
        let bytes = usize::from(u16::from_ne_bytes([a, b]));
        // The two highest bits are flags.
        let kind = u16::from_ne_bytes([c, d]) & 0x3fff;
        let value = rest.get(4..bytes)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(bytes.next_multiple_of(4)..)?;
    }
}

fn message(kind: u16, flags: u16, tc: Tc, attributes: &[u8]) -> Vec<u8> {
    let bytes = HEAD_BYTES
        .saturating_add(TC_BYTES)
        .saturating_add(attributes.len());
    let mut message = Vec::with_capacity(bytes);
    message.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Sequence and sender: one question for each socket.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]);
    for word in [tc.interface, tc.handle, tc.parent, tc.info] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(attributes);
    message
}

/// Asks the kernel; returns what its answers carry.
fn ask(message: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(socket.as_raw_fd(), message, MsgFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let bytes = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..bytes).unwrap_or_default();
        while let Some(([a, b, c, d, e, f, ..], _)) = rest.split_first_chunk::<HEAD_BYTES>() {
            let bytes = usize::try_from(u32::from_ne_bytes([*a, *b, *c, *d])).unwrap_or(0);
            let Some(payload) = rest.get(HEAD_BYTES..bytes) else {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            };
            let kind = u16::from_ne_bytes([*e, *f]);
            if kind == NLMSG_DONE {
                return Ok(answers);
            }
            if kind == NLMSG_ERROR {
                let code = payload
                    .first_chunk::<4>()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                return match code {
                    0 => Ok(answers),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            answers.push(payload.to_vec());
            rest = rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::sys;

    #[test]
    fn attributes_are_found_behind_others_and_inside() {
        let mut inner = Vec::new();
        push(&mut inner, TCA_BPF_NAME, b"tc_egress\0");
        push(&mut inner, TCA_BPF_ID, &77_u32.to_ne_bytes());
        let mut outer = Vec::new();
        push(&mut outer, TCA_KIND, b"bpf\0");
        push(&mut outer, TCA_OPTIONS | 0x8000, &inner);
        let options = attribute(&outer, TCA_OPTIONS).expect("options");
        assert_eq!(
            attribute(options, TCA_BPF_ID),
            Some(&77_u32.to_ne_bytes()[..])
        );
        assert_eq!(attribute(options, TCA_BPF_NAME), Some(&b"tc_egress\0"[..]));
        assert_eq!(attribute(options, TCA_BPF_FD), None);
        assert_eq!(attribute(&[9, 0, 1], TCA_KIND), None);
        assert_eq!(attribute(&[9, 0, 1, 0, 5], TCA_KIND), None);
    }

    /// Runs in a network namespace of its own with the interface `here`; not without root.
    fn beside_an_interface(work: impl FnOnce() + Send + 'static) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
            let pair = [
                "link", "add", "here", "type", "veth", "peer", "name", "there",
            ];
            let made = std::process::Command::new("ip").args(pair).status();
            assert!(made.expect("ip runs").success());
            work();
        });
        thread.join().expect("it holds");
    }

    #[test]
    fn a_filter_is_put_found_replaced_and_removed() {
        beside_an_interface(|| {
            let (egress, ingress) = (TcAttachType::Egress, TcAttachType::Ingress);
            let find = |side| find("here", side, "tc_egress").expect("the kernel tells");
            assert_eq!(find(egress), None);
            let (first, first_id) = sys::test_program("tc_egress").expect("loads");
            put("here", egress, "tc_egress", &first).expect("is put");
            assert_eq!(
                find(egress),
                Some(Filter {
                    program_id: first_id
                })
            );
            assert_eq!(find(ingress), None);
            // The filter stays when the descriptor is closed; another program takes its place.
            drop(first);
            let (second, second_id) = sys::test_program("tc_egress").expect("loads");
            put("here", egress, "tc_egress", &second).expect("is replaced");
            assert_eq!(
                find(egress),
                Some(Filter {
                    program_id: second_id
                })
            );
            assert!(remove("here", egress, "tc_egress").expect("is removed"));
            assert_eq!(find(egress), None);
            assert!(!remove("here", egress, "tc_egress").expect("nothing to remove"));
            assert!(find_nowhere().is_err());
        });
    }

    fn find_nowhere() -> io::Result<Option<Filter>> {
        find("nowhere", TcAttachType::Egress, "tc_egress")
    }

    #[test]
    fn the_filter_of_another_at_this_place_is_left_alone() {
        beside_an_interface(|| {
            let (program, _) = sys::test_program("theirs").expect("loads");
            put("here", TcAttachType::Egress, "theirs", &program).expect("is put");
            let found = find("here", TcAttachType::Egress, "tc_egress");
            assert!(found.is_err_and(|error| error.to_string().contains("theirs")));
            assert!(!remove("here", TcAttachType::Egress, "tc_egress").expect("is not removed"));
            assert!(found_name().is_some_and(|name| name == "theirs"));
        });
    }

    fn found_name() -> Option<String> {
        found("here", TcAttachType::Egress)
            .ok()?
            .map(|(_, name)| name)
    }

    #[test]
    fn a_message_carries_what_it_is_about() {
        let tc = Tc {
            interface: 5,
            handle: HANDLE,
            parent: EGRESS,
            info: PRIORITY << 16,
        };
        let message = message(RTM_GETTFILTER, NLM_F_REQUEST, tc, &[0; 8]);
        assert_eq!(message.len(), HEAD_BYTES + TC_BYTES + 8);
        let read = Tc::read(message.get(HEAD_BYTES..).expect("a body"));
        assert_eq!(read, Some(tc));
        assert_eq!(tc.priority(), PRIORITY);
    }
}
