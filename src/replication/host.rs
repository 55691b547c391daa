//! All the copies of this node, and the service that other nodes reach them by.
//!
//! Copies open at first use. A missing copy is an error unless the caller says that it may be created. Disk work runs on
//! blocking threads, one hand-off a call, and goes on when the caller gives up.

use super::{
    Master,
    entry::{Entry, split},
    env::Parts,
    promise::Promise,
    service::{Blocks, Caller, CopyState, Data, MAX_DATA, MAX_EXTENTS, Position, RemoteError, Stamp},
    store::{Copies, Copy, CopyError, Found},
};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, EXTENT_BLOCKS},
    exec::{sync::Mutex, task, time::Instant},
    rpc::{self, Connection, Identity, Payload, Sums},
    volume::{NodeId, VolumeId},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};
use tarpc::context::Context;
use tokio::sync::Semaphore;

/// Requests of one connection handled at once.
const MAX_REQUESTS: usize = 256;
/// Device calls from other nodes that may wait on blocking threads at once, for instance while a volume is suspended: so many
/// that threads are left for the calls that end the suspension.
const MAX_DEVICE_CALLS: usize = 128;

type Slot = Arc<Mutex<Option<Arc<Entry>>>>;

/// The copies on this node, and the masters that are active on it.
pub struct ReplicaHost {
    identity: Identity,
    copies: Arc<dyn Copies>,
    entries: Mutex<HashMap<VolumeId, Slot>>,
    masters: Mutex<HashMap<VolumeId, Arc<Master>>>,
    /// When it was last forgotten what a copy promised: at this process's start, or when a copy was opened again.
    forgot: Mutex<Instant>,
    device_calls: Arc<Semaphore>,
    parts: OnceLock<Arc<dyn Parts>>,
}

impl ReplicaHost {
    /// A host for the copies behind `copies`.
    #[must_use]
    pub fn new(identity: Identity, copies: Arc<dyn Copies>) -> Arc<Self> {
        Arc::new(Self {
            identity,
            copies,
            entries: Mutex::default(),
            masters: Mutex::default(),
            forgot: Mutex::new(Instant::now()),
            device_calls: Arc::new(Semaphore::new(MAX_DEVICE_CALLS)),
            parts: OnceLock::new(),
        })
    }

    /// From now on only nodes that have a part in a volume may do something with it. Said once.
    pub fn set_parts(&self, parts: Arc<dyn Parts>) {
        // A node joins one cluster in its life.
        let _ = self.parts.set(parts);
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// Serves a data or sync connection until it closes; the handler for both kinds.
    pub async fn serve(self: Arc<Self>, connection: Connection) {
        let peer = connection.node;
        rpc::serve(connection, DataServer { host: self, peer }.serve(), MAX_REQUESTS).await;
    }

    /// The service as `peer` sees it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn service_for(self: &Arc<Self>, peer: NodeId) -> super::service::ServeData<DataServer> {
        let host = Arc::clone(self);
        DataServer { host, peer }.serve()
    }

    fn slot(&self, volume: VolumeId) -> Slot {
        Arc::clone(self.entries.lock().entry(volume).or_default())
    }

    /// The copy, if it is open and nobody is busy opening or removing it.
    fn open_entry(&self, volume: VolumeId) -> Option<Arc<Entry>> {
        self.entries.lock().get(&volume)?.try_lock()?.clone()
    }

    /// The open copy. Blocks.
    pub(super) fn entry(&self, volume: VolumeId) -> Result<Arc<Entry>, CopyError> {
        // The common case must not create a slot for any id that a peer makes up.
        let slot = self.entries.lock().get(&volume).cloned();
        if let Some(entry) = slot.as_ref().and_then(|slot| slot.lock().clone()) {
            return Ok(entry);
        }
        if !self.copies.list()?.contains(&volume) {
            return Err(CopyError::Missing);
        }
        let slot = self.slot(volume);
        let mut open = slot.lock();
        if let Some(entry) = &*open {
            return Ok(Arc::clone(entry));
        }
        let (copy, found) = self.copies.open(volume)?;
        tracing::info!(%volume, clean = found.clean, hot = found.hot.len(), "copy opened");
        Ok(self.enter(&mut open, copy, found))
    }

    /// Puts a copy that was opened into its slot.
    fn enter(&self, slot: &mut Option<Arc<Entry>>, copy: Arc<dyn Copy>, found: Found) -> Arc<Entry> {
        let promised = Promise::before(*self.forgot.lock());
        let entry = Arc::new(Entry::new(copy, found, promised));
        Arc::clone(slot.insert(entry))
    }

