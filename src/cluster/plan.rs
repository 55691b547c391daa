//! What the controller does next: a pure function of the records and of who lives.
//!
//! | the volume's state | step |
//! | --- | --- |
//! | the master's node is dead, an in-sync copy is on a live node | one of those becomes master, the dead one is lost |
//! | the master's node is dead, no in-sync copy is on a live node | none: a copy that is out of date is never promoted |
//! | an in-sync or syncing replica's node is dead for `drop_after` | the copy is lost (the master usually saw it first) |
//! | fewer copies than wanted, a lost one's node lives | it syncs again, the one lost last first; one whose disk failed waits twice as long after each failure |
//! | the same, but its disk failed [`WORN`] times | a copy on another node takes its place; if there is none, it syncs again |
//! | fewer copies than wanted, none of the lost may still return in time | a copy is placed on another node and syncs, to take the place of the one that was lost first |
//! | the lost one's node is back while the other copy still syncs | it syncs too; the first to be in sync, which had less to do, stays |
//! | the master's node is drained, an in-sync replica's is not | that replica becomes master; both stay in sync |
//! | fewer copies than wanted on nodes that are not drained | one is placed and syncs; to empty a drained node, for one volume at a time |
//! | more copies than wanted in sync | syncing ones are removed, then lost ones, then in-sync replicas (on drained nodes first), never the master |
//! | a lost copy's node was deleted | the copy is forgotten |
//! | the number of replicas in place is not what the record says | it is corrected |
//! | mounted on a node that is dead for `grace` | the claim is released |
//!
//! One step a volume at a time, the first that applies; the next call sees its result. Each step is a compare-and-swap on the epoch it
//! was decided at, so that a late or second controller changes nothing.
//!
//! A node is live (it holds its lease), dead (it lost it, and [`Facts::dead_since`] says when) or unknown: not seen alive since this
//! daemon started, for instance when the whole cluster is starting. Nothing is decided against an unknown node.
//!
//! A copy on a drained node counts as in sync until there are as many as wanted elsewhere: it is never removed first and replaced after.
//! [`super::drain`] says in words how far that is.

use super::view::View;
use crate::volume::{
    Candidate, Configuration, Labels, NodeId, NodeLabels, Volume, VolumeId, VolumeLabels, Wanted, place,
};
use jiff::Timestamp;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IteratorRandom};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// How long the controller waits before it acts.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Before a lost copy is replaced elsewhere, and before a dead node's mounts are released: a restart is cheaper to wait for.
    pub grace: Duration,
    /// Beyond its lease, before a dead replica is dropped: its master, which sees more, should do it.
    pub drop_after: Duration,
    /// Before a lost copy syncs again, so that one that fails at once does not change the configuration all the time.
    pub retry: Duration,
    /// After this daemon's start, before a node that it never saw alive counts as dead.
    pub settle: Duration,
}

/// Failures of a copy's own disk after which another node is better.
const WORN: u8 = 4;
/// Longest pause before a copy that fails again and again syncs again.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

impl Default for Timing {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(60),
            drop_after: Duration::from_secs(3),
            retry: Duration::from_secs(2),
            settle: Duration::from_secs(10),
        }
    }
}

/// What the plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The records, and the nodes that hold their lease.
    pub view: &'a View,
    /// When nodes lost it.
    pub dead_since: &'a BTreeMap<NodeId, Timestamp>,
    /// Now, by the same clock.
    pub now: Timestamp,
}

/// What a change of a configuration is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new master for one that died.
    Promote {
        /// The old one.
        from: NodeId,
        /// The new one.
        to: NodeId,
    },
    /// A new master for one whose node is drained; the old one stays in sync.
    HandOver {
        /// The old one.
        from: NodeId,
        /// The new one.
        to: NodeId,
    },
    /// A copy whose node died.
    Drop(NodeId),
    /// A lost copy whose node is back.
    Resync(NodeId),
    /// A new copy, and the lost one that it replaces.
    Add {
        /// Where.
        node: NodeId,
        /// Whose place it takes.
        instead: Option<NodeId>,
    },
    /// A copy more than wanted.
    Remove(NodeId),
    /// A lost copy whose node was deleted.
    Forget(NodeId),
    /// Replicas that count as having been in place.
    Count(u8),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promote { from, to } => write!(f, "node {from} of the master is dead, {to} takes over"),
            Self::HandOver { from, to } => write!(f, "node {from} of the master is drained, {to} takes over"),
            Self::Drop(node) => write!(f, "node {node} of a replica is dead"),
            Self::Resync(node) => write!(f, "node {node} is back, its copy syncs"),
            Self::Add { node, instead: None } => write!(f, "a new copy on node {node}"),
            Self::Add {
                node,
                instead: Some(lost),
            } => write!(f, "a new copy on node {node} instead of the lost one on {lost}"),
            Self::Remove(node) => write!(f, "more copies than wanted, the one on node {node} goes"),
            Self::Forget(node) => write!(f, "node {node} of a lost copy was deleted"),
            Self::Count(replicas) => write!(f, "{replicas} replicas are in place"),
        }
    }
}

