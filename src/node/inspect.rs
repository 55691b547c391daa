//! How records, their assessment and what nodes tell of themselves become the API's answers. Pure.

use super::scrubber::{self, Pass};
use super::service::Runtime;
use crate::api::types::{
    CopyInfo, DrainInfo, NodeInfo, RemainingCopy, ScrubInfo, ScrubbedCopyInfo, SyncInfo, VolumeInfo,
};
use crate::block::BLOCK_SIZE;
use crate::cluster::{Remaining, View, Waiting, remaining};
use crate::replication::SyncProgress;
use crate::volume::{CopyHealth, CopyState, Node, NodeId, Volume, VolumeHealth, VolumeId, VolumeStatus, assess};
use std::collections::BTreeMap;

/// What nodes told of volumes, by node and volume.
pub(super) type Told = BTreeMap<NodeId, BTreeMap<VolumeId, Runtime>>;

/// A volume as `volume inspect` shows it.
pub(super) fn volume(volume: &Volume, view: &View, told: &Told) -> VolumeInfo {
    let judged = assess(volume, &view.live, |node| view.node_name(node));
    let of = |node: NodeId| told.get(&node).and_then(|volumes| volumes.get(&volume.id));
    let serving = volume.configuration.master.and_then(of);
    let mut copies: Vec<CopyInfo> = judged
        .copies
        .iter()
        .map(|state| copy(volume, view, state, of(state.node), serving))
        .collect();
    let mut status = judged.status;
    let mut message = judged.message;
    if let Some(told) = serving.and_then(|s| s.master.as_ref())
        && let Some(blocked) = &told.blocked
    {
        // The master knows better than the record whether it writes.
        if judged.status == VolumeStatus::Active {
            message = format!("not writable: {blocked}");
        }
        status = VolumeStatus::Unavailable;
        message.push_str(&match told.waits {
            Some(seconds) => format!("; writes wait for that, {seconds} s more, then they fail"),
            None => "; until then it is read-only".to_owned(),
        });
    }
    if let Some(waiting) = serving.and_then(|s| s.master.as_ref()).and_then(|m| m.waiting.as_ref()) {
        status = VolumeStatus::Unavailable;
        message = format!("writes wait: {waiting}");
    }
    if let Some(problem) = serving.and_then(|s| s.problem.clone()) {
        status = VolumeStatus::Unavailable;
        message = problem;
    }
    let at = copies.iter().position(|c| volume.configuration.master == Some(c.node));
    let master = at.map(|at| copies.remove(at));
    let claim = volume.mount.as_ref();
    VolumeInfo {
        id: volume.id,
        name: volume.name.clone(),
        size: volume.size,
        pool: "default".to_owned(),
        description: volume.description.clone(),
        labels: volume.labels.clone(),
        namespace: volume.namespace.clone(),
        node_selector: volume.node_selector.clone(),
        master,
        mounted: claim.is_some(),
        mountpoint: claim.map(|c| c.mountpoint.clone()).unwrap_or_default(),
        mounted_at: claim.map(|c| c.mounted_at),
        mounted_by: claim.map(|c| view.node_name(c.node)).unwrap_or_default(),
        read_only: claim.is_some_and(|c| c.read_only),
        desired_replicas: judged.wanted_replicas,
        replicas: copies,
        health: judged.health.to_string(),
        status: status.to_string(),
        status_message: message,
        epoch: volume.configuration.epoch,
        used_bytes: claim.and_then(|c| of(c.node)).and_then(|r| r.used_bytes),
        corrupt_blocks: serving.and_then(|s| s.master.as_ref()).map(|m| m.stats.corruptions),
        repaired_blocks: serving.and_then(|s| s.master.as_ref()).map(|m| m.stats.repairs),
        scrub: serving.and_then(|s| s.scrub.as_ref()).map(|pass| scrub(pass, view)),
        created_at: volume.created_at,
        created_by: "storageos".to_owned(),
    }
}

fn copy(volume: &Volume, view: &View, state: &CopyState, own: Option<&Runtime>, serving: Option<&Runtime>) -> CopyInfo {
    let failed = own.and_then(|r| r.copy_failed.as_ref());
    let status = match state.health {
        _ if failed.is_some() => "failed",
        CopyHealth::Healthy => "active",
        CopyHealth::Syncing => "syncing",
        CopyHealth::Suspect | CopyHealth::Offline | CopyHealth::Lost => "unavailable",
    };
    let progress = serving
        .and_then(|r| r.master.as_ref())
        .and_then(|m| m.syncs.get(&state.node));
    CopyInfo {
        id: format!("{}.{}", volume.id, state.node),
        node: state.node,
        node_name: view.node_name(state.node),
        health: state.health.to_string(),
        status: status.to_owned(),
        created_at: volume.created_at,
        used_bytes: own.and_then(|r| r.copy_bytes),
        sync: progress.map(sync),
    }
}

