//! The agent: reload, memory, CPU.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{Agent, World, expect, interrupt, process::Place, world::Role, zone};

use crate::{
    measure::{Budget, Row, Series, interleave},
    scene::{self, SERVER},
    suite::Effort,
    wire,
};

const AGENT: &str = "agent";
/// The line in its log at every switch.
const SWITCHED: &str = "policy switched";
/// Longest wait for a switch.
const LIMIT: Duration = Duration::from_secs(60);
/// Time enough to remove a large policy.
const REMOVAL: Duration = Duration::from_secs(2);
/// Ticks in a second of /proc/PID/stat (USER_HZ, include/asm-generic/param.h).
const TICKS_PER_S: f64 = 100.0;

/// Reload time, memory, CPU.
///
/// # Errors
///
/// Something cannot be measured.
pub(crate) fn rows(effort: Effort) -> Result<Vec<Row>> {
    let world = World::builder().try_build()?;
    let client = world.place(Role::Node, judged_client(&world)?);
    let _server = scene::start(&world, Role::Dns, &["dns-server", "--listen", SERVER])?;
    let mut rows = Vec::new();
    {
        let agent = start(&world)?;
        rows.extend(memory(&agent, &client)?);
        rows.extend(carried(&world, &agent)?);
    }
    let agent = start(&world)?;
    rows.extend(reload(&world, &agent, effort)?);
    rows.push(processor(&agent, &client, effort)?);
    Ok(rows)
}

fn judged_client(world: &World) -> Result<PathBuf> {
    let path = world.judged().join("client");
    fs::create_dir_all(&path).context("cannot make a cgroup")?;
    Ok(path)
}

fn start(world: &World) -> Result<Agent> {
    let agent = world.agent(&policy(0, 0, 0)).resolver(zone::SERVER);
    agent.try_start()
}

/// The bench's zone, and as many patterns and CIDRs; `version` makes another rule set of the same size.
fn policy(patterns: u32, cidrs: u32, version: u32) -> String {
    let names: String = (0..patterns)
        .map(|number| format!("      - host{number}.v{version}.example.org\n"))
        .collect();
    let ranges: String = (0..cidrs)
        .map(|number| format!("      - 172.{}.{}.0/24\n", 16 + number / 256, number % 256))
        .collect();
    let mut spec = format!(
        "mode: enforce\nallow:\n  - names: [\"*.{}\", v{version}.example.org]\n",
        wire::ZONE
    );
    if patterns > 0 {
        spec += &format!("  - names:\n{names}    ports: [443/tcp]\n");
    }
    if cidrs > 0 {
        spec += &format!("  - cidrs:\n{ranges}    ports: [443/tcp]\n");
    }
    expect::policy(&spec)
}

