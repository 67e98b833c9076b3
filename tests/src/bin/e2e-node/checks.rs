//! The checks, in the order in which they build on each other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cluster,
    report::Report,
    rig::{Outcome, Rig, START, has_condition},
    traffic::{self, Traffic},
};

/// Where the clients are.
pub(crate) const SHOP: &str = "shop";
/// Where the agent is.
const SYSTEM: &str = "egress-system";
/// The pod in which single attempts are made.
pub(crate) const CLIENT: &str = "client";
/// A name that the policy allows, and one that it does not.
pub(crate) const ALLOWED: &str = "api.example.com";
pub(crate) const DENIED: &str = "other.example.net";
/// An address that the policy allows, and one that it does not.
const ALLOWED_ADDRESS: &str = "198.51.100.30";
const DENIED_ADDRESS: &str = "198.51.100.20";

/// Makes all of them.
pub(crate) fn all(rig: &mut Rig, report: &mut Report) -> Result<()> {
    if !report.check("pod runs", || clients(rig))? {
        return Ok(());
    }
    report.check("without agent: all open", || {
        each(
            rig,
            &[
                (ALLOWED, Outcome::Reached),
                (DENIED, Outcome::Reached),
                (ALLOWED_ADDRESS, Outcome::Reached),
                (DENIED_ADDRESS, Outcome::Reached),
            ],
        )
    })?;
    if !report.check("DaemonSet ready", || {
        apply_agent(rig, OVERLAY, "enforce", &rig.agent_image.clone())?;
        wait_for_agent(rig, "").map(|pod| format!("pod {}", pod["metadata"]["name"]))
    })? {
        return Ok(());
    }
    report.check("status of the agent", || status(rig))?;
    report.check("allowed", || {
        each(
            rig,
            &[
                (ALLOWED, Outcome::Reached),
                (ALLOWED_ADDRESS, Outcome::Reached),
            ],
        )
    })?;
    report.check("denied", || {
        each(
            rig,
            &[(DENIED, Outcome::Denied), (DENIED_ADDRESS, Outcome::Denied)],
        )
    })?;
    report.check("denied flow has a name", || reported(rig, "denied"))?;
    report.check("audit", || audit(rig))?;
    report.check("enforce again", || {
        apply_agent(rig, OVERLAY, "enforce", &rig.agent_image.clone())?;
        wait_for_outcome(rig, DENIED, &Outcome::Denied)?;
        each(
            rig,
            &[(ALLOWED, Outcome::Reached), (DENIED, Outcome::Denied)],
        )
    })?;
    report.check("agent pod deleted", || {
        replaced(rig, |rig, pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            rig.cluster
                .get(["-n", SYSTEM, "delete", "pod", name, "--wait=false"])?;
            Ok(())
        })
    })?;
    report.check("DaemonSet update", || {
        let next = format!("{}-next", rig.agent_image);
        rig.get(&format!(
            "ctr -n k8s.io images tag {} {next}",
            rig.agent_image
        ))?;
        let seen = replaced(rig, |rig, _| apply_agent(rig, OVERLAY, "enforce", &next))?;
        let pod = agent_pods(rig)?.pop().context("no agent")?;
        ensure!(
            pod["spec"]["containers"][0]["image"] == *next,
            "not the new image"
        );
        Ok(seen)
    })?;
    report.check("reboot", || reboot(rig))?;
    report.check("after it: allowed, denied", || {
        each(
            rig,
            &[
                (ALLOWED, Outcome::Reached),
                (ALLOWED_ADDRESS, Outcome::Reached),
                (DENIED, Outcome::Denied),
                (DENIED_ADDRESS, Outcome::Denied),
            ],
        )
    })?;
    cluster::all(rig, report)
}

