//! The HTTP server: routes, limits, and the translation between HTTP and [`Operations`].
//!
//! Every answer is JSON, errors too, but for metrics, `/healthz` and archives. A body is at most [`MAX_BODY`]; unknown fields and unknown routes are refused.

use super::types::*;
use super::{ApiError, Code, Operations};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// Largest request body, in bytes.
pub(super) const MAX_BODY: usize = 256 * 1024;

type Node = State<Arc<dyn Operations>>;
type Answer = Result<Response, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &self)
    }
}

/// Serves the API on a socket until told to stop; requests under way are finished.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: UnixListener,
    operations: Arc<dyn Operations>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(operations))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

fn router(operations: Arc<dyn Operations>) -> Router {
    complete(routes().merge(routes_of_the_socket()), operations)
}

/// What is served over the network too, to clients with a certificate.
pub(super) fn router_for_clients(operations: Arc<dyn Operations>) -> Router {
    let refuse = |routes: Router<_>, path: &&str| routes.route(path, any(only_on_the_socket));
    let routes = SOCKET_ONLY.iter().fold(routes(), refuse);
    complete(routes, operations)
}

fn complete(routes: Router<Arc<dyn Operations>>, operations: Arc<dyn Operations>) -> Router {
    routes
        .merge(super::monitoring::routes())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(operations)
}

/// What only who is on a node may do: let nodes and clients in, carry the authority's key away, make, join and recover clusters.
const SOCKET_ONLY: [&str; 8] = [
    "/v1/cluster/export",
    "/v1/cluster/init",
    "/v1/cluster/join",
    "/v1/cluster/recover",
    "/v1/cluster/tokens",
    "/v1/cluster/tokens/{id}",
    "/v1/cluster/clients",
    "/v1/cluster/clients/{id}",
];

/// The routes of [`SOCKET_ONLY`].
fn routes_of_the_socket() -> Router<Arc<dyn Operations>> {
    Router::new()
        .route("/v1/cluster/export", get(cluster_export))
        .route("/v1/cluster/init", post(cluster_init))
        .route("/v1/cluster/join", post(cluster_join))
        .route("/v1/cluster/recover", post(cluster_recover))
        .route("/v1/cluster/tokens", get(cluster_tokens).post(cluster_token_create))
        .route("/v1/cluster/tokens/{id}", delete(cluster_token_remove))
        .route("/v1/cluster/clients", get(cluster_clients).post(cluster_client_create))
        .route("/v1/cluster/clients/{id}", delete(cluster_client_remove))
}

fn routes() -> Router<Arc<dyn Operations>> {
    Router::new()
        .route("/v1", get(about))
        .route("/v1/cluster", get(cluster_inspect))
        .route("/v1/cluster/rotate", post(cluster_rotate))
        .route("/v1/cluster/health", get(cluster_health))
        .route("/v1/cluster/connectivity", get(cluster_connectivity))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}", get(node).patch(node_update).delete(node_delete))
        .route("/v1/nodes/{name}/connectivity", get(node_connectivity))
        .route("/v1/nodes/{name}/drain", get(node_drain))
        .route("/v1/namespaces", get(namespaces).post(namespace_create))
        .route("/v1/namespaces/{name}", get(namespace).delete(namespace_remove))
        .route("/v1/volumes", get(volumes).post(volume_create))
        .route(
            "/v1/volumes/{namespace}/{name}",
            get(volume).patch(volume_update).delete(volume_remove),
        )
        .route("/v1/volumes/{namespace}/{name}/unmount", post(volume_unmount))
        .route("/v1/volumes/{namespace}/{name}/verify", post(volume_verify))
        .route("/v1/volumes/{namespace}/{name}/check", post(volume_check))
        .route("/v1/volumes/{namespace}/{name}/promote", post(volume_promote))
        .route(
            "/v1/volumes/{namespace}/{name}/scrub",
            get(volume_scrubbed).post(volume_scrub),
        )
        .route("/v1/events", get(events))
        .route("/v1/cluster/diagnostics", get(cluster_diagnostics))
}

