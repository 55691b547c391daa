//! Power loss, image by image: every write, discard and flush that a workload sends to the device is recorded, the device is rebuilt as a loss at
//! each flush, or at any moment between two, may have left it, and each such image is checked, opened and compared with what the workload was
//! promised. What is assumed of the device stands in `recorder`.
//!
//! # What is promised
//! The tree (names, sizes, link counts, blocks, modes, attributes, targets) is that of a moment in the workload: no operation is there in part, none
//! without those before it, and none that was begun after the loss or that an fsync had returned for is missing. Each word of a file is one that it had at
//! that place since its last sync, or that a write gave it which a crash took back, so no file shows another's bytes; a file that replaced another by rename has its content of that moment or a later one,
//! synced or not. No step is needed but opening, and the check finds nothing wrong before it and after.

use super::crash::verify_fresh;
use super::recorder::{self, ALL, Blocks, Event, Kept, Recorder, change, images};
use super::{CALLER, options};
use crate::block::BlockDevice;
use crate::fs::rows::{free_key, key_number, number};
use crate::fs::{FileKind, FileSystem, FsError, Ino, Options, ROOT, SetAttr, device_blocks};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// Small, so that freed blocks are soon used again.
const CAPACITY: u64 = 1 << 20;

fn recorder(content: Blocks) -> Arc<Recorder> {
    Recorder::new(device_blocks(CAPACITY), content, false)
}

/// What the tree shows of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    ino: Ino,
    kind: FileKind,
    mode: u16,
    nlink: u32,
    size: u64,
    blocks: u64,
    target: Vec<u8>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Paths and what is there.
type Tree = BTreeMap<Vec<u8>, Node>;

fn tree(fs: &FileSystem) -> Tree {
    let mut tree = Tree::new();
    let mut directories = vec![(ROOT, Vec::new())];
    while let Some((dir, path)) = directories.pop() {
        let mut entries = Vec::new();
        fs.readdir(dir, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                entries.push((entry.ino, entry.name.to_vec()));
            }
            false
        })
        .unwrap();
        for (ino, name) in entries {
            let attr = fs.getattr(ino).unwrap();
            let path = [&path[..], b"/", &name].concat();
            if attr.kind == FileKind::Directory {
                directories.push((ino, path.clone()));
            }
            let names = fs.listxattr(ino).unwrap();
            let names = names.split(|b| *b == 0).filter(|n| !n.is_empty());
            let node = Node {
                ino,
                kind: attr.kind,
                mode: attr.mode,
                nlink: attr.nlink,
                size: attr.size,
                blocks: attr.blocks,
                target: fs.readlink(ino).unwrap_or_default(),
                attributes: names.map(|n| (n.to_vec(), fs.getxattr(ino, n).unwrap())).collect(),
            };
            tree.insert(path, node);
        }
    }
    tree
}

/// What a step promises when it has returned.
#[derive(Clone, Copy, Debug)]
enum Promise {
    Nothing,
    /// A file or directory, or only a file's data and what reading it takes.
    One(Ino, bool),
    All,
}

/// A step of a workload, after it was done.
struct Step {
    text: String,
    /// The moments before and after.
    begun: usize,
    ended: usize,
    tree: Arc<Tree>,
    /// Inodes that it changed, if only in their names.
    touched: Vec<Ino>,
    /// Contents that it changed, as they are now.
    wrote: Vec<(Ino, Bytes)>,
    /// Files that it put into others' places.
    replacing: Vec<Ino>,
    promise: Promise,
    /// Its process ended without closing: what was not committed is gone.
    crashed: bool,
}

struct Workload {
    device: Arc<Recorder>,
    options: Options,
    /// None only while it is opened again.
    fs: Option<Arc<FileSystem>>,
    random: StdRng,
    steps: Vec<Step>,
    written: u64,
}

/// A directory of the workload and a name in it.
type Place = (Option<&'static [u8]>, &'static [u8]);

