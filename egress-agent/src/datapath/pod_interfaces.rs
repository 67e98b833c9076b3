//! The tc pair on the host's ends of pods' interfaces.
//!
//! `tc_egress` judges what leaves a pod, which arrives at the host's end; `tc_ingress` looks at what goes to it. So each
//! lies where the other does on an interface of the node. Links are pinned as `HOOK@INTERFACE`.

use std::{collections::BTreeSet, fs, path::PathBuf};

use aya::programs::TcAttachType;
use egress_common::{
    maps::{Interface, LEADS_TO_POD},
    verdict::Hook,
};
use tracing::{debug, warn};

use super::{
    Datapath, DatapathError, interface_facts,
    layout::links_dir,
    load::{self, Loaded},
    sys,
};
use crate::workload::PodInterface;

/// Learns before it judges, so that no answer is missed by what is judged.
const HOOKS: [(Hook, TcAttachType); 2] = [
    (Hook::TcIngress, TcAttachType::Egress),
    (Hook::TcEgress, TcAttachType::Ingress),
];

/// What stands between hook and interface in the name of a pin.
const SEPARATOR: char = '@';

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
        let attached = std::mem::take(&mut self.pod_interfaces.attached);
        for gone in attached.difference(wanted) {
            self.maps.remove_interface(gone.index);
        }
        self.loaded.forget_pod_interfaces(wanted);
        let mut now = BTreeSet::new();
        for interface in wanted {
            if attached.contains(interface) && self.loaded.is_pod_interface_attached(interface) {
                now.insert(interface.clone());
                continue;
            }
            match self.attach_pod_interface(interface, owner) {
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

    fn attach_pod_interface(
        &mut self,
        interface: &PodInterface,
        owner: u64,
    ) -> Result<(), DatapathError> {
        let (_, header_bytes) = interface_facts(&interface.name)?;
        let facts = Interface {
            header_bytes,
            flags: LEADS_TO_POD,
            owner,
        };
        self.maps.add_interface(interface.index, facts)?;
        for (hook, kind) in HOOKS {
            let pin = self.loaded.pod_pin(hook, &interface.name);
            self.loaded.attach_tc(hook, &interface.name, kind, &pin)?;
        }
        Ok(())
    }
}

impl Loaded {
    fn pod_pin(&self, hook: Hook, interface: &str) -> PathBuf {
        let name = format!("{}{SEPARATOR}{interface}", hook.name());
        links_dir(&self.options.pin_dir).join(name)
    }

    /// Whether nobody took the programs off. Filters of kernels without TCX are not looked at.
    fn is_pod_interface_attached(&self, interface: &PodInterface) -> bool {
        HOOKS.iter().all(|(hook, _)| {
            let pin = self.pod_pin(*hook, &interface.name);
            !pin.exists() || load::is_attached(&pin)
        })
    }

    /// Removes the links of interfaces that are gone or no longer wanted.
    fn forget_pod_interfaces(&self, wanted: &BTreeSet<PodInterface>) {
        let Ok(entries) = fs::read_dir(links_dir(&self.options.pin_dir)) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let interface = name.to_str().and_then(|name| name.split_once(SEPARATOR));
            let Some((_, interface)) = interface else {
                continue;
            };
            let is_wanted = wanted.iter().any(|one| one.name == interface);
            // A link whose interface is gone is dead, also when another interface has the name now.
            if is_wanted && load::is_attached(&entry.path()) {
                continue;
            }
            if let Ok(link) = sys::object(&entry.path()) {
                let _ = sys::detach_link(&link);
            }
            if let Err(error) = fs::remove_file(entry.path()) {
                warn!(%error, interface, "cannot remove the link of a pod's interface");
            }
        }
    }
}
