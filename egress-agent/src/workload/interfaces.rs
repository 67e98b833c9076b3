//! The host's ends of pods' interfaces, and a watch on them.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink knows some sixty attributes; a handful matters here"
)]

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_route::{
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteAttribute, RouteMessage},
    },
};

/// One end of a pair whose other end is in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodInterface {
    /// Its name in this network namespace.
    pub name: String,
    /// Its index there.
    pub index: u32,
}

/// A watch on the interfaces of this network namespace.
pub struct Interfaces {
    handle: Handle,
    changes: BoxStream<'static, ()>,
    connection: tokio::task::AbortHandle,
}

impl Drop for Interfaces {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Interfaces {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// The kernel gives no netlink socket.
    pub fn watch() -> io::Result<Self> {
        let (connection, handle, messages) = new_multicast_connection(&[MulticastGroup::Link])?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self {
            handle,
            changes: messages.map(|_| ()).boxed(),
            connection,
        })
    }

    /// Waits until an interface came, went or changed; false when nothing more will be heard.
    pub async fn changed(&mut self) -> bool {
        let is_heard = self.changes.next().await.is_some();
        // One look is enough for all that is here already.
        while let Some(Some(())) = self.changes.next().now_or_never() {}
        is_heard
    }

    /// The interfaces that lead to other network namespaces: veth and netkit pairs. A node that is a container itself
    /// has its uplinks in such pairs: what a default route or a route by a router goes through is no pod's.
    ///
    /// # Errors
    ///
    /// The kernel does not list them.
    pub async fn of_pods(&mut self) -> io::Result<Vec<PodInterface>> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut uplinks = HashSet::new();
        for asked in [v4, v6] {
            let mut routes = self.handle.route().get(asked).execute();
            while let Some(route) = routes.try_next().await.map_err(io::Error::other)? {
                uplinks.extend(uplinks_of(&route));
            }
        }
        let mut links = self.handle.link().get().execute();
        let mut found = Vec::new();
        while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
            let is_uplink = uplinks.contains(&link.header.index);
            found.extend(pod_interface(&link).filter(|_| !is_uplink));
        }
        Ok(found)
    }
}

/// The interfaces by which a route leads to a router, or anywhere.
fn uplinks_of(route: &RouteMessage) -> Vec<u32> {
    let leads_anywhere = route.header.destination_prefix_length == 0;
    let has_router = |attributes: &[RouteAttribute]| {
        let mut attributes = attributes.iter();
        attributes.any(|one| matches!(one, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
    };
    let mut interfaces = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) if leads_anywhere || has_router(&route.attributes) => {
                interfaces.push(*index);
            }
            RouteAttribute::MultiPath(hops) => {
                let hops = hops.iter();
                let leading = hops.filter(|hop| leads_anywhere || has_router(&hop.attributes));
                interfaces.extend(leading.map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    interfaces
}

fn pod_interface(link: &LinkMessage) -> Option<PodInterface> {
    let mut is_pair = false;
    let mut leads_away = false;
    let mut name = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            // The kernel tells it of interfaces whose other end is elsewhere (`rtnl_fill_link_netnsid`).
            LinkAttribute::LinkNetNsId(_) => leads_away = true,
            LinkAttribute::LinkInfo(infos) => {
                is_pair = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit)));
            }
            _ => {}
        }
    }
    let name = name.filter(|_| is_pair && leads_away)?;
    Some(PodInterface {
        name,
        index: link.header.index,
    })
}
