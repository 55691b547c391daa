//! How freed blocks become free: durable first, then nobody looking, then discarded and flushed.
//!
//! Reads and writes to the device take a ticket before they learn where a file's blocks are, and give it back when the device has
//! answered. A run freed by an operation is discarded only when all tickets older than now are back: no late write can land in
//! it, no late read can see its next owner's bytes.

use super::rows::pending_key;
use super::{Core, FsError};
use std::collections::BTreeSet;

/// Blocks discarded between flushes, at most.
const BATCH: usize = 4096;

/// Runs that are freed but not discarded yet: the operation that freed them, start, length.
#[derive(Default)]
pub(super) struct Freed {
    runs: Vec<(u64, u64, u64)>,
    blocks: u64,
}

impl Freed {
    pub(super) fn add(&mut self, op: u64, start: u64, length: u64) {
        self.blocks = self.blocks.saturating_add(length);
        self.runs.push((op, start, length));
    }

    /// Blocks in all runs.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where an operation that may be taken back begins.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            runs: self.runs.len(),
            blocks: self.blocks,
        }
    }

    /// Forgets what was freed since.
    pub(super) fn back_to(&mut self, mark: Mark) {
        self.runs.truncate(mark.runs);
        self.blocks = mark.blocks;
    }

    /// Takes runs freed by operations up to this number, at most [`BATCH`].
    fn take(&mut self, durable: u64) -> Vec<(u64, u64, u64)> {
        let mut taken: Vec<_> = self.runs.extract_if(.., |(op, ..)| *op <= durable).collect();
        if taken.len() > BATCH {
            self.runs.extend(taken.drain(BATCH..));
        }
        taken
    }
}

/// What was freed before an operation.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    runs: usize,
    blocks: u64,
}

/// Tickets of device calls in flight.
#[derive(Default)]
pub(super) struct InFlight {
    next: u64,
    active: BTreeSet<u64>,
}

/// A ticket; given back when dropped.
pub(super) struct Ticket<'a> {
    core: &'a Core,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.core.in_flight.lock().active.remove(&self.number);
        self.core.drained.notify_all();
    }
}

impl Core {
    pub(super) fn ticket(&self) -> Ticket<'_> {
        let mut in_flight = self.in_flight.lock();
        let number = in_flight.next;
        in_flight.next += 1;
        in_flight.active.insert(number);
        Ticket { core: self, number }
    }

    fn wait_for_tickets(&self) {
        let mut in_flight = self.in_flight.lock();
        let now = in_flight.next;
        while in_flight.active.first().is_some_and(|oldest| *oldest < now) {
            self.drained.wait(&mut in_flight);
        }
    }

    /// Discards what durable operations freed and makes it free. Returns how many blocks.
    pub(super) fn reclaim(&self) -> Result<u64, FsError> {
        let _one = self.reclaiming.lock();
        self.reclaim_alone()
    }

    fn reclaim_alone(&self) -> Result<u64, FsError> {
        let durable = self.durable();
        let mut total = 0;
        loop {
            let taken = self.state.lock().freed.take(durable);
            if taken.is_empty() {
                return Ok(total);
            }
            self.wait_for_tickets();
            let mut runs: Vec<(u64, u64)> = taken.iter().map(|(_, start, length)| (*start, *length)).collect();
            runs.sort_unstable();
            runs.dedup_by(|next, run| {
                let joins = run.0 + run.1 == next.0;
                if joins {
                    run.1 += next.1;
                }
                joins
            });
            let discarded = runs
                .iter()
                .try_for_each(|(start, length)| self.device.discard(*start, *length))
                .and_then(|()| self.device.flush());
            let freed = discarded
                .map_err(FsError::from)
                .and_then(|()| self.make_free(&taken, &runs));
            match freed {
                Ok(blocks) => total += blocks,
                Err(e) => {
                    self.state.lock().freed.runs.extend(taken);
                    return Err(e);
                }
            }
        }
    }

    /// Moves discarded runs from the pending rows to the free ones.
    fn make_free(&self, taken: &[(u64, u64, u64)], runs: &[(u64, u64)]) -> Result<u64, FsError> {
        let mut state = self.begin()?;
        let mut blocks = 0;
        for (_, start, length) in taken {
            state.store.delete(pending_key(*start));
            state.freed.blocks = state.freed.blocks.saturating_sub(*length);
            blocks += length;
        }
        for (start, length) in runs {
            state.add_free(*start, *length)?;
        }
        Ok(blocks)
    }

    /// Gives back freed space now, when an allocation found none. False when there was none to give back.
    pub(super) fn reclaim_now(&self) -> Result<bool, FsError> {
        // Another may be just giving it back.
        let _one = self.reclaiming.lock();
        let state = self.state.lock();
        if state.counters.free > 0 {
            return Ok(true);
        }
        if state.freed.blocks() == 0 {
            return Ok(false);
        }
        drop(state);
        self.commit_all()?;
        Ok(self.reclaim_alone()? > 0)
    }
}
