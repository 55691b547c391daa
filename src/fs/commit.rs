//! How changes become durable: group commit into the intent log, checkpoints into the database, and the threads that do both.
//!
//! One commit runs at a time. It takes every change so far, so all who wait for one of them are served by it. A checkpoint starts
//! between commits: it freezes the changes and moves the log on to the next generation; the database then names that generation.
//! Invariant: a record of generation g+1 is written only after every record of g, and the next freeze waits until the database names g+1,
//! so replaying the named generation and the one after it gives a prefix of the operations.

use super::log;
use super::{Core, FsError, Ino, State};
use crate::block::{BLOCK_SIZE, Write};
use crate::fs::layout::LOG_HALF;
use bytes::Bytes;
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
/// Age of the log at which a checkpoint starts.
const CHECKPOINT_AGE: Duration = Duration::from_secs(30);
/// Time between checkpoints that a full metadata area makes for little.
const MADE_ROOM_AGE: Duration = Duration::from_secs(1);
/// Longest single write to the device.
const WRITE_MAX: usize = 1 << 20;

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
    /// Frozen rows for the checkpoint thread, and the generation that they end with.
    checkpoint: Option<(Rows, u64)>,
    checkpoint_running: bool,
    /// Why the database gave up, if it did.
    broken: Option<FsError>,
    /// When a full metadata area last made a checkpoint.
    made_room: Option<Instant>,
    /// A commit is wanted before the timer's next tick.
    early: bool,
}

impl Core {
    /// Makes every operation so far durable.
    pub(super) fn commit_all(&self) -> Result<(), FsError> {
        let target = self.state.lock().op;
        self.commit_upto(target)
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
            return Ok(self.device.flush()?);
        }
        self.commit_upto(target)
    }

    /// Waits until an operation is durable, committing if nobody else does.
    pub(super) fn commit_upto(&self, target: u64) -> Result<(), FsError> {
        let mut commit = self.commit.lock();
        loop {
            if commit.durable >= target {
                return Ok(());
            }
            if let Some(broken) = &commit.broken {
                return Err(broken.clone());
            }
            if commit.running {
                self.committed.wait(&mut commit);
                continue;
            }
            commit.running = true;
            commit.early = false;
            drop(commit);
            let result = self.write_record();
            if let Ok(upto) = result {
                // Still as the one that commits: the log's position may move on here.
                self.after_commit(upto);
            }
            commit = self.commit.lock();
            commit.running = false;
            if let Ok(upto) = result {
                commit.durable = commit.durable.max(upto);
                self.durable.store(commit.durable, Ordering::Release);
            }
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
            self.device.flush()?;
            return Ok(upto);
        }
        if state.store.unlogged_bytes() > log::RECORD_MAX {
            drop(state);
            return self.checkpoint_now();
        }
        let changes = state.store.take_unlogged();
        let record = Bytes::from(log::encode(state.log.generation, state.log.sequence, &changes));
        let blocks = (record.len() / BLOCK_SIZE) as u64;
        if state.log.at + blocks > LOG_HALF {
            state.store.give_back(changes);
            drop(state);
            return self.checkpoint_now();
        }
        let start = log::half(state.log.generation) + state.log.at;
        drop(state);
        let writes: Vec<Write> = (0..record.len())
            .step_by(WRITE_MAX)
            .map(|at| Write {
                block: start + (at / BLOCK_SIZE) as u64,
                data: record.slice(at..record.len().min(at + WRITE_MAX)),
            })
            .collect();
        // Rows and flush in one message: an fsync costs one round trip.
        let result = self.device.write(&writes, true);
        let mut state = self.state.lock();
        match result {
            Ok(()) => {
                state.log.sequence += 1;
                state.log.at += blocks;
                Ok(upto)
            }
            Err(e) => {
                state.store.give_back(changes);
                Err(e.into())
            }
        }
    }

    /// Housekeeping after a commit: forget what is durable, start a checkpoint when it is time.
    fn after_commit(&self, durable: u64) {
        let mut state = self.state.lock();
        state.touched.retain(|_, touched| touched.any > durable);
        let due = state.log.at > LOG_HALF / 2
            || state.store.changed_bytes() > CHECKPOINT_BYTES
            || (state.log.since.elapsed() > CHECKPOINT_AGE && state.store.changed_bytes() > 0);
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
        let unlogged = state.store.take_unlogged();
        if !self.start_checkpoint(&mut state) {
            state.store.give_back(unlogged);
            return Err(FsError::Metadata("a checkpoint is still running".into()));
        }
        drop(state);
        let result = self.wait_for_checkpoint();
        if result.is_err() {
            self.state.lock().store.give_back(unlogged);
        }
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
        while commit.checkpoint.is_some() || commit.checkpoint_running {
            if let Some(broken) = &commit.broken {
                return Err(broken.clone());
            }
            self.check_open()?;
            self.committed.wait(&mut commit);
        }
        match &commit.broken {
            Some(broken) => Err(broken.clone()),
            None => Ok(()),
        }
    }

    /// Holds an operation back while changes fill the memory they may take, and asks for an early commit before that.
    pub(super) fn wait_for_room(&self) {
        let (unlogged, changed) = {
            let state = self.state.lock();
            (state.store.unlogged_bytes(), state.store.changed_bytes())
        };
        if unlogged > EARLY_COMMIT_BYTES {
            let mut commit = self.commit.lock();
            if !commit.early {
                commit.early = true;
                self.committed.notify_all();
            }
        }
        if changed > CHANGES_MAX {
            // An error shows at the next commit; here it only must not wait for ever.
            let _ = self.commit_all();
            let _ = self.wait_for_checkpoint();
        }
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
        loop {
            if let Some((rows, generation)) = commit.checkpoint.take() {
                commit.checkpoint_running = true;
                drop(commit);
                let disk = self.disk.lock().clone();
                let result = disk.ok_or(FsError::Closed).and_then(|disk| {
                    disk.apply(&rows, generation)?;
                    self.row_bytes.store(disk.row_bytes(), Ordering::Release);
                    disk.base()
                });
                let broken = match result {
                    Ok(base) => {
                        self.state.lock().store.thaw(base);
                        None
                    }
                    Err(error) => {
                        tracing::error!(%error, "the metadata database gave up; mount the volume again");
                        Some(error)
                    }
                };
                commit = self.commit.lock();
                commit.checkpoint_running = false;
                commit.broken = broken;
                self.committed.notify_all();
            } else if self.closing.load(Ordering::Acquire) {
                return;
            } else {
                self.committed.wait(&mut commit);
            }
        }
    }

    /// Commits what nobody syncs, every interval.
    fn run_timer(&self) {
        let mut commit = self.commit.lock();
        let mut next = Instant::now() + self.options.commit_interval;
        while !self.closing.load(Ordering::Acquire) {
            if !commit.early && Instant::now() < next {
                self.committed.wait_until(&mut commit, next);
                continue;
            }
            commit.early = false;
            let durable = commit.durable;
            drop(commit);
            let behind = self.state.lock().op > durable;
            if behind && let Err(error) = self.commit_all() {
                tracing::warn!(%error, "changes could not be made durable; trying again");
            }
            if let Err(error) = self.reclaim() {
                tracing::warn!(%error, "freed space could not be given back; trying again");
            }
            next = Instant::now() + self.options.commit_interval;
            commit = self.commit.lock();
        }
    }
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
