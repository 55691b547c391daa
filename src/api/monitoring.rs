//! Metrics and health for machines: `/metrics`, `/healthz`, `/readyz`, on the API's sockets and, when asked for, on a TCP address.
//!
//! The TCP address has neither encryption nor passwords, so nothing else is served there and nothing can be changed: only `GET`, no body is read.
//! Bounds: [`MAX_CONNECTIONS`] connections to it, each closed after [`IDLE`] without a request; [`MAX_AT_ONCE`] requests are worked on at once, each answered within [`PATIENCE`]; when the daemon ends, those under way get [`GRACE`].

use super::bounded::Bounded;
use super::types::Readiness;
use super::{ApiError, Code, Operations};
use crate::metrics;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Requests worked on at once; more are refused.
const MAX_AT_ONCE: usize = 16;
/// Connections to the TCP address.
const MAX_CONNECTIONS: usize = 64;
/// How long one of them may be silent: longer than scrapes are apart as a rule.
const IDLE: Duration = Duration::from_secs(90);
/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long requests under way are waited for when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

type Node = State<Arc<dyn Operations>>;

/// Serves on a TCP address until `stop`.
///
/// # Errors
/// The listener failed.
pub async fn serve_monitoring(
    listener: TcpListener,
    operations: Arc<dyn Operations>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = routes()
        .fallback(nothing_else)
        .method_not_allowed_fallback(only_get)
        .with_state(operations);
    let listener = Bounded::new(listener, MAX_CONNECTIONS, Some(IDLE));
    let serving = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving.into_future() => served,
        () = late => Ok(()),
    }
}

/// The routes, without an answer for others.
pub(super) fn routes() -> Router<Arc<dyn Operations>> {
    let places = Arc::new(Semaphore::new(MAX_AT_ONCE));
    Router::new()
        .route("/metrics", get(scrape))
        .route("/readyz", get(ready))
        .layer(middleware::from_fn_with_state(places, bounded))
        .route("/healthz", get(healthy))
}

async fn bounded(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_place) = places.try_acquire() else {
        return ApiError::unavailable("too many requests at once").into_response();
    };
    match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => ApiError::unavailable(format!("no answer within {PATIENCE:?}")).into_response(),
    }
}

async fn nothing_else() -> ApiError {
    ApiError::new(Code::NotFound, "only /metrics, /healthz and /readyz are served here")
        .hint("the API is on the daemon's Unix socket")
}

async fn only_get() -> ApiError {
    ApiError::new(Code::Usage, "only GET is served here")
}

async fn scrape(State(node): Node) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], node.metrics().await).into_response()
}

/// The process lives and its runtime turns.
async fn healthy() -> &'static str {
    "ok\n"
}

async fn ready(State(node): Node) -> Response {
    let readiness: Readiness = node.readiness().await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, axum::Json(readiness)).into_response()
}
