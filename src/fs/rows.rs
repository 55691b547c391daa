//! The rows of the metadata database: keys and values, to the byte.
//!
//! One table, ordered by key: a letter for the kind of row, then big-endian numbers, so that ranges are cheap. Values begin with a
//! version where they have more than a number. The intent log carries the same keys and values.

use super::layout::{DATA_START, device_blocks};
use super::types::{Attr, FILE_MAX, FileKind, Ino, Time};
use crate::block::BLOCK_SIZE;
use crate::volume::MAX_SIZE;
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
/// Extents kept in the inode's row; more go to rows of their own.
pub(super) const INLINE_EXTENTS: usize = 4;

/// A run of blocks of a file: `length` blocks from `logical` on are at `physical` on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extent {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
}

impl Extent {
    pub(super) fn end(&self) -> u64 {
        self.logical + self.length
    }

    /// Whether it can be a file's: in the data area of some device, and in a file of some size. Then no sum of its numbers overflows.
    pub(super) fn is_sound(&self) -> bool {
        let most = |start: u64, limit: u64| start.checked_add(self.length).is_some_and(|end| end <= limit);
        self.length > 0
            && most(self.logical, FILE_MAX / BLOCK_SIZE as u64)
            && self.physical >= DATA_START
            && most(self.physical, device_blocks(MAX_SIZE))
    }
}

/// What an inode holds beside its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    /// Nothing (devices, pipes, sockets).
    None,
    /// A file with few extents, in order.
    Inline(Vec<Extent>),
    /// A file whose extents are in rows.
    Rows,
    /// A directory: its parent.
    Directory(Ino),
    /// A symbolic link's target.
    Target(Vec<u8>),
}

/// An inode's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inode {
    /// Type and permission bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u32,
    pub(super) rdev: u32,
    pub(super) size: u64,
    /// Blocks allocated.
    pub(super) blocks: u64,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) btime: Time,
    pub(super) content: Content,
}

impl Inode {
    /// Whether its numbers can be a file's: then no sum of them overflows.
    pub(super) fn is_sound(&self) -> bool {
        let extents = match &self.content {
            Content::Inline(extents) => {
                extents.iter().all(Extent::is_sound) && extents.windows(2).all(|two| two[0].end() <= two[1].logical)
            }
            _ => true,
        };
        extents && self.size <= FILE_MAX && self.blocks <= device_blocks(MAX_SIZE)
    }

    pub(super) fn kind(&self) -> FileKind {
        // A row with an unknown type is refused when it is decoded.
        FileKind::of_mode(self.mode).unwrap_or(FileKind::File)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    pub(super) fn attr(&self, ino: Ino) -> Attr {
        Attr {
            ino,
            generation: 0,
            kind: self.kind(),
            mode: (self.mode & 0o7777) as u16,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            blocks: self.blocks.saturating_mul(BLOCK_SIZE as u64 / 512),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Writing to a vector cannot fail.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let inode: Self = (*version == VERSION).then(|| postcard::from_bytes(rest).ok())??;
        FileKind::of_mode(inode.mode)?;
        Some(inode)
    }
}

/// A directory entry's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dirent {
    pub(super) ino: Ino,
    /// The type bits of the inode's mode, shifted right by 12.
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
}

impl Dirent {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.name.len());
        out.extend_from_slice(&self.ino.to_le_bytes());
        out.push(self.kind);
        out.extend_from_slice(&self.name);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            ino: u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?),
            kind: *bytes.get(8)?,
            name: bytes.get(9..)?.to_vec(),
        })
    }

    pub(super) fn file_kind(&self) -> FileKind {
        FileKind::of_mode(u32::from(self.kind) << 12).unwrap_or(FileKind::File)
    }
}

/// Numbers of the whole file system, in one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counters {
    pub(super) next_ino: u64,
    pub(super) inodes: u64,
    /// Blocks in free rows and in the window.
    pub(super) free: u64,
    /// The run that the next allocations come from; in no free row.
    pub(super) window: (u64, u64),
}

