//! File data: read, write, fsync, fallocate, lseek, copying of ranges.
//!
//! Blocks are found and allocated under the lock; the device is read and written without it. Only a write that changes a part of a
//! block, or that grows a file whose last block is a part of one, holds the inode's edge lock alone; other writes share it.

use super::attr::kill_set_id;
use super::error::posix;
use super::extents::Segment;
use super::rows::{Extent, Inode};
use super::{Core, EDGE_STRIPES, FILE_MAX, FileKind, FileSystem, FsError, Ino, Seek, Time};
use crate::block::{BLOCK_SIZE, Write};
use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Bytes copied at once by [`FileSystem::copy_range`].
const COPY_STEP: u64 = 1 << 20;

impl FileSystem {
    /// Reads at most `size` bytes; shorter only at the end of the file.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL`, or the device's.
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Bytes, FsError> {
        let core = &self.core;
        let _ticket = core.ticket();
        let state = core.state()?;
        let inode = state.inode(ino)?;
        require_file(&inode)?;
        let end = inode.size.min(offset.saturating_add(u64::from(size)));
        if offset >= end {
            return Ok(Bytes::new());
        }
        let (first, last) = (offset / BLOCK, end.div_ceil(BLOCK));
        let segments = state.map(ino, &inode, first, last - first)?;
        drop(state);
        let mut buffer = BytesMut::zeroed(((last - first) * BLOCK) as usize);
        for segment in segments {
            if let Some(physical) = segment.physical {
                let at = ((segment.logical - first) * BLOCK) as usize;
                core.device
                    .read(physical, &mut buffer[at..at + (segment.length * BLOCK) as usize])?;
            }
        }
        let from = (offset - first * BLOCK) as usize;
        Ok(buffer.freeze().slice(from..from + (end - offset) as usize))
    }

