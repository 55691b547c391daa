//! The network between simulated nodes: connections with an order and a delay in each direction, links that can be cut one way, nodes
//! that die with or without a word.
//!
//! As with TCP, messages of one connection and direction arrive in order or not at all; a cut link holds them up, and breaks the
//! connection when that lasts for [`UNTAKEN`]. Handlers of requests run side by side on the other node.

use crate::exec::{self, Host, World, block_on, time};
use crate::replication::{Client, DataRequest, DataResponse, Open, ReplicaHost};
use crate::volume::NodeId;
use futures::channel::{mpsc, oneshot};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tarpc::client::stub::Stub;
use tarpc::client::{Channel, RpcError};
use tarpc::context::Context;
use tarpc::server::Serve;
use tokio_util::sync::CancellationToken;

/// How long a connection stands that nothing passes.
const UNTAKEN: Duration = Duration::from_secs(5);
/// Pause until a link that is cut is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Lines of the log that are kept.
const LOG: usize = 400;

/// The node of a host, and back.
pub(super) fn node(host: Host) -> NodeId {
    NodeId::from_bytes([host as u8; 16])
}

fn host_of(node: NodeId) -> Host {
    Host::from(node.as_bytes()[0])
}

/// A number below `limit`, by the seed.
pub(super) fn chance(limit: u64) -> u64 {
    exec::draw().unwrap_or_default() % limit.max(1)
}

struct Life {
    number: u64,
    data: Arc<ReplicaHost>,
}

struct Socket {
    ends: [Host; 2],
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    lives: BTreeMap<Host, Life>,
    next: u64,
    /// One way.
    cut: BTreeSet<(Host, Host)>,
    /// Longest delay, if it is not the usual.
    slow: BTreeMap<Host, Duration>,
    sockets: Vec<Socket>,
    /// What the nodes logged.
    log: VecDeque<String>,
}

/// See the module's text.
pub(crate) struct Network {
    world: World,
    /// A sabotage: heartbeats are answered by whoever should carry them.
    pub(super) promises: AtomicBool,
    state: Mutex<State>,
}

/// The calling world's.
pub(crate) fn network() -> Option<Arc<Network>> {
    exec::belongings()?.downcast().ok()
}

/// A call on its way.
struct Call {
    context: Context,
    request: DataRequest,
    answer: oneshot::Sender<DataResponse>,
}

/// The calling end of a connection.
pub(crate) struct Connection {
    calls: mpsc::UnboundedSender<Call>,
    stop: CancellationToken,
}

/// What carries calls: a real connection, or one of the simulation.
#[derive(Clone)]
pub(crate) enum Line {
    Real(Channel<DataRequest, DataResponse>),
    Simulated(Arc<Connection>),
}

impl Stub for Line {
    type Req = DataRequest;
    type Resp = DataResponse;

    async fn call(&self, context: Context, request: DataRequest) -> Result<DataResponse, RpcError> {
        let connection = match self {
            Self::Real(channel) => return channel.call(context, request).await,
            Self::Simulated(connection) => connection,
        };
        let lies = network().is_some_and(|network| network.promises.load(Ordering::SeqCst));
        if lies && matches!(request, DataRequest::Heartbeat { .. }) {
            return Ok(DataResponse::Heartbeat(Ok(())));
        }
        if connection.stop.is_cancelled() {
            return Err(RpcError::Shutdown);
        }
        let left = time::left(context.deadline);
        let (answer, answered) = oneshot::channel();
        let call = Call {
            context,
            request,
            answer,
        };
        if connection.calls.unbounded_send(call).is_err() {
            return Err(RpcError::Shutdown);
        }
        tokio::select! {
            biased;
            answer = answered => answer.map_err(|_| RpcError::Shutdown),
            () = connection.stop.cancelled() => Err(RpcError::Shutdown),
            () = time::sleep(left) => Err(RpcError::DeadlineExceeded),
        }
    }
}

impl Network {
    pub(super) fn new(world: &World) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            promises: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    pub(super) fn world(&self) -> &World {
        &self.world
    }

    /// Keeps a line of the log.
    pub(super) fn note(&self, line: String) {
        let mut state = self.state.lock();
        if state.log.len() == LOG {
            state.log.pop_front();
        }
        state.log.push_back(line);
    }

    /// The end of the log.
    pub(super) fn log(&self) -> Vec<String> {
        self.state.lock().log.iter().cloned().collect()
    }

    /// A node takes connections. Its number among all the lives of nodes.
    pub(super) fn born(&self, host: Host, data: Arc<ReplicaHost>) -> u64 {
        let mut state = self.state.lock();
        state.next += 1;
        let number = state.next;
        state.lives.insert(host, Life { number, data });
        number
    }

    /// Whether a node lives that life.
    pub(super) fn lives(&self, host: Host, number: u64) -> bool {
        self.state
            .lock()
            .lives
            .get(&host)
            .is_some_and(|life| life.number == number)
    }

