//! How a node says that it is alive: a key that goes with a lease, which the node keeps.

use super::catalog::Catalog;
use super::store::{ControlError, LeaseId};
use crate::exec::time;
use crate::exec::time::Instant;
use crate::volume::NodeId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause after the control store did not answer.
const RETRY: Duration = Duration::from_millis(250);

/// How well a node's lease is kept.
#[derive(Debug, Default)]
pub struct Beats {
    renewals: AtomicU64,
    failures: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Beats {
    fn note(&self, renewed: bool) {
        if renewed {
            self.renewals.fetch_add(1, Ordering::Relaxed);
            *self.last.lock() = Some(Instant::now());
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Times that the lease was renewed, and that it could not be.
    #[must_use]
    pub fn counts(&self) -> [u64; 2] {
        [&self.renewals, &self.failures].map(|count| count.load(Ordering::Relaxed))
    }

    /// Time since it was last renewed; `None`: never.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.last.lock().map(|last| last.elapsed())
    }
}

/// Keeps the node's lease, and its key in the store, until `stop`; then gives the lease back, so that the others need not wait for
/// it to run out. A lease that was lost (a long pause of this process, a control plane that was away) is taken anew.
pub async fn keep_node_alive(
    catalog: Catalog,
    node: NodeId,
    ttl: Duration,
    beats: Arc<Beats>,
    stop: CancellationToken,
) {
    let mut held = None;
    loop {
        let result = beat(&catalog, node, ttl, &mut held).await;
        beats.note(result.is_ok());
        let wait = match result {
            Ok(()) => ttl / 4,
            Err(error) => {
                tracing::debug!(%error, "this node's lease could not be kept; trying again");
                RETRY
            }
        };
        tokio::select! {
            biased;
            () = time::sleep(wait) => {}
            () = stop.cancelled() => break,
        }
    }
    if let Some(lease) = held {
        // Best effort: it runs out by itself.
        let _ = time::timeout(ttl, catalog.store().revoke(lease)).await;
    }
}

/// Keeps the lease, and the node's key with it. A call that was not answered may be done later, even one of this node's process before
/// this one: it ties the key to a lease that nobody keeps, so each beat looks at what the key goes with.
async fn beat(catalog: &Catalog, node: NodeId, ttl: Duration, held: &mut Option<LeaseId>) -> Result<(), ControlError> {
    if let Some(lease) = *held
        && !catalog.store().keep_alive(lease).await?
    {
        tracing::warn!("this node's lease had run out; taking a new one");
        *held = None;
    }
    let lease = match *held {
        Some(lease) => lease,
        None => *held.insert(catalog.store().grant(ttl).await?),
    };
    let unavailable = |e: super::CatalogError| ControlError::Unavailable(e.to_string());
    if catalog.lease_of(node).await.map_err(unavailable)? != Some(lease) {
        // If the lease has run out by now, the next beat notices.
        catalog.set_live(node, lease).await.map_err(unavailable)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::MemoryStore;

    #[tokio::test]
    async fn a_node_is_alive_while_its_lease_is_kept_and_says_goodbye() {
        let catalog = Catalog::new(Arc::new(MemoryStore::default()));
        let node = NodeId::from_bytes([1; 16]);
        let (stop, watching) = (CancellationToken::new(), CancellationToken::new());
        let mut view = catalog.watch(watching.clone());
        let ttl = Duration::from_secs(60);
        let beats = Arc::new(Beats::default());
        let keeper = tokio::spawn(keep_node_alive(catalog.clone(), node, ttl, beats.clone(), stop.clone()));
        let deadline = Duration::from_secs(30);
        let seen = view.wait_for(|view| view.live.contains(&node));
        tokio::time::timeout(deadline, seen).await.unwrap().unwrap();
        stop.cancel();
        keeper.await.unwrap();
        assert!(beats.counts()[0] >= 1 && beats.age().is_some());
        assert_eq!(beats.counts()[1], 0);
        // Long before the lease would have run out.
        let gone = view.wait_for(|view| !view.live.contains(&node));
        tokio::time::timeout(deadline, gone).await.unwrap().unwrap();
        watching.cancel();
    }

    #[tokio::test]
    async fn a_late_call_that_ties_a_node_to_a_forgotten_lease_does_not_make_it_dead() {
        let catalog = Catalog::new(Arc::new(MemoryStore::default()));
        let node = NodeId::from_bytes([1; 16]);
        let (ttl, mut held) = (Duration::from_secs(60), None);
        beat(&catalog, node, ttl, &mut held).await.unwrap();
        let forgotten = catalog.store().grant(ttl).await.unwrap();
        assert!(catalog.set_live(node, forgotten).await.unwrap());
        beat(&catalog, node, ttl, &mut held).await.unwrap();
        catalog.store().revoke(forgotten).await.unwrap();
        assert_eq!(catalog.lease_of(node).await.unwrap(), held);
        assert!(catalog.view().await.unwrap().live.contains(&node));
    }
}
