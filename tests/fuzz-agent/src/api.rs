//! Target `api`: bytes and broken requests on the agent's socket.
//!
//! The service is the agent's own, on its own listener; behind it stands an agent without a kernel. A finding is a panic
//! anywhere, a request that is answered by a 500, and a `/v1/status` that does not come soon after.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    panic,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use egress_agent::{
    api::{
        AgentState, ApiListener, BadQuestion, ExplainQuery, FlowFilter, LearnedFilter, NotAwaited,
        Rows,
        model::{
            ConfirmationStatus, CountersReport, Explanation, FlowReport, LearnedAddress,
            Observations, Status,
        },
        serve,
    },
    shutdown::{self, Trigger},
};
use tokio::{runtime::Runtime, sync::broadcast};

use crate::{Finding, Target, rng::Rng, support::tape::Tape};

/// Longest time until an answer begins.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest time until an answer to something that may be half a request begins.
const PATIENCE: Duration = Duration::from_millis(30);
/// Most bytes of a request.
const REQUEST_BYTES: usize = 64 << 10;
/// Inputs between two looks at descriptors.
const LOOK: u64 = 256;
/// Descriptors more than at the start that are no leak: what is being closed.
const DESCRIPTORS: usize = 40;

const CLASSES: &[&str] = &[
    "200",
    "400",
    "404",
    "405",
    "other 4xx",
    "other",
    "closed unanswered",
    "waits for more",
];

/// Panics anywhere in the process.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// An agent that only has a state.
struct Stateless {
    flows: broadcast::Sender<Arc<FlowReport>>,
}

impl AgentState for Stateless {
    fn status(&self) -> anyhow::Result<Status> {
        Ok(Status::default())
    }

    fn counters(&self) -> anyhow::Result<CountersReport> {
        Ok(CountersReport::default())
    }

    fn learned(self: Arc<Self>, filter: LearnedFilter) -> anyhow::Result<Rows<LearnedAddress>> {
        let one = LearnedAddress {
            name: "a.example.com".to_owned(),
            address: "192.0.2.1".parse()?,
            ports: vec!["443/tcp".to_owned()],
            expires_in_s: 29,
            scope: "node".to_owned(),
            rules: Vec::new(),
        };
        let is_shown = filter.shows(&one.name, one.address) && filter.pods.shows(&one.scope);
        let rows = if is_shown { vec![one] } else { Vec::new() };
        Ok(Box::new(std::iter::once(Ok(rows))))
    }

    fn recent_flows(&self, _filter: FlowFilter) -> anyhow::Result<Vec<Arc<FlowReport>>> {
        Ok(Vec::new())
    }

    fn observations(&self) -> anyhow::Result<Observations> {
        Ok(Observations::default())
    }

    fn explain(&self, query: &ExplainQuery) -> anyhow::Result<Explanation> {
        match &query.from {
            Some(from) => Err(BadQuestion(format!("no scope is called {from:?}")).into()),
            None => Ok(Explanation {
                destination: query.destination.to_string(),
                ..Explanation::default()
            }),
        }
    }

