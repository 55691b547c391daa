//! Random faults under writes: whatever was acknowledged is there afterwards, and the copies are identical.
//!
//! One round is a seeded sequence of faults (a node killed, restarted, the master moved without being told, the control
//! plane away, a disk that hangs) while
//! threads write through a device on a node without a copy. A block is only written by one thread, which knows the last
//! value that was acknowledged and the one it was writing.

use super::cluster::{BLOCKS, Cluster, eventually, filled, get};
use crate::{
    block::{BlockDevice, EXTENT_BLOCKS, Write},
    replication::{Master, RemoteDevice},
    volume::FailureMode,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IteratorRandom};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

const WRITERS: u64 = 3;
const COPIES: usize = 3;

/// What a writer knows of a block: the value acknowledged last, and any that it tried since.
#[derive(Clone, Default)]
struct Known {
    acknowledged: u8,
    tried: Vec<u8>,
}

/// Block number `slot` of a writer: spread over the extents, each only its own.
fn block(writer: u64, slot: u64) -> u64 {
    (slot * EXTENT_BLOCKS / 3 + slot * WRITERS + writer) % BLOCKS
}

fn write_until(
    stop: &AtomicBool,
    count: &AtomicU64,
    device: &RemoteDevice,
    writer: u64,
    seed: u64,
    known: &Mutex<Vec<Known>>,
) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::SeqCst) {
        let slot = random.random_range(0..known.lock().len());
        let value = random.random_range(1..=255);
        known.lock()[slot].tried.push(value);
        let write = Write {
            block: block(writer, slot as u64),
            data: filled(value, 1),
        };
        if device.write(&[write], random.random_ratio(1, 4)).is_ok() {
            known.lock()[slot] = Known {
                acknowledged: value,
                tried: Vec::new(),
            };
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Controller {
    cluster: Cluster,
    master: Option<Arc<Master>>,
    /// The master's node.
    at: usize,
    up: [bool; COPIES],
}

impl Controller {
    fn kill(&mut self, node: usize) {
        if node == self.at {
            self.master = None;
        }
        self.up[node] = false;
        self.cluster.kill(node);
    }

    fn start(&mut self, node: usize) {
        if !self.up[node] {
            self.cluster.restart(node);
            self.up[node] = true;
        }
    }

    /// Makes the record right and a master active, as the control plane would.
    fn heal(&mut self, random: &mut StdRng) {
        loop {
            let configuration = self.cluster.configuration();
            let named = (0..COPIES).find(|node| configuration.master == Some(self.cluster.nodes[*node].id));
            let named = named.expect("there always is one");
            if self
                .master
                .as_ref()
                .is_some_and(|master| !master.stopped().is_cancelled())
                && named == self.at
            {
                break;
            }
            self.master = None;
            if self.up[named] {
                self.at = named;
                match self.cluster.try_activate(named) {
                    Ok(master) => self.master = Some(master),
                    Err(error) => eprintln!("activation on {named}: {error}"),
                }
                continue;
            }
            let heir = (0..COPIES)
                .filter(|node| self.up[*node] && self.cluster.is_in_sync(*node))
                .choose(random);
            match heir {
                Some(heir) => {
                    let (dead, heir) = (self.cluster.nodes[named].id, self.cluster.nodes[heir].id);
                    self.cluster.reconfigure(|configuration| {
                        configuration.master = Some(heir);
                        configuration.in_sync.remove(&dead);
                        configuration.lost.insert(dead, Timestamp::now());
                    });
                }
                // The only copy that holds everything has to come back.
                None => self.start(named),
            }
        }
        for node in 0..COPIES {
            let id = self.cluster.nodes[node].id;
            if self.up[node]
                && self.cluster.configuration().lost.contains_key(&id)
                && let Some(master) = &self.master
            {
                // A refused change is made again in the next round.
                let _ = self.cluster.try_sync(master, node);
            }
        }
    }
}

fn round(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::new(COPIES, 1, FailureMode::AlwaysOn);
    cluster.options.replica_deadline = Duration::from_millis(300);
    cluster.options.reconnect_deadline = Duration::from_millis(300);
    cluster.options.activation_deadline = Duration::from_millis(500);
    let master = cluster.activate(0);
    let device = Arc::new(super::remote::remote(&cluster, COPIES, 1).unwrap());
    let mut controller = Controller {
        cluster,
        master: Some(master),
        at: 0,
        up: [true; COPIES],
    };
    let known: Vec<Mutex<Vec<Known>>> = (0..WRITERS).map(|_| Mutex::new(vec![Known::default(); 16])).collect();
    let stop = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    thread::scope(|scope| {
        for (writer, known) in known.iter().enumerate() {
            let (stop, count, device) = (&stop, &count, &device);
            let seed = random.random();
            scope.spawn(move || write_until(stop, count, device, writer as u64, seed, known));
        }
        for _ in 0..6 {
            let node = random.random_range(0..COPIES);
            match random.random_range(0..7) {
                0 => controller.kill(node),
                1 => {
                    controller.kill(node);
                    controller.start(node);
                }
                2 => {
                    // The old master is not told.
                    let id = controller.cluster.nodes[node].id;
                    if controller.up[node] && controller.cluster.is_in_sync(node) {
                        controller
                            .cluster
                            .reconfigure(|configuration| configuration.master = Some(id));
                    }
                }
                3 => controller.start(node),
                4 => {
                    // The control plane is away while a copy is lost.
                    controller.cluster.config.down.store(true, Ordering::SeqCst);
                    controller.kill(node);
                    thread::sleep(Duration::from_millis(random.random_range(0..150)));
                    controller.cluster.config.down.store(false, Ordering::SeqCst);
                }
                _ => {
                    // A disk hangs, for less or more than the replica deadline.
                    let stalled = Arc::clone(&controller.cluster.nodes[node].faults.stalled);
                    stalled.store(true, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(random.random_range(0..500)));
                    stalled.store(false, Ordering::SeqCst);
                }
            }
            controller.heal(&mut random);
            let then = count.load(Ordering::SeqCst);
            let more = random.random_range(0..10);
            eventually("writes go on", || count.load(Ordering::SeqCst) >= then + more);
            thread::sleep(Duration::from_millis(random.random_range(0..30)));
        }
        stop.store(true, Ordering::SeqCst);
    });
    for node in 0..COPIES {
        controller.start(node);
    }
    eventually("all copies are in sync", || {
        controller.heal(&mut random);
        (0..COPIES).all(|node| {
            controller
                .master
                .as_ref()
                .is_some_and(|master| controller.cluster.joined(master, node))
        })
    });
    let master = controller.master.clone().expect("healed");
    for (writer, known) in known.iter().enumerate() {
        for (slot, known) in known.lock().iter().enumerate() {
            let value = get(&*device, block(writer as u64, slot as u64));
            assert!(
                value == known.acknowledged || known.tried.contains(&value),
                "seed {seed}: block {slot} of {writer} is {value}, acknowledged {}, tried {:?}",
                known.acknowledged,
                known.tried
            );
        }
    }
    controller.cluster.assert_identical(&master);
}

#[test]
fn acknowledged_writes_survive_random_faults() {
    for seed in 0..2 {
        round(seed);
    }
}

/// More of the same: `STORAGEOS_SEEDS=100..200 cargo test -- --ignored`.
#[test]
#[ignore = "long"]
fn acknowledged_writes_survive_many_random_faults() {
    let seeds = std::env::var("STORAGEOS_SEEDS").unwrap_or_else(|_| "0..50".to_owned());
    let (from, to) = seeds.split_once("..").expect("FROM..TO");
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        eprintln!("seed {seed}");
        round(seed);
    }
}
