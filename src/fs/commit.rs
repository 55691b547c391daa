//! How changes become durable: group commit into the intent log, checkpoints into the database, and the threads that do both.
//!
//! One commit runs at a time. It takes every change so far, so all who wait for one of them are served by it. A checkpoint starts
//! between commits: it freezes the changes and moves the log on to the next generation; the database then names that generation.
//! Invariant: a record of generation g+1 is written only after every record of g, and the next freeze waits until the database names g+1,
//! so replaying the named generation and the one after it gives a prefix of the operations.

use super::backend::{Control, MetaArea, Phase, Trouble};
use super::log;
use super::memory::{MemoryLog, Position};
use super::store::Disk;
use super::{Core, FsError, Ino, State};
use crate::block::{BLOCK_SIZE, Write};
use crate::fs::layout::{LOG_HALF, WRITE_MAX};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Rows = Arc<BTreeMap<Vec<u8>, Option<Vec<u8>>>>;

/// Changes in memory that start a checkpoint, in bytes.
const CHECKPOINT_BYTES: usize = 24 << 20;
/// Changes in memory at which operations wait for a checkpoint.
const CHANGES_MAX: usize = 96 << 20;
/// Unlogged changes that start a commit.
const EARLY_COMMIT_BYTES: usize = 2 << 20;
/// Time between checkpoints that a full metadata area makes for little.
const MADE_ROOM_AGE: Duration = Duration::from_secs(1);
/// Time between attempts of what failed.
const RETRY: Duration = Duration::from_secs(1);

/// Where the next record goes.
pub(super) struct LogPosition {
    pub(super) generation: u64,
    sequence: u64,
    /// Blocks used of the generation's half.
    at: u64,
    since: Instant,
}

impl LogPosition {
    pub(super) fn new(generation: u64) -> Self {
        Self {
            generation,
            sequence: 0,
            at: 0,
            since: Instant::now(),
        }
    }
}

/// The commit protocol's state.
#[derive(Default)]
pub(super) struct Commit {
    running: bool,
    /// Every operation up to this number is durable.
    durable: u64,
    /// Frozen rows for the checkpoint thread, and the generation that they end with, until they are in the database.
    checkpoint: Option<(Rows, u64)>,
    /// Why the last attempt at a checkpoint, or at opening the database again, failed. The checkpoint thread goes on trying.
    failure: Option<FsError>,
    /// The database failed and must be opened again.
    reopen: bool,
    /// The file system ends: one more attempt each, no waiting between.
    ending: bool,
    /// Commits begun, the last of them that succeeded, and that failed.
    attempts: u64,
    succeeded: u64,
    failed: u64,
    /// The timer tries again soon.
    retry: bool,
    /// Why the last commit failed: nothing may change until one succeeds.
    refusal: Option<FsError>,
    /// When a full metadata area last made a checkpoint.
    made_room: Option<Instant>,
    /// A commit is wanted before the timer's next tick.
    early: bool,
}

impl State {
    /// A commit has covered the memory log up to here.
    fn release_memory(&mut self, mark: Option<Position>) {
        if let (Some(memory), Some(mark)) = (&mut self.memory, mark) {
            memory.release(mark);
        }
    }
}

impl Core {
    /// Makes every operation so far durable.
    pub(super) fn commit_all(&self) -> Result<(), FsError> {
        let target = self.state.lock().op;
        self.commit_upto(target)
    }

    /// The same, with all data written so far.
    pub(super) fn sync_all(&self) -> Result<(), FsError> {
        let target = self.state.lock().op;
        self.commit(target, true)
    }

    /// The highest operation known to be durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// What an fsync of an inode must do.
    pub(super) fn sync_inode(&self, ino: Ino, data_only: bool) -> Result<(), FsError> {
        self.check_open()?;
        let touched = self.state.lock().touched.get(&ino).copied().unwrap_or_default();
        let target = if data_only { touched.beyond_times } else { touched.any };
        if target <= self.durable() {
            // The metadata is durable; the data may be in caches.
            return self.flushing(|| self.device.flush());
        }
        self.commit(target, true)
    }

    /// Waits until an operation is durable, committing if nobody else does.
    pub(super) fn commit_upto(&self, target: u64) -> Result<(), FsError> {
        self.commit(target, false)
    }

