//! Service tags in rules, and files of them that change.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use egress_tests::{
    Agent, World, eventually,
    expect::{counted, policy, reached, refused},
    ready,
    service_tags::{Form, TagFile},
};

/// Writes a file as a whole: by rename, as a download should.
fn publish(path: &Path, file: &TagFile, form: Form) {
    let next = path.with_extension("tmp");
    fs::write(&next, file.json(form)).unwrap();
    fs::rename(&next, path).unwrap();
}

/// Runs a change and waits until it is in force.
#[track_caller]
fn taken_up(agent: &Agent, change: impl FnOnce()) {
    let before = agent.status().policy.generation;
    change();
    let switched = eventually(Duration::from_secs(5), || {
        agent.status().policy.generation > before
    });
    assert!(switched, "{:?}", agent.status().policy);
}

/// Runs a change and waits until it is refused.
#[track_caller]
fn turned_down(agent: &Agent, change: impl FnOnce()) -> String {
    let before = agent.status().policy.generation;
    change();
    let mut error = None;
    eventually(Duration::from_secs(5), || {
        error = agent.status().policy.error;
        error.is_some()
    });
    assert_eq!(agent.status().policy.generation, before);
    error.expect("the change is refused")
}

#[test]
fn a_tag_opens_its_networks_on_its_ports_and_a_denied_one_closes_them() {
    if !ready() {
        return;
    }
    let world = World::new();
    let path = world.dir().join("tags.json");
    let file = TagFile::new(
        376,
        &[
            ("AzureCloud.westeurope", &["10.79.0.0/16", "fd79::/32"]),
            ("Storage.WestEurope", &["10.79.1.0/24", "fd79:0:1::/48"]),
            ("Sql", &["10.78.1.0/24"]),
        ],
    );
    publish(&path, &file, Form::Download);
    let agent = world
        .agent(&policy(
            "allow:\n\
             - { serviceTags: [AzureCloud.WESTEUROPE, Sql], ports: [\"80/tcp\", \"443/tcp\"] }\n\
             deny: [{ serviceTags: [storage.westeurope], ports: [\"443/tcp\"] }]",
        ))
        .arg("--service-tags")
        .arg(path.to_str().unwrap())
        .start();
    let client = world.workload("client");
    for (inside, outside) in [
        ("10.79.255.255", "10.78.255.255"),
        ("10.78.1.1", "10.78.2.1"),
        ("fd79::1", "fd78:ffff::1"),
    ] {
        let (attempt, moved) = agent.counted(|| client.connect(inside, 443));
        reached(&attempt);
        counted(&moved, "cidr_rule");
        refused(&client.connect(inside, 8080));
        let (attempt, moved) = agent.counted(|| client.connect(outside, 443));
        refused(&attempt);
        counted(&moved, "no_rule");
    }
    for denied in ["10.79.1.1", "fd79:0:1::1"] {
        reached(&client.connect(denied, 80));
        let (attempt, moved) = agent.counted(|| client.connect(denied, 443));
        refused(&attempt);
        counted(&moved, "denied_cidr");
    }
    // One rule for each tag, whatever it holds.
    let rules = agent.counters().by_rule;
    let of = |tag: &str| rules.iter().filter(|rule| rule.destination == tag).count();
    assert_eq!(
        (of("AzureCloud.WESTEUROPE"), of("storage.westeurope")),
        (1, 1)
    );

    let tags = agent.status().policy.service_tags.unwrap();
    assert_eq!(
        (tags.file.as_path(), tags.cloud.as_str()),
        (&*path, "Public")
    );
    assert_eq!(tags.change_number, "376");
    assert_eq!(
        (tags.tags, tags.ipv4_prefixes, tags.ipv6_prefixes),
        (3, 3, 2)
    );
    assert!(tags.age_s.unwrap() < 60, "{tags:?}");
}

