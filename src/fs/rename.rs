//! rename(2) with its flags: one operation, so that it is atomic after a crash too.

use super::dir::{is_below, set_parent};
use super::error::posix;
use super::rows::{Content, Dirent, dirent_key};
use super::{Caller, FileKind, FileSystem, FsError, Ino, NAME_MAX, Time};
use libc::{RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT};

impl FileSystem {
    /// Moves a name, replacing what has the new one, as rename(2) and its flags say.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `ENOTEMPTY`, `EISDIR`, `ENOTDIR`, `EINVAL`, `ENAMETOOLONG`, `EROFS`, or the device's.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), FsError> {
        if name.len() > NAME_MAX || new_name.len() > NAME_MAX {
            return posix(libc::ENAMETOOLONG);
        }
        let known = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT;
        if flags & !known != 0 || flags & RENAME_EXCHANGE != 0 && flags & (RENAME_NOREPLACE | RENAME_WHITEOUT) != 0 {
            return posix(libc::EINVAL);
        }
        let core = &self.core;
        let mut state = if flags & RENAME_WHITEOUT != 0 {
            core.change_adding()?
        } else {
            core.change()?
        };
        state.directory(parent)?;
        state.directory(new_parent)?;
        let Some((slot, moved)) = core.find(&state, parent, name)? else {
            return posix(libc::ENOENT);
        };
        let target = core.find(&state, new_parent, new_name)?;
        if flags & RENAME_NOREPLACE != 0 && target.is_some() {
            return posix(libc::EEXIST);
        }
        if target.as_ref().is_some_and(|(_, t)| t.ino == moved.ino) {
            return Ok(());
        }
        let target_there = target.is_some();
        let moves_dir = moved.file_kind() == FileKind::Directory;
        if moves_dir && is_below(&state, new_parent, moved.ino)? {
            return posix(libc::EINVAL);
        }
        let now = Time::now();
        // What each directory gains in subdirectories.
        let (mut here, mut there) = (0_i64, 0_i64);
        let mut gone = None;
        if flags & RENAME_EXCHANGE != 0 {
            let Some((target_slot, target)) = target else {
                return posix(libc::ENOENT);
            };
            let target_dir = target.file_kind() == FileKind::Directory;
            if target_dir && is_below(&state, parent, target.ino)? {
                return posix(libc::EINVAL);
            }
            let swapped = |entry: &Dirent, name: &[u8]| Dirent {
                name: name.to_vec(),
                ..*entry
            };
            state
                .store
                .put(dirent_key(parent, slot), swapped(&target, name).encode());
            state
                .store
                .put(dirent_key(new_parent, target_slot), swapped(&moved, new_name).encode());
            if target_dir {
                set_parent(&mut state, target.ino, parent)?;
                (here, there) = (here + 1, there - 1);
            }
            state.data_first |= core.unflushed_files.has(target.ino);
            let mut inode = state.inode(target.ino)?;
            inode.ctime = now;
            state.put_inode(target.ino, &inode, false);
        } else {
            if let Some((target_slot, target)) = target {
                let target_dir = target.file_kind() == FileKind::Directory;
                match (moves_dir, target_dir) {
                    (true, false) => return posix(libc::ENOTDIR),
                    (false, true) => return posix(libc::EISDIR),
                    (true, true) if !state.is_empty(target.ino)? => return posix(libc::ENOTEMPTY),
                    _ => {}
                }
                state.store.delete(dirent_key(new_parent, target_slot));
                let removed = if target_dir {
                    there -= 1;
                    state.drop_directory(target.ino, now)?
                } else {
                    state.drop_link(target.ino, now)?
                };
                gone = removed.then_some(target.ino);
            }
            state.store.delete(dirent_key(parent, slot));
            let entry = Dirent {
                name: new_name.to_vec(),
                ..moved
            };
            core.insert(&mut state, new_parent, &entry)?;
        }
        // A checkpoint in the record's place flushes the device before it becomes valid.
        state.data_first |= target_there && core.unflushed_files.has(moved.ino);
        if moves_dir {
            set_parent(&mut state, moved.ino, new_parent)?;
            (here, there) = (here - 1, there + 1);
        }
        let mut inode = state.inode(moved.ino)?;
        inode.ctime = now;
        state.put_inode(moved.ino, &inode, false);
        for (ino, change) in [(parent, here), (new_parent, there)] {
            let mut directory = state.inode(ino)?;
            directory.nlink = directory.nlink.saturating_add_signed(change as i32);
            state.put_changed_directory(ino, directory, now);
        }
        if flags & RENAME_WHITEOUT != 0 {
            let directory = state.directory(parent)?;
            let (ino, inode) = state.new_inode(&Caller::default(), &directory, libc::S_IFCHR, 0, Content::None)?;
            let whiteout = Dirent {
                ino,
                kind: (inode.mode >> 12) as u8 & 0xf,
                name: name.to_vec(),
            };
            core.insert(&mut state, parent, &whiteout)?;
        }
        state.done();
        drop(state);
        match gone {
            Some(ino) => core.remove_inode(ino),
            None => Ok(()),
        }
    }
}
