//! Directories: finding, making and removing names.
//!
//! An entry's row has its directory and a slot for a key. The slot is a keyed hash of the name, or one of the [`PROBE`] slots after it
//! when that is taken; it is also the cookie of readdir, so an entry stays where it is while others come and go. The key is secret: a
//! user cannot fill the slots of a name.

use super::acl::{self, Acl};
use super::error::posix;
use super::rows::{Content, Dirent, Inode, dirent_key, inode_key, key_number, xattr_key};
use super::{Attr, Caller, Core, DirEntry, FileKind, FileSystem, FsError, Ino, NAME_MAX, ROOT, State, Time};
use std::collections::HashSet;
use std::ops::Bound;

/// Slots that a name may be in.
pub(super) const PROBE: u64 = 8;
/// Bytes of an entry's key.
const ENTRY_KEY: usize = 17;
/// Slots below this are readdir's cookies of `.` and `..`.
const FIRST_SLOT: u64 = 16;
/// Links that an inode may have.
const LINK_MAX: u32 = 65_000;
/// Entries read under one hold of the lock.
const READDIR_STEP: usize = 512;

/// Attributes that are access lists.
type Inherited = Vec<(&'static [u8], Acl)>;

/// A found entry: its slot and content.
pub(super) type Found = (u64, Dirent);

fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_MAX {
        return posix(libc::ENAMETOOLONG);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return posix(libc::EINVAL);
    }
    Ok(())
}

/// The first slot that a name may be in.
pub(super) fn slot(hash_key: &[u8; 32], name: &[u8]) -> u64 {
    let hash = blake3::keyed_hash(hash_key, name);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    // 63 bits, since cookies are signed for some callers; away from both ends, so that probing never wraps.
    (u64::from_le_bytes(first) >> 1).clamp(FIRST_SLOT, (1 << 63) - 2 * PROBE)
}

impl Core {
    fn slot(&self, name: &[u8]) -> u64 {
        slot(&self.hash_key, name)
    }

