//! The client of the socket, for the CLI.

use std::{
    io,
    marker::PhantomData,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tracing::debug;

use crate::{
    filter::{FlowFilter, PodFilter},
    model::{
        ConfirmationStatus, CountersReport, ErrorReport, Explanation, FlowReport, FollowLine,
        LearnedAddress, Observations, Status,
    },
    socket::{Unreachable, is_trusted},
};

/// How long an answer may take, or the next piece of one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent is listening on {}: start it with `systemctl start egress-agent` \
         or `egress-agent run --policy …`",
        socket.display()
    )]
    NotListening {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket is not for this user.
    #[error("no permission to use {}: run this as root", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
    /// Somebody listens who is neither root nor this user.
    #[error("{} is served by user {uid}, who is not root: not trusted", socket.display())]
    Untrusted {
        /// The socket.
        socket: PathBuf,
        /// The user.
        uid: u32,
    },
    /// The socket cannot be connected to.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path cannot be asked for.
    #[error("cannot ask the agent")]
    Request(#[source] hyper::http::Error),
    /// The connection broke.
    #[error("the agent closed the connection: see its log (`journalctl -u egress-agent`)")]
    Broken(#[source] hyper::Error),
    /// Too slow.
    #[error(
        "the agent did not answer within {} s: see its log (`journalctl -u egress-agent`)",
        TIMEOUT.as_secs()
    )]
    Timeout,
    /// The agent could not answer.
    #[error("the agent answered {status}: {error}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The agent's error.
        error: String,
    },
    /// The agent is not in a state for the request.
    #[error("{0}")]
    Conflict(String),
    /// All places are taken.
    #[error("the agent is busy: {0}")]
    Busy(String),
    /// A list ends before its end.
    #[error(
        "the agent broke off the list: read it faster, or see its log (`journalctl -u egress-agent`)"
    )]
    BrokenOff,
    /// The question names something that is not there.
    #[error("{0}")]
    BadQuestion(String),
    /// The answer is not what this version expects.
    #[error("cannot read the agent's answer: are agent and CLI of one version?")]
    Unreadable(#[source] serde_json::Error),
}

/// Asks an agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// A filter as parameters of a request, without its limit.
fn parameters(filter: &FlowFilter) -> String {
    format!("denied={}{}", filter.denied, pod_parameters(&filter.pods))
}

fn pod_parameters(pods: &PodFilter) -> String {
    let mut text = String::new();
    for (name, value) in [("namespace", &pods.namespace), ("pod", &pods.pod)] {
        if let Some(value) = value {
            text.push_str(&format!("&{name}={}", percent_encoded(value)));
        }
    }
    text
}

impl Client {
    /// A client of the agent that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Asks for the status.
    ///
    /// # Errors
    ///
    /// No agent answers, or it cannot.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// Asks for the counters.
    ///
    /// # Errors
    ///
    /// No agent answers, or it cannot.
    pub async fn counters(&self) -> Result<CountersReport, ClientError> {
        self.get("/v1/counters").await
    }

    /// Asks for learned addresses: all, or those of a name or an address, of all workloads or of some pods.
    ///
    /// # Errors
    ///
    /// No agent answers, or it cannot.
    pub async fn learned(
        &self,
        query: Option<&str>,
        pods: &PodFilter,
    ) -> Result<Listing<LearnedAddress>, ClientError> {
        let query = percent_encoded(query.unwrap_or_default());
        let path = format!("/v1/learned?query={query}{}", pod_parameters(pods));
        self.list(&path).await
    }

    /// Asks for the latest verdicts, oldest first.
    ///
    /// # Errors
    ///
    /// No agent answers, or it cannot.
    pub async fn flows(&self, filter: FlowFilter) -> Result<Vec<FlowReport>, ClientError> {
        let mut path = format!("/v1/flows?{}", parameters(&filter));
        if let Some(limit) = filter.limit {
            path.push_str(&format!("&limit={limit}"));
        }
        let mut list = self.list(&path).await?;
        let mut flows = Vec::new();
        while let Some(row) = list.next().await? {
            flows.push(row.read()?);
        }
        Ok(flows)
    }

    /// Asks for verdicts as they come.
    ///
    /// # Errors
    ///
    /// No agent answers, or it cannot.
    pub async fn follow(&self, filter: FlowFilter) -> Result<Following, ClientError> {
        let path = format!("/v1/flows/follow?{}", parameters(&filter));
        let response = in_time(self.send(Method::GET, &path)).await?;
        Ok(Following(TextLines::of(response)))
    }

    /// Asks what the kernel decides about a destination, as a destination of a policy question.
    ///
    /// # Errors
    ///
    /// No agent answers, or it cannot: for example because it knows no such scope or cgroup.
    pub async fn explain(&self, to: &str, from: Option<&str>) -> Result<Explanation, ClientError> {
        let mut path = format!("/v1/explain?to={}", percent_encoded(to));
        if let Some(from) = from {
            path.push_str(&format!("&from={}", percent_encoded(from)));
        }
        self.get(&path).await
    }

    /// Asks what flows were seen.
    ///
    /// # Errors
    ///
    /// No agent answers, or it cannot.
    pub async fn observations(&self) -> Result<Observations, ClientError> {
        self.get("/v1/observations").await
    }

    /// Confirms that enforcing left the node reachable.
    ///
    /// # Errors
    ///
    /// [`ClientError::Conflict`] when that is not awaited; no agent answers, or it cannot.
    pub async fn confirm(&self) -> Result<ConfirmationStatus, ClientError> {
        self.ask(Method::POST, "/v1/confirm").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        let answer = async { collect(self.send(method, path).await?.into_body()).await };
        let body = in_time(answer).await?;
        serde_json::from_slice(&body).map_err(ClientError::Unreadable)
    }

