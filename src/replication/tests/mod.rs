//! The promises of replication, on several nodes in one process.

mod cluster;
mod faults;
mod fencing;
mod remote;
mod strangers;

use super::{store::ZERO_SUM, *};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError, EXTENT_BLOCKS, Write, sums_of},
    volume::{EventKind, FailureMode},
};
use cluster::{BLOCKS, Cluster, LONG, eventually, filled, get, put};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

#[test]
fn acknowledged_writes_are_on_all_copies() {
    let cluster = Cluster::new(3, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    let writes = [
        Write {
            block: 5,
            data: filled(1, 3),
        },
        Write {
            block: EXTENT_BLOCKS - 1,
            data: filled(2, 2),
        },
    ];
    master.write(&writes, true).unwrap();
    for node in 0..3 {
        assert_eq!(cluster.block_of(node, 7), vec![1; BLOCK_SIZE]);
        assert_eq!(cluster.block_of(node, EXTENT_BLOCKS), vec![2; BLOCK_SIZE]);
    }
    // Larger than one message.
    put(&*master, 1000, 3, 2500).unwrap();
    master.discard(6, 1).unwrap();
    master.flush().unwrap();
    for node in 0..3 {
        assert_eq!(cluster.block_of(node, 3499), vec![3; BLOCK_SIZE]);
        assert_eq!(cluster.block_of(node, 6), vec![0; BLOCK_SIZE]);
        let entry = cluster.nodes[node].host.entry(cluster.volume).unwrap();
        assert_eq!(entry.copy().sums(6, 1).unwrap(), vec![ZERO_SUM]);
    }
    assert_eq!(get(&*master, 3499), 3);
    cluster.assert_identical(&master);
    assert!(matches!(
        put(&*master, BLOCKS - 1, 1, 2),
        Err(DeviceError::OutOfRange { .. })
    ));
}

#[test]
fn a_killed_replica_leaves_the_in_sync_set_and_writes_go_on() {
    for mode in [FailureMode::Soft, FailureMode::AlwaysOn] {
        let mut cluster = Cluster::new(3, 0, mode);
        let master = cluster.activate(0);
        let stop = AtomicBool::new(false);
        let acknowledged = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut round = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    put(&*master, round % BLOCKS, (round % 251) as u8 + 1, 1).unwrap();
                    round += 1;
                    acknowledged.store(round, Ordering::SeqCst);
                }
            });
            eventually("writes", || acknowledged.load(Ordering::SeqCst) > 20);
            cluster.kill(2);
            eventually("the replica leaves", || !cluster.is_in_sync(2));
            let then = acknowledged.load(Ordering::SeqCst);
            eventually("writes go on", || acknowledged.load(Ordering::SeqCst) > then + 20);
            stop.store(true, Ordering::SeqCst);
        });
        assert!(cluster.configuration().lost.contains_key(&cluster.nodes[2].id));
        assert_eq!(master.stats().snapshot().drops, 1);
        cluster.assert_identical(&master);
    }
}

#[test]
fn a_hard_volume_suspends_writes_then_is_read_only_and_returns_by_itself() {
    let mut cluster = Cluster::new(2, 0, FailureMode::Hard);
    cluster.config.state.lock().io_timeout = Duration::from_millis(300);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    cluster.kill(1);
    let error = put(&*master, 2, 2, 1).unwrap_err();
    assert!(matches!(error, DeviceError::ReadOnly(_)), "{error}");
    assert!(error.to_string().contains("1 of 1 replicas lost"), "{error}");
    assert_eq!(get(&*master, 1), 1);
    // Suspended for its time already: the next call fails at once.
    assert!(matches!(put(&*master, 2, 2, 1), Err(DeviceError::ReadOnly(_))));
    assert!(cluster.was_told(EventKind::ReplicaLost, Some(1)));
    assert!(cluster.was_told(EventKind::VolumeSuspended, None));
    eventually("read-only is told", || {
        cluster.was_told(EventKind::VolumeReadOnly, None)
    });
    assert_eq!(master.status().waits, None);
    cluster.restart(1);
    cluster.sync(&master, 1);
    eventually("the replica is in sync", || cluster.joined(&master, 1));
    eventually("writes go on", || put(&*master, 3, 3, 1).is_ok());
    assert!(cluster.was_told(EventKind::ReplicaSyncing, Some(1)));
    assert!(cluster.was_told(EventKind::ReplicaInSync, Some(1)));
    assert!(cluster.was_told(EventKind::VolumeWritable, None));
    assert_eq!(cluster.block_of(1, 3), vec![3; BLOCK_SIZE]);
    cluster.assert_identical(&master);
}