impl Workload {
    fn new(seed: u64, intervals: Option<[Duration; 2]>) -> Self {
        let device = Recorder::new(device_blocks(CAPACITY), Blocks::new(), intervals.is_some());
        let plain: Arc<dyn BlockDevice> = device.clone();
        FileSystem::format(&plain, CAPACITY).unwrap();
        let mut options = options();
        if let Some([commit, checkpoint]) = intervals {
            options.commit_interval = commit;
            options.checkpoint_interval = checkpoint;
        }
        let formatted = device.now();
        let fs = FileSystem::open(plain, options.clone()).unwrap();
        let first = Step {
            text: "format".into(),
            begun: 0,
            ended: formatted,
            tree: Arc::default(),
            touched: Vec::new(),
            wrote: Vec::new(),
            replacing: Vec::new(),
            promise: Promise::All,
            crashed: false,
        };
        Self {
            device,
            options,
            fs: Some(fs),
            random: StdRng::seed_from_u64(seed),
            steps: vec![first],
            written: 0,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.random_range(0..end)
    }

    fn place(&mut self) -> Place {
        let dir: Option<&[u8]> = match self.below(4) {
            0 => Some(b"x"),
            1 if self.below(3) == 0 => Some(b"y"),
            _ => None,
        };
        let names: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
        (dir, names[self.below(if dir.is_some() { 3 } else { 6 }) as usize])
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        let attr = self.fs().lookup(parent, name).ok()?;
        self.fs().forget(attr.ino, 1);
        Some(attr.ino)
    }

    fn directory(&self, place: Place) -> Option<Ino> {
        place.0.map_or(Some(ROOT), |name| self.lookup(ROOT, name))
    }

    fn find(&self, place: Place) -> Option<Ino> {
        self.lookup(self.directory(place)?, place.1)
    }

    fn file(&self, place: Place) -> Option<Ino> {
        let ino = self.find(place)?;
        (self.fs().getattr(ino).unwrap().kind == FileKind::File).then_some(ino)
    }

    /// Does a step and keeps what came of it. It returns what it touched.
    fn step(&mut self, text: String, promise: Promise, action: impl FnOnce(&FileSystem) -> Result<Vec<Ino>, FsError>) {
        self.step_replacing(text, promise, Vec::new(), action);
    }

    fn step_replacing(
        &mut self,
        text: String,
        promise: Promise,
        replacing: Vec<Ino>,
        action: impl FnOnce(&FileSystem) -> Result<Vec<Ino>, FsError>,
    ) {
        let begun = self.device.now();
        let done = action(self.fs());
        let ended = self.device.now();
        let (text, touched, replacing) = match done {
            Ok(touched) => (text, touched, replacing),
            Err(error @ FsError::Posix(_)) => (format!("{text}: {error}"), Vec::new(), Vec::new()),
            Err(error) => panic!("{text}: {error}"),
        };
        // Also after an error: a write into a full file system may have done a part.
        let mut wrote = Vec::new();
        for ino in &touched {
            if let Ok(content) = self.fs().read(*ino, 0, u32::MAX) {
                wrote.push((*ino, content));
            }
        }
        self.steps.push(Step {
            text,
            begun,
            ended,
            tree: Arc::new(tree(self.fs())),
            touched,
            wrote,
            replacing,
            promise,
            crashed: false,
        });
    }

    /// Bytes that no other write has: each word names the write, the file and the place.
    fn data(&mut self, ino: Ino, words: u64) -> Vec<u8> {
        self.written += 1;
        (0..words)
            .flat_map(|at| (self.written << 40 | ino << 16 | (at + 1)).to_le_bytes())
            .collect()
    }

    fn create(&mut self, place: Place) -> Option<Ino> {
        let dir = self.directory(place)?;
        let mut made = None;
        self.step(format!("create {place:?}"), Promise::Nothing, |fs| {
            let ino = fs.create(&CALLER, dir, place.1, 0o644)?.ino;
            fs.release(ino);
            fs.forget(ino, 1);
            made = Some(ino);
            Ok(vec![dir, ino])
        });
        made
    }

    fn write(&mut self, ino: Ino, offset: u64, words: u64) {
        let data = self.data(ino, words);
        let text = format!("write {} to {ino}: {offset}+{}", self.written, data.len());
        self.step(text, Promise::Nothing, |fs| {
            fs.write(ino, offset, &data, false).map(|_| vec![ino]).or(Ok(vec![ino]))
        });
    }

    fn fsync(&mut self, ino: Ino, data_only: bool) {
        let promise = Promise::One(ino, data_only);
        self.step(format!("fsync {ino}, data only: {data_only}"), promise, |fs| {
            fs.fsync(ino, data_only).map(|()| Vec::new())
        });
    }

    fn rename(&mut self, from: Place, to: Place, flags: u32) {
        let (Some(a), Some(b)) = (self.directory(from), self.directory(to)) else {
            return;
        };
        let (moved, other) = (self.find(from), self.find(to));
        let files = match flags {
            libc::RENAME_EXCHANGE => vec![self.file(from), self.file(to)],
            _ => vec![self.file(from)],
        };
        let replacing = files
            .into_iter()
            .flatten()
            .filter(|_| other.is_some() && moved != other);
        let replacing = replacing.collect();
        let text = format!("rename {from:?} to {to:?}, flags {flags}");
        self.step_replacing(text, Promise::Nothing, replacing, |fs| {
            fs.rename(a, from.1, b, to.1, flags)?;
            if moved == other {
                // Two names of a file: nothing is done.
                return Ok(Vec::new());
            }
            Ok([a, b].into_iter().chain(moved).chain(other).collect())
        });
    }

    fn fallocate(&mut self, place: Place, mode: i32) {
        let Some(ino) = self.file(place) else { return };
        let (offset, length) = (self.below(30_000), 1 + self.below(20_000));
        self.step(
            format!("fallocate {ino}, mode {mode}: {offset}+{length}"),
            Promise::Nothing,
            |fs| {
                fs.fallocate(ino, mode, offset, length)
                    .map(|()| vec![ino])
                    .or(Ok(vec![ino]))
            },
        );
    }

    fn fs(&self) -> &FileSystem {
        self.fs.as_deref().expect("it is open")
    }

    /// Opens the file system again: after it was closed, or as the end of its process leaves it.
    fn reopen(&mut self, crash: bool) {
        let begun = self.device.now();
        if !crash {
            self.fs().close().unwrap();
        }
        self.fs = None;
        let moment = self.device.now();
        let opened = FileSystem::open(self.device.clone(), self.options.clone()).unwrap();
        if let Err(error) = self.verify(&opened, moment) {
            panic!("opened again, crash: {crash}: {error}");
        }
        let tree = tree(&opened);
        let files = tree.values().filter(|node| node.kind == FileKind::File);
        self.steps.push(Step {
            text: if crash { "crash" } else { "remount" }.into(),
            begun,
            ended: self.device.now(),
            touched: Vec::new(),
            wrote: files
                .map(|node| (node.ino, opened.read(node.ino, 0, u32::MAX).unwrap()))
                .collect(),
            tree: Arc::new(tree),
            replacing: Vec::new(),
            promise: Promise::All,
            crashed: crash,
        });
        self.fs = Some(opened);
    }

    fn random_step(&mut self) {
        let (place, other) = (self.place(), self.place());
        let directory: Place = (None, if self.below(2) == 0 { b"x" } else { b"y" });
        let (size, offset) = (self.below(30_000), self.below(4000) * 8);
        match self.below(102) {
            0..25 => {
                let Some(ino) = self.file(place).or_else(|| self.create(place)) else {
                    return;
                };
                let words = 1 + self.below(2000);
                let end = self.fs().getattr(ino).unwrap().size.next_multiple_of(8);
                let offset = if self.below(3) == 0 { end } else { offset };
                self.write(ino, offset, words);
            }
            25..32 => {
                if let Some(ino) = self.file(place) {
                    let set = SetAttr {
                        size: Some(size),
                        ..SetAttr::default()
                    };
                    self.step(format!("truncate {ino} to {size}"), Promise::Nothing, |fs| {
                        fs.setattr(ino, &set).map(|_| vec![ino])
                    });
                }
            }
            32..36 => self.fallocate(place, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            36..38 => self.fallocate(place, libc::FALLOC_FL_ZERO_RANGE),
            38..40 => self.fallocate(place, [0, libc::FALLOC_FL_KEEP_SIZE][(size % 2) as usize]),
            40..48 => {
                if let (Some(dir), Some(ino)) = (self.directory(place), self.find(place)) {
                    self.step(format!("unlink {place:?}"), Promise::Nothing, |fs| {
                        fs.unlink(dir, place.1).map(|()| vec![dir, ino])
                    });
                }
            }
            48..56 => self.rename(place, other, 0),
            56..58 => self.rename(place, other, libc::RENAME_EXCHANGE),
            58..60 => self.rename(place, other, libc::RENAME_WHITEOUT),
            60..63 => {
                if let (Some(ino), Some(dir)) = (self.file(place), self.directory(other)) {
                    self.step(format!("link {place:?} as {other:?}"), Promise::Nothing, |fs| {
                        let linked = fs.link(ino, dir, other.1).map(|attr| fs.forget(attr.ino, 1));
                        linked.map(|()| vec![dir, ino])
                    });
                }
            }
            63..65 => {
                if let Some(dir) = self.directory(place) {
                    self.step(format!("symlink {place:?}"), Promise::Nothing, |fs| {
                        let ino = fs.symlink(&CALLER, dir, place.1, b"target")?.ino;
                        fs.forget(ino, 1);
                        Ok(vec![dir, ino])
                    });
                }
            }
            65..69 => self.step(format!("mkdir {directory:?}"), Promise::Nothing, |fs| {
                let ino = fs.mkdir(&CALLER, ROOT, directory.1, 0o755)?.ino;
                fs.forget(ino, 1);
                Ok(vec![ROOT, ino])
            }),
            69 => {
                let ino = self.find(directory);
                self.step(format!("rmdir {directory:?}"), Promise::Nothing, |fs| {
                    fs.rmdir(ROOT, directory.1)
                        .map(|()| ino.into_iter().chain([ROOT]).collect())
                });
            }
            70 => self.rename((None, b"x"), (None, b"y"), 0),
            71..74 => {
                if let Some(ino) = self.find(place) {
                    let value = vec![size as u8; (size % 300) as usize];
                    let name: &[u8] = [&b"user.a"[..], b"user.b"][(offset % 16 / 8) as usize];
                    self.step(format!("attribute {name:?} of {ino}"), Promise::Nothing, |fs| {
                        match size % 3 {
                            0 => fs.removexattr(ino, name),
                            _ => fs.setxattr(&CALLER, ino, name, &value, 0),
                        }
                        .map(|()| vec![ino])
                    });
                }
            }
            74 => {
                if let Some(ino) = self.find(place) {
                    let set = SetAttr {
                        mode: Some(size as u32 & 0o7777),
                        ..SetAttr::default()
                    };
                    self.step(format!("chmod {ino}"), Promise::Nothing, |fs| {
                        fs.setattr(ino, &set).map(|_| vec![ino])
                    });
                }
            }
            75..77 => {
                if let (Some(from), Some(to)) = (self.file(place), self.file(other)) {
                    // Only within a file: what is copied names its first owner.
                    if from == to {
                        self.step(format!("copy within {from}"), Promise::Nothing, |fs| {
                            fs.copy_range(from, 0, to, 16_384, 12_288).map(|_| vec![to])
                        });
                    }
                }
            }
            77..84 => {
                if let Some(ino) = self.find(place) {
                    let data_only = self.below(3) == 0;
                    self.fsync(ino, data_only);
                }
            }
            84 => self.fsync(ROOT, false),
            85..90 => {
                // As editors do it.
                let new: Place = (place.0, b"new");
                if let Some(ino) = self.create(new) {
                    let words = 1 + self.below(1500);
                    self.write(ino, 0, words);
                    if self.below(2) == 0 {
                        self.fsync(ino, false);
                    }
                    self.rename(new, place, 0);
                }
            }
            90..92 => self.step("sync".into(), Promise::All, |fs| fs.sync().map(|()| Vec::new())),
            92..95 => self.step("checkpoint".into(), Promise::Nothing, |fs| {
                fs.core.checkpoint_all().map(|()| Vec::new())
            }),
            95..98 => self.step("reclaim".into(), Promise::Nothing, |fs| {
                fs.core.reclaim().map(|_| Vec::new())
            }),
            98 => self.reopen(false),
            99 => self.reopen(true),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.random_step();
        }
    }

    /// Whether a file was given a word, beyond its end as it is by now, by a write that a crash of the process took back: that is still in the file's last
    /// block, until it is overwritten.
    fn was_lost(&self, ino: Ino, last: usize, at: usize, word: &[u8]) -> bool {
        let contents = |step: &Step| {
            let of_file = step.wrote.iter().filter(|(i, _)| *i == ino);
            of_file.map(|(_, content)| content.clone()).collect::<Vec<_>>()
        };
        self.steps[..=last]
            .iter()
            .enumerate()
            .filter(|(_, s)| s.crashed)
            .any(|(crash, step)| {
                let beyond = contents(step).iter().all(|content| at + word.len() > content.len());
                let before = self.steps[..crash].iter().flat_map(contents);
                beyond && { before }.any(|content| content.get(at..at + word.len()) == Some(word))
            })
    }

    /// Compares a file system with what was promised by a moment.
    fn verify(&self, fs: &FileSystem, moment: usize) -> Result<(), String> {
        // At most what was begun by then may be there, and what an fsync had returned for must be.
        let last = self.steps.iter().rposition(|s| s.begun < moment).unwrap_or(0);
        let mut least = 0;
        let mut synced: BTreeMap<Ino, usize> = BTreeMap::new();
        let mut all_synced = 0;
        for (at, step) in self.steps.iter().enumerate().filter(|(_, s)| s.ended <= moment) {
            match step.promise {
                Promise::Nothing => {}
                Promise::All => (least, all_synced) = (at, at),
                Promise::One(ino, data_only) => {
                    let changed = |s: &Step| match data_only {
                        true => s.wrote.iter().any(|(i, _)| *i == ino),
                        false => s.touched.contains(&ino),
                    };
                    least = least.max(self.steps[..at].iter().rposition(changed).unwrap_or(0));
                    synced.insert(ino, at);
                }
            }
        }
        let found = tree(fs);
        let Some(prefix) = (least..=last).find(|at| *self.steps[*at].tree == found) else {
            let wanted: Vec<_> = self.steps[least..=last].iter().map(|s| &s.text).collect();
            return Err(format!(
                "the tree is of no moment since step {least}:\n{found:#?}\nsteps: {wanted:#?}\nat {least}: {:#?}\nat {last}: {:#?}",
                self.steps[least].tree, self.steps[last].tree
            ));
        };
        for (path, node) in found.iter().filter(|(_, n)| n.kind == FileKind::File) {
            let replaced = self.steps[..=prefix]
                .iter()
                .rposition(|s| s.replacing.contains(&node.ino));
            let since = synced.get(&node.ino).copied().unwrap_or(0);
            let since = since.max(all_synced).max(replaced.unwrap_or(0));
            // What it was at its last sync, and everything after.
            let mut contents: Vec<&Bytes> = Vec::new();
            for (at, step) in self.steps[..=last].iter().enumerate() {
                for (_, content) in step.wrote.iter().filter(|(ino, _)| *ino == node.ino) {
                    if at <= since {
                        contents.clear();
                    }
                    contents.push(content);
                }
            }
            let content = fs.read(node.ino, 0, u32::MAX).unwrap();
            if content.len() as u64 != node.size {
                return Err(format!("{} has another length", path.escape_ascii()));
            }
            for (at, word) in content.chunks(8).enumerate() {
                let had = |content: &&Bytes| {
                    // After its end it was zeros.
                    let from = (at * 8).min(content.len());
                    let part = &content[from..(from + word.len()).min(content.len())];
                    word.starts_with(part) && word[part.len()..].iter().all(|b| *b == 0)
                };
                if !contents.iter().any(had) && !self.was_lost(node.ino, last, at * 8, word) {
                    return Err(format!(
                        "{} (inode {}) shows {word:x?} at {}, synced at step {since}, prefix {prefix}, last {last}, {} contents",
                        path.escape_ascii(),
                        node.ino,
                        at * 8,
                        contents.len()
                    ));
                }
            }
        }
        Ok(())
    }
}

fn found(result: Result<(), String>, when: &str) -> Result<(), String> {
    result.map_err(|error| format!("{when}: {error}"))
}

/// Nothing is wrong with the metadata, and what is free is zeros.
fn is_whole(fs: &FileSystem, device: &Recorder) -> Result<(), String> {
    let mut free = Vec::new();
    {
        let state = fs.core.state().unwrap();
        free.push(state.counters.window);
        let visit = &mut |key: &[u8], value: &[u8]| {
            free.extend(key_number(key, 0).zip(number(value)));
            true
        };
        let rows = &state.store;
        rows.range(Bound::Included(&free_key(0)), &free_key(u64::MAX), visit)
            .unwrap();
    }
    let blocks = device.blocks_now();
    for (start, length) in free {
        for (block, data) in blocks.range(start..start + length) {
            if data.iter().any(|b| *b != 0) {
                return Err(format!("block {block} is free and not zeros"));
            }
        }
    }
    let problems = fs.check().unwrap().problems;
    if problems.is_empty() {
        Ok(())
    } else {
        Err(format!("{problems:#?}"))
    }
}

/// Opens an image and compares it with the workload; returns how many images came of it.
fn try_image(
    work: &Workload,
    moment: usize,
    image: &Blocks,
    thorough: bool,
    random: &mut StdRng,
) -> Result<usize, String> {
    let device = recorder(image.clone());
    let plain: Arc<dyn BlockDevice> = device.clone();
    match FileSystem::check_device(&plain).unwrap() {
        Some(report) if report.problems.is_empty() => {}
        Some(report) if moment < work.steps[0].ended && report.problems[0].contains("copy of the superblock") => {}
        None if moment < work.steps[0].ended => FileSystem::format(&plain, CAPACITY).unwrap(),
        other => return Err(format!("not mounted: {other:#?}")),
    }
    assert!(moment < work.steps[0].ended || device.now() == 0, "a check has written");
    let recovery = device.now();
    let fs = FileSystem::open(plain.clone(), options()).map_err(|error| format!("it cannot be opened: {error}"))?;
    let events = device.events(recovery);
    found(is_whole(&fs, &device), "opened")?;
    found(work.verify(&fs, moment), "opened")?;
    let mut images = 1;
    if !thorough {
        return Ok(images);
    }
    fs.close().unwrap();
    let fs = FileSystem::open(plain, options()).unwrap();
    found(work.verify(&fs, moment), "opened a second time")?;
    verify_fresh(&fs);
    found(is_whole(&fs, &device), "used")?;
    if recovery > 0 {
        return Ok(images);
    }
    // The power goes again while it is opened.
    let mut result = Ok(());
    let kinds = [Kept::Nothing, Kept::SomeBlocks, Kept::SomeSectors];
    recorder::images(image, &events, &kinds, random, |_, kept, again, _| {
        images += 1;
        if result.is_ok() {
            let device = recorder(again);
            let fs = FileSystem::open(device.clone(), options()).unwrap();
            let whole = is_whole(&fs, &device).and_then(|()| work.verify(&fs, moment));
            result = found(whole, &format!("opened after another loss, {kept:?}"));
        }
    });
    result.map(|()| images)
}

/// Plays workloads and tries every image; returns how many there were.
fn play(seeds: std::ops::Range<u64>, steps: usize, intervals: Option<[Duration; 2]>) -> usize {
    let mut tried = 0;
    for seed in seeds {
        let mut work = Workload::new(seed, intervals);
        work.run(steps);
        // As a crash leaves it.
        let events = work.device.events(0);
        let mut random = StdRng::seed_from_u64(seed);
        images(
            &Blocks::new(),
            &events,
            &ALL,
            &mut random,
            |moment, kept, image, random| {
                let thorough = tried % 16 == 0;
                match try_image(&work, moment, &image, thorough, random) {
                    Ok(images) => tried += images,
                    Err(error) => {
                        let steps: Vec<String> = work
                            .steps
                            .iter()
                            .enumerate()
                            .filter(|(_, s)| s.begun <= moment)
                            .map(|(at, s)| format!("{at}: {} ({} to {})", s.text, s.begun, s.ended))
                            .collect();
                        panic!(
                            "seed {seed}, power lost at event {moment} of {}, kept: {kept:?}\n{error}\n{}",
                            events.len(),
                            steps[steps.len().saturating_sub(25)..].join("\n")
                        );
                    }
                }
            },
        );
    }
    tried
}

/// Workloads of a test; `POWER_WORKLOADS` asks for more.
fn seeds(first: u64, usual: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("POWER_WORKLOADS").ok().and_then(|n| n.parse().ok());
    first..first + asked.unwrap_or(usual)
}

#[test]
fn whatever_a_power_loss_keeps_is_a_moment_of_the_workload_with_everything_that_was_synced() {
    let tried = play(seeds(0, 10), 100, None);
    println!("{tried} images");
    assert!(tried >= 3000, "only {tried} images");
}

#[test]
fn the_same_holds_while_a_timer_commits_and_frees_in_between() {
    let intervals = [Duration::from_millis(1), Duration::from_secs(30)];
    let tried = play(seeds(1_000_000, 3), 100, Some(intervals));
    println!("{tried} images");
    assert!(tried >= 500, "only {tried} images");
}

#[test]
fn the_same_holds_while_checkpoints_run_all_the_time() {
    let intervals = [Duration::from_millis(2), Duration::ZERO];
    let tried = play(seeds(2_000_000, 3), 100, Some(intervals));
    println!("{tried} images");
    assert!(tried >= 500, "only {tried} images");
}

#[test]
fn what_a_synced_truncation_cut_off_does_not_come_back_when_the_file_grows() {
    for by_writing in [false, true] {
        let device = recorder(Blocks::new());
        let plain: Arc<dyn BlockDevice> = device.clone();
        FileSystem::format(&plain, CAPACITY).unwrap();
        let fs = FileSystem::open(plain, options()).unwrap();
        let size = |size| SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let ino = fs.create(&CALLER, ROOT, b"file", 0o644).unwrap().ino;
        fs.write(ino, 0, &[9; 4000], false).unwrap();
        fs.setattr(ino, &size(100)).unwrap();
        fs.sync().unwrap();
        let before = device.blocks_now();
        let from = device.now();
        if by_writing {
            fs.write(ino, 5000, &[8; 10], false).unwrap();
        } else {
            fs.setattr(ino, &size(5000)).unwrap();
        }
        fs.sync().unwrap();
        let events = device.events(from);
        for lost in 0..events.len() {
            let mut image = before.clone();
            for (at, event) in events.iter().enumerate() {
                if let Event::Change(block, data) = event
                    && at != lost
                {
                    change(&mut image, *block, data.clone());
                }
            }
            let fs = FileSystem::open(recorder(image), options()).unwrap();
            let content = fs.read(ino, 0, 5000).unwrap();
            assert!(content[..100].iter().all(|b| *b == 9));
            assert!(
                content[100..].iter().all(|b| *b == 0),
                "change {lost} of {events_len} lost",
                events_len = events.len()
            );
        }
    }
}
