//! Target `policy`: files into the loader, and accepted policies into the compiler.
//!
//! A finding is a panic, more than [`CPU_LIMIT`] or [`HEAP_LIMIT`], an error without a line of the file, an accepted set
//! that does not compile for another reason than too many rules at one place, or one that is another after it was written
//! as JSON and read again.

mod text;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use egress_agent::policy::{
    Catalog, CidrError, CompileError, DocumentError, Lifeline, NameError, PolicyErrors, PolicySet,
    PortsError, PresetError, Problem, ReadError, ServiceTagError, ServiceTags, TtlError, compile,
    load, parse_name_pattern,
};
use egress_common::verdict::Mode;
use nix::time::{ClockId, clock_gettime};

use self::text::{break_text, make};
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

/// Checks that every error has its file, and its line unless it is about the file as a whole.
fn tells_its_line(errors: &PolicyErrors, file: &Path, lines: usize) -> Result<(), Finding> {
    for error in errors.errors() {
        let is_empty = matches!(
            error.problem.downcast_ref(),
            Some(DocumentError::EmptyFile(_))
        );
        let is_large = matches!(error.problem.downcast_ref(), Some(ReadError::TooLarge(_)));
        let is_of_file = is_empty || is_large;
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
    let problem = &error.problem;
    match problem.downcast_ref() {
        Some(ReadError::NotText | ReadError::Utf16 | ReadError::Control(_)) => return 2,
        Some(ReadError::Yaml(_) | ReadError::YamlStar) => return 3,
        Some(ReadError::TooDeep(_) | ReadError::AliasBomb(_) | ReadError::TooManyValues(_)) => {
            return 4;
        }
        Some(ReadError::Choice { .. }) => return 6,
        _ => {}
    }
    match problem.downcast_ref() {
        Some(DocumentError::EmptyFile(_)) => return 7,
        Some(DocumentError::BadPolicyName(_)) => return 6,
        _ => {}
    }
    let is_of_value = is::<NameError>(problem)
        || is::<CidrError>(problem)
        || is::<PortsError>(problem)
        || is::<TtlError>(problem)
        || is::<ServiceTagError>(problem)
        || is::<PresetError>(problem);
    if is_of_value { 6 } else { 5 }
}

fn is<E: Error + 'static>(problem: &Problem) -> bool {
    problem.downcast_ref::<E>().is_some()
}

/// Checks that an accepted policy compiles, and that the compiled one has its names.
fn compiles(
    set: &PolicySet,
    catalog: &Catalog,
    file: &Path,
    lines: usize,
) -> Result<usize, Finding> {
    let lifeline = Lifeline::new().resolvers(&["192.0.2.53:53".parse().unwrap()]);
    let class = match compile(set, &lifeline, None) {
        Ok(compiled) => {
            let rules = set
                .policies()
                .iter()
                .flat_map(|policy| policy.allow.iter().map(move |rule| (policy.mode, rule)));
            let names =
                rules.flat_map(|(mode, rule)| rule.names.iter().map(move |name| (mode, name)));
            for (mode, name) in names {
                let pattern = parse_name_pattern(&name.text)
                    .map_err(|error| Finding(format!("{}: {error}", name.text)))?;
                // A name that the pattern covers.
                let covered = pattern.to_string().replace('*', "x");
                // Beside enforced policies those in audit are compiled apart.
                let apart = compiled.looking_on.as_deref();
                let apart = apart.filter(|_| mode == Mode::Audit);
                let compiled = apart.unwrap_or(&compiled);
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
                    error.problem.downcast_ref(),
                    Some(
                        CompileError::NameFull { .. }
                            | CompileError::LabelsFull { .. }
                            | CompileError::CidrFull { .. }
                    )
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
        // As YAML counts them: a lone carriage return ends a line, too.
        let is_end =
            |pair: &[u8]| pair[0] == b'\n' || (pair[0] == b'\r' && pair.get(1) != Some(&b'\n'));
        let ends = (0..input.len()).filter(|at| is_end(&input[*at..]));
        let lines = ends.count() + 1;
        let begin = cpu_time();
        let (class, heap) = heap::peak(|| match load(std::slice::from_ref(&file), &self.catalog) {
            Ok(set) => compiles(&set, &self.catalog, &file, lines),
            Err(errors) => {
                tells_its_line(&errors, &file, lines)?;
                // The text that the user sees.
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