    /// Waits for a commit that makes an operation durable; with `data`, for one whose flush began after this call, since a write's
    /// operation may be in an earlier one and its data not.
    fn commit(&self, target: u64, data: bool) -> Result<(), FsError> {
        let mut commit = self.commit.lock();
        let arrived = commit.attempts;
        loop {
            if commit.durable >= target && (!data || commit.succeeded > arrived) {
                return Ok(());
            }
            if let Some(refusal) = commit.refusal.as_ref().filter(|_| commit.failed > arrived) {
                // An attempt that included this caller's changes: all who waited for it get its error.
                return Err(refusal.clone());
            }
            if commit.running {
                self.committed.wait(&mut commit);
                continue;
            }
            commit.running = true;
            commit.early = false;
            commit.attempts += 1;
            let attempt = commit.attempts;
            drop(commit);
            let result = self.write_record();
            if let Ok(upto) = result {
                // Still as the one that commits: the log's position may move on here.
                self.after_commit(upto);
            }
            commit = self.commit.lock();
            commit.running = false;
            match &result {
                Ok(upto) => {
                    commit.durable = commit.durable.max(*upto);
                    self.durable.store(commit.durable, Ordering::Release);
                    commit.refusal = None;
                    commit.succeeded = attempt;
                }
                Err(e) => {
                    commit.refusal = Some(e.clone());
                    commit.retry = true;
                    commit.failed = attempt;
                }
            }
            self.refusing.store(commit.refusal.is_some(), Ordering::Release);
            self.committed.notify_all();
            result?;
        }
    }

    /// Writes everything unlogged as one record, or, when it does not fit, as a checkpoint. Only one runs at a time.
    fn write_record(&self) -> Result<u64, FsError> {
        let mut state = self.state.lock();
        let upto = state.op;
        if state.store.unlogged_bytes() == 0 {
            drop(state);
            self.flushing(|| self.device.flush())?;
            return Ok(upto);
        }
        if state.store.unlogged_bytes() > log::RECORD_MAX {
            drop(state);
            return self.checkpoint_now();
        }
        let mark = state.memory.as_mut().map(MemoryLog::mark);
        let changes = state.store.take_unlogged();
        let record = Bytes::from(log::encode(state.log.generation, state.log.sequence, &changes));
        let blocks = (record.len() / BLOCK_SIZE) as u64;
        if state.log.at + blocks > LOG_HALF {
            state.store.give_back(changes);
            drop(state);
            return self.checkpoint_now();
        }
        let start = log::half(state.log.generation) + state.log.at;
        let data_first = std::mem::take(&mut state.data_first);
        drop(state);
        let writes: Vec<Write> = (0..record.len())
            .step_by(WRITE_MAX)
            .map(|at| Write {
                block: start + (at / BLOCK_SIZE) as u64,
                data: record.slice(at..record.len().min(at + WRITE_MAX)),
            })
            .collect();
        // Rows and flush in one message: an fsync costs one round trip.
        let write = || self.device.write(&writes, true);
        let result = match data_first {
            true => self
                .flushing(|| self.device.flush())
                .and_then(|()| self.flushing(write)),
            false => self.flushing(write),
        };
        let mut state = self.state.lock();
        match result {
            Ok(()) => {
                state.log.sequence += 1;
                state.log.at += blocks;
                state.release_memory(mark);
                Ok(upto)
            }
            Err(e) => {
                state.store.give_back(changes);
                state.data_first |= data_first;
                Err(e)
            }
        }
    }

    /// Housekeeping after a commit: forget what is durable, start a checkpoint when it is time.
    fn after_commit(&self, durable: u64) {
        let mut state = self.state.lock();
        state.touched.retain(|_, touched| touched.any > durable);
        let due = state.log.at > LOG_HALF / 2
            || state.store.changed_bytes() > CHECKPOINT_BYTES
            || (state.log.since.elapsed() > self.options.checkpoint_interval && state.store.changed_bytes() > 0);
        if due {
            self.start_checkpoint(&mut state);
        }
    }

    /// Freezes the changes for the checkpoint thread; false while an earlier checkpoint runs.
    fn start_checkpoint(&self, state: &mut State) -> bool {
        let Some(rows) = state.store.freeze() else {
            return false;
        };
        let generation = state.log.generation + 1;
        state.log = LogPosition::new(generation);
        let mut commit = self.commit.lock();
        commit.checkpoint = Some((rows, generation));
        self.committed.notify_all();
        true
    }

    /// A checkpoint of everything, waited for: what is unlogged goes into the database without a record. The caller is the one that
    /// commits, so no record of the next generation is written meanwhile.
    fn checkpoint_now(&self) -> Result<u64, FsError> {
        self.wait_for_checkpoint()?;
        let mut state = self.state.lock();
        let upto = state.op;
        let mark = state.memory.as_mut().map(MemoryLog::mark);
        let unlogged = state.store.take_unlogged();
        if !self.start_checkpoint(&mut state) {
            state.store.give_back(unlogged);
            return Err(FsError::Metadata("a checkpoint is still running".into()));
        }
        drop(state);
        let result = self.wait_for_checkpoint();
        let mut state = self.state.lock();
        match &result {
            Ok(()) => state.release_memory(mark),
            Err(_) => state.store.give_back(unlogged),
        }
        drop(state);
        result.map(|()| upto)
    }

