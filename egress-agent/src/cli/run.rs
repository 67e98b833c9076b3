//! `run`: the daemon.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use egress_common::{maps::LEARNED_CAPACITY, verdict::Mode};

use super::{
    catalog::CatalogArgs,
    exit::{ExitCode, UsageError},
    remote::{DEFAULT_PIN_DIR, DEFAULT_STATE_DIR, SocketArgs},
};
use crate::{
    api::ScrapeOptions,
    datapath::Shares,
    flow_log::{FlowLogFilter, FlowLogOptions, FlowLogTarget},
    policy::{CatalogSources, Cidr, Star, parse_duration_s, parse_name_pattern},
    workload,
};

const EXAMPLES: &str = "\
Examples:
  egress-agent run --policy /etc/egress/policies
      every *.yaml there, on the whole node; changes are picked up
  egress-agent run --policy node.yaml --mode audit
      nothing is dropped; `flows --denied` shows what would be
  egress-agent run --policy node.yaml --confirm 60s
      enforces, and falls back to audit unless `egress-agent confirm` comes
      within 60 s: for the first start on a node that is reached over the net
  egress-agent run --policy node.yaml --resolver 10.96.0.10 \\
      --api-server 10.0.0.4:6443 --lifeline-cidr 10.244.0.0/16
      a Kubernetes node: cluster DNS, API server and pods stay reachable
  egress-agent run --kubernetes --node-name $(hostname)
      in a cluster: EgressPolicies for pods, ClusterEgressPolicies for nodes too
  egress-agent run --policy node.yaml --service-tags service-tags.json
      rules may say serviceTags: [Storage.westeurope]; a new file is taken up";

/// Options of `run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Run {
    /// Policy files or folders; may be repeated
    #[arg(
        long,
        required_unless_present = "kubernetes",
        num_args = 1..,
        value_name = "PATH"
    )]
    pub policy: Vec<PathBuf>,
    /// Policies of a cluster, for its pods on this node and for the node itself.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    /// What rules may refer to.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Cgroup whose processes are judged [default: the cgroup v2 root]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Interfaces on which forwarded and raw packets are judged too; may be repeated
    #[arg(long, num_args = 1.., value_name = "IF")]
    pub interface: Vec<String>,
    /// Judge what pods send past their cgroups (packet sockets, packets forwarded in a pod) at the host's ends of their
    /// interfaces: veth and netkit pairs
    #[arg(long, value_enum, value_name = "WHICH")]
    pub pod_interfaces: Option<PodInterfaces>,
    /// Resolvers whose answers are trusted, at port 53 if none is given; may be repeated [default: those of
    /// /etc/resolv.conf, caches of the cluster's DNS on the node, and with --kubernetes the cluster's DNS service and
    /// what stands behind it]
    #[arg(long, num_args = 1.., value_parser = workload::parse_resolver, value_name = "IP[:PORT]")]
    pub resolver: Vec<SocketAddr>,
    /// Where to listen.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Folder in a bpffs where everything is pinned, so that it outlives the agent
    #[arg(long, default_value = DEFAULT_PIN_DIR, value_name = "PATH")]
    pub pin_dir: PathBuf,
    /// Folder where the agent keeps what it saw of flows, for `policy learn`
    ///
    /// One file, observations.json, of a few MB at most on a usual node. To forget what was seen, remove it while the
    /// agent is stopped.
    #[arg(long, default_value = DEFAULT_STATE_DIR, value_name = "PATH")]
    pub state_dir: PathBuf,
    /// Mode instead of the policies' own
    #[arg(long, value_name = "MODE")]
    pub mode: Option<ModeArg>,
    /// Fall back to audit unless `egress-agent confirm` comes within this time of enforcing
    ///
    /// Until then, and after falling back until it is confirmed or started anew, whatever changes in the policies. An
    /// agent that is told to end (SIGTERM) before the confirmation falls back first. The kernel keeps to the end of the
    /// time also when the agent is killed, stopped or hangs, or when its terminal goes. Take the option away once it
    /// is confirmed: every start waits for a confirmation.
    #[arg(long, value_parser = confirm_window, value_name = "TIME")]
    pub confirm: Option<Duration>,
    /// A cgroup that is a scope of its own: what it resolves is open to it alone; waited for while it is not there; may be repeated
    #[arg(long, num_args = 1.., value_name = "NAME=CGROUP_PATH")]
    pub scope: Vec<ScopeOption>,
    /// A scope that runs a trusted resolver: without this, only the node's own processes may answer in its name
    #[arg(long, num_args = 1.., value_name = "SCOPE")]
    pub resolver_scope: Vec<String>,
    /// Domains below which any name may be asked for under `dns.queries: allowed`; may be repeated [default: the search
    /// domains of /etc/resolv.conf]
    #[arg(long, num_args = 1.., value_name = "DOMAIN")]
    pub search_domain: Vec<String>,
    /// Ranges that are always allowed, such as the cluster's pods and services; may be repeated
    #[arg(long, num_args = 1.., value_name = "CIDR")]
    pub lifeline_cidr: Vec<Cidr>,
    /// The Kubernetes API server, which is always allowed [default: with --kubernetes, where a pod finds it and the
    /// endpoints of default/kubernetes]
    #[arg(long, value_name = "ADDR:PORT")]
    pub api_server: Option<SocketAddr>,
    /// Parts of the lifeline to leave out: policies then have to allow them; may be repeated
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub no_lifeline: Vec<LifelinePart>,
    /// Most learned addresses; a change of policy needs room for those that are live once more
    #[arg(
        long,
        default_value_t = LEARNED_CAPACITY,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "N"
    )]
    pub max_learned: u32,
    /// Part of each table that one scope may fill, in percent, for scopes other than the node
    ///
    /// A scope at its share loses its own oldest entries, never those of others. Without the option a pod, or a cgroup
    /// given with `--scope`, may use a sixty-fourth of a table and at least 4,096 entries; the node's own processes
    /// always have a quarter. `status` shows who is near.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100), value_name = "PERCENT")]
    pub scope_share: Option<u8>,
    /// Debug messages of the kernel programs
    #[arg(long, value_enum, default_value_t, value_name = "LEVEL")]
    pub ebpf_log: LogLevel,
    /// A log of flows, for what ships logs.
    #[command(flatten)]
    pub flow_log: FlowLogArgs,
    /// Metrics over TCP.
    #[command(flatten)]
    pub scrape: ScrapeArgs,
}

