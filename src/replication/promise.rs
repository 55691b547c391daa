//! Promises: what lets a master read its own copy without asking, and never after another master could have written.
//!
//! By answering a heartbeat a copy promises not to serve as a master itself for [`PROMISE`]. Whoever becomes master waits out what its own
//! copy promised, unless the node that was promised to is known to be fenced. A master returns what it read only if every copy that could be
//! promoted (all that are complete) has promised it a time that is not over; otherwise it asks first. Alone, it needs nobody's promise: then nobody
//! else can be promoted. After Lin et al., "PacificA" (2008). Writes need no promise, their epoch fences them.
//!
//! Each side measures on its own monotonic clock: the master from before it asked, the copy from after; the master uses the promise
//! for three quarters of its time, for clocks that do not run alike. Clocks that stand still while the other node's runs (a
//! suspended virtual machine) are beyond that, and so is a record that somebody set back: after the last resort (`volume promote
//! --accept-data-loss`, `cluster recover`) a master that stands alone in its own view reads on until it hears of it.

use super::{
    link::{ALL, LinkError, Replica},
    master::{MAX_FOLLOWS, Master, over},
    store::CopyError,
};
use crate::{
    block::DeviceError,
    exec::time::{self, Instant},
    volume::NodeId,
};
use futures::future::try_join_all;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Pause until a copy that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// For how long a copy promises. Part of the protocol: the same on every node.
pub(super) const PROMISE: Duration = Duration::from_secs(1);
/// For how long a master uses it.
const USED: Duration = PROMISE.saturating_mul(3).checked_div(4).unwrap();

/// Time since [`time::base`].
fn nanoseconds(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(time::base()).as_nanos()).unwrap_or(u64::MAX)
}

/// What a copy promised last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    /// To whom; `None`: it may have been to anybody, by an earlier process on this node.
    pub(super) to: Option<NodeId>,
    pub(super) until: Instant,
}

impl Promise {
    /// Made now.
    pub(super) fn to(node: NodeId) -> Self {
        Self {
            to: Some(node),
            until: Instant::now() + PROMISE,
        }
    }

    /// What a process may have made that had ended by `at`.
    pub(super) fn before(at: Instant) -> Self {
        Self {
            to: None,
            until: at + PROMISE,
        }
    }
}

/// Until when a master may use another copy's promise.
#[derive(Default)]
pub(super) struct Promised(AtomicU64);

impl Promised {
    /// The copy answered what was asked at `asked`.
    pub(super) fn since(&self, asked: Instant) {
        self.0.fetch_max(nanoseconds(asked + USED), Ordering::SeqCst);
    }

    /// Whether it is not over.
    pub(super) fn holds(&self, now: Instant) -> bool {
        nanoseconds(now) < self.0.load(Ordering::SeqCst)
    }
}

impl Master {
    /// Makes sure that no other master served before now, so that what was read here is the latest. Blocks.
    pub(super) fn confirm(&self) -> Result<(), DeviceError> {
        if self.is_promised()? {
            return Ok(());
        }
        // However late the answers are: they were given after the read.
        self.confirmations
            .join(|| self.environment.runtime.block_on(self.ask_for_promises()))
    }

    /// Whether every copy that another master could be made of has promised the time being.
    fn is_promised(&self) -> Result<bool, DeviceError> {
        let now = Instant::now();
        let view = self.view()?;
        // This node's copy learns of a new master too, if it stays in sync.
        let fenced = self.local.session() != self.local_session;
        // One that is complete may be in the record's set already.
        let mut complete = view.replicas.iter().filter(|replica| replica.mark() == ALL);
        Ok(!fenced && complete.all(|replica| replica.promised.holds(now)))
    }

    async fn ask_for_promises(&self) -> Result<(), DeviceError> {
        let view = self.view()?;
        let epoch = view.configuration.epoch;
        if self.local.session() != self.local_session {
            self.catch_up(epoch, epoch).await?;
        }
        let complete = view.replicas.iter().filter(|replica| replica.mark() == ALL);
        try_join_all(complete.map(|replica| self.promise_of(replica, epoch))).await?;
        Ok(())
    }

    /// Waits for a copy's promise, or until it cannot be promoted any more. As patient as the probe of an idle volume: a restart of a
    /// daemon costs no sync, and without a control plane a copy that is away for a moment is waited for.
    async fn promise_of(&self, replica: &Arc<Replica>, epoch: u64) -> Result<(), DeviceError> {
        let started = Instant::now();
        let mut at = epoch;
        let mut follows = 0;
        loop {
            let Err(error) = self.probe(replica, at).await else {
                return Ok(());
            };
            let view = self.view()?;
            if !view.has(replica) {
                return Ok(());
            }
            let leaves = match &error {
                LinkError::Copy(CopyError::Stale { epoch: theirs, .. }) if follows < MAX_FOLLOWS => {
                    follows += 1;
                    at = self.catch_up(at, *theirs).await?;
                    continue;
                }
                LinkError::Copy(_) | LinkError::Late(_) => true,
                LinkError::Lost(_) => replica.is_dropped() || over(started, self.options.replica_deadline),
            };
            if leaves && self.environment.config.read(self.volume).await.is_ok() {
                return self.fail_replica(replica, &error).await;
            }
            if over(started, view.io_timeout) {
                return Err(DeviceError::Unavailable(format!(
                    "node {} has a copy in sync and does not answer, nor does the control plane: {error}",
                    replica.node
                )));
            }
            time::sleep(RETRY).await;
            self.check_fenced()?;
        }
    }

    /// Asks a replica for its promise; over a new connection if the old one broke.
    pub(super) async fn probe(&self, replica: &Replica, epoch: u64) -> Result<(), LinkError> {
        match replica.heartbeat(epoch).await {
            Err(LinkError::Lost(_)) if !replica.is_dropped() => {
                replica.attach(epoch, None, self.options.reconnect_deadline).await?;
                replica.heartbeat(epoch).await
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_stops_using_a_promise_before_the_copy_stops_keeping_it() {
        let promised = Promised::default();
        assert!(!promised.holds(Instant::now()), "nothing was promised");
        let asked = Instant::now();
        let kept = Promise::to(NodeId::from_bytes([1; 16]));
        promised.since(asked);
        assert!(promised.holds(asked));
        assert!(promised.holds(asked + USED - Duration::from_nanos(1)));
        assert!(!promised.holds(asked + USED));
        assert!(asked + USED < kept.until);
        // An answer that was overtaken by a later one takes nothing back.
        promised.since(asked - Duration::from_millis(300));
        assert!(promised.holds(asked + USED - Duration::from_nanos(1)));
    }
}
