//! The control store as replication sees it: [`ConfigStore`], [`Parts`] and [`Peers`].

use super::control::Control;
use crate::cluster::CatalogError;
use crate::cluster::View;
use crate::exec::time::timeout;
use crate::fs;
use crate::replication::{ConfigError, ConfigStore, Parts, Peers, VolumeState};
use crate::volume::{Configuration, NodeId, Volume, VolumeId, VolumeLabels};
use async_trait::async_trait;
use std::time::Duration;

/// How long a change of the records may take to reach this node, before who needs it is refused.
const NEWS: Duration = Duration::from_secs(2);

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

/// Who has a part in a volume, by the last view.
pub(crate) struct KnownParts(pub(crate) Control);

impl KnownParts {
    /// Whether the view says so, or does soon: it may be behind.
    async fn says(&self, test: impl Fn(&View) -> bool) -> bool {
        let mut view = self.0.watch();
        if view.borrow().revision == 0 {
            // Nothing is known yet, for instance while the control plane does not answer. Volumes go on without it.
            return true;
        }
        let said = view.wait_for(|view| test(view));
        timeout(NEWS, said).await.is_ok_and(|said| said.is_ok())
    }
}

#[async_trait]
impl Parts for KnownParts {
    async fn holds(&self, volume: VolumeId, node: NodeId) -> bool {
        let holds = |volume: &Volume| volume.configuration.has_copy_on(node);
        self.says(|view| view.volumes.get(&volume).is_some_and(|volume| holds(volume)))
            .await
    }

    async fn mounts(&self, volume: VolumeId, node: NodeId) -> bool {
        let claims = |volume: &Volume| volume.mount.as_ref().is_some_and(|claim| claim.node == node);
        self.says(|view| view.volumes.get(&volume).is_some_and(|volume| claims(volume)))
            .await
    }
}
