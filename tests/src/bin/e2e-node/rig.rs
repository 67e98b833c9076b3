//! The control plane here, the node in its virtual machine, and requests to both.

use std::{
    fmt, fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    interrupt,
    kubernetes::{Cluster, Node},
};
use serde_json::Value;

use crate::{
    Cli,
    guest::{Guest, Machine},
    report::{Report, say},
};

/// The node's name.
pub(crate) const NODE: &str = "node";
/// Where the node finds this machine's loopback address.
const SERVER: [u8; 4] = [10, 0, 2, 2];
/// The node's token for the API server.
const TOKEN: &str = "node-of-the-test";
/// How long a command in the guest may take.
pub(crate) const COMMAND: Duration = Duration::from_mins(5);
/// How long something may take that starts containers.
pub(crate) const START: Duration = Duration::from_mins(15);
/// How often a wait looks, so that it leaves the processor to the guest.
const TICK: Duration = Duration::from_secs(1);
/// How often a wait says that it waits.
const SAY: Duration = Duration::from_secs(20);

/// Scripts that run at each boot, and once before the first.
const START_SCRIPT: &str = include_str!("start.sh");
const PREPARE_SCRIPT: &str = include_str!("prepare.sh");

/// Everything that runs; ended and removed on drop.
pub(crate) struct Rig {
    guest: Option<Guest>,
    machine: Machine,
    pub(crate) cluster: Cluster,
    pub(crate) agent_image: String,
    pub(crate) client_image: String,
}

/// How an attempt to reach a server went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Reached,
    /// `EPERM`: what a denied `connect()` gets.
    Denied,
    Other(String),
}

impl Outcome {
    /// Reads the output of busybox's wget.
    pub(crate) fn read(text: &str) -> Self {
        // The runtime's line on the exit status follows.
        let text = text.lines().next().unwrap_or_default().trim();
        if text == "here" {
            Self::Reached
        } else if text.contains("Operation not permitted") {
            Self::Denied
        } else {
            Self::Other(text.to_owned())
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached => f.write_str("reached"),
            Self::Denied => f.write_str("denied (EPERM)"),
            Self::Other(text) => write!(f, "{text:?}"),
        }
    }
}

impl Rig {
    /// Starts the control plane and the node, and waits until the node is ready.
    pub(crate) fn start(cli: &Cli, report: &mut Report) -> Result<Self> {
        let node = Node {
            name: NODE.to_owned(),
            server: SERVER.into(),
            token: TOKEN.to_owned(),
        };
        let mut cluster = None;
        report.check("control plane", || {
            cluster = Some(Cluster::for_node(&node)?);
            Ok("API server, controllers, scheduler".to_owned())
        })?;
        let cluster = cluster.context("no control plane")?;
        let disk = cluster.dir().join("disk.img");
        copy_sparse(&cli.disk, &disk)?;
        let machine = Machine {
            kernel: cli.kernel.clone(),
            cpu: cli.cpu.clone(),
            initramfs: cli.initramfs.clone(),
            disk,
            images: cli.images.clone(),
            dir: cluster.dir().to_owned(),
        };
        let mut rig = Self {
            guest: None,
            machine,
            cluster,
            agent_image: cli.agent_image.clone(),
            client_image: cli.client_image.clone(),
        };
        copy_folder(&cli.manifests, &rig.cluster.dir().join("deploy"))?;
        report.check("boot", || rig.boot())?;
        ensure!(rig.guest.is_some(), "no node");
        report.check("containerd, images", || rig.prepare())?;
        if !report.check("node ready", || rig.wait_for_node())? {
            rig.show_logs();
            bail!("without a node there is nothing to check");
        }
        Ok(rig)
    }

    /// Boots the node.
    pub(crate) fn boot(&mut self) -> Result<String> {
        self.guest = Some(Guest::boot(&self.machine)?);
        let seen = self.get("uname -r; ls /sys/fs/cgroup/cgroup.controllers")?;
        Ok(format!(
            "kernel {}, cgroup v2",
            seen.lines().next().unwrap_or_default()
        ))
    }

    /// Cuts the node's power.
    pub(crate) fn power_off(&mut self) -> Result<()> {
        self.guest.take().context("no node")?.power_off()
    }

    /// Writes the node's settings, starts it, and imports the images.
    fn prepare(&mut self) -> Result<String> {
        let port = self.cluster.port();
        let start = START_SCRIPT.replace("SERVER_PORT", &port.to_string());
        let certificate = fs::read_to_string(self.cluster.certificate())?;
        let prepare = PREPARE_SCRIPT
            .replace("SERVER", &format!("10.0.2.2:{port}"))
            .replace("TOKEN", TOKEN)
            .replace("CLIENT_IMAGE", &self.client_image)
            .replace("CERTIFICATE\n", &certificate);
        self.get(&format!("cat >/node/start <<'START'\n{start}START\n"))?;
        let guest = self.guest()?;
        guest.get(&prepare, START)?;
        Ok(self
            .get("containerd --version; runc --version | head -1")?
            .replace('\n', " "))
    }

