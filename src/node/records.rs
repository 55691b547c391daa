//! The control store as replication sees it: [`ConfigStore`] and [`Peers`].

use super::control::Control;
use crate::cluster::CatalogError;
use crate::fs;
use crate::replication::{ConfigError, ConfigStore, Peers, VolumeState};
use crate::volume::{Configuration, NodeId, Volume, VolumeId, VolumeLabels};
use async_trait::async_trait;

/// See the module's text.
pub(crate) struct Records(pub(crate) Control);

/// What replication needs of a volume's record.
pub(crate) fn state(volume: &Volume) -> VolumeState {
    let labels = VolumeLabels::of(&volume.labels);
    VolumeState {
        configuration: volume.configuration.clone(),
        rule: labels.failure_rule(),
        io_timeout: labels.io_timeout,
        blocks: fs::device_blocks(volume.size),
        formatted: volume.formatted,
        attachment: volume.mounts,
    }
}

fn translate(error: CatalogError) -> ConfigError {
    match error {
        CatalogError::NotFound { .. } => ConfigError::Gone,
        CatalogError::Epoch(now) => ConfigError::Conflict(now),
        other => ConfigError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl ConfigStore for Records {
    async fn read(&self, volume: VolumeId) -> Result<VolumeState, ConfigError> {
        let record = self.0.catalog.volume_by_id(volume).await.map_err(translate)?;
        record.as_ref().map(state).ok_or(ConfigError::Gone)
    }

    async fn swap(
        &self,
        volume: VolumeId,
        expected_epoch: u64,
        new: Configuration,
        reason: &str,
    ) -> Result<(), ConfigError> {
        self.0
            .catalog
            .swap_configuration(volume, expected_epoch, &new, reason)
            .await
            .map_err(translate)
    }

    async fn end_mounts(&self, volume: VolumeId, expected_epoch: u64) -> Result<u64, ConfigError> {
        let ended = self.0.catalog.end_mounts(volume, expected_epoch).await;
        Ok(ended.map_err(translate)?.mounts)
    }
}

/// Where nodes are, by the last view.
pub(crate) struct Addresses(pub(crate) Control);

impl Peers for Addresses {
    fn address(&self, node: NodeId) -> Option<String> {
        self.0.view().nodes.get(&node).map(|n| n.address.clone())
    }
}
