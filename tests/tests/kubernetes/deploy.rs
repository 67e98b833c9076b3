//! The files of `deploy/` with a real API server: columns and permissions of policies; the manifests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use egress_tests::{Cluster, eventually};
use serde_json::{Value, json};

use crate::support::{
    installed::{NAMESPACE, SOON, cluster, deploy, json, write},
    policies::policy,
};

#[test]
fn the_status_is_apart_and_kubectl_shows_it() {
    let Some(cluster) = cluster() else { return };
    let spec = "{ mode: audit, podSelector: { matchLabels: { app: payments } }, allow: [{ names: [api.example.com] }] }";
    let text = policy("EgressPolicy", "payments", spec).replace(NAMESPACE, "columns");
    let file = write(&cluster, "columns.yaml", &text);
    cluster.get(["create", "-f", &file]).unwrap();
    let cluster_policy = policy("ClusterEgressPolicy", "columns", "{ subject: node }");
    let file = write(&cluster, "columns-cluster.yaml", &cluster_policy);
    cluster.get(["create", "-f", &file]).unwrap();

    let shown = cluster.get(["get", "egp", "-n", "columns"]).unwrap();
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        ["NAME", "MODE", "RULES", "SUBJECTS", "ACCEPTED", "AGE"]
    );
    // Nobody has looked at it yet.
    assert_eq!(rows[1][..2], ["payments", "audit"]);
    assert_eq!(rows[1].len(), 3, "{shown}");

    let patch =
        |status: &Value, spec: &Value| json!({ "status": status, "spec": spec }).to_string();
    let condition = json!({
        "type": "Accepted",
        "status": "True",
        "reason": "Compiled",
        "message": "1 rule",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    });
    let status = json!({
        "observedGeneration": 1,
        "rules": 1,
        "subjects": "pods app=payments in columns",
        "conditions": [condition],
    });
    let status_of = |kind: &str, name: &str, patch: &str| {
        let arguments = [
            "patch",
            kind,
            name,
            "-n",
            "columns",
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ];
        cluster.kubectl(arguments).unwrap()
    };
    // A writer of the status cannot change the spec with it.
    let output = status_of(
        "egp",
        "payments",
        &patch(&status, &json!({ "mode": "enforce" })),
    );
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    let stored = json(
        &cluster
            .get(["get", "egp", "-n", "columns", "payments", "-o", "json"])
            .unwrap(),
    );
    assert_eq!(stored["spec"]["mode"], json!("audit"));
    assert_eq!(stored["metadata"]["generation"], json!(1));
    assert_eq!(stored["status"], status);
    // A status that is none is refused.
    for wrong in [
        json!({ "rules": -1 }),
        json!({ "conditions": [{ "type": "Accepted" }] }),
    ] {
        let output = status_of("egp", "payments", &patch(&wrong, &json!({})));
        assert_eq!(output.code(), Some(1), "{wrong}: {}", output.shown());
    }
    let shown = cluster.get(["get", "egp", "-n", "columns"]).unwrap();
    let row = shown.lines().nth(1).unwrap();
    assert!(row.contains("audit") && row.contains(" 1 "), "{shown}");
    assert!(
        row.contains("pods app=payments in columns") && row.contains("True"),
        "{shown}"
    );
    // A change of the spec is a new generation; the status of the last one stays and says so.
    let change = r#"{ "spec": { "mode": "enforce" } }"#;
    cluster
        .get([
            "patch",
            "egp",
            "payments",
            "-n",
            "columns",
            "--type=merge",
            "-p",
            change,
        ])
        .unwrap();
    let stored = json(
        &cluster
            .get(["get", "egp", "-n", "columns", "payments", "-o", "json"])
            .unwrap(),
    );
    assert_eq!(stored["metadata"]["generation"], json!(2));
    assert_eq!(stored["status"]["observedGeneration"], json!(1));

    let status = json!({ "rules": 0, "subjects": "all nodes", "conditions": [condition] });
    let output = status_of("cegp", "columns", &patch(&status, &json!({})));
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    let shown = cluster.get(["get", "cegp", "columns"]).unwrap();
    let titles: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        titles,
        [
            "NAME", "SUBJECT", "CEILING", "MODE", "RULES", "SUBJECTS", "ACCEPTED", "AGE"
        ]
    );
    let row = shown.lines().nth(1).unwrap();
    assert!(
        row.contains("node") && row.contains("enforce") && row.contains("all nodes"),
        "{shown}"
    );
}

