//! The chart in `deploy/chart`: what Helm renders, and what it does at a real API server. egress-agent/tests/chart.rs has what
//! can be told without Helm.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use egress_agent::policy::{Catalog, PolicySet};
use egress_tests::{Cluster, eventually, kubernetes, process, process::Output, skip};
use serde_json::{Value, json};

use crate::support::installed::{SOON, deploy, json, write};

/// How long one call of Helm may take, which asks the server many times.
const LIMIT: Duration = Duration::from_mins(2);
/// The annotation of definitions that is Helm's own: kustomize has no use for it, and the comparison leaves it out.
const KEEP: &str = "helm.sh/resource-policy";
/// The agents' namespace.
const NAMESPACE: &str = "egress-system";
/// Kind, namespace and name.
type Key = (String, String, String);
type Objects = BTreeMap<Key, Value>;

/// Tests of the chart can run; if not, prints the reason.
fn ready() -> bool {
    if !kubernetes::folder().join("helm").is_file() {
        return skip::skip("helm is missing: run `cargo xtask kubernetes` where npm gets packages");
    }
    kubernetes::ready()
}

/// Runs Helm with its files in a folder of the test, at a server if there is one.
fn helm_in(dir: &Path, kubeconfig: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(kubernetes::folder().join("helm"));
    command
        .args(arguments)
        .env("HOME", dir)
        .env("KUBECONFIG", kubeconfig.unwrap_or(Path::new("/dev/null")))
        .current_dir(dir)
        .stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HELM_") {
            command.env_remove(name);
        }
    }
    process::run(&mut command, LIMIT).unwrap()
}

/// Writes 0.0 as 0, as kustomize does.
fn whole(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(whole),
        Value::Object(fields) => fields.values_mut().for_each(whole),
        Value::Number(number) if number.as_f64() == Some(0.0) => *value = json!(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The objects of a text.
fn objects(text: &str) -> Objects {
    let mut found = Objects::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let mut object: Value = serde::Deserialize::deserialize(document).unwrap();
        if object.is_null() {
            continue;
        }
        whole(&mut object);
        let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap();
        let key = (
            kind.to_owned(),
            name("namespace").to_owned(),
            name("name").to_owned(),
        );
        assert!(found.insert(key, object).is_none(), "twice: {text}");
    }
    found
}

/// What Helm renders of a chart with these arguments.
fn rendered_of(chart: &str, arguments: &[&str]) -> Objects {
    let dir = tempfile::tempdir().unwrap();
    let arguments = [&["template", "egress-agent", chart][..], arguments].concat();
    let output = helm_in(dir.path(), None, &arguments);
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    objects(&output.stdout)
}

fn rendered(arguments: &[&str]) -> Objects {
    rendered_of(&deploy("chart"), arguments)
}

/// What kustomize renders.
fn base() -> Objects {
    let mut kubectl = Command::new(kubernetes::folder().join("kubectl"));
    kubectl
        .arg("kustomize")
        .arg(deploy(""))
        .stdin(Stdio::null());
    let output = process::run(&mut kubectl, LIMIT).unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    objects(&output.stdout)
}

/// Objects without [`KEEP`], which all definitions have and nothing else.
fn without_keep(mut all: Objects) -> Objects {
    for ((kind, _, name), object) in &mut all {
        let metadata = object["metadata"].as_object_mut().unwrap();
        if kind == "CustomResourceDefinition" {
            let annotations = metadata.remove("annotations");
            assert_eq!(annotations, Some(json!({ KEEP: "keep" })), "{name}");
        }
        let kept = metadata.get("annotations").and_then(|all| all.get(KEEP));
        assert_eq!(kept, None, "{name}");
    }
    all
}

#[track_caller]
fn assert_same(left: &Objects, right: &Objects) {
    let keys = |all: &Objects| all.keys().cloned().collect::<Vec<Key>>();
    assert_eq!(keys(left), keys(right));
    for (key, object) in left {
        assert_eq!(object, &right[key], "{key:?}");
    }
}

fn key(kind: &str, name: &str) -> Key {
    (kind.to_owned(), NAMESPACE.to_owned(), name.to_owned())
}

/// The only container of a DaemonSet.
fn container(all: &Objects, set: &str) -> Value {
    all[&key("DaemonSet", set)]["spec"]["template"]["spec"]["containers"][0].clone()
}

#[test]
fn without_values_it_renders_what_kustomize_does() {
    if !ready() {
        return;
    }
    let base = base();
    assert!(base.len() > 10, "{:?}", base.keys());
    assert_same(&without_keep(rendered(&[])), &base);

    // Where the release has its record in the namespace, that was there before.
    let inside = without_keep(rendered(&["--namespace", NAMESPACE]));
    let mut wanted = base.clone();
    let namespace = ("Namespace".to_owned(), String::new(), NAMESPACE.to_owned());
    assert!(wanted.remove(&namespace).is_some());
    assert_same(&inside, &wanted);

    // Without the definitions: what `deploy/crds` has, and no more, is not there.
    let mut kubectl = Command::new(kubernetes::folder().join("kubectl"));
    kubectl.arg("kustomize").arg(deploy("crds"));
    let definitions = objects(&process::run(&mut kubectl, LIMIT).unwrap().stdout);
    assert!(definitions.len() >= 5, "{:?}", definitions.keys());
    let mut wanted = base.clone();
    wanted.retain(|key, _| !definitions.contains_key(key));
    assert_same(&rendered(&["--set", "crds=false"]), &wanted);

    // To take it away: the other DaemonSet in the place of the first.
    let mut wanted = base;
    assert!(wanted.remove(&key("DaemonSet", "egress-agent")).is_some());
    wanted.extend(objects(
        &fs::read_to_string(deploy("kubernetes/unload.yaml")).unwrap(),
    ));
    assert_same(&without_keep(rendered(&["--set", "unload=true"])), &wanted);
}

#[test]
fn lint_finds_nothing_and_an_archive_renders_the_same() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let chart = deploy("chart");
    let output = helm_in(dir.path(), None, &["lint", "--strict", &chart]);
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    assert!(!output.stdout.contains("WARNING"), "{}", output.shown());
    // It has files where the folder has links.
    let output = helm_in(dir.path(), None, &["package", &chart]);
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    let archive = format!("egress-agent-{}.tgz", env!("CARGO_PKG_VERSION"));
    let archive = dir.path().join(archive);
    assert_same(&rendered_of(archive.to_str().unwrap(), &[]), &rendered(&[]));
}

