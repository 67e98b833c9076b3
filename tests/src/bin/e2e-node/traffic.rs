//! A pod that tries the allowed and the denied name again and again, and the outcomes.

use std::fmt;

use anyhow::{Context as _, Result, ensure};

use crate::{
    checks::{ALLOWED, DENIED},
    rig::{Outcome, Rig},
};

/// The pod's name.
pub(crate) const POD: &str = "traffic";
/// The command that prints its log.
const LOG: &str = "cat /var/log/pods/shop_traffic_*/traffic/*.log";
/// True if an agent runs, as a condition of a shell. Probes are other commands of the same program.
const AGENT_RUNS: &str = "ps -o args | grep -q '[e]gress-agent run'";
/// The seconds since boot.
const NOW: &str = "cut -d ' ' -f 1 /proc/uptime";

/// The pod's command, as YAML: each line has the time since boot, the name, and what wget said.
pub(crate) fn command() -> String {
    format!(
        "\n    - /bin/sh\n    - -c\n    - |\n      while true; do\n        for host in {ALLOWED} {DENIED}; do\n          \
         now=$({NOW})\n          echo \"$now $host $(timeout 20 wget -q -O - http://$host/ 2>&1)\"\n        done\n        \
         sleep 1\n      done"
    )
}

/// A stretch of time in which the agent is away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gap {
    from: f64,
    to: f64,
}

/// Traffic from now on.
#[derive(Debug)]
pub(crate) struct Traffic {
    from: f64,
}

/// Outcomes for one name.
#[derive(Debug, Default)]
struct Count {
    reached: usize,
    denied: usize,
    other: Vec<String>,
}

impl Count {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Reached => self.reached += 1,
            Outcome::Denied => self.denied += 1,
            Outcome::Other(text) => self.other.push(text),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} reached, {} denied", self.reached, self.denied)?;
        if let Some(text) = self.other.first() {
            write!(f, ", {} other ({text:?})", self.other.len())?;
        }
        Ok(())
    }
}

impl Traffic {
    pub(crate) fn begin(rig: &mut Rig) -> Result<Self> {
        Ok(Self { from: now(rig)? })
    }

    /// Everything that was tried since: each as the policy says, and some of it while the agent was away.
    pub(crate) fn end(&self, rig: &mut Rig, gap: Gap) -> Result<String> {
        let to = now(rig)?;
        let [allowed, denied] = counts(rig, self.from, to)?;
        let [allowed_away, denied_away] = counts(rig, gap.from, gap.to)?;
        let seen = format!(
            "{ALLOWED}: {allowed}; {DENIED}: {denied}; {} and {} of them in the {:.1} s without an agent",
            allowed_away.reached,
            denied_away.denied,
            gap.to - gap.from
        );
        let is_right = allowed.reached > 0
            && denied.denied > 0
            && allowed.denied + denied.reached == 0
            && allowed.other.is_empty()
            && denied.other.is_empty();
        ensure!(is_right, "not as the policy says: {seen}");
        ensure!(
            allowed_away.reached > 0 && denied_away.denied > 0,
            "nothing tried without an agent: {seen}"
        );
        Ok(seen)
    }
}

/// Waits until the agent has gone and another has come.
pub(crate) fn wait_for_gap(rig: &mut Rig) -> Result<Gap> {
    let away = rig.get(&format!(
        "for i in $(seq 600); do {AGENT_RUNS} || break; usleep 200000; done; {NOW}"
    ))?;
    let back = rig.get(&format!(
        "for i in $(seq 600); do {AGENT_RUNS} && break; usleep 200000; done; {NOW}"
    ))?;
    Ok(Gap {
        from: seconds(&away)?,
        to: seconds(&back)?,
    })
}

/// Traffic that passed after a boot before the agent was there. It is reported, not judged: docs/security.md says so.
pub(crate) fn since_boot(rig: &mut Rig) -> Result<String> {
    let now = now(rig)?;
    let [allowed, denied] = counts(rig, 0.0, now)?;
    ensure!(allowed.reached > 0, "no traffic since the boot: {allowed}");
    Ok(format!(
        "all back after {now:.0} s; {DENIED} since then: {denied}, so open before the agent's start"
    ))
}

fn now(rig: &mut Rig) -> Result<f64> {
    seconds(&rig.get(NOW)?)
}

fn seconds(text: &str) -> Result<f64> {
    text.trim()
        .parse()
        .with_context(|| format!("not a time: {text}"))
}

/// Outcomes of the attempts of a time, by name. Lines of an earlier boot are in a log of their own.
fn counts(rig: &mut Rig, from: f64, to: f64) -> Result<[Count; 2]> {
    let mut counts = [Count::default(), Count::default()];
    for line in rig.get(LOG)?.lines() {
        // Time, stream and tag are the runtime's.
        let mut words = line.splitn(6, ' ').skip(3);
        let mut word = || words.next().unwrap_or_default();
        let (at, host, said) = (word(), word(), word());
        let Ok(at) = at.parse::<f64>() else {
            continue;
        };
        if (from..to).contains(&at) {
            counts[usize::from(host == DENIED)].add(Outcome::read(said));
        }
    }
    Ok(counts)
}
