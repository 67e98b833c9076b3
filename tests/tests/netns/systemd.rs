//! The shipped unit under a real systemd, the first process of a container of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use egress_tests::{
    World, cgroup, expect::policy, process::Running, programs, ready, skip::skip, world::Role,
};

const SYSTEMD: &str = "/lib/systemd/systemd";
const FORBIDDEN: &str = "10.78.9.1";
const OPEN: &str = "10.79.0.1";

/// The script that makes the container: its namespaces are there already, and a cgroup of its own, which is its root. It
/// can change none of the machine's files and settings but those in the test's folder; systemd's usual work at a boot is
/// masked, also for units that ask for it.
const INIT: &str = "\
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
umount -R /sys/fs/bpf || true
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmp /run
mount -t tmpfs tmp /var/lib
mkdir /run/kept
mount --bind \"$DIR\" /run/kept
mount -t tmpfs tmp /tmp
mkdir -p \"$DIR\"
mount --move /run/kept \"$DIR\"
mount -t tmpfs tmp /var/log
mkdir -p /run/systemd/system
for target in sysinit basic; do ln -s /dev/null /run/systemd/system/$target.target; done
cp -r \"$DIR\"/units/* /run/systemd/system/
mount --bind \"$DIR/console\" /dev/console
mount -o remount,bind,ro /
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=all.target --log-target=console --show-status=no
";

/// A unit that is ordered as networks are: after what has to be there before them.
const NETWORK: &str = "\
[Unit]
DefaultDependencies=no
After=network-pre.target
[Service]
Type=oneshot
";

/// Script of the unit `network`: the agent's state and connects, before and after a restart.
const LOOK: &str = "\
systemctl show --property=Type,SubState egress-agent
\"$PROBE\" connect $FORBIDDEN 80
\"$PROBE\" connect $OPEN 80
systemctl restart egress-agent
systemctl show --property=SubState egress-agent
\"$PROBE\" connect $FORBIDDEN 80
echo end
";

/// What an operator does who tries a policy by hand, and what becomes of the agent then.
const BY_HAND: &str = "\
policy=\"$DIR\"/policy.yaml
for end in none kill; do
    # Without the dependencies that all services have: they would set up the machine itself, its /tmp and sysctls too.
    systemd-run --quiet --unit=by-hand-$end --property=Type=notify --property=DefaultDependencies=no \"$AGENT\" run --policy \"$policy\" --confirm 8s
    systemctl show --property=SubState by-hand-$end
    test $end = none || systemctl kill --signal=KILL by-hand-$end
    \"$PROBE\" connect $FORBIDDEN 80
    sleep 8
    \"$PROBE\" connect $FORBIDDEN 80
    systemctl stop by-hand-$end
done
echo end
";

/// A boot at which the agent cannot start, and what docs/node.md says of it. A moment later the policy is right.
const WRONG_POLICY: &str = "\
systemctl show --property=SubState egress-agent
\"$PROBE\" connect $FORBIDDEN 80
systemctl start strict && echo strict started || echo strict refused
cp \"$DIR\"/right.yaml \"$DIR\"/policy.yaml
for try in $(seq 100); do systemctl is-active --quiet egress-agent && break; sleep 0.2; done
systemctl start strict && echo strict started || echo strict refused
\"$PROBE\" connect $FORBIDDEN 80
systemctl stop egress-agent
systemctl is-active strict
echo end
";

/// A unit with the drop-in of docs/node.md.
const STRICT: &str = "\
[Unit]
DefaultDependencies=no
After=egress-agent.service
AssertPathExists=/sys/fs/bpf/egress/links/skb_egress
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
";

/// The shipped unit with the agent that is tried, and a unit that runs `look` after it.
fn write_units(dir: &Path, look: &str, wants: &str) -> PathBuf {
    let units = dir.join("units");
    let drop_in = units.join("egress-agent.service.d");
    fs::create_dir_all(&drop_in).unwrap();
    let shipped =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/egress-agent.service");
    fs::copy(shipped, units.join("egress-agent.service")).unwrap();
    let log = dir.join("agent.log");
    let run = format!(
        "[Service]\nExecStart=\nExecStart={} run --policy {}/policy.yaml\nStandardError=append:{}\n",
        programs::agent().display(),
        dir.display(),
        log.display()
    );
    fs::write(drop_in.join("test.conf"), run).unwrap();
    fs::write(
        units.join("network-pre.target"),
        "[Unit]\nRefuseManualStart=yes\n",
    )
    .unwrap();
    let all = format!("[Unit]\nDefaultDependencies=no\nWants={wants}\n");
    fs::write(units.join("all.target"), all).unwrap();
    let look = look
        .replace("$PROBE", &programs::probe().display().to_string())
        .replace("$AGENT", &programs::agent().display().to_string())
        .replace("$DIR", &dir.display().to_string())
        .replace("$FORBIDDEN", FORBIDDEN)
        .replace("$OPEN", OPEN);
    fs::write(dir.join("look.sh"), look).unwrap();
    let out = dir.join("seen");
    let network = format!(
        "{NETWORK}ExecStart=/bin/sh {}/look.sh\nStandardOutput=file:{}\nStandardError=file:{}\n",
        dir.display(),
        out.display(),
        out.display()
    );
    fs::write(units.join("network.service"), network).unwrap();
    fs::write(units.join("strict.service"), STRICT).unwrap();
    fs::write(dir.join("console"), "").unwrap();
    let init = format!("DIR='{}'\n{INIT}", dir.display());
    fs::write(dir.join("init.sh"), init).unwrap();
    out
}

