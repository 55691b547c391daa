//! Since when nodes are dead, as far as this daemon saw: what the plan's waiting times are counted from.
//!
//! Kept by every daemon, so that the one which starts to lead knows who was alive before. A node is dead when it was seen alive
//! and is not any more; one that was never seen alive is only once [`Timing::settle`] has passed since the first view, because when
//! a whole cluster starts, its nodes come one after the other. Times are this daemon's own: other nodes' clocks have no part in it.
//!
//! [`Timing::settle`]: super::Timing::settle

use super::view::View;
use crate::volume::NodeId;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Who is dead, and since when.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    since: BTreeMap<NodeId, Timestamp>,
    seen: BTreeSet<NodeId>,
    first_view: Option<Timestamp>,
}

impl Deaths {
    /// Takes note of a view. An empty view of before the first answer of the store says nothing.
    pub(super) fn observe(&mut self, view: &View, now: Timestamp, settle: Duration) {
        if view.revision == 0 {
            return;
        }
        let first = *self.first_view.get_or_insert(now);
        let settled = Duration::try_from(now.duration_since(first)).is_ok_and(|passed| passed >= settle);
        let known = known(view);
        self.since
            .retain(|node, _| known.contains(node) && !view.live.contains(node));
        self.seen.retain(|node| known.contains(node));
        self.seen.extend(&view.live);
        for node in known.difference(&view.live) {
            if settled || self.seen.contains(node) {
                self.since.entry(*node).or_insert(now);
            }
        }
    }

    /// When each dead node was first seen dead.
    pub(super) fn since(&self) -> &BTreeMap<NodeId, Timestamp> {
        &self.since
    }
}

/// Every node that some record names.
fn known(view: &View) -> BTreeSet<NodeId> {
    let mut known: BTreeSet<NodeId> = view.nodes.keys().copied().collect();
    for volume in view.volumes.values() {
        let configuration = &volume.configuration;
        known.extend(configuration.in_sync.union(&configuration.syncing));
        known.extend(configuration.lost.keys());
        known.extend(volume.mount.as_ref().map(|claim| claim.node));
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Node;
    use std::sync::Arc;

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn view(nodes: &[u8], live: &[u8]) -> View {
        View {
            revision: 1,
            nodes: nodes.iter().map(|n| (id(*n), Arc::new(Node::sample(*n)))).collect(),
            live: live.iter().copied().map(id).collect(),
            ..View::default()
        }
    }

    #[test]
    fn a_node_is_dead_from_when_it_is_not_seen_any_more() {
        let settle = Duration::from_secs(10);
        let mut deaths = Deaths::default();
        deaths.observe(&View::default(), at(1), settle);
        deaths.observe(&view(&[1, 2, 3], &[1, 2]), at(5), settle);
        assert!(deaths.since().is_empty(), "3 may be about to start");
        deaths.observe(&view(&[1, 2, 3], &[1]), at(8), settle);
        assert_eq!(deaths.since(), &BTreeMap::from([(id(2), at(8))]));
        deaths.observe(&view(&[1, 2, 3], &[1]), at(15), settle);
        assert_eq!(deaths.since(), &BTreeMap::from([(id(2), at(8)), (id(3), at(15))]));
        deaths.observe(&view(&[1, 2], &[1, 2]), at(16), settle);
        assert!(deaths.since().is_empty(), "2 is back, 3 was removed");
        deaths.observe(&view(&[1, 2], &[1]), at(17), settle);
        assert_eq!(deaths.since(), &BTreeMap::from([(id(2), at(17))]));
    }
}
