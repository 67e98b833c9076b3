//! The agents' own account on the server, with its token and what it may do.

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
    for file in ["serviceaccount.yaml", "rbac.yaml"] {
        let file = deploy(&format!("kubernetes/{file}"));
        let apply = ["apply", "--server-side", "-f", &file];
        cluster.get(apply).unwrap();
    }
    let request =
        r#"{ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} }"#;
    let request = write(cluster, "token.json", request);
    let path = format!("/api/v1/namespaces/{AGENTS}/serviceaccounts/egress-agent/token");
    let answer = json(
        &cluster
            .get(["create", "--raw", &path, "-f", &request])
            .unwrap(),
    );
    let token = answer["status"]["token"].as_str().unwrap();
    let file = cluster
        .kubeconfig_with(cluster.port(), Some(token))
        .unwrap();
    file.to_str().unwrap().to_owned()
}

/// A client with that account.
pub(crate) async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.unwrap()).unwrap()
}
