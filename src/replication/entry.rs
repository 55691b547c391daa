//! One open copy behind its gate: checks who may change it, and remembers what may differ from the other copies.
//!
//! Invariants: a change runs only under the stamp (epoch and session) of the last fence; a fence returns after every
//! change under an older stamp has ended, so none of them can land later. The gate is held shared during a change, exclusively only by
//! a fence. All calls block.

use super::{
    promise::Promise,
    service::{Blocks, CopyState, MAX_DATA, MAX_RANGES, Position, Stamp},
    store::{Copy, CopyError, CopyWrite, Found},
};
use crate::exec::{
    random,
    sync::{Mutex, RwLock, RwLockReadGuard},
};
use crate::{
    block::{BLOCK_SIZE, EXTENT_BLOCKS},
    volume::NodeId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Writes that may be remembered as not settled; a master has far fewer in flight.
const MAX_TAIL: usize = 1 << 16;

/// Most blocks of a write that is done without a hand-off to a blocking thread.
const QUICK: u64 = 16;

/// The stamp in force, without the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gate {
    epoch: u64,
    session: u64,
}

/// An open copy of this node.
pub(super) struct Entry {
    copy: Arc<dyn Copy>,
    /// See [`CopyState::intact`]; true again once a master has made the copies equal.
    intact: AtomicBool,
    incarnation: u64,
    gate: RwLock<Gate>,
    /// The gate's session; changed while it is held exclusively.
    session: AtomicU64,
    /// The node whose fence is in force; `None`: this one's, or none yet. Changed with the gate.
    master: Mutex<Option<NodeId>>,
    /// Extents of writes not known to be on every copy, by term and number; what was hot when the copy was opened
    /// stands first, so that the first settled term clears it.
    tail: Mutex<BTreeMap<(u64, u64), Vec<u64>>>,
    /// The last promise; changed only by whoever holds the gate shared.
    promised: Mutex<Promise>,
}

impl Entry {
    /// `promised`: what the copy may have promised before it was opened.
    pub(super) fn new(copy: Arc<dyn Copy>, found: Found, promised: Promise) -> Self {
        let epoch = copy.epoch();
        let intact = AtomicBool::new(found.intact());
        let tail = if found.clean {
            BTreeMap::new()
        } else {
            BTreeMap::from([((0, 0), found.hot)])
        };
        Self {
            copy,
            intact,
            incarnation: random::random(),
            gate: RwLock::new(Gate { epoch, session: 0 }),
            session: AtomicU64::new(0),
            master: Mutex::new(None),
            tail: Mutex::new(tail),
            promised: Mutex::new(promised),
        }
    }

    /// The copy itself, for calls that change nothing.
    pub(super) fn copy(&self) -> &dyn Copy {
        &*self.copy
    }

    /// See [`CopyState`].
    pub(super) fn state(&self) -> CopyState {
        let mut hot: BTreeSet<u64> = self.copy.hot_extents().into_iter().collect();
        hot.extend(self.tail.lock().values().flatten());
        CopyState {
            epoch: self.copy.epoch(),
            blocks: self.copy.blocks(),
            incarnation: self.incarnation,
            intact: self.intact.load(Ordering::Relaxed),
            hot: hot.into_iter().collect(),
            failed: self.copy.failed(),
        }
    }

    /// Makes `stamp` the one in force, for a master on this node.
    pub(super) fn fence(&self, stamp: Stamp) -> Result<CopyState, CopyError> {
        self.fence_for(stamp, None)
    }

    /// Whether this node's fence is in force: a stamp can be guessed.
    pub(super) fn obeys(&self, peer: NodeId) -> bool {
        *self.master.lock() == Some(peer)
    }

