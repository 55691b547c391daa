//! Hostile bytes for the files of a copy, and a copy whose files were damaged; see [`crate::fuzzing`].

use super::activity;
use super::device::{BLOCK_SIZE, EXTENT_BLOCKS};
use super::header::Header;
use super::io::{Disk, DiskFile, SMALL};
use super::store::{CopyStore, Opened};
use super::sums::sums_of;
use super::{StoreError, Sum};
use crate::volume::VolumeId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The header file.
pub(crate) fn header(input: &[u8]) -> bool {
    let _ = Header::decode(input);
    Header::decode(&Header::sealed(input)).is_ok_and(|header| {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        true
    })
}

fn sample(blocks: u64) -> Header {
    Header {
        volume: VolumeId::from_bytes([7; 16]),
        epoch: 3,
        blocks,
        boot: [9; 16],
        clean: true,
    }
}

pub(crate) fn header_seeds() -> Vec<Vec<u8>> {
    vec![sample(99).encode()]
}

/// A slot of the activity file.
pub(crate) fn activity(input: &[u8]) -> bool {
    let _ = activity::decode(input);
    activity::decode(&activity::sealed(input)).is_some_and(|(sequence, extents)| {
        let slot = activity::encode(sequence, &extents);
        assert_eq!(activity::decode(&slot), Some((sequence, extents)));
        true
    })
}

pub(crate) fn activity_seeds() -> Vec<Vec<u8>> {
    vec![activity::encode(5, &[1, 258]), activity::encode(1, &[])]
}

/// Bytes of a page of a file in memory.
const PAGE: u64 = 4096;

/// A disk in memory: sparse, as fast as can be, which never fails, and lets nothing be written beyond a file's length.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>>);

#[derive(Default)]
struct MemoryFile(Mutex<Content>);

#[derive(Default)]
struct Content {
    length: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl MemoryFile {
    /// The parts of a range: page, where in it, and where in the whole.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let count = (length - done).min(PAGE as usize - within);
            let part = (at / PAGE, within..within + count, done..done + count);
            done += count;
            (count > 0).then_some(part)
        })
    }

    fn check(content: &Content, offset: u64, length: usize) {
        let end = offset.checked_add(length as u64);
        assert!(end.is_some_and(|end| end <= content.length), "beyond the file's end");
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.0.lock();
        Self::check(&content, offset, buffer.len());
        for (page, within, whole) in Self::parts(offset, buffer.len()) {
            match content.pages.get(&page) {
                Some(bytes) => buffer[whole].copy_from_slice(&bytes[within]),
                None => buffer[whole].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.0.lock();
        Self::check(&content, offset, data.len());
        for (page, within, whole) in Self::parts(offset, data.len()) {
            let bytes = content.pages.entry(page);
            bytes.or_insert_with(|| vec![0; PAGE as usize].into())[within].copy_from_slice(&data[whole]);
        }
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut content = self.0.lock();
        let end = offset.checked_add(length);
        let end = end
            .filter(|end| *end <= content.length)
            .expect("a hole beyond the file's end");
        assert!(
            offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE),
            "holes are of whole pages"
        );
        let held: Vec<u64> = content
            .pages
            .range(offset / PAGE..end / PAGE)
            .map(|(page, _)| *page)
            .collect();
        for page in held {
            content.pages.remove(&page);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().length)
    }

    fn grow(&self, length: u64) -> io::Result<()> {
        // What file systems allow at most.
        if length > i64::MAX as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.lock().length = length;
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let content = self.0.lock();
        let next = content.pages.range(offset / PAGE..).next();
        Ok(next.map(|(page, _)| (page * PAGE).max(offset)))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.0.lock().pages.len() as u64 * PAGE)
    }
}

