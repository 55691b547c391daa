//! The copies on a disk: `DIRECTORY/VOLUME-ID`, each a [`crate::block::CopyStore`].

use super::store::{Copies, Copy, CopyError, CopyWrite, Found, Sum};
use crate::{
    block::{CopyStore, Opened, StoreError},
    volume::VolumeId,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A directory of copies.
pub struct DiskCopies {
    directory: PathBuf,
}

impl DiskCopies {
    /// The copies under `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(directory: &Path) -> io::Result<Arc<Self>> {
        fs::create_dir_all(directory)?;
        Ok(Arc::new(Self {
            directory: directory.to_owned(),
        }))
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(volume.to_string())
    }
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        match error {
            // The gate before the store speaks of sessions; the store knows of epochs alone.
            StoreError::StaleEpoch { have } | StoreError::EpochUnknown { have, .. } => Self::Stale {
                epoch: have,
                session: 0,
            },
            StoreError::OutOfRange { .. } => Self::Invalid(error.to_string()),
            StoreError::Corrupt { block } => Self::Corrupt { block },
            StoreError::NoSpace(why) => Self::NoSpace(why),
            StoreError::Missing(_) => Self::Missing,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl Copy for CopyStore {
    fn blocks(&self) -> u64 {
        self.blocks()
    }

    fn epoch(&self) -> u64 {
        self.epoch()
    }

    fn advance_epoch(&self, epoch: u64) -> Result<(), CopyError> {
        Ok(self.advance_epoch(epoch)?)
    }

    fn write(&self, epoch: u64, writes: &[CopyWrite<'_>], flush: bool) -> Result<(), CopyError> {
        let parts: Vec<_> = writes
            .iter()
            .map(|write| (write.block, write.data, write.sums))
            .collect();
        Ok(self.write(epoch, &parts, flush)?)
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), CopyError> {
        Ok(self.read(block, buffer)?)
    }

    fn sums(&self, block: u64, count: u64) -> Result<Vec<Sum>, CopyError> {
        Ok(self.read_sums(block, count)?)
    }

    fn extent_hash(&self, extent: u64) -> Result<Sum, CopyError> {
        Ok(self.extent_hash(extent)?)
    }

    fn allocated_extents(&self) -> Result<Vec<u64>, CopyError> {
        Ok(self.allocated_extents()?)
    }

    fn verify_extent(&self, extent: u64) -> Result<Vec<u64>, CopyError> {
        Ok(self.verify_extent(extent)?)
    }

    fn is_hot(&self, block: u64, count: u64) -> bool {
        self.is_hot(block, count)
    }

    fn hot_extents(&self) -> Vec<u64> {
        self.hot_extents()
    }

    fn discard(&self, epoch: u64, block: u64, count: u64) -> Result<(), CopyError> {
        Ok(self.discard(epoch, block, count)?)
    }

    fn flush(&self, epoch: u64) -> Result<(), CopyError> {
        Ok(self.flush(epoch)?)
    }

    fn repair(&self, epoch: u64, block: u64, data: &[u8]) -> Result<(), CopyError> {
        Ok(self.repair(epoch, block, data)?)
    }

    fn grow(&self, blocks: u64) -> Result<(), CopyError> {
        Ok(self.grow(blocks)?)
    }

    fn vouch(&self) -> Result<(), CopyError> {
        Ok(self.vouch()?)
    }

    fn failed(&self) -> Option<String> {
        self.failed()
    }

    fn close(&self) -> Result<(), CopyError> {
        Ok(self.close()?)
    }

    fn give_up(&self) {
        self.give_up();
    }
}

impl From<Opened> for Found {
    fn from(opened: Opened) -> Self {
        Self {
            clean: opened.clean,
            same_boot: opened.same_boot,
            hot: opened.hot,
        }
    }
}

impl Copies for DiskCopies {
    fn create(&self, volume: VolumeId, blocks: u64, epoch: u64) -> Result<Arc<dyn Copy>, CopyError> {
        Ok(Arc::new(CopyStore::create(&self.path(volume), volume, blocks, epoch)?))
    }

    fn open(&self, volume: VolumeId) -> Result<(Arc<dyn Copy>, Found), CopyError> {
        let (store, opened) = CopyStore::open(&self.path(volume))?;
        if store.volume() != volume {
            return Err(CopyError::Failed(format!(
                "the directory of {volume} holds a copy of {}",
                store.volume()
            )));
        }
        Ok((Arc::new(store), opened.into()))
    }

    fn remove(&self, volume: VolumeId) -> Result<(), CopyError> {
        match fs::remove_dir_all(self.path(volume)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CopyError::Failed(error.to_string())),
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<VolumeId>, CopyError> {
        let failed = |error: io::Error| CopyError::Failed(format!("{}: {error}", self.directory.display()));
        let mut volumes = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // Anything else in the directory is not ours.
            if let Some(volume) = name.to_str().and_then(|name| name.parse().ok()) {
                volumes.push(volume);
            }
        }
        Ok(volumes)
    }
}