/// A JSON answer.
fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer of the API could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn ok<T: Serialize>(value: &T) -> Answer {
    Ok(json(StatusCode::OK, value))
}

/// A request's body; one that is too large or cut short is an error like any other.
struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state)
            .await
            .map(Self)
            .map_err(|error| ApiError::new(Code::Usage, format!("the request's body: {}", error.body_text())))
    }
}

/// Reads a request's body; an empty one stands for `{}`.
pub(super) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| ApiError::new(Code::Usage, format!("the request's body: {error}")))
}

/// Reads a request's query; the types' unknown fields are refused here too.
pub(super) fn query<T: DeserializeOwned>(query: Option<&str>) -> Result<T, ApiError> {
    let uri = axum::http::Uri::builder()
        .path_and_query(format!("/?{}", query.unwrap_or_default()))
        .build()
        .map_err(|error| ApiError::new(Code::Usage, format!("the request's query: {error}")))?;
    axum::extract::Query::try_from_uri(&uri)
        .map(|axum::extract::Query(value)| value)
        .map_err(|error| ApiError::new(Code::Usage, format!("the request's query: {}", error.body_text())))
}

async fn only_on_the_socket() -> ApiError {
    ApiError::new(Code::Denied, "this is not served over the network")
        .hint("do it on a node, through its daemon's socket")
}

async fn no_route() -> ApiError {
    ApiError::new(Code::NotFound, "the API has no such route").hint("the routes are in docs/api.md")
}

async fn no_method() -> ApiError {
    ApiError::new(Code::Usage, "the route does not take this method").hint("the routes are in docs/api.md")
}

async fn about(State(node): Node) -> Answer {
    ok(&node.about().await?)
}

async fn cluster_init(State(node): Node, Body(bytes): Body) -> Answer {
    let InitRequest {} = body(&bytes)?;
    ok(&node.cluster_init().await?)
}

async fn cluster_join(State(node): Node, Body(bytes): Body) -> Answer {
    ok(&node.cluster_join(body(&bytes)?).await?)
}

async fn cluster_tokens(State(node): Node) -> Answer {
    ok(&node.cluster_tokens().await?)
}

async fn cluster_token_create(State(node): Node, Body(bytes): Body) -> Answer {
    let made = node.cluster_token_create(body(&bytes)?).await?;
    Ok(json(StatusCode::CREATED, &made))
}

