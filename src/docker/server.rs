//! HTTP for Docker: the socket, limits, deadlines, and the process behind a connection.
//!
//! Docker sends POSTs with a small JSON object. A body is at most [`MAX_BODY`] and must come within [`BODY`]; every answer comes before Docker gives
//! up waiting (`Call::deadline`). What goes wrong with a volume is an answer with status 200 and `Err`, which Docker shows as it is; a request that makes no
//! sense has another status as well.

use super::driver::Driver;
use super::host::Machine;
use super::ledger::{Ledger, LedgerError};
use super::protocol::{Answer, Call, MEDIA_TYPE, Request};
use crate::api::{self, ApiError, Code, Operations, SocketError};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// Largest request body, in bytes.
const MAX_BODY: usize = 256 * 1024;
/// How long a body may take.
const BODY: Duration = Duration::from_secs(10);
/// How often mounts that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How long requests under way are waited for when the daemon ends.
const GRACE: Duration = Duration::from_secs(5);

/// Why the door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Docker would not find it.
    #[error("{0} cannot be a Docker driver's socket: it must be an absolute path that ends in NAME.sock, as {default}", default = super::DEFAULT_SOCKET)]
    Name(PathBuf),
    /// The socket.
    #[error("Docker volume driver: {0}")]
    Socket(#[from] SocketError),
    /// What is known of containers' mounts.
    #[error("Docker volume driver: {0}")]
    Ledger(#[from] LedgerError),
}

/// Where the door is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For Docker; the file's name without `.sock` is the driver's.
    pub socket: PathBuf,
    /// The daemon's API, by which mounts are made.
    pub api_socket: PathBuf,
    /// The daemon's data directory: `docker.json` and `docker/` in it are the door's.
    pub data_directory: PathBuf,
}

/// The open door: the socket is there, nobody answers yet.
pub struct Door {
    socket: PathBuf,
    listener: UnixListener,
    ledger: Arc<Ledger>,
}

impl Door {
    /// Listens on the socket, which only root may use; one that a dead daemon left is replaced.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub fn open(settings: &Settings) -> Result<Self, DoorError> {
        if !is_driver_socket(&settings.socket) {
            return Err(DoorError::Name(settings.socket.clone()));
        }
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let machine = Machine {
            socket: absolute(&settings.api_socket),
        };
        let ledger = Ledger::open(&absolute(&settings.data_directory), Box::new(machine))?;
        Ok(Self {
            socket: settings.socket.clone(),
            listener: api::bind(&settings.socket, None)?,
            ledger: Arc::new(ledger),
        })
    }

    /// Answers Docker until `stop`, then removes the socket. From `leaving` on nothing is mounted any more.
    pub async fn serve(self, operations: Arc<dyn Operations>, leaving: CancellationToken, stop: CancellationToken) {
        let driver = Arc::new(Driver::new(operations, self.ledger.clone(), leaving));
        let app = Router::new().fallback(answer).with_state(driver);
        let serving = axum::serve(self.listener, app.into_make_service_with_connect_info::<Peer>())
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            served = serving.into_future() => {
                if let Err(error) = served {
                    tracing::error!(%error, "the socket for Docker failed");
                }
            }
            () = late => {}
            () = sweep(self.ledger) => {}
        }
        // The next daemon would replace it, too.
        let _ = std::fs::remove_file(self.socket);
    }
}

/// Whether Docker finds a driver by this socket.
#[must_use]
pub fn is_driver_socket(socket: &Path) -> bool {
    socket.is_absolute()
        && socket.extension().is_some_and(|extension| extension == "sock")
        && socket.file_stem().is_some_and(|name| !name.is_empty())
}

/// Looks after mounts that nobody asks for, for ever.
async fn sweep(ledger: Arc<Ledger>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let ledger = ledger.clone();
        if tokio::task::spawn_blocking(move || ledger.sweep()).await.is_err() {
            tracing::error!("looking for mounts that no container uses failed");
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// Its process, if it is one of this PID namespace.
    process: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let process = stream.io().peer_cred().ok().and_then(|peer| peer.pid());
        Self {
            process: process.filter(|process| *process > 0),
        }
    }
}

async fn answer(
    State(driver): State<Arc<Driver>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: axum::extract::Request,
) -> Response {
    let (head, body) = request.into_parts();
    let (status, answer) = respond(&driver, peer.process, &head.method, head.uri.path(), body).await;
    match serde_json::to_vec(&answer) {
        Ok(text) => (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer for Docker could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Answers one request.
async fn respond(
    driver: &Driver,
    process: Option<i32>,
    method: &Method,
    path: &str,
    body: Body,
) -> (StatusCode, Answer) {
    let refuse = |status, message: String| (status, Answer::failed(&ApiError::new(Code::Usage, message)));
    let Some(call) = Call::of(path) else {
        return refuse(StatusCode::NOT_FOUND, "the volume driver has no such call".to_owned());
    };
    if method != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "expected a POST".to_owned());
    }
    let body = match tokio::time::timeout(BODY, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let message = format!("the request's body is cut short, or larger than {MAX_BODY} bytes");
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, message);
        }
        Err(_) => {
            return refuse(
                StatusCode::REQUEST_TIMEOUT,
                "the request's body does not come".to_owned(),
            );
        }
    };
    let request = match Request::parse(&body) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("the request's body: {error}")),
    };
    let volume = request.name.clone();
    let done = tokio::time::timeout(call.deadline(), driver.call(call, request, process))
        .await
        .unwrap_or_else(|_| Err(late(call)));
    match done {
        Ok(answer) => (StatusCode::OK, answer),
        Err(error) => {
            // Docker asks for what may not exist all the time.
            if call == Call::Get && error.code == Code::NotFound {
                tracing::debug!(?call, %volume, %error, "Docker was refused");
            } else {
                tracing::warn!(?call, %volume, %error, "Docker was refused");
            }
            (StatusCode::OK, Answer::failed(&error))
        }
    }
}

/// What takes longer than Docker waits.
fn late(call: Call) -> ApiError {
    let after = call.deadline().as_secs();
    let error = ApiError::unavailable(match call {
        Call::Mount => format!("the volume could not be mounted within {after} s"),
        Call::Unmount => format!("the volume is not unmounted after {after} s; that goes on"),
        _ => format!("no answer within {after} s"),
    });
    error.hint("see: storageos cluster health, storageos volume inspect, and the daemon's log")
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
