//! What is said about values that cannot be used.

use super::{SITE, given};
use crate::preset::Presets;

fn errors(name: &str, with: &[&str]) -> String {
    Presets::default()
        .expand(name, &given(with), SITE)
        .unwrap_err()
        .to_string()
}

#[test]
fn values_that_cannot_be_used_get_one_message_each() {
    let global = "aks/azure-global";
    for (name, with, message) in [
        (
            "aks/azure-globl",
            &[][..],
            "NAME: \"aks/azure-globl\" is not a preset; write aks/azure-global: `egress-agent preset list` shows all",
        ),
        (
            "gpu",
            &[],
            "NAME: \"gpu\" is not a preset; write aks/addon/gpu: `egress-agent preset list` shows all",
        ),
        (
            "no/such-preset",
            &[],
            "NAME: \"no/such-preset\" is not a preset; `egress-agent preset list` shows all",
        ),
        (
            global,
            &[],
            "--with: preset aks/azure-global needs location: The region of the cluster, such as eastus; write --with location=eastus",
        ),
        (
            global,
            &["locaton=eastus", "location=eastus"],
            "--with: locaton: preset aks/azure-global has no variable \"locaton\"; write location: its variables are location, privateCluster, apiServerName, apiServer, konnectivity, tunnelTo, tunnelCidrs, ntp, customDns, managedDisks, vmExtensions",
        ),
        (
            global,
            &["location=East US"],
            "--with: location: \"East US\" is not a region as names have it; write eastus",
        ),
        (
            global,
            &["location=a.b"],
            "--with: location: \"a.b\" is not a region; write letters and digits, such as eastus",
        ),
        (
            global,
            &["location=eastus,westus"],
            "--with: location: has 2 values where one is needed; write --with location=eastus",
        ),
        (
            global,
            &["location=eastus", "location=eastus"],
            "--with: location: is given twice; keep one of them",
        ),
        (
            global,
            &["location=eastus", "privateCluster=yes"],
            "--with: privateCluster: \"yes\" is not a value that exists here; write true or false",
        ),
        (
            global,
            &["location=eastus", "ntp=on"],
            "--with: ntp: \"on\" is not a value that exists here; write off or name or anywhere",
        ),
        (
            global,
            &["location=eastus", "apiServer=mine.example.com"],
            "--with: apiServer: \"mine.example.com\" is not a CIDR but looks like a name; write names: [\"mine.example.com\"]",
        ),
        (
            global,
            &["location=eastus", "apiServerName=192.0.2.1"],
            "--with: apiServerName: \"192.0.2.1\" is not a name: it is an address; write cidrs: [\"192.0.2.1/32\"]",
        ),
        (
            global,
            &["location=eastus", "konnectivity=false"],
            "--with: preset aks/azure-global needs tunnelCidrs: The API server's public address, or the networks of the region; write --with tunnelCidrs=192.0.2.0/24",
        ),
        (
            global,
            &["location=eastus", "konnectivity=false", "tunnelCidrs="],
            "--with: tunnelCidrs: is empty; write at least one, such as 192.0.2.0/24",
        ),
        (
            global,
            &["location=eastus", "tunnelCidrs=192.0.2.1"],
            "--with: tunnelCidrs: has no effect while konnectivity is true; leave it out, or write konnectivity: false",
        ),
        (
            global,
            &[
                "location=eastus",
                "privateCluster=true",
                "tunnelTo=anywhere",
            ],
            "--with: tunnelTo: has no effect while privateCluster is true; leave it out, or write privateCluster: false",
        ),
        (
            "aks/network-isolated",
            &["registry=contoso.azurecr.io", "location=eastus"],
            "--with: registry: \"contoso.azurecr.io\" is not one label of a name; write contoso",
        ),
        (
            "aks/addon/key-vault",
            &["cloud=china-21vianet"],
            "--with: cloud: \"china-21vianet\" is not a value that exists here; write azure-global or us-government",
        ),
        (
            "aks/addon/gpu",
            &["cloud=x"],
            "--with: cloud: preset aks/addon/gpu has no variable \"cloud\"; it has none: leave with out",
        ),
    ] {
        assert_eq!(errors(name, with), message, "{name} {with:?}");
    }
}

#[test]
fn every_missing_and_wrong_value_is_told_at_once() {
    let messages = errors(
        "aks/network-isolated",
        &["apiServer=10.0.0.1/8", "dns=10.0.0.1"],
    );
    assert_eq!(messages.lines().count(), 4, "{messages}");
    assert!(
        messages.contains("needs registry") && messages.contains("needs location"),
        "{messages}"
    );
    assert!(
        messages.contains("has host bits set") && messages.contains("no variable \"dns\""),
        "{messages}"
    );
}
