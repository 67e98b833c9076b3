//! The flow log: one JSON object a line, for what ships logs.
//!
//! Names of fields are those of OpenTelemetry's semantic conventions
//! (<https://opentelemetry.io/docs/specs/semconv/>) where it has one. `docs/flow-log.schema.json` is made from
//! [`FlowRecord`].

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::ValueEnum;
use egress_common::{
    event::{Process, VerdictEvent},
    verdict::Verdict,
};
use schemars::JsonSchema;
use serde::Serialize;
use tracing::warn;

use crate::{
    api::model::FlowReport,
    kube::Pod,
    log_queue::{DroppedLines, LogQueue},
    store::in_time,
};

/// Version of the record: a field that goes or changes its meaning raises it, a new one does not.
pub const SCHEMA_VERSION: u32 = 1;

/// Where the log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowLogTarget {
    /// The agent's standard output.
    Stdout,
    /// A file, which is kept below a size.
    File(PathBuf),
}

impl FromStr for FlowLogTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("give `stdout` or a file".to_owned()),
            "stdout" | "-" => Ok(Self::Stdout),
            file => Ok(Self::File(file.into())),
        }
    }
}

impl fmt::Display for FlowLogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(file) => file.display().fmt(f),
        }
    }
}

/// Which flows are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FlowLogFilter {
    /// Those that were denied, and those that would be
    #[default]
    Denied,
    /// Also those that were allowed
    All,
}

/// How flows are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowLogOptions {
    /// Where.
    pub target: FlowLogTarget,
    /// Which.
    pub filter: FlowLogFilter,
    /// Bytes after which a file is renamed to `FILE.1` and a new one is begun.
    pub most_bytes: u64,
}

/// One line of the flow log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "FlowRecord", deny_unknown_fields)]
pub struct FlowRecord {
    /// When, UTC (RFC 3339).
    pub time: String,
    /// Always `egress.flow`.
    #[serde(rename = "event.name")]
    pub event_name: String,
    /// Version of this form.
    #[serde(rename = "egress.schema_version")]
    pub schema_version: u32,
    /// `allowed`, `denied` or `would_deny`.
    #[serde(rename = "egress.verdict")]
    pub verdict: String,
    /// The reason, as docs/reasons.md lists them.
    #[serde(rename = "egress.reason")]
    pub reason: String,
    /// The rule that the verdict rests on, in one line.
    #[serde(rename = "egress.rule", skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Name of the sender's scope.
    #[serde(rename = "egress.scope")]
    pub scope: String,
    /// The sender's cgroup: a path where it still exists, else its number.
    #[serde(rename = "egress.cgroup")]
    pub cgroup: String,
    /// Names that this scope resolved to the destination, allowed or not.
    #[serde(rename = "egress.names")]
    pub names: Vec<String>,
    /// Name of the hook.
    #[serde(rename = "egress.hook")]
    pub hook: String,
    /// Source address; none at connect, where it is not chosen yet.
    #[serde(rename = "source.address", skip_serializing_if = "Option::is_none")]
    pub source_address: Option<String>,
    /// Source port.
    #[serde(rename = "source.port", skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination address.
    #[serde(rename = "destination.address")]
    pub destination_address: String,
    /// Destination port; none where the protocol has none or a fragment hides it.
    #[serde(rename = "destination.port", skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Protocol: `tcp`, `udp`, `icmp` …, else its number.
    #[serde(rename = "network.transport")]
    pub transport: String,
    /// `ipv4` or `ipv6`.
    #[serde(rename = "network.type")]
    pub network_type: String,
    /// Namespace of the sender's pod.
    #[serde(rename = "k8s.namespace.name", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the sender's pod.
    #[serde(rename = "k8s.pod.name", skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// UID of the sender's pod.
    #[serde(rename = "k8s.pod.uid", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The process that made the socket, where the programs note it.
    #[serde(rename = "process.pid", skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What that process is called, at most 15 bytes.
    #[serde(
        rename = "process.executable.name",
        skip_serializing_if = "Option::is_none"
    )]
    pub executable: Option<String>,
}

impl FlowRecord {
    /// The record of a verdict event.
    #[must_use]
    pub fn new(event: &VerdictEvent, flow: &FlowReport, pod: Option<&Pod>) -> Self {
        let process = Some(event.process).filter(|process| *process != Process::UNKNOWN);
        Self {
            time: flow.at.to_string(),
            event_name: "egress.flow".to_owned(),
            schema_version: SCHEMA_VERSION,
            verdict: flow.verdict.to_string(),
            reason: flow.reason.to_string(),
            rule: flow.rule.clone(),
            scope: flow.scope.clone(),
            cgroup: flow.cgroup.clone(),
            names: flow.names.clone(),
            hook: flow.hook.to_string(),
            source_address: flow.source.map(|address| address.to_string()),
            source_port: (event.sport != 0).then_some(event.sport),
            destination_address: flow.destination.to_string(),
            destination_port: flow.port,
            transport: flow.protocol.to_string(),
            network_type: if flow.destination.is_ipv4() {
                "ipv4"
            } else {
                "ipv6"
            }
            .to_owned(),
            namespace: pod.map(|pod| pod.namespace.clone()),
            pod: pod.map(|pod| pod.name.clone()),
            pod_uid: pod.map(|pod| pod.uid.clone()),
            pid: process.map(|process| process.pid),
            executable: process.map(|process| command_text(&process.command)),
        }
    }
}

