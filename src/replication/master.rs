//! The master: a volume's block device on the node that orders its writes.
//!
//! Blocking calls from many threads. A write takes its ranges, is handed to every connection, is written locally by the
//! calling thread while the others work, and returns when all have answered: one wake-up a replica each way, block bytes shared by
//! reference. What happens when one does not answer is in `change`.

use super::{
    change::{State, View},
    entry::{Entry, extents_of},
    env::{ConfigStore, Observer, Peers},
    fanout::Fanout,
    group::Group,
    host::ReplicaHost,
    link::{ALL, Change, LinkError, Replica},
    meters::Meters,
    notes::Notes,
    pace::Load,
    range::RangeLock,
    service::{Blocks, Caller, MAX_DATA, MAX_RANGES, Position, RemoteError, Stamp},
    stats::Stats,
    store::{CopyError, sum_of},
    sync::Progress,
};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError, EXTENT_BLOCKS, Write},
    exec::{
        Runtime,
        sync::{Condvar, Mutex, RwLock, RwLockReadGuard},
        thread,
        time::Instant,
    },
    metrics::Histogram,
    rpc::{Driver, Held, Payload, Sums},
    volume::{NodeId, VolumeId},
};
use futures::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Times that a call follows a change of epoch before it gives up on the copy.
pub(super) const MAX_FOLLOWS: usize = 8;

/// Most blocks discarded by one message (256 MiB), so that it is done well within a replica's deadline.
const MAX_DISCARD: u64 = 64 * EXTENT_BLOCKS;
/// Times that a block is repaired again while the configuration changes, and the pause between them.
const REPAIR_TRIES: u32 = 200;
const REPAIR_PAUSE: Duration = Duration::from_millis(5);

/// How patient a master is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A replica that has not answered by then leaves the in-sync set.
    pub replica_deadline: Duration,
    /// Time for one quick attempt to reconnect to a replica whose connection broke.
    pub reconnect_deadline: Duration,
    /// Time that an activation waits for in-sync copies to answer before it goes on without them.
    pub activation_deadline: Duration,
    /// Longest rest of a sync while the volume is in use: it copies at least an extent in between.
    pub sync_yield: Duration,
    /// First pause before a failed sync starts again; doubles up to 64 times that.
    pub sync_retry: Duration,
    /// A sync that does not get on for so long is interrupted and starts again.
    pub sync_stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replica_deadline: Duration::from_secs(5),
            reconnect_deadline: Duration::from_millis(500),
            activation_deadline: Duration::from_secs(10),
            sync_yield: Duration::from_secs(1),
            sync_retry: Duration::from_millis(500),
            sync_stall: Duration::from_secs(60),
        }
    }
}

/// What a master needs from its node. Clones share.
#[derive(Clone)]
pub struct Environment {
    /// The control store.
    pub config: Arc<dyn ConfigStore>,
    /// Where nodes are.
    pub peers: Arc<dyn Peers>,
    /// Who hears of what happens.
    pub observer: Arc<dyn Observer>,
    /// The runtime that drives connections.
    pub runtime: Runtime,
}

/// Numbers of the writes in flight.
#[derive(Default)]
struct Tail {
    next: u64,
    in_flight: BTreeSet<u64>,
}

/// See the module's text.
pub struct Master {
    pub(super) volume: VolumeId,
    pub(super) host: Arc<ReplicaHost>,
    pub(super) local: Arc<Entry>,
    pub(super) environment: Environment,
    pub(super) options: Options,
    /// Numbers of sessions, this master's own first.
    pub(super) sessions: Arc<AtomicU64>,
    pub(super) local_session: u64,
    /// The epoch of the activation.
    pub(super) term: u64,
    pub(super) ranges: RangeLock,
    pub(super) state: Mutex<State>,
    pub(super) state_changed: Condvar,
    /// Serialises changes of the configuration. Never held while waiting for a range.
    pub(super) changing: tokio::sync::Mutex<()>,
    tail: Mutex<Tail>,
    flushes: Group,
    pub(super) confirmations: Group,
    /// Device calls: a sync yields to them.
    foreground: Foreground,
    blocks: AtomicU64,
    /// The latest mount's claim: device calls of older ones are refused.
    attachment: AtomicU64,
    remote: RwLock<Caller>,
    pub(super) syncs: Mutex<BTreeMap<NodeId, (Arc<Progress>, CancellationToken)>>,
    /// Cancelled when the master is fenced or stopped.
    pub(super) stop: CancellationToken,
    pub(super) stats: Stats,
    pub(super) meters: Meters,
    pub(super) notes: Notes,
    pub(super) this: Weak<Self>,
}

