//! Bodies of the socket's answers. Field names are an interface: add, never rename.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Text that is nearly always a constant.
pub type Text = Cow<'static, str>;

/// Answer of `/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// How long the agent has been running, seconds.
    pub uptime_s: u64,
    /// Its process id.
    pub pid: u32,
    /// The agent enforces (or, in audit mode, reports) everything that it should.
    pub enforcing: bool,
    /// `enforce`, `audit`, or `mixed` where policies differ: those that are enforced decide.
    pub mode: String,
    /// The policy that applies.
    pub policy: PolicyStatus,
    /// Hooks that are, or should be, attached.
    pub hooks: Vec<HookStatus>,
    /// Fill of the kernel's maps.
    pub maps: Vec<MapStatus>,
    /// Events and entries lost or refused for lack of room, by name; zero counts included.
    pub lost: BTreeMap<String, u64>,
    /// Trusted resolvers: addresses, and ports where they are not 53.
    pub resolvers: Vec<String>,
    /// Facts of the node and its cluster that the agent found or was given, and where.
    #[serde(default)]
    pub found: Vec<FoundStatus>,
    /// Destinations allowed whatever the policy says.
    pub lifeline: Vec<LifelineStatus>,
    /// Scopes, the node's own first.
    pub scopes: Vec<ScopeStatus>,
    /// The cluster and its pods here, as the agent knows them; none without `--kubernetes`.
    #[serde(default)]
    pub kubernetes: Option<KubernetesStatus>,
    /// The host's ends of pods' interfaces; none without `--pod-interfaces`.
    #[serde(default)]
    pub pod_interfaces: Option<PodInterfacesStatus>,
    /// Confirmation of enforcing; none when the agent was started without `--confirm`.
    #[serde(default)]
    pub confirmation: Option<ConfirmationStatus>,
    /// The agent's record of flows that it saw, for `policy learn`.
    #[serde(default)]
    pub observed: ObservedStatus,
    /// Objects gone from the kernel that the agent put back.
    #[serde(default)]
    pub put_back: PutBackStatus,
    /// Matters for the operator, in sentences.
    pub alarms: Vec<String>,
    /// One of them says that the agent itself is impaired, although all is enforced.
    #[serde(default)]
    pub impaired: bool,
    /// Names that DNS queries can still carry out of the node, in a sentence.
    pub dns_tunnelling: String,
}

/// Objects gone from the kernel that the agent put back: hooks, programs behind their links, pins, the bpffs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBackStatus {
    /// How often, by kind: `hook`, `program`, `pin`, `map` (the pin of a map), `bpffs`.
    pub counts: BTreeMap<String, u64>,
    /// The last time.
    pub last_at: Option<Timestamp>,
    /// The object put back then.
    pub last: Option<String>,
}

/// The cluster and its pods here, as the agent knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesStatus {
    /// This node's name there.
    pub node: String,
    /// The API server has listed every kind of objects since the agent started.
    pub is_synced: bool,
    /// When the API server last confirmed this knowledge; for the copy on disk, when it did so before.
    pub heard_at: Option<Timestamp>,
    /// How long ago that was, seconds.
    pub age_s: Option<u64>,
    /// The agent knows the cluster only from its copy on disk.
    pub is_from_disk: bool,
    /// Why the API server does not answer.
    pub error: Option<String>,
    /// Kinds of objects, true for those whose changes the API server reports now.
    pub watches: BTreeMap<String, bool>,
    /// Policies in the cluster.
    pub policies: u64,
    /// Those of them that select something here and compile.
    pub accepted: u64,
    /// Those of them that select something here and do not compile, or that this agent cannot read.
    pub refused: u64,
    /// Pods whose cgroups are here.
    pub pods: u64,
    /// Those of them whose policies are not known yet.
    pub pending: u64,
    /// From the moment a pod's cgroup was seen to its policy, of the last pods.
    pub delay: DelayStatus,
    /// Every pod is judged as it should be, as far as its policies are right.
    pub is_complete: bool,
    /// Faults, in sentences: policies that are refused, cgroups that cannot be watched.
    pub alarms: Vec<String>,
}

