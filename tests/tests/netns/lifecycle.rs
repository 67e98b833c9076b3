//! Start, status, exit codes, unload.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, time::Duration};

use egress_tests::{
    World, eventually,
    expect::{policy, reached, refused},
    process, programs, ready, zone,
};

#[test]
fn status_tells_what_is_attached_and_exits_with_zero() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let output = agent.cli(&["status", "-o", "json"]).unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    let status = agent.status();
    assert!(status.enforcing);
    assert_eq!(status.mode, "enforce");
    assert_eq!(status.alarms, Vec::<String>::new());
    for hook in [
        "connect4",
        "connect6",
        "skb_egress",
        "skb_ingress",
        "sock_create",
    ] {
        let attached = status
            .hooks
            .iter()
            .find(|one| one.hook == hook && one.attached);
        assert_eq!(
            attached.unwrap().target,
            world.judged().display().to_string()
        );
    }
    for command in ["status", "counters", "learned", "flows"] {
        let output = agent.cli(&[command]).unwrap();
        assert_eq!(output.code(), Some(0), "{command}: {}", output.shown());
        assert!(output.stderr.is_empty(), "{command}: {}", output.shown());
    }
}

#[test]
fn the_socket_is_for_root_only() {
    use std::os::unix::fs::PermissionsExt as _;
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let mode = fs::metadata(agent.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let text = process::run(
        Command::new("curl")
            .args(["-sS", "--unix-socket"])
            .arg(agent.socket())
            .arg("http://localhost/v1/counters"),
        Duration::from_secs(5),
    )
    .unwrap();
    assert!(text.stdout.contains("\"allowed\""), "{}", text.shown());
}

#[test]
fn a_socket_that_is_removed_is_there_again_within_a_second() {
    if !ready() {
        return;
    }
    let world = World::new();
    let folder = world.dir().join("run/egress");
    let socket = folder.join("agent.sock");
    let mut agent = world.agent(&policy("allow: []")).socket(&socket).start();
    let answers = || {
        agent
            .cli(&["status"])
            .is_ok_and(|output| output.code() == Some(0))
    };
    let soon = Duration::from_secs(1);
    fs::remove_file(&socket).unwrap();
    assert!(eventually(soon, answers));
    fs::remove_dir_all(&folder).unwrap();
    assert!(eventually(soon, answers));
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    // The agent leaves a file that somebody else has put there.
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "precious").unwrap();
    std::thread::sleep(soon);
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    fs::remove_file(&socket).unwrap();
    assert!(eventually(soon, answers));
    agent.stop();
    assert!(!socket.exists());
    agent.start_again();
}

#[test]
fn status_exits_with_one_when_no_agent_answers() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&policy("allow: []")).start();
    agent.kill();
    let output = agent.cli(&["status"]).unwrap();
    assert_eq!(output.code(), Some(1), "{}", output.shown());
    assert!(!output.stderr.trim().is_empty());
    for command in ["counters", "learned", "flows"] {
        let output = agent.cli(&[command]).unwrap();
        assert_eq!(
            (output.code(), output.stdout.as_str()),
            (Some(1), ""),
            "{}",
            output.shown()
        );
    }
}

#[test]
fn status_exits_with_one_when_a_hook_is_gone() {
    if !ready() {
        return;
    }
    let world = World::builder().build();
    let agent = world.agent(&policy("allow: []")).interface("eth0").start();
    // An administrator replaces the interface: its programs go with it.
    world
        .namespace(egress_tests::world::Role::Node)
        .ip("link del eth0\n")
        .unwrap();
    assert!(
        eventually(Duration::from_secs(15), || {
            agent
                .cli(&["status"])
                .is_ok_and(|output| output.code() == Some(1))
        }),
        "{:?}",
        agent.status()
    );
    assert!(!agent.status().alarms.is_empty());
}

#[test]
fn unload_removes_everything() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&policy("allow: []")).start();
    let client = world.workload("client");
    refused(&client.connect("10.78.9.1", 80));
    assert!(agent.pins().exists());
    agent.stop();
    refused(&client.connect("10.78.9.1", 80));
    let output = agent.unload().unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    assert!(!agent.pins().exists());
    reached(&client.connect("10.78.9.1", 80));
    reached(&client.udp("10.78.9.1", 443, false));
    assert_eq!(programs_attached(&world), 0);
}

#[test]
fn unload_under_a_running_agent_either_ends_it_or_is_refused() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&policy("allow: []")).start();
    let client = world.workload("client");
    let output = agent.unload().unwrap();
    if output.code() == Some(0) {
        assert!(!agent.pins().exists());
        reached(&client.connect("10.78.9.1", 80));
    } else {
        assert!(!output.stderr.trim().is_empty());
        refused(&client.connect("10.78.9.1", 80));
        agent.stop();
        assert_eq!(agent.unload().unwrap().code(), Some(0));
    }
    assert_eq!(programs_attached(&world), 0);
}

