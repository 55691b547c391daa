//! What the leader does beside replicating: it ends leases that ran out, notices killed nodes, and looks after who votes.
//!
//! A new leader knows nothing of the keepalives before it, so it gives every lease its full time. A node's lease is ended early when
//! its daemon's port refuses connections twice in a row: a killed process is noticed in a second or two, long before the lease runs
//! out. Ending a lease too early is safe: what a node may do is fenced by epochs, not by its lease.
//!
//! Who votes: three live nodes, or, with fewer than three live, the leader alone. A dead voter keeps its vote for a grace time, since a
//! restart is the usual reason. Membership changes are Raft's own (joint consensus): they need the majorities that exist.

use super::Inner;
use crate::cluster::kv::Command;
use crate::cluster::records::Key;
use crate::cluster::store::LeaseId;
use crate::rpc::{ConnectError, within};
use crate::volume::NodeId;
use openraft::ServerState;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two rounds.
const TICK: Duration = Duration::from_millis(300);
/// Time for a node to answer a ping.
const PING: Duration = Duration::from_secs(2);
/// Time for a change that the leader wants to be committed.
const PROPOSE: Duration = Duration::from_secs(5);
/// Refused connections in a row that end a node's lease.
const REFUSALS: u32 = 2;
/// Voters wanted.
const VOTERS: usize = 3;

/// When leases run out.
#[derive(Default)]
pub(super) struct Leases {
    expiry: BTreeMap<LeaseId, Instant>,
}

impl Leases {
    pub(super) fn keep(&mut self, lease: LeaseId, ttl: Duration) {
        self.expiry.insert(lease, Instant::now() + ttl);
    }

    /// Leases that ran out. Unknown ones get their full time from now.
    fn expired(&mut self, leases: &BTreeMap<LeaseId, Duration>) -> Vec<LeaseId> {
        let now = Instant::now();
        self.expiry.retain(|lease, _| leases.contains_key(lease));
        for (lease, ttl) in leases {
            self.expiry.entry(*lease).or_insert(now + *ttl);
        }
        self.expiry
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(lease, _)| *lease)
            .collect()
    }
}

/// A leader's notes, gone when it is one no more.
#[derive(Default)]
struct Notes {
    /// Connections refused in a row.
    refused: BTreeMap<NodeId, u32>,
    /// Since when a member has not been alive.
    dead_since: BTreeMap<NodeId, Instant>,
}

/// Runs until the store stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut notes = Notes::default();
    let mut metrics = inner.raft.metrics();
    loop {
        let leads = metrics.borrow_and_update().state == ServerState::Leader;
        if inner.leader.send_if_modified(|l| std::mem::replace(l, leads) != leads) {
            tracing::info!(leads, "leadership of the control plane");
            notes = Notes::default();
            *inner.leases.lock() = Leases::default();
        }
        if leads {
            round(&inner, &mut notes).await;
        }
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
            // Leadership shows at once.
            _ = metrics.changed(), if !leads => {}
        }
    }
}

async fn round(inner: &Inner, notes: &mut Notes) {
    let expired = {
        let leases = inner.machine.kv().leases().clone();
        inner.leases.lock().expired(&leases)
    };
    for lease in expired {
        end(inner, lease, "it ran out").await;
    }
    probe(inner, notes).await;
    if let Some(voters) = wanted_voters(inner, notes) {
        tracing::info!(voters = voters.len(), "the control plane's voters change");
        match tokio::time::timeout(PROPOSE, inner.raft.change_membership(voters, true)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the voters could not be changed; trying again"),
            Err(_) => tracing::warn!("the voters are not changed yet: a majority of them does not answer"),
        }
    }
}

async fn end(inner: &Inner, lease: LeaseId, why: &str) {
    tracing::info!(lease, why, "a lease ends");
    // Without a majority it would wait for one, and the leader's other work with it.
    match tokio::time::timeout(PROPOSE, inner.propose(Command::Revoke(lease))).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, lease, "a lease could not be ended; trying again"),
        Err(_) => tracing::debug!(lease, "a lease could not be ended in time; trying again"),
    }
}

