//! The node: its resolvers, search domains and addresses, as they are now or were when they could last be read.
//!
//! They are compared with what is in force, whenever the kernel says that one may have changed and from time to time. What
//! cannot be read stays as it was, also over a restart; `status` then says since when.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use egress_common::{
    dns::DNS_PORT,
    maps::{LOCAL_CAPACITY, RESOLVERS_CAPACITY},
};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use super::{
    shared::{Shared, lock},
    state_writer::StateWriter,
};
use crate::{
    api::Timestamp,
    cli::RunOptions,
    kube::ClusterView,
    policy::address_from,
    shutdown::Shutdown,
    store::{Kept, Store},
    workload::{
        AddressWatch, FileWatch, LocalCache, RESOLV_CONF, RESOLVED_CONF, ResolvConf, local_caches,
        own_addresses, resolver_text,
    },
};

/// How often the node is looked at although nothing was heard.
const POLL: Duration = Duration::from_secs(5);
/// The same while something cannot be watched.
const POLL_UNWATCHED: Duration = Duration::from_millis(500);
/// From hearing of a change to the look: a file that is written has then been written, mostly.
const SETTLE: Duration = Duration::from_millis(40);

/// A value that nobody gave, or somebody did, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The kind: `resolver`, `api-server`, `search-domain`.
    pub(super) what: &'static str,
    pub(super) value: String,
    pub(super) from: String,
}

/// Servers that a cluster reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClusterServers {
    /// Addresses of its DNS services.
    pub(super) dns_service: Vec<IpAddr>,
    /// The endpoints behind them.
    pub(super) dns_endpoints: Vec<SocketAddr>,
    /// Its API servers.
    pub(super) api_servers: Vec<SocketAddr>,
}

impl From<&ClusterView> for ClusterServers {
    fn from(view: &ClusterView) -> Self {
        Self {
            dns_service: view.dns_service.clone(),
            dns_endpoints: view.dns_endpoints.clone(),
            api_servers: view.api_servers.clone(),
        }
    }
}

/// The node's facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeNow {
    /// Trusted resolvers.
    pub(super) resolvers: Vec<SocketAddr>,
    /// The API servers.
    pub(super) api_servers: Vec<SocketAddr>,
    /// Where all of it is from.
    pub(super) found: Vec<Found>,
    /// Resolvers for which there is no room.
    pub(super) left_out: usize,
    /// Domains below which any name may be asked for.
    pub(super) search_domains: Vec<String>,
    /// The node's own addresses.
    pub(super) addresses: Vec<IpAddr>,
}

/// The part of it that is kept on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptNode {
    version: u32,
    /// When resolv.conf was read.
    read_at: Timestamp,
    resolvers: Vec<IpAddr>,
    search_domains: Vec<String>,
}

impl Kept for KeptNode {
    const FILE: &'static str = "node.json";
    const VERSION: u32 = 1;
    const MAX_BYTES: u64 = 1 << 20;
    const LOST: &'static str = "the resolvers before this start are not known";
}

/// The node, as it was when it could last be read.
#[derive(Debug)]
pub(super) struct Node {
    /// Resolvers and search domains that were given stand for those of the node.
    given_resolvers: Option<Vec<SocketAddr>>,
    given_search_domains: Option<Vec<String>>,
    /// True if pods are judged, each of which has a loopback of its own.
    is_in_cluster: bool,
    /// None where nothing is kept.
    store: Option<Store<KeptNode>>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    resolv_conf: ResolvConf,
    addresses: Vec<IpAddr>,
    caches: Vec<LocalCache>,
    /// Values that cannot be read now, since when and why.
    troubles: BTreeMap<&'static str, (SystemTime, String)>,
    /// The values on the disk, or on their way there.
    kept: Option<ResolvConf>,
}

/// The domain of a cluster that was not given another one: the default of kubelet's `clusterDomain`.
const CLUSTER_DOMAIN: &str = "cluster.local";

const RESOLVERS: &str = "resolvers";
const ADDRESSES: &str = "addresses";