/// The host's ends of pods' interfaces, on which packets without an INET socket are judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInterfacesStatus {
    /// How many are judged.
    pub judged: u64,
    /// Those that are not, and why.
    pub failed: Vec<String>,
}

/// How long something took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayStatus {
    /// How many times were measured, up to the last 1,024.
    pub count: u64,
    /// Half of them took at most this, microseconds.
    pub p50_us: u64,
    /// 99 of a hundred took at most this, microseconds.
    pub p99_us: u64,
    /// All of them took at most this, microseconds.
    pub max_us: u64,
}

/// The agent's record of flows that it saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedStatus {
    /// Observations: destination, port and verdict in a scope.
    pub observations: u64,
    /// Most observations that fit.
    pub capacity: u64,
    /// Observations that were dropped for lack of room.
    pub dropped: u64,
    /// Where they are kept.
    pub file: PathBuf,
    /// When they were written there for the last time.
    pub saved_at: Option<Timestamp>,
    /// Why they cannot be, or the fault of the file that the agent found there.
    pub error: Option<String>,
}

/// Confirmation of enforcing (`run --confirm`). Also the answer of `/v1/confirm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmationStatus {
    /// `idle` (no policy has enforced yet), `awaited`, `confirmed`, or `fell_back` to audit.
    pub state: Text,
    /// When the agent falls back unless it is confirmed before.
    pub until: Option<Timestamp>,
    /// Seconds until then, rounded up.
    pub remaining_s: Option<u64>,
    /// When it was confirmed, or the agent fell back.
    pub at: Option<Timestamp>,
    /// Why the agent fell back.
    pub reason: Option<String>,
}

/// The policy that applies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Raised at every switch.
    pub generation: u32,
    /// Files that it was read from.
    pub files: Vec<PathBuf>,
    /// When it was switched to.
    pub loaded_at: Option<Timestamp>,
    /// Rules in it, the lifeline's excluded.
    pub rules: u64,
    /// Entries of the name trie.
    pub names: u64,
    /// Entries of the CIDR trie.
    pub cidrs: u64,
    /// The file of service tags that the rules were read with, if one was given.
    #[serde(default)]
    pub service_tags: Option<ServiceTagsStatus>,
    /// Why the newest change was refused, if it was: the policy before it still applies.
    pub error: Option<String>,
    /// The policies, in the order of files and documents.
    #[serde(default)]
    pub policies: Vec<PolicyFacts>,
}

/// One of the policies that apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFacts {
    /// `metadata.name`.
    pub name: String,
    /// `enforce` or `audit`.
    pub mode: Text,
    /// The file that it stands in.
    pub file: PathBuf,
    /// Line where it starts, from 1.
    pub line: usize,
    /// Rules in it.
    pub rules: u64,
    /// The generation since which it reads as it does.
    pub generation: u32,
}

/// A file of service tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTagsStatus {
    /// The file.
    pub file: PathBuf,
    /// The cloud that it is about.
    pub cloud: String,
    /// Its number, which grows with every change.
    pub change_number: String,
    /// When it was written, as the file system has it.
    pub modified_at: Option<Timestamp>,
    /// How long ago that was, seconds.
    pub age_s: Option<u64>,
    /// Tags in it.
    pub tags: u64,
    /// Different IPv4 networks in it.
    pub ipv4_prefixes: u64,
    /// Different IPv6 networks in it.
    pub ipv6_prefixes: u64,
    /// Corrections that the agent made to its contents, in sentences.
    pub notes: Vec<String>,
}

