//! Mounts that outlive their daemon: what the descriptor store holds of each, and how the next daemon goes on with them.
//!
//! Of a mount it holds the `/dev/fuse` descriptor, the memory of its file system (`fs::Memory`), and a note of which mount it is. The next daemon
//! takes each one whose claim is still the one of the note; it claims the volume again, by a new number, so that nothing that the dead daemon
//! sent may arrive any more, opens the file system in the memory and serves. What cannot be gone on with is let go: its programs get
//! errors, as after any death of a daemon.

use super::mounts::{Mount, Mounts, Slot, Wanted};
use crate::api::{ApiError, Code};
use crate::fdstore::Held;
use crate::fs::Memory;
use crate::fuse::{Handoff, LiveMount, MountHandle, MountRequest, detach_dead_mounts};
use crate::volume::{MountClaim, Volume, VolumeId, VolumeRef};
use jiff::Timestamp;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const VERSION: u32 = 1;
/// Bytes of the longest note.
const NOTE_MAX: u64 = 64 << 10;
/// How long one attempt to find the volume may take.
const FIND: Duration = Duration::from_secs(30);
/// Pause between attempts.
const RETRY: Duration = Duration::from_millis(500);
/// Attempts to open a file system that cannot be opened for a reason of its own.
const ATTEMPTS: u32 = 5;
/// How long making everything durable may take before the daemon leaves its mounts to the next one.
const SYNC: Duration = Duration::from_secs(10);

/// The note: which mount it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Note {
    v: u32,
    volume: VolumeId,
    /// `namespace/name`.
    name: String,
    mountpoint: PathBuf,
    read_only: bool,
    /// Of the claim: tells it from every other.
    mounted_at: Timestamp,
    /// See [`LiveMount::greeting`].
    greeting: Vec<u8>,
}

impl Note {
    fn write(&self) -> io::Result<OwnedFd> {
        let file = File::from(memfd_create("storageos-note", MemfdFlags::CLOEXEC)?);
        file.write_all_at(&serde_json::to_vec(self)?, 0)?;
        Ok(file.into())
    }

    fn read(from: OwnedFd) -> io::Result<Self> {
        let file = File::from(from);
        let length = file.metadata()?.len().min(NOTE_MAX);
        // Bounded above.
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Self::parse(&bytes)
    }

    pub(super) fn parse(bytes: &[u8]) -> io::Result<Self> {
        let note: Self = serde_json::from_slice(bytes)?;
        if note.v != VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a note of version {}, this daemon knows {VERSION}", note.v),
            ));
        }
        Ok(note)
    }

    fn is_of(&self, claim: Option<&MountClaim>, mounts: &Mounts) -> bool {
        claim.is_some_and(|claim| claim.node == mounts.node && claim.mounted_at == self.mounted_at)
    }
}

/// What an earlier daemon of this node served.
pub(super) struct Kept {
    note: Note,
    live: LiveMount,
    memory: OwnedFd,
}

impl Kept {
    /// Of what was held; `None` if it is nothing that this daemon could have left.
    pub(super) fn of(held: Held) -> Option<Self> {
        let held_as = &held.name;
        let mut descriptors = held.descriptors.into_iter();
        let (Some(fuse), Some(memory), Some(note)) = (descriptors.next(), descriptors.next(), descriptors.next())
        else {
            tracing::error!(held_as, "what an earlier daemon left of a mount is not understood");
            return None;
        };
        let note = Note::read(note).inspect_err(|error| {
            tracing::error!(held_as, %error, "the note of an earlier daemon's mount is not understood");
        });
        let note = note.ok()?;
        let live = LiveMount::new(fuse, note.greeting.clone()).inspect_err(|error| {
            tracing::error!(volume = %note.name, %error, "the mount of an earlier daemon is gone");
        });
        Some(Self {
            live: live.ok()?,
            note,
            memory,
        })
    }