    /// Writes all of `data`; with `kill_suid` clears the set-id bits.
    ///
    /// # Errors
    /// `EFBIG`, `ENOSPC`, `EROFS`, or the device's; then a part may have been written.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<u32, FsError> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_MAX);
        let Some(end) = end else {
            return posix(libc::EFBIG);
        };
        if data.is_empty() {
            return Ok(0);
        }
        let core = &self.core;
        let partial = !offset.is_multiple_of(BLOCK) || !end.is_multiple_of(BLOCK);
        // Parts of blocks are read, changed and written: alone.
        let mut alone = partial;
        loop {
            let _exclusive = alone.then(|| core.edge(ino).write());
            let _shared = (!alone).then(|| core.edge(ino).read());
            let ticket = core.ticket();
            match core.plan_write(ino, offset, end, kill_suid, alone)? {
                Planned::Ready(plan) => {
                    core.write_planned(ino, &plan, offset, data)?;
                    return Ok(data.len() as u32);
                }
                Planned::NeedsAlone => alone = true,
                Planned::MetadataFull => {
                    drop(ticket);
                    if !core.make_metadata_room()? {
                        return posix(libc::ENOSPC);
                    }
                }
                Planned::NoSpace => {
                    drop(ticket);
                    if !core.reclaim_now()? {
                        return posix(libc::ENOSPC);
                    }
                }
            }
        }
    }

    /// Makes a file durable: its data and, unless `data_only`, all its attributes.
    ///
    /// # Errors
    /// The device's.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<(), FsError> {
        self.core.sync_inode(ino, data_only)
    }

    /// fallocate(2): allocate (0), `KEEP_SIZE`, `PUNCH_HOLE`, `ZERO_RANGE`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other modes, `EFBIG`, `ENOSPC`, `EROFS`, or the device's.
    pub fn fallocate(&self, ino: Ino, mode: i32, offset: u64, length: u64) -> Result<(), FsError> {
        let end = offset.checked_add(length).filter(|end| *end <= FILE_MAX);
        let Some(end) = end else {
            return posix(libc::EFBIG);
        };
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let core = &self.core;
        let _alone = core.edge(ino).write();
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => core.preallocate(ino, offset, end, keep_size),
            libc::FALLOC_FL_PUNCH_HOLE => core.punch(ino, offset, end, None).map(|_| ()),
            libc::FALLOC_FL_ZERO_RANGE => {
                if core.punch(ino, offset, end, Some(keep_size))? {
                    return Ok(());
                }
                // Not everything at once: space has to be made.
                core.preallocate(ino, offset, end, keep_size)
            }
            _ => posix(libc::EOPNOTSUPP),
        }
    }

    /// The next data or hole at or after an offset.
    ///
    /// # Errors
    /// `ENXIO` beyond the end, or the device's.
    pub fn lseek(&self, ino: Ino, offset: u64, seek: Seek) -> Result<u64, FsError> {
        let state = self.core.state()?;
        let inode = state.inode(ino)?;
        require_file(&inode)?;
        if offset >= inode.size {
            return posix(libc::ENXIO);
        }
        let first = offset / BLOCK;
        let segments = state.map(ino, &inode, first, inode.size.div_ceil(BLOCK) - first)?;
        let found = segments.iter().find(|s| s.physical.is_some() == (seek == Seek::Data));
        match (found, seek) {
            (Some(segment), _) => Ok((segment.logical * BLOCK).max(offset).min(inode.size)),
            (None, Seek::Hole) => Ok(inode.size),
            (None, Seek::Data) => posix(libc::ENXIO),
        }
    }

    /// Copies a range between files or within one, without the caller seeing the data. Returns how much was copied.
    ///
    /// # Errors
    /// As read and write; `EINVAL` for ranges of one file that overlap or that no file can have.
    pub fn copy_range(&self, from: Ino, offset_in: u64, to: Ino, offset_out: u64, length: u64) -> Result<u64, FsError> {
        let ends = offset_in.checked_add(length).zip(offset_out.checked_add(length));
        let Some((end_in, end_out)) = ends else {
            return posix(libc::EINVAL);
        };
        if from == to && offset_in < end_out && offset_out < end_in {
            return posix(libc::EINVAL);
        }
        let mut copied = 0;
        while copied < length {
            let step = (length - copied).min(COPY_STEP) as u32;
            let data = self.read(from, offset_in + copied, step)?;
            if data.is_empty() {
                break;
            }
            self.write(to, offset_out + copied, &data, true)?;
            copied += data.len() as u64;
        }
        Ok(copied)
    }
}

fn require_file(inode: &Inode) -> Result<(), FsError> {
    match inode.kind() {
        FileKind::File => Ok(()),
        FileKind::Directory => posix(libc::EISDIR),
        _ => posix(libc::EINVAL),
    }
}

/// What planning a write came to.
enum Planned {
    Ready(Plan),
    /// The file's last block must be changed too: hold the inode's edge lock alone.
    NeedsAlone,
    /// Holes cannot be filled: the metadata area is nearly full.
    MetadataFull,
    NoSpace,
}

/// Where a write goes.
struct Plan {
    first: u64,
    /// Every block of the write, without holes.
    segments: Vec<Segment>,
    /// Blocks that were just allocated: they are zeros, there is nothing to read.
    fresh: Vec<(u64, u64)>,
    /// The block that holds the old end of the file, and the offset there from which zeros must stand.
    tail: Option<(u64, usize)>,
}

impl Core {
    /// The inode's stripe of the lock for changes of parts of blocks.
    pub(super) fn edge(&self, ino: Ino) -> &RwLock<()> {
        &self.edges[(ino % EDGE_STRIPES as u64) as usize]
    }

