//! Pods by the paths of their cgroups.

use std::{
    fmt,
    path::{Path, PathBuf},
};

const KUBEPODS: &str = "kubepods";
const SLICE: &str = ".slice";
/// Between the slice and the name of a container, when the runtime does not speak to systemd.
const RUNTIMES: [&str; 2] = ["cri-containerd", "crio"];
/// Lengths of the groups of hex digits in a UUID.
const UUID_GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
/// Hex digits of the hash that is a static pod's UID.
const HASH_DIGITS: usize = 32;

/// The UID of a pod, as kubelet knows it.
///
/// A UUID, or for a static pod the hash of its manifest. The API server knows a static pod's mirror by another UID;
/// there the hash is the annotation `kubernetes.io/config.hash`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Box<str>);

impl PodUid {
    /// A UUID in small letters, or 32 hex digits.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_uuid = text
            .split('-')
            .map(|group| is_hex(group).then_some(group.len()))
            .eq(UUID_GROUPS.map(Some));
        let is_hash = text.len() == HASH_DIGITS && is_hex(text);
        (is_uuid || is_hash).then(|| Self(text.into()))
    }

    /// From a part of a slice's name, in which `-` would be a level of its own.
    fn from_slice(text: &str) -> Option<Self> {
        (!text.contains('-')).then(|| Self::new(&text.replace('_', "-")))?
    }

    /// As it is written in the API.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How kubelet classes a pod by its requests and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// No requests.
    BestEffort,
}

impl Qos {
    /// By the name of the cgroup between `kubepods` and the pod's; guaranteed pods have none.
    fn named(name: &str) -> Option<Self> {
        match name {
            "burstable" => Some(Self::Burstable),
            "besteffort" => Some(Self::BestEffort),
            _ => None,
        }
    }
}

/// Where in its pod a cgroup lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All that is below is the pod's, and nothing above: the cgroup that kubelet made for it, or that of a container
    /// which lies elsewhere.
    Top,
    /// Below such a cgroup.
    Below,
}

/// The pod that a cgroup belongs to.
///
/// kubelet makes one cgroup for each pod, and the container runtime makes those of the containers below it. What a path
/// says of its pod (`U` is the pod's UID, `U_` the same with `_` for `-`, `ID` a container's id):
///
/// | kubelet's cgroup driver | path |
/// | --- | --- |
/// | `systemd` | `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_.slice`, guaranteed pods `kubepods.slice/kubepods-podU_.slice` |
/// | `systemd`, `--cgroup-root=/kubelet` | `kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/...` |
/// | `cgroupfs` | `kubepods/burstable/podU`, guaranteed pods `kubepods/podU` |
///
/// Each of them may lie below other cgroups (kind: `docker/ID/kubelet.slice/...`). Below a pod's cgroup any name is the
/// pod's: `cri-containerd-ID.scope`, `crio-ID.scope`, `crio-conmon-ID.scope`, `crio-ID`, `ID`, and what a container
/// makes in its own cgroup.
///
/// One form lies elsewhere. When kubelet's driver is `systemd` and the runtime's is not, the runtime takes what was
/// meant for systemd as a name: `system.slice/containerd.service/kubepods-burstable-podU_.slice:cri-containerd:ID`.
/// The pod's own cgroup is then empty.
///
/// Sources: kubelet's [names][kubelet], [pod cgroups][pods] and [UIDs of static pods][static]; containerd's
/// [cgroup paths][containerd] and CRI-O's [systemd][crio-systemd] manager; runc's [`slice:prefix:name`][runc].
///
/// [kubelet]: https://github.com/kubernetes/kubernetes/blob/00ac878efc72b054488300fe600d8a75283b6605/pkg/kubelet/cm/cgroup_manager_linux.go
/// [pods]: https://github.com/kubernetes/kubernetes/blob/00b39fcf8334dc0ce537b3107340d62254038f0e/pkg/kubelet/cm/pod_container_manager_linux.go
/// [static]: https://github.com/kubernetes/kubernetes/blob/00090001f8a67445000858ce9dc4407610944549/pkg/kubelet/config/common.go
/// [containerd]: https://github.com/containerd/containerd/blob/3b0b3e533ce1f60a60ab83905374d1ce43330063/internal/cri/server/podsandbox/helpers_linux.go
/// [crio-systemd]: https://github.com/cri-o/cri-o/blob/006205f3a717975f0710e4da59ae79697f7d3859/internal/config/cgmgr/systemd_linux.go
/// [runc]: https://github.com/opencontainers/runc/blob/02e065efc31911c665cdafe42282b4d62ae431cf/docs/systemd.md
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The pod.
    pub uid: PodUid,
    /// Its class, which never changes.
    pub qos: Qos,
    /// The cgroup's place in the pod.
    pub place: Place,
}

