//! A walk over all metadata that finds what must not be: blocks with two owners or none, wrong link counts, names without inodes,
//! inodes without names, rows that cannot be read.
//!
//! A mounted file system is walked as it was at one moment, while it goes on being used ([`FileSystem::check`]). One that nobody has mounted is opened
//! for the walk as a mount would open it, the intent log's rows put over the database's, but what that writes stays in memory
//! ([`FileSystem::check_device`]): a check changes nothing. Damage is reported, whatever it is; redb, which trusts its pages, may even
//! panic on damaged ones.
//!
//! One pass is made, in the order of the keys: names (`D`), extents (`E`), free runs (`F`), inodes (`I`), orphans (`O`), freed runs (`P`), attributes
//! (`X`). So an inode is judged by what the rows before it told, and only that is kept: some 100 bytes an inode.

use super::backend::{Control, MetaArea, Phase};
use super::dir::{PROBE, slot};
use super::layout::Superblock;
use super::overlay::Overlay;
use super::rows::{
    COUNTERS, Content, Counters, DATA_BLOCKS, Dirent, Extent, GENERATION, INLINE_EXTENTS, Inode, ROW_BYTES, extent_of,
    inode_key, key_number, number,
};
use super::store::{Disk, Store};
use super::{DATA_START, FILE_MAX, FileKind, FileSystem, FsError, Ino, ROOT, Rows, hash_key};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Problems that are listed; the rest is counted. A damaged file system may have as many as rows.
const LISTED: usize = 1000;
/// Memory for the metadata's cache of a file system that is opened for a check, in bytes.
const CACHE_BYTES: usize = 32 << 20;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CheckReport {
    /// Inodes seen.
    pub inodes: u64,
    /// Blocks in files.
    pub used_blocks: u64,
    /// Blocks for files, used or not.
    pub blocks: u64,
    /// What is wrong, in words; empty if nothing.
    pub problems: Vec<String>,
    /// Problems that are not listed, since there are too many.
    pub unlisted: u64,
}

impl CheckReport {
    fn problem(&mut self, text: String) {
        if self.problems.len() < LISTED {
            self.problems.push(text);
        } else {
            self.unlisted += 1;
        }
    }
}

/// Whose a run of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Inode(Ino),
    Free,
    Pending,
    Window,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inode(ino) => write!(f, "inode {ino}"),
            Self::Free => f.write_str("the free space"),
            Self::Pending => f.write_str("the space that is freed and not yet discarded"),
            Self::Window => f.write_str("the allocation window"),
        }
    }
}

/// Blocks in words; `end` is the first one after them.
fn blocks(start: u64, end: u64) -> String {
    match end.saturating_sub(start) {
        0 | 1 => format!("block {start}"),
        _ => format!("blocks {start} to {}", end - 1),
    }
}

/// A name in words.
fn quoted(name: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(name))
}

/// What the rows before an inode's own tell of it.
#[derive(Default)]
struct Told {
    names: u32,
    /// The types that its names give it, a bit each.
    kinds: u16,
    /// The directory of its last name.
    parent: Ino,
    /// Names in it, and those of directories.
    children: u64,
    subdirectories: u32,
    /// Blocks in extent rows.
    row_blocks: Option<u64>,
}

struct Walk {
    hash_key: [u8; 32],
    counters: Counters,
    /// The first block after the data area.
    end: u64,
    told: HashMap<Ino, Told>,
    /// Names in the slots just before: directory and name.
    recent: VecDeque<(Ino, Vec<u8>)>,
    /// The last extent row: inode and end in the file.
    extent_end: (Ino, u64),
    /// Inodes that must be orphans.
    unnamed: HashSet<Ino>,
    /// Directories and their parents.
    parents: BTreeMap<Ino, Ino>,
    /// Inodes with attributes.
    with_attributes: Vec<Ino>,
    /// Runs of the data area: start, end, whose.
    runs: Vec<(u64, u64, Owner)>,
    free: u64,
    report: CheckReport,
}

impl Walk {
    fn new(hash_key: [u8; 32], counters: Counters, data_blocks: u64) -> Self {
        Self {
            hash_key,
            counters,
            end: DATA_START.saturating_add(data_blocks),
            told: HashMap::new(),
            recent: VecDeque::new(),
            extent_end: (0, 0),
            unnamed: HashSet::new(),
            parents: BTreeMap::new(),
            with_attributes: Vec::new(),
            runs: Vec::new(),
            free: 0,
            report: CheckReport {
                blocks: data_blocks,
                ..CheckReport::default()
            },
        }
    }