/// Makes the clients and waits until they run.
fn clients(rig: &mut Rig) -> Result<String> {
    rig.cluster.get(["create", "namespace", SHOP])?;
    let image = &rig.client_image;
    let objects = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: kube-dns, namespace: kube-system }}\n\
         spec: {{ clusterIP: 10.96.0.10, ports: [{{ name: dns, port: 53, protocol: UDP }}] }}\n---\n{}---\n{}",
        pod(CLIENT, image, "[/bin/sleep, infinity]"),
        pod(traffic::POD, image, &traffic::command()),
    );
    // The account is made by a controller.
    rig.wait("the namespace has its account", START, |rig| {
        let account = rig.object("serviceaccount", Some(SHOP), "default")?;
        Ok((!account["secrets"].is_null()).then_some(()))
    })?;
    rig.apply("clients", &objects)?;
    for name in [CLIENT, traffic::POD] {
        rig.wait("the clients run", START, |rig| {
            let pod = rig.object("pod", Some(SHOP), name)?;
            Ok(has_condition(&pod, "Ready").then_some(()))
        })?;
    }
    let pod = rig.object("pod", Some(SHOP), CLIENT)?;
    Ok(format!("address {}", pod["status"]["podIP"]))
}

pub(crate) fn pod(name: &str, image: &str, command: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: {SHOP}, labels: {{ app: {name} }} }}\n\
         spec:\n  nodeName: {}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: {name}\n    image: {image}\n    \
         imagePullPolicy: Never\n    command: {command}\n",
        crate::rig::NODE
    )
}

/// The overlay for a policy file.
const OVERLAY: &str = include_str!("overlay.yaml");

/// Applies the manifests with an overlay, as an operator would, and with the policy's mode.
pub(crate) fn apply_agent(rig: &Rig, overlay: &str, mode: &str, image: &str) -> Result<()> {
    let port = rig.cluster.port();
    let (name, tag) = image.rsplit_once(':').context("an image without a tag")?;
    let overlay = overlay
        .replace("MODE", mode)
        .replace("SERVER", &format!("10.0.2.2:{port}"))
        .replace("IMAGE_NAME", name)
        .replace("IMAGE_TAG", tag);
    let folder = rig.cluster.dir().join("overlay");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("kustomization.yaml"), overlay)?;
    rig.cluster
        .get(["apply", "-k", &folder.display().to_string()])?;
    Ok(())
}

