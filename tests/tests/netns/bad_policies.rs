//! Bad input of every kind, one after another, for an agent that enforces: one message each, and nothing changes.

use std::{
    fmt::Write as _,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use egress_tests::{
    Agent, World, eventually,
    expect::{policy, reached, refused},
    ready,
};

/// Longest time until a change is taken up or refused: a debug build reads the largest policy in several seconds.
const LIMIT: Duration = Duration::from_secs(90);
/// The policy that most bad versions spoil.
const NODE: &str = "policies/node.yaml";
/// Its rules in a good version.
const GOOD: &str = "allow: [{ names: [api.example.com], ports: [80/tcp] }]";

/// Versions of everything that the agent reads, switched as the kubelet does: by one rename.
struct Inputs {
    root: PathBuf,
    versions: usize,
}

impl Inputs {
    fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).unwrap();
        Self { root, versions: 0 }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join("now").join(path)
    }

    /// Publishes a good version with what `change` does to its folder.
    fn publish(&mut self, change: impl FnOnce(&Path)) {
        self.versions += 1;
        let version = format!("version{}", self.versions);
        let folder = self.root.join(&version);
        for part in ["policies", "more", "presets"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let preset = "description: Own\nrules:\n  - { description: All, names: [own.example.com], ports: [80/tcp] }\n";
        for (file, text) in [
            (NODE, policy(GOOD)),
            ("more/other.yaml", named("other", "allow: []")),
            ("presets/own.yaml", preset.to_owned()),
        ] {
            fs::write(folder.join(file), text).unwrap();
        }
        change(&folder);
        let next = self.root.join("next");
        symlink(version, &next).unwrap();
        fs::rename(next, self.root.join("now")).unwrap();
    }
}

/// A policy of this name.
fn named(name: &str, spec: &str) -> String {
    policy(spec).replace("name: test", &format!("name: {name}"))
}

/// A list of anchors, each of which repeats the one before it ten times.
fn laughs() -> String {
    let mut spec = String::from("x0: &x0 [lol]\n");
    for level in 1..10 {
        let before = vec![format!("*x{}", level - 1); 10].join(", ");
        writeln!(spec, "x{level}: &x{level} [{before}]").unwrap();
    }
    spec
}

/// As many rules; more names than the kernel's table holds twice.
fn many_rules(rules: usize) -> String {
    let mut spec = String::from("allow:\n");
    for rule in 0..rules {
        writeln!(spec, "- names: [a{rule}.example.com, b{rule}.example.com]").unwrap();
    }
    spec
}

/// A name of this many bytes.
fn long_name(bytes: usize) -> String {
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.");
    format!("{name}{}", "b".repeat(bytes - name.len()))
}

/// A kind of bad input: a change of a good version, and the agent's error. `F` stands for the folder.
struct Bad {
    change: Box<dyn Fn(&Path)>,
    says: String,
}

/// A file with this text, and the agent's error behind its name.
fn bad(file: &'static str, text: impl Into<Vec<u8>>, says: &str) -> Bad {
    let text = text.into();
    Bad {
        change: Box::new(move |folder| fs::write(folder.join(file), &text).unwrap()),
        says: format!("F/{file}{says}"),
    }
}

/// A file with this `spec`.
fn bad_spec(spec: &str, says: &str) -> Bad {
    bad(NODE, policy(spec), says)
}

/// A value that is all of a field of the only rule.
fn bad_value(field: &str, value: &str, says: &str) -> Bad {
    let names = if field == "ports" {
        "names: [api.example.com], "
    } else {
        ""
    };
    bad_spec(
        &format!("allow:\n- {{ {names}{field}: [{value}] }}"),
        &format!(":6: spec.allow[0].{field}[0]: {says}"),
    )
}