    /// The open copy, made empty if there is none. Blocks.
    pub(super) fn entry_or_create(&self, volume: VolumeId, blocks: u64, epoch: u64) -> Result<Arc<Entry>, CopyError> {
        match self.entry(volume) {
            Err(CopyError::Missing) => {}
            Ok(entry) if entry.copy().failed().is_some() => self.reopen(volume, &entry),
            other => return other,
        }
        match self.entry(volume) {
            Err(CopyError::Missing) => {}
            other => return other,
        }
        let slot = self.slot(volume);
        let mut open = slot.lock();
        if let Some(entry) = &*open {
            return Ok(Arc::clone(entry));
        }
        let copy = self.copies.create(volume, blocks, epoch)?;
        tracing::info!(%volume, blocks, "copy created");
        let found = Found {
            clean: true,
            same_boot: true,
            hot: Vec::new(),
        };
        Ok(self.enter(&mut open, copy, found))
    }

    /// The copy after it failed, as after a crash. Blocks.
    pub(super) fn opened_again(&self, volume: VolumeId, failed: &Arc<Entry>) -> Result<Arc<Entry>, CopyError> {
        self.reopen(volume, failed);
        self.entry(volume)
    }

    /// Forgets a failed copy, so that it is opened again as after a crash: its disk may be well by now.
    fn reopen(&self, volume: VolumeId, failed: &Arc<Entry>) {
        let slot = self.slot(volume);
        let mut open = slot.lock();
        if open.as_ref().is_some_and(|entry| Arc::ptr_eq(entry, failed)) {
            tracing::info!(%volume, "a copy that failed is opened again");
            failed.give_up();
            *self.forgot.lock() = Instant::now();
            *open = None;
        }
    }

    /// The state of a copy. Blocks.
    ///
    /// # Errors
    /// [`CopyError::Missing`] or the disk's.
    pub fn state(&self, volume: VolumeId) -> Result<CopyState, CopyError> {
        Ok(self.entry(volume)?.state())
    }

    /// Every copy on this node with its state, or why it cannot be opened. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<BTreeMap<VolumeId, Result<CopyState, CopyError>>, CopyError> {
        let volumes = self.copies.list()?;
        Ok(volumes.into_iter().map(|volume| (volume, self.state(volume))).collect())
    }

    /// Removes the copy of a volume; no copy is no error. Calls that hold it fail. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove(&self, volume: VolumeId) -> Result<(), CopyError> {
        let slot = self.slot(volume);
        let mut open = slot.lock();
        if let Some(entry) = open.take()
            && let Err(error) = entry.copy().close()
        {
            tracing::warn!(%volume, %error, "closing a copy that is being removed");
        }
        *self.forgot.lock() = Instant::now();
        self.copies.remove(volume)?;
        drop(open);
        self.entries.lock().remove(&volume);
        tracing::info!(%volume, "copy removed");
        Ok(())
    }

    /// Closes every copy in order, at the end of the daemon. Masters must have stopped. Blocks.
    pub fn close(&self) {
        let slots: Vec<(VolumeId, Slot)> = self.entries.lock().drain().collect();
        for (volume, slot) in slots {
            let Some(entry) = slot.lock().take() else { continue };
            if let Err(error) = entry.copy().close() {
                tracing::warn!(%volume, %error, "a copy did not close in order");
            }
        }
    }

    pub(super) fn set_master(&self, master: &Arc<Master>) {
        self.masters.lock().insert(master.volume(), Arc::clone(master));
    }

    /// Forgets a master that stopped, unless another took its place.
    pub(super) fn clear_master(&self, master: &Master) {
        let mut masters = self.masters.lock();
        if masters
            .get(&master.volume())
            .is_some_and(|known| std::ptr::eq(&raw const **known, master))
        {
            masters.remove(&master.volume());
        }
    }

    /// The master that is active on this node, if there is one.
    #[must_use]
    pub fn master(&self, volume: VolumeId) -> Option<Arc<Master>> {
        self.masters.lock().get(&volume).cloned()
    }
}

/// The service on one connection.
#[derive(Clone)]
pub(crate) struct DataServer {
    host: Arc<ReplicaHost>,
    /// Who calls.
    peer: NodeId,
}

