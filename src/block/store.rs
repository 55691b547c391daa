//! One copy: reads verified, writes fenced by epoch, crash recovery. See the module's text for the protocol.
//!
//! Locks, in this order: `active` (shared by every write for its duration; exclusive to change the hot set, the epoch or the
//! size), then stripes of blocks (exclusive for a write; shared by a read only when it must be sure), then `sync`.

use super::activity::{self, ACTIVITY_LENGTH, HOT_LIMIT};
use super::device::{BLOCK_SIZE, EXTENT_BLOCKS};
use super::error::StoreError;
use super::header::{Header, this_boot};
use super::io::{Disk, DiskFile, RealDisk};
use super::sums::{SUM_SIZE, Sum, Sums, hash_of_sums, sum_of, sums_of};
use crate::volume::VolumeId;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde::Serialize;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Blocks that share a stripe lock: 256 KiB, so that parallel 1 MiB writes into one extent do not wait for each other.
const STRIPE_BLOCKS: u64 = 64;
const STRIPES: usize = 1024;
/// Blocks that a small first write fills, itself and zeros around it: see [`CopyStore::untouched`]. Divides a stripe.
const CHUNK_BLOCKS: u64 = 16;
/// Hot extents dropped at once when the log is full.
const EVICT: usize = HOT_LIMIT / 4;
/// Largest copy: twice the largest volume with its metadata. No sum or product of its numbers overflows.
const MAX_BLOCKS: u64 = 1 << 39;

/// What opening a copy found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// It had been closed with everything on disk.
    pub clean: bool,
    /// Extents that may hold writes that nobody acknowledged: compare them with the other copies. After a clean close too: a
    /// write may have reached this copy and not the others. After a crash their sums were rebuilt from the data.
    pub hot: Vec<u64>,
    /// The machine has not been rebooted since the copy was last open, or since it was vouched for: nothing that a write returned for is
    /// lost.
    pub same_boot: bool,
}

/// Space that a copy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Bytes of `data` and `sums` on the disk.
    pub allocated_bytes: u64,
}

/// A copy's files in words, for `storageos debug dump`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyDescription {
    /// The volume.
    pub volume: VolumeId,
    /// The highest epoch seen.
    pub epoch: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Closed cleanly.
    pub clean: bool,
    /// Extents in the activity log.
    pub hot: Vec<u64>,
    /// Extents with any data.
    pub allocated_extents: Vec<u64>,
}

/// The hot set and what is changed with it.
struct Active {
    header: Header,
    sequence: u64,
    hot: Vec<u64>,
    /// Of the hot extents: the flush count at the last write.
    last_use: HashMap<u64, AtomicU32>,
}

#[derive(Default)]
struct Sync {
    /// Every write up to this number is on stable storage.
    synced: u64,
    running: bool,
}

/// One copy of a volume in a directory. All calls block and may be made from any thread.
pub struct CopyStore {
    directory: PathBuf,
    disk: Arc<dyn Disk>,
    data: Arc<dyn DiskFile>,
    sums: Sums,
    activity: Arc<dyn DiskFile>,
    active: RwLock<Active>,
    stripes: Box<[RwLock<()>]>,
    epoch: AtomicU64,
    blocks: AtomicU64,
    clock: AtomicU32,
    /// Writes completed so far.
    written: AtomicU64,
    sync: Mutex<Sync>,
    sync_done: Condvar,
    failed: AtomicBool,
    failure: Mutex<Option<StoreError>>,
    /// Holds the lock on the directory as long as the copy is open.
    lock: Mutex<Option<File>>,
}

