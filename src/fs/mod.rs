//! A POSIX file system on a block device. Knows nothing of replication or FUSE.
//!
//! # Metadata
//! Inodes, directory entries, extents, attributes and free space are rows (`rows`) of a redb database that lives in the device's
//! metadata area (`backend`), so that they are replicated and checked like data. Operations change rows in memory (`store`), under one
//! lock that is never held across a write to the device.
//!
//! # Becoming durable
//! An fsync writes the rows changed since the last one as a single record into the intent log, in the same message as the flush
//! (`log`, `commit`, `order`); fsyncs that wait together share a record. A timer does the same for operations that nobody syncs. A checkpoint
//! puts the rows into the database, in the background. After a crash the log's records are put again: there is no fsck.
//!
//! # Outliving the process
//! A file system that is opened in a [`Memory`] keeps there what is acknowledged and not yet on the device (`memory`): the next process
//! that opens it goes on with every operation, also those that no commit had covered, while the kernel goes on with its caches.
//!
//! # Data
//! File data is written in place, to runs of blocks (`extents`, `alloc`). A freed run becomes free again only after the operation
//! that freed it is durable, no read or write that may know the old place is in flight, and the run was discarded and flushed
//! (`reclaim`): a newly allocated block is durable zeros. Allocations are cut from a window whose bounds are durable before data is
//! written to it, and the next open discards what is left of it (`alloc`). So no crash can show another file's bytes.
//!
//! # Locks
//! `edges` (by inode: exclusive for a write that changes a part of a block), then `state`. `commit` is taken alone.

mod acl;
mod alloc;
mod attr;
mod backend;
mod check;
mod commit;
mod dir;
mod error;
mod extents;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod layout;
mod log;
mod memory;
mod order;
mod orphan;
mod overlay;
mod reclaim;
mod rename;
mod rows;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod types;
mod xattr;

pub use check::CheckReport;
pub use error::FsError;
pub use layout::device_blocks;
pub use memory::Memory;
pub use types::{
    Attr, Caller, DirEntry, FILE_MAX, FileKind, Ino, NAME_MAX, Options, ROOT, Seek, SetAttr, SetTime, StatFs, Time,
};

use crate::block::{BLOCK_SIZE, BlockDevice, Write};
use backend::{Control, MetaArea, Phase};
use commit::{Commit, LogPosition};
use error::posix;
use layout::{DATA_START, Superblock};
use memory::{MemoryLog, Replayed};
use order::Unflushed;
use orphan::References;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use reclaim::{Freed, InFlight, Mark};
use rows::{COUNTERS, Content, Counters, DATA_BLOCKS, Inode, free_key, inode_key, number, orphan_key, pending_key};
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ops::{Bound, Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use store::{Disk, Store};

/// Stripes of the lock for writes into parts of blocks.
const EDGE_STRIPES: usize = 64;

/// The last operations that changed an inode's metadata, by number.
#[derive(Clone, Copy, Debug, Default)]
struct Touched {
    /// Anything.
    any: u64,
    /// More than times: what fdatasync must make durable.
    beyond_times: u64,
}

/// What the operations work on, behind one lock.
struct State {
    store: Store,
    counters: Counters,
    /// Number of the last operation that changed anything.
    op: u64,
    touched: HashMap<Ino, Touched>,
    references: HashMap<Ino, References>,
    freed: Freed,
    log: LogPosition,
    /// Blocks of the data area: the superblock's, or more after growing.
    data_blocks: u64,
    /// Where the search for free runs goes on.
    cursor: u64,
    /// The operation that last refilled the allocation window, shared with [`Core`].
    window_since: Arc<AtomicU64>,
    /// A file with unflushed data replaced another since the last record: the data goes first (`order`).
    data_first: bool,
    /// Of a file system that survives its process.
    memory: Option<MemoryLog>,
    /// The request that the running operation does, once it is done.
    done: Option<u64>,
    /// The kernel knew the file system before this process: its references are not all counted.
    inherited: bool,
}

/// The state while one operation changes it. When a read of the database failed on the way, all that it changed is taken back.
struct Changing<'a> {
    guard: MutexGuard<'a, State>,
    // Names that no field of the state has.
    counters_before: Counters,
    cursor_before: u64,
    freed_before: Mark,
}

