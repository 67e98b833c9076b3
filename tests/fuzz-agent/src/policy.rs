//! Target `policy`: files into the loader and what it accepts into the compiler.
//!
//! A finding is a panic, more than [`CPU_LIMIT`] or [`HEAP_LIMIT`], an error without a line of the file, an accepted set
//! that does not compile for another reason than too many rules at one place, or one that is another after it was written
//! as JSON and read again.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use egress_agent::policy::{
    Catalog, Lifeline, PolicyErrors, PolicySet, Problem, ServiceTags, compile, load,
    parse_name_pattern,
};
use nix::time::{ClockId, clock_gettime};

use crate::{Finding, Target, heap, rng::Rng, support::tape::Tape};

/// Most processor time for one file, without optimisation. The longest that was seen is a tenth of it.
const CPU_LIMIT: Duration = Duration::from_secs(2);
/// Most memory for one file. Files here are below 64 KiB, and aliases may repeat 100,000 values.
const HEAP_LIMIT: usize = 64 << 20;
/// Most bytes of a file.
const FILE_BYTES: usize = 64 << 10;

const CLASSES: &[&str] = &[
    "accepted",
    "too many rules meet",
    "not text",
    "not YAML",
    "nested or repeated",
    "wrong field or shape",
    "wrong value",
    "no policy",
];

/// Service tags that rules may refer to. The wide one holds others, so that rules meet at their networks.
const TAGS: &str = r#"{ "changeNumber": 7, "cloud": "Public", "values": [
  { "name": "AzureCloud", "id": "AzureCloud", "properties": { "changeNumber": 7, "region": "", "systemService": "",
    "addressPrefixes": ["10.0.0.0/9", "192.0.2.0/24", "2001:db8::/32"] } },
  { "name": "Storage.westeurope", "id": "Storage.WestEurope", "properties": { "changeNumber": 7, "region": "westeurope",
    "systemService": "AzureStorage", "addressPrefixes": ["10.1.0.0/16", "2001:db8:1::/48"] } },
  { "name": "AzureCloud.eastus", "id": "AzureCloud.eastus", "properties": { "changeNumber": 7, "region": "eastus",
    "systemService": "", "addressPrefixes": ["10.2.0.0/16"] } }
] }"#;

/// The target, with a folder for the files and what they may refer to.
pub struct Policies {
    folder: tempfile::TempDir,
    catalog: Catalog,
}

impl Policies {
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let tags = ServiceTags::parse(Path::new("tags.json"), TAGS.as_bytes(), None)?;
        let catalog = Catalog::new(Some(tags));
        Ok(Self { folder, catalog })
    }

    /// A file of this thread.
    fn file(&self) -> PathBuf {
        let thread = format!("{:?}.yaml", std::thread::current().id());
        self.folder.path().join(thread)
    }
}

