//! The mounts that this node serves, from claim to release.
//!
//! A mount begins with a claim in the control store, which only one node can have, and which moves mastership here when this node's copy
//! is in sync. Then a device is found ([`SwitchDevice`]), the file system is made if there is none, opened, and served. When
//! the kernel ends the session the file system is closed, which makes everything durable, and only then is the claim released.
//!
//! Invariants: a file system is open only under a claim of this node; claims are numbered, and copies refuse the device
//! calls of an older one, so a mount that lost its claim can do no harm until it notices.

use super::control::{Control, name};
use super::kept::claimed_at;
use super::route::Route;
use super::service::Nodes;
use super::switch::{Backend, SwitchDevice};
use crate::api::{ApiError, Code};
use crate::block::{BlockDevice, DeviceError};
use crate::cluster::View;
use crate::fdstore::FdStore;
use crate::fs::{FileSystem, FsError, Memory, Options};
use crate::fuse::MountHandle;
use crate::replication::{Environment, ReplicaHost};
use crate::volume::{MountClaim, NodeId, Volume, VolumeId, VolumeLabels, VolumeRef};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause between looks for a device.
const LOOK: Duration = Duration::from_millis(50);
/// After an unmount the kernel tells the daemon at once; a mount that is still served then is in use.
const STILL_SERVED: Duration = Duration::from_millis(500);
/// A claim that cannot be released, since the control plane does not answer, is tried again this often.
pub(super) const RELEASE_RETRY: Duration = Duration::from_secs(1);
/// Pause until a file system that could not be grown is tried again.
const GROW_RETRY: Duration = Duration::from_millis(200);
/// How long an unmount waits for the file system to be closed.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(60);

/// What a mount is asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) volume: VolumeRef,
    pub(super) mountpoint: PathBuf,
    pub(super) read_only: bool,
    /// How long to wait for the volume to become usable.
    pub(super) timeout: Duration,
    /// It goes on with the next daemon if this one dies.
    pub(super) outlives: bool,
}

/// A mount that is served here.
pub(super) struct Mount {
    pub(super) volume: VolumeId,
    /// `namespace/name`.
    pub(super) name: String,
    pub(super) mountpoint: PathBuf,
    pub(super) read_only: bool,
    /// The number of its claim.
    pub(super) number: u64,
    /// The time of its claim.
    pub(super) mounted_at: Timestamp,
    /// What the next daemon needs, if it outlives this one.
    pub(super) memory: Option<OwnedFd>,
    pub(super) fs: Arc<FileSystem>,
    device: Arc<SwitchDevice>,
    pub(super) handle: Mutex<Option<Arc<MountHandle>>>,
    /// Its claim was taken away.
    pub(super) lost: AtomicBool,
    /// Cancelled when the file system is closed.
    pub(super) closed: CancellationToken,
    /// Cancelled when the claim is released, too.
    pub(super) released: CancellationToken,
}

pub(super) enum Slot {
    /// Being opened.
    Opening,
    Open(Arc<Mount>),
}

/// See the module's text.
pub(super) struct Mounts {
    pub(super) node: NodeId,
    pub(super) route: Arc<Route>,
    pub(super) control: Control,
    nodes: Arc<Nodes>,
    /// Holds mounts beyond this process, if there is one.
    pub(super) fdstore: Option<Arc<FdStore>>,
    pub(super) slots: Mutex<BTreeMap<VolumeId, Slot>>,
    /// The daemon ends: what cannot be done now is left to its next start.
    pub(super) stop: CancellationToken,
}

