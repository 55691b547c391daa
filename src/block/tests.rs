//! A copy against a model: random operations, a crash after any step of the disk with any subset of unsynced sectors kept,
//! flipped bits, a full disk.

use super::device::{BLOCK_SIZE, EXTENT_BLOCKS};
use super::error::StoreError;
use super::header::Header;
use super::io::{Disk, DiskFile};
use super::store::{CopyStore, Opened};
use super::sums::sums_of;
use crate::volume::VolumeId;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SECTOR: u64 = 512;
const BLOCKS: u64 = 3 * EXTENT_BLOCKS + 100;

/// A file in memory, by sectors: what is on the platter, and what the page cache holds.
#[derive(Clone, Default)]
struct Content {
    length: u64,
    durable: BTreeMap<u64, Vec<u8>>,
    cached: BTreeMap<u64, Vec<u8>>,
    unsynced: BTreeSet<u64>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, Content>,
    /// Steps until the machine loses power; every later call fails.
    steps_left: Option<u64>,
    /// Writes until the disk is full.
    writes_left: Option<u64>,
}

/// A disk that can crash.
#[derive(Clone, Default)]
struct FaultDisk(Arc<Mutex<State>>);

struct FaultFile {
    disk: FaultDisk,
    path: PathBuf,
}

impl FaultDisk {
    fn step(state: &mut State) -> io::Result<()> {
        match &mut state.steps_left {
            Some(0) => Err(io::Error::other("power lost")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Power comes back: each unsynced sector kept or lost, as the random bits say.
    fn power_cycle(&self, mut random: u64) {
        let mut state = self.0.lock();
        state.steps_left = None;
        for content in state.files.values_mut() {
            for sector in std::mem::take(&mut content.unsynced) {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let kept = random >> 63 == 1;
                let value = if kept {
                    content.cached.get(&sector)
                } else {
                    content.durable.get(&sector)
                }
                .cloned();
                for side in [&mut content.durable, &mut content.cached] {
                    match &value {
                        Some(bytes) => side.insert(sector, bytes.clone()),
                        None => side.remove(&sector),
                    };
                }
            }
        }
    }

    fn flip(&self, file: &str, offset: u64) {
        let mut state = self.0.lock();
        let content = state.files.get_mut(Path::new("/copy").join(file).as_path()).unwrap();
        let sector = content
            .cached
            .entry(offset / SECTOR)
            .or_insert_with(|| vec![0; SECTOR as usize]);
        sector[(offset % SECTOR) as usize] ^= 0x10;
    }
}

impl Disk for FaultDisk {
    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        let content = Content {
            length,
            ..Content::default()
        };
        self.0.lock().files.insert(path.to_owned(), content);
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if !self.0.lock().files.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(FaultFile {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let length = self.open(path)?.length()?;
        let mut bytes = vec![0; length as usize];
        self.open(path)?.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        Self::step(&mut state)?;
        let mut content = Content {
            length: bytes.len() as u64,
            ..Content::default()
        };
        for (i, part) in bytes.chunks(SECTOR as usize).enumerate() {
            let mut sector = part.to_vec();
            sector.resize(SECTOR as usize, 0);
            content.durable.insert(i as u64, sector.clone());
            content.cached.insert(i as u64, sector);
        }
        state.files.insert(path.to_owned(), content);
        Ok(())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl FaultFile {
    fn with<T>(&self, act: impl FnOnce(&mut Content) -> T) -> T {
        act(self.disk.0.lock().files.get_mut(&self.path).unwrap())
    }
}

impl DiskFile for FaultFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|content| {
            buffer.fill(0);
            for (sector, bytes) in content
                .cached
                .range(offset / SECTOR..(offset + buffer.len() as u64).div_ceil(SECTOR))
            {
                let at = sector * SECTOR;
                let from = at.max(offset);
                let to = (at + SECTOR).min(offset + buffer.len() as u64);
                let part = &bytes[(from - at) as usize..(to - at) as usize];
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        });
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let torn = FaultDisk::step(&mut state);
        if let Some(left) = &mut state.writes_left {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        let content = state.files.get_mut(&self.path).unwrap();
        // A write under which the power goes may have put any part of its sectors into the cache: here, the first half.
        let length = if torn.is_err() { data.len() / 2 } else { data.len() };
        let mut at = offset;
        let end = offset + length as u64;
        while at < end {
            let sector = content
                .cached
                .entry(at / SECTOR)
                .or_insert_with(|| vec![0; SECTOR as usize]);
            let to = end.min((at / SECTOR + 1) * SECTOR);
            let part = &data[(at - offset) as usize..(to - offset) as usize];
            sector[(at % SECTOR) as usize..][..part.len()].copy_from_slice(part);
            content.unsynced.insert(at / SECTOR);
            at = to;
        }
        torn
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        FaultDisk::step(&mut self.disk.0.lock())?;
        self.with(|content| {
            for sector in offset / SECTOR..(offset + length) / SECTOR {
                content.cached.remove(&sector);
                content.unsynced.insert(sector);
            }
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        FaultDisk::step(&mut self.disk.0.lock())?;
        self.with(|content| {
            for sector in std::mem::take(&mut content.unsynced) {
                match content.cached.get(&sector).cloned() {
                    Some(bytes) => content.durable.insert(sector, bytes),
                    None => content.durable.remove(&sector),
                };
            }
        });
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.with(|content| content.length))
    }

    fn grow(&self, length: u64) -> io::Result<()> {
        self.with(|content| content.length = length);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.with(|content| {
            content
                .cached
                .range(offset / SECTOR..)
                .next()
                .map(|(s, _)| (s * SECTOR).max(offset))
        }))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.with(|content| content.cached.len() as u64 * SECTOR))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        block: u64,
        count: u64,
        fill: u8,
        flush: bool,
    },
    Discard {
        block: u64,
        count: u64,
    },
    Flush,
    Epoch,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Blocks cluster at extents' edges, so that operations overlap and cross.
    let block = prop_oneof![
        0..8_u64,
        EXTENT_BLOCKS - 4..EXTENT_BLOCKS + 4,
        3 * EXTENT_BLOCKS..BLOCKS - 4
    ];
    let write = (block.clone(), 1..4_u64, 0..4_u8, any::<bool>());
    let step = prop_oneof![
        6 => write.prop_map(|(block, count, fill, flush)| Step::Write { block, count, fill, flush }),
        2 => (block, prop_oneof![Just(1_u64), Just(3), Just(EXTENT_BLOCKS)])
            .prop_map(|(block, count)| Step::Discard { block, count: count.min(BLOCKS - block) }),
        2 => Just(Step::Flush),
        1 => Just(Step::Epoch),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

fn create(disk: &FaultDisk) -> CopyStore {
    let volume = VolumeId::from_bytes([1; 16]);
    CopyStore::create_on(Arc::new(disk.clone()), None, Path::new("/copy"), volume, BLOCKS, 1).unwrap()
}

fn open(disk: &FaultDisk) -> (CopyStore, Opened) {
    CopyStore::open_on(Arc::new(disk.clone()), None, Path::new("/copy")).unwrap()
}

/// What each block may hold: the durable value, and values written since. By block, the fill bytes; 0 is zeros.
#[derive(Default)]
struct Model {
    possible: BTreeMap<u64, Vec<u8>>,
    epoch: u64,
}

impl Model {
    fn set(&mut self, block: u64, count: u64, fill: u8) {
        for block in block..block + count {
            self.possible.entry(block).or_insert_with(|| vec![0]).push(fill);
        }
    }

    fn flushed(&mut self) {
        for values in self.possible.values_mut() {
            values.drain(..values.len() - 1);
        }
    }
}

/// Runs one step; an error means that the power went.
fn apply(store: &mut CopyStore, disk: &FaultDisk, model: &mut Model, step: &Step) -> Result<(), StoreError> {
    match *step {
        Step::Write {
            block,
            count,
            fill,
            flush,
        } => {
            let data = vec![fill; count as usize * BLOCK_SIZE];
            model.set(block, count, fill);
            store.write(store.epoch(), &[(block, &data, &sums_of(&data))], flush)?;
            if flush {
                model.flushed();
            }
        }
        Step::Discard { block, count } => {
            model.set(block, count, 0);
            store.discard(store.epoch(), block, count)?;
        }
        Step::Flush => {
            store.flush(store.epoch())?;
            model.flushed();
        }
        Step::Epoch => {
            store.advance_epoch(store.epoch() + 1)?;
            model.epoch = store.epoch();
        }
        Step::Reopen => {
            store.close()?;
            model.flushed();
            *store = CopyStore::open_on(Arc::new(disk.clone()), None, Path::new("/copy"))?.0;
        }
    }
    Ok(())
}

/// Whole blocks hold one of the values; with `torn`, sectors of a block may come from different ones.
fn check(store: &CopyStore, model: &Model, torn: bool) {
    let mut buffer = vec![0; BLOCK_SIZE];
    for (block, values) in &model.possible {
        store.read(*block, &mut buffer).unwrap();
        if torn {
            for sector in buffer.chunks(SECTOR as usize) {
                assert!(
                    values.contains(&sector[0]) && sector.iter().all(|b| *b == sector[0]),
                    "block {block}"
                );
            }
        } else {
            assert!(buffer.iter().all(|b| b == values.last().unwrap()), "block {block}");
        }
    }
    let extents: BTreeSet<u64> = model.possible.keys().map(|block| block / EXTENT_BLOCKS).collect();
    for extent in extents {
        assert_eq!(
            store.verify_extent(extent).unwrap(),
            Vec::<u64>::new(),
            "extent {extent}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_behaves_as_an_array_of_blocks(steps in steps()) {
        let disk = FaultDisk::default();
        let (mut store, mut model) = (create(&disk), Model::default());
        for step in &steps {
            apply(&mut store, &disk, &mut model, step).unwrap();
        }
        check(&store, &model, false);
    }

    #[test]
    fn after_a_power_loss_at_any_step_flushed_blocks_are_there_and_every_block_verifies(
        steps in steps(), at in 0..120_u64, random: u64,
    ) {
        let disk = FaultDisk::default();
        let (mut store, mut model) = (create(&disk), Model { epoch: 1, ..Model::default() });
        disk.0.lock().steps_left = Some(at);
        for step in &steps {
            if apply(&mut store, &disk, &mut model, step).is_err() {
                break;
            }
        }
        drop(store);
        disk.power_cycle(random);
        let (store, _) = open(&disk);
        prop_assert!(store.epoch() >= model.epoch);
        check(&store, &model, true);
    }
}

fn written(disk: &FaultDisk) -> CopyStore {
    let store = create(disk);
    let data = vec![7; 8 * BLOCK_SIZE];
    store.write(1, &[(5, &data, &sums_of(&data))], true).unwrap();
    store
}

#[test]
fn a_flipped_bit_in_data_or_sums_is_never_read_as_data() {
    for (file, offset) in [("data", 6 * BLOCK_SIZE as u64 + 77), ("sums", 6 * 32 + 3)] {
        let disk = FaultDisk::default();
        let store = written(&disk);
        disk.flip(file, offset);
        let mut buffer = vec![0; 8 * BLOCK_SIZE];
        assert!(
            matches!(store.read(5, &mut buffer), Err(StoreError::Corrupt { block: 6 })),
            "{file}"
        );
        assert_eq!(store.verify_extent(0).unwrap(), [6]);
        store.repair(1, 6, &[7; BLOCK_SIZE]).unwrap();
        store.read(5, &mut buffer).unwrap();
        assert_eq!(buffer, vec![7; 8 * BLOCK_SIZE]);
    }
}

#[test]
fn a_small_first_write_fills_its_chunk_and_the_next_ones_overwrite() {
    let disk = FaultDisk::default();
    let store = create(&disk);
    let data = vec![9; BLOCK_SIZE];
    let mut sizes = Vec::new();
    for block in [33, 34, 47, 48] {
        store.write(1, &[(block, &data, &sums_of(&data))], false).unwrap();
        sizes.push(disk.open(Path::new("/copy/data")).unwrap().allocated().unwrap() / BLOCK_SIZE as u64);
    }
    assert_eq!(sizes, [16, 16, 16, 32]);
    let mut buffer = vec![1; 16 * BLOCK_SIZE];
    store.read(32, &mut buffer).unwrap();
    for (at, block) in buffer.chunks(BLOCK_SIZE).enumerate() {
        let fill = if [1, 2, 15].contains(&at) { 9 } else { 0 };
        assert!(block.iter().all(|byte| *byte == fill), "block {}", 32 + at);
    }
}

#[test]
fn lost_sums_do_not_make_a_write_erase_what_lies_beside_it() {
    let disk = FaultDisk::default();
    let store = written(&disk);
    let sums = disk.open(Path::new("/copy/sums")).unwrap();
    sums.write_at(&[0; 16 * 32], 0).unwrap();
    let data = vec![9; BLOCK_SIZE];
    store.write(1, &[(3, &data, &sums_of(&data))], false).unwrap();
    let mut buffer = vec![0; BLOCK_SIZE];
    assert!(matches!(
        store.read(6, &mut buffer),
        Err(StoreError::Corrupt { block: 6 })
    ));
}

#[test]
fn a_full_disk_fails_the_copy_with_its_reason() {
    let disk = FaultDisk::default();
    let store = written(&disk);
    disk.0.lock().writes_left = Some(0);
    let data = vec![9; BLOCK_SIZE];
    assert!(matches!(
        store.write(1, &[(0, &data, &sums_of(&data))], false),
        Err(StoreError::NoSpace(_))
    ));
    disk.0.lock().writes_left = None;
    assert!(matches!(
        store.write(1, &[(0, &data, &sums_of(&data))], false),
        Err(StoreError::NoSpace(_))
    ));
    assert!(store.failed().unwrap().contains("data"));
}

#[test]
fn writes_are_fenced_by_epoch() {
    let store = written(&FaultDisk::default());
    store.advance_epoch(4).unwrap();
    let data = vec![1; BLOCK_SIZE];
    let sums = sums_of(&data);
    assert!(matches!(
        store.write(3, &[(0, &data, &sums)], false),
        Err(StoreError::StaleEpoch { have: 4 })
    ));
    assert!(matches!(
        store.write(5, &[(0, &data, &sums)], false),
        Err(StoreError::EpochUnknown { have: 4, asked: 5 })
    ));
    assert!(matches!(store.discard(3, 0, 1), Err(StoreError::StaleEpoch { .. })));
    assert!(matches!(store.flush(3), Err(StoreError::StaleEpoch { .. })));
    assert!(matches!(
        store.advance_epoch(3),
        Err(StoreError::StaleEpoch { have: 4 })
    ));
    store.write(4, &[(0, &data, &sums)], true).unwrap();
}

#[test]
fn more_extents_than_the_log_holds_can_be_written() {
    let disk = FaultDisk::default();
    let blocks = 600 * EXTENT_BLOCKS;
    let volume = VolumeId::from_bytes([1; 16]);
    let store = CopyStore::create_on(Arc::new(disk.clone()), None, Path::new("/copy"), volume, blocks, 1).unwrap();
    let data = vec![1; BLOCK_SIZE];
    for extent in 0..600 {
        store
            .write(1, &[(extent * EXTENT_BLOCKS, &data, &sums_of(&data))], false)
            .unwrap();
    }
    assert!(store.hot_extents().len() <= super::activity::HOT_LIMIT);
    assert!(store.hot_extents().contains(&599));
    assert_eq!(store.allocated_extents().unwrap(), (0..600).collect::<Vec<_>>());
    store.discard(1, 0, blocks).unwrap();
    assert_eq!(store.allocated_extents().unwrap(), Vec::<u64>::new());
    assert_eq!(store.extent_hash(3).unwrap(), [0; 32]);
}

#[test]
fn a_copy_in_a_real_directory_opens_once_and_keeps_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("copy");
    let volume = VolumeId::random();
    let store = CopyStore::create(&path, volume, BLOCKS, 3).unwrap();
    assert!(matches!(CopyStore::open(&path), Err(StoreError::Locked(_))));
    assert!(matches!(
        CopyStore::create(&path, volume, BLOCKS, 3),
        Err(StoreError::Locked(_))
    ));
    let data = vec![5; 300 * BLOCK_SIZE];
    store.write(3, &[(900, &data, &sums_of(&data))], true).unwrap();
    store.close().unwrap();
    drop(store);
    assert!(matches!(
        CopyStore::create(&path, volume, BLOCKS, 3),
        Err(StoreError::Exists(_))
    ));
    let (store, opened) = CopyStore::open(&path).unwrap();
    assert_eq!(
        (opened.clean, opened.same_boot, store.volume(), store.epoch()),
        (true, true, volume, 3)
    );
    assert_eq!(opened.hot, [0, 1], "also after a clean close");
    let mut buffer = vec![0; 300 * BLOCK_SIZE];
    store.read(900, &mut buffer).unwrap();
    assert_eq!(buffer, data);
    assert_eq!(store.allocated_extents().unwrap(), [0, 1]);
    store.discard(3, 0, BLOCKS).unwrap();
    // The last extent is a part of one: its sums are zeroed, not punched.
    assert_eq!(store.allocated_extents().unwrap(), [3]);
    assert_eq!(store.extent_hash(3).unwrap(), [0; 32]);
    drop(store);
    let (store, opened) = CopyStore::open(&path).unwrap();
    assert!(!opened.clean);
    assert_eq!(opened.hot, [0, 1, 2, 3]);
    store.grow(2 * BLOCKS).unwrap();
    assert_eq!(store.blocks(), 2 * BLOCKS);
    drop(store);
    std::fs::File::options()
        .write(true)
        .open(path.join("sums"))
        .unwrap()
        .set_len(100)
        .unwrap();
    let error = CopyStore::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("sums is damaged"), "{error}");
}

#[test]
fn a_copy_that_may_have_lost_writes_is_found_so_until_somebody_vouches_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("copy");
    let volume = VolumeId::from_bytes([4; 16]);
    drop(CopyStore::create(&path, volume, BLOCKS, 3).unwrap());
    let header = path.join("header");
    let stopped = |path: &Path| {
        let mut now = Header::decode(&std::fs::read(path).unwrap()).unwrap();
        now.boot = [7; 16];
        std::fs::write(path, now.encode()).unwrap();
    };
    let found = || {
        let (store, opened) = CopyStore::open(&path).unwrap();
        (store, opened.clean, opened.same_boot)
    };
    stopped(&header);
    let (store, clean, same_boot) = found();
    assert_eq!((clean, same_boot), (false, false));
    // The process is killed, and one is closed in order: nothing got better by that.
    drop(store);
    let (store, clean, same_boot) = found();
    assert_eq!((clean, same_boot), (false, false));
    store.close().unwrap();
    drop(store);
    let (store, clean, same_boot) = found();
    assert_eq!((clean, same_boot), (false, false));
    store.vouch().unwrap();
    drop(store);
    let (store, clean, same_boot) = found();
    assert_eq!((clean, same_boot), (false, true));
    store.close().unwrap();
    drop(store);
    // The machine stops after everything was closed.
    stopped(&header);
    let (_store, clean, _) = found();
    assert!(clean);
}
