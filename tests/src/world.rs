//! The world: namespaces, a real resolver, servers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    agent::AgentOptions,
    cgroup::Cgroup,
    dns,
    leftovers::{self, Id},
    namespace::{self, Namespace},
    process::{Place, Running},
    programs,
    workload::Workload,
    zone,
};

/// Longest time that a server may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The resolver that the world runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Resolver {
    /// NLnet Labs' unbound.
    #[default]
    Unbound,
    /// dnsmasq.
    Dnsmasq,
}

/// A place of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node, whose processes are judged.
    Node,
    /// Where the DNS servers are.
    Dns,
    /// Where the servers are.
    Web,
    /// The pod, whose packets the node forwards.
    Pod,
}

/// Description of a world to build.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builder {
    resolver: Resolver,
    pod: bool,
}

impl Builder {
    /// Runs this resolver.
    #[must_use]
    pub const fn resolver(mut self, resolver: Resolver) -> Self {
        self.resolver = resolver;
        self
    }

    /// Adds a pod behind the node.
    #[must_use]
    pub const fn pod(mut self) -> Self {
        self.pod = true;
        self
    }

    /// Builds it.
    ///
    /// # Panics
    ///
    /// If it cannot be built.
    #[must_use]
    pub fn build(self) -> World {
        self.try_build()
            .unwrap_or_else(|error| panic!("cannot build a world: {error:#}"))
    }

    /// Builds it, or says what failed.
    ///
    /// # Errors
    ///
    /// A namespace, a cgroup or a server cannot be made.
    pub fn try_build(self) -> Result<World> {
        let id = Id::new();
        leftovers::mount_bpffs().context("cannot mount bpffs")?;
        let dir = TempDir(id.make_dir().context("cannot make a temporary folder")?);
        let cgroup = Cgroup::new(&id.name())?;
        cgroup.child("judged")?;
        let namespace = |role| Namespace::of_name(id.namespace(role));
        let mut world = World {
            servers: Vec::new(),
            node: namespace("node"),
            dns: namespace("dns"),
            web: namespace("web"),
            pod: self.pod.then(|| namespace("pod")),
            cgroup,
            dir,
            id,
        };
        world.wire()?;
        world.serve(self.resolver)?;
        Ok(world)
    }
}