impl Mounts {
    pub(super) fn new(
        host: Arc<ReplicaHost>,
        environment: Environment,
        control: Control,
        nodes: Arc<Nodes>,
        fdstore: Option<Arc<FdStore>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node: host.node(),
            route: Arc::new(Route {
                node: host.node(),
                host,
                environment,
                control: control.clone(),
            }),
            control,
            nodes,
            fdstore,
            slots: Mutex::default(),
            stop: CancellationToken::new(),
        })
    }

    /// The mounts that are open.
    pub(super) fn all(&self) -> Vec<Arc<Mount>> {
        let slots = self.slots.lock();
        slots
            .values()
            .filter_map(|slot| match slot {
                Slot::Open(mount) => Some(mount.clone()),
                Slot::Opening => None,
            })
            .collect()
    }

    /// The open mount of a volume.
    pub(super) fn get(&self, volume: VolumeId) -> Option<Arc<Mount>> {
        match self.slots.lock().get(&volume) {
            Some(Slot::Open(mount)) => Some(mount.clone()),
            _ => None,
        }
    }

    /// Claims a volume and opens its file system; to be followed by [`Mounts::mounted`] and, once the file system is
    /// closed, [`Mounts::finish`].
    pub(super) async fn open(self: &Arc<Self>, wanted: &Wanted) -> Result<Arc<Mount>, ApiError> {
        let deadline = Instant::now() + wanted.timeout;
        let volume = self.control.find_volume(&wanted.volume).await?;
        self.reserve(&volume, deadline).await?;
        let opened = self.claim_and_open(&volume, wanted, deadline).await;
        let mut slots = self.slots.lock();
        match opened {
            Ok(mount) => {
                slots.insert(volume.id, Slot::Open(mount.clone()));
                Ok(mount)
            }
            Err(error) => {
                slots.remove(&volume.id);
                Err(error)
            }
        }
    }

    /// Takes the volume's slot; waits for a mount that is just being closed.
    async fn reserve(&self, volume: &Volume, deadline: Instant) -> Result<(), ApiError> {
        loop {
            let mount = match self.slots.lock().entry(volume.id) {
                std::collections::btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(Slot::Opening);
                    return Ok(());
                }
                std::collections::btree_map::Entry::Occupied(slot) => match slot.get() {
                    Slot::Open(mount) => mount.clone(),
                    Slot::Opening => {
                        return Err(ApiError::conflict(format!(
                            "volume {} is being mounted on this node by another request",
                            name(volume)
                        )));
                    }
                },
            };
            if !self.ends(volume.id, deadline).await {
                return Err(already_mounted(
                    &mount.name,
                    "this node",
                    &mount.mountpoint.to_string_lossy(),
                ));
            }
        }
    }

    /// Whether the volume is not mounted here, or is just being unmounted and that is brought to its end by `deadline`.
    pub(super) async fn ends(&self, volume: VolumeId, deadline: Instant) -> bool {
        let Some(mount) = self.get(volume) else { return true };
        let handle = mount.handle.lock().clone();
        let Some(handle) = handle else { return false };
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = tokio::task::spawn_blocking(move || handle.wait(STILL_SERVED, left).is_some()).await;
        ended.unwrap_or(false)
            && tokio::time::timeout_at(deadline.into(), mount.released.cancelled())
                .await
                .is_ok()
    }

    async fn claim_and_open(
        self: &Arc<Self>,
        volume: &Volume,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<Arc<Mount>, ApiError> {
        let (claimed, backend) = loop {
            let claimed = match self.claim(volume, wanted).await? {
                Ok(claimed) => claimed,
                // Just being unmounted there: its claim is as good as gone.
                Err((holder, _)) if self.ends_elsewhere(holder, volume.id, deadline).await => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Err((_, refusal)) => return Err(refusal),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            match self.route.find(volume.id, claimed.mounts, left).await {
                // The master that was found ended the mounts of before, and this one, which had not begun, with them.
                Err(error) if error.code == Code::Conflict && !left.is_zero() && self.is_free(volume.id).await => {}
                found => break (claimed, found),
            }
        };
        let opened = match backend {
            Ok(backend) => self.open_file_system(&claimed, backend, wanted, None).await,
            Err(error) => Err(error),
        };
        if opened.is_err() {
            self.release(volume.id, claimed.mounts).await;
        }
        opened
    }

    async fn is_free(&self, volume: VolumeId) -> bool {
        let record = self.control.volume(volume).await;
        record.is_ok_and(|record| record.is_some_and(|record| record.mount.is_none()))
    }

    /// Takes the claim, and mastership with it where this node's copy is in sync.
    ///
    /// The inner error: another node has it.
    async fn claim(&self, volume: &Volume, wanted: &Wanted) -> Result<Result<Volume, (NodeId, ApiError)>, ApiError> {
        let me = self.node;
        let view = self.control.view();
        let holder = Mutex::new(None);
        let claimed = self
            .control
            .change_volume(volume.id, |now| {
                if let Some(claim) = &now.mount
                    && claim.node != me
                {
                    *holder.lock() = Some(claim.node);
                    let holder = view.node_name(claim.node);
                    let error = already_mounted(&name(now), &format!("node {holder}"), &claim.mountpoint);
                    return Err(if view.live.contains(&claim.node) {
                        error
                    } else {
                        error.hint(format!(
                            "node {holder} does not answer; if it is gone for good: storageos volume unmount --force {}",
                            name(now)
                        ))
                    });
                }
                // A claim of this node without a mount here is what an earlier daemon left.
                now.claim(MountClaim {
                    node: me,
                    mountpoint: wanted.mountpoint.to_string_lossy().into_owned(),
                    mounted_at: Timestamp::now(),
                    read_only: wanted.read_only,
                });
                Ok(())
            })
            .await;
        match (claimed, holder.into_inner()) {
            (Ok(record), _) => Ok(Ok(record)),
            (Err(error), Some(node)) if error.code == Code::Conflict => Ok(Err((node, error))),
            (Err(error), _) => Err(error),
        }
    }

    /// As [`Mounts::ends`], asked of the node that has the volume.
    async fn ends_elsewhere(&self, node: NodeId, volume: VolumeId, deadline: Instant) -> bool {
        let view = self.control.view();
        let Some(address) = view
            .nodes
            .get(&node)
            .filter(|_| view.live.contains(&node))
            .map(|n| n.address.clone())
        else {
            return false;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        !left.is_zero() && self.nodes.ends(node, &address, volume, left).await
    }

    /// `inherited`: what an earlier daemon left of this mount.
    pub(super) async fn open_file_system(
        self: &Arc<Self>,
        record: &Volume,
        backend: Backend,
        wanted: &Wanted,
        inherited: Option<Memory>,
    ) -> Result<Arc<Mount>, ApiError> {
        let labels = VolumeLabels::of(&record.labels);
        let device = SwitchDevice::new(backend, labels.io_timeout);
        if !record.formatted {
            // Before the first byte is written: from now on an empty copy in the place of a missing one would lose data.
            self.control
                .change_volume(record.id, |now| {
                    now.formatted = true;
                    Ok(())
                })
                .await?;
        }
        let options = Options {
            read_only: wanted.read_only,
            ..Options::default()
        };
        let memory = match inherited {
            None if wanted.outlives && self.fdstore.is_some() => fresh_memory(&name(record)),
            inherited => inherited,
        };
        // Without it the mount works, and ends with the daemon.
        let kept_memory = memory.as_ref().and_then(|memory| memory.try_clone().ok());
        let (under, size, title) = (device.clone() as Arc<dyn BlockDevice>, record.size, name(record));
        let fs = tokio::task::spawn_blocking(move || {
            if !FileSystem::is_formatted(&under)? {
                FileSystem::format(&under, size)?;
                tracing::info!(volume = %title, size, "file system made");
            }
            match memory {
                Some(memory) => FileSystem::open_in_memory(under, options, memory),
                None => FileSystem::open(under, options),
            }
        })
        .await
        .map_err(|error| ApiError::internal(format!("opening the file system was interrupted: {error}")))?
        .map_err(|error| cannot_open(&name(record), &error))?;
        let mount = Arc::new(Mount {
            volume: record.id,
            name: name(record),
            mountpoint: wanted.mountpoint.clone(),
            read_only: wanted.read_only,
            number: record.mounts,
            mounted_at: claimed_at(record),
            memory: kept_memory,
            fs,
            device,
            handle: Mutex::new(None),
            lost: AtomicBool::new(false),
            closed: CancellationToken::new(),
            released: CancellationToken::new(),
        });
        let (route, followed) = (self.route.clone(), mount.clone());
        tokio::spawn(async move {
            let Mount {
                volume,
                number,
                name,
                device,
                closed,
                ..
            } = &*followed;
            route.follow(*volume, *number, name, device, closed).await;
        });
        if !mount.read_only {
            tokio::spawn(follow_size(self.control.watch(), mount.clone()));
        }
        Ok(mount)
    }
}

/// Grows the file system of a mount when the volume was grown.
async fn follow_size(mut view: watch::Receiver<Arc<View>>, mount: Arc<Mount>) {
    let mut grown = 0;
    loop {
        let size = view
            .borrow_and_update()
            .volumes
            .get(&mount.volume)
            .map(|record| record.size);
        if let Some(size) = size.filter(|size| *size != grown) {
            let growing = mount.clone();
            // The master grows its copies first; until then this fails, and is tried again.
            match tokio::task::spawn_blocking(move || growing.grow(size)).await {
                Ok(Err(error)) => {
                    tracing::debug!(volume = %mount.name, %error, "the file system is not grown yet");
                }
                // Done, or the daemon ends.
                Ok(Ok(())) | Err(_) => grown = size,
            }
        }
        tokio::select! {
            () = mount.closed.cancelled() => return,
            () = tokio::time::sleep(GROW_RETRY), if size.is_some_and(|size| size != grown) => {}
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

impl Mount {
    /// Makes the file system as large as the volume. Blocks.
    fn grow(&self, size: u64) -> Result<(), FsError> {
        if size <= self.fs.capacity()? {
            return Ok(());
        }
        self.device.look_at_size().map_err(FsError::Device)?;
        self.fs.grow(size)?;
        tracing::info!(volume = %self.name, size, "file system grown");
        Ok(())
    }
}

fn fresh_memory(volume: &str) -> Option<Memory> {
    Memory::new()
        .inspect_err(
            |error| tracing::warn!(volume, %error, "no memory for a mount: it will not survive the daemon's death"),
        )
        .ok()
}

fn already_mounted(volume: &str, place: &str, mountpoint: &str) -> ApiError {
    ApiError::conflict(format!(
        "volume {volume} is already mounted on {place}, at {mountpoint}"
    ))
    .hint(format!("unmount it there first: storageos volume unmount {volume}"))
}

fn cannot_open(volume: &str, error: &FsError) -> ApiError {
    let code = match error {
        FsError::Device(DeviceError::Unavailable(_) | DeviceError::ReadOnly(_)) => Code::Unavailable,
        _ => Code::Failed,
    };
    ApiError::new(
        code,
        format!("the file system of volume {volume} cannot be opened: {error}"),
    )
}
