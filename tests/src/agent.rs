//! The real agent, as a guard.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    eventually, interrupt, leftovers,
    process::{self, Output, Place, Running},
    programs, zone,
};

/// Longest time until an agent enforces, also beside much traffic on a host that gives little of its CPUs.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Longest time that a question to the agent may take.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Longest time that the agent may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How an agent shall be started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    program: PathBuf,
    place: Place,
    policy: PathBuf,
    has_policy: bool,
    cgroup: PathBuf,
    socket: PathBuf,
    pins: PathBuf,
    state: PathBuf,
    log: PathBuf,
    resolvers: Vec<String>,
    more: Vec<String>,
    cpu: Option<usize>,
}

impl AgentOptions {
    pub(crate) fn new(
        place: Place,
        cgroup: PathBuf,
        dir: &Path,
        pins: PathBuf,
        policy: &Path,
    ) -> Self {
        Self {
            program: programs::agent(),
            place,
            policy: policy.to_path_buf(),
            has_policy: true,
            cgroup,
            socket: dir.join("agent.sock"),
            pins,
            state: dir.join("state"),
            log: dir.join("agent.log"),
            resolvers: zone::RESOLVER.iter().map(ToString::to_string).collect(),
            more: Vec::new(),
            cpu: None,
        }
    }

    /// Trusts this resolver too.
    #[must_use]
    pub fn resolver(mut self, address: &str) -> Self {
        self.resolvers.push(address.to_owned());
        self
    }

    /// Leaves it to the node's resolv.conf which resolvers are trusted.
    #[must_use]
    pub fn resolvers_of_the_node(mut self) -> Self {
        self.resolvers.clear();
        self
    }

    /// Keeps its state in this folder.
    #[must_use]
    pub fn state_dir(mut self, folder: &Path) -> Self {
        self.state = folder.to_path_buf();
        self
    }

    /// Overrides the mode of the policies.
    #[must_use]
    pub fn mode(self, mode: &str) -> Self {
        self.arg("--mode").arg(mode)
    }

    /// Judges what leaves through this interface.
    #[must_use]
    pub fn interface(self, name: &str) -> Self {
        self.arg("--interface").arg(name)
    }

    /// Makes a scope of a cgroup.
    #[must_use]
    pub fn scope(self, name: &str, cgroup: &Path) -> Self {
        self.arg("--scope")
            .arg(format!("{name}={}", cgroup.display()))
    }

    /// Judges the pods of this node as a cluster says; without a policy of its own. It runs in the machine's own network
    /// namespace, where the API server of the test is, and attaches to nothing there.
    #[must_use]
    pub fn of_cluster(mut self, kubeconfig: &Path, node: &str) -> Self {
        self.place.namespace = PathBuf::from("/proc/self/ns/net");
        self.has_policy = false;
        self.arg("--kubernetes")
            .arg("--node-name")
            .arg(node)
            .arg("--kubeconfig")
            .arg(kubeconfig.display().to_string())
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.more.push(arg.into());
        self
    }

    /// Serves another socket.
    #[must_use]
    pub fn socket(mut self, path: &Path) -> Self {
        self.socket = path.to_path_buf();
        self
    }

    /// Judges what is below this cgroup.
    #[must_use]
    pub fn cgroup(mut self, path: &Path) -> Self {
        self.cgroup = path.to_path_buf();
        self
    }

    /// Pins what it loads in this folder.
    #[must_use]
    pub fn pin_dir(mut self, path: &Path) -> Self {
        self.pins = path.to_path_buf();
        self
    }

    /// Runs this program instead of the usual agent.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// Runs the agent on this CPU only.
    #[must_use]
    pub const fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Starts it and waits until it enforces.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Agent {
        self.try_start()
            .unwrap_or_else(|error| panic!("the agent does not enforce: {error:#}"))
    }

    /// Starts it and waits until it enforces, or says why it does not.
    ///
    /// # Errors
    ///
    /// It ends, or does not enforce in time.
    pub fn try_start(self) -> Result<Agent> {
        let mut agent = Agent {
            running: self.spawn()?,
            options: self,
            unloaded: false,
        };
        agent.wait_until_enforcing()?;
        Ok(agent)
    }

