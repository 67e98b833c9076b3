//! The faults: how each is injected and healed, and the agent's report meanwhile.

use std::{fs, io::Write as _, os::unix::net::UnixStream, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use egress_tests::{eventually, expect::policy, world::Role, zone};
use nix::sys::signal::Signal;

use crate::{
    random::Random,
    rig::{LogReader, Rig, SPARE, add_spare, run},
};

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL, and a start.
    Kill,
    /// SIGTERM, and a start.
    Restart,
    /// SIGKILL while it starts.
    KillStart,
    /// SIGSTOP.
    Stop,
    /// No room for its state.
    DiskFull,
    /// Every write to its state hangs.
    DiskHung,
    /// It may open no more files.
    Descriptors,
    /// It may use no more memory, and readers make it use some.
    Memory,
    /// It starts where the clocks of the machine are a day ahead.
    Clock,
    /// Links go down and up, interfaces and addresses come and go.
    Links,
    /// All pins are removed, of maps and links.
    Pins,
    /// The cgroup of a scope is removed and made again.
    Cgroup,
    /// Half a policy.
    Policy,
    /// State files with garbage in them, at a start.
    State,
    /// A garbled resolv.conf.
    ResolvConf,
    /// The socket and its folder are removed.
    Socket,
    /// Readers that do not read, and clients that do not ask.
    Readers,
    /// Nobody reads the log.
    LogUnread,
    /// The reader of the log is gone.
    LogGone,
}