    fn problem(&mut self, text: String) {
        self.report.problem(text);
    }

    fn run(&mut self, start: u64, length: u64, owner: Owner) {
        let end = start.saturating_add(length);
        if length == 0 {
            self.problem(format!("{owner} has a run of no blocks at {start}"));
        } else if start < DATA_START || end > self.end {
            self.problem(format!("{} of {owner} are outside the data area", blocks(start, end)));
        } else {
            self.runs.push((start, end, owner));
        }
    }

    /// An extent of a file that has `before` blocks before it; where it ends in the file.
    fn extent(&mut self, ino: Ino, extent: &Extent, before: u64) -> u64 {
        self.report.used_blocks = self.report.used_blocks.saturating_add(extent.length);
        let end = extent.logical.saturating_add(extent.length);
        if extent.logical < before {
            self.problem(format!(
                "inode {ino} has {} of the file twice, or out of order",
                blocks(extent.logical, before.min(end))
            ));
        }
        if end > FILE_MAX / BLOCK_SIZE as u64 {
            self.problem(format!("inode {ino} has an extent beyond the largest file"));
        }
        self.run(extent.physical, extent.length, Owner::Inode(ino));
        end
    }

    fn row(&mut self, key: &[u8], value: &[u8]) {
        let first = key_number(key, 0);
        let plain = key.len() == 9;
        let known = match (key.first(), first) {
            (Some(b'D'), Some(parent)) if key.len() == 17 => key_number(key, 1)
                .zip(Dirent::decode(value))
                .map(|(at, entry)| self.name(parent, at, entry)),
            (Some(b'E'), Some(ino)) if key.len() == 17 => {
                extent_of(key, value).map(|extent| self.extent_row(ino, &extent))
            }
            (Some(b'F'), Some(start)) if plain => number(value).map(|length| {
                self.free = self.free.saturating_add(length);
                self.run(start, length, Owner::Free);
            }),
            (Some(b'P'), Some(start)) if plain => number(value).map(|length| self.run(start, length, Owner::Pending)),
            (Some(b'I'), Some(ino)) if plain => Inode::decode(value).map(|inode| self.inode(ino, &inode)),
            (Some(b'O'), Some(ino)) if plain => {
                if !self.unnamed.remove(&ino) {
                    self.problem(format!(
                        "inode {ino} is marked as an orphan, and has names or is not there"
                    ));
                }
                Some(())
            }
            (Some(b'X'), Some(ino)) if key.len() > 9 => {
                if self.with_attributes.last() != Some(&ino) {
                    self.with_attributes.push(ino);
                }
                Some(())
            }
            (Some(b'M'), _) => [COUNTERS, DATA_BLOCKS, GENERATION, ROW_BYTES]
                .contains(&key)
                .then_some(()),
            _ => None,
        };
        if known.is_none() {
            let what = match (key.first(), first) {
                (Some(b'D'), Some(ino)) => format!("of a name in directory {ino} "),
                (Some(b'E'), Some(ino)) => format!("of an extent of inode {ino} "),
                (Some(b'I'), Some(ino)) => {
                    // What it would say of these is not known.
                    self.told.remove(&ino);
                    self.report.inodes += 1;
                    format!("of inode {ino} ")
                }
                _ => String::new(),
            };
            self.problem(format!("the row {what}cannot be read: key {}", key.escape_ascii()));
        }
    }

    fn name(&mut self, parent: Ino, at: u64, entry: Dirent) {
        let Dirent { ino, kind, name } = entry;
        if at.wrapping_sub(slot(&self.hash_key, &name)) >= PROBE {
            self.problem(format!(
                "{} in directory {parent} is not where its name is looked for",
                quoted(&name)
            ));
        }
        if self.recent.iter().any(|(p, n)| *p == parent && *n == name) {
            self.problem(format!("{} is in directory {parent} twice", quoted(&name)));
        }
        if self.recent.len() as u64 >= PROBE {
            self.recent.pop_front();
        }
        self.recent.push_back((parent, name));
        let told = self.told.entry(ino).or_default();
        told.names = told.names.saturating_add(1);
        told.kinds |= 1 << (kind & 0xf);
        told.parent = parent;
        let directory = self.told.entry(parent).or_default();
        directory.children += 1;
        if FileKind::of_mode(u32::from(kind) << 12) == Some(FileKind::Directory) {
            directory.subdirectories = directory.subdirectories.saturating_add(1);
        }
    }

