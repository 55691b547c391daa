//! The sums file: a 32-byte blake3 hash for each block, in the block's order.
//!
//! A sum of all zeros means that the block is zeros, whether it is a hole or was written so: copies that differ only in
//! holes compare as equal. The file is not synced with every write: the sums of hot extents are rebuilt from the data
//! after a crash, those of cold ones were synced when the extent went cold.

use super::device::{BLOCK_SIZE, EXTENT_BLOCKS};
use super::io::DiskFile;
use std::io;
use std::sync::Arc;

/// The blake3 hash of a block; all zero for a block of zeros.
pub type Sum = [u8; 32];

/// Bytes of a sum.
pub(crate) const SUM_SIZE: u64 = 32;
const EXTENT_SUMS: usize = EXTENT_BLOCKS as usize;

/// The sum of one block.
#[must_use]
pub fn sum_of(block: &[u8]) -> Sum {
    debug_assert_eq!(block.len(), BLOCK_SIZE);
    if is_zero(block) {
        return [0; 32];
    }
    *blake3::hash(block).as_bytes()
}

/// The sums of consecutive blocks.
#[must_use]
pub fn sums_of(data: &[u8]) -> Vec<Sum> {
    data.chunks_exact(BLOCK_SIZE).map(sum_of).collect()
}

fn is_zero(data: &[u8]) -> bool {
    // Ordinary data differs from zero in its first bytes: do not walk the block then.
    data.iter().take(64).all(|b| *b == 0) && data.chunks(64).all(|c| c.iter().fold(0, |a, b| a | b) == 0)
}

/// The hash of an extent: over the sums of its blocks; all zero when all of them are.
#[must_use]
pub(crate) fn hash_of_sums(sums: &[Sum]) -> Sum {
    let bytes = sums.as_flattened();
    if is_zero(bytes) {
        return [0; 32];
    }
    *blake3::hash(bytes).as_bytes()
}

/// Access to a copy's sums file.
pub(super) struct Sums {
    file: Arc<dyn DiskFile>,
}

impl Sums {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file }
    }

    pub(super) fn file(&self) -> &dyn DiskFile {
        &*self.file
    }

    pub(super) fn read(&self, block: u64, out: &mut [Sum]) -> io::Result<()> {
        self.file.read_at(out.as_flattened_mut(), block * SUM_SIZE)
    }

    pub(super) fn write(&self, block: u64, sums: &[Sum]) -> io::Result<()> {
        self.file.write_at(sums.as_flattened(), block * SUM_SIZE)
    }

    /// Zeroes the sums of a range; whole extents give their space back.
    pub(super) fn clear(&self, block: u64, count: u64) -> io::Result<()> {
        let end = block + count;
        let first_whole = block.next_multiple_of(EXTENT_BLOCKS).min(end);
        let last_whole = (end / EXTENT_BLOCKS * EXTENT_BLOCKS).max(first_whole);
        for (from, to) in [(block, first_whole), (last_whole, end)] {
            let zeros = [[0; 32]; EXTENT_SUMS];
            let mut at = from;
            while at < to {
                let n = (to - at).min(EXTENT_BLOCKS);
                self.write(at, &zeros[..n as usize])?;
                at += n;
            }
        }
        if last_whole > first_whole {
            self.file
                .punch(first_whole * SUM_SIZE, (last_whole - first_whole) * SUM_SIZE)?;
        }
        Ok(())
    }

    /// The first extent at or after `extent` whose sums were ever written.
    pub(super) fn next_allocated(&self, extent: u64) -> io::Result<Option<u64>> {
        let bytes = EXTENT_BLOCKS * SUM_SIZE;
        Ok(self.file.next_data(extent * bytes)?.map(|at| at / bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_have_the_zero_sum_and_anything_else_its_blake3() {
        assert_eq!(sum_of(&[0; BLOCK_SIZE]), [0; 32]);
        for at in [0, 63, 64, 4095] {
            let mut block = [0; BLOCK_SIZE];
            block[at] = 1;
            assert_eq!(sum_of(&block), *blake3::hash(&block).as_bytes());
        }
    }
}