    /// Runs it to its end, for starts that must fail.
    ///
    /// # Panics
    ///
    /// If it cannot be started or does not end.
    #[track_caller]
    #[must_use]
    pub fn run_to_end(&self) -> Output {
        process::run(&mut self.command(), START_LIMIT).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Where it pins what it loads.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    fn command(&self) -> std::process::Command {
        let mut command = match self.cpu {
            Some(cpu) => {
                let mut command = self.place.command("taskset");
                command.arg("-c").arg(cpu.to_string()).arg(&self.program);
                command
            }
            None => self.place.command(&self.program),
        };
        command.arg("run");
        if self.has_policy {
            command.arg("--policy").arg(&self.policy);
        }
        command
            .arg("--cgroup")
            .arg(&self.cgroup)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--pin-dir")
            .arg(&self.pins)
            .arg("--state-dir")
            .arg(&self.state);
        for resolver in &self.resolvers {
            command.arg("--resolver").arg(resolver);
        }
        command.args(&self.more);
        command
    }

    fn spawn(&self) -> Result<Running> {
        Running::start(&mut self.command(), &self.log)
    }
}

/// A running agent. Dropping it ends it and removes everything from the kernel.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    options: AgentOptions,
    unloaded: bool,
}

impl Agent {
    fn wait_until_enforcing(&mut self) -> Result<()> {
        let end = Instant::now() + START_LIMIT;
        loop {
            // While it still loads, a question may take longer than it should.
            let status = self.cli(&["status", "-o", "json"]);
            if let Ok(status) = &status
                && status.code() == Some(0)
            {
                let report: Status = parse(status)?;
                for hook in [
                    "connect4",
                    "connect6",
                    "skb_egress",
                    "skb_ingress",
                    "sock_create",
                ] {
                    ensure!(
                        report.has(hook),
                        "{hook} is not attached: {}",
                        status.shown()
                    );
                }
                return Ok(());
            }
            if let Some(end) = self.running.ended() {
                bail!("it ended ({end}): {}", self.log().trim());
            }
            if interrupt::requested() {
                bail!("interrupted");
            }
            if Instant::now() >= end {
                bail!(
                    "status says: {}; its log: {}",
                    status.map_or_else(|error| format!("{error:#}"), |status| status.shown()),
                    self.log().trim()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        format!(
            "{}{}",
            self.running.lines().join("\n"),
            self.running.errors()
        )
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The socket that it serves.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.options.socket
    }

    /// Where it pins what it loads.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.options.pins
    }

    /// Where it keeps what it saw.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.options.state
    }

    /// Runs one of its subcommands.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        self.cli_within(args, ASK_LIMIT)
    }

    /// The same, with another limit than ten seconds: the client itself waits as long for an agent that does not answer.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end.
    pub fn cli_within(&self, args: &[&str], limit: Duration) -> Result<Output> {
        let mut command = std::process::Command::new(programs::agent());
        command.args(args).arg("--socket").arg(&self.options.socket);
        process::run(command.stdin(std::process::Stdio::null()), limit)
    }

    /// The policy that it learned.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[track_caller]
    #[must_use]
    pub fn learned_policy(&self, args: &[&str]) -> String {
        let output = self.cli(&[&["policy", "learn"], args].concat());
        let output = output.unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(output.code(), Some(0), "{}", output.shown());
        output.stdout
    }

    /// Flows that it has observed.
    #[track_caller]
    #[must_use]
    pub fn observations(&self) -> Vec<Observation> {
        self.ask::<Observations>(&["policy", "learn"]).observations
    }

    /// Runs a subcommand that must succeed with JSON output.
    #[track_caller]
    fn ask<T: DeserializeOwned>(&self, args: &[&str]) -> T {
        self.try_ask(args)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs a subcommand with JSON output.
    ///
    /// # Errors
    ///
    /// It fails, or its output is not what is documented.
    pub fn try_ask<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let output = self.cli(&[args, &["-o", "json"]].concat())?;
        ensure!(
            output.code() == Some(0),
            "{} failed: {}",
            args.join(" "),
            output.shown()
        );
        parse(&output)
    }

