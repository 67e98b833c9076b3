//! An API server with our definitions.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use egress_tests::{
    Cluster, eventually,
    kubernetes::{self, Shared},
};
use serde_json::{Value, json};

/// How long what controllers do may take.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Where policies of the tests live.
pub(crate) const NAMESPACE: &str = "shop";
/// Other namespaces: one in which nobody has rights, one with policies of its own, that of the agents.
const OTHERS: [&str; 3] = ["other", "columns", "egress-system"];

/// A file or folder in `deploy/`.
pub(crate) fn deploy(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("deploy").join(name).to_str().unwrap().to_owned()
}

/// The server with the definitions and the namespaces; `None` if it cannot be had here.
pub(crate) fn cluster() -> Option<Shared> {
    kubernetes::ready().then(|| Cluster::shared(install).unwrap())
}

/// Installs the definitions and makes the namespaces.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    let namespace = |name: &str| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    let items: Vec<Value> = OTHERS
        .iter()
        .chain([&NAMESPACE])
        .map(|name| namespace(name))
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let file = write(cluster, "namespaces.json", &list.to_string());
    cluster.get(["create", "-f", &file])?;
    cluster.get(["apply", "--server-side", "-k", &deploy("crds")])?;
    // The server begins to serve a kind a moment after it says so.
    let get = ["get", "egresspolicies,clusteregresspolicies", "-A"];
    let serves = || {
        cluster
            .kubectl(get)
            .is_ok_and(|output| output.code() == Some(0))
    };
    if !eventually(SOON, serves) {
        bail!("the kinds are not served");
    }
    Ok(())
}

/// A file of the test; several tests share the folder.
pub(crate) fn write(cluster: &Cluster, name: &str, text: &str) -> String {
    let path: PathBuf = cluster.dir().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A JSON text.
pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}
