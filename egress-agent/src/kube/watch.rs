//! The feed: what the API server says of this node's pods and of policies, as it changes, and how sure that is.
//!
//! Eight watches, each limited to what this node needs. The view is published once all of them have listed; until then
//! the receiver has the copy that the last agent left on the disk. When the server is away, the last view stands.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use egress_common::dns::DNS_PORT;
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod as PodObject, Service},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta},
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    copy::{self, Copy},
    crd::{ClusterEgressPolicy, EgressPolicy},
    follow::Follow,
    known::{DnsService, Item, Kind, Known, Notice, Slice},
    last_right::LastRight,
    view::{ClusterView, Pod, PolicyKey, PolicyObject},
};
use crate::{api::Timestamp, shutdown::Shutdown, store::Store, workload::PodUid};

/// The cluster's DNS: a service of this namespace with this name, or with this label under any name.
const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");
/// Which service a slice of endpoints is of.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The service that stands for the API server in a cluster.
const API_SERVICE: (&str, &str) = ("default", "kubernetes");
/// Annotations of kubelet at the object that stands for a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
const MANIFEST_HASH: &str = "kubernetes.io/config.hash";
/// The least time between two views, so that a burst is one.
const BURST: Duration = Duration::from_millis(5);
/// Notices that wait.
const WAITING: usize = 256;

/// Settings of the feed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name on the server.
    pub node_name: String,
    /// How to reach the server; in a pod if left out.
    pub kubeconfig: Option<PathBuf>,
    /// Where the copy on the disk lies.
    pub state_dir: PathBuf,
}

/// The cluster as it is known, and how sure that is.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// The cluster as it is known.
    pub view: Arc<ClusterView>,
    /// How sure that is.
    pub freshness: Freshness,
    /// The last known good versions of policies that are wrong now.
    pub last_right: LastRight,
}

/// How sure a view is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Every watch has listed everything since the start of this agent.
    pub is_synced: bool,
    /// When the view was last known to be what the server has; of the disk's copy, when that was. Who waits for changes
    /// is not woken by it.
    pub heard_at: Option<Timestamp>,
    /// The view is the disk's copy. If it is neither this nor synced, nothing is known.
    pub is_from_disk: bool,
    /// Why the server does not answer now, and what is wrong with the copy on the disk.
    pub error: Option<String>,
    /// True for each kind of objects that it reports now.
    pub watches: BTreeMap<&'static str, bool>,
    /// Policies that this agent cannot read.
    pub unreadable: usize,
}

/// Why there is no feed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The file cannot be used.
    #[error("cannot use {}", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// Not in a pod.
    #[error("this is no pod with a service account; name a file with --kubeconfig")]
    NoPod(#[source] kube::config::InClusterError),
    /// No client comes of the settings.
    #[error("cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
}

/// A client of the server, the feed, and the task behind it, which ends with the signal.
pub type Started = (
    Client,
    watch::Receiver<Feed>,
    JoinHandle<anyhow::Result<()>>,
);