impl<'a> Changing<'a> {
    fn new(mut state: MutexGuard<'a, State>) -> Self {
        state.op += 1;
        state.store.begin();
        Self {
            counters_before: state.counters,
            cursor_before: state.cursor,
            freed_before: state.freed.mark(),
            guard: state,
        }
    }
}

impl Deref for Changing<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.guard
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.guard
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let state = &mut *self.guard;
        let done = state.done.take();
        if let Some(memory) = &mut state.memory
            && !state.store.has_failed()
        {
            memory.append(done, state.store.changed());
        }
        if self.guard.store.end() {
            self.guard.counters = self.counters_before;
            self.guard.cursor = self.cursor_before;
            self.guard.freed.back_to(self.freed_before);
        }
    }
}

/// What an opened device holds.
struct Rows {
    /// The intent log's rows over the database's.
    store: Store,
    /// The log's generation that the database names.
    generation: u64,
    /// Records of the log.
    records: u64,
    counters: Counters,
    data_blocks: u64,
}

impl Rows {
    /// Reads the rows; `more` puts those over the intent log's that are in no log on the device, and says how many records they were in.
    fn read(
        device: &dyn BlockDevice,
        disk: &Disk,
        superblock: &Superblock,
        more: impl FnOnce(&mut Store) -> Result<u64, FsError>,
    ) -> Result<Self, FsError> {
        let base = disk.base()?;
        let generation = Disk::generation(&base)?;
        // Far from where counting on could overflow.
        if generation > u64::MAX / 2 {
            return Err(FsError::Format("the intent log's generation makes no sense".into()));
        }
        let mut store = Store::new(base);
        let mut records = 0;
        for generation in [generation, generation + 1] {
            records += log::replay(device, generation, |change| {
                store.replayed(change);
                Ok::<(), FsError>(())
            })?;
        }
        records += more(&mut store)?;
        let counters: Counters = store
            .get(COUNTERS)?
            .and_then(|v| postcard::from_bytes(&v).ok())
            .ok_or_else(|| FsError::Format("the counters' row is missing or damaged".into()))?;
        let grown = store.get(DATA_BLOCKS)?.as_deref().and_then(number);
        let data_blocks = grown.map_or(superblock.data_blocks, |blocks| blocks.max(superblock.data_blocks));
        if DATA_START
            .checked_add(data_blocks)
            .is_none_or(|end| end > device.blocks())
        {
            return Err(FsError::Format("the device is smaller than its file system".into()));
        }
        Ok(Self {
            store,
            generation,
            records,
            counters,
            data_blocks,
        })
    }
}

/// Whether a run is within the data area. What is not would be read, written or discarded over the metadata.
fn in_data_area(start: u64, length: u64, data_blocks: u64) -> bool {
    let end = start.checked_add(length);
    length > 0 && start >= DATA_START && end.is_some_and(|end| end <= DATA_START.saturating_add(data_blocks))
}

/// The key of names' hashes.
fn hash_key(superblock: &Superblock) -> [u8; 32] {
    blake3::derive_key("storageos directory entries v1", &superblock.secret)
}

struct Core {
    /// Asks the kernel whether it still has an inode, if it knew the file system before this process.
    kernel: Option<Box<dyn Fn(Ino) -> bool + Send + Sync>>,
    /// Requests that an earlier process did and may not have answered.
    done_before: BTreeSet<u64>,
    device: Arc<dyn BlockDevice>,
    superblock: Superblock,
    options: Options,
    hash_key: [u8; 32],
    state: Mutex<State>,
    commit: Arc<Mutex<Commit>>,
    committed: Arc<Condvar>,
    /// Whether `commit.refusal` is set, for a look without the lock.
    refusing: AtomicBool,
    edges: Vec<RwLock<()>>,
    /// Held by the one that reclaims.
    reclaiming: Mutex<()>,
    in_flight: Mutex<InFlight>,
    drained: Condvar,
    /// The operation that last refilled the allocation window: durable before data goes to the window's blocks.
    window_since: Arc<AtomicU64>,
    /// `commit.durable`, for a look without the lock.
    durable: AtomicU64,
    /// Bytes of the rows in the database.
    row_bytes: AtomicU64,
    /// Gone once closed: another daemon may have the volume then.
    disk: Mutex<Option<Arc<Disk>>>,
    /// Data was written since the timer last looked.
    unflushed: AtomicBool,
    unflushed_files: Unflushed,
    /// Of the storage that the database is on now.
    control: Mutex<Arc<Control>>,
    closing: AtomicBool,
}