impl Node {
    /// Takes up what the last agent knew, if it can be read.
    pub(super) fn open(options: &RunOptions) -> Self {
        let is_kept = !options.are_resolvers_given && !options.state_dir.as_os_str().is_empty();
        let store = is_kept.then(|| Store::<KeptNode>::in_folder(&options.state_dir));
        let mut known = Known::default();
        if let Some(store) = &store {
            match store.load() {
                Ok(None) => {}
                Ok(Some(kept)) => {
                    known.resolv_conf = ResolvConf {
                        resolvers: kept.resolvers,
                        behind: Vec::new(),
                        search_domains: kept.search_domains,
                    };
                    known.kept = Some(known.resolv_conf.clone());
                }
                Err(error) => warn!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "the resolvers of before cannot be taken up"
                ),
            }
        }
        Self {
            given_resolvers: options
                .are_resolvers_given
                .then(|| options.resolvers.clone()),
            given_search_domains: options
                .are_search_domains_given
                .then(|| options.search_domains.clone()),
            is_in_cluster: options.kubernetes.is_some(),
            store,
            known: Mutex::new(known),
        }
    }

    /// Looks at the node; what cannot be read is as it was.
    pub(super) fn look(&self, writer: &StateWriter) -> NodeNow {
        // Read without the lock: a file may be slow.
        let now = SystemTime::now();
        let addresses = own_addresses();
        let is_needed = self.given_resolvers.is_none() || self.given_search_domains.is_none();
        let read = if self.is_in_cluster {
            ResolvConf::read_in_cluster
        } else {
            ResolvConf::read
        };
        let resolv_conf = is_needed.then(read);
        let caches = local_caches();
        let mut known = lock(&self.known);
        known.take_addresses(addresses, now);
        // Where they cannot be listed, the addresses say so.
        if let Ok(caches) = caches {
            known.caches = caches;
        }
        if let Some(resolv_conf) = resolv_conf {
            known.take_resolv_conf(resolv_conf, now, self.given_resolvers.is_some());
        }
        self.keep(&mut known, writer, now);
        self.now(&known)
    }

    /// The node as it was at the last look.
    pub(super) fn last(&self) -> NodeNow {
        self.now(&lock(&self.known))
    }

    fn now(&self, known: &Known) -> NodeNow {
        let mut now = NodeNow {
            addresses: known.addresses.clone(),
            ..NodeNow::default()
        };
        let given = self.given_resolvers.iter().flatten();
        given.for_each(|resolver| now.resolver(*resolver, "--resolver"));
        if self.given_resolvers.is_none() {
            let conf = &known.resolv_conf;
            for address in &conf.resolvers {
                let is_behind = conf.behind.contains(address);
                let file = if is_behind {
                    RESOLVED_CONF
                } else {
                    RESOLV_CONF
                };
                now.resolver(SocketAddr::new(*address, DNS_PORT), file);
            }
            for cache in &known.caches {
                let resolver = SocketAddr::new(cache.address, DNS_PORT);
                now.resolver(
                    resolver,
                    &format!("cache on this node, {}", cache.interface),
                );
            }
        }
        let (domains, from) = match &self.given_search_domains {
            Some(given) => (given, "--search-domain"),
            None => (&known.resolv_conf.search_domains, RESOLV_CONF),
        };
        domains
            .iter()
            .for_each(|domain| now.search_domain(domain, from));
        now
    }

    /// Has the last known good resolvers kept, where they are others.
    fn keep(&self, known: &mut Known, writer: &StateWriter, now: SystemTime) {
        let is_good = !known.resolv_conf.resolvers.is_empty();
        let Some(store) = self.store.clone() else {
            return;
        };
        if !is_good || known.kept.as_ref() == Some(&known.resolv_conf) {
            return;
        }
        known.kept = Some(known.resolv_conf.clone());
        let kept = KeptNode {
            version: KeptNode::VERSION,
            read_at: Timestamp::from(now),
            resolvers: known.resolv_conf.resolvers.clone(),
            search_domains: known.resolv_conf.search_domains.clone(),
        };
        writer.write(KeptNode::FILE, move || {
            if let Err(error) = store.save(&kept) {
                let error = format!("{:#}", anyhow::Error::new(error));
                warn!(error, "the resolvers cannot be kept");
            }
        });
    }

    /// Values that cannot be read, in sentences.
    pub(super) fn faults(&self) -> Vec<String> {
        let known = lock(&self.known);
        let mut faults = Vec::new();
        if let Some((since, why)) = known.troubles.get(RESOLVERS) {
            let since = Timestamp::from(*since);
            faults.push(if known.resolv_conf.resolvers.is_empty() {
                format!(
                    "no resolver is trusted, no name can be learned: {why}, since {since}; give --resolver, or write a nameserver line"
                )
            } else {
                format!("the last known good resolvers stay: {why}, since {since}")
            });
        }
        if let Some((since, why)) = known.troubles.get(ADDRESSES) {
            let since = Timestamp::from(*since);
            faults.push(format!(
                "the node's last known addresses stay: the kernel does not list them: {why}, since {since}"
            ));
        }
        faults
    }
}

