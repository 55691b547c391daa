//! What callers of the file system pass and get: inode numbers, attributes, options.

use crate::block::BLOCK_SIZE;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An inode number; also the FUSE node id, so that a restarted daemon can serve the same kernel.
pub type Ino = u64;
/// The root directory.
pub const ROOT: Ino = 1;
/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// Largest file: 2^44 bytes (16 TiB).
pub const FILE_MAX: u64 = 1 << 44;

/// Who makes a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permissions that what it makes shall not have, unless the directory has a default ACL.
    pub umask: u32,
}

/// A moment, in seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl Time {
    /// The system clock's time.
    #[must_use]
    pub fn now() -> Self {
        // A clock before 1970 is shown as 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        }
    }
}

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileKind {
    /// The kind of a mode's type bits (`S_IFMT`).
    #[must_use]
    pub fn of_mode(mode: u32) -> Option<Self> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Self::File,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFBLK => Self::BlockDevice,
            _ => return None,
        })
    }
}

/// What `stat` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Differs when an inode number is used again; numbers are not, so it is constant.
    pub generation: u64,
    /// Type.
    pub kind: FileKind,
    /// Permission bits, 07777.
    pub mode: u16,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of devices.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Last access: set at creation and by utimensat(2) only (as with `noatime`).
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Time),
}

/// Attributes to change; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a file.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time, as the kernel's write-back cache keeps it.
    pub ctime: Option<Time>,
    /// Clear the set-id bits (of who is not privileged).
    pub kill_suid: bool,
}

/// How a file system is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Refuse changes.
    pub read_only: bool,
    /// Longest time that an acknowledged operation waits to become durable without an fsync.
    pub commit_interval: Duration,
    /// Age of the intent log at which its rows are put into the metadata database, if it does not grow long before.
    pub checkpoint_interval: Duration,
    /// Memory for cached metadata, in bytes.
    pub metadata_cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            commit_interval: Duration::from_secs(1),
            checkpoint_interval: Duration::from_secs(30),
            metadata_cache_bytes: 64 << 20,
        }
    }
}

/// Space, in blocks of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// All.
    pub blocks: u64,
    /// Free.
    pub free: u64,
    /// Inodes there may be.
    pub files: u64,
    /// Inodes that may still be made.
    pub files_free: u64,
}

impl StatFs {
    /// Bytes that files take.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.blocks.saturating_sub(self.free).saturating_mul(BLOCK_SIZE as u64)
    }
}

/// A directory entry as readdir shows it.
#[derive(Clone, Debug)]
pub struct DirEntry<'a> {
    /// Inode.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Name.
    pub name: &'a [u8],
    /// Where reading goes on after this entry.
    pub cookie: u64,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}
