//! What this node knows in numbers, gathered when somebody asks.
//!
//! Reads the counters that each part keeps; changes nothing. A scrape answers whatever else is stuck: what may wait (the space of a mounted file
//! system, the control plane) is given a moment and left out if it takes longer, and at most one thread is lost to it.
//!
//! What is told of a volume by whom: its state (health, copies, epoch) by every node that holds a copy or has it mounted, and by the leader of the
//! control plane, so that no single death silences it; what its master counts by the master's node; what its mount counts by the mount's node.

use super::daemon::{Joined, Shared};
use super::process;
use super::scrubber;
use crate::block::BLOCK_SIZE;
use crate::cluster::View;
use crate::metrics::{Exposition, Metric};
use crate::replication::Master;
use crate::volume::{NodeId, Volume, VolumeHealth, VolumeId, VolumeStatus, assess};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the control plane may take to answer.
pub(super) const CONTROL: Duration = Duration::from_secs(2);
/// How long mounted file systems may take to say how full they are.
const SPACE: Duration = Duration::from_millis(500);

/// Whether a thread looks at the space of mounts.
#[derive(Debug, Default)]
pub(super) struct Looking(AtomicBool);

/// A volume's labels, and this node's.
struct Names<'a> {
    namespace: &'a str,
    volume: &'a str,
    node: &'a str,
}

impl<'a> Names<'a> {
    fn of(volume: &'a Volume, node: &'a str) -> Self {
        Self {
            namespace: &volume.namespace,
            volume: &volume.name,
            node,
        }
    }

    fn labels(&self) -> [(&'a str, &'a str); 3] {
        [
            ("namespace", self.namespace),
            ("volume", self.volume),
            ("node", self.node),
        ]
    }

    fn with(&self, label: &'a str, value: &'a str) -> [(&'a str, &'a str); 4] {
        let [a, b, c] = self.labels();
        [a, b, c, (label, value)]
    }
}

impl Shared {
    /// One scrape.
    pub(super) async fn scrape(&self) -> String {
        let mut out = Exposition::default();
        let version = env!("CARGO_PKG_VERSION");
        out.add(
            Metric::BuildInfo,
            &[("version", version), ("node", &self.name)],
            1_usize,
        );
        let node = [("node", self.name.as_str())];
        let joined = self.joining().ok();
        out.add(Metric::NodeMember, &node, self.joined().is_ok());
        if let Ok((capacity, free)) = self.data.capacity() {
            out.add(Metric::NodeCapacity, &node, capacity);
            out.add(Metric::NodeFree, &node, free);
        }
        if let Some(credentials) = self.identity.credentials() {
            out.add(
                Metric::CertificateExpires,
                &node,
                credentials.expires.as_second() as f64,
            );
            out.add(Metric::CertificateRenewal, &node, credentials.due().as_second() as f64);
        }
        for (kind, count) in self.journal.counts() {
            let kind = kind.to_string();
            out.add(Metric::Events, &[("node", &self.name), ("kind", &kind)], count);
        }
        if let Some(joined) = joined {
            self.member(&joined, &mut out).await;
        }
        process::add(&mut out);
        out.text()
    }

    /// What a member knows besides.
    async fn member(&self, joined: &Arc<Joined>, out: &mut Exposition) {
        let view = joined.control.view();
        let node = [("node", self.name.as_str())];
        for peer in view.nodes.values() {
            let labels = [("node", self.name.as_str()), ("peer", &peer.name)];
            out.add(Metric::NodeOnline, &labels, view.live.contains(&peer.id));
        }
        let [renewals, failures] = joined.beats.counts();
        out.add(Metric::NodeLeaseRenewals, &node, renewals);
        out.add(Metric::NodeLeaseFailures, &node, failures);
        if let Some(age) = joined.beats.age() {
            out.add(Metric::NodeLeaseAge, &node, age.as_secs_f64());
        }
        out.add(Metric::NodeLeaseDuration, &node, self.config.lease.as_secs_f64());

        let status = joined.status();
        out.add(Metric::ControlHasLeader, &node, status.leader.is_some());
        let leads = status.leader == Some(self.node);
        out.add(Metric::ControlLeader, &node, leads);
        out.add(Metric::ControlVoter, &node, status.voters.contains(&self.node));
        let voters = status.etcd.as_ref().map_or(status.voters.len(), Vec::len);
        out.add(Metric::ControlVoters, &node, voters);
        let asked = Instant::now();
        out.add(Metric::ControlReachable, &node, joined.control_answers().await.is_ok());
        out.add(Metric::ControlAnswer, &node, asked.elapsed().as_secs_f64());
        let activations = joined.volumes.serving.activations.observed();
        out.histogram(Metric::Activation, &node, &activations);

        let used = joined.used(&self.looking).await;
        let (this, joined, name) = (self.node, joined.clone(), self.name.clone());
        let taken = std::mem::take(out);
        // Looks at files.
        let gathered = tokio::task::spawn_blocking(move || {
            let mut out = taken;
            volumes(&mut out, &joined, &view, this, &name, leads, &used);
            out
        });
        match gathered.await {
            Ok(all) => *out = all,
            Err(error) => tracing::error!(%error, "a scrape of the metrics was interrupted"),
        }
    }
}