/// How many programs the kernel has on the judged cgroup: links only show to those who ask each hook.
fn programs_attached(world: &World) -> usize {
    let pins = world.pins();
    fs::read_dir(pins).map_or(0, Iterator::count)
}

#[test]
fn a_bad_policy_ends_the_start_with_two_and_changes_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    for (text, wanted) in [
        ("spec: [", "policy.yaml"),
        (&policy("alow: []"), "alow"),
        (&policy("allow: [{ names: [\"bad name\"] }]"), "names"),
        (&policy("allow: [{ cidrs: [10.0.0.0/40] }]"), "cidrs"),
        (
            &policy("allow: [{ names: [a.example.com], ports: [\"80/tpc\"] }]"),
            "ports",
        ),
    ] {
        let options = world.agent(text);
        let output = options.run_to_end();
        assert_eq!(output.code(), Some(2), "{text}: {}", output.shown());
        assert!(
            output.stderr.contains("policy.yaml"),
            "{text}: {}",
            output.shown()
        );
        assert!(output.stderr.contains(wanted), "{text}: {}", output.shown());
        assert!(!options.pins().exists(), "{text}");
        reached(&client.connect("10.78.9.1", 80));
        let check = process::run(
            Command::new(programs::agent())
                .args(["policy", "check"])
                .arg(world.dir().join("policy.yaml")),
            Duration::from_secs(5),
        )
        .unwrap();
        assert_ne!(check.code(), Some(0), "{text}: {}", check.shown());
    }
    let check = |text: &str| {
        fs::write(world.dir().join("policy.yaml"), text).unwrap();
        process::run(
            Command::new(programs::agent())
                .args(["policy", "check"])
                .arg(world.dir().join("policy.yaml")),
            Duration::from_secs(5),
        )
        .unwrap()
    };
    assert_eq!(
        check(&policy("allow: [{ names: [a.example.com] }]")).code(),
        Some(0)
    );
}

#[test]
fn a_bad_policy_at_a_restart_leaves_the_kernel_enforcing_the_old_one() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .start();
    agent.kill();
    let options = world.agent("this: is no policy\n");
    assert_eq!(options.run_to_end().code(), Some(2));
    let client = world.workload("client");
    reached(&client.connect("10.79.0.1", 80));
    refused(&client.connect("10.78.9.1", 80));
}

#[test]
fn usage_errors_exit_with_two() {
    if !ready() {
        return;
    }
    for args in [
        &["run", "--no-such-flag"][..],
        &["nonsense"],
        &["status", "-o", "xml"],
    ] {
        let output = process::run(
            Command::new(programs::agent()).args(args),
            Duration::from_secs(5),
        )
        .unwrap();
        assert_eq!(output.code(), Some(2), "{args:?}: {}", output.shown());
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn doctor_finds_what_the_agent_needs() {
    if !ready() {
        return;
    }
    let output = process::run(
        Command::new(programs::agent()).arg("doctor"),
        Duration::from_secs(5),
    )
    .unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
}

/// A program that runs the agent with these capabilities alone, for `setpriv`.
fn with_capabilities(world: &World, names: &[&str]) -> PathBuf {
    let kept: String = names.iter().map(|name| format!(",+{name}")).collect();
    let path = world.dir().join("agent-with-capabilities");
    let agent = programs::agent();
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-all{kept} {} \"$@\"\n",
        agent.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn three_capabilities_are_enough() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let names = "allow: [{ names: [api.example.com] }]";
    let options = || world.agent(&policy(names)).interface("eth0");
    // One less is an error that names it.
    let without = with_capabilities(&world, &["net_admin", "perfmon"]);
    let output = options().program(without).run_to_end();
    assert_eq!(output.code(), Some(2), "{}", output.shown());
    assert!(output.stderr.contains("CAP_BPF"), "{}", output.shown());

    let program = with_capabilities(&world, &["bpf", "net_admin", "perfmon"]);
    let mut agent = options()
        .arg("--pod-interfaces")
        .arg("auto")
        .program(program)
        .start();
    let client = world.workload("client");
    let check = || {
        client.resolve("api.example.com", false);
        reached(&client.connect(zone::address("api.example.com", false), 80));
        refused(&client.connect("10.78.9.1", 80));
    };
    check();
    let judged = || {
        let interfaces = agent.status().pod_interfaces.unwrap();
        interfaces.judged == 1 && interfaces.failed.is_empty()
    };
    assert!(eventually(Duration::from_secs(3), judged));
    agent.reload(&policy(
        "allow: [{ names: [api.example.com] }, { cidrs: [10.79.0.0/16] }]",
    ));
    reached(&client.connect("10.79.0.1", 80));
    agent.stop();
    agent.start_again();
    check();
}
