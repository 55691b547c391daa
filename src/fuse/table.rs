//! The mount table: which storageos mounts this process sees, and clearing away those whose daemon died.

use mount_helper::mountinfo::{self, FS_TYPE, Mount};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Stacked mounts at one place that are cleared away at most.
const STACK_MAX: usize = 16;
/// How long a mount may take to say whether it is served.
const ASK: Duration = Duration::from_secs(3);

/// The topmost mount at a path, if it is ours.
pub(super) fn mounted_at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(mountinfo::mounted_at(path)?.filter(|m| m.fs_type == FS_TYPE))
}

/// Lazily detaches, at each of the given places, storageos mounts that no daemon serves any more. Returns the places cleared. For a
/// daemon's start: what its predecessor served is dead, and would answer `Transport endpoint is not connected` for ever.
///
/// # Errors
/// If the mount table cannot be read; a mount that cannot be detached is logged and left.
pub fn detach_dead_mounts(places: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut cleared = Vec::new();
    for place in places {
        for _ in 0..STACK_MAX {
            if mounted_at(place)?.is_none() || !is_dead(place) {
                break;
            }
            match rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {
                    tracing::info!(place = %place.display(), "detached a mount whose daemon had died");
                    cleared.push(place.clone());
                }
                Err(error) => {
                    tracing::warn!(place = %place.display(), %error, "cannot detach a dead mount");
                    break;
                }
            }
        }
    }
    cleared.dedup();
    Ok(cleared)
}

/// Whether nobody serves the mount. An ended connection says so at once; a daemon that is alive but slow gets [`ASK`], and lives.
fn is_dead(place: &Path) -> bool {
    let (send, answer) = std::sync::mpsc::channel();
    let place = place.to_owned();
    // A thread of its own, since the question may hang as long as that daemon does.
    let asked = std::thread::Builder::new().name("fuse-dead".into()).spawn(move || {
        let dead = matches!(rustix::fs::statfs(&place), Err(Errno::NOTCONN | Errno::CONNABORTED));
        let _ = send.send(dead);
    });
    asked.is_ok() && answer.recv_timeout(ASK).unwrap_or(false)
}