/// A request: user, namespace, verb, resource, subresource.
type Question = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

/// The API server's answers to the requests: true if it allows one.
fn allowed(cluster: &Cluster, questions: &[Question]) -> Vec<bool> {
    let items = questions
        .iter()
        .map(|(who, namespace, verb, resource, subresource)| {
            json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": { "user": who, "resourceAttributes": {
                    "namespace": namespace,
                    "group": "egress.dev",
                    "verb": verb,
                    "resource": resource,
                    "subresource": subresource,
                } },
            })
        });
    let items: Vec<Value> = items.collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let file = write(cluster, "reviews.json", &list.to_string());
    let answers = cluster.get(["create", "-o", "json", "-f", &file]).unwrap();
    let answers = serde_json::Deserializer::from_str(&answers).into_iter::<Value>();
    let answers: Vec<bool> = answers
        .map(|answer| answer.unwrap()["status"]["allowed"].as_bool().unwrap())
        .collect();
    assert_eq!(answers.len(), questions.len());
    answers
}

#[test]
fn view_and_edit_of_a_namespace_are_view_and_edit_of_its_policies() {
    const READ: [&str; 3] = ["get", "list", "watch"];
    const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
    const OF_NAMESPACE: &str = "egresspolicies";
    const OF_CLUSTER: &str = "clusteregresspolicies";
    let Some(cluster) = cluster() else { return };
    let bind = |arguments: &str| cluster.get(arguments.split_whitespace()).unwrap();
    bind("create rolebinding viewer --clusterrole=view --user=viewer -n shop");
    bind("create rolebinding editor --clusterrole=edit --user=editor -n shop");
    bind("create rolebinding owner --clusterrole=admin --user=owner -n shop");
    bind("create clusterrolebinding auditor --clusterrole=view --user=auditor");
    bind(
        "create clusterrolebinding platform --clusterrole=egress-cluster-policies --user=platform",
    );

    // The namespace of the policies; another one; none, as policies of the cluster are asked for.
    let mut wanted: Vec<(Question, bool)> = Vec::new();
    for (verbs, who) in [
        (&READ[..], ["viewer", "editor", "owner", "auditor"]),
        (&WRITE[..], ["editor", "owner", "", ""]),
    ] {
        for verb in verbs {
            for one in [
                "viewer", "editor", "owner", "auditor", "platform", "stranger",
            ] {
                let is_read = READ.contains(verb);
                let is_auditor = one == "auditor" && is_read;
                let is_platform = one == "platform";
                wanted.push(((one, NAMESPACE, verb, OF_NAMESPACE, ""), who.contains(&one)));
                wanted.push(((one, "other", verb, OF_NAMESPACE, ""), is_auditor));
                wanted.push(((one, "", verb, OF_CLUSTER, ""), is_platform || is_auditor));
                // Nobody but the agents says of a policy that it is accepted.
                wanted.push(((one, NAMESPACE, verb, OF_NAMESPACE, "status"), false));
                wanted.push(((one, "", verb, OF_CLUSTER, "status"), false));
            }
        }
    }
    let (questions, wanted): (Vec<Question>, Vec<bool>) = wanted.into_iter().unzip();
    // The controller puts roles together when it gets to it.
    let mut answers = Vec::new();
    let joined = || {
        answers = allowed(&cluster, &questions);
        answers == wanted
    };
    let is_right = eventually(SOON, joined);
    let wrong = answers.iter().zip(&wanted).zip(&questions);
    let wrong: Vec<_> = wrong.filter(|((is, should), _)| is != should).collect();
    assert!(is_right, "{wrong:#?}");

    // Not only asked: done.
    let of_namespace = write(&cluster, "rbac.yaml", &policy("EgressPolicy", "rbac", "{}"));
    let of_cluster = write(
        &cluster,
        "rbac-cluster.yaml",
        &policy("ClusterEgressPolicy", "rbac", "{}"),
    );
    for (who, file, code) in [
        ("viewer", &of_namespace, 1),
        ("stranger", &of_namespace, 1),
        ("editor", &of_namespace, 0),
        ("owner", &of_cluster, 1),
        ("platform", &of_cluster, 0),
    ] {
        let create = ["create", "--as", who, "-f", file];
        let output = cluster.kubectl(create).unwrap();
        assert_eq!(output.code(), Some(code), "{who}: {}", output.shown());
        assert!(
            code == 0 || output.stderr.contains("forbidden"),
            "{}",
            output.shown()
        );
    }
}

