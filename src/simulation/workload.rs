//! Writers and readers on a mount of the volume, and the judge of what they see.
//!
//! Each writer has blocks of its own. A read may see the last acknowledged write of a block or a later one that was begun and is not
//! known to have failed without effect; never an earlier one. When a write is acknowledged every copy in sync holds it. What a
//! power cut may take is what was not flushed.

use super::cluster::{Cluster, Process};
use super::disk::{Block, bytes_of, stamp_of};
use super::network::{chance, node};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, EXTENT_BLOCKS, Write};
use crate::cluster::CatalogError;
use crate::exec::{Host, block_on, task, thread, time};
use crate::node::switch::SwitchDevice;
use crate::volume::{MountClaim, VolumeId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Writers of a mount, and the extents that they write to.
const WRITERS: u64 = 2;
const EXTENTS: u64 = 4;

/// See the label of that name.
pub(super) const IO_TIMEOUT: Duration = Duration::from_secs(15);

/// What was written to a block: stamps in order, and how far it is sure.
#[derive(Clone, Debug)]
struct History {
    stamps: Vec<u64>,
    /// Acknowledged: nothing before it is to be seen.
    acknowledged: usize,
    /// Flushed: not even after a power cut.
    flushed: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            stamps: vec![0],
            acknowledged: 0,
            flushed: 0,
        }
    }
}

#[derive(Default)]
struct Book {
    blocks: BTreeMap<u64, History>,
    /// Power was cut somewhere since all was well: what was not flushed may be gone.
    power: bool,
    /// A disk was harmed: errors that tell of it are right.
    harmed: bool,
    /// Hosts whose disks lost something since then.
    suspects: BTreeSet<Host>,
    /// Errors that writers and readers on the mount got.
    errors: Vec<String>,
    acknowledged: u64,
    /// Mounts so far: only the last may write.
    mounts: u64,
}

/// See the module's text.
pub(super) struct Judge {
    cluster: Arc<Cluster>,
    book: Mutex<Book>,
    next: AtomicU64,
}

/// A mount on a node.
pub(super) struct Mount {
    pub(super) host: Host,
    device: Arc<SwitchDevice>,
    closed: CancellationToken,
    /// Its number among all mounts.
    number: u64,
    /// And among the claims.
    claim: u64,
    running: Arc<AtomicU64>,
}