/// A mounted file system. All calls block and may be made from any thread; the result of a call is durable after an fsync of what
/// it changed, or [`Options::commit_interval`] later.
pub struct FileSystem {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl FileSystem {
    /// Makes an empty file system for `capacity` bytes of file data on a device of [`device_blocks`] blocks.
    ///
    /// # Errors
    /// The device's.
    pub fn format(device: &Arc<dyn BlockDevice>, capacity: u64) -> Result<(), FsError> {
        Superblock::clear(&**device, capacity / BLOCK_SIZE as u64)?;
        let secret = *uuid::Uuid::new_v4().as_bytes();
        let superblock = Superblock::new(capacity, secret);
        // Nobody is told: an error is this call's.
        let control = Control::new(Box::new(|_| {}));
        let disk = Disk::open(MetaArea::create(device.clone(), control), 1 << 20)?;
        let mut store = Store::new(disk.base()?);
        let counters = Counters {
            next_ino: ROOT + 1,
            inodes: 1,
            free: superblock.data_blocks,
            window: (0, 0),
        };
        store.put(COUNTERS.to_vec(), encode_counters(&counters));
        if superblock.data_blocks > 0 {
            store.put(free_key(DATA_START), superblock.data_blocks.to_le_bytes().to_vec());
        }
        let now = Time::now();
        let root = Inode {
            mode: libc::S_IFDIR | 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            content: Content::Directory(ROOT),
        };
        store.put(inode_key(ROOT), root.encode());
        if let Some(rows) = store.freeze() {
            disk.apply(&rows, 1)?;
        }
        // The superblock comes last: it makes the device a file system.
        superblock.write(&**device)
    }

    /// Whether the device holds a file system.
    ///
    /// # Errors
    /// The device's; [`FsError::Format`] if what it holds is damaged or of another version.
    pub fn is_formatted(device: &Arc<dyn BlockDevice>) -> Result<bool, FsError> {
        Ok(Superblock::read(&**device)?.is_some())
    }

    /// Opens a file system; after a crash, puts the intent log's rows first.
    ///
    /// # Errors
    /// The device's, or [`FsError::Format`].
    pub fn open(device: Arc<dyn BlockDevice>, options: Options) -> Result<Arc<Self>, FsError> {
        Self::open_with(device, options, None)
    }

    /// The same for a file system that shall outlive the process: what is acknowledged and not on the device is in `memory`, and an
    /// inherited one is gone on with.
    ///
    /// # Errors
    /// As [`Self::open`], and [`FsError::Format`] if what was inherited is not whole: then operations that were acknowledged are lost.
    pub fn open_in_memory(
        device: Arc<dyn BlockDevice>,
        options: Options,
        memory: Memory,
    ) -> Result<Arc<Self>, FsError> {
        Self::open_with(device, options, Some(memory))
    }

