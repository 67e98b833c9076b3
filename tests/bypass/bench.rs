//! Where a technique is tried: a world, an agent, and somebody who watches the wire.

use std::time::Duration;

use egress_tests::{
    Agent, AgentOptions, Counters, Workload, World, eventually,
    expect::{policy, reached},
    packets::to_hex,
    process::Running,
    ready,
    report::Attempt,
    world::{Builder, Role},
    zone,
};

/// Addresses that the usual policy allows, and such that it does not: IPv4, IPv6.
pub(crate) const ALLOWED: [&str; 2] = ["10.79.0.1", "fd79::1"];
/// See [`ALLOWED`].
pub(crate) const DENIED: [&str; 2] = ["10.78.9.1", "fd78::9:1"];
/// The usual policy.
pub(crate) const RULES: &str = "allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"] }]";

/// A world with an agent, a workload, and a watcher at the other end of the node's wire.
pub(crate) struct Bench {
    pub(crate) client: Workload,
    pub(crate) agent: Agent,
    wire: Running,
    pub(crate) world: World,
}

impl Bench {
    /// Under the usual policy; `None` where no world can be built.
    pub(crate) fn new() -> Option<Self> {
        Self::under(RULES)
    }

    /// Under this policy.
    pub(crate) fn under(rules: &str) -> Option<Self> {
        Self::with(rules, World::builder(), |agent| agent)
    }

    /// With this world and these options.
    pub(crate) fn with(
        rules: &str,
        builder: Builder,
        options: impl FnOnce(AgentOptions) -> AgentOptions,
    ) -> Option<Self> {
        if !ready() {
            return None;
        }
        let world = builder.build();
        let mut wire = world.outsider(Role::Web).background(&["watch", "node"]);
        wire.wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
            .unwrap();
        let agent = options(world.agent(&policy(rules))).start();
        Some(Self {
            client: world.workload("client"),
            agent,
            wire,
            world,
        })
    }

    /// Packets on the wire with these words: `PROTOCOL SOURCE DESTINATION BYTES`.
    pub(crate) fn wire(&self, wanted: impl Fn(&[&str]) -> bool) -> usize {
        self.wire
            .lines()
            .iter()
            .map(|line| line.split(' ').skip(1).collect::<Vec<_>>())
            .filter(|words| words.len() == 4 && wanted(words))
            .count()
    }

    /// Packets to an address that the wire has seen.
    pub(crate) fn left_to(&self, address: &str) -> usize {
        let address = address.trim_start_matches("::ffff:");
        self.wire(|words| words[2] == address)
    }

    /// Packets with these bytes in them that the wire has seen, wherever they go.
    pub(crate) fn left_with(&self, bytes: &[u8]) -> usize {
        let bytes = to_hex(bytes);
        self.wire(|words| words[3].contains(&bytes))
    }

    /// The attempt gets through to `allowed`; to `denied` no packet leaves, and that is counted.
    #[track_caller]
    pub(crate) fn stops(
        &self,
        denied: &str,
        allowed: &str,
        attempt: impl Fn(&str) -> Attempt,
    ) -> (Attempt, Counters) {
        let (refused, moved) = self.agent.counted(|| attempt(denied));
        assert!(moved.denied > 0, "{refused:?} {moved:?}");
        assert!(!refused.ok, "{refused:?}");
        self.twin(allowed, || attempt(allowed));
        assert_eq!(self.left_to(denied), 0, "{refused:?} {moved:?}");
        (refused, moved)
    }

    /// The allowed twin: it gets through, and its packets are seen.
    #[track_caller]
    pub(crate) fn twin(&self, address: &str, attempt: impl FnOnce() -> Attempt) {
        let (attempt, moved) = self.agent.counted(attempt);
        reached(&attempt);
        assert!(
            eventually(Duration::from_secs(2), || self.left_to(address) > 0),
            "no packet to {address}: {moved:?}"
        );
    }

    /// [`Bench::stops`] for IPv4 and IPv6.
    #[track_caller]
    pub(crate) fn stops_both(&self, attempt: impl Fn(&str) -> Attempt) {
        for (denied, allowed) in DENIED.into_iter().zip(ALLOWED) {
            self.stops(denied, allowed, &attempt);
        }
    }

    /// Sends a packet, header included, through a raw socket.
    pub(crate) fn emit(&self, to: &str, packet: &[u8]) -> Attempt {
        emit(&self.client, to, packet, &["--header-included"])
    }

    /// True if these bytes left the node. Waits for a packet that is sent after them: a query to the resolver.
    #[track_caller]
    pub(crate) fn leaves(&self, bytes: &[u8]) -> bool {
        self.settle();
        self.left_with(bytes) > 0
    }

    /// As [`Bench::leaves`], for packets to an address.
    #[track_caller]
    pub(crate) fn leaves_to(&self, address: &str) -> bool {
        self.settle();
        self.left_to(address) > 0
    }

    /// Waits until the wire has seen what was sent before.
    #[track_caller]
    pub(crate) fn settle(&self) {
        let resolver = zone::RESOLVER[0];
        let before = self.left_to(resolver);
        let lookup = self
            .client
            .lookup(&["api.example.com", "--server", resolver]);
        assert!(lookup.error.is_none(), "{lookup:?}");
        let seen = eventually(Duration::from_secs(2), || self.left_to(resolver) > before);
        assert!(seen, "the wire sees nothing: {}", self.wire.errors());
    }
}

/// Sends bytes through a raw socket of a workload.
pub(crate) fn emit(client: &Workload, to: &str, bytes: &[u8], more: &[&str]) -> Attempt {
    client.probe(&[&["emit", to, &to_hex(bytes)], more].concat())
}

/// The node's address of the family of another one.
pub(crate) fn node_like(address: &str) -> &'static str {
    zone::NODE[usize::from(address.contains(':'))]
}