#[test]
fn a_suspended_write_succeeds_when_the_replica_is_back_in_time() {
    let mut cluster = Cluster::new(2, 0, FailureMode::Hard);
    let master = cluster.activate(0);
    cluster.kill(1);
    let writer = {
        let master = Arc::clone(&master);
        thread::spawn(move || put(&*master, 2, 2, 1))
    };
    eventually("suspended", || master.status().blocked.is_some());
    cluster.restart(1);
    cluster.sync(&master, 1);
    writer.join().unwrap().unwrap();
    assert_eq!(cluster.block_of(1, 2), vec![2; BLOCK_SIZE]);
    cluster.assert_identical(&master);
}

#[test]
fn concurrent_overlapping_writes_end_the_same_on_all_copies() {
    let cluster = Cluster::new(3, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    thread::scope(|scope| {
        for worker in 0..4 {
            let master = &master;
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(worker);
                for _ in 0..60 {
                    let count = random.random_range(1..6);
                    let block = random.random_range(0..12);
                    if random.random_ratio(1, 10) {
                        master.discard(block, count as u64).unwrap();
                    } else {
                        put(&**master, block, random.random_range(1..=255), count).unwrap();
                    }
                    if random.random_ratio(1, 20) {
                        master.flush().unwrap();
                    }
                }
            });
        }
    });
    cluster.assert_identical(&master);
}

#[test]
fn the_tail_of_a_dead_master_is_made_equal() {
    let mut cluster = Cluster::new(3, 0, FailureMode::AlwaysOn);
    let old = cluster.activate(0);
    put(&*old, 10, 1, 4).unwrap();
    old.flush().unwrap();
    // The master died while a write was on one replica only, and another one on the other only.
    let epoch = cluster.configuration().epoch;
    for (node, block, byte) in [(1, 11, 7), (2, EXTENT_BLOCKS + 3, 8)] {
        let data = filled(byte, 1);
        let write = CopyWrite {
            block,
            data: &data,
            sums: &sums_of(&data),
        };
        let entry = cluster.nodes[node].host.entry(cluster.volume).unwrap();
        entry.copy().write(epoch, &[write], false).unwrap();
    }
    old.stop();
    drop(old);
    cluster.kill(0);
    cluster.promote(1, 0);
    let new = cluster.activate(1);
    assert_eq!(get(&*new, 10), 1);
    assert_eq!(get(&*new, 11), 7);
    assert_eq!(get(&*new, EXTENT_BLOCKS + 3), 0);
    cluster.assert_identical(&new);
}