    fn open_with(device: Arc<dyn BlockDevice>, options: Options, memory: Option<Memory>) -> Result<Arc<Self>, FsError> {
        let superblock =
            Superblock::read(&*device)?.ok_or_else(|| FsError::Format("the device holds no file system".into()))?;
        let (commit, committed) = (Arc::new(Mutex::new(Commit::default())), Arc::new(Condvar::new()));
        let control = Control::new(commit::tell(&commit, &committed));
        let area = MetaArea::open(device.clone(), control.clone())?;
        let disk = Disk::open(area, options.metadata_cache_bytes)?;
        let mut replayed = Replayed::default();
        let Rows {
            mut store,
            generation,
            records,
            counters,
            data_blocks,
        } = Rows::read(&*device, &disk, &superblock, |store| {
            if let Some(inherited) = memory.as_ref().filter(|memory| memory.kernel.is_some()) {
                replayed = inherited.replay(superblock.memory_key(), |change| store.replayed(change))?;
            }
            Ok(replayed.records)
        })?;
        let (start, length) = counters.window;
        if length > 0 && !in_data_area(start, length, data_blocks) {
            // It is discarded below.
            return Err(FsError::Format("the allocation window is outside the data area".into()));
        }
        // What was replayed goes into the database at once: both halves of the log are free again.
        let mut position = generation;
        if let Some(rows) = store.freeze().filter(|_| records > 0) {
            position += 2;
            disk.apply(&rows, position)?;
            tracing::info!(records, of_memory = replayed.records, "intent log replayed");
        }
        store.thaw(disk.base()?);
        // What the memory had is in the database: it begins anew.
        let begin = |memory: &Memory| memory.begin(superblock.memory_key(), &replayed);
        let log = memory.as_ref().map(begin).transpose();
        let log = log.map_err(|e| FsError::Metadata(format!("no memory for a mount: {e}")))?;
        let kernel = memory.and_then(|memory| memory.kernel);
        let window_since = Arc::new(AtomicU64::new(0));
        let core = Arc::new(Core {
            hash_key: hash_key(&superblock),
            superblock,
            options,
            state: Mutex::new(State {
                store,
                counters,
                op: 0,
                touched: HashMap::new(),
                references: HashMap::new(),
                freed: Freed::default(),
                log: LogPosition::new(position),
                data_blocks,
                cursor: DATA_START,
                window_since: window_since.clone(),
                data_first: false,
                memory: log,
                done: None,
                inherited: kernel.is_some(),
            }),
            kernel,
            done_before: replayed.unanswered,
            commit,
            committed,
            refusing: AtomicBool::new(false),
            edges: (0..EDGE_STRIPES).map(|_| RwLock::new(())).collect(),
            reclaiming: Mutex::new(()),
            in_flight: Mutex::new(InFlight::default()),
            drained: Condvar::new(),
            window_since,
            durable: AtomicU64::new(0),
            row_bytes: AtomicU64::new(disk.row_bytes()),
            disk: Mutex::new(Some(Arc::new(disk))),
            unflushed: AtomicBool::new(false),
            unflushed_files: Unflushed::default(),
            control: Mutex::new(control),
            closing: AtomicBool::new(false),
            device,
        });
        core.load_pending()?;
        if !core.options.read_only {
            core.clear_window()?;
        }
        // Until here an error is the caller's, without a second attempt.
        core.control.lock().set(Phase::Live);
        let threads = Mutex::new(commit::start_threads(&core)?);
        let fs = Arc::new(Self { core, threads });
        if !fs.core.options.read_only {
            fs.core.remove_orphans()?;
        }
        Ok(fs)
    }

    /// Makes everything durable and stops. Later calls fail. Closing twice is harmless. On a device that fails or refuses this takes
    /// as long as the device does for a few calls: nothing is tried twice.
    ///
    /// # Errors
    /// The device's; then the intent log still holds whatever an fsync returned for.
    pub fn close(&self) -> Result<(), FsError> {
        let mut threads = self.threads.lock();
        if threads.is_empty() {
            return Ok(());
        }
        self.core.begin_ending();
        let result = self.core.sync_all().and_then(|()| self.core.checkpoint_all());
        self.core.stop();
        for thread in threads.drain(..) {
            // A thread that panicked has nothing to give back.
            let _ = thread.join();
        }
        if result.is_err() {
            // The log has what was acknowledged; the database is left as it is.
            self.core.control.lock().set(Phase::Gone);
        }
        *self.core.disk.lock() = None;
        result
    }

    /// Does and answers a request of the kernel: should the process end between, [`Self::has_done`] tells the next one.
    pub fn request<R>(&self, id: u64, run: impl FnOnce() -> R) -> R {
        REQUEST.set(Some(id));
        let result = run();
        REQUEST.set(None);
        self.answered(id);
        result
    }

