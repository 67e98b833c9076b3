//! Programs in a cgroup of their own.

use std::{ffi::OsStr, net::IpAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;

use crate::{
    process::{self, Output, Place, Running},
    programs,
    report::{Attempt, Lookup},
    zone,
};

/// No program of a test may run longer, unless it says so.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs programs in one cgroup and one namespace.
#[derive(Clone, Debug)]
pub struct Workload {
    place: Place,
    errors: PathBuf,
    resolv_conf: PathBuf,
}

impl Workload {
    pub(crate) const fn new(place: Place, errors: PathBuf, resolv_conf: PathBuf) -> Self {
        Self {
            place,
            errors,
            resolv_conf,
        }
    }

    /// Its cgroup.
    #[must_use]
    pub const fn cgroup(&self) -> &PathBuf {
        &self.place.cgroup
    }

    /// A command of this workload.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.place.command(program)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end.
    pub fn try_run(
        &self,
        program: impl AsRef<OsStr>,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output> {
        process::run(self.command(program).args(args), limit)
    }

    /// Runs a program to its end.
    ///
    /// # Panics
    ///
    /// If it cannot be started or does not end.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.try_run(program, args, LIMIT)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A command that sees the world's resolver in /etc/resolv.conf, for clients that ask the C library.
    pub fn command_with_resolver(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("unshare");
        command
            .args(["--mount", "--", "/bin/sh", "-c"])
            .arg("mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"")
            .arg("sh")
            .arg(&self.resolv_conf)
            .arg(program);
        command
    }

    /// Runs a program that asks the C library for names.
    ///
    /// # Panics
    ///
    /// If it cannot be started or does not end.
    #[track_caller]
    pub fn run_with_resolver(&self, program: &str, args: &[&str]) -> Output {
        process::run(self.command_with_resolver(program).args(args), LIMIT)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs the probe and reads what it reports.
    ///
    /// # Errors
    ///
    /// It fails or does not end.
    pub fn try_probe<T: DeserializeOwned>(&self, args: &[&str], limit: Duration) -> Result<T> {
        let output = self.try_run(programs::probe(), args, limit)?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("probe {} failed: {}", args.join(" "), output.shown()))
    }

    /// Runs the probe and reads what it reports.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn probe<T: DeserializeOwned>(&self, args: &[&str]) -> T {
        self.try_probe(args, LIMIT)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts the probe in the background.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn background(&self, args: &[&str]) -> Running {
        Running::start(self.command(programs::probe()).args(args), &self.errors)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Opens a TCP flow that sends a byte every 100 ms, and waits until it is open.
    ///
    /// # Panics
    ///
    /// If it cannot be opened.
    #[track_caller]
    #[must_use]
    pub fn hold(&self, address: impl ToString, port: u16) -> Held {
        self.hold_with(&[&address.to_string(), &port.to_string()])
    }

    /// As [`Workload::hold`], with the arguments of `probe hold`.
    ///
    /// # Panics
    ///
    /// If it cannot be opened.
    #[track_caller]
    #[must_use]
    pub fn hold_with(&self, args: &[&str]) -> Held {
        let mut running = self.background(&[&["hold"], args].concat());
        if let Err(error) = running.wait_for_line(0, LIMIT, |line| line.starts_with("open")) {
            panic!("the flow to {} did not open: {error:#}", args.join(" "));
        }
        Held { running }
    }

    /// Connects by TCP, sends a line and waits for its echo.
    #[track_caller]
    pub fn connect(&self, address: impl ToString, port: u16) -> Attempt {
        self.probe(&["connect", &address.to_string(), &port.to_string()])
    }

    /// Sends a datagram and waits for its echo; from a connected socket or by sendto.
    #[track_caller]
    pub fn udp(&self, address: impl ToString, port: u16, connected: bool) -> Attempt {
        let how = if connected {
            "--connected"
        } else {
            "--unconnected"
        };
        self.probe(&["udp", &address.to_string(), &port.to_string(), how])
    }

    /// Sends an ICMP echo request and waits for the reply.
    #[track_caller]
    pub fn ping(&self, address: impl ToString) -> Attempt {
        self.probe(&["ping", &address.to_string()])
    }

    /// Resolves a name by the world's resolver: A or AAAA.
    #[track_caller]
    pub fn resolve(&self, name: &str, v6: bool) -> Vec<IpAddr> {
        self.resolve_at(name, v6, zone::RESOLVER[0])
    }

    /// Resolves a name by this resolver.
    #[track_caller]
    pub fn resolve_at(&self, name: &str, v6: bool, server: &str) -> Vec<IpAddr> {
        let kind = if v6 { "AAAA" } else { "A" };
        let lookup = self.lookup(&[name, "--server", server, "--type", kind]);
        assert!(lookup.error.is_none(), "resolving {name}: {lookup:?}");
        lookup.addresses
    }

    /// Runs `probe resolve` with these arguments.
    #[track_caller]
    pub fn lookup(&self, args: &[&str]) -> Lookup {
        self.probe(&[&["resolve"], args].concat())
    }
}

/// A flow that is kept open.
#[derive(Debug)]
pub struct Held {
    running: Running,
}

impl Held {
    /// Bytes still come back: waits for two more echoes, at most two seconds for each.
    pub fn is_alive(&mut self) -> bool {
        let from = self.running.lines().len();
        for round in 0..2 {
            let alive = self
                .running
                .wait_for_line(from + round, Duration::from_secs(2), |line| {
                    line.starts_with("alive") || line.starts_with("broken")
                });
            if !alive.is_ok_and(|line| line.starts_with("alive")) {
                return false;
            }
        }
        true
    }

    /// It breaks within `limit`.
    pub fn breaks(&mut self, limit: Duration) -> bool {
        self.running
            .wait_for_line(0, limit, |line| line.starts_with("broken"))
            .is_ok()
    }

    /// Its output so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.running.lines()
    }
}