/// To which copies a change goes besides the local one.
#[derive(Clone, Copy)]
enum Reach<'a> {
    /// All in sync, and those syncing whose mark has passed one of the extents.
    Mirrored(&'a [u64]),
    /// All that hold everything.
    Complete,
    /// All.
    Everyone,
}

enum Outcome {
    Done,
    /// Not enough copies are left to acknowledge it; it is to be done again when there are.
    Suspended,
}

#[derive(Default)]
struct Foreground {
    in_progress: AtomicUsize,
    ended: AtomicU64,
    /// Nanoseconds that those took which ended.
    took: AtomicU64,
}

/// A device call in progress.
struct Busy<'a> {
    foreground: &'a Foreground,
    latency: &'a Histogram,
    since: Instant,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        self.latency.observe(took);
        // Enough for five centuries.
        self.foreground
            .took
            .fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.foreground.ended.fetch_add(1, Ordering::Relaxed);
        self.foreground.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Parts of a master that activation has made ready.
pub(super) struct Parts {
    pub(super) volume: VolumeId,
    pub(super) host: Arc<ReplicaHost>,
    pub(super) local: Arc<Entry>,
    pub(super) environment: Environment,
    pub(super) options: Options,
    pub(super) sessions: Arc<AtomicU64>,
    pub(super) local_session: u64,
    pub(super) attachment: u64,
    pub(super) view: View,
}

