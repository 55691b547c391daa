//! Nodes with copies in one process: real connections on the loopback, real files, a control store in memory.

use super::super::{store::Found, *};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError, Write},
    rpc::{Identity, Kind, Server},
    volume::{ClusterId, Configuration, EventKind, FailureMode, FailureRule, NodeId, VolumeId},
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    io::{Read, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

pub(super) const LONG: Duration = Duration::from_secs(30);
pub(super) const BLOCKS: u64 = 6 * 1024;

/// The control store.
pub(super) struct MemoryConfig {
    pub(super) state: Mutex<VolumeState>,
    pub(super) down: AtomicBool,
    /// Swaps are not answered; the first of them is kept here, to be done later.
    pub(super) doubt: AtomicBool,
    pub(super) pending: Mutex<Option<(u64, Configuration)>>,
}

impl MemoryConfig {
    /// What was not answered is done now, if it still fits.
    pub(super) fn come_back(&self) {
        let mut state = self.state.lock();
        if let Some((_, new)) = self
            .pending
            .lock()
            .take()
            .filter(|(at, _)| *at == state.configuration.epoch)
        {
            state.configuration = new;
        }
        self.doubt.store(false, Ordering::SeqCst);
    }
}

#[async_trait]
impl ConfigStore for MemoryConfig {
    async fn read(&self, _: VolumeId) -> Result<VolumeState, ConfigError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(ConfigError::Unavailable("down".to_owned()));
        }
        Ok(self.state.lock().clone())
    }

    async fn swap(&self, _: VolumeId, expected: u64, new: Configuration, _: &str) -> Result<(), ConfigError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(ConfigError::Unavailable("down".to_owned()));
        }
        if self.doubt.load(Ordering::SeqCst) {
            self.pending.lock().get_or_insert((expected, new));
            return Err(ConfigError::Unavailable("no answer".to_owned()));
        }
        let mut state = self.state.lock();
        if state.configuration.epoch != expected {
            return Err(ConfigError::Conflict(Box::new(state.configuration.clone())));
        }
        assert!(new.check(), "invariants of {new:?}");
        assert_eq!(new.epoch, expected + 1);
        state.configuration = new;
        Ok(())
    }

    async fn end_mounts(&self, _: VolumeId, expected: u64) -> Result<u64, ConfigError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(ConfigError::Unavailable("down".to_owned()));
        }
        let mut state = self.state.lock();
        if state.configuration.epoch != expected {
            return Err(ConfigError::Conflict(Box::new(state.configuration.clone())));
        }
        state.attachment += 1;
        Ok(state.attachment)
    }
}

/// Remembers the events of masters.
#[derive(Default)]
pub(super) struct Seen(pub(super) Mutex<Vec<(EventKind, Option<NodeId>, String)>>);

impl Observer for Seen {
    fn happened(&self, _: VolumeId, kind: EventKind, node: Option<NodeId>, detail: &str) {
        self.0.lock().push((kind, node, detail.to_owned()));
    }
}

#[derive(Default)]
pub(super) struct Addresses(Mutex<HashMap<NodeId, String>>);

impl Peers for Addresses {
    fn address(&self, node: NodeId) -> Option<String> {
        self.0.lock().get(&node).cloned()
    }
}

impl Addresses {
    /// The same addresses, for one who is to have networks of its own.
    pub(super) fn apart(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }

    /// Whoever connects to the node from now on connects there.
    pub(super) fn set(&self, node: NodeId, address: &str) {
        self.0.lock().insert(node, address.to_owned());
    }

