//! `exec`: one command in a cgroup of its own, judged from its first instruction on, and nothing left of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use egress_tests::{
    Workload, World, eventually,
    expect::policy,
    process::{self, Output},
    programs, ready,
    report::Attempt,
    zone,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Longest time that an `exec` of a test may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Somebody without rights.
const NOBODY: u32 = 65_534;

/// `exec` with these options, which runs a script of sh. `$P` is the probe, `$R` the resolver.
fn command(caller: &Workload, options: &[&str], script: &str) -> Command {
    let mut command = caller.command(programs::agent());
    command
        .args(["exec", "--resolver", zone::RESOLVER[0]])
        .args(options)
        .args(["--", "/bin/sh", "-c", script])
        .env("P", programs::probe())
        .env("R", zone::RESOLVER[0])
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID");
    command
}

#[track_caller]
fn exec(caller: &Workload, options: &[&str], script: &str) -> Output {
    process::run(&mut command(caller, options, script), LIMIT).unwrap()
}

/// Resolves a name and connects to it, as the first thing that the command does.
fn visit(name: &str, port: u16) -> String {
    let address = zone::address(name, false);
    format!("$P resolve {name} --server $R --type A >/dev/null; $P connect {address} {port}; ")
}

/// Reports of the probes in a script, one after another.
#[track_caller]
fn attempts(output: &Output) -> Vec<Attempt> {
    let values = serde_json::Deserializer::from_str(&output.stdout).into_iter();
    values
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{error}: {}", output.shown()))
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).unwrap().flatten();
    entries
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.path())
        .collect()
}

/// How many programs a process holds on a cgroup.
fn attached(pid: Pid, cgroup: &Path) -> usize {
    let id = std::os::unix::fs::MetadataExt::ino(&fs::metadata(cgroup).unwrap());
    let line = format!("cgroup_id:\t{id}");
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .unwrap()
        .flatten();
    let infos = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    infos
        .filter(|info| info.lines().any(|found| found == line))
        .count()
}

#[track_caller]
fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn named<'a>(report: &'a Value, list: &str, name: &str) -> &'a Value {
    let mut all = report[list].as_array().unwrap().iter();
    all.find(|one| one["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {list}: {report:#}"))
}

#[test]
fn what_is_allowed_is_reached_and_nothing_else_also_by_children() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let file = world.dir().join("report.json");
    let script = format!(
        "{}{}sh -c '{}'",
        visit("api.example.com", 443),
        visit("other.example.com", 443),
        visit("other.example.com", 80),
    );
    let options = [
        "--allow",
        "api.example.com:443",
        "--report",
        file.to_str().unwrap(),
    ];
    let output = exec(&caller, &options, &script);
    let attempts = attempts(&output);
    assert_eq!(attempts.len(), 3, "{}", output.shown());
    assert!(attempts[0].ok, "{}", output.shown());
    assert!(attempts[1].is_refused(), "{}", output.shown());
    assert!(attempts[2].is_refused(), "{}", output.shown());

    let report = read(&file);
    assert_eq!(
        (&report["version"], &report["mode"]),
        (&1.into(), &"enforce".into())
    );
    let api = named(&report, "reached", "api.example.com");
    assert_eq!(
        (&api["port"], &api["flows"]),
        (&443.into(), &1.into()),
        "{api}"
    );
    let other = named(&report, "denied", "other.example.com");
    assert_eq!(other["verdict"], "denied", "{other}");
    // The process that sent: of a refused connect, and of packets.
    for one in [api, other] {
        assert_eq!(one["process"]["command"], "probe", "{one}");
        assert!(one["process"]["pid"].as_u64().unwrap() > 1, "{one}");
    }
    let host = format!("probe ({})", other["process"]["pid"]);
    assert!(
        output.stderr.contains(&host),
        "no {host}: {}",
        output.shown()
    );
    let add: Vec<&str> = report["add"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(
        add,
        [
            "--allow other.example.com:443",
            "--allow other.example.com:80"
        ]
    );
    for line in [
        "1 reached, 2 denied",
        "api.example.com",
        "--allow other.example.com:80",
    ] {
        assert!(
            output.stderr.contains(line),
            "no {line}: {}",
            output.shown()
        );
    }
    // With what the report says, it is reached.
    let options = [
        "--allow",
        "other.example.com:443",
        "--allow",
        "other.example.com:80",
    ];
    let output = exec(&caller, &options, &script);
    let again = self::attempts(&output);
    assert_eq!(
        again.iter().map(|one| one.ok).collect::<Vec<_>>(),
        [false, true, true],
        "{}",
        output.shown()
    );
    assert_eq!(children(caller.cgroup()), Vec::<PathBuf>::new());
    // A process outside the cgroup is not judged.
    assert!(
        caller
            .connect(zone::address("other.example.com", false), 443)
            .ok
    );
}