impl Master {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let blocks = parts.local.copy().blocks();
        let term = parts.view.configuration.epoch;
        Arc::new_cyclic(|this| Self {
            volume: parts.volume,
            host: parts.host,
            local: parts.local,
            environment: parts.environment,
            options: parts.options,
            sessions: parts.sessions,
            local_session: parts.local_session,
            term,
            ranges: RangeLock::default(),
            state: Mutex::new(State::new(parts.view)),
            state_changed: Condvar::new(),
            changing: tokio::sync::Mutex::new(()),
            tail: Mutex::new(Tail {
                next: 1,
                in_flight: BTreeSet::new(),
            }),
            flushes: Group::default(),
            confirmations: Group::default(),
            foreground: Foreground::default(),
            blocks: AtomicU64::new(blocks),
            attachment: AtomicU64::new(parts.attachment),
            remote: RwLock::new(Caller {
                attachment: parts.attachment,
                session: 0,
            }),
            syncs: Mutex::default(),
            stop: CancellationToken::new(),
            stats: Stats::default(),
            meters: Meters::default(),
            notes: Notes::default(),
            this: this.clone(),
        })
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.host.node()
    }

    /// Cancelled once this master will never serve again, because it was fenced or stopped.
    #[must_use]
    pub fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How long calls took, and what went over the network.
    #[must_use]
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    pub(super) fn local_stamp(&self, epoch: u64) -> Stamp {
        Stamp {
            volume: self.volume,
            epoch,
            session: self.local_session,
        }
    }

    pub(super) fn in_foreground(&self) -> bool {
        self.foreground.in_progress.load(Ordering::Relaxed) > 0
    }

    /// What device calls have come to.
    pub(super) fn load(&self) -> Load {
        Load {
            ended: self.foreground.ended.load(Ordering::Relaxed),
            took: Duration::from_nanos(self.foreground.took.load(Ordering::Relaxed)),
            in_progress: self.in_foreground(),
        }
    }

    fn busy<'a>(&'a self, latency: &'a Histogram) -> Busy<'a> {
        self.foreground.in_progress.fetch_add(1, Ordering::Relaxed);
        Busy {
            foreground: &self.foreground,
            latency,
            since: Instant::now(),
        }
    }

    fn begin(&self) -> Position {
        let mut tail = self.tail.lock();
        let number = tail.next;
        tail.next += 1;
        tail.in_flight.insert(number);
        Position {
            term: self.term,
            number,
            // It is not empty.
            settled: tail.in_flight.first().copied().unwrap_or(number),
        }
    }

    fn settle_position(&self, position: Position) {
        self.tail.lock().in_flight.remove(&position.number);
    }

    fn check_range(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        let blocks = self.blocks();
        if count == 0 || block.checked_add(count).is_none_or(|end| end > blocks) {
            return Err(DeviceError::OutOfRange { block, count, blocks });
        }
        Ok(())
    }

    /// Does a change on every copy that `reach` names. `local` does it here.
    fn on_all(
        &self,
        reach: Reach<'_>,
        change: &Change,
        local: &dyn Fn(Stamp) -> Result<(), CopyError>,
        may_suspend: bool,
    ) -> Result<Outcome, DeviceError> {
        let view = self.view()?;
        if may_suspend && view.blocked().is_some() {
            return Ok(Outcome::Suspended);
        }
        let epoch = view.configuration.epoch;
        let targets: Vec<&Arc<Replica>> = view
            .replicas
            .iter()
            .filter(|replica| match reach {
                Reach::Mirrored(extents) => replica.covers(extents),
                Reach::Complete => replica.mark() == ALL,
                Reach::Everyone => true,
            })
            .collect();
        // The others work while this thread writes.
        let calls = Self::send(&targets, epoch, change);
        let here = local(self.local_stamp(epoch));
        let results = calls.finish();
        let (sent, lost) = (
            targets.len() as u64,
            results.iter().filter(|result| result.is_err()).count(),
        );
        self.meters.sent.add(sent, sent * change.bytes(), lost as u64);
        if here.is_ok() && results.iter().all(Result::is_ok) {
            return Ok(Outcome::Done);
        }
        let failed = targets
            .into_iter()
            .zip(results)
            .filter_map(|(replica, result)| Some((Arc::clone(replica), result.err()?)))
            .collect();
        self.follow_up(epoch, change, local, here, failed)?;
        if may_suspend && self.view()?.blocked().is_some() {
            return Ok(Outcome::Suspended);
        }
        Ok(Outcome::Done)
    }

    /// Sends a change to replicas: a small one from this thread, a large one from those of the connections.
    fn send<'a>(targets: &[&'a Arc<Replica>], epoch: u64, change: &Change) -> Fanout<'a, Result<(), LinkError>> {
        let mut drivers = Vec::new();
        if change.is_small() {
            drivers.extend(targets.iter().filter_map(|replica| replica.driver()));
        }
        let held: Vec<Held<'_>> = drivers.iter().map(Driver::hold).collect();
        let calls = Fanout::begin(targets.iter().map(|replica| replica.change(epoch, change.clone())));
        drop(held);
        calls
    }

    /// Brings a change that did not succeed everywhere at once to its end: on every copy that stays in sync.
    fn follow_up(
        &self,
        epoch: u64,
        change: &Change,
        local: &dyn Fn(Stamp) -> Result<(), CopyError>,
        mut here: Result<(), CopyError>,
        failed: Vec<(Arc<Replica>, LinkError)>,
    ) -> Result<(), DeviceError> {
        let runtime = &self.environment.runtime;
        let mut follows = 0;
        let mut at = epoch;
        while let Err(CopyError::Stale { epoch: theirs, .. }) = here {
            follows += 1;
            if follows > MAX_FOLLOWS {
                return Err(DeviceError::Unavailable("its epoch keeps changing".to_owned()));
            }
            at = runtime.block_on(self.catch_up(at, theirs))?;
            here = local(self.local_stamp(at));
        }
        if let Err(error) = here {
            return Err(runtime.block_on(self.hand_over(&error)));
        }
        let settled = runtime.block_on(join_all(
            failed
                .iter()
                .map(|(replica, error)| self.follow_replica(epoch, replica, error.clone(), change)),
        ));
        settled.into_iter().collect()
    }

    /// A change that waits while the volume may not be written.
    fn change(
        &self,
        latency: &Histogram,
        ranges: &[(u64, u64)],
        extents: &[u64],
        make: &dyn Fn(Position) -> Change,
        local: &dyn Fn(Stamp, Position) -> Result<(), CopyError>,
    ) -> Result<(), DeviceError> {
        let _busy = self.busy(latency);
        loop {
            self.wait_writable()?;
            let _range = self.ranges.lock(ranges.to_vec());
            let position = self.begin();
            let change = make(position);
            let outcome = self.on_all(Reach::Mirrored(extents), &change, &|stamp| local(stamp, position), true)?;
            // After an error the number stays in flight: the copies must remember that they may differ there.
            self.settle_position(position);
            if let Outcome::Done = outcome {
                return Ok(());
            }
        }
    }

    /// Writes one message's worth of blocks, whose ranges and sums fit their data.
    pub(super) fn write_blocks(&self, blocks: &Blocks, flush: bool) -> Result<(), DeviceError> {
        let mut ranges = Vec::with_capacity(blocks.ranges.len());
        let mut extents = Vec::new();
        let mut total = 0;
        for (block, count) in &blocks.ranges {
            let count = u64::from(*count);
            self.check_range(*block, count)?;
            ranges.push((*block, *block + count));
            extents.extend(extents_of(*block, count));
            total += count;
        }
        extents.sort_unstable();
        extents.dedup();
        self.change(
            &self.meters.write,
            &ranges,
            &extents,
            &|position| Change::Write {
                position,
                blocks: blocks.clone(),
                flush,
            },
            &|stamp, position| self.local.write(stamp, position, blocks, flush),
        )
        .inspect_err(|_| self.meters.write_failed())?;
        self.stats.wrote(total * BLOCK_SIZE as u64);
        if flush {
            self.stats.flushed();
        }
        Ok(())
    }

    fn flush_now(&self) -> Result<(), DeviceError> {
        let _busy = self.busy(&self.meters.flush);
        self.on_all(Reach::Complete, &Change::Flush, &|stamp| self.local.flush(stamp), false)?;
        self.stats.flushed();
        Ok(())
    }

    /// Tells every copy that holds everything that it does, by a write of nothing: all before it is settled.
    pub(super) fn tell_all_whole(&self) -> Result<(), DeviceError> {
        let position = self.settled_now();
        let change = Change::Write {
            position,
            blocks: nothing(),
            flush: false,
        };
        let local = |stamp| self.local.write(stamp, position, &nothing(), false);
        self.on_all(Reach::Complete, &change, &local, false)?;
        Ok(())
    }

    /// Where a write of nothing stands among the others.
    pub(super) fn settled_now(&self) -> Position {
        let position = self.begin();
        self.settle_position(position);
        position
    }

    /// Grows the device on every copy. Fewer blocks than now are no error and change nothing. Blocks.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn grow(&self, blocks: u64) -> Result<(), DeviceError> {
        if blocks <= self.blocks() {
            return Ok(());
        }
        self.on_all(
            Reach::Everyone,
            &Change::Grow { blocks },
            &|stamp| self.local.grow(stamp, blocks),
            false,
        )?;
        self.blocks.fetch_max(blocks, Ordering::SeqCst);
        Ok(())
    }

    /// Makes `caller` the one whose calls are taken, after the calls of the one before have ended.
    pub(super) fn open_remote(&self, caller: Caller) -> Result<(), RemoteError> {
        self.raise_attachment(caller.attachment);
        let is_late = |current: &Caller| {
            let known = current.attachment.max(self.attachment.load(Ordering::SeqCst));
            caller.attachment < known || (caller.attachment == current.attachment && caller.session < current.session)
        };
        // One that is too late does not wait for calls in progress.
        if is_late(&self.remote.read_recursive()) {
            return Err(RemoteError::Superseded);
        }
        let mut current = self.remote.write();
        if is_late(&current) {
            return Err(RemoteError::Superseded);
        }
        *current = caller;
        Ok(())
    }

    /// Admits a device call from the network for as long as the guard lives.
    pub(super) fn enter_remote(&self, caller: Caller) -> Result<RwLockReadGuard<'_, Caller>, RemoteError> {
        // Not held up by a session that waits for a suspended write to end: reads go on.
        let current = self.remote.read_recursive();
        if caller.attachment < self.attachment.load(Ordering::SeqCst) {
            return Err(RemoteError::Superseded);
        }
        if *current != caller {
            // It has to open a session first.
            return Err(RemoteError::NotMaster);
        }
        Ok(current)
    }

    /// Refuses older mounts from now on, without waiting for their calls in progress.
    pub(super) fn raise_attachment(&self, attachment: u64) {
        self.attachment.fetch_max(attachment, Ordering::SeqCst);
    }

    /// The latest mount that it has heard of.
    pub(super) fn attachment(&self) -> u64 {
        self.attachment.load(Ordering::SeqCst)
    }

    /// In-sync copies on other nodes.
    fn others(&self) -> Result<Vec<Arc<Replica>>, DeviceError> {
        Ok(self.view()?.in_sync_replicas().cloned().collect())
    }

    /// Replaces a local block that fails its hash by another copy's, and that of any other copy that fails too.
    pub(super) fn mend(&self, block: u64) -> Result<(), DeviceError> {
        let _range = self.ranges.lock(vec![(block, block + 1)]);
        self.mend_locked(block)
    }

    /// The same, while the caller holds the block's range.
    pub(super) fn mend_locked(&self, block: u64) -> Result<(), DeviceError> {
        let mut buffer = vec![0; BLOCK_SIZE];
        match self.local.copy().read(block, &mut buffer) {
            Ok(()) => return Ok(()),
            Err(CopyError::Corrupt { .. }) => self.stats.corrupt(),
            Err(error) => return Err(DeviceError::Io(error.to_string())),
        }
        let runtime = &self.environment.runtime;
        // All are asked: what went bad on one disk may have gone bad on another.
        let mut good: Option<(bool, Payload)> = None;
        let mut bad = Vec::new();
        // What fits this copy's own hash is right, whoever says so. Without one, the hash may be what went bad.
        let own = self.local.copy().sums(block, 1).unwrap_or_default();
        for replica in self.others()? {
            match runtime.block_on(self.ask(&replica, block, 1)) {
                Ok((data, sums)) => match sums.get() {
                    Some([sum]) if data.len() == BLOCK_SIZE && sum_of(&data) == *sum => {
                        let certain = own.first() == Some(sum);
                        if good.as_ref().is_none_or(|(before, _)| certain && !before) {
                            good = Some((certain, data));
                        }
                    }
                    _ => bad.push(replica),
                },
                Err(LinkError::Copy(CopyError::Corrupt { .. })) => bad.push(replica),
                Err(error) => tracing::debug!(volume = %self.volume, block, %error, "asking for a good block"),
            }
        }
        let Some((_, good)) = good else {
            self.note_corrupt(self.node(), block);
            return Err(DeviceError::Corrupt { block });
        };
        let epoch = self.repair_here(block, &good)?;
        self.note_repaired(self.node(), block);
        tracing::warn!(volume = %self.volume, block, "corrupt block repaired from another copy");
        for replica in bad {
            match runtime.block_on(replica.repair(epoch, block, good.clone())) {
                Ok(()) => self.note_repaired(replica.node, block),
                Err(error) => {
                    tracing::warn!(volume = %self.volume, block, node = %replica.node, %error, "not repaired")
                }
            }
        }
        Ok(())
    }

    /// Replaces a block of the local copy; returns the epoch. While the configuration changes the copy may be at an epoch that this master does not count
    /// on yet.
    fn repair_here(&self, block: u64, good: &[u8]) -> Result<u64, DeviceError> {
        let mut tries = 0;
        loop {
            let epoch = self.view()?.configuration.epoch;
            match self.local.repair(self.local_stamp(epoch), block, good) {
                Ok(()) => return Ok(epoch),
                Err(CopyError::Stale { .. }) if tries < REPAIR_TRIES => thread::sleep(REPAIR_PAUSE),
                Err(error) => return Err(DeviceError::Io(error.to_string())),
            }
            tries += 1;
        }
    }

    /// Reads what matches its hashes. The range is the device's.
    fn read_checked(&self, block: u64, count: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        // Each round mends one block of the range.
        for _ in 0..=count {
            match self.local.copy().read(block, buffer) {
                Ok(()) => {
                    self.confirm()?;
                    self.stats.read(buffer.len() as u64);
                    return Ok(());
                }
                Err(CopyError::Corrupt { block }) => self.mend(block)?,
                Err(error) => return self.read_elsewhere(block, buffer, &error),
            }
        }
        Err(DeviceError::Corrupt { block })
    }

    /// Reads from another copy, and counts it.
    async fn ask(&self, replica: &Replica, block: u64, count: u32) -> Result<(Payload, Sums), LinkError> {
        let answer = replica.read(block, count).await;
        let (bytes, lost) = answer.as_ref().map_or((0, 1), |(data, _)| (data.len() as u64, 0));
        self.meters.asked.add(1, bytes, lost);
        answer
    }

    /// Reads from another in-sync copy, when the local disk fails.
    fn read_elsewhere(&self, block: u64, buffer: &mut [u8], error: &CopyError) -> Result<(), DeviceError> {
        for replica in self.others()? {
            let mut done = true;
            for (index, part) in buffer.chunks_mut(MAX_DATA).enumerate() {
                let first = block + (index * MAX_DATA / BLOCK_SIZE) as u64;
                let count = (part.len() / BLOCK_SIZE) as u32;
                match self.environment.runtime.block_on(self.ask(&replica, first, count)) {
                    Ok((data, _)) if data.len() == part.len() => part.copy_from_slice(&data),
                    _ => {
                        done = false;
                        break;
                    }
                }
            }
            if done {
                if let (Some(this), error) = (self.this.upgrade(), error.clone()) {
                    self.environment.runtime.spawn(async move {
                        this.hand_over(&error).await;
                    });
                }
                return self.confirm();
            }
        }
        Err(DeviceError::Io(error.to_string()))
    }
}

