//! Connections: how many, and for how long without a sign of life.
//!
//! Every answer closes its connection, so that a client holds a place for one
//! request. One that does not finish its request in time, or stops taking its
//! answer, loses it.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};

/// Bounds of the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most clients at a time; more are hung up on at once.
    pub(super) clients: usize,
    /// Longest time until a request is complete.
    pub(super) request: Duration,
    /// Longest time that a client may take nothing of its answer.
    pub(super) stalled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 64,
            request: Duration::from_secs(10),
            stalled: Duration::from_secs(60),
        }
    }
}

/// A client's connection, with its place among the clients.
#[derive(Debug)]
pub(super) struct Peer {
    stream: UnixStream,
    limits: Limits,
    /// When the request must be complete; none once the answer has begun.
    request_due: Option<Pin<Box<Sleep>>>,
    /// When the client must have taken something; none while it does.
    stalled_at: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Peer {
    pub(super) fn new(stream: UnixStream, limits: Limits, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            limits,
            request_due: Some(Box::pin(sleep(limits.request))),
            stalled_at: None,
            _place: place,
        }
    }

    /// What a write came to, once the client's patience is looked at.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.request_due = None;
            self.stalled_at = None;
            return written;
        }
        let limit = self.limits.stalled;
        let due = self
            .stalled_at
            .get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(due.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(due) = self.request_due.as_mut()
            && due.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
