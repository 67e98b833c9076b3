//! The world that everything is measured in, and the peers in it.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use egress_tests::{
    Agent, World, expect,
    process::{self, Place, Running},
    world::Role,
    zone,
};

use crate::{
    client::{SINK_COUNT, Sample},
    idle::Idle,
    nft::{self, Nft, Rules},
    place, wire,
};

/// No sample takes longer.
const LIMIT: Duration = Duration::from_secs(240);

/// The judge of the client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judge {
    /// Our programs, enforcing.
    Egress,
    /// The same for a pod: in its cgroup, and at the host's end of its interface.
    EgressOfPod,
    /// Nobody.
    None,
    /// A program of two instructions that passes everything.
    Empty,
    /// A program of two instructions that denies everything.
    EmptyDenies,
    /// nftables: a set with timeouts.
    NftSet,
    /// nftables: connection tracking, then the set.
    NftTracked,
    /// nftables: a set that is empty until somebody adds to it.
    NftLearns,
}

impl Judge {
    /// How tables call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::EgressOfPod => "egress, of a pod",
            Self::None => "none",
            Self::Empty => "empty program",
            Self::EmptyDenies => "empty program, denies",
            Self::NftSet => "nft set",
            Self::NftTracked => "nft conntrack+set",
            Self::NftLearns => "nft, learning",
        }
    }

    const fn cgroup(self) -> &'static str {
        match self {
            Self::Egress => "judged/client",
            Self::EgressOfPod => POD_CGROUP,
            Self::Empty => "empty",
            Self::EmptyDenies => "denies",
            Self::None | Self::NftSet | Self::NftTracked | Self::NftLearns => "plain",
        }
    }

    const fn rules(self) -> Rules {
        match self {
            Self::NftSet => Rules::Set,
            Self::NftTracked => Rules::Tracked,
            Self::NftLearns => Rules::EmptySet,
            Self::Egress | Self::EgressOfPod | Self::None | Self::Empty | Self::EmptyDenies => {
                Rules::None
            }
        }
    }

    const fn role(self) -> Role {
        if matches!(self, Self::EgressOfPod) {
            Role::Pod
        } else {
            Role::Node
        }
    }

    /// Our programs judge.
    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Egress | Self::EgressOfPod)
    }
}

const POD_CGROUP: &str = "judged/pod";

/// The world with servers, agent and peers. Fields drop in order.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) agent: Agent,
    pub(crate) empty: Idle,
    _denies: Idle,
    nft: Nft,
    _servers: Vec<Running>,
    pub(crate) world: World,
}

impl Scene {
    /// Builds everything and teaches the addresses that the series need.
    ///
    /// # Errors
    ///
    /// Something cannot be made.
    pub(crate) fn new() -> Result<Self> {
        Self::of_client(Judge::Egress)
    }

    /// The same with a pod, which is a scope of its own and whose interface is judged.
    ///
    /// # Errors
    ///
    /// Something cannot be made.
    pub(crate) fn of_pod() -> Result<Self> {
        Self::of_client(Judge::EgressOfPod)
    }

    fn of_client(client: Judge) -> Result<Self> {
        let has_pod = client == Judge::EgressOfPod;
        let world = World::builder();
        let world = if has_pod { world.pod() } else { world }.try_build()?;
        let root = root_of(&world)?;
        for judge in [Judge::Empty, Judge::EmptyDenies, Judge::None] {
            fs::create_dir_all(root.join(judge.cgroup())).context("cannot make a cgroup")?;
        }
        wire_sink(&world)?;
        let mut servers = Vec::new();
        for (role, args) in [
            (Role::Web, &["serve"][..]),
            (Role::Dns, &["dns-server", "--listen", "10.77.0.54:53"][..]),
        ] {
            servers.push(start(&world, role, args)?);
        }
        let empty = Idle::attach(&root.join(Judge::Empty.cgroup()), 1)?;
        let denies = Idle::attach(&root.join(Judge::EmptyDenies.cgroup()), 0)?;
        let policy = expect::policy(&format!(
            "mode: enforce\nallow:\n  - names: [\"*.{}\"]\n",
            wire::ZONE
        ));
        let mut agent = world
            .agent(&policy)
            .resolver(zone::SERVER)
            .cpu(place::AGENT_CPU);
        fs::create_dir_all(root.join(client.cgroup())).context("cannot make a cgroup")?;
        if has_pod {
            agent = agent.scope("pod", &root.join(POD_CGROUP));
            agent = agent.arg("--pod-interfaces").arg("auto");
        }
        let agent = agent.try_start()?;
        let nft = Nft::new(world.dir());
        let mut scene = Self {
            agent,
            empty,
            _denies: denies,
            nft,
            _servers: servers,
            world,
        };
        for (label, count) in [("s", SINK_COUNT), ("r", 64)] {
            let count = count.to_string();
            let args = ["lookups", SERVER, label, "0", &count];
            scene.client(client, &args)?;
        }
        Ok(scene)
    }

