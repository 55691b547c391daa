//! The records that the control store keeps: volumes, nodes, mount claims.
//!
//! Stored as JSON. Invariants, asserted by [`Configuration::check`]: the master is in `in_sync`; no node is in two of
//! `in_sync`, `syncing` and `lost`. Every change of a [`Configuration`] raises its epoch and is a compare-and-swap.

use super::{NodeId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who holds a volume's copies, and at which epoch: the part that fences writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Raised by every change of this record; a copy refuses messages of a lower one.
    pub epoch: u64,
    /// The node that orders writes. `None` until placed.
    pub master: Option<NodeId>,
    /// Nodes whose copies hold every acknowledged write, the master's included.
    pub in_sync: BTreeSet<NodeId>,
    /// Nodes whose copies are being brought up to date; never promoted, never counted.
    pub syncing: BTreeSet<NodeId>,
    /// Copies that left `in_sync` and when; out of date, but worth keeping: if its node returns before it is replaced, only
    /// what changed is sent. A node that finds itself in none of the three sets removes its copy.
    pub lost: BTreeMap<NodeId, Timestamp>,
    /// The most replicas that were in sync at once, at most the label's number. A replica is lost when fewer are in
    /// sync than that; one that is still being added to a live volume is not a loss.
    pub established: u8,
    /// Copies whose own disk failed of late, and how often: what they are given longer pauses for, and at last replaced.
    #[serde(default)]
    pub failures: BTreeMap<NodeId, Failures>,
}

/// How often a copy failed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How often, without an hour between two of them.
    pub count: u8,
    /// The last time.
    pub last: Timestamp,
}

/// A failure after so long is counted as the first one.
const FORGOTTEN: Duration = Duration::from_secs(3600);

impl Configuration {
    /// Moves a copy to `lost`. `by_itself`: its own disk failed, not its node or the network.
    pub fn lose(&mut self, node: NodeId, now: Timestamp, by_itself: bool) {
        self.in_sync.remove(&node);
        self.syncing.remove(&node);
        self.lost.insert(node, now);
        if !by_itself {
            return;
        }
        let failures = self.failures.entry(node).or_insert(Failures { count: 0, last: now });
        if now.duration_since(failures.last).unsigned_abs() > FORGOTTEN {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
    }

    /// Gives a copy up: its node will remove it.
    pub fn give_up(&mut self, node: NodeId) {
        self.in_sync.remove(&node);
        self.syncing.remove(&node);
        self.lost.remove(&node);
        self.failures.remove(&node);
    }

    /// Whether a node holds a copy, or held one that is lost now.
    #[must_use]
    pub fn has_copy_on(&self, node: NodeId) -> bool {
        self.in_sync.contains(&node) || self.syncing.contains(&node) || self.lost.contains_key(&node)
    }

    /// How often a copy failed by itself of late.
    #[must_use]
    pub fn failures_of(&self, node: NodeId) -> u8 {
        self.failures.get(&node).map_or(0, |failures| failures.count)
    }

    /// The configuration of a volume that has not been placed yet.
    #[must_use]
    pub fn unplaced() -> Self {
        Self {
            epoch: 0,
            master: None,
            in_sync: BTreeSet::new(),
            syncing: BTreeSet::new(),
            lost: BTreeMap::new(),
            established: 0,
            failures: BTreeMap::new(),
        }
    }

    /// Replicas in sync: the in-sync copies without the master's.
    #[must_use]
    pub fn replicas_in_sync(&self) -> u8 {
        let others = self.in_sync.len().saturating_sub(usize::from(self.master.is_some()));
        u8::try_from(others).unwrap_or(u8::MAX)
    }

    /// Whether the record's invariants hold.
    #[must_use]
    pub fn check(&self) -> bool {
        self.master.is_none_or(|m| self.in_sync.contains(&m))
            && self.in_sync.is_disjoint(&self.syncing)
            && self
                .lost
                .keys()
                .all(|n| !self.in_sync.contains(n) && !self.syncing.contains(n))
    }
}

/// Which node has the volume mounted, and where. One at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountClaim {
    /// The node whose daemon serves the mount.
    pub node: NodeId,
    /// The directory, as seen in the namespace of whoever mounted it.
    pub mountpoint: String,
    /// When the claim was taken.
    pub mounted_at: Timestamp,
    /// Mounted read-only.
    pub read_only: bool,
}