#[test]
fn each_value_ends_up_where_it_belongs() {
    const VALUES: &str = r#"
image: { repository: registry.example.com/egress-agent, tag: "1.2.3", pullPolicy: Always }
imagePullSecrets: [{ name: registry }]
nodePolicy:
  mode: enforce
  ttl: { min: 1m }
  allow: [{ names: [registry.example.com], ports: [443/tcp] }]
lifelineCidrs: [10.1.0.0/16, "fd00::/64"]
extraArgs: [--pod-interfaces, auto]
resources: { requests: { memory: 256Mi } }
securityContext: { privileged: true, runAsUser: 0 }
podAnnotations: { example.com/team: network }
nodeSelector: { pool: a }
tolerations: [{ key: gpu, operator: Exists }]
affinity: { nodeAffinity: {} }
priorityClassName: own
maxUnavailable: 10%
"#;
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("values.yaml");
    fs::write(&file, VALUES).unwrap();
    let file = file.to_str().unwrap();
    let before = rendered(&[]);
    let all = rendered(&["--values", file]);
    let set = &all[&key("DaemonSet", "egress-agent")];
    let pod = &set["spec"]["template"]["spec"];
    let container = container(&all, "egress-agent");
    assert_eq!(
        container["image"],
        json!("registry.example.com/egress-agent:1.2.3")
    );
    assert_eq!(container["imagePullPolicy"], json!("Always"));
    assert_eq!(pod["imagePullSecrets"], json!([{ "name": "registry" }]));
    assert_eq!(
        container["resources"],
        json!({ "requests": { "memory": "256Mi" } })
    );
    assert_eq!(
        container["securityContext"],
        json!({ "privileged": true, "runAsUser": 0 })
    );
    assert_eq!(
        set["spec"]["template"]["metadata"]["annotations"],
        json!({ "example.com/team": "network" })
    );
    assert_eq!(pod["nodeSelector"], json!({ "pool": "a" }));
    assert_eq!(
        pod["tolerations"],
        json!([{ "key": "gpu", "operator": "Exists" }])
    );
    assert_eq!(pod["affinity"], json!({ "nodeAffinity": {} }));
    assert_eq!(pod["priorityClassName"], json!("own"));
    assert_eq!(
        set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
        json!("10%")
    );

    // Ranges in the place of those of the base, and nothing else is lost.
    let args = |all: &Objects| -> Vec<String> {
        let args = self::container(all, "egress-agent")["args"].clone();
        serde_json::from_value(args).unwrap()
    };
    let is_flag =
        |args: &[String], at: usize| args.get(at).is_some_and(|arg| arg == "--lifeline-cidr");
    let old = args(&before);
    let kept =
        (0..old.len()).filter(|at| !is_flag(&old, *at) && !is_flag(&old, at.wrapping_sub(1)));
    let mut wanted: Vec<&str> = kept.map(|at| old[at].as_str()).collect();
    wanted.extend([
        "--lifeline-cidr",
        "10.1.0.0/16",
        "--lifeline-cidr",
        "fd00::/64",
    ]);
    wanted.extend(["--pod-interfaces", "auto"]);
    assert_eq!(args(&all), wanted);

    // The policy is one, and has what the base says where nothing else is said.
    let policy = |all: &Objects| -> String {
        let map = &all[&key("ConfigMap", "egress-policies")];
        map["data"]["node.yaml"].as_str().unwrap().to_owned()
    };
    let text = policy(&all);
    PolicySet::from_texts(
        [(Path::new("node.yaml"), text.as_str())],
        &Catalog::default(),
    )
    .unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    let [old, new] = [policy(&before), text].map(|text| objects(&text));
    let name = |all: &Objects| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(name(&old), name(&new));
    let spec = &new[&name(&new)[0]]["spec"];
    assert_eq!(spec["mode"], json!("enforce"));
    assert_eq!(spec["ttl"], json!({ "min": "1m" }));
    assert_eq!(spec["allow"][0]["names"], json!(["registry.example.com"]));
    let audits = rendered(&["--set", "nodePolicy.mode=audit"]);
    assert_eq!(objects(&policy(&audits)), old);

    // What takes it away has the image, the nodes and the rights; a digest is an image's whole version.
    let digest = format!("sha256:{}", "a".repeat(64));
    let digest_is = format!("image.digest={digest}");
    let all = rendered(&[
        "--values",
        file,
        "--set",
        "unload=true",
        "--set",
        &digest_is,
    ]);
    let unload = self::container(&all, "egress-unload");
    assert_eq!(
        unload["image"],
        json!(format!("registry.example.com/egress-agent@{digest}"))
    );
    assert_eq!(unload["args"], json!(["unload"]));
    assert_eq!(unload["securityContext"], container["securityContext"]);
    let pod = &all[&key("DaemonSet", "egress-unload")]["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"], json!({ "pool": "a" }));
}

