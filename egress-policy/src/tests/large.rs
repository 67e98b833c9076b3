//! Policies that are large, or made to be slow.
//!
//! Debug builds try a hundredth of the size. `cargo test --release -p egress-policy large -- --nocapture` prints the times.

use std::{fmt::Write as _, path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::tests::policy;
use crate::{
    compile::{Compiled, compile},
    document::{Catalog, PolicySet},
    read::PolicyErrors,
    vocabulary::Lifeline,
};

/// Longest time of a CPU for one policy: a few times what it takes, far below what squares of sizes would.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 10 });

/// Time that this thread had a CPU; what else the machine does is not counted.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

/// A size, or a hundredth of it for debug builds.
const fn sized(size: usize) -> usize {
    if cfg!(debug_assertions) {
        size / 100
    } else {
        size
    }
}

fn timed(what: &str, text: &str) -> Result<Compiled, PolicyErrors> {
    let begin = cpu_time();
    let set = PolicySet::from_texts([(Path::new("large.yaml"), text)], &Catalog::default());
    let parsed = cpu_time().saturating_sub(begin);
    let result = set.and_then(|set| compile(&set, &Lifeline::new(), None));
    let took = cpu_time().saturating_sub(begin);
    let end = match &result {
        Ok(compiled) => format!(
            "{} names, {} cidrs",
            compiled.names.len(),
            compiled.cidrs.len()
        ),
        Err(errors) => format!(
            "{} errors",
            errors.errors().len().saturating_add(errors.more())
        ),
    };
    println!(
        "{what}: {} KiB, parsed in {parsed:?}, all in {took:?}: {end}",
        text.len() >> 10
    );
    assert!(took < LIMIT, "{what}: {took:?}");
    result
}

fn rules(rules: impl IntoIterator<Item = String>) -> String {
    let mut text = policy("large", "\n  allow:");
    for rule in rules {
        writeln!(text, "    - {rule}").unwrap();
    }
    text
}

/// One message for each error, and not too many of them.
fn shown(errors: &PolicyErrors) -> usize {
    let text = errors.to_string();
    assert!(text.len() < 200_000, "{} bytes", text.len());
    text.lines().count()
}

#[test]
fn fifty_thousand_names_compile_in_a_second() {
    let size = sized(50_000);
    let names = (0..size).map(|name| format!("host{name}.service{}.example.com", name % 997));
    let text = rules([format!(
        "names:\n      - {}\n      ports: [443/tcp]",
        names.collect::<Vec<_>>().join("\n      - ")
    )]);
    let begin = cpu_time();
    let compiled = timed("names", &text).unwrap();
    assert_eq!(compiled.names.len(), size);
    let took = cpu_time().saturating_sub(begin);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_hundred_thousand_rules_compile() {
    let size = sized(100_000);
    let text = rules((0..size).map(|rule| {
        format!(
            "{{ names: [api{rule}.example.com], ports: [{}/tcp] }}",
            rule % 60_000 + 1
        )
    }));
    assert_eq!(timed("rules", &text).unwrap().names.len(), size);
}

#[test]
fn nested_wildcards_compile() {
    // Each covers all that follow, as deep as names can be.
    let chain = |depth: usize| vec!["a"; depth].join(".");
    let nested = (2..110).map(|depth| {
        let ports = (1..=8).map(|port| format!("{port}/tcp"));
        let ports = ports.collect::<Vec<_>>().join(", ");
        format!("{{ names: ['*.{}'], ports: [{ports}] }}", chain(depth))
    });
    let below = (0..sized(50_000)).map(|name| format!("{{ names: [w{name}.{}] }}", chain(115)));
    let text = rules(nested.clone());
    assert_eq!(timed("nested wildcards", &text).unwrap().names.len(), 108);
    let wide = (0..sized(50_000)).map(|name| {
        let ports = (1..=8).map(|port| format!("{port}/tcp"));
        let ports = ports.collect::<Vec<_>>().join(", ");
        format!(
            "{{ names: ['*.w{name}.{}'], ports: [{ports}] }}",
            chain(115)
        )
    });
    let text = rules(nested.clone().chain(wide));
    assert_eq!(
        timed("names below nested wildcards", &text)
            .unwrap()
            .names
            .len(),
        sized(50_000) + 108
    );
    // As many wildcards as names, up to sixty of them around a name.
    let both = (0..sized(50_000)).flat_map(|name| {
        let zone = format!("w{}.example", name / 60);
        let around = format!("*.{}.{zone}", chain(1 + name % 60));
        let below = format!("x{name}.{}.{zone}", chain(61));
        let port = name % 8 + 1;
        [around, below].map(|text| format!("{{ names: ['{text}'], ports: [{port}/tcp] }}"))
    });
    let text = rules(both);
    let names = timed("wildcards and names", &text).unwrap().names;
    assert_eq!(names.len(), 2 * sized(50_000));
    // With any port besides the eight, each name is full.
    let errors = timed("full names", &rules(nested.chain(below))).unwrap_err();
    assert_eq!(errors.errors().len() + errors.more(), sized(50_000));
    assert_eq!(shown(&errors), 51);
}

#[test]
fn wildcards_that_all_differ_are_refused_in_time() {
    let chain = |depth: usize| vec!["a"; depth].join(".");
    let nested = (2..110).flat_map(|depth| {
        let chain = chain(depth);
        (0..10).map(move |rule| {
            let ports = (0..8).map(|port| format!("{}/tcp", depth * 80 + rule * 8 + port));
            let ports = ports.collect::<Vec<_>>().join(", ");
            format!("{{ names: ['*.{chain}'], ports: [{ports}] }}")
        })
    });
    let below = (0..sized(50_000)).map(|name| format!("{{ names: [w{name}.{}] }}", chain(115)));
    let errors = timed("wildcards that differ", &rules(nested.chain(below))).unwrap_err();
    assert_eq!(shown(&errors), 51);
}

#[test]
fn stars_inside_labels_compile() {
    let size = sized(50_000);
    let star = |count: usize, letter: &str| letter.repeat(count);
    let one = (0..size).map(|name| format!("{{ names: ['a{name}*b.example.com'] }}"));
    timed("one end", &rules(one)).unwrap();
    // Every beginning meets every end, and all cover the names.
    let nested = (0..28).flat_map(|before| {
        (1..28).map(move |behind| {
            let (before, behind) = (star(before, "a"), star(behind, "b"));
            let port = (before.len() + behind.len()) % 8 + 1;
            format!("{{ names: ['{before}*{behind}.example.com'], ports: [{port}/tcp] }}")
        })
    });
    let below = (0..size).map(|name| {
        let (before, behind) = (star(28, "a"), star(27, "b"));
        format!("{{ names: [{before}{name}{behind}.example.com], ports: [1/tcp] }}")
    });
    let text = rules(nested.clone().chain(below.clone()));
    timed("names below nested stars", &text).unwrap();
    // With any port besides the eight, each name is full.
    let full = below.map(|rule| rule.replace("1/tcp", "9/tcp"));
    let errors = timed("full labels", &rules(nested.chain(full))).unwrap_err();
    assert_eq!(errors.errors().len() + errors.more(), size);
    assert_eq!(shown(&errors), 51);
}

#[test]
fn nested_networks_compile() {
    let ports = |base: usize| {
        let ports = (0..16).map(|port| format!("{}/tcp", base + port));
        ports.collect::<Vec<_>>().join(", ")
    };
    let nested = |step: usize| {
        (1..=96_u32).map(move |bits| {
            let network = std::net::Ipv6Addr::from(u128::MAX << (128 - bits));
            let ports = ports(1 + usize::try_from(bits).unwrap() * step);
            format!("{{ cidrs: ['{network}/{bits}'], ports: [{ports}] }}")
        })
    };
    let below = (0..sized(100_000)).map(|address| {
        let low = u128::try_from(address).unwrap();
        let address = std::net::Ipv6Addr::from((u128::MAX << 32) | low);
        format!("{{ cidrs: ['{address}'], ports: [{}] }}", ports(1))
    });
    let text = rules(nested(0).chain(below.clone()));
    assert_eq!(
        timed("nested networks", &text).unwrap().cidrs.len(),
        sized(100_000) + 96
    );
    let errors = timed("networks that differ", &rules(nested(16).chain(below))).unwrap_err();
    assert_eq!(shown(&errors), 51);
}

#[test]
fn a_hundred_thousand_ports_in_one_rule_are_one_error() {
    let ports = (0..sized(100_000)).map(|port| format!("{}-65535/tcp", port % 65_535 + 1));
    let ports: Vec<_> = ports.collect();
    let text = rules([format!(
        "{{ names: [a.example.com], ports: [{}] }}",
        ports.join(",")
    )]);
    let errors = timed("ports", &text).unwrap_err();
    assert_eq!(shown(&errors), 1);
}

#[test]
fn a_hundred_thousand_errors_are_fifty_messages_and_a_count() {
    let size = sized(100_000);
    let wrong = rules((0..size).map(|rule| format!("{{ names: [a..{rule}] }}")));
    let policies: String = (0..size).map(|_| policy("node", "{}") + "---\n").collect();
    let unknown = (0..size).map(|field| format!("  f{field}: x\n"));
    let again = (0..size).map(|_| "  mode: audit\n".to_owned());
    let fields: String = unknown.chain(again).collect();
    let fields = policy("node", &format!("\n{fields}"));
    for (what, text, count) in [
        ("wrong names", &wrong, size),
        ("one policy name", &policies, size - 1),
        ("unknown and repeated fields", &fields, 2 * size - 1),
    ] {
        let errors = timed(what, text).unwrap_err();
        assert_eq!(errors.errors().len() + errors.more(), count, "{what}");
        let last = format!("... and {} more errors; correct these first", count - 50);
        assert_eq!(
            errors.to_string().lines().last(),
            Some(last.as_str()),
            "{what}"
        );
        assert_eq!(shown(&errors), 51, "{what}");
    }
}

#[test]
fn texts_that_are_no_policy_are_refused_in_time() {
    let bytes = if cfg!(debug_assertions) {
        32 << 10
    } else {
        32 << 20
    };
    let filled = |part: &str| part.repeat(bytes / part.len());
    for (what, text) in [
        ("a list", filled("- a\n")),
        ("a flow list", format!("[{}]", filled("a,"))),
        ("a flow mapping", format!("{{{}}}", filled("a: b, "))),
        ("a mapping", filled("a: b\n")),
        ("a long word", filled("a")),
        ("a long line of words", filled("a ")),
        ("lines of words", filled("a\n")),
        ("a quoted text", format!("\"{}\"", filled("\\u00e9"))),
        ("a block text", format!("a: |\n{}", filled(" x\n"))),
        ("empty lines", filled("\n")),
        ("spaces", filled(" ")),
        ("comments", filled("#\n")),
        ("a comment", filled("#")),
        ("documents", filled("---\n")),
        ("anchors", format!("[{}]", filled("&a b,"))),
        ("quotes", format!("[{}]", filled("''"))),
        ("documents in a list", format!("[{}]", filled("\n---"))),
        ("comments in a list", format!("[{}]", filled("a #\n"))),
        ("dashes in a list", format!("[{}]", filled("- "))),
        (
            "empty labels",
            rules([format!("{{ names: [{}] }}", filled("a..b,"))]),
        ),
        ("rules without a name", rules([filled("    -\n")])),
        ("questions", filled("? a\n")),
        ("directives", filled("%A b\n")),
        ("no text", filled("\0")),
        ("colons", filled(":")),
        ("dashes", filled("-")),
        ("a name", rules([format!("names: [{}]", filled("\u{e9}"))])),
        ("labels", rules([format!("names: [{}]", filled("\u{e9}."))])),
        ("digits", rules([format!("ports: [{}/tcp]", filled("9"))])),
        (
            "a duration",
            policy("x", &format!("{{ ttl: {{ min: {}s }} }}", filled("9"))),
        ),
        (
            "an address",
            rules([format!("cidrs: [\"{}\"]", filled("f:"))]),
        ),
        (
            "a field",
            policy("x", &format!("{{ \"{}\": 1 }}", filled("mode"))),
        ),
    ] {
        let errors = timed(what, &text).unwrap_err();
        assert!(shown(&errors) <= 51, "{what}");
    }
}