/// Something to do, by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Replace a configuration if its epoch is the expected one.
    Change {
        /// The volume.
        volume: VolumeId,
        /// The epoch it was decided at.
        expected_epoch: u64,
        /// The new configuration, at the next epoch.
        new: Configuration,
        /// What for.
        step: Step,
    },
    /// Release a mount claim, if this node still has it.
    Release {
        /// The volume.
        volume: VolumeId,
        /// The dead node.
        node: NodeId,
        /// [`Volume::mounts`] of the claim: a later one of the same node stays.
        mounts: u64,
    },
}

/// What to do now: at most one change of each volume's configuration and one release. Empty: all is as wanted, or nothing can be done.
#[must_use]
pub fn plan(facts: &Facts<'_>, timing: &Timing, seed: u64) -> Vec<Action> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut actions = Vec::new();
    // Copies that each node holds, those of this plan included, so that new ones do not all go to the same node.
    let mut held = held(facts.view);
    let mut moving = facts.view.volumes.values().any(|volume| is_moving(facts.view, volume));
    for volume in facts.view.volumes.values() {
        let mut planner = Planner {
            facts,
            timing,
            rng: &mut rng,
            held: &held,
            moving,
            volume,
            labels: VolumeLabels::of(&volume.labels),
        };
        if let Some(node) = planner.stale_mount() {
            actions.push(Action::Release {
                volume: volume.id,
                node,
                mounts: volume.mounts,
            });
        }
        if let Some((step, new)) = planner.step() {
            if let Step::Add { node, .. } = &step {
                *held.entry(*node).or_default() += 1;
                moving |= holds_on_drained(facts.view, volume);
            }
            actions.push(Action::Change {
                volume: volume.id,
                expected_epoch: volume.configuration.epoch,
                new,
                step,
            });
        }
    }
    actions
}

fn held(view: &View) -> BTreeMap<NodeId, usize> {
    let mut held = BTreeMap::new();
    for configuration in view.volumes.values().map(|v| &v.configuration) {
        for node in configuration.in_sync.iter().chain(&configuration.syncing) {
            *held.entry(*node).or_default() += 1;
        }
    }
    held
}

/// Whether a node's copies are to be moved off.
pub(super) fn drained(view: &View, node: &NodeId) -> bool {
    view.nodes.get(node).is_some_and(|record| record.drained)
}

/// Whether a copy of the volume that counts is on a drained node.
fn holds_on_drained(view: &View, volume: &Volume) -> bool {
    let configuration = &volume.configuration;
    let mut copies = configuration.in_sync.iter().chain(&configuration.syncing);
    copies.any(|node| drained(view, node))
}

/// Whether a copy on a drained node is just being replaced by one that syncs elsewhere.
pub(super) fn is_moving(view: &View, volume: &Volume) -> bool {
    let syncing = &volume.configuration.syncing;
    holds_on_drained(view, volume) && syncing.iter().any(|node| !drained(view, node))
}

struct Planner<'a> {
    facts: &'a Facts<'a>,
    timing: &'a Timing,
    rng: &'a mut SmallRng,
    held: &'a BTreeMap<NodeId, usize>,
    /// A volume is being moved off a drained node.
    moving: bool,
    volume: &'a Volume,
    labels: VolumeLabels,
}

