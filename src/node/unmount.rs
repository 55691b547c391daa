//! How mounts end: unmounted by whoever mounted them, through the API, by SIGTERM, or because their claim was lost.

use super::control::name;
use super::mounts::{CLOSE_DEADLINE, Mount, Mounts, RELEASE_RETRY, Slot};
use crate::api::{ApiError, Code};
use crate::cluster::View;
use crate::fuse::{self, MountEnd, MountHandle, Unmount};
use crate::volume::VolumeId;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A busy mount is tried again this often while the daemon stops.
const BUSY_RETRY: Duration = Duration::from_millis(500);
/// What a stopping daemon gives programs to let go of their mounts.
pub(super) const BUSY_DEADLINE: Duration = Duration::from_secs(60);

impl Mounts {
    /// A mount is live. Blocks.
    pub(super) fn mounted(&self, mount: &Mount, handle: &Arc<MountHandle>) {
        *mount.handle.lock() = Some(handle.clone());
        self.keep(mount, handle);
        tracing::info!(
            volume = %mount.name, mountpoint = %mount.mountpoint.display(), read_only = mount.read_only, "mounted"
        );
    }

    /// Releases the claim of a mount whose file system was closed.
    pub(super) async fn finish(self: &Arc<Self>, mount: &Arc<Mount>, end: &MountEnd) {
        mount.closed.cancel();
        let (mounts, volume) = (self.clone(), mount.volume);
        let _ = tokio::task::spawn_blocking(move || mounts.let_go(volume)).await;
        if let Err(error) = end {
            tracing::error!(
                volume = %mount.name, %error,
                "the file system was not closed in order: what was written last and not synced may not be on the volume"
            );
        }
        self.release(mount.volume, mount.number).await;
        let mut slots = self.slots.lock();
        if matches!(slots.get(&mount.volume), Some(Slot::Open(open)) if Arc::ptr_eq(open, mount)) {
            slots.remove(&mount.volume);
        }
        drop(slots);
        mount.released.cancel();
    }

    /// Gives a claim back if it still is the one of this number; tries until the control plane answers, or `stop`.
    pub(super) async fn release(&self, volume: VolumeId, number: u64) {
        loop {
            let me = self.node;
            let released = self
                .control
                .change_volume(volume, |now| {
                    if now.mounts == number && now.mount.as_ref().is_some_and(|claim| claim.node == me) {
                        now.mount = None;
                    }
                    Ok(())
                })
                .await;
            match released {
                Ok(_) => return,
                Err(error) if error.code == Code::NotFound => return,
                Err(error) => tracing::warn!(%volume, %error, "a mount's claim cannot be released yet, trying again"),
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(RELEASE_RETRY) => {}
            }
        }
    }

    /// Unmounts a volume that is mounted here; returns when its file system is closed.
    pub(super) async fn unmount(&self, mount: &Arc<Mount>, force: bool) -> Result<(), ApiError> {
        let handle = mount.handle.lock().clone();
        if let Some(handle) = handle {
            let at = mount.mountpoint.display();
            match take_away(&handle, Unmount::Clean).await {
                Ok(()) => {}
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound
                        && self.ends(mount.volume, Instant::now() + CLOSE_DEADLINE).await => {}
                Err(error) if force => {
                    tracing::warn!(volume = %mount.name, mountpoint = %at, %error, "busy, detached by force");
                    self.detach(mount, &handle).await;
                }
                Err(error) => {
                    return Err(ApiError::conflict(format!(
                        "{at} (volume {}) cannot be unmounted: {error}",
                        mount.name
                    ))
                    .hint(format!(
                        "see who uses it with: fuser -vm {at}, or unmount it with --force"
                    )));
                }
            }
        }
        tokio::time::timeout(CLOSE_DEADLINE, mount.released.cancelled()).await.map_err(|_| {
            ApiError::unavailable(format!("volume {} is unmounted, but its file system is still being closed", mount.name))
                .hint("the volume or the control plane does not answer; see: storageos volume inspect, storageos cluster health")
        })
    }

