//! What this node does about volumes: follows the control store's view and starts, for each volume that concerns it, what
//! has to run here.
//!
//! Level-triggered: each round looks at the whole view and at what is on the disk, and mends the difference; a missed or repeated
//! change does no harm. Copies are created by the master's fence ([`crate::replication`]); they are removed here, and
//! only after a linearizable read has said that the volume or this node's part in it is gone.

use super::control::Control;
use super::journal::{self, Journal};
use super::keeper::{Keepers, Serving};
use super::mounts::Mounts;
use crate::cluster::View;
use crate::replication::{Environment, Options, ReplicaHost};
use crate::volume::VolumeId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A round is made at least this often, for what no change announces (a copy that failed, a removal that failed).
const ROUND: Duration = Duration::from_secs(5);

/// See the module's text.
pub(super) struct Volumes {
    pub(super) serving: Arc<Serving>,
    pub(super) mounts: Arc<Mounts>,
    pub(super) journal: Arc<Journal>,
    directory: PathBuf,
    keepers: Keepers,
    /// Changes of epochs that this daemon saw.
    epoch_changes: Mutex<BTreeMap<VolumeId, u64>>,
    stop: CancellationToken,
}

impl Volumes {
    /// Nothing runs until [`Volumes::run`]. `directory`: where the copies are.
    pub(super) fn new(
        host: Arc<ReplicaHost>,
        environment: Environment,
        options: Options,
        control: Control,
        mounts: Arc<Mounts>,
        journal: Arc<Journal>,
        directory: PathBuf,
    ) -> Arc<Self> {
        let serving = Arc::new(Serving {
            node: host.node(),
            host,
            environment,
            options,
            control,
            problems: Arc::default(),
            activations: Arc::default(),
        });
        let stop = CancellationToken::new();
        Arc::new(Self {
            keepers: Keepers::new(serving.clone(), stop.clone()),
            serving,
            mounts,
            journal,
            directory,
            epoch_changes: Mutex::default(),
            stop,
        })
    }

    /// Follows the view until [`Volumes::stop`].
    pub(super) async fn run(self: Arc<Self>) {
        // Side by side: a removal asks the control plane, which may take its time to answer.
        let masters = async {
            let mut view = self.serving.control.watch();
            let mut before: Option<Arc<View>> = None;
            while let Some(now) = self.next(&mut view).await {
                if let Some(before) = before.replace(now.clone()) {
                    journal::record_changes(&self.journal, &before, &now);
                    self.count_epochs(&before, &now);
                }
                self.keepers.keep_masters(&now);
                self.mounts.check_claims(&now);
            }
        };
        let removals = async {
            let mut view = self.serving.control.watch();
            while let Some(now) = self.next(&mut view).await {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = self.remove_copies(&now) => {}
                }
            }
        };
        futures::future::join(masters, removals).await;
    }

    /// The view for the next round: after a change, or after [`ROUND`]. `None`: the end.
    async fn next(&self, view: &mut watch::Receiver<Arc<View>>) -> Option<Arc<View>> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(ROUND) => {}
                changed = view.changed() => changed.ok()?,
            }
            let now = view.borrow_and_update().clone();
            // Nothing is decided before the store has answered once.
            if now.revision > 0 {
                return Some(now);
            }
        }
    }

    fn count_epochs(&self, before: &View, now: &View) {
        let mut changes = self.epoch_changes.lock();
        changes.retain(|volume, _| now.volumes.contains_key(volume));
        for (id, volume) in &now.volumes {
            let old = before.volumes.get(id).map(|v| v.configuration.epoch);
            if old.is_some_and(|old| old != volume.configuration.epoch) {
                *changes.entry(*id).or_default() += 1;
            }
        }
    }

    /// Changes of a volume's epoch that this daemon saw.
    pub(super) fn epoch_changes(&self, volume: VolumeId) -> u64 {
        self.epoch_changes.lock().get(&volume).copied().unwrap_or(0)
    }

    /// Removes copies of volumes that are gone, and those that this node is to hold no longer.
    async fn remove_copies(&self, view: &View) {
        let Some(copies) = self.copies_on_disk().await else {
            return;
        };
        self.serving.remove_unwanted(view, copies).await;
    }

    /// The volumes that have a directory here.
    async fn copies_on_disk(&self) -> Option<Vec<VolumeId>> {
        let directory = self.directory.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(directory)? {
                if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                    found.push(id);
                }
            }
            Ok::<_, std::io::Error>(found)
        });
        match listed.await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::warn!(directory = %self.directory.display(), %error, "the copies' directory cannot be read");
                None
            }
            Err(_) => None,
        }
    }

    /// Ends the masters and closes the copies. Mounts must have ended.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.keepers.ended().await;
        let host = self.serving.host.clone();
        let volumes: Vec<VolumeId> = self.serving.control.view().volumes.keys().copied().collect();
        let closed = tokio::task::spawn_blocking(move || {
            for volume in volumes {
                if let Some(master) = host.master(volume) {
                    use crate::block::BlockDevice;
                    if let Err(error) = master.flush() {
                        tracing::warn!(%volume, %error, "the last flush failed");
                    }
                    master.stop();
                }
            }
            host.close();
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, "closing the copies was interrupted");
        }
    }
}
