//! Long answers: lists of JSON, a row on each line, which are made as fast as
//! their client takes them and are never whole in the agent's memory.

use std::{sync::Arc, time::Duration};

use hyper::body::Bytes;
use serde::Serialize;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    follow::{Cut, Lines},
    state::{AgentState, Rows},
};
use crate::shutdown::Shutdown;

/// A piece goes out when it has so many bytes.
const PIECE: usize = 64 << 10;
/// Pages that are read at most before others have their turn.
const TURN: usize = 16;
/// Pieces that wait for a slow client.
const PIECES: usize = 1;

/// Makes lists.
#[derive(Clone)]
pub(super) struct Lists {
    /// A list holds one while it makes a piece.
    turns: Arc<Semaphore>,
    /// How long a client may take for a list.
    limit: Duration,
    shutdown: Shutdown,
}

impl Lists {
    /// `at_once` threads at most make pieces.
    pub(super) fn new(at_once: usize, limit: Duration, shutdown: Shutdown) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(at_once)),
            limit,
            shutdown,
        }
    }

    /// Begins a list: what is wrong from the beginning is an error, not a list that is cut.
    ///
    /// # Errors
    ///
    /// The first rows cannot be read.
    pub(super) async fn begin<T: Serialize + 'static>(
        self,
        agent: Arc<dyn AgentState>,
        rows: impl FnOnce(Arc<dyn AgentState>) -> anyhow::Result<Rows<T>> + Send + 'static,
    ) -> anyhow::Result<Lines> {
        let first = self.turn(move || List::new(rows(agent)?).piece()).await?;
        let (sender, receiver) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            let limit = self.limit;
            let shutdown = self.shutdown.clone();
            tokio::select! {
                () = shutdown.requested() => {}
                // Between two pieces, too: no piece is made for a client that has left.
                () = sender.closed() => {}
                sent = timeout(limit, self.send(first, &sender)) => {
                    if sent.is_err() {
                        debug!("a client took too long for a list");
                        let _ = sender.try_send(Err(Cut));
                    }
                }
            }
        });
        Ok(Lines::of(receiver))
    }

    async fn send<T: Serialize + 'static>(
        &self,
        first: (List<T>, Option<Bytes>),
        sender: &mpsc::Sender<Result<Bytes, Cut>>,
    ) {
        let (mut list, mut piece) = first;
        while let Some(mut bytes) = piece {
            if bytes.is_empty() {
                // A sign of life: there is no row among many yet.
                bytes = Bytes::from_static(b"\n");
            }
            if sender.send(Ok(bytes)).await.is_err() {
                return;
            }
            (list, piece) = match self.turn(move || list.piece()).await {
                Ok(made) => made,
                Err(error) => {
                    warn!(error = format!("{error:#}"), "cannot go on with a list");
                    let _ = sender.send(Err(Cut)).await;
                    return;
                }
            };
        }
    }

    /// Makes a piece on a thread where blocking is allowed, when it is its turn.
    async fn turn<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let _turn = self.turns.acquire().await?;
        tokio::task::spawn_blocking(make).await?
    }
}

/// A list that is being written.
struct List<T> {
    rows: Option<Rows<T>>,
    written: u64,
}

impl<T: Serialize> List<T> {
    const fn new(rows: Rows<T>) -> Self {
        Self {
            rows: Some(rows),
            written: 0,
        }
    }

    /// The next piece, which may be empty; `None` after the last.
    fn piece(mut self) -> anyhow::Result<(Self, Option<Bytes>)> {
        let Some(rows) = self.rows.as_mut() else {
            return Ok((self, None));
        };
        let mut bytes = Vec::new();
        for _ in 0..TURN {
            if bytes.len() >= PIECE {
                break;
            }
            let Some(page) = rows.next() else {
                self.rows = None;
                let begin = if self.written == 0 { "[" } else { "" };
                bytes.extend_from_slice(begin.as_bytes());
                bytes.extend_from_slice(b"\n]\n");
                break;
            };
            for row in page? {
                let begin = if self.written == 0 { "[\n" } else { ",\n" };
                bytes.extend_from_slice(begin.as_bytes());
                serde_json::to_writer(&mut bytes, &row)?;
                self.written = self.written.saturating_add(1);
            }
        }
        Ok((self, Some(bytes.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pages: Vec<anyhow::Result<Vec<u32>>>) -> (usize, String) {
        let mut list = List::new(Box::new(pages.into_iter()) as Rows<u32>);
        let mut pieces = Vec::new();
        loop {
            let (next, piece) = list.piece().expect("no error");
            let Some(piece) = piece else {
                return (pieces.len(), pieces.concat());
            };
            pieces.push(String::from_utf8(piece.to_vec()).expect("text"));
            list = next;
        }
    }

    #[test]
    fn a_list_is_json_with_a_row_on_each_line() {
        assert_eq!(text(vec![]).1, "[\n]\n");
        assert_eq!(text(vec![Ok(vec![]), Ok(vec![])]).1, "[\n]\n");
        let pages = vec![Ok(vec![1]), Ok(vec![]), Ok(vec![2, 3])];
        assert_eq!(text(pages).1, "[\n1,\n2,\n3\n]\n");
    }

    #[test]
    fn a_list_goes_out_in_pieces() {
        let pages = || (0..64).map(|page| Ok(vec![page; 4_096])).collect();
        let (pieces, text) = text(pages());
        assert!(pieces > 4, "{pieces}");
        let rows: Vec<u32> = serde_json::from_str(&text).expect("JSON");
        assert_eq!(rows.len(), 64 * 4_096);
    }
}