impl PodCgroup {
    /// Reads a path below the root of the hierarchy, as in `/proc/PID/cgroup`; `None` if it is not a pod's.
    ///
    /// A name that only looks like a pod's is not one: a slice that does not lie below the slices that its name says, a
    /// UID of another form, capitals, a path with `..` or empty names. Inside a pod, what looks like another pod (a
    /// kubelet in a container) is the outer one's.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let names: Vec<&str> = path.split('/').collect();
        if names.iter().any(|name| matches!(*name, "" | "." | "..")) {
            return None;
        }
        (0..names.len()).find_map(|index| {
            let (above, rest) = names.split_at(index);
            let (name, below) = rest.split_first()?;
            let (uid, qos) = from_systemd(above, name)
                .or_else(|| from_cgroupfs(above, name))
                .or_else(|| from_mismatch(name))?;
            let place = if below.is_empty() {
                Place::Top
            } else {
                Place::Below
            };
            Some(Self { uid, qos, place })
        })
    }
}

/// The cgroup of kubelet that this pod's cgroup lies below with all others; none where a runtime keeps it elsewhere.
#[must_use]
pub fn kubepods_above(path: &Path) -> Option<PathBuf> {
    let is_kubepods = |name: &str| match name.strip_suffix(SLICE) {
        Some(slice) => slice.rsplit('-').next() == Some(KUBEPODS),
        None => name == KUBEPODS,
    };
    let mut above = path.ancestors().skip(1);
    let found = above.find(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(is_kubepods)
    });
    found.map(Path::to_owned)
}

/// `kubepods-burstable-podU_.slice`, below the slices that its name says (systemd.slice(5)).
fn from_systemd(above: &[&str], name: &str) -> Option<(PodUid, Qos)> {
    let mut slice = name.strip_suffix(SLICE)?;
    let pod = from_slice(slice)?;
    let mut above = above.iter().rev();
    while let Some((parent, _)) = slice.rsplit_once('-') {
        if above.next()?.strip_suffix(SLICE) != Some(parent) {
            return None;
        }
        slice = parent;
    }
    Some(pod)
}

/// `kubepods-burstable-podU_`, with or without names before it.
fn from_slice(slice: &str) -> Option<(PodUid, Qos)> {
    let (parent, pod) = slice.rsplit_once('-')?;
    let uid = PodUid::from_slice(pod.strip_prefix("pod")?)?;
    let mut levels = parent.rsplit('-');
    let last = levels.next()?;
    let (kubepods, qos) = match Qos::named(last) {
        Some(qos) => (levels.next()?, qos),
        None => (last, Qos::Guaranteed),
    };
    let is_pod = kubepods == KUBEPODS && levels.all(|level| !level.is_empty());
    is_pod.then_some((uid, qos))
}

/// `podU`, below `kubepods/burstable`.
fn from_cgroupfs(above: &[&str], name: &str) -> Option<(PodUid, Qos)> {
    let uid = PodUid::new(name.strip_prefix("pod")?)?;
    let (last, above) = above.split_last()?;
    let (kubepods, qos) = match Qos::named(last) {
        Some(qos) => (above.last()?, qos),
        None => (last, Qos::Guaranteed),
    };
    (*kubepods == KUBEPODS).then_some((uid, qos))
}

/// `kubepods-burstable-podU_.slice:cri-containerd:ID`, wherever the runtime puts it.
fn from_mismatch(name: &str) -> Option<(PodUid, Qos)> {
    let (slice, container) = name.split_once(':')?;
    let (runtime, id) = container.split_once(':')?;
    let is_container = RUNTIMES.contains(&runtime) && is_hex(id);
    is_container.then(|| from_slice(slice.strip_suffix(SLICE)?))?
}

