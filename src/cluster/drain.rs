//! How far a drained node is, in words: which volumes still have a copy there, and what each of them waits for.
//!
//! Pure, from the records and the nodes that live; the [`plan`](super::plan()) does the moving, by the same rules of placement. A node
//! is empty, and safe to stop, when no volume has a copy in sync or syncing on it; a lost copy is out of date and missed by nobody.

use super::catalog::candidates;
use super::plan::{drained, holders, is_moving};
use super::view::View;
use crate::volume::{NodeId, Volume, VolumeId, VolumeLabels, Wanted, place};

/// What a copy on a drained node waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Its successor syncs on this node.
    Sync(NodeId),
    /// Another volume is moved at the moment.
    Turn,
    /// A step of the controller that comes by itself.
    Step,
    /// Something that only an operator, or a node's return, can change: why.
    Stuck(String),
}

/// A copy that is still on a drained node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// The volume.
    pub volume: VolumeId,
    /// Its name in its namespace.
    pub name: String,
    /// The copy is the master's.
    pub master: bool,
    /// What it waits for.
    pub waiting: Waiting,
}

/// The copies that are still on a node, by the volumes' names. Empty: the node may be stopped.
#[must_use]
pub fn remaining(view: &View, node: NodeId) -> Vec<Remaining> {
    let mut left: Vec<Remaining> = view
        .volumes
        .values()
        .filter(|v| v.configuration.in_sync.contains(&node) || v.configuration.syncing.contains(&node))
        .map(|volume| Remaining {
            volume: volume.id,
            name: format!("{}/{}", volume.namespace, volume.name),
            master: volume.configuration.master == Some(node),
            waiting: waiting(view, volume),
        })
        .collect();
    left.sort_by(|a, b| a.name.cmp(&b.name));
    left
}

fn waiting(view: &View, volume: &Volume) -> Waiting {
    let configuration = &volume.configuration;
    let Some(master) = configuration.master else {
        return Waiting::Stuck("it has no master yet".to_owned());
    };
    let live = |node: &NodeId| view.live.contains(node);
    if !live(&master) {
        return if configuration.in_sync.iter().any(live) {
            Waiting::Step
        } else {
            Waiting::Stuck("no node with an up-to-date copy is online".to_owned())
        };
    }
    let stays = |node: &NodeId| !drained(view, node);
    if let Some(node) = configuration.syncing.iter().find(|node| stays(node)) {
        return if live(node) {
            Waiting::Sync(*node)
        } else {
            Waiting::Step
        };
    }
    let wanted = usize::from(VolumeLabels::of(&volume.labels).replicas) + 1;
    if configuration.in_sync.iter().filter(|node| stays(node)).count() >= wanted {
        return Waiting::Step;
    }
    // A lost copy on a live node syncs again, which is faster than a new one.
    if configuration.lost.keys().any(|node| live(node) && stays(node)) {
        return Waiting::Step;
    }
    let holders = holders(configuration);
    let one = Wanted {
        copies: 1,
        holders: &holders,
        selector: &volume.node_selector,
        hint: None,
    };
    if let Err(why) = place(&one, &candidates(view), 0) {
        return Waiting::Stuck(format!("no other node can take it: {why}"));
    }
    if view
        .volumes
        .values()
        .any(|other| other.id != volume.id && is_moving(view, other))
    {
        return Waiting::Turn;
    }
    Waiting::Step
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
