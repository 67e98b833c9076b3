//! The routes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        ConnectInfo, Query, Request, State, connect_info::Connected, rejection::QueryRejection,
    },
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::{Next, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::{
    AgentState, ApiListener, FlowFilter, LearnedFilter, PodFilter,
    follow::follow,
    list::Lists,
    listener::TrustedPeers,
    model::{
        ConfirmationStatus, CountersReport, ErrorReport, Explanation, FlowReport, Observations,
        Status,
    },
    peer::Limits,
    seats::{Full, Kind, Seat},
    state::{BadQuestion, ExplainQuery, NotAwaited, Rows},
};
use crate::{metrics, policy::DestinationError, shutdown::Shutdown};

/// How long clients have to take what they asked for when the agent ends.
const GRACE: Duration = Duration::from_secs(2);

/// Name in [`Status::lost`] of verdicts that followers were too slow for.
const FOLLOWERS_LOST: &str = "flow_followers_lost";

/// Threads that answer questions at a time, and as many that make pieces of lists: the rest of the machine is for what
/// the agent is there for.
const READERS: usize = 2;

/// Rows of a list that is in memory anyway, at a time.
const ROWS: usize = 512;

/// Why the service ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The socket cannot be used by the runtime.
    #[error("cannot serve the socket")]
    Serve(#[source] io::Error),
}

#[derive(Clone)]
struct Service {
    agent: Arc<dyn AgentState>,
    shutdown: Shutdown,
    followers_lost: Arc<AtomicU64>,
    questions: Arc<Semaphore>,
    lists: Lists,
}

/// A client's place, for its requests.
#[derive(Clone)]
struct Client(Arc<Seat>);

impl Connected<IncomingStream<'_, TrustedPeers>> for Client {
    fn connect_info(stream: IncomingStream<'_, TrustedPeers>) -> Self {
        Self(stream.io().seat())
    }
}

/// Answers requests until the signal is given, then removes the socket.
///
/// # Errors
///
/// The runtime refuses the socket. A failing request fails alone.
pub async fn serve(
    listener: ApiListener,
    agent: Arc<dyn AgentState>,
    shutdown: Shutdown,
) -> Result<(), ServiceError> {
    serve_within(Limits::DEFAULT, listener, agent, shutdown).await
}

/// [`serve`] with other bounds.
pub(super) async fn serve_within(
    limits: Limits,
    listener: ApiListener,
    agent: Arc<dyn AgentState>,
    shutdown: Shutdown,
) -> Result<(), ServiceError> {
    let listener = listener.into_peers(limits).map_err(ServiceError::Serve)?;
    let router = router(&limits, agent, shutdown.clone());
    let router = router.into_make_service_with_connect_info::<Client>();
    let requested = {
        let shutdown = shutdown.clone();
        async move { shutdown.requested().await }
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(requested);
    tokio::select! {
        served = async { serving.await } => served.map_err(ServiceError::Serve),
        () = async {
            shutdown.requested().await;
            tokio::time::sleep(GRACE).await;
        } => {
            debug!("a client did not take its answer in time");
            Ok(())
        }
    }
}

fn router(limits: &Limits, agent: Arc<dyn AgentState>, shutdown: Shutdown) -> Router {
    let seated = |kind, routes: Router<Service>| routes.route_layer(from_fn_with_state(kind, seat));
    let control = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/counters", get(counters))
        .route("/v1/confirm", post(confirm))
        .route("/metrics", get(prometheus));
    let questions = Router::new()
        .route("/v1/explain", get(explain))
        .route("/v1/observations", get(observations));
    let listings = Router::new()
        .route("/v1/learned", get(learned))
        .route("/v1/flows", get(flows));
    let followers = Router::new().route("/v1/flows/follow", get(flows_follow));
    Router::new()
        .merge(seated(Kind::Control, control))
        .merge(seated(Kind::Question, questions))
        .merge(seated(Kind::Listing, listings))
        .merge(seated(Kind::Follower, followers))
        .fallback(not_found)
        .layer(map_response(closing))
        .with_state(Service {
            agent,
            followers_lost: Arc::default(),
            questions: Arc::new(Semaphore::new(READERS)),
            lists: Lists::new(READERS, limits.listing, shutdown.clone()),
            shutdown,
        })
}

/// The metrics alone, for who is no client of the socket.
pub(super) fn metrics_router(agent: Arc<dyn AgentState>, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/metrics", get(prometheus))
        .fallback(not_found)
        .layer(map_response(closing))
        .with_state(Service {
            agent,
            followers_lost: Arc::default(),
            questions: Arc::new(Semaphore::new(READERS)),
            lists: Lists::new(READERS, Limits::DEFAULT.listing, shutdown.clone()),
            shutdown,
        })
}

/// Takes a place of the kind for the request, or says that there is none.
async fn seat(
    State(kind): State<Kind>,
    ConnectInfo(client): ConnectInfo<Client>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    client.0.take(kind)?;
    Ok(next.run(request).await)
}

/// One request for each connection: an idle one would keep a place.
async fn closing(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// A request that failed.
struct Failure {
    status: StatusCode,
    error: String,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorReport { error: self.error })).into_response()
    }
}

