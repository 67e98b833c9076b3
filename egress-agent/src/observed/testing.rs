//! Shared parts of this module's tests.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use egress_common::{
    policy::protocol,
    verdict::{Reason, Verdict},
};

use super::Packet;
use crate::api::Timestamp;

/// Seconds after 2026-11-22T00:00:00Z.
pub(super) fn at(seconds: u64) -> Timestamp {
    let day = UNIX_EPOCH.checked_add(Duration::from_secs(1_795_305_600));
    let time = day.and_then(|day| day.checked_add(Duration::from_secs(seconds)));
    Timestamp::from(time.expect("fits"))
}

/// An address that is the same for the same number.
pub(super) fn address(number: u32) -> IpAddr {
    IpAddr::from(Ipv4Addr::from(0xc000_0200 | number))
}

/// A list of names that lives as long as the test.
pub(super) fn names(names: &[&str]) -> &'static [Arc<str>] {
    let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
    names.leak()
}

/// A packet of a flow that audit mode let pass, from a port that no other test packet has.
pub(super) fn packet(seconds: u64, name: &str, port: u16) -> Packet<'static> {
    static SOURCE_PORT: AtomicU16 = AtomicU16::new(1);
    let list = if name.is_empty() {
        names(&[])
    } else {
        names(&[name])
    };
    Packet {
        at: at(seconds),
        scope: "node",
        sender: "/system.slice/cron.service",
        source: IpAddr::from([10, 0, 0, 2]),
        source_port: SOURCE_PORT.fetch_add(1, Ordering::Relaxed),
        destination: address(7),
        port: Some(port),
        protocol: protocol::TCP,
        verdict: Verdict::WouldDeny,
        reason: Reason::NoRule,
        names: list,
        process: None,
    }
}