    async fn list<T>(&self, path: &str) -> Result<Listing<T>, ClientError> {
        let response = in_time(self.send(Method::GET, path)).await?;
        Ok(Listing {
            lines: TextLines::of(response),
            is_ended: false,
            rows: PhantomData,
        })
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let socket = || self.socket.clone();
        let connect = |source: io::Error| match Unreachable::of(&source) {
            Some(Unreachable::NobodyListens) => ClientError::NotListening { socket: socket() },
            Some(Unreachable::NotPermitted) => ClientError::Permission { socket: socket() },
            None => ClientError::Connect {
                socket: socket(),
                source,
            },
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(connect)?;
        let uid = stream.peer_cred().map_err(connect)?.uid();
        if !is_trusted(uid) {
            return Err(ClientError::Untrusted {
                socket: socket(),
                uid,
            });
        }
        Ok(stream)
    }

    /// Sends a request; an answer other than 200 is an error.
    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, ClientError> {
        let stream = TokioIo::new(self.connect().await?);
        let handshake = http1::handshake::<_, Empty<Bytes>>(stream).await;
        let (mut sender, connection) = handshake.map_err(ClientError::Broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection ended");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .body(Empty::new())
            .map_err(ClientError::Request)?;
        let response = sender.send_request(request).await;
        let response = response.map_err(ClientError::Broken)?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let body = collect(response.into_body()).await?;
        let error = match serde_json::from_slice::<ErrorReport>(&body) {
            Ok(report) => report.error,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        if status == StatusCode::CONFLICT {
            return Err(ClientError::Conflict(error));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(ClientError::Busy(error));
        }
        if status == StatusCode::BAD_REQUEST {
            return Err(ClientError::BadQuestion(error));
        }
        Err(ClientError::Refused { status, error })
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    let collected = body.collect().await.map_err(ClientError::Broken)?;
    Ok(collected.to_bytes())
}

async fn in_time<T>(
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(ClientError::Timeout),
    }
}

/// The lines of an answer.
#[derive(Debug)]
struct TextLines {
    body: Incoming,
    buffer: Vec<u8>,
    /// Bytes at the buffer's beginning that were given out.
    given: usize,
}

impl TextLines {
    fn of(response: Response<Incoming>) -> Self {
        Self {
            body: response.into_body(),
            buffer: Vec::new(),
            given: 0,
        }
    }

    /// The next line without its end; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut searched = self.given;
        loop {
            let rest = self.buffer.get(searched..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let end = searched.saturating_add(end);
                let line = self.buffer.get(self.given..end).unwrap_or_default();
                let line = line.to_vec();
                self.given = end.saturating_add(1);
                return Ok(Some(line));
            }
            self.buffer.drain(..self.given);
            self.given = 0;
            searched = self.buffer.len();
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(ClientError::Broken)?;
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// Verdicts as they come.
#[derive(Debug)]
pub struct Following(TextLines);

impl Following {
    /// The next line; `None` when the agent ends.
    ///
    /// # Errors
    ///
    /// The connection broke, or the line is not what this version expects.
    pub async fn next(&mut self) -> Result<Option<FollowLine>, ClientError> {
        let line = self.0.next().await?;
        let line = line.map(|line| serde_json::from_slice(&line));
        line.transpose().map_err(ClientError::Unreadable)
    }
}

/// A list, row by row: it is never whole in memory.
#[derive(Debug)]
pub struct Listing<T> {
    lines: TextLines,
    is_ended: bool,
    rows: PhantomData<fn() -> T>,
}

impl<T> Listing<T> {
    /// The next row; `None` at the end.
    ///
    /// # Errors
    ///
    /// The agent breaks the list off, or stops sending.
    pub async fn next(&mut self) -> Result<Option<Row<T>>, ClientError> {
        while !self.is_ended {
            let Some(line) = in_time(self.lines.next()).await? else {
                return Err(ClientError::BrokenOff);
            };
            // A comma is before the end of a row's line, or alone on one.
            match line.strip_suffix(b",").unwrap_or(&line) {
                b"" | b"[" => {}
                b"]" => self.is_ended = true,
                json => {
                    return Ok(Some(Row {
                        json: json.to_vec(),
                        row: PhantomData,
                    }));
                }
            }
        }
        Ok(None)
    }
}

/// A row of a list as the agent wrote it.
#[derive(Clone, Debug)]
pub struct Row<T> {
    json: Vec<u8>,
    row: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Row<T> {
    /// Reads the row.
    ///
    /// # Errors
    ///
    /// It is not what this version expects.
    pub fn read(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.json).map_err(ClientError::Unreadable)
    }

    /// Its JSON, on one line.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

/// Text as the value of a query parameter (RFC 3986 section 2.3: unreserved characters stay).
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_cannot_add_parameters() {
        assert_eq!(percent_encoded("*.a-b.example"), "%2A.a-b.example");
        assert_eq!(
            percent_encoded("2001:db8::1&x=ä"),
            "2001%3Adb8%3A%3A1%26x%3D%C3%A4"
        );
    }

    #[tokio::test]
    async fn nobody_there_says_how_to_start_an_agent() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("agent.sock");
        let asked = || async { Client::new(&socket).status().await.expect_err("nobody") };
        let missing = asked().await.to_string();
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
        let stale = asked().await.to_string();
        assert_eq!(missing, stale);
        let start = format!("no agent is listening on {}: start it", socket.display());
        assert!(missing.starts_with(&start), "{missing}");
    }
}