    /// A checkpoint that finds out what removals gave back of the metadata area. False if that is not worth one now.
    pub(super) fn make_metadata_room(&self) -> Result<bool, FsError> {
        let pending = self.state.lock().store.pending_bytes() as u64;
        let mut commit = self.commit.lock();
        let lately = commit.made_room.is_some_and(|at| at.elapsed() < MADE_ROOM_AGE);
        if pending == 0 || (lately && pending < self.superblock.rows_limit() / 32) {
            return Ok(false);
        }
        commit.made_room = Some(Instant::now());
        drop(commit);
        self.checkpoint_all()?;
        Ok(true)
    }

    /// The last checkpoint, at close.
    pub(super) fn checkpoint_all(&self) -> Result<(), FsError> {
        let mut commit = self.commit.lock();
        while commit.running {
            self.committed.wait(&mut commit);
        }
        commit.running = true;
        drop(commit);
        let clean = self.state.lock().store.changed_bytes() == 0;
        let result = if clean {
            self.wait_for_checkpoint()
        } else {
            self.checkpoint_now().map(|_| ())
        };
        self.commit.lock().running = false;
        self.committed.notify_all();
        result
    }

    fn wait_for_checkpoint(&self) -> Result<(), FsError> {
        let mut commit = self.commit.lock();
        loop {
            if let Some(failure) = &commit.failure {
                return Err(failure.clone());
            }
            if commit.checkpoint.is_none() {
                return Ok(());
            }
            self.check_open()?;
            self.committed.wait(&mut commit);
        }
    }

    /// What a changing operation is answered while changes cannot be made durable.
    pub(super) fn check_refusal(&self) -> Result<(), FsError> {
        if self.refusing.load(Ordering::Acquire)
            && let Some(refusal) = &self.commit.lock().refusal
        {
            return Err(refusal.clone());
        }
        Ok(())
    }

    /// From now on the device gets one attempt at each thing: close takes a bounded time.
    pub(super) fn begin_ending(&self) {
        let mut commit = self.commit.lock();
        commit.ending = true;
        commit.failure = None;
        drop(commit);
        self.control.lock().set(Phase::Ending);
        self.committed.notify_all();
    }