#[test]
fn a_write_not_known_to_be_everywhere_is_remembered_by_its_copies() {
    let cluster = Cluster::new(2, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    let entry = cluster.nodes[1].host.entry(cluster.volume).unwrap();
    put(&*master, 0, 1, 1).unwrap();
    put(&*master, 3 * EXTENT_BLOCKS, 1, 1).unwrap();
    // The last write's acknowledgement has not been told yet.
    assert!(entry.state().hot.contains(&3));
}

#[test]
fn a_restarted_node_takes_what_it_lost_in_a_power_cut_from_another_copy() {
    let mut cluster = Cluster::new(2, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    master.flush().unwrap();
    put(&*master, 2, 2, 1).unwrap();
    let epoch = cluster.configuration().epoch;
    master.stop();
    drop(master);
    cluster.kill(0);
    // What was not flushed is gone from the master's disk.
    cluster.nodes[0].faults.rebooted.store(true, Ordering::SeqCst);
    let entry = cluster.nodes[0].host.entry(cluster.volume).unwrap();
    entry.copy().discard(epoch, 2, 1).unwrap();
    drop(entry);
    cluster.restart(0);
    let master = cluster.activate(0);
    assert_eq!(get(&*master, 1), 1);
    assert_eq!(get(&*master, 2), 2, "acknowledged, and still on the other copy");
    cluster.assert_identical(&master);
}

#[test]
fn a_replica_that_lost_writes_in_a_power_cut_is_not_taken_back_as_it_is() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    cluster.kill(1);
    cluster.nodes[1].faults.rebooted.store(true, Ordering::SeqCst);
    cluster.restart(1);
    put(&*master, 2, 2, 1).unwrap();
    assert!(!cluster.is_in_sync(1));
    assert_eq!(get(&*master, 2), 2);
}

#[test]
fn a_replica_whose_process_restarted_is_taken_back_at_once() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    // Many times: the write may come before or after the loss of the connection has been noticed.
    for round in 1..=20 {
        put(&*master, 1, round, 1).unwrap();
        cluster.kill(1);
        cluster.restart(1);
        put(&*master, 2, round, 1).unwrap();
        assert!(cluster.is_in_sync(1), "round {round}");
        assert_eq!(cluster.block_of(1, 1), vec![round; BLOCK_SIZE]);
    }
    cluster.assert_identical(&master);
}

#[test]
fn a_sync_under_writes_ends_with_identical_copies() {
    let cluster = Cluster::new(2, 1, FailureMode::Soft);
    let master = cluster.activate(0);
    for extent in 0..BLOCKS / EXTENT_BLOCKS {
        put(&*master, extent * EXTENT_BLOCKS, extent as u8 + 1, 300).unwrap();
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 0..2 {
            let (master, stop) = (&master, &stop);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(worker);
                while !stop.load(Ordering::SeqCst) {
                    let block = random.random_range(0..BLOCKS - 8);
                    if random.random_ratio(1, 8) {
                        master.discard(block, 8).unwrap();
                    } else {
                        put(&**master, block, random.random_range(1..=255), 8).unwrap();
                    }
                }
            });
        }
        cluster.sync(&master, 2);
        eventually("in sync", || cluster.joined(&master, 2));
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(cluster.configuration().in_sync.len(), 3);
    assert!(cluster.configuration().syncing.is_empty());
    cluster.assert_identical(&master);
    put(&*master, 77, 77, 1).unwrap();
    assert_eq!(cluster.block_of(2, 77), vec![77; BLOCK_SIZE]);
}

#[test]
fn a_returning_replica_costs_only_what_changed() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    put(&*master, 0, 1, 3000).unwrap();
    cluster.kill(1);
    put(&*master, 2000, 2, 5).unwrap();
    master.discard(100, 2).unwrap();
    assert!(!cluster.is_in_sync(1));
    cluster.restart(1);
    cluster.sync(&master, 1);
    eventually("in sync", || cluster.joined(&master, 1));
    assert_eq!(master.stats().snapshot().sync_blocks, 7);
    cluster.assert_identical(&master);
}

#[test]
fn a_sync_that_fails_starts_again() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    put(&*master, 0, 1, 10).unwrap();
    cluster.kill(1);
    put(&*master, 0, 2, 10).unwrap();
    // Its node is not there yet.
    cluster.sync(&master, 1);
    let id = cluster.nodes[1].id;
    eventually("an error is shown", || {
        master
            .sync_progress()
            .get(&id)
            .is_some_and(|sync| sync.last_error.is_some())
    });
    cluster.restart(1);
    eventually("in sync", || cluster.joined(&master, 1));
    cluster.assert_identical(&master);
}

