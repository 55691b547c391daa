//! A mount on a node without the master: its device follows the volume, whatever happens to masters and links.

use super::cluster::{BLOCKS, Cluster, LONG, MemoryConfig, eventually, get, put};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError},
    replication::*,
    volume::FailureMode,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub(super) fn remote(cluster: &Cluster, node: usize, attachment: u64) -> Result<RemoteDevice, DeviceError> {
    cluster.runtime.block_on(RemoteDevice::open(
        cluster.volume,
        cluster.nodes[node].host.identity().clone(),
        cluster.environment(),
        attachment,
    ))
}

#[test]
fn a_remote_device_survives_a_change_of_master() {
    let mut cluster = Cluster::new(2, 1, FailureMode::AlwaysOn);
    let old = cluster.activate(0);
    let device = remote(&cluster, 2, 1).unwrap();
    assert_eq!(device.blocks(), BLOCKS);
    put(&device, 1, 1, 1200).unwrap();
    assert_eq!(get(&device, 1200), 1);
    // The master's node dies while the device writes.
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let new = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let round = written.load(Ordering::SeqCst) + 1;
                put(&device, round % 100, (round % 250) as u8 + 1, 1).unwrap();
                device.flush().unwrap();
                written.store(round, Ordering::SeqCst);
            }
        });
        eventually("writes", || written.load(Ordering::SeqCst) > 5);
        old.stop();
        drop(old);
        cluster.kill(0);
        let new = promote_second(&cluster);
        let then = written.load(Ordering::SeqCst);
        eventually("writes go on", || written.load(Ordering::SeqCst) > then + 5);
        stop.store(true, Ordering::SeqCst);
        new
    });
    let last = written.load(Ordering::SeqCst);
    assert_eq!(get(&device, last % 100), (last % 250) as u8 + 1);
    device.discard(1000, 10).unwrap();
    assert_eq!(get(&*new, 1005), 0);
    assert_eq!(get(&*new, 999), 1);
}

#[test]
fn a_remote_device_leaves_a_master_that_falls_silent() {
    let cluster = Cluster::new(2, 1, FailureMode::AlwaysOn);
    // A call is given up because its node is silent, not because its time is over.
    cluster.config.state.lock().io_timeout = 2 * LONG;
    let old = cluster.activate(0);
    let silent = Arc::new(AtomicBool::new(false));
    cluster.addresses.through_a_network(cluster.nodes[0].id, &silent);
    let device = remote(&cluster, 2, 1).unwrap();
    put(&device, 1, 1, 1).unwrap();
    silent.store(true, Ordering::SeqCst);
    let new = promote_second(&cluster);
    let started = Instant::now();
    put(&device, 1, 2, 1).unwrap();
    assert!(started.elapsed() < LONG, "after {:?}", started.elapsed());
    assert_eq!(get(&*new, 1), 2);
    old.stop();
}

/// Activates the first node's master where it can be cut off from its copies and from the record, by what it returns; others still reach it.
fn activate_cut_off(cluster: &Cluster, io_timeout: Duration) -> (Arc<Master>, impl FnOnce() + use<>) {
    let mut state = cluster.state();
    state.io_timeout = io_timeout;
    let config = Arc::new(MemoryConfig {
        state: parking_lot::Mutex::new(state),
        down: AtomicBool::new(false),
        doubt: AtomicBool::new(false),
        pending: parking_lot::Mutex::new(None),
    });
    let silent = Arc::new(AtomicBool::new(false));
    let addresses = cluster.addresses.apart();
    for node in &cluster.nodes[1..] {
        addresses.through_a_network(node.id, &silent);
    }
    let environment = Environment {
        config: Arc::clone(&config) as Arc<dyn ConfigStore>,
        peers: Arc::new(addresses),
        ..cluster.environment()
    };
    let host = &cluster.nodes[0].host;
    let activated = Master::activate(cluster.volume, host, &environment, cluster.options);
    let master = cluster.runtime.block_on(activated).unwrap();
    cluster.config.state.lock().formatted = true;
    (master, move || {
        config.down.store(true, Ordering::SeqCst);
        silent.store(true, Ordering::SeqCst);
    })
}

/// Makes the second node the master, as the controller does when it hears nothing of the first.
fn promote_second(cluster: &Cluster) -> Arc<Master> {
    cluster.promote(1, 0);
    cluster.activate(1)
}

#[test]
fn a_remote_device_leaves_a_master_that_only_it_still_reaches() {
    let cluster = Cluster::new(2, 1, FailureMode::AlwaysOn);
    let (old, cut_off) = activate_cut_off(&cluster, LONG);
    let device = remote(&cluster, 2, 1).unwrap();
    put(&device, 1, 1, 1).unwrap();
    cut_off();
    thread::scope(|scope| {
        let started = Instant::now();
        let writers: Vec<_> = (1..4)
            .map(|block| {
                let device = &device;
                scope.spawn(move || put(device, block, 2, 1))
            })
            .collect();
        let new = promote_second(&cluster);
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
        assert!(started.elapsed() < LONG / 3, "after {:?}", started.elapsed());
        assert_eq!((1..4).map(|block| get(&*new, block)).collect::<Vec<_>>(), [2, 2, 2]);
    });
    old.stop();
}