    /// Finds and allocates a write's blocks and changes the inode. The caller holds a ticket.
    fn plan_write(&self, ino: Ino, offset: u64, end: u64, kill: bool, alone: bool) -> Result<Planned, FsError> {
        let mut state = self.change()?;
        let mut inode = state.inode(ino)?;
        require_file(&inode)?;
        let first = offset / BLOCK;
        let count = end.div_ceil(BLOCK) - first;
        let mut plan = Plan {
            first,
            segments: Vec::new(),
            fresh: Vec::new(),
            tail: None,
        };
        // Bytes between the old end and the write come into sight: they must be zeros.
        if offset > inode.size
            && let Some(block) = state.tail(ino, &inode)?
        {
            if !alone {
                return Ok(Planned::NeedsAlone);
            }
            plan.tail = Some((block, (inode.size % BLOCK) as usize));
        }
        if self.is_metadata_full(&state) && state.has_holes(ino, &inode, first, count)? {
            return Ok(Planned::MetadataFull);
        }
        let complete = state.fill_holes(ino, &mut inode, first, count, &mut plan.fresh)?;
        if !complete {
            // What was allocated stays with the file: zeros, beyond its end or within it.
            state.put_inode(ino, &inode, false);
            return Ok(Planned::NoSpace);
        }
        plan.segments = state.map(ino, &inode, first, count)?;
        let before = (inode.size, inode.mode);
        inode.size = inode.size.max(end);
        if kill {
            kill_set_id(&mut inode);
        }
        let now = Time::now();
        (inode.mtime, inode.ctime) = (now, now);
        let times_only = before == (inode.size, inode.mode) && plan.fresh.is_empty();
        state.put_inode(ino, &inode, times_only);
        Ok(Planned::Ready(plan))
    }

    /// The caller holds the ticket of the plan.
    fn write_planned(&self, ino: Ino, plan: &Plan, offset: u64, data: &[u8]) -> Result<(), FsError> {
        let _ticket = self.ticket();
        if let Some((block, at)) = plan.tail
            && !plan
                .fresh
                .iter()
                .any(|(start, length)| (*start..start + length).contains(&block))
        {
            self.zero(ino, block, at..BLOCK_SIZE)?;
        }
        // The one copy of the data: into a buffer of whole blocks that every copy of the volume shares.
        let blocks: u64 = plan.segments.iter().map(|s| s.length).sum();
        let mut buffer = BytesMut::zeroed((blocks * BLOCK) as usize);
        let from = (offset - plan.first * BLOCK) as usize;
        let to = from + data.len();
        if from > 0 {
            self.read_edge(plan, plan.first, &mut buffer)?;
        }
        if !to.is_multiple_of(BLOCK_SIZE) && (blocks > 1 || from == 0) {
            self.read_edge(plan, plan.first + blocks - 1, &mut buffer)?;
        }
        buffer[from..to].copy_from_slice(data);
        let buffer = buffer.freeze();
        let writes: Vec<Write> = plan
            .segments
            .iter()
            .filter_map(|segment| {
                let at = ((segment.logical - plan.first) * BLOCK) as usize;
                Some(Write {
                    block: segment.physical?,
                    data: buffer.slice(at..at + (segment.length * BLOCK) as usize),
                })
            })
            .collect();
        self.write_data(ino, &writes)
    }

    /// Reads a block that the write changes in part, unless it is fresh.
    fn read_edge(&self, plan: &Plan, logical: u64, buffer: &mut [u8]) -> Result<(), FsError> {
        let segment = plan
            .segments
            .iter()
            .find(|s| (s.logical..s.logical + s.length).contains(&logical));
        let Some(physical) = segment.and_then(|s| Some(s.physical? + (logical - s.logical))) else {
            return Ok(());
        };
        if plan
            .fresh
            .iter()
            .any(|(start, length)| (*start..start + length).contains(&physical))
        {
            return Ok(());
        }
        let at = ((logical - plan.first) * BLOCK) as usize;
        Ok(self.device.read(physical, &mut buffer[at..at + BLOCK_SIZE])?)
    }