    /// A request that [`Self::has_done`] knew was answered.
    pub fn answered(&self, id: u64) {
        if let Some(memory) = &mut self.core.state.lock().memory {
            memory.answered(id);
        }
    }

    /// Whether an earlier process did a request that the kernel sends again.
    #[must_use]
    pub fn has_done(&self, id: u64) -> bool {
        self.core.done_before.contains(&id)
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The device's.
    pub fn sync(&self) -> Result<(), FsError> {
        self.core.check_open()?;
        self.core.sync_all()
    }

    /// Bytes of file data that it has room for.
    ///
    /// # Errors
    /// The device's, if the file system has failed.
    pub fn capacity(&self) -> Result<u64, FsError> {
        Ok(self.core.state()?.data_blocks * BLOCK_SIZE as u64)
    }

    /// Makes the file system larger: `capacity` bytes of file data, on a device that has grown to [`device_blocks`] blocks.
    /// Durable when it returns. Harmless when it is that large already, so it may be repeated after a crash.
    ///
    /// # Errors
    /// `EINVAL` if the device is not that large, `EROFS`, or the device's.
    pub fn grow(&self, capacity: u64) -> Result<(), FsError> {
        let core = &self.core;
        let wanted = capacity / BLOCK_SIZE as u64;
        let mut state = core.change()?;
        let added = wanted.saturating_sub(state.data_blocks);
        if added > 0 {
            if DATA_START
                .checked_add(wanted)
                .is_none_or(|end| end > core.device.blocks())
            {
                return posix(libc::EINVAL);
            }
            let start = DATA_START + state.data_blocks;
            state.add_free(start, added)?;
            // One operation: the row and the free run become durable together, or not at all.
            state.store.put(DATA_BLOCKS.to_vec(), wanted.to_le_bytes().to_vec());
            state.data_blocks = wanted;
        }
        drop(state);
        core.commit_all()
    }

    /// Space and inodes.
    ///
    /// # Errors
    /// [`FsError::Closed`].
    pub fn statfs(&self) -> Result<StatFs, FsError> {
        let state = self.core.state()?;
        // A file's rows take less than 256 bytes in the usual case.
        let room = self.core.superblock.rows_limit();
        let files_free = room.saturating_sub(self.core.all_row_bytes(&state)) / 256;
        Ok(StatFs {
            blocks: state.data_blocks,
            free: state.counters.free.saturating_add(state.freed.blocks()),
            files: state.counters.inodes.saturating_add(files_free),
            files_free,
        })
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // A caller that did not close wants a crash's semantics: nothing more is written.
        self.core.control.lock().set(Phase::Gone);
        self.core.stop();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        // The checkpoint thread may have opened the database again meanwhile.
        self.core.control.lock().set(Phase::Gone);
    }
}

fn encode_counters(counters: &Counters) -> Vec<u8> {
    // Writing numbers to a vector cannot fail.
    postcard::to_allocvec(counters).unwrap_or_default()
}

impl Core {
    fn check_open(&self) -> Result<(), FsError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(FsError::Closed);
        }
        Ok(())
    }