    /// The same for a master on another node.
    pub(super) fn fence_for(&self, stamp: Stamp, master: Option<NodeId>) -> Result<CopyState, CopyError> {
        let new = Gate {
            epoch: stamp.epoch,
            session: stamp.session,
        };
        let mut gate = self.gate.write();
        if new < *gate {
            return Err(stale(*gate));
        }
        if stamp.epoch > self.copy.epoch() {
            self.copy.advance_epoch(stamp.epoch)?;
        }
        *gate = new;
        *self.master.lock() = master;
        self.session.store(new.session, Ordering::SeqCst);
        drop(gate);
        Ok(self.state())
    }

    fn enter(&self, stamp: Stamp) -> Result<RwLockReadGuard<'_, Gate>, CopyError> {
        let gate = self.gate.read();
        gate.check(stamp)?;
        Ok(gate)
    }

    /// Lets go of a copy that failed. Waits for calls in progress.
    pub(super) fn give_up(&self) {
        let _gate = self.gate.write();
        self.copy.give_up();
    }

    /// Promises the node whose stamp is in force not to serve as a master for a time.
    pub(super) fn promise(&self, stamp: Stamp, to: NodeId) -> Result<(), CopyError> {
        self.promise_through(&self.gate.read(), stamp, to)
    }

    /// The same if no fence is under way; `None`: do it where blocking is allowed.
    pub(super) fn promise_quickly(&self, stamp: Stamp, to: NodeId) -> Option<Result<(), CopyError>> {
        Some(self.promise_through(&*self.gate.try_read()?, stamp, to))
    }

    fn promise_through(&self, gate: &Gate, stamp: Stamp, to: NodeId) -> Result<(), CopyError> {
        gate.check(stamp)?;
        if let Some(why) = self.copy.failed() {
            return Err(CopyError::Failed(why));
        }
        *self.promised.lock() = Promise::to(to);
        Ok(())
    }

    /// What the copy promised last. After a fence nobody of before it gets another one.
    pub(super) fn promised(&self) -> Promise {
        *self.promised.lock()
    }

    /// The session in force. Never waits.
    pub(super) fn session(&self) -> u64 {
        self.session.load(Ordering::SeqCst)
    }

    fn note(&self, position: Position, extents: Vec<u64>) -> Result<(), CopyError> {
        let mut tail = self.tail.lock();
        if tail.len() >= MAX_TAIL {
            return Err(CopyError::Invalid("too many writes in flight".to_owned()));
        }
        if tail
            .first_key_value()
            .is_some_and(|(key, _)| *key < (position.term, position.settled))
        {
            *tail = tail.split_off(&(position.term, position.settled));
            if !self.intact.swap(true, Ordering::Relaxed) {
                // A master has made the copies equal.
                self.copy.vouch()?;
            }
        }
        // Writes of an activation and of a sync have no number: they add to what was there.
        tail.entry((position.term, position.number))
            .or_default()
            .extend(extents);
        Ok(())
    }

    /// Writes blocks whose ranges and sums fit their data, else refuses.
    pub(super) fn write(
        &self,
        stamp: Stamp,
        position: Position,
        blocks: &Blocks,
        flush: bool,
    ) -> Result<(), CopyError> {
        let gate = self.gate.read();
        self.write_through(&gate, stamp, position, blocks, flush)
    }

    /// The same without a flush if it can be done at once, that is by copying a little into the page cache; `None`: do it
    /// where blocking is allowed.
    pub(super) fn write_quickly(
        &self,
        stamp: Stamp,
        position: Position,
        blocks: &Blocks,
    ) -> Option<Result<(), CopyError>> {
        let total: u64 = blocks.ranges.iter().map(|(_, count)| u64::from(*count)).sum();
        let hot = |(block, count): &(u64, u32)| self.copy.is_hot(*block, u64::from(*count));
        // One that may have lost something notes on its disk that it is whole again.
        if total > QUICK || !self.intact.load(Ordering::Relaxed) || !blocks.ranges.iter().all(hot) {
            return None;
        }
        let gate = self.gate.try_read()?;
        Some(self.write_through(&gate, stamp, position, blocks, false))
    }

    fn write_through(
        &self,
        gate: &Gate,
        stamp: Stamp,
        position: Position,
        blocks: &Blocks,
        flush: bool,
    ) -> Result<(), CopyError> {
        gate.check(stamp)?;
        let writes = split(blocks)?;
        let extents = writes
            .iter()
            .flat_map(|write| extents_of(write.block, write.sums.len() as u64))
            .collect();
        self.note(position, extents)?;
        self.copy.write(stamp.epoch, &writes, flush)
    }

    pub(super) fn discard(&self, stamp: Stamp, position: Position, block: u64, count: u64) -> Result<(), CopyError> {
        let blocks = self.copy.blocks();
        if block.checked_add(count).is_none_or(|end| end > blocks) {
            return Err(CopyError::Invalid(format!("discard of {block}+{count} of {blocks}")));
        }
        let _gate = self.enter(stamp)?;
        self.note(position, extents_of(block, count).collect())?;
        self.copy.discard(stamp.epoch, block, count)
    }

    pub(super) fn flush(&self, stamp: Stamp) -> Result<(), CopyError> {
        let _gate = self.enter(stamp)?;
        self.copy.flush(stamp.epoch)
    }

    pub(super) fn grow(&self, stamp: Stamp, blocks: u64) -> Result<(), CopyError> {
        let _gate = self.enter(stamp)?;
        self.copy.grow(blocks)
    }

    pub(super) fn repair(&self, stamp: Stamp, block: u64, data: &[u8]) -> Result<(), CopyError> {
        if data.len() != BLOCK_SIZE {
            return Err(CopyError::Invalid("repair of less or more than a block".to_owned()));
        }
        let _gate = self.enter(stamp)?;
        self.copy.repair(stamp.epoch, block, data)
    }
}

