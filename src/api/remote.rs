//! The API over the network, where an operator asked for it: TLS 1.3, and on both sides a certificate of the cluster's authority.
//!
//! Who has a certificate of a client whose record is there may do what the daemon's socket allows, but for what would let others in or take the authority's key away
//! ([`super::server::router_for_clients`]). A connection is for one request, so each is checked anew.
//!
//! Bounds: [`MAX_CONNECTIONS`]; a handshake takes [`HANDSHAKE`] at most, a request's head [`HEAD`]; when the daemon ends, requests under way get [`GRACE`].

use super::bounded::{Bounded, Guest};
use super::server::router_for_clients;
use super::{ApiError, Code, Operations};
use crate::trust::Credentials;
use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 64;
/// Longest time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest time for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// How long requests under way are waited for when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);
/// What both sides must want to speak (ALPN).
pub(super) const PROTOCOL: &[u8] = b"http/1.1";

/// What the door needs to know of the cluster.
pub trait Gatekeeper: Send + Sync + 'static {
    /// What this node proves itself with; `None`: it is in no cluster.
    fn credentials(&self) -> Option<Credentials>;

    /// The name of the client whose certificate this is, of the right authority as the handshake has shown.
    ///
    /// # Errors
    /// [`Code::Denied`]: there is no such client, or no longer. [`Code::Unavailable`]: this node does not know yet.
    fn client(&self, certificate: &CertificateDer<'_>) -> Result<String, ApiError>;
}

/// Serves clients on a TCP address until `stop`.
pub async fn serve_clients(
    listener: TcpListener,
    operations: Arc<dyn Operations>,
    gate: Arc<dyn Gatekeeper>,
    stop: CancellationToken,
) {
    let app = router_for_clients(operations);
    // A handshake and a head have their own bounds, and an answer may take long.
    let mut listener = Bounded::new(listener, MAX_CONNECTIONS, None);
    let connections = TaskTracker::new();
    loop {
        let (stream, address) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (app, gate, stop) = (app.clone(), gate.clone(), stop.clone());
        connections.spawn(async move {
            if let Err(error) = guest(stream, address, app, &*gate, stop).await {
                tracing::debug!(%address, %error, "a connection to the API ended");
            }
        });
    }
    connections.close();
    let _ = tokio::time::timeout(GRACE, connections.wait()).await;
}

/// Why a connection ended without an answer.
#[derive(Debug, thiserror::Error)]
enum GuestError {
    #[error("this node is in no cluster yet")]
    NoCluster,
    #[error("the node's certificate cannot be used: {0}")]
    Credentials(#[from] rustls::Error),
    #[error("the handshake failed: {0}")]
    Handshake(std::io::Error),
    #[error("the handshake took too long")]
    Slow,
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

/// One connection, from handshake to answer.
async fn guest(
    stream: Guest,
    address: SocketAddr,
    app: Router,
    gate: &dyn Gatekeeper,
    stop: CancellationToken,
) -> Result<(), GuestError> {
    let credentials = gate.credentials().ok_or(GuestError::NoCluster)?;
    let config = credentials.proof().answers(PROTOCOL, false)?;
    let accepting = TlsAcceptor::from(config).accept(stream);
    let tls = match tokio::time::timeout(HANDSHAKE, accepting).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return Err(GuestError::Handshake(error)),
        Err(_) => return Err(GuestError::Slow),
    };
    let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    // The handshake does not end without one.
    let client = shown.map_or_else(|| Err(no_client()), |certificate| gate.client(certificate));
    let app = match client {
        Ok(name) => app.layer(middleware::from_fn(move |request, next| {
            noted(name.clone(), request, next)
        })),
        Err(error) => {
            tracing::warn!(%address, %error, "a client was not let in");
            Router::new().fallback(move || std::future::ready(error.clone()))
        }
    };
    let serving = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(app));
    tokio::pin!(serving);
    tokio::select! {
        served = serving.as_mut() => return Ok(served?),
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    Ok(serving.await?)
}

/// What whoever is no client is told.
pub fn no_client() -> ApiError {
    ApiError::new(
        Code::Denied,
        "this certificate is not that of a client, or the client was removed",
    )
    .hint("make one on a node of the cluster: storageos cluster client create NAME")
}

/// Who changed what is in the log.
async fn noted(client: String, request: Request, next: Next) -> axum::response::Response {
    let change = (request.method() != Method::GET).then(|| (request.method().clone(), request.uri().path().to_owned()));
    let answer = next.run(request).await.into_response();
    if let Some((method, path)) = change {
        tracing::info!(client, %method, path, status = answer.status().as_u16(), "request over the network");
    }
    answer
}