    /// Allocates blocks to a range and grows the file over it.
    fn preallocate(&self, ino: Ino, offset: u64, end: u64, keep_size: bool) -> Result<(), FsError> {
        loop {
            let _ticket = self.ticket();
            let mut state = self.change()?;
            let mut inode = state.inode(ino)?;
            require_file(&inode)?;
            let first = offset / BLOCK;
            let mut fresh = Vec::new();
            if self.is_metadata_full(&state) {
                drop(state);
                drop(_ticket);
                if !self.make_metadata_room()? {
                    return posix(libc::ENOSPC);
                }
                continue;
            }
            let complete = state.fill_holes(ino, &mut inode, first, end.div_ceil(BLOCK) - first, &mut fresh)?;
            if complete {
                if !keep_size && end > inode.size {
                    let tail = state.tail(ino, &inode)?;
                    let old = inode.size;
                    inode.size = end;
                    if let Some(block) = tail.filter(|b| !fresh.iter().any(|(s, l)| (*s..s + l).contains(b))) {
                        state.put_inode(ino, &inode, false);
                        drop(state);
                        return self.zero(ino, block, (old % BLOCK) as usize..BLOCK_SIZE);
                    }
                }
                let now = Time::now();
                (inode.mtime, inode.ctime) = (now, now);
            }
            state.put_inode(ino, &inode, false);
            if complete {
                return Ok(());
            }
            drop(state);
            drop(_ticket);
            if !self.reclaim_now()? {
                return posix(libc::ENOSPC);
            }
        }
    }

    /// Makes a range read as zero: whole blocks are freed, the rest is overwritten. With `allocate` (whether to keep the file's
    /// size), blocks are allocated to it in the same operation; false if they could not be.
    fn punch(&self, ino: Ino, offset: u64, end: u64, allocate: Option<bool>) -> Result<bool, FsError> {
        let _ticket = self.ticket();
        let mut state = self.change()?;
        let mut inode = state.inode(ino)?;
        require_file(&inode)?;
        let (first_whole, last_whole) = (offset.div_ceil(BLOCK), end / BLOCK);
        let mut edges = Vec::new();
        if first_whole > last_whole {
            edges.push((offset / BLOCK, offset % BLOCK, end % BLOCK));
        } else {
            if !offset.is_multiple_of(BLOCK) {
                edges.push((offset / BLOCK, offset % BLOCK, BLOCK));
            }
            if !end.is_multiple_of(BLOCK) {
                edges.push((last_whole, 0, end % BLOCK));
            }
            state.remove_extents(ino, &mut inode, first_whole, last_whole)?;
        }
        let mut places = Vec::new();
        for (logical, from, to) in edges {
            if let Some(block) = state.map(ino, &inode, logical, 1)?[0].physical {
                places.push((block, from as usize, to as usize));
            }
        }
        let mut complete = true;
        if let Some(keep_size) = allocate {
            let first = offset / BLOCK;
            let tail = state.tail(ino, &inode)?;
            complete = !self.is_metadata_full(&state)
                && state.fill_holes(ino, &mut inode, first, end.div_ceil(BLOCK) - first, &mut Vec::new())?;
            if complete && !keep_size && end > inode.size {
                places.extend(tail.map(|block| (block, (inode.size % BLOCK) as usize, BLOCK_SIZE)));
                inode.size = end;
            }
        }
        let now = Time::now();
        (inode.mtime, inode.ctime) = (now, now);
        state.put_inode(ino, &inode, false);
        drop(state);
        for (block, from, to) in places {
            self.zero(ino, block, from..to)?;
        }
        Ok(complete)
    }
}

impl super::State {
    fn has_holes(&self, ino: Ino, inode: &Inode, first: u64, count: u64) -> Result<bool, FsError> {
        Ok(self.map(ino, inode, first, count)?.iter().any(|s| s.physical.is_none()))
    }

    /// Allocates every hole in a range; false if the space ran out on the way.
    fn fill_holes(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        first: u64,
        count: u64,
        fresh: &mut Vec<(u64, u64)>,
    ) -> Result<bool, FsError> {
        let holes: Vec<Segment> = self
            .map(ino, inode, first, count)?
            .into_iter()
            .filter(|s| s.physical.is_none())
            .collect();
        for hole in holes {
            let (mut logical, end) = (hole.logical, hole.logical + hole.length);
            while logical < end {
                let Some((physical, length)) = self.allocate(end - logical)? else {
                    return Ok(false);
                };
                fresh.push((physical, length));
                self.insert_extent(
                    ino,
                    inode,
                    Extent {
                        logical,
                        physical,
                        length,
                    },
                )?;
                logical += length;
            }
        }
        Ok(true)
    }
}
