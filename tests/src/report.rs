//! Output of the probe, one JSON object in a line, as the tests read it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// One attempt to reach somebody.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The text that was sent came back.
    pub ok: bool,
    /// Where it ended: `connect`, `send`, `receive`, or `done`.
    pub stage: String,
    /// Name of the error, such as `EPERM`; `ETIMEDOUT` also where nothing came back in time.
    pub errno: Option<String>,
    /// How long it took.
    pub elapsed_ms: f64,
    /// Port that it was sent from; 0 where that is not known.
    pub local_port: u16,
}

impl Attempt {
    /// The kernel refused it at once, as our programs make it.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        !self.ok && self.errno.as_deref() == Some("EPERM")
    }

    /// Nothing came back.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        !self.ok && self.errno.as_deref() == Some("ETIMEDOUT")
    }
}

/// A DNS message as it arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// Sender.
    pub from: SocketAddr,
    /// Bytes in hexadecimal.
    pub hex: String,
}

/// One DNS lookup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lookup {
    /// Response code, such as `NOERROR`; `None` without a readable answer.
    pub rcode: Option<String>,
    /// Addresses of the answer, in its order.
    pub addresses: Vec<IpAddr>,
    /// Smallest TTL among them.
    pub ttl: Option<u32>,
    /// The answer was cut short (TC bit).
    pub truncated: bool,
    /// Everything that arrived.
    pub arrived: Vec<Arrived>,
    /// Why there is no answer.
    pub error: Option<String>,
    /// How long it took.
    pub elapsed_ms: f64,
}

/// Many lookups, each followed by a connect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Names that were resolved and connected to.
    pub count: u32,
    /// Connects that were refused with EPERM.
    pub refused: u32,
    /// Connects that failed otherwise.
    pub failed: u32,
    /// Lookups without an answer.
    pub unresolved: u32,
    /// The first few that went wrong.
    pub examples: Vec<String>,
    /// Median of a lookup with its connect.
    pub median_us: f64,
    /// How long all of it took.
    pub elapsed_ms: f64,
}

/// A flood of queries or datagrams.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Storm {
    /// Sent, or tried to.
    pub sent: u64,
    /// Answers that came; of datagrams, those that were let through.
    pub answered: u64,
    /// Refused with EPERM.
    pub refused: u64,
    /// The first few other errors.
    pub examples: Vec<String>,
    /// How long all of it took.
    pub elapsed_ms: f64,
}

impl Storm {
    /// Notes an error.
    pub fn note(&mut self, text: &str) {
        if self.examples.len() < 5 {
            self.examples.push(text.to_owned());
        }
    }

    /// Answers per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answered as f64 * 1000.0 / self.elapsed_ms.max(1.0)
    }
}

/// Connects one after another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Steadiness {
    /// Those that got through, there and back.
    pub ok: u32,
    /// Those that did not.
    pub failed: u32,
    /// The first few that did not.
    pub examples: Vec<String>,
    /// The longest.
    pub slowest_ms: f64,
}

/// Traffic of a run of `probe load`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Exchanges of 16 KiB over TCP streams that stay open.
    pub streams: Traffic,
    /// Datagrams of one flow, and their echoes.
    pub datagrams: Traffic,
    /// New TCP connections to a learned address.
    pub connects: Traffic,
    /// Lookups of new names, each followed by a connect.
    pub lookups: Traffic,
    /// Attempts that have to be refused: done is refused, failed got through.
    pub forbidden: Traffic,
}

/// Attempts of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Those that went as they should.
    pub done: u64,
    /// Those that did not.
    pub failed: u64,
    /// The first few that did not.
    pub examples: Vec<String>,
}

impl Traffic {
    /// Counts these too.
    pub fn add(&mut self, other: Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.examples.extend(other.examples);
    }
}
