//! Free space: runs of blocks in rows, and a window that allocations are cut from.
//!
//! The window is a run taken out of the free rows; its bounds are in the counters' row, so that an allocation changes no free row
//! and blocks handed out one after the other are contiguous. A block that was handed out and written, but whose operation a crash took
//! back, is in the window as the row has it: opening discards the window, so a new block is zeros.

use super::rows::{free_key, key_number, number, pending_key};
use super::{DATA_START, FsError, State, in_data_area};
use std::ops::Bound;
use std::sync::atomic::Ordering;

/// Largest window, in blocks (64 MiB).
const WINDOW: u64 = 16384;

impl State {
    /// Cuts a run of at most `wanted` blocks; `None` when nothing is free.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Option<(u64, u64)>, FsError> {
        if self.counters.window.1 == 0 && !self.refill_window()? {
            return Ok(None);
        }
        let (start, left) = self.counters.window;
        let length = wanted.min(left);
        self.counters.window = (start + length, left - length);
        self.counters.free = self.counters.free.saturating_sub(length);
        self.put_counters();
        Ok(Some((start, length)))
    }

    fn refill_window(&mut self) -> Result<bool, FsError> {
        let from = free_key(self.cursor);
        let mut row = self.store.first(Bound::Included(&from), &free_key(u64::MAX))?;
        if row.is_none() {
            row = self.store.first(Bound::Included(&free_key(DATA_START)), &from)?;
        }
        let Some((key, value)) = row else {
            return Ok(false);
        };
        let (start, length) = self.free_run(&key, &value)?;
        let taken = length.min(WINDOW);
        self.store.delete(free_key(start));
        if length > taken {
            self.store
                .put(free_key(start + taken), (length - taken).to_le_bytes().to_vec());
        }
        self.cursor = start + taken;
        self.counters.window = (start, taken);
        self.window_since.store(self.op, Ordering::Release);
        Ok(true)
    }

    /// The run of a free row.
    fn free_run(&self, key: &[u8], value: &[u8]) -> Result<(u64, u64), FsError> {
        let run = key_number(key, 0).zip(number(value)).filter(|_| key.len() == 9);
        run.filter(|(start, length)| in_data_area(*start, *length, self.data_blocks))
            .ok_or_else(|| self.store.damaged("a row of free space is damaged".to_owned()))
    }

    /// A run that was never used, or is discarded and flushed, becomes free.
    pub(super) fn add_free(&mut self, mut start: u64, mut length: u64) -> Result<(), FsError> {
        self.counters.free = self.counters.free.saturating_add(length);
        let before = self
            .store
            .last(&free_key(DATA_START), Bound::Excluded(&free_key(start)))?;
        if let Some((key, value)) = before
            && let (before, its) = self.free_run(&key, &value)?
            && before + its == start
        {
            self.store.delete(key);
            (start, length) = (before, its + length);
        }
        let after = free_key(start + length);
        if let Some(value) = self.store.get(&after)? {
            let (_, its) = self.free_run(&after, &value)?;
            self.store.delete(after);
            length += its;
        }
        self.store.put(free_key(start), length.to_le_bytes().to_vec());
        self.put_counters();
        Ok(())
    }

    /// A run that a file gave up: pending until it is discarded.
    pub(super) fn free(&mut self, start: u64, length: u64) {
        debug_assert!(length > 0, "a run of no blocks is freed at {start}");
        self.store.put(pending_key(start), length.to_le_bytes().to_vec());
        self.freed.add(self.op, start, length);
    }
}