    /// A node's life is over. Its connections break as the other ends hear of it; without a `word`, when nothing passes any more.
    pub(super) fn died(self: &Arc<Self>, host: Host, word: bool) {
        let mut state = self.state.lock();
        state.lives.remove(&host);
        let (dead, left) = std::mem::take(&mut state.sockets)
            .into_iter()
            .partition(|socket| socket.ends.contains(&host));
        state.sockets = left;
        drop(state);
        let dead: Vec<Socket> = dead;
        for socket in dead {
            let network = self.clone();
            self.world.spawn_on(0, "reset", move || {
                block_on(async {
                    let [from, to] = socket.ends;
                    let other = if from == host { to } else { from };
                    if word {
                        let _ = network.carry(host, other, &socket.stop).await;
                    } else {
                        time::sleep(UNTAKEN).await;
                    }
                    socket.stop.cancel();
                });
            });
        }
    }

    pub(super) fn cut(&self, from: Host, to: Host) {
        self.state.lock().cut.insert((from, to));
    }

    pub(super) fn heal(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.slow.clear();
    }

    /// Messages to and from a host take up to so long.
    pub(super) fn slow(&self, host: Host, most: Duration) {
        self.state.lock().slow.insert(host, most);
    }

    pub(super) fn is_cut(&self, from: Host, to: Host) -> bool {
        self.state.lock().cut.contains(&(from, to))
    }

    fn delay(&self, from: Host, to: Host) -> Duration {
        let state = self.state.lock();
        let most = [from, to].iter().filter_map(|host| state.slow.get(host)).max();
        let most = most.copied().unwrap_or(Duration::from_micros(300));
        drop(state);
        Duration::from_micros(50 + chance(most.as_micros() as u64))
    }

    /// A message's way. False: it does not arrive, and the connection is broken.
    pub(super) async fn carry(&self, from: Host, to: Host, stop: &CancellationToken) -> bool {
        let delay = self.delay(from, to);
        let way = async {
            time::sleep(delay).await;
            let mut waited = Duration::ZERO;
            while self.is_cut(from, to) {
                if waited >= UNTAKEN {
                    return false;
                }
                time::sleep(AGAIN).await;
                waited += AGAIN;
            }
            true
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            arrived = way => arrived,
        }
    }

    /// Opens a connection from the calling fiber's host.
    pub(crate) async fn open(self: &Arc<Self>, to: NodeId, deadline: Duration) -> Result<Open, String> {
        let (from, to) = (exec::host(), host_of(to));
        let stop = CancellationToken::new();
        let opening = async {
            // The first message of TCP may get lost, and is repeated.
            if !self.carry(from, to, &stop).await || !self.carry(to, from, &stop).await {
                return Err("no answer in time".to_owned());
            }
            let state = self.state.lock();
            let life = state.lives.get(&to).map(|life| life.number);
            let own = state.lives.get(&from).map(|life| life.number);
            match (own, life) {
                (Some(_), Some(number)) => Ok(number),
                _ => Err("connection refused".to_owned()),
            }
        };
        let number = time::timeout(deadline, opening)
            .await
            .map_err(|_| "no answer in time".to_owned())??;
        let (calls, queue) = mpsc::unbounded();
        self.state.lock().sockets.push(Socket {
            ends: [from, to],
            stop: stop.clone(),
        });
        let network = self.clone();
        let halted = stop.clone();
        self.world
            .spawn_on(0, "connection", move || network.pass(from, to, number, queue, &halted));
        let connection = Connection {
            calls,
            stop: stop.clone(),
        };
        Ok(Open {
            client: Client::from(Line::Simulated(Arc::new(connection))),
            driver: None,
            stop,
        })
    }

    /// Carries a connection's messages both ways until it breaks.
    fn pass(
        self: Arc<Self>,
        from: Host,
        to: Host,
        number: u64,
        queue: mpsc::UnboundedReceiver<Call>,
        stop: &CancellationToken,
    ) {
        let (answers, answered) = mpsc::unbounded::<(oneshot::Sender<DataResponse>, DataResponse)>();
        let there = async {
            let mut queue = queue;
            while let Some(call) = queue.next().await {
                if !self.carry(from, to, stop).await {
                    return;
                }
                let service = match self.state.lock().lives.get(&to) {
                    Some(life) if life.number == number => life.data.service_for(node(from)),
                    _ => return,
                };
                let (answers, stop) = (answers.clone(), stop.clone());
                self.world.spawn_on(to, "request", move || {
                    let handled = block_on(async {
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => None,
                            handled = service.serve(call.context, call.request) => handled.ok(),
                        }
                    });
                    if let Some(response) = handled {
                        let _ = answers.unbounded_send((call.answer, response));
                    }
                });
            }
        };
        let back = async {
            let mut answered = answered;
            while let Some((answer, response)) = answered.next().await {
                if !self.carry(to, from, stop).await {
                    return;
                }
                let _ = answer.send(response);
            }
        };
        block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = there.boxed() => {}
                () = back.boxed() => {}
            }
        });
        stop.cancel();
        self.state.lock().sockets.retain(|socket| !socket.stop.is_cancelled());
    }
}