    /// The metrics as Prometheus reads them: a line for each sample.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn metrics(&self) -> Result<Vec<String>> {
        let mut stream = UnixStream::connect(&self.options.socket)?;
        stream.set_read_timeout(Some(ASK_LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let (_, text) = answer.split_once("\r\n\r\n").context("no text")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The kernel's counters.
    #[track_caller]
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.ask(&["counters"])
    }

    /// Learned addresses.
    #[track_caller]
    #[must_use]
    pub fn learned(&self) -> Vec<Learned> {
        self.ask(&["learned"])
    }

    /// The address is learned, in some scope.
    #[track_caller]
    #[must_use]
    pub fn knows(&self, address: IpAddr) -> bool {
        self.learned().iter().any(|one| one.address == address)
    }

    /// Recent verdicts.
    #[track_caller]
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        self.ask(&["flows"])
    }

    /// Waits for the newest verdict on a destination: events arrive a little later than the packets they report.
    #[must_use]
    pub fn flow_to(&self, destination: IpAddr, wanted: impl Fn(&Flow) -> bool) -> Option<Flow> {
        let mut found = None;
        eventually(Duration::from_secs(2), || {
            found = self
                .flows()
                .into_iter()
                .filter(|flow| flow.destination == destination && wanted(flow))
                .max_by(|one, other| one.at.cmp(&other.at));
            found.is_some()
        });
        found
    }

    /// Its answer to `explain` for packets to a destination from the node or `from`.
    ///
    /// # Panics
    ///
    /// If there is no answer, or the exit status is not the verdict's.
    #[track_caller]
    #[must_use]
    pub fn explain(&self, to: &str, from: Option<&str>) -> Explanation {
        let from = from.map_or_else(Vec::new, |from| vec!["--from", from]);
        let args = [&["explain", to, "-o", "json"], from.as_slice()].concat();
        let output = self.cli(&args).unwrap_or_else(|error| panic!("{error:#}"));
        let explained: Explanation = parse(&output).unwrap_or_else(|error| panic!("{error:#}"));
        let status = i32::from(explained.verdict != "allowed");
        assert_eq!(output.code(), Some(status), "{}", output.shown());
        explained
    }

    /// Its state, whether it enforces or not.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Status {
        let output = self
            .cli(&["status", "-o", "json"])
            .unwrap_or_else(|error| panic!("{error:#}"));
        parse(&output).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs `work`, and returns how far the counters grew meanwhile.
    #[track_caller]
    pub fn counted<T>(&self, work: impl FnOnce() -> T) -> (T, Counters) {
        let before = self.counters();
        let result = work();
        (result, self.counters().since(&before))
    }

    /// Writes the policy file anew and waits until it is switched to.
    ///
    /// # Panics
    ///
    /// If the switch does not come.
    #[track_caller]
    pub fn reload(&self, policy: &str) {
        self.reload_within(Duration::from_secs(5), policy);
    }

    /// As [`Agent::reload`], where the machine has other work.
    ///
    /// # Panics
    ///
    /// If the switch does not come.
    #[track_caller]
    pub fn reload_within(&self, limit: Duration, policy: &str) {
        let before = self.status().policy.generation;
        fs::write(&self.options.policy, policy).expect("the policy is written");
        let switched = eventually(limit, || self.status().policy.generation > before);
        assert!(
            switched,
            "the new policy is not in force: {:?}",
            self.status().policy
        );
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Its process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.running.ended().is_some()
    }

