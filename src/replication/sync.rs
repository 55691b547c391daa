//! Bringing copies up to date: comparing two copies and sending what differs.
//!
//! [`Master::copy_extent`] makes one extent of a copy equal to another's; activation uses it for the tail, a sync for the
//! whole volume. A sync walks the extents downwards: each step holds the range lock from the extent that it copies to the mark of its
//! [`Replica`], then lowers the mark to it. A write below the mark that skips the copy leaves its
//! extents on a list, which the walk visits too. The lowest extents come last since a file system keeps there what it writes for every
//! fsync: until then the foreground hardly waits for the copy. It runs on a thread of its own, over its own connection.

use super::{
    change::{Failure, View, failures},
    link::{ALL, LinkError, Replica, flatten},
    master::{Master, nothing, over},
    pace::Pace,
    service::{Blocks, Position, Stamp},
    store::{CopyError, Sum, ZERO_SUM},
    wire::{Client, Open},
};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError, EXTENT_BLOCKS, EXTENT_SIZE},
    exec::{
        sync::Mutex,
        task, thread,
        time::{self, Instant},
    },
    rpc::{Kind, Payload, Sums, within},
    volume::{EventKind, NodeId},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tarpc::client::RpcError;
use tokio_util::sync::CancellationToken;

/// Blocks sent in one message.
const RUN: u64 = 256;
/// Extent hashes asked for at once.
const HASHES: usize = 64;
/// Deadline of one message of a sync: it may wait behind others on a busy disk.
const DEADLINE: Duration = Duration::from_secs(30);
/// A flush that takes no longer hardly holds up the foreground's, which wait for the copy from then on.
const QUICK: Duration = Duration::from_secs(1);
/// How often a sync flushes its copy until that is quick.
const FLUSHES: u32 = 5;
/// How often a sync looks whether the foreground is idle.
const YIELD_STEP: Duration = Duration::from_millis(2);

/// What a sync is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Copying,
    Flushing,
    Comparing,
    Joining,
}

impl Phase {
    fn doing(self) -> &'static str {
        match self {
            Self::Connecting => "connecting to the copy",
            Self::Copying => "comparing and sending extents",
            Self::Flushing => "waiting for the copy's disk",
            Self::Comparing => "comparing all hashes once more",
            Self::Joining => "waiting for the control plane",
        }
    }
}

/// How far a sync is.
#[derive(Debug)]
pub(super) struct Progress {
    started: Mutex<Instant>,
    /// What it does, and when it last got on.
    at: Mutex<(Phase, Instant)>,
    attempts: AtomicU64,
    total: AtomicU64,
    done: AtomicU64,
    sent: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Progress {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Mutex::new(Instant::now()),
            at: Mutex::new((Phase::Connecting, Instant::now())),
            attempts: AtomicU64::new(0),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            error: Mutex::new(None),
        })
    }

    fn restart(&self) {
        *self.started.lock() = Instant::now();
        self.enter(Phase::Connecting);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.total.store(0, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.sent.store(0, Ordering::Relaxed);
    }

    fn enter(&self, phase: Phase) {
        *self.at.lock() = (phase, Instant::now());
    }

    /// It got on.
    fn moved(&self) {
        self.at.lock().1 = Instant::now();
    }

    fn idle(&self) -> Duration {
        self.at.lock().1.elapsed()
    }

    pub(super) fn snapshot(&self) -> SyncProgress {
        let done = self.done.load(Ordering::Relaxed);
        let seconds = self.started.lock().elapsed().as_secs_f64().max(0.001);
        SyncProgress {
            bytes_total: self.total.load(Ordering::Relaxed).max(done),
            bytes_done: done,
            // Whole bytes are precise enough.
            bytes_per_second: (done as f64 / seconds) as u64,
            blocks_sent: self.sent.load(Ordering::Relaxed),
            attempts: self.attempts.load(Ordering::Relaxed),
            idle_seconds: self.idle().as_secs(),
            last_error: self.error.lock().clone(),
        }
    }
}

