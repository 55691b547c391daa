//! Attributes: getattr, setattr, and a file's length.

use super::error::posix;
use super::rows::Inode;
use super::{Attr, Core, FILE_MAX, FileKind, FileSystem, FsError, Ino, SetAttr, SetTime, Time};
use crate::block::{BLOCK_SIZE, Write};
use bytes::Bytes;
use std::ops::Range;

const BLOCK: u64 = BLOCK_SIZE as u64;

impl SetTime {
    fn value(self, now: Time) -> Time {
        match self {
            Self::Now => now,
            Self::At(time) => time,
        }
    }
}

/// Clears the set-id bits that a write, truncation or change of owner takes away.
pub(super) fn kill_set_id(inode: &mut Inode) {
    if inode.kind() != FileKind::Directory {
        inode.mode &= !libc::S_ISUID;
        if inode.mode & libc::S_IXGRP != 0 {
            inode.mode &= !libc::S_ISGID;
        }
    }
}

impl FileSystem {
    /// An inode's attributes.
    ///
    /// # Errors
    /// `ENOENT`, or the device's.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        Ok(self.core.state()?.inode(ino)?.attr(ino))
    }

    /// Changes attributes; a change of owner clears the set-id bits.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EINVAL`, `EFBIG`, `EROFS`, or the device's.
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr, FsError> {
        if let Some(size) = set.size {
            self.core.set_size(ino, size)?;
        }
        let mut state = self.core.change()?;
        let mut inode = state.inode(ino)?;
        let now = Time::now();
        if let Some(mode) = set.mode {
            inode.mode = inode.mode & libc::S_IFMT | mode & 0o7777;
            state.access_follows(ino, mode)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            kill_set_id(&mut inode);
        }
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        if set.kill_suid {
            kill_set_id(&mut inode);
        }
        inode.atime = set.atime.map_or(inode.atime, |t| t.value(now));
        inode.mtime = set.mtime.map_or(inode.mtime, |t| t.value(now));
        inode.ctime = set.ctime.unwrap_or(now);
        let beyond_times = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.kill_suid;
        state.put_inode(ino, &inode, !beyond_times);
        Ok(inode.attr(ino))
    }
}

impl Core {
    /// Sets a file's length; what it grows by reads as zero.
    fn set_size(&self, ino: Ino, size: u64) -> Result<(), FsError> {
        if size > FILE_MAX {
            return posix(libc::EFBIG);
        }
        // Nobody may write into the last block while its end is zeroed.
        let _edge = self.edge(ino).write();
        let _ticket = self.ticket();
        loop {
            let mut state = self.change()?;
            let mut inode = state.inode(ino)?;
            match inode.kind() {
                FileKind::File => {}
                FileKind::Directory => return posix(libc::EISDIR),
                _ => return posix(libc::EINVAL),
            }
            let now = Time::now();
            (inode.mtime, inode.ctime) = (now, now);
            if size >= inode.size {
                let tail = (size > inode.size)
                    .then(|| state.tail(ino, &inode))
                    .transpose()?
                    .flatten();
                let old = inode.size;
                drop(state);
                // The bytes after the old end come into sight: they must be zeros first.
                if let Some(block) = tail {
                    self.zero(ino, block, (old % BLOCK) as usize..BLOCK_SIZE)?;
                }
                let mut state = self.change()?;
                let mut inode = state.inode(ino)?;
                (inode.size, inode.mtime, inode.ctime) = (size, now, now);
                state.put_inode(ino, &inode, false);
                return Ok(());
            }
            let keep = size.div_ceil(BLOCK);
            let first = state.cut(ino, &mut inode, keep)?;
            let done = first == keep;
            inode.size = if done { size } else { inode.size.min(first * BLOCK) };
            let tail = state.tail(ino, &inode)?.filter(|_| done);
            state.put_inode(ino, &inode, false);
            drop(state);
            // What was cut off must not come back when a crash loses the zeros of a later growth. After the cut: before it, a crash
            // could leave a file of the old size with them.
            if let Some(block) = tail {
                self.zero(ino, block, (size % BLOCK) as usize..BLOCK_SIZE)?;
            }
            if done {
                return Ok(());
            }
        }
    }

    /// Zeroes a part of a block of the device that a file has.
    pub(super) fn zero(&self, ino: Ino, block: u64, part: Range<usize>) -> Result<(), FsError> {
        let mut content = vec![0; BLOCK_SIZE];
        self.device.read(block, &mut content)?;
        content[part].fill(0);
        let data = Bytes::from(content);
        self.write_data(ino, &[Write { block, data }])
    }
}

impl super::State {
    /// Where the block with a file's last byte is, if the file ends within an allocated block.
    pub(super) fn tail(&self, ino: Ino, inode: &Inode) -> Result<Option<u64>, FsError> {
        if inode.size.is_multiple_of(BLOCK) {
            return Ok(None);
        }
        Ok(self.map(ino, inode, inode.size / BLOCK, 1)?[0].physical)
    }
}
