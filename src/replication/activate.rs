//! Becoming the master: at first, after a promotion, after a crash.
//!
//! Raise the epoch (so that nothing of an earlier master, this node's own included, is taken any more), fence every
//! in-sync copy at it, make the tail equal on all, serve. An in-sync copy that does not answer in time leaves the set first.

use super::{
    change::{Failure, View},
    entry::Entry,
    env::{ConfigError, VolumeState},
    host::ReplicaHost,
    link::{LinkError, Replica},
    master::{Environment, Master, Options, Parts, over},
    monitor, notes,
    promise::Promise,
    service::{CopyState, Stamp},
    store::CopyError,
    sync::{Side, SyncError},
};
use crate::{
    block::{DeviceError, EXTENT_BLOCKS},
    exec::{
        task,
        time::{self, Instant},
    },
    volume::{NodeId, VolumeId},
};
use futures::future::join_all;
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

/// Pause between attempts to reach a copy.
const RETRY: Duration = Duration::from_millis(100);

/// Why a node could not become the master.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ActivateError {
    /// The record names another master; not an error of this node.
    #[error("the master of the volume is {}, not this node", .0.map_or_else(|| "nobody".to_owned(), |node| node.to_string()))]
    NotMaster(Option<NodeId>),
    /// The record cannot be read or changed.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// This node's copy cannot be used.
    #[error("this node's copy cannot be used: {0}")]
    Copy(#[from] CopyError),
    /// The copies could not be made equal.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// A step was cut short, by the daemon's end.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

impl Master {
    /// Makes this node serve the volume, as the record says that it should.
    ///
    /// # Errors
    /// See [`ActivateError`]; nothing is being served then, and trying again is safe.
    pub async fn activate(
        volume: VolumeId,
        host: &Arc<ReplicaHost>,
        environment: &Environment,
        options: Options,
    ) -> Result<Arc<Self>, ActivateError> {
        let mut state = environment.config.read(volume).await?;
        let node = host.node();
        if state.configuration.master != Some(node) {
            return Err(ActivateError::NotMaster(state.configuration.master));
        }
        let create = (!state.formatted).then_some(state.blocks);
        let (at, opener) = (state.configuration.epoch, Arc::clone(host));
        // Opened before the epoch is raised: a node without a usable copy must not disturb the others.
        let local = blocking(move || match create {
            Some(blocks) => opener.entry_or_create(volume, blocks, at),
            None => opener.entry(volume),
        })
        .await??;
        let local = match local.state().failed {
            None => local,
            // Nobody else can serve: its disk may be well by now.
            Some(_) if state.configuration.in_sync.len() == 1 => {
                let opener = Arc::clone(host);
                blocking(move || opener.opened_again(volume, &local)).await??
            }
            Some(why) => return Err(CopyError::Failed(why).into()),
        };
        let expected = state.configuration.epoch;
        state.configuration.epoch += 1;
        let epoch = state.configuration.epoch;
        let new = state.configuration.clone();
        environment.config.swap(volume, expected, new, "activation").await?;
        let sessions = Arc::new(AtomicU64::new(2));
        let stamp = Stamp {
            volume,
            epoch,
            session: 1,
        };
        let fencer = Arc::clone(&local);
        blocking(move || fencer.fence(stamp)).await??;

        let master = Self::new(parts(
            volume,
            host,
            environment,
            options,
            state,
            Arc::clone(&local),
            sessions,
        ));
        match master.take_over(create).await {
            Ok(fenced) => wait_out(local.promised(), &fenced).await,
            Err(error) => {
                master.fence_self("its activation failed");
                return Err(error);
            }
        }
        host.set_master(&master);
        let view = master.view()?;
        master.keep_syncs(&view.configuration.syncing);
        environment.runtime.spawn(monitor::watch(Arc::downgrade(&master)));
        environment.runtime.spawn(notes::keep_telling(Arc::downgrade(&master)));
        tracing::info!(%volume, epoch = view.configuration.epoch, copies = view.configuration.in_sync.len(), "master active");
        Ok(master)
    }

    /// Fences the other copies and makes the tail equal on all; returns the nodes that were fenced.
    async fn take_over(self: &Arc<Self>, create: Option<u64>) -> Result<Vec<NodeId>, ActivateError> {
        let view = self.view()?;
        let reached = join_all(
            view.replicas
                .iter()
                .map(|replica| self.reach(replica, view.configuration.epoch, create)),
        )
        .await;
        let mut others = Vec::new();
        let mut failed = Vec::new();
        for (replica, result) in view.replicas.iter().zip(reached) {
            match result {
                Ok(state) => others.push((Arc::clone(replica), state)),
                Err(error) => failed.push((Arc::clone(replica), Failure::from(&error))),
            }
        }
        if !failed.is_empty() {
            let _changing = self.changing.lock().await;
            self.fail_locked(failed, Instant::now()).await?;
        }
        // Of those that answered some may have been left out meanwhile.
        let view = self.view()?;
        others.retain(|(replica, _)| view.has(replica));
        let fenced = others.iter().map(|(replica, _)| replica.node).collect();
        if !self.local.state().intact && others.iter().all(|(_, state)| !state.intact) {
            self.end_mounts().await?;
        }
        let this = Arc::clone(self);
        let failed = blocking(move || this.equalise(&others)).await??;
        if !failed.is_empty() {
            let _changing = self.changing.lock().await;
            self.fail_locked(failed, Instant::now()).await?;
        }
        // What is on the copies now is what counts from now on, also if this master serves nobody before the next one.
        let this = Arc::clone(self);
        blocking(move || this.tell_all_whole()).await??;
        self.check_fenced()?;
        Ok(fenced)
    }

    /// Every copy that is left may have lost writes that were acknowledged and not flushed: to whoever made them a later flush must not succeed
    /// as if they were there. A mount that goes on would also hold what it knows of the device against what is on it now.
    async fn end_mounts(&self) -> Result<(), ActivateError> {
        let epoch = self.view()?.configuration.epoch;
        let attachment = self.environment.config.end_mounts(self.volume, epoch).await?;
        self.raise_attachment(attachment);
        tracing::warn!(
            volume = %self.volume,
            "all copies may have lost what was written and not flushed when their machines stopped: mounts of before are over"
        );
        Ok(())
    }

    async fn reach(&self, replica: &Replica, epoch: u64, create: Option<u64>) -> Result<CopyState, LinkError> {
        let started = Instant::now();
        let limit = self.options.activation_deadline;
        loop {
            let left = limit.saturating_sub(started.elapsed());
            match replica.attach(epoch, create, left).await {
                Ok(state) => return Ok(state),
                Err(error @ LinkError::Copy(_)) => return Err(error),
                Err(error) if over(started, limit) => return Err(error),
                Err(_) => time::sleep(RETRY).await,
            }
        }
    }

    /// Makes the extents that may differ equal on all copies; returns the copies that failed meanwhile. Blocks.
    ///
    /// The pattern is this node's copy, unless it lost writes that were not flushed (its machine restarted) and another
    /// copy did not: then that one's.
    fn equalise(&self, others: &[(Arc<Replica>, CopyState)]) -> Result<Vec<(Arc<Replica>, Failure)>, ActivateError> {
        let own = self.local.state();
        let mut extents: BTreeSet<u64> = own.hot.iter().copied().collect();
        for (_, state) in others {
            extents.extend(&state.hot);
        }
        let end = own.blocks.div_ceil(EXTENT_BLOCKS);
        extents.retain(|extent| *extent < end);
        let mut failed: Vec<(Arc<Replica>, Failure)> = Vec::new();
        let mut clients = Vec::new();
        for (replica, state) in others {
            match replica.client() {
                Ok(client) => clients.push((replica, client, state)),
                Err(error) => failed.push((Arc::clone(replica), Failure::from(&error))),
            }
        }
        if !own.intact && others.iter().any(|(_, state)| state.intact) {
            let Some((replica, client, _)) = clients.iter().find(|(_, _, state)| state.intact) else {
                return Err(DeviceError::Unavailable("the copy that lost nothing was lost just now".to_owned()).into());
            };
            tracing::warn!(volume = %self.volume, from = %replica.node, "this node's copy lost writes, taking them from another");
            for extent in &extents {
                self.copy_extent(*extent, &Side::Remote(replica, client), &Side::Local)
                    .map_err(into_device)?;
            }
        }
        let mut differed = 0;
        for (replica, client, _) in &clients {
            for extent in &extents {
                match self.copy_extent(*extent, &Side::Local, &Side::Remote(replica, client)) {
                    Ok(blocks) => differed += blocks,
                    Err(SyncError::Link(error)) => {
                        failed.push((Arc::clone(replica), Failure::from(&error)));
                        break;
                    }
                    Err(error) => return Err(into_device(error).into()),
                }
            }
        }
        tracing::info!(volume = %self.volume, extents = extents.len(), differed, "tail made equal");
        Ok(failed)
    }
}

/// Waits until an old master reads no more by what this node's copy promised; not for one whose copy was fenced, it knows.
async fn wait_out(Promise { to, until }: Promise, fenced: &[NodeId]) {
    if to.is_none_or(|node| !fenced.contains(&node)) {
        time::sleep_until(until).await;
    }
}

fn into_device(error: SyncError) -> DeviceError {
    match error {
        SyncError::Device(error) => error,
        other => DeviceError::Unavailable(other.to_string()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ActivateError> {
    task::spawn_blocking(work)
        .await
        .map_err(|error| ActivateError::Interrupted(error.to_string()))
}

fn parts(
    volume: VolumeId,
    host: &Arc<ReplicaHost>,
    environment: &Environment,
    options: Options,
    state: VolumeState,
    local: Arc<Entry>,
    sessions: Arc<AtomicU64>,
) -> Parts {
    let replicas = state
        .configuration
        .in_sync
        .iter()
        .filter(|node| **node != host.node())
        .map(|node| {
            Replica::new(
                *node,
                volume,
                host.identity().clone(),
                Arc::clone(&environment.peers),
                options.replica_deadline,
                Arc::clone(&sessions),
                true,
            )
        })
        .collect();
    Parts {
        volume,
        host: Arc::clone(host),
        local,
        environment: environment.clone(),
        options,
        sessions,
        local_session: 1,
        attachment: state.attachment,
        view: View {
            configuration: state.configuration,
            rule: state.rule,
            io_timeout: state.io_timeout,
            replicas,
            reason: String::new(),
        },
    }
}