/// Live nodes and their leases.
fn live(inner: &Inner) -> BTreeMap<NodeId, LeaseId> {
    let rows = inner.machine.kv().range("live/");
    let node = |row: &crate::cluster::store::Row| match Key::parse(&row.key) {
        Some(Key::Live(node)) => row.lease.map(|lease| (node, lease)),
        _ => None,
    };
    rows.iter().filter_map(node).collect()
}

/// Ends the lease of nodes whose daemon is gone.
async fn probe(inner: &Inner, notes: &mut Notes) {
    let members = inner.members();
    let live = live(inner);
    let pings = live
        .iter()
        .filter(|(node, _)| **node != inner.node)
        .filter_map(|(node, lease)| {
            let address = members.get(node)?.addr.clone();
            Some(async move {
                let refused = match inner.peers.client(&address).await {
                    Ok(client) => client
                        .ping(within(PING))
                        .await
                        .is_err_and(|e| crate::rpc::connection_lost(&e)),
                    Err(ConnectError::Io { error, .. }) => error.kind() == io::ErrorKind::ConnectionRefused,
                    Err(_) => false,
                };
                (*node, *lease, refused)
            })
        });
    for (node, lease, refused) in futures::future::join_all(pings).await {
        let count = notes.refused.entry(node).or_default();
        *count = if refused { *count + 1 } else { 0 };
        if *count >= REFUSALS {
            *count = 0;
            end(inner, lease, "the node's daemon is gone").await;
        }
    }
}

/// The voters that there should be, if they are not those there are.
fn wanted_voters(inner: &Inner, notes: &mut Notes) -> Option<BTreeSet<NodeId>> {
    let metrics = inner.raft.metrics().borrow().clone();
    let membership = metrics.membership_config.membership();
    // One change at a time.
    if membership.get_joint_config().len() > 1 {
        return None;
    }
    let live = live(inner);
    let now = Instant::now();
    let present: BTreeSet<NodeId> = membership
        .nodes()
        .map(|(id, _)| *id)
        .filter(|id| {
            if *id == inner.node || live.contains_key(id) {
                notes.dead_since.remove(id);
                return true;
            }
            // A voter that just died is likely to be back soon; a learner is no loss.
            let since = *notes.dead_since.entry(*id).or_insert(now);
            membership.voter_ids().any(|v| v == *id) && now - since < inner.settings.voter_grace
        })
        .collect();
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let wanted = choose(inner.node, &voters, &present);
    (wanted != voters).then_some(wanted)
}

/// Pure: three of the present nodes, those that vote already first; fewer than three present: the leader alone.
fn choose(leader: NodeId, voters: &BTreeSet<NodeId>, present: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    if present.len() < VOTERS {
        return BTreeSet::from([leader]);
    }
    let stay = voters.intersection(present).copied();
    let others = present.difference(voters).copied();
    std::iter::once(leader)
        .chain(stay.filter(|v| *v != leader))
        .chain(others.filter(|v| *v != leader))
        .take(VOTERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(numbers: &[u8]) -> BTreeSet<NodeId> {
        numbers.iter().map(|n| NodeId::from_bytes([*n; 16])).collect()
    }

    #[test]
    fn voters_follow_the_living() {
        for (leader, voters, present, wanted) in [
            (1, &[1][..], &[1][..], &[1][..]),
            (1, &[1], &[1, 2], &[1]),
            (1, &[1], &[1, 2, 3], &[1, 2, 3]),
            (2, &[1, 2, 3], &[2, 3, 4, 5], &[2, 3, 4]),
            (2, &[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3]),
            (2, &[1, 2, 3], &[2, 3], &[2]),
            (5, &[5], &[1, 2, 5], &[1, 2, 5]),
        ] {
            let chosen = choose(NodeId::from_bytes([leader; 16]), &nodes(voters), &nodes(present));
            assert_eq!(chosen, nodes(wanted), "{voters:?} {present:?}");
        }
    }
}