    /// Puts a network between a node and those that connect to it from now on. When it turns `silent` nothing arrives any more, and
    /// nobody is told: connections stay open.
    pub(super) fn through_a_network(&self, node: NodeId, silent: &Arc<AtomicBool>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let to = self.0.lock().insert(node, here).unwrap();
        let silent = Arc::clone(silent);
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(&to).unwrap());
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                for (from, to) in [(near, far), back] {
                    let silent = Arc::clone(&silent);
                    thread::spawn(move || pass_on(from, to, &silent));
                }
            }
        });
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, silent: &AtomicBool) {
    let mut buffer = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while silent.load(Ordering::SeqCst) {
            thread::park();
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Those who were told nothing yet learn that it has ended.
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Copies on a disk that can be told to fail.
pub(super) struct Faulty {
    disk: Arc<DiskCopies>,
    /// Writes fail.
    pub(super) full: Arc<AtomicBool>,
    /// Writes wait.
    pub(super) stalled: Arc<AtomicBool>,
    /// Copies that are opened look as after a power loss.
    pub(super) rebooted: AtomicBool,
}

struct FaultyCopy {
    copy: Arc<dyn Copy>,
    full: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
}

impl Copy for FaultyCopy {
    fn blocks(&self) -> u64 {
        self.copy.blocks()
    }
    fn epoch(&self) -> u64 {
        self.copy.epoch()
    }
    fn advance_epoch(&self, epoch: u64) -> Result<(), CopyError> {
        self.copy.advance_epoch(epoch)
    }
    fn write(&self, epoch: u64, writes: &[CopyWrite<'_>], flush: bool) -> Result<(), CopyError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(CopyError::NoSpace("the test says so".to_owned()));
        }
        eventually("the disk goes on", || !self.stalled.load(Ordering::SeqCst));
        self.copy.write(epoch, writes, flush)
    }
    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), CopyError> {
        self.copy.read(block, buffer)
    }
    fn sums(&self, block: u64, count: u64) -> Result<Vec<crate::block::Sum>, CopyError> {
        self.copy.sums(block, count)
    }
    fn extent_hash(&self, extent: u64) -> Result<crate::block::Sum, CopyError> {
        self.copy.extent_hash(extent)
    }
    fn allocated_extents(&self) -> Result<Vec<u64>, CopyError> {
        self.copy.allocated_extents()
    }
    fn verify_extent(&self, extent: u64) -> Result<Vec<u64>, CopyError> {
        self.copy.verify_extent(extent)
    }
    fn is_hot(&self, block: u64, count: u64) -> bool {
        self.copy.is_hot(block, count)
    }
    fn hot_extents(&self) -> Vec<u64> {
        self.copy.hot_extents()
    }
    fn discard(&self, epoch: u64, block: u64, count: u64) -> Result<(), CopyError> {
        self.copy.discard(epoch, block, count)
    }
    fn flush(&self, epoch: u64) -> Result<(), CopyError> {
        self.copy.flush(epoch)
    }
    fn repair(&self, epoch: u64, block: u64, data: &[u8]) -> Result<(), CopyError> {
        self.copy.repair(epoch, block, data)
    }
    fn grow(&self, blocks: u64) -> Result<(), CopyError> {
        self.copy.grow(blocks)
    }
    fn vouch(&self) -> Result<(), CopyError> {
        self.copy.vouch()
    }
    fn failed(&self) -> Option<String> {
        self.copy.failed()
    }
    fn close(&self) -> Result<(), CopyError> {
        self.copy.close()
    }
    fn give_up(&self) {
        self.copy.give_up();
    }
}

impl Faulty {
    fn wrap(&self, copy: Arc<dyn Copy>) -> Arc<dyn Copy> {
        Arc::new(FaultyCopy {
            copy,
            full: Arc::clone(&self.full),
            stalled: Arc::clone(&self.stalled),
        })
    }
}

impl Copies for Faulty {
    fn create(&self, volume: VolumeId, blocks: u64, epoch: u64) -> Result<Arc<dyn Copy>, CopyError> {
        Ok(self.wrap(self.disk.create(volume, blocks, epoch)?))
    }

    fn open(&self, volume: VolumeId) -> Result<(Arc<dyn Copy>, Found), CopyError> {
        let (copy, mut found) = self.disk.open(volume)?;
        if self.rebooted.load(Ordering::SeqCst) {
            found.clean = false;
            found.same_boot = false;
        }
        Ok((self.wrap(copy), found))
    }

    fn remove(&self, volume: VolumeId) -> Result<(), CopyError> {
        self.disk.remove(volume)
    }

    fn list(&self) -> Result<Vec<VolumeId>, CopyError> {
        self.disk.list()
    }
}

pub(super) struct Node {
    pub(super) id: NodeId,
    identity: Identity,
    directory: PathBuf,
    pub(super) faults: Arc<Faulty>,
    pub(super) host: Arc<ReplicaHost>,
    server: Option<Server>,
}

pub(super) struct Cluster {
    pub(super) volume: VolumeId,
    pub(super) config: Arc<MemoryConfig>,
    pub(super) addresses: Arc<Addresses>,
    pub(super) seen: Arc<Seen>,
    pub(super) nodes: Vec<Node>,
    pub(super) options: Options,
    directory: tempfile::TempDir,
    /// Last: the rest may use it while it is dropped.
    pub(super) runtime: Runtime,
}

fn options() -> Options {
    Options {
        replica_deadline: Duration::from_secs(20),
        reconnect_deadline: Duration::from_secs(5),
        activation_deadline: Duration::from_secs(10),
        sync_yield: Duration::from_millis(5),
        sync_retry: Duration::from_millis(50),
        sync_stall: LONG,
    }
}

impl Cluster {
    /// `copies` nodes, all in sync, the first the master, and `spare` nodes without a copy.
    pub(super) fn new(copies: usize, spare: usize, mode: FailureMode) -> Self {
        let runtime = Runtime::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let cluster = ClusterId::random();
        let addresses = Arc::new(Addresses::default());
        let nodes: Vec<Node> = (0..copies + spare)
            .map(|number| {
                let id = NodeId::random();
                let identity = Identity::sample(id, cluster);
                let path = directory.path().join(number.to_string());
                let faults = Arc::new(Faulty {
                    disk: DiskCopies::new(&path).unwrap(),
                    full: Arc::default(),
                    stalled: Arc::default(),
                    rebooted: AtomicBool::new(false),
                });
                let mut node = Node {
                    id,
                    identity: identity.clone(),
                    directory: path,
                    host: ReplicaHost::new(identity, Arc::clone(&faults) as Arc<dyn Copies>),
                    faults,
                    server: None,
                };
                node.listen(&runtime, &addresses);
                node
            })
            .collect();
        let replicas = u8::try_from(copies - 1).unwrap();
        let config = Arc::new(MemoryConfig {
            state: Mutex::new(VolumeState {
                configuration: Configuration {
                    epoch: 1,
                    master: Some(nodes[0].id),
                    in_sync: nodes[..copies].iter().map(|node| node.id).collect(),
                    syncing: BTreeSet::new(),
                    lost: Default::default(),
                    established: replicas,
                    failures: Default::default(),
                },
                rule: FailureRule {
                    mode,
                    replicas,
                    tolerance: None,
                },
                io_timeout: LONG,
                blocks: BLOCKS,
                formatted: false,
                attachment: 0,
            }),
            down: AtomicBool::new(false),
            doubt: AtomicBool::new(false),
            pending: Mutex::new(None),
        });
        Self {
            volume: VolumeId::random(),
            config,
            addresses,
            seen: Arc::default(),
            nodes,
            options: options(),
            directory,
            runtime,
        }
    }

    pub(super) fn environment(&self) -> Environment {
        Environment {
            observer: self.seen.clone(),
            config: Arc::clone(&self.config) as Arc<dyn ConfigStore>,
            peers: Arc::clone(&self.addresses) as Arc<dyn Peers>,
            runtime: crate::exec::Runtime::of(self.runtime.handle().clone()),
        }
    }

    pub(super) fn activate(&self, node: usize) -> Arc<Master> {
        self.try_activate(node).unwrap()
    }

    pub(super) fn try_activate(&self, node: usize) -> Result<Arc<Master>, ActivateError> {
        let master = self.runtime.block_on(Master::activate(
            self.volume,
            &self.nodes[node].host,
            &self.environment(),
            self.options,
        ));
        self.config.state.lock().formatted = true;
        master
    }

    pub(super) fn state(&self) -> VolumeState {
        self.config.state.lock().clone()
    }

    pub(super) fn configuration(&self) -> Configuration {
        self.state().configuration
    }

    /// Whether a master told of such an event.
    pub(super) fn was_told(&self, kind: EventKind, node: Option<usize>) -> bool {
        let node = node.map(|node| self.nodes[node].id);
        self.seen.0.lock().iter().any(|(k, n, _)| (*k, *n) == (kind, node))
    }

    pub(super) fn is_in_sync(&self, node: usize) -> bool {
        self.configuration().in_sync.contains(&self.nodes[node].id)
    }

    /// Whether the master counts a node's copy as in sync.
    pub(super) fn joined(&self, master: &Master, node: usize) -> bool {
        master.status().configuration.in_sync.contains(&self.nodes[node].id)
    }

    /// Changes the record as the controller would, at the next epoch.
    pub(super) fn reconfigure(&self, change: impl FnOnce(&mut Configuration)) {
        let mut state = self.config.state.lock();
        change(&mut state.configuration);
        state.configuration.epoch += 1;
        assert!(state.configuration.check());
    }

    /// Makes another node the master and leaves a dead one's copy out, as the controller does.
    pub(super) fn promote(&self, heir: usize, dead: usize) {
        let (heir, dead) = (self.nodes[heir].id, self.nodes[dead].id);
        self.reconfigure(|configuration| {
            configuration.master = Some(heir);
            configuration.in_sync.remove(&dead);
        });
    }

    /// Tells a master of the record.
    pub(super) fn tell(&self, master: &Master) -> Result<(), DeviceError> {
        self.runtime.block_on(master.configuration_changed(self.state()))
    }

    /// Ends a node as a killed process ends: connections break, files stay as they are.
    pub(super) fn kill(&mut self, node: usize) {
        let volume = self.volume;
        let node = &mut self.nodes[node];
        if let Some(server) = node.server.take() {
            self.runtime.block_on(server.stop());
        }
        if let Some(master) = node.host.master(volume) {
            master.stop();
        }
        let entry = node.host.entry(volume).ok().map(|entry| Arc::downgrade(&entry));
        node.host = ReplicaHost::new(node.identity.clone(), Arc::clone(&node.faults) as Arc<dyn Copies>);
        // Disk work that was under way ends with the process; here it has to be waited for.
        eventually("the copy is closed", || {
            entry.as_ref().is_none_or(|entry| entry.upgrade().is_none())
        });
    }

    pub(super) fn restart(&mut self, node: usize) {
        self.nodes[node].listen(&self.runtime, &self.addresses);
    }

    /// Puts a node's copy among those to be synced, and tells the master.
    pub(super) fn sync(&self, master: &Master, node: usize) {
        self.try_sync(master, node).unwrap();
    }

    pub(super) fn try_sync(&self, master: &Master, node: usize) -> Result<(), DeviceError> {
        let id = self.nodes[node].id;
        self.reconfigure(|configuration| {
            configuration.lost.remove(&id);
            configuration.syncing.insert(id);
        });
        self.tell(master)
    }

    /// The file with a copy's blocks.
    pub(super) fn data_file(&self, node: usize) -> PathBuf {
        self.nodes[node].directory.join(self.volume.to_string()).join("data")
    }

    /// Bytes of a block as a node's copy has them.
    pub(super) fn block_of(&self, node: usize, block: u64) -> Vec<u8> {
        let mut buffer = vec![0; BLOCK_SIZE];
        let entry = self.nodes[node].host.entry(self.volume).unwrap();
        entry.copy().read(block, &mut buffer).unwrap();
        buffer
    }

    /// Whether all in-sync copies are identical, bytes included.
    pub(super) fn assert_identical(&self, master: &Master) {
        let found = master.verify(true).unwrap();
        assert!(found.identical(), "{found:?}");
        assert_eq!(found.copies.len(), self.configuration().in_sync.len());
        for node in self.nodes.iter().filter(|node| node.id != master.node()) {
            if !self.configuration().in_sync.contains(&node.id) {
                continue;
            }
            let own = self.nodes.iter().find(|own| own.id == master.node()).unwrap();
            let own = own.host.entry(self.volume).unwrap();
            let other = node.host.entry(self.volume).unwrap();
            for extent in 0..BLOCKS / 1024 {
                assert_eq!(
                    own.copy().extent_hash(extent).unwrap(),
                    other.copy().extent_hash(extent).unwrap()
                );
            }
        }
    }

    /// Keeps the directory's name in use until the end.
    pub(super) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

impl Node {
    fn listen(&mut self, runtime: &Runtime, addresses: &Addresses) {
        let identity = self.identity.clone();
        let host = Arc::clone(&self.host);
        let server = runtime.block_on(async {
            let (data, sync) = (Arc::clone(&host), host);
            Server::bind("127.0.0.1:0", identity)
                .await
                .unwrap()
                .on(Kind::Data, move |connection| Arc::clone(&data).serve(connection))
                .on(Kind::Sync, move |connection| Arc::clone(&sync).serve(connection))
                .start()
                .unwrap()
        });
        addresses.0.lock().insert(self.id, server.local_address().to_string());
        self.server = Some(server);
    }
}

/// `count` blocks of `byte`.
pub(super) fn filled(byte: u8, count: usize) -> Bytes {
    Bytes::from(vec![byte; count * BLOCK_SIZE])
}

pub(super) fn put(device: &dyn BlockDevice, block: u64, byte: u8, count: usize) -> Result<(), DeviceError> {
    let data = filled(byte, count);
    device.write(&[Write { block, data }], false)
}

pub(super) fn get(device: &dyn BlockDevice, block: u64) -> u8 {
    let mut buffer = vec![0; BLOCK_SIZE];
    device.read(block, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == buffer[0]));
    buffer[0]
}

/// Waits for a condition.
pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