/// Metrics over TCP.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Metrics over TCP")]
pub struct ScrapeArgs {
    /// Answer `GET /metrics` here, for scrapers that cannot read a unix socket
    ///
    /// Over plain HTTP on a loopback address only; elsewhere with a certificate and a token. Nothing else is answered.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Certificate chain in PEM
    #[arg(
        long,
        requires = "listen",
        requires = "listen_key",
        value_name = "FILE"
    )]
    pub listen_cert: Option<PathBuf>,
    /// Its private key in PEM
    #[arg(
        long,
        requires = "listen",
        requires = "listen_cert",
        value_name = "FILE"
    )]
    pub listen_key: Option<PathBuf>,
    /// File with the bearer token that scrapers show; read for every scrape, so that it can be changed
    #[arg(long, requires = "listen", value_name = "FILE")]
    pub listen_token: Option<PathBuf>,
}

impl ScrapeArgs {
    fn options(self) -> Option<ScrapeOptions> {
        Some(ScrapeOptions {
            address: self.listen?,
            tls: self.listen_cert.zip(self.listen_key),
            token: self.listen_token,
        })
    }
}

/// The flow log.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Flow log")]
pub struct FlowLogArgs {
    /// Log flows as one JSON object a line, to `stdout` or a file
    ///
    /// docs/flow-log.schema.json has the fields. Nothing waits for who reads: lines that find no room are dropped, and
    /// `status` counts them.
    #[arg(long, value_name = "stdout|FILE")]
    pub flow_log: Option<FlowLogTarget>,
    /// Which flows are logged: denials come one for each flow and second, allowed flows with their first packet
    #[arg(
        long,
        value_enum,
        default_value_t,
        requires = "flow_log",
        value_name = "WHICH"
    )]
    pub flow_log_filter: FlowLogFilter,
    /// Size in MiB at which the file is renamed to FILE.1, in place of an older one
    #[arg(
        long,
        default_value_t = 64,
        requires = "flow_log",
        value_parser = clap::value_parser!(u16).range(1..),
        value_name = "MIB"
    )]
    pub flow_log_size: u16,
}

impl FlowLogArgs {
    fn options(self) -> Option<FlowLogOptions> {
        let target = self.flow_log?;
        Some(FlowLogOptions {
            target,
            filter: self.flow_log_filter,
            most_bytes: u64::from(self.flow_log_size) << 20,
        })
    }
}

/// What `run` takes from a Kubernetes cluster.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// Judge each pod of this node by the cluster's EgressPolicies and ClusterEgressPolicies
    ///
    /// A pod that none of them selects is not restricted. Without the API server the last known policies go on, also
    /// after a restart of the agent or of the node.
    #[arg(long, requires = "node_name")]
    pub kubernetes: bool,
    /// This node's name in the cluster; without --kubernetes it is not used
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// How to reach the API server [default: as a pod does, with its service account]
    ///
    /// The namespace of its context is where agents keep the Lease by which one of them writes the status of policies.
    #[arg(long, requires = "kubernetes", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// What a new pod may reach until its policies are known
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub pending_pods: PendingPods,
}

