//! The calling side: opening a connection, and [`Peer`], which keeps one open and reopens it when it broke.
//!
//! A broken connection fails all its calls at once; the next call opens a new one. What a repeated call would do twice
//! is the caller's concern: the peer never repeats a call by itself.

use super::{
    driver::Driver,
    hello::{Hello, Identity, Kind, LENGTH, Refusal},
    lanes,
    secure::Secure,
    server::Connection,
    tls,
    transport::Transport,
};
use crate::exec;
use crate::trust::tls::proves;
use crate::volume::ClusterId;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tarpc::{
    ClientMessage, RequestName, Response,
    client::{self, Channel},
    context,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time,
};
use tokio_util::sync::CancellationToken;

/// First pause after a failed attempt to connect; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long the other end's system may leave all of what was sent without an answer.
const UNTAKEN: Duration = Duration::from_secs(5);

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network's reason.
    #[error("cannot connect to {address}: {error}")]
    Io {
        /// Where to.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// Nobody answered in time.
    #[error("cannot connect to {0}: no answer in time")]
    Timeout(String),
    /// Who answered is not one of us.
    #[error("{0} does not speak our protocol")]
    Stranger(String),
    /// One of the two does not trust the other's certificate.
    #[error("{address} and this node do not trust each other: {reason}")]
    Untrusted {
        /// Where to.
        address: String,
        /// What is wrong with whose certificate.
        reason: String,
    },
    /// The other node was deleted from the cluster.
    #[error("the node at {0} was deleted from the cluster")]
    Deleted(String),
    /// This node has no certificate yet.
    #[error("this node has no certificate yet")]
    NoCertificate,
    /// The other node does not want this connection.
    #[error("{address} refused the connection: {reason}")]
    Refused {
        /// Where to.
        address: String,
        /// What it said.
        reason: Refusal,
    },
}

/// Sets what every connection of ours has: small messages go at once, and one whose bytes nobody takes breaks, rather than wait for
/// TCP's next attempt, which comes ever later, when the link works again.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    // A few thousand: they fit.
    rustix::net::sockopt::set_tcp_user_timeout(socket, UNTAKEN.as_millis() as u32)?;
    Ok(())
}

/// Opens a connection of `kind` to `address` (`HOST:PORT`), hello included, within `deadline`.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(
    address: &str,
    kind: Kind,
    identity: &Identity,
    deadline: Duration,
) -> Result<Connection, ConnectError> {
    let keys = identity.locks().keys().ok_or(ConnectError::NoCertificate)?;
    let connection = open(address, kind, identity, Some(keys.cluster), deadline, || keys.call());
    connection.await
}

/// Opens a connection of kind enrol to a node of the cluster whose authority's certificate has this hash.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_pinned(
    address: &str,
    authority: [u8; 32],
    identity: &Identity,
    deadline: Duration,
) -> Result<Connection, ConnectError> {
    let session = || tls::call_pinned(authority);
    open(address, Kind::Enrol, identity, None, deadline, session).await
}

/// The way of both. `cluster`: which one the other end must be of.
async fn open(
    address: &str,
    kind: Kind,
    identity: &Identity,
    cluster: Option<ClusterId>,
    deadline: Duration,
    session: impl FnOnce() -> Result<rustls::Connection, rustls::Error>,
) -> Result<Connection, ConnectError> {
    let failed = |error: io::Error| {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls.map(ToString::to_string) {
            Some(reason) => ConnectError::Untrusted {
                address: address.to_owned(),
                reason,
            },
            None => ConnectError::Io {
                address: address.to_owned(),
                error,
            },
        }
    };
    let open = async {
        let socket = TcpStream::connect(address).await.map_err(failed)?;
        prepare(&socket).map_err(failed)?;
        let remote = socket.peer_addr().map_err(failed)?;
        let session = session().map_err(|error| failed(io::Error::other(error)))?;
        let mut socket = Secure::new(socket, session).await.map_err(failed)?;
        let hello = Hello::new(identity.node(), cluster, kind as u8).encode();
        socket.write_all(&hello).await.map_err(failed)?;
        socket.flush().await.map_err(failed)?;
        let mut bytes = [0; LENGTH];
        socket.read_exact(&mut bytes).await.map_err(failed)?;
        let answer = Hello::decode(&bytes).ok_or_else(|| ConnectError::Stranger(address.to_owned()))?;
        if let Some(reason) = answer.refusal() {
            return Err(ConnectError::Refused {
                address: address.to_owned(),
                reason,
            });
        }
        // A client has no connection without a certificate at the other end.
        let proven = match (socket.certificate(), cluster.or(answer.cluster)) {
            (Some(certificate), Some(cluster)) => proves(certificate, answer.node, cluster),
            _ => false,
        };
        if !proven {
            return Err(ConnectError::Untrusted {
                address: address.to_owned(),
                reason: "it did not prove which node it is".to_owned(),
            });
        }
        if !identity.locks().admit(socket.cut(), answer.node) {
            return Err(ConnectError::Deleted(address.to_owned()));
        }
        let (socket, home) = lanes::place(kind, socket).map_err(failed)?;
        Ok(Connection {
            node: answer.node,
            cluster: answer.cluster,
            address: remote,
            stop: CancellationToken::new(),
            home,
            socket: Box::new(socket),
        })
    };
    time::timeout(deadline, open)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Timeout(address.to_owned())))
}

/// Starts the client side of a service on a connection, and the task that drives it. Cancelling `stop` ends it; when the connection is
/// lost, all its calls have failed before `stop` is cancelled.
pub fn call<Req, Resp>(connection: Connection, limits: Limits, stop: CancellationToken) -> (Channel<Req, Resp>, Driver)
where
    Req: RequestName + Serialize + DeserializeOwned + Send + 'static,
    Resp: Serialize + DeserializeOwned + Send + 'static,
{
    call_then(connection, limits, stop, || {})
}