/// A hook that is, or should be, attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// Name of the hook.
    pub hook: Text,
    /// Cgroup path or interface name: where the kernel has it, or where it should be.
    pub target: String,
    /// `link` (cgroup), `link, behind others` (one that should come before them), `tcx` or `clsact`.
    pub kind: Text,
    /// The kernel has it there, with this agent's program behind it.
    pub attached: bool,
    /// A pin keeps it when the agent ends.
    #[serde(default)]
    pub pinned: bool,
    /// Tag of the program, as the kernel computes it.
    #[serde(default)]
    pub program_tag: String,
    /// Why it is not as it should be.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// Fill of one map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapStatus {
    /// Name of the map.
    pub name: Text,
    /// Entries in it.
    pub entries: u64,
    /// Most that fit.
    pub capacity: u64,
}

/// A value that the agent found, or was given, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundStatus {
    /// Kind of the value: `resolver`, `api-server`, `search-domain`.
    pub what: Text,
    /// The value.
    pub value: String,
    /// Where it is from: an option, a file, an object of the cluster.
    pub from: String,
}

/// One thing that the lifeline allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifelineStatus {
    /// Name of the exception: `resolver`, `api-server` …; `--no-lifeline` takes it.
    pub name: String,
    /// Address or range.
    pub destination: String,
    /// Ports, as a policy would write them.
    pub ports: Vec<String>,
}

/// A scope: the pod, or the node's processes, that profit from a lookup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeStatus {
    /// Its name.
    pub name: String,
    /// Its number in the kernel.
    pub id: u32,
    /// The cgroup that it is bound to.
    pub cgroup: Option<PathBuf>,
    /// `bound`, or `waiting` while its cgroup is not there.
    #[serde(default)]
    pub state: Text,
}

/// Answer of `/v1/counters`.
///
/// The totals and `by_reason` count packets judged by the packet hooks and
/// refused connects: see the agent's `api::report::counters_report`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersReport {
    /// Packets that passed.
    pub allowed: u64,
    /// Packets dropped and connects refused.
    pub denied: u64,
    /// The same in audit mode: they passed.
    pub would_deny: u64,
    /// The totals, split by reason and verdict.
    pub by_reason: Vec<ReasonCount>,
    /// Decisions made by a rule: first packets of flows, refused connects.
    pub by_rule: Vec<RuleCount>,
    /// The same, summed for each policy.
    #[serde(default)]
    pub by_policy: Vec<PolicyCount>,
    /// Decisions for each workload that were made by a rule, or for lack of one.
    #[serde(default)]
    pub by_workload: Vec<WorkloadCount>,
    /// Every verdict of every hook, allowed connects included.
    pub by_hook: Vec<HookCount>,
    /// The raw counters that everything above is made of.
    pub verdicts: Vec<VerdictCount>,
    /// Outcomes of DNS queries and answers, and losses; zero counts included.
    pub dns: BTreeMap<Text, u64>,
}

/// Count of one reason and verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Name of the reason.
    pub reason: Text,
    /// Name of the verdict.
    pub verdict: Text,
    /// How often.
    pub count: u64,
    /// The reason in a sentence.
    pub words: Text,
}

/// Decisions made by one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// The rule in one line: `policy/node allow[0] *.example.com 443/tcp`.
    pub rule: String,
    /// Name of its policy; `lifeline` for the lifeline, empty for a rule that is gone.
    pub policy: String,
    /// `allow`, `deny` or `lifeline`; empty for a rule that is gone.
    pub list: Text,
    /// Position in the list, from 0.
    pub index: usize,
    /// The preset that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Name pattern or CIDR.
    pub destination: String,
    /// Ports, as a policy would write them.
    pub ports: Vec<String>,
    /// File, if it came from one.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// First packets of flows that it allowed.
    pub allowed: u64,
    /// Packets and connects that it denied.
    pub denied: u64,
    /// The same in audit mode.
    pub would_deny: u64,
}

