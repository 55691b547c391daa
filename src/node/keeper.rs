//! Keeps a volume's master active on this node for as long as the control store names this node its master.
//!
//! One task for each such volume. It activates the master (again after it ended or failed, with growing pauses), passes it
//! the changes of its record, and tells the mount on this node, if there is one. A copy that cannot be used any more is
//! not kept as the master when another is in sync: mastership is handed on.

use super::control::{Control, name};
use crate::block::BlockDevice;
use crate::cluster::View;
use crate::exec::{
    random,
    sync::Mutex,
    task::{self, JoinHandle},
    time,
};
use crate::metrics::Histogram;
use crate::replication::{ActivateError, Environment, Master, Options, ReplicaHost};
use crate::volume::{NodeId, Volume, VolumeId};
use rand::seq::IteratorRandom;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// First and longest pause between attempts to activate.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause until copies that could not be grown are tried again.
const GROW_RETRY: Duration = Duration::from_secs(2);

/// What keepers work with.
pub(crate) struct Serving {
    pub(crate) node: NodeId,
    pub(crate) host: Arc<ReplicaHost>,
    pub(crate) environment: Environment,
    pub(crate) options: Options,
    pub(crate) control: Control,
    /// Why volumes whose master this node should be are not served.
    pub(crate) problems: Arc<Mutex<BTreeMap<VolumeId, String>>>,
    /// How long activations took, attempts that failed included.
    pub(crate) activations: Arc<Histogram>,
}

impl Serving {
    /// Removes those of the `copies` here that are not part of their volumes any more.
    pub(crate) async fn remove_unwanted(&self, view: &View, copies: Vec<VolumeId>) {
        for volume in copies {
            if view.volumes.get(&volume).is_some_and(|v| self.concerns(v)) {
                continue;
            }
            // The view may be older than the copy.
            match self.control.volume(volume).await {
                Ok(Some(now)) if self.concerns(&now) => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%volume, %error, "cannot tell whether a copy is still wanted");
                    continue;
                }
            }
            if let Some(master) = self.host.master(volume) {
                master.stop();
            }
            let host = self.host.clone();
            let removed = task::spawn_blocking(move || host.remove(volume)).await;
            match removed {
                Ok(Ok(())) => tracing::info!(%volume, "this node's copy is not part of the volume any more, removed"),
                Ok(Err(error)) => tracing::warn!(%volume, %error, "a copy could not be removed"),
                Err(error) => tracing::warn!(%volume, %error, "a copy's removal was interrupted"),
            }
        }
    }

    fn concerns(&self, volume: &Volume) -> bool {
        let configuration = &volume.configuration;
        configuration.in_sync.contains(&self.node)
            || configuration.syncing.contains(&self.node)
            || configuration.lost.contains_key(&self.node)
    }
}

/// The keepers of this node.
pub(crate) struct Keepers {
    serving: Arc<Serving>,
    running: Mutex<BTreeMap<VolumeId, JoinHandle<()>>>,
    stop: CancellationToken,
}

impl Keepers {
    /// None runs yet; all end with `stop`.
    pub(crate) fn new(serving: Arc<Serving>, stop: CancellationToken) -> Self {
        Self {
            serving,
            running: Mutex::default(),
            stop,
        }
    }

    /// Starts one for each volume that has its master here. They end by themselves.
    pub(crate) fn keep_masters(&self, view: &View) {
        let mut running = self.running.lock();
        running.retain(|_, keeper| !keeper.is_finished());
        for volume in view.volumes.values() {
            if volume.configuration.master == Some(self.serving.node) && !self.stop.is_cancelled() {
                running
                    .entry(volume.id)
                    .or_insert_with(|| task::spawn(keep(self.serving.clone(), volume.id, self.stop.clone())));
            }
        }
        self.serving.problems.lock().retain(|id, _| running.contains_key(id));
    }

    /// Waits until all have ended, after `stop`.
    pub(super) async fn ended(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        for keeper in running.into_values() {
            // A keeper that panicked has nothing more to stop.
            let _ = keeper.await;
        }
    }
}

