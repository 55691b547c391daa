//! The header: which volume a copy belongs to, its epoch and size, and whether it was closed cleanly.
//!
//! 96 bytes, replaced as a whole. Layout in `docs/formats.md`; a change of it is a new version.

use super::error::StoreError;
use super::io::Disk;
use crate::volume::VolumeId;
use std::path::Path;

const MAGIC: &[u8; 8] = b"STOSCOPY";
const VERSION: u32 = 1;
const BODY: usize = 64;
const CLEAN: u32 = 1;

/// The fields of a copy's header file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) volume: VolumeId,
    pub(crate) epoch: u64,
    pub(crate) blocks: u64,
    /// The last boot of the machine in which the copy held every acknowledged write.
    pub(crate) boot: [u8; 16],
    /// Closed with everything on disk: data and sums agree.
    pub(crate) clean: bool,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BODY + 32);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&if self.clean { CLEAN } else { 0 }.to_le_bytes());
        out.extend_from_slice(self.volume.as_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.extend_from_slice(&self.boot);
        debug_assert_eq!(out.len(), BODY);
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != BODY + 32 {
            return Err(format!("{} bytes long instead of {}", bytes.len(), BODY + 32));
        }
        let (body, sum) = bytes.split_at(BODY);
        if &body[..8] != MAGIC {
            return Err("not a copy's header".into());
        }
        let u32_at = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        if u32_at(8) != VERSION {
            return Err(format!("format version {}, this program knows {VERSION}", u32_at(8)));
        }
        if blake3::hash(body).as_bytes() != sum {
            return Err("checksum mismatch".into());
        }
        let array = |at: usize| -> [u8; 16] {
            let mut out = [0; 16];
            out.copy_from_slice(&body[at..at + 16]);
            out
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Ok(Self {
            clean: u32_at(12) & CLEAN != 0,
            volume: VolumeId::from_bytes(array(16)),
            epoch: u64_at(32),
            blocks: u64_at(40),
            boot: array(48),
        })
    }

    /// Bytes with the checksum made right.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn sealed(bytes: &[u8]) -> Vec<u8> {
        let mut sealed = bytes.to_vec();
        if let Some((body, sum)) = sealed.split_at_mut_checked(BODY)
            && sum.len() == 32
        {
            sum.copy_from_slice(blake3::hash(body).as_bytes());
        }
        sealed
    }

    pub(crate) fn load(disk: &dyn Disk, path: &Path) -> Result<Self, StoreError> {
        let bytes = disk.read(path).map_err(|e| StoreError::io(path, &e))?;
        Self::decode(&bytes).map_err(|problem| StoreError::damaged(path, problem))
    }
}

/// The id of this boot of the machine; all zero where the system does not tell.
pub(crate) fn this_boot() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    uuid::Uuid::parse_str(text.trim()).map_or([0; 16], uuid::Uuid::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            volume: VolumeId::from_bytes([7; 16]),
            epoch: 0x0102_0304_0506_0708,
            blocks: 99,
            boot: [9; 16],
            clean: true,
        }
    }

    #[test]
    fn the_header_has_its_documented_bytes() {
        let bytes = header().encode();
        let mut expected = b"STOSCOPY\x01\0\0\0\x01\0\0\0".to_vec();
        expected.extend_from_slice(&[7; 16]);
        expected.extend_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1, 99, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[9; 16]);
        let sum = blake3::hash(&expected);
        expected.extend_from_slice(sum.as_bytes());
        assert_eq!(bytes, expected);
        assert_eq!(Header::decode(&bytes).unwrap(), header());
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_refused() {
        let bytes = header().encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(Header::decode(&bad).is_err(), "byte {at}");
            assert!(Header::decode(&bytes[..at]).is_err());
        }
    }
}
