//! What the leader does beside replicating: it ends leases that ran out, notices killed nodes, and looks after who votes.
//!
//! A new leader knows nothing of the keepalives before it, so it gives every lease its full time, and so does one whose process stood
//! still: it has yet to read the keepalives that came meanwhile. A node's lease is ended early when
//! its daemon's port refuses connections twice in a row: a killed process is noticed in a second or two, long before the lease runs
//! out. Ending a lease too early is safe: what a node may do is fenced by epochs, not by its lease.
//!
//! Who votes: three live nodes, or, with fewer than three live, one alone: the leader, or the node that has volumes mounted if the leader has
//! none, since losing that node stops its applications anyway. A dead voter keeps its vote for a grace time, since a restart is the usual reason;
//! one that stops in order gives it up first. Membership changes are Raft's own (joint consensus): they need the majorities that exist.

use super::Inner;
use crate::cluster::kv::Command;
use crate::cluster::records::{Key, decode};
use crate::cluster::store::LeaseId;
use crate::rpc::{refuses, within};
use crate::volume::{NodeId, Volume};
use openraft::ServerState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two rounds.
const TICK: Duration = Duration::from_millis(200);
/// Time for a node to answer a ping. A silent one must not hold up what is to be done about the others.
const PING: Duration = Duration::from_millis(500);
/// How long an answer counts.
const ANSWERS: Duration = Duration::from_secs(2);
/// Time for a change that the leader wants to be committed.
const PROPOSE: Duration = Duration::from_secs(5);
/// Refused connections in a row that end a node's lease.
const REFUSALS: u32 = 2;
/// How long a node that is about to stop gets no vote: it has stopped then, or did not mean it.
const RETIRED: Duration = Duration::from_secs(90);
/// Voters wanted.
const VOTERS: usize = 3;

/// A lease's end. The log may hold a time to live that no clock reaches: then it ends at once.
fn after(now: Instant, ttl: Duration) -> Instant {
    now.checked_add(ttl).unwrap_or(now)
}

/// When leases run out.
#[derive(Default)]
pub(super) struct Leases {
    expiry: BTreeMap<LeaseId, Instant>,
}

impl Leases {
    pub(super) fn keep(&mut self, lease: LeaseId, ttl: Duration) {
        self.expiry.insert(lease, after(Instant::now(), ttl));
    }

    /// Leases that ran out. Unknown ones get their full time from now.
    fn expired(&mut self, leases: &BTreeMap<LeaseId, Duration>) -> Vec<LeaseId> {
        let now = Instant::now();
        self.expiry.retain(|lease, _| leases.contains_key(lease));
        for (lease, ttl) in leases {
            self.expiry.entry(*lease).or_insert_with(|| after(now, *ttl));
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
    /// When this process last stood still, as far as leases were told.
    woke: Option<tokio::time::Instant>,
}

/// Runs until the store stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut notes = Notes::default();
    loop {
        // The protocol may have been started anew.
        let mut metrics = inner.core().raft.metrics();
        let leads = metrics.borrow_and_update().state == ServerState::Leader;
        if inner.leader.send_if_modified(|l| std::mem::replace(l, leads) != leads) {
            tracing::info!(leads, "leadership of the control plane");
            notes = Notes::default();
            inner.answering.lock().clear();
            *inner.leases.lock() = Leases::default();
        }
        if leads {
            round(&inner, &mut notes).await;
        }
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
            // Leadership shows at once.
            changed = metrics.changed(), if !leads => {
                if changed.is_err() {
                    tokio::time::sleep(TICK).await;
                }
            }
        }
    }
}