    /// Waits until the node is ready since this boot.
    pub(crate) fn wait_for_node(&mut self) -> Result<String> {
        let boot = self.get("cat /proc/sys/kernel/random/boot_id")?;
        let boot = boot.trim().to_owned();
        self.wait("the node is ready", START, |rig| {
            let node = rig.object("node", None, NODE)?;
            let info = &node["status"]["nodeInfo"];
            let is_ready = has_condition(&node, "Ready") && info["bootID"] == *boot;
            Ok(is_ready.then(|| {
                format!(
                    "kubelet {}, {}",
                    info["kubeletVersion"], info["containerRuntimeVersion"]
                )
                .replace('"', "")
            }))
        })
    }

    fn guest(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().context("the node does not run")
    }

    /// Runs a script on the node that must succeed.
    pub(crate) fn get(&mut self, script: &str) -> Result<String> {
        self.guest()?.get(script, COMMAND)
    }

    /// Runs a command in a container; its output, however it ends.
    fn exec_in(&mut self, container: &str, words: &str) -> Result<(i32, String)> {
        let script = format!(
            "ctr -n k8s.io tasks exec --exec-id e$(cut -d. -f1 /proc/uptime)-$$ {container} {words}"
        );
        let answer = self.guest()?.run(&script, COMMAND)?;
        Ok((answer.code, answer.text))
    }

    /// Runs a command in a pod's first container; its output, however it ends.
    pub(crate) fn exec(&mut self, pod: &Value, words: &str) -> Result<(i32, String)> {
        self.exec_in(&container(pod)?, words)
    }

    /// Tries to fetch a page from a pod.
    pub(crate) fn fetch(&mut self, namespace: &str, pod: &str, host: &str) -> Result<Outcome> {
        let pod = self.object("pod", Some(namespace), pod)?;
        let (_, text) = self.exec(&pod, &fetch(host))?;
        Ok(Outcome::read(&text))
    }

    /// Tries to fetch a page from a container.
    pub(crate) fn fetch_in(&mut self, container: &str, host: &str) -> Result<Outcome> {
        let (_, text) = self.exec_in(container, &fetch(host))?;
        Ok(Outcome::read(&text))
    }

    /// Applies objects.
    pub(crate) fn apply(&self, name: &str, objects: &str) -> Result<()> {
        let file = self.cluster.dir().join(format!("{name}.yaml"));
        fs::write(&file, objects)?;
        self.cluster
            .get(["apply", "-f", &file.display().to_string()])?;
        Ok(())
    }

    /// An object of the API server; null if there is none.
    pub(crate) fn object(&self, kind: &str, namespace: Option<&str>, name: &str) -> Result<Value> {
        let mut arguments = vec!["get", kind, name, "-o", "json", "--ignore-not-found"];
        arguments.extend(namespace.map(|_| "-n"));
        arguments.extend(namespace);
        let text = self.cluster.get(&arguments)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// Waits until `found` finds something.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let begin = Instant::now();
        let mut said = begin;
        loop {
            if let Some(found) = found(self)? {
                return Ok(found);
            }
            if interrupt::requested() {
                bail!("interrupted");
            }
            if begin.elapsed() >= limit {
                bail!("not within {} s: {what}", limit.as_secs());
            }
            if said.elapsed() >= SAY {
                said = Instant::now();
                say(&format!(
                    "waiting: {what} ... {} s",
                    begin.elapsed().as_secs()
                ));
            }
            thread::sleep(TICK);
        }
    }

    /// Prints logs and objects that may explain a failure.
    pub(crate) fn show_logs(&mut self) {
        for script in [
            "tail -n 25 /node/kubelet.log",
            "tail -n 10 /node/containerd.log",
            "tail -n 10 /node/start.log",
            "tail -n 15 /var/log/pods/egress-system_*/*/*.log",
        ] {
            match self.get(script) {
                Ok(text) => eprintln!("--- {script}\n{text}"),
                Err(error) => eprintln!("--- {script}\n{error:#}"),
            }
        }
        match self.cluster.get(["get", "pods,events", "-A", "-o", "wide"]) {
            Ok(text) => eprintln!("--- pods and events\n{text}"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// The id of a pod's first container.
pub(crate) fn container(pod: &Value) -> Result<String> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    id.and_then(|id| id.strip_prefix("containerd://"))
        .map(str::to_owned)
        .context("the pod has no container")
}

/// The command that fetches a page. Debian's static wget crashes over a time limit of its own.
fn fetch(host: &str) -> String {
    format!("/bin/timeout 20 /bin/wget -q -O - http://{host}/")
}

/// The condition of the object is true.
pub(crate) fn has_condition(object: &Value, name: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == name && condition["status"] == "True")
}

/// Copies a disk with its holes.
fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let status = std::process::Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status()
        .context("cannot start cp")?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let status = std::process::Command::new("cp")
        .arg("-r")
        .args([from, to])
        .status()
        .context("cannot start cp")?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}