fn flip(cluster: &Cluster, node: usize, block: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(cluster.data_file(node))
        .unwrap();
    let at = block * BLOCK_SIZE as u64 + 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_flipped_bit_is_mended_when_read() {
    let cluster = Cluster::new(3, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    put(&*master, 4, 4, 8).unwrap();
    for (node, block) in [(0, 5), (0, 7), (1, 7)] {
        flip(&cluster, node, block);
    }
    let mut buffer = vec![0; 8 * BLOCK_SIZE];
    master.read(4, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 4));
    let stats = master.stats().snapshot();
    assert_eq!((stats.corruptions, stats.repairs), (2, 3));
    cluster.assert_identical(&master);

    for node in 0..3 {
        flip(&cluster, node, 6);
    }
    let error = master.read(4, &mut buffer).unwrap_err();
    assert!(matches!(error, DeviceError::Corrupt { block: 6 }), "{error}");
}

#[test]
fn one_bad_block_of_the_only_copy_does_not_keep_the_others_from_being_copied() {
    let cluster = Cluster::new(1, 1, FailureMode::Soft);
    let master = cluster.activate(0);
    put(&*master, 4, 4, 8).unwrap();
    flip(&cluster, 0, 6);
    cluster.sync(&master, 1);
    eventually("in sync", || cluster.joined(&master, 1));
    assert_eq!(cluster.block_of(1, 5), vec![4; BLOCK_SIZE]);
    assert_eq!(cluster.block_of(1, 7), vec![4; BLOCK_SIZE]);
    let error = master.read(6, &mut [0; BLOCK_SIZE]).unwrap_err();
    assert!(matches!(error, DeviceError::Corrupt { block: 6 }), "{error}");
    let there = cluster.nodes[1].host.entry(cluster.volume).unwrap();
    let error = there.copy().read(6, &mut [0; BLOCK_SIZE]).unwrap_err();
    assert!(
        matches!(error, CopyError::Corrupt { block: 6 }),
        "what is bad stays bad: {error}"
    );
    put(&*master, 6, 9, 1).unwrap();
    assert_eq!(get(&*master, 6), 9);
    cluster.assert_identical(&master);
}

#[test]
fn verification_names_the_copy_and_the_place_that_differ() {
    let cluster = Cluster::new(3, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    put(&*master, 0, 4, 2000).unwrap();
    let data = filled(9, 1);
    let write = CopyWrite {
        block: 1500,
        data: &data,
        sums: &sums_of(&data),
    };
    let entry = cluster.nodes[1].host.entry(cluster.volume).unwrap();
    let epoch = cluster.configuration().epoch;
    entry.copy().write(epoch, &[write], false).unwrap();
    flip(&cluster, 2, 3);
    let report = |found: &Verification, node: usize| {
        let id = cluster.nodes[node].id;
        found.copies.iter().find(|copy| copy.node == id).unwrap().clone()
    };
    let shallow = master.verify(false).unwrap();
    assert!(!shallow.identical());
    assert!(report(&shallow, 0).identical() && report(&shallow, 2).identical());
    assert_eq!(report(&shallow, 1).differing_extents, vec![1]);
    let deep = master.verify(true).unwrap();
    assert_eq!(report(&deep, 2).corrupt_blocks, vec![3]);
}

#[test]
fn a_full_disk_under_a_replica_makes_it_leave() {
    let cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    cluster.nodes[1].faults.full.store(true, Ordering::SeqCst);
    put(&*master, 1, 1, 1).unwrap();
    assert!(!cluster.is_in_sync(1));
}

#[test]
fn a_sync_whose_copy_fails_is_given_back_and_counted_and_works_once_the_disk_does() {
    let cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let id = cluster.nodes[1].id;
    let master = cluster.activate(0);
    let full = |full| cluster.nodes[1].faults.full.store(full, Ordering::SeqCst);
    full(true);
    put(&*master, 1, 1, 1).unwrap();
    assert_eq!(cluster.configuration().failures_of(id), 1);
    for count in 2..4 {
        cluster.sync(&master, 1);
        eventually("the copy is lost again", || {
            let now = cluster.configuration();
            now.failures_of(id) == count && now.lost.contains_key(&id)
        });
        eventually("its sync has ended", || master.status().syncs.is_empty());
    }
    full(false);
    cluster.sync(&master, 1);
    eventually("in sync", || cluster.joined(&master, 1));
    assert_eq!(cluster.configuration().failures_of(id), 3, "remembered for a while");
    assert_eq!(cluster.block_of(1, 1), vec![1; BLOCK_SIZE]);
    cluster.assert_identical(&master);
}

#[test]
fn a_sync_that_makes_no_progress_is_told_interrupted_and_started_again() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    cluster.options.sync_stall = Duration::from_millis(200);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    cluster.kill(1);
    put(&*master, 1, 2, 1).unwrap();
    cluster.restart(1);
    let stalled = Arc::clone(&cluster.nodes[1].faults.stalled);
    stalled.store(true, Ordering::SeqCst);
    cluster.sync(&master, 1);
    // On a busy machine it may stand still before that, while it connects.
    let id = cluster.nodes[1].id;
    eventually("the standstill is told", || {
        let told = cluster.seen.0.lock();
        told.iter().any(|(kind, node, why)| {
            *kind == EventKind::SyncStuck && *node == Some(id) && why.contains("while comparing and sending")
        })
    });
    stalled.store(false, Ordering::SeqCst);
    eventually("in sync", || cluster.joined(&master, 1));
    assert_eq!(cluster.block_of(1, 1), vec![2; BLOCK_SIZE]);
    cluster.assert_identical(&master);
}

#[test]
fn a_full_disk_under_the_master_hands_the_volume_over() {
    let cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    cluster.nodes[0].faults.full.store(true, Ordering::SeqCst);
    assert!(matches!(put(&*master, 1, 2, 1), Err(DeviceError::Fenced(_))));
    assert_eq!(cluster.configuration().master, Some(cluster.nodes[1].id));
    assert!(!cluster.is_in_sync(0));
    let new = cluster.activate(1);
    assert_eq!(get(&*new, 1), 2, "the other copy had taken it");
}

#[test]
fn a_full_disk_under_the_only_copy_is_told() {
    let cluster = Cluster::new(1, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    cluster.nodes[0].faults.full.store(true, Ordering::SeqCst);
    assert!(matches!(put(&*master, 1, 1, 1), Err(DeviceError::NoSpace(_))));
    cluster.nodes[0].faults.full.store(false, Ordering::SeqCst);
    put(&*master, 1, 1, 1).unwrap();
}

#[test]
fn without_a_control_plane_io_goes_on_and_a_loss_waits_for_it() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    cluster.config.down.store(true, Ordering::SeqCst);
    put(&*master, 1, 1, 1).unwrap();
    cluster.kill(1);
    let writer = {
        let master = Arc::clone(&master);
        thread::spawn(move || put(&*master, 2, 2, 1))
    };
    thread::sleep(Duration::from_millis(200));
    assert!(
        !writer.is_finished(),
        "acknowledged although the copy is still in the set"
    );
    eventually("the master says what it waits for", || {
        master.status().waiting.is_some_and(|why| why.contains("control plane"))
    });
    cluster.config.down.store(false, Ordering::SeqCst);
    writer.join().unwrap().unwrap();
    assert!(!cluster.is_in_sync(1));
}

#[test]
fn reads_wait_for_a_replica_that_is_away_for_a_moment_and_cost_it_nothing() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    for control_plane in [true, false] {
        cluster.config.down.store(!control_plane, Ordering::SeqCst);
        cluster.kill(1);
        // Longer than any promise.
        thread::sleep(Duration::from_secs(1));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let master = Arc::clone(&master);
                thread::spawn(move || get(&*master, 1))
            })
            .collect();
        thread::sleep(Duration::from_millis(500));
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        cluster.restart(1);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 1);
        }
        put(&*master, 1, 1, 1).unwrap();
        cluster.config.down.store(false, Ordering::SeqCst);
        assert!(cluster.is_in_sync(1));
    }
    cluster.assert_identical(&master);
}