    /// The entry of a name.
    pub(super) fn find(&self, state: &State, parent: Ino, name: &[u8]) -> Result<Option<Found>, FsError> {
        let slot = self.slot(name);
        let mut found = None;
        let (from, to) = (dirent_key(parent, slot), dirent_key(parent, slot + PROBE));
        state.store.range(Bound::Included(&from), &to, &mut |key, value| {
            if value.get(9..) == Some(name) && key.len() == ENTRY_KEY {
                found = key_number(key, 1).zip(Dirent::decode(value));
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Makes an entry. The name is not there.
    pub(super) fn insert(&self, state: &mut State, parent: Ino, entry: &Dirent) -> Result<(), FsError> {
        let slot = self.slot(&entry.name);
        for slot in slot..slot + PROBE {
            let key = dirent_key(parent, slot);
            if state.store.get(&key)?.is_none() {
                state.store.put(key, entry.encode());
                return Ok(());
            }
        }
        // Eight names with nearly the same 63-bit hash: does not happen.
        posix(libc::ENOSPC)
    }

    /// Makes an inode with a name in a directory.
    fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
        content: Content,
    ) -> Result<Attr, FsError> {
        check_name(name)?;
        let mut state = self.change_adding()?;
        let mut directory = state.directory(parent)?;
        if self.find(&state, parent, name)?.is_some() {
            return posix(libc::EEXIST);
        }
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        if is_dir && directory.nlink >= LINK_MAX {
            return posix(libc::EMLINK);
        }
        let (mode, lists) = state.inherited(caller, parent, mode)?;
        let (ino, inode) = state.new_inode(caller, &directory, mode, rdev, content)?;
        for (name, list) in lists {
            state.store.put(xattr_key(ino, name), list.encode());
        }
        let entry = Dirent {
            ino,
            kind: (mode >> 12) as u8 & 0xf,
            name: name.to_vec(),
        };
        self.insert(&mut state, parent, &entry)?;
        if is_dir {
            directory.nlink += 1;
        }
        state.put_changed_directory(parent, directory, inode.mtime);
        state.refer(ino);
        state.done();
        Ok(inode.attr(ino))
    }
}

impl State {
    /// A directory's inode.
    pub(super) fn directory(&self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.inode(ino)?;
        if !inode.is_dir() {
            return posix(libc::ENOTDIR);
        }
        if inode.nlink == 0 {
            // Removed, but still somebody's working directory.
            return posix(libc::ENOENT);
        }
        Ok(inode)
    }

    pub(super) fn put_changed_directory(&mut self, ino: Ino, mut inode: Inode, now: Time) {
        (inode.mtime, inode.ctime) = (now, now);
        self.put_inode(ino, &inode, false);
    }

    /// A new inode as a child of a directory would be: set-group-id is inherited.
    pub(super) fn new_inode(
        &mut self,
        caller: &Caller,
        directory: &Inode,
        mut mode: u32,
        rdev: u32,
        content: Content,
    ) -> Result<(Ino, Inode), FsError> {
        let mut gid = caller.gid;
        if directory.mode & libc::S_ISGID != 0 {
            gid = directory.gid;
            if mode & libc::S_IFMT == libc::S_IFDIR {
                mode |= libc::S_ISGID;
            }
        }
        let now = Time::now();
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        let inode = Inode {
            mode,
            uid: caller.uid,
            gid,
            nlink: if is_dir { 2 } else { 1 },
            rdev,
            size: match &content {
                Content::Target(target) => target.len() as u64,
                _ => 0,
            },
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            content,
        };
        let ino = self.counters.next_ino;
        let next = ino.checked_add(1).filter(|_| ino > ROOT);
        self.counters.next_ino =
            next.ok_or_else(|| self.store.damaged("the number of the next inode is damaged".into()))?;
        self.counters.inodes = self.counters.inodes.saturating_add(1);
        self.put_counters();
        self.put_inode(ino, &inode, false);
        Ok((ino, inode))
    }

    /// The mode that a new inode gets in a directory, and the access lists that it inherits there.
    fn inherited(&self, caller: &Caller, parent: Ino, mode: u32) -> Result<(u32, Inherited), FsError> {
        if mode & libc::S_IFMT == libc::S_IFLNK {
            return Ok((mode, Vec::new()));
        }
        let Some(default) = self.acl(parent, acl::DEFAULT)? else {
            return Ok((mode & !(caller.umask & 0o777), Vec::new()));
        };
        let access = default.inherited(mode);
        let mode = mode & !0o777 | access.mode();
        let mut lists = Vec::new();
        if !access.is_mode() {
            lists.push((acl::ACCESS, access));
        }
        if mode & libc::S_IFMT == libc::S_IFDIR {
            lists.push((acl::DEFAULT, default));
        }
        Ok((mode, lists))
    }

    /// Whether a directory has no entries.
    pub(super) fn is_empty(&self, ino: Ino) -> Result<bool, FsError> {
        Ok(self
            .store
            .first(Bound::Included(&dirent_key(ino, 0)), &dirent_key(ino, u64::MAX))?
            .is_none())
    }

    /// Takes one name from an inode that is not a directory; true if the inode must be removed now.
    pub(super) fn drop_link(&mut self, ino: Ino, now: Time) -> Result<bool, FsError> {
        let mut inode = self.inode(ino)?;
        inode.nlink = inode.nlink.saturating_sub(1);
        inode.ctime = now;
        self.put_inode(ino, &inode, false);
        Ok(inode.nlink == 0 && self.orphan(ino))
    }

    /// Takes the name of an empty directory; true if the inode must be removed now.
    pub(super) fn drop_directory(&mut self, ino: Ino, now: Time) -> Result<bool, FsError> {
        let mut inode = self.inode(ino)?;
        inode.nlink = 0;
        inode.ctime = now;
        self.put_inode(ino, &inode, false);
        Ok(self.orphan(ino))
    }
}

impl FileSystem {
    /// The inode of a name; counts a reference.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`, or the device's.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        if name.len() > NAME_MAX {
            return posix(libc::ENAMETOOLONG);
        }
        let mut state = self.core.state()?;
        let ino = match name {
            b"." => parent,
            b".." => match state.inode(parent)?.content {
                Content::Directory(above) => above,
                _ => return posix(libc::ENOTDIR),
            },
            _ => match self.core.find(&state, parent, name)? {
                Some((_, entry)) => entry.ino,
                None => return posix(libc::ENOENT),
            },
        };
        let attr = state.inode(ino)?.attr(ino);
        state.refer(ino);
        Ok(attr)
    }

    /// Makes a regular file or a special one; counts a reference.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`, `EROFS`, or the device's.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr, FsError> {
        let content = match FileKind::of_mode(mode) {
            Some(FileKind::File) => Content::Inline(Vec::new()),
            Some(FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice) => Content::None,
            _ => return posix(libc::EINVAL),
        };
        self.core.make(caller, parent, name, mode, rdev, content)
    }

