//! What a master counts besides [`super::Stats`]: how long calls took, failures, and what went over the network. Not sent between nodes.
//!
//! All of it is updated on the way of every read and write: atomic additions only.

use crate::metrics::Histogram;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls of one kind to other copies.
#[derive(Debug, Default)]
pub struct Traffic {
    calls: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Traffic {
    pub(super) fn add(&self, calls: u64, bytes: u64, errors: u64) {
        self.calls.fetch_add(calls, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if errors > 0 {
            self.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }

    /// Calls, bytes of blocks in them, and calls that failed.
    #[must_use]
    pub fn totals(&self) -> [u64; 3] {
        [&self.calls, &self.bytes, &self.errors].map(|count| count.load(Ordering::Relaxed))
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Meters {
    /// Reads of the device.
    pub read: Histogram,
    /// Writes of the device, one message each, waiting for enough copies included.
    pub write: Histogram,
    /// Flushes without a write; callers that shared one count once.
    pub flush: Histogram,
    /// Discards and growths, which only matter to who shares the device.
    pub(super) other: Histogram,
    /// Changes sent to other copies.
    pub sent: Traffic,
    /// Reads asked of other copies.
    pub asked: Traffic,
    read_errors: AtomicU64,
    write_errors: AtomicU64,
}

impl Meters {
    pub(super) fn read_failed(&self) {
        self.read_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn write_failed(&self) {
        self.write_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads and writes of the device that failed.
    #[must_use]
    pub fn errors(&self) -> [u64; 2] {
        [&self.read_errors, &self.write_errors].map(|count| count.load(Ordering::Relaxed))
    }
}
