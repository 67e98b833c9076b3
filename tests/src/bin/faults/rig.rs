//! A world, an agent in it, and the parts of them that can break.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _},
    os::unix::{
        fs::{OpenOptionsExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    Agent, Workload, World,
    disk::{Disk, Frozen, Full},
    expect::policy,
    process::Running,
    programs,
    workload::Held,
    world::Role,
    zone,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::Mode,
};

use crate::fault::{Fault, resolv_conf};

/// An address without a rule, which nothing else here asks for.
pub(crate) const FORBIDDEN: &str = "10.78.9.1";
/// An address that the written policy opens now and then.
const OPENED: &str = "10.78.10.1";
/// An interface with hooks that carries nothing.
pub(crate) const SPARE: &str = "spare0";
/// Longest time until an agent enforces.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How much of the log is kept.
const LOG_BYTES: usize = 1 << 16;
/// More memory than this the agent does not get.
const MORE_MEMORY: u64 = 2 << 20;

/// A world, an agent in it, and the parts of them that can break. In the order in which they have to go.
pub(crate) struct Rig {
    pub(crate) readers: Vec<UnixStream>,
    pub(crate) frozen: Option<Frozen>,
    pub(crate) full: Option<Full>,
    held: Vec<Held>,
    pub(crate) agent: Agent,
    /// The written policy opens [`OPENED`].
    is_open: bool,
    /// Faults since this world was made, which the agent may still report.
    pub(crate) past: Vec<Fault>,
    log: Log,
    pub(crate) limit: Option<Limit>,
    pub(crate) disk: Option<Disk>,
    client: Workload,
    pub(crate) world: World,
}

/// Behaviour of the reader of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum LogReader {
    Reads,
    Idle,
    Gone,
}

impl Rig {
    /// Makes the world and starts the agent.
    ///
    /// # Errors
    ///
    /// Something cannot be made.
    pub(crate) fn new() -> Result<Self> {
        let mut world = World::new();
        world.start_probe(
            Role::Dns,
            &[
                "dns-server",
                "--zone",
                "fresh.example.com",
                "--zone",
                "stale.example.com",
            ],
        )?;
        add_spare(&world)?;
        let disk = Disk::new(&world);
        if disk.is_none() {
            println!("SKIPPED disk-full, disk-hung: no loop device");
        }
        fs::create_dir_all(world.judged().join(SCOPE))?;
        fs::write(world.dir().join(RESOLV_CONF), resolv_conf())?;
        let log = Log::new(&world.dir().join("log.pipe"))?;
        script(&world, SCRIPT, "")?;
        script(
            &world,
            SCRIPT_AHEAD,
            "--fork --kill-child --time --boottime 86400 --monotonic 86400",
        )?;
        let mut options = world
            .agent(&rules(false))
            .resolvers_of_the_node()
            .scope(SCOPE, &world.judged().join(SCOPE))
            .interface(SPARE)
            // Each lookup is a new name, and the node's share is a quarter.
            .arg("--max-learned")
            .arg("2000000")
            .program(world.dir().join(SCRIPT));
        if let Some(disk) = &disk {
            options = options.state_dir(&disk.path().join("state"));
        }
        let agent = options.try_start()?;
        let client = world.workload("client");
        client.resolve("api.example.com", false);
        let api = zone::address("api.example.com", false);
        let held = vec![
            // A link that was down costs a flow a while.
            client.hold_with(&[&api.to_string(), "80", "--wait-ms", "8000"]),
            client.hold_with(&[&api.to_string(), "443", "--udp", "--wait-ms", "8000"]),
        ];
        let limit = Limit::new(&world);
        if limit.is_none() {
            println!("SKIPPED memory: no memory controller for the agent's cgroup");
        }
        Ok(Self {
            readers: Vec::new(),
            frozen: None,
            full: None,
            held,
            agent,
            is_open: false,
            past: Vec::new(),
            log,
            limit,
            disk,
            client,
            world,
        })
    }

    /// A flow of datagrams in place of the old one, which the link that was down has cost one.
    pub(crate) fn hold_datagrams(&mut self) {
        let api = zone::address("api.example.com", false).to_string();
        self.held.truncate(1);
        self.held.push(
            self.client
                .hold_with(&[&api, "443", "--udp", "--wait-ms", "8000"]),
        );
    }

    /// The fault can be injected here.
    pub(crate) fn can(&self, fault: Fault) -> bool {
        let needs_disk = matches!(fault, Fault::DiskFull | Fault::DiskHung);
        (self.disk.is_some() || !needs_disk) && (self.limit.is_some() || fault != Fault::Memory)
    }

