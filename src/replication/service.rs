//! The messages of replication: the tarpc service that every node with copies serves on its data and sync connections.
//!
//! Block bytes and their hashes are [`Payload`]s: they never pass through serde. Every call that changes a copy
//! carries a [`Stamp`]; a copy takes only the stamp of its last `fence`.

use super::store::CopyError;
use crate::{
    block::DeviceError,
    rpc::{Payload, Sums},
    volume::VolumeId,
};
use serde::{Deserialize, Serialize};

/// Most bytes of block data in one message; leaves room for their sums under the frame's limit.
pub const MAX_DATA: usize = 4 << 20;
/// Most ranges in one message.
pub const MAX_RANGES: usize = 1024;
/// Most extents asked for in one message.
pub const MAX_EXTENTS: usize = 4096;

/// Whose message it is: a copy refuses any but the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The volume.
    pub volume: VolumeId,
    /// The configuration's epoch.
    pub epoch: u64,
    /// Numbered by the master, raised for each connection: a message left over in a broken connection is refused.
    pub session: u64,
}

/// Blocks of one message: `data[i]` goes to `ranges[i]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Blocks {
    /// First block and number of blocks, not overlapping.
    pub ranges: Vec<(u64, u32)>,
    /// Their bytes.
    pub data: Vec<Payload>,
    /// The sum of each block, in order.
    pub sums: Sums,
}

/// Position of a write among the master's writes, so that copies know which ones may differ between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch at which the master was activated: numbers start anew with each.
    pub term: u64,
    /// This write's number.
    pub number: u64,
    /// All writes of lower terms, and all of this term with a lower number, are on every copy.
    pub settled: u64,
}

/// A copy's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyState {
    /// The highest epoch it has seen.
    pub epoch: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Random at each opening: tells whether the copy was reopened since.
    pub incarnation: u64,
    /// Whether it holds every write that it ever acknowledged (see [`super::store::Found::intact`]).
    pub intact: bool,
    /// Extents that may differ from other copies: hot in the activity log, or written and not known to be settled.
    pub hot: Vec<u64>,
    /// Why it can no longer be written, if so.
    pub failed: Option<String>,
}

/// Who makes a device call: the mount's claim, and the connection of that mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// See [`super::VolumeState::attachment`].
    pub attachment: u64,
    /// Raised by the caller at each attempt to reach the master.
    pub session: u64,
}

/// Why a device call over the network failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RemoteError {
    /// This node is not the volume's master, or not yet or no longer: ask the control plane again.
    #[error("this node is not the volume's active master")]
    NotMaster,
    /// A later mount took over.
    #[error("another mount has taken the volume over")]
    Superseded,
    /// The range is outside of the device.
    #[error("blocks {block}+{count} are outside the device of {blocks} blocks")]
    OutOfRange {
        /// First block.
        block: u64,
        /// Number of blocks.
        count: u64,
        /// Size of the device.
        blocks: u64,
    },
    /// See [`DeviceError::ReadOnly`].
    #[error("volume is read-only: {0}")]
    ReadOnly(String),
    /// See [`DeviceError::Unavailable`].
    #[error("volume is unavailable: {0}")]
    Unavailable(String),
    /// See [`DeviceError::NoSpace`].
    #[error("no space left: {0}")]
    NoSpace(String),
    /// See [`DeviceError::Corrupt`].
    #[error("block {block} is corrupt on every copy")]
    Corrupt {
        /// The block.
        block: u64,
    },
    /// See [`DeviceError::Io`].
    #[error("I/O error: {0}")]
    Io(String),
}

impl From<DeviceError> for RemoteError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::OutOfRange { block, count, blocks } => Self::OutOfRange { block, count, blocks },
            DeviceError::ReadOnly(why) => Self::ReadOnly(why),
            DeviceError::Unavailable(why) => Self::Unavailable(why),
            DeviceError::NoSpace(why) => Self::NoSpace(why),
            DeviceError::Corrupt { block } => Self::Corrupt { block },
            // The caller finds the new master.
            DeviceError::Fenced(_) => Self::NotMaster,
            DeviceError::Io(why) => Self::Io(why),
        }
    }
}

