//! Counters of one master, for metrics and `volume inspect`. They only grow.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of a master since its activation.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($name: AtomicU64,)*
        }

        /// The values of [`Stats`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct StatsSnapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// The values now.
            #[must_use]
            pub fn snapshot(&self) -> StatsSnapshot {
                StatsSnapshot {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters!(
    /// Calls of read.
    reads,
    /// Bytes read.
    read_bytes,
    /// Messages of writes.
    writes,
    /// Bytes written, once whatever the number of copies.
    write_bytes,
    /// Flushes, those of a write included; callers that shared one count once.
    flushes,
    /// Discards.
    discards,
    /// Blocks found corrupt on the master's copy.
    corruptions,
    /// Corrupt blocks replaced by another copy's.
    repairs,
    /// Replicas dropped from the in-sync set.
    drops,
    /// Syncs completed.
    syncs,
    /// Blocks that differed and were sent by syncs.
    sync_blocks,
);

impl Stats {
    pub(super) fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.write_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn flushed(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn discarded(&self) {
        self.discards.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn corrupt(&self) {
        self.corruptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn repaired(&self) {
        self.repairs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, count: u64) {
        self.drops.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn synced(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, blocks: u64) {
        self.sync_blocks.fetch_add(blocks, Ordering::Relaxed);
    }
}
