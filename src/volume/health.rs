//! How a volume is doing, in the words that users know: status, health and a sentence that says what would help.
//!
//! Judged from the record and the set of nodes that hold their lease, so any node can say it.
//!
//! | health | when |
//! | --- | --- |
//! | `offline` | no in-sync copy is on a live node |
//! | `degraded` | the master's node is offline, or replicas are missing and nothing is replacing them |
//! | `suspect` | the master is well; the node of an in-sync replica is offline |
//! | `syncing` | replicas are missing and as many are being synced |
//! | `healthy` | the master and all replicas are well |

use super::{FailureMode, NodeId, Volume, VolumeLabels};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// What a volume can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeStatus {
    /// Its copies have not been placed.
    Pending,
    /// It can be read and written.
    Active,
    /// It cannot be written now.
    Unavailable,
}

/// How a volume's copies are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeHealth {
    /// The master and all replicas.
    Healthy,
    /// A replica is being synced.
    Syncing,
    /// The node of a replica is offline.
    Suspect,
    /// The master's node is offline, or a replica is lost.
    Degraded,
    /// Nobody can serve it.
    Offline,
}

/// How one copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyHealth {
    /// In sync, its node alive.
    Healthy,
    /// In sync, its node offline.
    Suspect,
    /// Being brought up to date.
    Syncing,
    /// To be brought up to date, its node offline.
    Offline,
    /// Out of date; kept in case its node returns in time.
    Lost,
}

macro_rules! words {
    ($($type:ident: $($word:ident $text:literal),*;)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$word => $text),* })
            }
        }
    )*};
}

words! {
    VolumeStatus: Pending "pending", Active "active", Unavailable "unavailable";
    VolumeHealth: Healthy "healthy", Syncing "syncing", Suspect "suspect", Degraded "degraded", Offline "offline";
    CopyHealth: Healthy "healthy", Suspect "suspect", Syncing "syncing", Offline "offline", Lost "lost";
}

/// One copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyState {
    /// Where it is.
    pub node: NodeId,
    /// Whether it is the master's.
    pub master: bool,
    /// How it is doing.
    pub health: CopyHealth,
}

/// How a volume is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// What it can be used for.
    pub status: VolumeStatus,
    /// How its copies are doing.
    pub health: VolumeHealth,
    /// Why it cannot be used or is not healthy, and what would help; empty when all is well.
    pub message: String,
    /// Its copies, the master's first.
    pub copies: Vec<CopyState>,
    /// Replicas in sync on live nodes, the master's copy not counted.
    pub healthy_replicas: u8,
    /// Replicas wanted.
    pub wanted_replicas: u8,
}

/// Judges a volume. `name` gives the name of a node for the message.
#[must_use]
pub fn assess(volume: &Volume, live: &BTreeSet<NodeId>, name: impl Fn(NodeId) -> String) -> Assessment {
    let labels = VolumeLabels::of(&volume.labels);
    let copies = copies(volume, live);
    let count = |health: CopyHealth| copies.iter().filter(|c| !c.master && c.health == health).count();
    let healthy = count(CopyHealth::Healthy);
    let wanted = usize::from(labels.replicas);
    let configuration = &volume.configuration;
    let master = configuration.master.filter(|m| live.contains(m));
    let serving = configuration.in_sync.iter().any(|n| live.contains(n));
    let health = if !serving {
        VolumeHealth::Offline
    } else if master.is_none() {
        VolumeHealth::Degraded
    } else if count(CopyHealth::Suspect) > 0 {
        VolumeHealth::Suspect
    } else if healthy >= wanted {
        VolumeHealth::Healthy
    } else if healthy + count(CopyHealth::Syncing) >= wanted {
        VolumeHealth::Syncing
    } else {
        VolumeHealth::Degraded
    };
    let away = |which: &dyn Fn(&CopyState) -> bool| {
        let names: Vec<_> = copies.iter().filter(|c| which(c)).map(|c| name(c.node)).collect();
        names.join(", ")
    };
    let healthy_replicas = u8::try_from(healthy).unwrap_or(u8::MAX);
    let refused = labels
        .failure_rule()
        .may_write(configuration.established, healthy_replicas)
        .err();
    let (status, message) = if configuration.master.is_none() {
        (
            VolumeStatus::Pending,
            "its copies are not placed on nodes yet".to_owned(),
        )
    } else if !serving {
        let nodes = away(&|c| c.health == CopyHealth::Suspect);
        let text = format!("no node with an up-to-date copy is online; it returns as soon as one of {nodes} does");
        (VolumeStatus::Unavailable, text)
    } else if let (None, Some(dead)) = (master, configuration.master) {
        let text = format!(
            "{}, its master's node, is offline; a replica takes over shortly",
            name(dead)
        );
        (VolumeStatus::Unavailable, text)
    } else if let Some(refused) = refused {
        let nodes = away(&|c| !c.master && c.health != CopyHealth::Healthy);
        let back = if nodes.is_empty() {
            "when new replicas are in sync".to_owned()
        } else {
            format!("when {nodes} or replacements are in sync")
        };
        let or = match refused.mode {
            FailureMode::Soft if refused.tolerated < labels.replicas.min(4) => {
                "a higher storageos.com/failure.tolerance or storageos.com/failure.mode=alwayson"
            }
            FailureMode::Soft => "storageos.com/failure.mode=alwayson",
            FailureMode::Hard | FailureMode::AlwaysOn => "storageos.com/failure.mode=soft or alwayson",
        };
        let text = format!("not writable: {refused}; it returns {back}, or with {or}");
        (VolumeStatus::Unavailable, text)
    } else {
        let text = match health {
            VolumeHealth::Healthy | VolumeHealth::Offline => String::new(),
            VolumeHealth::Suspect => format!("{} offline", away(&|c| c.health == CopyHealth::Suspect)),
            VolumeHealth::Syncing => format!("syncing to {}", away(&|c| c.health == CopyHealth::Syncing)),
            VolumeHealth::Degraded => {
                format!("{healthy} of {wanted} replicas in sync and no other node to replace the missing ones yet")
            }
        };
        (VolumeStatus::Active, text)
    };
    Assessment {
        status,
        health,
        message,
        copies,
        healthy_replicas,
        wanted_replicas: labels.replicas,
    }
}

fn copies(volume: &Volume, live: &BTreeSet<NodeId>) -> Vec<CopyState> {
    let configuration = &volume.configuration;
    let when = |node: &NodeId, alive, dead| if live.contains(node) { alive } else { dead };
    let in_sync = configuration
        .in_sync
        .iter()
        .map(|n| (n, when(n, CopyHealth::Healthy, CopyHealth::Suspect)));
    let syncing = configuration
        .syncing
        .iter()
        .map(|n| (n, when(n, CopyHealth::Syncing, CopyHealth::Offline)));
    let lost = configuration.lost.keys().map(|n| (n, CopyHealth::Lost));
    let mut copies: Vec<_> = in_sync
        .chain(syncing)
        .chain(lost)
        .map(|(node, health)| CopyState {
            node: *node,
            master: configuration.master == Some(*node),
            health,
        })
        .collect();
    copies.sort_by_key(|copy| !copy.master);
    copies
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