    /// Makes and opens a regular file; counts a reference and an open.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub fn create(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, FsError> {
        let mode = libc::S_IFREG | mode & 0o7777;
        let attr = self
            .core
            .make(caller, parent, name, mode, 0, Content::Inline(Vec::new()))?;
        self.open_file(attr.ino, false)?;
        Ok(attr)
    }

    /// Makes a directory; counts a reference.
    ///
    /// # Errors
    /// As [`Self::mknod`], `EMLINK`.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, FsError> {
        let mode = libc::S_IFDIR | mode & 0o7777;
        self.core
            .make(caller, parent, name, mode, 0, Content::Directory(parent))
    }

    /// Makes a symbolic link; counts a reference.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr, FsError> {
        if target.is_empty() || target.len() > 4095 {
            return posix(if target.is_empty() {
                libc::ENOENT
            } else {
                libc::ENAMETOOLONG
            });
        }
        self.core.make(
            caller,
            parent,
            name,
            libc::S_IFLNK | 0o777,
            0,
            Content::Target(target.to_vec()),
        )
    }

    /// A symbolic link's target.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        match self.core.state()?.inode(ino)?.content {
            Content::Target(target) => Ok(target),
            _ => posix(libc::EINVAL),
        }
    }

    /// Gives an inode another name; counts a reference.
    ///
    /// # Errors
    /// `EPERM` for a directory, `EMLINK`, and as [`Self::mknod`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        check_name(name)?;
        let mut state = self.core.change_adding()?;
        let mut inode = state.inode(ino)?;
        if inode.is_dir() {
            return posix(libc::EPERM);
        }
        if inode.nlink >= LINK_MAX {
            return posix(libc::EMLINK);
        }
        if inode.nlink == 0 {
            return posix(libc::ENOENT);
        }
        let directory = state.directory(parent)?;
        if self.core.find(&state, parent, name)?.is_some() {
            return posix(libc::EEXIST);
        }
        let entry = Dirent {
            ino,
            kind: (inode.mode >> 12) as u8 & 0xf,
            name: name.to_vec(),
        };
        self.core.insert(&mut state, parent, &entry)?;
        let now = Time::now();
        inode.nlink += 1;
        inode.ctime = now;
        state.put_inode(ino, &inode, false);
        state.put_changed_directory(parent, directory, now);
        state.refer(ino);
        state.done();
        Ok(inode.attr(ino))
    }

    /// Removes a name of something that is no directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EROFS`, or the device's.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        let mut state = self.core.change()?;
        let directory = state.directory(parent)?;
        let Some((slot, entry)) = self.core.find(&state, parent, name)? else {
            return posix(libc::ENOENT);
        };
        if entry.file_kind() == FileKind::Directory {
            return posix(libc::EISDIR);
        }
        let now = Time::now();
        state.store.delete(dirent_key(parent, slot));
        state.put_changed_directory(parent, directory, now);
        let gone = state.drop_link(entry.ino, now)?;
        state.done();
        drop(state);
        if gone {
            self.core.remove_inode(entry.ino)
        } else {
            Ok(())
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EROFS`, or the device's.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        let mut state = self.core.change()?;
        let mut directory = state.directory(parent)?;
        let Some((slot, entry)) = self.core.find(&state, parent, name)? else {
            return posix(libc::ENOENT);
        };
        if entry.file_kind() != FileKind::Directory {
            return posix(libc::ENOTDIR);
        }
        if !state.is_empty(entry.ino)? {
            return posix(libc::ENOTEMPTY);
        }
        let now = Time::now();
        state.store.delete(dirent_key(parent, slot));
        directory.nlink -= 1;
        state.put_changed_directory(parent, directory, now);
        let gone = state.drop_directory(entry.ino, now)?;
        state.done();
        drop(state);
        if gone {
            self.core.remove_inode(entry.ino)
        } else {
            Ok(())
        }
    }

    /// Visits a directory's entries after a cookie (0: from the start) until the visitor says that it is full (true; that entry is not
    /// taken).
    ///
    /// # Errors
    /// `ENOTDIR`, or the device's.
    pub fn readdir(&self, ino: Ino, after: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> Result<(), FsError> {
        self.visit(ino, after, &mut |_, entry| Ok(sink(entry)))
    }

    /// The same with attributes; counts a reference for each entry taken, but for `.` and `..`.
    ///
    /// # Errors
    /// `ENOTDIR`, or the device's.
    pub fn readdir_plus(
        &self,
        ino: Ino,
        after: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>, &Attr) -> bool,
    ) -> Result<(), FsError> {
        self.visit(ino, after, &mut |state, entry| {
            let attr = state.inode(entry.ino)?.attr(entry.ino);
            let full = sink(entry, &attr);
            if !full && entry.name != b"." && entry.name != b".." {
                state.refer(entry.ino);
            }
            Ok(full)
        })
    }

    fn visit(
        &self,
        ino: Ino,
        after: u64,
        sink: &mut dyn FnMut(&mut State, &DirEntry<'_>) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        let mut state = self.core.state()?;
        let inode = state.inode(ino)?;
        let Content::Directory(above) = inode.content else {
            return posix(libc::ENOTDIR);
        };
        for (cookie, name, target) in [(1, &b"."[..], ino), (2, &b".."[..], above)] {
            let entry = DirEntry {
                ino: target,
                kind: FileKind::Directory,
                name,
                cookie,
            };
            if after < cookie && state.inode(target).is_ok() && sink(&mut state, &entry)? {
                return Ok(());
            }
        }
        let mut after = after.max(FIRST_SLOT - 1);
        loop {
            let mut entries = Vec::new();
            let from = dirent_key(ino, after);
            state
                .store
                .range(Bound::Excluded(&from), &dirent_key(ino, u64::MAX), &mut |key, value| {
                    // The next step goes on after the last slot: a longer key would come again and again.
                    let entry = key_number(key, 1).zip(Dirent::decode(value));
                    entries.extend(entry.filter(|_| key.len() == ENTRY_KEY));
                    entries.len() < READDIR_STEP
                })?;
            let Some(last) = entries.last() else {
                return Ok(());
            };
            after = last.0;
            for (cookie, dirent) in &entries {
                let entry = DirEntry {
                    ino: dirent.ino,
                    kind: dirent.file_kind(),
                    name: &dirent.name,
                    cookie: *cookie,
                };
                if sink(&mut state, &entry)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether `ino` is `above` or below it.
pub(super) fn is_below(state: &State, mut ino: Ino, above: Ino) -> Result<bool, FsError> {
    let mut seen = HashSet::new();
    loop {
        if !seen.insert(ino) {
            return Err(state.store.damaged(format!("directory {ino} is within itself")));
        }
        if ino == above {
            return Ok(true);
        }
        if ino == ROOT {
            return Ok(false);
        }
        match state.inode(ino)?.content {
            Content::Directory(parent) if parent != ino => ino = parent,
            _ => return Ok(false),
        }
    }
}

/// Names the parent of a directory that moved.
pub(super) fn set_parent(state: &mut State, ino: Ino, parent: Ino) -> Result<(), FsError> {
    let mut inode = state.inode(ino)?;
    inode.content = Content::Directory(parent);
    state.store.put(inode_key(ino), inode.encode());
    state.touch(ino, false);
    Ok(())
}
