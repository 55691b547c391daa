//! A simulated node's disk: copies in memory, with a cache that a power cut loses and an activity log of few extents.
//!
//! Blocks have one byte of content each (all their bytes are the same), so that a run is cheap. What a real disk does: a killed process
//! loses nothing that was written; a power cut loses any of what was not flushed, block by block; bits flip; it is full or fails.

use super::network::{Network, chance};
use crate::block::{BLOCK_SIZE, EXTENT_BLOCKS, Sum, sum_of};
use crate::exec::{Host, thread};
use crate::replication::{Copies, Copy, CopyError, CopyWrite, Found};
use crate::volume::VolumeId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Extents that the activity log keeps besides those with writes that are not flushed.
const HOT: usize = 2;

/// A block's content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) stamp: u64,
    pub(super) sum: Sum,
    /// Its bytes fit its sum.
    pub(super) whole: bool,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.stamp, if self.whole { "" } else { " (bad)" })
    }
}

impl Block {
    fn new(stamp: u64, sum: Sum) -> Self {
        let whole = sum == sum_of(&bytes_of(stamp));
        Self { stamp, sum, whole }
    }
}

#[derive(Clone, Default)]
struct Stored {
    blocks: u64,
    epoch: u64,
    /// As read; absent: zero.
    content: BTreeMap<u64, Block>,
    /// What a power cut may bring back, by block, for those written since the last flush.
    before: BTreeMap<u64, Option<Block>>,
    /// In the order of use.
    hot: Vec<u64>,
    clean: bool,
    lost_power: bool,
}

#[derive(Default)]
struct State {
    copies: BTreeMap<VolumeId, Stored>,
    full: bool,
}

/// See the module's text. Outlives its node's processes.
pub(super) struct Disk {
    host: Host,
    network: Arc<Network>,
    /// A sabotage: flushes do nothing.
    pub(super) flushes_nothing: AtomicBool,
    state: Mutex<State>,
}

/// A disk as one process sees it.
pub(super) struct Mounted {
    pub(super) disk: Arc<Disk>,
    /// See [`Network::lives`].
    pub(super) life: Mutex<u64>,
}

struct OpenCopy {
    mounted: Arc<Mounted>,
    volume: VolumeId,
    failed: Mutex<Option<String>>,
}

/// The bytes of a block: its stamp, again and again.
pub(super) fn bytes_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK_SIZE / 8)
}

/// The stamp of a block, if its bytes are one's.
pub(super) fn stamp_of(bytes: &[u8]) -> Option<u64> {
    let stamp = u64::from_le_bytes(bytes.first_chunk().copied()?);
    (bytes == bytes_of(stamp)).then_some(stamp)
}

fn sum(block: Option<&Block>) -> Sum {
    match block {
        None => [0; 32],
        Some(block) => block.sum,
    }
}

