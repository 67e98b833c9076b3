//! A Kubernetes API server of a test's own, on loopback ports, by the programs that `cargo xtask kubernetes` built.
//!
//! There are etcd, kube-apiserver with RBAC, and those controllers that put roles together, delete what is in deleted
//! namespaces and make service accounts. There is no node, so that pods are objects and nothing runs in them; but for
//! [`Cluster::for_node`], where a node from outside joins.
//!
//! One thing is not as in any real server: built with a compiler that is newer than its source, it sometimes takes an
//! empty text in a custom resource for none, and refuses it. Objects of tests have no empty texts.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    interrupt,
    leftovers::Id,
    process::{self, Output, Running},
    programs, skip,
};

/// How long the server may take to become ready: beside other tests it shares two CPUs with them.
const START_LIMIT: Duration = Duration::from_mins(2);
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_mins(1);
/// Attempts to find ports that nobody else takes in between.
const ATTEMPTS: usize = 3;
/// Token of the user who may do everything.
const ADMIN_TOKEN: &str = "admin-of-the-test";
/// Controllers that tests need.
const CONTROLLERS: &str = "clusterrole-aggregation,namespace,serviceaccount";
/// Controllers for running pods: they make pods for DaemonSets, remove them with these, and give them tokens.
const NODE_CONTROLLERS: &str =
    "daemonset,garbagecollector,root-ca-cert-publisher,serviceaccount-token";
/// Programs that tests need.
const PROGRAMS: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
];
/// The program that others ask.
const SERVER: &str = "kube-apiserver";
/// Files of the server's audit policy and audit log.
const AUDIT_POLICY: &str = "audit-policy.json";
const AUDIT_LOG: &str = "audit.log";
/// Audit policy: requests of service accounts, without their bodies.
const AUDITED: &str = r#"{
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        { "level": "Metadata", "userGroups": ["system:serviceaccounts"] },
        { "level": "None" }
    ]
}"#;
/// The last lines of a program's log that are shown.
const TAIL_LINES: usize = 30;

/// The folder with the programs: `EGRESS_KUBERNETES`, or what `cargo xtask kubernetes` makes.
#[must_use]
pub fn folder() -> PathBuf {
    env::var_os("EGRESS_KUBERNETES").map_or_else(
        || programs::target_dir().join("kubernetes/bin"),
        PathBuf::from,
    )
}

/// A test that needs an API server can run; if not, prints the reason.
#[must_use]
pub fn ready() -> bool {
    let missing = PROGRAMS.iter().find(|name| !folder().join(name).is_file());
    if let Some(name) = missing {
        return skip::skip(&format!("{name} is missing: run `cargo xtask kubernetes`"));
    }
    true
}

/// A node that joins.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it finds the server.
    pub server: Ipv4Addr,
    /// Its token there.
    pub token: String,
}

/// A running API server; ended and removed on drop.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// The port of etcd.
    store: u16,
    /// The API server's port.
    port: u16,
    /// The node that joins, if one does.
    node: Option<Node>,
    /// In the order in which they are ended.
    programs: Mutex<Vec<Bound>>,
    /// A test that uses it has failed.
    failed: AtomicBool,
}