#[test]
fn names_are_found_by_the_c_library_and_over_tcp() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let mut command = caller.command_with_resolver(programs::agent());
    command
        .args([
            "exec",
            "--allow",
            "api.example.com:80",
            "--",
            "/bin/sh",
            "-c",
        ])
        .arg(
            "curl -s -m 5 -o /dev/null -w '%{http_code}\\n' http://api.example.com/; \
         curl -s -m 5 -o /dev/null -w '%{http_code}\\n' http://other.example.com/",
        );
    let output = process::run(&mut command, LIMIT).unwrap();
    assert_eq!(output.stdout, "200\n000\n", "{}", output.shown());
    assert!(
        output.stderr.contains("--allow other.example.com:80"),
        "{}",
        output.shown()
    );

    // An answer that the kernel leaves to the agent: over TCP, in pieces.
    let address = zone::address("api.example.com", false);
    let script = format!(
        "$P resolve api.example.com --server $R --type A --tcp >/dev/null; $P connect {address} 443"
    );
    let output = exec(&caller, &["--allow", "api.example.com:443"], &script);
    assert!(attempts(&output)[0].ok, "{}", output.shown());
}

#[test]
fn audit_denies_nothing_and_learns_the_policy_that_enforces() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let learned = world.dir().join("learned.yaml");
    let script = visit("api.example.com", 443) + &visit("other.example.com", 443);
    let options = ["--mode", "audit", "--learn", learned.to_str().unwrap()];
    let output = exec(&caller, &options, &script);
    assert!(
        attempts(&output).iter().all(|one| one.ok),
        "{}",
        output.shown()
    );
    assert!(
        output.stderr.contains("2 would be denied"),
        "{}",
        output.shown()
    );
    let policy = fs::read_to_string(&learned).unwrap();
    assert!(
        policy.contains("- names: [api.example.com]\n      ports: [\"443/tcp\"]\n"),
        "{policy}"
    );
    let script = script + &visit("www.cdn.example.net", 443);
    let options = ["--policy", learned.to_str().unwrap(), "--mode", "enforce"];
    let output = exec(&caller, &options, &script);
    let ok: Vec<bool> = attempts(&output).iter().map(|one| one.ok).collect();
    assert_eq!(ok, [true, true, false], "{}", output.shown());
    // The lines to add are those of a file.
    assert!(
        output.stderr.contains("- names: [www.cdn.example.net]"),
        "{}",
        output.shown()
    );
}