    /// Starts this program with the same options, and waits for nothing.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn spawn_again(&mut self, program: PathBuf) -> Result<()> {
        self.options.program = program;
        self.running = self.options.spawn()?;
        Ok(())
    }

    /// Exit code of `status`, and its report, if the agent answers.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn look(&self) -> Result<(Option<i32>, Option<Status>)> {
        let output = self.cli_within(&["status", "-o", "json"], 2 * ASK_LIMIT)?;
        Ok((output.code(), parse(&output).ok()))
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// Ends it as a service manager does.
    ///
    /// # Panics
    ///
    /// If it does not end.
    #[track_caller]
    pub fn stop(&mut self) {
        self.running.signal(Signal::SIGTERM);
        let status = self.running.wait(STOP_LIMIT);
        assert!(
            status.is_some(),
            "still running {STOP_LIMIT:?} after SIGTERM"
        );
    }

    /// Starts it again, after [`Agent::kill`] or [`Agent::stop`], with the same options.
    ///
    /// # Panics
    ///
    /// If it does not enforce.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.running = self
            .options
            .spawn()
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.wait_until_enforcing()
            .unwrap_or_else(|error| panic!("the agent does not enforce again: {error:#}"));
    }

    /// As [`Agent::start_again`], with another program and these options added.
    ///
    /// # Panics
    ///
    /// If it does not enforce.
    #[track_caller]
    pub fn start_other(&mut self, program: PathBuf, more: &[&str]) {
        self.options.program = program;
        let more = more.iter().map(ToString::to_string);
        self.options.more.extend(more);
        self.start_again();
    }

    /// As [`Agent::start_again`], at another cgroup.
    ///
    /// # Panics
    ///
    /// If it does not enforce.
    #[track_caller]
    pub fn start_at(&mut self, cgroup: &Path) {
        self.options.cgroup = cgroup.to_path_buf();
        self.start_again();
    }

    /// Starts a program with the same options and kills it after a while, wherever it is then.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[track_caller]
    pub fn start_and_kill(&mut self, program: PathBuf, after: Duration) {
        self.options.program = program;
        self.running = self
            .options
            .spawn()
            .unwrap_or_else(|error| panic!("{error:#}"));
        std::thread::sleep(after);
        self.kill();
    }

    /// Removes everything from the kernel, as a user would.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn unload(&mut self) -> Result<Output> {
        self.unloaded = true;
        // In the node's namespace: it also looks for filters on the interfaces that it sees.
        let mut command = self.options.place.command(programs::agent());
        command
            .arg("unload")
            .arg("--pin-dir")
            .arg(&self.options.pins);
        process::run_anyway(&mut command, ASK_LIMIT)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            eprintln!("--- the agent's log:\n{}", self.log().trim());
        }
        self.running.signal(Signal::SIGTERM);
        let ended = self.running.wait(STOP_LIMIT).is_some();
        let hangs = if ended {
            String::new()
        } else {
            threads(self.pid())
        };
        self.running.kill();
        if self.unloaded {
            return;
        }
        let output = self.unload();
        let left = self.options.pins.exists();
        // Pins that hold the test's cgroup must go even if the agent failed to remove them.
        let _ = leftovers::remove_pins(&self.options.pins);
        if !panicking {
            assert!(
                ended,
                "the agent still ran {STOP_LIMIT:?} after SIGTERM; its threads:\n{hangs}its log:\n{}",
                self.log()
            );
            match output {
                Ok(output) => assert!(
                    output.code() == Some(0) && !left,
                    "unload left {} behind: {}",
                    self.options.pins.display(),
                    output.shown()
                ),
                Err(error) => panic!("unload: {error:#}"),
            }
        }
    }
}

/// Where the threads of a process are in the kernel.
fn threads(pid: u32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return String::new();
    };
    tasks
        .flatten()
        .map(|task| {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let stack = read("stack").replace('\n', " < ");
            format!("{} {} {stack}\n", read("comm").trim(), read("wchan"))
        })
        .collect()
}

fn parse<T: DeserializeOwned>(output: &Output) -> Result<T> {
    serde_json::from_str(&output.stdout)
        .with_context(|| format!("not the documented JSON: {}", output.shown()))
}

