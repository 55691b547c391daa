//! The controller: on the node that leads, does what the [`plan`] says, again and again.
//!
//! Level-triggered: each round looks at the whole view, not at what changed, so that a missed event, a restart or a second controller
//! costs nothing. A round follows each change of the view and passes at least every [`TICK`], since waiting times run out without a change.
//! Every action is a compare-and-swap: one decided on an old view, or by a node that does not lead any more, finds that the record has
//! changed and does nothing.

use super::{
    Catalog, CatalogError, View,
    deaths::Deaths,
    plan::{Action, Facts, Timing, plan},
};
use crate::exec::{
    random,
    time::{self, Instant},
};
use futures::StreamExt;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest time between two rounds.
const TICK: Duration = Duration::from_millis(500);
/// Shortest time between two rounds: changes that come together are planned together.
const PAUSE: Duration = Duration::from_millis(10);
/// Actions done at the same time; of different volumes, so their order does not matter.
const CONCURRENT: usize = 16;

/// Runs the controller until `stop`; acts only while this node leads.
pub async fn control(catalog: Catalog, view: watch::Receiver<Arc<View>>, timing: Timing, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = rounds(&catalog, view, &timing) => {}
        () = stop.cancelled() => {}
    }
}

/// A wall clock that nobody sets back or forward after this daemon's start.
struct Clock {
    base: Timestamp,
    start: Instant,
}

impl Clock {
    fn now(&self) -> Timestamp {
        let since = self.base.checked_add(self.start.elapsed());
        // Out of range only thousands of years from now.
        since.unwrap_or(Timestamp::MAX)
    }
}

async fn rounds(catalog: &Catalog, mut view: watch::Receiver<Arc<View>>, timing: &Timing) {
    let clock = Clock {
        base: time::wall(),
        start: Instant::now(),
    };
    let leadership = catalog.store().leadership();
    let mut deaths = Deaths::default();
    loop {
        let now = view.borrow_and_update().clone();
        deaths.observe(&now, clock.now(), timing.settle);
        let leads = *leadership.borrow();
        if leads && now.revision > 0 {
            round(catalog, &now, &deaths, timing, clock.now()).await;
        }
        time::sleep(PAUSE).await;
        if let Ok(Err(_)) = time::timeout(TICK, view.changed()).await {
            // The view is not kept any more: this daemon stops.
            return;
        }
    }
}

async fn round(catalog: &Catalog, view: &View, deaths: &Deaths, timing: &Timing, now: Timestamp) {
    let facts = Facts {
        view,
        dead_since: deaths.since(),
        now,
    };
    let actions = plan(&facts, timing, random::random());
    futures::stream::iter(actions)
        .for_each_concurrent(CONCURRENT, |action| async move {
            match act(catalog, &action).await {
                Ok(()) => {}
                Err(error @ CatalogError::Unavailable(_)) => {
                    tracing::warn!(%error, ?action, "the controller could not act; it tries again");
                }
                // The record changed since the view: the next round decides again.
                Err(error) => tracing::debug!(%error, ?action, "the controller was too late"),
            }
        })
        .await;
}

async fn act(catalog: &Catalog, action: &Action) -> Result<(), CatalogError> {
    match action {
        Action::Change {
            volume,
            expected_epoch,
            new,
            step,
        } => {
            let reason = step.to_string();
            catalog.swap_configuration(*volume, *expected_epoch, new, &reason).await
        }
        Action::Release { volume, node, mounts } => {
            let release = catalog.update_volume(*volume, |volume| {
                if volume.mounts != *mounts || volume.mount.as_ref().is_none_or(|claim| claim.node != *node) {
                    return Err(CatalogError::Conflict("the mount claim".to_owned()));
                }
                volume.mount = None;
                Ok(())
            });
            let volume = release.await?;
            tracing::info!(
                volume = %format_args!("{}/{}", volume.namespace, volume.name),
                %node,
                "mount claim of a dead node released"
            );
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
