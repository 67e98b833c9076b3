//! The real agent on the root cgroup: its verdicts, also when it is dead and when it is gone.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use egress_tests::{Confirmation, Counters, Status, dns, eventually};
use hickory_proto::{op::Message, rr::RecordType};
use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use crate::{
    check,
    far::{self, PORT, RESOLVER, SHORT_NAME, SHORT_TTL_S, v4, v6},
    from_env,
};

const POLICY: &str = "\
apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: guest }
spec:
  mode: enforce
  ttl: { min: 1s, grace: 0s, max: 1h }
  allow:
    - names: [allowed.test, short.test, \"*.wild.test\"]
";

/// Longest time until the agent enforces: the verifier is slow under emulation.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long enforcing is not confirmed: a guest under emulation has time for some questions in it.
const PROBATION: &str = "30s";
/// Longest time for a connection or an answer.
const NET_LIMIT: Duration = Duration::from_secs(5);

/// The agent's program.
pub(crate) fn program() -> OsString {
    from_env("EGRESS_AGENT", "/bin/egress-agent")
}

/// Runs a program that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let complaints = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {said} {complaints}", output.status))
}

/// Runs the agent and judges what it lets through.
pub(crate) fn checks() {
    let far = match far::start() {
        Ok(far) => far,
        Err(error) => {
            println!("CHECK far_end_comes_up failed {error:#}");
            return;
        }
    };
    check("everything_is_reachable_before", || reached(v4(20).into()));
    let mut agent = None;
    check("agent_enforces_on_the_root_cgroup", || {
        agent = Some(start()?);
        Ok(())
    });
    let Some(mut agent) = agent else {
        return;
    };
    check(
        "sleep:enforcing_that_nobody_confirms_is_over_when_its_time_is",
        || probation_in_sleep(&agent),
    );
    check("pod_interfaces_are_judged", || {
        let judged = || {
            let status = output(Command::new(program()).args(["status", "-o", "json"]));
            status.is_ok_and(|status| status.contains("\"judged\": 1"))
        };
        if eventually(START_LIMIT, judged) {
            Ok(())
        } else {
            Err("not the one that there is".to_owned())
        }
    });
    verdicts();
    check("sleep:ttls_are_over_when_their_time_is", sleep);
    for command in ["status", "counters", "flows"] {
        // For whoever reads the console to see why something failed.
        let _ = Command::new(program())
            .arg(command)
            .stdout(io::stderr())
            .status();
    }
    let _ = agent.kill(); // SIGKILL
    let _ = agent.wait();
    check("dead_agent:what_was_learned_is_allowed", || {
        reached(v4(10).into())
    });
    check("dead_agent:the_rest_is_denied", || refused(v4(20).into()));
    check("dead_agent:new_answers_are_learned", || {
        resolve("a.wild.test", RecordType::AAAA)?;
        reached(v6(11).into())
    });
    check("unload_removes_everything", || {
        output(Command::new(program()).arg("unload"))?;
        reached(v4(20).into())
    });
    drop(far);
}