impl BlockDevice for Master {
    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let count = (buffer.len() / BLOCK_SIZE) as u64;
        if !buffer.len().is_multiple_of(BLOCK_SIZE) {
            let blocks = self.blocks();
            return Err(DeviceError::OutOfRange { block, count, blocks });
        }
        self.check_range(block, count)?;
        self.check_fenced()?;
        let _busy = self.busy(&self.meters.read);
        self.read_checked(block, count, buffer)
            .inspect_err(|_| self.meters.read_failed())
    }

    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError> {
        let batches = batches(writes).ok_or_else(|| DeviceError::OutOfRange {
            block: writes.first().map_or(0, |write| write.block),
            count: 0,
            blocks: self.blocks(),
        })?;
        if batches.is_empty() && flush {
            return self.flush();
        }
        let last = batches.len().saturating_sub(1);
        for (index, blocks) in batches.iter().enumerate() {
            self.write_blocks(blocks, flush && index == last)?;
        }
        Ok(())
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.check_range(block, count)?;
        let end = block + count;
        let mut block = block;
        while block < end {
            let count = (end - block).min(MAX_DISCARD);
            let extents: Vec<u64> = extents_of(block, count).collect();
            self.change(
                &self.meters.other,
                &[(block, block + count)],
                &extents,
                &|position| Change::Discard { position, block, count },
                &|stamp, position| self.local.discard(stamp, position, block, count),
            )?;
            block += count;
        }
        self.stats.discarded();
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.check_fenced()?;
        self.flushes.join(|| self.flush_now())
    }
}