/// `counters -o json`, as far as it is documented.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counters {
    /// Packets that passed.
    pub allowed: u64,
    /// Packets dropped and connects refused.
    pub denied: u64,
    /// The same in audit mode.
    pub would_deny: u64,
    /// Split by reason and verdict.
    pub by_reason: Vec<ReasonCount>,
    /// Split by hook.
    pub by_hook: Vec<HookCount>,
    /// Decisions made by rules.
    pub by_rule: Vec<RuleCount>,
    /// The same for each policy.
    #[serde(default)]
    pub by_policy: Vec<PolicyCount>,
    /// The same for each workload, with the denials for lack of a rule.
    #[serde(default)]
    pub by_workload: Vec<WorkloadCount>,
    /// Outcomes of DNS messages, and losses.
    pub dns: BTreeMap<String, u64>,
}

/// One entry of `by_reason`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ReasonCount {
    /// Name of the reason.
    pub reason: String,
    /// Name of the verdict.
    pub verdict: String,
    /// How often.
    pub count: u64,
}

/// One entry of `by_hook`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct HookCount {
    /// Name of the hook.
    pub hook: String,
    /// Packets or connects that passed.
    pub allowed: u64,
    /// Packets dropped or connects refused.
    pub denied: u64,
    /// The same in audit mode.
    pub would_deny: u64,
}

/// One entry of `by_rule`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RuleCount {
    /// The rule in one line.
    pub rule: String,
    /// Name pattern or CIDR.
    pub destination: String,
    /// First packets of flows that it allowed.
    pub allowed: u64,
    /// Packets and connects that it denied.
    pub denied: u64,
    /// The same in audit mode.
    pub would_deny: u64,
}

/// One entry of `by_policy`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PolicyCount {
    /// Its name.
    pub policy: String,
    /// First packets of flows that it allowed.
    pub allowed: u64,
    /// Packets and connects that it denied.
    pub denied: u64,
    /// Packets and connects that it would have denied.
    pub would_deny: u64,
}

/// One entry of `by_workload`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WorkloadCount {
    /// Its scope.
    pub workload: String,
    /// First packets of flows that were allowed.
    pub allowed: u64,
    /// Packets and connects that were denied.
    pub denied: u64,
    /// The same in audit mode.
    pub would_deny: u64,
}

impl Counters {
    /// Count of one reason, all verdicts together.
    #[must_use]
    pub fn reason(&self, name: &str) -> u64 {
        let entries = self.by_reason.iter();
        entries
            .filter(|one| one.reason == name)
            .map(|one| one.count)
            .sum()
    }

    /// Denials and would-be denials of one hook.
    #[must_use]
    pub fn denied_by(&self, hook: &str) -> u64 {
        let entries = self.by_hook.iter();
        entries
            .filter(|one| one.hook == hook)
            .map(|one| one.denied + one.would_deny)
            .sum()
    }

    /// Count of one outcome of DNS.
    #[must_use]
    pub fn dns(&self, name: &str) -> u64 {
        self.dns.get(name).copied().unwrap_or_default()
    }

