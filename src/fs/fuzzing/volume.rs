//! A small file system whose metadata was damaged is checked, opened, used and closed; see [`crate::fuzzing`].
//!
//! It must give errors: no panic, no waiting for ever, nothing read or written outside the device, no file data written over metadata, and
//! nothing discarded that is not the metadata database's or file data.

use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use crate::fs::layout::{DATA_START, META_START, Superblock};
use crate::fs::log;
use crate::fs::types::{Caller, Options, SetAttr};
use crate::fs::{FileSystem, FsError, ROOT, backend, device_blocks};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Bytes of file data: more than the allocation window takes.
const CAPACITY: u64 = 80 << 20;
/// Every byte of the file data that is written to the damaged file system.
const MARK: u8 = 0xa5;

/// A device in memory, sparse, which never fails. Calls outside of it are bugs of the caller.
#[derive(Default)]
pub(in crate::fs) struct Device {
    content: Mutex<BTreeMap<u64, Bytes>>,
    /// Discards are watched.
    watched: bool,
}

impl Device {
    /// Puts a block, or the beginning of one.
    pub(in crate::fs) fn put(&self, block: u64, bytes: &[u8]) {
        let mut whole = bytes.to_vec();
        whole.resize(BLOCK_SIZE, 0);
        self.content.lock().insert(block, whole.into());
    }

    fn check(&self, block: u64, count: u64) {
        let end = block.checked_add(count);
        assert!(
            end.is_some_and(|end| end <= self.blocks()),
            "blocks {block}+{count} are outside the device"
        );
    }
}

