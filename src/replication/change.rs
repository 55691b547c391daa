//! Changes of a volume's configuration as its master makes and meets them: a copy that fails leaves, a copy that is
//! complete joins, a higher epoch ends the master.
//!
//! One at a time, under `changing`. The order is always: change the record in the control store, fence every copy that
//! stays at the new epoch, then show the new view to calls. A call that meets a copy ahead of its view waits for `changing` and
//! goes on with the view after it.

use super::{
    env::{ConfigError, VolumeState},
    link::{ALL, Change, LinkError, Replica},
    master::{MAX_FOLLOWS, Master, over},
    store::CopyError,
};
use crate::{
    block::DeviceError,
    exec::{
        random, task,
        time::{self, Instant},
    },
    volume::{Configuration, EventKind, FailureRule, NodeId, NotWritable},
};
use futures::future::join_all;
use rand::seq::IteratorRandom;
use std::{sync::Arc, time::Duration};

/// Pause between attempts while the control plane does not answer.
const RETRY: Duration = Duration::from_millis(100);

/// The configuration in force, as calls see it. Immutable; a change installs a new one.
#[derive(Clone)]
pub(super) struct View {
    pub(super) configuration: Configuration,
    pub(super) rule: FailureRule,
    pub(super) io_timeout: Duration,
    /// The copies on other nodes: those in sync, and those syncing that are connected.
    pub(super) replicas: Vec<Arc<Replica>>,
    /// Why copies were lost with the change to this configuration, if it is known.
    pub(super) reason: String,
}

impl View {
    /// Why the volume may not be written, if so.
    pub(super) fn blocked(&self) -> Option<NotWritable> {
        self.rule
            .may_write(self.configuration.established, self.configuration.replicas_in_sync())
            .err()
    }

    pub(super) fn in_sync_replicas(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.replicas
            .iter()
            .filter(|replica| self.configuration.in_sync.contains(&replica.node))
    }

    pub(super) fn has(&self, replica: &Arc<Replica>) -> bool {
        self.replicas.iter().any(|known| Arc::ptr_eq(known, replica))
    }
}

/// What a master's calls look at.
pub(super) struct State {
    view: Arc<View>,
    /// Why this master will never serve again.
    fenced: Option<String>,
    /// Since when the volume may not be written.
    blocked_since: Option<Instant>,
    /// It has been so for longer than `io.timeout`, and that was told.
    read_only: bool,
}

impl State {
    pub(super) fn new(view: View) -> Self {
        let blocked_since = view.blocked().map(|_| Instant::now());
        Self {
            view: Arc::new(view),
            fenced: None,
            blocked_since,
            read_only: false,
        }
    }
}

/// Why a copy is left out.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// The copy's own disk failed, not its node or the network.
    pub(super) by_itself: bool,
}

impl From<&LinkError> for Failure {
    fn from(error: &LinkError) -> Self {
        Self {
            why: error.to_string(),
            by_itself: matches!(error, LinkError::Copy(CopyError::Failed(_) | CopyError::NoSpace(_))),
        }
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            by_itself: false,
        }
    }
}

/// As [`Master::fence_all`] tells of copies that did not take the epoch.
pub(super) fn failures(unfenced: Vec<(Arc<Replica>, LinkError)>) -> Vec<(Arc<Replica>, Failure)> {
    let of = |(replica, error): (Arc<Replica>, LinkError)| (replica, Failure::from(&error));
    unfenced.into_iter().map(of).collect()
}

fn unavailable(error: &ConfigError) -> DeviceError {
    DeviceError::Unavailable(error.to_string())
}

impl Master {
    /// The view in force.
    pub(super) fn view(&self) -> Result<Arc<View>, DeviceError> {
        let state = self.state.lock();
        match &state.fenced {
            Some(why) => Err(DeviceError::Fenced(why.clone())),
            None => Ok(Arc::clone(&state.view)),
        }
    }

    /// The last view, whether it still is in force or not.
    pub(super) fn last_view(&self) -> Arc<View> {
        Arc::clone(&self.state.lock().view)
    }

    /// Why this master will never serve again, if so.
    #[must_use]
    pub fn fenced(&self) -> Option<String> {
        self.state.lock().fenced.clone()
    }

    pub(super) fn check_fenced(&self) -> Result<(), DeviceError> {
        self.fenced().map_or(Ok(()), |why| Err(DeviceError::Fenced(why)))
    }

