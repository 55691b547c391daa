//! Which daemon serves which mount: one small file per mount under [`DIRECTORY`], so that `umount`, which is told only the directory,
//! knows whom to wait for. A hint, never the truth: the mount table is; a record that does not fit it is ignored.

use crate::mountinfo::Mount;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Where the records are; emptied by a reboot, like the mount table.
pub const DIRECTORY: &str = "/run/storageos/mounts";

/// One mount's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As in the mount table.
    pub volume: String,
    /// As in the mount table.
    pub mountpoint: PathBuf,
    /// The daemon's socket for mounts.
    pub socket: PathBuf,
}

/// The device number is unique while the mount lives.
fn path(directory: &Path, device: &str) -> PathBuf {
    directory.join(format!("{}.json", device.replace(':', "-")))
}

/// Keeps a record.
///
/// # Errors
/// The file system's.
pub fn write(directory: &Path, device: &str, record: &Record) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path = path(directory, device);
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&fresh, serde_json::to_vec(record)?)?;
    std::fs::rename(fresh, path)
}

/// The record of a mount, if there is one that fits.
#[must_use]
pub fn read(directory: &Path, mount: &Mount) -> Option<Record> {
    let record = load(directory, &mount.device)?;
    // A mount may have been moved, but a volume's name stays.
    (record.volume == mount.source).then_some(record)
}

/// Forgets a mount that is gone. The record of another one that got its device number meanwhile stays.
pub fn remove(directory: &Path, device: &str, record: &Record) {
    if load(directory, device).as_ref() == Some(record) {
        // A record that stays is overwritten when its device number is used again.
        let _ = std::fs::remove_file(path(directory, device));
    }
}

fn load(directory: &Path, device: &str) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(path(directory, device)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_only_for_the_mount_it_was_made_for() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record {
            volume: "default/v".into(),
            mountpoint: "/mnt".into(),
            socket: "/run/s.mount".into(),
        };
        let mut mount = Mount {
            device: "0:44".into(),
            mountpoint: "/mnt".into(),
            fs_type: "fuse.storageos".into(),
            source: "default/v".into(),
        };
        assert_eq!(read(directory.path(), &mount), None);
        write(directory.path(), "0:44", &record).unwrap();
        assert_eq!(read(directory.path(), &mount), Some(record.clone()));
        mount.source = "default/other".into();
        assert_eq!(read(directory.path(), &mount), None);
        let other = Record {
            mountpoint: "/other".into(),
            ..record.clone()
        };
        remove(directory.path(), "0:44", &other);
        mount.source = "default/v".into();
        assert_eq!(read(directory.path(), &mount), Some(record.clone()));
        remove(directory.path(), "0:44", &record);
        mount.source = "default/v".into();
        assert_eq!(read(directory.path(), &mount), None);
    }
}
