//! docs/replacing-an-azure-firewall.md: its commands, as they stand there and in that order, with real clients.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use egress_tests::{
    Agent, Workload, World,
    agent::AgentOptions,
    eventually,
    process::{self, Output},
    programs, ready,
};

const GUIDE: &str = include_str!("../../../docs/replacing-an-azure-firewall.md");
/// Longest time until something is known or in force.
const LIMIT: Duration = Duration::from_secs(10);
/// A URL that nobody may reach, and an address that a client has from somewhere else.
const FORBIDDEN: &str = "http://forbidden.example.org:443/";
const BARE: &str = "http://10.78.9.2:443/";

/// Two rules of a firewall: one for the application, one for what the preset covers.
const GROUPS: &str = r#"[{
  "id": "/subscriptions/0/resourceGroups/RG/providers/Microsoft.Network/firewallPolicies/FW/ruleCollectionGroups/apps",
  "name": "apps",
  "priority": 300,
  "ruleCollections": [{
    "action": { "type": "Allow" },
    "name": "out",
    "priority": 100,
    "ruleCollectionType": "FirewallPolicyFilterRuleCollection",
    "rules": [
      {
        "name": "shop",
        "ruleType": "ApplicationRule",
        "protocols": [{ "protocolType": "Http", "port": 80 }],
        "sourceIpGroups": ["/subscriptions/0/resourceGroups/RG/providers/Microsoft.Network/ipGroups/nodes"],
        "targetFqdns": ["api.example.com"]
      },
      {
        "name": "cluster",
        "ruleType": "ApplicationRule",
        "protocols": [{ "protocolType": "Https", "port": 443 }],
        "sourceAddresses": ["*"],
        "fqdnTags": ["AzureKubernetesService"]
      }
    ]
  }]
}]"#;

const IP_GROUPS: &str = r#"[{
  "id": "/subscriptions/0/resourceGroups/RG/providers/Microsoft.Network/ipGroups/nodes",
  "name": "nodes",
  "type": "Microsoft.Network/ipGroups",
  "ipAddresses": ["10.77.0.0/24"]
}]"#;

