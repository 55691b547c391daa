//! The files beneath a copy, as a small trait, so that tests can put a disk that crashes, tears and fills up in its place.
//!
//! Calls are exact: they read or write everything or return an error.

use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A directory of files on some disk.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Creates a sparse file of `length` bytes; an existing one is an error.
    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// The whole content of a small file; of one that is not small, the beginning.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Replaces a small file, durably and all at once.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Makes created and renamed names of a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// An open file.
pub(crate) trait DiskFile: Send + Sync {
    /// Fills `buffer` from `offset`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes a range read as zero and frees its space; the length stays.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;
    /// fdatasync: what was written is on stable storage.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Makes the file longer, sparsely.
    fn grow(&self, length: u64) -> io::Result<()>;
    /// The first offset at or after `offset` where the file has data (not a hole); `None` to the end.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// Bytes that the file takes on the disk.
    fn allocated(&self) -> io::Result<u64>;
}

/// Bytes of a small file, at most.
pub(super) const SMALL: u64 = 4096;

/// Bytes from which what is read or written is not kept in the page cache: whoever streams that much has it in the cache of the mount,
/// and the copies of a volume would fill the memory of every node with it.
const STREAMED: usize = 128 << 10;

/// RWF_DONTCACHE of preadv2(2) and pwritev2(2), Linux 6.14: dropped from the page cache after the read, or once written back, which
/// begins at once. Pages that were there before stay.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Set when the kernel or the file system beneath does not know the flag.
static KEEPS: AtomicBool = AtomicBool::new(false);

/// Moves what it can of `length` bytes by `part`, which is told how many are done, without keeping them in the page cache; returns how
/// many. If not all, the rest is to be moved as usual.
fn uncached(length: usize, mut part: impl FnMut(usize) -> Result<usize, Errno>) -> io::Result<usize> {
    let mut done = 0;
    if length < STREAMED {
        return Ok(done);
    }
    while done < length && !KEEPS.load(Ordering::Relaxed) {
        match part(done) {
            Ok(0) => break,
            Ok(some) => done += some,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                tracing::debug!("what is streamed stays in the page cache: no RWF_DONTCACHE here");
                KEEPS.store(true, Ordering::Relaxed);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// The operating system's files.
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(length)?;
        file.sync_all()?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(File::options().read(true).write(true).open(path)?))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(path)?.take(SMALL).read_to_end(&mut content)?;
        Ok(content)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        self.sync_directory(path.parent().unwrap_or(Path::new(".")))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let done = uncached(buffer.len(), |done| {
            let mut rest = [IoSliceMut::new(&mut buffer[done..])];
            preadv2(self, &mut rest, offset + done as u64, DONT_CACHE)
        })?;
        self.read_exact_at(&mut buffer[done..], offset + done as u64)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let done = uncached(data.len(), |done| {
            let rest = [IoSlice::new(&data[done..])];
            pwritev2(self, &rest, offset + done as u64, DONT_CACHE)
        })?;
        self.write_all_at(&data[done..], offset + done as u64)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(self, flags, offset, length)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn grow(&self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.sync_all()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.metadata()?.blocks() * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_writes_are_read_back_and_nothing_beside_them_changes() {
        let directory = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&directory.path().join("data"), 4 << 20).unwrap();
        let mut model = vec![0; 4 << 20];
        let random: Vec<u8> = (0..1 << 20)
            .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for (offset, length) in [
            (0, STREAMED),
            (4096, 1 << 20),
            (3 << 20, STREAMED - 1),
            (1 << 20, 4096),
            (777, STREAMED + 5),
        ] {
            file.write_at(&random[..length], offset).unwrap();
            model[offset as usize..offset as usize + length].copy_from_slice(&random[..length]);
        }
        file.sync().unwrap();
        let mut content = vec![0; 4 << 20];
        file.read_at(&mut content, 0).unwrap();
        assert!(content == model);
    }
}