impl Gate {
    fn check(self, stamp: Stamp) -> Result<(), CopyError> {
        if (self.epoch, self.session) == (stamp.epoch, stamp.session) {
            Ok(())
        } else {
            Err(stale(self))
        }
    }
}

fn stale(gate: Gate) -> CopyError {
    CopyError::Stale {
        epoch: gate.epoch,
        session: gate.session,
    }
}

/// The extents that a range touches.
pub(super) fn extents_of(block: u64, count: u64) -> impl Iterator<Item = u64> {
    let end = block.saturating_add(count);
    (block / EXTENT_BLOCKS)..end.div_ceil(EXTENT_BLOCKS)
}

/// Checks that a message's ranges, bytes and sums fit each other.
pub(super) fn split(blocks: &Blocks) -> Result<Vec<CopyWrite<'_>>, CopyError> {
    let invalid = |why: &str| CopyError::Invalid(why.to_owned());
    let mut sums = blocks.sums.get().ok_or_else(|| invalid("sums are not whole hashes"))?;
    if blocks.ranges.len() != blocks.data.len() || blocks.ranges.len() > MAX_RANGES {
        return Err(invalid("ranges do not fit the data"));
    }
    let total: usize = blocks.data.iter().map(|data| data.len()).sum();
    if total > MAX_DATA {
        return Err(invalid("too much data"));
    }
    let mut writes = Vec::with_capacity(blocks.ranges.len());
    for ((block, count), data) in blocks.ranges.iter().zip(&blocks.data) {
        let count = *count as usize;
        if count == 0 || data.len() != count * BLOCK_SIZE {
            return Err(invalid("a range does not fit its data"));
        }
        let (own, rest) = sums
            .split_at_checked(count)
            .ok_or_else(|| invalid("fewer sums than blocks"))?;
        sums = rest;
        writes.push(CopyWrite {
            block: *block,
            data,
            sums: own,
        });
    }
    if !sums.is_empty() {
        return Err(invalid("more sums than blocks"));
    }
    Ok(writes)
}