async fn round(inner: &Inner, notes: &mut Notes) {
    let woke = inner.beat();
    if woke != notes.woke {
        notes.woke = woke;
        *inner.leases.lock() = Leases::default();
    }
    let expired = {
        let leases = inner.core().machine.kv().leases().clone();
        inner.leases.lock().expired(&leases)
    };
    for lease in expired {
        end(inner, lease, "it ran out").await;
    }
    probe(inner, notes).await;
    let Ok(_members) = inner.members_change.try_lock() else {
        // Looked at again in the next round.
        return;
    };
    if let Some(voters) = wanted_voters(inner, notes) {
        tracing::info!(voters = voters.len(), "the control plane's voters change");
        match tokio::time::timeout(PROPOSE, inner.core().raft.change_membership(voters, true)).await {
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
    let rows = inner.core().machine.kv().range("live/");
    let node = |row: &crate::cluster::store::Row| match Key::parse(&row.key) {
        Some(Key::Live(node)) => row.lease.map(|lease| (node, lease)),
        _ => None,
    };
    rows.iter().filter_map(node).collect()
}

/// What a node's port says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Answered,
    /// Nobody listens.
    Refused,
    None,
}

async fn ping(inner: &Inner, address: &str) -> Sign {
    // Asked apart: a peer that could not be reached waits before it tries again.
    if !inner.peers.is_connected(address) && refuses(address).await {
        return Sign::Refused;
    }
    let answer = match inner.peers.client(address).await {
        Ok(client) => client.ping(within(PING)).await,
        Err(_) => return Sign::None,
    };
    match answer {
        Ok(()) => Sign::Answered,
        Err(_) if refuses(address).await => Sign::Refused,
        Err(_) => Sign::None,
    }
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
                let sign = tokio::time::timeout(PING, ping(inner, &address)).await;
                (*node, *lease, sign.unwrap_or(Sign::None))
            })
        });
    for (node, lease, sign) in futures::future::join_all(pings).await {
        if sign == Sign::Answered {
            inner.answering.lock().insert(node, tokio::time::Instant::now());
        }
        let count = notes.refused.entry(node).or_default();
        *count = if sign == Sign::Refused { *count + 1 } else { 0 };
        if *count >= REFUSALS {
            *count = 0;
            end(inner, lease, "the node's daemon is gone").await;
        }
    }
}

/// The voters that there should be, if they are not those there are.
fn wanted_voters(inner: &Inner, notes: &mut Notes) -> Option<BTreeSet<NodeId>> {
    let metrics = inner.core().raft.metrics().borrow().clone();
    let membership = metrics.membership_config.membership();
    // One change at a time. Here nobody is at one: it stopped halfway, since its leader did, or somebody else's change came between, and
    // a majority of the old voters would be needed for ever. The last set is the one it was for.
    if let [_, .., goal] = membership.get_joint_config().as_slice() {
        return Some(goal.clone());
    }
    let live = live(inner);
    let now = Instant::now();
    let retiring = retiring(inner);
    let answering = answering(inner);
    let voting: BTreeSet<NodeId> = membership.voter_ids().collect();
    let present: BTreeSet<NodeId> = membership
        .nodes()
        .map(|(id, _)| *id)
        // A lease alone may be a dead node's, right after an election: a new voter must have answered this leader.
        .filter(|id| !retiring.contains(id) && (*id == inner.node || voting.contains(id) || answering.contains(id)))
        .filter(|id| {
            if *id == inner.node || live.contains_key(id) {
                notes.dead_since.remove(id);
                return true;
            }
            // A voter that just died is likely to be back soon; a learner is no loss.
            let since = *notes.dead_since.entry(*id).or_insert(now);
            voting.contains(id) && now - since < inner.settings.voter_grace
        })
        .collect();
    let voters = voting;
    let wanted = choose(inner.node, &voters, &present, &mounting(inner));
    // Nobody is present when the last node stops: its vote stays its own.
    (!wanted.is_empty() && wanted != voters).then_some(wanted)
}

/// Nodes that are about to stop.
fn retiring(inner: &Inner) -> BTreeSet<NodeId> {
    let mut retiring = inner.retiring.lock();
    retiring.retain(|_, since| since.elapsed() < RETIRED);
    retiring.keys().copied().collect()
}

/// Nodes that answered this leader just now.
fn answering(inner: &Inner) -> BTreeSet<NodeId> {
    let mut answering = inner.answering.lock();
    answering.retain(|_, at| at.elapsed() < ANSWERS);
    answering.keys().copied().collect()
}

/// Waits until every live node has answered this leader, so that the choice among them is a full one; not for long, since one may be dead.
pub(super) async fn all_answer(inner: &Inner) {
    let answered = async {
        loop {
            let answering = answering(inner);
            if live(inner)
                .keys()
                .all(|node| *node == inner.node || answering.contains(node))
            {
                return;
            }
            tokio::time::sleep(TICK / 3).await;
        }
    };
    // Those that have answered are chosen from otherwise.
    let _ = tokio::time::timeout(ANSWERS, answered).await;
}

