//! `run --confirm`: nobody locks himself out.

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{policy, reached, refused},
    programs, ready,
    skip::skip,
    zone,
};
use nix::pty::{OpenptyResult, openpty};

const FORBIDDEN: &str = "10.78.9.1";

fn state(agent: &Agent) -> String {
    agent.status().confirmation.map_or_else(
        || "not asked for".to_owned(),
        |confirmation| confirmation.state,
    )
}

#[test]
fn without_a_confirmation_the_agent_falls_back_to_audit() {
    if !ready() {
        return;
    }
    let world = World::new();
    let allow = "allow: [{ names: [api.example.com] }]";
    let agent = world
        .agent(&policy(allow))
        .arg("--confirm")
        .arg("10s")
        .start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let mut flow = client.hold(api, 80);
    refused(&client.connect(FORBIDDEN, 80));
    let status = agent.status();
    let awaited = status.confirmation.unwrap();
    assert_eq!(awaited.state, "awaited");
    assert!(awaited.until.is_some() && awaited.remaining_s.unwrap() <= 10);
    assert_eq!((status.mode.as_str(), status.enforcing), ("enforce", true));
    let table = agent.cli(&["status"]).unwrap();
    assert!(table.stdout.contains("AWAITED until"), "{}", table.shown());
    // A policy change does not give more time, and a wrong one does not keep it from falling back.
    fs::write(world.dir().join("policy.yaml"), "this: is no policy\n").unwrap();

    assert!(
        eventually(Duration::from_secs(20), || {
            let status = agent.status();
            // The kernel audits at the end of the time; the agent's own switch follows.
            let is_told =
                |alarm: &String| alarm.contains("fell back to audit") && alarm.contains("in time");
            state(&agent) == "fell_back"
                && status.mode == "audit"
                && status.alarms.iter().any(is_told)
        }),
        "{:?}",
        agent.status()
    );
    let status = agent.status();
    assert!(!status.enforcing);
    let reason = status.confirmation.unwrap().reason.unwrap();
    assert!(reason.contains("in time"), "{reason}");
    assert_eq!(agent.cli(&["status"]).unwrap().code(), Some(1));
    assert!(flow.is_alive(), "the switch is the ordinary one");
    let (attempt, moved) = agent.counted(|| client.connect(FORBIDDEN, 80));
    reached(&attempt);
    assert_eq!(moved.denied, 0, "{moved:?}");
    assert!(moved.would_deny > 0, "{moved:?}");

    // A policy that enforces is taken up, but audited.
    agent.reload(&policy(&format!("mode: enforce\n{allow}")));
    assert_eq!(agent.status().mode, "audit");
    reached(&client.connect(FORBIDDEN, 80));

    // A late confirmation enforces again, on probation.
    let output = agent.cli(&["confirm"]).unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    assert!(
        output.stdout.contains("AWAITED until"),
        "{}",
        output.shown()
    );
    refused(&client.connect(FORBIDDEN, 80));
    assert!(agent.status().enforcing);
    assert!(flow.is_alive());
    assert!(
        eventually(Duration::from_secs(10), || client.connect(FORBIDDEN, 80).ok),
        "{:?}",
        agent.status()
    );
}

#[test]
fn a_confirmed_agent_goes_on_enforcing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .arg("--confirm")
        .arg("4s")
        .start();
    let client = world.workload("client");
    let output = agent.cli(&["confirm", "-o", "json"]).unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    assert!(
        output.stdout.contains("\"confirmed\""),
        "{}",
        output.shown()
    );
    std::thread::sleep(Duration::from_secs(5));
    let status = agent.status();
    assert_eq!(status.confirmation.unwrap().state, "confirmed");
    assert_eq!((status.mode.as_str(), status.enforcing), ("enforce", true));
    assert_eq!(status.alarms, Vec::<String>::new());
    reached(&client.connect("10.79.0.1", 80));
    refused(&client.connect(FORBIDDEN, 80));

    // A second time there is nothing to confirm.
    let again = agent.cli(&["confirm"]).unwrap();
    assert_eq!(again.code(), Some(1), "{}", again.shown());
    assert!(
        again.stderr.contains("no confirmation is awaited"),
        "{}",
        again.shown()
    );
    refused(&client.connect(FORBIDDEN, 80));
}

#[test]
fn nothing_to_confirm_without_the_option() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let output = agent.cli(&["confirm"]).unwrap();
    assert_eq!((output.code(), output.stdout.as_str()), (Some(1), ""));
    assert!(
        output.stderr.contains("started without --confirm"),
        "{}",
        output.shown()
    );
    assert_eq!(state(&agent), "not asked for");
}