#[test]
fn servers_before_1_30_get_the_annotation_for_apparmor() {
    const FIELD: &str = "appArmorProfile";
    if !ready() {
        return;
    }
    for set in ["egress-agent", "egress-unload"] {
        let unload = format!("unload={}", set == "egress-unload");
        for (version, is_field) in [
            ("1.20.2", false),
            ("v1.29.9-gke.100", false),
            ("v1.30.0-eks-1", true),
            ("1.34.1", true),
        ] {
            let all = rendered(&["--kube-version", version, "--set", &unload]);
            let container = container(&all, set);
            let field = container["securityContext"].get(FIELD);
            assert_eq!(field.is_some(), is_field, "{version}");
            let template = &all[&key("DaemonSet", set)]["spec"]["template"];
            let name = format!("container.apparmor.security.beta.kubernetes.io/{set}");
            let wanted = (!is_field).then(|| json!({ name: "unconfined" }));
            let annotations = template["metadata"].get("annotations");
            assert_eq!(annotations, wanted.as_ref(), "{version}");
        }
    }
}

/// A server, and Helm as its administrator.
struct Release {
    cluster: Cluster,
}

impl Release {
    fn helm(&self, arguments: &[&str]) -> Output {
        let kubeconfig = self.cluster.kubeconfig();
        helm_in(self.cluster.dir(), Some(&kubeconfig), arguments)
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.helm(arguments);
        assert_eq!(output.code(), Some(0), "{arguments:?}: {}", output.shown());
        output.stdout
    }