/// Cuts writes into messages, by reference, and computes their sums, once for all copies. `None`: not whole blocks.
pub(super) fn batches(writes: &[Write]) -> Option<Vec<Blocks>> {
    struct Batch {
        ranges: Vec<(u64, u32)>,
        data: Vec<Payload>,
        sums: Vec<[u8; 32]>,
        size: usize,
    }
    let empty = || Batch {
        ranges: Vec::new(),
        data: Vec::new(),
        sums: Vec::new(),
        size: 0,
    };
    let seal = |batch: Batch| Blocks {
        ranges: batch.ranges,
        data: batch.data,
        sums: Sums::from(batch.sums),
    };
    let mut sealed = Vec::new();
    let mut batch = empty();
    for write in writes {
        if write.data.is_empty() || !write.data.len().is_multiple_of(BLOCK_SIZE) {
            return None;
        }
        let mut block = write.block;
        let mut data = write.data.clone();
        while !data.is_empty() {
            if batch.size == MAX_DATA || batch.ranges.len() == MAX_RANGES {
                sealed.push(seal(std::mem::replace(&mut batch, empty())));
            }
            let part = data.split_to(data.len().min(MAX_DATA - batch.size));
            let count = part.len() / BLOCK_SIZE;
            batch.sums.extend(part.chunks_exact(BLOCK_SIZE).map(sum_of));
            // At most MAX_DATA / BLOCK_SIZE.
            batch.ranges.push((block, count as u32));
            batch.size += part.len();
            batch.data.push(Payload(part));
            block = block.checked_add(count as u64)?;
        }
    }
    if batch.size > 0 {
        sealed.push(seal(batch));
    }
    Some(sealed)
}

/// A write's message without blocks.
pub(super) fn nothing() -> Blocks {
    Blocks {
        ranges: Vec::new(),
        data: Vec::new(),
        sums: Sums::from(Vec::new()),
    }
}

/// Whether the deadline of something that began at `started` has passed.
pub(super) fn over(started: Instant, limit: Duration) -> bool {
    started.elapsed() >= limit
}
