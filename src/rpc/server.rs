//! The listening side: accepts connections, checks who calls, hands each to the handler of its kind.
//!
//! Bounds: [`HELLO_DEADLINE`] for handshake and hello together; [`MAX_WAITING`] connections that are not through with these (one more ends the one that
//! has waited longest, so a flood of silent ones keeps nobody out); [`MAX_CONNECTIONS`] of proven nodes and [`MAX_ENROLLING`] of nodes that want a certificate at once,
//! more are refused with a reason. Stopping drops every connection and waits until their tasks have ended.

use super::{
    hello::{Hello, Identity, Kind, LENGTH, Refusal},
    lanes,
    peer::prepare,
    secure::Secure,
    transport::{Socket, Transport},
};
use crate::volume::{ClusterId, NodeId};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};
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
/// Connections of nodes that want a certificate, served at once.
const MAX_ENROLLING: usize = 16;
/// Connections whose handshake and hello are not done.
const MAX_WAITING: usize = 256;
/// Time a caller has for the handshake, to send its hello and to take the answer.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after the system could not accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An accepted or opened connection, its hello done.
pub struct Connection {
    /// Node at the other end, as its certificate proves; of a connection of kind enrol that was accepted, as it says.
    pub node: NodeId,
    /// Its cluster, the same; `None`: it is joining.
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
            places: Places {
                proven: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
                enrolling: Arc::new(Semaphore::new(MAX_ENROLLING)),
            },
            waiting: Arc::default(),
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
    places: Places,
    waiting: Arc<Mutex<Waiting>>,
}

/// Room for connections after their hello.
#[derive(Clone)]
struct Places {
    proven: Arc<Semaphore>,
    enrolling: Arc<Semaphore>,
}

/// Connections before their hello, the oldest first.
#[derive(Default)]
struct Waiting {
    next: u64,
    list: VecDeque<(u64, IpAddr, CancellationToken)>,
}

impl Waiting {
    /// Adds one. If there are too many, the oldest of the address that has most is given up: a handshake takes milliseconds, so whoever is in
    /// earnest is through long before its turn comes, however many others do nothing.
    fn add(&mut self, address: IpAddr) -> (u64, CancellationToken) {
        if self.list.len() >= MAX_WAITING {
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            for (_, from, _) in &self.list {
                *counts.entry(*from).or_default() += 1;
            }
            let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(from, _)| from);
            let oldest = self.list.iter().position(|(_, from, _)| Some(*from) == most);
            if let Some((_, _, given_up)) = oldest.and_then(|at| self.list.remove(at)) {
                given_up.cancel();
            }
        }
        let number = self.next;
        self.next += 1;
        let stop = CancellationToken::new();
        self.list.push_back((number, address, stop.clone()));
        (number, stop)
    }

    fn remove(&mut self, number: u64) {
        self.list.retain(|(other, ..)| *other != number);
    }
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, address)) => self.admit(socket, address),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts the task of one connection: handshake, hello, then its handler, where connections of its kind belong.
    fn admit(&self, socket: TcpStream, address: SocketAddr) {
        let identity = self.identity.clone();
        let handlers = Arc::clone(&self.handlers);
        let places = self.places.clone();
        let stop = self.stop.clone();
        let deadline = self.hello_deadline;
        let tasks = self.tasks.clone();
        let waiting = Arc::clone(&self.waiting);
        let (number, given_up) = waiting.lock().add(address.ip());
        self.tasks.spawn(async move {
            let greeted = tokio::select! {
                () = stop.cancelled() => return,
                () = given_up.cancelled() => Err(io::Error::other("too many connections wait for their hello")),
                greeted = time::timeout(deadline, greet(socket, &identity, &handlers, &places)) => match greeted {
                    Ok(greeted) => greeted,
                    Err(_) => Err(io::Error::other("no handshake and hello in time")),
                },
            };
            waiting.lock().remove(number);
            let placed = match greeted {
                Ok(Greeted {
                    socket,
                    hello,
                    admitted: Ok((kind, handler, place)),
                }) => lanes::place(kind, socket).map(|placed| (placed, hello, handler, place)),
                Ok(Greeted {
                    hello,
                    admitted: Err(refusal),
                    ..
                }) => {
                    tracing::debug!(%address, node = %hello.node, reason = %refusal, "connection refused");
                    return;
                }
                Err(error) => Err(error),
            };
            let ((socket, home), hello, handler, place) = match placed {
                Ok(placed) => placed,
                Err(error) => return tracing::debug!(%address, %error, "connection refused"),
            };
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
        });
    }
}

/// A connection after its hello was answered.
struct Greeted {
    socket: Secure,
    hello: Hello,
    admitted: Result<(Kind, Handler, OwnedSemaphorePermit), Refusal>,
}

async fn greet(
    socket: TcpStream,
    identity: &Identity,
    handlers: &HashMap<u8, (Kind, Handler)>,
    places: &Places,
) -> io::Result<Greeted> {
    prepare(&socket)?;
    let keys = identity.locks().keys();
    let keys = keys.ok_or_else(|| io::Error::other("this node has no certificate yet"))?;
    let session = keys.answer().map_err(io::Error::other)?;
    let mut socket = Secure::new(socket, session).await?;
    let mut bytes = [0; LENGTH];
    socket.read_exact(&mut bytes).await?;
    let hello =
        Hello::decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it did not say hello"))?;
    let admitted = hello.admit(&keys, socket.certificate()).and_then(|()| {
        let (kind, handler) = handlers.get(&hello.code).ok_or(Refusal::Kind)?;
        let room = match kind {
            Kind::Enrol => &places.enrolling,
            _ if identity.locks().admit(socket.cut(), hello.node) => &places.proven,
            _ => return Err(Refusal::Deleted),
        };
        let place = Arc::clone(room).try_acquire_owned().map_err(|_| Refusal::Busy)?;
        Ok((*kind, Arc::clone(handler), place))
    });
    let code = admitted.as_ref().err().map_or(0, |refusal| *refusal as u8);
    let answer = Hello::new(identity.node(), Some(keys.cluster), code).encode();
    socket.write_all(&answer).await?;
    socket.flush().await?;
    if admitted.is_err() {
        // Closed in order, or the answer might be lost.
        socket.shutdown().await?;
    }
    Ok(Greeted {
        socket,
        hello,
        admitted,
    })
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
    let transport = transport.answers_first();
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
