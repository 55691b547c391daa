//! Between `fs` words and `fuser` words: attributes, times, errors. No state.

use crate::fs::{Attr, FileKind, FsError, SetTime, Time};
use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// A time that `SystemTime` cannot hold is shown as 1970.
fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

pub(super) fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |s| -s);
            match before.subsec_nanos() {
                0 => Time { secs, nanos: 0 },
                nanos => Time {
                    secs: secs.saturating_sub(1),
                    nanos: 1_000_000_000 - nanos,
                },
            }
        }
    }
}

pub(super) fn set_time(set: TimeOrNow) -> SetTime {
    match set {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(time(t)),
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// The answer that says "there is no such name", so that the kernel remembers it: inode number 0.
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Logs what is no ordinary answer, at most once a second, and gives the kernel its errno.
pub(super) fn errno(operation: &'static str, ino: u64, error: &FsError) -> Errno {
    static LAST_LOGGED: AtomicU64 = AtomicU64::new(0);
    if !matches!(error, FsError::Posix(_)) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if LAST_LOGGED.swap(now, Ordering::Relaxed) != now {
            tracing::warn!(operation, ino, %error, "a file-system call failed");
        }
    }
    match error.errno() {
        // The kernel would never send this kind of request again.
        libc::ENOSYS => Errno::EOPNOTSUPP,
        errno => Errno::from_i32(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970_survive_the_way_there_and_back() {
        for (secs, nanos) in [
            (0, 0),
            (1, 999_999_999),
            (-1, 1),
            (-5, 0),
            (4_000_000_000, 7),
            (-4_000_000_000, 5),
        ] {
            let t = Time { secs, nanos };
            assert_eq!(time(system_time(t)), t);
        }
    }

    #[test]
    fn a_time_beyond_what_the_clock_can_hold_is_no_panic() {
        let far = Time {
            secs: i64::MIN,
            nanos: 0,
        };
        let _ = system_time(far);
    }
}
