//! libmount's notes of mounts, `/run/mount/utab`: umount(8) looks for `/sbin/umount.fuse.storageos` only if the mount has a line there;
//! else it asks statfs for the type, hears just "fuse", and returns before the daemon has saved everything.
//!
//! Changed as libmount does it: under a lock on `utab.lock`, by a new file that takes the old one's name.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// libmount's directory.
pub const DIRECTORY: &str = "/run/mount";

/// Adds the line of a mount; an older one of the same mountpoint goes.
///
/// # Errors
/// The file system's.
pub fn add(directory: &Path, source: &str, mountpoint: &Path) -> io::Result<()> {
    update(directory, |old| added(old, source, mountpoint))
}

/// Removes the line of a mount.
///
/// # Errors
/// The file system's.
pub fn remove(directory: &Path, mountpoint: &Path) -> io::Result<()> {
    update(directory, |old| removed(old, mountpoint))
}

/// The file's content with the line of a mount; an older one of the same mountpoint is gone.
#[must_use]
pub fn added(old: &[u8], source: &str, mountpoint: &Path) -> Vec<u8> {
    let mut new = removed(old, mountpoint);
    if new.last().is_some_and(|last| *last != b'\n') {
        // A last line without an end: the two would be one.
        new.push(b'\n');
    }
    new.extend_from_slice(b"SRC=");
    mangle(source.as_bytes(), &mut new);
    new.extend_from_slice(b" TARGET=");
    mangle(mountpoint.as_os_str().as_bytes(), &mut new);
    new.extend_from_slice(b" ROOT=/ OPTS=_netdev\n");
    new
}

/// The file's content without the line of a mount.
#[must_use]
pub fn removed(old: &[u8], mountpoint: &Path) -> Vec<u8> {
    let mut target = b" TARGET=".to_vec();
    mangle(mountpoint.as_os_str().as_bytes(), &mut target);
    target.push(b' ');
    let ours = |old: &&[u8]| !old.windows(target.len()).any(|part| part == target);
    let lines = old.split_inclusive(|b| *b == b'\n');
    lines.filter(ours).flatten().copied().collect()
}

fn update(directory: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("utab.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let path = directory.join("utab");
    let old = match fs::read(&path) {
        Ok(old) => old,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    let fresh = directory.join(format!("utab.{}", std::process::id()));
    fs::write(&fresh, change(&old))?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o644))?;
    fs::rename(fresh, path)
}

/// As in the mount table: white space and backslashes as three octal digits.
fn mangle(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            _ => out.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_and_go_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let text = || fs::read_to_string(directory.path().join("utab")).unwrap();
        fs::write(
            directory.path().join("utab"),
            "SRC=nfs:/x TARGET=/x ROOT=/ OPTS=user=a\n",
        )
        .unwrap();
        add(directory.path(), "default/v", Path::new("/mnt/a b")).unwrap();
        add(directory.path(), "default/w", Path::new("/mnt/a b")).unwrap();
        let expected =
            "SRC=nfs:/x TARGET=/x ROOT=/ OPTS=user=a\nSRC=default/w TARGET=/mnt/a\\040b ROOT=/ OPTS=_netdev\n";
        assert_eq!(text(), expected);
        remove(directory.path(), Path::new("/mnt/a b")).unwrap();
        assert_eq!(text(), "SRC=nfs:/x TARGET=/x ROOT=/ OPTS=user=a\n");
    }
}
