//! Where things are on the device: superblock, length of the metadata area, intent log, metadata, data.
//!
//! The data area comes last, so that a volume can grow. Copies are sparse: a large region that is not used costs nothing.

use super::error::FsError;
use crate::block::{BLOCK_SIZE, BlockDevice, EXTENT_BLOCKS, Write};
use crate::volume::MAX_SIZE;
use bytes::Bytes;

/// Longest single write of metadata to the device, in bytes.
pub(super) const WRITE_MAX: usize = 1 << 20;
/// First block of the intent log.
pub(super) const LOG_START: u64 = EXTENT_BLOCKS;
/// Blocks of the intent log: 64 MiB.
pub(super) const LOG_BLOCKS: u64 = 16 * EXTENT_BLOCKS;
/// Blocks of one half of it: a generation writes to the half of its parity.
pub(super) const LOG_HALF: u64 = LOG_BLOCKS / 2;
/// First block of the metadata database.
pub(super) const META_START: u64 = LOG_START + LOG_BLOCKS;
/// Blocks reserved for it: 64 GiB.
const META_BLOCKS: u64 = 16 * 1024 * EXTENT_BLOCKS;
/// Bytes reserved for it.
pub(super) const META_MAX: u64 = META_BLOCKS * BLOCK_SIZE as u64;
/// First block of file data.
pub(super) const DATA_START: u64 = META_START + META_BLOCKS;

/// Blocks discarded by one call when a used device is cleared: 256 MiB.
const CLEAR_STEP: u64 = 64 * EXTENT_BLOCKS;

const MAGIC: &[u8; 8] = b"STOSFSYS";
const VERSION: u32 = 1;
const BODY: usize = 48;
/// Two copies of the superblock, in different extents' worth of distance from torn writes.
const SUPERBLOCKS: [u64; 2] = [0, 8];

/// Blocks of a device for a volume that holds `capacity` bytes of file data.
#[must_use]
pub fn device_blocks(capacity: u64) -> u64 {
    DATA_START + capacity / BLOCK_SIZE as u64
}

/// The fixed facts of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Blocks of file data.
    pub(super) data_blocks: u64,
    /// Bytes that the metadata database may grow to.
    pub(super) meta_limit: u64,
    /// Keys the hash of directory entries' names.
    pub(super) secret: [u8; 16],
}

