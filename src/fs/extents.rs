//! Which blocks of the device hold which blocks of a file.
//!
//! Invariant: a file's extents do not overlap and are in order; at most [`INLINE_EXTENTS`] are in the inode's row, more are in rows of
//! their own, until the file is empty again.

use super::rows::{Content, Extent, INLINE_EXTENTS, Inode, extent_key, extent_of, extent_value};
use super::{FsError, Ino, State, in_data_area};
use std::ops::Bound;

/// Blocks freed under one hold of the lock when a large file is cut or goes.
const CUT_STEP: u64 = 64 * 1024;

/// A stretch of a file: blocks on the device, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) logical: u64,
    pub(super) length: u64,
    /// First block on the device.
    pub(super) physical: Option<u64>,
}

impl State {
    /// The file's extents that touch blocks `first..end`, whole.
    pub(super) fn extents(&self, ino: Ino, inode: &Inode, first: u64, end: u64) -> Result<Vec<Extent>, FsError> {
        let mut found = Vec::new();
        match &inode.content {
            Content::Inline(extents) => found.extend(extents.iter().filter(|e| e.logical < end && e.end() > first)),
            Content::Rows => {
                if let Some((key, value)) = self
                    .store
                    .last(&extent_key(ino, 0), Bound::Excluded(&extent_key(ino, first)))?
                {
                    found.extend(self.extent(ino, &key, &value)?.filter(|e| e.end() > first));
                }
                let (from, mut rows) = (extent_key(ino, first), Vec::new());
                self.store
                    .range(Bound::Included(&from), &extent_key(ino, end), &mut |key, value| {
                        rows.push(self.extent(ino, key, value));
                        true
                    })?;
                for row in rows {
                    found.extend(row?);
                }
            }
            _ => {}
        }
        let in_order = found.windows(2).all(|two| two[0].end() <= two[1].logical);
        let there = |e: &Extent| in_data_area(e.physical, e.length, self.data_blocks);
        if in_order && found.iter().all(there) {
            Ok(found)
        } else {
            Err(self.extents_damaged(ino))
        }
    }

    fn extents_damaged(&self, ino: Ino) -> FsError {
        self.store.damaged(format!("the extents of inode {ino} are damaged"))
    }

    /// The extent of a row.
    fn extent(&self, ino: Ino, key: &[u8], value: &[u8]) -> Result<Option<Extent>, FsError> {
        match extent_of(key, value) {
            Some(extent) if extent.is_sound() => Ok(Some(extent)),
            _ => Err(self.extents_damaged(ino)),
        }
    }

    /// Blocks `first..first + count` as segments without gaps.
    pub(super) fn map(&self, ino: Ino, inode: &Inode, first: u64, count: u64) -> Result<Vec<Segment>, FsError> {
        let end = first + count;
        let (mut at, mut segments) = (first, Vec::new());
        for extent in self.extents(ino, inode, first, end)? {
            let from = extent.logical.max(first);
            if from > at {
                segments.push(Segment {
                    logical: at,
                    length: from - at,
                    physical: None,
                });
            }
            let to = extent.end().min(end);
            segments.push(Segment {
                logical: from,
                length: to - from,
                physical: Some(extent.physical + (from - extent.logical)),
            });
            at = to;
        }
        if at < end {
            segments.push(Segment {
                logical: at,
                length: end - at,
                physical: None,
            });
        }
        Ok(segments)
    }