/// Small letters only, as kubelet and the runtimes write them; not empty.
fn is_hex(text: &str) -> bool {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    !text.is_empty() && text.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0f6c1d2e-3a4b-4c5d-8e6f-708192a3b4c5";
    const UID_: &str = "0f6c1d2e_3a4b_4c5d_8e6f_708192a3b4c5";
    const HASH: &str = "81cdabfc720501d9e81b425b15921b4d";
    const ID: &str = "c46bafd57b2ef55a23c1319893c8aa5bfca24872bd95258700a51059941fb69e";

    /// Each form with its pod: U the UID, `U_` the same as systemd has it, H a static pod's, ID a container's id.
    const PODS: &str = "
        systemd
        /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_.slice U Burstable Top
        kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_.slice U BestEffort Top
        kubepods.slice/kubepods-podU_.slice U Guaranteed Top
        kubepods.slice/kubepods-podU_.slice/cri-containerd-ID.scope U Guaranteed Below
        kubepods.slice/kubepods-podU_.slice/crio-ID.scope/container U Guaranteed Below
        kubepods.slice/kubepods-podU_.slice/crio-conmon-ID.scope U Guaranteed Below
        kubepods.slice/kubepods-podU_.slice/crio-ID U Guaranteed Below
        kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podH.slice H Burstable Top

        cgroupfs
        kubepods/burstable/podU U Burstable Top
        kubepods/besteffort/podU/ID U BestEffort Below
        kubepods/podU U Guaranteed Top
        kubepods/podU/crio-ID U Guaranteed Below
        /kubepods/podH/ID H Guaranteed Below

        below another root
        docker/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_.slice U Guaranteed Top
        kubelet/kubepods/burstable/podU/ID U Burstable Below
        a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-podU_.slice U Guaranteed Top
        system.slice/docker-ID.scope/kubepods.slice/kubepods-podU_.slice U Guaranteed Top

        the runtime does not speak to systemd
        system.slice/containerd.service/kubepods-burstable-podU_.slice:cri-containerd:ID U Burstable Top
        kubelet-kubepods-podU_.slice:crio:ID/container U Guaranteed Below

        a kubelet in a pod
        kubepods/podU/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podH.slice U Guaranteed Below
    ";

    const NO_PODS: &str = "
        / kubepods kubepods.slice kubepods/burstable kubepods.slice/kubepods-burstable.slice

        not where its name says
        kubepods-podU_.slice system.slice/kubepods-podU_.slice
        kubepods.slice/kubepods-burstable-podU_.slice
        kubepods.slice/kubepods-burstable.slice/kubepods-podU_.slice
        kubelet-kubepods.slice/kubelet-kubepods-podU_.slice
        kubepods/kubepods-podU_.slice
        podU burstable/podU kubepods.slice/podU
        kubepods/guaranteed/podU kubepods/x/podU kubepods/burstable/x/podU

        another form of UID or name
        kubepods/podU_ kubepods.slice/kubepods-podU.slice kubepods/U kubepods/pod kubepods/podinfo
        kubepods/podUa kubepods/podHa kubepods/podU.slice kubepods.slice/kubepods-podU_.scope
        kubepods/pod0F6C1D2E-3a4b-4c5d-8e6f-708192a3b4c5
        kubepods/pod0f6c1d2e3a4b-4c5d-8e6f-708192a3b4c5a
        kubepods.slice/-kubepods-podU_.slice -kubepods-podU_.slice:crio:ID
        my_kubepods.slice/my_kubepods-podU_.slice
        kubepods-podU_.slice:docker:ID kubepods-podU_.slice:crio: kubepods-podU_.slice:crio
        kubepods-podU_:crio:ID kubepods-podU_.slice:crio:ID:ID

        not as the kernel writes paths
        kubepods/podU/.. kubepods/../kubepods/podU kubepods//podU kubepods/podU/ //kubepods/podU
        kubepods/./podU
    ";

    fn filled(form: &str) -> String {
        form.replace("U_", UID_)
            .replace('U', UID)
            .replace('H', HASH)
            .replace("ID", ID)
    }

    #[test]
    fn all_pods_lie_below_one_cgroup_unless_the_runtime_keeps_them_elsewhere() {
        for (path, above) in [
            (
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_.slice",
                Some("kubepods.slice"),
            ),
            (
                "docker/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_.slice",
                Some("docker/ID/kubelet.slice/kubelet-kubepods.slice"),
            ),
            ("kubepods/besteffort/podU", Some("kubepods")),
            ("kubepods/podU", Some("kubepods")),
            (
                "system.slice/containerd.service/kubepods-podU_.slice:cri-containerd:ID",
                None,
            ),
        ] {
            let path = Path::new(path);
            assert_eq!(kubepods_above(path).as_deref(), above.map(Path::new));
        }
    }

    #[test]
    fn each_form_names_its_pod() {
        let mut count = 0;
        for line in PODS.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [form, uid, qos, place] = words[..] else {
                continue;
            };
            if !form.contains('/') {
                continue;
            }
            count += 1;
            let pod = PodCgroup::parse(&filled(form)).expect(form);
            let read = (format!("{:?}", pod.qos), format!("{:?}", pod.place));
            assert_eq!(pod.uid.as_str(), filled(uid), "{form}");
            assert_eq!(read, (qos.to_owned(), place.to_owned()), "{form}");
        }
        assert_eq!(count, 20);
    }

    #[test]
    fn what_only_looks_like_a_pod_is_none() {
        for form in NO_PODS.split_whitespace().chain([""]) {
            let path = filled(form);
            assert_eq!(PodCgroup::parse(&path), None, "{path}");
        }
    }

    /// A path of a pod, and what is to be read from it.
    fn paths() -> impl Strategy<Value = (String, PodCgroup)> {
        let uid = prop_oneof![
            "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            "[0-9a-f]{32}",
        ];
        let qos = prop::sample::select(vec![Qos::Guaranteed, Qos::Burstable, Qos::BestEffort]);
        // None of these is a pod's or begins one.
        let before = prop::collection::vec("[a-z][a-z.]{0,8}", 0..3);
        let root = prop::collection::vec("[a-z_]{1,6}", 0..3);
        let below = prop::collection::vec("[a-z0-9._:-]{0,30}[a-z0-9]", 0..3);
        (uid, qos, before, root, below, 0..3_u8).prop_map(
            |(uid, qos, before, root, below, form)| {
                let class = match qos {
                    Qos::Guaranteed => None,
                    Qos::Burstable => Some("burstable"),
                    Qos::BestEffort => Some("besteffort"),
                };
                let mut levels: Vec<String> = root;
                levels.push(KUBEPODS.to_owned());
                levels.extend(class.map(str::to_owned));
                levels.push(format!("pod{uid}"));
                let slices: Vec<String> =
                    levels.iter().map(|level| level.replace('-', "_")).collect();
                let slices: Vec<String> = (1..=slices.len())
                    .map(|length| format!("{}.slice", slices[..length].join("-")))
                    .collect();
                let mut names = before;
                match form {
                    0 => names.extend(slices),
                    1 => names.extend(levels),
                    _ => names.push(format!("{}:cri-containerd:{ID}", slices.last().unwrap())),
                }
                let place = if below.is_empty() {
                    Place::Top
                } else {
                    Place::Below
                };
                names.extend(below);
                let uid = PodUid::new(&uid).unwrap();
                (names.join("/"), PodCgroup { uid, qos, place })
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_path_that_kubelet_and_the_runtime_make_is_read_back((path, pod) in paths()) {
            prop_assert_eq!(PodCgroup::parse(&path), Some(pod));
        }

        #[test]
        fn any_text_is_read_without_a_panic(path in ".{0,120}") {
            prop_assert_eq!(PodCgroup::parse(&path), None);
        }

        #[test]
        fn a_path_with_one_character_changed_is_another_pod_or_none(
            (path, pod) in paths(),
            place in any::<prop::sample::Index>(),
            sign in prop::sample::select(vec!['-', '_', '/', '.', ':', 'a', '0', 'Z', 'ü']),
        ) {
            let place = place.index(path.len());
            let mut changed = path.clone();
            changed.replace_range(place..=place, &sign.to_string());
            // The same pod only if the change lies outside of what names it.
            if let Some(other) = PodCgroup::parse(&changed) && other.uid == pod.uid {
                let name = pod.uid.as_str();
                let start = path.find(name).or_else(|| path.find(&name.replace('-', "_"))).unwrap();
                let is_in_name = place.checked_sub(start).is_some_and(|offset| offset < name.len());
                prop_assert!(changed == path || !is_in_name, "{changed}");
            }
        }
    }
}
