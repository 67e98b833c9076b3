//! Tests of the module as a whole: the data, expansions, messages, folders, and the documents behind it.

#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod documents;
#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod flat;
mod folder;
mod messages;
mod policies;
mod prose;
mod reference;
mod seeds;

use std::{collections::BTreeSet, path::Path};

use super::{Expansion, Given, Presets, Site, folder::files_below};
use crate::write::write_policies;

/// Values as `with` gives them: `name=value`, commas between items.
fn given(with: &[&str]) -> Vec<Given> {
    let given = with.iter().map(|text| {
        let (name, value) = text.split_once('=').unwrap();
        let items = value.split(',').filter(|item| !item.is_empty());
        Given {
            name: name.to_owned(),
            texts: items.map(str::to_owned).collect(),
            line: 7,
        }
    });
    given.collect()
}

const SITE: Site<'static> = Site::CommandLine;

fn expand(name: &str, with: &[&str]) -> Expansion {
    let expansion = Presets::default().expand(name, &given(with), SITE);
    expansion.unwrap_or_else(|errors| panic!("{name}: {errors}"))
}

/// All destinations with their ports.
fn destinations(expansion: &Expansion) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for rule in &expansion.rules {
        for destination in [&rule.names, &rule.cidrs, &rule.service_tags]
            .into_iter()
            .flatten()
        {
            all.extend(
                rule.ports
                    .iter()
                    .map(|port| format!("{destination} {port}")),
            );
        }
    }
    all
}

#[test]
fn every_file_of_the_folder_is_in_the_binary() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("presets");
    let files = files_below(&folder).unwrap().unwrap();
    let in_folder: BTreeSet<String> = files
        .iter()
        .map(|file| super::decode::name_of(file.strip_prefix(&folder).unwrap()).unwrap())
        .collect();
    let presets = Presets::default();
    let in_binary: BTreeSet<String> = presets.all().map(|preset| preset.name.clone()).collect();
    assert_eq!(in_folder, in_binary);
    for name in [
        "aks/azure-global",
        "aks/china-21vianet",
        "aks/us-government",
        "aks/network-isolated",
        "aks/addon/optional-updates",
        "aks/addon/gpu",
        "aks/addon/windows",
        "aks/addon/workload-identity",
        "aks/addon/defender",
        "aks/addon/key-vault",
        "aks/addon/azure-monitor",
        "aks/addon/azure-policy",
        "aks/addon/cost-analysis",
        "aks/addon/cluster-extensions",
        "azureml/basic",
        "azureml/training",
        "azureml/python-packages",
        "azureml/rstudio",
        "azureml/r-packages",
        "azureml/compute-public-ip",
        "azureml/compute-no-public-ip",
        "azureml/storage",
        "azureml/hbi",
        "azureml/kubernetes-compute",
        "azureml/vscode",
        "azureml/docker-images",
    ] {
        assert!(in_binary.contains(name), "{name}");
    }
}

#[test]
fn with_its_defaults_the_public_cloud_opens_no_more_than_it_needs() {
    let found = destinations(&expand("aks/azure-global", &["location=EastUS"]));
    let wanted = [
        "*.hcp.eastus.azmk8s.io",
        "mcr.microsoft.com",
        "*.data.mcr.microsoft.com",
        "mcr-0001.mcr-msedge.net",
        "management.azure.com",
        "login.microsoftonline.com",
        "packages.microsoft.com",
        "acs-mirror.azureedge.net",
        "packages.aks.azure.com",
    ];
    let wanted: BTreeSet<String> = wanted
        .iter()
        .map(|name| format!("{name} 443/tcp"))
        .collect();
    assert_eq!(found, wanted);
}

