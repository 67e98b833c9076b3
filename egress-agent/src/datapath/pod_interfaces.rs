//! The tc pair on the host's ends of pods' interfaces.
//!
//! `tc_egress` judges what leaves a pod, which arrives at the host's end; `tc_ingress` looks at what goes to it. So each
//! lies where the other does on an interface of the node. Links are pinned as `HOOK@INTERFACE`.

use std::collections::BTreeSet;

use aya::programs::TcAttachType;
use egress_common::verdict::Hook;
use tracing::debug;

use super::{
    Datapath, DatapathError,
    attached::{Anchors, Place, interface_pin},
};
use crate::workload::PodInterface;

/// Learns before it judges, so that no answer is missed by what is judged.
const HOOKS: [(Hook, TcAttachType); 2] = [
    (Hook::TcIngress, TcAttachType::Egress),
    (Hook::TcEgress, TcAttachType::Ingress),
];

/// Separates hook and interface in the name of a pin.
const SEPARATOR: char = '@';

/// True if a pin is of a hook at a pod's interface.
pub(super) fn is_pod_pin(pin: &str) -> bool {
    let mut rest = HOOKS
        .iter()
        .filter_map(|(hook, _)| pin.strip_prefix(hook.name()));
    rest.any(|rest| rest.starts_with(SEPARATOR))
}

/// Pods' interfaces as they are judged.
#[derive(Debug, Default)]
pub(super) struct PodInterfaces {
    attached: BTreeSet<PodInterface>,
}

impl Datapath {
    /// Makes exactly these judged; returns what could not be done, by interface. What has no socket there is judged as
    /// what the cgroup `owner` sends, until the pod is known.
    pub fn set_pod_interfaces(
        &mut self,
        wanted: &BTreeSet<PodInterface>,
        owner: u64,
    ) -> Vec<(String, DatapathError)> {
        let mut failed = Vec::new();
        let Some(held) = self.loaded.anchors.clone() else {
            return failed;
        };
        let attached = std::mem::take(&mut self.pod_interfaces.attached);
        let mut anchors = held.lock();
        for gone in attached.difference(wanted) {
            anchors.forget_interface(gone.index);
        }
        let pins: BTreeSet<String> = wanted.iter().flat_map(pins).collect();
        anchors.let_go(|pin| !is_pod_pin(pin) || pins.contains(pin));
        drop(anchors);
        let mut now = BTreeSet::new();
        for interface in wanted {
            if attached.contains(interface) && is_pod_interface_held(&held, interface) {
                now.insert(interface.clone());
                continue;
            }
            match attach_pod_interface(&held, interface, owner) {
                Ok(()) => {
                    debug!(interface = interface.name, "pod's interface is judged");
                    now.insert(interface.clone());
                }
                // It went while it was looked at.
                Err(_) if nix::net::if_::if_nametoindex(interface.name.as_str()).is_err() => {}
                Err(error) => failed.push((interface.name.clone(), error)),
            }
        }
        self.pod_interfaces.attached = now;
        failed
    }
}

fn is_pod_interface_held(held: &Anchors, interface: &PodInterface) -> bool {
    let anchors = held.lock();
    pins(interface).iter().all(|pin| anchors.is_held(pin))
}

fn attach_pod_interface(
    held: &Anchors,
    interface: &PodInterface,
    owner: u64,
) -> Result<(), DatapathError> {
    // For each interface anew: others wait for no more than one.
    let mut anchors = held.lock();
    anchors.tell_of_pod(interface, owner)?;
    for (hook, side) in HOOKS {
        let place = Place::Pod(interface.clone(), side);
        let pin = interface_pin(hook, SEPARATOR, &interface.name);
        anchors.attach(pin, hook, place)?;
    }
    Ok(())
}

/// The pins of an interface.
fn pins(interface: &PodInterface) -> [String; 2] {
    HOOKS.map(|(hook, _)| interface_pin(hook, SEPARATOR, &interface.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_pods_and_of_the_node_are_told_apart() {
        for pin in ["tc_egress@pod0", "tc_ingress@a-b", "tc_egress@eth0:100"] {
            assert!(is_pod_pin(pin), "{pin}");
        }
        for pin in [
            "tc_egress-pod0",
            "tc_egress-a@b",
            "skb_egress",
            "new:tc_egress@pod0",
        ] {
            assert!(!is_pod_pin(pin), "{pin}");
        }
    }
}
