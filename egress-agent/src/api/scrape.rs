//! `/metrics` over TCP, for scrapers that cannot read a unix socket: plain on loopback, elsewhere with TLS and a token.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    serve::Listener,
};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{Sleep, sleep},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use tracing::{debug, warn};

use super::{AgentState, service::metrics_router};
use crate::shutdown::Shutdown;

/// Most scrapers at a time: two Prometheus servers, and somebody with curl.
const PLACES: usize = 16;
/// A scrape is over by then, whatever its client does.
const MOST_TIME: Duration = Duration::from_secs(15);
/// A pause after an accept that failed: out of descriptors it would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);
/// A token is a line; more in its file is a mistake.
const TOKEN_BYTES: u64 = 4_096;

/// Where, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrapeOptions {
    /// The address.
    pub address: SocketAddr,
    /// Certificate chain and key, PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// File with the token that scrapers show. It is read for every scrape, so that it can be changed.
    pub token: Option<PathBuf>,
}

/// Why nobody can scrape.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScrapeError {
    /// Others on the network could read along, or ask.
    #[error(
        "--listen {0} is no loopback address: give --listen-cert, --listen-key and --listen-token, or listen on 127.0.0.1"
    )]
    Exposed(SocketAddr),
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// The property that it lacks.
        what: &'static str,
    },
    /// Certificate and key do not belong together, or are of a kind that is not known.
    #[error("cannot use {} with {}", cert.display(), key.display())]
    Tls {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The address cannot be had.
    #[error("cannot listen on {0}: --listen")]
    Bind(SocketAddr, #[source] io::Error),
}

/// A bound address.
pub struct Scrape {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    token: Option<PathBuf>,
}

impl Scrape {
    /// Checks everything and binds the address.
    ///
    /// # Errors
    ///
    /// Everything that would go wrong later, too.
    pub fn bind(options: &ScrapeOptions) -> Result<Self, ScrapeError> {
        let is_safe = options.tls.is_some() && options.token.is_some();
        if !options.address.ip().is_loopback() && !is_safe {
            return Err(ScrapeError::Exposed(options.address));
        }
        if let Some(path) = &options.token {
            read_token(path)?;
        }
        let tls = match &options.tls {
            None => None,
            Some((cert, key)) => Some(acceptor(cert, key)?),
        };
        let bind = || {
            let listener = TcpListener::bind(options.address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        Ok(Self {
            listener: bind().map_err(|error| ScrapeError::Bind(options.address, error))?,
            tls,
            token: options.token.clone(),
        })
    }

    /// Answers until the signal is given.
    ///
    /// # Errors
    ///
    /// The runtime refuses the listener. A failing scrape fails alone.
    pub async fn serve(self, agent: Arc<dyn AgentState>, shutdown: Shutdown) -> io::Result<()> {
        let address = self.listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let (send, ready) = mpsc::channel(1);
        let router = router(agent, shutdown.clone(), self.token);
        let accepted = Accepted { address, ready };
        tokio::select! {
            served = async { axum::serve(accepted, router).await } => served,
            () = accept(listener, self.tls, send) => Ok(()),
            () = shutdown.requested() => Ok(()),
        }
    }
}

fn router(agent: Arc<dyn AgentState>, shutdown: Shutdown, token: Option<PathBuf>) -> Router {
    let router = metrics_router(agent, shutdown);
    match token {
        None => router,
        Some(token) => router.layer(from_fn_with_state(Arc::<Path>::from(token), authorized)),
    }
}

/// Lets a request through that shows the token.
async fn authorized(State(token): State<Arc<Path>>, request: Request, next: Next) -> Response {
    match read_token(&token) {
        Ok(token) if shows(request.headers(), &token) => next.run(request).await,
        Ok(_) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            let words = "show the token: Authorization: Bearer TOKEN\n";
            (StatusCode::UNAUTHORIZED, challenge, words).into_response()
        }
        Err(error) => {
            warn!(
                error = format!("{:#}", anyhow::Error::new(error)),
                "nobody can scrape"
            );
            let words = "the agent cannot read the token; its log says why\n";
            (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
        }
    }
}

/// True if the request has this token (RFC 6750, section 2.1). The time it takes does not tell how much of it is right.
fn shows(headers: &HeaderMap, token: &[u8]) -> bool {
    let given = headers.get(header::AUTHORIZATION);
    let given = given.and_then(|value| {
        let (scheme, rest) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
    });
    given.is_some_and(|given| given.ct_eq(token).into())
}

fn read_token(path: &Path) -> Result<Vec<u8>, ScrapeError> {
    let read = |error| ScrapeError::Read(path.to_owned(), error);
    let form = |what| ScrapeError::Form {
        path: path.to_owned(),
        what,
    };
    if fs::metadata(path).map_err(read)?.len() > TOKEN_BYTES {
        return Err(form("a token is one line of at most 4 KiB"));
    }
    let token = fs::read(path).map_err(read)?.trim_ascii().to_vec();
    if token.len() < 16 {
        return Err(form(
            "a token has at least 16 characters: `openssl rand -hex 32` makes one",
        ));
    }
    Ok(token)
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, ScrapeError> {
    let read = |path: &Path| fs::read(path).map_err(|error| ScrapeError::Read(path.into(), error));
    let form = |path: &Path, what| ScrapeError::Form {
        path: path.into(),
        what,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|_damaged| form(cert, "its PEM is damaged"))?;
    if chain.is_empty() {
        return Err(form(cert, "there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_none| form(key, "there is no private key in it that can be read"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, secret)
        })
        .map_err(|source| ScrapeError::Tls {
            cert: cert.into(),
            key: key.into(),
            source,
        })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accepts connections, and gives those on that are ready to ask.
async fn accept(
    listener: tokio::net::TcpListener,
    tls: Option<TlsAcceptor>,
    ready: mpsc::Sender<(Client, SocketAddr)>,
) {
    let places = Arc::new(Places::default());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "cannot accept a scraper");
                sleep(PAUSE).await;
                continue;
            }
        };
        let (place, mut lost) = places.take(from.ip());
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            let due = Box::pin(sleep(MOST_TIME));
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some(tls) => tokio::select! {
                    accepted = tls.accept(stream) => match accepted {
                        Ok(stream) => Box::new(stream),
                        Err(error) => return debug!(%error, %from, "a scraper's TLS failed"),
                    },
                    () = sleep(MOST_TIME) => {
                        return debug!(%from, "a scraper did not finish its handshake");
                    }
                    _lost = &mut lost => return debug!(%from, "a scraper made room for another"),
                },
            };
            let client = Client {
                stream,
                due,
                place,
                lost,
            };
            // Nobody serves any more at the end.
            let _ = ready.send((client, from)).await;
        });
    }
}

