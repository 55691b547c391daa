//! Notices, while nothing is written, that a replica died or that another master took over.
//!
//! Every [`PROBE`] each in-sync replica is asked whether it still takes this master's stamp. A broken connection is opened again. A
//! replica that stays away for the replica deadline leaves the set, but only while the control plane answers: without it,
//! a copy that missed nothing yet may simply come back.

use super::{
    link::{LinkError, Replica},
    master::Master,
    store::CopyError,
};
use crate::volume::NodeId;
use futures::future::join_all;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio::time;

/// Time between probes.
const PROBE: Duration = Duration::from_millis(500);

/// Watches the replicas of a master until it ends.
pub(super) async fn watch(master: Weak<Master>) {
    let mut away: HashMap<NodeId, Instant> = HashMap::new();
    loop {
        let Some(master) = master.upgrade() else { return };
        let stop = master.stop.clone();
        let Ok(view) = master.view() else { return };
        let epoch = view.configuration.epoch;
        let replicas: Vec<&Arc<Replica>> = view.in_sync_replicas().collect();
        let answers = join_all(replicas.iter().map(|replica| probe(&master, replica, epoch))).await;
        for (replica, answer) in replicas.into_iter().zip(answers) {
            let Err(error) = answer else {
                away.remove(&replica.node);
                continue;
            };
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
        drop(view);
        drop(master);
        tokio::select! {
            () = stop.cancelled() => return,
            () = time::sleep(PROBE) => {}
        }
    }
}

async fn probe(master: &Master, replica: &Replica, epoch: u64) -> Result<(), LinkError> {
    match replica.heartbeat(epoch).await {
        Err(LinkError::Lost(_)) => {
            let deadline = master.options.reconnect_deadline;
            replica.attach(epoch, None, deadline).await.map(drop)
        }
        other => other,
    }
}