impl Disk {
    pub(super) fn new(host: Host, network: &Arc<Network>) -> Arc<Self> {
        Arc::new(Self {
            host,
            network: network.clone(),
            flushes_nothing: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// What a copy holds, whoever may read it.
    pub(super) fn content(&self, volume: VolumeId) -> Option<BTreeMap<u64, Block>> {
        self.state
            .lock()
            .copies
            .get(&volume)
            .map(|stored| stored.content.clone())
    }

    /// The power fails: any of what was not flushed is gone.
    pub(super) fn lose_power(&self) {
        for stored in self.state.lock().copies.values_mut() {
            for (block, before) in std::mem::take(&mut stored.before) {
                if chance(2) == 0 {
                    put(&mut stored.content, block, before);
                }
            }
            stored.lost_power = true;
        }
    }

    /// Everything on it is gone.
    pub(super) fn lose_all(&self) {
        self.state.lock().copies.clear();
    }

    pub(super) fn set_full(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// Some block's bytes change; its sum does not.
    pub(super) fn flip(&self, volume: VolumeId) {
        let mut state = self.state.lock();
        let Some(stored) = state.copies.get_mut(&volume) else {
            return;
        };
        let many = stored.content.len() as u64;
        let some = chance(many) as usize;
        if let Some(block) = stored.content.values_mut().nth(some) {
            block.whole = false;
        }
    }
}

fn put(content: &mut BTreeMap<u64, Block>, block: u64, to: Option<Block>) {
    match to.filter(|to| to.sum != [0; 32]) {
        Some(to) => content.insert(block, to),
        None => content.remove(&block),
    };
}

impl Stored {
    fn heat(&mut self, extent: u64) {
        self.hot.retain(|hot| *hot != extent);
        self.hot.push(extent);
        let dirty: BTreeSet<u64> = self.before.keys().map(|block| block / EXTENT_BLOCKS).collect();
        while self.hot.len() > HOT {
            let Some(cold) = self.hot[..self.hot.len() - 1]
                .iter()
                .position(|hot| !dirty.contains(hot))
            else {
                break;
            };
            self.hot.remove(cold);
        }
    }

    fn set(&mut self, block: u64, to: Option<Block>) {
        self.heat(block / EXTENT_BLOCKS);
        self.before
            .entry(block)
            .or_insert_with(|| self.content.get(&block).copied());
        put(&mut self.content, block, to);
    }
}

impl Copies for Mounted {
    fn create(&self, volume: VolumeId, blocks: u64, epoch: u64) -> Result<Arc<dyn Copy>, CopyError> {
        self.busy(500)?;
        let mut state = self.disk.state.lock();
        if state.full {
            return Err(CopyError::NoSpace("the disk is full".to_owned()));
        }
        if state.copies.contains_key(&volume) {
            return Err(CopyError::Failed("there is one already".to_owned()));
        }
        let stored = Stored {
            blocks,
            epoch,
            ..Stored::default()
        };
        state.copies.insert(volume, stored);
        drop(state);
        Ok(self.opened(volume))
    }

    fn open(&self, volume: VolumeId) -> Result<(Arc<dyn Copy>, Found), CopyError> {
        self.busy(500)?;
        let mut state = self.disk.state.lock();
        let stored = state.copies.get_mut(&volume).ok_or(CopyError::Missing)?;
        let found = Found {
            clean: std::mem::take(&mut stored.clean),
            same_boot: !stored.lost_power,
            hot: stored.hot.clone(),
        };
        // As the store does: what is there is what is durable from now on.
        stored.before.clear();
        drop(state);
        Ok((self.opened(volume), found))
    }

    fn remove(&self, volume: VolumeId) -> Result<(), CopyError> {
        self.busy(500)?;
        self.disk.state.lock().copies.remove(&volume);
        Ok(())
    }

    fn list(&self) -> Result<Vec<VolumeId>, CopyError> {
        Ok(self.disk.state.lock().copies.keys().copied().collect())
    }
}

impl Mounted {
    fn opened(&self, volume: VolumeId) -> Arc<dyn Copy> {
        Arc::new(OpenCopy {
            mounted: Arc::new(Self {
                disk: self.disk.clone(),
                life: Mutex::new(*self.life.lock()),
            }),
            volume,
            failed: Mutex::default(),
        })
    }

    fn alive(&self) -> Result<(), CopyError> {
        if self.disk.network.lives(self.disk.host, *self.life.lock()) {
            return Ok(());
        }
        Err(CopyError::Failed("its process is dead".to_owned()))
    }

    /// Takes up to so many microseconds.
    fn busy(&self, most: u64) -> Result<(), CopyError> {
        thread::sleep(Duration::from_micros(20 + chance(most)));
        self.alive()
    }
}

impl OpenCopy {
    fn with<T>(&self, work: impl FnOnce(&mut Stored, bool) -> Result<T, CopyError>) -> Result<T, CopyError> {
        if let Some(why) = &*self.failed.lock() {
            return Err(CopyError::Failed(why.clone()));
        }
        self.mounted.alive()?;
        let mut state = self.mounted.disk.state.lock();
        let full = state.full;
        let stored = state.copies.get_mut(&self.volume).ok_or(CopyError::Missing)?;
        work(stored, full)
    }

    /// A change at an epoch; on a full disk the copy fails for good.
    fn change<T>(&self, epoch: u64, work: impl FnOnce(&mut Stored) -> T) -> Result<T, CopyError> {
        let result = self.with(|stored, full| {
            if epoch != stored.epoch {
                let epoch = stored.epoch;
                return Err(CopyError::Stale { epoch, session: 0 });
            }
            if full {
                return Err(CopyError::NoSpace("the disk is full".to_owned()));
            }
            Ok(work(stored))
        });
        if let Err(error @ CopyError::NoSpace(_)) = &result {
            self.failed.lock().get_or_insert(error.to_string());
        }
        result
    }
}

impl Copy for OpenCopy {
    fn blocks(&self) -> u64 {
        self.with(|stored, _| Ok(stored.blocks)).unwrap_or_default()
    }

    fn epoch(&self) -> u64 {
        let state = self.mounted.disk.state.lock();
        state.copies.get(&self.volume).map_or(0, |stored| stored.epoch)
    }

    fn advance_epoch(&self, epoch: u64) -> Result<(), CopyError> {
        self.mounted.busy(800)?;
        self.with(|stored, full| {
            if full {
                return Err(CopyError::NoSpace("the disk is full".to_owned()));
            }
            assert!(epoch >= stored.epoch, "an epoch goes back");
            stored.epoch = epoch;
            Ok(())
        })
    }

    fn write(&self, epoch: u64, writes: &[CopyWrite<'_>], flush: bool) -> Result<(), CopyError> {
        for write in writes {
            for (index, bytes) in write.data.chunks(BLOCK_SIZE).enumerate() {
                let block = write.block + index as u64;
                // Before the extent is in the log, and between that and the data.
                self.mounted.busy(150)?;
                self.change(epoch, |stored| stored.heat(block / EXTENT_BLOCKS))?;
                self.mounted.busy(50)?;
                let stamp = stamp_of(bytes).ok_or_else(|| CopyError::Invalid("not a block of the test".to_owned()))?;
                let to = Block::new(stamp, write.sums[index]);
                self.change(epoch, |stored| stored.set(block, Some(to)))?;
            }
        }
        if flush { self.flush(epoch) } else { Ok(()) }
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), CopyError> {
        self.mounted.busy(100)?;
        self.with(|stored, _| {
            for (index, bytes) in buffer.chunks_mut(BLOCK_SIZE).enumerate() {
                let block = block + index as u64;
                match stored.content.get(&block) {
                    Some(Block { whole: false, .. }) => return Err(CopyError::Corrupt { block }),
                    Some(Block { stamp, .. }) => bytes.copy_from_slice(&bytes_of(*stamp)),
                    None => bytes.fill(0),
                }
            }
            Ok(())
        })
    }

    fn sums(&self, block: u64, count: u64) -> Result<Vec<Sum>, CopyError> {
        self.with(|stored, _| {
            Ok((block..block + count)
                .map(|block| sum(stored.content.get(&block)))
                .collect())
        })
    }

    fn extent_hash(&self, extent: u64) -> Result<Sum, CopyError> {
        self.mounted.busy(200)?;
        self.with(|stored, _| {
            let range = extent * EXTENT_BLOCKS..(extent + 1) * EXTENT_BLOCKS;
            let mut hasher = blake3::Hasher::new();
            let mut any = false;
            for (block, content) in stored.content.range(range) {
                any = true;
                hasher.update(&block.to_le_bytes());
                hasher.update(&content.sum);
            }
            Ok(if any { *hasher.finalize().as_bytes() } else { [0; 32] })
        })
    }

    fn allocated_extents(&self) -> Result<Vec<u64>, CopyError> {
        self.with(|stored, _| {
            let extents: BTreeSet<u64> = stored.content.keys().map(|block| block / EXTENT_BLOCKS).collect();
            Ok(extents.into_iter().collect())
        })
    }

    fn verify_extent(&self, extent: u64) -> Result<Vec<u64>, CopyError> {
        self.with(|stored, _| {
            let range = extent * EXTENT_BLOCKS..(extent + 1) * EXTENT_BLOCKS;
            let bad = stored.content.range(range).filter(|(_, content)| !content.whole);
            Ok(bad.map(|(block, _)| *block).collect())
        })
    }

    fn is_hot(&self, block: u64, _: u64) -> bool {
        self.with(|stored, _| Ok(stored.hot.contains(&(block / EXTENT_BLOCKS))))
            .unwrap_or_default()
    }

    fn hot_extents(&self) -> Vec<u64> {
        self.with(|stored, _| Ok(stored.hot.clone())).unwrap_or_default()
    }

    fn discard(&self, epoch: u64, block: u64, count: u64) -> Result<(), CopyError> {
        for block in block..block + count {
            self.mounted.busy(50)?;
            self.change(epoch, |stored| stored.set(block, None))?;
        }
        Ok(())
    }

    fn flush(&self, epoch: u64) -> Result<(), CopyError> {
        // What was written before the flush began is durable when it ends.
        let covered = self.change(epoch, |stored| {
            let content = |block: &u64| (*block, stored.content.get(block).copied());
            stored.before.keys().map(content).collect::<Vec<_>>()
        })?;
        self.mounted.busy(2000)?;
        if self.mounted.disk.flushes_nothing.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.change(epoch, |stored| {
            for (block, durable) in covered {
                if stored.content.get(&block).copied() == durable {
                    stored.before.remove(&block);
                } else {
                    stored.before.insert(block, durable);
                }
            }
        })
    }

    fn repair(&self, epoch: u64, block: u64, data: &[u8]) -> Result<(), CopyError> {
        self.mounted.busy(100)?;
        let stamp = stamp_of(data).ok_or_else(|| CopyError::Invalid("not a block of the test".to_owned()))?;
        let to = Block::new(stamp, sum_of(data));
        self.change(epoch, |stored| stored.set(block, Some(to)))
    }

    fn grow(&self, blocks: u64) -> Result<(), CopyError> {
        self.with(|stored, _| {
            stored.blocks = stored.blocks.max(blocks);
            Ok(())
        })
    }

    fn vouch(&self) -> Result<(), CopyError> {
        self.with(|stored, _| {
            stored.lost_power = false;
            Ok(())
        })
    }

    fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    fn close(&self) -> Result<(), CopyError> {
        self.with(|stored, _| {
            stored.before.clear();
            stored.hot.clear();
            stored.clean = !stored.lost_power;
            Ok(())
        })?;
        self.failed.lock().get_or_insert("it is closed".to_owned());
        Ok(())
    }

    fn give_up(&self) {
        self.failed.lock().get_or_insert("it was given up".to_owned());
    }
}
