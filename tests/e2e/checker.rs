//! What is written while faults happen, and whether it is all there afterwards.
//!
//! [`Blocks`] overwrites random 4 KiB blocks of a file. Each says of itself which block it is and in which generation it was
//! written, and ends with a hash. What is read must be of the last generation that an fsync acknowledged, or of a later one that was
//! tried: an older one is a lost write. All of it runs in threads with descriptors of their own (see [`crate::harness::Writer`]).

use crate::harness::{Pauses, Writer, check_lines, eventually, own_descriptors};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const BLOCK: usize = 4096;
/// Where a block's hash of all before it begins.
const HASH: usize = BLOCK - 32;
/// Blocks of a file.
const BLOCKS: usize = 1024;

/// What a file's blocks may contain.
#[derive(Clone)]
pub struct Known {
    /// Generations that an fsync acknowledged; 0: none.
    acknowledged: Vec<u64>,
    /// The last generations that were tried.
    tried: Vec<u64>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            acknowledged: vec![0; BLOCKS],
            tried: vec![0; BLOCKS],
        }
    }
}

/// A block as it is written.
fn content(block: usize, generation: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    SmallRng::seed_from_u64(generation << 16 | block as u64).fill_bytes(&mut bytes[16..HASH]);
    bytes[..8].copy_from_slice(&(block as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    let hash = blake3::hash(&bytes[..HASH]);
    bytes[HASH..].copy_from_slice(hash.as_bytes());
    bytes
}

/// The generation of a block that was read; 0 for one that was never written.
fn generation(block: usize, bytes: &[u8]) -> Result<u64, String> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(0);
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    if blake3::hash(&bytes[..HASH]).as_bytes() != &bytes[HASH..] {
        return Err(format!("block {block} is torn or not what was written"));
    }
    if number(0) != block as u64 {
        return Err(format!("block {block} has the content of block {}", number(0)));
    }
    Ok(number(8))
}

impl Known {
    fn check(&self, block: usize, bytes: &[u8]) -> Result<(), String> {
        let found = generation(block, bytes)?;
        let (acknowledged, tried) = (self.acknowledged[block], self.tried[block]);
        if found < acknowledged || found > tried {
            return Err(format!(
                "block {block} is of generation {found}; {acknowledged} was acknowledged, {tried} was tried last"
            ));
        }
        Ok(())
    }

    /// Every block of the file; the first that is wrong.
    pub fn check_file(&self, path: &Path) -> Result<(), String> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for block in 0..BLOCKS {
            let mut padded = vec![0; BLOCK];
            let from = bytes.len().min(block * BLOCK);
            let part = &bytes[from..bytes.len().min((block + 1) * BLOCK)];
            padded[..part.len()].copy_from_slice(part);
            self.check(block, &padded)
                .map_err(|why| format!("{}: {why}", path.display()))?;
        }
        Ok(())
    }
}

/// Does something with the files of a mount in a thread with descriptors of its own.
#[track_caller]
pub fn apart<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        own_descriptors().unwrap();
        work()
    });
    eventually(what, || thread.is_finished().then_some(()));
    thread.join().unwrap()
}

