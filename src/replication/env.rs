//! What replication needs from the outside: the record that says who holds copies and the addresses of
//! nodes. Traits, so that tests and the simulation put their own behind them.

use crate::volume::{Configuration, EventKind, FailureRule, NodeId, VolumeId};
use async_trait::async_trait;
use std::time::Duration;

/// What the control store says of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    /// Who holds the copies, at which epoch.
    pub configuration: Configuration,
    /// When it may be written.
    pub rule: FailureRule,
    /// How long a call waits for the volume to become usable before it fails (label `storageos.com/io.timeout`).
    pub io_timeout: Duration,
    /// Size of the device in blocks: file data and the file system's own metadata.
    pub blocks: u64,
    /// Whether the volume has ever been written; see [`crate::volume::Volume::formatted`].
    pub formatted: bool,
    /// Raised by every new mount claim (for instance its time in microseconds); a device call of a lower one is
    /// refused, so that the mount before cannot write any more. 0: never mounted.
    pub attachment: u64,
}

/// Why a configuration could not be changed or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Somebody else changed it first; this is what it is now.
    #[error("the configuration was changed meanwhile, it is now at epoch {}", .0.epoch)]
    Conflict(Box<Configuration>),
    /// The control plane does not answer.
    #[error("the control plane is unavailable: {0}")]
    Unavailable(String),
    /// The volume is no more.
    #[error("the volume has been removed")]
    Gone,
}

/// The control store, as far as replication needs it.
#[async_trait]
pub trait ConfigStore: Send + Sync + 'static {
    /// The volume's state as of now (linearizable: never older than a change that was acknowledged before the call).
    ///
    /// # Errors
    /// [`ConfigError::Unavailable`] or [`ConfigError::Gone`].
    async fn read(&self, volume: VolumeId) -> Result<VolumeState, ConfigError>;

    /// Replaces the configuration if its epoch still is `expected_epoch`. `reason` is for the log and the event.
    ///
    /// # Errors
    /// See [`ConfigError`]. After [`ConfigError::Unavailable`] the change may or may not have happened.
    async fn swap(
        &self,
        volume: VolumeId,
        expected_epoch: u64,
        new: Configuration,
        reason: &str,
    ) -> Result<(), ConfigError>;

    /// Takes the volume from whoever has it mounted, if its configuration's epoch still is `expected_epoch`: a new number of
    /// [`VolumeState::attachment`], which is returned.
    ///
    /// # Errors
    /// See [`ConfigError`]. After [`ConfigError::Unavailable`] it may or may not have happened.
    async fn end_mounts(&self, volume: VolumeId, expected_epoch: u64) -> Result<u64, ConfigError>;
}

/// Where nodes are.
pub trait Peers: Send + Sync + 'static {
    /// `HOST:PORT` of a node's port for its peers, if the node is known.
    fn address(&self, node: NodeId) -> Option<String>;
}

/// Which nodes have a part in a volume, as the records say. Asked when a node begins something, not for each call: a node that has none must not
/// take a copy from its master, nor a volume from its mount, by making up an epoch or a claim. An implementation that knows nothing yet lets all pass.
#[async_trait]
pub trait Parts: Send + Sync + 'static {
    /// Whether the node holds a copy of the volume: so it may be its master, or have become it just now.
    async fn holds(&self, volume: VolumeId, node: NodeId) -> bool;

    /// Whether the node has the volume mounted.
    async fn mounts(&self, volume: VolumeId, node: NodeId) -> bool;
}

/// Hears of what happens to volumes. Must not block: it is told from the middle of things.
pub trait Observer: Send + Sync + 'static {
    /// Something happened, to the copy on `node` if one is named; `detail`: why, if it is known.
    fn happened(&self, volume: VolumeId, kind: EventKind, node: Option<NodeId>, detail: &str);
}

/// Nobody listens.
impl Observer for () {
    fn happened(&self, _: VolumeId, _: EventKind, _: Option<NodeId>, _: &str) {}
}
