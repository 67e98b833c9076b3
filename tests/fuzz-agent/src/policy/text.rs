//! Policy files that are right or nearly, and ways to break them.

use std::fmt::Write as _;

use crate::support::tape::Tape;

/// One thing that may stand in a policy, right or nearly right.
fn word(tape: &mut Tape<'_>) -> String {
    const NAMES: &[&str] = &[
        "api.example.com",
        "\"*.example.com\"",
        "'*.b.example.com'",
        "EXAMPLE.com.",
        "b\u{fc}cher.example",
        "xn--bcher-kva.example",
        "a.b.c.d.e.example.com",
        "\"*\"",
        "*.example.com",
        "a..b",
        "-a.example",
        "_tcp.example.com",
        "\"md-*.example.com\"",
        "\"*-eu.example.com\"",
        "\"a*b.b.example.com\"",
        "\"a.*.example.com\"",
        "\"*-eu-*.example.com\"",
        "\"md-*\"",
    ];
    const TAGS: &[&str] = &[
        "Storage.westeurope",
        "storage.WESTEUROPE",
        "AzureCloud",
        "AzureCloud.westus",
        "Storage.*",
    ];
    const VARIABLES: &[&str] = &[
        "aks/azure-global",
        "aks/addon/istio",
        "azureml/training",
        "aks/azure-glob",
        "{ location: eastus }",
        "{ location: East US }",
        "{ cloud: us-government, vaults: [a, b] }",
        "{ location: eastus, konnectivity: false, tunnelTo: service-tag }",
        "{ location: eastus, apiServer: [10.0.0.1/8] }",
        "<location>",
    ];
    const CIDRS: &[&str] = &[
        "10.0.0.0/8",
        "192.0.2.1",
        "2001:db8::/32",
        "::/0",
        "0.0.0.0/0",
        "::ffff:10.0.0.0/104",
        "10.0.0.1/8",
        "1.2.3/24",
        "300.0.0.1/32",
        "10.0.0.0/33",
        "fe80::1%eth0",
    ];
    const PORTS: &[&str] = &[
        "443/tcp",
        "\"1-65535/udp\"",
        "any",
        "any/tcp",
        "icmp",
        "53",
        "0/tcp",
        "80-79/tcp",
        "443/sctp",
        "65536/tcp",
        "443/TCP",
    ];
    const OTHERS: &[&str] = &[
        "enforce",
        "audit",
        "keep",
        "judge",
        "30s",
        "24h",
        "0s",
        "1d",
        "99999999999s",
        "~",
        "null",
        "no",
        "1e9",
        "{}",
        "[]",
        "[[[[]]]]",
        "&a",
        "*a",
        "!!str",
        "|",
        ">",
        "allowed",
        "{ queries: allowed }",
        "168h",
        "1m30s",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\u{1f980}",
        "\t",
        "---",
        "...",
        "? [a, b]",
        "<<: *a",
        "#",
        "egress.dev/v1alpha1",
        "EgressPolicy",
    ];
    let list = tape.pick(&[NAMES, CIDRS, PORTS, TAGS, VARIABLES, OTHERS]);
    if tape.chance(12) {
        let length = tape.pick(&[63, 64, 253, 254, 1000]);
        return "a".repeat(length);
    }
    tape.pick(list).to_owned()
}

fn list(tape: &mut Tape<'_>, options: &[&str]) -> String {
    let count = 1 + tape.below(4);
    let items: Vec<_> = (0..count).map(|_| tape.pick(options)).collect();
    format!("[{}]", items.join(", "))
}