    fn extent_row(&mut self, ino: Ino, extent: &Extent) {
        let before = if self.extent_end.0 == ino { self.extent_end.1 } else { 0 };
        self.extent_end = (ino, self.extent(ino, extent, before));
        let blocks = self.told.entry(ino).or_default().row_blocks.get_or_insert(0);
        *blocks = blocks.saturating_add(extent.length);
    }

    fn inode(&mut self, ino: Ino, inode: &Inode) {
        self.report.inodes += 1;
        let told = self.told.remove(&ino).unwrap_or_default();
        if ino == 0 || ino >= self.counters.next_ino {
            self.problem(format!(
                "inode {ino} is there, and the next new one would be {}",
                self.counters.next_ino
            ));
        }
        let type_bits = (inode.mode & libc::S_IFMT) >> 12;
        if told.kinds & !(1 << type_bits) != 0 {
            self.problem(format!("inode {ino} has another type than its name says"));
        }
        let is_dir = inode.is_dir();
        if told.children > 0 && !is_dir {
            self.problem(format!("inode {ino} has names in it, and is no directory"));
        }
        let expected = match is_dir {
            true if told.names == 0 && ino != ROOT => 0,
            true => told.subdirectories.saturating_add(2),
            false => told.names,
        };
        if inode.nlink != expected {
            self.problem(format!(
                "inode {ino} counts {} links, there are {expected}",
                inode.nlink
            ));
        }
        if is_dir && told.names > u32::from(ino != ROOT) {
            self.problem(format!("directory {ino} has {} names", told.names));
        }
        if told.names == 0 && ino != ROOT {
            self.unnamed.insert(ino);
        }
        self.content(ino, inode, &told);
    }

    fn content(&mut self, ino: Ino, inode: &Inode, told: &Told) {
        let fits = matches!(
            (inode.kind(), &inode.content),
            (FileKind::File, Content::Inline(_) | Content::Rows)
                | (FileKind::Directory, Content::Directory(_))
                | (FileKind::Symlink, Content::Target(_))
                | (
                    FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice,
                    Content::None
                )
        );
        if !fits {
            self.problem(format!("inode {ino} has a content that its type cannot have"));
        }
        if inode.size > FILE_MAX {
            self.problem(format!("inode {ino} is larger than a file can be"));
        }
        let mut blocks = told.row_blocks.unwrap_or(0);
        match &inode.content {
            Content::Inline(extents) => {
                if extents.len() > INLINE_EXTENTS {
                    self.problem(format!("inode {ino} has too many extents in its row"));
                }
                if told.row_blocks.is_some() {
                    self.problem(format!("inode {ino} has extents in its row and in others"));
                }
                let mut end = 0;
                for extent in extents {
                    end = self.extent(ino, extent, end);
                    blocks = blocks.saturating_add(extent.length);
                }
            }
            Content::Rows => {}
            content => {
                if told.row_blocks.is_some() {
                    self.problem(format!("inode {ino} has extents, and is no file"));
                }
                if let Content::Directory(parent) = content {
                    let by_name = if ino == ROOT { ROOT } else { told.parent };
                    if (told.names > 0 || ino == ROOT) && *parent != by_name {
                        self.problem(format!(
                            "directory {ino} takes {parent} for its parent, and is in {by_name}"
                        ));
                    }
                    self.parents.insert(ino, *parent);
                }
                if let Content::Target(target) = content
                    && target.len() as u64 != inode.size
                {
                    self.problem(format!("symbolic link {ino} has another length than its target"));
                }
            }
        }
        if inode.blocks != blocks {
            self.problem(format!(
                "inode {ino} counts {} blocks, its extents have {blocks}",
                inode.blocks
            ));
        }
    }