/// The swap that ends a sync is not answered, and done later: nothing may be acknowledged meanwhile without the copy that joined.
#[test]
fn a_copy_of_which_it_is_not_known_whether_it_joined_holds_every_acknowledged_write() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    cluster.config.state.lock().io_timeout = Duration::from_millis(300);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    cluster.kill(1);
    put(&*master, 1, 2, 1).unwrap();
    cluster.restart(1);
    cluster.config.doubt.store(true, Ordering::SeqCst);
    cluster.sync(&master, 1);
    eventually("the swap is in doubt", || cluster.config.pending.lock().is_some());
    cluster.kill(1);
    let alone = put(&*master, 2, 7, 1);
    cluster.config.come_back();
    assert!(
        alone.is_err() || !cluster.is_in_sync(1),
        "acknowledged without a copy in sync"
    );
    cluster.restart(1);
    eventually("it is known", || {
        master.fenced().is_some() || put(&*master, 3, 8, 1).is_ok()
    });
    let master = if master.fenced().is_some() {
        cluster.activate(0)
    } else {
        master
    };
    if !cluster.is_in_sync(1) {
        cluster
            .configuration()
            .syncing
            .is_empty()
            .then(|| cluster.sync(&master, 1));
    }
    eventually("in sync", || cluster.joined(&master, 1));
    cluster.assert_identical(&master);
}