impl Joined {
    /// Whether the control plane answers, and why not.
    pub(super) async fn control_answers(&self) -> Result<(), String> {
        match tokio::time::timeout(CONTROL, self.control.catalog.cluster()).await {
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err("the control plane does not know the cluster".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the control plane does not answer within {CONTROL:?}")),
        }
    }

    /// Bytes that files take, of the volumes mounted here whose file systems say so at once.
    async fn used(self: &Arc<Self>, looking: &Arc<Looking>) -> BTreeMap<VolumeId, u64> {
        if looking.0.swap(true, Ordering::SeqCst) {
            // Another scrape's look is stuck, or just under way.
            return BTreeMap::new();
        }
        let (mounts, looking) = (self.mounts.all(), looking.clone());
        let look = tokio::task::spawn_blocking(move || {
            let used = mounts
                .iter()
                .filter_map(|mount| Some((mount.volume, mount.fs.statfs().ok()?.used())))
                .collect();
            looking.0.store(false, Ordering::SeqCst);
            used
        });
        match tokio::time::timeout(SPACE, look).await {
            Ok(Ok(used)) => used,
            _ => BTreeMap::new(),
        }
    }
}

/// Everything about volumes. Blocks for a moment.
fn volumes(
    out: &mut Exposition,
    joined: &Joined,
    view: &View,
    this: NodeId,
    node: &str,
    leads: bool,
    used: &BTreeMap<VolumeId, u64>,
) {
    let (mut masters, mut replicas) = (0_usize, 0_usize);
    for volume in view.volumes.values() {
        let names = Names::of(volume, node);
        let labels = names.labels();
        let configuration = &volume.configuration;
        let is_master = configuration.master == Some(this);
        let holds = configuration.has_copy_on(this);
        masters += usize::from(is_master);
        replicas += usize::from(holds && !is_master);
        let mount = joined.mounts.get(volume.id);
        let master = joined.server.host.master(volume.id);
        if holds || leads || mount.is_some() {
            state(out, joined, view, volume, &names, is_master, master.as_deref());
        }
        if holds && let Some(taken) = joined.server.copy_bytes(volume.id) {
            out.add(Metric::VolumeActual, &labels, taken);
        }
        if let Some(master) = &master {
            served(out, joined, view, &names, master);
        }
        if let Some(mount) = mount {
            let read_only = if mount.read_only { "true" } else { "false" };
            out.add(Metric::VolumeMounted, &names.with("read_only", read_only), 1_usize);
            if let Some(used) = used.get(&volume.id) {
                out.add(Metric::VolumeApparent, &labels, *used);
            }
            let handle = mount.handle.lock().clone();
            if let Some(handle) = handle {
                frontend(out, &names, &handle);
            }
        }
    }
    for (kind, count) in [("master", masters), ("replica", replicas)] {
        out.add(Metric::NodeVolumes, &[("node", node), ("volume_type", kind)], count);
    }
}

/// What the record, and the master if it is here, say of a volume's state.
fn state(
    out: &mut Exposition,
    joined: &Joined,
    view: &View,
    volume: &Volume,
    names: &Names<'_>,
    is_master: bool,
    master: Option<&Master>,
) {
    let labels = names.labels();
    let judged = assess(volume, &view.live, |node| view.node_name(node));
    for health in [
        VolumeHealth::Healthy,
        VolumeHealth::Syncing,
        VolumeHealth::Suspect,
        VolumeHealth::Degraded,
        VolumeHealth::Offline,
    ] {
        let word = health.to_string();
        out.add(
            Metric::VolumeHealth,
            &names.with("health", &word),
            judged.health == health,
        );
    }
    // The master knows better than the record whether it writes.
    let serves = !is_master
        || master.is_some_and(|master| {
            let status = master.status();
            status.blocked.is_none() && status.waiting.is_none() && status.fenced.is_none()
        });
    let writable = judged.status == VolumeStatus::Active && serves;
    out.add(Metric::VolumeWritable, &labels, writable);
    let configuration = &volume.configuration;
    for (word, count) in [
        ("in_sync", configuration.in_sync.len()),
        ("syncing", configuration.syncing.len()),
        ("lost", configuration.lost.len()),
    ] {
        out.add(Metric::VolumeCopies, &names.with("state", word), count);
    }
    let wanted = usize::from(judged.wanted_replicas) + 1;
    out.add(Metric::VolumeCopiesWanted, &labels, wanted);
    out.add(Metric::VolumeEpoch, &labels, configuration.epoch);
    out.add(
        Metric::VolumeEpochChanges,
        &labels,
        joined.volumes.epoch_changes(volume.id),
    );
    out.add(Metric::VolumeCapacity, &labels, volume.size);
}

/// What the active master counts, its syncs and its scrub.
fn served(out: &mut Exposition, joined: &Joined, view: &View, names: &Names<'_>, master: &Master) {
    let labels = names.labels();
    let (stats, meters) = (master.stats().snapshot(), master.meters());
    let [read_errors, write_errors] = meters.errors();
    let [sent, sent_bytes, sent_errors] = meters.sent.totals();
    let [asked, asked_bytes, asked_errors] = meters.asked.totals();
    for (metric, value) in [
        (Metric::VolumeBackendReads, stats.reads),
        (Metric::VolumeBackendReadBytes, stats.read_bytes),
        (Metric::VolumeBackendReadErrors, read_errors),
        (Metric::VolumeBackendWrites, stats.writes),
        (Metric::VolumeBackendWriteBytes, stats.write_bytes),
        (Metric::VolumeBackendWriteErrors, write_errors),
        (Metric::VolumeBackendFlushes, stats.flushes),
        (Metric::VolumeBackendDiscards, stats.discards),
        (Metric::VolumeNetworkWrites, sent),
        (Metric::VolumeNetworkWriteBytes, sent_bytes),
        (Metric::VolumeNetworkWriteErrors, sent_errors),
        (Metric::VolumeNetworkReads, asked),
        (Metric::VolumeNetworkReadBytes, asked_bytes),
        (Metric::VolumeNetworkReadErrors, asked_errors),
        (Metric::VolumeSyncs, stats.syncs),
        (
            Metric::VolumeSyncSent,
            stats.sync_blocks.saturating_mul(BLOCK_SIZE as u64),
        ),
        (Metric::VolumeDrops, stats.drops),
        (Metric::VolumeCorrupt, stats.corruptions),
        (Metric::VolumeRepaired, stats.repairs),
    ] {
        out.add(metric, &labels, value);
    }
    for (metric, histogram) in [
        (Metric::VolumeBackendReadSeconds, &meters.read),
        (Metric::VolumeBackendWriteSeconds, &meters.write),
        (Metric::VolumeBackendFlushSeconds, &meters.flush),
    ] {
        out.histogram(metric, &labels, &histogram.observed());
    }
    for (copy, progress) in master.status().syncs {
        let copy = view.node_name(copy);
        let labels = names.with("copy", &copy);
        out.add(Metric::VolumeSyncDone, &labels, progress.bytes_done);
        out.add(Metric::VolumeSyncSize, &labels, progress.bytes_total);
        out.add(Metric::VolumeSyncIdle, &labels, progress.idle_seconds);
        out.add(Metric::VolumeSyncAttempts, &labels, progress.attempts);
    }
    let pass = joined.server.scrubber.pass(master.volume());
    out.add(
        Metric::VolumeScrubRunning,
        &labels,
        pass.as_ref().is_some_and(|pass| pass.finished_at.is_none()),
    );
    if let Some(pass) = pass {
        out.add(Metric::VolumeScrubDone, &labels, scrubber::bytes(pass.extents_done));
        out.add(Metric::VolumeScrubSize, &labels, scrubber::bytes(pass.extents_total));
        if let Some(at) = pass.finished_at {
            out.add(Metric::VolumeScrubFinished, &labels, at.as_second() as f64);
        }
    }
}

/// What a mount counts.
fn frontend(out: &mut Exposition, names: &Names<'_>, mount: &crate::fuse::MountHandle) {
    let labels = names.labels();
    let (requests, flows) = (mount.requests(), mount.flows());
    for (kind, count) in &requests {
        out.add(Metric::VolumeFuseRequests, &names.with("kind", kind), *count);
    }
    let of = |wanted: &str| requests.iter().find(|(kind, _)| *kind == wanted).map_or(0, |(_, n)| *n);
    let [read_bytes, read_errors] = flows.read.totals();
    let [write_bytes, write_errors] = flows.write.totals();
    let [_, sync_errors] = flows.sync.totals();
    for (metric, value) in [
        (Metric::VolumeFrontendReads, of("read")),
        (Metric::VolumeFrontendReadBytes, read_bytes),
        (Metric::VolumeFrontendReadErrors, read_errors),
        (Metric::VolumeFrontendWrites, of("write")),
        (Metric::VolumeFrontendWriteBytes, write_bytes),
        (Metric::VolumeFrontendWriteErrors, write_errors),
        (Metric::VolumeFrontendSyncErrors, sync_errors),
    ] {
        out.add(metric, &labels, value);
    }
    for (metric, flow) in [
        (Metric::VolumeFrontendReadSeconds, &flows.read),
        (Metric::VolumeFrontendWriteSeconds, &flows.write),
        (Metric::VolumeFrontendSyncSeconds, &flows.sync),
    ] {
        out.histogram(metric, &labels, &flow.seconds.observed());
    }
}