    fn confirm(&self) -> anyhow::Result<ConfirmationStatus> {
        Err(NotAwaited("there is no kernel").into())
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<FlowReport>> {
        self.flows.subscribe()
    }
}

/// The target.
pub struct Socket {
    path: PathBuf,
    checks: AtomicU64,
    descriptors: usize,
    _folder: tempfile::TempDir,
    _trigger: Trigger,
    _runtime: Runtime,
}

impl Socket {
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let path = folder.path().join("agent.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let agent = Arc::new(Stateless {
            flows: broadcast::channel(4).0,
        });
        let (trigger, shutdown) = shutdown::channel();
        let listener = ApiListener::bind(&path)?;
        runtime.spawn(serve(listener, agent, shutdown));
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            hook(info);
        }));
        let mut socket = Self {
            path,
            checks: AtomicU64::new(0),
            descriptors: 0,
            _folder: folder,
            _trigger: trigger,
            _runtime: runtime,
        };
        socket
            .still_answers()
            .map_err(|found| anyhow::anyhow!(found.0))?;
        socket.descriptors = descriptors();
        Ok(socket)
    }

    fn connect(&self, patience: Duration) -> Result<UnixStream, Finding> {
        let stream = UnixStream::connect(&self.path)
            .map_err(|error| Finding(format!("cannot connect: {error}")))?;
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.set_write_timeout(Some(ANSWER)).unwrap();
        Ok(stream)
    }

    /// A good request, after whatever came before.
    fn still_answers(&self) -> Result<(), Finding> {
        let mut stream = self.connect(ANSWER)?;
        let request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        let result = stream
            .write_all(request)
            .and_then(|()| stream.read_to_string(&mut answer));
        if result.is_ok() && answer.starts_with("HTTP/1.1 200 ") && answer.ends_with('}') {
            return Ok(());
        }
        Err(Finding(format!(
            "/v1/status does not come: {result:?} {answer}"
        )))
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A request that is right, or nearly.
fn make(tape: &mut Tape<'_>) -> Vec<u8> {
    let is_odd = tape.chance(90);
    let method = if is_odd {
        tape.pick(&[
            "GET", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "G\0T", "", "PRI",
        ])
    } else {
        "GET"
    };
    let path = tape.pick(&[
        "/v1/status",
        "/v1/counters",
        "/v1/learned",
        "/v1/flows",
        "/v1/flows/follow",
        "/v1/confirm",
        "/v1/explain?to=a.example.com:80&from=node",
        "/v1/explain?to=[::1",
        "/metrics",
        "/v1/status/..",
        "//v1/status",
        "/",
        "*",
        "http://x/v1/status",
        "/%2e%2e/%00",
        "/v1/\u{fc}",
    ]);
    let query = tape.pick(&[
        "",
        "",
        "?query=a.example.com",
        "?query=192.0.2.1",
        "?query=%ff%00",
        "?query=*.example.com&query=x",
        "?denied=true&limit=1",
        "?limit=99999999999999999999",
        "?limit=-1",
        "?denied=maybe",
        "?unknown=1",
        "?&&==%",
    ]);
    let version = if is_odd {
        tape.pick(&["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""])
    } else {
        "HTTP/1.1"
    };
    let mut request = format!("{method} {path}{query} {version}\r\n").into_bytes();
    for _ in 0..tape.below(6) {
        let good: &[&[u8]] = &[b"Host: x", b"Connection: close", b"Accept: */*"];
        let header: &[u8] = if !tape.chance(50) {
            tape.pick(good)
        } else {
            tape.pick(&[
                b"Host: x".as_slice(),
                b"Connection: close",
                b"Connection: keep-alive, upgrade",
                b"Upgrade: h2c",
                b"Content-Length: 5",
                b"Content-Length: 18446744073709551616",
                b"Content-Length: -1",
                b"Transfer-Encoding: chunked",
                b"Transfer-Encoding: chunked, identity",
                b"Expect: 100-continue",
                b"Accept-Encoding: gzip",
                b" folded: x",
                b": empty",
                b"no colon",
                b"X: \xff\xfe",
            ])
        };
        request.extend(header);
        request.extend(b"\r\n");
    }
    if tape.chance(12) {
        let header = format!("X-Long: {}\r\n", "x".repeat(tape.below(60_000)));
        request.extend(header.bytes());
    }
    if tape.chance(12) {
        let header = b"A: b\r\n".repeat(tape.below(300));
        request.extend(header);
    }
    request.extend(b"\r\n");
    if tape.chance(60) {
        let body: &[u8] = tape.pick(&[
            b"hello".as_slice(),
            b"5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\nx",
            b"-1\r\n",
            b"0;x=y\r\n\r\n",
        ]);
        request.extend(body);
    }
    if tape.chance(60) {
        // One more in the same connection.
        request.extend(b"GET /v1/counters HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    request
}

impl Target for Socket {
    fn name(&self) -> &'static str {
        "api"
    }

    fn classes(&self) -> Vec<String> {
        CLASSES.iter().map(|class| (*class).to_owned()).collect()
    }

    fn make(&self, rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
        let choice = rng.u64();
        let mut bytes = [0; 512];
        rng.fill(&mut bytes);
        let tape = &mut Tape::new(&bytes[..256]);
        if choice & 15 == 0 {
            return bytes[..1 + tape.below(500)].to_vec();
        }
        let mut request = if !corpus.is_empty() && choice >> 4 & 3 == 0 {
            corpus[(choice >> 16) as usize % corpus.len()].clone()
        } else {
            make(tape)
        };
        let tape = &mut Tape::new(&bytes[256..]);
        if choice >> 8 & 3 == 0 {
            for _ in 0..1 + tape.below(4) {
                if !request.is_empty() {
                    let at = tape.below(request.len());
                    request[at] = tape.byte();
                }
            }
        }
        if choice >> 12 & 7 == 0 {
            request.truncate(tape.below(request.len() + 1));
        }
        request.truncate(REQUEST_BYTES);
        request
    }

    fn check(&self, input: &[u8]) -> Result<usize, Finding> {
        let panics = PANICS.load(Ordering::SeqCst);
        let mut stream = self.connect(PATIENCE)?;
        // In two parts; the service may have hung up after the first.
        let (first, second) = input.split_at(input.len() / 2);
        let _ = stream
            .write_all(first)
            .and_then(|()| stream.write_all(second));
        let is_whole = input.windows(4).any(|end| end == b"\r\n\r\n");
        if !is_whole {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut answer = [0; 256];
        let class = match stream.read(&mut answer) {
            Ok(0) => 6,
            Ok(length) => class_of(&answer[..length])?,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 7,
            // Closed with bytes of ours unread.
            Err(_) => 6,
        };
        drop(stream);
        let checks = self.checks.fetch_add(1, Ordering::Relaxed);
        if checks.is_multiple_of(16) {
            self.still_answers()?;
        }
        if checks.is_multiple_of(LOOK) {
            let now = descriptors();
            if self.descriptors > 0 && now > self.descriptors + DESCRIPTORS {
                return Err(Finding(format!(
                    "{now} descriptors are open, {} at the start",
                    self.descriptors
                )));
            }
        }
        if PANICS.load(Ordering::SeqCst) != panics {
            return Err(Finding("the service panicked".to_owned()));
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

fn class_of(answer: &[u8]) -> Result<usize, Finding> {
    let text = String::from_utf8_lossy(answer);
    let code = text.split(' ').nth(1).unwrap_or_default();
    let is_http = text.starts_with("HTTP/1.");
    Ok(match code {
        _ if !is_http => return Err(Finding(format!("answered with {text}"))),
        "200" => 0,
        "400" => 1,
        "404" => 2,
        "405" => 3,
        code if code.starts_with('4') => 4,
        "500" => return Err(Finding(format!("answered with {text}"))),
        _ => 5,
    })
}