/// The agents' pods.
fn agent_pods(rig: &Rig) -> Result<Vec<Value>> {
    let label = "app.kubernetes.io/name=egress-agent";
    let list = rig
        .cluster
        .get(["-n", SYSTEM, "get", "pods", "-l", label, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// Waits until the DaemonSet's only pod is ready, and is not the one with the UID `before`.
pub(crate) fn wait_for_agent(rig: &mut Rig, before: &str) -> Result<Value> {
    rig.wait("an agent is ready", START, |rig| {
        let pods = agent_pods(rig)?;
        let [pod] = pods.as_slice() else {
            return Ok(None);
        };
        let container = &pod["status"]["containerStatuses"][0];
        let failed = &container["lastState"]["terminated"];
        ensure!(
            failed["exitCode"] == 0
                || failed.is_null()
                || container["restartCount"].as_u64() < Some(3),
            "the agent ends again and again: {}",
            failed["message"]
        );
        let is_ready = has_condition(pod, "Ready") && pod["metadata"]["uid"] != *before;
        let is_ending = !pod["metadata"]["deletionTimestamp"].is_null();
        Ok((is_ready && !is_ending).then(|| pod.clone()))
    })
}

/// The first line of the agent's status.
fn status(rig: &mut Rig) -> Result<String> {
    let pod = wait_for_agent(rig, "")?;
    let (code, text) = rig.exec(&pod, "/usr/local/bin/egress-agent status")?;
    ensure!(code == 0, "status ended with {code}: {text}");
    let line = text.lines().find(|line| !line.trim().is_empty());
    Ok(line.unwrap_or_default().to_owned())
}

/// Tries each host from the client.
pub(crate) fn each(rig: &mut Rig, wanted: &[(&str, Outcome)]) -> Result<String> {
    let mut seen = Vec::new();
    for (host, outcome) in wanted {
        let got = rig.fetch(SHOP, CLIENT, host)?;
        ensure!(got == *outcome, "{host}: {got}, should be {outcome}");
        seen.push(format!("{host} {got}"));
    }
    Ok(seen.join(", "))
}

/// Tries a host until it goes as wanted: a changed ConfigMap takes its time to the volume.
pub(crate) fn wait_for_outcome(rig: &mut Rig, host: &str, outcome: &Outcome) -> Result<()> {
    rig.wait(&format!("{host} is {outcome}"), START, |rig| {
        let got = rig.fetch(SHOP, CLIENT, host)?;
        Ok((got == *outcome).then_some(()))
    })
}

/// Checks that the agent reports the denied name's flow, with this verdict.
pub(crate) fn reported(rig: &mut Rig, verdict: &str) -> Result<String> {
    let pod = wait_for_agent(rig, "")?;
    rig.wait("the flow is reported", Duration::from_mins(2), |rig| {
        rig.fetch(SHOP, CLIENT, DENIED)?;
        let (code, text) = rig.exec(&pod, "/usr/local/bin/egress-agent flows --denied -o json")?;
        ensure!(code == 0, "flows ended with {code}: {text}");
        let flows: Vec<Value> = serde_json::from_str(&text).context("flows printed no JSON")?;
        let found = flows.iter().rev().find(|flow| {
            let names = flow["names"].as_array();
            let is_named = names.is_some_and(|names| names.iter().any(|name| *name == *DENIED));
            is_named && flow["verdict"] == *verdict
        });
        Ok(found.map(|flow| {
            format!(
                "{} {}: {} by {}",
                flow["names"], flow["destination"], flow["reason"], flow["hook"]
            )
        }))
    })
}

/// Audit lets pass and reports; the allowed one is as before.
fn audit(rig: &mut Rig) -> Result<String> {
    apply_agent(rig, OVERLAY, "audit", &rig.agent_image.clone())?;
    wait_for_outcome(rig, DENIED, &Outcome::Reached)?;
    let seen = each(
        rig,
        &[(ALLOWED, Outcome::Reached), (DENIED, Outcome::Reached)],
    )?;
    reported(rig, "would_deny")?;
    Ok(format!("{seen}, reported as would_deny"))
}

/// Has the agent's pod replaced while traffic runs, and looks at the traffic of that time.
fn replaced(rig: &mut Rig, replace: impl FnOnce(&Rig, &Value) -> Result<()>) -> Result<String> {
    let pod = wait_for_agent(rig, "")?;
    let uid = pod["metadata"]["uid"]
        .as_str()
        .context("no UID")?
        .to_owned();
    let traffic = Traffic::begin(rig)?;
    replace(rig, &pod)?;
    let absent = traffic::wait_for_gap(rig)?;
    wait_for_agent(rig, &uid)?;
    traffic.end(rig, absent)
}

/// Cuts the power; the node comes back by itself, and the agent with it.
fn reboot(rig: &mut Rig) -> Result<String> {
    rig.power_off()?;
    rig.boot()?;
    rig.wait_for_node()?;
    for name in [CLIENT, traffic::POD] {
        rig.wait("the clients run again", START, |rig| {
            let pod = rig.object("pod", Some(SHOP), name)?;
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
            Ok((has_condition(&pod, "Ready") && restarts > Some(0)).then_some(()))
        })?;
    }
    rig.wait("the agent runs again", START, |rig| {
        let pods = agent_pods(rig)?;
        let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        let is_back = |pod: &Value| has_condition(pod, "Ready") && restarts(pod) > Some(0);
        Ok((pods.len() == 1 && pods.iter().all(is_back)).then_some(()))
    })?;
    traffic::since_boot(rig)
}