impl Planner<'_> {
    fn live(&self, node: &NodeId) -> bool {
        self.facts.view.live.contains(node)
    }

    /// Whether the node is known to be dead for as long.
    fn dead_for(&self, node: &NodeId, time: Duration) -> bool {
        !self.live(node)
            && self
                .facts
                .dead_since
                .get(node)
                .is_some_and(|since| passed(*since, self.facts.now, time))
    }

    fn stale_mount(&self) -> Option<NodeId> {
        let node = self.volume.mount.as_ref()?.node;
        self.dead_for(&node, self.timing.grace).then_some(node)
    }

    /// The first step of the table that applies, and the configuration after it.
    fn step(&mut self) -> Option<(Step, Configuration)> {
        let mut new = self.volume.configuration.clone();
        if !new.check() {
            // It was written by hand, or by a program that is not this one: nobody knows what it means.
            tracing::error!(volume = %self.volume.id, "the record of a volume contradicts itself, and is left as it is");
            return None;
        }
        let master = new.master?;
        let step = if self.live(&master) {
            self.drop_dead(&mut new, master)
                .or_else(|| self.forget(&mut new))
                .or_else(|| self.hand_over(&mut new, master))
                .or_else(|| self.surplus(&mut new, master))
                .or_else(|| self.missing(&mut new))
                .or_else(|| self.miscounted(&new))
        } else if self.dead_for(&master, Duration::ZERO) {
            self.promote(&mut new, master)
        } else {
            None
        }?;
        new.epoch = new.epoch.checked_add(1)?;
        new.established = self.established(&new);
        debug_assert!(new.check(), "{step}: {new:?}");
        Some((step, new))
    }

    fn promote(&mut self, new: &mut Configuration, from: NodeId) -> Option<Step> {
        let able = new.in_sync.iter().filter(|node| self.facts.view.live.contains(node));
        let to = *able.choose(self.rng)?;
        new.lose(from, self.facts.now, false);
        new.master = Some(to);
        Some(Step::Promote { from, to })
    }

    fn drop_dead(&self, new: &mut Configuration, master: NodeId) -> Option<Step> {
        let node = *new
            .in_sync
            .iter()
            .chain(&new.syncing)
            .find(|node| **node != master && self.dead_for(node, self.timing.drop_after))?;
        new.lose(node, self.facts.now, false);
        Some(Step::Drop(node))
    }

    /// Copies wanted, the master's included.
    fn wanted(&self) -> usize {
        usize::from(self.labels.replicas) + 1
    }

    fn forget(&self, new: &mut Configuration) -> Option<Step> {
        let deleted = |node: &&NodeId| !self.facts.view.nodes.contains_key(node);
        let node = *new.lost.keys().find(deleted)?;
        new.give_up(node);
        Some(Step::Forget(node))
    }

    /// The node that has the volume mounted takes it if it can, else one that is not cordoned either, else any.
    fn hand_over(&mut self, new: &mut Configuration, from: NodeId) -> Option<Step> {
        if !self.drained(&from) {
            return None;
        }
        let mounted = self.volume.mount.as_ref().map(|claim| claim.node);
        let (view, rng) = (self.facts.view, &mut *self.rng);
        let able = new
            .in_sync
            .iter()
            .filter(|node| view.live.contains(node) && !drained(view, node));
        let cordoned = |node: &NodeId| view.nodes.get(node).is_some_and(|n| n.cordoned);
        let to = *able.min_by_key(|node| (Some(**node) != mounted, cordoned(node), rng.random::<u64>()))?;
        new.master = Some(to);
        Some(Step::HandOver { from, to })
    }

    fn drained(&self, node: &NodeId) -> bool {
        drained(self.facts.view, node)
    }

    /// Copies, syncing ones included, on nodes that are not drained.
    fn staying(&self, new: &Configuration) -> usize {
        let copies = new.in_sync.iter().chain(&new.syncing);
        copies.filter(|node| !self.drained(node)).count()
    }

    fn surplus(&mut self, new: &mut Configuration, master: NodeId) -> Option<Step> {
        let (staying, wanted) = (self.staying(new), self.wanted());
        let complete = new.in_sync.iter().filter(|node| !self.drained(node)).count() >= wanted;
        // Two may sync for one place, see `rival`.
        let most = if complete { wanted } else { wanted + 1 };
        // Of the syncing ones a dead one first: it is the furthest from being of use.
        let syncing = new
            .syncing
            .iter()
            .filter(|node| staying > most || (staying >= wanted && self.drained(node)))
            .min_by_key(|node| (self.live(node), self.rank(node)));
        let replicas = new.in_sync.iter().filter(|node| **node != master);
        let node = if let Some(node) = syncing {
            *node
        } else if complete && !new.lost.is_empty() {
            *new.lost.iter().min_by_key(|(_, at)| **at)?.0
        } else if new.in_sync.len() > wanted {
            *replicas.min_by_key(|node| (self.live(node), self.rank(node)))?
        } else {
            return None;
        };
        new.give_up(node);
        Some(Step::Remove(node))
    }

    /// Which node should rather be without the copy: drained and cordoned ones first, then the fullest.
    fn rank(&self, node: &NodeId) -> impl Ord + use<> {
        let record = self.facts.view.nodes.get(node);
        record.map(|n| (!n.drained, !n.cordoned, n.free))
    }

    fn missing(&mut self, new: &mut Configuration) -> Option<Step> {
        let staying = self.staying(new);
        let missing = self.wanted().checked_sub(staying)?;
        if missing == 0 {
            return self.rival(new).map(|node| resync(new, node));
        }
        // Nothing is lost, only to be moved: that has time.
        if self.moving && new.in_sync.len() + new.syncing.len() >= self.wanted() {
            return None;
        }
        if let Some(node) = self.returns(new) {
            return Some(resync(new, node));
        }
        if missing <= new.lost.keys().filter(|node| self.may_return(node)).count() {
            return None;
        }
        let Some(node) = self.place_one(new) else {
            // A bad copy is better than none, from time to time.
            let mut worn = new
                .lost
                .iter()
                .filter(|(node, at)| self.is_back(node) && self.rested(node, **at));
            let node = *worn.next()?.0;
            return Some(resync(new, node));
        };
        let instead = if staying + new.lost.len() >= self.wanted() {
            let gone = new.lost.iter().filter(|(node, _)| !self.may_return(node));
            gone.min_by_key(|(_, at)| **at).map(|(node, _)| *node)
        } else {
            None
        };
        // One that is only away is kept until its successor is in sync: it may be back sooner than that is.
        if let Some(lost) =
            instead.filter(|lost| self.is_worn(lost) || !self.may_hold(lost) || new.lost.len() >= self.wanted())
        {
            new.give_up(lost);
        }
        new.syncing.insert(node);
        Some(Step::Add { node, instead })
    }

    /// A lost copy that is back while another one syncs in its place.
    fn rival(&self, new: &Configuration) -> Option<NodeId> {
        let awaited = new.in_sync.len() < self.wanted() && new.syncing.iter().any(|node| !self.drained(node));
        awaited.then(|| self.returns(new)).flatten()
    }

    /// Whether the node may have copies at all, whatever its state.
    fn may_hold(&self, node: &NodeId) -> bool {
        let of = |labels: &Labels| !NodeLabels::of(labels).compute_only;
        let record = self.facts.view.nodes.get(node);
        record.is_some_and(|node| !node.drained && of(&node.labels))
    }

    /// Whether it is worth waiting for the lost copy on a node.
    fn may_return(&self, node: &NodeId) -> bool {
        self.may_hold(node) && !self.dead_for(node, self.timing.grace) && !self.is_worn(node)
    }

    /// Whether a lost copy's node could sync it now.
    fn is_back(&self, node: &NodeId) -> bool {
        self.live(node) && self.may_hold(node)
    }

    /// Whether the copy's own disk failed too often.
    fn is_worn(&self, node: &NodeId) -> bool {
        self.volume.configuration.failures_of(*node) >= WORN
    }

    /// Whether a lost copy has paused long enough to sync again.
    fn rested(&self, node: &NodeId, lost: Timestamp) -> bool {
        let doublings = self.volume.configuration.failures_of(*node).saturating_sub(1);
        let pause = self
            .timing
            .retry
            .saturating_mul(1 << doublings.min(16))
            .min(LONGEST_RETRY);
        passed(lost, self.facts.now, pause.max(self.timing.retry))
    }

    /// The lost copy that is to sync now: the one lost last, unless its disk fails and another one can do.
    fn returns(&self, new: &Configuration) -> Option<NodeId> {
        let mut back: Vec<(NodeId, Timestamp)> = new.lost.iter().map(|(node, at)| (*node, *at)).collect();
        back.retain(|(node, _)| self.is_back(node) && !self.is_worn(node));
        back.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
        for (node, at) in back {
            if self.rested(&node, at) {
                return Some(node);
            }
            if new.failures_of(node) == 0 {
                return None;
            }
        }
        None
    }

    fn place_one(&mut self, new: &Configuration) -> Option<NodeId> {
        let holders = holders(new);
        let candidates: Vec<_> = self
            .facts
            .view
            .nodes
            .values()
            .map(|node| Candidate {
                node,
                alive: self.live(&node.id),
                copies: self.held.get(&node.id).copied().unwrap_or(0),
            })
            .collect();
        let wanted = Wanted {
            copies: 1,
            holders: &holders,
            selector: &self.volume.node_selector,
            hint: None,
        };
        // No node to place it on is no error here: the next call tries again.
        place(&wanted, &candidates, self.rng.random()).ok()?.first().copied()
    }

    /// Replicas that count as having been in place: a raised label does not make a loss of what was never there, a lowered one forgets.
    fn established(&self, new: &Configuration) -> u8 {
        new.established.max(new.replicas_in_sync()).min(self.labels.replicas)
    }

    fn miscounted(&self, new: &Configuration) -> Option<Step> {
        let established = self.established(new);
        (established != new.established).then_some(Step::Count(established))
    }
}

/// Nodes that get no further copy: they have one, or had one that is kept.
pub(super) fn holders(configuration: &Configuration) -> BTreeSet<NodeId> {
    let copies = configuration.in_sync.union(&configuration.syncing);
    copies.chain(configuration.lost.keys()).copied().collect()
}

fn resync(new: &mut Configuration, node: NodeId) -> Step {
    new.lost.remove(&node);
    new.syncing.insert(node);
    Step::Resync(node)
}

/// Whether `time` has passed since `since`. A time stamp of the future (another node's clock) has: waiting for it could take for ever.
fn passed(since: Timestamp, now: Timestamp, time: Duration) -> bool {
    match Duration::try_from(now.duration_since(since)) {
        Ok(elapsed) => elapsed >= time,
        Err(_) => true,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(super) mod tests;