    /// The state, for reading.
    fn state(&self) -> Result<MutexGuard<'_, State>, FsError> {
        self.check_open()?;
        Ok(self.state.lock())
    }

    /// The state, for an operation that changes something.
    fn change(&self) -> Result<Changing<'_>, FsError> {
        self.check_open()?;
        if self.options.read_only {
            return posix(libc::EROFS);
        }
        self.check_refusal()?;
        self.begin()
    }

    /// The same for what the file system does by itself.
    fn begin(&self) -> Result<Changing<'_>, FsError> {
        // Changes that outrun the checkpoints wait here, not in memory.
        Ok(Changing::new(self.state_with_room()?))
    }

    /// The state, for an operation that adds rows: `ENOSPC` when the metadata area is nearly full.
    fn change_adding(&self) -> Result<Changing<'_>, FsError> {
        loop {
            let state = self.change()?;
            if !self.is_metadata_full(&state) {
                return Ok(state);
            }
            drop(state);
            if !self.make_metadata_room()? {
                return posix(libc::ENOSPC);
            }
        }
    }

    /// Bytes of all rows, at most: a row that changes again counts twice until the next checkpoint, one that goes until then too.
    fn all_row_bytes(&self, state: &State) -> u64 {
        let pending = state.store.pending_bytes() as u64;
        self.row_bytes.load(Ordering::Acquire).saturating_add(pending)
    }

    /// Whether only removals may change rows.
    fn is_metadata_full(&self, state: &State) -> bool {
        self.all_row_bytes(state) > self.superblock.rows_limit()
    }

    /// Runs freed by operations before the last stop, still to be discarded; orphans are handled by `orphan`.
    fn load_pending(&self) -> Result<(), FsError> {
        let mut state = self.state.lock();
        let mut runs = Vec::new();
        state.store.range(
            Bound::Included(&pending_key(0)),
            &pending_key(u64::MAX),
            &mut |key, value| {
                if let (Some(start), Some(length)) = (rows::key_number(key, 0), rows::number(value)) {
                    runs.push((start, length));
                }
                true
            },
        )?;
        for (start, length) in runs {
            if in_data_area(start, length, state.data_blocks) {
                state.freed.add(0, start, length);
            } else {
                tracing::error!(
                    start,
                    length,
                    "a freed run is outside the data area, and stays as it is"
                );
            }
        }
        Ok(())
    }

    /// Blocks of the window may have been handed out and written by operations that a crash took back: they become zeros again. What an
    /// earlier process wrote and did not flush becomes durable, so that what is not is known (`order`).
    fn clear_window(&self) -> Result<(), FsError> {
        let (start, length) = self.state.lock().counters.window;
        if length > 0 {
            self.device.discard(start, length)?;
        }
        Ok(self.device.flush()?)
    }

    /// Writes file data. A block that a crash would leave in no file is in the window that is durable by then: the next open
    /// clears it. Costs a commit for each new window, nothing otherwise.
    fn write_data(&self, ino: Ino, writes: &[Write]) -> Result<(), FsError> {
        let since = self.window_since.load(Ordering::Acquire);
        if since > self.durable.load(Ordering::Acquire) {
            self.commit_upto(since)?;
        }
        self.device.write(writes, false)?;
        self.unflushed_files.wrote(ino);
        if !self.unflushed.load(Ordering::Relaxed) {
            self.unflushed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Files without a name that were open when the file system stopped.
    fn remove_orphans(&self) -> Result<(), FsError> {
        let mut orphans = Vec::new();
        let state = self.state.lock();
        state
            .store
            .range(Bound::Included(&orphan_key(0)), &orphan_key(u64::MAX), &mut |key, _| {
                orphans.extend(rows::key_number(key, 0));
                true
            })?;
        drop(state);
        for ino in orphans {
            if !self.kernel.as_ref().is_some_and(|knows| knows(ino)) {
                self.remove_inode(ino)?;
            }
        }
        Ok(())
    }
}

thread_local! {
    /// The request that the calling thread does.
    static REQUEST: Cell<Option<u64>> = const { Cell::new(None) };
}

impl State {
    /// The running operation did what its request asks for, and must not do it twice.
    fn done(&mut self) {
        self.done = REQUEST.get();
    }

    fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        match self.store.get(&inode_key(ino))? {
            Some(row) => Inode::decode(&row)
                .filter(Inode::is_sound)
                .ok_or_else(|| self.store.damaged(format!("inode {ino}'s row is damaged"))),
            None => posix(libc::ENOENT),
        }
    }

    /// Keeps a changed inode; `times_only` if nothing else of it changed.
    fn put_inode(&mut self, ino: Ino, inode: &Inode, times_only: bool) {
        self.store.put(inode_key(ino), inode.encode());
        self.touch(ino, times_only);
    }

    fn touch(&mut self, ino: Ino, times_only: bool) {
        let op = self.op;
        let touched = self.touched.entry(ino).or_default();
        touched.any = op;
        if !times_only {
            touched.beyond_times = op;
        }
    }

    fn put_counters(&mut self) {
        let value = encode_counters(&self.counters);
        self.store.put(COUNTERS.to_vec(), value);
    }
}