fn all_bad() -> Vec<Bad> {
    let large = Bad {
        change: Box::new(|folder| {
            let file = File::options().append(true).open(folder.join(NODE));
            file.unwrap().set_len(100_000_000).unwrap();
        }),
        says: format!(
            "F/{NODE}: goes beyond the 32 MiB that may be read; leave out what is not needed"
        ),
    };
    let repeats = "anchors and aliases repeat more than 100000 values, or an alias itself; write the values out";
    let include_of_itself = "description: Own\ninclude:\n- description: The same\n  preset: own\n";
    let no_port = |port: u32| {
        format!(
            "\"{port}/tcp\" is not a port: port {port} does not exist: ports are 1 to 65535; \
             write 443/tcp, 8000-8080/udp, any/tcp, icmp or any"
        )
    };
    let long = long_name(254);
    vec![
        large,
        bad_spec(&laughs(), &format!(":10: {repeats}")),
        bad_spec("allow: &all [*all]", &format!(":5: {repeats}")),
        bad_spec(
            &format!("allow: {}", "[".repeat(100_000)),
            ":5: is nested more than 32 levels deep; a policy has at most 6",
        ),
        bad_spec(
            &many_rules(100_000),
            ": this and the policies with it have 200000 different names, but 131072 is the most that can be in force; \
             use wider ones",
        ),
        bad(
            "presets/own.yaml",
            include_of_itself,
            ":4: include[0].preset: includes itself: own > own; take one of these includes out",
        ),
        bad_value(
            "cidrs",
            "10.78.0.1/16",
            "\"10.78.0.1/16\" has host bits set; write 10.78.0.0/16 for the network or 10.78.0.1/32 for the one address",
        ),
        bad_value(
            "cidrs",
            "\"fd78::1/32\"",
            "\"fd78::1/32\" has host bits set; write fd78::/32 for the network or fd78::1/128 for the one address",
        ),
        bad_value("ports", "0/tcp", &no_port(0)),
        bad_value("ports", "65536/tcp", &no_port(65536)),
        bad_value(
            "names",
            "\u{378}.example.com",
            "\"\\u{378}.example.com\" is not a name: it is no valid international name; \
             write its A-label form, such as xn--bcher-kva.example",
        ),
        bad_value(
            "names",
            "\"b\u{fc}*.example.com\"",
            "\"b\u{fc}*.example.com\" is not a name: the label with * has other than ASCII letters, and its A-label form \
             cannot be told; write one * as \"*.example.com\" for all names below, or in the first label as \
             \"md-*.example.com\"",
        ),
        bad_value(
            "names",
            "10.78.9.1",
            "\"10.78.9.1\" is not a name: it is an address; write cidrs: [\"10.78.9.1/32\"]",
        ),
        bad_value(
            "names",
            "\"fd78::9:1\"",
            "\"fd78::9:1\" is not a name: it is an address; write cidrs: [\"fd78::9:1/128\"]",
        ),
        bad_value(
            "names",
            &long,
            &format!(
                "\"{}...\" is not a name: it has 254 bytes; write at most 253 bytes, which is the longest name in DNS",
                &long[..80]
            ),
        ),
        bad_spec(
            "allow:\n\
             - { names: [\"*.example.com\"], ports: [1/tcp, 3/tcp, 5/tcp, 7/tcp, 9/tcp, 11/tcp, 13/tcp, 15/tcp] }\n\
             - { names: [api.example.com], ports: [80/tcp] }",
            ":7: spec.allow[1].names[0]: 9 different port ranges meet at api.example.com, but a name can have 8: \
             F/policies/node.yaml:7: spec.allow[1].names[0] (80/tcp), \
             F/policies/node.yaml:6: spec.allow[0].names[0] (1/tcp, 3/tcp, 5/tcp, 7/tcp, 9/tcp, 11/tcp, 13/tcp, 15/tcp); \
             join ranges, or use any/tcp",
        ),
        bad_spec(
            "allow:\n- names: [api.example.com]\n  names: [other.example.com]",
            ":7: spec.allow[0].names: stands here a second time, first in line 6; keep one of them",
        ),
        bad(
            NODE,
            format!("{0}---\n{0}", policy(GOOD)),
            ":7: metadata.name: policy \"test\" is already defined at F/policies/node.yaml:1; rename one of them",
        ),
        bad(
            "more/other.yaml",
            policy(GOOD),
            ":1: metadata.name: policy \"test\" is already defined at F/policies/node.yaml:1; rename one of them",
        ),
        bad(
            "more/node.yaml",
            named("third", GOOD),
            ": has the same file name as F/policies/node.yaml, and messages would not tell them apart; rename one of them",
        ),
    ]
}

/// Good values next to the bad ones.
fn good_spec() -> String {
    format!(
        "allow:\n\
         - {{ names: [other.example.com], ports: [80/tcp, 1/tcp, 65535/tcp] }}\n\
         - {{ names: [other.example.com, \"b\u{fc}cher.example.com\", \"{}\"], ports: [80/tcp] }}\n\
         - {{ cidrs: [10.79.0.0/16, 10.79.0.1], ports: &ports [80/tcp] }}\n\
         - {{ preset: own }}\n\
         - {{ names: [\"b*.example.com\"], ports: *ports }}",
        long_name(253)
    )
}

/// The messages of refused changes in the log, from this one on.
fn told(agent: &Agent, from: usize) -> Vec<String> {
    let log = agent.log();
    let refusals = log.lines().filter_map(|line| {
        let (_, message) = line.split_once(
            "policy change refused; the old policy stays, the new one is tried again error=",
        )?;
        Some(message.to_owned())
    });
    refusals.skip(from).collect()
}

#[test]
fn bad_input_of_every_kind_gets_one_message_and_changes_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut inputs = Inputs::new(world.dir().join("inputs"));
    inputs.publish(|_| ());
    let agent = world
        .agent_from(&inputs.at("policies"))
        .arg("--policy")
        .arg(inputs.at("more").display().to_string())
        .arg("--preset-dir")
        .arg(inputs.at("presets").display().to_string())
        .start();
    let client = world.workload("client");
    let attempts = |name: &str| {
        let address = client.resolve(name, false)[0];
        client.connect(address, 80)
    };
    let generation = agent.status().policy.generation;
    let root = inputs.at("").display().to_string();
    let root = root.trim_end_matches('/');
    for bad in all_bad() {
        let before = told(&agent, 0).len();
        inputs.publish(&bad.change);
        let is_told = || !told(&agent, before).is_empty();
        assert!(eventually(LIMIT, is_told), "nothing is said: {}", bad.says);
        reached(&attempts("api.example.com"));
        refused(&attempts("other.example.com"));
        let policy = agent.status().policy;
        assert_eq!(policy.error.unwrap().replace(root, "F"), bad.says);
        assert_eq!(policy.generation, generation, "{}", bad.says);
        // A look in the middle of the rename makes it read once more, and say the same.
        let mut told = told(&agent, before);
        told.dedup();
        assert_eq!(told.len(), 1, "{told:?}");
    }
    assert!(!agent.log().contains("panicked"), "{}", agent.log());

    inputs.publish(|folder| fs::write(folder.join(NODE), policy(&good_spec())).unwrap());
    let is_newer = || agent.status().policy.generation > generation;
    assert!(eventually(LIMIT, is_newer), "{:?}", agent.status().policy);
    assert_eq!(agent.status().policy.error, None);
    reached(&attempts("other.example.com"));
    refused(&attempts("api.example.com"));
}