    /// Growth since `before`; rules and workloads are left as they are now.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let by_reason = self.by_reason.iter().map(|now| {
            let then = before
                .by_reason
                .iter()
                .find(|then| then.reason == now.reason && then.verdict == now.verdict);
            ReasonCount {
                count: now.count - then.map_or(0, |then| then.count),
                ..now.clone()
            }
        });
        let by_hook = self.by_hook.iter().map(|now| {
            let then = before.by_hook.iter().find(|then| then.hook == now.hook);
            HookCount {
                hook: now.hook.clone(),
                allowed: now.allowed - then.map_or(0, |then| then.allowed),
                denied: now.denied - then.map_or(0, |then| then.denied),
                would_deny: now.would_deny - then.map_or(0, |then| then.would_deny),
            }
        });
        let by_policy = self.by_policy.iter().map(|now| {
            let mut all = before.by_policy.iter();
            let then = all.find(|then| then.policy == now.policy);
            PolicyCount {
                policy: now.policy.clone(),
                allowed: now.allowed - then.map_or(0, |then| then.allowed),
                denied: now.denied - then.map_or(0, |then| then.denied),
                would_deny: now.would_deny - then.map_or(0, |then| then.would_deny),
            }
        });
        Self {
            allowed: self.allowed - before.allowed,
            denied: self.denied - before.denied,
            would_deny: self.would_deny - before.would_deny,
            by_reason: by_reason.filter(|one| one.count > 0).collect(),
            by_hook: by_hook.collect(),
            by_rule: self.by_rule.clone(),
            by_policy: by_policy.collect(),
            by_workload: self.by_workload.clone(),
            dns: self
                .dns
                .iter()
                .map(|(name, now)| (name.clone(), now - before.dns(name)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

/// One entry of `learned -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Learned {
    /// The name that was asked for.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// Ports that are open to it.
    pub ports: Vec<String>,
    /// Seconds until the last of them closes.
    pub expires_in_s: u64,
    /// Scope that profits.
    pub scope: String,
}

/// One entry of `flows -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Flow {
    /// When, in a form that sorts.
    pub at: String,
    /// Scope that sent.
    pub scope: String,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub port: Option<u16>,
    /// Protocol by name.
    pub protocol: String,
    /// Names that resolved to the destination.
    pub names: Vec<String>,
    /// The server name in the TLS hello.
    #[serde(default)]
    pub server_name: Option<String>,
    /// Name of the verdict.
    pub verdict: String,
    /// Name of the reason.
    pub reason: String,
    /// The rule, in one line.
    pub rule: Option<String>,
    /// Name of the hook.
    pub hook: String,
    /// Why the answer that holds the destination was refused, if it was.
    pub cause: Option<FlowCause>,
}

/// The cause of a denied flow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FlowCause {
    /// Its name.
    pub cause: String,
    /// The cause in a sentence.
    pub words: String,
}

/// `explain -o json`, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub struct Explanation {
    /// The destination that was asked about, with port and protocol.
    pub destination: String,
    /// Scope that would send.
    pub scope: Option<String>,
    /// Name of the verdict.
    pub verdict: String,
    /// Name of the reason.
    pub reason: String,
    /// The rule that decided.
    pub rule: Option<RuleReport>,
    /// Causes of the denial.
    pub causes: Vec<Cause>,
    /// The line that would allow it.
    pub add: Option<String>,
}

/// A cause of a denial.
#[derive(Clone, Debug, Deserialize)]
pub struct Cause {
    /// Its name.
    pub cause: String,
    /// The cause in a sentence.
    pub words: String,
    /// The rule that it is about.
    pub rule: Option<RuleReport>,
}

/// A rule and where it stands.
#[derive(Clone, Debug, Deserialize)]
pub struct RuleReport {
    /// The rule in one line.
    pub rule: String,
    /// File.
    pub file: Option<PathBuf>,
    /// Line.
    pub line: Option<usize>,
}

/// `policy learn -o json`, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
struct Observations {
    observations: Vec<Observation>,
}

/// Flows seen to one destination.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Observation {
    /// Scope that sent.
    pub scope: String,
    /// The name that led there.
    pub name: Option<String>,
    /// Destination port.
    pub port: Option<u16>,
    /// Protocol by name.
    pub protocol: String,
    /// Name of the verdict.
    pub verdict: String,
    /// How many flows.
    pub flows: u64,
    /// Cgroups of the senders.
    pub senders: Vec<String>,
    /// Where they went.
    pub addresses: Vec<IpAddr>,
    /// Other names of these addresses.
    pub other_names: Vec<String>,
}

/// `status -o json`, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The agent enforces all that it should.
    pub enforcing: bool,
    /// `enforce`, `audit` or `mixed`.
    pub mode: String,
    /// The policy that applies.
    pub policy: PolicyStatus,
    /// Hooks.
    pub hooks: Vec<HookStatus>,
    /// Maps.
    pub maps: Vec<MapStatus>,
    /// Scopes.
    pub scopes: Vec<ScopeStatus>,
    /// Trusted resolvers.
    pub resolvers: Vec<IpAddr>,
    /// Sentences for an operator.
    pub alarms: Vec<String>,
    /// The cluster as the agent knows it, if it belongs to one.
    pub kubernetes: Option<Kubernetes>,
    /// Interfaces of pods, if they are judged.
    pub pod_interfaces: Option<PodInterfaces>,
    /// Confirmation of enforcing, if that was asked for.
    pub confirmation: Option<Confirmation>,
}