fn right() -> String {
    policy("allow: [{ cidrs: [10.79.0.0/16] }]")
}

/// Boots systemd, which starts the units of `wants`, and returns the lines of `look` and what everybody said. None where
/// there is no systemd.
fn boot(rules: &str, look: &str, wants: &str) -> Option<(Vec<String>, String)> {
    if !ready() {
        return None;
    }
    if !Path::new(SYSTEMD).is_file() || programs::find("systemd-run").is_none() {
        let _ = skip("systemd is missing");
        return None;
    }
    let world = World::new();
    let dir = world.dir();
    fs::write(dir.join("policy.yaml"), rules).unwrap();
    fs::write(dir.join("right.yaml"), right()).unwrap();
    let out = write_units(dir, look, wants);
    let root = world.judged().join("systemd");
    fs::create_dir_all(&root).unwrap();
    let mut container = world.place(Role::Node, root.clone()).command("unshare");
    container
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--cgroup",
            "--ipc",
            "--uts",
        ])
        .args(["--mount-proc", "sh"])
        .arg(dir.join("init.sh"));
    let mut container = Running::start(&mut container, &dir.join("container.err")).unwrap();
    let seen = || fs::read_to_string(&out).unwrap_or_default();
    let is_over = || seen().ends_with("end\n");
    let ended = egress_tests::eventually(Duration::from_secs(90), is_over);
    let said = format!(
        "{}\n--- agent: {}\n--- systemd: {}{}",
        seen(),
        fs::read_to_string(dir.join("agent.log")).unwrap_or_default(),
        fs::read_to_string(dir.join("console")).unwrap_or_default(),
        container.errors(),
    );
    container.kill();
    cgroup::remove(&root);
    assert!(ended, "{said}");
    Some((seen().lines().map(str::to_owned).collect(), said))
}

#[test]
fn what_is_ordered_after_the_unit_is_judged_from_its_first_packet() {
    let Some((seen, said)) = boot(&right(), LOOK, "egress-agent.service network.service") else {
        return;
    };
    let [kind, first, refused, reached, again, still, _] = seen.as_slice() else {
        panic!("{said}");
    };
    assert_eq!(kind, "Type=notify", "{said}");
    assert_eq!(first, "SubState=running", "{said}");
    assert!(refused.contains("EPERM"), "{said}");
    assert!(reached.contains("\"ok\":true"), "{said}");
    // `restart` is over when the next one has attached.
    assert_eq!(again, "SubState=running", "{said}");
    assert!(still.contains("EPERM"), "{said}");
}

#[test]
fn an_agent_that_systemd_run_started_falls_back_in_time_and_also_when_it_is_killed() {
    let Some((seen, said)) = boot(&right(), BY_HAND, "network.service") else {
        return;
    };
    assert_eq!(seen.len(), 7, "{said}");
    for of_one in seen.chunks_exact(3) {
        let [state, before, after] = of_one else {
            panic!("{said}");
        };
        assert_eq!(state, "SubState=running", "{said}");
        assert!(before.contains("EPERM"), "{said}");
        assert!(after.contains("\"ok\":true"), "{said}");
    }
}

#[test]
fn a_unit_that_asks_for_the_pinned_programs_does_not_start_before_there_are_any() {
    let wants = "egress-agent.service network.service";
    let Some((seen, said)) = boot("this: is no policy\n", WRONG_POLICY, wants) else {
        return;
    };
    let seen: Vec<&str> = seen
        .iter()
        .map(String::as_str)
        .filter(|line| !line.starts_with("Assertion failed") && !line.starts_with("See "))
        .collect();
    let [state, open, before, after, refused, of_strict, _] = seen.as_slice() else {
        panic!("{said}");
    };
    // Others go on, ordered or not: an order is no requirement.
    assert_eq!(*state, "SubState=auto-restart", "{said}");
    assert!(open.contains("\"ok\":true"), "{said}");
    assert_eq!(*before, "strict refused", "{said}");
    assert_eq!(*after, "strict started", "{said}");
    assert!(refused.contains("EPERM"), "{said}");
    // An agent that is stopped leaves its programs, and what needs them.
    assert_eq!(*of_strict, "active", "{said}");
}
