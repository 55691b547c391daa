//! The last resort: making a copy that is out of date the master, when no in-sync copy can be used any more. Pure.
//!
//! An operator's word, never a step of the plan. Refused while an in-sync copy can be used, and on a volume that is mounted on a
//! live node, whose caches would not fit what they are over. Epochs go on rising, so that whatever is left of the old copies is
//! fenced, and is overwritten when it returns.

use super::{Configuration, NodeId, Volume};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// How out of date the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// It is as the volume was then.
    Since(Timestamp),
    /// It was being brought up to date: some of its blocks are newer than others.
    Mixed,
}

/// Why the copy cannot be made the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPromotion {
    /// These in-sync copies can be used.
    InSync(Vec<NodeId>),
    /// The node has no copy of the volume.
    NoCopy,
    /// The node is offline.
    Offline,
    /// Mounted by this live node.
    Mounted(NodeId),
}

/// What is known of a volume's copies.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Nodes that hold their lease.
    pub live: &'a BTreeSet<NodeId>,
    /// Those of them whose copy is known to be unusable.
    pub broken: &'a BTreeSet<NodeId>,
}

/// The record after `node`'s copy was made the master, and how out of date that is.
///
/// # Errors
/// See [`NoPromotion`].
pub fn promote(
    volume: &Volume,
    node: NodeId,
    known: Known<'_>,
    now: Timestamp,
) -> Result<(Volume, Staleness), NoPromotion> {
    let old = &volume.configuration;
    let usable = |node: &&NodeId| known.live.contains(node) && !known.broken.contains(node);
    let usable: Vec<NodeId> = old.in_sync.iter().filter(usable).copied().collect();
    if !usable.is_empty() {
        return Err(NoPromotion::InSync(usable));
    }
    let staleness = match old.lost.get(&node) {
        Some(since) => Staleness::Since(*since),
        None if old.syncing.contains(&node) => Staleness::Mixed,
        None => return Err(NoPromotion::NoCopy),
    };
    if !known.live.contains(&node) || known.broken.contains(&node) {
        return Err(NoPromotion::Offline);
    }
    if let Some(claim) = volume.mount.as_ref().filter(|claim| known.live.contains(&claim.node)) {
        return Err(NoPromotion::Mounted(claim.node));
    }
    let mut new = volume.clone();
    if new.mount.take().is_some() {
        // What is left of the dead node's mount is fenced.
        new.mounts += 1;
    }
    let mut configuration = Configuration {
        epoch: old.epoch + 1,
        master: Some(node),
        ..old.clone()
    };
    for copy in &old.in_sync {
        configuration.lose(*copy, now, false);
    }
    configuration.give_up(node);
    configuration.in_sync.insert(node);
    new.configuration = configuration;
    Ok((new, staleness))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::MountClaim;

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn ids(of: &[u8]) -> BTreeSet<NodeId> {
        of.iter().copied().map(id).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// 1 is the master, 2 in sync, 3 syncing, 4 lost at 50.
    fn volume(mounted: Option<u8>) -> Volume {
        let claim = |node| MountClaim {
            node: id(node),
            mountpoint: "/m".into(),
            mounted_at: at(0),
            read_only: false,
        };
        Volume {
            configuration: Configuration {
                epoch: 7,
                master: Some(id(1)),
                in_sync: ids(&[1, 2]),
                syncing: ids(&[3]),
                lost: [(id(4), at(50))].into(),
                established: 2,
                ..Configuration::unplaced()
            },
            mount: mounted.map(claim),
            mounts: 3,
            ..Volume::sample()
        }
    }

    #[test]
    fn a_stale_copy_becomes_the_master_only_when_nothing_better_is_left() {
        use NoPromotion::{InSync, Mounted, NoCopy, Offline};
        let since = Ok(Staleness::Since(at(50)));
        let mixed = Ok(Staleness::Mixed);
        // Live nodes, those with a broken copy, where it is mounted, the copy asked for.
        for (live, broken, mounted, node, expected) in [
            (&[1, 2, 3, 4][..], &[][..], None, 4, Err(InSync(vec![id(1), id(2)]))),
            (&[2, 3, 4], &[], None, 4, Err(InSync(vec![id(2)]))),
            (&[3, 4], &[], None, 4, since.clone()),
            (&[3, 4], &[], None, 3, mixed),
            (&[1, 2, 4], &[1, 2], None, 4, since.clone()),
            (&[1, 2, 4], &[1], None, 4, Err(InSync(vec![id(2)]))),
            (&[3, 4], &[], None, 5, Err(NoCopy)),
            (&[3, 4], &[], None, 1, Err(NoCopy)),
            (&[3], &[], None, 4, Err(Offline)),
            (&[3, 4], &[4], None, 4, Err(Offline)),
            (&[3, 4, 5], &[], Some(5), 4, Err(Mounted(id(5)))),
            (&[3, 4], &[], Some(1), 4, since),
        ] {
            let volume = volume(mounted);
            let (live, broken) = (ids(live), ids(broken));
            let known = Known {
                live: &live,
                broken: &broken,
            };
            let result = promote(&volume, id(node), known, at(100));
            if let Ok((new, _)) = &result {
                let configuration = &new.configuration;
                assert!(configuration.check());
                assert_eq!(configuration.epoch, 8);
                assert_eq!(configuration.master, Some(id(node)));
                assert_eq!(configuration.in_sync, ids(&[node]));
                assert_eq!(configuration.lost[&id(1)], at(100));
                assert!(new.mount.is_none());
                assert_eq!(new.mounts, 3 + u64::from(mounted.is_some()));
            }
            assert_eq!(
                result.map(|(_, staleness)| staleness),
                expected,
                "{live:?} {broken:?} {node}"
            );
        }
    }
}
