//! One master: an old one acknowledges nothing and reads nothing once another may have written.

use super::cluster::{Cluster, get, put};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError},
    volume::{Configuration, FailureMode, NodeId},
};

#[test]
fn an_old_master_is_refused_after_a_promotion() {
    let cluster = Cluster::new(3, 0, FailureMode::Soft);
    let old = cluster.activate(0);
    put(&*old, 1, 1, 1).unwrap();
    let heir = cluster.nodes[1].id;
    cluster.reconfigure(|configuration| configuration.master = Some(heir));
    let new = cluster.activate(1);
    // Nobody told the old one.
    assert!(matches!(put(&*old, 1, 9, 1), Err(DeviceError::Fenced(_))));
    assert!(matches!(old.read(1, &mut [0; BLOCK_SIZE]), Err(DeviceError::Fenced(_))));
    assert!(matches!(old.flush(), Err(DeviceError::Fenced(_))));
    assert_eq!(get(&*new, 1), 1);
    put(&*new, 1, 2, 1).unwrap();
    cluster.assert_identical(&new);
}

/// An old master reads nothing once the second node's, which `change` makes the master, has written. Nothing tells the old one.
fn reads_nothing_after(copies: usize, change: impl FnOnce(&mut Configuration, &[NodeId])) {
    let cluster = Cluster::new(copies, 0, FailureMode::Soft);
    let old = cluster.activate(0);
    put(&*old, 5, 1, 1).unwrap();
    assert_eq!(get(&*old, 5), 1);
    let ids: Vec<NodeId> = cluster.nodes.iter().map(|node| node.id).collect();
    cluster.reconfigure(|configuration| {
        configuration.master = Some(ids[1]);
        change(configuration, &ids);
    });
    let new = cluster.activate(1);
    put(&*new, 5, 2, 1).unwrap();
    let read = old.read(5, &mut vec![0; BLOCK_SIZE]);
    assert!(matches!(read, Err(DeviceError::Fenced(_))), "{read:?}");
    assert_eq!(get(&*new, 5), 2);
}

#[test]
fn an_old_master_reads_nothing_once_a_new_one_can_have_written() {
    reads_nothing_after(3, |configuration, ids| {
        configuration.lose(ids[0], jiff::Timestamp::now(), false);
    });
}

#[test]
fn a_master_that_hands_over_reads_nothing_more_as_its_own_copy_is_fenced() {
    reads_nothing_after(2, |_, _| {});
}

#[test]
fn an_idle_old_master_ends_when_it_hears_of_the_new_one() {
    let cluster = Cluster::new(2, 0, FailureMode::Soft);
    let old = cluster.activate(0);
    let heir = cluster.nodes[1].id;
    cluster.reconfigure(|configuration| configuration.master = Some(heir));
    assert!(matches!(cluster.tell(&old), Err(DeviceError::Fenced(_))));
    assert!(old.stopped().is_cancelled());
    assert!(cluster.nodes[0].host.master(cluster.volume).is_none());
}

#[test]
fn a_master_that_another_one_interrupted_does_not_go_on_when_the_record_is_its_own_again() {
    let cluster = Cluster::new(2, 0, FailureMode::Soft);
    let old = cluster.activate(0);
    put(&*old, 5, 1, 1).unwrap();
    cluster.reconfigure(|configuration| configuration.master = Some(cluster.nodes[1].id));
    let new = cluster.activate(1);
    put(&*new, 5, 2, 1).unwrap();
    cluster.reconfigure(|configuration| configuration.master = Some(cluster.nodes[0].id));
    // All that it ever hears is the record of now.
    assert!(matches!(cluster.tell(&old), Err(DeviceError::Fenced(_))));
    assert!(old.fenced().is_some());
    let again = cluster.activate(0);
    assert_eq!(get(&*again, 5), 2);
}