/// The voters when a node goes; `None`: it has no vote, or there is no live node to take it.
pub(super) fn voters_without(inner: &Inner, node: NodeId) -> Option<BTreeSet<NodeId>> {
    let membership = inner.core().machine.membership();
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    if !voters.contains(&node) {
        return None;
    }
    let (live, retiring) = (live(inner), retiring(inner));
    let answering = answering(inner);
    let present: BTreeSet<NodeId> = membership
        .nodes()
        .map(|(id, _)| *id)
        .filter(|id| {
            *id != node
                && !retiring.contains(id)
                && (*id == inner.node || (live.contains_key(id) && (voters.contains(id) || answering.contains(id))))
        })
        .collect();
    let wanted = choose(inner.node, &voters, &present, &mounting(inner));
    (!wanted.is_empty()).then_some(wanted)
}

/// Nodes that have volumes mounted.
fn mounting(inner: &Inner) -> BTreeSet<NodeId> {
    let rows = inner.core().machine.kv().range("volumes/");
    let claim = |row: &crate::cluster::store::Row| Some(decode::<Volume>(&row.key, &row.value)?.mount?.node);
    rows.iter().filter_map(claim).collect()
}

/// Pure: three of the present nodes, those that vote already first; fewer than three present: one alone, the leader if it is among them,
/// or one with mounts if the leader has none. Empty: nobody is present.
fn choose(
    leader: NodeId,
    voters: &BTreeSet<NodeId>,
    present: &BTreeSet<NodeId>,
    mounting: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let leader = Some(leader).filter(|leader| present.contains(leader));
    let stay = voters.intersection(present).copied();
    let others = present.difference(voters).copied();
    let first: Vec<NodeId> = leader
        .into_iter()
        .chain(stay.filter(|v| Some(*v) != leader))
        .chain(others.filter(|v| Some(*v) != leader))
        .take(VOTERS)
        .collect();
    if present.len() >= VOTERS {
        return first.into_iter().collect();
    }
    let alone = first.iter().find(|node| mounting.contains(node)).or(first.first());
    alone.copied().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(numbers: &[u8]) -> BTreeSet<NodeId> {
        numbers.iter().map(|n| NodeId::from_bytes([*n; 16])).collect()
    }

    #[test]
    fn a_lease_that_no_clock_reaches_ends_at_once() {
        let mut leases = Leases::default();
        let granted = BTreeMap::from([(1, Duration::MAX), (2, Duration::from_secs(60))]);
        assert_eq!(leases.expired(&granted), [1]);
        leases.keep(1, Duration::MAX);
        assert_eq!(leases.expired(&granted), [1]);
    }

    #[test]
    fn voters_follow_the_living() {
        for (leader, voters, present, mounting, wanted) in [
            (1, &[1][..], &[1][..], &[][..], &[1][..]),
            (1, &[1], &[1, 2], &[], &[1]),
            (1, &[1], &[1, 2, 3], &[3], &[1, 2, 3]),
            (2, &[1, 2, 3], &[2, 3, 4, 5], &[], &[2, 3, 4]),
            (2, &[1, 2, 3], &[1, 2, 3, 4], &[], &[1, 2, 3]),
            (2, &[1, 2, 3], &[2, 3], &[], &[2]),
            (5, &[5], &[1, 2, 5], &[], &[1, 2, 5]),
            // Of two nodes the one with mounts votes; the leader's own count first.
            (2, &[1, 2, 3], &[2, 3], &[3], &[3]),
            (2, &[2], &[2, 3], &[2, 3], &[2]),
            (2, &[2], &[2, 3], &[1], &[2]),
            // The leader stops.
            (1, &[1, 2, 3], &[2, 3, 4], &[], &[2, 3, 4]),
            (1, &[1, 2, 3], &[2, 3], &[], &[2]),
            (1, &[1], &[2], &[], &[2]),
            (1, &[1], &[], &[], &[]),
        ] {
            let leader = NodeId::from_bytes([leader; 16]);
            let chosen = choose(leader, &nodes(voters), &nodes(present), &nodes(mounting));
            assert_eq!(chosen, nodes(wanted), "{leader} {voters:?} {present:?} {mounting:?}");
        }
    }
}
