//! The contents of `deploy/` and of the documents fit the binary: objects, flags, paths, policies.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use egress_agent::{
    cli::{Cli, Command, DEFAULT_PIN_DIR, DEFAULT_SOCKET, DEFAULT_STATE_DIR, run::Run},
    policy::{self, Catalog, Compiled, Lifeline, PolicySet, ServiceTags},
    settings::Settings,
};
use egress_common::verdict::Mode;
use k8s_openapi::{
    Resource,
    api::{
        apps::v1::DaemonSet,
        core::v1::{
            ConfigMap, Container, HostPathVolumeSource, Namespace, PodSpec, Probe, ServiceAccount,
            VolumeMount,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

/// Where policies lie, in the container and on a plain node.
const POLICIES: &str = "/etc/egress/policies";
/// Where the binary lies, in the container and on a plain node.
const BINARY: &str = "/usr/local/bin/egress-agent";
/// Where cgroup v2 is mounted on a node that has no other.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Where the bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn text(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files in a folder of the repository, by their paths in it.
fn files_in(folder: &str) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(root().join(folder))
        .unwrap()
        .map(|entry| format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    found.sort();
    found
}

/// The one object in a manifest.
fn object<T: Resource + Serialize + DeserializeOwned>(path: &str) -> T {
    let written: serde_json::Value = serde_yaml_ng::from_str(&text(path)).unwrap();
    let head = |field: &str| written.get(field).and_then(serde_json::Value::as_str);
    assert_eq!(head("apiVersion"), Some(T::API_VERSION), "{path}");
    assert_eq!(head("kind"), Some(T::KIND), "{path}");
    let object: T =
        serde_json::from_value(written.clone()).unwrap_or_else(|error| panic!("{path}: {error}"));
    // The types drop fields that they do not know: what is written has to come back as it was.
    assert_eq!(serde_json::to_value(&object).unwrap(), written, "{path}");
    object
}

fn agent_set() -> DaemonSet {
    object("deploy/kubernetes/daemonset.yaml")
}

fn unload_set() -> DaemonSet {
    object("deploy/kubernetes/unload.yaml")
}

fn config_map() -> ConfigMap {
    object("deploy/kubernetes/configmap.yaml")
}

fn pod(set: &DaemonSet) -> &PodSpec {
    set.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

fn only_container(set: &DaemonSet) -> &Container {
    let pod = pod(set);
    assert_eq!(pod.init_containers, None);
    assert_eq!(pod.containers.len(), 1);
    &pod.containers[0]
}

/// The command that the binary reads from its arguments.
fn parsed<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let line: Vec<&str> = std::iter::once("egress-agent").chain(arguments).collect();
    match Cli::try_parse_from(&line) {
        Ok(cli) => cli.command,
        Err(error) => panic!("{line:?}: {error}"),
    }
}

fn parsed_run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Run {
    match parsed(arguments) {
        Command::Run(run) => *run,
        other => panic!("{other:?} is not run"),
    }
}

/// The command that the arguments of a set's only container mean. The image's entrypoint stands before them.
fn container_command(set: &DaemonSet) -> Command {
    let container = only_container(set);
    assert_eq!(container.command, None);
    parsed(container.args.as_ref().unwrap().iter().map(String::as_str))
}

fn container_run() -> Run {
    match container_command(&agent_set()) {
        Command::Run(run) => *run,
        other => panic!("{other:?} is not run"),
    }
}

/// The service tags that documented policies name.
fn catalog() -> Catalog {
    let tag = |name| json!({ "name": name, "properties": { "addressPrefixes": ["192.0.2.0/24"] } });
    let names = [
        "AzureCloud.westeurope",
        "AzureMonitor",
        "Storage.eastus",
        "Storage.westeurope",
    ];
    let tags = json!({ "changeNumber": 1, "cloud": "Public", "values": names.map(tag) });
    let tags = ServiceTags::parse(Path::new("tags.json"), tags.to_string().as_bytes(), None);
    Catalog::new(Some(tags.unwrap()))
}

fn compiled(texts: &[(&str, &str)], lifeline: &Lifeline) -> Compiled {
    let named = texts.iter().map(|(file, text)| (Path::new(*file), *text));
    let set = PolicySet::from_texts(named, &catalog()).unwrap_or_else(|errors| panic!("{errors}"));
    policy::compile(&set, lifeline, None).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_manifest_is_a_typed_object_and_the_base_lists_it() {
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Kustomization {
        api_version: String,
        kind: String,
        resources: Vec<String>,
    }
    const FOLDER: &str = "deploy/kubernetes";
    let base: Kustomization =
        serde_yaml_ng::from_str(&text("deploy/kubernetes/kustomization.yaml")).unwrap();
    assert_eq!(base.api_version, "kustomize.config.k8s.io/v1beta1");
    assert_eq!(base.kind, "Kustomization");

    let namespace: Namespace = object("deploy/kubernetes/namespace.yaml");
    let account: ServiceAccount = object("deploy/kubernetes/serviceaccount.yaml");
    for metadata in [
        &account.metadata,
        &config_map().metadata,
        &agent_set().metadata,
        &unload_set().metadata,
    ] {
        assert_eq!(metadata.namespace, namespace.metadata.name, "{metadata:?}");
    }

    // The base is the kinds of policies and everything that is here, but for what takes it away again.
    let (kinds, resources) = base.resources.split_first().unwrap();
    assert_eq!(kinds, "../crds");
    let mut listed: Vec<String> = ["kustomization.yaml", "unload.yaml"]
        .into_iter()
        .map(str::to_owned)
        .chain(resources.to_vec())
        .map(|file| format!("{FOLDER}/{file}"))
        .collect();
    listed.sort();
    assert_eq!(listed, files_in(FOLDER));
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_noticed() {
    let misspelt = text("deploy/kubernetes/daemonset.yaml").replace("hostNetwork", "hostNetwrok");
    let written: serde_json::Value = serde_yaml_ng::from_str(&misspelt).unwrap();
    let set: DaemonSet = serde_json::from_value(written.clone()).unwrap();
    assert_ne!(serde_json::to_value(&set).unwrap(), written);
}

#[test]
fn the_arguments_are_what_run_takes_and_leave_every_path_at_its_default() {
    let run = container_run();
    assert_eq!(run.policy, [PathBuf::from(POLICIES)]);
    assert_eq!(run.socket.socket, Path::new(DEFAULT_SOCKET));
    assert_eq!(run.pin_dir, Path::new(DEFAULT_PIN_DIR));
    assert_eq!(run.state_dir, Path::new(DEFAULT_STATE_DIR));
    assert_eq!(run.cgroup, None);
    // The mode is the policy's own, so that changing it is changing the ConfigMap.
    assert_eq!(run.mode, None);
    assert!(run.kubernetes.kubernetes && run.kubernetes.kubeconfig.is_none());
    // Kubernetes puts the variable in, which the container has from its pod.
    assert_eq!(run.kubernetes.node_name.as_deref(), Some("$(NODE_NAME)"));
    let set = agent_set();
    let variable = &only_container(&set).env.as_ref().unwrap()[0];
    assert_eq!(variable.name, "NODE_NAME");
    let source = variable.value_from.as_ref().unwrap();
    let field = source.field_ref.as_ref().unwrap();
    assert_eq!(field.field_path, "spec.nodeName");
    assert!(run.no_lifeline.is_empty() && run.interface.is_empty() && run.scope.is_empty());
    assert_eq!(run.lifeline_cidr.len(), 2, "pods and services");
    // The agent finds them, where nobody has to.
    assert!(run.api_server.is_none() && run.resolver.is_empty());
}

#[test]
fn the_starter_policy_audits_and_compiles_with_the_lifeline_of_the_arguments() {
    let data = config_map().data.unwrap();
    let texts: Vec<(&str, &str)> = data
        .iter()
        .map(|(file, text)| (file.as_str(), text.as_str()))
        .collect();
    let run = container_run();
    let lifeline = Lifeline::new()
        .node_addresses(&[IpAddr::from([10, 0, 0, 5])])
        .dhcp()
        .cluster_ranges(&run.lifeline_cidr);
    let starter = compiled(&texts, &lifeline);
    assert_eq!(starter.mode, Mode::Audit);
    assert!(starter.rules_of_name("registry.example.com").is_none());
    // So are the rules that it shows: taken out of their comments, they compile.
    let shown: Vec<(&str, String)> = texts
        .iter()
        .map(|(file, text)| {
            (
                *file,
                text.replace("allow: []", "allow:")
                    .replace("    # - ", "    - ")
                    .replace("    #   ", "      "),
            )
        })
        .collect();
    let shown: Vec<(&str, &str)> = shown
        .iter()
        .map(|(file, text)| (*file, text.as_str()))
        .collect();
    let compiled = compiled(&shown, &lifeline);
    assert!(compiled.rules_of_name("registry.example.com").is_some());
    assert!(compiled.rules_of_name("elsewhere.example.com").is_none());
}

#[test]
fn the_config_map_as_the_kubelet_lays_it_out_is_a_folder_that_the_agent_reads() {
    // Files are links into a folder that is replaced as a whole.
    let volume = tempfile::tempdir().unwrap();
    let link = |target: &Path, name: &str| {
        std::os::unix::fs::symlink(target, volume.path().join(name)).unwrap();
    };
    let data = volume.path().join("..2026_11_22_03_41_29.1");
    fs::create_dir(&data).unwrap();
    link(Path::new(data.file_name().unwrap()), "..data");
    let files = config_map().data.unwrap();
    for (file, text) in &files {
        fs::write(data.join(file), text).unwrap();
        link(&Path::new("..data").join(file), file);
    }
    let set = policy::load(&[volume.path().to_owned()], &Catalog::default()).unwrap();
    assert_eq!(set.policies().len(), files.len());
}

#[test]
fn every_mount_has_its_volume_and_lies_where_the_binary_looks() {
    for set in [agent_set(), unload_set()] {
        let volumes = pod(&set).volumes.as_ref().unwrap();
        let mounts = only_container(&set).volume_mounts.as_ref().unwrap();
        assert_eq!(volumes.len(), mounts.len());
        for mount in mounts {
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.unwrap_or_else(|| panic!("no volume {}", mount.name));
            // A path of the node is the same on both sides, so that messages fit either.
            if let Some(HostPathVolumeSource { path, type_ }) = &volume.host_path {
                assert_eq!(*path, mount.mount_path);
                assert!(type_.is_some(), "{path}: must it be there?");
            }
        }
        let bpffs = mounts.iter().find(|mount| mount.mount_path == BPFFS);
        assert_eq!(bpffs.unwrap().read_only, None);
        assert!(
            Path::new(DEFAULT_PIN_DIR)
                .parent()
                .unwrap()
                .starts_with(BPFFS)
        );
    }

    let set = agent_set();
    let mounts = only_container(&set).volume_mounts.as_ref().unwrap();
    let at = |path: &str| -> &VolumeMount {
        let found = mounts.iter().find(|mount| mount.mount_path == path);
        found.unwrap_or_else(|| panic!("nothing is mounted at {path}"))
    };
    // A file that is mounted by subPath never changes.
    assert_eq!(at(POLICIES).sub_path, None);
    assert_eq!(at(POLICIES).read_only, Some(true));
    assert_eq!(at(CGROUP_ROOT).read_only, Some(true));
    let socket_folder = Path::new(DEFAULT_SOCKET).parent().unwrap();
    assert_eq!(at(socket_folder.to_str().unwrap()).read_only, None);
    assert_eq!(at(DEFAULT_STATE_DIR).read_only, None);
    assert_eq!(at("/run/systemd/resolve").read_only, Some(true));
    assert_eq!(mounts.len(), 6, "what the binary needs and nothing else");

    let volumes = pod(&set).volumes.as_ref().unwrap();
    let policies = volumes.iter().find_map(|volume| volume.config_map.as_ref());
    assert_eq!(policies.unwrap().name, config_map().metadata.name.unwrap());
}

#[test]
fn probes_parse_and_none_kills_an_agent_for_a_bad_policy() {
    let set = agent_set();
    let container = only_container(&set);
    let command = |probe: &Option<Probe>| -> Command {
        let exec = probe.as_ref().unwrap().exec.as_ref().unwrap();
        let (program, arguments) = exec.command.as_ref().unwrap().split_first().unwrap();
        assert_eq!(program, BINARY);
        parsed(arguments.iter().map(String::as_str))
    };
    // `status` fails when not all is enforced that should be, `counters` only when nobody answers.
    let ready = command(&container.readiness_probe);
    assert!(matches!(ready, Command::Status(_)), "{ready:?}");
    for alive in [&container.liveness_probe, &container.startup_probe] {
        let alive = command(alive);
        assert!(matches!(alive, Command::Counters(_)), "{alive:?}");
    }
}

#[test]
fn pods_run_on_every_node_with_the_account_that_exists_and_only_agents_have_its_token() {
    let account: ServiceAccount = object("deploy/kubernetes/serviceaccount.yaml");
    assert_eq!(account.automount_service_account_token, Some(false));
    for (set, has_token) in [(agent_set(), true), (unload_set(), false)] {
        let pod = pod(&set);
        assert_eq!(pod.service_account_name, account.metadata.name);
        assert_eq!(pod.automount_service_account_token, Some(has_token));
        assert_eq!(pod.host_network, Some(true));
        assert_eq!(pod.dns_policy.as_deref(), Some("Default"));
        assert_eq!((pod.host_pid, pod.host_ipc), (None, None));
        let priority = pod.priority_class_name.as_deref();
        assert_eq!(priority, Some("system-node-critical"));
        let tolerations = pod.tolerations.as_ref().unwrap();
        assert!(tolerations.iter().any(|toleration| {
            toleration.operator.as_deref() == Some("Exists") && toleration.key.is_none()
        }));
        let security = only_container(&set).security_context.as_ref().unwrap();
        assert_eq!(security.privileged, Some(false));
        assert_eq!(security.allow_privilege_escalation, Some(false));
        let capabilities = security.capabilities.as_ref().unwrap();
        let three = ["BPF", "NET_ADMIN", "PERFMON"].map(str::to_owned);
        assert_eq!(capabilities.add.as_deref(), Some(three.as_slice()));
        assert_eq!(
            capabilities.drop.as_deref(),
            Some(["ALL".to_owned()].as_slice())
        );
        let seccomp = security.seccomp_profile.as_ref().unwrap();
        assert_eq!(seccomp.type_, "Unconfined");
        assert_eq!(security.read_only_root_filesystem, Some(true));
        // The pods that the set looks for are those that it makes.
        let spec = set.spec.as_ref().unwrap();
        let labels = spec.template.metadata.as_ref().unwrap().labels.as_ref();
        assert_eq!(spec.selector.match_labels.as_ref(), labels);
    }
    let update = agent_set().spec.unwrap().update_strategy.unwrap();
    let rolling = update.rolling_update.unwrap();
    assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(1)));
    // Two agents cannot hold one pin directory.
    assert_eq!(rolling.max_surge, None);
}

#[test]
fn the_second_set_unloads_what_the_first_pinned() {
    let (agent, unload) = (agent_set(), unload_set());
    assert_ne!(agent.metadata.name, unload.metadata.name);
    let selector = |set: &DaemonSet| set.spec.as_ref().unwrap().selector.clone();
    assert_ne!(selector(&agent), selector(&unload));
    assert_eq!(only_container(&agent).image, only_container(&unload).image);
    match container_command(&unload) {
        Command::Unload(unload) => assert_eq!(unload.pin_dir, container_run().pin_dir),
        other => panic!("{other:?} is not unload"),
    }
}

#[test]
fn the_image_is_what_xtask_makes_of_the_binary_that_it_builds() {
    let set = agent_set();
    let image = only_container(&set).image.as_ref().unwrap();
    let name = image.rsplit('/').next().unwrap();
    assert_eq!(name, concat!("egress-agent:", env!("CARGO_PKG_VERSION")));

    // The release binary is all that the build context holds.
    let built = Path::new(env!("CARGO_BIN_EXE_egress-agent"));
    let built = built.file_name().unwrap().to_str().unwrap();
    let build = text("xtask/src/build.rs");
    assert!(build.contains(&format!("\"release/{built}\"")));
    let image = text("xtask/src/image.rs");
    assert!(image.contains(&format!("context.join(\"{built}\")")));
    assert!(image.contains("\"deploy/Containerfile\""));

    let file = text("deploy/Containerfile").replace("\\\n", " ");
    let instructions: Vec<String> = file
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter(|line| !line.starts_with("LABEL "))
        .map(str::to_owned)
        .collect();
    let folder = Path::new(BINARY).parent().unwrap().display();
    let expected = [
        "FROM scratch".to_owned(),
        format!("COPY {built} {BINARY}"),
        format!("ENV PATH={folder}"),
        format!("ENTRYPOINT [\"{BINARY}\"]"),
    ];
    assert_eq!(instructions, expected);
}

/// Settings of a unit file, by section and key.
fn unit(path: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut section = String::new();
    let mut settings: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in text(path).lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            section = name.strip_suffix(']').unwrap().to_owned();
        } else {
            let (key, value) = line.split_once('=').unwrap();
            let key = (section.clone(), key.to_owned());
            settings.entry(key).or_default().push(value.to_owned());
        }
    }
    settings
}

#[test]
fn the_unit_starts_run_with_its_defaults_and_what_they_need() {
    let unit = unit("deploy/systemd/egress-agent.service");
    let service = |key: &str| unit.get(&("Service".to_owned(), key.to_owned()));
    let one = |key: &str| -> &str {
        let values = service(key).unwrap_or_else(|| panic!("no {key}"));
        assert_eq!(values.len(), 1, "{key}");
        &values[0]
    };
    let mut words = one("ExecStart").split_whitespace();
    assert_eq!(words.next(), Some(BINARY));
    let run = parsed_run(words);
    assert_eq!(run.policy, [PathBuf::from(POLICIES)]);
    assert_eq!(run.pin_dir, Path::new(DEFAULT_PIN_DIR));
    assert_eq!(run.socket.socket, Path::new(DEFAULT_SOCKET));
    let folder = Path::new("/run").join(one("RuntimeDirectory"));
    assert_eq!(Path::new(DEFAULT_SOCKET).parent(), Some(folder.as_path()));
    let folder = Path::new("/var/lib").join(one("StateDirectory"));
    assert_eq!(run.state_dir, Path::new(DEFAULT_STATE_DIR));
    assert_eq!(run.state_dir, folder);
    // All of /sys is read-only but where the agent pins.
    // Which would make the bpffs read-only, whatever else the unit says (tests/tests/netns/systemd.rs).
    assert_eq!(service("ProtectKernelTunables"), None);
    assert_eq!(one("ReadOnlyPaths"), "/sys /proc/sys");
    assert_eq!(one("ReadWritePaths"), BPFFS);
    assert_eq!(one("Restart"), "always");
    // Stopping must not unload.
    assert_eq!((service("ExecStop"), service("ExecStopPost")), (None, None));
}

#[test]
fn the_policy_for_a_plain_node_audits_and_compiles() {
    let set = policy::load(
        &[root().join("deploy/systemd/policies")],
        &Catalog::default(),
    )
    .unwrap();
    let compiled = policy::compile(&set, &Lifeline::new(), None).unwrap();
    assert_eq!(compiled.mode, Mode::Audit);
    assert!(compiled.rules_of_name("packages.example.com").is_some());
}

/// Blocks between ``` lines, each with its language.
fn blocks(markdown: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in markdown.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(block)) => found.push(block),
            (None, Some((language, text))) => open = Some((language, text + line + "\n")),
            (None, None) => {}
        }
    }
    assert_eq!(open, None, "a block without end");
    found
}