const EXPECTATIONS: &str = "policies: [new-policies]
expect:
  - { to: [mcr.microsoft.com, \"api.example.com:80\", other.example.com], verdict: allowed }
  - { to: [forbidden.example.org, \"10.78.9.2:443\"], verdict: denied }
";

/// The guide, command by command, in a folder of its own.
struct Guide {
    folder: PathBuf,
    socket: PathBuf,
    commands: std::vec::IntoIter<&'static str>,
}

impl Guide {
    fn open(folder: PathBuf, socket: PathBuf) -> Self {
        let programs = folder.join("bin");
        fs::create_dir_all(&programs).unwrap();
        symlink(programs::agent(), programs.join("egress-agent")).unwrap();
        let blocks = GUIDE.split("```sh\n").skip(1);
        let commands = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
        // `az` is not asked: what it would print is written.
        let commands = commands.filter(|line| !line.starts_with('#') && !line.starts_with("az "));
        let commands: Vec<_> = commands.collect();
        Self {
            folder,
            socket,
            commands: commands.into_iter(),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The next command, which has to be this one.
    fn next(&mut self, command: &str) -> &'static str {
        let line = self.commands.next();
        let line = line.unwrap_or_else(|| panic!("the guide ends before {command}"));
        let is_it = line.starts_with(&format!("egress-agent {command}"));
        assert!(is_it, "the guide has {line}, not {command}");
        line
    }

    /// Runs the next command as a shell does.
    fn run(&mut self, command: &str) -> Output {
        let line = self.next(command);
        let mut shell = Command::new("/bin/sh");
        let path = format!("{}:/usr/bin:/bin", self.at("bin").display());
        shell.args(["-c", line]).current_dir(&self.folder);
        shell.env("PATH", path).env("EGRESS_SOCKET", &self.socket);
        process::run(&mut shell, LIMIT).unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    /// As [`Guide::run`]; it has to end well.
    fn done(&mut self, command: &str) -> Output {
        let output = self.run(command);
        assert_eq!(output.code(), Some(0), "{command}: {}", output.shown());
        output
    }

    /// The next command, which starts an agent.
    fn agent(&mut self, world: &World) -> AgentOptions {
        let line = self.next("run --policy ");
        let mut words = line.split(' ').skip(3);
        let options = world.agent_from(&self.at(words.next().unwrap()));
        words.fold(options, |options, word| options.arg(word))
    }

    /// The YAML of the guide.
    fn policy() -> &'static str {
        let (_, text) = GUIDE.split_once("```yaml\n").unwrap();
        text.split("```").next().unwrap()
    }
}

fn curl(client: &Workload, url: &str) -> bool {
    let output = client.run_with_resolver("curl", &["-4", "-sS", "-m", "5", url]);
    output.code() == Some(0)
}

/// Everyday calls of the cluster and its application.
fn everyday(client: &Workload) {
    for url in [
        "http://mcr.microsoft.com:443/",
        "http://eastus.data.mcr.microsoft.com:443/",
        "http://shop-1.hcp.eastus.azmk8s.io:443/",
        "http://other.example.com:443/",
    ] {
        assert!(curl(client, url), "{url}");
    }
    let args = [
        "-4",
        "-q",
        "-T",
        "5",
        "-t",
        "1",
        "-O",
        "-",
        "http://api.example.com/",
    ];
    let output = client.run_with_resolver("wget", &args);
    assert_eq!(output.code(), Some(0), "{}", output.shown());
}

/// Calls that the policies deny.
fn nothing_else(client: &Workload) {
    for url in [
        FORBIDDEN,
        BARE,
        "http://shop-1.hcp.westus.azmk8s.io:443/",
        "http://mcr.microsoft.com/",
    ] {
        assert!(!curl(client, url), "{url}");
    }
}

fn mode(agent: &Agent) -> String {
    agent.status().mode
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn the_guide_leads_from_a_firewall_to_an_agent_that_enforces() {
    if !ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    let socket = world.dir().join("agent.sock");
    let mut guide = Guide::open(world.dir().join("guide"), socket);

    // 1. Bring what you have.
    guide.write("groups.json", GROUPS);
    guide.write("ip-groups.json", IP_GROUPS);
    let imported = guide.done("policy import ");
    let firewall = guide.read("firewall.yaml");
    let missing = "the FQDN tag AzureKubernetesService: write preset: aks/azure-global";
    for list in [&imported.stderr, &firewall] {
        assert!(list.contains(missing), "{list}");
    }
    assert!(firewall.contains("names: [api.example.com]"), "{firewall}");

    // 2. Let a preset say what the cluster needs.
    guide.write("policies/aks.yaml", Guide::policy());
    let audited = firewall.replace("mode: enforce", "mode: audit");
    guide.write("policies/firewall.yaml", &audited);
    guide.done("policy check ");

    // 3. Audit, and learn.
    let mut agent = guide.agent(&world).start();
    assert_eq!(mode(&agent), "audit");
    everyday(&client);
    assert!(curl(&client, BARE));
    let is_seen = || {
        let seen = agent.observations();
        let has = |name: &str| seen.iter().any(|one| one.name.as_deref() == Some(name));
        has("other.example.com") && seen.iter().any(|one| one.name.is_none())
    };
    assert!(eventually(LIMIT, is_seen), "{:?}", agent.observations());
    let flows = guide.done("flows --denied").stdout;
    for seen in ["other.example.com", "10.78.9.2"] {
        assert!(flows.contains(seen), "no {seen} in\n{flows}");
    }
    for allowed in ["mcr.microsoft.com", "azmk8s.io", "api.example.com"] {
        assert!(!flows.contains(allowed), "{allowed} in\n{flows}");
    }
    guide.done("policy learn ");
    let learned = guide.read("learned.yaml");
    let rules: Vec<_> = learned
        .lines()
        .filter(|line| line.starts_with("    - "))
        .collect();
    assert_eq!(rules, ["    - names: [other.example.com]"], "{learned}");
    assert!(
        learned.contains("    # - cidrs: [10.78.9.2/32]\n"),
        "{learned}"
    );
    let explained = agent.explain("10.78.9.2:443", None);
    assert_eq!(explained.causes[0].cause, "no_name", "{explained:?}");

    // 4. Look at the difference, and test it.
    copy(&guide.at("policies"), &guide.at("new-policies"));
    guide.write("new-policies/learned.yaml", &learned);
    guide.write("expect.yaml", EXPECTATIONS);
    let diff = guide.run("policy diff ");
    assert_eq!(diff.code(), Some(1), "{}", diff.shown());
    assert!(
        diff.stdout.contains("other.example.com"),
        "{}",
        diff.shown()
    );
    let diff = guide.run("policy diff ");
    assert_eq!(diff.code(), Some(1), "{}", diff.shown());
    assert!(
        diff.stdout.contains("other.example.com 10.78.1.2 443/tcp"),
        "{}",
        diff.shown()
    );
    assert!(
        diff.stderr.contains("1 of 6 flows would change"),
        "{}",
        diff.shown()
    );
    guide.done("policy test ");

    // 5. Enforce.
    agent.stop();
    let mut agent = guide.agent(&world).start();
    assert_eq!(mode(&agent), "enforce");
    assert_eq!(agent.status().confirmation.unwrap().state, "awaited");
    everyday(&client);
    nothing_else(&client);
    guide.done("confirm");
    assert_eq!(agent.status().confirmation.unwrap().state, "confirmed");
    assert_eq!(guide.commands.next(), None);

    // As always: without a flag, and `mode: enforce` in the policies.
    agent.stop();
    let set_mode = |from: &str, to: &str| {
        for file in ["aks.yaml", "firewall.yaml", "learned.yaml"] {
            let path = format!("new-policies/{file}");
            guide.write(&path, &guide.read(&path).replace(from, to));
        }
    };
    set_mode("mode: audit", "mode: enforce");
    let mut agent = world.agent_from(&guide.at("new-policies")).start();
    assert_eq!(mode(&agent), "enforce");
    everyday(&client);
    nothing_else(&client);

    // Rollback: audit while running; stopped, the kernel goes on; unloaded, nothing is left.
    set_mode("mode: enforce", "mode: audit");
    let is_audit = || mode(&agent) == "audit";
    assert!(eventually(LIMIT, is_audit), "{:?}", agent.status());
    assert!(curl(&client, FORBIDDEN));
    set_mode("mode: audit", "mode: enforce");
    let is_enforce = || mode(&agent) == "enforce";
    assert!(eventually(LIMIT, is_enforce), "{:?}", agent.status());
    agent.stop();
    nothing_else(&client);
    agent.unload().unwrap();
    assert!(curl(&client, FORBIDDEN));
}
