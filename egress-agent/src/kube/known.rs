//! Reports of the watches, put together to a view. Pure: no clock, no server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::view::{ClusterView, Labels, Pod, PolicyKey, PolicyObject};
use crate::{api::Timestamp, workload::PodUid};

/// Kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Pods,
    Namespaces,
    Node,
    EgressPolicies,
    ClusterEgressPolicies,
    DnsServices,
    DnsEndpoints,
    ApiServers,
}

impl Kind {
    pub(super) const ALL: [Self; 8] = [
        Self::Pods,
        Self::Namespaces,
        Self::Node,
        Self::EgressPolicies,
        Self::ClusterEgressPolicies,
        Self::DnsServices,
        Self::DnsEndpoints,
        Self::ApiServers,
    ];

    /// True if a view is of use without it: options can give what it reports, and a server may refuse it.
    const fn can_be_missing(self) -> bool {
        matches!(
            self,
            Self::DnsServices | Self::DnsEndpoints | Self::ApiServers
        )
    }

    /// The remedy where the server does not have it.
    pub(super) const fn unknown(self) -> &'static str {
        match self {
            Self::EgressPolicies | Self::ClusterEgressPolicies => {
                "the server does not know this kind; install it with `kubectl apply -k deploy/crds`"
            }
            Self::Pods
            | Self::Namespaces
            | Self::Node
            | Self::DnsServices
            | Self::DnsEndpoints
            | Self::ApiServers => "the server does not know this kind",
        }
    }
}

impl Kind {
    /// The server's name for it.
    const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::Node => "nodes",
            Self::EgressPolicies => "egresspolicies",
            Self::ClusterEgressPolicies => "clusteregresspolicies",
            Self::DnsServices => "services",
            Self::DnsEndpoints => "dns_endpoints",
            Self::ApiServers => "api_servers",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object, as far as it matters.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// With the UID that its cgroup carries: its own, or the one that it says kubelet knows a static pod by.
    Pod(PodUid, Arc<Pod>),
    Namespace(String, Labels),
    Node(Labels),
    /// An error: why this agent cannot read it.
    Policy(PolicyKey, Result<Arc<PolicyObject>, String>),
    /// A service of kube-system; none: it is not the cluster's DNS.
    DnsService(String, Option<DnsService>),
    /// A slice of what stands behind services.
    Slice(String, Slice),
}

/// The cluster's DNS, as a service of it has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DnsService {
    pub(super) addresses: Vec<IpAddr>,
    /// Names of its ports for queries; of an unnamed one: empty.
    pub(super) ports: BTreeSet<String>,
}

/// A part of what stands behind a service: each address at each port, with the port's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) service: String,
    pub(super) endpoints: BTreeSet<(String, SocketAddr)>,
}

/// A report of a watch.
#[derive(Clone, Debug)]
pub(super) enum Notice {
    /// All that there is.
    Listed(Vec<Item>),
    /// A new object, or what became of one.
    Changed(Item),
    /// An object that is gone.
    Gone(Item),
    /// The earlier reports are still all.
    Heard,
    /// The server does not answer, or not as it should.
    Failed(String),
}

/// State of one watch.
#[derive(Clone, Debug, Default)]
struct Watched {
    is_listed: bool,
    heard_at: Option<Timestamp>,
    error: Option<String>,
}

/// The pod of each cgroup.
type Pods = BTreeMap<PodUid, Arc<Pod>>;
/// Objects that claim a cgroup without a right to it.
type Contested = BTreeMap<PodUid, Vec<Arc<Pod>>>;

/// All that the watches reported.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    view: Arc<ClusterView>,
    /// Pods of this node by the UIDs of their objects, each with the one that its cgroup is said to carry.
    objects: BTreeMap<String, (PodUid, Arc<Pod>)>,
    watched: BTreeMap<Kind, Watched>,
    dns_services: BTreeMap<String, DnsService>,
    dns_slices: BTreeMap<String, Slice>,
    api_slices: BTreeMap<String, Slice>,
    /// Policies that this agent cannot read, and why. What was known of them before stands.
    unreadable: BTreeMap<PolicyKey, String>,
}

