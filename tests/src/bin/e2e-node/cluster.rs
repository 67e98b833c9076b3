//! The checks of `run --kubernetes`: policies that are objects of the cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    checks::{self, ALLOWED, CLIENT, DENIED, SHOP},
    report::Report,
    rig::{Outcome, Rig, START, container},
    traffic,
};

/// A pod that the kubelet reports to the API server, and not the other way.
const STATIC: &str = "static";

/// Makes all of them.
pub(crate) fn all(rig: &mut Rig, report: &mut Report) -> Result<()> {
    if !report.check("with --kubernetes: ready", || {
        rig.apply("policy", &policy("enforce"))?;
        let before = checks::wait_for_agent(rig, "")?;
        checks::apply_agent(
            rig,
            include_str!("overlay-kubernetes.yaml"),
            "",
            &rig.agent_image.clone(),
        )?;
        let uid = before["metadata"]["uid"].as_str().context("no UID")?;
        checks::wait_for_agent(rig, uid).map(|pod| format!("pod {}", pod["metadata"]["name"]))
    })? {
        return Ok(());
    }
    report.check("pods' interfaces", || interfaces(rig))?;
    report.check("selected pod", || {
        checks::wait_for_outcome(rig, DENIED, &Outcome::Denied)?;
        checks::each(
            rig,
            &[(ALLOWED, Outcome::Reached), (DENIED, Outcome::Denied)],
        )
    })?;
    report.check("pod that none selects", || {
        let mut seen = Vec::new();
        for host in [ALLOWED, DENIED] {
            let got = rig.fetch(SHOP, traffic::POD, host)?;
            ensure!(got == Outcome::Reached, "{host}: {got}, should be reached");
            seen.push(format!("{host} {got}"));
        }
        Ok(seen.join(", "))
    })?;
    report.check("audit by policy", || {
        rig.apply("policy", &policy("audit"))?;
        checks::wait_for_outcome(rig, DENIED, &Outcome::Reached)?;
        checks::reported(rig, "would_deny")
    })?;
    report.check("enforce by policy", || {
        rig.apply("policy", &policy("enforce"))?;
        checks::wait_for_outcome(rig, DENIED, &Outcome::Denied)?;
        checks::each(
            rig,
            &[(ALLOWED, Outcome::Reached), (DENIED, Outcome::Denied)],
        )
    })?;
    report.check("pending without API server", || pending(rig))?;
    Ok(())
}

/// Checks that the host's ends of both clients' interfaces are judged.
fn interfaces(rig: &mut Rig) -> Result<String> {
    let pod = checks::wait_for_agent(rig, "")?;
    let (_, text) = rig.exec(&pod, "/usr/local/bin/egress-agent status -o json")?;
    let status: Value = serde_json::from_str(&text).context("status printed no JSON")?;
    let interfaces = &status["pod_interfaces"];
    ensure!(
        interfaces["judged"] == 2 && interfaces["failed"] == serde_json::json!([]),
        "{interfaces}"
    );
    Ok("2 judged".to_owned())
}

/// The policy of the client, and of the static pod.
fn policy(mode: &str) -> String {
    format!(
        "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: client, namespace: {SHOP} }}\n\
         spec:\n  podSelector: {{ matchExpressions: [{{ key: app, operator: In, values: [{CLIENT}, {STATIC}] }}] }}\n  \
         mode: {mode}\n  allow:\n  - names: [{ALLOWED}]\n    ports: [80/tcp]\n"
    )
}

/// A pod that starts while nobody can say which policies it has may reach nothing; once they are known, what they allow.
fn pending(rig: &mut Rig) -> Result<String> {
    // Without a server nobody says which container is whose.
    let client = rig.object("pod", Some(SHOP), CLIENT)?;
    let client = container(&client)?;
    rig.cluster.kill_server();
    let pod = checks::pod(STATIC, &rig.client_image, "[/bin/sleep, infinity]");
    rig.get(&format!(
        "cat >/node/pods/{STATIC}.yaml <<'POD'\n{pod}POD\n"
    ))?;
    // An emulated node that is busy does not always answer in time.
    let find = format!(
        "ctr --connect-timeout 60s -n k8s.io containers list -q 'labels.\"io.kubernetes.container.name\"=={STATIC}' || true"
    );
    let id = rig.wait("the static pod runs", START, |rig| {
        let id = rig.get(&find)?.trim().to_owned();
        let running = format!("ctr -n k8s.io tasks list | grep '^{id} ' | grep -c RUNNING || true");
        Ok((!id.is_empty() && rig.get(&running)?.trim() == "1").then_some(id))
    })?;
    let mut seen = Vec::new();
    for host in [ALLOWED, DENIED] {
        let got = rig.fetch_in(&id, host)?;
        ensure!(got == Outcome::Denied, "pending, {host}: {got}");
    }
    seen.push("both names denied".to_owned());
    // Pods that were known before go on.
    for (host, outcome) in [(ALLOWED, Outcome::Reached), (DENIED, Outcome::Denied)] {
        let got = rig.fetch_in(&client, host)?;
        ensure!(
            got == outcome,
            "without a server, {host}: {got}, should be {outcome}"
        );
        seen.push(format!("the client's {host} {got}"));
    }
    rig.cluster.start_server(&[])?;
    rig.wait(
        "the static pod has its policy",
        Duration::from_mins(10),
        |rig| Ok((rig.fetch_in(&id, ALLOWED)? == Outcome::Reached).then_some(())),
    )?;
    let got = rig.fetch_in(&id, DENIED)?;
    ensure!(got == Outcome::Denied, "with its policy, {DENIED}: {got}");
    seen.push("with the server back the static pod's allowed name is reached".to_owned());
    Ok(seen.join("; "))
}