/// Decisions made by the rules of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCount {
    /// Its name; `lifeline` for the lifeline, empty for rules that are gone.
    pub policy: String,
    /// First packets of flows that it allowed.
    pub allowed: u64,
    /// Packets and connects that it denied.
    pub denied: u64,
    /// Packets and connects that it would deny if it were enforced: they passed.
    pub would_deny: u64,
}

/// Decisions on a workload's packets and connects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadCount {
    /// Its scope: `node`, `NAMESPACE/POD`, or its name in `--scope`.
    pub workload: String,
    /// First packets of flows that were allowed by a rule.
    pub allowed: u64,
    /// Packets and connects that were denied.
    pub denied: u64,
    /// Packets and connects that would be denied if policies were enforced: they passed.
    pub would_deny: u64,
}

/// Verdicts of one hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookCount {
    /// Name of the hook.
    pub hook: Text,
    /// Packets or connects that passed.
    pub allowed: u64,
    /// Packets dropped or connects refused.
    pub denied: u64,
    /// The same in audit mode: they passed.
    pub would_deny: u64,
}

/// One raw counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCount {
    /// Name of the hook.
    pub hook: Text,
    /// Name of the verdict.
    pub verdict: Text,
    /// Name of the reason.
    pub reason: Text,
    /// How often.
    pub count: u64,
}

/// An address that a name taught a scope: one for each name, address and scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedAddress {
    /// The name that was asked for; `?` when the agent did not see the answer.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// Ports that are open to it.
    pub ports: Vec<String>,
    /// Seconds until the last of the ports closes, rounded up.
    pub expires_in_s: u64,
    /// Name of the scope that profits.
    pub scope: String,
    /// The rules that grant it.
    pub rules: Vec<String>,
}

/// A verdict on a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    /// When.
    pub at: Timestamp,
    /// Name of the sender's scope.
    pub scope: String,
    /// The sender's cgroup, as a path where it still exists, else its number.
    pub cgroup: String,
    /// Source address; none at connect, where it is not chosen yet.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port; none where the protocol has none or a fragment hides it.
    pub port: Option<u16>,
    /// Protocol: `tcp`, `udp`, `icmp` …, else its number.
    pub protocol: Text,
    /// Names that this scope resolved to the destination, allowed or not.
    pub names: Vec<String>,
    /// The server name in the TLS hello (SNI), where a rule made the kernel read one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Name of the verdict.
    pub verdict: Text,
    /// Name of the reason.
    pub reason: Text,
    /// The reason in a sentence.
    pub words: Text,
    /// The rule that decided, in one line.
    pub rule: Option<String>,
    /// Name of the hook.
    pub hook: Text,
    /// Why the answer that holds the destination was refused, if it was: then `names` has its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<FlowCause>,
}

/// The cause of a denial, as a flow reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCause {
    /// Its name, as `explain` gives it.
    pub cause: Text,
    /// The cause in a sentence.
    pub words: Text,
}

/// Answer of `/v1/explain`, and of `explain --policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The destination that was asked about, with port and protocol: `api.example.com:443/tcp`.
    pub destination: String,
    /// Port and protocol are the default, because none was given.
    pub default_port: bool,
    /// Name of the scope that would send; none without an agent.
    pub scope: Option<String>,
    /// Name of the mode that applies.
    pub mode: Text,
    /// Name of the verdict.
    pub verdict: Text,
    /// Name of the reason.
    pub reason: Text,
    /// The reason in a sentence.
    pub words: Text,
    /// The rule that decided.
    pub rule: Option<RuleReport>,
    /// Ports that rules open to it, as a policy would write them.
    pub ports: Vec<String>,
    /// Addresses that were looked at; none without an agent.
    pub addresses: Vec<AddressVerdict>,
    /// Causes of a denial, the nearest first.
    pub causes: Vec<CauseReport>,
    /// The line that would allow it, in `spec.allow` of a policy.
    pub add: Option<String>,
}