fn sync(progress: &SyncProgress) -> SyncInfo {
    let left = progress.bytes_total.saturating_sub(progress.bytes_done);
    SyncInfo {
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        bytes_left: left,
        attempts: progress.attempts,
        idle_seconds: progress.idle_seconds,
        bytes_sent: progress.blocks_sent.saturating_mul(BLOCK_SIZE as u64),
        bytes_per_second: progress.bytes_per_second,
        seconds_left: left.checked_div(progress.bytes_per_second),
        problem: progress.last_error.clone(),
    }
}

/// A scrub as the API shows it.
pub(super) fn scrub(pass: &Pass, view: &View) -> ScrubInfo {
    ScrubInfo {
        running: pass.finished_at.is_none(),
        asked: pass.asked,
        started_at: pass.started_at,
        finished_at: pass.finished_at,
        bytes_done: scrubber::bytes(pass.extents_done),
        bytes_total: scrubber::bytes(pass.extents_total),
        copies: pass
            .copies
            .iter()
            .map(|copy| ScrubbedCopyInfo {
                node: copy.node,
                node_name: view.node_name(copy.node),
                bytes_read: copy.bytes_read,
                corrupt_blocks: copy.corrupt_blocks,
                repaired_blocks: copy.repaired_blocks,
                error: copy.error.clone(),
            })
            .collect(),
        error: pass.error.clone(),
    }
}

/// A node as `node inspect` shows it.
pub(super) fn node(node: &Node, view: &View, voter: Option<bool>) -> NodeInfo {
    let masters = view
        .volumes
        .values()
        .filter(|v| v.configuration.master == Some(node.id))
        .count();
    NodeInfo {
        id: node.id,
        name: node.name.clone(),
        address: node.address.clone(),
        health: node_health(node.id, view).to_owned(),
        health_since: None,
        labels: node.labels.clone(),
        cordoned: node.cordoned || node.drained,
        drained: node.drained,
        voter,
        masters,
        replicas: view.copies_on(node.id).saturating_sub(masters),
        capacity: node.capacity,
        free: node.free,
        version: node.version.clone(),
        created_at: node.created_at,
    }
}

/// How far the draining of a node is.
pub(super) fn drain(node: &Node, view: &View) -> DrainInfo {
    let left: Vec<RemainingCopy> = remaining(view, node.id)
        .into_iter()
        .map(|copy| waiting_copy(copy, view))
        .collect();
    let mounted = view
        .volumes
        .values()
        .filter(|v| v.mount.as_ref().is_some_and(|claim| claim.node == node.id));
    DrainInfo {
        name: node.name.clone(),
        drained: node.drained,
        empty: left.is_empty(),
        remaining: left,
        mounts: mounted.map(|v| super::control::name(v)).collect(),
    }
}

fn waiting_copy(copy: Remaining, view: &View) -> RemainingCopy {
    let message = match &copy.waiting {
        Waiting::Sync(node) => format!("its new copy on {} is being synced", view.node_name(*node)),
        Waiting::Turn => "another volume is moved first".to_owned(),
        Waiting::Step if copy.master => "its mastership is about to be handed over".to_owned(),
        Waiting::Step => "its next step is under way".to_owned(),
        Waiting::Stuck(why) => why.clone(),
    };
    RemainingCopy {
        volume: copy.name,
        master: copy.master,
        stuck: matches!(copy.waiting, Waiting::Stuck(_)),
        message,
    }
}

/// `healthy` while its lease runs, else `offline`.
pub(super) fn node_health(node: NodeId, view: &View) -> &'static str {
    if view.live.contains(&node) {
        "healthy"
    } else {
        "offline"
    }
}

/// Nodes to be asked about volumes: the masters', the copies' and the mounts', those that live, each with its volumes.
pub(super) fn whom_to_ask<'a>(
    volumes: impl Iterator<Item = &'a Volume>,
    view: &View,
) -> BTreeMap<NodeId, Vec<VolumeId>> {
    let mut ask: BTreeMap<NodeId, Vec<VolumeId>> = BTreeMap::new();
    for volume in volumes {
        let configuration = &volume.configuration;
        let mut nodes: Vec<NodeId> = configuration.in_sync.union(&configuration.syncing).copied().collect();
        nodes.extend(configuration.lost.keys());
        nodes.extend(volume.mount.as_ref().map(|claim| claim.node));
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes.into_iter().filter(|n| view.live.contains(n)) {
            ask.entry(node).or_default().push(volume.id);
        }
    }
    ask
}

/// Number of volumes by health, and a sentence for each that is not well.
pub(super) fn volumes_health(view: &View) -> (BTreeMap<String, usize>, Vec<String>) {
    let mut counts = BTreeMap::new();
    let mut problems = Vec::new();
    for volume in view.volumes.values() {
        let judged = assess(volume, &view.live, |node| view.node_name(node));
        *counts.entry(judged.health.to_string()).or_default() += 1;
        if judged.health != VolumeHealth::Healthy || judged.status != VolumeStatus::Active {
            problems.push(format!(
                "volume {} is {}: {}",
                super::control::name(volume),
                judged.health,
                judged.message
            ));
        }
    }
    (counts, problems)
}
