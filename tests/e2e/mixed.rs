//! One file through every door at once: `read` and `write` through the page cache and past it (`O_DIRECT`), a shared mapping, truncation,
//! holes, copies within the file, syncs. After each step what was read is compared with a model in memory. `fsx` does the same but for `O_DIRECT`.

use crate::harness::{Cluster, eventually, own_descriptors};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The file grows to this size at most.
const LARGEST: usize = 1 << 20;
/// One step reads or writes at most this much.
const LONGEST: usize = 64 << 10;
const PAGE: usize = 4096;

/// Memory that `O_DIRECT` takes: whole pages.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; PAGE]);

struct Exerciser {
    path: PathBuf,
    random: SmallRng,
    cached: File,
    direct: File,
    model: Vec<u8>,
    pages: Vec<Page>,
    log: Vec<String>,
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Exerciser {
    fn new(path: &Path, seed: u64) -> io::Result<Self> {
        let options = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .to_owned()
        };
        Ok(Self {
            path: path.to_owned(),
            random: SmallRng::seed_from_u64(seed),
            cached: options().open(path)?,
            direct: options().custom_flags(libc::O_DIRECT).open(path)?,
            model: Vec::new(),
            pages: vec![Page([0; PAGE]); LONGEST / PAGE],
            log: Vec::new(),
        })
    }

    /// A place and a length within `limit`, not empty; none if that is not possible.
    fn range(&mut self, limit: usize) -> Option<(usize, usize)> {
        let at = self.random.random_range(0..limit.max(1));
        let length = self.random.random_range(1..=LONGEST).min(limit.checked_sub(at)?);
        (length > 0).then_some((at, length))
    }

    /// The same in whole pages.
    fn pages(&mut self, limit: usize) -> Option<(usize, usize)> {
        let (at, length) = self.range(limit / PAGE * PAGE)?;
        Some((at / PAGE * PAGE, length.div_ceil(PAGE) * PAGE))
    }

    fn fresh(&mut self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.random.fill(&mut data[..]);
        data
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        self.model.resize(self.model.len().max(end), 0);
        self.model[at..end].copy_from_slice(data);
    }

    #[track_caller]
    fn compare(&self, at: usize, found: &[u8]) {
        let expected = &self.model[at..at + found.len()];
        if let Some(wrong) = (0..found.len()).find(|i| expected[*i] != found[*i]) {
            let steps = &self.log[self.log.len().saturating_sub(20)..];
            panic!(
                "byte {} is {} and should be {}\n{}",
                at + wrong,
                found[wrong],
                expected[wrong],
                steps.join("\n")
            );
        }
    }

    fn direct_memory(&mut self, length: usize) -> &mut [u8] {
        // SAFETY: pages are plain bytes without padding, and there are this many.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), length) }
    }