/// The same; `ended` is called when the connection is over and all its calls have failed.
fn call_then<Req, Resp>(
    connection: Connection,
    limits: Limits,
    stop: CancellationToken,
    ended: impl FnOnce() + Send + 'static,
) -> (Channel<Req, Resp>, Driver)
where
    Req: RequestName + Serialize + DeserializeOwned + Send + 'static,
    Resp: Serialize + DeserializeOwned + Send + 'static,
{
    let home = connection.home.clone();
    let transport: Transport<ClientMessage<Req>, Response<Resp>> = connection.transport();
    let mut config = client::Config::default();
    config.max_in_flight_requests = limits.in_flight;
    config.pending_request_buffer = limits.in_flight;
    let client = client::new(config, transport);
    let drive = async move {
        if let Err(error) = client.dispatch.await {
            tracing::debug!(%error, "connection lost");
        }
    };
    let (driver, drive) = Driver::new(Box::pin(drive), home.clone());
    home.spawn(async move {
        tokio::select! {
            // Dropping `drive` fails the calls that are in flight.
            () = stop.cancelled() => {}
            () = drive => stop.cancel(),
        }
        ended();
    });
    (client.client, driver)
}

/// Bounds of a [`Peer`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time to open a connection.
    pub connect: Duration,
    /// Calls in flight; more wait.
    pub in_flight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            in_flight: 256,
        }
    }
}

struct Open<Req, Resp> {
    channel: Channel<Req, Resp>,
    stop: CancellationToken,
}

struct Retry {
    pause: Duration,
    not_before: Option<Instant>,
}

/// A node to call: connects at the first call, and again at the next call after the connection was lost.
pub struct Peer<Req, Resp> {
    address: String,
    kind: Kind,
    identity: Identity,
    limits: Limits,
    open: Mutex<Option<Open<Req, Resp>>>,
    /// Held while connecting, so that callers share one attempt.
    connecting: tokio::sync::Mutex<Retry>,
    /// How many connections were lost so far.
    lost: watch::Sender<u64>,
    /// Ends the connections' tasks with the peer.
    stop: CancellationToken,
    /// Handed to the connection's task, which outlives no peer but may outlive a borrow of it.
    shared: Weak<Self>,
}

impl<Req, Resp> Peer<Req, Resp>
where
    Req: RequestName + Serialize + DeserializeOwned + Send + 'static,
    Resp: Serialize + DeserializeOwned + Send + 'static,
{
    /// A peer at `address` (`HOST:PORT`). Does not connect yet.
    #[must_use]
    pub fn new(address: String, kind: Kind, identity: Identity, limits: Limits) -> Arc<Self> {
        Arc::new_cyclic(|shared| Self {
            address,
            kind,
            identity,
            limits,
            open: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(Retry {
                pause: MIN_PAUSE,
                not_before: None,
            }),
            lost: watch::Sender::new(0),
            stop: CancellationToken::new(),
            shared: shared.clone(),
        })
    }

    /// Where the peer is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The open connection's channel, if there is one.
    #[must_use]
    pub fn current(&self) -> Option<Channel<Req, Resp>> {
        self.open.lock().as_ref().map(|open| open.channel.clone())
    }

    /// The channel to call through, after connecting if need be. After a failed attempt the next one waits a moment (at
    /// most a second).
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn channel(&self) -> Result<Channel<Req, Resp>, ConnectError> {
        if let Some(channel) = self.current() {
            return Ok(channel);
        }
        let mut retry = self.connecting.lock().await;
        if let Some(channel) = self.current() {
            return Ok(channel);
        }
        if let Some(at) = retry.not_before {
            time::sleep_until(at.into()).await;
        }
        match connect(&self.address, self.kind, &self.identity, self.limits.connect).await {
            Ok(connection) => {
                retry.not_before = None;
                retry.pause = MIN_PAUSE;
                Ok(self.start(connection))
            }
            Err(error) => {
                retry.not_before = Some(Instant::now() + retry.pause);
                retry.pause = (retry.pause * 2).min(MAX_PAUSE);
                Err(error)
            }
        }
    }

    fn start(&self, connection: Connection) -> Channel<Req, Resp> {
        let stop = self.stop.child_token();
        let shared = self.shared.clone();
        let ended = move || {
            if let Some(peer) = shared.upgrade() {
                peer.open.lock().take_if(|open| open.stop.is_cancelled());
                peer.lost.send_modify(|lost| *lost += 1);
            }
        };
        // Locked before the task starts: should it end at once, it finds what it has to take.
        let mut open = self.open.lock();
        let (channel, _) = call_then(connection, self.limits, stop.clone(), ended);
        *open = Some(Open {
            channel: channel.clone(),
            stop,
        });
        channel
    }

    /// Closes the connection, failing its calls. The next call opens a new one.
    pub fn disconnect(&self) {
        if let Some(open) = self.open.lock().take() {
            open.stop.cancel();
        }
    }

    /// Tells of lost connections: the value counts them.
    #[must_use]
    pub fn watch_lost(&self) -> watch::Receiver<u64> {
        self.lost.subscribe()
    }
}

impl<Req, Resp> Drop for Peer<Req, Resp> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Whether nobody listens at an address (`HOST:PORT`), as its system says: the process that did is gone.
pub async fn refuses(address: &str) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    TcpStream::connect(address).await.err().is_some_and(refused)
}

/// A call's context with a deadline from now.
#[must_use]
pub fn within(deadline: Duration) -> context::Context {
    let mut context = context::current();
    context.deadline = exec::time::deadline(deadline);
    context
}
