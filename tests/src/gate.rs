//! A way to a server on this machine that can be shut: an outage for some clients and not for others.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Passes connections on; shut and removed on drop.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    is_shut: AtomicBool,
    is_over: AtomicBool,
    refused: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
}

impl Gate {
    /// A gate to a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn to(target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    shared.pass(stream, target);
                }
            }
        });
        Ok(Self { port, state })
    }

    /// Where it is.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections, and each new one at once.
    pub fn shut(&self) {
        self.state.is_shut.store(true, Ordering::SeqCst);
        self.state.end_all();
    }

    /// Lets connections pass again.
    pub fn open(&self) {
        self.state.is_shut.store(false, Ordering::SeqCst);
    }

    /// How many connections came while it was shut.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.state.refused.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        self.shut();
        // Wakes the one that waits for connections.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl State {
    fn pass(&self, client: TcpStream, target: u16) {
        if self.is_shut.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else {
            return;
        };
        let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.extend(client.try_clone());
        streams.extend(server.try_clone());
        drop(streams);
        thread::spawn(move || copy(from_client, server));
        thread::spawn(move || copy(from_server, client));
        if self.is_shut.load(Ordering::SeqCst) {
            self.end_all();
        }
    }

    fn end_all(&self) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // it may have ended by itself
        }
    }
}

/// Copies until one of them ends, then ends the other.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}