impl BlockDevice for Device {
    fn blocks(&self) -> u64 {
        device_blocks(CAPACITY)
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.check(block, (buffer.len() / BLOCK_SIZE) as u64);
        let content = self.content.lock();
        for (at, out) in (block..).zip(buffer.chunks_exact_mut(BLOCK_SIZE)) {
            match content.get(&at) {
                Some(data) => out.copy_from_slice(data),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, writes: &[Write], _: bool) -> Result<(), DeviceError> {
        for write in writes {
            assert!(!write.data.is_empty() && write.data.len().is_multiple_of(BLOCK_SIZE));
            self.check(write.block, (write.data.len() / BLOCK_SIZE) as u64);
            for (at, from) in (write.block..).zip((0..write.data.len()).step_by(BLOCK_SIZE)) {
                let data = write.data.slice(from..from + BLOCK_SIZE);
                let marked = data.iter().all(|byte| *byte == MARK);
                assert!(!marked || at >= DATA_START, "file data was written to block {at}");
                self.content.lock().insert(at, data);
            }
        }
        Ok(())
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.check(block, count);
        assert!(
            !self.watched || block >= META_START || count == 0,
            "block {block} was discarded"
        );
        assert!(
            block >= DATA_START || block + count <= DATA_START || !self.watched,
            "{block}+{count} were discarded"
        );
        let mut content = self.content.lock();
        let held: Vec<u64> = content.range(block..block + count).map(|(at, _)| *at).collect();
        for at in held {
            content.remove(&at);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// Commits only when asked to; little memory.
fn options() -> Options {
    Options {
        commit_interval: Duration::from_secs(3600),
        metadata_cache_bytes: 1 << 20,
        ..Options::default()
    }
}

type Image = BTreeMap<u64, Bytes>;

/// A file system with a bit of everything, as it is when it was closed, and as it is when its daemon died.
static IMAGES: LazyLock<[Image; 2]> = LazyLock::new(|| {
    [true, false].map(|closed| {
        let device = Arc::new(Device::default());
        fill(&device, closed).expect("the device does not fail");
        let content = device.content.lock();
        content.clone()
    })
});

fn fill(device: &Arc<Device>, close: bool) -> Result<(), FsError> {
    let plain: Arc<dyn BlockDevice> = device.clone();
    FileSystem::format(&plain, CAPACITY)?;
    // Names are where their hash says: the same in every process.
    Superblock::new(CAPACITY, [3; 16]).write(&**device)?;
    let fs = FileSystem::open(plain, options())?;
    let block = [1; BLOCK_SIZE];
    let file = fs.create(&CALLER, ROOT, b"file", 0o644)?.ino;
    fs.write(file, 0, &[1; 3 * BLOCK_SIZE], false)?;
    let sparse = fs.create(&CALLER, ROOT, b"sparse", 0o644)?.ino;
    for at in 0..6 {
        fs.write(sparse, at * 3 * BLOCK_SIZE as u64, &block, false)?;
    }
    let gone = fs.create(&CALLER, ROOT, b"gone", 0o644)?.ino;
    fs.write(gone, 0, &block, false)?;
    fs.link(file, ROOT, b"also")?;
    let directory = fs.mkdir(&CALLER, ROOT, b"directory", 0o755)?.ino;
    let below = fs.mkdir(&CALLER, directory, b"below", 0o755)?.ino;
    fs.mkdir(&CALLER, below, b"deep", 0o755)?;
    fs.setxattr(&CALLER, file, b"user.a", b"1", 0)?;
    fs.symlink(&CALLER, directory, b"link", b"../file")?;
    fs.mknod(&CALLER, directory, b"pipe", libc::S_IFIFO | 0o644, 0)?;
    // It stays while it is open.
    fs.open_file(gone, false)?;
    fs.unlink(ROOT, b"gone")?;
    fs.sync()?;
    if close {
        fs.close()?;
    }
    Ok(())
}

/// The next number of so many bytes.
fn take<const N: usize>(input: &mut &[u8]) -> Option<u64> {
    let (bytes, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    let mut whole = [0; 8];
    whole[..N].copy_from_slice(bytes);
    Some(u64::from_le_bytes(whole))
}

fn take_bytes<'a>(input: &mut &'a [u8], length: u64) -> &'a [u8] {
    let (bytes, rest) = input.split_at(input.len().min(length as usize));
    *input = rest;
    bytes
}

fn device_of(image: &Image) -> Arc<Device> {
    Arc::new(Device {
        content: Mutex::new(image.clone()),
        watched: true,
    })
}

/// Bytes of blocks are overwritten; the checksums of superblocks and length records are made right, if it says so.
pub(crate) fn blocks(mut input: &[u8]) -> bool {
    let Some(first) = take::<1>(&mut input) else {
        return false;
    };
    let image = &IMAGES[first as usize % 2];
    let device = device_of(image);
    for _ in 0..first / 2 % 16 {
        let (Some(which), Some(at), Some(length)) =
            (take::<2>(&mut input), take::<2>(&mut input), take::<1>(&mut input))
        else {
            return false;
        };
        // A block that was written: most of them are the database's.
        let Some(block) = image.keys().nth(which as usize % image.len()) else {
            return false;
        };
        let mut content = image[block].to_vec();
        for (place, byte) in content[at as usize % BLOCK_SIZE..]
            .iter_mut()
            .zip(take_bytes(&mut input, length % 32))
        {
            *place = *byte;
        }
        match (length >= 128, *block) {
            (true, 0 | 8) => Superblock::seal(&mut content),
            (true, 16 | 17) => {
                let sum = blake3::hash(&content[..24]);
                content[24..56].copy_from_slice(sum.as_bytes());
            }
            _ => {}
        }
        device.put(*block, &content);
    }
    run(&device, input)
}

pub(crate) fn blocks_seeds() -> Vec<Vec<u8>> {
    let image = &IMAGES[0];
    let place = |block: u64| image.keys().position(|at| *at == block).unwrap_or(0) as u16;
    let damage = |block: u64, at: u16, bytes: &[u8]| {
        let mut damage = place(block).to_le_bytes().to_vec();
        damage.extend(at.to_le_bytes());
        damage.push(128 + bytes.len() as u8);
        damage.extend(bytes);
        damage
    };
    let grown = backend::encode(9, 1 << 22);
    vec![
        [&[0][..], &CALLS].concat(),
        [&[1][..], &CALLS].concat(),
        [&[2][..], &damage(0, 24, &[0; 8]), &CALLS].concat(),
        [&[2][..], &damage(16, 8, &grown[8..24]), &CALLS].concat(),
        [&[2][..], &damage(META_START, 64, &[7; 8]), &CALLS].concat(),
    ]
}

/// Rows are other rows, as a record of the intent log puts them.
pub(crate) fn rows(mut input: &[u8]) -> bool {
    let Some(first) = take::<1>(&mut input) else {
        return false;
    };
    let device = device_of(&IMAGES[0]);
    let rows = &*ROWS;
    let mut changes = Vec::new();
    for _ in 0..first % 16 {
        let (Some(what), Some(which)) = (take::<1>(&mut input), take::<1>(&mut input)) else {
            return false;
        };
        let (mut key, mut value) = rows[which as usize % rows.len()].clone();
        match what % 4 {
            // Some bytes of a row's value, or of its key.
            0 | 1 => {
                let (Some(at), Some(length)) = (take::<1>(&mut input), take::<1>(&mut input)) else {
                    return false;
                };
                let bytes = take_bytes(&mut input, length % 32);
                let whole = if what % 4 == 0 { &mut value } else { &mut key };
                for (place, byte) in whole.iter_mut().skip(at as usize).zip(bytes) {
                    *place = *byte;
                }
                changes.push((key, Some(value)));
            }
            // It is gone.
            2 => changes.push((key, None)),
            // It has another value altogether.
            _ => {
                let Some(length) = take::<1>(&mut input) else {
                    return false;
                };
                changes.push((key, Some(take_bytes(&mut input, length).to_vec())));
            }
        }
    }
    // The database names the generation that the log goes on with.
    let generation = rows.iter().find(|(key, _)| key == crate::fs::rows::GENERATION);
    let generation = generation
        .and_then(|(_, value)| crate::fs::rows::number(value))
        .unwrap_or(0);
    let record = log::encode(generation, 0, &changes);
    for (block, part) in (log::half(generation)..).zip(record.chunks(BLOCK_SIZE)) {
        device.put(block, part);
    }
    run(&device, input)
}

/// The rows of the file system that was closed.
static ROWS: LazyLock<Vec<(Vec<u8>, Vec<u8>)>> = LazyLock::new(|| {
    let device = device_of(&IMAGES[0]);
    super::super::check::rows_of(device).expect("nothing is damaged yet")
});

pub(crate) fn rows_seeds() -> Vec<Vec<u8>> {
    let place = |wanted: &[u8]| ROWS.iter().position(|(key, _)| key.starts_with(wanted)).unwrap_or(0) as u8;
    let huge = u64::MAX.to_le_bytes();
    // One row of each kind: some bytes of it are others; gone; another.
    let mut seeds = vec![[&[0][..], &CALLS].concat()];
    for kind in [
        &b"I"[..],
        b"D",
        b"E",
        b"F",
        b"P",
        b"O",
        b"X",
        b"Mcounters",
        b"Mgeneration",
        b"Mrowbytes",
    ] {
        let at = place(kind);
        seeds.push([&[1, 0, at, 0, 8][..], &huge, &CALLS].concat());
        seeds.push([&[1, 2, at][..], &CALLS].concat());
        seeds.push([&[1, 3, at, 8][..], &huge, &CALLS].concat());
    }
    seeds
}

/// Calls that use everything once.
const CALLS: [u8; 32] = {
    let mut calls = [0; 32];
    let mut at = 0;
    while at < 16 {
        calls[2 * at] = at as u8;
        calls[2 * at + 1] = 2 + at as u8 % 8;
        at += 1;
    }
    calls
};

const NAMES: [&[u8]; 8] = [
    b"file",
    b"sparse",
    b"also",
    b"directory",
    b"below",
    b"link",
    b"deep",
    b"new",
];

/// Checks it, opens it, does what the input says, closes it, and does so again.
fn run(device: &Arc<Device>, input: &[u8]) -> bool {
    let plain: Arc<dyn BlockDevice> = device.clone();
    let before = device.content.lock().clone();
    let checked = FileSystem::check_device(&plain);
    assert!(*device.content.lock() == before, "a check writes nothing");
    let sound = matches!(&checked, Ok(Some(report)) if report.problems.is_empty());
    let Ok(fs) = FileSystem::open(plain.clone(), options()) else {
        assert!(
            !sound,
            "a file system in which the check finds nothing wrong can be opened"
        );
        return false;
    };
    let _ = fs.check();
    let data = [MARK; 3 * BLOCK_SIZE];
    let mut calls = input.chunks_exact(2);
    for call in calls.by_ref().take(64) {
        // A few inodes are there; the others are not.
        let (what, ino) = (call[0] % 20, u64::from(call[1] % 16) + 1);
        let (name, other) = (
            NAMES[usize::from(call[1] / 16) % 8],
            NAMES[usize::from(call[0] / 32) % 8],
        );
        let at = u64::from(call[0] / 20) * 3 * 2048;
        let mut entries = 0;
        let mut sink = |_: &crate::fs::DirEntry<'_>| {
            entries += 1;
            entries < 1000
        };
        let _ = match what {
            0 => fs.lookup(ino, name).map(drop),
            1 => fs.readdir(ino, 0, &mut sink),
            2 => fs.getattr(ino).map(drop),
            3 => fs.read(ino, at, 5 * BLOCK_SIZE as u32).map(drop),
            4 => fs.write(ino, at, &data, false).map(drop),
            5 => fs.create(&CALLER, ino, name, 0o644).map(drop),
            6 => fs.mkdir(&CALLER, ino, name, 0o755).map(drop),
            7 => fs.unlink(ino, name),
            8 => fs.rmdir(ino, name),
            9 => fs.rename(ino, name, ino % 7 + 1, other, 0),
            10 => fs.link(ino, ino % 7 + 1, name).map(drop),
            11 => fs.symlink(&CALLER, ino, name, b"there").map(drop),
            12 => fs.readlink(ino).map(drop),
            13 => {
                let set = SetAttr {
                    size: Some(at),
                    ..SetAttr::default()
                };
                fs.setattr(ino, &set).map(drop)
            }
            14 => fs
                .setxattr(&CALLER, ino, b"user.b", b"2", 0)
                .and_then(|()| fs.listxattr(ino).map(drop)),
            15 => fs.fsync(ino, false).and_then(|()| fs.statfs().map(drop)),
            16 => fs.fallocate(ino, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, at, 9000),
            17 => fs.fallocate(ino, 0, at, 90000),
            18 => fs.lseek(ino, at, crate::fs::Seek::Hole).map(drop),
            _ => {
                let opened = fs.open_file(ino, call[1] >= 128);
                fs.release(ino);
                opened
            }
        };
    }
    let _ = fs.sync();
    let _ = fs.check();
    let _ = fs.close();
    drop(fs);
    let _ = FileSystem::check_device(&plain);
    if let Ok(fs) = FileSystem::open(plain, options()) {
        let _ = fs.close();
    }
    true
}