/// Seconds from the change of the file to the switch, and of the agent's CPU.
fn switch(world: &World, agent: &Agent, policy: &str) -> Result<(f64, f64)> {
    // Its log, because `status` counts the entries of every map, which takes the agent longer than some switches.
    let switches = || agent.log().matches(SWITCHED).count();
    let before = switches();
    ensure!(before > 0, "the agent's log tells of no switch");
    let (begin, used) = (Instant::now(), cpu_s(agent.pid())?);
    fs::write(world.dir().join("policy.yaml"), policy).context("cannot write the policy")?;
    while switches() == before {
        ensure!(
            begin.elapsed() < LIMIT,
            "no switch; the agent says: {}",
            agent.log()
        );
        ensure!(!interrupt::requested(), "interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = begin.elapsed().as_secs_f64();
    Ok((took, cpu_s(agent.pid())? - used))
}

fn reload(world: &World, agent: &Agent, effort: Effort) -> Result<[Row; 2]> {
    let mut version = 0;
    let samples = interleave("reload", effort.rounds.div_ceil(3), 2, |subject| {
        // The policy before is removed after the switch.
        std::thread::sleep(REMOVAL);
        version += 1;
        let policy = if subject == 0 {
            policy(50_000, 1_000, version)
        } else {
            policy(0, 0, version)
        };
        switch(world, agent, &policy)
    })?;
    let [large, small]: [Vec<_>; 2] = samples.try_into().ok().context("two were measured")?;
    let [wall, cpu] = switches("50,000 patterns, 1,000 CIDRs", large, small);
    Ok([wall.budget(Budget::AtMost(1.0)), cpu])
}

/// Two rows of one kind of switch: how long it took, and how much CPU.
fn switches(what: &str, these: Vec<(f64, f64)>, others: Vec<(f64, f64)>) -> [Row; 2] {
    let row = |text: &str, one: fn((f64, f64)) -> f64| {
        let series = |name: &str, all: &[(f64, f64)]| {
            Series::new(name, all.iter().copied().map(one).collect())
        };
        let peers = if others.is_empty() {
            Vec::new()
        } else {
            vec![series("2 patterns", &others)]
        };
        let what = format!("reload: {what}{text}");
        Row::new(AGENT, what, "s", series("egress", &these), peers)
    };
    [
        row("", |(wall, _)| wall).note("from the change of the file, which is seen within 0.5 s"),
        row(" (CPU)", |(_, cpu)| cpu),
    ]
}

/// A switch that has as many addresses to carry over as [`memory`] has taught.
fn carried(world: &World, agent: &Agent) -> Result<[Row; 2]> {
    let sample = switch(world, agent, &policy(0, 0, 1))?;
    Ok(switches(
        "100,000 addresses to carry",
        vec![sample],
        Vec::new(),
    ))
}

fn resident_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("no such process")?;
    let kib = text.lines().find_map(|line| {
        let rest = line.strip_prefix("VmRSS:")?;
        rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()
    });
    Ok(kib.context("no VmRSS")? / 1024.0)
}

fn memory(agent: &Agent, client: &Place) -> Result<Vec<Row>> {
    let empty = resident_mib(agent.pid())?;
    let mut rows = Vec::new();
    let mut known = 0_u32;
    for (count, text, budget) in [(10_000, "10,000", None), (100_000, "100,000", Some(64.0))] {
        let before = agent.counters().dns("address_learned");
        let (first, more) = (known.to_string(), (count - known).to_string());
        scene::client_at(client, &["paced", SERVER, "n", &first, &more, "20000"])?;
        // Copies that the agent has not read yet are read in a moment.
        std::thread::sleep(Duration::from_secs(1));
        let resident = resident_mib(agent.pid())?;
        let learned = agent.counters().dns("address_learned") - before;
        ensure!(
            learned * 100 >= u64::from(count - known) * 99,
            "only {learned} addresses were learned"
        );
        known = count;
        let row = Row::new(
            AGENT,
            format!("memory (RSS), {text} learned"),
            "MiB",
            Series::new("egress", vec![resident]),
            vec![Series::new("none learned", vec![empty])],
        );
        rows.push(match budget {
            Some(most) => row.budget(Budget::AtMost(most)),
            None => row,
        });
    }
    Ok(rows)
}

/// Seconds of CPU that a process has used.
fn cpu_s(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("no such process")?;
    // The command's name may hold spaces: count from its bracket (man 5 proc).
    let (_, rest) = text.rsplit_once(')').context("not a stat line")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|one| one.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("no times")?;
    Ok((user + system) / TICKS_PER_S)
}

fn processor(agent: &Agent, client: &Place, effort: Effort) -> Result<Row> {
    let seconds = if effort.rounds > 10 { 5 } else { 2 };
    let mut first = 2_000_000;
    let samples = interleave("CPU", 3, 2, |subject| {
        let (begin, before) = (Instant::now(), cpu_s(agent.pid())?);
        if subject == 0 {
            let count = 10_000 * seconds;
            let args = [&first.to_string(), &count.to_string(), "10000"];
            let sample = scene::client_at(client, &[&["paced", SERVER, "n"], &args[..]].concat())?;
            first += count;
            let answered = sample.get("answered").copied().unwrap_or_default();
            ensure!(
                answered > f64::from(count) * 0.99,
                "only {answered} answers came"
            );
        } else {
            std::thread::sleep(Duration::from_secs(1));
        }
        let used = cpu_s(agent.pid())? - before;
        Ok(used / begin.elapsed().as_secs_f64() * 100.0)
    })?;
    let [busy, idle]: [Vec<f64>; 2] = samples.try_into().ok().context("two were measured")?;
    Ok(Row::new(
        AGENT,
        "CPU at 10,000 answers/s",
        "%",
        Series::new("egress", busy),
        vec![Series::new("idle", idle)],
    )
    .note("percent of one CPU; what the programs use is the client's"))
}
