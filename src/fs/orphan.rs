//! Inodes without a name: they live while the kernel knows them or somebody has them open.
//!
//! The kernel's references are counted as FUSE asks: each answer that names an inode is one, `forget` gives some back. A kernel that outlived a
//! daemon has references that nobody counted: then it is asked, each time it forgets an inode without a name.

use super::rows::{inode_key, orphan_key, xattr_key};
use super::{Core, FileSystem, FsError, Ino, State};
use std::ops::Bound;

/// So many references take too little memory to think of.
const FEW_REFERENCES: usize = 1 << 16;

/// Who holds an inode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct References {
    lookups: u64,
    opens: u64,
}

impl State {
    /// The kernel was told of an inode.
    pub(super) fn refer(&mut self, ino: Ino) {
        self.references.entry(ino).or_default().lookups += 1;
    }

    /// An inode lost its last name: it goes now, or when the last reference does.
    pub(super) fn orphan(&mut self, ino: Ino) -> bool {
        self.store.put(orphan_key(ino), Vec::new());
        !self.inherited && !self.references.contains_key(&ino)
    }

    fn release(&mut self, ino: Ino, change: impl FnOnce(&mut References)) -> Result<bool, FsError> {
        let references = self.references.entry(ino).or_default();
        change(references);
        let held = references.lookups > 0 || references.opens > 0;
        if !held {
            self.references.remove(&ino);
            self.shrink_references();
        } else if !self.inherited {
            return Ok(false);
        }
        Ok(self.store.get(&orphan_key(ino))?.is_some())
    }

    /// Gives memory back when the kernel has forgotten most of what it knew, so that a walk over millions of files is not paid for ever.
    fn shrink_references(&mut self) {
        let (length, capacity) = (self.references.len(), self.references.capacity());
        if capacity > FEW_REFERENCES && length < capacity / 8 {
            self.references.shrink_to(2 * length);
        }
    }
}

impl FileSystem {
    /// The kernel gives back `count` references to an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.drop_reference(ino, |r| r.lookups = r.lookups.saturating_sub(count));
    }

    /// An open file is closed.
    pub fn release(&self, ino: Ino) {
        self.drop_reference(ino, |r| r.opens = r.opens.saturating_sub(1));
    }

    fn drop_reference(&self, ino: Ino, change: impl FnOnce(&mut References)) {
        let gone = self.core.state.lock().release(ino, change);
        let knows = |ino| self.core.kernel.as_ref().is_some_and(|knows| knows(ino));
        let gone = gone.map(|gone| gone && !knows(ino));
        let result = match gone {
            Ok(true) if !self.core.options.read_only => self.core.remove_inode(ino),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(error) = result {
            // It stays an orphan, and goes at the next mount.
            tracing::warn!(ino, %error, "an unlinked file's space is not given back yet");
        }
    }

    /// A file is opened; with `truncate`, emptied.
    ///
    /// # Errors
    /// `ENOENT`, or the device's.
    pub fn open_file(&self, ino: Ino, truncate: bool) -> Result<(), FsError> {
        if truncate {
            let empty = super::SetAttr {
                size: Some(0),
                kill_suid: true,
                ..Default::default()
            };
            self.setattr(ino, &empty)?;
        }
        let mut state = self.core.state()?;
        state.inode(ino)?;
        state.references.entry(ino).or_default().opens += 1;
        Ok(())
    }
}

impl Core {
    /// Frees an inode that has no name and no references, in steps.
    pub(super) fn remove_inode(&self, ino: Ino) -> Result<(), FsError> {
        loop {
            let mut state = self.begin()?;
            let mut inode = match state.inode(ino) {
                Ok(inode) => inode,
                Err(FsError::Posix(libc::ENOENT)) => {
                    state.store.delete(orphan_key(ino));
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            if state.cut(ino, &mut inode, 0)? > 0 {
                state.put_inode(ino, &inode, false);
                continue;
            }
            let mut names = Vec::new();
            state.store.range(
                Bound::Included(&xattr_key(ino, b"")),
                &xattr_key(ino.saturating_add(1), b""),
                &mut |key, _| {
                    names.push(key.to_vec());
                    true
                },
            )?;
            for key in names {
                state.store.delete(key);
            }
            state.store.delete(inode_key(ino));
            state.store.delete(orphan_key(ino));
            state.counters.inodes = state.counters.inodes.saturating_sub(1);
            state.put_counters();
            state.touched.remove(&ino);
            return Ok(());
        }
    }
}