#[test]
fn a_remote_device_tries_again_when_a_master_says_that_its_volume_is_unavailable() {
    for promoted in [true, false] {
        let mut cluster = Cluster::new(2, 1, FailureMode::AlwaysOn);
        let soon = Duration::from_millis(300);
        (cluster.options.replica_deadline, cluster.options.reconnect_deadline) = (soon, soon);
        let (old, cut_off) = activate_cut_off(&cluster, soon);
        let io_timeout = if promoted { LONG } else { Duration::from_secs(3) };
        cluster.config.state.lock().io_timeout = io_timeout;
        let device = remote(&cluster, 2, 1).unwrap();
        cut_off();
        let started = Instant::now();
        let result = thread::scope(|scope| {
            let writer = scope.spawn(|| put(&device, 1, 2, 1));
            thread::sleep(Duration::from_secs(2));
            if promoted {
                promote_second(&cluster);
            }
            writer.join().unwrap()
        });
        if promoted {
            result.unwrap();
        } else {
            // At the end of its time it says what the master said.
            let error = result.unwrap_err();
            assert!(matches!(error, DeviceError::Unavailable(_)), "{error}");
            assert!(error.to_string().contains("control plane is unavailable"), "{error}");
            assert!(started.elapsed() >= io_timeout, "after {:?}", started.elapsed());
        }
        old.stop();
    }
}

#[test]
fn an_older_mount_cannot_write_any_more() {
    let cluster = Cluster::new(1, 2, FailureMode::Soft);
    let master = cluster.activate(0);
    let first = remote(&cluster, 1, 1).unwrap();
    put(&first, 1, 1, 1).unwrap();
    let second = remote(&cluster, 2, 2).unwrap();
    put(&second, 1, 2, 1).unwrap();
    assert!(matches!(put(&first, 1, 3, 1), Err(DeviceError::Fenced(_))));
    assert!(matches!(remote(&cluster, 1, 1), Err(DeviceError::Fenced(_))));
    // A mount on the master's own node.
    cluster.config.state.lock().attachment = 3;
    cluster.tell(&master).unwrap();
    assert!(matches!(put(&second, 1, 3, 1), Err(DeviceError::Fenced(_))));
    let here = master.attach(3).unwrap();
    assert_eq!(get(&here, 1), 2);
    put(&here, 1, 4, 1).unwrap();
    // And a later one elsewhere: the one here is over, although its master serves on.
    let fourth = remote(&cluster, 2, 4).unwrap();
    put(&fourth, 1, 5, 1).unwrap();
    assert!(matches!(put(&here, 1, 6, 1), Err(DeviceError::Fenced(_))));
    assert!(matches!(here.flush(), Err(DeviceError::Fenced(_))));
    let mut buffer = vec![0; BLOCK_SIZE];
    assert!(matches!(here.read(1, &mut buffer), Err(DeviceError::Fenced(_))));
    assert_eq!(get(&fourth, 1), 5);
}

#[test]
fn a_mount_whose_master_came_to_its_node_needs_the_network_no_more() {
    let cluster = Cluster::new(2, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    // It found the master by itself, over the network, before anybody told it that it is here.
    let way = remote(&cluster, 0, 1).unwrap();
    put(&way, 1, 1, 1).unwrap();
    let here = master.attach(1).unwrap();
    put(&here, 1, 2, 1).unwrap();
    assert!(
        matches!(put(&way, 1, 3, 1), Err(DeviceError::Fenced(_))),
        "it would overtake the other"
    );
    assert_eq!(get(&here, 1), 2);
}

#[test]
fn suspended_remote_writes_leave_room_for_what_ends_the_suspension() {
    let mut cluster = Cluster::new(2, 1, FailureMode::Hard);
    let master = cluster.activate(0);
    let device = remote(&cluster, 2, 1).unwrap();
    cluster.kill(1);
    thread::scope(|scope| {
        for block in 0..40 {
            let device = &device;
            scope.spawn(move || put(device, block, 1, 1).unwrap());
        }
        eventually("suspended", || master.status().blocked.is_some());
        cluster.restart(1);
        cluster.sync(&master, 1);
    });
    cluster.assert_identical(&master);
}

#[test]
fn a_mount_does_not_outlive_what_its_copies_lost() {
    for intact in [true, false] {
        let mut cluster = Cluster::new(2, 1, FailureMode::AlwaysOn);
        cluster.config.state.lock().attachment = 1;
        let old = cluster.activate(0);
        let device = remote(&cluster, 2, 1).unwrap();
        put(&device, 1, 1, 1).unwrap();
        // The machine of one copy stops, or those of both; nothing was flushed.
        cluster.nodes[0].faults.rebooted.store(true, Ordering::SeqCst);
        cluster.nodes[1].faults.rebooted.store(!intact, Ordering::SeqCst);
        old.stop();
        drop(old);
        for node in 0..2 {
            cluster.kill(node);
            cluster.restart(node);
        }
        cluster.activate(0);
        let flushed = device.flush();
        assert_eq!(flushed.is_ok(), intact, "{flushed:?}");
        if !intact {
            assert!(matches!(put(&device, 1, 2, 1), Err(DeviceError::Fenced(_))));
            let claim = cluster.state().attachment;
            put(&remote(&cluster, 2, claim).unwrap(), 1, 3, 1).unwrap();
        }
    }
}

#[test]
fn what_is_on_the_copies_after_an_activation_is_not_lost_again() {
    let mut cluster = Cluster::new(2, 1, FailureMode::AlwaysOn);
    drop(cluster.activate(0));
    for node in 0..2 {
        cluster.nodes[node].faults.rebooted.store(true, Ordering::SeqCst);
        cluster.kill(node);
        cluster.restart(node);
    }
    let master = cluster.activate(0);
    let ended = cluster.state().attachment;
    assert_eq!(ended, 1, "whoever had it mounted may have lost something");
    // Nobody writes; the mastership moves, as to a node that mounts the volume.
    let heir = cluster.nodes[1].id;
    cluster.reconfigure(|configuration| configuration.master = Some(heir));
    let next = cluster.activate(1);
    assert_eq!(cluster.state().attachment, ended);
    master.stop();
    put(&*next, 1, 1, 1).unwrap();
}
