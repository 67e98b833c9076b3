//! The lifeline: what the node needs to stay manageable. Always allowed, printed, overridable.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use egress_common::policy::{EntryKind, PortRange, protocol};
use serde::{Serialize, Serializer};

use super::{cidr::Cidr, port_range_text};

/// The policy of lifeline rules, as rule sources name it.
pub(crate) const POLICY: &str = "lifeline";

/// Name of the entries of the node's own addresses.
const NODE_ADDRESSES: &str = "node-addresses";

/// One entry: a network and the ports on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LifelineEntry {
    /// Its name: `resolvers`, `node-addresses`, `dhcp`, `api-server`, `cluster-ranges`.
    pub name: Cow<'static, str>,
    /// Where.
    pub cidr: Cidr,
    /// On which ports; empty means any.
    #[serde(serialize_with = "port_texts")]
    pub ports: Vec<PortRange>,
}

impl LifelineEntry {
    /// The kind of its entry in the kernel: an address of the node is one only for senders in other network namespaces.
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        if self.name == NODE_ADDRESSES {
            EntryKind::Local
        } else {
            EntryKind::Lifeline
        }
    }
}

fn port_texts<S: Serializer>(ports: &[PortRange], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ports.iter().map(port_range_text))
}

/// The entries that the caller found on the node or was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Lifeline {
    entries: Vec<LifelineEntry>,
}

impl Lifeline {
    /// A lifeline without entries.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[LifelineEntry] {
        &self.entries
    }

    /// Adds one entry; no ports mean any.
    #[must_use]
    pub fn entry(
        mut self,
        name: impl Into<Cow<'static, str>>,
        cidr: Cidr,
        ports: &[PortRange],
    ) -> Self {
        let entry = LifelineEntry {
            name: name.into(),
            cidr,
            ports: ports.to_vec(),
        };
        if !self.entries.contains(&entry) {
            self.entries.push(entry);
        }
        self
    }

    /// The resolvers: each at its port, by UDP and TCP.
    #[must_use]
    pub fn resolvers(self, resolvers: &[SocketAddr]) -> Self {
        resolvers.iter().fold(self, |lifeline, resolver| {
            let ports = [
                port(protocol::UDP, resolver.port()),
                port(protocol::TCP, resolver.port()),
            ];
            lifeline.entry("resolvers", Cidr::from(resolver.ip()), &ports)
        })
    }

    /// The node's own addresses: any port and protocol.
    #[must_use]
    pub fn node_addresses(self, addresses: &[IpAddr]) -> Self {
        addresses.iter().fold(self, |lifeline, address| {
            lifeline.entry(NODE_ADDRESSES, Cidr::from(*address), &[])
        })
    }

    /// DHCP: the IPv4 broadcast address on 67/udp, all IPv6 DHCP servers (ff02::1:2) on 547/udp.
    #[must_use]
    pub fn dhcp(self) -> Self {
        let v4 = Cidr::from(IpAddr::from([255, 255, 255, 255]));
        let v6 = Cidr::from(IpAddr::from([0xff02, 0, 0, 0, 0, 0, 1, 2]));
        self.entry("dhcp", v4, &[port(protocol::UDP, 67)]).entry(
            "dhcp",
            v6,
            &[port(protocol::UDP, 547)],
        )
    }

    /// The Kubernetes API server: one TCP port.
    #[must_use]
    pub fn api_server(self, address: IpAddr, api_port: u16) -> Self {
        self.entry(
            "api-server",
            Cidr::from(address),
            &[port(protocol::TCP, api_port)],
        )
    }

    /// The cluster's pod and service ranges: any port and protocol.
    #[must_use]
    pub fn cluster_ranges(self, cidrs: &[Cidr]) -> Self {
        cidrs.iter().fold(self, |lifeline, cidr| {
            lifeline.entry("cluster-ranges", *cidr, &[])
        })
    }
}

const fn port(proto: u8, port: u16) -> PortRange {
    PortRange::new(proto, port, port)
}
