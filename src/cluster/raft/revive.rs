//! Starts the protocol anew on a node where it stopped because its disk failed, a full one for instance.
//!
//! Raft ends for good when its log cannot be written, and redb takes no more writes after an error. What was not written was not
//! acknowledged, so the file is opened again, as after a crash, until it takes a write.

use super::RaftStore;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until the store stops.
pub(super) async fn run(store: RaftStore) {
    let inner = &store.inner;
    let mut told = false;
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let stopped = || inner.core().raft.metrics().borrow().running_state.clone().err();
        if stopped().is_none() {
            told = false;
            continue;
        }
        // A restart that is under way stops it too.
        let _one = inner.restarting.lock().await;
        let Some(why) = stopped().filter(|_| !inner.stop.is_cancelled()) else {
            continue;
        };
        if !told {
            tracing::error!(%why, "this node's replica of the control plane stopped; it goes on once its disk can be written");
            told = true;
        }
        match inner.restart(super::disk::Disk::reopen).await {
            Ok(()) => tracing::info!("this node's replica of the control plane goes on"),
            Err(error) => tracing::debug!(%error, "the control plane cannot be started anew yet"),
        }
    }
}