    /// Takes a mount away from programs that still use it, with everything they wrote committed.
    async fn detach(&self, mount: &Arc<Mount>, handle: &Arc<MountHandle>) {
        let fs = mount.fs.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || fs.sync()).await {
            tracing::warn!(volume = %mount.name, %error, "not everything could be committed before the mount was detached");
        }
        // Aborting also ends the requests of programs that still have files open: a detached mount alone would stay for them.
        for how in [Unmount::Abort, Unmount::Lazy] {
            match take_away(handle, how).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(volume = %mount.name, %error, ?how, "the mount could not be detached"),
            }
        }
    }

    /// Ends mounts whose claim another node has taken, as `volume unmount --force` lets it.
    pub(super) fn check_claims(self: &Arc<Self>, view: &View) {
        for mount in self.all() {
            let lost = view.volumes.get(&mount.volume).is_some_and(|v| v.mounts > mount.number);
            let handle = mount.handle.lock().clone();
            // One that is just being mounted is looked at again.
            let Some(handle) = handle.filter(|_| lost) else {
                continue;
            };
            if mount.lost.swap(true, std::sync::atomic::Ordering::Relaxed) {
                continue;
            }
            tracing::error!(
                volume = %mount.name, mountpoint = %mount.mountpoint.display(),
                "this mount's claim was taken away, its programs get errors from now on"
            );
            tokio::spawn(async move {
                if let Err(error) = take_away(&handle, Unmount::Abort).await {
                    tracing::warn!(%error, "the mount could not be detached");
                }
            });
        }
    }

    /// Ends every mount: those that are free at once; busy ones when they are free, when `hurry` says so, or when the time is
    /// over, with everything committed.
    pub(super) async fn stop(&self, hurry: &CancellationToken) {
        let deadline = tokio::time::Instant::now() + BUSY_DEADLINE;
        let mut said: BTreeSet<VolumeId> = BTreeSet::new();
        loop {
            // One that the kernel has ended only waits to be closed.
            let open = self.all();
            if open.is_empty() {
                break;
            }
            let now = hurry.is_cancelled() || tokio::time::Instant::now() >= deadline;
            for mount in open {
                let handle = mount.handle.lock().clone();
                let Some(handle) = handle else { continue };
                match take_away(&handle, Unmount::Clean).await {
                    Ok(()) => {}
                    // Gone from here already: just being closed, or mounted in another namespace.
                    Err(error)
                        if error.kind() == std::io::ErrorKind::NotFound
                            && self.ends(mount.volume, Instant::now() + CLOSE_DEADLINE).await => {}
                    Err(_) if now => self.detach(&mount, &handle).await,
                    Err(error) => {
                        if said.insert(mount.volume) {
                            tracing::warn!(
                                volume = %mount.name, mountpoint = %mount.mountpoint.display(), %error,
                                "the daemon was told to stop, but this mount is busy: waiting for it for {} s; a second SIGTERM \
                                 detaches it at once",
                                BUSY_DEADLINE.as_secs()
                            );
                        }
                        continue;
                    }
                }
                // What it wrote is being made durable.
                tokio::select! {
                    () = mount.released.cancelled() => {}
                    () = tokio::time::sleep(CLOSE_DEADLINE) => {}
                    () = hurry.cancelled(), if !now => {}
                }
            }
            tokio::select! {
                () = hurry.cancelled(), if !now => {}
                () = tokio::time::sleep(BUSY_RETRY) => {}
            }
            if now && !self.all().is_empty() {
                tracing::warn!(
                    mounts = self.all().len(),
                    "stopping although these mounts are still open"
                );
                break;
            }
        }
        self.stop.cancel();
    }

    /// Releases the claims that an earlier daemon of this node left behind, and takes its dead mounts away.
    pub(super) async fn clean_up(&self) {
        let view = self.control.view();
        for volume in view.volumes.values() {
            let Some(claim) = volume.mount.as_ref().filter(|c| c.node == self.node) else {
                continue;
            };
            if self.slots.lock().contains_key(&volume.id) {
                continue;
            }
            let title = name(volume);
            let mountpoint = claim.mountpoint.clone();
            let places = [PathBuf::from(&mountpoint)];
            // It asks the kernel, which asks a daemon that may hang.
            let cleared = tokio::task::spawn_blocking(move || fuse::detach_dead_mounts(&places)).await;
            if let Ok(Err(error)) = cleared {
                tracing::warn!(volume = %title, %mountpoint, %error, "the mount table cannot be read");
            }
            self.release(volume.id, volume.mounts).await;
            tracing::info!(volume = %title, "the mount claim of an earlier daemon was released");
        }
    }
}

/// umount(2), which may wait for the daemon's own answers, so never on a thread of the runtime.
async fn take_away(handle: &Arc<MountHandle>, how: Unmount) -> std::io::Result<()> {
    let handle = handle.clone();
    tokio::task::spawn_blocking(move || handle.unmount(how))
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
