//! The agents' own account on the server, with its token and what it may do.

use std::fs;

use egress_tests::Cluster;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::installed::{deploy, json, write};

/// Where the agents live.
pub(crate) const AGENTS: &str = "egress-system";

/// A file with which kubectl and agents are what the deployed agents are; returns its path.
pub(crate) fn kubeconfig(cluster: &Cluster) -> String {
    kubeconfig_by(cluster, cluster.port())
}

/// The same, for who comes through another port.
pub(crate) fn kubeconfig_by(cluster: &Cluster, port: u16) -> String {
    for file in ["serviceaccount.yaml", "rbac.yaml"] {
        let file = deploy(&format!("kubernetes/{file}"));
        let apply = ["apply", "--server-side", "-f", &file];
        cluster.get(apply).unwrap();
    }
    let token = token(cluster, "egress-agent");
    let file = cluster.kubeconfig_with(port, Some(&token)).unwrap();
    // Where it lives, as a pod of it knows.
    let text = fs::read_to_string(&file).unwrap();
    let its = format!("user: admin, namespace: {AGENTS} }}");
    fs::write(&file, text.replace("user: admin }", &its)).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A token of an account where the agents live.
pub(crate) fn token(cluster: &Cluster, account: &str) -> String {
    let request =
        r#"{ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} }"#;
    let request = write(cluster, "token.json", request);
    let path = format!("/api/v1/namespaces/{AGENTS}/serviceaccounts/{account}/token");
    let answer = json(
        &cluster
            .get(["create", "--raw", &path, "-f", &request])
            .unwrap(),
    );
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// A client with that account.
pub(crate) async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.unwrap()).unwrap()
}
