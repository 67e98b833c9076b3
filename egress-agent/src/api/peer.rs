//! Connections: for how long without a sign of life, and for how long at all.
//!
//! A client that does not finish its request in time, or stops taking its
//! answer, loses its place: see [`super::seats`].

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::oneshot,
    time::{Sleep, sleep},
};

use super::seats::{Kind, Seat};

/// Bounds of the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most clients whose requests are not complete; the oldest makes room.
    pub(super) asking: usize,
    /// Most clients that ask how the agent is; the oldest makes room.
    pub(super) control: usize,
    /// Most clients with a question that takes work.
    pub(super) questions: usize,
    /// Most clients that read lists.
    pub(super) listings: usize,
    /// Most clients that follow verdicts.
    pub(super) followers: usize,
    /// Longest time until a request is complete.
    pub(super) request: Duration,
    /// Longest time that a client may take nothing of its answer.
    pub(super) stalled: Duration,
    /// Longest time that a list may take.
    pub(super) listing: Duration,
}

impl Limits {
    /// The limits that the agent serves with.
    pub(super) const DEFAULT: Self = Self {
        asking: 64,
        control: 128,
        questions: 16,
        listings: 16,
        followers: 48,
        request: Duration::from_secs(10),
        stalled: Duration::from_secs(60),
        listing: Duration::from_secs(600),
    };

    /// Most clients of a kind.
    pub(super) const fn places(&self, kind: Kind) -> usize {
        match kind {
            Kind::Asking => self.asking,
            Kind::Control => self.control,
            Kind::Question => self.questions,
            Kind::Listing => self.listings,
            Kind::Follower => self.followers,
        }
    }
}

/// A client's connection, with its place among the clients.
#[derive(Debug)]
pub(super) struct Peer {
    stream: UnixStream,
    stalled: Duration,
    /// When the request must be complete; none once the answer has begun.
    request_due: Option<Pin<Box<Sleep>>>,
    /// When the client must have taken something; none while it does.
    stalled_at: Option<Pin<Box<Sleep>>>,
    /// Says that the place is given to somebody else; none when it has said so.
    hung_up: Option<oneshot::Receiver<()>>,
    /// The connection's own, which its requests see: it is left when the connection ends.
    seat: Arc<Seat>,
}

impl Peer {
    pub(super) fn new(
        stream: UnixStream,
        limits: &Limits,
        seat: Seat,
        hung_up: oneshot::Receiver<()>,
    ) -> Self {
        Self {
            stream,
            stalled: limits.stalled,
            request_due: Some(Box::pin(sleep(limits.request))),
            stalled_at: None,
            hung_up: Some(hung_up),
            seat: Arc::new(seat),
        }
    }

    /// Its place.
    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }

    /// True if the client has lost its place.
    fn is_hung_up(&mut self, context: &mut Context<'_>) -> bool {
        let Some(hung_up) = self.hung_up.as_mut() else {
            return true;
        };
        let is_hung_up = Pin::new(hung_up).poll(context).is_ready();
        if is_hung_up {
            self.hung_up = None;
        }
        is_hung_up
    }

    /// The result of a write, once the client's patience is looked at.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.is_hung_up(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if written.is_ready() {
            self.request_due = None;
            self.stalled_at = None;
            return written;
        }
        let limit = self.stalled;
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
        if self.is_hung_up(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
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
