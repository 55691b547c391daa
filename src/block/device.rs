//! The block device: what a file system sees of a volume.
//!
//! Blocking calls, made from threads that may wait. Offsets are in blocks of [`BLOCK_SIZE`] bytes. A write is complete
//! when it returns (every in-sync copy holds it); it is durable after the next [`BlockDevice::flush`]. Two writes in
//! flight at once that overlap reach every copy in the same order. Blocks never written, or discarded, read as zero.

use bytes::Bytes;

/// Bytes of a block: the unit of addressing, hashing and verification.
pub const BLOCK_SIZE: usize = 4096;
/// Blocks of an extent: the unit of the activity log and of comparison between copies.
pub const EXTENT_BLOCKS: u64 = 1024;
/// Bytes of an extent (4 MiB).
pub const EXTENT_SIZE: u64 = EXTENT_BLOCKS * BLOCK_SIZE as u64;

/// Why a device call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// The range is not inside the device or the buffer is not whole blocks: a mistake of the caller.
    #[error("blocks {block}+{count} are outside the device of {blocks} blocks")]
    OutOfRange {
        /// First block asked for.
        block: u64,
        /// Number of blocks.
        count: u64,
        /// Size of the device.
        blocks: u64,
    },
    /// The volume may not be written now, and waiting for it took longer than its `io.timeout`.
    #[error("volume is read-only: {0}")]
    ReadOnly(String),
    /// No copy could serve the call within its deadline.
    #[error("volume is unavailable: {0}")]
    Unavailable(String),
    /// The disk under the last copy that matters is full.
    #[error("no space left under the volume's copies: {0}")]
    NoSpace(String),
    /// Every copy's version of a block fails its hash.
    #[error("block {block} is corrupt on every copy")]
    Corrupt {
        /// The block.
        block: u64,
    },
    /// This node has been fenced: another epoch is in force.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The disk failed.
    #[error("I/O error: {0}")]
    Io(String),
}

/// One contiguous write: whole blocks from `block` on.
#[derive(Clone, Debug)]
pub struct Write {
    /// First block.
    pub block: u64,
    /// The bytes; a non-zero multiple of [`BLOCK_SIZE`].
    pub data: Bytes,
}

/// A device of blocks. See the module's text for what a call promises.
pub trait BlockDevice: Send + Sync + 'static {
    /// Size in blocks. May grow, never shrinks.
    fn blocks(&self) -> u64;

    /// Reads whole blocks from `block` on into `buffer` (a multiple of [`BLOCK_SIZE`]), each verified against its hash.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes, in parallel, writes that do not overlap each other; with `flush`, makes them and every write completed
    /// before durable too, in the same round trip. On an error any part may have been written.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError>;

    /// Makes blocks read as zero and gives their space back on every copy.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError>;

    /// Returns when every write completed before the call is on stable storage on every in-sync copy.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn flush(&self) -> Result<(), DeviceError>;
}