#[test]
fn a_new_file_is_taken_up_and_a_bad_one_leaves_the_old_in_force() {
    if !ready() {
        return;
    }
    let world = World::new();
    let folder = world.dir().join("tags");
    fs::create_dir(&folder).unwrap();
    let file = |number, prefix| TagFile::new(number, &[("Storage", &[prefix])]);
    // As the kubelet lays out a volume: the name is a link through a link.
    let edition = |name: &str, file: &TagFile| {
        fs::create_dir(folder.join(name)).unwrap();
        publish(&folder.join(name).join("tags.json"), file, Form::Answer);
        symlink(name, folder.join("..next")).unwrap();
        fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
    };
    edition("..1", &file(1, "10.79.0.0/16"));
    symlink("..data/tags.json", folder.join("tags.json")).unwrap();
    let settings = world.dir().join("agent.yaml");
    fs::write(&settings, "serviceTags:\n  file: tags/tags.json\n").unwrap();

    let agent = world
        .agent(&policy("allow: [{ serviceTags: [Storage] }]"))
        .arg("--settings")
        .arg(settings.to_str().unwrap())
        .start();
    let client = world.workload("client");
    reached(&client.connect("10.79.0.1", 80));
    refused(&client.connect("10.78.0.1", 80));
    let mut cut = client.hold("10.79.99.1", 80);
    let mut kept = client.hold("10.79.1.1", 80);

    taken_up(&agent, || edition("..2", &file(2, "10.79.0.0/18")));
    refused(&client.connect("10.79.99.1", 80));
    reached(&client.connect("10.79.1.1", 80));
    assert!(cut.breaks(Duration::from_secs(4)), "{:?}", cut.lines());
    assert!(kept.is_alive(), "{:?}", kept.lines());

    let path = folder.join("..2/tags.json");
    let number = |agent: &Agent| agent.status().policy.service_tags.unwrap().change_number;
    for (text, message) in [
        (
            file(3, "10.78.0.0/16")
                .json(Form::Answer)
                .replace("Storage", "Sql"),
            "\"Storage\" is not a service tag",
        ),
        (
            file(3, "10.78.0.0/33").json(Form::Download),
            "\"10.78.0.0/33\", which is no CIDR",
        ),
        (
            file(3, "10.78.0.0/16").json(Form::Download)[..60].to_owned(),
            "is not a file of service tags",
        ),
    ] {
        let error = turned_down(&agent, || fs::write(&path, text).unwrap());
        assert!(
            error.contains("tags.json") && error.contains(message),
            "{error}"
        );
        assert_eq!(number(&agent), "2");
        reached(&client.connect("10.79.1.1", 80));
        refused(&client.connect("10.78.0.1", 80));
        // Set right again, it is taken up, and the next one is new to the agent.
        taken_up(&agent, || {
            publish(&path, &file(2, "10.79.0.0/18"), Form::Answer)
        });
        assert_eq!(agent.status().policy.error, None);
    }
    taken_up(&agent, || {
        publish(&path, &file(4, "10.78.0.0/16"), Form::Download)
    });
    assert_eq!(number(&agent), "4");
    reached(&client.connect("10.78.0.1", 80));
    refused(&client.connect("10.79.1.1", 80));
}

#[test]
fn without_the_file_or_the_tag_the_agent_does_not_start() {
    if !ready() {
        return;
    }
    let world = World::new();
    let path = world.dir().join("tags.json");
    publish(
        &path,
        &TagFile::new(1, &[("Storage", &["10.79.0.0/16"])]),
        Form::Download,
    );
    let file = path.to_str().unwrap();
    for (tag, arguments, message) in [
        ("Storage", &[][..], "give one with --service-tags FILE"),
        ("Storrage", &["--service-tags", file], "write Storage"),
        (
            "Storage",
            &["--service-tags", "/nowhere.json"],
            "/nowhere.json: cannot be read",
        ),
        (
            "Storage",
            &["--settings", file],
            "tags.json:2: changeNumber: unknown field",
        ),
    ] {
        let mut agent = world.agent(&policy(&format!("allow: [{{ serviceTags: [{tag}] }}]")));
        for argument in arguments {
            agent = agent.arg(*argument);
        }
        let output = agent.run_to_end();
        assert_eq!(output.code(), Some(2), "{}", output.shown());
        assert!(output.shown().contains(message), "{}", output.shown());
    }
}