#[test]
fn an_agent_that_is_stopped_before_the_confirmation_leaves_audit_and_a_killed_one_waits_again() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .arg("--confirm")
        .arg("5s")
        .start();
    let client = world.workload("client");
    refused(&client.connect(FORBIDDEN, 80));
    agent.stop();
    reached(&client.connect(FORBIDDEN, 80));

    agent.start_again();
    refused(&client.connect(FORBIDDEN, 80));
    agent.kill();
    refused(&client.connect(FORBIDDEN, 80));
    agent.start_again();
    refused(&client.connect(FORBIDDEN, 80));
    assert_eq!(state(&agent), "awaited");
    assert!(
        eventually(Duration::from_secs(10), || state(&agent) == "fell_back"),
        "{:?}",
        agent.status()
    );
    assert!(
        eventually(Duration::from_secs(5), || client.connect(FORBIDDEN, 80).ok),
        "{:?}",
        agent.status()
    );
}

/// Sends a signal to an agent while its confirmation is awaited.
fn send(agent: &Agent, signal: &str) {
    let status = std::process::Command::new("kill")
        .args([format!("-{signal}"), agent.pid().to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{signal}");
}

#[test]
fn the_kernel_falls_back_without_the_agent_and_not_once_it_was_confirmed() {
    if !ready() {
        return;
    }
    let window = Duration::from_secs(12);
    for is_confirmed in [false, true] {
        let world = World::new();
        let mut agent = world
            .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
            .arg("--confirm")
            .arg("12s")
            .start();
        let client = world.workload("client");
        if is_confirmed {
            let output = agent.cli(&["confirm"]).unwrap();
            assert_eq!(output.code(), Some(0), "{}", output.shown());
        }
        agent.kill();
        refused(&client.connect(FORBIDDEN, 80));
        std::thread::sleep(window);
        reached(&client.connect("10.79.0.1", 80));
        let attempt = client.connect(FORBIDDEN, 80);
        if is_confirmed {
            refused(&attempt);
            continue;
        }
        reached(&attempt);
        // The one that comes after it has a time of its own.
        agent.start_again();
        refused(&client.connect(FORBIDDEN, 80));
        assert_eq!(state(&agent), "awaited");
    }
}

#[test]
fn a_stopped_agent_does_not_keep_the_kernel_from_falling_back() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .arg("--confirm")
        .arg("10s")
        .start();
    let client = world.workload("client");
    send(&agent, "STOP");
    refused(&client.connect(FORBIDDEN, 80));
    std::thread::sleep(Duration::from_secs(10));
    let attempt = client.connect(FORBIDDEN, 80);
    send(&agent, "CONT");
    reached(&attempt);
    assert!(
        eventually(Duration::from_secs(10), || state(&agent) == "fell_back"),
        "{:?}",
        agent.status()
    );
    let status = agent.status();
    assert_eq!((status.mode.as_str(), status.enforcing), ("audit", false));
    let explained = agent.explain(&format!("{FORBIDDEN}:80"), None);
    assert_eq!(explained.verdict, "would_deny");
}

#[test]
fn an_agent_without_the_option_enforces_after_one_that_was_not_confirmed() {
    if !ready() {
        return;
    }
    let world = World::new();
    let rules = policy("allow: [{ cidrs: [10.79.0.0/16] }]");
    let mut first = world.agent(&rules).arg("--confirm").arg("4s").start();
    let client = world.workload("client");
    first.kill();
    std::thread::sleep(Duration::from_secs(4));
    reached(&client.connect(FORBIDDEN, 80));
    let second = world.agent(&rules).start();
    refused(&client.connect(FORBIDDEN, 80));
    std::thread::sleep(Duration::from_secs(5));
    refused(&client.connect(FORBIDDEN, 80));
    assert_eq!(second.status().mode, "enforce");
}

/// A terminal in which an agent is started, and that goes when it is told to.
struct Terminal {
    ends: Option<OpenptyResult>,
    pid: PathBuf,
}

impl Terminal {
    fn open(world: &World) -> Self {
        Self {
            ends: Some(openpty(None, None).unwrap()),
            pid: world.dir().join("agent.pid"),
        }
    }

    /// A script that runs this line in it as the leader of its session. The line is to become the agent, `"$@"`.
    fn script(&self, world: &World, line: &str) -> PathBuf {
        let number = self.ends.as_ref().unwrap().slave.as_raw_fd();
        let name = fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
        let text = format!(
            "#!/bin/sh\ncd '{}'\nexec setsid --ctty --wait sh -c '{line}' '{}' '{}' \"$@\" <'{name}' >'{name}' 2>&1\n",
            world.dir().display(),
            self.pid.display(),
            programs::agent().display(),
            name = name.display(),
        );
        let script = world.dir().join("in-a-terminal.sh");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    /// As an ssh connection that is cut.
    fn close(&mut self) {
        self.ends = None;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The agent is no child of the tests: who waits for it ends with it, or before it.
        let Ok(pid) = fs::read_to_string(&self.pid) else {
            return;
        };
        let process = PathBuf::from("/proc").join(pid.trim());
        for signal in ["-TERM", "-KILL"] {
            let _ = Command::new("kill").args([signal, pid.trim()]).status();
            if eventually(Duration::from_secs(5), || !process.exists()) {
                return;
            }
        }
    }
}

/// A terminal goes in which the agent was started like this: it goes on, and falls back in time.
fn falls_back_without_its_terminal(starter: &str, line: &str) {
    if !ready() {
        return;
    }
    if programs::find(starter).is_none() {
        let _ = skip(&format!("{starter} is missing"));
        return;
    }
    let world = World::new();
    let open = Terminal::open(&world);
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .program(open.script(&world, line))
        .arg("--confirm")
        .arg("10s")
        .start();
    // Dropped before the agent: it ends it.
    let mut terminal = open;
    let client = world.workload("client");
    refused(&client.connect(FORBIDDEN, 80));
    let left = agent.status().confirmation.unwrap().remaining_s.unwrap();
    let end = Instant::now() + Duration::from_secs(left);
    terminal.close();
    // Each is a line of the log.
    for port in 1_000..1_010 {
        refused(&client.connect(FORBIDDEN, port));
    }
    assert_eq!(state(&agent), "awaited");
    assert!(agent.status().enforcing);
    has_fallen_back(&agent, &client, end);
}

#[track_caller]
fn has_fallen_back(agent: &Agent, client: &Workload, end: Instant) {
    let is_open = || client.connect(FORBIDDEN, 80).ok;
    let left = end.saturating_duration_since(Instant::now());
    assert!(eventually(left + Duration::from_secs(2), is_open));
    assert!(
        eventually(Duration::from_secs(5), || state(agent) == "fell_back"),
        "{:?}",
        agent.status()
    );
}

#[test]
fn an_agent_that_nohup_started_falls_back_without_its_terminal() {
    falls_back_without_its_terminal("nohup", r#"echo $$ >"$0"; exec nohup "$@""#);
}

#[test]
fn an_agent_that_setsid_started_falls_back_without_its_terminal() {
    // In a session of its own, with a terminal that is nobody's but where it writes to.
    falls_back_without_its_terminal(
        "setsid",
        r#"exec setsid --wait sh -c "echo \$\$ >\"\$0\"; exec \"\$@\"" "$0" "$@""#,
    );
}

/// A panic of a task ends the agent as SIGTERM does (`daemon::tests`); one of the runtime itself aborts it.
#[test]
fn an_agent_whose_runtime_panics_does_not_keep_the_kernel_from_falling_back() {
    if !ready() {
        return;
    }
    if programs::find("strace").is_none() {
        let _ = skip("strace is missing, by which a system call of the runtime fails");
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .arg("--confirm")
        .arg("15s")
        .start();
    let client = world.workload("client");
    let left = agent.status().confirmation.unwrap().remaining_s.unwrap();
    let end = Instant::now() + Duration::from_secs(left);
    let fails = "inject=epoll_wait,epoll_pwait,epoll_pwait2:error=EIO";
    let mut strace = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", fails, "-p"])
        .arg(agent.pid().to_string())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let has_ended = eventually(Duration::from_secs(10), || agent.has_ended());
    let attempt = client.connect(FORBIDDEN, 80);
    let is_early = Instant::now() < end;
    let _ = strace.kill();
    let _ = strace.wait();
    assert!(has_ended && is_early, "{}", agent.log());
    assert!(agent.log().contains("panicked"), "{}", agent.log());
    refused(&attempt);
    let is_open = || client.connect(FORBIDDEN, 80).ok;
    let left = end.saturating_duration_since(Instant::now());
    assert!(eventually(left + Duration::from_secs(2), is_open));
    // The next one takes up what is there.
    agent.start_again();
    refused(&client.connect(FORBIDDEN, 80));
}
