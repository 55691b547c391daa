//! The listening side: accepts connections, checks their hello, hands each to the handler of its kind.
//!
//! Bounds: [`MAX_CONNECTIONS`] at once (more are refused with a reason), [`HELLO_DEADLINE`] for a hello. Stopping drops every connection
//! and waits until their tasks have ended.

use super::{
    hello::{Hello, Identity, Kind, LENGTH, Refusal},
    lanes,
    peer::prepare,
    transport::{Socket, Transport},
};
use crate::volume::{ClusterId, NodeId};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{collections::HashMap, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tarpc::server::{BaseChannel, Channel, Serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections served at once.
const MAX_CONNECTIONS: usize = 1024;
/// Connections beyond those that may wait to be told so.
const MAX_REFUSALS: usize = 64;
/// Time a caller has to send its hello and take the answer.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after the system could not accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An accepted or opened connection, its hello done.
pub struct Connection {
    /// Node at the other end, as it says.
    pub node: NodeId,
    /// Its cluster, as it says; `None`: it is joining.
    pub cluster: Option<ClusterId>,
    /// Its address.
    pub address: SocketAddr,
    /// Cancelled when this end's server stops; never for an opened connection.
    pub stop: CancellationToken,
    /// The runtime that the connection's tasks must run on.
    pub(super) home: Handle,
    pub(super) socket: Box<dyn Socket>,
}

impl Connection {
    /// Turns the connection into a stream of `In` and sink of `Out` messages.
    #[must_use]
    pub fn transport<Out: super::Message, In: super::Message>(self) -> Transport<Out, In> {
        Transport::new(self.socket)
    }
}

type Handler = Arc<dyn Fn(Connection) -> BoxFuture<'static, ()> + Send + Sync>;

/// A bound port whose handlers are not all set yet; nothing is accepted before [`Builder::start`].
pub struct Builder {
    listener: TcpListener,
    identity: Identity,
    handlers: HashMap<u8, (Kind, Handler)>,
    hello_deadline: Duration,
}

impl Builder {
    /// Sets who serves connections of `kind`. The connection closes when the future ends.
    #[must_use]
    pub fn on<F, R>(mut self, kind: Kind, handler: F) -> Self
    where
        F: Fn(Connection) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.insert(
            kind as u8,
            (kind, Arc::new(move |connection| handler(connection).boxed())),
        );
        self
    }

    /// For tests that do not want to wait for [`HELLO_DEADLINE`].
    #[cfg(test)]
    pub(super) fn hello_deadline(mut self, deadline: Duration) -> Self {
        self.hello_deadline = deadline;
        self
    }

    /// The address that the port is bound to.
    ///
    /// # Errors
    /// The system's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Starts accepting.
    ///
    /// # Errors
    /// The system's.
    pub fn start(self) -> io::Result<Server> {
        let address = self.listener.local_addr()?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let acceptor = Acceptor {
            identity: self.identity,
            handlers: Arc::new(self.handlers),
            hello_deadline: self.hello_deadline,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(acceptor.run(self.listener));
        Ok(Server { address, stop, tasks })
    }
}

/// A running server. Dropping it stops it without waiting.
pub struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Binds `address` (`HOST:PORT`; port 0 picks a free one).
    ///
    /// # Errors
    /// The system's: the address is in use, or is not this machine's.
    pub async fn bind(address: &str, identity: Identity) -> io::Result<Builder> {
        Ok(Builder {
            listener: TcpListener::bind(address).await?,
            identity,
            handlers: HashMap::new(),
            hello_deadline: HELLO_DEADLINE,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and every connection, and returns when their tasks have ended.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Acceptor {
    identity: Identity,
    handlers: Arc<HashMap<u8, (Kind, Handler)>>,
    hello_deadline: Duration,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (place, refuse) = match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => (place, None),
                Err(_) => match Arc::clone(&refusals).try_acquire_owned() {
                    Ok(place) => (place, Some(Refusal::Busy)),
                    // Closing without a word is all that a flood gets.
                    Err(_) => continue,
                },
            };
            self.admit(socket, address, place, refuse);
        }
    }

    /// Starts the task of one connection: hello, then its handler, where connections of its kind belong.
    fn admit(&self, mut socket: TcpStream, address: SocketAddr, place: OwnedSemaphorePermit, refuse: Option<Refusal>) {
        let identity = self.identity.clone();
        let handlers = Arc::clone(&self.handlers);
        let stop = self.stop.clone();
        let deadline = self.hello_deadline;
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move {
            let greeted = tokio::select! {
                () = stop.cancelled() => return,
                greeted = time::timeout(deadline, greet(&mut socket, &identity, &handlers, refuse)) => greeted,
            };
            let refused = match greeted {
                Ok(Ok(Some((hello, kind, handler)))) => match lanes::place(kind, socket) {
                    Ok((socket, home)) => {
                        let connection = Connection {
                            node: hello.node,
                            cluster: hello.cluster,
                            address,
                            stop: stop.clone(),
                            home: home.clone(),
                            socket: Box::new(socket),
                        };
                        let serve = async move {
                            let _place = place;
                            tokio::select! {
                                () = stop.cancelled() => {}
                                () = handler(connection) => {}
                            }
                        };
                        tasks.spawn_on(serve, &home);
                        return;
                    }
                    Err(error) => error.to_string(),
                },
                Ok(Ok(None)) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no hello in time".to_owned(),
            };
            tracing::debug!(%address, error = %refused, "connection refused");
        });
    }
}

async fn greet(
    socket: &mut TcpStream,
    identity: &Identity,
    handlers: &HashMap<u8, (Kind, Handler)>,
    refuse: Option<Refusal>,
) -> io::Result<Option<(Hello, Kind, Handler)>> {
    prepare(socket)?;
    let mut bytes = [0; LENGTH];
    socket.read_exact(&mut bytes).await?;
    let hello =
        Hello::decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it did not say hello"))?;
    let verdict = match (refuse, hello.admit(identity), handlers.get(&hello.code)) {
        (Some(refusal), ..) | (None, Err(refusal), _) => Err(refusal),
        (None, Ok(()), None) => Err(Refusal::Kind),
        (None, Ok(()), Some((kind, handler))) => Ok((*kind, Arc::clone(handler))),
    };
    let code = verdict.as_ref().err().map_or(0, |refusal| *refusal as u8);
    socket.write_all(&Hello::new(identity, code).encode()).await?;
    Ok(verdict.ok().map(|(kind, handler)| (hello, kind, handler)))
}

/// Serves a tarpc service on a connection until it closes: at most `limit` requests at once, the rest wait in the socket.
///
/// The handlers run inside this one task (a hand-off to another worker would cost a wake-up each way), so a handler must
/// not block nor compute for long: it gives such work to [`tokio::task::spawn_blocking`] or a task of its own.
pub async fn serve<S>(connection: Connection, service: S, limit: usize)
where
    S: Serve + Clone,
    tarpc::ClientMessage<S::Req>: super::Message,
    tarpc::Response<S::Resp>: super::Message,
{
    let address = connection.address;
    let transport: Transport<tarpc::Response<S::Resp>, tarpc::ClientMessage<S::Req>> = connection.transport();
    let mut requests = pin!(BaseChannel::with_defaults(transport).requests());
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = running.next(), if !running.is_empty() => {}
            // Polling for requests also writes the responses.
            next = requests.next(), if running.len() < limit => match next {
                Some(Ok(request)) => running.push(request.execute(service.clone())),
                Some(Err(error)) => {
                    tracing::debug!(%address, error = %chain(&error), "connection broken");
                    return;
                }
                None => return,
            },
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