impl Known {
    /// Nothing, after this view: what it has stands for objects that this agent cannot read.
    pub(super) fn after(view: Arc<ClusterView>) -> Self {
        Self {
            view,
            ..Self::default()
        }
    }

    /// The view; not of use before everything is listed.
    pub(super) const fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    /// True if every watch has listed everything.
    pub(super) fn is_synced(&self) -> bool {
        let is_known = |kind: &Kind| {
            self.watched.get(kind).is_some_and(|watched| {
                watched.is_listed || (kind.can_be_missing() && watched.error.is_some())
            })
        };
        Kind::ALL.iter().all(is_known)
    }

    fn is_listed(&self, kind: Kind) -> bool {
        let watched = self.watched.get(&kind);
        watched.is_some_and(|watched| watched.is_listed)
    }

    /// When all of the view was last known to be what the server has.
    pub(super) fn heard_at(&self) -> Option<Timestamp> {
        let heard_at = |kind| self.watched.get(kind).and_then(|watched| watched.heard_at);
        // None is before everything.
        let needed = Kind::ALL.iter().filter(|kind| !kind.can_be_missing());
        needed.map(heard_at).min().flatten()
    }

    /// True for each kind that the server reports now.
    pub(super) fn watches(&self) -> BTreeMap<&'static str, bool> {
        let tells = |kind| {
            let watched = self.watched.get(&kind);
            watched.is_some_and(|watched| watched.is_listed && watched.error.is_none())
        };
        Kind::ALL.map(|kind| (kind.name(), tells(kind))).into()
    }

    /// How many policies this agent cannot read.
    pub(super) fn unreadable(&self) -> usize {
        self.unreadable.len()
    }

    /// Why something is not reported, in one line; the same of several kinds once.
    pub(super) fn error(&self) -> Option<String> {
        let mut by_text = BTreeMap::<&str, Vec<String>>::new();
        for (kind, watched) in &self.watched {
            if let Some(error) = &watched.error {
                by_text.entry(error).or_default().push(kind.to_string());
            }
        }
        for (key, error) in &self.unreadable {
            by_text.entry(error).or_default().push(key.to_string());
        }
        let parts: Vec<String> = by_text
            .into_iter()
            .map(|(error, of)| format!("{}: {error}", of.join(", ")))
            .collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Takes a notice.
    pub(super) fn take(&mut self, kind: Kind, notice: Notice, now: Timestamp) {
        let watched = self.watched.entry(kind).or_default();
        if let Notice::Failed(error) = notice {
            watched.error = Some(error);
            return;
        }
        watched.error = None;
        watched.heard_at = Some(now);
        watched.is_listed |= matches!(notice, Notice::Listed(_));
        match notice {
            Notice::Listed(items) => self.replace(kind, items),
            Notice::Changed(item) => self.change(kind, item),
            Notice::Gone(item) => self.remove(kind, item),
            Notice::Heard | Notice::Failed(_) => {}
        }
    }

    /// Puts what was listed in the place of what was known, in one step.
    fn replace(&mut self, kind: Kind, items: Vec<Item>) {
        let old = &self.view;
        let mut new = ClusterView::clone(old);
        match kind {
            Kind::Pods => self.objects.clear(),
            Kind::Namespaces => new.namespaces.clear(),
            Kind::Node => new.node.clear(),
            Kind::EgressPolicies => {
                Arc::make_mut(&mut new.policies).retain(|key, _| key.namespace.is_none())
            }
            Kind::ClusterEgressPolicies => {
                Arc::make_mut(&mut new.policies).retain(|key, _| key.namespace.is_some())
            }
            Kind::DnsServices => self.dns_services.clear(),
            Kind::DnsEndpoints => self.dns_slices.clear(),
            Kind::ApiServers => self.api_slices.clear(),
        }
        self.unreadable.retain(|key, _| match kind {
            Kind::EgressPolicies => key.namespace.is_none(),
            Kind::ClusterEgressPolicies => key.namespace.is_some(),
            Kind::Pods
            | Kind::Namespaces
            | Kind::Node
            | Kind::DnsServices
            | Kind::DnsEndpoints
            | Kind::ApiServers => true,
        });
        for item in items {
            match item {
                Item::Pod(cgroup, pod) => {
                    let pod = kept_or_new(old.pods.get(&cgroup), pod);
                    self.objects.insert(pod.uid.clone(), (cgroup, pod));
                }
                Item::Namespace(name, labels) => {
                    new.namespaces.insert(name, labels);
                }
                Item::Node(labels) => new.node = labels,
                Item::Policy(key, Ok(policy)) => {
                    let policy = kept_or_new(old.policies.get(&key), policy);
                    Arc::make_mut(&mut new.policies).insert(key, policy);
                }
                Item::Policy(key, Err(error)) => {
                    if let Some(known) = old.policies.get(&key) {
                        Arc::make_mut(&mut new.policies).insert(key.clone(), Arc::clone(known));
                    }
                    self.unreadable.insert(key, error);
                }
                Item::DnsService(name, service) => {
                    self.dns_services
                        .extend(service.map(|service| (name, service)));
                }
                Item::Slice(name, slice) => {
                    let slices = if kind == Kind::ApiServers {
                        &mut self.api_slices
                    } else {
                        &mut self.dns_slices
                    };
                    slices.insert(name, slice);
                }
            }
        }
        self.name_servers(&mut new);
        if kind == Kind::Pods {
            (new.pods, new.contested) = pods_of(&self.objects);
        }
        if new != **old {
            self.view = Arc::new(new);
        }
    }

    /// Takes over what became of an object. The view is only copied when that matters and somebody holds it.
    fn change(&mut self, kind: Kind, item: Item) {
        let view = &self.view;
        match item {
            Item::Pod(cgroup, pod) => {
                let known = self.objects.get(&pod.uid);
                if known.is_none_or(|(of, known)| (of, known) != (&cgroup, &pod)) {
                    self.objects.insert(pod.uid.clone(), (cgroup, pod));
                    self.name_pods();
                }
            }
            Item::Namespace(name, labels) => {
                if view.namespaces.get(&name) != Some(&labels) {
                    let view = Arc::make_mut(&mut self.view);
                    view.namespaces.insert(name, labels);
                }
            }
            Item::Node(labels) => {
                if view.node != labels {
                    Arc::make_mut(&mut self.view).node = labels;
                }
            }
            Item::Policy(key, Ok(policy)) => {
                self.unreadable.remove(&key);
                let known = view.policies.get(&key);
                if known.is_none_or(|known| *known != policy) {
                    let view = Arc::make_mut(&mut self.view);
                    Arc::make_mut(&mut view.policies).insert(key, policy);
                }
            }
            Item::Policy(key, Err(error)) => {
                self.unreadable.insert(key, error);
            }
            Item::DnsService(name, service) => {
                match service {
                    Some(service) => self.dns_services.insert(name, service),
                    None => self.dns_services.remove(&name),
                };
                self.find_servers();
            }
            Item::Slice(name, slice) => {
                self.slices(kind).insert(name, slice);
                self.find_servers();
            }
        }
    }

    fn slices(&mut self, kind: Kind) -> &mut BTreeMap<String, Slice> {
        if kind == Kind::ApiServers {
            &mut self.api_slices
        } else {
            &mut self.dns_slices
        }
    }

    /// Says anew where the cluster's DNS and its API servers are.
    fn find_servers(&mut self) {
        let mut new = ClusterView::clone(&self.view);
        self.name_servers(&mut new);
        if new != *self.view {
            self.view = Arc::new(new);
        }
    }

    /// A view keeps what it had of kinds that the server did not report yet.
    fn name_servers(&self, view: &mut ClusterView) {
        if self.is_listed(Kind::DnsServices) {
            let services = self.dns_services.values();
            let addresses: BTreeSet<IpAddr> = services
                .flat_map(|service| &service.addresses)
                .copied()
                .collect();
            view.dns_service = addresses.into_iter().collect();
        }
        if self.is_listed(Kind::DnsServices) && self.is_listed(Kind::DnsEndpoints) {
            let behind = self.dns_slices.values().flat_map(|slice| {
                let service = self.dns_services.get(&slice.service);
                let is_asked =
                    move |port: &str| service.is_some_and(|service| service.ports.contains(port));
                let endpoints = slice.endpoints.iter();
                endpoints.filter_map(move |(port, endpoint)| is_asked(port).then_some(*endpoint))
            });
            let behind: BTreeSet<SocketAddr> = behind.collect();
            view.dns_endpoints = behind.into_iter().collect();
        }
        if self.is_listed(Kind::ApiServers) {
            let behind = self.api_slices.values().flat_map(|slice| &slice.endpoints);
            let behind: BTreeSet<SocketAddr> = behind.map(|(_, endpoint)| *endpoint).collect();
            view.api_servers = behind.into_iter().collect();
        }
    }

    /// Says anew which pod each cgroup is of.
    fn name_pods(&mut self) {
        let (pods, contested) = pods_of(&self.objects);
        let view = &self.view;
        if (&view.pods, &view.contested) != (&pods, &contested) {
            let view = Arc::make_mut(&mut self.view);
            (view.pods, view.contested) = (pods, contested);
        }
    }

    fn remove(&mut self, kind: Kind, item: Item) {
        match item {
            Item::Pod(_, pod) => {
                if self.objects.remove(&pod.uid).is_some() {
                    self.name_pods();
                }
            }
            Item::Namespace(name, _) => {
                Arc::make_mut(&mut self.view).namespaces.remove(&name);
            }
            Item::Node(_) => Arc::make_mut(&mut self.view).node.clear(),
            Item::Policy(key, _) => {
                self.unreadable.remove(&key);
                let view = Arc::make_mut(&mut self.view);
                Arc::make_mut(&mut view.policies).remove(&key);
            }
            Item::DnsService(name, _) => {
                self.dns_services.remove(&name);
                self.find_servers();
            }
            Item::Slice(name, _) => {
                self.slices(kind).remove(&name);
                self.find_servers();
            }
        }
    }
}

