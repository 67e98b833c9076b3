//! The asynchronous peer: copies DNS answers to user space, reads them there, and adds addresses to a set.
//!
//! This is what a snooper does that cannot learn in the kernel. It is made as
//! fast as it can be: one packet socket, one netlink socket, no reply asked for.

use std::{io::Read as _, net::IpAddr, os::fd::AsFd};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::dns;
use hickory_proto::op::Message;
use nix::{
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
    unistd::write,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    nft::{SET, TABLE},
    place,
};

/// Options of `bench snooper`.
#[derive(Args, Debug)]
pub(crate) struct Snooper {}

/// ETH_P_IP, include/uapi/linux/if_ether.h.
const ETHERTYPE_IP: u16 = 0x0800;

impl Snooper {
    pub(crate) fn run(&self) -> Result<()> {
        place::stay_on(place::AGENT_CPU);
        let protocol = Protocol::from(i32::from(ETHERTYPE_IP.to_be()));
        // Without the link-layer header, so that packets begin with IP.
        let mut packets = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))
            .context("cannot open a packet socket")?;
        packets.set_recv_buffer_size(1 << 22)?;
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::NetlinkNetFilter,
        )
        .context("cannot open a netlink socket")?;
        println!("ready");
        let mut buffer = [0; 4_096];
        loop {
            let length = packets.read(&mut buffer).context("cannot read packets")?;
            for (address, _) in answer_of(&buffer[..length]).unwrap_or_default() {
                if let IpAddr::V4(address) = address {
                    write(netlink.as_fd(), &addition(&address.octets()))
                        .context("cannot write to nftables")?;
                }
            }
        }
    }
}

/// The addresses in an IPv4 packet from port 53.
fn answer_of(packet: &[u8]) -> Option<Vec<(IpAddr, u32)>> {
    let header = usize::from(packet.first()? & 15) * 4;
    let is_udp = *packet.get(9)? == 17;
    let from = packet.get(header..header + 2)?;
    if !is_udp || from != 53_u16.to_be_bytes() {
        return None;
    }
    let message = Message::from_vec(packet.get(header + 8..)?).ok()?;
    Some(dns::addresses(&message))
}

/// Netlink attribute: type, value, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A netlink message of nfnetlink: header, family, version, resource.
fn message(kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (20 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

// include/uapi/linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const REQUEST: u16 = 1;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NFTABLES: u16 = 10;
const NEW_ELEMENT: u16 = NFTABLES << 8 | 12;
const FAMILY_INET: u8 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;

/// The batch that adds one address to the set.
fn addition(address: &[u8; 4]) -> Vec<u8> {
    let value = attribute(DATA_VALUE, address);
    let key = attribute(ELEMENT_KEY | NESTED, &value);
    let element = attribute(LIST_ELEMENT | NESTED, &key);
    let body = [
        attribute(LIST_TABLE, format!("{TABLE}\0").as_bytes()),
        attribute(LIST_SET, format!("{SET}\0").as_bytes()),
        attribute(LIST_ELEMENTS | NESTED, &element),
    ];
    [
        message(BATCH_BEGIN, 0, 0, NFTABLES, &[]),
        message(NEW_ELEMENT, CREATE, FAMILY_INET, 0, &body.concat()),
        message(BATCH_END, 0, 0, NFTABLES, &[]),
    ]
    .concat()
}