#[test]
fn conditions_open_and_close() {
    let differs = |with: &[&str]| -> (Vec<String>, Vec<String>) {
        let base = destinations(&expand("aks/azure-global", &["location=eastus"]));
        let with = [&["location=eastus"], with].concat();
        let other = destinations(&expand("aks/azure-global", &with));
        let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
        (only(&other, &base), only(&base, &other))
    };
    let texts = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    for (with, more, less) in [
        (
            &["privateCluster=true"][..],
            &[][..],
            &["*.hcp.eastus.azmk8s.io 443/tcp"][..],
        ),
        (
            &["apiServerName=mine.hcp.eastus.azmk8s.io"],
            &["mine.hcp.eastus.azmk8s.io 443/tcp"],
            &["*.hcp.eastus.azmk8s.io 443/tcp"],
        ),
        (
            &["apiServer=192.0.2.1,192.0.2.2"],
            &["192.0.2.1/32 443/tcp", "192.0.2.2/32 443/tcp"],
            &[],
        ),
        (
            &["konnectivity=false", "tunnelCidrs=192.0.2.1"],
            &["192.0.2.1/32 1194/udp", "192.0.2.1/32 9000/tcp"],
            &[],
        ),
        (
            &["konnectivity=false", "tunnelTo=service-tag"],
            &["AzureCloud.eastus 1194/udp", "AzureCloud.eastus 9000/tcp"],
            &[],
        ),
        (
            &["konnectivity=false", "tunnelTo=anywhere"],
            &[
                "0.0.0.0/0 1194/udp",
                "0.0.0.0/0 9000/tcp",
                "::/0 1194/udp",
                "::/0 9000/tcp",
            ],
            &[],
        ),
        (&["ntp=name"], &["ntp.ubuntu.com 123/udp"], &[]),
        (
            &["ntp=anywhere"],
            &["0.0.0.0/0 123/udp", "::/0 123/udp"],
            &[],
        ),
        (&["customDns=10.0.0.10"], &["10.0.0.10/32 53/udp"], &[]),
        (
            &["managedDisks=true"],
            &["md-*.blob.storage.azure.net 443/tcp"],
            &[],
        ),
        (
            &["vmExtensions=true"],
            &["umsa*.blob.core.windows.net 443/tcp"],
            &[],
        ),
    ] {
        assert_eq!(differs(with), (texts(more), texts(less)), "{with:?}");
    }
}

#[test]
fn a_network_isolated_cluster_reaches_nothing_public() {
    let with = ["registry=Contoso", "location=westeurope"];
    let found = destinations(&expand("aks/network-isolated", &with));
    let wanted = [
        "contoso.azurecr.io 443/tcp",
        "contoso.westeurope.data.azurecr.io 443/tcp",
    ];
    assert_eq!(found, wanted.map(str::to_owned).into());
}

#[test]
fn expansions_are_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testdata/presets");
    let presets = Presets::default();
    for (file, name, with) in [
        ("azure-global", "aks/azure-global", &["location=eastus"][..]),
        (
            "azure-global-all",
            "aks/azure-global",
            &[
                "location=eastus",
                "apiServer=192.0.2.1",
                "konnectivity=false",
                "tunnelTo=service-tag",
                "ntp=anywhere",
                "customDns=10.0.0.10,fd00::10",
                "managedDisks=true",
                "vmExtensions=true",
            ],
        ),
        (
            "china-21vianet",
            "aks/china-21vianet",
            &["location=chinaeast2"],
        ),
        (
            "us-government",
            "aks/us-government",
            &["location=usgovvirginia", "privateCluster=true"],
        ),
        (
            "azure-monitor",
            "aks/addon/azure-monitor",
            &["cloud=us-government", "location=usgovvirginia"],
        ),
        ("istio", "aks/addon/istio", &["vaults=mine.vault.azure.net"]),
        (
            "kubernetes-compute",
            "azureml/kubernetes-compute",
            &["region=westus2", "registry=contoso", "securityPatches=true"],
        ),
    ] {
        let preset = presets.get(name).unwrap();
        let text = write_policies(&[preset.draft(&expand(name, with))]);
        let golden = folder.join(format!("{file}.yaml"));
        assert_eq!(text, crate::golden::golden(&golden, &text), "{file}");
    }
}
