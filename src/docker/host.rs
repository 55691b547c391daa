//! The mounts of this machine, as the ledger needs them; behind a trait, so that its rules are tested without mounting anything.
//!
//! The real one mounts and unmounts as `mount(8)` and `umount(8)` do, by the mount helper's library and through the daemon's own socket. Everything
//! blocks, at most as long as the helper waits.

use crate::os::process::Stat;
use mount_helper::mountinfo::{self, FS_TYPE};
use mount_helper::options::MountOptions;
use mount_helper::{MountArguments, MountError, UnmountFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a mount waits for its volume to become usable: with what else a mount does, less than Docker waits.
const READY: Duration = Duration::from_secs(60);

/// What is mounted at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing.
    Empty,
    /// The volume; a daemon serves it.
    Mounted,
    /// What an ended daemon served, or a mount that was ended by force.
    Dead,
    /// Something else, of this source.
    Foreign(String),
}

/// A process, told from a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// When it started, in ticks since the machine did.
    pub(super) started: u64,
}

/// See the file's text.
pub(super) trait HostMounts: Send + Sync + 'static {
    /// What is mounted at a place where this volume should be. Asks the one who serves it.
    fn look(&self, volume: &str, place: &Path) -> io::Result<Place>;
    /// The same from the mount table alone, which nobody has to answer for: dead mounts count.
    fn is_mounted(&self, volume: &str, place: &Path) -> io::Result<bool>;
    /// Mounts a volume on an existing directory.
    fn mount(&self, volume: &str, place: &Path) -> Result<(), MountError>;
    /// Unmounts; done when everything written is on the volume's copies and another node may mount it.
    fn unmount(&self, place: &Path) -> Result<(), MountError>;
    /// Takes a dead mount away.
    fn detach(&self, place: &Path) -> io::Result<()>;
    /// A reference that makes the mount busy as long as it is held: unmounting is refused, by whomever.
    fn hold(&self, place: &Path) -> io::Result<OwnedFd>;
    /// Whether a process has the volume at this place in its own mount namespace; `None`: that cannot be told.
    fn is_visible_to(&self, process: i32, volume: &str, place: &Path) -> Option<bool>;
    /// The process that has this number now.
    fn process(&self, pid: i32) -> Option<Process>;
    /// Whether a process has what is mounted at a place mounted at another one, too, as containers do.
    fn is_used_elsewhere(&self, place: &Path) -> io::Result<bool>;
}

/// The machine's own.
pub(super) struct Machine {
    /// The daemon's API socket.
    pub(super) socket: PathBuf,
}

/// The topmost mount at a place in a mount table.
fn topmost(table: &[mountinfo::Mount], volume: &str, place: &Path) -> Place {
    match table.iter().rfind(|mount| mount.mountpoint == place) {
        None => Place::Empty,
        Some(mount) if mount.fs_type == FS_TYPE && mount.source == volume => Place::Mounted,
        Some(mount) => Place::Foreign(mount.source.clone()),
    }
}

impl HostMounts for Machine {
    fn look(&self, volume: &str, place: &Path) -> io::Result<Place> {
        let found = topmost(&mountinfo::read()?, volume, place);
        // Attributes may be cached; this is always asked.
        if found == Place::Mounted
            && let Err(Errno::NOTCONN | Errno::CONNABORTED) = rustix::fs::statfs(place)
        {
            return Ok(Place::Dead);
        }
        Ok(found)
    }

    fn is_mounted(&self, volume: &str, place: &Path) -> io::Result<bool> {
        Ok(topmost(&mountinfo::read()?, volume, place) == Place::Mounted)
    }

    fn mount(&self, volume: &str, place: &Path) -> Result<(), MountError> {
        mount_helper::mount(&MountArguments {
            volume: volume.to_owned(),
            mountpoint: place.to_owned(),
            options: MountOptions {
                socket: Some(self.socket.clone()),
                timeout: READY,
                ..MountOptions::default()
            },
            fake: false,
        })
    }

    fn unmount(&self, place: &Path) -> Result<(), MountError> {
        mount_helper::unmount(place, UnmountFlags::default(), Some(&self.socket))
    }

    fn detach(&self, place: &Path) -> io::Result<()> {
        let how = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        Ok(rustix::mount::unmount(place, how)?)
    }

    fn hold(&self, place: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::open(place, flags, Mode::empty())?)
    }

    fn is_visible_to(&self, process: i32, volume: &str, place: &Path) -> Option<bool> {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        if namespace(&process.to_string())? == namespace("self")? {
            return Some(true);
        }
        let table = std::fs::read(format!("/proc/{process}/mountinfo")).ok()?;
        let table = mountinfo::parse(&String::from_utf8_lossy(&table));
        Some(topmost(&table, volume, place) == Place::Mounted)
    }

    fn process(&self, pid: i32) -> Option<Process> {
        let started = started(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Process { pid, started })
    }

    fn is_used_elsewhere(&self, place: &Path) -> io::Result<bool> {
        let Some(mount) = mountinfo::mounted_at(place)? else {
            return Ok(false);
        };
        let mut namespaces = BTreeSet::new();
        for process in std::fs::read_dir("/proc")? {
            let process = process?.path();
            // One that has just ended has no mounts any more.
            let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else {
                continue;
            };
            if namespaces.contains(&namespace) {
                continue;
            }
            let Ok(table) = std::fs::read(process.join("mountinfo")) else {
                continue;
            };
            namespaces.insert(namespace);
            let table = mountinfo::parse(&String::from_utf8_lossy(&table));
            if table.iter().any(|m| m.device == mount.device && m.mountpoint != place) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// When a process started, from its line in /proc/PID/stat.
fn started(stat: &str) -> Option<u64> {
    Stat::of(stat)?.started()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_at_a_place_counts() {
        let table = mountinfo::parse(
            "\
50 22 0:44 / /d/docker/a rw shared:5 - fuse.storageos default/a rw
51 22 0:45 / /d/docker/b rw - fuse.storageos default/b rw
52 51 0:46 / /d/docker/b rw - tmpfs scratch rw
53 22 0:47 / /d/docker/c rw - fuse.storageos default/other rw
",
        );
        let at = |name: &str| topmost(&table, &format!("default/{name}"), &Path::new("/d/docker").join(name));
        assert_eq!(at("a"), Place::Mounted);
        assert_eq!(at("b"), Place::Foreign("scratch".into()));
        assert_eq!(at("c"), Place::Foreign("default/other".into()));
        assert_eq!(at("d"), Place::Empty);
    }

    #[test]
    fn a_process_is_told_by_its_start() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) b (c)) S {}\n", fields.join(" "));
        assert_eq!(started(&stat), Some(22));
        for odd in ["", "17 (a", "17 (a) S 1 2", ") a b"] {
            assert_eq!(started(odd), None, "{odd}");
        }
        let machine = Machine {
            socket: "/nowhere".into(),
        };
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(machine.process(own), machine.process(own));
        assert!(machine.process(own).is_some() && machine.process(-1).is_none());
        assert!(!machine.is_used_elsewhere(Path::new("/no/such/place")).unwrap());
    }

    #[test]
    fn this_process_sees_its_own_mounts_and_nobody_knows_of_a_process_that_is_not_there() {
        let machine = Machine {
            socket: "/nowhere".into(),
        };
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(machine.is_visible_to(own, "default/a", Path::new("/x")), Some(true));
        assert_eq!(machine.is_visible_to(-1, "default/a", Path::new("/x")), None);
    }
}