/// A file that is right, or nearly.
pub fn make(tape: &mut Tape<'_>) -> String {
    let mut text = String::new();
    for number in 0..1 + tape.below(3) {
        if number > 0 {
            text += "---\n";
        }
        let name = if tape.chance(16) { 0 } else { number };
        writeln!(text, "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy").unwrap();
        writeln!(text, "metadata: {{ name: p{name} }}\nspec:").unwrap();
        if tape.chance(80) {
            writeln!(
                text,
                "  mode: {}",
                tape.pick(&["enforce", "audit", "enforce"])
            )
            .unwrap();
        }
        if tape.chance(80) {
            writeln!(
                text,
                "  ttl: {{ min: {}s, max: {}h }}",
                tape.byte(),
                1 + u16::from(tape.byte())
            )
            .unwrap();
        }
        if tape.chance(60) {
            writeln!(text, "  preexisting: {}", tape.pick(&["keep", "judge"])).unwrap();
        }
        if tape.chance(60) {
            let queries = tape.pick(&["any", "allowed"]);
            writeln!(text, "  dns: {{ queries: {queries} }}").unwrap();
        }
        for field in ["allow", "deny"] {
            writeln!(text, "  {field}:").unwrap();
            for _ in 0..tape.below(5) {
                let mut lead = "  - ";
                if tape.chance(180) {
                    let names = [
                        "api.example.com",
                        "\"*.example.com\"",
                        "\"*.b.example.com\"",
                        "a.b.example.com",
                        "\"md-*.example.com\"",
                        "\"*-x.example.com\"",
                        "\"m*x.example.com\"",
                        "md-1-x.example.com",
                    ];
                    writeln!(text, "{lead}names: {}", list(tape, &names)).unwrap();
                    lead = "    ";
                }
                if lead == "  - " || tape.chance(100) {
                    let cidrs = [
                        "10.0.0.0/8",
                        "10.1.0.0/16",
                        "2001:db8::/32",
                        "\"::/0\"",
                        "192.0.2.1",
                    ];
                    writeln!(text, "{lead}cidrs: {}", list(tape, &cidrs)).unwrap();
                }
                if tape.chance(60) {
                    let tags = ["Storage.westeurope", "storage.WestEurope", "AzureCloud"];
                    writeln!(text, "    serviceTags: {}", list(tape, &tags)).unwrap();
                }
                if field == "allow" && tape.chance(160) {
                    let port = tape.u16();
                    let port = format!("\"{port}/tcp\"");
                    let ports = ["443/tcp", "any/udp", "icmp", "\"8000-8080/tcp\"", &port];
                    writeln!(text, "    ports: {}", list(tape, &ports)).unwrap();
                }
            }
            if tape.chance(40) {
                let preset = tape.pick(&["aks/azure-global", "aks/us-government", "aks/addon/gpu"]);
                let with = tape.pick(&[
                    "location: eastus",
                    "location: eastus, konnectivity: false, tunnelTo: service-tag",
                    "location: eastus, managedDisks: true, vmExtensions: true",
                    "cloud: x",
                    "location: [a, b]",
                ]);
                writeln!(text, "  - preset: {preset}\n    with: {{ {with} }}").unwrap();
            }
            if text.ends_with(":\n") {
                text.truncate(text.len() - 1);
                text += " []\n";
            }
        }
    }
    text
}

/// Breaks a file in one way: lines, words, structure.
pub fn break_text(tape: &mut Tape<'_>, text: &mut String) {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        lines.push(String::new());
    }
    let at = tape.below(lines.len());
    match tape.below(12) {
        0 => {
            lines.remove(at);
        }
        1 => {
            let line = lines[at].clone();
            lines.insert(at, line);
        }
        2 => {
            let other = tape.below(lines.len());
            lines.swap(at, other);
        }
        3 => lines[at].insert_str(0, tape.pick(&[" ", "  ", "\t", "- ", "? ", "&a ", "*a "])),
        4 => lines[at] = lines[at].trim_start().to_owned(),
        5 | 6 => {
            let word = word(tape);
            match lines[at].split_once(": ") {
                Some((key, _)) => lines[at] = format!("{key}: {word}"),
                None => lines[at] += &word,
            }
        }
        7 => {
            let word = word(tape);
            let key = tape.pick(&[
                "names",
                "cidrs",
                "serviceTags",
                "preset",
                "with",
                "ports",
                "allow",
                "mode",
                "ttl",
                "Names",
                "port",
                "spec",
            ]);
            lines.insert(at, format!("{}{key}: {word}", " ".repeat(tape.below(7))));
        }
        8 => {
            // Anchors that hold anchors, also as keys.
            let mut bomb = "x0: &x0 [a, b, c]".to_owned();
            for level in 1..2 + tape.below(30) {
                let below = level - 1;
                let items = vec![format!("*x{below}"); 1 + tape.below(12)].join(", ");
                let item = if tape.chance(128) {
                    format!("[{items}]")
                } else {
                    format!("{{ ? [{items}] : *x{below} }}")
                };
                write!(bomb, "\nx{level}: &x{level} {item}").unwrap();
            }
            lines.insert(at, bomb);
        }
        9 => {
            let open = tape.pick(&["[", "{", "{a: ", "- ", "? ", "[{", "\"", "'", "|\n "]);
            lines.insert(at, open.repeat(1 + tape.below(3000)));
        }
        10 => {
            // A long text and many aliases of it.
            let text = "b".repeat(tape.below(30_000));
            let aliases = vec!["*t"; 1 + tape.below(6000)].join(", ");
            lines.insert(at, format!("t: &t \"{text}\"\nu: [{aliases}]"));
        }
        _ => {
            let line = &mut lines[at];
            let place = tape.below(line.len() + 1);
            if line.is_char_boundary(place) {
                let sign = tape.pick(&[
                    '"', '\'', ':', '[', ']', '{', '}', ',', '#', '&', '*', '!', '|', '>', '%',
                    '@', '`', '\0', '\u{feff}', '\u{2028}', '\r', '\u{85}', '\u{ffff}', '-', '?',
                    '\\',
                ]);
                line.insert(place, sign);
            }
        }
    }
    *text = lines.join("\n") + "\n";
}