#[test]
fn the_only_copy_is_opened_again_after_its_disk_failed() {
    let cluster = Cluster::new(1, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    // A closed copy answers as a failed one does.
    cluster.nodes[0]
        .host
        .entry(cluster.volume)
        .unwrap()
        .copy()
        .close()
        .unwrap();
    assert!(put(&*master, 1, 2, 1).is_err());
    eventually("the master ends", || master.stopped().is_cancelled());
    // The mount's device still holds the old one.
    let again = cluster.activate(0);
    put(&*again, 1, 3, 1).unwrap();
    assert_eq!(get(&*again, 1), 3);
    drop(master);
}

#[test]
fn a_missing_copy_of_a_formatted_volume_is_never_made_anew() {
    let cluster = Cluster::new(1, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    master.stop();
    let host = &cluster.nodes[0].host;
    assert_eq!(host.list().unwrap().len(), 1);
    host.remove(cluster.volume).unwrap();
    assert!(host.list().unwrap().is_empty());
    let again = cluster.runtime.block_on(Master::activate(
        cluster.volume,
        host,
        &cluster.environment(),
        cluster.options,
    ));
    assert!(matches!(again, Err(ActivateError::Copy(CopyError::Missing))));
    assert!(cluster.directory().exists());
}

#[test]
fn a_volume_grows_on_all_copies() {
    let cluster = Cluster::new(2, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    master.grow(BLOCKS + 1000).unwrap();
    assert_eq!(master.blocks(), BLOCKS + 1000);
    put(&*master, BLOCKS + 999, 5, 1).unwrap();
    assert_eq!(cluster.block_of(1, BLOCKS + 999), vec![5; BLOCK_SIZE]);
}

#[test]
fn callers_that_flush_together_share_flushes() {
    let cluster = Cluster::new(2, 0, FailureMode::Soft);
    let master = cluster.activate(0);
    let started = Instant::now();
    thread::scope(|scope| {
        for worker in 0..8_u64 {
            let master = &master;
            scope.spawn(move || {
                for _ in 0..10 {
                    put(&**master, worker, 1, 1).unwrap();
                    master.flush().unwrap();
                }
            });
        }
    });
    assert!(started.elapsed() < LONG);
    assert!(master.stats().snapshot().flushes <= 80);
    cluster.assert_identical(&master);
}

#[test]
fn an_idle_volume_notices_a_dead_replica_and_a_new_master() {
    let mut cluster = Cluster::new(3, 0, FailureMode::AlwaysOn);
    cluster.options.replica_deadline = Duration::from_secs(2);
    let old = cluster.activate(0);
    cluster.kill(2);
    eventually("the replica leaves", || !cluster.is_in_sync(2));
    let heir = cluster.nodes[1].id;
    cluster.reconfigure(|configuration| configuration.master = Some(heir));
    let new = cluster.activate(1);
    eventually("the old master ends", || old.stopped().is_cancelled());
    put(&*new, 1, 1, 1).unwrap();
}

#[test]
fn an_idle_replica_that_restarts_stays_in_sync() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    let master = cluster.activate(0);
    put(&*master, 1, 1, 1).unwrap();
    cluster.kill(1);
    thread::sleep(Duration::from_millis(700));
    cluster.restart(1);
    put(&*master, 2, 2, 1).unwrap();
    assert!(cluster.is_in_sync(1));
    assert_eq!(cluster.block_of(1, 2), vec![2; BLOCK_SIZE]);
}

#[test]
fn a_slow_replica_is_left_out_at_its_deadline_and_its_late_write_changes_nothing() {
    let mut cluster = Cluster::new(2, 0, FailureMode::AlwaysOn);
    cluster.options.replica_deadline = Duration::from_secs(1);
    let master = cluster.activate(0);
    // Cold extents, so that the write waits on a thread that may.
    let stalled = &cluster.nodes[1].faults.stalled;
    stalled.store(true, Ordering::SeqCst);
    put(&*master, 1, 1, 1).unwrap();
    assert!(!cluster.is_in_sync(1));
    put(&*master, 1, 2, 1).unwrap();
    // The sync cannot begin before the late write has ended.
    cluster.sync(&master, 1);
    stalled.store(false, Ordering::SeqCst);
    eventually("in sync", || cluster.joined(&master, 1));
    assert_eq!(cluster.block_of(1, 1), vec![2; BLOCK_SIZE]);
    cluster.assert_identical(&master);
}

/// The order of the service's calls and of their fields is the format: a change needs a new protocol version.
#[test]
fn message_bytes_are_the_documented_ones() {
    use super::service::{Blocks, Position, Stamp};
    use crate::{
        rpc::{self, Payload, Sums},
        volume::VolumeId,
    };
    let volume = VolumeId::from_bytes([0xaa; 16]);
    let stamp = Stamp {
        volume,
        epoch: 3,
        session: 2,
    };
    let head = |message: DataRequest| {
        let bytes = rpc::bytes_of(tarpc::Response {
            request_id: 1,
            message: Ok(message),
        });
        let bytes = bytes.unwrap();
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let hex: String = bytes[12..12 + length]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        (hex, bytes.len() - 12 - length)
    };
    let id = format!("10{}", "aa".repeat(16));
    let write = DataRequest::Write {
        stamp,
        position: Position {
            term: 3,
            number: 9,
            settled: 7,
        },
        blocks: Blocks {
            ranges: vec![(300, 1)],
            data: vec![Payload(filled(1, 1))],
            sums: Sums::from(vec![[5; 32]]),
        },
        flush: true,
    };
    // Response 1, Ok; call 1; stamp; position; one range; one payload of 4096; sums of 32; flush.
    let expected = format!("010001{id}0302{}01ac02010180202001", "030907");
    assert_eq!(head(write), (expected, 4096 + 32));
    let fence = DataRequest::Fence {
        stamp,
        create: Some(6144),
    };
    assert_eq!(head(fence), (format!("010000{id}0302018030"), 0));
    let open = DataRequest::DeviceOpen {
        volume,
        caller: super::service::Caller {
            attachment: 4,
            session: 5,
        },
    };
    assert_eq!(head(open), (format!("01000c{id}0405"), 0));
}