/// A rule and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// The rule in one line: `policy/node allow[0] *.example.com 443/tcp`.
    pub rule: String,
    /// Name of its policy; `lifeline` for the lifeline.
    pub policy: String,
    /// Name pattern, CIDR or service tag, as the policy writes it.
    pub destination: String,
    /// File, if it came from one.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
}

/// The kernel's decision about one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressVerdict {
    /// The address.
    pub address: IpAddr,
    /// Names that the scope resolved to it.
    pub names: Vec<String>,
    /// Name of the verdict.
    pub verdict: Text,
    /// Name of the reason.
    pub reason: Text,
    /// Seconds until the port closes, rounded up; none if it is not open by a name.
    pub expires_in_s: Option<u64>,
}

/// Something that lies behind a denial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseReport {
    /// Name of the cause.
    pub cause: Text,
    /// The cause in a sentence, with the facts of this case.
    pub words: String,
    /// The next step.
    pub advice: Text,
    /// The rule that it is about.
    pub rule: Option<RuleReport>,
}

/// Answer of `/v1/observations`: flows that were seen, and their verdicts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observations {
    /// One for each destination, port, verdict and reason in a scope.
    pub observations: Vec<Observation>,
    /// Losses on the way: these may be missing.
    pub losses: Vec<Loss>,
}

/// Flows seen to one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Name of the senders' scope.
    pub scope: String,
    /// The name that led there: the one that the scope had asked for last; none where no lookup explains the address.
    pub name: Option<String>,
    /// Destination port; none where the protocol has none.
    pub port: Option<u16>,
    /// Protocol: `tcp`, `udp`, `icmp` …, else its number.
    pub protocol: Text,
    /// Name of the verdict.
    pub verdict: Text,
    /// Name of the reason.
    pub reason: Text,
    /// How many flows.
    pub flows: u64,
    /// When the first of them began.
    pub first: Timestamp,
    /// When the last packet of them was seen.
    pub last: Timestamp,
    /// Senders: cgroups, or where forwarded packets came from; the first few.
    pub senders: Vec<String>,
    /// Where they went; the first few addresses.
    pub addresses: Vec<IpAddr>,
    /// Other names that led to the same addresses; the first few.
    pub other_names: Vec<String>,
    /// There were more senders, addresses or other names than are listed.
    pub is_cut: bool,
    /// The process of the first flow, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<SenderProcess>,
    /// The list in which the policy in force has a rule for the destination: `lifeline`, `allow` or `deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Text>,
}

/// A process that sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderProcess {
    /// Its name; at most 15 bytes.
    pub command: String,
    /// Its number, as the machine counts.
    pub pid: u32,
}

/// Something that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Kind of the loss, by a name that [`Status::lost`] has too.
    pub what: Text,
    /// How many.
    pub count: u64,
    /// When it was noticed first.
    pub first: Timestamp,
    /// When it was noticed last.
    pub last: Timestamp,
}

/// One line of `/v1/flows/follow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FollowLine {
    /// The client reads too slowly.
    Lost {
        /// This many verdicts were left out here.
        lost: u64,
    },
    /// A verdict.
    Flow(Arc<FlowReport>),
}

/// Body of an answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// The error in a sentence.
    pub error: String,
}

/// One line of `doctor`: something that the agent needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The requirement: `kernel version`, `CAP_BPF`, `cgroup v2` …
    pub name: Text,
    /// The requirement is met.
    pub ok: bool,
    /// The node's value.
    pub found: String,
    /// A value that meets the requirement.
    pub needed: Text,
    /// The remedy when it is not met; empty when it is.
    pub fix: Text,
}

/// Answer of `unload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnloadReport {
    /// Where it was pinned.
    pub pin_dir: PathBuf,
    /// Hooks that were detached.
    pub hooks: Vec<String>,
    /// How many maps were removed.
    pub maps: usize,
    /// Files of others, which were left, by path below it.
    #[serde(default)]
    pub left: Vec<String>,
}
