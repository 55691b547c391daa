//! Notices, while nothing is written, that a replica died or that another master took over.
//!
//! Every [`PROBE`] each in-sync replica is asked whether it still takes this master's stamp. A broken connection is opened again. A
//! replica that stays away for the replica deadline leaves the set, but only while the control plane answers: without it,
//! a copy that missed nothing yet may simply come back.

use super::{
    link::{ALL, LinkError, Replica},
    master::{Master, over},
    store::CopyError,
};
use crate::exec::time::{self, Instant};
use crate::volume::NodeId;
use futures::future::join_all;
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

/// Time between probes.
const PROBE: Duration = Duration::from_millis(300);
/// After how long a master whose copy failed gives up: the copy is opened again then, if no other is in sync, and may have room by then.
const REOPEN: Duration = Duration::from_secs(3);

/// Watches the replicas of a master until it ends.
pub(super) async fn watch(master: Weak<Master>) {
    let mut away: BTreeMap<NodeId, Instant> = BTreeMap::new();
    let mut failed: Option<Instant> = None;
    loop {
        let Some(master) = master.upgrade() else { return };
        let stop = master.stop.clone();
        let Ok(view) = master.view() else { return };
        let epoch = view.configuration.epoch;
        // One that is complete promises already, so that it stops no reads when it joins.
        let replicas: Vec<&Arc<Replica>> = view.replicas.iter().filter(|replica| replica.mark() == ALL).collect();
        let answers = join_all(replicas.iter().map(|replica| master.probe(replica, epoch))).await;
        for (replica, answer) in replicas.into_iter().zip(answers) {
            let Err(error) = answer else {
                away.remove(&replica.node);
                continue;
            };
            if !view.configuration.in_sync.contains(&replica.node) {
                // Its sync notices.
                continue;
            }
            let since = *away.entry(replica.node).or_insert_with(Instant::now);
            let leaves = match &error {
                LinkError::Copy(CopyError::Stale { epoch: theirs, .. }) => {
                    if let Err(error) = master.catch_up(epoch, *theirs).await {
                        tracing::debug!(volume = %master.volume, %error, "following a newer epoch");
                    }
                    false
                }
                LinkError::Copy(_) | LinkError::Late(_) => true,
                LinkError::Lost(_) => since.elapsed() >= master.options.replica_deadline,
            };
            if !leaves || master.environment.config.read(master.volume).await.is_err() {
                continue;
            }
            away.remove(&replica.node);
            if let Err(error) = master.fail_replica(replica, &error).await {
                tracing::debug!(volume = %master.volume, node = %replica.node, %error, "leaving out a replica");
            }
        }
        // With another copy in sync that one takes over before; unless the record knows of none any more.
        if master.local.copy().failed().is_none() {
            failed = None;
        } else if over(*failed.get_or_insert_with(Instant::now), REOPEN) {
            master.fence_self("its copy failed, and is opened again if no other is in sync");
            return;
        }
        drop(view);
        drop(master);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = time::sleep(PROBE) => {}
        }
    }
}