/// A temporary folder, removed on drop.
#[derive(Debug)]
struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        let keep = std::env::var_os("EGRESS_TEST_KEEP").is_some() && std::thread::panicking();
        if keep {
            eprintln!("kept {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Namespaces with servers in them. Fields drop in order: processes first.
#[derive(Debug)]
pub struct World {
    servers: Vec<(Role, Running)>,
    cgroup: Cgroup,
    node: Namespace,
    dns: Namespace,
    web: Namespace,
    pod: Option<Namespace>,
    dir: TempDir,
    id: Id,
}

impl World {
    /// A world to be described.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The usual world: unbound, no pod.
    ///
    /// # Panics
    ///
    /// If it cannot be built.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Makes the namespaces and joins them by a bridge in *web*.
    fn wire(&self) -> Result<()> {
        let (node, dns, web) = (self.node.name(), self.dns.name(), self.web.name());
        let mut lines = format!("netns add {node}\nnetns add {dns}\nnetns add {web}\n");
        if let Some(pod) = &self.pod {
            lines += &format!("netns add {}\n", pod.name());
        }
        namespace::ip(&[], &lines)?;
        for namespace in [
            Some(&self.node),
            Some(&self.dns),
            Some(&self.web),
            self.pod.as_ref(),
        ] {
            // Addresses are usable at once.
            namespace
                .context("no namespace")
                .ok()
                .map_or(Ok(()), |namespace| {
                    namespace.sysctl(&[
                        ("ipv6/conf/all/accept_dad", "0"),
                        ("ipv6/conf/default/accept_dad", "0"),
                        ("ipv4/ping_group_range", "0 2147483647"),
                    ])
                })?;
        }
        let both = |role: [&str; 2], device: &str| {
            let [v4, v6] = role;
            format!("address add {v4}/24 dev {device}\naddress add {v6}/64 dev {device} nodad\n")
        };
        let [servers4, servers6] = zone::SERVERS;
        let [web4, web6] = zone::WEB;
        let to_servers =
            format!("route add {servers4} via {web4}\nroute add {servers6} via {web6}\n");

        self.web.sysctl(&[("ipv6/ip_nonlocal_bind", "1")])?;
        // veth pairs are born in their namespaces: nothing appears on the machine itself.
        self.web.ip(&format!(
            "link set lo up\nlink add br0 type bridge stp_state 0\nlink set br0 up\n\
             link add node type veth peer name eth0 netns {node}\n\
             link add dns type veth peer name eth0 netns {dns}\n\
             link set node master br0 up\nlink set dns master br0 up\n{}\
             route add local {servers4} dev lo\nroute add local {servers6} dev lo\n\
             route add 10.77.1.0/24 via {}\nroute add fd77:1::/64 via {}\n",
            both(zone::WEB, "br0"),
            zone::NODE[0],
            zone::NODE[1],
        ))?;
        self.node.ip(&format!(
            "link set lo up\nlink set eth0 up\n{}{to_servers}",
            both(zone::NODE, "eth0")
        ))?;
        self.dns.ip(&format!(
            "link set lo up\nlink set eth0 up\n{}{to_servers}\
             address add {}/24 dev eth0\naddress add {}/24 dev eth0\naddress add {}/24 dev eth0\n\
             route add 10.77.1.0/24 via {}\nroute add fd77:1::/64 via {}\n",
            both(zone::RESOLVER, "eth0"),
            zone::SERVER,
            zone::FORGER,
            zone::STRANGER,
            zone::NODE[0],
            zone::NODE[1],
        ))?;
        if let Some(pod) = &self.pod {
            self.node
                .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
            self.node.ip(&format!(
                "link add pod0 type veth peer name eth0 netns {}\nlink set pod0 up\n{}",
                pod.name(),
                both(zone::POD_GATEWAY, "pod0")
            ))?;
            let [gateway4, gateway6] = zone::POD_GATEWAY;
            pod.ip(&format!(
                "link set lo up\nlink set eth0 up\n{}\
                 route add default via {gateway4}\nroute add default via {gateway6}\n",
                both(zone::POD, "eth0")
            ))?;
        }
        Ok(())
    }

    /// Starts the resolver and the servers, and waits until they answer.
    fn serve(&mut self, resolver: Resolver) -> Result<()> {
        let [v4, v6] = zone::RESOLVER;
        fs::write(
            self.resolv_conf(),
            format!("nameserver {v4}\nnameserver {v6}\noptions timeout:1 attempts:2\n"),
        )
        .context("cannot write resolv.conf")?;
        match resolver {
            Resolver::Unbound => {
                let config = zone::write_unbound(&self.dir.0)?;
                let program = programs::find("unbound").context("unbound is missing")?;
                let mut command = self.helper(Role::Dns, program)?;
                command.arg("-d").arg("-c").arg(config);
                self.start(Role::Dns, &mut command, "resolver")?;
            }
            Resolver::Dnsmasq => {
                let config = zone::write_dnsmasq(&self.dir.0)?;
                let program = programs::find("dnsmasq").context("dnsmasq is missing")?;
                let mut command = self.helper(Role::Dns, program)?;
                command.arg(format!("--conf-file={}", config.display()));
                self.start(Role::Dns, &mut command, "resolver")?;
            }
        }
        self.start_probe(
            Role::Web,
            &["serve", "--tcp", zone::PORTS, "--udp", zone::PORTS],
        )?;
        let end = Instant::now() + START_LIMIT;
        for address in zone::RESOLVER {
            let address = address.parse().context("not an address")?;
            loop {
                let answered = self
                    .dns
                    .enter(|| dns::check(address, "api.example.com", Duration::from_millis(200)));
                let Err(error) = answered else { break };
                let dead = self
                    .servers
                    .first_mut()
                    .is_some_and(|(_, one)| one.ended().is_some());
                if dead || Instant::now() >= end {
                    let said = self.servers.first().map(|(_, one)| one.errors());
                    bail!(
                        "the resolver does not answer: {error:#}; it said: {}",
                        said.unwrap_or_default()
                    );
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// A command in one of the namespaces, outside of what is judged.
    ///
    /// # Errors
    ///
    /// There is no cgroup for it.
    pub fn helper(&self, role: Role, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        Ok(self
            .place(role, self.cgroup.child("world")?)
            .command(program))
    }

    /// A place in one of the namespaces.
    #[must_use]
    pub fn place(&self, role: Role, cgroup: PathBuf) -> Place {
        Place {
            namespace: self.namespace(role).path().to_path_buf(),
            cgroup,
        }
    }

    /// The namespace of a role.
    ///
    /// # Panics
    ///
    /// If the world was built without it.
    #[must_use]
    pub fn namespace(&self, role: Role) -> &Namespace {
        match role {
            Role::Node => &self.node,
            Role::Dns => &self.dns,
            Role::Web => &self.web,
            Role::Pod => self.pod.as_ref().expect("the world has a pod"),
        }
    }

    fn start(&mut self, role: Role, command: &mut Command, name: &str) -> Result<()> {
        let errors = self.dir.0.join(format!("{name}.err"));
        let running = Running::start(command, &errors)?;
        self.servers.push((role, running));
        Ok(())
    }

    /// Starts a probe server outside of what is judged and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It does not become ready.
    pub fn start_probe(&mut self, role: Role, args: &[&str]) -> Result<()> {
        let mut command = self.helper(role, programs::probe())?;
        command.args(args);
        let name = format!("probe{}", self.servers.len());
        self.start(role, &mut command, &name)?;
        let (_, running) = self.servers.last_mut().context("no server")?;
        running.wait_for_line(0, START_LIMIT, |line| line == "ready")?;
        Ok(())
    }

    /// Hardware address of the node's next hop.
    #[must_use]
    pub fn gateway(&self) -> String {
        self.hardware_address(Role::Web, "br0")
    }

    /// Hardware address of an interface.
    ///
    /// # Panics
    ///
    /// If `ip` does not show it.
    #[must_use]
    pub fn hardware_address(&self, role: Role, interface: &str) -> String {
        let output = Command::new("ip")
            .args([
                "-n",
                self.namespace(role).name(),
                "-o",
                "link",
                "show",
                interface,
            ])
            .output()
            .expect("ip runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, rest) = text.split_once("link/ether ").expect("a hardware address");
        rest.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Lines that the servers of a role have printed: what reached them.
    #[must_use]
    pub fn seen(&self, role: Role) -> Vec<String> {
        self.servers
            .iter()
            .filter(|(other, _)| *other == role)
            .flat_map(|(_, running)| running.lines())
            .collect()
    }

    /// How many lines of the web servers begin like this, such as `udp 10.78.9.1:9000`.
    #[must_use]
    pub fn web_saw(&self, begin: &str) -> usize {
        let begin = format!("{begin} ");
        let seen = self.seen(Role::Web);
        seen.iter().filter(|line| line.starts_with(&begin)).count()
    }

    /// The cgroup to which the agent is attached.
    #[must_use]
    pub fn judged(&self) -> PathBuf {
        self.cgroup.path().join("judged")
    }

    /// The folder for files of this world.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// The pin folder for this world's agent.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.id.pins()
    }

    /// A resolv.conf that names the world's resolver.
    fn resolv_conf(&self) -> PathBuf {
        self.dir.0.join("resolv.conf")
    }

    /// Name that everything of this world carries.
    #[must_use]
    pub fn name(&self) -> String {
        self.id.name()
    }

    /// A workload in the node, in a cgroup of this name below the judged one.
    ///
    /// # Panics
    ///
    /// If its cgroup cannot be made.
    #[must_use]
    pub fn workload(&self, name: &str) -> Workload {
        self.workload_in(Role::Node, name)
    }

    /// A workload in the namespace of a role, in a cgroup of this name below the judged one.
    ///
    /// # Panics
    ///
    /// If its cgroup cannot be made.
    #[must_use]
    pub fn workload_in(&self, role: Role, name: &str) -> Workload {
        self.workload_at(self.namespace(role).path(), name)
    }

    /// A workload in any namespace, in a cgroup of this name below the judged one.
    ///
    /// # Panics
    ///
    /// If its cgroup cannot be made.
    #[must_use]
    pub fn workload_at(&self, namespace: &Path, name: &str) -> Workload {
        let cgroup = self
            .cgroup
            .child(&format!("judged/{name}"))
            .expect("a cgroup for the workload");
        let errors = format!("{}.err", name.replace('/', "-"));
        let place = Place {
            namespace: namespace.to_path_buf(),
            cgroup,
        };
        Workload::new(place, self.dir.0.join(errors), self.resolv_conf())
    }

    /// Clients outside of what is judged.
    ///
    /// # Panics
    ///
    /// If their cgroup cannot be made.
    #[must_use]
    pub fn outsider(&self, role: Role) -> Workload {
        self.outsider_at(self.namespace(role).path())
    }

    /// Clients outside of what is judged, in any namespace.
    ///
    /// # Panics
    ///
    /// If their cgroup cannot be made.
    #[must_use]
    pub fn outsider_at(&self, namespace: &Path) -> Workload {
        let place = Place {
            namespace: namespace.to_path_buf(),
            cgroup: self.cgroup.child("outside").expect("a cgroup for clients"),
        };
        Workload::new(place, self.dir.0.join("outsider.err"), self.resolv_conf())
    }

    /// An agent for this world with this policy, still to be started.
    ///
    /// # Panics
    ///
    /// If the policy cannot be written.
    #[must_use]
    pub fn agent(&self, policy: &str) -> AgentOptions {
        let path = self.dir.0.join("policy.yaml");
        fs::write(&path, policy).expect("the policy is written");
        self.agent_from(&path)
    }

    /// An agent for this world with the policies at this path, still to be started.
    #[must_use]
    pub fn agent_from(&self, path: &Path) -> AgentOptions {
        let cgroup = self.judged().join("agent");
        fs::create_dir_all(&cgroup).expect("a cgroup for the agent");
        AgentOptions::new(
            self.place(Role::Node, cgroup),
            self.judged(),
            &self.dir.0,
            self.pins(),
            path,
        )
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (role, running) in &self.servers {
                let errors = running.errors();
                if !errors.trim().is_empty() {
                    eprintln!("--- a server in {role:?} said:\n{}", errors.trim());
                }
            }
        }
        // Ended at once, in parallel; their guards then find them dead.
        for (_, running) in &mut self.servers {
            running.signal(nix::sys::signal::Signal::SIGKILL);
        }
        // An agent that was leaked must not outlive its world.
        let pins = self.id.pins();
        if pins.exists() {
            eprintln!("{} was left behind", pins.display());
            let _ = leftovers::remove_pins(&pins);
        }
    }
}
