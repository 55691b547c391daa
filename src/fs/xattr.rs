//! Extended attributes: `user.`, `trusted.` and `security.`; POSIX ACLs (`system.`) are not kept.

use super::error::posix;
use super::rows::xattr_key;
use super::{FileSystem, FsError, Ino, Time};
use std::ops::Bound;

/// Longest name, and longest value (`XATTR_SIZE_MAX`).
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65_536;
/// Bytes of names and values of one inode.
const TOTAL_MAX: usize = 1 << 20;

fn check(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_MAX {
        return posix(libc::ERANGE);
    }
    let known = [&b"user."[..], b"trusted.", b"security."];
    if !known
        .iter()
        .any(|prefix| name.starts_with(prefix) && name.len() > prefix.len())
    {
        return posix(libc::EOPNOTSUPP);
    }
    Ok(())
}

impl FileSystem {
    /// Sets an attribute; `flags` are those of setxattr(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `ERANGE`, `E2BIG`, `EEXIST`, `ENODATA`, `ENOSPC`, `EROFS`, or the device's.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<(), FsError> {
        check(name)?;
        if value.len() > VALUE_MAX {
            return posix(libc::E2BIG);
        }
        let mut state = self.core.change_adding()?;
        let mut inode = state.inode(ino)?;
        let key = xattr_key(ino, name);
        let exists = state.store.get(&key)?.is_some();
        if exists && flags & libc::XATTR_CREATE != 0 {
            return posix(libc::EEXIST);
        }
        if !exists && flags & libc::XATTR_REPLACE != 0 {
            return posix(libc::ENODATA);
        }
        let mut total = name.len() + value.len();
        let (from, to) = (xattr_key(ino, b""), xattr_key(ino + 1, b""));
        state.store.range(Bound::Included(&from), &to, &mut |key, value| {
            total += key.len() + value.len();
            true
        })?;
        if total > TOTAL_MAX {
            return posix(libc::ENOSPC);
        }
        state.store.put(key, value.to_vec());
        inode.ctime = Time::now();
        state.put_inode(ino, &inode, false);
        state.done();
        Ok(())
    }

    /// An attribute's value.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP`, or the device's.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        check(name)?;
        match self.core.state()?.store.get(&xattr_key(ino, name))? {
            Some(value) => Ok(value),
            None => posix(libc::ENODATA),
        }
    }

    /// The names of an inode's attributes, each ended by a zero byte.
    ///
    /// # Errors
    /// The device's.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let mut names = Vec::new();
        let (from, to) = (xattr_key(ino, b""), xattr_key(ino + 1, b""));
        self.core
            .state()?
            .store
            .range(Bound::Included(&from), &to, &mut |key, _| {
                names.extend_from_slice(&key[from.len()..]);
                names.push(0);
                true
            })?;
        Ok(names)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP`, `EROFS`, or the device's.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        check(name)?;
        let mut state = self.core.change()?;
        let mut inode = state.inode(ino)?;
        let key = xattr_key(ino, name);
        if state.store.get(&key)?.is_none() {
            return posix(libc::ENODATA);
        }
        state.store.delete(key);
        inode.ctime = Time::now();
        state.put_inode(ino, &inode, false);
        state.done();
        Ok(())
    }
}