/// What a new pod may reach until its policies are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PendingPods {
    /// The lifeline: resolvers, API server, the ranges of the cluster
    #[default]
    Lifeline,
    /// Everything
    Open,
}

/// Which interfaces of pods are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PodInterfaces {
    /// All, as they come and go
    Auto,
}

/// A cluster, and what this node is called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesOptions {
    /// This node's name.
    pub node_name: String,
    /// How to reach the API server; none: as a pod does.
    pub kubeconfig: Option<PathBuf>,
}

/// Reads the time to confirm in.
fn confirm_window(text: &str) -> Result<Duration, String> {
    match parse_duration_s(text) {
        Ok(0) => Err("leave at least 1s to confirm".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(error) => Err(error.to_string()),
    }
}

/// A [`Mode`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Drop what is denied
    Enforce,
    /// Let it pass and report it
    Audit,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Enforce => Self::Enforce,
            ModeArg::Audit => Self::Audit,
        }
    }
}

/// A part of the lifeline, by the name that `status` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum LifelinePart {
    /// The trusted resolvers, 53/udp and 53/tcp
    Resolvers,
    /// The node's own addresses
    NodeAddresses,
    /// DHCP, IPv4 and IPv6
    Dhcp,
    /// What --api-server gives
    ApiServer,
    /// What --lifeline-cidr gives
    ClusterRanges,
}

/// How much the kernel programs say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    /// Nothing; the programs do not even make the messages
    #[default]
    Off,
    /// Errors
    Error,
    /// And warnings
    Warn,
    /// And decisions
    Info,
    /// And what they rest on
    Debug,
    /// And every packet
    Trace,
}

impl LogLevel {
    /// The level as aya-log numbers it: 0 off, 1 error … 5 trace.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Error => 1,
            Self::Warn => 2,
            Self::Info => 3,
            Self::Debug => 4,
            Self::Trace => 5,
        }
    }
}

/// A cgroup that is a scope of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeOption {
    /// Its name.
    pub name: String,
    /// Its cgroup.
    pub cgroup: PathBuf,
}

/// Name of the scope of everything that is in no other.
pub const NODE_SCOPE: &str = "node";

impl FromStr for ScopeOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, cgroup)) = text.split_once('=') else {
            return Err("write NAME=CGROUP_PATH".to_owned());
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err("a scope's name is made of letters, digits, `-`, `_`, `.` and `/`".into());
        }
        if name == NODE_SCOPE {
            return Err(format!(
                "`{NODE_SCOPE}` is the scope of all other processes"
            ));
        }
        let cgroup = PathBuf::from(cgroup);
        if !cgroup.is_absolute() {
            return Err("a cgroup's path starts with `/`, like /sys/fs/cgroup/web.slice".into());
        }
        Ok(Self {
            name: name.to_owned(),
            cgroup,
        })
    }
}

/// Options of the daemon, with their defaults found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// Policy files and folders; at least one, or a cluster.
    pub policies: Vec<PathBuf>,
    /// The cluster whose policies apply as well.
    pub kubernetes: Option<KubernetesOptions>,
    /// Destinations that a new pod may reach until its policies are known.
    pub pending_pods: PendingPods,
    /// Sources of what rules may refer to.
    pub catalog: CatalogSources,
    /// Cgroup whose processes are judged.
    pub cgroup: PathBuf,
    /// Interfaces on which forwarded and raw packets are judged too.
    pub interfaces: Vec<String>,
    /// Which interfaces of pods are judged; none: none.
    pub pod_interfaces: Option<PodInterfaces>,
    /// Trusted resolvers, as given.
    pub resolvers: Vec<SocketAddr>,
    /// True if they were given; if not, [`workload::ResolvConf`] names them, whenever it changes.
    pub are_resolvers_given: bool,
    /// Where to listen.
    pub socket: PathBuf,
    /// Where everything is pinned.
    pub pin_dir: PathBuf,
    /// Where what was seen is kept.
    pub state_dir: PathBuf,
    /// Mode instead of the policies' own.
    pub mode: Option<Mode>,
    /// How long a confirmation is awaited before the agent falls back to audit; none: it is not.
    pub confirm: Option<Duration>,
    /// Cgroups that are scopes of their own, with unique names and paths.
    pub scopes: Vec<ScopeOption>,
    /// Domains below which any name may be asked for, as given, in lower case.
    pub search_domains: Vec<String>,
    /// True if they were given; if not, [`workload::ResolvConf`] names them.
    pub are_search_domains_given: bool,
    /// Names of scopes that run a trusted resolver; each is one of `scopes`.
    pub resolver_scopes: Vec<String>,
    /// Ranges that are always allowed.
    pub lifeline_cidrs: Vec<Cidr>,
    /// The Kubernetes API server.
    pub api_server: Option<SocketAddr>,
    /// Where a pod finds it, if this is one.
    pub api_service: Option<SocketAddr>,
    /// Parts of the lifeline to leave out.
    pub no_lifeline: Vec<LifelinePart>,
    /// Most learned addresses.
    pub max_learned: u32,
    /// The parts of tables that scopes may use.
    pub shares: Shares,
    /// How much the kernel programs say.
    pub ebpf_log: LogLevel,
    /// Where flows are logged, if anywhere.
    pub flow_log: Option<FlowLogOptions>,
    /// Where metrics are answered over TCP, if anywhere.
    pub scrape: Option<ScrapeOptions>,
}