    fn wanted(&self) -> Result<Wanted, ApiError> {
        Ok(Wanted {
            volume: VolumeRef::parse(&self.note.name, "").map_err(|e| ApiError::internal(e.to_string()))?,
            mountpoint: self.note.mountpoint.clone(),
            read_only: self.note.read_only,
            timeout: FIND,
            outlives: true,
        })
    }
}

/// Why a mount is not gone on with.
enum Failure {
    /// Not yet.
    Later(ApiError),
    /// Never.
    Over(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Later(error)
    }
}

impl Mounts {
    /// Has a live mount held beyond this process. Blocks.
    pub(super) fn keep(&self, mount: &Mount, handle: &MountHandle) {
        let (Some(store), Some(memory)) = (&self.fdstore, &mount.memory) else {
            return;
        };
        let note = Note {
            v: VERSION,
            volume: mount.volume,
            name: mount.name.clone(),
            mountpoint: mount.mountpoint.clone(),
            read_only: mount.read_only,
            mounted_at: mount.mounted_at,
            greeting: handle.live().greeting().to_vec(),
        };
        let kept = handle.live().as_fd().try_clone_to_owned().and_then(|fuse| {
            let descriptors = vec![fuse, memory.try_clone()?, note.write()?];
            store.keep(&mount.volume.to_string(), descriptors)
        });
        if let Err(error) = kept {
            tracing::warn!(volume = %mount.name, %error, "this mount will not survive the daemon's death");
        }
    }

    /// The mount is over. Blocks.
    pub(super) fn let_go(&self, volume: VolumeId) {
        if let Some(store) = &self.fdstore {
            store.let_go(&volume.to_string());
        }
    }

    /// Goes on with the mounts of an earlier daemon, each by itself: until then its programs wait. When this returns nobody else
    /// can mount these volumes here.
    pub(super) fn go_on(self: &Arc<Self>, all: Vec<Kept>, handoff: &Handoff) {
        for kept in all {
            let volume = kept.note.volume;
            self.slots.lock().insert(volume, Slot::Opening);
            let (mounts, handoff) = (self.clone(), handoff.clone());
            tokio::spawn(async move {
                let stop = mounts.stop.clone();
                tokio::select! {
                    // The next daemon finds it as this one did.
                    () = stop.cancelled() => {}
                    () = mounts.go_on_with(kept, &handoff) => {}
                }
            });
        }
    }