/// Counts a writer for as long as it lives.
struct Running(Arc<AtomicU64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Judge {
    pub(super) fn new(cluster: &Arc<Cluster>) -> Arc<Self> {
        Arc::new(Self {
            cluster: cluster.clone(),
            book: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    pub(super) fn lost_power(&self, host: Host) {
        let mut book = self.book.lock();
        book.power = true;
        book.suspects.insert(host);
    }

    pub(super) fn harmed(&self) {
        self.book.lock().harmed = true;
    }

    /// Whether a claim is still a host's.
    fn holds(&self, host: Host, claim: u64) -> bool {
        let record = self.cluster.record();
        record.mounts == claim && record.mount.is_some_and(|claim| claim.node == node(host))
    }

    fn mounted(&self) -> u64 {
        let mut book = self.book.lock();
        book.mounts += 1;
        book.mounts
    }

    fn is_last(&self, mount: u64) -> bool {
        self.book.lock().mounts == mount
    }

    pub(super) fn errors(&self) -> Vec<String> {
        self.book.lock().errors.clone()
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.book.lock().acknowledged
    }

    fn begin(&self, blocks: &[u64]) -> Vec<u64> {
        let mut book = self.book.lock();
        let stamps = blocks.iter().map(|_| self.next.fetch_add(1, Ordering::SeqCst));
        let stamps: Vec<u64> = stamps.collect();
        for (block, stamp) in blocks.iter().zip(&stamps) {
            let history = book.blocks.entry(*block).or_default();
            history.stamps.push(*stamp);
        }
        stamps
    }

    /// The write of the last stamps of `blocks` ended.
    fn end(&self, blocks: &[u64], result: &Result<(), DeviceError>) {
        let mut book = self.book.lock();
        if let Err(why) = result {
            book.errors.push(why.to_string());
        } else {
            book.acknowledged += 1;
        }
        let suspects = book.suspects.clone();
        for block in blocks {
            let Some(history) = book.blocks.get_mut(block) else {
                continue;
            };
            if result.is_ok() {
                history.acknowledged = history.stamps.len() - 1;
            }
        }
        drop(book);
        if result.is_ok() {
            self.check_copies(blocks, &suspects);
        }
    }

    /// Every copy in sync holds what was acknowledged just now.
    fn check_copies(&self, blocks: &[u64], suspects: &BTreeSet<Host>) {
        let configuration = self.cluster.record().configuration;
        for (host, disk) in &self.cluster.disks {
            if suspects.contains(host) || !configuration.in_sync.contains(&node(*host)) {
                continue;
            }
            let Some(content) = disk.content(self.cluster.volume) else {
                self.wrong(format!("host {host} is in sync and has no copy: {configuration:?}"));
                continue;
            };
            let book = self.book.lock();
            for block in blocks {
                let history = &book.blocks[block];
                let found = content.get(block).map_or(0, |block| block.stamp);
                if content.get(block).is_some_and(|block| !block.whole) {
                    continue;
                }
                // Another write of the block may be under way by now.
                if !history.stamps[history.acknowledged..].contains(&found) {
                    let stamps = &history.stamps;
                    let text = format!(
                        "block {block} was acknowledged and is not on host {host}, which is in sync: found {found} of \
                         {stamps:?}, acknowledged {}; {configuration:?}",
                        history.acknowledged
                    );
                    drop(book);
                    self.wrong(text);
                    return;
                }
            }
        }
    }

    fn wrong(&self, what: String) {
        self.cluster.world.fail(what);
    }

    /// From where on stamps of a block may be seen by a read that begins now.
    fn floor(&self, block: u64) -> usize {
        let book = self.book.lock();
        let history = book.blocks.get(&block).cloned().unwrap_or_default();
        if book.power {
            history.flushed
        } else {
            history.acknowledged
        }
    }

    fn check(&self, block: u64, floor: usize, bytes: &[u8], who: &str) {
        let found = stamp_of(bytes);
        let book = self.book.lock();
        // A power cut during the read may have taken what the floor stood on.
        let history = book.blocks.get(&block).cloned().unwrap_or_default();
        let floor = if book.power { history.flushed.min(floor) } else { floor };
        drop(book);
        if found.is_none_or(|found| !history.stamps[floor..].contains(&found)) {
            self.wrong(format!(
                "{who} read {found:?} from block {block}: {history:?}, not before {floor}"
            ));
        }
    }

    /// All is well again and quiet: what the copies hold now is what counts from now on.
    pub(super) fn settle(&self, copies: usize) {
        let configuration = self.cluster.record().configuration;
        let holders = |host: &&Host| configuration.in_sync.contains(&node(**host));
        let held: Vec<_> = self
            .cluster
            .disks
            .keys()
            .filter(holders)
            .map(|host| {
                (
                    *host,
                    self.cluster.disks[host]
                        .content(self.cluster.volume)
                        .unwrap_or_default(),
                )
            })
            .collect();
        assert_eq!(held.len(), copies, "{configuration:?}");
        let sums = |content: &BTreeMap<u64, Block>| {
            let of = |(block, content): (&u64, &Block)| (*block, content.sum);
            content.iter().map(of).collect::<BTreeMap<_, _>>()
        };
        let (first, content) = &held[0];
        for (host, other) in &held[1..] {
            let (one, two) = (sums(content), sums(other));
            let differ = |block: &&u64| one.get(*block) != two.get(*block);
            let all: BTreeSet<u64> = one.keys().chain(two.keys()).copied().collect();
            let differing: Vec<_> = all
                .iter()
                .filter(differ)
                .map(|b| (b, content.get(b), other.get(b)))
                .collect();
            if !differing.is_empty() {
                let book = self.book.lock();
                let histories: Vec<_> = differing
                    .iter()
                    .map(|(block, ..)| book.blocks.get(block).cloned())
                    .collect();
                drop(book);
                self.wrong(format!("hosts {first} and {host} differ: {differing:?} {histories:?}"));
                return;
            }
        }
        let mut book = self.book.lock();
        let power = std::mem::take(&mut book.power);
        book.suspects.clear();
        let mut wrong = None;
        for (block, history) in &mut book.blocks {
            let floor = if power { history.flushed } else { history.acknowledged };
            let found = content.get(block).map_or(0, |block| block.stamp);
            if content.get(block).is_some_and(|block| !block.whole) {
                // Flipped on this copy: it is right elsewhere, or on none.
                continue;
            }
            match history.stamps[floor..].iter().rposition(|stamp| *stamp == found) {
                Some(at) => {
                    history.acknowledged = floor + at;
                    // Copies that were synced or compared are not flushed by that: the floor stays.
                }
                None => {
                    wrong = Some(format!(
                        "block {block} holds {found} in the end: {history:?}, not before {floor}"
                    ))
                }
            }
        }
        drop(book);
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }

    fn flushed(&self, before: &BTreeMap<u64, usize>) {
        let mut book = self.book.lock();
        for (block, at) in before {
            if let Some(history) = book.blocks.get_mut(block) {
                history.flushed = history.flushed.max(*at);
            }
        }
    }

    /// How far each block of a list is acknowledged.
    fn reached(&self, blocks: &[u64]) -> BTreeMap<u64, usize> {
        let book = self.book.lock();
        let of = |block: &u64| Some((*block, book.blocks.get(block)?.acknowledged));
        blocks.iter().filter_map(of).collect()
    }
}

impl Mount {
    /// Claims the volume for a node and follows its master. `None`: the node died, has no way to a master, or somebody has the claim.
    pub(super) fn open(judge: &Judge, host: Host) -> Option<Self> {
        let cluster = &judge.cluster;
        let process = cluster.process(host)?;
        let closed = CancellationToken::new();
        let (sender, receiver) = futures::channel::oneshot::channel();
        let (volume, ends) = (cluster.volume, closed.clone());
        cluster.world.spawn_on(host, "mount", move || {
            let _ = sender.send(block_on(open(&process, volume, ends)));
        });
        let (device, claim) = block_on(receiver).ok().flatten()?;
        let number = judge.mounted();
        Some(Self {
            host,
            device,
            closed,
            number,
            claim,
            running: Arc::default(),
        })
    }

    /// All is well again: if it has its claim, it works.
    pub(super) fn works(&self, judge: &Arc<Judge>) {
        // Its master may have moved just now.
        thread::sleep(Duration::from_secs(3));
        let before = judge.acknowledged();
        thread::sleep(Duration::from_secs(3));
        let alive = judge.cluster.process(self.host).is_some() && self.running.load(Ordering::SeqCst) > 0;
        if alive && judge.holds(self.host, self.claim) && judge.acknowledged() == before {
            judge.wrong("all is well and the mount does not write".to_owned());
        }
    }

    /// Starts the writers, each with blocks that no other has. They end when the mount is closed.
    pub(super) fn write(&self, judge: &Arc<Judge>) {
        for writer in 0..WRITERS {
            self.writer(judge, blocks_of(self.number * WRITERS + writer));
        }
    }

    fn writer(&self, judge: &Arc<Judge>, blocks: Vec<u64>) {
        let (judge, device, closed) = (judge.clone(), self.device.clone(), self.closed.clone());
        let (number, host, claim) = (self.number, self.host, self.claim);
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(self.running.clone());
        judge.cluster.world.clone().spawn_on(self.host, "writer", move || {
            let _running = running;
            while !closed.is_cancelled() {
                let may_write = judge.is_last(number);
                let started = time::Instant::now();
                match step(&judge, &*device, &blocks) {
                    Ok(true) if !may_write => {
                        judge.wrong(format!("mount {number} wrote after a later one had begun"));
                    }
                    Ok(_) | Err(DeviceError::ReadOnly(_)) => {}
                    Err(error) => {
                        let early = started.elapsed() < IO_TIMEOUT;
                        let right = match error {
                            DeviceError::Unavailable(_) | DeviceError::Fenced(_) => !early,
                            DeviceError::NoSpace(_) | DeviceError::Corrupt { .. } | DeviceError::Io(_) => {
                                judge.book.lock().harmed
                            }
                            _ => false,
                        };
                        if judge.holds(host, claim) && !right {
                            judge.wrong(format!("an error after {:?}: {error}", started.elapsed()));
                        }
                    }
                }
                thread::sleep(Duration::from_millis(10 + chance(200)));
            }
        });
    }

    /// Ends the writers, and gives the claim back.
    pub(super) fn close(&self, judge: &Judge) {
        self.closed.cancel();
        while self.running.load(Ordering::SeqCst) > 0 {
            thread::sleep(Duration::from_millis(10));
        }
        let Some(process) = judge.cluster.process(self.host) else {
            return;
        };
        block_on(async {
            while process
                .catalog
                .release_mount(judge.cluster.volume, Some(node(self.host)))
                .await
                .is_err()
            {}
        });
    }
}

async fn open(process: &Process, volume: VolumeId, closed: CancellationToken) -> Option<(Arc<SwitchDevice>, u64)> {
    let me = process.serving.node;
    let started = time::Instant::now();
    let record = loop {
        if started.elapsed() > Duration::from_secs(30) {
            return None;
        }
        let claimed = process.catalog.update_volume(volume, |record| {
            if record.mount.as_ref().is_some_and(|claim| claim.node != me) {
                return Err(CatalogError::InUse(String::new()));
            }
            record.claim(MountClaim {
                node: me,
                mountpoint: "/mnt".to_owned(),
                mounted_at: time::wall(),
                read_only: false,
            });
            Ok(())
        });
        if let Ok(record) = claimed.await {
            break record;
        }
        time::sleep(Duration::from_millis(200)).await;
    };
    let route = process.route();
    let backend = route.find(volume, record.mounts, Duration::from_secs(60)).await.ok()?;
    // As when a file system has been made.
    let formatted = process.catalog.update_volume(volume, |record| {
        record.formatted = true;
        Ok(())
    });
    formatted.await.ok()?;
    let device = SwitchDevice::new(backend, crate::node::records::state(&record).io_timeout);
    let followed = device.clone();
    task::spawn(async move {
        route
            .follow(volume, record.mounts, "default/v", &followed, &closed)
            .await;
    });
    Some((device, record.mounts))
}

/// A writer's blocks: two in each of some extents, side by side.
fn blocks_of(writer: u64) -> Vec<u64> {
    let two = |extent| [0, 1].map(|at| extent * EXTENT_BLOCKS + writer * 2 + at);
    (0..EXTENTS).flat_map(two).collect()
}

/// One thing that a writer does; whether it wrote.
fn step(judge: &Judge, device: &dyn BlockDevice, blocks: &[u64]) -> Result<bool, DeviceError> {
    let some = |many: usize| {
        let first = chance((blocks.len() - many + 1) as u64) as usize;
        blocks[first..first + many].to_vec()
    };
    match chance(10) {
        0..=5 => {
            let list = some(1 + chance(3.min(blocks.len() as u64)) as usize);
            let before = judge.reached(blocks);
            let stamps = judge.begin(&list);
            let writes: Vec<Write> = list
                .iter()
                .zip(&stamps)
                .map(|(block, stamp)| Write {
                    block: *block,
                    data: Bytes::from(bytes_of(*stamp)),
                })
                .collect();
            let flush = chance(4) == 0;
            let result = device.write(&writes, flush);
            judge.end(&list, &result);
            if flush && result.is_ok() {
                judge.flushed(&before);
                judge.flushed(&judge.reached(&list));
            }
            result.map(|()| true)
        }
        6 => {
            let before = judge.reached(blocks);
            let result = device.flush();
            if result.is_ok() {
                judge.flushed(&before);
            }
            result.map(|()| false)
        }
        _ => {
            let block = some(1)[0];
            let floor = judge.floor(block);
            let mut bytes = vec![0; BLOCK_SIZE];
            let result = device.read(block, &mut bytes);
            if result.is_ok() {
                judge.check(block, floor, &bytes, "the mount");
            }
            result.map(|()| false)
        }
    }
}

/// Reads as a master on `host` would for its mount, whatever it believes: a master that was replaced must not show what is old.
pub(super) fn spy(judge: &Arc<Judge>, host: Host, pause: Duration) {
    let Some(process) = judge.cluster.process(host) else {
        return;
    };
    let judge = judge.clone();
    judge.cluster.world.clone().spawn_on(host, "reader", move || {
        loop {
            thread::sleep(pause + Duration::from_micros(chance(3 * pause.as_micros() as u64)));
            let Some(master) = process.serving.host.master(judge.cluster.volume) else {
                continue;
            };
            let written: Vec<u64> = judge.book.lock().blocks.keys().copied().collect();
            let Some(block) = written.get(chance(written.len() as u64) as usize).copied() else {
                continue;
            };
            let floor = judge.floor(block);
            let mut bytes = vec![0; BLOCK_SIZE];
            if master.read(block, &mut bytes).is_ok() {
                judge.check(block, floor, &bytes, &format!("host {host}"));
            }
        }
    });
}