impl CopyStore {
    /// Makes an empty copy in a directory, which is created.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is one already, [`StoreError::Io`] if the disk refuses.
    pub fn create(directory: &Path, volume: VolumeId, blocks: u64, epoch: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|e| StoreError::io(directory, &e))?;
        let lock = lock_directory(directory)?;
        Self::create_on(Arc::new(RealDisk), Some(lock), directory, volume, blocks, epoch)
    }

    /// Opens a copy and recovers it if it was not closed cleanly.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Locked`], [`StoreError::Damaged`] or [`StoreError::Io`].
    pub fn open(directory: &Path) -> Result<(Self, Opened), StoreError> {
        if !directory.join("header").exists() {
            return Err(StoreError::Missing(directory.to_owned()));
        }
        let lock = lock_directory(directory)?;
        Self::open_on(Arc::new(RealDisk), Some(lock), directory)
    }

    pub(super) fn create_on(
        disk: Arc<dyn Disk>,
        lock: Option<File>,
        directory: &Path,
        volume: VolumeId,
        blocks: u64,
        epoch: u64,
    ) -> Result<Self, StoreError> {
        let path = |name: &str| directory.join(name);
        let failed = |e: io::Error| StoreError::io(directory, &e);
        check_size(blocks)?;
        if disk.read(&path("header")).is_ok() {
            return Err(StoreError::Exists(directory.to_owned()));
        }
        // What a creation that was interrupted left: without a header it is no copy.
        for name in ["data", "sums", "activity"] {
            let _ = std::fs::remove_file(path(name));
        }
        let data = disk.create(&path("data"), blocks * BLOCK).map_err(failed)?;
        let sums = disk.create(&path("sums"), blocks * SUM_SIZE).map_err(failed)?;
        let log = disk.create(&path("activity"), ACTIVITY_LENGTH).map_err(failed)?;
        activity::initialise(&*log).map_err(failed)?;
        let header = Header {
            volume,
            epoch,
            blocks,
            boot: this_boot(),
            clean: false,
        };
        // The header comes last: it makes the files a copy.
        disk.replace(&path("header"), &header.encode()).map_err(failed)?;
        Ok(Self::assemble(
            disk,
            lock,
            directory,
            header,
            (data, sums, log),
            (1, Vec::new()),
        ))
    }

    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        lock: Option<File>,
        directory: &Path,
    ) -> Result<(Self, Opened), StoreError> {
        let path = |name: &str| directory.join(name);
        let mut header = Header::load(&*disk, &path("header"))?;
        if header.blocks > MAX_BLOCKS {
            let problem = format!("a copy of {} blocks cannot be", header.blocks);
            return Err(StoreError::damaged(&path("header"), problem));
        }
        let open = |name: &str, length: u64| {
            let file = disk.open(&path(name)).map_err(|e| StoreError::io(&path(name), &e))?;
            let have = file.length().map_err(|e| StoreError::io(&path(name), &e))?;
            if have < length {
                let problem = format!("{have} bytes long, a copy of {} blocks needs {length}", header.blocks);
                return Err(StoreError::damaged(&path(name), problem));
            }
            Ok(file)
        };
        let data = open("data", header.blocks.saturating_mul(BLOCK))?;
        let sums = open("sums", header.blocks.saturating_mul(SUM_SIZE))?;
        let log = open("activity", ACTIVITY_LENGTH)?;
        let (sequence, mut hot) = activity::load(&*log, &path("activity"))?;
        hot.sort_unstable();
        hot.dedup();
        hot.retain(|extent| *extent < header.blocks.div_ceil(EXTENT_BLOCKS));
        let opened = Opened {
            clean: header.clean,
            hot: hot.clone(),
            same_boot: header.boot == this_boot() && header.boot != [0; 16],
        };
        header.clean = false;
        if opened.clean {
            // Otherwise that of the boot in which it may have lost something stays until somebody vouches for it.
            header.boot = this_boot();
        }
        let store = Self::assemble(disk, lock, directory, header, (data, sums, log), (sequence, hot));
        if !opened.clean {
            store.recover(&opened.hot).map_err(|e| StoreError::io(directory, &e))?;
        }
        store.store_header(&store.active.write())?;
        Ok((store, opened))
    }

    fn assemble(
        disk: Arc<dyn Disk>,
        lock: Option<File>,
        directory: &Path,
        header: Header,
        (data, sums, log): (Arc<dyn DiskFile>, Arc<dyn DiskFile>, Arc<dyn DiskFile>),
        (sequence, hot): (u64, Vec<u64>),
    ) -> Self {
        let last_use = hot.iter().map(|extent| (*extent, AtomicU32::new(1))).collect();
        Self {
            directory: directory.to_owned(),
            disk,
            data,
            sums: Sums::new(sums),
            activity: log,
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            epoch: AtomicU64::new(header.epoch),
            blocks: AtomicU64::new(header.blocks),
            clock: AtomicU32::new(1),
            active: RwLock::new(Active {
                header,
                sequence,
                hot,
                last_use,
            }),
            // One write is owed a sync: what was there before may not be synced.
            written: AtomicU64::new(1),
            sync: Mutex::new(Sync::default()),
            sync_done: Condvar::new(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            lock: Mutex::new(lock),
        }
    }

    /// Rebuilds the sums of hot extents from the data.
    fn recover(&self, hot: &[u64]) -> io::Result<()> {
        let mut buffer = vec![0; 256 * BLOCK_SIZE];
        for extent in hot {
            let end = ((extent + 1) * EXTENT_BLOCKS).min(self.blocks());
            let mut block = extent * EXTENT_BLOCKS;
            while block < end {
                let count = (end - block).min(256);
                let part = &mut buffer[..count as usize * BLOCK_SIZE];
                self.data.read_at(part, block * BLOCK)?;
                self.sums.write(block, &sums_of(part))?;
                block += count;
            }
        }
        Ok(())
    }

    /// The volume that this is a copy of.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.active.read().header.volume
    }

    /// Size in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Number of extents; the last may be a part of one.
    #[must_use]
    pub fn extents(&self) -> u64 {
        self.blocks().div_ceil(EXTENT_BLOCKS)
    }

    /// The highest epoch seen.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Why the copy failed, if it did.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.failure.lock().as_ref().map(ToString::to_string)
    }

    /// Makes a higher epoch durable. When it returns no write of a lower one is in flight or will be accepted.
    ///
    /// # Errors
    /// [`StoreError::StaleEpoch`] if the copy has seen a higher one.
    pub fn advance_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        self.check_failed()?;
        let mut active = self.active.write();
        let have = active.header.epoch;
        if epoch < have {
            return Err(StoreError::StaleEpoch { have });
        }
        if epoch > have {
            active.header.epoch = epoch;
            self.store_header(&active)?;
            self.epoch.store(epoch, Ordering::Release);
        }
        Ok(())
    }

    /// Makes the copy larger; a smaller size is ignored.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] or [`StoreError::Failed`].
    pub fn grow(&self, blocks: u64) -> Result<(), StoreError> {
        self.check_failed()?;
        let mut active = self.active.write();
        if blocks <= active.header.blocks {
            return Ok(());
        }
        check_size(blocks)?;
        self.data.grow(blocks * BLOCK).map_err(|e| self.fail("grow data", &e))?;
        self.sums
            .file()
            .grow(blocks * SUM_SIZE)
            .map_err(|e| self.fail("grow sums", &e))?;
        active.header.blocks = blocks;
        self.store_header(&active)?;
        self.blocks.store(blocks, Ordering::Release);
        Ok(())
    }

    /// Writes blocks with the sums that came with them (`(first block, data, sums)`); with `flush`, makes them and every
    /// write completed before durable.
    ///
    /// # Errors
    /// Epoch errors, [`StoreError::OutOfRange`], or the copy fails.
    pub fn write(&self, epoch: u64, writes: &[(u64, &[u8], &[Sum])], flush: bool) -> Result<(), StoreError> {
        for (block, data, sums) in writes {
            let count = (data.len() / BLOCK_SIZE) as u64;
            self.check_range(*block, count)?;
            if data.len() % BLOCK_SIZE != 0 || sums.len() as u64 != count {
                return Err(self.out_of_range(*block, count));
            }
        }
        let active = self.begin(epoch, writes.iter().map(|(block, _, sums)| (*block, sums.len() as u64)))?;
        for (block, data, sums) in writes {
            let _stripes = self.lock_stripes(*block, sums.len() as u64);
            match self.untouched(*block, sums.len() as u64)? {
                None => self.data.write_at(data, block * BLOCK),
                Some((first, count)) => {
                    let mut chunk = vec![0; count as usize * BLOCK_SIZE];
                    let at = (block - first) as usize * BLOCK_SIZE;
                    chunk[at..at + data.len()].copy_from_slice(data);
                    self.data.write_at(&chunk, first * BLOCK)
                }
            }
            .map_err(|e| self.fail("write data", &e))?;
            self.sums.write(*block, sums).map_err(|e| self.fail("write sums", &e))?;
        }
        self.written.fetch_add(1, Ordering::AcqRel);
        drop(active);
        if flush { self.sync_data() } else { Ok(()) }
    }

    /// Puts good bytes where a block was corrupt; the same as a write.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn repair(&self, epoch: u64, block: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write(epoch, &[(block, data, &sums_of(data))], false)
    }

    /// Makes blocks read as zero and frees their space.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn discard(&self, epoch: u64, block: u64, count: u64) -> Result<(), StoreError> {
        self.check_range(block, count)?;
        // In parts, so that no more extents are hot at once than the log can hold.
        let step = EXTENT_BLOCKS * (HOT_LIMIT as u64 / 4);
        let end = block + count;
        let mut at = block;
        while at < end {
            let part = (end - at).min(step - at % EXTENT_BLOCKS);
            let active = self.begin(epoch, std::iter::once((at, part)))?;
            {
                let _stripes = self.lock_stripes(at, part);
                self.data
                    .punch(at * BLOCK, part * BLOCK)
                    .map_err(|e| self.fail("discard data", &e))?;
                self.sums.clear(at, part).map_err(|e| self.fail("discard sums", &e))?;
            }
            self.written.fetch_add(1, Ordering::AcqRel);
            drop(active);
            at += part;
        }
        Ok(())
    }

    /// Returns when every write completed before the call is on stable storage.
    ///
    /// # Errors
    /// Epoch errors, or the copy fails.
    pub fn flush(&self, epoch: u64) -> Result<(), StoreError> {
        self.check_failed()?;
        self.check_epoch(epoch, self.epoch())?;
        self.sync_data()
    }

    /// Reads verified blocks into `buffer`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] with the first bad block; then the buffer's content is not to be used.
    pub fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.check_failed()?;
        let count = (buffer.len() / BLOCK_SIZE) as u64;
        self.check_range(block, count)?;
        if !buffer.len().is_multiple_of(BLOCK_SIZE) {
            return Err(self.out_of_range(block, count));
        }
        if self.read_once(block, buffer)?.is_none() {
            return Ok(());
        }
        // A write may have come between the reads of data and sums: look again with the writers of these blocks shut out.
        let _stripes = self.share_stripes(block, count);
        match self.read_once(block, buffer)? {
            None => Ok(()),
            Some(block) => Err(StoreError::Corrupt { block }),
        }
    }

    /// One attempt: the first block that does not match its sum.
    fn read_once(&self, block: u64, buffer: &mut [u8]) -> Result<Option<u64>, StoreError> {
        let mut one = [[0; 32]];
        let mut many = Vec::new();
        let sums = if buffer.len() == BLOCK_SIZE {
            &mut one[..]
        } else {
            many.resize(buffer.len() / BLOCK_SIZE, [0; 32]);
            &mut many[..]
        };
        self.sums.read(block, sums).map_err(|e| self.fail("read sums", &e))?;
        self.data
            .read_at(buffer, block * BLOCK)
            .map_err(|e| self.fail("read data", &e))?;
        let bad = buffer
            .chunks_exact(BLOCK_SIZE)
            .zip(sums.iter())
            .position(|(data, sum)| sum_of(data) != *sum);
        Ok(bad.map(|at| block + at as u64))
    }

    /// The sums of blocks, as they stand in the sums file.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] or the copy fails.
    pub fn read_sums(&self, block: u64, count: u64) -> Result<Vec<Sum>, StoreError> {
        self.check_failed()?;
        self.check_range(block, count)?;
        let mut sums = vec![[0; 32]; count as usize];
        self.sums
            .read(block, &mut sums)
            .map_err(|e| self.fail("read sums", &e))?;
        Ok(sums)
    }

    /// The hash of an extent's sums; all zero for one without data.
    ///
    /// # Errors
    /// As [`Self::read_sums`].
    pub fn extent_hash(&self, extent: u64) -> Result<Sum, StoreError> {
        let (block, count) = self.extent_range(extent)?;
        Ok(hash_of_sums(&self.read_sums(block, count)?))
    }

    /// Extents that were ever written and not wholly discarded, in order; a few of them may hold only zeros.
    ///
    /// # Errors
    /// The copy fails.
    pub fn allocated_extents(&self) -> Result<Vec<u64>, StoreError> {
        self.check_failed()?;
        let (mut found, mut from) = (Vec::new(), 0);
        while from < self.extents() {
            match self
                .sums
                .next_allocated(from)
                .map_err(|e| self.fail("seek in sums", &e))?
            {
                Some(extent) if extent < self.extents() => {
                    found.push(extent);
                    from = extent + 1;
                }
                _ => break,
            }
        }
        Ok(found)
    }

    /// Reads an extent's data and compares it with its sums: the blocks that do not match.
    ///
    /// # Errors
    /// As [`Self::read`], but corruption is the answer, not an error.
    pub fn verify_extent(&self, extent: u64) -> Result<Vec<u64>, StoreError> {
        let (block, count) = self.extent_range(extent)?;
        let mut buffer = vec![0; count as usize * BLOCK_SIZE];
        let mut bad = Vec::new();
        match self.read(block, &mut buffer) {
            Ok(()) => {}
            Err(StoreError::Corrupt { .. }) => {
                for one in block..block + count {
                    match self.read(one, &mut buffer[..BLOCK_SIZE]) {
                        Ok(()) => {}
                        Err(StoreError::Corrupt { block }) => bad.push(block),
                        Err(other) => return Err(other),
                    }
                }
            }
            Err(other) => return Err(other),
        }
        Ok(bad)
    }

    /// Extents that a crash now would make suspicious.
    #[must_use]
    pub fn hot_extents(&self) -> Vec<u64> {
        self.active.read().hot.clone()
    }

    /// Whether a write to these blocks, now, needs not wait for the activity log: a hint, for whoever must not block.
    #[must_use]
    pub fn is_hot(&self, block: u64, count: u64) -> bool {
        let Some(active) = self.active.try_read() else {
            return false;
        };
        let end = block.saturating_add(count).div_ceil(EXTENT_BLOCKS);
        (block / EXTENT_BLOCKS..end).all(|extent| active.last_use.contains_key(&extent))
    }

    /// Space on the disk.
    ///
    /// # Errors
    /// The copy fails.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let data = self.data.allocated().map_err(|e| self.fail("stat data", &e))?;
        let sums = self.sums.file().allocated().map_err(|e| self.fail("stat sums", &e))?;
        Ok(Usage {
            allocated_bytes: data + sums,
        })
    }

    /// Puts everything on disk and marks the copy clean. Later writes are refused.
    ///
    /// # Errors
    /// The copy fails, and stays unclean.
    pub fn close(&self) -> Result<(), StoreError> {
        self.check_failed()?;
        let mut active = self.active.write();
        self.data.sync().map_err(|e| self.fail("sync data", &e))?;
        self.sums.file().sync().map_err(|e| self.fail("sync sums", &e))?;
        // One that nobody vouched for since it lost something is not what it was.
        active.header.clean = active.header.boot == this_boot();
        self.store_header(&active)?;
        self.fail_with(StoreError::Failed("closed".into()));
        Ok(())
    }

    /// Says that the copy holds every acknowledged write again, should it have lost some when the machine stopped.
    ///
    /// # Errors
    /// The disk's.
    pub fn vouch(&self) -> Result<(), StoreError> {
        self.check_failed()?;
        let mut active = self.active.write();
        if active.header.boot != this_boot() {
            active.header.boot = this_boot();
            self.store_header(&active)?;
        }
        Ok(())
    }

    /// Gives the files up without closing them in order, so that the copy can be opened again while this one is still held. Every
    /// call has ended; later ones fail.
    pub fn give_up(&self) {
        self.fail_with(StoreError::Failed("given up".into()));
        self.lock.lock().take();
    }

    /// What a copy's files say, without opening it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn describe(directory: &Path) -> Result<CopyDescription, StoreError> {
        let header = Header::load(&RealDisk, &directory.join("header"))?;
        let open = |name: &str| {
            let path = directory.join(name);
            RealDisk.open(&path).map_err(|e| StoreError::io(&path, &e))
        };
        let (_, hot) = activity::load(&*open("activity")?, &directory.join("activity"))?;
        let sums = Sums::new(open("sums")?);
        let (mut allocated_extents, mut from) = (Vec::new(), 0);
        while let Some(extent) = sums.next_allocated(from).map_err(|e| StoreError::io(directory, &e))? {
            allocated_extents.push(extent);
            from = extent + 1;
        }
        Ok(CopyDescription {
            volume: header.volume,
            epoch: header.epoch,
            blocks: header.blocks,
            clean: header.clean,
            hot,
            allocated_extents,
        })
    }
}