/// The folders below `deploy/` that kustomize renders.
fn overlays(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            overlays(&path, found);
        } else if path.ends_with("kustomization.yaml") {
            found.push(folder.to_owned());
        }
    }
}

/// Objects without the one field that is newer than the server that Debian carries (docs/kubernetes.md).
fn as_before_1_30(objects: &str) -> String {
    let mut kept = String::new();
    let mut inside = None;
    for line in objects.lines() {
        let depth = line.len() - line.trim_start().len();
        if inside.is_some_and(|outer| depth > outer) {
            continue;
        }
        inside = line.contains("appArmorProfile:").then_some(depth);
        if inside.is_none() {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[test]
fn every_overlay_renders_and_the_server_takes_it() {
    let Some(cluster) = cluster() else { return };
    let mut folders = Vec::new();
    overlays(Path::new(&deploy("")), &mut folders);
    folders.sort();
    assert!(folders.len() >= 2, "{folders:?}");
    for folder in &folders {
        let rendered = cluster
            .get(["kustomize", folder.to_str().unwrap()])
            .unwrap();
        let rendered = as_before_1_30(&rendered);
        let name = folder.file_name().unwrap().to_str().unwrap();
        let file = write(&cluster, &format!("rendered-{name}.yaml"), &rendered);
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "-f",
            &file,
        ];
        let output = cluster.kubectl(apply).unwrap();
        assert_eq!(
            output.code(),
            Some(0),
            "{}: {}",
            folder.display(),
            output.shown()
        );
        let objects = rendered.split("\n---\n").count();
        assert_eq!(output.stdout.lines().count(), objects, "{}", output.shown());
    }
    let unload = fs::read_to_string(deploy("kubernetes/unload.yaml")).unwrap();
    let unload = write(&cluster, "unload.yaml", &as_before_1_30(&unload));
    let apply = ["apply", "--server-side", "--dry-run=server", "-f", &unload];
    cluster.get(apply).unwrap();
}

#[test]
fn the_server_takes_every_policy_of_the_page() {
    let Some(cluster) = cluster() else { return };
    let page = Path::new(&deploy("")).join("../docs/kubernetes.md");
    let page = fs::read_to_string(page).unwrap();
    let blocks = page.split("```yaml\n").skip(1);
    let policies: Vec<&str> = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(policies.len() >= 4, "{policies:?}");
    for (index, policy) in policies.iter().enumerate() {
        let file = write(&cluster, &format!("page-{index}.yaml"), policy);
        let apply = ["apply", "--server-side", "--dry-run=server", "-f", &file];
        let output = cluster.kubectl(apply).unwrap();
        assert_eq!(output.code(), Some(0), "{policy}\n{}", output.shown());
        // And so that a field that is wrong is seen.
        let wrong = policy.replace("spec:", "spec:\n  mood: audit");
        let file = write(&cluster, &format!("page-{index}-wrong.yaml"), &wrong);
        let output = cluster
            .kubectl(["apply", "--server-side", "--dry-run=server", "-f", &file])
            .unwrap();
        assert_eq!(output.code(), Some(1), "{}", output.shown());
    }
}
