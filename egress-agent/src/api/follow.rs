//! Verdicts as they come: one line of JSON each, until the client or the agent leaves.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tracing::warn;

use super::{
    FlowFilter,
    model::{FlowReport, FollowLine},
};
use crate::shutdown::Shutdown;

/// Lines that wait for a slow client before the broadcast channel has to hold them.
const LINES: usize = 64;

/// A body that ends when its sender does; with an error, if that is the last that it sends.
#[derive(Debug)]
pub(super) struct Lines {
    receiver: mpsc::Receiver<Result<Bytes, Cut>>,
}

/// An answer that cannot be completed: its client sees a broken connection, and the reason is in the log.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer was cut")]
pub(super) struct Cut;

impl Lines {
    pub(super) const fn of(receiver: mpsc::Receiver<Result<Bytes, Cut>>) -> Self {
        Self { receiver }
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let line = self.get_mut().receiver.poll_recv(context);
        line.map(|line| line.map(|line| line.map(Frame::data)))
    }
}

/// Starts a task that turns verdicts into lines. `lost` counts those that clients were too slow for.
pub(super) fn follow(
    flows: broadcast::Receiver<Arc<FlowReport>>,
    filter: FlowFilter,
    lost: Arc<AtomicU64>,
    shutdown: Shutdown,
) -> Lines {
    let (sender, receiver) = mpsc::channel(LINES);
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = sender.closed() => {}
            () = pump(flows, filter, &lost, &sender) => {}
        }
    });
    Lines { receiver }
}

async fn pump(
    mut flows: broadcast::Receiver<Arc<FlowReport>>,
    filter: FlowFilter,
    lost: &AtomicU64,
    lines: &mpsc::Sender<Result<Bytes, Cut>>,
) {
    loop {
        let line = match flows.recv().await {
            Ok(flow) if filter.shows(&flow) => FollowLine::Flow(flow),
            Ok(_) => continue,
            Err(RecvError::Lagged(count)) => {
                lost.fetch_add(count, Ordering::Relaxed);
                FollowLine::Lost { lost: count }
            }
            Err(RecvError::Closed) => return,
        };
        let mut bytes = match serde_json::to_vec(&line) {
            Ok(bytes) => bytes,
            Err(error) => {
                warn!(%error, "cannot write a verdict as JSON");
                continue;
            }
        };
        bytes.push(b'\n');
        if lines.send(Ok(bytes.into())).await.is_err() {
            return;
        }
    }
}
