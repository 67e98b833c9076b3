//! Policies that change while the agent runs.

use std::{fs, os::unix::fs::symlink, path::Path, thread, time::Duration};

use egress_tests::{
    World, eventually,
    expect::{policy, reached, refused},
    ready, zone,
};

#[test]
fn a_changed_policy_is_switched_to_and_learned_addresses_stay() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    let (api, new) = (
        zone::address("api.example.com", false),
        zone::address("reload.example.com", false),
    );
    client.resolve("api.example.com", false);
    client.resolve("reload.example.com", false);
    let mut flow = client.hold(api, 80);
    refused(&client.connect(new, 80));

    agent.reload(&policy(
        "allow: [{ names: [api.example.com, reload.example.com] }]",
    ));
    assert!(flow.is_alive(), "{:?}", flow.lines());
    reached(&client.connect(api, 80));
    client.resolve("reload.example.com", false);
    reached(&client.connect(new, 80));

    agent.reload(&policy("allow: [{ names: [reload.example.com] }]"));
    refused(&client.connect(api, 80));
    reached(&client.connect(new, 80));
    assert!(
        flow.breaks(Duration::from_secs(4)),
        "the rule that it rested on is gone: {:?}",
        flow.lines()
    );
}

#[test]
fn a_change_that_has_nothing_to_do_with_a_flow_leaves_it_alone() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 0s, max: 1h }\nallow: [{ names: [short.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    client.resolve("short.example.com", false);
    let mut tcp = client.hold(zone::address("short.example.com", false), 80);
    let address = zone::address("short.example.com", false).to_string();
    let mut udp = client.hold_with(&[&address, "443", "--udp"]);
    // Its address has expired by then: its rule alone grants the flow.
    thread::sleep(Duration::from_millis(1500));
    agent.reload(&policy(
        "ttl: { min: 1s, grace: 0s, max: 1h }\nallow: [{ names: [short.example.com] }, { cidrs: [10.79.0.0/16] }]",
    ));
    reached(&client.connect("10.79.0.1", 80));
    assert!(tcp.is_alive(), "{:?}", tcp.lines());
    assert!(udp.is_alive(), "{:?}", udp.lines());
    agent.reload(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"));
    assert!(tcp.breaks(Duration::from_secs(4)), "{:?}", tcp.lines());
}

#[test]
fn a_new_deny_rule_cuts_flows_and_denies_new_ones() {
    if !ready() {
        return;
    }
    let world = World::new();
    let allow = "allow: [{ cidrs: [10.79.0.0/16] }]";
    let agent = world.agent(&policy(allow)).start();
    let client = world.workload("client");
    let mut cut = client.hold("10.79.99.1", 80);
    let mut kept = client.hold("10.79.1.1", 80);
    agent.reload(&policy(&format!(
        "{allow}\ndeny: [{{ cidrs: [10.79.99.0/24] }}]"
    )));
    refused(&client.connect("10.79.99.1", 80));
    assert!(cut.breaks(Duration::from_secs(4)), "{:?}", cut.lines());
    assert!(kept.is_alive(), "{:?}", kept.lines());
}

#[test]
fn a_bad_change_keeps_the_old_policy_and_shows_in_the_status() {
    if !ready() {
        return;
    }
    let world = World::new();
    let good = policy("allow: [{ cidrs: [10.79.0.0/16] }]");
    let agent = world.agent(&good).start();
    let client = world.workload("client");
    let generation = agent.status().policy.generation;
    let path = world.dir().join("policy.yaml");
    fs::write(
        &path,
        policy("allow: [{ cidrs: [10.78.0.0/16], prots: [any] }]"),
    )
    .unwrap();
    assert!(eventually(Duration::from_secs(5), || agent
        .status()
        .policy
        .error
        .is_some()));
    let error = agent.status().policy.error.unwrap();
    assert!(
        error.contains("policy.yaml") && error.contains("prots"),
        "{error}"
    );
    assert_eq!(agent.status().policy.generation, generation);
    reached(&client.connect("10.79.0.1", 80));
    refused(&client.connect("10.78.9.1", 80));
    // Corrected, it is taken up.
    fs::write(
        &path,
        policy("allow: [{ cidrs: [10.78.0.0/16], ports: [any] }]"),
    )
    .unwrap();
    assert!(eventually(Duration::from_secs(5), || agent
        .status()
        .policy
        .generation
        > generation));
    assert_eq!(agent.status().policy.error, None);
    reached(&client.connect("10.78.9.1", 80));
    refused(&client.connect("10.79.0.1", 80));
}

/// Writes a version as the kubelet does: a folder with a date in its name, and `..data` switched to it by rename.
fn publish(volume: &Path, version: &str, text: &str) {
    let folder = volume.join(version);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("node.yaml"), text).unwrap();
    let next = volume.join("..data_tmp");
    symlink(version, &next).unwrap();
    fs::rename(&next, volume.join("..data")).unwrap();
    let file = volume.join("node.yaml");
    if !file.is_symlink() {
        symlink("..data/node.yaml", file).unwrap();
    }
}

#[test]
fn a_config_map_volume_is_followed_through_its_symlinks() {
    if !ready() {
        return;
    }
    let world = World::new();
    let volume = world.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    publish(
        &volume,
        "..2026_01_01",
        &policy("allow: [{ cidrs: [10.79.1.0/24] }]"),
    );
    let agent = world.agent_from(&volume).start();
    let client = world.workload("client");
    for (version, allowed, denied) in [
        ("..2026_01_02", "10.79.2.0", "10.79.1.0"),
        ("..2026_01_03", "10.79.3.0", "10.79.2.0"),
    ] {
        reached(&client.connect(denied, 80));
        refused(&client.connect(allowed, 80));
        let generation = agent.status().policy.generation;
        publish(
            &volume,
            version,
            &policy(&format!("allow: [{{ cidrs: [{allowed}/24] }}]")),
        );
        assert!(
            eventually(Duration::from_secs(5), || agent.status().policy.generation
                > generation),
            "{:?}",
            agent.status().policy
        );
        reached(&client.connect(allowed, 80));
        refused(&client.connect(denied, 80));
    }
}

#[test]
fn presets_of_a_folder_are_followed_and_named_by_their_rules() {
    if !ready() {
        return;
    }
    let world = World::new();
    let folder = world.dir().join("presets");
    let file = folder.join("team/shop.yaml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let preset = |names: &str| {
        format!(
            "description: The shop\nvariables:\n  label: {{ type: label, description: Its name }}\n\
             rules:\n  - {{ description: All, names: [{names}], ports: [80/tcp] }}\n"
        )
    };
    fs::write(&file, preset("\"<label>.example.com\"")).unwrap();
    let agent = world
        .agent(&policy(
            "allow: [{ preset: team/shop, with: { label: api } }]",
        ))
        .arg("--preset-dir")
        .arg(folder.to_str().unwrap())
        .start();
    let client = world.workload("client");
    let (api, other) = (
        zone::address("api.example.com", false),
        zone::address("reload.example.com", false),
    );
    let resolve = || {
        client.resolve("api.example.com", false);
        client.resolve("reload.example.com", false);
    };
    resolve();
    reached(&client.connect(api, 80));
    refused(&client.connect(other, 80));
    let counters = agent.counters();
    let mut rules = counters.by_rule.iter();
    let rule = rules.find(|rule| rule.rule.contains(" team/shop: api.example.com "));
    assert!(rule.is_some_and(|rule| rule.allowed > 0), "{counters:?}");

    let generation = agent.status().policy.generation;
    fs::write(&file, "rules: [{ names: [a..b] }]\n").unwrap();
    let has_error = || agent.status().policy.error.is_some();
    assert!(eventually(Duration::from_secs(5), has_error));
    let error = agent.status().policy.error.unwrap();
    assert!(
        error.contains("team/shop.yaml:1: rules[0].names[0]"),
        "{error}"
    );
    assert_eq!(agent.status().policy.generation, generation);
    reached(&client.connect(api, 80));
    refused(&client.connect(other, 80));

    fs::write(&file, preset("\"<label>.example.com\", reload.example.com")).unwrap();
    let is_newer = || agent.status().policy.generation > generation;
    assert!(eventually(Duration::from_secs(5), is_newer));
    resolve();
    reached(&client.connect(other, 80));
    reached(&client.connect(api, 80));
}