    /// Waits until the volume may be written, at most until it has been suspended for its `io.timeout`.
    pub(super) fn wait_writable(&self) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        loop {
            if let Some(why) = &state.fenced {
                return Err(DeviceError::Fenced(why.clone()));
            }
            let Some(why) = state.view.blocked() else {
                return Ok(());
            };
            let since = state.blocked_since.unwrap_or_else(Instant::now);
            let until = since + state.view.io_timeout;
            if Instant::now() >= until {
                return Err(DeviceError::ReadOnly(why.to_string()));
            }
            self.state_changed.wait_until(&mut state, until);
        }
    }

    pub(super) fn install(&self, view: View) {
        let mut state = self.state.lock();
        let was = state.blocked_since;
        let blocked = view.blocked();
        state.blocked_since = blocked.map(|_| was.unwrap_or_else(Instant::now));
        state.read_only &= blocked.is_some();
        let view = Arc::new(view);
        let old = std::mem::replace(&mut state.view, Arc::clone(&view));
        drop(state);
        self.state_changed.notify_all();
        self.tell_changes(&old.configuration, &view.configuration, &view.reason);
        match (was, blocked) {
            (None, Some(why)) => {
                tracing::warn!(volume = %self.volume, %why, "writes are suspended");
                self.tell(EventKind::VolumeSuspended, None, &why.to_string());
            }
            (Some(_), None) => {
                tracing::info!(volume = %self.volume, "writes go on");
                self.tell(EventKind::VolumeWritable, None, "");
            }
            _ => {}
        }
    }

    /// Why writes fail by now, if they do since the call before.
    pub(super) fn turn_read_only(&self) -> Option<NotWritable> {
        let mut state = self.state.lock();
        let since = state.blocked_since.filter(|_| !state.read_only)?;
        if !over(since, state.view.io_timeout) {
            return None;
        }
        state.read_only = true;
        state.view.blocked()
    }

    /// Why the volume may not be written, if so, and for how long writes still wait; `None`: they fail.
    pub(super) fn suspension(&self) -> Option<(NotWritable, Option<Duration>)> {
        let state = self.state.lock();
        let why = state.view.blocked()?;
        let waited = state.blocked_since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = state.view.io_timeout.checked_sub(waited).filter(|left| !left.is_zero());
        Some((why, left))
    }

    /// Ends this master for good: every call from now on fails, and so do those that wait.
    pub(super) fn fence_self(&self, why: &str) -> DeviceError {
        let mut state = self.state.lock();
        let why = state.fenced.get_or_insert_with(|| why.to_owned()).clone();
        let view = Arc::clone(&state.view);
        drop(state);
        if !self.stop.is_cancelled() {
            tracing::warn!(volume = %self.volume, %why, "master fenced");
        }
        self.stop.cancel();
        self.state_changed.notify_all();
        for replica in &view.replicas {
            replica.give_up();
        }
        self.host.clear_master(self);
        DeviceError::Fenced(why)
    }

    /// Stops serving, in order: later calls fail as fenced. The caller has flushed, if it wants to.
    pub fn stop(&self) {
        self.fence_self("this master was stopped");
    }

    /// Makes the local copy and `replicas` take the new epoch; returns the replicas that did not.
    pub(super) async fn fence_all(
        &self,
        epoch: u64,
        replicas: &[Arc<Replica>],
    ) -> Result<Vec<(Arc<Replica>, LinkError)>, DeviceError> {
        let local = Arc::clone(&self.local);
        let stamp = self.local_stamp(epoch);
        let here = task::spawn_blocking(move || local.fence(stamp));
        let deadline = self.options.replica_deadline;
        let there = join_all(replicas.iter().map(|replica| replica.attach(epoch, None, deadline))).await;
        match here.await {
            Ok(Ok(_)) => {}
            Ok(Err(CopyError::Stale { epoch: theirs, .. })) => {
                return Err(self.fence_self(&format!("epoch {theirs} is in force")));
            }
            Ok(Err(error)) => return Err(DeviceError::Io(error.to_string())),
            Err(error) => return Err(DeviceError::Io(error.to_string())),
        }
        Ok(replicas
            .iter()
            .zip(there)
            .filter_map(|(replica, result)| Some((Arc::clone(replica), result.err()?)))
            .collect())
    }

    /// A copy answered that another epoch is in force than the call's (`mine`): waits for the change that is under way here, or
    /// learns of the one that somebody else made. Returns the epoch to go on with.
    pub(super) async fn catch_up(&self, mine: u64, theirs: u64) -> Result<u64, DeviceError> {
        let _changing = self.changing.lock().await;
        let view = self.view()?;
        let epoch = view.configuration.epoch;
        if theirs > epoch || (theirs == mine && mine == epoch) {
            // Ahead of this master, or at its epoch but under another master's session.
            self.reload(&view).await?;
        }
        Ok(self.view()?.configuration.epoch)
    }

    /// Reads the record and adopts it. Under `changing`.
    async fn reload(&self, view: &View) -> Result<(), DeviceError> {
        let started = Instant::now();
        loop {
            match self.environment.config.read(self.volume).await {
                Ok(state) => return self.adopt(state).await,
                Err(ConfigError::Gone) => return Err(self.fence_self("the volume has been removed")),
                Err(error) if over(started, view.io_timeout) => return Err(unavailable(&error)),
                Err(_) => self.pause().await?,
            }
        }
    }

    async fn pause(&self) -> Result<(), DeviceError> {
        time::sleep(RETRY).await;
        self.check_fenced()
    }

    /// Brings one replica's failed part of a change to its end: it has it, or it is no longer in sync.
    pub(super) async fn follow_replica(
        &self,
        epoch: u64,
        replica: &Arc<Replica>,
        error: LinkError,
        change: &Change,
    ) -> Result<(), DeviceError> {
        let mut error = error;
        let mut at = epoch;
        let mut reconnected = false;
        for _ in 0..MAX_FOLLOWS {
            match &error {
                LinkError::Copy(CopyError::Stale { epoch: theirs, .. }) => at = self.catch_up(at, *theirs).await?,
                LinkError::Lost(_) if !reconnected && !replica.is_dropped() => {
                    reconnected = true;
                    let deadline = self.options.reconnect_deadline;
                    if let Err(again) = replica.attach(at, None, deadline).await {
                        error = match again {
                            stale @ LinkError::Copy(CopyError::Stale { .. }) => stale,
                            other => {
                                self.fail_replica(replica, &other).await?;
                                return Ok(());
                            }
                        };
                        continue;
                    }
                }
                other => {
                    self.fail_replica(replica, other).await?;
                    return Ok(());
                }
            }
            if !self.view()?.has(replica) {
                return Ok(());
            }
            match replica.change(at, change.clone()).await {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
        self.fail_replica(replica, &error).await
    }

    /// Leaves a copy out: when it returns without an error, the copy is not in sync any more.
    pub(super) async fn fail_replica(
        &self,
        replica: &Arc<Replica>,
        why: impl Into<Failure>,
    ) -> Result<(), DeviceError> {
        let failure = why.into();
        // Those who wait for one that waits for the control plane do not begin to wait anew after it.
        let started = Instant::now();
        let _changing = self.changing.lock().await;
        self.fail_locked(vec![(Arc::clone(replica), failure)], started).await
    }

    /// Leaves copies out; waits for the control plane until `io.timeout` after `started`. Under `changing`.
    pub(super) async fn fail_locked(
        &self,
        mut failed: Vec<(Arc<Replica>, Failure)>,
        started: Instant,
    ) -> Result<(), DeviceError> {
        loop {
            let view = self.view()?;
            failed.retain(|(replica, _)| view.has(replica));
            let Some((_, first)) = failed.first() else {
                return Ok(());
            };
            let why = first.why.clone();
            for (replica, _) in &failed {
                // From here on it must leave: it may lack a write that others have.
                replica.give_up();
            }
            let mut next = View::clone(&view);
            next.reason.clone_from(&why);
            next.replicas
                .retain(|replica| !failed.iter().any(|(gone, _)| Arc::ptr_eq(gone, replica)));
            let leaving: Vec<(NodeId, Failure)> = failed
                .iter()
                .map(|(replica, failure)| (replica.node, failure.clone()))
                .filter(|(node, _)| view.configuration.in_sync.contains(node))
                .collect();
            let in_doubt = failed.iter().any(|(replica, _)| replica.is_joining());
            if leaving.is_empty() && !in_doubt {
                // Only copies that were syncing: their sync starts again by itself.
                self.install(next);
                return Ok(());
            }
            // Of one in doubt the swap that was to put it in sync may yet go through: a change of the epoch alone shuts that out.
            let now = time::wall();
            for (node, Failure { why, by_itself }) in &leaving {
                next.configuration.lose(*node, now, *by_itself);
                tracing::warn!(volume = %self.volume, %node, %why, "replica leaves the in-sync set");
            }
            if !self.swap(&view, &mut next, &why, started).await? {
                continue;
            }
            self.stats.dropped(leaving.len() as u64);
            let unfenced = self.fence_all(next.configuration.epoch, &next.replicas).await?;
            self.install(next);
            failed = failures(unfenced);
        }
    }

    /// Writes `next`'s configuration at the next epoch. `false`: somebody else changed it, and theirs was adopted. Under
    /// `changing`.
    pub(super) async fn swap(
        &self,
        view: &View,
        next: &mut View,
        why: &str,
        started: Instant,
    ) -> Result<bool, DeviceError> {
        let result = self.swap_patiently(view, next, why, started).await;
        self.note_waiting(None);
        result
    }

    async fn swap_patiently(
        &self,
        view: &View,
        next: &mut View,
        why: &str,
        started: Instant,
    ) -> Result<bool, DeviceError> {
        let expected = view.configuration.epoch;
        next.configuration.epoch = expected + 1;
        let mut unsure = false;
        loop {
            let new = next.configuration.clone();
            match self.environment.config.swap(self.volume, expected, new, why).await {
                Ok(()) => return Ok(true),
                // The attempt before had gone through.
                Err(ConfigError::Conflict(now)) if unsure && *now == next.configuration => return Ok(true),
                Err(ConfigError::Conflict(_)) => {
                    self.reload(view).await?;
                    return Ok(false);
                }
                Err(ConfigError::Gone) => return Err(self.fence_self("the volume has been removed")),
                Err(error) if over(started, view.io_timeout) => return Err(unavailable(&error)),
                Err(ConfigError::Unavailable(error)) => {
                    self.note_waiting(Some(format!(
                        "the control plane does not answer ({error}), which is needed because: {why}"
                    )));
                    unsure = true;
                    self.pause().await?;
                }
            }
        }
    }

    /// Tells the master that the control store's record changed; to be called in order of the changes, extra calls are
    /// harmless. A higher epoch with another master ends this one; new syncing members are synced, removed ones dropped.
    ///
    /// # Errors
    /// [`DeviceError::Fenced`]: this master has ended.
    pub async fn configuration_changed(&self, state: VolumeState) -> Result<(), DeviceError> {
        let _changing = self.changing.lock().await;
        self.check_fenced()?;
        self.adopt(state).await
    }

    /// Goes on under another record than the one in force. Under `changing`.
    async fn adopt(&self, state: VolumeState) -> Result<(), DeviceError> {
        let view = self.view()?;
        let new = state.configuration;
        if new.epoch < view.configuration.epoch {
            return Ok(());
        }
        if new.master != Some(self.node()) {
            let who = new.master.map_or_else(|| "none".to_owned(), |node| node.to_string());
            return Err(self.fence_self(&format!("the master is now {who}, at epoch {}", new.epoch)));
        }
        if !new.in_sync.is_subset(&view.configuration.in_sync) {
            // Only a master puts copies in sync. Whoever did knows that they are equal; this master does not.
            return Err(self.fence_self(&format!("epoch {} has copies that this master did not sync", new.epoch)));
        }
        if self.local.session() != self.local_session {
            // It had this copy fenced. What it wrote or took back is for an activation to find.
            return Err(self.fence_self("another master served meanwhile"));
        }
        self.raise_attachment(state.attachment);
        let mut next = View {
            configuration: new,
            rule: state.rule,
            io_timeout: state.io_timeout,
            replicas: view.replicas.clone(),
            reason: String::new(),
        };
        next.replicas.retain(|replica| {
            let stays = if replica.mark() == ALL && view.configuration.in_sync.contains(&replica.node) {
                next.configuration.in_sync.contains(&replica.node)
            } else {
                next.configuration.syncing.contains(&replica.node)
            };
            if !stays {
                replica.give_up();
            }
            stays
        });
        let mut failed = Vec::new();
        if next.configuration.epoch > view.configuration.epoch {
            failed = self.fence_all(next.configuration.epoch, &next.replicas).await?;
        }
        let syncing = next.configuration.syncing.clone();
        self.install(next);
        self.keep_syncs(&syncing);
        if failed.is_empty() {
            return Ok(());
        }
        Box::pin(self.fail_locked(failures(failed), Instant::now())).await
    }

    /// The local copy failed: another in-sync copy becomes the master and this one ends. Without another one the error stands.
    pub(super) async fn hand_over(&self, error: &CopyError) -> DeviceError {
        let _changing = self.changing.lock().await;
        let own = match error {
            CopyError::NoSpace(why) => DeviceError::NoSpace(why.clone()),
            other => DeviceError::Io(other.to_string()),
        };
        let started = Instant::now();
        loop {
            let view = match self.view() {
                Ok(view) => view,
                Err(fenced) => return fenced,
            };
            let heir = view
                .in_sync_replicas()
                .filter(|replica| !replica.is_dropped())
                .map(|replica| replica.node)
                .choose(&mut random::rng());
            let Some(heir) = heir else { return own };
            let mut next = View::clone(&view);
            next.configuration.master = Some(heir);
            next.configuration.lose(self.node(), time::wall(), true);
            let why = format!("the master's copy failed: {error}");
            tracing::error!(volume = %self.volume, %heir, %why, "handing the volume over");
            match self.swap(&view, &mut next, &why, started).await {
                Ok(true) => return self.fence_self(&format!("{why}; handed over to {heir}")),
                Ok(false) => {}
                Err(DeviceError::Fenced(why)) => return DeviceError::Fenced(why),
                Err(_) => return own,
            }
        }
    }
}
