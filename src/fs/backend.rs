//! The metadata area as redb's storage: bytes on blocks.
//!
//! Writes gather in memory and go out together when redb syncs: a few large messages instead of one for each page. A device that
//! refuses for a while (a suspended volume) makes the sync wait and try again: only the checkpoint thread waits here, and reads go on
//! meanwhile. redb gives up a database after one I/O error; every error is told to the file system (`Control`), which opens the
//! database again. While it is opened, and once the file system ends, nothing is tried twice. The length is kept in two alternating checksummed blocks, since redb checks
//! it against its header.

use super::error::FsError;
use super::layout::{META_MAX, META_START, WRITE_MAX};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Blocks of the length records.
const LENGTHS: [u64; 2] = [16, 17];
const MAGIC: &[u8; 8] = b"STOSMLEN";

/// Writes sent together.
const BATCH: usize = 4;
/// Time between attempts on a device that refuses.
const RETRY: Duration = Duration::from_millis(200);

/// redb's storage on a device.
pub(super) struct MetaArea {
    device: Arc<dyn BlockDevice>,
    length: AtomicU64,
    /// Blocks written since the last sync, by number on the device. Held by a sync until they are on the device.
    unsynced: Mutex<Unsynced>,
    control: Arc<Control>,
}

/// What the storage does about errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// The database is being opened: errors are the opener's.
    Opening,
    /// In use: syncs wait for a device that refuses, errors are told.
    Live,
    /// The file system ends: one attempt each.
    Ending,
    /// Another has taken its place, or nothing may be written any more: every call fails.
    Gone,
}

/// What the file system is told.
pub(super) enum Trouble {
    /// The database will not work until it is opened again.
    Failed,
    /// A sync waits for the device.
    Waiting(DeviceError),
}

/// Shared by the storage, which redb owns, and the file system.
pub(super) struct Control {
    phase: AtomicU8,
    tell: Box<dyn Fn(Trouble) + Send + Sync>,
}

impl Control {
    /// For a database that is about to be opened.
    pub(super) fn new(tell: Box<dyn Fn(Trouble) + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Opening as u8),
            tell,
        })
    }

    pub(super) fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) == phase as u8
    }

    /// Passes a result on, and tells of an error.
    fn told<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() && self.is(Phase::Live) {
            (self.tell)(Trouble::Failed);
        }
        result
    }

    fn check(&self) -> io::Result<()> {
        if self.is(Phase::Gone) {
            return Err(io::Error::other("the metadata database is no longer in use"));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Unsynced {
    blocks: BTreeMap<u64, Bytes>,
    /// Number of the last length record.
    sequence: u64,
}

impl std::fmt::Debug for MetaArea {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MetaArea")
    }
}

pub(super) fn encode(sequence: u64, length: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_SIZE);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    let sum = blake3::hash(&out);
    out.extend_from_slice(sum.as_bytes());
    out.resize(BLOCK_SIZE, 0);
    out
}

pub(super) fn decode(block: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| Some(u64::from_le_bytes(block.get(at..at + 8)?.try_into().ok()?));
    (block.get(..8)? == MAGIC && block.get(24..56)? == blake3::hash(&block[..24]).as_bytes())
        .then_some((word(8)?, word(16)?))
}

fn io_error(error: DeviceError) -> io::Error {
    match error {
        DeviceError::NoSpace(_) => io::Error::new(io::ErrorKind::StorageFull, error),
        DeviceError::ReadOnly(_) => io::Error::new(io::ErrorKind::ReadOnlyFilesystem, error),
        other => io::Error::other(other),
    }
}

impl MetaArea {
    /// An empty area, on a blank device.
    pub(super) fn create(device: Arc<dyn BlockDevice>, control: Arc<Control>) -> Self {
        Self::of_length(device, control, (0, 0))
    }

    /// The area of a file system.
    pub(super) fn open(device: Arc<dyn BlockDevice>, control: Arc<Control>) -> Result<Self, FsError> {
        let mut newest = (0, 0);
        let mut block = vec![0; BLOCK_SIZE];
        for at in LENGTHS {
            device.read(at, &mut block)?;
            newest = newest.max(decode(&block).unwrap_or_default());
        }
        if newest.1 == 0 || newest.1 > META_MAX || newest.0 == u64::MAX {
            // Of an empty one redb would make a new database.
            return Err(FsError::Format(
                "the metadata area's length is missing or damaged".into(),
            ));
        }
        Ok(Self::of_length(device, control, newest))
    }

    fn of_length(device: Arc<dyn BlockDevice>, control: Arc<Control>, (sequence, length): (u64, u64)) -> Self {
        Self {
            device,
            length: AtomicU64::new(length),
            unsynced: Mutex::new(Unsynced {
                blocks: BTreeMap::new(),
                sequence,
            }),
            control,
        }
    }

