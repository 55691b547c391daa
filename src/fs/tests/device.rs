//! A block device in memory: sparse, counts its calls, and can lose power.

use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// An unflushed change: a block, and its content or that it is discarded.
type Pending = (u64, Option<Bytes>);

#[derive(Default)]
struct Content {
    durable: BTreeMap<u64, Bytes>,
    current: BTreeMap<u64, Bytes>,
    pending: Vec<Pending>,
    flushes: u64,
    writes: u64,
    /// Changes until the power goes.
    left: Option<u64>,
    refuse: Option<DeviceError>,
    /// Reads until one fails, once.
    good_reads: Option<u64>,
}

pub(super) struct CrashDevice {
    blocks: AtomicU64,
    content: Mutex<Content>,
}

impl CrashDevice {
    pub(super) fn new(blocks: u64) -> Self {
        Self {
            blocks: AtomicU64::new(blocks),
            content: Mutex::new(Content::default()),
        }
    }

    /// The device becomes larger.
    pub(super) fn grow(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Release);
    }

    pub(super) fn flushes(&self) -> u64 {
        self.content.lock().flushes
    }

    pub(super) fn writes(&self) -> u64 {
        self.content.lock().writes
    }

    /// The power goes after so many more changes of blocks.
    pub(super) fn crash_after(&self, changes: u64) {
        self.content.lock().left = Some(changes);
    }

    /// Every change fails like this, or none.
    pub(super) fn refuse(&self, error: Option<DeviceError>) {
        self.content.lock().refuse = error;
    }

    /// The read after so many more fails, once.
    pub(super) fn fail_read_after(&self, reads: u64) {
        self.content.lock().good_reads = Some(reads);
    }

    /// Whether no read is going to fail.
    pub(super) fn reads_are_good(&self) -> bool {
        self.content.lock().good_reads.is_none()
    }

    /// A device as it is when every unflushed change came to be kept.
    pub(super) fn image_with_all_writes(&self) -> Self {
        let current = self.content.lock().current.clone();
        let device = Self::new(self.blocks());
        {
            let mut content = device.content.lock();
            content.durable = current.clone();
            content.current = current;
        }
        device
    }

    /// A device as it may be after a power loss now: flushed content, and of the unflushed changes a random part, torn at 512
    /// bytes.
    pub(super) fn image(&self, mut random: u64) -> Self {
        let content = self.content.lock();
        let mut after = content.durable.clone();
        let mut next = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            random >> 60
        };
        for (block, data) in &content.pending {
            match next() {
                0..6 => {}
                6..8 => {
                    let mut torn = after.get(block).map_or_else(|| vec![0; BLOCK_SIZE], |b| b.to_vec());
                    let new = data.clone().unwrap_or_else(|| Bytes::from(vec![0; BLOCK_SIZE]));
                    for at in (0..BLOCK_SIZE).step_by(512) {
                        if next() % 2 == 0 {
                            torn[at..at + 512].copy_from_slice(&new[at..at + 512]);
                        }
                    }
                    after.insert(*block, Bytes::from(torn));
                }
                _ => {
                    match data {
                        Some(data) => after.insert(*block, data.clone()),
                        None => after.remove(block),
                    };
                }
            }
        }
        let device = Self::new(self.blocks());
        {
            let mut content = device.content.lock();
            content.current = after.clone();
            content.durable = after;
        }
        device
    }

    fn change(content: &mut Content, block: u64, data: Option<Bytes>) -> Result<(), DeviceError> {
        if let Some(error) = &content.refuse {
            return Err(error.clone());
        }
        if let Some(left) = &mut content.left {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| DeviceError::Io("power lost".into()))?;
        }
        content.pending.push((block, data.clone()));
        match data {
            Some(data) => content.current.insert(block, data),
            None => content.current.remove(&block),
        };
        Ok(())
    }

    fn make_durable(content: &mut Content) -> Result<(), DeviceError> {
        if let Some(error) = &content.refuse {
            return Err(error.clone());
        }
        if content.left == Some(0) {
            return Err(DeviceError::Io("power lost".into()));
        }
        content.flushes += 1;
        for (block, data) in std::mem::take(&mut content.pending) {
            match data {
                Some(data) => content.durable.insert(block, data),
                None => content.durable.remove(&block),
            };
        }
        Ok(())
    }
}

impl BlockDevice for CrashDevice {
    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let mut content = self.content.lock();
        if let Some(left) = content.good_reads {
            content.good_reads = left.checked_sub(1);
            if left == 0 {
                return Err(DeviceError::Unavailable("no copy answers".into()));
            }
        }
        assert!(block + (buffer.len() / BLOCK_SIZE) as u64 <= self.blocks());
        for (i, out) in buffer.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            match content.current.get(&(block + i as u64)) {
                Some(data) => out.copy_from_slice(data),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError> {
        let mut content = self.content.lock();
        content.writes += 1;
        for write in writes {
            assert!(write.data.len().is_multiple_of(BLOCK_SIZE) && !write.data.is_empty());
            for (i, at) in (0..write.data.len()).step_by(BLOCK_SIZE).enumerate() {
                let block = write.block + i as u64;
                assert!(block < self.blocks());
                Self::change(&mut content, block, Some(write.data.slice(at..at + BLOCK_SIZE)))?;
            }
        }
        if flush {
            Self::make_durable(&mut content)
        } else {
            Ok(())
        }
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        assert!(block + count <= self.blocks());
        let mut content = self.content.lock();
        let held: Vec<u64> = content.current.range(block..block + count).map(|(b, _)| *b).collect();
        for block in held {
            Self::change(&mut content, block, None)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Self::make_durable(&mut self.content.lock())
    }
}