/// The pod of each cgroup, and the objects that claim one without a right to it.
///
/// A UID that an object has from the API server is that object's, whatever others say. One that is only said, of a static
/// pod, has to be said by one object alone: if two say it, neither is believed.
fn pods_of(objects: &BTreeMap<String, (PodUid, Arc<Pod>)>) -> (Pods, Contested) {
    let mut pods = Pods::new();
    let mut contested = Contested::new();
    let mut claims = BTreeMap::<&PodUid, Vec<&Arc<Pod>>>::new();
    for (uid, (cgroup, pod)) in objects {
        if cgroup.as_str() == uid {
            pods.insert(cgroup.clone(), Arc::clone(pod));
        } else {
            claims.entry(cgroup).or_default().push(pod);
        }
    }
    for (cgroup, by) in claims {
        if let ([pod], false) = (by.as_slice(), objects.contains_key(cgroup.as_str())) {
            pods.insert(cgroup.clone(), Arc::clone(pod));
        } else {
            contested.insert(cgroup.clone(), by.into_iter().cloned().collect());
        }
    }
    (pods, contested)
}

/// The known value, if it is the same as the new.
fn kept_or_new<T: PartialEq>(known: Option<&Arc<T>>, new: Arc<T>) -> Arc<T> {
    match known {
        Some(known) if *known == new => Arc::clone(known),
        Some(_) | None => new,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::policy::Spec;

    fn at(seconds: u64) -> Timestamp {
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        time.unwrap().into()
    }

    fn labels(value: &str) -> Labels {
        [("app".to_owned(), value.to_owned())].into()
    }

    fn uid(digit: char) -> PodUid {
        PodUid::new(&digit.to_string().repeat(32)).unwrap()
    }

    fn pod(of: char, object: &str, label: &str) -> Item {
        let pod = Pod {
            namespace: "shop".to_owned(),
            name: format!("web-{of}"),
            labels: labels(label),
            uid: object.to_owned(),
            ..Pod::default()
        };
        Item::Pod(uid(of), Arc::new(pod))
    }

    fn policy(key: &str, generation: i64) -> Item {
        let policy = PolicyObject {
            uid: key.to_owned(),
            generation,
            spec: Spec::default(),
        };
        Item::Policy(key.parse().unwrap(), Ok(Arc::new(policy)))
    }

    fn unreadable(key: &str) -> Item {
        Item::Policy(key.parse().unwrap(), Err("is strange".to_owned()))
    }

    fn namespace(name: &str, label: &str) -> Item {
        Item::Namespace(name.to_owned(), labels(label))
    }

    fn dns(name: &str, address: &str) -> Item {
        let service = DnsService {
            addresses: vec![address.parse().unwrap()],
            ports: ["dns".to_owned()].into(),
        };
        Item::DnsService(name.to_owned(), Some(service))
    }

    fn slice(name: &str, service: &str, addresses: &[&str]) -> Item {
        let at = |port: &str, number: u16| {
            let port = port.to_owned();
            addresses.iter().map(move |address| {
                let address = address.parse().unwrap();
                (port.clone(), SocketAddr::new(address, number))
            })
        };
        let slice = Slice {
            service: service.to_owned(),
            endpoints: at("dns", 5353).chain(at("metrics", 9153)).collect(),
        };
        Item::Slice(name.to_owned(), slice)
    }

    /// Pods `a` and `b`, a namespace, a policy of each kind, the cluster's DNS.
    fn known() -> Known {
        let mut known = Known::default();
        for (second, kind) in (1..).zip(Kind::ALL) {
            assert!(!known.is_synced());
            assert_eq!(known.heard_at().is_some(), kind.can_be_missing());
            let items = match kind {
                Kind::Pods => vec![pod('a', "1", "x"), pod('b', "2", "x")],
                Kind::Namespaces => vec![namespace("shop", "x")],
                Kind::Node => vec![Item::Node(labels("x"))],
                Kind::EgressPolicies => vec![policy("shop/web", 1)],
                Kind::ClusterEgressPolicies => vec![policy("baseline", 1)],
                Kind::DnsServices => vec![dns("kube-dns", "10.96.0.10")],
                Kind::DnsEndpoints => vec![slice("kube-dns-1", "kube-dns", &["10.244.0.7"])],
                Kind::ApiServers => vec![slice("kubernetes", "kubernetes", &["192.0.2.6"])],
            };
            known.take(kind, Notice::Listed(items), at(second));
        }
        assert!(known.is_synced());
        // As sure as the watch that was heard first.
        assert_eq!(known.heard_at(), Some(at(1)));
        known
    }

    /// Takes a notice and returns the view before it.
    fn take(known: &mut Known, kind: Kind, notice: Notice) -> Arc<ClusterView> {
        let before = Arc::clone(known.view());
        known.take(kind, notice, at(9));
        before
    }

    fn pods(known: &Known) -> String {
        let shown = |(uid, pod): (&PodUid, &Arc<Pod>)| {
            format!("{}{}{}", &uid.as_str()[..1], pod.uid, pod.labels["app"])
        };
        let shown: Vec<String> = known.view().pods.iter().map(shown).collect();
        shown.join(" ")
    }

    fn policies(known: &Known) -> String {
        let shown = |(key, policy): (&PolicyKey, &Arc<PolicyObject>)| {
            format!("{key}:{}", policy.generation)
        };
        let shown: Vec<String> = known.view().policies.iter().map(shown).collect();
        shown.join(" ")
    }

    #[test]
    fn an_event_that_changes_nothing_leaves_the_view_as_it_is() {
        let mut known = known();
        for (kind, item) in [
            (Kind::Pods, pod('a', "1", "x")),
            (Kind::Namespaces, namespace("shop", "x")),
            (Kind::Node, Item::Node(labels("x"))),
            (Kind::EgressPolicies, policy("shop/web", 1)),
            (Kind::ClusterEgressPolicies, policy("baseline", 1)),
        ] {
            let before = take(&mut known, kind, Notice::Changed(item));
            assert!(Arc::ptr_eq(&before, known.view()), "{kind}");
        }
        let again = vec![pod('b', "2", "x"), pod('a', "1", "x")];
        let before = take(&mut known, Kind::Pods, Notice::Listed(again));
        assert!(Arc::ptr_eq(&before, known.view()));
        let before = take(&mut known, Kind::Pods, Notice::Heard);
        assert!(Arc::ptr_eq(&before, known.view()));
    }

    #[test]
    fn changes_and_ends_of_objects_show_and_the_old_view_stands_for_who_holds_it() {
        let mut known = known();
        let before = take(&mut known, Kind::Pods, Notice::Changed(pod('a', "1", "y")));
        assert_eq!(pods(&known), "a1y b2x");
        assert_eq!(before.pods[&uid('a')].labels, labels("x"));
        // Unchanged parts are shared.
        let other = uid('b');
        assert!(Arc::ptr_eq(
            &before.pods[&other],
            &known.view().pods[&other]
        ));
        take(&mut known, Kind::Pods, Notice::Gone(pod('b', "2", "x")));
        assert_eq!(pods(&known), "a1y");

        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Changed(policy("shop/web", 2)),
        );
        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Changed(policy("other/all", 1)),
        );
        assert_eq!(policies(&known), "baseline:1 other/all:1 shop/web:2");
        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Gone(policy("shop/web", 2)),
        );
        assert_eq!(policies(&known), "baseline:1 other/all:1");

        take(
            &mut known,
            Kind::Namespaces,
            Notice::Changed(namespace("shop", "y")),
        );
        assert_eq!(known.view().namespaces["shop"], labels("y"));
        take(
            &mut known,
            Kind::Namespaces,
            Notice::Gone(namespace("shop", "y")),
        );
        assert!(known.view().namespaces.is_empty());
        take(
            &mut known,
            Kind::Node,
            Notice::Gone(Item::Node(labels("x"))),
        );
        assert!(known.view().node.is_empty());
    }

    fn servers(known: &Known) -> String {
        let view = known.view();
        format!(
            "{:?} {:?} {:?}",
            view.dns_service, view.dns_endpoints, view.api_servers
        )
    }

    #[test]
    fn the_clusters_dns_is_its_services_and_what_stands_behind_their_ports_for_queries() {
        let mut known = known();
        let api = "[192.0.2.6:5353, 192.0.2.6:9153]";
        assert_eq!(
            servers(&known),
            format!("[10.96.0.10] [10.244.0.7:5353] {api}")
        );
        // A second service, its slice first.
        let other = slice("up-1", "kube-dns-upstream", &["10.244.0.8"]);
        let before = take(&mut known, Kind::DnsEndpoints, Notice::Changed(other));
        assert!(Arc::ptr_eq(&before, known.view()));
        let service = dns("kube-dns-upstream", "10.96.0.11");
        take(&mut known, Kind::DnsServices, Notice::Changed(service));
        assert_eq!(
            servers(&known),
            format!("[10.96.0.10, 10.96.0.11] [10.244.0.7:5353, 10.244.0.8:5353] {api}")
        );
        // A pod is replaced; a service is the cluster's DNS no longer.
        let replaced = slice("kube-dns-1", "kube-dns", &["10.244.0.9"]);
        take(&mut known, Kind::DnsEndpoints, Notice::Changed(replaced));
        let other = Item::DnsService("kube-dns-upstream".to_owned(), None);
        take(&mut known, Kind::DnsServices, Notice::Changed(other));
        assert_eq!(
            servers(&known),
            format!("[10.96.0.10] [10.244.0.9:5353] {api}")
        );
        let gone = slice("kube-dns-1", "kube-dns", &[]);
        take(&mut known, Kind::DnsEndpoints, Notice::Gone(gone));
        assert_eq!(servers(&known), format!("[10.96.0.10] [] {api}"));
        take(
            &mut known,
            Kind::DnsServices,
            Notice::Gone(dns("kube-dns", "10.96.0.10")),
        );
        take(&mut known, Kind::ApiServers, Notice::Listed(Vec::new()));
        assert_eq!(servers(&known), "[] [] []");
    }

    #[test]
    fn a_server_that_does_not_tell_of_dns_holds_nothing_up_and_what_was_known_of_it_stands() {
        let mut next = Known::after(Arc::clone(known().view()));
        let before = servers(&next);
        for kind in Kind::ALL {
            assert!(!next.is_synced());
            let notice = if kind.can_be_missing() {
                Notice::Failed("forbidden".to_owned())
            } else {
                Notice::Listed(Vec::new())
            };
            next.take(kind, notice, at(9));
        }
        assert!(next.is_synced() && next.error().is_some());
        assert_eq!((servers(&next), next.heard_at()), (before, Some(at(9))));
        // The services alone are reported: the endpoints behind them are as they were.
        let listed = vec![dns("kube-dns", "10.96.0.12")];
        next.take(Kind::DnsServices, Notice::Listed(listed), at(9));
        assert!(
            servers(&next).starts_with("[10.96.0.12] [10.244.0.7:5353]"),
            "{}",
            servers(&next)
        );
    }

    #[test]
    fn a_list_replaces_its_kind_and_no_other() {
        let mut known = known();
        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Listed(vec![policy("shop/db", 1)]),
        );
        assert_eq!(policies(&known), "baseline:1 shop/db:1");
        take(
            &mut known,
            Kind::ClusterEgressPolicies,
            Notice::Listed(Vec::new()),
        );
        assert_eq!(policies(&known), "shop/db:1");
        take(
            &mut known,
            Kind::Pods,
            Notice::Listed(vec![pod('c', "3", "x")]),
        );
        assert_eq!(pods(&known), "c3x");
        assert_eq!(known.view().namespaces["shop"], labels("x"));
        assert_eq!(known.view().node, labels("x"));
    }

    /// The claimants of cgroups without a right to them.
    fn contested(known: &Known) -> String {
        let shown = |(uid, by): (&PodUid, &Vec<Arc<Pod>>)| {
            let by: Vec<&str> = by.iter().map(|pod| pod.uid.as_str()).collect();
            format!("{}:{}", &uid.as_str()[..1], by.join("+"))
        };
        let shown: Vec<String> = known.view().contested.iter().map(shown).collect();
        shown.join(" ")
    }

    #[test]
    fn a_cgroup_that_two_objects_claim_has_neither_for_its_pod() {
        let evil = || pod('a', "9", "evil");
        for is_listed in [false, true] {
            let mut known = known();
            let notice = if is_listed {
                Notice::Listed(vec![evil(), pod('a', "1", "x"), pod('b', "2", "x")])
            } else {
                Notice::Changed(evil())
            };
            take(&mut known, Kind::Pods, notice);
            assert_eq!(pods(&known), "b2x");
            assert_eq!(contested(&known), "a:1+9");
            // Whichever goes, the other has it.
            let mut other = known.clone();
            take(&mut other, Kind::Pods, Notice::Gone(pod('a', "1", "x")));
            assert_eq!(
                (pods(&other), contested(&other)),
                ("a9evil b2x".to_owned(), String::new())
            );
            take(&mut known, Kind::Pods, Notice::Gone(evil()));
            assert_eq!(
                (pods(&known), contested(&known)),
                ("a1x b2x".to_owned(), String::new())
            );
        }
        // Deleted and made anew.
        let mut known = known();
        take(&mut known, Kind::Pods, Notice::Gone(pod('a', "1", "x")));
        take(&mut known, Kind::Pods, Notice::Changed(pod('a', "3", "y")));
        assert_eq!(
            (pods(&known), contested(&known)),
            ("a3y b2x".to_owned(), String::new())
        );
    }

    #[test]
    fn a_uid_that_an_object_has_is_its_own_whatever_others_say() {
        let own = uid('a').to_string();
        let victim = || pod('a', &own, "x");
        let evil = || pod('a', "9", "evil");
        for items in [vec![victim(), evil()], vec![evil(), victim()]] {
            let mut known = known();
            take(&mut known, Kind::Pods, Notice::Listed(items.clone()));
            let listed = (pods(&known), contested(&known));
            take(&mut known, Kind::Pods, Notice::Listed(Vec::new()));
            for item in items {
                take(&mut known, Kind::Pods, Notice::Changed(item));
            }
            assert_eq!((pods(&known), contested(&known)), listed);
            assert_eq!(listed, (format!("a{own}x"), "a:9".to_owned()));
            take(&mut known, Kind::Pods, Notice::Gone(evil()));
            assert_eq!(
                (pods(&known), contested(&known)),
                (format!("a{own}x"), String::new())
            );
        }
    }

    #[test]
    fn a_policy_that_cannot_be_read_stays_as_it_was_and_is_an_error() {
        let mut known = known();
        let said = "shop/new, shop/web: is strange";
        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Changed(unreadable("shop/web")),
        );
        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Changed(unreadable("shop/new")),
        );
        assert_eq!(policies(&known), "baseline:1 shop/web:1");
        assert_eq!(known.error().as_deref(), Some(said));
        let list = vec![unreadable("shop/web"), unreadable("shop/new")];
        take(&mut known, Kind::EgressPolicies, Notice::Listed(list));
        assert_eq!(policies(&known), "baseline:1 shop/web:1");
        assert_eq!(known.error().as_deref(), Some(said));
        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Gone(unreadable("shop/new")),
        );
        take(
            &mut known,
            Kind::EgressPolicies,
            Notice::Changed(policy("shop/web", 3)),
        );
        assert_eq!(policies(&known), "baseline:1 shop/web:3");
        assert_eq!(known.error(), None);
    }

    #[test]
    fn what_was_known_before_stands_for_a_policy_that_cannot_be_read_and_for_nothing_else() {
        let mut next = Known::after(Arc::clone(known().view()));
        assert!(!next.is_synced());
        for kind in Kind::ALL {
            let items = match kind {
                Kind::EgressPolicies => vec![unreadable("shop/web"), unreadable("shop/new")],
                Kind::Pods
                | Kind::Namespaces
                | Kind::Node
                | Kind::ClusterEgressPolicies
                | Kind::DnsServices
                | Kind::DnsEndpoints
                | Kind::ApiServers => Vec::new(),
            };
            next.take(kind, Notice::Listed(items), at(9));
        }
        assert!(next.is_synced());
        assert_eq!(policies(&next), "shop/web:1");
        assert_eq!((pods(&next), next.unreadable()), (String::new(), 2));
        assert!(next.view().namespaces.is_empty() && next.view().dns_service.is_empty());
    }

    #[test]
    fn failures_are_told_by_kind_until_the_server_answers_and_change_nothing() {
        let mut known = known();
        let away = || Notice::Failed("away".to_owned());
        let before = take(&mut known, Kind::Pods, away());
        take(&mut known, Kind::Node, away());
        take(
            &mut known,
            Kind::Namespaces,
            Notice::Failed("forbidden".to_owned()),
        );
        assert!(Arc::ptr_eq(&before, known.view()) && known.is_synced());
        assert_eq!(known.heard_at(), Some(at(1)));
        let said = "pods, nodes: away; namespaces: forbidden";
        assert_eq!(known.error().as_deref(), Some(said));
        let silent: Vec<&str> = known
            .watches()
            .iter()
            .filter_map(|(kind, tells)| (!tells).then_some(*kind))
            .collect();
        assert_eq!(silent, ["namespaces", "nodes", "pods"]);
        for kind in Kind::ALL {
            take(&mut known, kind, Notice::Heard);
        }
        assert_eq!((known.error(), known.heard_at()), (None, Some(at(9))));
    }
}