#[test]
fn the_exit_status_is_the_commands_and_shells_know_the_others() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let any = ["--allow", "api.example.com", "--quiet"];
    let code = |script: &str| exec(&caller, &any, script).code();
    assert_eq!(code("exit 0"), Some(0));
    assert_eq!(code("exit 7"), Some(7));
    assert_eq!(code("kill -TERM $$"), Some(143));
    let run = |args: &[&str]| {
        let mut command = caller.command(programs::agent());
        process::run(command.arg("exec").args(args), LIMIT).unwrap()
    };
    for (args, status, said) in [
        (
            &["--allow", "x.example", "--", "/no/such/program"][..],
            127,
            "cannot run /no/such/program",
        ),
        (
            &["--allow", "x.example", "--", "/etc/passwd"],
            126,
            "cannot run /etc/passwd",
        ),
        (
            &["--allow", "x.example"],
            125,
            "exec --mode audit --learn ci.yaml -- make test",
        ),
        (&["--", "true"], 125, "nothing is allowed"),
        (
            &["--allow", "http://x.example", "--", "true"],
            125,
            "such as api.github.com",
        ),
        (
            &[
                "--allow",
                "x.example",
                "--user",
                "nobody-of-this-name",
                "--",
                "true",
            ],
            125,
            "nobody-of-this-name",
        ),
        (
            &["--policy", "/no/such.yaml", "--", "true"],
            125,
            "/no/such.yaml",
        ),
        (
            &[
                "--allow",
                "x.example",
                "--report",
                "/no/such/folder/r.json",
                "--",
                "true",
            ],
            125,
            "/no/such/folder/r.json",
        ),
        (&["--nonsense"], 125, "--nonsense"),
    ] {
        let output = run(args);
        assert_eq!(output.code(), Some(status), "{args:?}: {}", output.shown());
        assert!(output.stderr.contains(said), "{args:?}: {}", output.shown());
        assert_eq!(output.stdout, "", "{args:?}");
        assert_eq!(children(caller.cgroup()), Vec::<PathBuf>::new(), "{args:?}");
    }
    let output = run(&["--allow", "x.example", "--quiet", "--", "true"]);
    assert_eq!((output.code(), output.stderr.as_str()), (Some(0), ""));
}

#[test]
fn the_command_runs_as_the_user_who_called_sudo() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let who = "id -u; id -g; id -G; echo $HOME $USER $SUDO_UID.; grep -c 1 /proc/self/status; \
               grep -E '^(CapEff|CapAmb|SigBlk|SigIgn):' /proc/self/status; ulimit -l";
    let by_root = exec(&caller, &["--allow", "x.example", "-q"], who);
    assert!(by_root.stdout.starts_with("0\n0\n"), "{}", by_root.shown());

    let folder = world.dir().join("job");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(world.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let report = folder.join("report.json");
    let mut sudo = command(
        &caller,
        &[
            "--allow",
            "x.example",
            "--report",
            report.to_str().unwrap(),
            "-q",
        ],
        who,
    );
    sudo.env("SUDO_UID", NOBODY.to_string())
        .env("SUDO_GID", NOBODY.to_string())
        .env("SUDO_USER", "nobody");
    let output = process::run(&mut sudo, LIMIT).unwrap();
    let lines: Vec<&str> = output.stdout.lines().collect();
    let nobody = NOBODY.to_string();
    assert_eq!(lines[..3], [nobody.as_str(); 3], "{}", output.shown());
    assert_eq!(lines[3], "/nonexistent nobody .", "{}", output.shown());
    for nothing in [
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "SigBlk:\t0000000000000000",
    ] {
        assert!(
            output.stdout.contains(nothing),
            "{nothing}: {}",
            output.shown()
        );
    }
    let line = |output: &Output, begin: &str| {
        let found = output.stdout.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_default().to_owned()
    };
    assert_eq!(line(&output, "SigIgn"), line(&by_root, "SigIgn"));
    // The report is the user's own file: what root may write and the user may not is not written.
    let facts = fs::metadata(&report).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&facts), NOBODY);
    assert_eq!(read(&report)["user"]["uid"], NOBODY);
    let forbidden = world.dir().join("root.json");
    fs::write(&forbidden, "kept").unwrap();
    std::os::unix::fs::symlink(&forbidden, folder.join("link.json")).unwrap();
    let link = folder.join("link.json");
    let options = [
        "--allow",
        "x.example",
        "--user",
        "nobody",
        "--report",
        link.to_str().unwrap(),
    ];
    let output = exec(&caller, &options, "true");
    assert_eq!(output.code(), Some(125), "{}", output.shown());
    assert_eq!(fs::read_to_string(&forbidden).unwrap(), "kept");
}

