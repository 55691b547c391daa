//! A copy on another node, as the master sees it: one fenced connection at a time, and how far the copy is mirrored.
//!
//! A connection counts only after its `fence`: the session in it is new, so whatever the connection before it still carries
//! is refused by the copy. A call that lost its connection may therefore be repeated on the next one.

use super::{
    env::Peers,
    promise::Promised,
    service::{Blocks, CopyState, Position, Stamp},
    store::CopyError,
    wire::{self, Client, Open},
};
use crate::{
    exec::{sync::Mutex, time::Instant},
    rpc::{Driver, Identity, Kind, Limits, Payload, Sums, within},
    volume::{NodeId, VolumeId},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tarpc::client::RpcError;
use tokio_util::sync::CancellationToken;

/// The mark of a copy that holds everything.
pub(super) const ALL: u64 = u64::MAX;
/// The mark of a copy that holds nothing yet: every extent is below it.
const NONE: u64 = ALL - 1;
/// Bytes of data up to which a message is small: a larger one's copy into the socket takes longer than the wake-up of the thread that
/// can do it meanwhile.
const SMALL: usize = 32 << 10;
/// Calls in flight to one copy.
const MAX_CALLS: usize = 256;

/// Why a call to another copy gave no result.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The copy answered with an error.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// No connection, or it broke during the call.
    #[error("{0}")]
    Lost(String),
    /// No answer before the deadline.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

#[derive(Clone)]
struct Link {
    client: Client,
    driver: Option<Driver>,
    session: u64,
    stop: CancellationToken,
}

/// See the module's text.
pub(super) struct Replica {
    pub(super) node: NodeId,
    volume: VolumeId,
    identity: Identity,
    peers: Arc<dyn Peers>,
    deadline: Duration,
    /// The master's numbering of sessions.
    sessions: Arc<AtomicU64>,
    link: Mutex<Option<Link>>,
    attaching: tokio::sync::Mutex<Option<u64>>,
    /// Writes to extents from it on are mirrored, those below it are skipped; [`ALL`] for a copy in sync.
    mark: AtomicU64,
    /// Extents that writes skipped, to be copied yet.
    skipped: Mutex<BTreeSet<u64>>,
    /// Left out for good; its sync must not complete.
    dropped: AtomicBool,
    /// It is being put in sync, or may have been: the answer of the control plane is not known.
    joining: AtomicBool,
    pub(super) promised: Promised,
}

impl Replica {
    pub(super) fn new(
        node: NodeId,
        volume: VolumeId,
        identity: Identity,
        peers: Arc<dyn Peers>,
        deadline: Duration,
        sessions: Arc<AtomicU64>,
        in_sync: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            volume,
            identity,
            peers,
            deadline,
            sessions,
            link: Mutex::new(None),
            attaching: tokio::sync::Mutex::new(None),
            mark: AtomicU64::new(if in_sync { ALL } else { NONE }),
            skipped: Mutex::default(),
            dropped: AtomicBool::new(false),
            joining: AtomicBool::new(false),
            promised: Promised::default(),
        })
    }

    pub(super) fn is_joining(&self) -> bool {
        self.joining.load(Ordering::SeqCst)
    }

    pub(super) fn set_joining(&self, joining: bool) {
        self.joining.store(joining, Ordering::SeqCst);
    }

    pub(super) fn mark(&self) -> u64 {
        self.mark.load(Ordering::SeqCst)
    }

    pub(super) fn set_mark(&self, mark: u64) {
        self.mark.store(mark, Ordering::SeqCst);
    }

    /// Whether a write to `extents` goes to this copy; if not, they are remembered. Called under the write's range lock, so that
    /// the mark cannot pass them meanwhile. A write that spans the mark goes whole: blocks below it are compared later.
    pub(super) fn covers(&self, extents: &[u64]) -> bool {
        let mark = self.mark();
        if mark == ALL {
            return true;
        }
        if extents.iter().any(|extent| *extent >= mark) {
            if extents.iter().any(|extent| *extent < mark) {
                self.skipped.lock().extend(extents);
            }
            return true;
        }
        self.skipped.lock().extend(extents);
        false
    }

    /// The last skipped extent below `mark`.
    pub(super) fn next_skipped(&self, mark: u64) -> Option<u64> {
        self.skipped.lock().range(..mark).next_back().copied()
    }

    pub(super) fn forget_skipped(&self, extent: u64) {
        self.skipped.lock().remove(&extent);
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Ends the connection and marks the copy as left out.
    pub(super) fn give_up(&self) {
        self.dropped.store(true, Ordering::SeqCst);
        self.detach();
    }

    fn detach(&self) {
        if let Some(link) = self.link.lock().take() {
            link.stop.cancel();
        }
    }

    fn link(&self) -> Result<Link, LinkError> {
        self.link
            .lock()
            .clone()
            .ok_or_else(|| LinkError::Lost("not connected".to_owned()))
    }

    /// Opens a connection to the copy's node and drives it until it is lost or `stop` is cancelled.
    pub(super) async fn open(&self, kind: Kind, deadline: Duration) -> Result<Open, LinkError> {
        let limits = Limits {
            in_flight: MAX_CALLS,
            ..Limits::default()
        };
        wire::open(&*self.peers, self.node, kind, &self.identity, limits, deadline).await
    }

    /// Connects and fences the copy at `epoch`, unless a connection is up (then only fences, if its epoch is lower than
    /// that). A copy that was reopened after it lost unflushed writes is not the copy that this master knew: an error.
    pub(super) async fn attach(
        &self,
        epoch: u64,
        create: Option<u64>,
        deadline: Duration,
    ) -> Result<CopyState, LinkError> {
        let started = Instant::now();
        let left = || deadline.saturating_sub(started.elapsed());
        let mut incarnation = self.attaching.lock().await;
        let up = self.link.lock().clone().filter(|link| !link.stop.is_cancelled());
        let fenced = match up {
            Some(link) => match self.fence(&link, epoch, create, left()).await {
                // It was lost, and this is the first to notice.
                Err(LinkError::Lost(_)) => None,
                answer => Some((link, answer)),
            },
            None => None,
        };
        let (link, answer) = match fenced {
            Some(fenced) => fenced,
            None => {
                self.detach();
                let Open { client, driver, stop } = self.open(Kind::Data, left()).await?;
                let link = Link {
                    client,
                    driver,
                    session: self.sessions.fetch_add(1, Ordering::SeqCst),
                    stop,
                };
                let answer = self.fence(&link, epoch, create, left()).await;
                (link, answer)
            }
        };
        let state = match answer {
            Ok(state) => state,
            Err(error) => {
                link.stop.cancel();
                self.detach();
                return Err(error);
            }
        };
        let reopened = incarnation.is_some_and(|known| known != state.incarnation);
        let failure = match &state.failed {
            Some(why) => Some(why.clone()),
            None if reopened && !state.intact => {
                Some("its machine restarted and may have lost acknowledged writes".to_owned())
            }
            None => None,
        };
        if let Some(why) = failure {
            link.stop.cancel();
            self.detach();
            return Err(LinkError::Copy(CopyError::Failed(why)));
        }
        *incarnation = Some(state.incarnation);
        let old = self.link.lock().replace(link.clone());
        if let Some(old) = old.filter(|old| old.session != link.session) {
            old.stop.cancel();
        }
        if self.is_dropped() {
            self.detach();
        }
        Ok(state)
    }

    async fn fence(
        &self,
        link: &Link,
        epoch: u64,
        create: Option<u64>,
        deadline: Duration,
    ) -> Result<CopyState, LinkError> {
        let stamp = self.stamp(link, epoch);
        flatten(link.client.fence(within(deadline), stamp, create).await, deadline)
    }

    fn stamp(&self, link: &Link, epoch: u64) -> Stamp {
        Stamp {
            volume: self.volume,
            epoch,
            session: link.session,
        }
    }

    /// The stamp of the connection that is up.
    pub(super) fn current_stamp(&self, epoch: u64) -> Result<Stamp, LinkError> {
        Ok(self.stamp(&self.link()?, epoch))
    }

    pub(super) async fn change(&self, epoch: u64, change: Change) -> Result<(), LinkError> {
        let link = self.link()?;
        let stamp = self.stamp(&link, epoch);
        let context = within(self.deadline);
        let result = match change {
            Change::Write {
                position,
                blocks,
                flush,
            } => {
                // One that is not complete is flushed at the end of its sync: until then a flush would only wait for what the sync sent.
                let flush = flush && self.mark() == ALL;
                link.client.write(context, stamp, position, blocks, flush).await
            }
            Change::Flush => link.client.flush(context, stamp).await,
            Change::Discard { position, block, count } => {
                link.client.discard(context, stamp, position, block, count).await
            }
            Change::Grow { blocks } => link.client.grow(context, stamp, blocks).await,
        };
        flatten(result, self.deadline)
    }

    /// Asks whether the copy still takes this master's stamp; with the answer it promises not to serve as a master for a while.
    pub(super) async fn heartbeat(&self, epoch: u64) -> Result<(), LinkError> {
        let link = self.link()?;
        let stamp = self.stamp(&link, epoch);
        let asked = Instant::now();
        flatten(link.client.heartbeat(within(self.deadline), stamp).await, self.deadline)?;
        self.promised.since(asked);
        Ok(())
    }

    pub(super) async fn repair(&self, epoch: u64, block: u64, data: Payload) -> Result<(), LinkError> {
        let link = self.link()?;
        let stamp = self.stamp(&link, epoch);
        let call = link.client.repair(within(self.deadline), stamp, block, data);
        flatten(call.await, self.deadline)
    }

    pub(super) async fn read(&self, block: u64, count: u32) -> Result<(Payload, Sums), LinkError> {
        let client = self.link()?.client;
        flatten(
            client.read(within(self.deadline), self.volume, block, count).await,
            self.deadline,
        )
    }

    /// The engine of the connection that is up.
    pub(super) fn driver(&self) -> Option<Driver> {
        self.link.lock().as_ref()?.driver.clone()
    }

    pub(super) fn client(&self) -> Result<Client, LinkError> {
        Ok(self.link()?.client)
    }
}

/// A change that goes to every copy.
#[derive(Clone)]
pub(super) enum Change {
    Write {
        position: Position,
        blocks: Blocks,
        flush: bool,
    },
    Flush,
    Discard {
        position: Position,
        block: u64,
        count: u64,
    },
    Grow {
        blocks: u64,
    },
}

impl Change {
    /// Whether its message is so small that whoever makes it should send it too.
    pub(super) fn is_small(&self) -> bool {
        self.bytes() <= SMALL as u64
    }

    /// Bytes of blocks in it.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Write { blocks, .. } => blocks.data.iter().map(|data| data.len() as u64).sum(),
            Self::Flush | Self::Discard { .. } | Self::Grow { .. } => 0,
        }
    }
}

/// Makes one result of an RPC's two.
pub(super) fn flatten<T>(result: Result<Result<T, CopyError>, RpcError>, deadline: Duration) -> Result<T, LinkError> {
    match result {
        Ok(answer) => answer.map_err(LinkError::Copy),
        Err(RpcError::DeadlineExceeded) => Err(LinkError::Late(deadline)),
        Err(error) => Err(LinkError::Lost(error.to_string())),
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.detach();
    }
}
