//! The socket: one agent for each, root only, stale ones replaced.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use egress_api::socket::{Unreachable, is_trusted};
use nix::{
    fcntl::OFlag,
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};
use thiserror::Error;
use tokio::{
    net,
    time::{Interval, MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use super::{
    peer::{Limits, Peer},
    seats::Seats,
};

/// Why the socket cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The folder of the socket cannot be made.
    #[error("cannot make the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock beside the socket cannot be taken.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody listens.
    #[error(
        "{holder} is already listening on {}: stop it first (`systemctl stop egress-agent`), \
         or give this agent another --socket, --pin-dir and --cgroup",
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that listens.
        holder: Holder,
    },
    /// Something else has the name.
    #[error("{} is not a socket: remove it, or give another --socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The process that listens on a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process id; none when it lives in another process id namespace or does not answer.
    pub pid: Option<i32>,
    /// Its command name.
    pub command: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.command, self.pid) {
            (Some(command), Some(pid)) => write!(f, "another process ({command}, pid {pid})"),
            (None, Some(pid)) => write!(f, "another process (pid {pid})"),
            (_, None) => f.write_str("another process"),
        }
    }
}

impl Holder {
    fn of_pid(pid: i32) -> Self {
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        Self {
            pid: (pid > 0).then_some(pid),
            command: command.map(|comm| comm.trim_end().to_owned()),
        }
    }

    /// The process that accepts connections on a socket; `None` when there is none.
    ///
    /// # Errors
    ///
    /// The socket is there and cannot be connected to for another reason, such as its mode.
    pub fn of_socket(path: &Path) -> io::Result<Option<Self>> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Some(match getsockopt(&stream, PeerCredentials) {
                Ok(credentials) => Self::of_pid(credentials.pid()),
                Err(_) => Self::default(),
            })),
            Err(error) => match Unreachable::of(&error) {
                Some(Unreachable::NobodyListens) => Ok(None),
                Some(Unreachable::NotPermitted) | None => Err(error),
            },
        }
    }
}

/// The agent's socket. Dropping it removes the file.
#[derive(Debug)]
pub struct ApiListener {
    listener: UnixListener,
    name: SocketFile,
    lock: SocketLock,
}

