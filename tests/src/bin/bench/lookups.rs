//! DNS: the time and rate of lookups, and connects refused right after one.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{process::Running, programs, world::Role};

use crate::{
    client::Sample,
    measure::{Budget, Row, Series, interleave},
    nft,
    packets::Timing,
    scale::{ANSWERS, KINDS, Kind},
    scene::{Judge, SERVER, Scene},
    suite::{Effort, say},
};

const DNS: &str = "dns";
/// Where dnsmasq answers in the node.
const DNSMASQ: &str = "127.0.0.1:53";

/// Ways to resolve: judge, server, name.
const WAYS: [(Judge, &str, &str); 3] = [
    (Judge::Egress, SERVER, "egress"),
    (Judge::None, SERVER, "direct"),
    (Judge::NftLearns, DNSMASQ, "dnsmasq+nftset"),
];

/// Times, rates and races.
///
/// # Errors
///
/// Something cannot be measured.
pub(crate) fn rows(scene: &mut Scene, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let count = effort.packets / 20;
    let mut first = 1_000_000;
    scene.forget()?;
    let dnsmasq = start_dnsmasq(scene)?;
    let ways = if dnsmasq.is_some() {
        &WAYS[..]
    } else {
        &WAYS[..2]
    };
    let names: Vec<&str> = ways.iter().map(|(_, _, name)| *name).collect();
    for (how, texts) in [
        (&[][..], ["lookup, p50", "lookup, p99"]),
        (
            &["--fresh"],
            ["lookup, a socket each, p50", "lookup, a socket each, p99"],
        ),
    ] {
        let [middle, high] = texts;
        let samples = interleave(middle, effort.rounds, ways.len(), |subject| {
            // Names that nobody has asked for: dnsmasq would answer the others from its cache.
            first += count;
            let (judge, server, _) = ways[subject];
            let (first, count) = (first.to_string(), count.to_string());
            let args = ["lookups", server, "r", &first, &count];
            scene.client(judge, &[&args, how].concat())
        })?;
        for (figure, text) in [("p50_us", middle), ("p99_us", high)] {
            rows.push(row(text, "µs", &names, &samples, figure)?);
        }
    }
    let samples = interleave("queries", effort.rounds, ways.len(), |subject| {
        first += 10_000_000;
        let (judge, server, _) = ways[subject];
        let args = [
            "queries",
            server,
            &first.to_string(),
            &effort.ms.to_string(),
        ];
        scene.client(judge, &args)
    })?;
    rows.push(row(
        "queries, 32 at a time",
        "/s",
        &names,
        &samples,
        "per_s",
    )?);
    drop(dnsmasq);
    scene.no_rules()?;
    Ok(rows)
}

/// Time that `skb_egress` takes for queries that it notes, as the kernel measures it.
///
/// # Errors
///
/// Something cannot be measured.
pub(crate) fn noted(scene: &mut Scene, effort: Effort) -> Result<Vec<Row>> {
    let timing = Timing::begin(scene, "skb_egress", "idle_egress")?;
    let count = (effort.packets / 10).to_string();
    let mut first = 30_000_000;
    let mut rows = Vec::new();
    for (how, text) in [
        (&[][..], "query noted, of a socket in use"),
        (&["--fresh"], "query noted, of a new socket"),
    ] {
        let samples = interleave(text, effort.rounds, 2, |subject| {
            first += effort.packets;
            let number = first.to_string();
            let args = [&["lookups", SERVER, "r", &number, &count], how].concat();
            timing.of(scene, [Judge::Egress, Judge::Empty][subject], &args)
        })?;
        let mut samples = samples.into_iter();
        let mut next = |name: &str| Series::new(name, samples.next().unwrap_or_default());
        let figure = next("egress");
        rows.push(Row::new(
            DNS,
            text,
            "ns",
            figure,
            vec![next("empty program")],
        ));
    }
    Ok(rows)
}

/// Time that `skb_ingress` takes for answers while they arrive from the wire, as the kernel measures it.
///
/// # Errors
///
/// Something cannot be measured.
pub(crate) fn answers(scene: &mut Scene, effort: Effort) -> Result<Vec<Row>> {
    let timing = Timing::begin(scene, "skb_ingress", "idle_ingress")?;
    let mut first = 5_000_000;
    let mut rows = Vec::new();
    let again = Kind {
        label: "r",
        text: "1 address, the same answer again",
        new: 0,
        budget: None,
    };
    for (
        Kind {
            label,
            text,
            new,
            budget,
        },
        how,
    ) in KINDS
        .into_iter()
        .map(|kind| (kind, None))
        .chain([(again, Some("--again"))])
    {
        // New addresses must leave room for those of the race.
        let count = match new {
            0 => effort.packets / 10,
            new => (1_000 / new).max(60),
        };
        let count = count.to_string();
        let samples = interleave(text, effort.rounds, 3, |subject| {
            first += effort.packets;
            let number = first.to_string();
            let mut answers = vec!["lookups", SERVER, label, &number, &count];
            answers.extend(how);
            match subject {
                0 => timing.of(scene, Judge::Egress, &answers),
                1 => timing.of(scene, Judge::Empty, &answers),
                _ => timing.of(scene, Judge::Egress, &["echo", &count]),
            }
        })?;
        let mut samples = samples.into_iter();
        let mut next = |name: &str| Series::new(name, samples.next().unwrap_or_default());
        let figure = next("egress");
        let peers = vec![next("empty program"), next("not DNS")];
        let row = Row::new(ANSWERS, format!("learned: {text}"), "ns", figure, peers);
        rows.push(match budget {
            Some(most) => row.budget(Budget::Added(most)),
            None => row,
        });
    }
    Ok(rows)
}