/// Starts the watches. The receiver has the disk's copy at once.
///
/// # Errors
///
/// It is not known how to reach the server. That it cannot be reached is no error.
pub async fn start(settings: Settings, stop: Shutdown) -> Result<Started, FeedError> {
    let config = config(settings.kubeconfig.as_deref()).await?;
    let client = Client::try_from(config).map_err(|error| FeedError::Client(Box::new(error)))?;
    let store = Store::in_folder(&settings.state_dir);
    let (feed, on_disk) = from_disk(&store, &settings.node_name);
    let known = Known::after(Arc::clone(&feed.view));
    let last_right = feed.last_right.clone();
    let (sender, receiver) = watch::channel(feed);
    let publisher = Publisher {
        known,
        copy_error: on_disk,
        sender,
        is_due: None,
        not_before: Instant::now(),
    };
    let task = tokio::spawn(run(
        client.clone(),
        settings.node_name,
        store,
        last_right,
        publisher,
        stop,
    ));
    Ok((client, receiver, task))
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, FeedError> {
    let Some(file) = kubeconfig else {
        return Config::incluster().map_err(FeedError::NoPod);
    };
    let error = |source| FeedError::Kubeconfig {
        file: file.to_owned(),
        source: Box::new(source),
    };
    let kubeconfig = Kubeconfig::read_from(file).map_err(error)?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(error)
}

/// The view that the last agent left, and its fault, if it has one.
fn from_disk(store: &Store<Copy>, node_name: &str) -> (Feed, Option<String>) {
    match copy::load(store, node_name) {
        Ok(None) => (Feed::default(), None),
        Ok(Some(copy)) => {
            let (pods, policies) = (copy.view.pods.len(), copy.view.policies.len());
            info!(heard_at = %copy.heard_at, pods, policies, "cluster taken up from the disk");
            let freshness = Freshness {
                heard_at: Some(copy.heard_at),
                is_from_disk: true,
                ..Freshness::default()
            };
            let feed = Feed {
                view: copy.view,
                freshness,
                last_right: LastRight::from(copy.last_right),
            };
            (feed, None)
        }
        Err(error) => {
            warn!(error, "the copy of the cluster cannot be taken up");
            let freshness = Freshness {
                error: Some(error.clone()),
                ..Freshness::default()
            };
            let feed = Feed {
                freshness,
                ..Feed::default()
            };
            (feed, Some(error))
        }
    }
}

/// Follows the server until the signal, then writes the last copy.
async fn run(
    client: Client,
    node_name: String,
    store: Store<Copy>,
    last_right: LastRight,
    mut publisher: Publisher,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let (sender, mut notices) = mpsc::channel(WAITING);
    // Ended when this is dropped.
    let mut watches = JoinSet::new();
    spawn_watches(&mut watches, &client, &node_name, &sender);
    let (copy_errors, mut copy_error) = watch::channel(publisher.copy_error.clone());
    let keeper = tokio::spawn(copy::keep(
        store,
        node_name,
        publisher.sender.subscribe(),
        last_right,
        copy_errors,
        stop.clone(),
    ));
    loop {
        tokio::select! {
            () = stop.requested() => break,
            Some((kind, notice)) = notices.recv() => {
                publisher.take(kind, notice);
                // Notices that came together are one view.
                while let Ok((kind, notice)) = notices.try_recv() {
                    publisher.take(kind, notice);
                }
            }
            Ok(()) = copy_error.changed() => {
                publisher.copy_error.clone_from(&copy_error.borrow_and_update());
            }
            () = until(publisher.is_due) => {}
            // They go on for ever.
            Some(ended) = watches.join_next() => ended.context("a watch of the API server ended")?,
        }
        publisher.publish();
    }
    drop(watches);
    keeper.await?;
    Ok(())
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Reports to the receivers.
struct Publisher {
    known: Known,
    /// The fault of the copy on the disk.
    copy_error: Option<String>,
    sender: watch::Sender<Feed>,
    /// When what waits is to be published.
    is_due: Option<Instant>,
    /// The next view does not come before.
    not_before: Instant,
}

impl Publisher {
    fn take(&mut self, kind: Kind, notice: Notice) {
        if let Notice::Failed(error) = &notice {
            // Each text once: the next ones are the same until the server answers.
            let is_new = !self
                .known
                .error()
                .is_some_and(|known| known.contains(error));
            if is_new {
                warn!(%kind, error, "the API server does not tell");
            }
        }
        self.known.take(kind, notice, SystemTime::now().into());
    }

    /// Publishes what is new, unless that is too soon after the last.
    fn publish(&mut self) {
        let now = Instant::now();
        let is_synced = self.known.is_synced();
        let errors = [self.known.error(), self.copy_error.clone()];
        let errors: Vec<String> = errors.into_iter().flatten().collect();
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        let watches = self.known.watches();
        let feed = self.sender.borrow();
        let is_new = feed.freshness.is_synced != is_synced
            || feed.freshness.error != error
            || feed.freshness.watches != watches
            || (is_synced && !Arc::ptr_eq(&feed.view, self.known.view()));
        let was_synced = feed.freshness.is_synced;
        drop(feed);
        if is_new && now < self.not_before {
            self.is_due = Some(self.not_before);
            return;
        }
        self.is_due = None;
        self.sender.send_if_modified(|feed| {
            if is_synced {
                feed.view = Arc::clone(self.known.view());
                feed.freshness.is_from_disk = false;
                feed.freshness.heard_at = self.known.heard_at();
            }
            feed.freshness.is_synced = is_synced;
            feed.freshness.error = error;
            feed.freshness.watches = watches;
            feed.freshness.unreadable = self.known.unreadable();
            is_new
        });
        if is_new {
            self.not_before = now.checked_add(BURST).unwrap_or(now);
        }
        if is_synced && !was_synced {
            let view = self.known.view();
            let (pods, policies) = (view.pods.len(), view.policies.len());
            info!(pods, policies, "the API server told everything");
        }
    }
}

/// Starts a watch of each kind.
fn spawn_watches(
    watches: &mut JoinSet<()>,
    client: &Client,
    node_name: &str,
    notices: &mpsc::Sender<(Kind, Notice)>,
) {
    let (dns_namespace, _) = DNS_SERVICE;
    for kind in Kind::ALL {
        let (client, notices) = (client.clone(), notices.clone());
        match kind {
            Kind::Pods => watches.spawn(
                Follow::<PartialObjectMeta<PodObject>> {
                    kind,
                    api: Api::all(client),
                    older: None,
                    labels: None,
                    fields: Some(format!("spec.nodeName={node_name}")),
                    read: {
                        let node_name = node_name.to_owned();
                        Box::new(move |object| pod(object, &node_name))
                    },
                    notices,
                }
                .run(),
            ),
            Kind::Namespaces => watches.spawn(
                Follow::<PartialObjectMeta<Namespace>> {
                    kind,
                    api: Api::all(client),
                    older: None,
                    labels: None,
                    fields: None,
                    read: Box::new(namespace),
                    notices,
                }
                .run(),
            ),
            Kind::Node => watches.spawn(
                Follow::<PartialObjectMeta<Node>> {
                    kind,
                    api: Api::all(client),
                    older: None,
                    labels: None,
                    fields: Some(format!("metadata.name={node_name}")),
                    read: Box::new(node),
                    notices,
                }
                .run(),
            ),
            Kind::EgressPolicies | Kind::ClusterEgressPolicies => {
                let resource = if kind == Kind::EgressPolicies {
                    ApiResource::erase::<EgressPolicy>(&())
                } else {
                    ApiResource::erase::<ClusterEgressPolicy>(&())
                };
                watches.spawn(
                    Follow::<DynamicObject> {
                        kind,
                        api: Api::all_with(client, &resource),
                        older: None,
                        labels: None,
                        fields: None,
                        read: Box::new(policy),
                        notices,
                    }
                    .run(),
                )
            }
            Kind::DnsServices => watches.spawn(
                Follow::<Service> {
                    kind,
                    api: Api::namespaced(client, dns_namespace),
                    older: None,
                    labels: None,
                    fields: None,
                    read: Box::new(dns_service),
                    notices,
                }
                .run(),
            ),
            Kind::DnsEndpoints => {
                // Slices carry the labels of their service.
                let (label, value) = DNS_LABEL;
                let labels = format!("{label}={value}");
                watches
                    .spawn(slices(kind, client, dns_namespace, None, Some(labels), notices).run())
            }
            Kind::ApiServers => {
                let (namespace, name) = API_SERVICE;
                let fields = format!("metadata.name={name}");
                watches.spawn(slices(kind, client, namespace, Some(fields), None, notices).run())
            }
        };
    }
}

/// Reads a pod. Annotations anybody can write: they name the UID of a static pod only where kubelet of this node made
/// the object, which it says by an owner.
fn pod(mut pod: PartialObjectMeta<PodObject>, node_name: &str) -> Option<Item> {
    let uid = pod.uid()?;
    let is_owner = |owner: &OwnerReference| {
        owner.api_version == "v1" && owner.kind == "Node" && owner.name == node_name
    };
    let is_of_node = pod.owner_references().iter().any(is_owner);
    let annotations = pod.annotations();
    let mirror_of = annotations.get(MIRROR).filter(|_| is_of_node).cloned();
    let of_static = annotations
        .get(MANIFEST_HASH)
        .filter(|_| mirror_of.is_some());
    let in_cgroup = of_static
        .and_then(|hash| PodUid::new(hash))
        .or_else(|| PodUid::new(&uid))?;
    let known = Pod {
        namespace: pod.namespace()?,
        name: pod.name_any(),
        mirror_of,
        labels: std::mem::take(pod.labels_mut()),
        uid,
    };
    Some(Item::Pod(in_cgroup, Arc::new(known)))
}

fn namespace(mut namespace: PartialObjectMeta<Namespace>) -> Option<Item> {
    let labels = std::mem::take(namespace.labels_mut());
    Some(Item::Namespace(namespace.metadata.name?, labels))
}

fn node(mut node: PartialObjectMeta<Node>) -> Option<Item> {
    Some(Item::Node(std::mem::take(node.labels_mut())))
}

/// Reads a policy for itself: one that this agent cannot read takes no other with it.
fn policy(mut object: DynamicObject) -> Option<Item> {
    let key = PolicyKey {
        namespace: object.metadata.namespace.take(),
        name: object.metadata.name.take()?,
    };
    let spec = object.data.get_mut("spec").map(serde_json::Value::take);
    let policy = match serde_json::from_value(spec.unwrap_or_default()) {
        Ok(spec) => Ok(Arc::new(PolicyObject {
            uid: object.metadata.uid.unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            spec,
        })),
        Err(error) => Err(format!(
            "this agent cannot read it, so that it stays as it was before: {error}"
        )),
    };
    Some(Item::Policy(key, policy))
}

/// A watch of slices of endpoints.
fn slices(
    kind: Kind,
    client: Client,
    namespace: &str,
    fields: Option<String>,
    labels: Option<String>,
    notices: mpsc::Sender<(Kind, Notice)>,
) -> Follow<DynamicObject> {
    let of = |version| {
        let kind = GroupVersionKind::gvk("discovery.k8s.io", version, "EndpointSlice");
        ApiResource::from_gvk(&kind)
    };
    Follow {
        kind,
        api: Api::namespaced_with(client.clone(), namespace, &of("v1")),
        // Servers before 1.21 know this alone.
        older: Some(Api::namespaced_with(client, namespace, &of("v1beta1"))),
        fields,
        labels,
        read: Box::new(slice),
        notices,
    }
}

/// Reads a slice. Whether an endpoint is ready does not matter: one that is about to end still answers.
fn slice(object: DynamicObject) -> Option<Item> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Read {
        endpoints: Option<Vec<Endpoint>>,
        ports: Option<Vec<Port>>,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Endpoint {
        addresses: Option<Vec<String>>,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Port {
        name: Option<String>,
        port: Option<u16>,
    }
    let name = object.metadata.name?;
    let labels = object.metadata.labels.unwrap_or_default();
    let service = labels.get(SERVICE_LABEL).cloned().unwrap_or_default();
    let read: Read = serde_json::from_value(object.data).ok()?;
    let ports = read.ports.unwrap_or_default();
    let endpoints = read.endpoints.unwrap_or_default().into_iter();
    let addresses = endpoints.flat_map(|endpoint| endpoint.addresses.unwrap_or_default());
    // Names in the place of addresses are of services that lead elsewhere.
    let addresses = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
    let endpoints = addresses.flat_map(|address| {
        ports.iter().filter_map(move |port| {
            let name = port.name.clone().unwrap_or_default();
            Some((name, SocketAddr::new(address, port.port?)))
        })
    });
    let endpoints = endpoints.collect();
    Some(Item::Slice(name, Slice { service, endpoints }))
}

/// Reads a service of kube-system.
fn dns_service(service: Service) -> Option<Item> {
    let name = service.metadata.name?;
    let labels = service.metadata.labels.unwrap_or_default();
    let (label, value) = DNS_LABEL;
    let is_labelled = labels.get(label).is_some_and(|of| of == value);
    if !is_labelled && name != DNS_SERVICE.1 {
        return Some(Item::DnsService(name, None));
    }
    let spec = service.spec.unwrap_or_default();
    // Servers before 1.20 know one address alone; a service without has `None`.
    let addresses = spec
        .cluster_ips
        .unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let addresses = addresses
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let ports = spec.ports.unwrap_or_default().into_iter();
    let ports = ports
        .filter(|port| port.port == i32::from(DNS_PORT))
        .map(|port| port.name.unwrap_or_default())
        .collect();
    Some(Item::DnsService(
        name,
        Some(DnsService { addresses, ports }),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const VICTIM: &str = "0f6c1d2e-3a4b-4c5d-8e6f-708192a3b4c5";
    const OWN: &str = "11111111-1111-4111-8111-111111111111";

    /// The cgroup that an object is of, and whether it stands for a static pod.
    fn read(owners: Value, annotations: Value) -> (String, bool) {
        let object = json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": {
                "name": "x", "namespace": "aaa", "uid": OWN,
                "ownerReferences": owners, "annotations": annotations,
            },
        });
        let Some(Item::Pod(cgroup, pod)) = pod(serde_json::from_value(object).unwrap(), "n1")
        else {
            panic!("no pod");
        };
        assert_eq!(pod.uid, OWN);
        (cgroup.to_string(), pod.mirror_of.is_some())
    }

    #[test]
    fn annotations_count_only_at_what_this_node_owns() {
        let marks = json!({ MIRROR: VICTIM, MANIFEST_HASH: VICTIM });
        let owner = |version: &str, kind: &str, name: &str| json!([{ "apiVersion": version, "kind": kind, "name": name, "uid": "1" }]);
        assert_eq!(
            read(owner("v1", "Node", "n1"), marks.clone()),
            (VICTIM.to_owned(), true)
        );
        for (owners, annotations) in [
            (json!([]), marks.clone()),
            (owner("v1", "Node", "n2"), marks.clone()),
            (owner("v1", "ConfigMap", "n1"), marks.clone()),
            (owner("apps/v1", "Node", "n1"), marks),
            (owner("v1", "Node", "n1"), json!({ MANIFEST_HASH: VICTIM })),
        ] {
            let shown = format!("{owners} {annotations}");
            assert_eq!(
                read(owners, annotations),
                (OWN.to_owned(), false),
                "{shown}"
            );
        }
    }

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_slice_is_its_addresses_at_its_ports_ready_or_not() {
        let read = slice(object(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "kube-dns-x", "labels": { SERVICE_LABEL: "kube-dns" } },
            "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.244.0.7"], "conditions": { "ready": true } },
                { "addresses": ["10.244.0.8", "no address"], "conditions": { "ready": false } },
            ],
            "ports": [{ "name": "dns", "port": 5353, "protocol": "UDP" }, { "port": 53 }, { "name": "any" }],
        })));
        let Some(Item::Slice(name, slice)) = read else {
            panic!("no slice");
        };
        assert_eq!(
            (name.as_str(), slice.service.as_str()),
            ("kube-dns-x", "kube-dns")
        );
        let shown: Vec<String> = slice
            .endpoints
            .iter()
            .map(|(port, endpoint)| format!("{port}={endpoint}"))
            .collect();
        assert_eq!(
            shown,
            [
                "=10.244.0.7:53",
                "=10.244.0.8:53",
                "dns=10.244.0.7:5353",
                "dns=10.244.0.8:5353"
            ]
        );
    }

    #[test]
    fn the_clusters_dns_is_known_by_its_name_or_its_label_and_its_port() {
        let read = |name: &str, label: &str| {
            let service = json!({
                "metadata": { "name": name, "labels": { "k8s-app": label } },
                "spec": {
                    "clusterIP": "10.96.0.10",
                    "clusterIPs": ["10.96.0.10", "fd00::a"],
                    "ports": [
                        { "name": "dns", "port": 53, "protocol": "UDP" },
                        { "name": "metrics", "port": 9153 },
                    ],
                },
            });
            match dns_service(serde_json::from_value(service).unwrap()) {
                Some(Item::DnsService(_, service)) => service,
                other => panic!("{other:?}"),
            }
        };
        let dns = DnsService {
            addresses: vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
            ports: ["dns".to_owned()].into(),
        };
        assert_eq!(read("kube-dns", "anything"), Some(dns.clone()));
        assert_eq!(read("rke2-coredns-rke2-coredns", "kube-dns"), Some(dns));
        assert_eq!(read("metrics-server", "metrics-server"), None);
    }
}