/// A volume, as the control store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Never reused.
    pub id: VolumeId,
    /// The namespace's name.
    pub namespace: String,
    /// Unique in its namespace.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Capacity for file data, in bytes; a multiple of the block size.
    pub size: u64,
    /// Labels in their canonical spelling (`storageos.com/…`) and the user's own.
    pub labels: BTreeMap<String, String>,
    /// Terms a node's labels must meet to hold a copy; empty: any node.
    pub node_selector: String,
    /// Who holds the copies.
    pub configuration: Configuration,
    /// Whether a master has ever made the file system. Until then a node may create an empty copy for its place in
    /// `in_sync`; afterwards a missing copy is a failed one, never silently replaced by an empty one.
    pub formatted: bool,
    /// Who has it mounted.
    pub mount: Option<MountClaim>,
    /// Mount claims ever taken; raised by each. Orders them: device calls of an older claim than the latest are refused.
    #[serde(default)]
    pub mounts: u64,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A node, as the control store keeps it. Whether it lives is told by its lease, not by this record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Kept in the node's data directory.
    pub id: NodeId,
    /// Unique in the cluster.
    pub name: String,
    /// `ADDR:PORT` where the node's daemon listens for its peers.
    pub address: String,
    /// Labels in their canonical spelling and the user's own.
    pub labels: BTreeMap<String, String>,
    /// Takes no new copies.
    pub cordoned: bool,
    /// Its copies are being moved off.
    pub drained: bool,
    /// Bytes of the file system that holds its copies.
    pub capacity: u64,
    /// Bytes free there, at the last report.
    pub free: u64,
    /// The daemon's version.
    pub version: String,
    /// When the node first joined.
    pub created_at: Timestamp,
}

/// A namespace, as the control store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// Unique in the cluster.
    pub name: String,
    /// Free text for lists.
    pub display_name: String,
    /// Free text.
    pub description: String,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
}

impl Volume {
    /// Gives the volume to a mount, and mastership with it where that node's copy is in sync.
    pub fn claim(&mut self, claim: MountClaim) {
        let configuration = &mut self.configuration;
        if configuration.master != Some(claim.node) && configuration.in_sync.contains(&claim.node) {
            configuration.master = Some(claim.node);
            configuration.epoch += 1;
        }
        self.mount = Some(claim);
        self.mounts += 1;
    }
}

#[cfg(test)]
impl Volume {
    /// A volume for tests: `default/v`, formatted, nowhere mounted, its copies not placed.
    pub(crate) fn sample() -> Self {
        Self {
            id: VolumeId::from_bytes([0; 16]),
            namespace: "default".into(),
            name: "v".into(),
            description: String::new(),
            size: 1 << 30,
            labels: BTreeMap::new(),
            node_selector: String::new(),
            configuration: Configuration::unplaced(),
            formatted: true,
            mount: None,
            mounts: 0,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }
}

#[cfg(test)]
impl Node {
    /// A node for tests: `nN`, without labels, its disk empty.
    pub(crate) fn sample(n: u8) -> Self {
        Self {
            id: NodeId::from_bytes([n; 16]),
            name: format!("n{n}"),
            address: String::new(),
            labels: BTreeMap::new(),
            cordoned: false,
            drained: false,
            capacity: 100,
            free: 100,
            version: String::new(),
            created_at: Timestamp::UNIX_EPOCH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_a_copys_own_are_counted_until_an_hour_without_one() {
        let node = NodeId::from_bytes([2; 16]);
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut configuration = Configuration::unplaced();
        for (second, by_itself, count) in [
            (0, false, 0),
            (10, true, 1),
            (20, false, 1),
            (3610, true, 2),
            (7211, true, 1),
            (7212, true, 2),
        ] {
            configuration.in_sync.insert(node);
            configuration.lost.remove(&node);
            configuration.lose(node, at(second), by_itself);
            assert_eq!(configuration.failures_of(node), count, "at {second}");
            assert_eq!(configuration.lost[&node], at(second));
            assert!(configuration.check());
        }
        configuration.give_up(node);
        assert_eq!(configuration, Configuration::unplaced());
    }
}