    /// Runs a client where this one judges it.
    ///
    /// # Errors
    ///
    /// It fails.
    pub(crate) fn client(&mut self, judge: Judge, args: &[&str]) -> Result<Sample> {
        self.nft
            .load(self.world.namespace(Role::Node), judge.rules())?;
        let place = self
            .world
            .place(judge.role(), root_of(&self.world)?.join(judge.cgroup()));
        client_at(&place, args)
    }

    /// Empties the set of learned addresses, and loads its rules.
    ///
    /// # Errors
    ///
    /// nft refuses.
    pub(crate) fn forget(&mut self) -> Result<()> {
        let node = self.world.namespace(Role::Node);
        self.nft.load_anew(node, Rules::EmptySet)
    }

    /// Takes all nftables rules away.
    ///
    /// # Errors
    ///
    /// nft refuses.
    pub(crate) fn no_rules(&mut self) -> Result<()> {
        self.nft.load(self.world.namespace(Role::Node), Rules::None)
    }

    /// How many addresses the set holds.
    ///
    /// # Errors
    ///
    /// nft refuses.
    pub(crate) fn in_set(&self) -> Result<u64> {
        nft::in_set(self.world.namespace(Role::Node))
    }

    /// Starts one of our servers.
    ///
    /// # Errors
    ///
    /// It does not become ready.
    pub(crate) fn start(&self, role: Role, args: &[&str]) -> Result<Running> {
        start(&self.world, role, args)
    }
}

/// The DNS server of the bench.
pub(crate) const SERVER: &str = "10.77.0.54:53";

/// Runs a client somewhere.
///
/// # Errors
///
/// It fails.
pub(crate) fn client_at(place: &Place, args: &[&str]) -> Result<Sample> {
    let mut command = place.command(own()?);
    command.arg("client").args(args);
    let output = process::run(&mut command, LIMIT)?;
    serde_json::from_str(&output.stdout)
        .with_context(|| format!("client {} failed: {}", args.join(" "), output.shown()))
}

fn own() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find ourselves")
}

/// The cgroup that everything of a world is below.
fn root_of(world: &World) -> Result<PathBuf> {
    let judged = world.judged();
    let root = judged.parent().context("the cgroup has no parent")?;
    Ok(root.to_path_buf())
}

/// Starts one of our servers outside of what is judged.
///
/// # Errors
///
/// It does not become ready.
pub(crate) fn start(world: &World, role: Role, args: &[&str]) -> Result<Running> {
    let mut command: Command = world.helper(role, own()?)?;
    command.args(args);
    let errors = world.dir().join(format!("{}.err", args[0]));
    let mut running = Running::start(&mut command, &errors)?;
    running.wait_for_line(0, Duration::from_secs(5), |line| line == "ready")?;
    Ok(running)
}

/// Joins node and web by a second veth pair whose peer drops all that it gets, and routes wide ranges.
fn wire_sink(world: &World) -> Result<()> {
    let (node, web) = (world.namespace(Role::Node), world.namespace(Role::Web));
    web.ip(&format!(
        "link add sink0 type veth peer name sink0 netns {}\nlink set sink0 up\n\
         address add 10.76.0.2/24 dev sink0\n\
         route add local 10.64.0.0/15 dev lo\nroute add local 10.128.0.0/9 dev lo\n",
        node.name()
    ))?;
    node.ip(&format!(
        "link set sink0 up\naddress add 10.76.0.1/24 dev sink0\n\
         route add 10.64.0.0/15 via 10.76.0.2\nroute add 10.128.0.0/9 via {}\n",
        zone::WEB[0]
    ))?;
    nft::sink(web, world.dir())
}