async fn cluster_token_remove(State(node): Node, Path(id): Path<String>) -> Answer {
    node.cluster_token_remove(&id).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn cluster_clients(State(node): Node) -> Answer {
    ok(&node.cluster_clients().await?)
}

async fn cluster_client_create(State(node): Node, Body(bytes): Body) -> Answer {
    let made = node.cluster_client_create(body(&bytes)?).await?;
    Ok(json(StatusCode::CREATED, &made))
}

async fn cluster_client_remove(State(node): Node, Path(id): Path<String>) -> Answer {
    node.cluster_client_remove(&id).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn cluster_rotate(State(node): Node, Body(bytes): Body) -> Answer {
    let RotateRequest {} = body(&bytes)?;
    node.cluster_rotate().await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn cluster_export(State(node): Node) -> Answer {
    ok(&node.cluster_export().await?)
}

async fn cluster_health(State(node): Node) -> Answer {
    ok(&node.cluster_health().await?)
}

async fn cluster_inspect(State(node): Node) -> Answer {
    ok(&node.cluster_inspect().await?)
}

async fn cluster_diagnostics(State(node): Node) -> Answer {
    let archive = node.diagnostics().await?;
    Ok(([(header::CONTENT_TYPE, "application/gzip")], archive).into_response())
}

async fn nodes(State(node): Node) -> Answer {
    ok(&node.nodes().await?)
}

async fn node(State(node): Node, Path(name): Path<String>) -> Answer {
    ok(&node.node(&name).await?)
}

async fn node_update(State(node): Node, Path(name): Path<String>, Body(bytes): Body) -> Answer {
    ok(&node.node_update(&name, body(&bytes)?).await?)
}

async fn cluster_recover(State(node): Node, Body(bytes): Body) -> Answer {
    let RecoverRequest {} = body(&bytes)?;
    ok(&node.cluster_recover().await?)
}

async fn node_delete(State(node): Node, Path(name): Path<String>) -> Answer {
    node.node_delete(&name).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn node_connectivity(State(node): Node, Path(name): Path<String>) -> Answer {
    ok(&node.node_connectivity(&name).await?)
}

async fn cluster_connectivity(State(node): Node) -> Answer {
    ok(&node.cluster_connectivity().await?)
}

async fn node_drain(State(node): Node, Path(name): Path<String>) -> Answer {
    ok(&node.node_drain(&name).await?)
}

async fn namespaces(State(node): Node) -> Answer {
    ok(&node.namespaces().await?)
}

async fn namespace(State(node): Node, Path(name): Path<String>) -> Answer {
    ok(&node.namespace(&name).await?)
}

async fn namespace_create(State(node): Node, Body(bytes): Body) -> Answer {
    let made = node.namespace_create(body(&bytes)?).await?;
    Ok(json(StatusCode::CREATED, &made))
}

async fn namespace_remove(State(node): Node, Path(name): Path<String>) -> Answer {
    node.namespace_remove(&name).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn volumes(State(node): Node, RawQuery(raw): RawQuery) -> Answer {
    ok(&node.volumes(query(raw.as_deref())?).await?)
}

async fn volume(State(node): Node, Path((namespace, name)): Path<(String, String)>) -> Answer {
    ok(&node.volume(&namespace, &name).await?)
}

async fn volume_create(State(node): Node, Body(bytes): Body) -> Answer {
    let made = node.volume_create(body(&bytes)?).await?;
    Ok(json(StatusCode::CREATED, &made))
}

async fn volume_update(
    State(node): Node,
    Path((namespace, name)): Path<(String, String)>,
    Body(bytes): Body,
) -> Answer {
    ok(&node.volume_update(&namespace, &name, body(&bytes)?).await?)
}

async fn volume_remove(
    State(node): Node,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(raw): RawQuery,
) -> Answer {
    let Force { force } = query(raw.as_deref())?;
    node.volume_remove(&namespace, &name, force).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn volume_unmount(
    State(node): Node,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(raw): RawQuery,
) -> Answer {
    let Force { force } = query(raw.as_deref())?;
    node.volume_unmount(&namespace, &name, force).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn volume_verify(
    State(node): Node,
    Path((namespace, name)): Path<(String, String)>,
    Body(bytes): Body,
) -> Answer {
    ok(&node.volume_verify(&namespace, &name, body(&bytes)?).await?)
}

async fn volume_check(State(node): Node, Path((namespace, name)): Path<(String, String)>, Body(bytes): Body) -> Answer {
    let CheckRequest {} = body(&bytes)?;
    ok(&node.volume_check(&namespace, &name).await?)
}

async fn events(State(node): Node, RawQuery(raw): RawQuery) -> Answer {
    ok(&node.events(query(raw.as_deref())?).await?)
}

async fn volume_scrubbed(State(node): Node, Path((namespace, name)): Path<(String, String)>) -> Answer {
    ok(&node.volume_scrub(&namespace, &name, false).await?)
}

async fn volume_scrub(State(node): Node, Path((namespace, name)): Path<(String, String)>, Body(bytes): Body) -> Answer {
    let ScrubRequest {} = body(&bytes)?;
    ok(&node.volume_scrub(&namespace, &name, true).await?)
}

async fn volume_promote(
    State(node): Node,
    Path((namespace, name)): Path<(String, String)>,
    Body(bytes): Body,
) -> Answer {
    ok(&node.volume_promote(&namespace, &name, body(&bytes)?).await?)
}