fn command_text(command: &[u8]) -> String {
    let text = command.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The open log. Nobody who logs waits for it: lines that find no room, or cannot be written, are dropped and counted.
#[derive(Debug)]
pub struct FlowLog {
    queue: LogQueue,
    filter: FlowLogFilter,
}

impl FlowLog {
    /// Opens what is asked for.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or no thread can be had.
    pub fn open(options: &FlowLogOptions) -> io::Result<Self> {
        let queue = match &options.target {
            FlowLogTarget::Stdout => LogQueue::written_to("the flow log", io::stdout())?,
            FlowLogTarget::File(path) => {
                LogQueue::written_to("the flow log", LogFile::open(path, options.most_bytes)?)?
            }
        };
        Ok(Self {
            queue,
            filter: options.filter,
        })
    }

    /// Logs a flow, if the filter lets it through.
    pub fn log(&self, event: &VerdictEvent, flow: &FlowReport, pod: Option<&Pod>) {
        let is_allowed = event.verdict == Verdict::Allow as u8;
        if is_allowed && self.filter == FlowLogFilter::Denied {
            return;
        }
        // A record of texts and numbers always has a form.
        if let Ok(mut line) = serde_json::to_vec(&FlowRecord::new(event, flow, pod)) {
            line.push(b'\n');
            self.queue.push(&line);
        }
    }

    /// Lines that were dropped.
    #[must_use]
    pub fn dropped(&self) -> DroppedLines {
        self.queue.dropped()
    }

    /// Waits a moment for what was logged to be written; not for a reader that does not read.
    pub fn finish(&self) {
        self.queue.flush(std::time::Duration::from_secs(1));
    }
}

/// The file of the log. One on a disk that does not answer when the agent starts is opened by the thread that writes it.
#[derive(Debug)]
enum LogFile {
    Open(Rotated),
    Unopened { path: PathBuf, most_bytes: u64 },
}

impl LogFile {
    fn open(path: &Path, most_bytes: u64) -> io::Result<Self> {
        let path = path.to_owned();
        let of_reader = path.clone();
        match in_time::read(move || Rotated::open(&of_reader, most_bytes)) {
            Ok(opened) => opened.map(Self::Open),
            Err(error) => {
                warn!(%error, file = %path.display(), "the flow log waits until it can be opened");
                Ok(Self::Unopened { path, most_bytes })
            }
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Self::Unopened { path, most_bytes } = self {
            *self = Self::Open(Rotated::open(path, *most_bytes)?);
        }
        match self {
            Self::Open(file) => file.write(bytes),
            Self::Unopened { .. } => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Open(file) => file.flush(),
            Self::Unopened { .. } => Ok(()),
        }
    }
}

/// A file that is renamed to `FILE.1`, in place of an older one, when a line would make it longer than it may be.
#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    file: File,
    bytes: u64,
    most_bytes: u64,
    is_within_line: bool,
}

impl Rotated {
    fn open(path: &Path, most_bytes: u64) -> io::Result<Self> {
        let file = open_log(path)?;
        let mut bytes = file.metadata()?.len();
        // A line that an agent was killed in is ended: the next one is whole.
        let is_within_line = bytes > 0 && !ends_with_newline(path)?;
        if is_within_line {
            (&file).write_all(b"\n")?;
            bytes = bytes.saturating_add(1);
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            most_bytes,
            is_within_line: false,
        })
    }
}

/// Root decides who reads the log: it names what every workload reaches.
fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

impl Write for Rotated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let longer = self.bytes.saturating_add(bytes.len() as u64);
        if !self.is_within_line && self.bytes > 0 && longer > self.most_bytes {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            match fs::rename(&self.path, older) {
                // The new file could not be made the last time, or somebody took it away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
            self.file = open_log(&self.path)?;
            self.bytes = 0;
        }
        let written = self.file.write(bytes)?;
        self.bytes = self.bytes.saturating_add(written as u64);
        self.is_within_line = bytes.get(..written).and_then(<[u8]>::last) != Some(&b'\n');
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_rotated_between_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("flows.json");
        fs::write(&path, "killed in mid-line").expect("written");
        let mut log = Rotated::open(&path, 40).expect("open");
        for line in [
            "one, of twenty bytes\n",
            "two, of twenty bytes\n",
            "three\n",
        ] {
            log.write_all(line.as_bytes()).expect("written");
        }
        assert_eq!(
            fs::read_to_string(&path).expect("there"),
            "two, of twenty bytes\nthree\n"
        );
        assert_eq!(
            fs::read_to_string(folder.path().join("flows.json.1")).expect("there"),
            "killed in mid-line\none, of twenty bytes\n"
        );
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, other) = (
            folder.path().join("flows.json"),
            folder.path().join("other"),
        );
        std::os::unix::fs::symlink(&other, &path).expect("a link");
        assert!(Rotated::open(&path, 40).is_err());
        assert!(!other.exists());
    }

    #[test]
    fn targets_are_read() {
        assert_eq!("stdout".parse(), Ok(FlowLogTarget::Stdout));
        assert_eq!("-".parse(), Ok(FlowLogTarget::Stdout));
        let file = FlowLogTarget::File("/var/log/egress/flows.json".into());
        assert_eq!(file.to_string().parse(), Ok(file));
        assert!("".parse::<FlowLogTarget>().is_err());
    }
}