#[test]
fn policies_in_the_readme_and_the_page_on_policies_compile() {
    let policies: Vec<(String, String)> = ["README.md", "docs/policy.md"]
        .map(text)
        .iter()
        .flat_map(|text| blocks(text))
        .filter(|(_, text)| text.contains("kind: EgressPolicy") && text.contains("serviceTags:"))
        .collect();
    let short = blocks(&text("README.md"))
        .into_iter()
        .find(|(_, text)| text.contains("kind: EgressPolicy"))
        .unwrap();
    for (language, text) in policies.iter().chain([&short]) {
        assert_eq!(language, "yaml");
        compiled(&[("policy.md", text)], &Lifeline::new());
    }
    // The one with all fields names every field of the schema.
    let [(_, full)] = policies.as_slice() else {
        panic!("one policy with all fields: {policies:?}");
    };
    let written: egress_agent::policy::EgressPolicy = serde_yaml_ng::from_str(full).unwrap();
    let complete = serde_json::to_value(&written.spec).unwrap();
    let raw: serde_json::Value = serde_yaml_ng::from_str(full).unwrap();
    let fields = |value: &serde_json::Value| -> Vec<String> {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(fields(&raw["spec"]), fields(&complete));
}

#[test]
fn policies_in_the_page_on_kubernetes_compile() {
    let page = text("docs/kubernetes.md");
    let policies = blocks(&page)
        .into_iter()
        .filter(|(language, _)| language == "yaml");
    let mut count = 0_usize;
    for (_, text) in policies {
        compiled(&[("kubernetes.md", &text)], &Lifeline::new());
        count = count.saturating_add(1);
    }
    assert!(count >= 4, "{count}");
}

/// Words of a shell line up to a comment, an operator or a redirection.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        if word.starts_with('#') || ["|", "&&", ";", ">"].contains(&word) {
            break;
        }
        words.push(word.trim_matches(['"', '\'']).to_owned());
    }
    words
}

