//! The programs that a guest runs: the checks, or the bypass suite.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use crate::{build, kernels};

/// A kernel that has not finished the checks by then has failed.
const CHECKS_LIMIT: Duration = Duration::from_mins(5);
/// The same for the bypass suite.
const BYPASS_LIMIT: Duration = Duration::from_hours(4);
/// Programs of this machine that the worlds of the suite use.
const WORLD_TOOLS: [&str; 9] = [
    "ip", "tc", "nft", "nsenter", "unshare", "taskset", "setpriv", "unbound", "dnsmasq",
];
/// Modules by which the suite tries to get past, where a kernel has them.
const BYPASS_MODULES: [&str; 24] = [
    "af_packet",
    "bridge",
    "dccp",
    "dccp_ipv4",
    "dccp_ipv6",
    "fou",
    "fou6",
    "ip6_gre",
    "ip6_tunnel",
    "ip_gre",
    "ipip",
    "ipvlan",
    "macvlan",
    "mptcp_diag",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "sctp",
    "sit",
    "tun",
    "vrf",
    "xsk_diag",
];

/// What goes into a guest, and what its init runs.
#[derive(Debug)]
pub(super) struct Payload {
    /// Static programs, and their names in the guest.
    pub(super) programs: Vec<(PathBuf, &'static str)>,
    /// Programs of this machine, with their libraries.
    pub(super) tools: &'static [&'static str],
    /// Modules to insert before.
    pub(super) modules: Vec<&'static [&'static str]>,
    /// Lines of the guest's init. They write to `/dev/ttyS1` as `Guest::read` reads it.
    pub(super) run: String,
    /// Memory of the guest, in MiB.
    pub(super) memory_mib: &'static str,
    /// A guest that has not ended by then has failed.
    pub(super) limit: Duration,
}

impl Payload {
    /// The checks.
    pub(super) fn checks(agent: &Path, check: PathBuf) -> Self {
        let run = "vm-check >/dev/ttyS1 2>/dev/ttyS0 || \
                   echo \"CHECK vm-check failed exited with status $?\" >/dev/ttyS1";
        Self {
            programs: vec![(agent.to_owned(), "egress-agent"), (check, "vm-check")],
            tools: &["ip"],
            modules: vec![&kernels::MODULES],
            run: run.to_owned(),
            memory_mib: "1024",
            limit: CHECKS_LIMIT,
        }
    }

    /// The bypass suite, or its tests whose names contain the filter.
    ///
    /// # Errors
    ///
    /// The suite cannot be built.
    pub(super) fn bypass(agent: &Path, filter: &str) -> Result<Self> {
        let suite = build::build_static_test("egress-tests", "bypass")?;
        let probe = suite.with_file_name("probe");
        let filter = filter.replace('\'', "");
        // libtest ends with 101 where tests failed, which their lines say.
        let run = format!(
            "bypass --test-threads=1 '{filter}' >/dev/ttyS1 2>&1\n\
             status=$?\n\
             test $status = 0 || test $status = 101 || echo \"CHECK bypass failed exited with status $status\" >/dev/ttyS1"
        );
        Ok(Self {
            programs: vec![
                (agent.to_owned(), "egress-agent"),
                (suite, "bypass"),
                (probe, "probe"),
            ],
            tools: &WORLD_TOOLS,
            modules: vec![&kernels::MODULES, &BYPASS_MODULES],
            run,
            memory_mib: "2048",
            limit: BYPASS_LIMIT,
        })
    }
}