fn row(
    what: &str,
    unit: &'static str,
    names: &[&str],
    samples: &[Vec<Sample>],
    figure: &str,
) -> Result<Row> {
    let mut all = Vec::new();
    for (name, samples) in names.iter().zip(samples) {
        let rounds: Option<Vec<f64>> = samples.iter().map(|one| one.get(figure).copied()).collect();
        all.push(Series::new(name, rounds.context("a figure is missing")?));
    }
    let peers = all.split_off(1);
    let subject = all.pop().context("nobody was measured")?;
    Ok(Row::new(DNS, what, unit, subject, peers))
}

/// dnsmasq in the node, which adds what it resolves to the set before it answers; `None` where it was built without.
fn start_dnsmasq(scene: &Scene) -> Result<Option<Running>> {
    let program = programs::find("dnsmasq").context("dnsmasq is missing")?;
    let version = std::process::Command::new(&program)
        .arg("--version")
        .output()?;
    let options = String::from_utf8_lossy(&version.stdout).into_owned();
    if !options.split_whitespace().any(|word| word == "nftset") {
        return Ok(None);
    }
    let world = &scene.world;
    let config = world.dir().join("dnsmasq-peer.conf");
    let (host, port) = SERVER.split_once(':').context("no port")?;
    let text = format!(
        "keep-in-foreground\nno-resolv\nno-hosts\nno-poll\nuser=root\ngroup=root\npid-file=\n\
         port=53\nbind-interfaces\nlisten-address=127.0.0.1\ncache-size=1000\n\
         dns-forward-max=1000\nserver={host}#{port}\nnftset=/{}/4#inet#{}#{}\n",
        crate::wire::ZONE,
        nft::TABLE,
        nft::SET
    );
    fs::write(&config, text).context("cannot write dnsmasq's configuration")?;
    let mut command = world.helper(Role::Node, program)?;
    command.arg(format!("--conf-file={}", config.display()));
    let errors = world.dir().join("dnsmasq-peer.err");
    let mut running = Running::start(&mut command, &errors)?;
    // It says nothing when it is ready, and its clients wait two seconds for an answer.
    std::thread::sleep(Duration::from_millis(300));
    ensure!(
        running.ended().is_none(),
        "dnsmasq ended: {}",
        running.errors()
    );
    Ok(Some(running))
}

/// Refused right after resolve: where the kernel learns, and where a snooper reads the answers.
///
/// # Errors
///
/// Something cannot be measured, or the snooper adds nothing.
pub(crate) fn race(scene: &mut Scene, count: u32) -> Result<Row> {
    let mut figures = Vec::new();
    for (judge, first) in [(Judge::Egress, 100_000), (Judge::NftLearns, 4_000_000)] {
        let snooper = if judge == Judge::NftLearns {
            scene.forget()?;
            Some(scene.start(Role::Node, &["snooper"])?)
        } else {
            None
        };
        say(&format!("{count} lookups, {}", judge.name()));
        let sample = scene.client(
            judge,
            &["race", SERVER, &first.to_string(), &count.to_string()],
        )?;
        if let Some(mut snooper) = snooper {
            ensure!(
                snooper.ended().is_none(),
                "the snooper ended: {}",
                snooper.errors()
            );
            let learned = scene.in_set()?;
            ensure!(
                learned * 2 > u64::from(count),
                "the snooper has added only {learned} addresses"
            );
        }
        figures.push(sample.get("per_million").copied().context("no figure")?);
    }
    scene.no_rules()?;
    let [kernel, snooper]: [f64; 2] = figures.try_into().ok().context("two were measured")?;
    let row = Row::new(
        DNS,
        format!("refused right after resolve, of a million ({count} lookups)"),
        "",
        Series::new("egress", vec![kernel]),
        vec![Series::new("snooper on another CPU", vec![snooper])],
    );
    Ok(row.budget(Budget::AtMost(0.0)))
}