    /// Puts blocks into a hole of the file. The caller keeps the inode.
    pub(super) fn insert_extent(&mut self, ino: Ino, inode: &mut Inode, new: Extent) -> Result<(), FsError> {
        inode.blocks += new.length;
        let joins = |a: &Extent, b: &Extent| a.end() == b.logical && a.physical + a.length == b.physical;
        match &mut inode.content {
            Content::Inline(extents) => {
                let at = extents.partition_point(|e| e.logical < new.logical);
                extents.insert(at, new);
                extents.dedup_by(|next, before| {
                    let join = joins(before, next);
                    if join {
                        before.length += next.length;
                    }
                    join
                });
                self.spill(ino, inode);
            }
            Content::Rows => {
                let mut new = new;
                let before = self
                    .store
                    .last(&extent_key(ino, 0), Bound::Excluded(&extent_key(ino, new.logical)))?;
                let before = before.map(|(k, v)| self.extent(ino, &k, &v)).transpose()?.flatten();
                if let Some(before) = before.filter(|b| joins(b, &new)) {
                    new = Extent {
                        length: before.length + new.length,
                        ..before
                    };
                }
                let key = extent_key(ino, new.end());
                let after = self.store.get(&key)?;
                let after = after.map(|v| self.extent(ino, &key, &v)).transpose()?.flatten();
                if let Some(after) = after.filter(|a| joins(&new, a)) {
                    self.store.delete(key);
                    new.length += after.length;
                }
                self.store.put(extent_key(ino, new.logical), extent_value(&new));
            }
            _ => return Err(FsError::Metadata(format!("inode {ino} holds no extents"))),
        }
        Ok(())
    }

    /// Frees blocks `first..end` of the file. The caller keeps the inode.
    pub(super) fn remove_extents(&mut self, ino: Ino, inode: &mut Inode, first: u64, end: u64) -> Result<(), FsError> {
        if first >= end {
            return Ok(());
        }
        for extent in self.extents(ino, inode, first, end)? {
            let (from, to) = (extent.logical.max(first), extent.end().min(end));
            self.free(extent.physical + (from - extent.logical), to - from);
            inode.blocks = inode.blocks.saturating_sub(to - from);
            let mut rest = Vec::new();
            if from > extent.logical {
                rest.push(Extent {
                    length: from - extent.logical,
                    ..extent
                });
            }
            if extent.end() > to {
                rest.push(Extent {
                    logical: to,
                    physical: extent.physical + (to - extent.logical),
                    length: extent.end() - to,
                });
            }
            match &mut inode.content {
                Content::Inline(extents) => {
                    extents.retain(|e| e.logical != extent.logical);
                    extents.extend_from_slice(&rest);
                    extents.sort_unstable_by_key(|e| e.logical);
                }
                _ => {
                    self.store.delete(extent_key(ino, extent.logical));
                    for extent in rest {
                        self.store.put(extent_key(ino, extent.logical), extent_value(&extent));
                    }
                }
            }
        }
        if inode.blocks == 0 {
            inode.content = Content::Inline(Vec::new());
        } else {
            self.spill(ino, inode);
        }
        Ok(())
    }

    /// Moves extents that have become too many for the inode's row to rows of their own.
    fn spill(&mut self, ino: Ino, inode: &mut Inode) {
        let Content::Inline(extents) = &mut inode.content else {
            return;
        };
        if extents.len() > INLINE_EXTENTS {
            for extent in std::mem::take(extents) {
                self.store.put(extent_key(ino, extent.logical), extent_value(&extent));
            }
            inode.content = Content::Rows;
        }
    }

    /// Frees a file's blocks from its end towards `keep`, a bounded number of them; returns the block at which it now ends. Call again
    /// until that is `keep`: what is left in between is a shorter file. The caller keeps the inode.
    pub(super) fn cut(&mut self, ino: Ino, inode: &mut Inode, keep: u64) -> Result<u64, FsError> {
        let end = self.extents_end(ino, inode)?;
        let first = if inode.blocks > CUT_STEP {
            keep.max(end.saturating_sub(CUT_STEP))
        } else {
            keep
        };
        if end > first {
            self.remove_extents(ino, inode, first, end)?;
        }
        Ok(first)
    }

    /// The first block after which nothing is allocated.
    pub(super) fn extents_end(&self, ino: Ino, inode: &Inode) -> Result<u64, FsError> {
        Ok(match &inode.content {
            Content::Inline(extents) => extents.last().map_or(0, Extent::end),
            Content::Rows => {
                let last = self
                    .store
                    .last(&extent_key(ino, 0), Bound::Excluded(&extent_key(ino, u64::MAX)))?;
                let last = last.map(|(k, v)| self.extent(ino, &k, &v)).transpose()?.flatten();
                last.map_or(0, |e| e.end())
            }
            _ => 0,
        })
    }
}