impl Run {
    /// Runs the daemon.
    ///
    /// # Errors
    ///
    /// The daemon cannot start, or a failure ends it.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let options = self.into_options()?;
        crate::daemon::run(options)
    }

    /// Finds what is not given.
    pub(crate) fn into_options(self) -> anyhow::Result<RunOptions> {
        for (index, scope) in self.scope.iter().enumerate() {
            let mut before = self.scope.iter().take(index);
            if before.any(|other| other.name == scope.name || other.cgroup == scope.cgroup) {
                let error = format!(
                    "--scope {}={} repeats a name or a cgroup: give each once",
                    scope.name,
                    scope.cgroup.display()
                );
                return Err(UsageError::new(error).into());
            }
        }
        for name in &self.resolver_scope {
            if !self.scope.iter().any(|scope| scope.name == *name) {
                let error = format!("--resolver-scope {name}: no --scope has this name");
                return Err(UsageError::new(error).into());
            }
        }
        let cgroup = match self.cgroup {
            Some(cgroup) => cgroup,
            None => found_cgroup()?,
        };
        let are_resolvers_given = !self.resolver.is_empty();
        let resolvers = self.resolver;
        let is_pod = self.kubernetes.kubernetes && self.kubernetes.kubeconfig.is_none();
        let api_service = if is_pod { api_service() } else { None };
        Ok(RunOptions {
            policies: self.policy,
            kubernetes: self
                .kubernetes
                .node_name
                .filter(|_| self.kubernetes.kubernetes)
                .map(|node_name| KubernetesOptions {
                    node_name,
                    kubeconfig: self.kubernetes.kubeconfig,
                }),
            pending_pods: self.kubernetes.pending_pods,
            catalog: self.catalog.sources()?,
            cgroup,
            interfaces: self.interface,
            pod_interfaces: self.pod_interfaces,
            resolvers,
            are_resolvers_given,
            socket: self.socket.socket,
            pin_dir: self.pin_dir,
            state_dir: self.state_dir,
            mode: self.mode.map(Mode::from),
            confirm: self.confirm,
            scopes: self.scope,
            resolver_scopes: self.resolver_scope,
            search_domains: search_domains(&self.search_domain)?,
            are_search_domains_given: !self.search_domain.is_empty(),
            lifeline_cidrs: self.lifeline_cidr,
            api_server: self.api_server,
            api_service,
            no_lifeline: self.no_lifeline,
            max_learned: self.max_learned,
            shares: Shares {
                percent: self.scope_share,
            },
            ebpf_log: self.ebpf_log,
            flow_log: self.flow_log.options(),
            scrape: self.scrape.options(),
        })
    }
}

/// The API server that pods find in their environment; none where that gives a name, which policies have to allow.
fn api_service() -> Option<SocketAddr> {
    let variable = |name| std::env::var(name).ok();
    let host: IpAddr = variable("KUBERNETES_SERVICE_HOST")?.parse().ok()?;
    let port = variable("KUBERNETES_SERVICE_PORT")?.parse().ok()?;
    Some(SocketAddr::new(host, port))
}

/// Search domains as names are compared.
pub(super) fn search_domains(given: &[String]) -> anyhow::Result<Vec<String>> {
    let check = |text: &String| match parse_name_pattern(text) {
        Ok(pattern) if pattern.star == Star::None => Ok(pattern.name),
        Ok(_) => Err(UsageError::new(format!(
            "--search-domain {text}: give the domain without `*`"
        ))),
        Err(error) => Err(UsageError::new(format!("--search-domain {text}: {error}"))),
    };
    Ok(given.iter().map(check).collect::<Result<_, _>>()?)
}

pub(super) fn found_cgroup() -> anyhow::Result<PathBuf> {
    workload::cgroup_root().ok_or_else(|| {
        let error = "no cgroup v2 is mounted: boot with systemd.unified_cgroup_hierarchy=1, \
                     or `mount -t cgroup2 none /sys/fs/cgroup` and give --cgroup";
        UsageError::new(error).into()
    })
}
