//! Checks of volumes' file systems: by the node that has a volume mounted, on the file system that it serves; by the master's node, if
//! nobody has.
//!
//! The second reads the volume while nothing may write to it. A mount is never kept waiting for that: it takes its claim, and whoever asked for the
//! check sees afterwards that the record has changed, throws away what was found and asks again. A claim that was dropped by force is
//! fenced first, so that what is left of its mount writes nothing.

use super::control::name;
use super::daemon::Joined;
use super::service::NodeServer;
use crate::api::types::VolumeCheck;
use crate::api::{ApiError, Code};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError};
use crate::fs::{CheckReport, FileSystem, FsError};
use crate::volume::{Volume, VolumeId, VolumeRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a volume that is being mounted or unmounted, or whose master is, is waited for.
const SETTLE: Duration = Duration::from_secs(20);
/// Pause between looks.
const LOOK: Duration = Duration::from_millis(200);

/// What a check found, as a node tells another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Checked {
    /// This.
    Found(CheckReport),
    /// There is no file system yet.
    Blank,
    /// The volume is not mounted here, or is just being mounted or unmounted.
    Moving,
}

impl NodeServer {
    /// Checks a file system here. The caller makes sure that the record is the same afterwards, if it is not mounted.
    pub(super) async fn checked(&self, volume: VolumeId, mounted: bool, mounts: u64) -> Result<Checked, ApiError> {
        let checking: Box<dyn FnOnce() -> Result<Checked, FsError> + Send> = if mounted {
            let Some(mount) = self.mounts.get(volume) else {
                return Ok(Checked::Moving);
            };
            Box::new(move || match mount.fs.check() {
                Err(FsError::Closed) => Ok(Checked::Moving),
                other => other.map(Checked::Found),
            })
        } else {
            let master = self.host.master(volume).ok_or_else(|| {
                ApiError::unavailable("the volume's master is not active at the moment")
                    .hint("try again in a few seconds")
            })?;
            Box::new(move || {
                // Refuses a mount whose claim was dropped by force. It fails if a later claim is there, which the caller sees in the
                // record.
                let _ = master.attach(mounts);
                let device: Arc<dyn BlockDevice> = master;
                Ok(FileSystem::check_device(&device)?.map_or(Checked::Blank, Checked::Found))
            })
        };
        tokio::task::spawn_blocking(checking)
            .await
            .map_err(|error| ApiError::internal(format!("the check was interrupted: {error}")))?
            .map_err(|error| cannot_check(&error))
    }
}

fn cannot_check(error: &FsError) -> ApiError {
    let code = match error {
        FsError::Device(DeviceError::Io(_)) | FsError::Metadata(_) => Code::Internal,
        _ => Code::Unavailable,
    };
    ApiError::new(code, format!("the file system cannot be checked: {error}"))
}

impl Joined {
    /// Has a volume's file system checked by the node that can.
    pub(super) async fn check(&self, wanted: &VolumeRef) -> Result<VolumeCheck, ApiError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let record = self.control.find_volume(wanted).await?;
            if !record.formatted {
                return Err(blank(&record));
            }
            let view = self.control.view();
            let mounted = record.mount.is_some();
            let (node, address) = match &record.mount {
                Some(claim) => self.place(claim.node, &view)?,
                None => self.master(&record, &view)?,
            };
            let checked = match address {
                None => self.server.checked(record.id, mounted, record.mounts).await,
                Some(address) => {
                    self.nodes
                        .check(node, &address, record.id, mounted, record.mounts)
                        .await
                }
            };
            // What a mount did meanwhile may look like damage, or make the check fail.
            let same = mounted || {
                let now = self.control.find_volume(wanted).await?;
                now.id == record.id && now.mounts == record.mounts && now.mount.is_none()
            };
            let title = name(&record);
            let moving = match checked {
                Ok(Checked::Found(found)) if same => {
                    return Ok(VolumeCheck {
                        volume: title,
                        node_name: view.node_name(node),
                        mounted,
                        inodes: found.inodes,
                        used_bytes: found.used_blocks.saturating_mul(BLOCK_SIZE as u64),
                        capacity: found.blocks.saturating_mul(BLOCK_SIZE as u64),
                        problems: found.problems,
                        unlisted_problems: found.unlisted,
                    });
                }
                Ok(Checked::Blank) if same => return Err(blank(&record)),
                Err(error) if same && mounted && error.code == Code::Unavailable && !view.live.contains(&node) => {
                    let holder = view.node_name(node);
                    return Err(ApiError::unavailable(format!(
                        "volume {title} is mounted on node {holder}, which does not answer"
                    ))
                    .hint(format!(
                        "if it is gone for good: storageos volume unmount --force {title}, then check again"
                    )));
                }
                // A master that is just moving with a mount is active again soon.
                Err(error) if same && (error.code != Code::Unavailable || !view.live.contains(&node)) => {
                    return Err(error);
                }
                Err(error) => error,
                Ok(_) => ApiError::unavailable(format!(
                    "volume {title} is being mounted or unmounted, and could not be checked in between"
                ))
                .hint("try again"),
            };
            if Instant::now() >= deadline {
                return Err(moving);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn blank(volume: &Volume) -> ApiError {
    ApiError::conflict(format!("volume {} holds no file system yet", name(volume))).hint("the first mount makes one")
}