/// Runs until this node is not the volume's master any more, or `stop`.
async fn keep(serving: Arc<Serving>, volume: VolumeId, stop: CancellationToken) {
    let mut view = serving.control.watch();
    let mut pause = FIRST_PAUSE;
    let mut since = time::Instant::now();
    while !stop.is_cancelled() {
        let Some(record) = view.borrow_and_update().volumes.get(&volume).cloned() else {
            return;
        };
        if record.configuration.master != Some(serving.node) {
            return;
        }
        let activated = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            activated = Master::activate(volume, &serving.host, &serving.environment, serving.options) => activated,
        };
        let why = match activated {
            Ok(master) => {
                pause = FIRST_PAUSE;
                serving.problems.lock().remove(&volume);
                serving.activations.observe(since.elapsed());
                tracing::info!(
                    volume = %name(&record), %volume, epoch = master.status().configuration.epoch, "serving as master"
                );
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = follow(&serving, master.clone()) => {}
                }
                if stop.is_cancelled() {
                    return;
                }
                let why = master.fenced().unwrap_or_else(|| "it stopped".to_owned());
                tracing::info!(volume = %name(&record), %volume, reason = %why, "not serving as master any more");
                since = time::Instant::now();
                continue;
            }
            // The record changed; the view will say so soon, or has.
            Err(ActivateError::NotMaster(_)) => String::new(),
            Err(error @ ActivateError::Copy(_)) => {
                let why = error.to_string();
                hand_on(&serving, &record, &why).await;
                why
            }
            Err(error) => error.to_string(),
        };
        if !why.is_empty() {
            tracing::warn!(volume = %name(&record), %volume, error = %why, "cannot serve as master yet, trying again");
            serving.problems.lock().insert(volume, why);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = time::sleep(pause) => {}
            // A change of the record may be what was missing; a change of anything else costs one attempt more.
            _ = view.changed() => time::sleep(FIRST_PAUSE).await,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Passes the changes of the record to the master until it has ended.
async fn follow(serving: &Serving, master: Arc<Master>) {
    let stopped = master.stopped();
    let mut view = serving.control.watch();
    let mut told: Option<Arc<Volume>> = None;
    let mut grown = true;
    loop {
        let Some(record) = view.borrow_and_update().volumes.get(&master.volume()).cloned() else {
            master.stop();
            return;
        };
        let changed = told.as_ref() != Some(&record);
        if changed && let Err(error) = master.configuration_changed(super::records::state(&record)).await {
            tracing::debug!(volume = %record.id, %error, "the master did not take a change of its record");
        }
        if changed || !grown {
            grown = grow(&master, &record).await;
        }
        told = Some(record);
        tokio::select! {
            biased;
            () = stopped.cancelled() => return,
            () = time::sleep(GROW_RETRY), if !grown => {}
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Makes the copies as large as the record says; whether they are.
async fn grow(master: &Arc<Master>, record: &Volume) -> bool {
    let wanted = crate::fs::device_blocks(record.size);
    if wanted <= master.blocks() {
        return true;
    }
    let growing = master.clone();
    match task::spawn_blocking(move || growing.grow(wanted)).await {
        Ok(Ok(())) => {
            tracing::info!(volume = %name(record), size = record.size, "copies grown");
            true
        }
        Ok(Err(error)) => {
            tracing::warn!(volume = %name(record), %error, "the copies could not be grown, trying again");
            false
        }
        // The daemon ends.
        Err(_) => true,
    }
}

/// This node's copy cannot be used: another in-sync copy's node becomes the master, at random, if there is one.
async fn hand_on(serving: &Serving, record: &Volume, why: &str) {
    let me = serving.node;
    let outcome = serving
        .control
        .change_volume(record.id, |now| {
            let configuration = &mut now.configuration;
            if configuration.master != Some(me) {
                return Ok(());
            }
            let heir: Option<NodeId> = configuration
                .in_sync
                .iter()
                .copied()
                .filter(|node| *node != me)
                .choose(&mut random::rng());
            let Some(heir) = heir else { return Ok(()) };
            configuration.master = Some(heir);
            configuration.lose(me, time::wall(), true);
            configuration.epoch += 1;
            Ok(())
        })
        .await;
    match outcome {
        Ok(now) if now.configuration.master != Some(me) => {
            tracing::warn!(volume = %name(record), reason = %why, "this node's copy failed, mastership handed on");
        }
        Ok(_) => tracing::error!(volume = %name(record), reason = %why, "the only copy in sync cannot be used"),
        Err(error) => tracing::warn!(volume = %name(record), %error, "mastership could not be handed on"),
    }
}