/// A scope.
#[derive(Clone, Debug, Deserialize)]
pub struct ScopeStatus {
    /// Its name.
    pub name: String,
    /// `bound`, or `waiting` for its cgroup.
    pub state: String,
}

/// Interfaces of pods.
#[derive(Clone, Debug, Deserialize)]
pub struct PodInterfaces {
    /// How many are judged.
    pub judged: u64,
    /// Those that are not, and why.
    pub failed: Vec<String>,
}

/// The cluster as the agent knows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Kubernetes {
    /// The API server has listed every kind of objects.
    pub is_synced: bool,
    /// How long ago what is known was heard, seconds.
    pub age_s: Option<u64>,
    /// The agent knows the cluster only from its copy on disk.
    pub is_from_disk: bool,
    /// Why the API server does not answer.
    pub error: Option<String>,
    /// Policies in the cluster.
    pub policies: u64,
    /// Pods here.
    pub pods: u64,
    /// Pods whose policies are not known.
    pub pending: u64,
    /// From cgroup to policy.
    pub delay: Delay,
}

/// From a pod's cgroup to its policy.
#[derive(Clone, Debug, Deserialize)]
pub struct Delay {
    /// How many.
    pub count: u64,
    /// Median, microseconds.
    pub p50_us: u64,
    /// 99 of a hundred, microseconds.
    pub p99_us: u64,
    /// The longest, microseconds.
    pub max_us: u64,
}

/// Confirmation of enforcing.
#[derive(Clone, Debug, Deserialize)]
pub struct Confirmation {
    /// `idle`, `awaited`, `confirmed` or `fell_back`.
    pub state: String,
    /// When the agent falls back.
    pub until: Option<String>,
    /// Seconds until then.
    pub remaining_s: Option<u64>,
    /// Why it fell back.
    pub reason: Option<String>,
}

/// The policy that applies.
#[derive(Clone, Debug, Deserialize)]
pub struct PolicyStatus {
    /// Raised at every switch.
    pub generation: u32,
    /// The policies.
    pub policies: Vec<PolicyFacts>,
    /// The file of service tags, if one was given.
    pub service_tags: Option<ServiceTags>,
    /// Why the newest change was refused.
    pub error: Option<String>,
}

/// One of the policies.
#[derive(Clone, Debug, Deserialize)]
pub struct PolicyFacts {
    /// Its name.
    pub name: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Its rules.
    pub rules: u64,
    /// The generation since which it reads as it does.
    pub generation: u32,
}

/// A file of service tags.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceTags {
    /// The file.
    pub file: PathBuf,
    /// The cloud.
    pub cloud: String,
    /// Its number.
    pub change_number: String,
    /// How old it is.
    pub age_s: Option<u64>,
    /// Tags in it.
    pub tags: u64,
    /// Different IPv4 networks.
    pub ipv4_prefixes: u64,
    /// Different IPv6 networks.
    pub ipv6_prefixes: u64,
}

/// Fill of a map.
#[derive(Clone, Debug, Deserialize)]
pub struct MapStatus {
    /// Name.
    pub name: String,
    /// Entries in it.
    pub entries: u64,
    /// Most that fit.
    pub capacity: u64,
}

/// A hook.
#[derive(Clone, Debug, Deserialize)]
pub struct HookStatus {
    /// Name.
    pub hook: String,
    /// Cgroup path or interface.
    pub target: String,
    /// `link`, `tcx` or `clsact`.
    pub kind: String,
    /// The kernel has it attached.
    pub attached: bool,
    /// A pin keeps it when the agent ends.
    pub pinned: bool,
    /// Tag of its program.
    pub program_tag: String,
    /// Why it is not as it should be.
    pub trouble: Option<String>,
}

impl Status {
    /// The hook is attached somewhere.
    #[must_use]
    pub fn has(&self, hook: &str) -> bool {
        self.hooks
            .iter()
            .any(|one| one.hook == hook && one.attached)
    }
}