/// A thread that overwrites blocks of a file and reads them back.
pub struct Blocks {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    pauses: Arc<Pauses>,
    known: Arc<Mutex<Known>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Blocks {
    /// Starts it on a file that is made.
    pub fn start(path: &Path, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let pauses = Arc::new(Pauses::default());
        let known = Arc::new(Mutex::new(Known::default()));
        let mut work = Work {
            random: SmallRng::seed_from_u64(seed),
            known: known.clone(),
            generation: 0,
        };
        let (file, stopped, done, ticks) = (path.to_owned(), stop.clone(), rounds.clone(), pauses.clone());
        let thread = std::thread::spawn(move || {
            own_descriptors()?;
            let written = File::options().create(true).truncate(true).write(true).open(&file)?;
            // Past the kernel's cache: what the volume says is what is compared.
            let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&file)?;
            while !stopped.load(Ordering::Relaxed) {
                work.write(&written)?;
                ticks.tick();
                work.compare(&direct)?;
                done.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        Self {
            path: path.to_owned(),
            stop,
            rounds,
            pauses,
            known,
            thread,
        }
    }

    /// See [`Writer::longest_pause`].
    pub fn longest_pause(&self) -> Duration {
        self.pauses.longest()
    }

    /// Waits until it has written and read some more.
    #[track_caller]
    pub fn goes_on(&self) {
        let target = self.rounds.load(Ordering::SeqCst) + 5;
        eventually("blocks are written and read", || {
            let ended = self.thread.is_finished();
            (ended || self.rounds.load(Ordering::SeqCst) >= target).then_some(())
        });
    }

    /// Stops it; the file, what it may contain, and what the thread ended with.
    #[track_caller]
    pub fn stop(self) -> (PathBuf, Known, io::Result<()>) {
        self.stop.store(true, Ordering::Relaxed);
        eventually("the last block is written", || self.thread.is_finished().then_some(()));
        let result = self.thread.join().unwrap();
        let known = self.known.lock().unwrap().clone();
        (self.path, known, result)
    }
}

struct Work {
    random: SmallRng,
    known: Arc<Mutex<Known>>,
    generation: u64,
}

impl Work {
    /// Writes some blocks and waits for their fsync.
    fn write(&mut self, file: &File) -> io::Result<()> {
        self.generation += 1;
        let count = self.random.random_range(1..=8);
        let blocks: Vec<usize> = (0..count).map(|_| self.random.random_range(0..BLOCKS)).collect();
        for block in &blocks {
            self.known.lock().unwrap().tried[*block] = self.generation;
            file.write_all_at(&content(*block, self.generation), (block * BLOCK) as u64)?;
        }
        file.sync_all()?;
        let mut known = self.known.lock().unwrap();
        for block in blocks {
            known.acknowledged[block] = self.generation;
        }
        Ok(())
    }

    /// Reads some blocks and compares them.
    fn compare(&mut self, file: &File) -> io::Result<()> {
        for _ in 0..4 {
            let block = self.random.random_range(0..BLOCKS);
            let mut bytes = vec![0; BLOCK];
            let mut length = 0;
            while length < BLOCK {
                match file.read_at(&mut bytes[length..], (block * BLOCK + length) as u64)? {
                    0 => break,
                    more => length += more,
                }
            }
            let known = self.known.lock().unwrap();
            known.check(block, &bytes).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Both kinds of writers on a mount.
pub struct Load {
    pub lines: Writer,
    pub blocks: Blocks,
}

/// What has to be in the volume, whoever mounts it.
pub struct Written {
    lines: u64,
    known: Known,
}

impl Load {
    /// Starts them, and waits until they are under way.
    #[track_caller]
    pub fn start(mount: &Path, seed: u64) -> Self {
        let load = Self {
            lines: Writer::start(&mount.join("lines")),
            blocks: Blocks::start(&mount.join("blocks"), seed),
        };
        load.goes_on();
        load.longest_pause();
        load
    }

    /// Waits until both have got on.
    #[track_caller]
    pub fn goes_on(&self) {
        self.lines.goes_on(10);
        self.blocks.goes_on();
    }

    /// The longest time that one of them waited.
    pub fn longest_pause(&self) -> Duration {
        self.lines.longest_pause().max(self.blocks.longest_pause())
    }

    /// Stops them; neither has met an error.
    #[track_caller]
    pub fn ends_well(self) -> Written {
        let (_, known, result) = self.blocks.stop();
        result.unwrap();
        let (result, lines) = self.lines.stop();
        result.unwrap();
        Written { lines, known }
    }
}

impl Written {
    /// Everything that was acknowledged is in the mount.
    #[track_caller]
    pub fn check(self, mount: &Path) {
        let mount = mount.to_owned();
        apart("what was written is read", move || {
            check_lines(&mount.join("lines"), self.lines);
            self.known.check_file(&mount.join("blocks")).unwrap();
        });
    }
}