fn cpu_time() -> Duration {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has this clock");
    Duration::from(time)
}

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
fn make(tape: &mut Tape<'_>) -> String {
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
fn break_text(tape: &mut Tape<'_>, text: &mut String) {
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

/// Whether an error says where it is; of a file as a whole only what has no line.
fn tells_its_line(errors: &PolicyErrors, file: &Path, lines: usize) -> Result<(), Finding> {
    for error in errors.errors() {
        let is_of_file = matches!(error.problem, Problem::EmptyFile(_) | Problem::TooLarge(_));
        let is_told = match error.place.line {
            Some(line) => (1..=lines + 1).contains(&line),
            None => is_of_file,
        };
        if error.place.file != file || !is_told {
            return Err(Finding(format!(
                "an error without its place in {lines} lines: {error:?}"
            )));
        }
    }
    if errors.errors().is_empty() {
        return Err(Finding("refused without an error".to_owned()));
    }
    Ok(())
}

fn class_of(errors: &PolicyErrors) -> usize {
    let Some(error) = errors.errors().first() else {
        return 7;
    };
    match &error.problem {
        Problem::NotText | Problem::Utf16 | Problem::Control(_) => 2,
        Problem::Yaml(_) | Problem::YamlStar => 3,
        Problem::TooDeep(_) | Problem::AliasBomb(_) | Problem::TooManyValues(_) => 4,
        Problem::EmptyFile(_) => 7,
        Problem::Name(_)
        | Problem::Cidr(_)
        | Problem::Ports(_)
        | Problem::Ttl(_)
        | Problem::Choice { .. }
        | Problem::ServiceTag(_)
        | Problem::Preset(_)
        | Problem::BadPolicyName(_) => 6,
        _ => 5,
    }
}

/// What is accepted compiles, and says what it said.
fn compiles(
    set: &PolicySet,
    catalog: &Catalog,
    file: &Path,
    lines: usize,
) -> Result<usize, Finding> {
    let lifeline = Lifeline::new().resolvers(&["192.0.2.53".parse().unwrap()]);
    let class = match compile(set, &lifeline, None) {
        Ok(compiled) => {
            let rules = set.policies().iter().flat_map(|policy| &policy.allow);
            for name in rules.flat_map(|rule| &rule.names) {
                let pattern = parse_name_pattern(&name.text)
                    .map_err(|error| Finding(format!("{}: {error}", name.text)))?;
                // A name that the pattern covers.
                let covered = pattern.to_string().replace('*', "x");
                if compiled.rules_of_name(&covered).is_none() {
                    return Err(Finding(format!("{pattern} is allowed and not compiled")));
                }
            }
            0
        }
        Err(errors) => {
            tells_its_line(&errors, file, lines)?;
            let is_known = errors.errors().iter().all(|error| {
                matches!(
                    error.problem,
                    Problem::NameFull { .. }
                        | Problem::LabelsFull { .. }
                        | Problem::CidrFull { .. }
                        | Problem::MixedModes { .. }
                )
            });
            if !is_known {
                return Err(Finding(format!("accepted, but does not compile: {errors}")));
            }
            1
        }
    };
    let mut again = String::new();
    for policy in set.policies() {
        let json = serde_json::to_string(policy).map_err(|error| Finding(error.to_string()))?;
        again += "---\n";
        again += &json;
        again += "\n";
    }
    let again = PolicySet::from_texts([(file, again.as_str())], catalog)
        .map_err(|errors| Finding(format!("refused when written as JSON: {errors}\n{again}")))?;
    let documents = |set: &PolicySet| -> Vec<_> {
        let policies = set.policies().iter();
        policies.map(|policy| policy.document.clone()).collect()
    };
    if documents(&again) != documents(set) {
        return Err(Finding("another policy when written as JSON".to_owned()));
    }
    Ok(class)
}

impl Target for Policies {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn classes(&self) -> Vec<String> {
        CLASSES.iter().map(|class| (*class).to_owned()).collect()
    }

    fn make(&self, rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
        let choice = rng.u64();
        let mut bytes = [0; 1024];
        rng.fill(&mut bytes);
        if choice & 15 == 0 {
            // Bytes, most of which YAML gives a meaning.
            let signs = b" \n:-[]{},\"'#&*!|>?%\t\\ab01/.\xc3\xff\0";
            let length = (choice >> 8) as usize % bytes.len();
            return bytes[..length]
                .iter()
                .map(|byte| signs[usize::from(*byte) % signs.len()])
                .collect();
        }
        let tape = &mut Tape::new(&bytes[..768]);
        let mut text = if !corpus.is_empty() && choice >> 4 & 3 == 0 {
            let file = &corpus[(choice >> 16) as usize % corpus.len()];
            String::from_utf8_lossy(file).into_owned()
        } else {
            make(tape)
        };
        let tape = &mut Tape::new(&bytes[768..]);
        for _ in 0..(choice >> 6 & 3) {
            break_text(tape, &mut text);
        }
        let mut file = text.into_bytes();
        if choice >> 8 & 15 == 0 && !file.is_empty() {
            let at = tape.below(file.len());
            file[at] = tape.byte();
        }
        if choice >> 12 & 15 == 0 {
            file.truncate(tape.below(file.len() + 1));
        }
        file.truncate(FILE_BYTES);
        file
    }

    fn check(&self, input: &[u8]) -> Result<usize, Finding> {
        let file = self.file();
        fs::write(&file, input).map_err(|error| Finding(format!("cannot write: {error}")))?;
        let lines = input.split(|byte| *byte == b'\n').count();
        let begin = cpu_time();
        let (class, heap) = heap::peak(|| match load(std::slice::from_ref(&file), &self.catalog) {
            Ok(set) => compiles(&set, &self.catalog, &file, lines),
            Err(errors) => {
                tells_its_line(&errors, &file, lines)?;
                // What the user sees.
                let _shown = errors.to_string();
                Ok(class_of(&errors))
            }
        });
        let took = cpu_time().saturating_sub(begin);
        let class = class?;
        if took > CPU_LIMIT {
            return Err(Finding(format!("took {took:?} for {} bytes", input.len())));
        }
        if heap > HEAP_LIMIT {
            return Err(Finding(format!(
                "held {heap} bytes for {} bytes",
                input.len()
            )));
        }
        Ok(class)
    }

    fn refusals(&self) -> &'static [&'static str] {
        &[]
    }

    fn refusal(&self, _input: &[u8]) -> Option<usize> {
        None
    }
}