/// The parts of the calls above.
impl CopyStore {
    /// Starts a change of blocks: epoch checked, extents hot. The guard keeps both so until the change is done.
    fn begin(
        &self,
        epoch: u64,
        ranges: impl Iterator<Item = (u64, u64)> + Clone,
    ) -> Result<RwLockReadGuard<'_, Active>, StoreError> {
        self.check_failed()?;
        let now = self.clock.load(Ordering::Relaxed);
        let extents = ranges
            .filter(|(_, count)| *count > 0)
            .flat_map(|(block, count)| block / EXTENT_BLOCKS..=(block + count - 1) / EXTENT_BLOCKS);
        let active = self.active.read();
        self.check_epoch(epoch, active.header.epoch)?;
        let mut cold = false;
        for extent in extents.clone() {
            match active.last_use.get(&extent) {
                None => cold = true,
                Some(last) if last.load(Ordering::Relaxed) != now => last.store(now, Ordering::Relaxed),
                Some(_) => {}
            }
        }
        if !cold {
            return Ok(active);
        }
        drop(active);
        let mut active = self.active.write();
        self.check_failed()?;
        self.check_epoch(epoch, active.header.epoch)?;
        self.heat(&mut active, extents, now)?;
        Ok(RwLockWriteGuard::downgrade(active))
    }

    /// The chunk of a small write, if nothing in it was ever written. Its zeros are then written too: a flush after a write into a hole
    /// of the file makes the file system beneath commit its journal, which costs more than the write; the next small writes, which
    /// the volume's file system puts beside this one, overwrite instead. The caller holds the stripe.
    fn untouched(&self, block: u64, count: u64) -> Result<Option<(u64, u64)>, StoreError> {
        let first = block - block % CHUNK_BLOCKS;
        let length = CHUNK_BLOCKS.min(self.blocks() - first);
        if block + count > first + length || count == length {
            return Ok(None);
        }
        let mut sums = [[0; 32]; CHUNK_BLOCKS as usize];
        let sums = &mut sums[..length as usize];
        self.sums.read(first, sums).map_err(|e| self.fail("read sums", &e))?;
        if sums.iter().any(|sum| *sum != [0; 32]) {
            return Ok(None);
        }
        // Sums may be lost; only a hole in the data says for sure that there is nothing.
        let data = self.data.next_data(first * BLOCK);
        let data = data.map_err(|e| self.fail("seek in data", &e))?;
        Ok(data
            .is_none_or(|at| at >= (first + length) * BLOCK)
            .then_some((first, length)))
    }

    /// Enters extents into the activity log, durably.
    fn heat(&self, active: &mut Active, extents: impl Iterator<Item = u64>, now: u32) -> Result<(), StoreError> {
        let mut enter: Vec<u64> = extents.filter(|e| !active.last_use.contains_key(e)).collect();
        enter.sort_unstable();
        enter.dedup();
        if enter.len() > HOT_LIMIT {
            return Err(self.fail_with(StoreError::Failed(format!("a write over {} extents", enter.len()))));
        }
        if active.hot.len() + enter.len() > HOT_LIMIT {
            self.cool(active, EVICT.max(enter.len()))?;
        }
        let mut hot = active.hot.clone();
        hot.extend_from_slice(&enter);
        activity::store(&*self.activity, active.sequence + 1, &hot).map_err(|e| self.fail("activity log", &e))?;
        active.sequence += 1;
        active.hot = hot;
        for extent in enter {
            active.last_use.insert(extent, AtomicU32::new(now));
        }
        Ok(())
    }

    /// Lets the least recently used extents go cold, in memory; the caller stores the log.
    fn cool(&self, active: &mut Active, count: usize) -> Result<(), StoreError> {
        self.data.sync().map_err(|e| self.fail("sync data", &e))?;
        self.sums.file().sync().map_err(|e| self.fail("sync sums", &e))?;
        let last_use = &active.last_use;
        active
            .hot
            .sort_by_key(|e| std::cmp::Reverse(last_use.get(e).map_or(0, |last| last.load(Ordering::Relaxed))));
        let keep = active.hot.len().saturating_sub(count);
        for extent in active.hot.split_off(keep) {
            active.last_use.remove(&extent);
        }
        Ok(())
    }

    /// One fdatasync serves everybody whose writes were complete when it began.
    fn sync_data(&self) -> Result<(), StoreError> {
        let target = self.written.load(Ordering::Acquire);
        let mut sync = self.sync.lock();
        loop {
            self.check_failed()?;
            if sync.synced >= target {
                return Ok(());
            }
            if sync.running {
                self.sync_done.wait(&mut sync);
                continue;
            }
            sync.running = true;
            drop(sync);
            let upto = self.written.load(Ordering::Acquire);
            let result = self.data.sync();
            if let Err(e) = &result {
                self.fail("sync data", e);
            }
            self.clock.fetch_add(1, Ordering::Relaxed);
            sync = self.sync.lock();
            sync.running = false;
            if result.is_ok() {
                sync.synced = sync.synced.max(upto);
            }
            self.sync_done.notify_all();
        }
    }

    fn store_header(&self, active: &Active) -> Result<(), StoreError> {
        self.disk
            .replace(&self.directory.join("header"), &active.header.encode())
            .map_err(|e| self.fail("write header", &e))
    }

    fn stripes_of(&self, block: u64, count: u64) -> Vec<usize> {
        let first = block / STRIPE_BLOCKS;
        let last = (block + count.max(1) - 1) / STRIPE_BLOCKS;
        // In ascending order, each once: two calls never wait for each other in a circle.
        let mut stripes: Vec<usize> = (first..=last)
            .take(STRIPES)
            .map(|stripe| (stripe % STRIPES as u64) as usize)
            .collect();
        stripes.sort_unstable();
        stripes
    }

    fn lock_stripes(&self, block: u64, count: u64) -> Vec<RwLockWriteGuard<'_, ()>> {
        self.stripes_of(block, count)
            .into_iter()
            .map(|stripe| self.stripes[stripe].write())
            .collect()
    }

    fn share_stripes(&self, block: u64, count: u64) -> Vec<RwLockReadGuard<'_, ()>> {
        self.stripes_of(block, count)
            .into_iter()
            .map(|stripe| self.stripes[stripe].read())
            .collect()
    }

    fn extent_range(&self, extent: u64) -> Result<(u64, u64), StoreError> {
        let blocks = self.blocks();
        match extent.checked_mul(EXTENT_BLOCKS) {
            Some(block) if block < blocks => Ok((block, EXTENT_BLOCKS.min(blocks - block))),
            _ => Err(self.out_of_range(extent.saturating_mul(EXTENT_BLOCKS), EXTENT_BLOCKS)),
        }
    }

    fn check_range(&self, block: u64, count: u64) -> Result<(), StoreError> {
        match block.checked_add(count) {
            Some(end) if end <= self.blocks() => Ok(()),
            _ => Err(self.out_of_range(block, count)),
        }
    }

    fn out_of_range(&self, block: u64, count: u64) -> StoreError {
        StoreError::OutOfRange {
            block,
            count,
            blocks: self.blocks(),
        }
    }

    fn check_epoch(&self, asked: u64, have: u64) -> Result<(), StoreError> {
        match asked.cmp(&have) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(StoreError::StaleEpoch { have }),
            std::cmp::Ordering::Greater => Err(StoreError::EpochUnknown { have, asked }),
        }
    }

    fn check_failed(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) {
            let failure = self.failure.lock().clone();
            return Err(failure.unwrap_or_else(|| StoreError::Failed("unknown".into())));
        }
        Ok(())
    }

    /// Marks the copy failed by an error of the disk; the first reason stays.
    fn fail(&self, doing: &str, error: &io::Error) -> StoreError {
        let text = format!("{doing} in {}: {error}", self.directory.display());
        tracing::error!(directory = %self.directory.display(), doing, %error, "copy failed");
        self.fail_with(
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                StoreError::NoSpace(text)
            } else {
                StoreError::Failed(text)
            },
        )
    }

    fn fail_with(&self, error: StoreError) -> StoreError {
        let mut failure = self.failure.lock();
        let first = failure.get_or_insert(error).clone();
        self.failed.store(true, Ordering::Release);
        first
    }
}

/// Whether a copy may have so many blocks. Checked before anything is changed: the wish may come from another node.
fn check_size(blocks: u64) -> Result<(), StoreError> {
    if blocks <= MAX_BLOCKS {
        return Ok(());
    }
    Err(StoreError::OutOfRange {
        block: 0,
        count: blocks,
        blocks: MAX_BLOCKS,
    })
}

/// Takes the directory for this process; the lock goes with the file.
fn lock_directory(directory: &Path) -> Result<File, StoreError> {
    use rustix::fs::{FlockOperation, flock};
    let file = File::open(directory).map_err(|e| StoreError::io(directory, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(directory.to_owned())),
        Err(e) => Err(StoreError::io(directory, &e.into())),
    }
}