/// The report that `status` has to give while a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// Nothing: all is enforced, and nothing is impaired.
    Nothing,
    /// No agent answers: exit status 1.
    NoAgent,
    /// An agent may answer or not: the machine decides.
    Anything,
    /// Exit status 1, and this sentence.
    Impaired(&'static str),
    /// Exit status 0, and this sentence.
    Noted(&'static str),
}

/// Rounds of combinations have so many faults.
const MOST: usize = 3;

/// The faults of a round: each alone at first, then combinations whose effects differ.
pub(crate) fn of_round(all: &[Fault], round: u64, random: &mut Random) -> Vec<Fault> {
    if let Some(fault) = usize::try_from(round).ok().and_then(|round| all.get(round)) {
        return vec![*fault];
    }
    let wanted = 2 + random.below(MOST - 1);
    let mut faults: Vec<Fault> = Vec::new();
    for _ in 0..20 {
        let one = all[random.below(all.len())];
        if faults.len() < wanted && faults.iter().all(|other| one.goes_with(*other)) {
            faults.push(one);
        }
    }
    faults
}

impl Fault {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::KillStart => "kill-start",
            Self::Stop => "stop",
            Self::DiskFull => "disk-full",
            Self::DiskHung => "disk-hung",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Clock => "clock",
            Self::Links => "links",
            Self::Pins => "pins",
            Self::Cgroup => "cgroup",
            Self::Policy => "policy",
            Self::State => "state",
            Self::ResolvConf => "resolv-conf",
            Self::Socket => "socket",
            Self::Readers => "readers",
            Self::LogUnread => "log-unread",
            Self::LogGone => "log-gone",
        }
    }

    /// The fault in words.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Kill => "the agent is killed, and started a while later",
            Self::Restart => "the agent is ended by SIGTERM, and started a while later",
            Self::KillStart => "the agent is killed, and killed again while it starts",
            Self::Stop => "the agent is stopped (SIGSTOP)",
            Self::DiskFull => "the disk of its state is full",
            Self::DiskHung => "the disk of its state hangs",
            Self::Descriptors => "the agent may open no more files, and a policy changes",
            Self::Memory => "the agent may have no more memory, and readers ask for all it has",
            Self::Clock => "the agent starts in a time namespace whose clocks are a day ahead",
            Self::Links => {
                "the uplink loses its carrier, an interface with hooks is removed and made again, addresses come and go"
            }
            Self::Pins => "all pins of maps and links are removed",
            Self::Cgroup => "the cgroup of a scope is removed and made again",
            Self::Policy => "the policy file is half written",
            Self::State => "the files of its state are garbage when it starts",
            Self::ResolvConf => "resolv.conf is empty, then garbled",
            Self::Socket => "its socket is removed",
            Self::Readers => "40 readers that do not read, 60 clients that do not ask",
            Self::LogUnread => "nobody reads its log",
            Self::LogGone => "the reader of its log is gone",
        }
    }

    /// It ends the agent's process.
    const fn ends(self) -> bool {
        matches!(
            self,
            Self::Kill | Self::Restart | Self::KillStart | Self::Clock | Self::State | Self::Memory
        )
    }

    /// One round can show the effects of both. A process that waits for a disk cannot even be killed; a fault that ends
    /// or stops the agent leaves nobody to report the other, and two that end it are one.
    fn goes_with(self, other: Self) -> bool {
        let either = |a: Self, b: fn(Self) -> bool| self == a && b(other) || other == a && b(self);
        !(self == other
            || self.ends() && other.ends()
            || either(Self::DiskHung, |other| other.ends() || other == Self::DiskFull)
            || either(Self::Stop, Self::ends)
            // Without pins and without an agent nothing holds the programs.
            || either(Self::Pins, |other| other.ends() && other != Self::Restart)
            // It starts while the other lasts, and without its interface or with half a policy no agent starts.
            || either(Self::Clock, |other| other == Self::Links || other == Self::Policy)
            // The resolvers are in neither file then.
            || either(Self::State, |other| other == Self::ResolvConf)
            || either(Self::Descriptors, |other| other.ends() || other == Self::Policy)
            // A start would wait for somebody to read the pipe.
            || either(Self::LogGone, |other| other.ends() || other == Self::LogUnread))
    }

    /// The report of `status` while it lasts.
    pub(crate) const fn says(self) -> Says {
        match self {
            Self::Kill | Self::Restart | Self::KillStart | Self::State | Self::Stop => {
                Says::NoAgent
            }
            // It can accept nobody; whether the kernel ends it depends on what it had.
            Self::Descriptors | Self::Memory => Says::Anything,
            Self::DiskFull
            | Self::DiskHung
            | Self::LogUnread
            | Self::Readers
            | Self::Socket
            | Self::Cgroup
            | Self::Clock => Says::Nothing,
            Self::Links => Says::Impaired("is not attached to"),
            Self::Pins => Says::Noted("put it back"),
            Self::Policy => Says::Impaired("the last policy change was refused"),
            Self::ResolvConf => Says::Impaired("last known good resolvers stay"),
            Self::LogGone => Says::Impaired("lines of the log were dropped"),
        }
    }

    /// Fragments of alarms that `status` may still give after it, or for its side effects.
    pub(crate) const fn may_say(self) -> &'static [&'static str] {
        match self {
            // The kernel goes on: its rings are full before the agent reads them again.
            Self::Kill | Self::Restart | Self::KillStart | Self::Clock | Self::Stop => {
                &["dns_copies_lost", "events_lost"]
            }
            Self::State => &[
                "dns_copies_lost",
                "events_lost",
                "unusable",
                "cannot be read",
            ],
            Self::Memory => &["dns_copies_lost", "events_lost"],
            Self::Descriptors => &[
                "the last policy change was refused",
                "open files",
                "dns_copies_lost",
                "events_lost",
            ],
            Self::DiskFull | Self::DiskHung => &["state is not written", "cannot write"],
            Self::Links => &[
                "is not attached to",
                "is not as it should be",
                "put it back",
            ],
            Self::Pins => &["put it back", "is not pinned"],
            Self::LogUnread | Self::LogGone => &["lines of the log were dropped"],
            Self::Policy => &["the last policy change was refused"],
            Self::ResolvConf => &["last known good resolvers stay"],
            Self::Cgroup | Self::Socket | Self::Readers => &[],
        }
    }

    /// Makes it happen.
    pub(crate) fn inject(self, rig: &mut Rig, random: &mut Random) -> Result<()> {
        match self {
            Self::Kill => rig.agent.kill(),
            Self::Restart => rig.agent.stop(),
            Self::KillStart => {
                rig.agent.kill();
                let program = rig.program();
                rig.agent.start_and_kill(program, random.millis(50..2_500));
            }
            Self::Clock => {
                rig.agent.kill();
                rig.start_ahead()?;
            }
            Self::State => rig.agent.kill(),
            Self::Stop => rig.agent.signal(Signal::SIGSTOP),
            Self::DiskFull => rig.full = rig.disk.as_ref().map(egress_tests::disk::Disk::fill),
            Self::DiskHung => rig.frozen = rig.disk.as_ref().map(egress_tests::disk::Disk::freeze),
            Self::Descriptors => {
                let pid = rig.agent.pid();
                let open = fs::read_dir(format!("/proc/{pid}/fd"))
                    .context("no agent")?
                    .count();
                run(
                    "prlimit",
                    &[&format!("--pid={pid}"), &format!("--nofile={open}:")],
                )?;
                // A change that cannot be read now must not be missed later.
                rig.write_policy(true)?;
            }
            Self::Memory => {
                let limit = rig.limit.as_ref().context("no memory controller")?;
                limit.put(rig.agent.pid())?;
                ask_for_all(rig);
            }
            Self::Links => {
                let web = rig.world.namespace(Role::Web);
                web.ip("link set node down\n")?;
                thread::sleep(random.millis(20..200));
                web.ip("link set node up\n")?;
                let node = rig.world.namespace(Role::Node);
                for last in 1..20 {
                    node.ip(&format!("addr add 10.99.2.{last}/32 dev lo\n"))?;
                    node.ip(&format!("addr del 10.99.2.{last}/32 dev lo\n"))?;
                }
                node.ip(&format!("link del {SPARE}\n"))?;
            }
            Self::Pins => {
                for folder in fs::read_dir(rig.agent.pins())?.flatten() {
                    for pin in fs::read_dir(folder.path())?.flatten() {
                        fs::remove_file(pin.path())?;
                    }
                }
            }
            Self::Cgroup => {
                let path = rig.scope();
                let removed = eventually(Duration::from_secs(5), || fs::remove_dir(&path).is_ok());
                ensure!(removed, "{} cannot be removed", path.display());
                fs::create_dir(&path)?;
            }
            Self::Policy => {
                let text = policy("allow: [{ names: [");
                fs::write(rig.policy_file(), text)?;
            }
            Self::ResolvConf => {
                fs::write(rig.resolv_conf(), "")?;
                thread::sleep(random.millis(0..500));
                fs::write(rig.resolv_conf(), "\0\0garbage")?;
            }
            // An agent that was ended has removed its socket.
            Self::Socket => match fs::remove_file(rig.agent.socket()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)?,
                _ => {}
            },
            Self::Readers => ask_for_all(rig),
            Self::LogUnread => rig.log_reader(LogReader::Idle),
            Self::LogGone => rig.log_reader(LogReader::Gone),
        }
        Ok(())
    }

    /// Heals it; a fault that ended the agent starts it again.
    pub(crate) fn heal(self, rig: &mut Rig) -> Result<()> {
        match self {
            Self::Kill | Self::Restart | Self::KillStart => rig.start()?,
            Self::Clock => {
                rig.agent.kill();
                // It was the child of what was killed, and goes a moment later.
                let socket = rig.agent.socket().to_path_buf();
                let is_gone = || UnixStream::connect(&socket).is_err();
                ensure!(
                    eventually(Duration::from_secs(5), is_gone),
                    "the agent is not gone"
                );
                rig.start()?;
            }
            Self::State => {
                for file in state_files(rig) {
                    fs::write(&file, "{ \"garbage\": \u{0} ")?;
                }
                rig.start()?;
            }
            Self::Stop => rig.agent.signal(Signal::SIGCONT),
            Self::DiskFull => rig.full = None,
            Self::DiskHung => rig.frozen = None,
            Self::Descriptors => {
                let pid = format!("--pid={}", rig.agent.pid());
                run("prlimit", &[&pid, "--nofile=4096:"])?;
                let takes = eventually(Duration::from_secs(10), || rig.is_open_as_written());
                ensure!(
                    takes,
                    "the policy that came while no file could be opened is not taken"
                );
            }
            Self::Memory => {
                rig.readers.clear();
                if let Some(limit) = &rig.limit {
                    limit.raise()?;
                }
                // The kernel may have begun to end it.
                thread::sleep(Duration::from_millis(500));
                if rig.agent.has_ended() {
                    rig.start()?;
                }
            }
            Self::Links => {
                add_spare(&rig.world)?;
                rig.hold_datagrams();
            }
            Self::Policy => rig.write_policy(false)?,
            Self::ResolvConf => rig.write_resolv_conf()?,
            Self::Readers => rig.readers.clear(),
            Self::LogUnread | Self::LogGone => rig.log_reader(LogReader::Reads),
            Self::Pins | Self::Cgroup | Self::Socket => {}
        }
        Ok(())
    }
}

/// Readers of everything who read nothing, and clients who ask nothing.
fn ask_for_all(rig: &mut Rig) {
    for index in 0..100 {
        // The agent may refuse some of so many, or give their places to others.
        let Ok(mut reader) = UnixStream::connect(rig.agent.socket()) else {
            continue;
        };
        if index % 5 < 2 {
            let _refused = reader.write_all(b"GET /v1/learned HTTP/1.1\r\nHost: agent\r\n\r\n");
        }
        rig.readers.push(reader);
    }
}

fn state_files(rig: &Rig) -> Vec<PathBuf> {
    let entries = fs::read_dir(rig.agent.state_dir());
    let files = entries.into_iter().flatten().flatten();
    // Without who taught what, a start cuts what names opened, and says so: a test of its own shows it.
    files
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && !path.ends_with("learned.log"))
        .collect()
}

/// The resolvers that resolv.conf names.
pub(crate) fn resolv_conf() -> String {
    format!(
        "nameserver {}\nnameserver {}\n",
        zone::RESOLVER[0],
        zone::SERVER
    )
}