    fn object(&self, arguments: &[&str]) -> Value {
        let arguments = [&["get", "-o", "json"][..], arguments].concat();
        json(&self.cluster.get(arguments).unwrap())
    }

    fn is_there(&self, arguments: &[&str]) -> bool {
        let arguments = [&["get", "-o", "name"][..], arguments].concat();
        let output = self.cluster.kubectl(&arguments).unwrap();
        let is_gone = output.stderr.contains("NotFound");
        assert!(is_gone || output.code() == Some(0), "{}", output.shown());
        !is_gone
    }

    /// The mode that the nodes' policy has at the server.
    fn mode(&self) -> Value {
        let map = self.object(&["configmap", "egress-policies", "-n", NAMESPACE]);
        let policy = objects(map["data"]["node.yaml"].as_str().unwrap());
        policy.into_values().next().unwrap()["spec"]["mode"].clone()
    }
}

/// A copy of the chart with another text in one of its files.
fn changed_chart(dir: &Path, file: &str, from: &str, to: &str) -> String {
    let copy = dir.join("older");
    fs::create_dir_all(&copy).unwrap();
    let mut command = Command::new("cp");
    command.args(["-rL"]).arg(deploy("chart")).arg(&copy);
    let output = process::run(&mut command, LIMIT).unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    let chart: PathBuf = copy.join("chart");
    let text = fs::read_to_string(chart.join(file)).unwrap();
    assert!(text.contains(from), "{file}");
    fs::write(chart.join(file), text.replace(from, to)).unwrap();
    chart.to_str().unwrap().to_owned()
}