impl MemoryDisk {
    fn file(&self, path: &Path) -> io::Result<Arc<MemoryFile>> {
        let file = self.0.lock().get(path).cloned();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Opens the copy in a directory.
    pub(crate) fn open_copy(&self, directory: &Path) -> Result<(CopyStore, Opened), StoreError> {
        CopyStore::open_on(Arc::new(self.clone()), None, directory)
    }

    /// Makes a copy.
    pub(crate) fn create_copy(
        &self,
        directory: &Path,
        volume: VolumeId,
        blocks: u64,
        epoch: u64,
    ) -> Result<CopyStore, StoreError> {
        CopyStore::create_on(Arc::new(self.clone()), None, directory, volume, blocks, epoch)
    }

    /// The directories with copies.
    pub(crate) fn copies(&self) -> Vec<PathBuf> {
        let files = self.0.lock();
        let headers = files.keys().filter(|path| path.ends_with("header"));
        headers.filter_map(|path| Some(path.parent()?.to_owned())).collect()
    }

    /// Removes what is in a directory.
    pub(crate) fn remove(&self, directory: &Path) {
        self.0.lock().retain(|path, _| !path.starts_with(directory));
    }
}

impl Disk for MemoryDisk {
    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = Arc::new(MemoryFile::default());
        file.grow(length)?;
        self.0.lock().insert(path.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path)?)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.file(path)?;
        let mut bytes = vec![0; file.length()?.min(SMALL) as usize];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let file = MemoryFile::default();
        file.grow(content.len() as u64)?;
        file.write_at(content, 0)?;
        self.0.lock().insert(path.to_owned(), Arc::new(file));
        Ok(())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks of the copy that is damaged.
const BLOCKS: u64 = 2 * EXTENT_BLOCKS + 100;

/// A copy with something in it, closed or not.
fn made(clean: bool) -> Result<MemoryDisk, StoreError> {
    let disk = MemoryDisk::default();
    let store = disk.create_copy(Path::new("/copy"), VolumeId::from_bytes([7; 16]), BLOCKS, 3)?;
    for (block, byte) in [(0, 1), (5, 2), (EXTENT_BLOCKS, 3), (BLOCKS - 1, 4)] {
        let data = vec![byte; BLOCK_SIZE];
        store.write(3, &[(block, &data, &sums_of(&data))], true)?;
    }
    if clean {
        store.close()?;
    }
    Ok(disk)
}

/// The next number of so many bytes.
fn take<const N: usize>(input: &mut &[u8]) -> Option<u64> {
    let (bytes, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    let mut whole = [0; 8];
    whole[..N].copy_from_slice(bytes);
    Some(u64::from_le_bytes(whole))
}

/// Damages the files: bytes at places, the header and the activity slots made to match their checksums if it says so.
fn damage(disk: &MemoryDisk, input: &mut &[u8]) -> Option<()> {
    let file = |name: &str| disk.file(&Path::new("/copy").join(name)).ok();
    let count = take::<1>(input)? % 16;
    for _ in 0..count {
        let what = take::<1>(input)?;
        match what {
            // The header, whole and sealed: a field is another number.
            0 => {
                let header = Header {
                    epoch: take::<8>(input)?,
                    blocks: take::<8>(input)?,
                    clean: take::<1>(input)? % 2 == 0,
                    ..sample(0)
                };
                disk.replace(Path::new("/copy/header"), &header.encode()).ok()?;
            }
            // A slot of the activity file.
            1 => {
                let (slot, sequence) = (take::<1>(input)? % 2, take::<8>(input)?);
                let extents: Option<Vec<u64>> = (0..take::<1>(input)?).map(|_| take::<2>(input)).collect();
                let slot_bytes = activity::encode(sequence, &extents?);
                file("activity")?.write_at(&slot_bytes, slot * 8192).ok()?;
            }
            // Any byte of any file.
            2..=5 => {
                let file = file(["header", "activity", "sums", "data"][what as usize - 2])?;
                let (at, byte) = (take::<4>(input)?, take::<1>(input)?);
                let length = file.length().ok()?;
                if length > 0 {
                    file.write_at(&[byte as u8], at % length).ok()?;
                }
            }
            // A file is shorter, or longer.
            6 => {
                let name = ["header", "activity", "sums", "data"][take::<1>(input)? as usize % 4];
                file(name)?.grow(take::<8>(input)? >> 1).ok()?;
            }
            // Files as long as the header says: what a sparse file costs nothing to be.
            7 => {
                let blocks = disk.read(Path::new("/copy/header")).ok();
                let blocks = Header::decode(&blocks?).ok()?.blocks;
                file("data")?.grow(blocks.saturating_mul(BLOCK_SIZE as u64)).ok()?;
                file("sums")?.grow(blocks.saturating_mul(32)).ok()?;
            }
            _ => return None,
        }
    }
    Some(())
}

/// A copy whose files were damaged is opened, used, closed and opened again: it gives errors, and no bytes that do not match their sums.
pub(crate) fn copy(mut input: &[u8]) -> bool {
    let Some(clean) = take::<1>(&mut input) else {
        return false;
    };
    let disk = made(clean % 2 == 0).expect("the disk does not fail");
    if damage(&disk, &mut input).is_none() {
        return false;
    }
    let Ok((store, opened)) = disk.open_copy(Path::new("/copy")) else {
        return false;
    };
    assert!(opened.hot.iter().all(|extent| *extent < store.extents()));
    let blocks = store.blocks();
    let mut buffer = vec![0; 3 * BLOCK_SIZE];
    while let Some(what) = take::<1>(&mut input) {
        // Near the beginning, or anywhere.
        let near = |input: &mut &[u8]| if what < 128 { take::<2>(input) } else { take::<8>(input) };
        let (Some(block), Some(count)) = (near(&mut input), take::<1>(&mut input)) else {
            break;
        };
        let epoch = store.epoch();
        let _ = match what % 10 {
            0 => store.read(block, &mut buffer).map(|()| {
                let sums: Vec<Sum> = store.read_sums(block, 3).expect("they were just read");
                assert_eq!(sums_of(&buffer), sums);
            }),
            1 => {
                let data = vec![count as u8; 2 * BLOCK_SIZE];
                store.write(epoch, &[(block, &data, &sums_of(&data))], count % 2 == 0)
            }
            2 => store.discard(epoch, block, count << (count % 8)),
            3 => store.verify_extent(block).map(drop),
            4 => store.extent_hash(block).map(drop),
            5 => store
                .allocated_extents()
                .map(|extents| assert!(extents.iter().all(|e| *e < store.extents()))),
            6 => store.repair(epoch, block, &vec![1; BLOCK_SIZE]),
            7 => store.advance_epoch(block),
            8 => store.grow(block),
            _ => {
                let _ = store.is_hot(block, count);
                store.flush(epoch)
            }
        };
        assert!(store.blocks() >= blocks);
    }
    let closed = store.close().is_ok();
    drop(store);
    let again = disk.open_copy(Path::new("/copy"));
    assert!(
        again.is_ok() || !closed,
        "a copy that was closed in order can be opened"
    );
    true
}

pub(crate) fn copy_seeds() -> Vec<Vec<u8>> {
    // Nothing is damaged; a read, a write, a discard, a check, growth.
    let calls = [
        [0_u8, 0, 0, 0].as_slice(),
        &[1, 5, 0, 2],
        &[2, 0, 4, 3],
        &[3, 0, 0, 0],
        &[4, 1, 0, 0],
        &[5, 0, 0, 0],
        &[8, 0, 20, 0],
        &[9, 0, 0, 1],
    ]
    .concat();
    let header = [&[0][..], &9_u64.to_le_bytes(), &3000_u64.to_le_bytes(), &[1]].concat();
    vec![
        [&[0, 0], &calls[..]].concat(),
        [&[1, 0], &calls[..]].concat(),
        // A byte of the data, one of the sums, a slot of the activity file.
        [
            &[
                0, 3, 5, 1, 0, 0, 0, 9, 4, 1, 0, 0, 0, 9, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0,
            ],
            &calls[..],
        ]
        .concat(),
        // A larger one than the files are, and files as large.
        [&[1, 2], &header[..], &[7], &calls[..]].concat(),
    ]
}
