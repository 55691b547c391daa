//! The plan's table, row by row, and its properties for every cluster.

use super::*;
use crate::volume::{Failures, MountClaim, Node};
use proptest::prelude::*;
use std::sync::Arc;

pub(in crate::cluster) fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn ids(of: &[u8]) -> BTreeSet<NodeId> {
    of.iter().copied().map(id).collect()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// Now, in every test.
const NOW: i64 = 1000;

#[derive(Debug)]
pub(in crate::cluster) struct World {
    pub(in crate::cluster) view: View,
    dead_since: BTreeMap<NodeId, Timestamp>,
}

impl World {
    /// Nodes 1 to `nodes`, those in `dead` dead for as many seconds; one volume.
    pub(in crate::cluster) fn new(
        nodes: u8,
        dead: &[(u8, i64)],
        replicas: u8,
        in_sync: &[u8],
        syncing: &[u8],
        lost: &[(u8, i64)],
    ) -> Self {
        let volume = Volume {
            labels: Labels::from([("storageos.com/replicas".into(), replicas.to_string())]),
            configuration: Configuration {
                epoch: 7,
                master: in_sync.first().copied().map(id),
                in_sync: ids(in_sync),
                syncing: ids(syncing),
                lost: lost.iter().map(|(n, ago)| (id(*n), at(NOW - ago))).collect(),
                established: replicas,
                ..Configuration::unplaced()
            },
            ..Volume::sample()
        };
        Self {
            view: View {
                volumes: BTreeMap::from([(volume.id, Arc::new(volume))]),
                nodes: (1..=nodes).map(|n| (id(n), Arc::new(Node::sample(n)))).collect(),
                live: (1..=nodes)
                    .filter(|n| dead.iter().all(|(d, _)| d != n))
                    .map(id)
                    .collect(),
                ..View::default()
            },
            dead_since: dead.iter().map(|(n, ago)| (id(*n), at(NOW - ago))).collect(),
        }
    }

    fn plan(&self, seed: u64) -> Vec<Action> {
        let facts = Facts {
            view: &self.view,
            dead_since: &self.dead_since,
            now: at(NOW),
        };
        plan(&facts, &Timing::default(), seed)
    }

    pub(in crate::cluster) fn volume(&mut self) -> &mut Volume {
        Arc::make_mut(self.view.volumes.values_mut().next().unwrap())
    }

    pub(in crate::cluster) fn node(&mut self, n: u8) -> &mut Node {
        Arc::make_mut(self.view.nodes.get_mut(&id(n)).unwrap())
    }

    /// The only step, if there is one; checks what holds for all.
    pub(in crate::cluster) fn step(&self, seed: u64) -> Option<(Step, Configuration)> {
        let actions = self.plan(seed);
        assert!(actions.len() <= 1, "{actions:?}");
        let Action::Change {
            expected_epoch,
            new,
            step,
            ..
        } = actions.into_iter().next()?
        else {
            panic!("a release without a mount")
        };
        assert_eq!((expected_epoch, new.epoch), (7, 8));
        assert!(new.check());
        Some((step, new))
    }
}

#[test]
fn a_dead_masters_in_sync_replica_takes_over_at_once() {
    let world = World::new(4, &[(1, 0)], 2, &[1, 2, 3], &[4], &[]);
    let mut chosen = BTreeSet::new();
    for seed in 0..32 {
        let (step, new) = world.step(seed).unwrap();
        let to = new.master.unwrap();
        assert_eq!(step, Step::Promote { from: id(1), to });
        assert_eq!(new.in_sync, ids(&[2, 3]));
        assert_eq!(new.lost[&id(1)], at(NOW));
        chosen.insert(to);
    }
    assert_eq!(chosen, ids(&[2, 3]), "a random one of those in sync");
}

#[test]
fn a_copy_that_is_out_of_date_is_never_promoted() {
    let world = World::new(4, &[(1, 500), (2, 500)], 2, &[1, 2], &[3], &[(4, 400)]);
    assert_eq!(world.step(0), None);
}

#[test]
fn nothing_is_decided_against_a_node_that_was_not_seen_yet() {
    let mut world = World::new(3, &[(1, 0)], 1, &[1, 2], &[], &[]);
    world.dead_since.clear();
    assert_eq!(world.step(0), None);
}

#[test]
fn a_dead_replica_is_left_to_its_master_for_a_moment_and_then_lost() {
    let dead = |ago| World::new(3, &[(2, ago)], 1, &[1, 2], &[], &[]).step(0);
    assert_eq!(dead(2), None);
    let (step, new) = dead(3).unwrap();
    assert_eq!(step, Step::Drop(id(2)));
    assert_eq!((new.master, new.in_sync, new.established), (Some(id(1)), ids(&[1]), 1));
    assert!(new.lost.contains_key(&id(2)));
    let syncing = World::new(3, &[(2, 3)], 1, &[1], &[2], &[]);
    assert_eq!(syncing.step(0).unwrap().0, Step::Drop(id(2)));
}

#[test]
fn a_lost_copy_syncs_again_when_its_node_is_back() {
    let world = World::new(4, &[], 1, &[1], &[], &[(2, 300), (3, 200)]);
    let (step, new) = world.step(0).unwrap();
    assert_eq!(step, Step::Resync(id(3)), "the one lost last differs least");
    assert_eq!((new.syncing, new.lost.len()), (ids(&[3]), 1));
    let failed_just_now = World::new(3, &[], 1, &[1], &[], &[(2, 1)]);
    assert_eq!(failed_just_now.step(0), None);
    let from_the_future = World::new(3, &[], 1, &[1], &[], &[(2, -5000)]);
    assert_eq!(from_the_future.step(0).unwrap().0, Step::Resync(id(2)));
}

#[test]
fn a_copy_that_does_not_return_in_time_is_replaced() {
    let lost = |nodes, ago| World::new(nodes, &[(2, ago)], 1, &[1], &[], &[(2, ago)]).step(0);
    assert_eq!(lost(3, 59), None);
    let (step, new) = lost(3, 60).unwrap();
    let instead = Some(id(2));
    assert_eq!(step, Step::Add { node: id(3), instead });
    assert_eq!((new.syncing, new.lost.len()), (ids(&[3]), 1), "it may still return");
    assert_eq!(lost(2, 60), None, "there is no other node: the stale copy is kept");
    let complete = World::new(3, &[(2, 90)], 1, &[1, 3], &[], &[(2, 90)]);
    assert_eq!(complete.step(0).unwrap().0, Step::Remove(id(2)));
}

#[test]
fn a_copy_that_returns_while_its_successor_syncs_syncs_too_and_the_first_to_be_complete_stays() {
    let away = World::new(4, &[(2, 90)], 2, &[1, 4], &[3], &[(2, 90)]);
    assert_eq!(away.step(0), None);
    let mut world = World::new(4, &[], 2, &[1, 4], &[3], &[(2, 90)]);
    let (step, new) = world.step(0).unwrap();
    assert_eq!(step, Step::Resync(id(2)));
    assert_eq!((new.syncing, new.lost.len()), (ids(&[2, 3]), 0));
    for (first, second) in [(2, 3), (3, 2)] {
        let configuration = &mut world.volume().configuration;
        configuration.lost.clear();
        (configuration.in_sync, configuration.syncing) = (ids(&[1, 4]), ids(&[2, 3]));
        assert_eq!(world.step(0), None);
        let configuration = &mut world.volume().configuration;
        (configuration.in_sync, configuration.syncing) = (ids(&[1, 4, first]), ids(&[second]));
        assert_eq!(world.step(0).unwrap().0, Step::Remove(id(second)));
    }
    // No more than one beside the successor; of one that is back but failed just now it is not known that it will do.
    let crowded = World::new(6, &[], 2, &[1, 4], &[2, 3], &[(5, 90)]);
    assert_eq!(crowded.step(0), None);
    let unrested = World::new(4, &[], 2, &[1, 4], &[3], &[(2, 1)]);
    assert_eq!(unrested.step(0), None);
}

/// A lost copy on a live node whose disk failed: after how many failures, how many seconds after the last, with how many nodes.
#[test]
fn a_copy_whose_disk_fails_again_and_again_pauses_longer_and_is_replaced() {
    let resync = Some(Step::Resync(id(2)));
    let add = Some(Step::Add {
        node: id(3),
        instead: Some(id(2)),
    });
    for (failures, ago, nodes, expected) in [
        (0, 1, 3, &None),
        (0, 2, 3, &resync),
        (1, 2, 3, &resync),
        (2, 3, 3, &None),
        (2, 4, 3, &resync),
        (3, 7, 3, &None),
        (3, 8, 3, &resync),
        // Another node takes its place at once; without one, it is tried again from time to time.
        (4, 0, 3, &add),
        (4, 15, 2, &None),
        (4, 16, 2, &resync),
        (200, 299, 2, &None),
        (200, 300, 2, &resync),
    ] {
        let mut world = World::new(nodes, &[], 1, &[1], &[], &[(2, ago)]);
        let last = at(NOW - ago);
        if failures > 0 {
            let failures = Failures { count: failures, last };
            world.volume().configuration.failures.insert(id(2), failures);
        }
        let step = world.step(0);
        let case = format!("{failures} failures, {ago} s ago, {nodes} nodes");
        assert_eq!(step.as_ref().map(|(step, _)| step), expected.as_ref(), "{case}");
        if step.is_some_and(|(_, new)| new.syncing == ids(&[3]) && !new.failures.is_empty()) {
            panic!("{case}: the failures of a copy that is given up are kept");
        }
    }
    // Another lost copy, whose disk is well, goes first.
    let mut world = World::new(3, &[], 1, &[1], &[], &[(2, 3), (3, 100)]);
    let failures = Failures {
        count: 3,
        last: at(NOW - 3),
    };
    world.volume().configuration.failures.insert(id(2), failures);
    assert_eq!(world.step(0).unwrap().0, Step::Resync(id(3)));
}

#[test]
fn a_raised_number_of_replicas_is_filled_one_by_one() {
    let mut world = World::new(3, &[], 2, &[1], &[], &[]);
    world.volume().configuration.established = 0;
    let (step, new) = world.step(0).unwrap();
    assert!(matches!(step, Step::Add { instead: None, .. }), "{step}");
    assert_eq!((new.syncing.len(), new.established), (1, 0));
    world.volume().configuration.syncing = ids(&[2]);
    assert!(matches!(world.step(0).unwrap().0, Step::Add { node, .. } if node == id(3)));
}

#[test]
fn a_lowered_number_removes_syncing_then_lost_then_in_sync_copies() {
    let step = |replicas, in_sync: &[u8], syncing: &[u8], lost: &[(u8, i64)]| {
        World::new(6, &[], replicas, in_sync, syncing, lost)
            .step(1)
            .map(|(step, _)| step)
    };
    assert_eq!(step(1, &[1, 2], &[3], &[(4, 5)]), Some(Step::Remove(id(3))));
    assert_eq!(step(1, &[1, 2], &[], &[(4, 5)]), Some(Step::Remove(id(4))));
    assert_eq!(step(0, &[1, 2], &[], &[]), Some(Step::Remove(id(2))));
    assert_eq!(step(0, &[1], &[], &[]), None);
    let mut world = World::new(6, &[], 1, &[1, 2], &[], &[]);
    world.volume().configuration.established = 3;
    assert_eq!(world.step(0).unwrap().0, Step::Count(1));
    // A copy on a drained node goes before others.
    let mut world = World::new(6, &[], 1, &[1, 2, 3], &[], &[]);
    world.node(3).drained = true;
    assert_eq!(world.step(0).unwrap().0, Step::Remove(id(3)));
}

#[test]
fn nodes_that_may_not_hold_copies_get_none() {
    let mut world = World::new(3, &[], 1, &[1], &[], &[(2, 100)]);
    world.node(2).drained = true;
    let instead = Some(id(2));
    assert_eq!(world.step(0).unwrap().0, Step::Add { node: id(3), instead });
    world.node(3).cordoned = true;
    assert_eq!(world.step(0), None);
}

/// The steps of one volume until nothing more happens; what syncs, gets in sync between them.
fn steps(world: &mut World) -> Vec<Step> {
    let mut done = Vec::new();
    while let Some((step, new)) = world.step(0) {
        done.push(step);
        assert!(done.len() < 20, "{done:?}");
        let configuration = &mut world.volume().configuration;
        *configuration = new;
        configuration.epoch = 7;
        let synced = std::mem::take(&mut configuration.syncing);
        configuration.in_sync.extend(synced);
    }
    done
}

/// What, nodes, replicas, in sync (the master first), syncing, drained, and the steps that follow.
type Row = (
    &'static str,
    u8,
    u8,
    &'static [u8],
    &'static [u8],
    &'static [u8],
    Vec<Step>,
);

#[test]
fn a_drained_nodes_copies_move_and_none_goes_before_its_successor_is_in_sync() {
    let add = |n| Step::Add {
        node: id(n),
        instead: None,
    };
    let hand_over = |from, to| Step::HandOver {
        from: id(from),
        to: id(to),
    };
    #[rustfmt::skip]
    let table: [Row; 10] = [
        ("a replica",                           4, 2, &[1, 2, 3], &[], &[3], vec![add(4), Step::Remove(id(3))]),
        ("the master with a replica",           3, 1, &[1, 2], &[], &[1], vec![hand_over(1, 2), add(3), Step::Remove(id(1))]),
        ("the only copy",                       2, 0, &[1], &[], &[1], vec![add(2), hand_over(1, 2), Step::Remove(id(1))]),
        ("no free node: the master's part only",3, 2, &[1, 2, 3], &[], &[1], vec![hand_over(1, 2)]),
        ("no free node: a replica stays",       3, 2, &[1, 2, 3], &[], &[3], vec![]),
        ("the only node",                       1, 0, &[1], &[], &[1], vec![]),
        ("two of three",                        5, 2, &[1, 2, 3], &[], &[2, 3], vec![add(4), Step::Remove(id(3)), add(5), Step::Remove(id(2))]),
        ("a copy that syncs to it",             4, 1, &[1], &[2], &[2], vec![add(3), Step::Remove(id(2))]),
        ("more copies than wanted",             4, 0, &[1, 2], &[], &[1], vec![hand_over(1, 2), Step::Remove(id(1))]),
        ("all of them, no other node",          2, 1, &[1, 2], &[], &[1, 2], vec![]),
    ];
    for (what, nodes, replicas, in_sync, syncing, drained, expected) in table {
        let mut world = World::new(nodes, &[], replicas, in_sync, syncing, &[]);
        for n in drained {
            world.node(*n).drained = true;
        }
        // Which of several free nodes is taken is the placement's own matter: the first has the most space.
        for n in 1..=nodes {
            world.node(n).free = 1000 - 10 * u64::from(n);
        }
        let before = world.volume().configuration.in_sync.len();
        let done = steps(&mut world);
        assert!(
            world.volume().configuration.in_sync.len() >= before.min(usize::from(replicas) + 1),
            "{what}"
        );
        // Which of two replicas takes over is chance.
        let alike = |a: &Step, b: &Step| match (a, b) {
            (Step::HandOver { from: a, .. }, Step::HandOver { from: b, .. }) => a == b,
            (a, b) => a == b,
        };
        assert!(
            done.len() == expected.len() && done.iter().zip(&expected).all(|(a, b)| alike(a, b)),
            "{what}: {done:?} instead of {expected:?}"
        );
    }
}

#[test]
fn a_drained_masters_volume_goes_to_the_node_that_has_it_mounted_if_that_can_hold_it() {
    for (mounted, drained, cordoned, chosen) in [
        (3, &[1][..], None, &[3][..]),
        (4, &[1], None, &[2, 3]),
        (4, &[1], Some(2), &[3]),
        (3, &[1, 3], None, &[2]),
    ] {
        let mut world = World::new(4, &[], 2, &[1, 2, 3], &[], &[]);
        for n in drained {
            world.node(*n).drained = true;
        }
        if let Some(n) = cordoned {
            world.node(n).cordoned = true;
        }
        world.volume().mount = Some(MountClaim {
            node: id(mounted),
            mountpoint: "/m".into(),
            mounted_at: at(0),
            read_only: false,
        });
        let mut seen = BTreeSet::new();
        for seed in 0..16 {
            let (step, new) = world.step(seed).unwrap();
            let to = new.master.unwrap();
            assert_eq!(step, Step::HandOver { from: id(1), to });
            assert_eq!(new.in_sync, ids(&[1, 2, 3]));
            seen.insert(to);
        }
        assert_eq!(seen, ids(chosen));
    }
}

#[test]
fn a_drained_dead_nodes_copy_is_replaced_without_waiting_for_it() {
    let mut world = World::new(3, &[(2, 5)], 1, &[1], &[], &[(2, 2)]);
    assert_eq!(world.step(0), None);
    world.node(2).drained = true;
    let instead = Some(id(2));
    assert_eq!(world.step(0).unwrap().0, Step::Add { node: id(3), instead });
}

#[test]
fn volumes_are_moved_off_one_at_a_time_but_lost_copies_are_replaced_at_once() {
    let mut world = World::new(5, &[], 1, &[1, 2], &[], &[]);
    world.node(2).drained = true;
    let first = world.volume().clone();
    world.view.volumes = (0..3)
        .map(|n| {
            let id = VolumeId::from_bytes([n; 16]);
            (id, Arc::new(Volume { id, ..first.clone() }))
        })
        .collect();
    assert_eq!(world.plan(0).len(), 1, "the first begins");
    world.volume().configuration.syncing = ids(&[3]);
    assert_eq!(world.plan(0), [], "the others wait for it");
    let last = world.view.volumes.values_mut().last().unwrap();
    Arc::make_mut(last).configuration.in_sync = ids(&[1]);
    assert_eq!(world.plan(0).len(), 1, "a missing copy does not wait");
    let mut world = World::new(3, &[], 1, &[1], &[], &[(2, 100), (9, 100)]);
    assert_eq!(world.step(0).unwrap().0, Step::Forget(id(9)), "its node was deleted");
    world.volume().configuration.lost.remove(&id(9));
    assert_eq!(world.step(0).unwrap().0, Step::Resync(id(2)));
}

#[test]
fn new_copies_of_one_plan_are_spread() {
    let mut world = World::new(5, &[], 1, &[1], &[], &[]);
    let first = world.volume().clone();
    world.view.volumes = (0..4)
        .map(|n| {
            let id = VolumeId::from_bytes([n; 16]);
            (id, Arc::new(Volume { id, ..first.clone() }))
        })
        .collect();
    let used: BTreeSet<NodeId> = world
        .plan(0)
        .into_iter()
        .map(|action| match action {
            Action::Change {
                step: Step::Add { node, .. },
                ..
            } => node,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(used, ids(&[2, 3, 4, 5]));
}

#[test]
fn the_mounts_of_a_dead_node_are_released_after_the_grace_time() {
    let mut world = World::new(3, &[(3, 59)], 1, &[1, 2], &[], &[]);
    world.volume().mount = Some(MountClaim {
        node: id(3),
        mountpoint: "/m".into(),
        mounted_at: at(0),
        read_only: false,
    });
    assert_eq!(world.plan(0), []);
    world.dead_since.insert(id(3), at(NOW - 60));
    let volume = VolumeId::from_bytes([0; 16]);
    assert_eq!(
        world.plan(0),
        [Action::Release {
            volume,
            node: id(3),
            mounts: 0
        }]
    );
}

/// Live copies that sync get in sync; whether there were any.
fn sync_live(world: &mut World) -> bool {
    let live = world.view.live.clone();
    let configuration = &mut world.volume().configuration;
    let (done, left): (BTreeSet<_>, BTreeSet<_>) = configuration.syncing.iter().partition(|n| live.contains(n));
    configuration.syncing = left;
    configuration.in_sync.extend(&done);
    !done.is_empty()
}

prop_compose! {
    /// Each node: its part in the volume, dead since how long (none: live), cordoned (1) or drained (2).
    fn worlds()(
        parts in prop::collection::vec((0_u8..4, prop::option::of(0_i64..100), 0_u8..4), 1..8),
        replicas in 0_u8..=5,
        established in 0_u8..=5,
    ) -> World {
        let count = u8::try_from(parts.len()).unwrap();
        let of = |part| (1..=count).filter(|n| parts[usize::from(*n) - 1].0 == part).collect::<Vec<_>>();
        let dead: Vec<_> = (1..=count).filter_map(|n| Some((n, parts[usize::from(n) - 1].1?))).collect();
        let lost: Vec<_> = of(2).into_iter().map(|n| (n, i64::from(n))).collect();
        let mut world = World::new(count, &dead, replicas, &of(0), &of(1), &lost);
        world.volume().configuration.established = established;
        for (node, part) in world.view.nodes.values_mut().zip(&parts) {
            let node = Arc::make_mut(node);
            (node.cordoned, node.drained) = (part.2 == 1, part.2 == 2);
        }
        world
    }
}

proptest! {
    /// Whatever the state: every step is lawful, and the steps end.
    #[test]
    fn every_step_is_lawful_and_the_plan_converges(world in worlds(), seed: u64) {
        let mut world = world;
        for round in 0_u64.. {
            prop_assert!(round < 40, "does not converge: {:?}", world.volume());
            let old = world.volume().configuration.clone();
            let actions = world.plan(seed.wrapping_add(round));
            // The masters do their part: a live copy gets in sync.
            let Some(Action::Change { expected_epoch, new, step, .. }) = actions.first() else {
                if sync_live(&mut world) { continue } else { break }
            };
            prop_assert_eq!((*expected_epoch, new.epoch), (old.epoch, old.epoch + 1));
            prop_assert!(new.check());
            // Only the master moves copies into `in_sync`; only one of those is ever promoted; the last one always stays.
            prop_assert!(new.in_sync.is_subset(&old.in_sync));
            prop_assert!(!new.in_sync.is_empty());
            let master = new.master.unwrap();
            prop_assert!(old.in_sync.contains(&master) && world.view.live.contains(&master));
            if old.master != new.master {
                let from = old.master.unwrap();
                prop_assert!(!world.view.live.contains(&from) || world.view.nodes[&from].drained);
                prop_assert!(!world.view.live.contains(&from) || new.in_sync.contains(&from));
            }
            // A live node's copy goes only when there are enough without it.
            let wanted = usize::from(VolumeLabels::of(&world.volume().labels).replicas) + 1;
            for node in old.in_sync.difference(&new.in_sync).filter(|n| world.view.live.contains(n)) {
                prop_assert!(new.in_sync.len() >= wanted, "{} leaves", node);
            }
            for node in new.syncing.difference(&old.syncing) {
                prop_assert!(world.view.live.contains(node), "{}", step);
            }
            world.volume().configuration = new.clone();
            sync_live(&mut world);
        }
        let end = world.volume().clone();
        let configuration = &end.configuration;
        if configuration.master.is_some_and(|m| world.view.live.contains(&m)) {
            let wanted = usize::from(VolumeLabels::of(&end.labels).replicas) + 1;
            let have = configuration.in_sync.len();
            prop_assert!(have <= wanted);
            let drained = |n: &NodeId| world.view.nodes[n].drained;
            // A copy stays on a drained node only when it has nowhere to go.
            let have = configuration.in_sync.iter().filter(|n| !drained(n)).count();
            // Fewer than wanted only when the rest may still return, or nobody else can hold one.
            let waiting = configuration.syncing.len() + configuration.lost.len();
            let free = world.view.nodes.values().filter(|n| {
                world.view.live.contains(&n.id) && !n.cordoned && !n.drained && !configuration.in_sync.contains(&n.id)
                    && !configuration.syncing.contains(&n.id) && !configuration.lost.contains_key(&n.id)
            }).count();
            // A syncing copy whose node just died is waited for until it is dropped.
            let dying = !configuration.syncing.is_empty();
            prop_assert!(have == wanted || free == 0 || dying || have + waiting >= wanted, "{:?}", end);
        }
    }
}
