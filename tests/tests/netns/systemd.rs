//! The shipped unit under a real systemd, the first process of a container of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use egress_tests::{World, cgroup, expect::policy, process::Running, programs, ready, world::Role};

const SYSTEMD: &str = "/lib/systemd/systemd";
const FORBIDDEN: &str = "10.78.9.1";
const OPEN: &str = "10.79.0.1";

/// The script that makes the container: its namespaces are there already, and a cgroup of its own, which is its root.
const INIT: &str = "\
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
umount -R /sys/fs/bpf || true
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmp /run
mount -t tmpfs tmp /var/lib
mount -t tmpfs tmp /var/log
mkdir -p /run/systemd/system
cp -r \"$DIR\"/units/* /run/systemd/system/
mount --bind \"$DIR/console\" /dev/console
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

/// The shipped unit with the agent that is tried, and what is ordered after it.
fn write_units(dir: &Path) -> PathBuf {
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
    let all = "[Unit]\nDefaultDependencies=no\nWants=egress-agent.service network.service\n";
    fs::write(units.join("all.target"), all).unwrap();
    let look = LOOK
        .replace("$PROBE", &programs::probe().display().to_string())
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
    fs::write(dir.join("console"), "").unwrap();
    let init = format!("DIR='{}'\n{INIT}", dir.display());
    fs::write(dir.join("init.sh"), init).unwrap();
    out
}

#[test]
fn what_is_ordered_after_the_unit_is_judged_from_its_first_packet() {
    if !ready() {
        return;
    }
    if !Path::new(SYSTEMD).is_file() {
        println!(
            "SKIPPED what_is_ordered_after_the_unit_is_judged_from_its_first_packet: no systemd"
        );
        return;
    }
    let world = World::new();
    let dir = world.dir();
    let rules = policy("allow: [{ cidrs: [10.79.0.0/16] }]");
    fs::write(dir.join("policy.yaml"), rules).unwrap();
    let out = write_units(dir);
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
    let seen: Vec<String> = seen().lines().map(str::to_owned).collect();
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
