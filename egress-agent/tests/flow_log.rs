//! docs/flow-log.schema.json is made from the type. `EGRESS_BLESS=1` writes it.

#![allow(clippy::unwrap_used, reason = "tests panic")]

use std::{fs, path::Path};

use egress_agent::flow_log::FlowRecord;

#[test]
fn the_schema_of_the_flow_log_is_what_the_type_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/flow-log.schema.json");
    let schema = schemars::schema_for!(FlowRecord);
    let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    if std::env::var_os("EGRESS_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "{} is stale: `cargo xtask docs` makes it anew",
        path.display()
    );
}
