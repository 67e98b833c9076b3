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
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use thiserror::Error;
use tracing::{debug, warn};

use super::{
    AgentState, ApiListener,
    follow::follow,
    model::{
        ConfirmationStatus, CountersReport, ErrorReport, Explanation, FlowReport, LearnedReport,
        Observations, Status,
    },
    peer::Limits,
    state::{BadQuestion, ExplainQuery, FlowFilter, LearnedQuery, NotAwaited, PodFilter},
};
use crate::{metrics, policy::DestinationError, shutdown::Shutdown};

/// How long clients have to take what they asked for when the agent ends.
const GRACE: Duration = Duration::from_secs(2);

/// Name in [`Status::lost`] of verdicts that followers were too slow for.
const FOLLOWERS_LOST: &str = "flow_followers_lost";

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
    serve_within(Limits::default(), listener, agent, shutdown).await
}

/// [`serve`] with other bounds.
pub(super) async fn serve_within(
    limits: Limits,
    listener: ApiListener,
    agent: Arc<dyn AgentState>,
    shutdown: Shutdown,
) -> Result<(), ServiceError> {
    let (listener, _name) = listener.into_parts(limits).map_err(ServiceError::Serve)?;
    let router = router(agent, shutdown.clone());
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

fn router(agent: Arc<dyn AgentState>, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/counters", get(counters))
        .route("/v1/learned", get(learned))
        .route("/v1/flows", get(flows))
        .route("/v1/flows/follow", get(flows_follow))
        .route("/v1/explain", get(explain))
        .route("/v1/observations", get(observations))
        .route("/v1/confirm", post(confirm))
        .route("/metrics", get(prometheus))
        .fallback(not_found)
        .layer(map_response(closing))
        .with_state(Service {
            agent,
            shutdown,
            followers_lost: Arc::default(),
        })
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

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error: rejection.body_text(),
        }
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
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if error.is::<NotAwaited>() => {
                return Err(Failure {
                    status: StatusCode::CONFLICT,
                    error: error.to_string(),
                });
            }
            Ok(Err(error)) if error.is::<BadQuestion>() => {
                return Err(Failure {
                    status: StatusCode::BAD_REQUEST,
                    error: error.to_string(),
                });
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => format!("the agent's own error: {panic}"),
        };
        warn!(%error, "cannot answer a request");
        Err(Failure {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            error,
        })
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
}

async fn learned(
    State(service): State<Service>,
    parameters: Result<Query<LearnedParameters>, QueryRejection>,
) -> Result<Json<LearnedReport>, Failure> {
    let Query(parameters) = parameters?;
    let query: Option<LearnedQuery> = match parameters.query.as_deref() {
        None | Some("") => None,
        Some(text) => text.parse().ok(),
    };
    let answer = service.ask(move |agent| agent.learned(query.as_ref()));
    answer.await.map(Json)
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
) -> Result<Json<Vec<FlowReport>>, Failure> {
    let Query(parameters) = parameters?;
    let answer = service.ask(|agent| agent.recent_flows(parameters.into()));
    answer.await.map(Json)
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
    let answer = service.ask(move |agent| agent.explain(&query));
    answer.await.map(Json)
}

async fn observations(State(service): State<Service>) -> Result<Json<Observations>, Failure> {
    service.ask(|agent| agent.observations()).await.map(Json)
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