/// How far a sync is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncProgress {
    /// Bytes to compare; grows when the volume grows meanwhile.
    pub bytes_total: u64,
    /// Bytes compared and made equal.
    pub bytes_done: u64,
    /// Mean rate since the sync last started.
    pub bytes_per_second: u64,
    /// Blocks that differed and were sent.
    pub blocks_sent: u64,
    /// Times that it was begun.
    pub attempts: u64,
    /// Seconds since it last got on.
    pub idle_seconds: u64,
    /// Why it had to start again, if it had to.
    pub last_error: Option<String>,
}

/// Why a sync or the equalising of a tail stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum SyncError {
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("the master's copy: {0}")]
    Local(CopyError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("extent {0} differs after it was copied")]
    Differs(u64),
    #[error("the copy was left out meanwhile")]
    Dropped,
    #[error("no progress for {0:?}")]
    Stuck(Duration),
}

impl SyncError {
    /// The failure of the copy's own disk, if it is one.
    fn of_the_copy(&self) -> Option<Failure> {
        match self {
            Self::Link(error) => Some(Failure::from(error)).filter(|failure| failure.by_itself),
            _ => None,
        }
    }
}

/// One of two copies that are compared.
pub(super) enum Side<'a> {
    Local,
    Remote(&'a Replica, &'a Client),
}

