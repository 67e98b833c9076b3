//! The agent goes on and follows its policy, whatever becomes of its log, its terminal and its signals.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{policy, reached, refused},
    programs, ready,
};
use nix::fcntl::{FcntlArg, fcntl};

const ALLOW: &str = "allow: [{ cidrs: [10.79.0.0/16] }]";
const OPEN: &str = "10.79.0.1";
const FORBIDDEN: &str = "10.78.9.1";

/// A pipe with a name and room for a dozen lines, and its reader's end.
fn small_pipe(world: &World) -> (PathBuf, File) {
    let path = world.dir().join("log.pipe");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::unistd::mkfifo(&path, mode).unwrap();
    // Open for both, so that it does not wait for a writer.
    let pipe = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (path, pipe)
}

/// The agent, with its stderr there.
fn logging_to(world: &World, log: &Path) -> PathBuf {
    let script = world.dir().join("agent.sh");
    let agent = programs::agent();
    let text = format!(
        "#!/bin/sh\nexec '{}' \"$@\" 2>'{}'\n",
        agent.display(),
        log.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Denials, each of which is a line of the log.
fn deny(client: &Workload, times: usize) {
    for port in 0..times {
        let port = u16::try_from(1_000 + port).unwrap();
        refused(&client.connect(FORBIDDEN, port));
    }
}

/// It takes up a policy, judges by it, and ends at a signal.
fn is_well(mut agent: Agent, client: &Workload) {
    reached(&client.connect(OPEN, 80));
    agent.reload(&policy("allow: [{ cidrs: [10.79.0.0/16, 10.78.9.0/24] }]"));
    reached(&client.connect(FORBIDDEN, 80));
    agent.stop();
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (path, pipe) = small_pipe(&world);
    let script = logging_to(&world, &path);
    let agent = world.agent(&policy(ALLOW)).program(script).start();
    let client = world.workload("client");
    deny(&client, 60);
    is_well(agent, &client);
    drop(pipe);
}

#[test]
fn a_log_whose_reader_is_gone_is_an_alarm_and_no_more() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (path, pipe) = small_pipe(&world);
    let script = logging_to(&world, &path);
    let agent = world.agent(&policy(ALLOW)).program(script).start();
    let client = world.workload("client");
    let before = agent.cli(&["status"]).unwrap();
    assert_eq!(before.code(), Some(0), "{}", before.shown());
    drop(pipe);
    deny(&client, 10);
    let is_told = || {
        let status = agent.cli(&["status"]).unwrap();
        status.code() == Some(1) && status.stdout.contains("lines of the log were dropped")
    };
    let is_told = eventually(Duration::from_secs(5), is_told);
    assert!(is_told, "{}", agent.cli(&["status"]).unwrap().shown());
    assert!(agent.status().enforcing);
    let metrics = agent.metrics().unwrap();
    let count = metrics
        .iter()
        .find_map(|line| line.strip_prefix("egress_lost_total{what=\"log_lines_dropped\"} "));
    assert!(count.unwrap().parse::<u64>().unwrap() > 0, "{metrics:?}");
    is_well(agent, &client);
}

fn send(agent: &Agent, signal: &str) {
    let status = std::process::Command::new("kill")
        .args([format!("-{signal}"), agent.pid().to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{signal}");
}

#[test]
fn a_terminal_that_goes_reloads_and_no_other_signal_ends_the_agent_unasked() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&policy(ALLOW)).start();
    let client = world.workload("client");
    for signal in [
        "HUP", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "PWR", "PIPE", "XFSZ", "TTOU",
        "TTIN", "34", "64",
    ] {
        send(&agent, signal);
    }
    let is_read = || agent.log().contains("as SIGHUP asks");
    assert!(
        eventually(Duration::from_secs(5), is_read),
        "{}",
        agent.log()
    );
    refused(&client.connect(FORBIDDEN, 80));
    let status = agent.cli(&["status"]).unwrap();
    assert_eq!(status.code(), Some(0), "{}", status.shown());
    agent.stop();

    agent.start_again();
    send(&agent, "QUIT");
    let is_ended = || agent.cli(&["status"]).unwrap().code() == Some(1);
    assert!(eventually(Duration::from_secs(5), is_ended));
    assert!(agent.log().contains("SIGQUIT"), "{}", agent.log());
    refused(&client.connect(FORBIDDEN, 80));
}