#[test]
fn commands_of_the_agent_in_the_docs_parse() {
    let mut count = 0_usize;
    let texts = [
        "README.md",
        "docs/node.md",
        "docs/cli.md",
        "docs/policy.md",
        "docs/kubernetes.md",
        "docs/service-tags.md",
    ]
    .map(text);
    for (language, block) in texts.iter().flat_map(|text| blocks(text)) {
        if language != "console" && language != "sh" {
            continue;
        }
        for line in block.replace("\\\n", " ").lines() {
            let words = shell_words(line);
            let Some(at) = words
                .iter()
                .position(|word| word == "egress-agent" || word.ends_with("/egress-agent"))
            else {
                continue;
            };
            // A word before it starts it: a prompt, sudo, `kubectl exec … --`.
            let before = words.get(at.wrapping_sub(1)).map(String::as_str);
            if !matches!(before, None | Some("$" | "#" | "sudo" | "--")) {
                continue;
            }
            let arguments = words.iter().skip(at.saturating_add(1));
            parsed(arguments.map(String::as_str));
            count = count.saturating_add(1);
        }
    }
    assert!(count >= 8, "{count} commands found");
}

#[test]
fn rules_and_settings_in_the_page_on_service_tags_are_read() {
    let blocks = blocks(&text("docs/service-tags.md"));
    let yaml: Vec<&str> = blocks
        .iter()
        .filter(|(language, _)| language == "yaml")
        .map(|(_, text)| text.as_str())
        .collect();
    let [rules, settings] = yaml.as_slice() else {
        panic!("{yaml:?}");
    };
    let head = "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: { name: node }\n";
    let policy = format!("{head}{rules}");
    let compiled = compiled(&[("service-tags.md", &policy)], &Lifeline::new());
    assert_eq!(compiled.rules.len(), 3);
    let settings = Settings::parse(Path::new("/etc/egress/agent.yaml"), settings).unwrap();
    assert!(settings.service_tags.is_some());
}

#[test]
fn the_documented_query_names_the_set_that_exists() {
    let set = agent_set();
    let query = format!(
        "kubectl exec -n {} ds/{} -- egress-agent counters",
        set.metadata.namespace.unwrap(),
        set.metadata.name.unwrap()
    );
    assert!(text("docs/kubernetes.md").contains(&query), "{query}");
}
