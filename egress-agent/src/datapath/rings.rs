//! The ring buffers: verdicts and copies of DNS answers.
#![expect(unsafe_code, reason = "records are read out of raw bytes")]

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use aya::maps::{MapData, RingBuf};
use egress_common::event::{DnsCopy, NameEvent, VerdictEvent};
use tokio::io::{Interest, unix::AsyncFd};

/// Reads a record from the beginning of `bytes`.
fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, and the records are integers and byte arrays: any bytes are one.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// A record of the ring of verdicts.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A verdict.
    Verdict(VerdictEvent),
    /// The name that a connection gives itself; the verdict on it follows.
    Name(NameEvent),
}

/// Verdict events.
pub struct EventRing(pub(super) RingBuf<MapData>);

impl EventRing {
    /// The next event, if one is there.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let item = self.0.next()?;
            let event = if item.len() >= size_of::<NameEvent>() {
                read(&item).map(Event::Name)
            } else {
                read(&item).map(Event::Verdict)
            };
            if event.is_some() {
                return event;
            }
        }
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Copies of DNS answers.
pub struct DnsRing(pub(super) RingBuf<MapData>);

impl DnsRing {
    /// The next copy with its payload, if one is there.
    pub fn next_copy(&mut self) -> Option<(DnsCopy, Vec<u8>)> {
        loop {
            let item = self.0.next()?;
            let Some(copy) = read::<DnsCopy>(&item) else {
                continue;
            };
            let begin = size_of::<DnsCopy>();
            let end = usize::try_from(copy.payload_bytes)
                .ok()
                .and_then(|bytes| begin.checked_add(bytes));
            if let Some(payload) = end.and_then(|end| item.get(begin..end)) {
                return Some((copy, payload.to_vec()));
            }
        }
    }
}

impl AsRawFd for DnsRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A ring, or another queue of events, that keeps its file descriptor as long as it lives.
pub trait Ring: AsRawFd {}

impl Ring for EventRing {}
impl Ring for DnsRing {}
impl Ring for crate::workload::PodTree {}
impl Ring for crate::workload::FileEvents {}
impl Ring for crate::workload::PathWatch {}
impl Ring for aya_log::EbpfLogger<&'static dyn log::Log> {}

/// Makes a ring something that a task can wait for.
///
/// # Errors
///
/// The runtime refuses the file descriptor.
pub fn readable<R: Ring>(ring: R) -> io::Result<AsyncFd<R>> {
    // SAFETY: each `Ring` owns the map's descriptor, never changes it, and closes it when it is dropped.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}
