//! A device whose writes stay in memory: what a check opens, so that nothing reaches the device below.

use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blocks that may be kept: 256 MiB. Opening after a crash writes a few; a database that has to be repaired takes more.
const KEPT_MAX: usize = 65_536;

pub(super) struct Overlay {
    device: Arc<dyn BlockDevice>,
    /// Blocks written, or discarded.
    kept: Mutex<BTreeMap<u64, Option<Bytes>>>,
    failure: Mutex<Option<DeviceError>>,
}

impl Overlay {
    pub(super) fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            kept: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// Why the first call that failed did, unless the device below is whole and its content is not.
    pub(super) fn failure(&self) -> Option<DeviceError> {
        self.failure.lock().clone()
    }

    fn noted(&self, result: Result<(), DeviceError>) -> Result<(), DeviceError> {
        if let Err(error) = &result
            && !matches!(error, DeviceError::Corrupt { .. } | DeviceError::OutOfRange { .. })
        {
            self.failure.lock().get_or_insert_with(|| error.clone());
        }
        result
    }

    fn keep(&self, block: u64, data: Option<Bytes>) -> Result<(), DeviceError> {
        let mut kept = self.kept.lock();
        kept.insert(block, data);
        if kept.len() > KEPT_MAX {
            return Err(DeviceError::Io(
                "checking the file system takes too much memory".to_owned(),
            ));
        }
        Ok(())
    }
}

impl BlockDevice for Overlay {
    fn blocks(&self) -> u64 {
        self.device.blocks()
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.noted(self.device.read(block, buffer))?;
        let kept = self.kept.lock();
        let end = block.saturating_add((buffer.len() / BLOCK_SIZE) as u64);
        for (at, data) in kept.range(block..end) {
            let from = (at - block) as usize * BLOCK_SIZE;
            let out = &mut buffer[from..from + BLOCK_SIZE];
            match data {
                Some(data) => out.copy_from_slice(data),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, writes: &[Write], _: bool) -> Result<(), DeviceError> {
        for Write { block, data } in writes {
            for (i, at) in (0..data.len()).step_by(BLOCK_SIZE).enumerate() {
                self.noted(self.keep(block + i as u64, Some(data.slice(at..at + BLOCK_SIZE))))?;
            }
        }
        Ok(())
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        (block..block.saturating_add(count)).try_for_each(|block| self.noted(self.keep(block, None)))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
