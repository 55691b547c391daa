//! A copy on this node, as replication uses it: the seam between the protocol and the disk.
//!
//! `disk` puts [`crate::block`]'s store behind it; tests put memory, with faults, behind it.

use crate::volume::VolumeId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub use crate::block::{Sum, sum_of};

/// The sum of a block that reads as zero.
pub const ZERO_SUM: Sum = [0; 32];

/// Why a call on a copy failed. Travels over the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CopyError {
    /// The caller's epoch or session is not the one in force.
    #[error("stale: this copy is at epoch {epoch}, session {session}")]
    Stale {
        /// The copy's epoch.
        epoch: u64,
        /// The session that may write to it.
        session: u64,
    },
    /// The node has no copy of the volume.
    #[error("this node has no copy of the volume")]
    Missing,
    /// A block's bytes do not match its sum.
    #[error("block {block} does not match its sum")]
    Corrupt {
        /// The first such block.
        block: u64,
    },
    /// The disk is full.
    #[error("disk full: {0}")]
    NoSpace(String),
    /// The disk failed, or the copy is damaged or in use.
    #[error("copy failed: {0}")]
    Failed(String),
    /// The message makes no sense: a range outside of the copy, sums that do not fit the data.
    #[error("bad request: {0}")]
    Invalid(String),
}

/// One contiguous write to a copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyWrite<'a> {
    /// First block.
    pub block: u64,
    /// Whole blocks.
    pub data: &'a [u8],
    /// The sum of each.
    pub sums: &'a [Sum],
}

/// How a copy was found when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// It had been closed in order: it is what it was.
    pub clean: bool,
    /// The machine has not restarted since it was last open: what was written is there, flushed or not.
    pub same_boot: bool,
    /// Extents that may have been in flight when it was last open.
    pub hot: Vec<u64>,
}

impl Found {
    /// Whether acknowledged writes that were not flushed may be missing.
    #[must_use]
    pub fn intact(&self) -> bool {
        self.clean || self.same_boot
    }
}

/// An open copy. Calls block; they may come from many threads at once, writes that overlap never at once.
pub trait Copy: Send + Sync + 'static {
    /// Size in blocks.
    fn blocks(&self) -> u64;
    /// The highest epoch it has seen.
    fn epoch(&self) -> u64;
    /// Persists a higher epoch (an equal one is fine).
    ///
    /// # Errors
    /// The disk's.
    fn advance_epoch(&self, epoch: u64) -> Result<(), CopyError>;
    /// Writes blocks and sums; with `flush`, makes them and all before durable.
    ///
    /// # Errors
    /// See [`CopyError`].
    fn write(&self, epoch: u64, writes: &[CopyWrite<'_>], flush: bool) -> Result<(), CopyError>;
    /// Reads whole blocks, verified.
    ///
    /// # Errors
    /// [`CopyError::Corrupt`] and the disk's.
    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), CopyError>;
    /// The sums of blocks.
    ///
    /// # Errors
    /// The disk's.
    fn sums(&self, block: u64, count: u64) -> Result<Vec<Sum>, CopyError>;
    /// The hash of an extent's sums; [`ZERO_SUM`] for one that reads as zero.
    ///
    /// # Errors
    /// The disk's.
    fn extent_hash(&self, extent: u64) -> Result<Sum, CopyError>;
    /// Extents that may hold something, ascending.
    ///
    /// # Errors
    /// The disk's.
    fn allocated_extents(&self) -> Result<Vec<u64>, CopyError>;
    /// Reads an extent's bytes and names the blocks that do not match their sums.
    ///
    /// # Errors
    /// The disk's.
    fn verify_extent(&self, extent: u64) -> Result<Vec<u64>, CopyError>;
    /// Whether a write to these blocks, now, would not wait for the disk: a hint.
    fn is_hot(&self, block: u64, count: u64) -> bool;
    /// Extents that may be in flight.
    fn hot_extents(&self) -> Vec<u64>;
    /// Makes blocks read as zero.
    ///
    /// # Errors
    /// See [`CopyError`].
    fn discard(&self, epoch: u64, block: u64, count: u64) -> Result<(), CopyError>;
    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// See [`CopyError`].
    fn flush(&self, epoch: u64) -> Result<(), CopyError>;
    /// Replaces a corrupt block; its sum becomes that of `data`.
    ///
    /// # Errors
    /// See [`CopyError`].
    fn repair(&self, epoch: u64, block: u64, data: &[u8]) -> Result<(), CopyError>;
    /// Grows to `blocks`.
    ///
    /// # Errors
    /// See [`CopyError`].
    fn grow(&self, blocks: u64) -> Result<(), CopyError>;
    /// Says that it holds every acknowledged write again, whatever it had lost; until then it is found as one that may lack some,
    /// however often it is opened or closed.
    ///
    /// # Errors
    /// The disk's.
    fn vouch(&self) -> Result<(), CopyError>;
    /// Why the copy can no longer be written, if so.
    fn failed(&self) -> Option<String>;
    /// Flushes and marks it clean. Calls after this fail.
    ///
    /// # Errors
    /// The disk's.
    fn close(&self) -> Result<(), CopyError>;
    /// Lets go of the files of a copy that failed, so that it can be opened again. No other call is in progress; later ones fail.
    fn give_up(&self);
}

/// All the copies that a node's disk holds. Blocking calls.
pub trait Copies: Send + Sync + 'static {
    /// Makes an empty copy.
    ///
    /// # Errors
    /// There is one already, or the disk's.
    fn create(&self, volume: VolumeId, blocks: u64, epoch: u64) -> Result<Arc<dyn Copy>, CopyError>;
    /// Opens a copy.
    ///
    /// # Errors
    /// [`CopyError::Missing`] or the disk's.
    fn open(&self, volume: VolumeId) -> Result<(Arc<dyn Copy>, Found), CopyError>;
    /// Removes a copy that is not open; no copy is no error.
    ///
    /// # Errors
    /// The disk's.
    fn remove(&self, volume: VolumeId) -> Result<(), CopyError>;
    /// The volumes with a copy here, open or not.
    ///
    /// # Errors
    /// The disk's.
    fn list(&self) -> Result<Vec<VolumeId>, CopyError>;
}