/// The clients that have places: nobody who connects and says nothing keeps out those who ask.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Raised with every client.
    last: u64,
    /// By number, which is by age.
    clients: BTreeMap<u64, Holder>,
}

#[derive(Debug)]
struct Holder {
    from: IpAddr,
    is_answered: bool,
    hang_up: oneshot::Sender<()>,
}

impl Taken {
    /// The client to make room: of the address with most places the oldest that is not being answered, else the oldest.
    fn worst(&self) -> Option<u64> {
        let of = |from: IpAddr| self.clients.values().filter(move |one| one.from == from);
        let rank = |(number, one): (&u64, &Holder)| {
            let has = of(one.from).count();
            (has, !one.is_answered, u64::MAX.wrapping_sub(*number))
        };
        let worst = self
            .clients
            .iter()
            .max_by_key(|(number, one)| rank((*number, *one)));
        worst.map(|(number, _)| *number)
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for somebody who connects, and what says that it is lost.
    fn take(self: &Arc<Self>, from: IpAddr) -> (Place, oneshot::Receiver<()>) {
        let (hang_up, lost) = oneshot::channel();
        let mut taken = self.lock();
        if taken.clients.len() >= PLACES
            && let Some(worst) = taken.worst()
            && let Some(worst) = taken.clients.remove(&worst)
        {
            // It may just have left.
            let _ = worst.hang_up.send(());
        }
        taken.last = taken.last.wrapping_add(1);
        let number = taken.last;
        let holder = Holder {
            from,
            is_answered: false,
            hang_up,
        };
        taken.clients.insert(number, holder);
        drop(taken);
        let place = Place {
            number,
            places: Arc::clone(self),
        };
        (place, lost)
    }
}

/// A client's place. Dropping it gives it back.
#[derive(Debug)]
struct Place {
    number: u64,
    places: Arc<Places>,
}

impl Place {
    /// Its client has asked, and is being answered.
    fn is_answered(&self) {
        if let Some(holder) = self.places.lock().clients.get_mut(&self.number) {
            holder.is_answered = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().clients.remove(&self.number);
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl Stream for TcpStream {}
impl Stream for tokio_rustls::server::TlsStream<TcpStream> {}

/// A connection with its place, which it loses after [`MOST_TIME`], and before where others need it more.
struct Client {
    stream: Box<dyn Stream>,
    due: Pin<Box<Sleep>>,
    place: Place,
    lost: oneshot::Receiver<()>,
}

impl Client {
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if Pin::new(&mut self.lost).poll(context).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.due.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_time(context)?;
        self.place.is_answered();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connections that are ready to ask.
struct Accepted {
    address: SocketAddr,
    ready: mpsc::Receiver<(Client, SocketAddr)>,
}

impl Listener for Accepted {
    type Io = Client;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Client, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The task that accepts has ended, and the service with it.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn options(address: &str) -> ScrapeOptions {
        ScrapeOptions {
            address: address.parse().expect("an address"),
            tls: None,
            token: None,
        }
    }

    #[test]
    fn what_others_could_read_is_refused() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9964"] {
            let error = Scrape::bind(&options(address)).err().expect("refused");
            assert!(matches!(error, ScrapeError::Exposed(_)), "{error}");
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            assert!(Scrape::bind(&options(address)).is_ok(), "{address}");
        }
    }

    #[test]
    fn whose_clients_have_most_places_makes_room_with_the_oldest_that_asks_nothing() {
        let places = Arc::new(Places::default());
        let [crowd, other] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut scraper = places.take(other);
        let mut held: Vec<_> = (1..PLACES).map(|_| places.take(crowd)).collect();
        held[0].0.is_answered();
        let mut next = places.take(other);
        let is_lost = |one: &mut (Place, oneshot::Receiver<()>)| one.1.try_recv() == Ok(());
        let lost: Vec<_> = held.iter_mut().map(is_lost).collect();
        assert_eq!(lost.iter().position(|lost| *lost), Some(1));
        assert_eq!(lost.iter().filter(|lost| **lost).count(), 1);
        assert!(!is_lost(&mut scraper) && !is_lost(&mut next));
        drop((scraper, next, held));
        assert!(places.lock().clients.is_empty());
    }

    #[tokio::test]
    async fn idle_clients_keep_nobody_out() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let scrape = Scrape::bind(&options("127.0.0.1:0")).expect("bound");
        let address = scrape.listener.local_addr().expect("an address");
        let (trigger, shutdown) = crate::shutdown::channel();
        let agent = Arc::new(crate::api::testing::FakeAgent::default());
        let serving = tokio::spawn(scrape.serve(agent, shutdown));
        let mut idle = Vec::new();
        for _ in 0..PLACES * 2 {
            idle.push(TcpStream::connect(address).await.expect("connected"));
        }
        let mut client = TcpStream::connect(address).await.expect("connected");
        let request = b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n";
        client.write_all(request).await.expect("asked");
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        assert!(read.is_ok_and(|read| read.is_ok()), "{answer}");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop((trigger, idle));
        serving.abort();
    }

    #[test]
    fn the_token_is_compared_whole() {
        let token = b"0123456789abcdef";
        for (given, is_right) in [
            ("Bearer 0123456789abcdef", true),
            ("bearer 0123456789abcdef", true),
            ("Bearer 0123456789abcde", false),
            ("Bearer 0123456789abcdef0", false),
            ("Bearer", false),
            ("Basic 0123456789abcdef", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::AUTHORIZATION,
                HeaderValue::from_str(given).expect("a value"),
            );
            assert_eq!(shows(&headers, token), is_right, "{given}");
        }
        assert!(!shows(&HeaderMap::new(), token));
    }

    #[test]
    fn files_that_are_no_tokens_or_certificates_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        assert!(matches!(read_token(&path), Err(ScrapeError::Read(..))));
        fs::write(&path, "short\n").expect("written");
        assert!(matches!(read_token(&path), Err(ScrapeError::Form { .. })));
        fs::write(&path, "0123456789abcdef\n").expect("written");
        assert_eq!(read_token(&path).expect("a token"), b"0123456789abcdef");
        assert!(matches!(
            acceptor(&path, &path),
            Err(ScrapeError::Form { .. })
        ));
    }
}