    /// Lets `work` have the file's pages around a range mapped.
    fn mapped(&self, at: usize, length: usize, work: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let first = at / PAGE * PAGE;
        let span = at + length - first;
        // SAFETY: a new mapping of an open file, of pages that lie within it.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                span,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.cached.as_raw_fd(),
                first as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is mapped, for reading and writing, and nobody else has it.
        let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), span) };
        work(&mut memory[at - first..]);
        // SAFETY: the mapping from above; nothing refers to it any more.
        checked(unsafe { libc::munmap(address, span) })
    }

    fn allocate(&mut self, mode: libc::c_int, at: usize, length: usize) -> io::Result<()> {
        // SAFETY: an open file; no memory is passed.
        checked(unsafe { libc::fallocate(self.cached.as_raw_fd(), mode, at as libc::off_t, length as libc::off_t) })
    }

    fn step(&mut self) -> io::Result<()> {
        let size = self.model.len();
        let kind = self.random.random_range(0..100);
        match kind {
            0..15 => {
                let Some((at, length)) = self.range(LARGEST) else {
                    return Ok(());
                };
                self.log.push(format!("write {at} {length}"));
                let data = self.fresh(length);
                self.cached.write_all_at(&data, at as u64)?;
                self.put(at, &data);
            }
            15..30 => {
                let Some((at, length)) = self.pages(LARGEST) else {
                    return Ok(());
                };
                self.log.push(format!("direct write {at} {length}"));
                let data = self.fresh(length);
                self.direct_memory(length).copy_from_slice(&data);
                let direct = self.direct.try_clone()?;
                direct.write_all_at(self.direct_memory(length), at as u64)?;
                self.put(at, &data);
            }
            30..45 => {
                let Some((at, length)) = self.range(size) else {
                    return Ok(());
                };
                self.log.push(format!("mapped write {at} {length}"));
                let data = self.fresh(length);
                self.mapped(at, length, |memory| memory[..length].copy_from_slice(&data))?;
                self.put(at, &data);
            }
            45..56 => {
                let Some((at, length)) = self.range(size) else {
                    return Ok(());
                };
                self.log.push(format!("read {at} {length}"));
                let mut found = vec![0; length];
                self.cached.read_exact_at(&mut found, at as u64)?;
                self.compare(at, &found);
            }
            56..70 => {
                let Some((at, length)) = self.pages(size) else {
                    return Ok(());
                };
                self.log.push(format!("direct read {at} {length}"));
                let direct = self.direct.try_clone()?;
                direct.read_exact_at(self.direct_memory(length), at as u64)?;
                let found = self.direct_memory(length).to_vec();
                self.compare(at, &found);
            }
            70..81 => {
                let Some((at, length)) = self.range(size) else {
                    return Ok(());
                };
                self.log.push(format!("mapped read {at} {length}"));
                let mut found = Vec::new();
                self.mapped(at, length, |memory| found = memory[..length].to_vec())?;
                self.compare(at, &found);
            }
            81..87 => {
                let to = self.random.random_range(0..=LARGEST);
                self.log.push(format!("truncate {to}"));
                self.cached.set_len(to as u64)?;
                self.model.resize(to, 0);
            }
            87..92 => {
                let Some((at, length)) = self.range(size) else {
                    return Ok(());
                };
                let (name, mode) = [
                    ("punch", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
                    ("zero", libc::FALLOC_FL_ZERO_RANGE),
                ][self.random.random_range(0..2)];
                self.log.push(format!("{name} {at} {length}"));
                self.allocate(mode, at, length)?;
                self.model[at..at + length].fill(0);
            }
            92..94 => {
                let Some((at, length)) = self.range(LARGEST) else {
                    return Ok(());
                };
                self.log.push(format!("allocate {at} {length}"));
                self.allocate(0, at, length)?;
                self.model.resize(size.max(at + length), 0);
            }
            94..97 => {
                let (Some((from, length)), Some((to, _))) = (self.range(size), self.range(LARGEST)) else {
                    return Ok(());
                };
                let length = length.min(from.abs_diff(to)).min(LARGEST - to);
                self.log.push(format!("copy {from} to {to} {length}"));
                self.copy(from, to, length)?;
            }
            97 => {
                self.log.push("sync".into());
                self.cached.sync_all()?;
            }
            98 => {
                self.log.push("data sync".into());
                self.direct.sync_data()?;
            }
            _ => {
                self.log.push("open again".into());
                let (model, log) = (std::mem::take(&mut self.model), std::mem::take(&mut self.log));
                let seed = self.random.random();
                *self = Self {
                    model,
                    log,
                    ..Self::new(&self.path, seed)?
                };
                let found = std::fs::read(&self.path)?;
                assert_eq!(found.len(), self.model.len());
                self.compare(0, &found);
            }
        }
        let found = self.cached.metadata()?.len();
        assert_eq!(found, self.model.len() as u64, "the size after {:?}", self.log.last());
        Ok(())
    }

    fn copy(&mut self, from: usize, to: usize, length: usize) -> io::Result<()> {
        let (mut source, mut target) = (from as libc::off64_t, to as libc::off64_t);
        let mut done = 0;
        while done < length {
            let file = self.cached.as_raw_fd();
            // SAFETY: open files, and offsets that live until the call returns.
            let copied = unsafe { libc::copy_file_range(file, &mut source, file, &mut target, length - done, 0) };
            match usize::try_from(copied) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(copied) => done += copied,
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        let data = self.model[from..from + length].to_vec();
        if length > 0 {
            self.put(to, &data);
        }
        Ok(())
    }
}

/// Exercises a file with so many steps.
pub fn exercise(path: &Path, seed: u64, steps: usize) -> io::Result<()> {
    own_descriptors()?;
    let mut exerciser = Exerciser::new(path, seed)?;
    for step in 0..steps {
        if let Err(error) = exerciser.step() {
            panic!("step {step}, {:?}: {error}", exerciser.log.last());
        }
    }
    Ok(())
}

/// Exercises a file of a volume with one replica, which is killed and comes back, over and over.
pub fn exercise_beside_kills(seed: u64, steps: usize) {
    let mut cluster = Cluster::start(3);
    cluster.create_with(
        "data",
        &["storageos.com/replicas=1", "storageos.com/failure.mode=alwayson"],
    );
    let mount = cluster.mount(0, "default/data");
    let ended = Arc::new(AtomicBool::new(false));
    let (file, end) = (mount.join("file"), ended.clone());
    let worker = std::thread::spawn(move || {
        let result = std::panic::catch_unwind(|| exercise(&file, seed, steps));
        end.store(true, Ordering::SeqCst);
        result
    });
    let over = || ended.load(Ordering::SeqCst);
    let mut kills = 0;
    while !over() {
        let Some(name) = cluster.replicas("data", "healthy").first().cloned() else {
            continue;
        };
        let replica = cluster.index(&name);
        if replica == 0 {
            // The master is on another node then: what is killed there is the mount's own daemon, which other tests do.
            break;
        }
        cluster.nodes[replica].kill();
        kills += 1;
        eventually("the loss is seen", || {
            (over() || !cluster.replicas("data", "healthy").contains(&name)).then_some(())
        });
        cluster.nodes[replica].start();
        eventually("there are two copies", || {
            (over() || !cluster.replicas("data", "healthy").is_empty()).then_some(())
        });
    }
    match worker.join().expect("its panics are caught") {
        Ok(result) => result.unwrap(),
        Err(panic) => std::panic::resume_unwind(panic),
    }
    assert!(kills > 0);
    cluster.unmount(&mount);
    cluster.cli(&["volume", "check", "data"]).ok();
    cluster.verify_identical("data", 2);
}

#[test]
fn cached_direct_and_mapped_accesses_of_one_file_agree_while_its_replica_comes_and_goes() {
    exercise_beside_kills(1, 20_000);
}