pub(super) const COUNTERS: &[u8] = b"Mcounters";
/// The generation of the intent log that goes on from this database.
pub(super) const GENERATION: &[u8] = b"Mgeneration";

/// Blocks of the data area, once it has grown beyond the superblock's.
pub(super) const DATA_BLOCKS: &[u8] = b"Mdatablocks";
/// Bytes of all rows, each with 8 more.
pub(super) const ROW_BYTES: &[u8] = b"Mrowbytes";

fn numbered(kind: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + numbers.len() * 8);
    key.push(kind);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

/// Key of an inode.
pub(super) fn inode_key(ino: Ino) -> Vec<u8> {
    numbered(b'I', &[ino])
}

/// Key of a directory entry.
pub(super) fn dirent_key(parent: Ino, slot: u64) -> Vec<u8> {
    numbered(b'D', &[parent, slot])
}

/// Key of an extent.
pub(super) fn extent_key(ino: Ino, logical: u64) -> Vec<u8> {
    numbered(b'E', &[ino, logical])
}

/// Key of an extended attribute.
pub(super) fn xattr_key(ino: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = numbered(b'X', &[ino]);
    key.extend_from_slice(name);
    key
}

/// Key of a free run.
pub(super) fn free_key(start: u64) -> Vec<u8> {
    numbered(b'F', &[start])
}

/// Key of a run that is freed but not yet discarded.
pub(super) fn pending_key(start: u64) -> Vec<u8> {
    numbered(b'P', &[start])
}

/// Key of an inode without a name that may still be open.
pub(super) fn orphan_key(ino: Ino) -> Vec<u8> {
    numbered(b'O', &[ino])
}

/// The n-th number of a key.
pub(super) fn key_number(key: &[u8], n: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1 + n * 8..9 + n * 8)?.try_into().ok()?))
}

/// A value that is one number.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(value.try_into().ok()?))
}

/// An extent row's value: physical, length.
pub(super) fn extent_value(extent: &Extent) -> Vec<u8> {
    let mut out = extent.physical.to_le_bytes().to_vec();
    out.extend_from_slice(&extent.length.to_le_bytes());
    out
}

/// The extent of a row.
pub(super) fn extent_of(key: &[u8], value: &[u8]) -> Option<Extent> {
    (key.len() == 17).then_some(())?;
    Some(Extent {
        logical: key_number(key, 1)?,
        physical: number(value.get(..8)?)?,
        length: number(value.get(8..)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_row_has_its_documented_bytes() {
        let inode = Inode {
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            nlink: 1,
            rdev: 0,
            size: 300,
            blocks: 1,
            atime: Time { secs: 1, nanos: 2 },
            mtime: Time { secs: -1, nanos: 3 },
            ctime: Time { secs: 0, nanos: 0 },
            btime: Time { secs: 64, nanos: 0 },
            content: Content::Inline(vec![Extent {
                logical: 0,
                physical: 7,
                length: 1,
            }]),
        };
        let bytes = inode.encode();
        let expected = [
            1, 0xa4, 0x83, 2, 1, 2, 1, 0, 0xac, 2, 1, 2, 2, 1, 3, 0, 0, 0x80, 1, 0, 1, 1, 0, 7, 1,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Inode::decode(&bytes), Some(inode));
        for end in 0..bytes.len() {
            assert_eq!(Inode::decode(&bytes[..end]), None);
        }
    }

    #[test]
    fn a_directory_entry_row_has_its_documented_bytes() {
        let entry = Dirent {
            ino: 258,
            kind: 8,
            name: b"ab".to_vec(),
        };
        assert_eq!(entry.encode(), [2, 1, 0, 0, 0, 0, 0, 0, 8, b'a', b'b']);
        assert_eq!(Dirent::decode(&entry.encode()), Some(entry));
        assert_eq!(dirent_key(1, 2), *b"D\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
    }
}