impl DataServer {
    /// Runs disk work on a blocking thread.
    async fn on_disk<T: Send + 'static>(
        self,
        work: impl FnOnce(&ReplicaHost) -> Result<T, CopyError> + Send + 'static,
    ) -> Result<T, CopyError> {
        task::spawn_blocking(move || work(&self.host))
            .await
            .unwrap_or_else(|error| Err(CopyError::Failed(format!("the request ended early: {error}"))))
    }

    /// The same on an open copy, for the node whose fence is in force.
    async fn on_copy<T: Send + 'static>(
        self,
        volume: VolumeId,
        work: impl FnOnce(&Entry) -> Result<T, CopyError> + Send + 'static,
    ) -> Result<T, CopyError> {
        let peer = self.peer;
        self.on_disk(move |host| work(&*obeying(host.entry(volume)?, peer)?))
            .await
    }

    async fn on_device<T: Send + 'static>(
        self,
        volume: VolumeId,
        caller: Caller,
        work: impl FnOnce(&Master) -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let master = self.host.master(volume).ok_or(RemoteError::NotMaster)?;
        // Held by the thread: it goes on when the caller gives up. The semaphore is never closed.
        let place = Arc::clone(&self.host.device_calls).acquire_owned().await;
        task::spawn_blocking(move || {
            let _place = place;
            let _gate = master.enter_remote(caller)?;
            work(&master)
        })
        .await
        .unwrap_or_else(|error| Err(RemoteError::Io(format!("the request ended early: {error}"))))
    }
}

/// The copy, if this node's fence is in force.
fn obeying(entry: Arc<Entry>, peer: NodeId) -> Result<Arc<Entry>, CopyError> {
    if entry.obeys(peer) {
        return Ok(entry);
    }
    // What is in force is not told: it would be the next guess.
    Err(CopyError::Stale {
        epoch: entry.copy().epoch(),
        session: 0,
    })
}

/// The bytes of `count` blocks, if a message may carry so many.
fn length_of(count: u32) -> Option<usize> {
    let length = (count as usize).checked_mul(BLOCK_SIZE)?;
    (length > 0 && length <= MAX_DATA).then_some(length)
}

impl Data for DataServer {
    async fn fence(self, _: Context, stamp: Stamp, create: Option<u64>) -> Result<CopyState, CopyError> {
        let peer = self.peer;
        let known = self
            .host
            .open_entry(stamp.volume)
            .is_some_and(|entry| entry.obeys(peer));
        if !known
            && let Some(parts) = self.host.parts.get()
            && !parts.holds(stamp.volume, peer).await
        {
            tracing::warn!(volume = %stamp.volume, %peer, "a node that holds no copy of a volume wanted to be its master");
            return Err(CopyError::Invalid("the node has no part in the volume".to_owned()));
        }
        self.on_disk(move |host| {
            let entry = match create {
                Some(blocks) => host.entry_or_create(stamp.volume, blocks, stamp.epoch)?,
                None => host.entry(stamp.volume)?,
            };
            entry.fence_for(stamp, Some(peer))
        })
        .await
    }

    async fn write(
        self,
        _: Context,
        stamp: Stamp,
        position: Position,
        blocks: Blocks,
        flush: bool,
    ) -> Result<(), CopyError> {
        if !flush
            && let Some(entry) = self.host.open_entry(stamp.volume)
            && entry.obeys(self.peer)
            && let Some(result) = entry.write_quickly(stamp, position, &blocks)
        {
            return result;
        }
        self.on_copy(stamp.volume, move |copy| copy.write(stamp, position, &blocks, flush))
            .await
    }

    async fn flush(self, _: Context, stamp: Stamp) -> Result<(), CopyError> {
        self.on_copy(stamp.volume, move |copy| copy.flush(stamp)).await
    }

    async fn discard(
        self,
        _: Context,
        stamp: Stamp,
        position: Position,
        block: u64,
        count: u64,
    ) -> Result<(), CopyError> {
        self.on_copy(stamp.volume, move |copy| copy.discard(stamp, position, block, count))
            .await
    }

    async fn grow(self, _: Context, stamp: Stamp, blocks: u64) -> Result<(), CopyError> {
        self.on_copy(stamp.volume, move |copy| copy.grow(stamp, blocks)).await
    }

    async fn repair(self, _: Context, stamp: Stamp, block: u64, data: Payload) -> Result<(), CopyError> {
        self.on_copy(stamp.volume, move |copy| copy.repair(stamp, block, &data))
            .await
    }

    async fn read(self, _: Context, volume: VolumeId, block: u64, count: u32) -> Result<(Payload, Sums), CopyError> {
        self.on_disk(move |host| {
            let length = length_of(count).ok_or_else(|| CopyError::Invalid("read too large".to_owned()))?;
            let entry = host.entry(volume)?;
            let mut buffer = vec![0; length];
            entry.copy().read(block, &mut buffer)?;
            let sums = entry.copy().sums(block, u64::from(count))?;
            Ok((Payload(Bytes::from(buffer)), Sums::from(sums)))
        })
        .await
    }