    /// The agent, as a script that starts it.
    pub(crate) fn program(&self) -> PathBuf {
        self.world.dir().join(SCRIPT)
    }

    /// The cgroup of the scope.
    pub(crate) fn scope(&self) -> PathBuf {
        self.world.judged().join(SCOPE)
    }

    pub(crate) fn policy_file(&self) -> PathBuf {
        self.world.dir().join("policy.yaml")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.world.dir().join(RESOLV_CONF)
    }

    pub(crate) fn write_resolv_conf(&self) -> Result<()> {
        fs::write(self.resolv_conf(), resolv_conf()).context("cannot write resolv.conf")
    }

    /// Writes the policy, which opens [`OPENED`] or does not.
    pub(crate) fn write_policy(&mut self, is_open: bool) -> Result<()> {
        self.is_open = is_open;
        fs::write(self.policy_file(), rules(is_open)).context("cannot write the policy")
    }

    /// The policy that was written last is in force.
    pub(crate) fn is_open_as_written(&self) -> bool {
        self.client.connect(OPENED, 80).ok == self.is_open
    }

    /// Sets the behaviour of the reader of the log from now on.
    pub(crate) fn log_reader(&self, reader: LogReader) {
        self.log.reader.store(reader as u8, Ordering::Relaxed);
        // It has closed or opened its end when this returns.
        thread::sleep(Duration::from_millis(50));
    }