    /// What no inode's row came for, told with the names.
    fn check_missing(&mut self, store: &Store) -> Result<(), FsError> {
        if self.told.is_empty() {
            return Ok(());
        }
        let told = std::mem::take(&mut self.told);
        let report = &mut self.report;
        store.range(Bound::Included(b"D"), b"E", &mut |key, value| {
            if let Some((parent, entry)) = key_number(key, 0).zip(Dirent::decode(value)) {
                let name = quoted(&entry.name);
                if told.contains_key(&entry.ino) {
                    report.problem(format!(
                        "{name} in directory {parent} names inode {}, which is not there",
                        entry.ino
                    ));
                }
                if told.contains_key(&parent) {
                    report.problem(format!("{name} is in directory {parent}, which is not there"));
                }
            }
            true
        })?;
        let mut owners: Vec<Ino> = told
            .iter()
            .filter_map(|(ino, told)| told.row_blocks.map(|_| *ino))
            .collect();
        owners.sort_unstable();
        for ino in owners {
            report.problem(format!("extents belong to inode {ino}, which is not there"));
        }
        Ok(())
    }

    fn check_orphans(&mut self, store: &Store) -> Result<(), FsError> {
        let mut unnamed: Vec<Ino> = self.unnamed.drain().collect();
        unnamed.sort_unstable();
        for ino in unnamed {
            self.problem(format!("inode {ino} has no name, and is not marked as an orphan"));
        }
        for ino in std::mem::take(&mut self.with_attributes) {
            if store.get(&inode_key(ino))?.is_none() {
                self.problem(format!("attributes belong to inode {ino}, which is not there"));
            }
        }
        Ok(())
    }

    /// Every directory must be below the root.
    fn check_tree(&mut self) {
        if !self.parents.contains_key(&ROOT) {
            self.problem("there is no root directory".to_owned());
        }
        let parents = std::mem::take(&mut self.parents);
        let mut seen = HashSet::from([ROOT]);
        for start in parents.keys() {
            let (mut path, mut at) = (HashSet::new(), *start);
            while !seen.contains(&at) && path.insert(at) {
                // A parent that is not there was told already, or is gone as this one, which is an orphan.
                let Some(parent) = parents.get(&at) else { break };
                at = *parent;
            }
            if parents.contains_key(&at) && path.contains(&at) {
                self.problem(format!("directory {at} is within itself"));
            }
            seen.extend(path);
        }
    }

    /// Every block must belong to exactly one.
    fn check_space(&mut self) {
        let mut runs = std::mem::take(&mut self.runs);
        runs.sort_unstable();
        let (mut at, mut last) = (DATA_START, None);
        for (start, end, owner) in runs {
            if start > at {
                self.problem(format!("{} belong to nobody", blocks(at, start)));
            } else if let Some(last) = last.filter(|_| start < at) {
                self.problem(format!(
                    "{} belong to {last} and to {owner}",
                    blocks(start, at.min(end))
                ));
            }
            if end > at {
                (at, last) = (end, Some(owner));
            }
        }
        if at < self.end {
            self.problem(format!("{} belong to nobody", blocks(at, self.end)));
        }
    }

    fn check_counters(&mut self) {
        let Counters {
            inodes, free, window, ..
        } = self.counters;
        let there = self.free.saturating_add(window.1);
        if free != there {
            self.problem(format!("{free} blocks are counted as free, {there} are"));
        }
        if inodes != self.report.inodes {
            self.problem(format!("{inodes} inodes are counted, {} are there", self.report.inodes));
        }
    }
}

/// Walks all rows.
fn walk(store: &Store, hash_key: [u8; 32], counters: Counters, data_blocks: u64) -> Result<CheckReport, FsError> {
    let mut walk = Walk::new(hash_key, counters, data_blocks);
    store.range(Bound::Unbounded, b"\xff", &mut |key, value| {
        walk.row(key, value);
        true
    })?;
    let (start, length) = counters.window;
    if length > 0 {
        walk.run(start, length, Owner::Window);
    }
    walk.check_missing(store)?;
    walk.check_orphans(store)?;
    walk.check_tree();
    walk.check_space();
    walk.check_counters();
    Ok(walk.report)
}

/// Does a walk; a panic on damaged metadata is a finding, too. What it may have left half changed is not used again.
fn guarded(walk: impl FnOnce() -> Result<CheckReport, FsError>) -> Result<CheckReport, FsError> {
    std::panic::catch_unwind(AssertUnwindSafe(walk)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(FsError::Format(format!("the metadata database cannot be read: {text}")))
    })
}