    /// The state, once changes leave room for more in the memory they may take; asks for an early commit before they do not. An
    /// operation in the usual case takes the lock once.
    pub(super) fn state_with_room(&self) -> Result<MutexGuard<'_, State>, FsError> {
        let state = self.state.lock();
        let (unlogged, changed) = (state.store.unlogged_bytes(), state.store.changed_bytes());
        let memory = state.memory.as_ref();
        let early = unlogged > EARLY_COMMIT_BYTES || memory.is_some_and(MemoryLog::wants_commit);
        let full = memory.is_some_and(MemoryLog::is_full);
        if !early && changed <= CHANGES_MAX {
            return Ok(state);
        }
        drop(state);
        if early {
            let mut commit = self.commit.lock();
            if !commit.early {
                commit.early = true;
                self.committed.notify_all();
            }
        }
        if full {
            self.commit_all()?;
        }
        if changed > CHANGES_MAX {
            self.commit_all()?;
            self.wait_for_checkpoint()?;
        }
        Ok(self.state.lock())
    }

    /// Ends the threads and whoever waits.
    pub(super) fn stop(&self) {
        // Under the lock, so that nobody who has just looked goes to sleep on it.
        let commit = self.commit.lock();
        self.closing.store(true, Ordering::Release);
        drop(commit);
        self.committed.notify_all();
    }

    fn run_checkpoints(&self) {
        let mut commit = self.commit.lock();
        while !self.closing.load(Ordering::Acquire) {
            // At the end one failure is enough: the log has everything.
            let given_up = commit.ending && commit.failure.is_some();
            if given_up || !(commit.reopen || commit.checkpoint.is_some()) {
                self.committed.wait(&mut commit);
                continue;
            }
            let checkpoint = commit.checkpoint.clone();
            let reopen = std::mem::take(&mut commit.reopen);
            drop(commit);
            let result = if reopen { self.reopen() } else { Ok(()) };
            let opened = result.is_ok();
            let result = result.and_then(|()| match &checkpoint {
                Some((rows, generation)) => self.checkpoint(rows, *generation),
                None => Ok(()),
            });
            commit = self.commit.lock();
            match result {
                Ok(()) => {
                    // The next one may have been asked for as soon as the rows were in the database.
                    let generation = |checkpoint: &Option<(Rows, u64)>| checkpoint.as_ref().map(|(_, g)| *g);
                    if generation(&commit.checkpoint) == generation(&checkpoint) {
                        commit.checkpoint = None;
                    }
                    commit.failure = None;
                    self.committed.notify_all();
                }
                Err(error) => {
                    tracing::warn!(%error, opened, "a checkpoint of the metadata failed; trying again");
                    commit.failure = Some(error);
                    // Whatever it was: redb may not be asked again.
                    commit.reopen = true;
                    self.committed.notify_all();
                    let next = Instant::now() + RETRY;
                    while !commit.ending && !self.closing.load(Ordering::Acquire) && Instant::now() < next {
                        self.committed.wait_until(&mut commit, next);
                    }
                }
            }
        }
    }

    fn checkpoint(&self, rows: &Rows, generation: u64) -> Result<(), FsError> {
        let disk = self.disk.lock().clone().ok_or(FsError::Closed)?;
        disk.apply(rows, generation)?;
        let base = disk.base()?;
        self.row_bytes.store(disk.row_bytes(), Ordering::Release);
        self.state.lock().store.thaw(base);
        Ok(())
    }

    /// Opens the database again after an error. Reads of rows that are not in memory fail meanwhile.
    fn reopen(&self) -> Result<(), FsError> {
        self.control.lock().set(Phase::Gone);
        self.state.lock().store.set_base(None);
        *self.disk.lock() = None;
        let control = Control::new(tell(&self.commit, &self.committed));
        let area = MetaArea::open(self.device.clone(), control.clone())?;
        let disk = Disk::open(area, self.options.metadata_cache_bytes)?;
        let base = disk.base()?;
        let mut current = self.control.lock();
        // Close says first that it ends, then takes the lock of the control: it finds this one, or is seen here.
        let ending = self.commit.lock().ending;
        control.set(if ending { Phase::Ending } else { Phase::Live });
        *current = control;
        drop(current);
        *self.disk.lock() = Some(Arc::new(disk));
        self.state.lock().store.set_base(Some(base));
        tracing::info!("the metadata database is open again");
        Ok(())
    }

    /// Commits what nobody syncs, every interval.
    fn run_timer(&self) {
        let mut commit = self.commit.lock();
        let mut next = Instant::now() + self.options.commit_interval;
        while !self.closing.load(Ordering::Acquire) {
            if std::mem::take(&mut commit.retry) {
                next = next.min(Instant::now() + RETRY);
            }
            if !commit.early && Instant::now() < next {
                self.committed.wait_until(&mut commit, next);
                continue;
            }
            commit.early = false;
            let durable = commit.durable;
            drop(commit);
            let behind = self.state.lock().op > durable;
            let unflushed = self.unflushed.swap(false, Ordering::AcqRel);
            if (behind || unflushed)
                && let Err(error) = self.sync_all()
            {
                self.unflushed.fetch_or(unflushed, Ordering::AcqRel);
                tracing::warn!(%error, "changes could not be made durable; trying again");
            }
            if !self.refusing.load(Ordering::Acquire)
                && let Err(error) = self.reclaim()
            {
                tracing::warn!(%error, "freed space could not be given back; trying again");
            }
            next = Instant::now() + self.options.commit_interval;
            commit = self.commit.lock();
        }
    }
}

/// What the metadata area's storage tells the checkpoint thread and who waits for it.
pub(super) fn tell(commit: &Arc<Mutex<Commit>>, committed: &Arc<Condvar>) -> Box<dyn Fn(Trouble) + Send + Sync> {
    let (commit, committed) = (commit.clone(), committed.clone());
    Box::new(move |trouble| {
        let mut commit = commit.lock();
        match trouble {
            Trouble::Failed => commit.reopen = true,
            Trouble::Waiting(error) => commit.failure = Some(error.into()),
        }
        committed.notify_all();
    })
}

/// Starts the threads of an open file system; they end when it closes.
pub(super) fn start_threads(core: &Arc<Core>) -> Result<Vec<JoinHandle<()>>, FsError> {
    let start = |name: &str, run: fn(&Core)| {
        let core = core.clone();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&core))
            .map_err(|e| FsError::Metadata(format!("cannot start a thread: {e}")))
    };
    Ok(vec![
        start("fs-checkpoint", Core::run_checkpoints)?,
        start("fs-commit", Core::run_timer)?,
    ])
}