    /// The end of the log, without its lines on flows.
    pub(crate) fn log(&self) -> String {
        let read = self.log.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&read);
        let lines = text.lines().filter(|line| !line.contains("flow denied"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Starts the agent again and waits until it enforces, whatever else it has to say.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_as(SCRIPT)
    }

    /// The same, with the clocks of its namespace a day ahead.
    pub(crate) fn start_ahead(&mut self) -> Result<()> {
        self.start_as(SCRIPT_AHEAD)
    }

    fn start_as(&mut self, script: &str) -> Result<()> {
        let program = self.world.dir().join(script);
        self.agent.spawn_again(program)?;
        let end = Instant::now() + START_LIMIT;
        loop {
            if let Ok((_, Some(status))) = self.agent.look()
                && status.enforcing
            {
                return Ok(());
            }
            ensure!(!self.agent.has_ended(), "the agent does not start");
            ensure!(
                Instant::now() < end,
                "the agent does not enforce within {START_LIMIT:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts traffic.
    pub(crate) fn load(&self) -> Result<Running> {
        let api = zone::address("api.example.com", false).to_string();
        let mut load = self.client.background(&[
            "load",
            &api,
            FORBIDDEN,
            "--server",
            zone::SERVER,
            "--zone",
            "fresh.example.com",
            "--stale-zone",
            "stale.example.com",
        ]);
        load.wait_for_line(0, Duration::from_secs(5), |line| line == "ready")?;
        Ok(load)
    }

    /// Flows from before the first fault are still open; the scope is judged, and nothing forbidden arrived.
    pub(crate) fn check(&mut self) -> Result<()> {
        for held in &mut self.held {
            // On a machine with little time to spare an echo takes a while.
            let is_alive = (0..4).any(|_| held.is_alive());
            ensure!(is_alive, "a flow that was open is lost: {:?}", held.lines());
        }
        let scope = self.world.workload(SCOPE);
        ensure!(
            scope.connect("10.79.0.1", 80).ok,
            "the scope does not reach what its policy allows"
        );
        let refused = scope.connect(FORBIDDEN, 80);
        ensure!(!refused.ok, "the scope reached what is forbidden");
        for kind in ["tcp 10.78.9.1:80", "udp 10.78.9.1:443"] {
            let arrived = self.world.web_saw(kind);
            ensure!(
                arrived == 0,
                "{arrived} times {kind} arrived, which is forbidden"
            );
        }
        Ok(())
    }

    /// As far as that goes: nothing hangs, nothing is stopped.
    pub(crate) fn heal_all(&mut self) {
        self.frozen = None;
        self.full = None;
        self.readers.clear();
        self.agent.signal(nix::sys::signal::Signal::SIGCONT);
        if let Some(limit) = &self.limit {
            let _ = limit.raise();
        }
        self.log_reader(LogReader::Reads);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.heal_all();
    }
}

/// Makes the interface with hooks that carries nothing.
pub(crate) fn add_spare(world: &World) -> Result<()> {
    let node = world.namespace(Role::Node);
    node.ip(&format!(
        "link add {SPARE} type veth peer name {SPARE}-peer\nlink set {SPARE}-peer up\nlink set {SPARE} up\n"
    ))
}

const SCOPE: &str = "service";
const RESOLV_CONF: &str = "resolv.conf.node";
const SCRIPT: &str = "agent.sh";
const SCRIPT_AHEAD: &str = "agent-ahead.sh";

fn rules(is_open: bool) -> String {
    let opened = if is_open { ", 10.78.10.0/24" } else { "" };
    policy(&format!(
        "allow:\n- {{ names: [api.example.com, \"*.fresh.example.com\"] }}\n- {{ cidrs: [10.79.0.0/16{opened}] }}"
    ))
}

/// The agent with its own resolv.conf, its log in a pipe, and in these namespaces.
fn script(world: &World, name: &str, namespaces: &str) -> Result<()> {
    let path = world.dir().join(name);
    let text = format!(
        "#!/bin/sh\nexec unshare --mount {namespaces} sh -c 'mount --bind \"{dir}/{RESOLV_CONF}\" /etc/resolv.conf && \
         exec \"$0\" \"$@\" 2>\"{dir}/log.pipe\"' '{agent}' \"$@\"\n",
        dir = world.dir().display(),
        agent = programs::agent().display(),
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A pipe for the agent's log, and its reader.
struct Log {
    reader: Arc<AtomicU8>,
    text: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
}

impl Log {
    fn new(path: &Path) -> Result<Self> {
        nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600))?;
        let log = Self {
            reader: Arc::new(AtomicU8::new(LogReader::Reads as u8)),
            text: Arc::default(),
            ended: Arc::default(),
        };
        let (reader, text, ended) = (log.reader.clone(), log.text.clone(), log.ended.clone());
        let path = path.to_path_buf();
        let mut pipe = Some(open(&path)?);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !ended.load(Ordering::Relaxed) {
                let now = reader.load(Ordering::Relaxed);
                if now == LogReader::Gone as u8 {
                    pipe = None;
                } else if now == LogReader::Reads as u8 {
                    if pipe.is_none() {
                        pipe = open(&path).ok();
                    }
                    let read = pipe.as_mut().map(|pipe| pipe.read(&mut buffer));
                    match read {
                        Some(Ok(length)) => {
                            let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                            text.extend_from_slice(&buffer[..length]);
                            let above = text.len().saturating_sub(LOG_BYTES);
                            text.drain(..above);
                            continue;
                        }
                        Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
                        Some(Err(error)) => eprintln!("the log cannot be read: {error}"),
                        None => {}
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        Ok(log)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Open for both, so that it waits for no writer; with room for a dozen lines.
fn open(path: &Path) -> Result<File> {
    let pipe = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(4096))?;
    Ok(pipe)
}

/// The cgroup that bounds the agent's memory: its own of version 2, or one of version 1 made for it.
pub(crate) enum Limit {
    Two(PathBuf),
    One(PathBuf),
}

/// Where version 1 of the memory controller is mounted.
const MEMORY_ONE: &str = "/sys/fs/cgroup/memory";

impl Limit {
    fn new(world: &World) -> Option<Self> {
        let own = world.judged().join("agent");
        if own.join("memory.max").is_file() {
            return Some(Self::Two(own));
        }
        if !Path::new(MEMORY_ONE)
            .join("memory.limit_in_bytes")
            .is_file()
        {
            return None;
        }
        let path = Path::new(MEMORY_ONE).join(world.name());
        fs::create_dir(&path).ok()?;
        Some(Self::One(path))
    }

    /// From now on the process gets little more.
    pub(crate) fn put(&self, pid: u32) -> Result<()> {
        match self {
            Self::Two(path) => {
                let now: u64 = fs::read_to_string(path.join("memory.current"))?
                    .trim()
                    .parse()?;
                fs::write(path.join("memory.max"), (now + MORE_MEMORY).to_string())?;
            }
            // Memory that it has stays charged where it was.
            Self::One(path) => {
                fs::write(path.join("memory.limit_in_bytes"), MORE_MEMORY.to_string())?;
                fs::write(path.join("cgroup.procs"), pid.to_string())?;
            }
        }
        Ok(())
    }

    /// From now on it gets what it wants.
    pub(crate) fn raise(&self) -> Result<()> {
        match self {
            Self::Two(path) => fs::write(path.join("memory.max"), "max")?,
            Self::One(path) => fs::write(path.join("memory.limit_in_bytes"), "-1")?,
        }
        Ok(())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Self::One(path) = self {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Runs a tool of the system.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