impl FileSystem {
    /// Walks all metadata as it is at this moment; operations go on meanwhile.
    ///
    /// # Errors
    /// The device's, or that the file system was closed meanwhile; what is wrong with the metadata is in the report.
    pub fn check(&self) -> Result<CheckReport, FsError> {
        let core = &self.core;
        let state = core.state()?;
        // Under the lock, so that the database is the one that the rows in memory are over, or the one after it that has them.
        let base = core.disk.lock().as_ref().ok_or(FsError::Closed)?.base()?;
        let store = state.store.at_this_moment(base)?;
        let (counters, data_blocks) = (state.counters, state.data_blocks);
        drop(state);
        let report = guarded(|| walk(&store, core.hash_key, counters, data_blocks));
        // Closed meanwhile: another may have the device, and what was read may be of any time.
        core.check_open()?;
        report.or_else(|error| match error {
            FsError::Format(_) | FsError::Device(DeviceError::Corrupt { .. }) => {
                let mut report = CheckReport::default();
                report.problem(error.to_string());
                Ok(report)
            }
            // Of the database: it may be one that is just given up, after an error of the device.
            other => Err(other),
        })
    }

    /// Checks the file system on a device that nobody has mounted; `None`: there is none. Nothing is written.
    ///
    /// # Errors
    /// The device's; what is wrong with the file system is in the report.
    pub fn check_device(device: &Arc<dyn BlockDevice>) -> Result<Option<CheckReport>, FsError> {
        let overlay = Arc::new(Overlay::new(device.clone()));
        let mut found = CheckReport::default();
        let walked = guarded(|| check_device(&overlay, &mut found));
        if let Some(error) = overlay.failure() {
            // Whatever the database made of it.
            return Err(error.into());
        }
        match walked {
            Ok(mut report) => {
                report.problems.splice(0..0, found.problems);
                Ok(Some(report))
            }
            Err(FsError::Format(_)) if matches!(Superblock::read(&**device), Ok(None)) => Ok(None),
            Err(error @ (FsError::Format(_) | FsError::Metadata(_) | FsError::Device(DeviceError::Corrupt { .. }))) => {
                found.problem(error.to_string());
                Ok(Some(found))
            }
            Err(error) => Err(error),
        }
    }
}

/// All rows of a file system that was closed.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn rows_of(device: Arc<dyn BlockDevice>) -> Result<Vec<super::store::Row>, FsError> {
    let superblock =
        Superblock::read(&*device)?.ok_or_else(|| FsError::Format("the device holds no file system".into()))?;
    let control = Control::new(Box::new(|_| {}));
    let disk = Disk::open(MetaArea::open(device.clone(), control.clone())?, CACHE_BYTES)?;
    let _unwritten = Unwritten(control);
    let rows = Rows::read(&*device, &disk, &superblock, |_| Ok(0))?;
    let mut all = Vec::new();
    rows.store.range(Bound::Unbounded, b"\xff", &mut |key, value| {
        all.push((key.to_vec(), value.to_vec()));
        true
    })?;
    Ok(all)
}

/// Whatever happens, the database writes nothing when it is dropped: there is nothing to keep.
struct Unwritten(Arc<Control>);

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.set(Phase::Gone);
    }
}

fn check_device(device: &Arc<Overlay>, found: &mut CheckReport) -> Result<CheckReport, FsError> {
    let superblock =
        Superblock::read(&**device)?.ok_or_else(|| FsError::Format("the device holds no file system".into()))?;
    for block in superblock.damaged_copies(&**device)? {
        found.problem(format!("the copy of the superblock in block {block} is damaged"));
    }
    found.blocks = superblock.data_blocks;
    let control = Control::new(Box::new(|_| {}));
    let area = MetaArea::open(device.clone(), control.clone())?;
    let mut disk = Disk::open(area, CACHE_BYTES)?;
    let _unwritten = Unwritten(control);
    if !disk.is_whole()? {
        found.problem("the metadata database does not match its checksums".to_owned());
    }
    let rows = Rows::read(&**device, &disk, &superblock, |_| Ok(0))?;
    walk(&rows.store, hash_key(&superblock), rows.counters, rows.data_blocks)
}