impl Superblock {
    /// What tells this file system's memory log from another's.
    pub(super) fn memory_key(&self) -> [u8; 16] {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::derive_key("storageos memory log v1", &self.secret)[..16]);
        key
    }

    pub(super) fn new(capacity: u64, secret: [u8; 16]) -> Self {
        Self {
            data_blocks: capacity / BLOCK_SIZE as u64,
            meta_limit: (capacity / 8).clamp(256 << 20, META_MAX),
            secret,
        }
    }

    /// Bytes of rows that new names, files and extents may fill; the rest is for removals. A row takes twice its bytes in the
    /// database, whose pages may be half full, and a checkpoint needs room beside that.
    pub(super) fn rows_limit(&self) -> u64 {
        let limit = self.meta_limit.min(META_MAX / 4 * 3);
        (limit - (limit / 4).min(64 << 20)) / 2
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_SIZE);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.data_blocks.to_le_bytes());
        out.extend_from_slice(&self.meta_limit.to_le_bytes());
        out.extend_from_slice(&self.secret);
        debug_assert_eq!(out.len(), BODY);
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        out.resize(BLOCK_SIZE, 0);
        out
    }

    /// Makes a block's checksum right.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn seal(block: &mut [u8]) {
        let sum = blake3::hash(&block[..BODY]);
        block[BODY..BODY + 32].copy_from_slice(sum.as_bytes());
    }

    pub(super) fn decode(block: &[u8]) -> Result<Self, String> {
        if block.len() < BODY + 32 || &block[..8] != MAGIC {
            return Err("no file system".into());
        }
        if blake3::hash(&block[..BODY]).as_bytes() != &block[BODY..BODY + 32] {
            return Err("superblock's checksum does not match".into());
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&block[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let version = word(8) as u32;
        if version != VERSION {
            return Err(format!("file system version {version}, this program knows {VERSION}"));
        }
        let mut secret = [0; 16];
        secret.copy_from_slice(&block[32..48]);
        if word(16) > MAX_SIZE / BLOCK_SIZE as u64 {
            return Err("superblock's size is no volume's".into());
        }
        Ok(Self {
            data_blocks: word(16),
            meta_limit: word(24),
            secret,
        })
    }

    /// Makes a used device read as zero: nothing of an earlier file system is found, and new blocks are zeros. The superblock goes
    /// first, so that a half of this is no file system. A blank device is left alone: a discard of all of it may take long.
    pub(super) fn clear(device: &dyn BlockDevice, data_blocks: u64) -> Result<(), FsError> {
        let mut block = vec![0; BLOCK_SIZE];
        let mut blank = true;
        for at in [0, 8, 16, 17, LOG_START, LOG_START + LOG_HALF, META_START] {
            device.read(at, &mut block)?;
            blank &= block.iter().all(|b| *b == 0);
        }
        if blank {
            return Ok(());
        }
        // What shows that the device is used goes last: a clearing that was cut short is done again.
        for at in SUPERBLOCKS {
            device.discard(at, 1)?;
        }
        device.flush()?;
        let end = DATA_START + data_blocks;
        let mut at = META_START + 1;
        while at < end {
            let count = CLEAR_STEP.min(end - at);
            device.discard(at, count)?;
            at += count;
        }
        device.flush()?;
        device.discard(0, META_START + 1)?;
        Ok(device.flush()?)
    }

    pub(super) fn write(&self, device: &dyn BlockDevice) -> Result<(), FsError> {
        // One after the other: a torn first leaves the second whole.
        for block in SUPERBLOCKS {
            let data = Bytes::from(self.encode());
            device.write(&[Write { block, data }], true)?;
        }
        Ok(())
    }

    /// The superblock, or `None` on a device that was never formatted.
    pub(super) fn read(device: &dyn BlockDevice) -> Result<Option<Self>, FsError> {
        let (mut block, mut problem, mut blank) = (vec![0; BLOCK_SIZE], String::new(), true);
        for at in SUPERBLOCKS {
            device.read(at, &mut block)?;
            match Self::decode(&block) {
                Ok(superblock) if device.blocks() < DATA_START + superblock.data_blocks => {
                    return Err(FsError::Format("the device is smaller than its file system".into()));
                }
                Ok(superblock) => return Ok(Some(superblock)),
                Err(text) => problem = text,
            }
            blank &= block.iter().all(|b| *b == 0);
        }
        if blank { Ok(None) } else { Err(FsError::Format(problem)) }
    }

    /// The blocks whose copy of the superblock is not this one.
    pub(super) fn damaged_copies(&self, device: &dyn BlockDevice) -> Result<Vec<u64>, FsError> {
        let (mut block, mut damaged) = (vec![0; BLOCK_SIZE], Vec::new());
        for at in SUPERBLOCKS {
            device.read(at, &mut block)?;
            if Self::decode(&block).as_ref() != Ok(self) {
                damaged.push(at);
            }
        }
        Ok(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superblock_has_its_documented_bytes() {
        let superblock = Superblock {
            data_blocks: 5,
            meta_limit: 258,
            secret: [3; 16],
        };
        let block = superblock.encode();
        let mut expected = b"STOSFSYS\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0".to_vec();
        expected.extend_from_slice(&[3; 16]);
        let sum = blake3::hash(&expected);
        expected.extend_from_slice(sum.as_bytes());
        assert_eq!(block[..80], expected);
        assert_eq!(Superblock::decode(&block).unwrap(), superblock);
        for at in 0..80 {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert!(Superblock::decode(&bad).is_err());
        }
    }
}