/// An `exec` in the background.
struct Background(Child);

impl Background {
    fn start(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    fn end(mut self) -> Output {
        let end = Instant::now() + LIMIT;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = std::mem::replace(&mut self.0, Command::new("true").spawn().unwrap());
        let output = output.wait_with_output().unwrap();
        Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a file that a script writes when it is so far.
#[track_caller]
fn wait_for(path: &Path) {
    assert!(eventually(LIMIT, || path.exists()), "no {}", path.display());
}

fn alive(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[test]
fn signals_reach_the_command() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let flag = world.dir().join(format!("ready-{name}"));
        let script = format!(
            "trap 'echo got {name}; exit 9' {name}; touch {}; while :; do sleep 0.05; done",
            flag.display()
        );
        let running = Background::start(&mut command(
            &caller,
            &["--allow", "x.example", "-q"],
            &script,
        ));
        wait_for(&flag);
        kill(running.pid(), signal).unwrap();
        let output = running.end();
        assert_eq!(
            (output.code(), output.stdout.as_str()),
            (Some(9), format!("got {name}\n").as_str()),
            "{}",
            output.shown()
        );
    }
}

#[test]
fn what_the_command_leaves_may_go_on_for_a_while_and_is_then_ended() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let file = world.dir().join("report.json");
    let report = [
        "--allow",
        "x.example",
        "--report",
        file.to_str().unwrap(),
        "--wait",
    ];
    let options = |time| [&report[..], &[time]].concat();
    // It ends by itself.
    let output = exec(&caller, &options("20s"), "sleep 1 & exit 3");
    assert_eq!(output.code(), Some(3), "{}", output.shown());
    assert!(
        output.stderr.contains("the command left 1 process, sleep"),
        "{}",
        output.shown()
    );
    assert_eq!(read(&file)["left"][0]["killed"], false);
    // It does not, and does not listen either.
    let pid = world.dir().join("pid");
    let script = format!(
        "(trap '' TERM; sh -c 'echo $$ >{}; exec sleep 600') & sleep 0.3; exit 4",
        pid.display()
    );
    let began = Instant::now();
    let output = exec(&caller, &options("1s"), &script);
    assert_eq!(output.code(), Some(4), "{}", output.shown());
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(
        output.stderr.contains("egress-agent: ended"),
        "{}",
        output.shown()
    );
    assert_eq!(read(&file)["left"][0]["killed"], true);
    assert!(!alive(&fs::read_to_string(&pid).unwrap()));
    assert_eq!(children(caller.cgroup()), Vec::<PathBuf>::new());
}

#[test]
fn nothing_is_left_when_exec_is_killed() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let (first, second) = (world.dir().join("first"), world.dir().join("second"));
    // One in another session, which no signal to a group reaches.
    let script = format!(
        "echo $$ >{}; setsid sh -c 'echo $$ >{}.new; mv {}.new {}; exec sleep 600' & sleep 600",
        first.display(),
        second.display(),
        second.display(),
        second.display()
    );
    let running = Background::start(&mut command(&caller, &["--allow", "x.example"], &script));
    wait_for(&second);
    let pids = [
        fs::read_to_string(&first).unwrap(),
        fs::read_to_string(&second).unwrap(),
    ];
    let cgroup = children(caller.cgroup())[0].clone();
    assert_eq!(attached(running.pid(), &cgroup), 9);
    kill(running.pid(), Signal::SIGKILL).unwrap();
    assert!(eventually(Duration::from_secs(10), || !cgroup.exists()));
    assert!(!pids.iter().any(|pid| alive(pid)), "{pids:?}");
    drop(running);
}

