//! The flow log has what was denied and allowed, in the form of its schema, and stays below its size.

use std::{fs, path::Path, time::Duration};

use egress_tests::{
    World, eventually,
    expect::{policy, reached, refused},
    ready, zone,
};
use serde_json::Value;

const ALLOW: &str = "allow: [{ names: [api.example.com] }]";

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn find<'a>(lines: &'a [Value], verdict: &str, destination: &str) -> Option<&'a Value> {
    lines.iter().find(|line| {
        line["egress.verdict"] == verdict && line["destination.address"] == destination
    })
}

/// Every field of the line is in the schema, and every field that has to be there is.
#[track_caller]
fn fits(line: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/flow-log.schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let fields = line.as_object().unwrap();
    for (name, value) in fields {
        let types = &schema["properties"][name]["type"];
        let is_of = |wanted: &Value| match wanted.as_str() {
            Some("string") => value.is_string(),
            Some("integer") => value.is_u64(),
            Some("array") => value.is_array(),
            _ => false,
        };
        let fits = match types.as_array() {
            Some(types) => types.iter().any(is_of),
            None => is_of(types),
        };
        assert!(fits, "{name}: {value} is not {types}");
    }
    for name in schema["required"].as_array().unwrap() {
        assert!(
            fields.contains_key(name.as_str().unwrap()),
            "{name}: {line}"
        );
    }
}

#[test]
fn denials_and_allowed_flows_are_lines_of_the_schema() {
    if !ready() {
        return;
    }
    let world = World::new();
    let log = world.dir().join("flows.json");
    let options = world.agent(&policy(ALLOW));
    let agent = options
        .arg("--flow-log")
        .arg(log.display().to_string())
        .arg("--flow-log-filter")
        .arg("all")
        .start();
    let client = world.workload("client");
    let (api, forbidden) = (
        zone::address("api.example.com", false),
        zone::address("forbidden.example.org", false),
    );
    client.resolve("api.example.com", false);
    reached(&client.connect(api, 80));
    client.resolve("forbidden.example.org", false);
    refused(&client.connect(forbidden, 443));
    let (api, forbidden) = (api.to_string(), forbidden.to_string());
    assert!(
        eventually(Duration::from_secs(10), || {
            let lines = lines(&log);
            find(&lines, "denied", &forbidden).is_some() && find(&lines, "allowed", &api).is_some()
        }),
        "{:?}",
        lines(&log)
    );
    let lines = lines(&log);
    for line in &lines {
        fits(line);
    }
    let denied = find(&lines, "denied", &forbidden).unwrap();
    assert_eq!(denied["egress.reason"], "no_rule", "{denied}");
    assert_eq!(denied["destination.port"], 443, "{denied}");
    assert_eq!(denied["network.transport"], "tcp", "{denied}");
    assert_eq!(
        denied["egress.names"][0], "forbidden.example.org",
        "{denied}"
    );
    assert_eq!(denied["egress.scope"], "node", "{denied}");
    let allowed = find(&lines, "allowed", &api).unwrap();
    assert_eq!(allowed["egress.names"][0], "api.example.com", "{allowed}");
    assert_eq!(allowed["egress.reason"], "name_rule", "{allowed}");
    // The usual filter has denials alone.
    drop(agent);
    let log = world.dir().join("denied.json");
    let options = world.agent(&policy(ALLOW));
    let _agent = options
        .arg("--flow-log")
        .arg(log.display().to_string())
        .start();
    client.resolve("api.example.com", false);
    reached(&client.connect(zone::address("api.example.com", false), 80));
    refused(&client.connect("10.78.9.9", 443));
    assert!(eventually(Duration::from_secs(10), || {
        find(&self::lines(&log), "denied", "10.78.9.9").is_some()
    }));
    assert!(
        self::lines(&log)
            .iter()
            .all(|line| line["egress.verdict"] == "denied")
    );
}

#[test]
fn a_log_that_cannot_be_written_is_refused_or_counted_and_never_waited_for() {
    if !ready() {
        return;
    }
    let world = World::new();
    let folder = world.dir().join("there-is-no-such-folder/flows.json");
    let error = world
        .agent(&policy(ALLOW))
        .arg("--flow-log")
        .arg(folder.display().to_string())
        .try_start()
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    assert!(
        error.contains("--flow-log") && error.contains("flows.json"),
        "{error}"
    );

    // A device that is always full.
    let agent = world
        .agent(&policy(ALLOW))
        .arg("--flow-log")
        .arg("/dev/full")
        .start();
    let client = world.workload("client");
    refused(&client.connect("10.78.9.9", 443));
    assert!(eventually(Duration::from_secs(10), || {
        let status = agent.cli(&["status", "-o", "json"]).unwrap();
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        let alarms = status["alarms"].to_string();
        alarms.contains("lines of the flow log were dropped")
    }));
    client.resolve("api.example.com", false);
    reached(&client.connect(zone::address("api.example.com", false), 80));
}