impl From<Full> for Failure {
    fn from(full: Full) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            error: full.to_string(),
        }
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error: rejection.body_text(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let status = if error.is::<NotAwaited>() {
            StatusCode::CONFLICT
        } else if error.is::<BadQuestion>() {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        let error = format!("{error:#}");
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            warn!(%error, "cannot answer a request");
        }
        Self { status, error }
    }
}

impl Service {
    /// Asks the daemon on a thread where blocking is allowed.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn AgentState) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let agent = Arc::clone(&self.agent);
        let answer = tokio::task::spawn_blocking(move || question(&*agent)).await;
        let answer = answer.map_err(|panic| anyhow::anyhow!("the agent's own error: {panic}"))?;
        Ok(answer?)
    }

    /// Asks what takes work, a few at a time.
    async fn ask_in_turn<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn AgentState) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let _turn = self.questions.acquire().await.map_err(anyhow::Error::new)?;
        self.ask(question).await
    }

    /// A list of JSON.
    async fn list<T: Serialize + 'static>(
        &self,
        rows: impl FnOnce(Arc<dyn AgentState>) -> anyhow::Result<Rows<T>> + Send + 'static,
    ) -> Result<Response, Failure> {
        let lists = self.lists.clone();
        let list = lists.begin(Arc::clone(&self.agent), rows).await?;
        let headers = [(header::CONTENT_TYPE, "application/json")];
        Ok((headers, Body::new(list)).into_response())
    }

    async fn status(&self) -> Result<Status, Failure> {
        let mut status = self.ask(|agent| agent.status()).await?;
        let lost = self.followers_lost.load(Ordering::Relaxed);
        status.lost.insert(FOLLOWERS_LOST.to_owned(), lost);
        Ok(status)
    }
}

async fn status(State(service): State<Service>) -> Result<Json<Status>, Failure> {
    service.status().await.map(Json)
}

async fn counters(State(service): State<Service>) -> Result<Json<CountersReport>, Failure> {
    service.ask(|agent| agent.counters()).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LearnedParameters {
    query: Option<String>,
    namespace: Option<String>,
    pod: Option<String>,
}

async fn learned(
    State(service): State<Service>,
    parameters: Result<Query<LearnedParameters>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(parameters) = parameters?;
    let filter = LearnedFilter {
        query: match parameters.query.as_deref() {
            None | Some("") => None,
            Some(text) => text.parse().ok(),
        },
        pods: PodFilter {
            namespace: parameters.namespace,
            pod: parameters.pod,
        },
    };
    service.list(move |agent| agent.learned(filter)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowParameters {
    #[serde(default)]
    denied: bool,
    limit: Option<usize>,
    namespace: Option<String>,
    pod: Option<String>,
}

impl From<FlowParameters> for FlowFilter {
    fn from(parameters: FlowParameters) -> Self {
        Self {
            denied: parameters.denied,
            limit: parameters.limit,
            pods: PodFilter {
                namespace: parameters.namespace,
                pod: parameters.pod,
            },
        }
    }
}

async fn flows(
    State(service): State<Service>,
    parameters: Result<Query<FlowParameters>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(parameters) = parameters?;
    let rows = move |agent: Arc<dyn AgentState>| -> anyhow::Result<Rows<Arc<FlowReport>>> {
        let mut flows = agent.recent_flows(parameters.into())?.into_iter();
        Ok(Box::new(std::iter::from_fn(move || {
            let page: Vec<_> = flows.by_ref().take(ROWS).collect();
            (!page.is_empty()).then_some(Ok(page))
        })))
    };
    service.list(rows).await
}

async fn flows_follow(
    State(service): State<Service>,
    parameters: Result<Query<FlowParameters>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(parameters) = parameters?;
    let lines = follow(
        service.agent.subscribe(),
        parameters.into(),
        service.followers_lost,
        service.shutdown,
    );
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::new(lines)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainParameters {
    to: String,
    from: Option<String>,
}

async fn explain(
    State(service): State<Service>,
    parameters: Result<Query<ExplainParameters>, QueryRejection>,
) -> Result<Json<Explanation>, Failure> {
    let Query(ExplainParameters { to, from }) = parameters?;
    let destination = to.parse().map_err(|error: DestinationError| Failure {
        status: StatusCode::BAD_REQUEST,
        error: error.to_string(),
    })?;
    let query = ExplainQuery { destination, from };
    let answer = service.ask_in_turn(move |agent| agent.explain(&query));
    answer.await.map(Json)
}

async fn observations(State(service): State<Service>) -> Result<Json<Observations>, Failure> {
    let answer = service.ask_in_turn(|agent| agent.observations());
    answer.await.map(Json)
}

async fn confirm(State(service): State<Service>) -> Result<Json<ConfirmationStatus>, Failure> {
    service.ask(|agent| agent.confirm()).await.map(Json)
}

async fn prometheus(State(service): State<Service>) -> Result<Response, Failure> {
    let status = service.status().await?;
    let counters = service.ask(|agent| agent.counters()).await?;
    let headers = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    Ok((headers, metrics::render(&status, &counters)).into_response())
}

async fn not_found(uri: Uri) -> Failure {
    Failure {
        status: StatusCode::NOT_FOUND,
        error: format!("there is no {}", uri.path()),
    }
}