/// The lock beside a socket, held as long as the agent lives: two that start at once cannot both replace a stale socket.
#[derive(Debug)]
struct SocketLock {
    _file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl ApiListener {
    /// Listens on `path`, for root and the agent's own user only.
    ///
    /// # Errors
    ///
    /// Somebody listens there, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        make_folder(path)?;
        let lock = take_lock(path)?;
        let (listener, name) = listen(path)?;
        Ok(Self {
            listener,
            name,
            lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.name.path
    }

    /// Makes it usable by axum, which needs a runtime.
    pub(super) fn into_peers(self, limits: Limits) -> io::Result<TrustedPeers> {
        let listener = net::UnixListener::from_std(self.listener)?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(TrustedPeers {
            listener,
            name: self.name,
            lock: self.lock,
            look,
            trouble: None,
            limits,
            seats: Seats::new(limits),
            is_full: false,
        })
    }
}

/// How often the agent looks whether its socket is still there.
const LOOK: Duration = Duration::from_millis(500);

/// Makes the socket, for root and the agent's own user only.
fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    remove_stale(path)?;
    let bind_error = |source| ListenError::Bind {
        path: path.to_owned(),
        source,
    };
    let listener = UnixListener::bind(path).map_err(bind_error)?;
    let name = SocketFile::of(path).map_err(bind_error)?;
    // Until here the umask rules; whoever is faster than this is sent away by `accept`.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(bind_error)?;
    listener.set_nonblocking(true).map_err(bind_error)?;
    Ok((listener, name))
}

fn make_folder(socket: &Path) -> Result<(), ListenError> {
    let Some(folder) = socket.parent().filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(());
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .map_err(|source| ListenError::Folder {
            path: folder.to_owned(),
            source,
        })
}

fn take_lock(socket: &Path) -> Result<SocketLock, ListenError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let lock_error = |source| ListenError::Lock {
        path: path.clone(),
        source,
    };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // In a folder for all, somebody could have left a link to a file of ours.
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .map_err(lock_error)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).ok();
            let pid = holder.and_then(|pid| pid.trim().parse().ok());
            return Err(ListenError::InUse {
                path: socket.to_owned(),
                holder: pid.map(Holder::of_pid).unwrap_or_default(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(lock_error(source)),
    }
    lock.set_len(0).map_err(lock_error)?;
    writeln!(lock, "{}", std::process::id()).map_err(lock_error)?;
    Ok(SocketLock {
        identity: identity(&path).map_err(lock_error)?,
        _file: lock,
        path,
    })
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let bind_error = |source| ListenError::Bind {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(bind_error(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    if let Some(holder) = Holder::of_socket(path).map_err(bind_error)? {
        return Err(ListenError::InUse {
            path: path.to_owned(),
            holder,
        });
    }
    debug!(path = %path.display(), "replacing a stale socket");
    fs::remove_file(path).map_err(bind_error)
}

/// The name of a socket in the file system. Dropping it removes the file.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The name may belong to somebody else by now.
        let is_ours = identity(&self.path).is_ok_and(|now| now == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Accepts connections of root and of the agent's own user, and closes all others.
#[derive(Debug)]
pub(super) struct TrustedPeers {
    listener: net::UnixListener,
    name: SocketFile,
    lock: SocketLock,
    look: Interval,
    /// Why the socket cannot be made again, which is logged once.
    trouble: Option<String>,
    limits: Limits,
    seats: Arc<Seats>,
    /// True if somebody had to make room for the last one: the agent logs that once.
    is_full: bool,
}

impl TrustedPeers {
    /// Makes the socket again, with its folder and its lock, when somebody has removed it.
    fn keep_name(&mut self) {
        let is_there = |path: &Path, known| identity(path).is_ok_and(|now| now == known);
        let has_lock = is_there(&self.lock.path, self.lock.identity);
        let has_name = is_there(&self.name.path, self.name.identity);
        if has_lock && has_name {
            return;
        }
        let made = self
            .make_again(has_lock, has_name)
            .map_err(|error| format!("{error}"));
        match &made {
            Ok(()) => {
                warn!(path = %self.name.path.display(), "the socket was removed, and is there again");
            }
            Err(error) if self.trouble.as_ref() != Some(error) => {
                warn!(error, "the socket was removed, and cannot be made again");
            }
            Err(_) => {}
        }
        self.trouble = made.err();
    }

    fn make_again(&mut self, has_lock: bool, has_name: bool) -> Result<(), ListenError> {
        let path = self.name.path.clone();
        if !has_lock {
            make_folder(&path)?;
            self.lock = take_lock(&path)?;
        }
        if !has_name {
            let (listener, name) = listen(&path)?;
            let bind_error = |source| ListenError::Bind { path, source };
            self.listener = net::UnixListener::from_std(listener).map_err(bind_error)?;
            // The file of the one before is not removed: it is somebody else's by now, or gone.
            self.name = name;
        }
        Ok(())
    }

    /// The connection with its place.
    fn seated(&mut self, stream: net::UnixStream) -> Peer {
        let (seat, hung_up, is_full) = self.seats.sit_down();
        if is_full && !self.is_full {
            warn!(
                clients = self.limits.asking,
                "too many clients connect and ask nothing: hanging up on the oldest"
            );
        }
        self.is_full = is_full;
        Peer::new(stream, &self.limits, seat, hung_up)
    }
}

impl axum::serve::Listener for TrustedPeers {
    type Io = Peer;
    type Addr = net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = self.look.tick() => {
                    self.keep_name();
                    continue;
                }
            };
            match accepted {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if is_trusted(peer.uid()) => {
                        return (self.seated(stream), address);
                    }
                    Ok(peer) => warn!(uid = peer.uid(), "refused a client that is not root"),
                    Err(error) => warn!(%error, "refused a client that cannot be identified"),
                },
                Err(error) => {
                    // Out of file descriptors, most likely: they come back.
                    warn!(%error, "cannot accept a client");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::process::CommandExt};

    use nix::unistd::geteuid;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn the_socket_is_for_its_owner_only_and_goes_with_the_listener() {
        let folder = folder();
        let path = folder.path().join("below/agent.sock");
        let listener = ApiListener::bind(&path).expect("listens");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(listener.path(), path);
        drop(listener);
        assert!(!path.exists());
        drop(ApiListener::bind(&path).expect("listens again"));
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("agent.sock");
        drop(UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists());
        ApiListener::bind(&path).expect("replaces it");
    }

    #[test]
    fn a_live_socket_is_refused_with_its_holder() {
        let folder = folder();
        let path = folder.path().join("agent.sock");
        let _live = UnixListener::bind(&path).expect("a socket");
        let error = ApiListener::bind(&path).expect_err("is in use").to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        assert!(error.contains("systemctl stop egress-agent"), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_second_agent_is_refused_even_before_the_first_listens() {
        let folder = folder();
        let path = folder.path().join("agent.sock");
        let _lock = take_lock(&path).expect("the lock");
        let error = ApiListener::bind(&path).expect_err("is in use");
        let ListenError::InUse { holder, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(holder.pid.map(i32::unsigned_abs), Some(std::process::id()));
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("agent.sock");
        fs::write(&path, "precious").expect("a file");
        let error = ApiListener::bind(&path).expect_err("is no socket");
        assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("is there"), "precious");
    }

    #[tokio::test]
    async fn a_socket_that_is_removed_is_made_again_unless_another_has_its_name() {
        let folder = folder();
        let path = folder.path().join("run/agent.sock");
        let listener = ApiListener::bind(&path).expect("listens");
        let mut peers = listener.into_peers(Limits::DEFAULT).expect("a runtime");
        peers.keep_name();
        fs::remove_file(&path).expect("is there");
        peers.keep_name();
        assert!(UnixStream::connect(&path).is_ok());
        fs::remove_dir_all(folder.path().join("run")).expect("is there");
        peers.keep_name();
        assert!(UnixStream::connect(&path).is_ok());
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(matches!(take_lock(&path), Err(ListenError::InUse { .. })));
        // Another process has taken the name: it keeps it.
        fs::remove_file(&path).expect("is there");
        let other = UnixListener::bind(&path).expect("another one");
        peers.keep_name();
        assert!(peers.trouble.is_some());
        drop(other);
        peers.keep_name();
        assert!(peers.trouble.is_none());
        drop(peers);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_of_another_agent_is_not_removed() {
        let folder = folder();
        let path = folder.path().join("agent.sock");
        let listener = ApiListener::bind(&path).expect("listens");
        fs::remove_file(&path).expect("removed by somebody");
        let _other = UnixListener::bind(&path).expect("another one");
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_lock_that_is_a_link_is_not_followed() {
        let folder = folder();
        let path = folder.path().join("agent.sock");
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").expect("a file");
        std::os::unix::fs::symlink(&victim, folder.path().join("agent.sock.lock")).expect("a link");
        let error = ApiListener::bind(&path).expect_err("is refused");
        assert!(matches!(error, ListenError::Lock { .. }), "{error}");
        assert_eq!(fs::read_to_string(&victim).expect("is there"), "precious");
    }

    #[test]
    fn only_root_and_the_own_user_are_trusted() {
        assert!(is_trusted(0));
        assert!(is_trusted(geteuid().as_raw()));
        assert!(!is_trusted(geteuid().as_raw().wrapping_add(65_534)));
    }
    const SOCKET_OF_PARENT: &str = "EGRESS_TEST_SOCKET";

    /// Does nothing but in the child of the next test.
    #[test]
    fn child_is_sent_away_without_an_answer() {
        let Some(path) = std::env::var_os(SOCKET_OF_PARENT) else {
            return;
        };
        assert_ne!(geteuid().as_raw(), 0);
        let mut stream = UnixStream::connect(path).expect("connects");
        // The other end may be closed already.
        let _sent = stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut answer = Vec::new();
        let _end = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }

    #[tokio::test]
    async fn a_user_who_is_not_root_is_sent_away_whatever_the_mode() {
        if !geteuid().is_root() {
            eprintln!("skipped: needs root to become another user");
            return;
        }
        let folder = folder();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("opens it");
        let path = folder.path().join("agent.sock");
        let listener = ApiListener::bind(&path).expect("listens");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("opens it");
        let (_trigger, shutdown) = crate::shutdown::channel();
        let agent = std::sync::Arc::new(crate::api::testing::FakeAgent::default());
        tokio::spawn(crate::api::serve(listener, agent, shutdown));
        let child = tokio::task::spawn_blocking(move || {
            std::process::Command::new("/proc/self/exe")
                .args([
                    "--exact",
                    "api::listener::tests::child_is_sent_away_without_an_answer",
                ])
                .env(SOCKET_OF_PARENT, path)
                .uid(65_534)
                .output()
        });
        let output = child.await.expect("no panic").expect("starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }
}