#[test]
fn the_next_exec_removes_what_is_left_when_the_watcher_is_killed_too() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let flag = world.dir().join("flag");
    let script = format!(
        "setsid sh -c 'echo $$ >{}.new; mv {}.new {}; exec sleep 600' & exec sleep 600",
        flag.display(),
        flag.display(),
        flag.display()
    );
    let running = Background::start(&mut command(&caller, &["--allow", "x.example"], &script));
    wait_for(&flag);
    let left = fs::read_to_string(&flag).unwrap();
    let all = fs::read_to_string(caller.cgroup().join("cgroup.procs")).unwrap();
    let mut watcher = all.lines().filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "egress-watch")
    });
    let watcher = Pid::from_raw(watcher.next().unwrap().parse().unwrap());
    kill(watcher, Signal::SIGKILL).unwrap();
    kill(running.pid(), Signal::SIGKILL).unwrap();
    drop(running);
    let cgroup = children(caller.cgroup())[0].clone();
    // The command itself dies with it; what it started lives, until the next one comes.
    assert!(alive(&left) && cgroup.exists());
    let output = exec(&caller, &["--allow", "x.example", "-q"], "exit 0");
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    assert!(!cgroup.exists());
    assert!(!alive(&left));
}

#[test]
fn two_at_once_have_rules_of_their_own() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    let (one, other) = (world.dir().join("one"), world.dir().join("other"));
    let script = |own: &Path, peer: &Path| {
        format!(
            "touch {}; while ! [ -e {} ]; do sleep 0.02; done; {}{}",
            own.display(),
            peer.display(),
            visit("api.example.com", 443),
            visit("other.example.com", 443)
        )
    };
    let first = Background::start(&mut command(
        &caller,
        &["--allow", "api.example.com"],
        &script(&one, &other),
    ));
    let second = Background::start(&mut command(
        &caller,
        &["--allow", "other.example.com"],
        &script(&other, &one),
    ));
    let (first, second) = (first.end(), second.end());
    let ok = |output: &Output| {
        attempts(output)
            .iter()
            .map(|one| one.ok)
            .collect::<Vec<_>>()
    };
    assert_eq!(ok(&first), [true, false], "{}", first.shown());
    assert_eq!(ok(&second), [false, true], "{}", second.shown());
    assert_eq!(children(caller.cgroup()), Vec::<PathBuf>::new());
}

#[test]
fn beside_an_agent_the_stricter_of_both_wins() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow:\n- names: [api.example.com, www.cdn.example.net]",
        ))
        .start();
    let caller = world.workload("caller");
    let script = visit("api.example.com", 443)
        + &visit("other.example.com", 443)
        + &visit("www.cdn.example.net", 443);
    let options = ["--allow", "api.example.com", "--allow", "other.example.com"];
    let output = exec(&caller, &options, &script);
    let ok: Vec<bool> = attempts(&output).iter().map(|one| one.ok).collect();
    assert_eq!(ok, [true, false, false], "{}", output.shown());
    assert!(agent.status().enforcing);
    assert!(caller.resolve("www.cdn.example.net", false).len() == 1);
    assert!(
        caller
            .connect(zone::address("www.cdn.example.net", false), 443)
            .ok
    );
}

#[test]
fn the_command_answers_in_no_resolvers_name_and_stays_in_its_cgroup() {
    if !ready() {
        return;
    }
    let world = World::new();
    let caller = world.workload("caller");
    // The caller's cgroup is the user's own, as in a desktop session.
    for name in ["cgroup.procs", "."] {
        std::os::unix::fs::chown(caller.cgroup().join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let escape = caller.cgroup().join("cgroup.procs");
    let script = format!(
        "cat /proc/self/cgroup; echo $$ >{} && echo escaped",
        escape.display()
    );
    let output = exec(
        &caller,
        &["--allow", "x.example", "--user", "nobody", "-q"],
        &script,
    );
    assert!(
        output.stdout.contains("/judged/egress-exec-"),
        "{}",
        output.shown()
    );
    assert!(!output.stdout.contains("escaped"), "{}", output.shown());
    assert_eq!(children(caller.cgroup()), Vec::<PathBuf>::new());
    assert!(
        !children(&world.judged())
            .iter()
            .any(|path| path.to_string_lossy().contains("egress-exec"))
    );
}