    async fn extent_hashes(self, _: Context, volume: VolumeId, extents: Vec<u64>) -> Result<Sums, CopyError> {
        self.on_disk(move |host| {
            if extents.len() > MAX_EXTENTS {
                return Err(CopyError::Invalid("too many extents".to_owned()));
            }
            let entry = host.entry(volume)?;
            let hashes: Result<Vec<_>, _> = extents.iter().map(|extent| entry.copy().extent_hash(*extent)).collect();
            Ok(Sums::from(hashes?))
        })
        .await
    }

    async fn block_sums(self, _: Context, volume: VolumeId, block: u64, count: u32) -> Result<Sums, CopyError> {
        self.on_disk(move |host| {
            if u64::from(count) > EXTENT_BLOCKS {
                return Err(CopyError::Invalid("too many blocks".to_owned()));
            }
            let sums = host.entry(volume)?.copy().sums(block, u64::from(count))?;
            Ok(Sums::from(sums))
        })
        .await
    }

    async fn allocated(self, _: Context, volume: VolumeId, from: u64) -> Result<Vec<u64>, CopyError> {
        self.on_disk(move |host| {
            let all = host.entry(volume)?.copy().allocated_extents()?;
            Ok(all
                .into_iter()
                .filter(|extent| *extent >= from)
                .take(MAX_EXTENTS)
                .collect())
        })
        .await
    }

    async fn verify_extent(self, _: Context, volume: VolumeId, extent: u64) -> Result<Vec<u64>, CopyError> {
        self.on_disk(move |host| host.entry(volume)?.copy().verify_extent(extent))
            .await
    }

    async fn status(self, _: Context, volume: VolumeId) -> Result<CopyState, CopyError> {
        self.on_disk(move |host| host.state(volume)).await
    }

    async fn device_open(self, _: Context, volume: VolumeId, caller: Caller) -> Result<u64, RemoteError> {
        let master = self.host.master(volume).ok_or(RemoteError::NotMaster)?;
        // An older claim is told that it is over.
        if caller.attachment >= master.attachment()
            && let Some(parts) = self.host.parts.get()
            && !parts.mounts(volume, self.peer).await
        {
            // To one whose claim is not known here yet it says: ask again.
            return Err(RemoteError::NotMaster);
        }
        task::spawn_blocking(move || {
            master.open_remote(caller)?;
            Ok(master.blocks())
        })
        .await
        .unwrap_or_else(|error| Err(RemoteError::Io(format!("the request ended early: {error}"))))
    }

    async fn device_read(
        self,
        _: Context,
        volume: VolumeId,
        caller: Caller,
        block: u64,
        count: u32,
    ) -> Result<Payload, RemoteError> {
        self.on_device(volume, caller, move |master| {
            let length = length_of(count).ok_or_else(|| RemoteError::Io("read too large".to_owned()))?;
            let mut buffer = vec![0; length];
            master.read(block, &mut buffer)?;
            Ok(Payload(Bytes::from(buffer)))
        })
        .await
    }

    async fn device_write(
        self,
        _: Context,
        volume: VolumeId,
        caller: Caller,
        blocks: Blocks,
        flush: bool,
    ) -> Result<(), RemoteError> {
        self.on_device(volume, caller, move |master| {
            split(&blocks).map_err(|error| RemoteError::Io(error.to_string()))?;
            Ok(master.write_blocks(&blocks, flush)?)
        })
        .await
    }

    async fn device_discard(
        self,
        _: Context,
        volume: VolumeId,
        caller: Caller,
        block: u64,
        count: u64,
    ) -> Result<(), RemoteError> {
        self.on_device(volume, caller, move |master| Ok(master.discard(block, count)?))
            .await
    }

    async fn device_flush(self, _: Context, volume: VolumeId, caller: Caller) -> Result<(), RemoteError> {
        self.on_device(volume, caller, |master| Ok(master.flush()?)).await
    }

    async fn heartbeat(self, _: Context, stamp: Stamp) -> Result<(), CopyError> {
        let peer = self.peer;
        if let Some(entry) = self.host.open_entry(stamp.volume)
            && entry.obeys(peer)
            && let Some(answer) = entry.promise_quickly(stamp, peer)
        {
            return answer;
        }
        self.on_copy(stamp.volume, move |copy| copy.promise(stamp, peer)).await
    }

    async fn ping(self, _: Context) {}

    async fn device_blocks(self, _: Context, volume: VolumeId, caller: Caller) -> Result<u64, RemoteError> {
        self.on_device(volume, caller, |master| Ok(master.blocks())).await
    }
}