impl Known {
    fn take_addresses(&mut self, addresses: io::Result<Vec<IpAddr>>, now: SystemTime) {
        match addresses {
            Ok(addresses) => {
                self.addresses = addresses;
                self.good(ADDRESSES);
            }
            Err(error) => self.trouble(ADDRESSES, error.to_string(), now),
        }
    }

    fn take_resolv_conf(
        &mut self,
        read: Result<ResolvConf, String>,
        now: SystemTime,
        are_resolvers_given: bool,
    ) {
        match read {
            Ok(resolv_conf) => {
                self.resolv_conf = resolv_conf;
                self.good(RESOLVERS);
            }
            // Nobody needs them from there.
            Err(_) if are_resolvers_given => {}
            Err(why) => self.trouble(RESOLVERS, why, now),
        }
    }

    fn good(&mut self, what: &'static str) {
        if self.troubles.remove(what).is_some() {
            info!(what, "the node can be read again");
        }
    }

    fn trouble(&mut self, what: &'static str, why: String, now: SystemTime) {
        match self.troubles.get_mut(what) {
            Some((_, known)) => *known = why,
            None => {
                error!(what, why, "the node cannot be read: what was known stays");
                self.troubles.insert(what, (now, why));
            }
        }
    }
}

/// Hears of changes.
pub(super) struct NodeWatch {
    addresses: Option<AddressWatch>,
    files: Option<FileWatch>,
}

impl NodeWatch {
    /// Begins to hear of changes, before the node is looked at for the first time. Needs a runtime.
    pub(super) fn begin() -> Self {
        let addresses = AddressWatch::begin();
        if let Err(error) = &addresses {
            warn!(%error, "addresses cannot be watched: they are looked at twice a second");
        }
        let files = FileWatch::of_resolvers();
        if let Err(error) = &files {
            warn!(%error, "resolv.conf cannot be watched: it is looked at twice a second");
        }
        Self {
            addresses: addresses.ok(),
            files: files.ok(),
        }
    }

    fn is_whole(&self) -> bool {
        self.addresses.is_some() && self.files.is_some()
    }

