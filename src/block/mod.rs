//! One copy of a volume on one node, and the block device interface that the layers above speak.
//! Knows nothing of the network or of other copies.
//!
//! # A copy on disk
//! A directory with four files: `data` (the blocks, in place, sparse), `sums` (a 32-byte blake3 hash for each block, sparse),
//! `activity` (extents that may be in flight) and `header` (volume, epoch, size, clean flag). `docs/formats.md` has the bytes.
//!
//! # A write
//! The extents it touches are hot, or are entered into the activity log, durably, first. Then data and sums are written
//! to the page cache. A flush is one `fdatasync` of `data`, shared by all who wait for one; sums are not synced with it.
//!
//! # After a crash
//! Only hot extents may differ from their sums: their sums are computed anew from the data. Hot extents are reported at every
//! opening, so that replication compares them with the other copies. An extent goes cold after data and sums were both synced.
//! A crash of the process alone loses nothing that a write call returned for; a power loss may lose what was not flushed.
//!
//! # Failures
//! A full disk, an I/O error or a failed sync makes the copy *failed*: it says why, and refuses everything from then on,
//! since what a failed sync left on the disk is unknown. Bytes that do not match their sum are never returned.
//!
//! # Fencing
//! Every write, discard and flush carries the epoch. A copy refuses a lower epoch than it has seen; a new one is made durable, and
//! writes in flight are waited for, before [`CopyStore::advance_epoch`] returns.

mod activity;
mod device;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod header;
mod io;
mod local;
mod store;
mod sums;
#[cfg(test)]
mod tests;

pub use device::{BLOCK_SIZE, BlockDevice, DeviceError, EXTENT_BLOCKS, EXTENT_SIZE, Write};
pub use error::StoreError;
pub use local::LocalDevice;
pub use store::{CopyDescription, CopyStore, Opened, Usage};
pub use sums::{Sum, sum_of, sums_of};