impl Cluster {
    /// The server that the tests of one module share: the first of them prepares it, and it ends with the last. Each
    /// module has its own, for policies of a whole cluster would judge the pods of the others.
    ///
    /// # Errors
    ///
    /// As of [`Cluster::start`], or it cannot be prepared.
    pub fn shared(prepare: impl FnOnce(&Self) -> Result<()>) -> Result<Shared> {
        type Slot = Arc<Mutex<Weak<Cluster>>>;
        static SHARED: Mutex<BTreeMap<String, Slot>> = Mutex::new(BTreeMap::new());
        // libtest names the thread of a test by its path.
        let thread = thread::current();
        let test = thread.name().unwrap_or_default();
        let module = test.rsplit_once("::").map_or("", |(module, _)| module);
        let slot = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(shared.entry(module.to_owned()).or_default())
        };
        let mut shared = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return Ok(Shared(cluster));
        }
        let cluster = Arc::new(Self::start()?);
        prepare(&cluster)?;
        *shared = Arc::downgrade(&cluster);
        Ok(Shared(cluster))
    }

    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    ///
    /// A program cannot be started, ends, or is not ready in time; with the end of its log.
    pub fn start() -> Result<Self> {
        Self::attempts(None)
    }

    /// Starts a server that a node can join, with a scheduler and what else it takes that pods run there.
    ///
    /// # Errors
    ///
    /// As of [`Cluster::start`].
    pub fn for_node(node: &Node) -> Result<Self> {
        Self::attempts(Some(node))
    }

    fn attempts(node: Option<&Node>) -> Result<Self> {
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            match Self::attempt(node) {
                Err(error) if format!("{error:#}").contains("address already in use") => {
                    failure = Some(error);
                }
                result => return result,
            }
        }
        Err(failure.context("no attempt")?)
    }

    fn attempt(node: Option<&Node>) -> Result<Self> {
        let [store, peers, port] = free_ports()?;
        let peers = format!("http://127.0.0.1:{peers}");
        let cluster = Self {
            dir: Id::new().make_dir().context("cannot make a folder")?,
            store,
            port,
            node: node.cloned(),
            programs: Mutex::default(),
            failed: AtomicBool::new(false),
        };
        let store = cluster.store();
        cluster.run("etcd", |etcd, dir| {
            etcd.arg("--data-dir")
                .arg(dir.join("etcd"))
                .args(["--listen-client-urls", &store])
                .args(["--advertise-client-urls", &store])
                .args(["--listen-peer-urls", &peers])
                .args(["--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}")]);
        })?;
        let mut tokens = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
        if let Some(Node { name, token, .. }) = node {
            let user = format!("system:node:{name}");
            tokens += &format!("{token},{user},{user},system:nodes\n");
        }
        fs::write(cluster.dir.join("tokens"), tokens)?;
        fs::write(cluster.kubeconfig(), kubeconfig(port, ADMIN_TOKEN))?;
        fs::write(cluster.dir.join(AUDIT_POLICY), AUDITED)?;
        cluster.start_server(&[])?;
        cluster.run("kube-controller-manager", |manager, dir| {
            manager
                .arg("--kubeconfig")
                .arg(dir.join("kubeconfig"))
                .args(["--leader-elect=false", "--port=0", "--secure-port=0"]);
            if node.is_some() {
                manager
                    .arg(format!("--controllers={CONTROLLERS},{NODE_CONTROLLERS}"))
                    .arg("--service-account-private-key-file")
                    .arg(dir.join("certificates/apiserver.key"))
                    .arg("--root-ca-file")
                    .arg(dir.join("certificates/apiserver.crt"));
            } else {
                manager.args(["--controllers", CONTROLLERS]);
            }
        })?;
        if node.is_some() {
            cluster.run("kube-scheduler", |scheduler, dir| {
                scheduler
                    .arg("--kubeconfig")
                    .arg(dir.join("kubeconfig"))
                    .args(["--leader-elect=false", "--port=0", "--secure-port=0"]);
            })?;
        }
        Ok(cluster)
    }

    /// Where etcd is.
    fn store(&self) -> String {
        format!("http://127.0.0.1:{}", self.store)
    }

    /// Starts the API server, at first or again, with these arguments added, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It cannot be started, ends, or is not ready in time; with the end of its log.
    pub fn start_server(&self, more: &[&str]) -> Result<()> {
        let (store, port) = (self.store(), self.port);
        let node = self.node.clone();
        self.run(SERVER, |server, dir| {
            // It signs service accounts' tokens with the key that it makes for TLS.
            let (certificates, key) = (dir.join("certificates"), "certificates/apiserver.key");
            server
                .args(["--etcd-servers", &store])
                .args(["--bind-address", "127.0.0.1"])
                .args(["--secure-port", &port.to_string()])
                .args(["--insecure-port", "0"])
                .arg("--cert-dir")
                .arg(certificates)
                .arg("--service-account-key-file")
                .arg(dir.join(key))
                .arg("--service-account-signing-key-file")
                .arg(dir.join(key))
                .args(["--service-account-issuer", "https://kubernetes.default.svc"])
                .arg("--token-auth-file")
                .arg(dir.join("tokens"))
                .args(["--service-cluster-ip-range", "10.96.0.0/16"])
                .arg("--allow-privileged")
                .arg("--audit-policy-file")
                .arg(dir.join(AUDIT_POLICY))
                .arg("--audit-log-path")
                .arg(dir.join(AUDIT_LOG))
                .args(more);
            match node {
                Some(node) => server
                    .args(["--authorization-mode", "Node,RBAC"])
                    // It is in the certificate and in the endpoints of the service `kubernetes`.
                    .args(["--advertise-address", &node.server.to_string()]),
                None => server
                    .args(["--authorization-mode", "RBAC"])
                    // Pods are made by tests, which need no tokens in them.
                    .args(["--disable-admission-plugins", "ServiceAccount"]),
            };
        })?;
        self.wait_until_ready(port)
    }

    /// Kills the API server.
    pub fn kill_server(&self) {
        self.programs().retain(|program| program.name != SERVER);
    }

    /// Has etcd forget all that was before a version.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn compact(&self, version: &str) -> Result<()> {
        let body = format!("{{\"revision\":\"{version}\",\"physical\":true}}");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.store))?;
        stream.set_read_timeout(Some(REQUEST_LIMIT))?;
        write!(
            stream,
            "POST /v3/kv/compaction HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "etcd: {answer}");
        Ok(())
    }

    /// Requests of service accounts in the server's audit log: a JSON object for each.
    ///
    /// # Errors
    ///
    /// The log cannot be read.
    pub fn asked(&self) -> Result<Vec<serde_json::Value>> {
        let log = fs::read_to_string(self.dir.join(AUDIT_LOG))?;
        // The last line may still be written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    fn programs(&self) -> MutexGuard<'_, Vec<Bound>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one of the programs.
    fn run(&self, name: &'static str, arguments: impl FnOnce(&mut Command, &Path)) -> Result<()> {
        // It ends with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.arg(folder().join(name));
        command.current_dir(&self.dir).stdin(Stdio::null());
        arguments(&mut command, &self.dir);
        let log = self.dir.join(format!("{name}.log"));
        // Before those that it needs.
        self.programs().insert(0, Bound::start(name, command, log)?);
        Ok(())
    }

    fn wait_until_ready(&self, port: u16) -> Result<()> {
        let end = Instant::now() + START_LIMIT;
        loop {
            for program in self.programs().iter_mut() {
                program.still_runs()?;
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
                && self.kubectl(["get", "--raw", "/readyz"])?.code() == Some(0)
            {
                return Ok(());
            }
            if interrupt::requested() {
                bail!("interrupted");
            }
            if Instant::now() >= end {
                let logs: Vec<String> = self.programs().iter().map(Bound::tail).collect();
                bail!("the API server is not ready\n{}", logs.join("\n"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// When the test fails that calls it: shows what the programs said.
    fn note_failure(&self) {
        if thread::panicking() && !self.failed.swap(true, Ordering::Relaxed) {
            for program in self.programs().iter() {
                eprintln!("{}", program.tail());
            }
        }
    }

    /// The file with the certificate that the server is known by.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("certificates/apiserver.crt")
    }

    /// The folder for files of the test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file with which clients become its administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The API server's port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Writes a file with which clients come through another port, or as somebody else.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn kubeconfig_with(&self, port: u16, token: Option<&str>) -> Result<PathBuf> {
        let text = kubeconfig(port, token.unwrap_or(ADMIN_TOKEN));
        let name = format!("kubeconfig-{}", Id::new().name());
        let file = self.dir.join(name);
        fs::write(&file, text)?;
        Ok(file)
    }

    /// Runs kubectl as the administrator.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end in time. That it fails is no error.
    pub fn kubectl(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Output> {
        let mut command = Command::new(folder().join("kubectl"));
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            // Where it keeps what it found out about the server.
            .env("HOME", &self.dir)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        process::run(&mut command, REQUEST_LIMIT)
    }

    /// Runs kubectl as the administrator and takes what it prints.
    ///
    /// # Errors
    ///
    /// It cannot be started, does not end in time, or fails.
    pub fn get(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
        let output = self.kubectl(arguments)?;
        if output.code() != Some(0) {
            bail!("kubectl: {}", output.shown());
        }
        Ok(output.stdout)
    }
}

/// Where the server is, what it is known by, and who we are.
fn kubeconfig(port: u16, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         contexts: [{{ name: test, context: {{ cluster: test, user: admin }} }}]\n\
         clusters: [{{ name: test, cluster: {{ server: 'https://127.0.0.1:{port}', \
         certificate-authority: certificates/apiserver.crt }} }}]\n\
         users: [{{ name: admin, user: {{ token: {token} }} }}]\n"
    )
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All at once, so that they differ.
    let sockets = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; N];
    for (port, socket) in ports.iter_mut().zip(sockets) {
        *port = socket?.local_addr()?.port();
    }
    Ok(ports)
}

/// A program that is killed on drop, and with us. It belongs to a thread of its own: the kernel kills it with the thread
/// that started it, and tests come and go.
#[derive(Debug)]
struct Bound {
    name: &'static str,
    running: Running,
    /// The thread ends when this is dropped, after the program.
    _thread: Sender<()>,
}

impl Bound {
    fn start(name: &'static str, mut command: Command, log: PathBuf) -> Result<Self> {
        let (started, running) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _ = started.send(Running::start(&mut command, &log));
                // Until nobody holds it any more.
                let _ = held.recv();
            })?;
        Ok(Self {
            name,
            running: running.recv().context("its thread ended")??,
            _thread: hold,
        })
    }

    fn still_runs(&mut self) -> Result<()> {
        match self.running.ended() {
            Some(status) => bail!("{} ended ({status})\n{}", self.name, self.tail()),
            None => Ok(()),
        }
    }

    /// The end of its log.
    fn tail(&self) -> String {
        let log = self.running.errors();
        let lines: Vec<&str> = log.lines().collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        format!("--- {} said:\n{}", self.name, lines[first..].join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.note_failure();
        self.programs().clear();
        if self.failed.load(Ordering::Relaxed) && env::var_os("EGRESS_TEST_KEEP").is_some() {
            eprintln!("kept {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir); // the next test sweeps
        }
    }
}

/// A test's part in a server that others use as well.
#[derive(Debug)]
pub struct Shared(Arc<Cluster>);

impl Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.note_failure();
    }
}
