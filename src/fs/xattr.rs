//! Extended attributes: `user.`, `trusted.` and `security.`, and POSIX access control lists, which the mode follows (`acl`).

use super::acl::{self, Acl};
use super::error::posix;
use super::rows::Inode;
use super::rows::xattr_key;
use super::{Caller, FileSystem, FsError, Ino, State, Time};
use std::ops::Bound;

/// Longest name, and longest value (`XATTR_SIZE_MAX`).
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65_536;
/// Bytes of names and values of one inode.
const TOTAL_MAX: usize = 1 << 20;

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

fn check(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_MAX {
        return posix(libc::ERANGE);
    }
    if is_acl(name) {
        return Ok(());
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

impl State {
    /// An inode's access control list of this name, if it has one.
    pub(super) fn acl(&self, ino: Ino, name: &[u8]) -> Result<Option<Acl>, FsError> {
        match self.store.get(&xattr_key(ino, name))? {
            Some(row) => match Acl::decode(&row) {
                Some(acl) => Ok(Some(acl)),
                None => Err(FsError::Metadata(format!(
                    "inode {ino}'s access control list is damaged"
                ))),
            },
            None => Ok(None),
        }
    }

    /// The access list follows a chmod.
    pub(super) fn access_follows(&mut self, ino: Ino, mode: u32) -> Result<(), FsError> {
        if let Some(mut acl) = self.acl(ino, acl::ACCESS)? {
            acl.set_mode(mode);
            self.store.put(xattr_key(ino, acl::ACCESS), acl.encode());
        }
        Ok(())
    }
}

/// What is kept of an access control list that is set, and what that makes of the inode; none: the mode says it all.
fn set_acl(caller: &Caller, inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
    let Some(acl) = Acl::decode(value) else {
        return posix(libc::EINVAL);
    };
    if name == acl::DEFAULT {
        return if inode.is_dir() {
            Ok(Some(acl.encode()))
        } else {
            posix(libc::EACCES)
        };
    }
    inode.mode = inode.mode & !0o777 | acl.mode();
    if caller.uid != 0 && caller.gid != inode.gid {
        // As chmod does for whoever is not in the group. Other groups of the caller are not told.
        inode.mode &= !libc::S_ISGID;
    }
    Ok((!acl.is_mode()).then(|| acl.encode()))
}

impl FileSystem {
    /// Sets an attribute; `flags` are those of setxattr(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `ERANGE`, `E2BIG`, `EEXIST`, `ENODATA`, `ENOSPC`, `EROFS`, or the device's; for an access control list `EINVAL` if it is none,
    /// `EACCES` for a default one on anything but a directory.
    pub fn setxattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<(), FsError> {
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
        let (from, to) = (xattr_key(ino, b""), xattr_key(ino.saturating_add(1), b""));
        state.store.range(Bound::Included(&from), &to, &mut |key, value| {
            total += key.len() + value.len();
            true
        })?;
        if total > TOTAL_MAX {
            return posix(libc::ENOSPC);
        }
        let kept = if is_acl(name) {
            set_acl(caller, &mut inode, name, value)?
        } else {
            Some(value.to_vec())
        };
        match kept {
            Some(value) => state.store.put(key, value),
            None if exists => state.store.delete(key),
            None => {}
        }
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
        let (from, to) = (xattr_key(ino, b""), xattr_key(ino.saturating_add(1), b""));
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
            // A list that says no more than the mode is not kept.
            return if is_acl(name) { Ok(()) } else { posix(libc::ENODATA) };
        }
        state.store.delete(key);
        inode.ctime = Time::now();
        state.put_inode(ino, &inode, false);
        state.done();
        Ok(())
    }
}