    async fn go_on_with(self: &Arc<Self>, kept: Kept, handoff: &Handoff) {
        let (volume, title) = (kept.note.volume, kept.note.name.clone());
        let (mut failures, mut claimed) = (0, None);
        let why = loop {
            match self.open_again(&kept, &mut claimed).await {
                Ok(mount) => return self.serve_again(mount, kept, handoff).await,
                Err(Failure::Over(why)) => break why,
                Err(Failure::Later(error)) => {
                    if error.code == Code::Failed {
                        failures += 1;
                    }
                    if failures >= ATTEMPTS {
                        break error.to_string();
                    }
                    tracing::warn!(volume = %title, %error, "the mount of this node's last daemon waits for its volume");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tracing::error!(
            volume = %title, mountpoint = %kept.note.mountpoint.display(), why,
            "the mount of this node's last daemon is over, its programs get errors from now on"
        );
        let mountpoint = kept.note.mountpoint.clone();
        // Nobody holds it any more, so the kernel ends it.
        drop(kept);
        let mounts = self.clone();
        let end = move || {
            mounts.let_go(volume);
            detach_dead_mounts(&[mountpoint])
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(end).await {
            tracing::warn!(volume = %title, %error, "the mount table cannot be read");
        }
        self.slots.lock().remove(&volume);
        self.clean_up().await;
    }

    /// `claim`: of an attempt before this one that sent nothing to the volume.
    async fn open_again(self: &Arc<Self>, kept: &Kept, claim: &mut Option<u64>) -> Result<Arc<Mount>, Failure> {
        let note = &kept.note;
        let is_ours = |record: &Volume| note.is_of(record.mount.as_ref(), self);
        let record = self.control.volume(note.volume).await?.filter(is_ours);
        let mut claimed = record.ok_or_else(|| Failure::Over("its claim was given up meanwhile".into()))?;
        if *claim != Some(claimed.mounts) {
            claimed = self
                .control
                .change_volume(note.volume, |now| match now.mount.clone() {
                    Some(claim) if is_ours(now) => {
                        now.claim(claim);
                        Ok(())
                    }
                    _ => Err(ApiError::conflict("its claim was given up meanwhile")),
                })
                .await?;
            *claim = Some(claimed.mounts);
        }
        let backend = self.route.find(note.volume, claimed.mounts, FIND).await?;
        // From here on calls may be on their way to the volume: another attempt shuts them out by a claim of its own.
        *claim = None;
        let clone = |error: io::Error| ApiError::unavailable(format!("no descriptor: {error}"));
        let (live, memory) = (
            kept.live.try_clone().map_err(clone)?,
            kept.memory.try_clone().map_err(clone)?,
        );
        let memory = Memory::inherited(memory, move |ino| live.knows(ino));
        let wanted = kept.wanted()?;
        Ok(self.open_file_system(&claimed, backend, &wanted, Some(memory)).await?)
    }

    async fn serve_again(self: &Arc<Self>, mount: Arc<Mount>, kept: Kept, handoff: &Handoff) {
        self.slots.lock().insert(mount.volume, Slot::Open(mount.clone()));
        let request = MountRequest {
            volume: mount.name.clone(),
            mountpoint: mount.mountpoint.clone(),
            read_only: mount.read_only,
        };
        let (handoff, served) = (handoff.clone(), mount.clone());
        let resume = move || handoff.resume(request, served.name.clone(), &served.fs, kept.live);
        let resumed = tokio::task::spawn_blocking(resume).await;
        match resumed.map_err(|error| error.to_string()) {
            Ok(Ok(())) => tracing::info!(
                volume = %mount.name, mountpoint = %mount.mountpoint.display(), "the mount of this node's last daemon goes on"
            ),
            Ok(Err(error)) => {
                tracing::error!(volume = %mount.name, %error, "the mount of this node's last daemon is over")
            }
            Err(error) => tracing::error!(volume = %mount.name, error, "the mount of this node's last daemon is over"),
        }
    }

    /// The daemon leaves its mounts to the next one: what they wrote is made durable, so that little is left to go on with.
    pub(super) async fn leave(&self) {
        for mount in self.all() {
            let fs = mount.fs.clone();
            let synced = tokio::time::timeout(SYNC, tokio::task::spawn_blocking(move || fs.sync())).await;
            if !matches!(synced, Ok(Ok(Ok(())))) {
                tracing::warn!(volume = %mount.name, "not everything is durable before the next daemon; it goes on with it");
            }
        }
        self.stop.cancel();
    }
}

/// The claim's time of a record that was just claimed.
pub(super) fn claimed_at(record: &Volume) -> Timestamp {
    record
        .mount
        .as_ref()
        .map_or_else(Timestamp::now, |claim| claim.mounted_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_its_documented_form() {
        let note = Note {
            v: VERSION,
            volume: VolumeId::from_bytes([1; 16]),
            name: "default/data".into(),
            mountpoint: "/mnt".into(),
            read_only: false,
            mounted_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            greeting: vec![1, 2],
        };
        let text = serde_json::to_string(&note).unwrap();
        let golden = r#"{"v":1,"volume":"01010101-0101-0101-0101-010101010101","name":"default/data","mountpoint":"/mnt","readOnly":false,"mountedAt":"2026-01-02T03:04:05Z","greeting":[1,2]}"#;
        assert_eq!(text, golden);
        assert_eq!(Note::read(note.write().unwrap()).unwrap(), note);
    }
}
