//! A copy alone as a block device: no replicas, no network. For tests, benchmarks and examples.

use super::device::{BlockDevice, DeviceError, Write};
use super::error::StoreError;
use super::store::CopyStore;
use super::sums::{Sum, sums_of};

/// A [`BlockDevice`] on one local copy.
pub struct LocalDevice {
    store: CopyStore,
}

impl LocalDevice {
    /// The device of an open copy.
    #[must_use]
    pub fn new(store: CopyStore) -> Self {
        Self { store }
    }

    /// The copy.
    #[must_use]
    pub fn store(&self) -> &CopyStore {
        &self.store
    }
}

impl From<StoreError> for DeviceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::OutOfRange { block, count, blocks } => Self::OutOfRange { block, count, blocks },
            StoreError::Corrupt { block } => Self::Corrupt { block },
            StoreError::NoSpace(text) => Self::NoSpace(text),
            StoreError::StaleEpoch { .. } | StoreError::EpochUnknown { .. } => Self::Fenced(error.to_string()),
            other => Self::Io(other.to_string()),
        }
    }
}

impl BlockDevice for LocalDevice {
    fn blocks(&self) -> u64 {
        self.store.blocks()
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        Ok(self.store.read(block, buffer)?)
    }

    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError> {
        let sums: Vec<Vec<Sum>> = writes.iter().map(|w| sums_of(&w.data)).collect();
        let parts: Vec<(u64, &[u8], &[Sum])> = writes
            .iter()
            .zip(&sums)
            .map(|(w, s)| (w.block, &w.data[..], &s[..]))
            .collect();
        Ok(self.store.write(self.store.epoch(), &parts, flush)?)
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        Ok(self.store.discard(self.store.epoch(), block, count)?)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(self.store.flush(self.store.epoch())?)
    }
}
