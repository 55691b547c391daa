//! The activity log: which extents may differ from their sums after a crash (as in DRBD).
//!
//! An extent is entered durably before the first write into it and leaves only after data and sums were synced. The file
//! has two slots of [`SLOT`] bytes, written in turn, each with a sequence number and a checksum: a torn write of one leaves the
//! other, and the set is only changed when the change is durable, so either describes every write that reached the disk.

use super::error::StoreError;
use super::io::DiskFile;
use std::io;
use std::path::Path;

const MAGIC: &[u8; 8] = b"STOSACTV";
/// Extents that may be hot at once (2 GiB): the bound on what is hashed again after a crash.
pub(crate) const HOT_LIMIT: usize = 512;
const SLOT: usize = 8192;
/// Length of the activity file.
pub(crate) const ACTIVITY_LENGTH: u64 = 2 * SLOT as u64;
const HEAD: usize = 24;

/// One slot: magic, sequence, number of extents, extents, checksum.
pub(super) fn encode(sequence: u64, extents: &[u64]) -> Vec<u8> {
    debug_assert!(extents.len() <= HOT_LIMIT);
    let mut out = Vec::with_capacity(SLOT);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&(extents.len() as u64).to_le_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.to_le_bytes());
    }
    let sum = blake3::hash(&out);
    out.extend_from_slice(sum.as_bytes());
    out
}

pub(super) fn decode(slot: &[u8]) -> Option<(u64, Vec<u64>)> {
    let word = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?)) };
    if slot.get(..8)? != MAGIC {
        return None;
    }
    let count = usize::try_from(word(16)?).ok().filter(|n| *n <= HOT_LIMIT)?;
    let end = HEAD + count * 8;
    if slot.get(end..end + 32)? != blake3::hash(&slot[..end]).as_bytes() {
        return None;
    }
    let extents = (0..count).map(|i| word(HEAD + i * 8)).collect::<Option<_>>()?;
    // Far from where counting on could overflow.
    let sequence = word(8).filter(|sequence| *sequence <= u64::MAX / 2)?;
    Some((sequence, extents))
}

/// A slot with its checksum made right.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sealed(slot: &[u8]) -> Vec<u8> {
    let mut sealed = slot.to_vec();
    let count = slot.get(16..24).and_then(|bytes| bytes.try_into().ok());
    let count = count.map_or(0, u64::from_le_bytes).min(HOT_LIMIT as u64) as usize;
    let end = HEAD + count * 8;
    if sealed.len() >= end {
        sealed.truncate(end);
        let sum = blake3::hash(&sealed);
        sealed.extend_from_slice(sum.as_bytes());
    }
    sealed
}

/// Writes a new activity file's first slot: nothing is hot.
pub(super) fn initialise(file: &dyn DiskFile) -> io::Result<()> {
    store(file, 1, &[])
}

/// Makes the set durable as number `sequence`.
pub(super) fn store(file: &dyn DiskFile, sequence: u64, extents: &[u64]) -> io::Result<()> {
    file.write_at(&encode(sequence, extents), sequence % 2 * SLOT as u64)?;
    file.sync()
}

/// The newest whole slot: its number and its extents.
pub(super) fn load(file: &dyn DiskFile, path: &Path) -> Result<(u64, Vec<u64>), StoreError> {
    let length = file.length().map_err(|e| StoreError::io(path, &e))?;
    if length != ACTIVITY_LENGTH {
        return Err(StoreError::damaged(
            path,
            format!("{length} bytes long instead of {ACTIVITY_LENGTH}"),
        ));
    }
    let mut bytes = vec![0; 2 * SLOT];
    file.read_at(&mut bytes, 0).map_err(|e| StoreError::io(path, &e))?;
    let (first, second) = bytes.split_at(SLOT);
    [decode(first), decode(second)]
        .into_iter()
        .flatten()
        .max_by_key(|(sequence, _)| *sequence)
        .ok_or_else(|| StoreError::damaged(path, "neither slot is whole"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_its_documented_bytes() {
        let bytes = encode(5, &[1, 258]);
        let mut expected =
            b"STOSACTV\x05\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0".to_vec();
        let sum = blake3::hash(&expected);
        expected.extend_from_slice(sum.as_bytes());
        assert_eq!(bytes, expected);
        assert_eq!(decode(&bytes), Some((5, vec![1, 258])));
    }

    #[test]
    fn damaged_slots_are_not_decoded() {
        let bytes = encode(5, &[1, 258]);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None);
        }
    }

    #[test]
    fn a_full_set_fits_a_slot() {
        let extents: Vec<u64> = (0..HOT_LIMIT as u64).collect();
        assert!(encode(1, &extents).len() <= SLOT);
    }
}
