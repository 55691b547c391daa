//! What a voter does beside following: it stands for election early when the leader's daemon was killed.
//!
//! A port that refuses connections is a surer sign than silence, so the random part of the election timeout need not be waited for. The
//! time in which no voter elects another leader is waited for; the voters then stand one after another, so that they do not split the vote.
//! A leader that is heard is not gone, even if its recorded address refuses connections from here.

use super::Inner;
use crate::rpc::refuses;
use crate::volume::NodeId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const TICK: Duration = Duration::from_millis(100);
/// Time for a port to answer.
const CONNECT: Duration = Duration::from_millis(200);

/// Runs until the store stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut gone: Option<(NodeId, Instant)> = None;
    loop {
        gone = match killed_leader(&inner).await {
            Some(leader) => gone
                .filter(|(known, _)| *known == leader)
                .or(Some((leader, Instant::now()))),
            None => None,
        };
        let (heard, woke) = (*inner.heard.lock(), inner.beat());
        if let Some((leader, since)) = gone
            // A sign of before this process stood still is none.
            && Some(since).max(heard).max(woke).is_some_and(|since| since.elapsed() >= turn(&inner, leader))
        {
            tracing::info!(%leader, "the leader's daemon is gone, standing for election");
            if let Err(error) = inner.core().raft.trigger().elect().await {
                tracing::debug!(%error, "could not stand for election");
            }
            gone = None;
        }
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// The leader, if this node votes and the leader's port refuses connections.
async fn killed_leader(inner: &Inner) -> Option<NodeId> {
    let metrics = inner.core().raft.metrics().borrow().clone();
    let leader = metrics.current_leader.filter(|leader| *leader != inner.node)?;
    let membership = metrics.membership_config.membership();
    if !membership.voter_ids().any(|voter| voter == inner.node) {
        return None;
    }
    let address = membership.get_node(&leader)?.addr.clone();
    if inner.peers.is_connected(&address) {
        return None;
    }
    let refused = tokio::time::timeout(CONNECT, refuses(&address)).await;
    refused.unwrap_or(false).then_some(leader)
}

/// After how long without the leader it is this voter's turn.
fn turn(inner: &Inner, leader: NodeId) -> Duration {
    let metrics = inner.core().raft.metrics().borrow().clone();
    let mut voters: Vec<NodeId> = metrics.membership_config.membership().voter_ids().collect();
    voters.sort_unstable();
    let before = voters
        .iter()
        .filter(|voter| **voter != leader && **voter < inner.node)
        .count();
    let election = inner.settings.election;
    // Raft's time of loyalty to a leader, from its last message on: all the longer over since it was seen to be gone.
    let loyal = election * 2;
    // As many as three.
    loyal + (election / 2).saturating_mul(before as u32)
}