/// Checks names and addresses that the agent learns, allows and denies.
fn verdicts() {
    check("v4:denied_before_its_name_was_asked_for", || {
        refused(v4(10).into())
    });
    check("v4:learned_and_allowed", || {
        resolve("allowed.test", RecordType::A)?;
        reached(v4(10).into())
    });
    check("v6:denied_before_its_name_was_asked_for", || {
        refused(v6(10).into())
    });
    check("v6:learned_and_allowed", || {
        resolve("allowed.test", RecordType::AAAA)?;
        reached(v6(10).into())
    });
    check("v4:wildcard_is_allowed", || {
        resolve("a.wild.test", RecordType::A)?;
        reached(v4(11).into())
    });
    check("v4:resolved_but_forbidden_is_denied", || {
        resolve("forbidden.test", RecordType::A)?;
        refused(v4(20).into())
    });
    check("v6:resolved_but_forbidden_is_denied", || {
        resolve("forbidden.test", RecordType::AAAA)?;
        refused(v6(20).into())
    });
    check("udp:unconnected_is_denied", || {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
        match socket.send_to(b"x", (v4(20), 9)) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    check("learned_lists_the_name", || {
        let learned = output(Command::new(program()).args(["learned", "-o", "json"]))?;
        contains(&learned, "allowed.test")
    });
    check("counters_have_denials", || {
        let counters = output(Command::new(program()).args(["counters", "-o", "json"]))?;
        let counters: Counters =
            serde_json::from_str(&counters).map_err(|error| error.to_string())?;
        if counters.denied == 0 || counters.denied_by("connect4") == 0 {
            return Err(format!("{counters:?}"));
        }
        Ok(())
    });
}

/// Enforcing on probation ends in a machine that sleeps, although nobody who could end it runs; two confirmations later it
/// stays.
fn probation_in_sleep(agent: &Child) -> Result<(), String> {
    refused(v4(20).into())?;
    let confirmation = || -> Result<Confirmation, String> {
        // Exits with 1 once it fell back.
        let status = Command::new(program())
            .args(["status", "-o", "json"])
            .output();
        let status = status.map_err(|error| error.to_string())?;
        let status: Status =
            serde_json::from_slice(&status.stdout).map_err(|error| error.to_string())?;
        status
            .confirmation
            .ok_or_else(|| "not asked for".to_owned())
    };
    let left_s = confirmation()?.remaining_s.ok_or("it was over too soon")?;
    let left_s = u32::try_from(left_s).map_err(|error| error.to_string())?;
    let ran = Instant::now();
    let pid = i32::try_from(agent.id()).map_err(|error| error.to_string())?;
    let send = |signal| kill(Pid::from_raw(pid), signal).map_err(|error| error.to_string());
    send(Signal::SIGSTOP)?;
    let slept = suspend(left_s.saturating_add(2));
    let attempt = reached(v4(20).into());
    let ran = ran.elapsed();
    send(Signal::SIGCONT)?;
    let (slept, left) = (slept?, Duration::from_secs(left_s.into()));
    if ran >= left || slept.saturating_add(ran) <= left {
        return Err(format!("shows nothing: it ran {ran:?} and slept {slept:?}"));
    }
    attempt?;
    if !eventually(START_LIMIT, || {
        confirmation().is_ok_and(|now| now.state == "fell_back")
    }) {
        return Err(format!("the agent did not fall back: {:?}", confirmation()));
    }
    for _ in 0..2 {
        output(Command::new(program()).arg("confirm"))?;
        refused(v4(20).into())?;
    }
    let state = confirmation()?.state;
    if state != "confirmed" {
        return Err(state);
    }
    Ok(())
}

/// Sleeps this long; returns how long that was.
fn suspend(seconds: u32) -> Result<Duration, String> {
    let before = slept();
    fs::write("/sys/class/rtc/rtc0/wakealarm", format!("+{seconds}"))
        .map_err(|error| format!("no alarm to wake at: {error}"))?;
    fs::write("/sys/power/state", "mem").map_err(|error| format!("cannot sleep: {error}"))?;
    Ok(slept().saturating_sub(before))
}

/// How long the machine sleeps: longer than the short TTL, by more than the second that its clock rounds to.
const SLEEP_S: u32 = SHORT_TTL_S + 4;

/// Sleeps with a name that is learned: its TTL is over afterwards, in the kernel and for the agent, although the machine
/// hardly ran meanwhile; a longer one is not.
fn sleep() -> Result<(), String> {
    resolve("allowed.test", RecordType::A)?;
    resolve(SHORT_NAME, RecordType::A)?;
    let ran = Instant::now();
    reached(v4(12).into())?;
    let learned = || output(Command::new(program()).args(["learned", "-o", "json"]));
    contains(&learned()?, SHORT_NAME)?;
    let slept = suspend(SLEEP_S)?;
    let refused = refused(v4(12).into());
    let ran = ran.elapsed();
    let ttl = Duration::from_secs(SHORT_TTL_S.into());
    if ran >= ttl || slept.saturating_add(ran) <= ttl {
        return Err(format!("shows nothing: it ran {ran:?} and slept {slept:?}"));
    }
    refused?;
    reached(v4(10).into())?;
    let learned = learned()?;
    contains(&learned, "allowed.test")?;
    if learned.contains(SHORT_NAME) {
        return Err(format!("the agent lists what is over: {learned}"));
    }
    Ok(())
}

/// How long the machine has slept since it was started.
fn slept() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

/// Starts the agent and waits until it enforces.
fn start() -> Result<Child, String> {
    fs::write("/etc/policy.yaml", POLICY).map_err(|error| error.to_string())?;
    let mut agent = Command::new(program())
        .args(["run", "--policy", "/etc/policy.yaml"])
        .args(["--interface", "near0", "--pod-interfaces", "auto"])
        .args(["--confirm", PROBATION])
        .arg("--resolver")
        .arg(RESOLVER.to_string())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut last = String::new();
    let enforces = eventually(START_LIMIT, || {
        if !matches!(agent.try_wait(), Ok(None)) {
            last = "it has ended, see the console".to_owned();
            return true;
        }
        match output(Command::new(program()).arg("status")) {
            Ok(_) => {
                last.clear();
                true
            }
            Err(error) => {
                last = error;
                false
            }
        }
    });
    if enforces && last.is_empty() {
        return Ok(agent);
    }
    let _ = agent.kill();
    let _ = agent.wait();
    Err(last)
}

/// Asks for a name; what the answer holds does not matter here.
fn resolve(name: &str, kind: RecordType) -> Result<(), String> {
    let ask = || -> anyhow::Result<()> {
        let query = dns::query(4711, name, kind)?;
        let answer = dns::ask_udp((RESOLVER, 53).into(), &query, NET_LIMIT)?;
        anyhow::ensure!(
            !dns::addresses(&Message::from_vec(&answer)?).is_empty(),
            "{name} has no address"
        );
        Ok(())
    };
    ask().map_err(|error| format!("{error:#}"))
}

/// Connects, which must work.
fn reached(address: IpAddr) -> Result<(), String> {
    let address = SocketAddr::new(address, PORT);
    TcpStream::connect_timeout(&address, NET_LIMIT)
        .map(drop)
        .map_err(|error| format!("{address}: {error}"))
}

/// Connects, which must be refused with EPERM.
fn refused(address: IpAddr) -> Result<(), String> {
    let address = SocketAddr::new(address, PORT);
    match TcpStream::connect_timeout(&address, NET_LIMIT) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        other => Err(format!("{address}: {other:?}")),
    }
}

/// Checks that a text has a part.
fn contains(text: &str, part: &str) -> Result<(), String> {
    if text.contains(part) {
        Ok(())
    } else {
        Err(format!("no {part} in {text}"))
    }
}