    /// Waits until something may have changed; for ever where nothing can be heard.
    async fn changed(&mut self) {
        let of_addresses = async {
            match &mut self.addresses {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let of_files = async {
            match &mut self.files {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let (is_deaf, is_blind) = tokio::select! {
            is_heard = of_addresses => (!is_heard, false),
            heard = of_files => (false, heard.is_err()),
        };
        if is_deaf {
            warn!("addresses are not watched any more: they are looked at twice a second");
            self.addresses = None;
        }
        if is_blind {
            warn!("resolv.conf is not watched any more: it is looked at twice a second");
            self.files = None;
        }
    }
}

/// Follows the node until it is asked to stop.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut watch: NodeWatch,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let polled = |watch: &NodeWatch| {
        let mut poll = interval(if watch.is_whole() {
            POLL
        } else {
            POLL_UNWATCHED
        });
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll
    };
    let mut poll = polled(&watch);
    loop {
        let was_whole = watch.is_whole();
        tokio::select! {
            // The first one comes at once: what changed during the start.
            _ = poll.tick() => {}
            () = watch.changed() => sleep(SETTLE).await,
            () = stop.requested() => return Ok(()),
        }
        if was_whole != watch.is_whole() {
            poll = polled(&watch);
        }
        let follower = Arc::clone(&shared);
        let looked = tokio::task::spawn_blocking(move || follower.follow_node());
        tokio::select! {
            looked = looked => looked?,
            // A file that is not answered for is not waited for.
            () = stop.requested() => return Ok(()),
        }
    }
}

impl Shared {
    /// Brings into force what the node is now, where it is something else.
    fn follow_node(&self) {
        self.node.look(&self.state_writer);
        let now = self.node_now();
        let Some(in_force) = self.in_force() else {
            return;
        };
        let facts = &in_force.facts;
        let local = now.addresses.iter().copied().map(address_from);
        if facts.resolvers == now.resolvers
            && facts.found == now.found
            && facts.search_domains == now.search_domains
            && facts.local.iter().copied().eq(local)
        {
            return;
        }
        match self.take_node() {
            Ok(()) => info!(
                resolvers = ?now.resolvers,
                addresses = now.addresses.len(),
                "the node's resolvers and addresses taken up"
            ),
            Err(error) => error!(
                error = format!("{error:#}"),
                "the node's resolvers and addresses are not in force; tried again"
            ),
        }
    }

    /// The node at the last look, with the resolvers of its cluster.
    pub(super) fn node_now(&self) -> NodeNow {
        let mut now = self.node.last();
        let servers = lock(&self.cluster_servers).clone();
        if !self.options.are_resolvers_given {
            now.resolvers_of(&servers);
        }
        match self.options.api_server {
            Some(given) => now.api_server(given, "--api-server"),
            None => {
                let of_pod = self.options.api_service;
                of_pod
                    .into_iter()
                    .for_each(|server| now.api_server(server, "KUBERNETES_SERVICE_HOST"));
                let told = servers.api_servers.iter();
                told.for_each(|server| now.api_server(*server, "endpoints of default/kubernetes"));
            }
        }
        // A pod asks for every name below its namespace's domain first, and for the services' and the cluster's, which
        // cover that one.
        if self.options.kubernetes.is_some() && !self.options.are_search_domains_given {
            now.search_domain(CLUSTER_DOMAIN, "the usual domain of clusters");
        }
        now
    }
}

impl NodeNow {
    fn found(&mut self, what: &'static str, value: String, from: &str) {
        let from = from.to_owned();
        self.found.push(Found { what, value, from });
    }

    fn resolver(&mut self, resolver: SocketAddr, from: &str) {
        if !self.resolvers.contains(&resolver) {
            self.resolvers.push(resolver);
            self.found("resolver", resolver_text(&resolver), from);
        }
    }

    /// Adds the DNS of the cluster. Of what stands behind its services, only what there is room for: without a load
    /// balancer at sockets nobody asks it directly.
    fn resolvers_of(&mut self, servers: &ClusterServers) {
        for address in &servers.dns_service {
            let resolver = SocketAddr::new(*address, DNS_PORT);
            self.resolver(resolver, "the cluster's DNS service");
        }
        let most = usize::try_from(RESOLVERS_CAPACITY).unwrap_or(usize::MAX);
        for endpoint in &servers.dns_endpoints {
            if self.resolvers.len() < most || self.resolvers.contains(endpoint) {
                self.resolver(*endpoint, "endpoint of the cluster's DNS service");
            } else {
                self.left_out = self.left_out.saturating_add(1);
            }
        }
    }

    fn api_server(&mut self, server: SocketAddr, from: &str) {
        if !self.api_servers.contains(&server) {
            self.api_servers.push(server);
            self.found("api-server", server.to_string(), from);
        }
    }

    fn search_domain(&mut self, domain: &str, from: &str) {
        if !self.search_domains.iter().any(|known| known == domain) {
            self.search_domains.push(domain.to_owned());
            self.found("search-domain", domain.to_owned(), from);
        }
    }

    /// Checks that the kernel has room for it.
    ///
    /// # Errors
    ///
    /// The limit.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let fits = |count: usize, most: u32| u32::try_from(count).is_ok_and(|count| count <= most);
        anyhow::ensure!(
            fits(self.resolvers.len(), RESOLVERS_CAPACITY),
            "{} resolvers are given, and at most {RESOLVERS_CAPACITY} can be trusted: give fewer",
            self.resolvers.len()
        );
        anyhow::ensure!(
            fits(self.addresses.len(), LOCAL_CAPACITY),
            "the node has {} addresses, and at most {LOCAL_CAPACITY} fit",
            self.addresses.len()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(resolver: &str) -> ResolvConf {
        ResolvConf {
            resolvers: vec![resolver.parse().expect("an address")],
            behind: Vec::new(),
            search_domains: vec!["example".to_owned()],
        }
    }

    #[test]
    fn what_cannot_be_read_stays_and_says_since_when() {
        let mut known = Known::default();
        let start = SystemTime::UNIX_EPOCH;
        let after = |seconds| {
            start
                .checked_add(Duration::from_secs(seconds))
                .expect("in range")
        };
        let node = |known| Node {
            given_resolvers: None,
            given_search_domains: None,
            is_in_cluster: false,
            store: None,
            known: Mutex::new(known),
        };
        known.take_resolv_conf(Err("empty".to_owned()), start, false);
        let first = node(known);
        assert_eq!(first.last().resolvers, Vec::<SocketAddr>::new());
        assert!(first.faults()[0].starts_with("no resolver is trusted"));

        let mut known = first.known.into_inner().expect("not poisoned");
        known.take_resolv_conf(Ok(conf("192.0.2.1")), after(1), false);
        known.take_addresses(Ok(vec![IpAddr::from([192, 0, 2, 9])]), after(1));
        let good = node(known);
        assert_eq!(good.faults(), Vec::<String>::new());
        let before = good.last();

        let mut known = good.known.into_inner().expect("not poisoned");
        known.take_resolv_conf(Err("empty".to_owned()), after(2), false);
        known.take_resolv_conf(Err("gone".to_owned()), after(3), false);
        known.take_addresses(Err(io::ErrorKind::OutOfMemory.into()), after(4));
        let bad = node(known);
        assert_eq!(bad.last(), before);
        let faults = bad.faults().join("\n");
        assert!(
            faults.contains("last known good resolvers stay: gone, since 1970-01-01T00:00:02"),
            "{faults}"
        );
        assert!(faults.contains("addresses stay"), "{faults}");
    }

    #[test]
    fn given_resolvers_need_no_file() {
        let mut known = Known::default();
        known.take_resolv_conf(Err("empty".to_owned()), SystemTime::UNIX_EPOCH, true);
        assert!(known.troubles.is_empty());
    }

    #[test]
    fn the_clusters_dns_is_beside_what_the_node_asks_and_each_says_where_it_is_from() {
        let mut now = NodeNow::default();
        now.resolver("192.0.2.53:53".parse().expect("an address"), RESOLV_CONF);
        now.resolvers_of(&ClusterServers {
            dns_service: vec![IpAddr::from([10, 96, 0, 10]), IpAddr::from([192, 0, 2, 53])],
            dns_endpoints: (0..300_u32)
                .map(|n| SocketAddr::new(IpAddr::from(n.to_be_bytes()), 5353))
                .collect(),
            api_servers: Vec::new(),
        });
        let shown: Vec<String> = now
            .found
            .iter()
            .take(3)
            .map(|found| format!("{} {}", found.value, found.from))
            .collect();
        assert_eq!(
            shown,
            [
                "192.0.2.53 /etc/resolv.conf",
                "10.96.0.10 the cluster's DNS service",
                "0.0.0.0:5353 endpoint of the cluster's DNS service"
            ]
        );
        // A value that does not fit is left out and reported, and keeps nothing else from being in force.
        assert_eq!((now.resolvers.len(), now.left_out), (256, 46));
        assert!(now.check().is_ok());
    }

    #[test]
    fn more_than_fits_is_refused_with_the_limit() {
        let many = |count: u32| NodeNow {
            resolvers: (0..count)
                .map(|n| SocketAddr::new(IpAddr::from(n.to_be_bytes()), DNS_PORT))
                .collect(),
            ..NodeNow::default()
        };
        assert!(many(256).check().is_ok());
        let error = many(257).check().expect_err("too many").to_string();
        assert!(
            error.contains("257") && error.contains("at most 256"),
            "{error}"
        );
    }
}