    /// Reads whole blocks, of which some may not be on the device yet.
    fn read_blocks(&self, block: u64, out: &mut [u8]) -> io::Result<()> {
        self.device.read(block, out).map_err(io_error)?;
        let unsynced = self.unsynced.lock();
        let end = block + out.len() as u64 / BLOCK;
        for (at, data) in unsynced.blocks.range(block..end) {
            let from = (at - block) as usize * BLOCK_SIZE;
            out[from..from + BLOCK_SIZE].copy_from_slice(data);
        }
        Ok(())
    }

    /// The blocks in runs of at most [`WRITE_MAX`].
    fn coalesce(blocks: &BTreeMap<u64, Bytes>) -> Vec<Write> {
        let mut writes: Vec<(u64, BytesMut)> = Vec::new();
        for (block, data) in blocks {
            match writes.last_mut() {
                Some((first, run))
                    if *first + run.len() as u64 / BLOCK == *block && run.len() + BLOCK_SIZE <= WRITE_MAX =>
                {
                    run.extend_from_slice(data);
                }
                _ => writes.push((*block, BytesMut::from(&data[..]))),
            }
        }
        let freeze = |(block, run): (u64, BytesMut)| Write {
            block,
            data: run.freeze(),
        };
        writes.into_iter().map(freeze).collect()
    }

    fn send(&self, writes: &[Write]) -> Result<(), DeviceError> {
        for batch in writes.chunks(BATCH) {
            self.device.write(batch, false)?;
        }
        self.device.flush()
    }
}

impl MetaArea {
    fn read_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.length.load(Ordering::Acquire)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let first = offset / BLOCK;
        if offset.is_multiple_of(BLOCK) && out.len().is_multiple_of(BLOCK_SIZE) {
            return self.read_blocks(META_START + first, out);
        }
        let last = (offset + out.len() as u64).div_ceil(BLOCK);
        let mut whole = vec![0; ((last - first) * BLOCK) as usize];
        self.read_blocks(META_START + first, &mut whole)?;
        let at = (offset - first * BLOCK) as usize;
        out.copy_from_slice(&whole[at..at + out.len()]);
        Ok(())
    }

    fn change_length(&self, length: u64) -> io::Result<()> {
        if length > META_MAX {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the volume's metadata area is full",
            ));
        }
        let mut unsynced = self.unsynced.lock();
        let before = self.length.load(Ordering::Acquire);
        if length < before {
            // What comes back when it grows again must read as zero.
            let from = META_START + length.div_ceil(BLOCK);
            let to = META_START + before.div_ceil(BLOCK);
            unsynced.blocks.retain(|block, _| *block < from || *block >= to);
            self.device.discard(from, to.saturating_sub(from)).map_err(io_error)?;
        }
        unsynced.sequence += 1;
        let record = Bytes::from(encode(unsynced.sequence, length));
        let block = LENGTHS[(unsynced.sequence % 2) as usize];
        unsynced.blocks.insert(block, record);
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    fn send_unsynced(&self) -> io::Result<()> {
        loop {
            let unsynced = self.unsynced.lock();
            let writes = Self::coalesce(&unsynced.blocks);
            drop(unsynced);
            match self.send(&writes) {
                Ok(()) => {
                    let mut unsynced = self.unsynced.lock();
                    // Only what was sent: a block written again meanwhile stays.
                    for write in &writes {
                        for (i, data) in write.data.chunks(BLOCK_SIZE).enumerate() {
                            let block = write.block + i as u64;
                            if unsynced.blocks.get(&block).is_some_and(|b| b == data) {
                                unsynced.blocks.remove(&block);
                            }
                        }
                    }
                    return Ok(());
                }
                Err(error @ (DeviceError::ReadOnly(_) | DeviceError::Unavailable(_)))
                    if self.control.is(Phase::Live) =>
                {
                    (self.control.tell)(Trouble::Waiting(error));
                    std::thread::sleep(RETRY);
                }
                Err(e) => return Err(io_error(e)),
            }
        }
    }

    fn keep(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let (block, within) = (META_START + position / BLOCK, (position % BLOCK) as usize);
            let part = &data[at..data.len().min(at + BLOCK_SIZE - within)];
            let whole = if part.len() == BLOCK_SIZE {
                Bytes::copy_from_slice(part)
            } else {
                let mut whole = vec![0; BLOCK_SIZE];
                self.read_blocks(block, &mut whole)?;
                whole[within..within + part.len()].copy_from_slice(part);
                Bytes::from(whole)
            };
            self.unsynced.lock().blocks.insert(block, whole);
            at += part.len();
        }
        Ok(())
    }
}

impl redb::StorageBackend for MetaArea {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length.load(Ordering::Acquire))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.control.check()?;
        self.control.told(self.read_bytes(offset, out))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.control.check()?;
        self.control.told(self.change_length(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.control.check()?;
        self.control.told(self.send_unsynced())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.control.check()?;
        self.control.told(self.keep(offset, data))
    }
}
