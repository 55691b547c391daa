//! What mount helpers ask for, done by [`super::mounts`].

use super::daemon::Shared;
use super::mounts::{Mount, Wanted};
use crate::api::{ApiError, Code, SocketError};
use crate::fs::FileSystem;
use crate::fuse::{Handoff, HandoffError, HandoffServer, MountBackend, MountEnd, MountHandle};
use crate::volume::{DEFAULT_NAMESPACE, VolumeRef};
use mount_helper::protocol::{MountRequest, mount_socket};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;

/// How long a volume gets to become usable; the helper may give up earlier.
const READY: Duration = Duration::from_secs(60);

/// The mounts of a daemon.
pub(super) fn handoff(shared: &Weak<Shared>) -> Handoff {
    Handoff::new(Arc::new(Backend {
        shared: shared.clone(),
        runtime: Handle::current(),
    }))
}

/// Serves mount helpers beside an API socket, until the answer is dropped.
pub(super) fn listen(handoff: &Handoff, api_socket: &Path) -> Result<HandoffServer, SocketError> {
    let path = mount_socket(api_socket);
    handoff.listen(&path).map_err(|error| SocketError::of(&path, error))
}

struct Backend {
    shared: Weak<Shared>,
    runtime: Handle,
}

fn refuse(error: ApiError) -> HandoffError {
    HandoffError {
        message: match error.hint {
            Some(hint) => format!("{}\n  {}", error.message, hint.replace('\n', "\n  ")),
            None => error.message,
        },
        code: match error.code {
            Code::NotFound => "not_found",
            Code::Conflict => "in_use",
            Code::Invalid | Code::Usage => "invalid",
            Code::Unavailable => "unavailable",
            Code::Failed | Code::Internal | Code::Denied => "failed",
        },
    }
}

impl Backend {
    fn shared(&self) -> Result<Arc<Shared>, ApiError> {
        self.shared
            .upgrade()
            .ok_or_else(|| ApiError::unavailable("the daemon is stopping"))
    }

    /// The open mount that a request made.
    fn find(&self, request: &MountRequest) -> Option<(Arc<super::mounts::Mounts>, Arc<Mount>)> {
        let joined = self.shared().ok()?.joined().ok()?;
        let name = VolumeRef::parse(&request.volume, DEFAULT_NAMESPACE).ok()?.to_string();
        let mut all = joined.mounts.all().into_iter();
        let mount = all.find(|m| m.name == name && m.mountpoint == request.mountpoint)?;
        Some((joined.mounts.clone(), mount))
    }
}

impl MountBackend for Backend {
    fn prepare(&self, request: &MountRequest) -> Result<(String, Arc<FileSystem>), HandoffError> {
        let opened = self.shared().and_then(|shared| {
            let joined = shared.joined()?;
            let wanted = Wanted {
                volume: VolumeRef::parse(&request.volume, DEFAULT_NAMESPACE)
                    .map_err(|error| ApiError::invalid(error.to_string()))?,
                mountpoint: request.mountpoint.clone(),
                read_only: request.read_only,
                timeout: READY,
                outlives: true,
            };
            self.runtime.block_on(joined.mounts.open(&wanted))
        });
        match opened {
            Ok(mount) => Ok((mount.name.clone(), mount.fs.clone())),
            Err(error) => {
                tracing::warn!(
                    volume = %request.volume, mountpoint = %request.mountpoint.display(), %error, "a mount was refused"
                );
                Err(refuse(error))
            }
        }
    }

    fn mounted(&self, request: &MountRequest, mount: &Arc<MountHandle>) {
        if let Some((mounts, served)) = self.find(request) {
            mounts.mounted(&served, mount);
        }
    }

    fn ended(&self, request: &MountRequest, end: &MountEnd) {
        // Waited for: when umount returns the claim is free for another node.
        if let Some((mounts, mount)) = self.find(request) {
            self.runtime.block_on(mounts.finish(&mount, end));
        }
    }
}