impl From<RemoteError> for DeviceError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::NotMaster => Self::Unavailable("its master is changing".to_owned()),
            RemoteError::Superseded => Self::Fenced("another mount has taken the volume over".to_owned()),
            RemoteError::OutOfRange { block, count, blocks } => Self::OutOfRange { block, count, blocks },
            RemoteError::ReadOnly(why) => Self::ReadOnly(why),
            RemoteError::Unavailable(why) => Self::Unavailable(why),
            RemoteError::NoSpace(why) => Self::NoSpace(why),
            RemoteError::Corrupt { block } => Self::Corrupt { block },
            RemoteError::Io(why) => Self::Io(why),
        }
    }
}

/// What a node with copies does for others.
#[tarpc::service]
pub trait Data {
    /// Makes `stamp` the only one that the copy takes, once every call of an older one has ended; persists its epoch.
    /// With `create`, an absent copy is made, of so many blocks.
    async fn fence(stamp: Stamp, create: Option<u64>) -> Result<CopyState, CopyError>;
    /// Writes blocks.
    async fn write(stamp: Stamp, position: Position, blocks: Blocks, flush: bool) -> Result<(), CopyError>;
    /// Makes what was written durable.
    async fn flush(stamp: Stamp) -> Result<(), CopyError>;
    /// Makes blocks read as zero.
    async fn discard(stamp: Stamp, position: Position, block: u64, count: u64) -> Result<(), CopyError>;
    /// Grows the copy.
    async fn grow(stamp: Stamp, blocks: u64) -> Result<(), CopyError>;
    /// Replaces one block that is corrupt on that copy.
    async fn repair(stamp: Stamp, block: u64, data: Payload) -> Result<(), CopyError>;
    /// Reads and verifies blocks; their sums come along.
    async fn read(volume: VolumeId, block: u64, count: u32) -> Result<(Payload, Sums), CopyError>;
    /// The hashes of extents.
    async fn extent_hashes(volume: VolumeId, extents: Vec<u64>) -> Result<Sums, CopyError>;
    /// The sums of blocks.
    async fn block_sums(volume: VolumeId, block: u64, count: u32) -> Result<Sums, CopyError>;
    /// Extents that may hold something, from `from` on: at most [`MAX_EXTENTS`], ascending.
    async fn allocated(volume: VolumeId, from: u64) -> Result<Vec<u64>, CopyError>;
    /// The blocks of an extent whose bytes do not match their sums.
    async fn verify_extent(volume: VolumeId, extent: u64) -> Result<Vec<u64>, CopyError>;
    /// The copy's state.
    async fn status(volume: VolumeId) -> Result<CopyState, CopyError>;

    /// Starts a session with the volume's active master, ending older ones; the answer is the device's size in blocks.
    async fn device_open(volume: VolumeId, caller: Caller) -> Result<u64, RemoteError>;
    /// [`crate::block::BlockDevice::read`].
    async fn device_read(volume: VolumeId, caller: Caller, block: u64, count: u32) -> Result<Payload, RemoteError>;
    /// [`crate::block::BlockDevice::write`]; the sums are the caller's.
    async fn device_write(volume: VolumeId, caller: Caller, blocks: Blocks, flush: bool) -> Result<(), RemoteError>;
    /// [`crate::block::BlockDevice::discard`].
    async fn device_discard(volume: VolumeId, caller: Caller, block: u64, count: u64) -> Result<(), RemoteError>;
    /// [`crate::block::BlockDevice::flush`].
    async fn device_flush(volume: VolumeId, caller: Caller) -> Result<(), RemoteError>;
    /// Whether the copy would take a message with this stamp. Answers at once.
    async fn heartbeat(stamp: Stamp) -> Result<(), CopyError>;
    /// Answers at once: tells a slow call from a dead node.
    async fn ping() -> ();
    /// The device's size in blocks.
    async fn device_blocks(volume: VolumeId, caller: Caller) -> Result<u64, RemoteError>;
}