impl Master {
    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.environment.runtime.block_on(future)
    }

    fn side_sums(&self, side: &Side<'_>, block: u64, count: u64) -> Result<Vec<Sum>, SyncError> {
        match side {
            Side::Local => self.local.copy().sums(block, count).map_err(SyncError::Local),
            Side::Remote(_, client) => {
                // At most an extent.
                let call = client.block_sums(within(DEADLINE), self.volume, block, count as u32);
                let sums = flatten(self.wait(call), DEADLINE)?;
                match sums.get() {
                    Some(sums) if sums.len() as u64 == count => Ok(sums.to_vec()),
                    _ => Err(LinkError::Copy(CopyError::Invalid("wrong number of sums".to_owned())).into()),
                }
            }
        }
    }

    fn side_read(&self, side: &Side<'_>, block: u64, count: u64) -> Result<Bytes, SyncError> {
        match side {
            Side::Local => {
                let mut buffer = vec![0; count as usize * BLOCK_SIZE];
                match self.local.copy().read(block, &mut buffer) {
                    Ok(()) => Ok(Bytes::from(buffer)),
                    Err(error) => Err(SyncError::Local(error)),
                }
            }
            Side::Remote(_, client) => {
                let call = client.read(within(DEADLINE), self.volume, block, count as u32);
                let (data, _) = flatten(self.wait(call), DEADLINE)?;
                if data.len() as u64 == count * BLOCK_SIZE as u64 {
                    Ok(data.0)
                } else {
                    Err(LinkError::Copy(CopyError::Invalid("wrong number of blocks".to_owned())).into())
                }
            }
        }
    }

    /// Writes a run of blocks, or discards it when `data` is `None`.
    fn side_write(
        &self,
        side: &Side<'_>,
        block: u64,
        count: u64,
        data: Option<Bytes>,
        sums: &[Sum],
    ) -> Result<(), SyncError> {
        let epoch = self.last_view().configuration.epoch;
        let blocks = data.map(|data| Blocks {
            ranges: vec![(block, count as u32)],
            data: vec![Payload(data)],
            sums: Sums::from(sums.to_vec()),
        });
        match side {
            Side::Local => {
                let stamp = self.local_stamp(epoch);
                match &blocks {
                    Some(blocks) => self.local.write(stamp, Position::default(), blocks, false),
                    None => self.local.discard(stamp, Position::default(), block, count),
                }
                .map_err(SyncError::Local)
            }
            Side::Remote(replica, client) => {
                let position = Position::default();
                self.at_epoch(replica, epoch, async |stamp| match blocks.clone() {
                    Some(blocks) => client.write(within(DEADLINE), stamp, position, blocks, false).await,
                    None => client.discard(within(DEADLINE), stamp, position, block, count).await,
                })
            }
        }
    }

    /// Does a change of a copy at `epoch`, or at a later one that the copy knows of already.
    fn at_epoch(
        &self,
        replica: &Replica,
        epoch: u64,
        change: impl AsyncFn(Stamp) -> Result<Result<(), CopyError>, RpcError>,
    ) -> Result<(), SyncError> {
        let mut at = epoch;
        loop {
            let stamp = replica.current_stamp(at)?;
            match flatten(self.wait(change(stamp)), DEADLINE) {
                Ok(()) => return Ok(()),
                Err(LinkError::Copy(CopyError::Stale { epoch: theirs, .. })) if theirs > at => {
                    at = self.wait(self.catch_up(at, theirs))?;
                    if at < theirs {
                        return Err(SyncError::Dropped);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes an extent of `target` equal to `source`'s, under a lock of its range; returns the blocks that differed.
    pub(super) fn copy_extent(&self, extent: u64, source: &Side<'_>, target: &Side<'_>) -> Result<u64, SyncError> {
        let first = extent * EXTENT_BLOCKS;
        let count = EXTENT_BLOCKS.min(self.blocks().saturating_sub(first));
        if count == 0 {
            return Ok(0);
        }
        let want = self.side_sums(source, first, count)?;
        let have = self.side_sums(target, first, count)?;
        let mut differed = 0;
        let mut at = 0;
        while at < count {
            let index = at as usize;
            if want[index] == have[index] {
                at += 1;
                continue;
            }
            // A run of blocks that differ, all of them zero or none.
            let zero = want[index] == ZERO_SUM;
            let mut end = at + 1;
            while end < count
                && end - at < RUN
                && want[end as usize] != have[end as usize]
                && (want[end as usize] == ZERO_SUM) == zero
            {
                end += 1;
            }
            let (block, run) = (first + at, end - at);
            // Read in any case: a sum may be what is wrong, and must not be spread. What a mended block became counts.
            let data = self.read_what_can_be(source, block, run)?;
            // What was read has just been compared with them.
            let sums = self.side_sums(source, block, run)?;
            let data = sums.iter().any(|sum| *sum != ZERO_SUM).then_some(data);
            self.side_write(target, block, run, data, &sums)?;
            differed += run;
            at = end;
        }
        Ok(differed)
    }

    /// Reads blocks to copy. One that is bad on every copy comes as zeros: they do not fit its sum, so it stays bad, and the others are
    /// copied all the same.
    fn read_what_can_be(&self, source: &Side<'_>, block: u64, count: u64) -> Result<Bytes, SyncError> {
        match self.read_mending(source, block, count) {
            Err(SyncError::Device(DeviceError::Corrupt { .. })) => {}
            other => return other,
        }
        let mut data = Vec::with_capacity(count as usize * BLOCK_SIZE);
        for block in block..block + count {
            match self.read_mending(source, block, 1) {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(SyncError::Device(DeviceError::Corrupt { .. })) => data.extend_from_slice(&[0; BLOCK_SIZE]),
                Err(error) => return Err(error),
            }
        }
        Ok(Bytes::from(data))
    }

    /// Reads blocks to copy; a corrupt one is mended first if it is this node's.
    fn read_mending(&self, source: &Side<'_>, block: u64, count: u64) -> Result<Bytes, SyncError> {
        for _ in 0..count {
            match self.side_read(source, block, count) {
                Err(SyncError::Local(CopyError::Corrupt { block })) => self.mend_locked(block)?,
                // The pattern of an activation: its copy mends it when it is read.
                Err(SyncError::Link(LinkError::Copy(CopyError::Corrupt { block }))) => {
                    return Err(DeviceError::Corrupt { block }.into());
                }
                other => return other,
            }
        }
        self.side_read(source, block, count)
    }

    /// Starts a sync for each of `syncing` that has none, and ends those of others.
    pub(super) fn keep_syncs(&self, syncing: &BTreeSet<NodeId>) {
        let mut syncs = self.syncs.lock();
        syncs.retain(|node, (_, stop)| {
            let stays = syncing.contains(node);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for node in syncing {
            if syncs.contains_key(node) {
                continue;
            }
            let Some(this) = self.this.upgrade() else { return };
            let progress = Progress::new();
            let stop = self.stop.child_token();
            syncs.insert(*node, (Arc::clone(&progress), stop.clone()));
            self.environment.runtime.spawn(run(this, *node, progress, stop));
        }
    }

    /// Progress of the syncs that run, by node.
    #[must_use]
    pub fn sync_progress(&self) -> BTreeMap<NodeId, SyncProgress> {
        self.syncs
            .lock()
            .iter()
            .map(|(node, (progress, _))| (*node, progress.snapshot()))
            .collect()
    }

    /// Connects to a syncing copy, makes it if it is not there, and shows it to writes, which skip it yet.
    async fn add_syncing(&self, node: NodeId) -> Result<(Arc<Replica>, Client, CancellationToken), SyncError> {
        let _changing = self.changing.lock().await;
        self.clear_doubt(node).await?;
        let view = self.view()?;
        if !view.configuration.syncing.contains(&node) {
            return Err(SyncError::Dropped);
        }
        let replica = Replica::new(
            node,
            self.volume,
            self.host.identity().clone(),
            Arc::clone(&self.environment.peers),
            self.options.replica_deadline,
            Arc::clone(&self.sessions),
            false,
        );
        let blocks = self.blocks();
        let epoch = view.configuration.epoch;
        let deadline = self.options.replica_deadline;
        let state = replica.attach(epoch, Some(blocks), deadline).await?;
        let Open { client, stop, .. } = replica.open(Kind::Sync, deadline).await?;
        if state.blocks < blocks {
            let stamp = replica.current_stamp(epoch)?;
            flatten(client.grow(within(deadline), stamp, blocks).await, deadline)?;
        }
        let mut next = View::clone(&view);
        for old in next.replicas.iter().filter(|old| old.node == node) {
            old.give_up();
        }
        next.replicas.retain(|old| old.node != node);
        next.replicas.push(Arc::clone(&replica));
        self.install(next);
        Ok((replica, client, stop))
    }

    /// If it is not known whether a node's copy has joined the in-sync set: makes sure that it has not. Under `changing`.
    async fn clear_doubt(&self, node: NodeId) -> Result<(), DeviceError> {
        let view = self.view()?;
        let in_doubt: Vec<_> = view
            .replicas
            .iter()
            .filter(|replica| replica.node == node && replica.is_joining())
            .map(|replica| (Arc::clone(replica), Failure::from("its sync failed")))
            .collect();
        self.fail_locked(in_doubt, Instant::now()).await
    }

    /// Everything is copied: the copy joins the in-sync set.
    async fn complete(&self, replica: &Arc<Replica>, reason: &str) -> Result<(), SyncError> {
        let _changing = self.changing.lock().await;
        let started = Instant::now();
        loop {
            let view = self.view()?;
            if replica.is_dropped() || !view.has(replica) || !view.configuration.syncing.contains(&replica.node) {
                return Err(SyncError::Dropped);
            }
            let mut next = View::clone(&view);
            let configuration = &mut next.configuration;
            configuration.syncing.remove(&replica.node);
            configuration.in_sync.insert(replica.node);
            let wanted = configuration.replicas_in_sync().min(view.rule.replicas);
            configuration.established = configuration.established.max(wanted);
            replica.set_joining(true);
            let joined = self.swap(&view, &mut next, reason, started).await?;
            replica.set_joining(false);
            if !joined {
                continue;
            }
            let unfenced = self.fence_all(next.configuration.epoch, &next.replicas).await?;
            self.install(next);
            self.syncs.lock().remove(&replica.node);
            if !unfenced.is_empty() {
                self.fail_locked(failures(unfenced), started).await?;
            }
            return Ok(());
        }
    }

    /// One attempt, on a blocking thread.
    fn sync_once(&self, node: NodeId, progress: &Progress, stop: &CancellationToken) -> Result<(), SyncError> {
        let (replica, client, connection) = self.wait(self.add_syncing(node))?;
        let (interrupted, closed) = (stop.clone(), connection.clone());
        let _close = connection.drop_guard();
        // Whatever waits for an answer then gets none.
        self.environment.runtime.spawn(async move {
            tokio::select! {
                biased;
                () = interrupted.cancelled() => closed.cancel(),
                () = closed.cancelled() => {}
            }
        });
        let result = self.walk(&replica, &client, progress, stop);
        if result.is_err() {
            // Writes need not wait for it any more; the next attempt brings a new one.
            if let Err(error) = self.wait(self.fail_replica(&replica, "its sync failed")) {
                tracing::debug!(volume = %self.volume, %node, %error, "leaving out a copy whose sync failed");
            }
        }
        result
    }

    /// A syncing copy's own disk failed: it is lost again, and the controller decides when and where there is another attempt.
    async fn lose_syncing(&self, node: NodeId, failure: &Failure) -> Result<(), DeviceError> {
        let _changing = self.changing.lock().await;
        let started = Instant::now();
        loop {
            let view = self.view()?;
            if !view.configuration.syncing.contains(&node) {
                return Ok(());
            }
            let mut next = View::clone(&view);
            next.reason.clone_from(&failure.why);
            next.configuration.lose(node, time::wall(), failure.by_itself);
            next.replicas.retain(|replica| {
                if replica.node == node {
                    replica.give_up();
                }
                replica.node != node
            });
            if !self.swap(&view, &mut next, &failure.why, started).await? {
                continue;
            }
            let unfenced = self.fence_all(next.configuration.epoch, &next.replicas).await?;
            self.syncs.lock().remove(&node);
            self.install(next);
            return self.fail_locked(failures(unfenced), started).await;
        }
    }

    fn walk(
        &self,
        replica: &Arc<Replica>,
        client: &Client,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> Result<(), SyncError> {
        let mut extents: BTreeSet<u64> = self
            .local
            .copy()
            .allocated_extents()
            .map_err(SyncError::Local)?
            .into_iter()
            .collect();
        let end = self.blocks().div_ceil(EXTENT_BLOCKS);
        extents.extend(self.remote_extents(client)?.into_iter().filter(|extent| *extent < end));
        progress.enter(Phase::Copying);
        progress
            .total
            .store(extents.len() as u64 * EXTENT_SIZE, Ordering::Relaxed);
        let mut pace = Pacer::new(self);
        // Nobody but this walk changes the copy below its mark, so its hashes may be asked for ahead.
        let mut hashes: BTreeMap<u64, Sum> = BTreeMap::new();
        let mut flushes = 0;
        loop {
            pace.rest(replica, stop)?;
            let mark = replica.mark();
            let listed = extents.range(..mark).next_back().copied();
            let skipped = replica.next_skipped(mark);
            let Some(next) = [listed, skipped].into_iter().flatten().max() else {
                // What it got until now goes to its disk while nobody else's flush waits for that.
                if flushes < FLUSHES {
                    let started = Instant::now();
                    self.flush_copy(replica, client)?;
                    progress.moved();
                    flushes = if over(started, QUICK) { flushes + 1 } else { FLUSHES };
                    continue;
                }
                // Nothing below the mark, as far as known: hold all writes for a moment to be sure. Also those above it, which
                // are not flushed there: they end before the flush that follows begins.
                let _range = self.ranges.lock(vec![(0, u64::MAX)]);
                if replica.next_skipped(mark).is_none() {
                    replica.set_mark(ALL);
                    break;
                }
                continue;
            };
            if listed == Some(next) && !hashes.contains_key(&next) {
                hashes = self.fetch_hashes(client, extents.range(..=next).rev().take(HASHES).copied().collect())?;
            }
            let _range = self
                .ranges
                .lock(vec![(next * EXTENT_BLOCKS, mark.saturating_mul(EXTENT_BLOCKS))]);
            if replica.next_skipped(mark).is_some_and(|higher| higher > next) {
                continue;
            }
            let local = self.local.copy().extent_hash(next).map_err(SyncError::Local)?;
            if hashes.get(&next) != Some(&local) {
                let sent = self.copy_extent(next, &Side::Local, &Side::Remote(replica, client))?;
                progress.sent.fetch_add(sent, Ordering::Relaxed);
                self.stats.sent(sent);
            }
            replica.forget_skipped(next);
            replica.set_mark(next);
            progress.done.fetch_add(EXTENT_SIZE, Ordering::Relaxed);
            progress.moved();
            extents.insert(next);
        }
        progress.enter(Phase::Flushing);
        self.flush_copy(replica, client)?;
        progress.enter(Phase::Comparing);
        for batch in extents.iter().copied().collect::<Vec<_>>().chunks(HASHES) {
            pace.rest(replica, stop)?;
            self.check_equal(client, batch)?;
            progress.moved();
        }
        self.tell_whole(replica, client)?;
        progress.enter(Phase::Joining);
        let sent = progress.sent.load(Ordering::Relaxed);
        let reason = format!("copy complete, {sent} blocks sent");
        self.wait(self.complete(replica, &reason))
    }

    /// Flushes a syncing copy.
    fn flush_copy(&self, replica: &Replica, client: &Client) -> Result<(), SyncError> {
        let epoch = self.view()?.configuration.epoch;
        self.at_epoch(replica, epoch, async |stamp| {
            client.flush(within(DEADLINE), stamp).await
        })
    }

    /// Tells a syncing copy that it holds everything, by a write of nothing.
    fn tell_whole(&self, replica: &Replica, client: &Client) -> Result<(), SyncError> {
        let epoch = self.view()?.configuration.epoch;
        let position = self.settled_now();
        self.at_epoch(replica, epoch, async |stamp| {
            client.write(within(DEADLINE), stamp, position, nothing(), false).await
        })
    }

    /// Compares the hashes of some extents while no write is in flight there.
    fn check_equal(&self, client: &Client, extents: &[u64]) -> Result<(), SyncError> {
        let ranges = extents
            .iter()
            .map(|extent| (extent * EXTENT_BLOCKS, (extent + 1) * EXTENT_BLOCKS))
            .collect();
        let _range = self.ranges.lock(ranges);
        let theirs = self.fetch_hashes(client, extents.to_vec())?;
        for extent in extents {
            let local = self.local.copy().extent_hash(*extent).map_err(SyncError::Local)?;
            if theirs.get(extent) != Some(&local) {
                return Err(SyncError::Differs(*extent));
            }
        }
        Ok(())
    }

    pub(super) fn fetch_hashes(&self, client: &Client, extents: Vec<u64>) -> Result<BTreeMap<u64, Sum>, SyncError> {
        let call = client.extent_hashes(within(DEADLINE), self.volume, extents.clone());
        let hashes = flatten(self.wait(call), DEADLINE)?;
        match hashes.get() {
            Some(hashes) if hashes.len() == extents.len() => {
                Ok(extents.into_iter().zip(hashes.iter().copied()).collect())
            }
            _ => Err(LinkError::Copy(CopyError::Invalid("wrong number of hashes".to_owned())).into()),
        }
    }

    /// Lets calls of the foreground go first, for a bounded time, so that whoever waits always moves on.
    pub(super) fn give_way(&self, patience: Duration) {
        let started = Instant::now();
        while self.in_foreground() && started.elapsed() < patience {
            thread::sleep(YIELD_STEP);
        }
    }
}

/// Keeps a sync's pace.
struct Pacer<'a> {
    master: &'a Master,
    started: Instant,
    pace: Pace,
}

impl<'a> Pacer<'a> {
    fn new(master: &'a Master) -> Self {
        Self {
            master,
            started: Instant::now(),
            pace: Pace::new(Duration::ZERO, master.load(), master.options.sync_yield),
        }
    }

    /// Lets the foreground go first where it is due; an error if the sync is over.
    fn rest(&mut self, replica: &Replica, stop: &CancellationToken) -> Result<(), SyncError> {
        loop {
            if stop.is_cancelled() || replica.is_dropped() {
                return Err(SyncError::Dropped);
            }
            // Calls may wait for this very copy.
            if self.master.last_view().blocked().is_some() {
                return Ok(());
            }
            let syncs = self.master.syncs.lock().len();
            match self.pace.next(self.started.elapsed(), self.master.load(), syncs) {
                None => return Ok(()),
                Some(rest) => thread::sleep(rest),
            }
        }
    }
}

/// Attempts in a row that end with an error before the sync counts as stuck.
const STUCK_AFTER: u32 = 3;

/// Syncs one copy until it is complete or no longer wanted.
async fn run(master: Arc<Master>, node: NodeId, progress: Arc<Progress>, stop: CancellationToken) {
    let mut pause = master.options.sync_retry;
    let longest = pause * 64;
    let mut in_a_row = 0;
    loop {
        let attempt = attempt(&master, node, &progress, &stop).await;
        let error = match attempt {
            Ok(()) => {
                master.stats.synced();
                tracing::info!(volume = %master.volume, %node, "copy is in sync");
                return;
            }
            Err(error) => error,
        };
        if stop.is_cancelled() {
            return;
        }
        if let Some(failure) = error.of_the_copy() {
            tracing::warn!(volume = %master.volume, %node, why = %failure.why, "sync failed, the copy is lost again");
            match master.lose_syncing(node, &failure).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(volume = %master.volume, %node, %error, "the copy stays syncing"),
            }
        }
        let error = error.to_string();
        tracing::warn!(volume = %master.volume, %node, %error, "sync starts again");
        in_a_row += 1;
        if in_a_row == STUCK_AFTER {
            master.tell(EventKind::SyncStuck, Some(node), &error);
        }
        *progress.error.lock() = Some(error);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = time::sleep(pause) => {}
        }
        pause = (pause * 2).min(longest);
    }
}

/// One attempt under a watchdog: one that makes no progress is told of and interrupted.
async fn attempt(
    master: &Arc<Master>,
    node: NodeId,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<(), SyncError> {
    let stall = master.options.sync_stall;
    let interrupt = stop.child_token();
    progress.restart();
    let mut work = {
        let (master, progress, interrupt) = (Arc::clone(master), Arc::clone(progress), interrupt.clone());
        task::spawn_blocking(move || master.sync_once(node, &progress, &interrupt))
    };
    loop {
        tokio::select! {
            biased;
            done = &mut work => {
                return match done {
                    Ok(Err(_)) if interrupt.is_cancelled() && !stop.is_cancelled() => Err(SyncError::Stuck(stall)),
                    Ok(result) => result,
                    Err(error) => Err(SyncError::Device(DeviceError::Io(error.to_string()))),
                };
            }
            () = time::sleep(stall / 4) => {
                if progress.idle() < stall || interrupt.is_cancelled() {
                    continue;
                }
                let (phase, _) = *progress.at.lock();
                let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
                let why = format!("nothing for {stall:?} while {}, {done} of {total} bytes done", phase.doing());
                tracing::warn!(volume = %master.volume, %node, %why, "a sync makes no progress, interrupting it");
                master.tell(EventKind::SyncStuck, Some(node), &why);
                *progress.error.lock() = Some(why);
                interrupt.cancel();
            }
        }
    }
}