#[test]
fn it_is_installed_updated_and_uninstalled() {
    const SET: [&str; 4] = ["daemonset", "egress-agent", "-n", NAMESPACE];
    const DEFINITION: [&str; 2] = ["crd", "egresspolicies.egress.dev"];
    const DESCRIPTION: &str = "What pods of one namespace may reach.";
    const POLICY: &str = "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: { name: own, namespace: default }\n\
         spec: { allow: [{ names: [a.example.com] }] }\n";
    if !ready() {
        return;
    }
    let release = Release {
        cluster: Cluster::start().unwrap(),
    };
    let cluster = &release.cluster;
    let chart = deploy("chart");
    let name = "egress-agent";
    // An earlier chart's definitions are those that it came with.
    let file = "base/egresspolicies.yaml";
    let older = changed_chart(cluster.dir(), file, DESCRIPTION, "Earlier.");
    let notes = release.done(&["install", name, &older]);
    assert!(
        notes.contains("rollout status daemonset/egress-agent"),
        "{notes}"
    );
    assert!(notes.contains("helm uninstall"), "{notes}");
    for (kind, namespace, name) in rendered(&[]).into_keys() {
        let mut arguments = vec![kind.as_str(), name.as_str()];
        if !namespace.is_empty() {
            arguments.extend(["-n", &namespace]);
        }
        assert!(release.is_there(&arguments), "{arguments:?}");
    }
    let description = || {
        let text = release.object(&DEFINITION)["spec"]["versions"][0]["schema"].to_string();
        (text.contains("Earlier."), text.contains(DESCRIPTION))
    };
    assert_eq!(description(), (true, false));
    assert_eq!(release.mode(), json!("audit"));
    let policy = write(cluster, "own.yaml", POLICY);
    let is_served = || {
        let output = cluster.kubectl(["apply", "-f", &policy]);
        output.is_ok_and(|output| output.code() == Some(0))
    };
    assert!(eventually(SOON, is_served));

    // A changed policy changes the ConfigMap, and restarts no agent; a value stays in the next update.
    let generation = release.object(&SET)["metadata"]["generation"].clone();
    let upgrade = ["upgrade", name, &chart, "--reset-then-reuse-values"];
    release.done(&[&upgrade[..], &["--set", "nodePolicy.mode=enforce"]].concat());
    assert_eq!(release.mode(), json!("enforce"));
    assert_eq!(release.object(&SET)["metadata"]["generation"], generation);
    assert_eq!(description(), (false, true));
    release.done(
        &[
            &upgrade[..],
            &["--set", "extraArgs={--pod-interfaces,auto}"],
        ]
        .concat(),
    );
    assert_eq!(release.mode(), json!("enforce"));
    assert_ne!(release.object(&SET)["metadata"]["generation"], generation);

    // What means nothing changes nothing.
    for (value, word) in [
        ("nodePolicy.mode=loud", "/nodePolicy/mode"),
        ("nodePolicy.alow[0].names[0]=a.example.com", "alow"),
        ("lifelineCidrs={10.0.0}", "/lifelineCidrs/0"),
        ("resource.requests.cpu=1", "resource"),
    ] {
        let output = release.helm(&[&upgrade[..], &["--set", value]].concat());
        assert_eq!(output.code(), Some(1), "{}", output.shown());
        assert!(output.stderr.contains(word), "{}", output.shown());
    }
    let history = release.done(&["history", name, "-o", "json"]);
    assert_eq!(json(&history).as_array().unwrap().len(), 3, "{history}");

    // Taken away: agents first, then the release. Definitions stay, and policies with them.
    let notes = release.done(&[&upgrade[..], &["--set", "unload=true"]].concat());
    assert!(notes.contains("helm uninstall egress-agent"), "{notes}");
    assert!(!release.is_there(&SET));
    let unload = ["daemonset", "egress-unload", "-n", NAMESPACE];
    assert!(release.is_there(&unload));
    release.done(&["uninstall", name]);
    let namespace = ["namespace", NAMESPACE];
    assert!(eventually(SOON, || !release.is_there(&namespace)));
    assert!(!release.is_there(&["clusterrole", "egress-agent"]));
    assert!(release.is_there(&["egresspolicy", "own", "-n", "default"]));

    // Again, beside what stayed, from the namespace itself.
    let inside = ["--namespace", NAMESPACE];
    let install = [
        &["install", name, &chart, "--create-namespace"],
        &inside[..],
    ]
    .concat();
    let output = release.helm(&install);
    assert_eq!(output.code(), Some(1), "{}", output.shown());
    assert!(output.stderr.contains("ownership"), "{}", output.shown());
    let notes = release.done(&[&install[..], &["--take-ownership"]].concat());
    assert!(notes.contains("kubectl label namespace"), "{notes}");
    assert!(release.is_there(&SET));
    release.done(&[&["uninstall", name], &inside[..]].concat());
    assert!(!release.is_there(&SET));
    assert!(release.is_there(&namespace));
    assert!(release.is_there(&["egresspolicy", "own", "-n", "default"]));
}

#[test]
fn what_kubectl_has_applied_becomes_a_release_when_asked() {
    if !ready() {
        return;
    }
    let release = Release {
        cluster: Cluster::start().unwrap(),
    };
    let cluster = &release.cluster;
    let mut items: Vec<Value> = base().into_values().collect();
    items.sort_by_key(|object| object["kind"] != json!("Namespace"));
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    // Without the one field that is newer than the server.
    let list = list
        .to_string()
        .replace(r#""appArmorProfile":{"type":"Unconfined"},"#, "");
    let file = write(cluster, "base.json", &list);
    cluster.get(["apply", "-f", &file]).unwrap();

    let chart = deploy("chart");
    let mut install = vec![
        "install",
        "egress-agent",
        &chart,
        "--set",
        "image.tag=1.2.3",
    ];
    let output = release.helm(&install);
    assert_eq!(output.code(), Some(1), "{}", output.shown());
    assert!(output.stderr.contains("ownership"), "{}", output.shown());
    install.extend(["--take-ownership", "--force-conflicts"]);
    release.done(&install);
    let set = release.object(&["daemonset", "egress-agent", "-n", NAMESPACE]);
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["image"],
        json!("localhost/egress-agent:1.2.3")
    );
    release.done(&["uninstall", "egress-agent"]);
    assert!(!release.is_there(&["daemonset", "egress-agent", "-n", NAMESPACE]));
    assert!(release.is_there(&["crd", "egresspolicies.egress.dev"]));
}
