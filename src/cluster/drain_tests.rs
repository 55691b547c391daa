//! What a drained node's copies wait for, case by case.

use super::*;
use crate::cluster::plan::tests::{World, id};
use std::sync::Arc;

fn one(world: &World, node: u8) -> Option<(bool, Waiting)> {
    let mut left = remaining(&world.view, id(node));
    assert!(left.len() <= 1);
    left.pop().map(|r| (r.master, r.waiting))
}

#[test]
fn each_copy_says_what_it_waits_for() {
    let world = |nodes, dead: &[(u8, i64)], replicas, in_sync: &[u8], syncing: &[u8], lost: &[(u8, i64)]| {
        let mut world = World::new(nodes, dead, replicas, in_sync, syncing, lost);
        world.node(1).drained = true;
        world
    };
    #[rustfmt::skip]
    let table = [
        ("its successor syncs",            world(3, &[], 1, &[2, 1], &[3], &[]), Some((false, Waiting::Sync(id(3))))),
        ("a place is free",                world(3, &[], 1, &[2, 1], &[], &[]), Some((false, Waiting::Step))),
        ("to be handed over and removed",  world(3, &[], 0, &[1, 2], &[], &[]), Some((true, Waiting::Step))),
        ("a lost copy syncs again",        world(2, &[], 0, &[1], &[], &[(2, 1)]), Some((true, Waiting::Step))),
        ("its successor's node died",      world(3, &[(3, 1)], 1, &[2, 1], &[3], &[]), Some((false, Waiting::Step))),
        ("its master's node died",         world(3, &[(2, 1)], 1, &[2, 1], &[], &[]), Some((false, Waiting::Step))),
        ("nothing on it",                  world(3, &[], 1, &[2, 3], &[], &[]), None),
        ("an out-of-date copy",            world(3, &[], 1, &[2, 3], &[], &[(1, 5)]), None),
    ];
    for (what, world, expected) in table {
        assert_eq!(one(&world, 1), expected, "{what}");
    }
}

#[test]
fn a_copy_that_cannot_move_says_why_in_numbers() {
    let mut world = World::new(3, &[(3, 5)], 1, &[1, 2], &[], &[]);
    world.node(1).drained = true;
    let Some((true, Waiting::Stuck(why))) = one(&world, 1) else {
        panic!("it has nowhere to go")
    };
    assert_eq!(
        why,
        "no other node can take it: 1 copy wanted, each on a node of its own, but 0 of 3 nodes can hold one: \
         n1 holds a copy already; n2 holds a copy already; n3 is offline"
    );
    assert_eq!(
        world.step(0).map(|(step, _)| step.to_string().contains("takes over")),
        Some(true)
    );
    let offline = World::new(2, &[(1, 5)], 0, &[1], &[], &[]);
    let Some((true, Waiting::Stuck(why))) = one(&offline, 1) else {
        panic!("its only copy is offline")
    };
    assert_eq!(why, "no node with an up-to-date copy is online");
}

#[test]
fn another_volume_is_moved_first() {
    let mut world = World::new(4, &[], 1, &[2, 1], &[], &[]);
    world.node(1).drained = true;
    let mut other = world.volume().clone();
    other.id = VolumeId::from_bytes([9; 16]);
    other.name = "w".into();
    other.configuration.syncing = [id(3)].into();
    world.view.volumes.insert(other.id, Arc::new(other));
    let waiting: Vec<Waiting> = remaining(&world.view, id(1)).into_iter().map(|r| r.waiting).collect();
    assert_eq!(waiting, [Waiting::Turn, Waiting::Sync(id(3))]);
}
