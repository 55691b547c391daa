//! Whether this node still is what it was: asked of the other members before the protocol starts, and while no leader is in touch with it.
//!
//! Two things happen to a node that was away, and nobody tells it: it was deleted, or the control plane was recovered without it. A deleted node is
//! in nobody's membership and would wait for ever; it learns why, and stops asking. A member of an earlier incarnation empties its replica and
//! joins the later one. Of two recoveries with the same number, made on two sides of a partition, neither gives way: an operator
//! decides, by recovering once more on the side that is to stay.

use super::disk::{Disk, blocking};
use super::network::Peers;
use super::service::{Incarnation, Standing};
use super::{Inner, RaftStore};
use crate::cluster::catalog::deleted_text;
use crate::rpc::{ConnectError, Refusal, within};
use crate::volume::NodeId;
use futures::future::join_all;
use openraft::AnyError;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// After so long without a message of the leader there is none, whatever Raft remembers.
const SILENCE: Duration = Duration::from_secs(3);
/// Time for an answer.
const ASK: Duration = Duration::from_secs(2);
/// Time for all answers before the start: nodes that start together cannot answer each other yet.
const START: Duration = Duration::from_millis(1500);

/// Runs until the store stops or the node was expelled.
pub(super) async fn run(store: RaftStore) {
    let inner = &store.inner;
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let leader = inner.core().raft.metrics().borrow().current_leader;
        let heard = inner.heard.lock().is_some_and(|at| at.elapsed() < SILENCE);
        // A node that was removed while it was away may take the last leader that it knew for its leader for ever.
        if heard && leader.is_some_and(|leader| leader != inner.node) {
            continue;
        }
        let ours = inner.core().incarnation;
        for (node, standing) in inner.ask_all().await {
            let theirs = standing.incarnation;
            if theirs.number > ours.number {
                store.give_way(theirs).await;
                break;
            }
            if theirs.number == ours.number && theirs.id != ours.id {
                tracing::error!(
                    %node,
                    "the control plane was recovered on two sides apart; run storageos cluster recover again on the side that is to stay"
                );
            } else if let (true, Some(why)) = (theirs == ours, standing.expelled) {
                tracing::error!(reason = %why, "this node is no member of the cluster any more");
                // Only this task sets it.
                let _ = inner.expelled.set(why);
                return;
            }
        }
    }
}

impl Inner {
    /// What the other members say that answer.
    pub(super) async fn ask_all(&self) -> BTreeMap<NodeId, Standing> {
        let members = self.members().into_iter().map(|(node, member)| (node, member.addr));
        let deleted = Standing {
            incarnation: self.core().incarnation,
            last: None,
            expelled: Some(deleted_text(&self.own_name())),
        };
        ask(&self.peers, self.node, members.collect(), &deleted).await
    }
}

/// `deleted`: what is taken for the answer of a member that does not speak with this node since it was deleted.
async fn ask(
    peers: &Peers,
    own: NodeId,
    members: Vec<(NodeId, String)>,
    deleted: &Standing,
) -> BTreeMap<NodeId, Standing> {
    let others = members.into_iter().filter(|(node, _)| *node != own);
    let asked = others.map(|(node, address)| async move {
        let asking = async {
            match peers.client(&address).await {
                Ok(client) => client.standing(within(ASK), own).await.ok(),
                Err(ConnectError::Refused {
                    reason: Refusal::Deleted,
                    ..
                }) => Some(deleted.clone()),
                Err(_) => None,
            }
        };
        let standing = tokio::time::timeout(ASK, asking).await.ok()??;
        Some((node, standing))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Empties the replica if a member knows of a later control plane.
pub(super) async fn give_way_at_start(disk: &Disk, peers: &Peers, own: NodeId) -> Result<(), AnyError> {
    let ours = disk.incarnation()?;
    let Some(membership) = disk.members()? else {
        return Ok(());
    };
    let members: Vec<_> = membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
    let addresses: Vec<String> = members
        .iter()
        .filter(|(id, _)| *id != own)
        .map(|(_, a)| a.clone())
        .collect();
    // Whether it was deleted is seen later.
    let deleted = Standing {
        incarnation: ours,
        last: None,
        expelled: None,
    };
    let Ok(answers) = tokio::time::timeout(START, ask(peers, own, members, &deleted)).await else {
        return Ok(());
    };
    let latest = answers
        .values()
        .map(|standing| standing.incarnation)
        .max_by_key(|i| i.number);
    if let Some(theirs) = latest.filter(|theirs| theirs.number > ours.number) {
        tracing::warn!(
            recovery = theirs.number,
            "the control plane was recovered without this node, which joins it anew"
        );
        let disk = disk.clone();
        blocking(move || disk.give_way(theirs, &addresses)).await?;
    }
    Ok(())
}

impl RaftStore {
    /// Empties this node's replica, which is of an earlier control plane, and joins the later one.
    pub(super) async fn give_way(&self, to: Incarnation) {
        let inner = &self.inner;
        let _one = inner.restarting.lock().await;
        if inner.core().incarnation.number >= to.number || inner.stop.is_cancelled() {
            return;
        }
        let addresses = inner.others();
        tracing::warn!(
            recovery = to.number,
            "the control plane was recovered without this node, which joins it anew"
        );
        match inner.restart(|disk| disk.give_way(to, &addresses)).await {
            Ok(()) => {
                tokio::spawn(self.clone().announce_address());
            }
            Err(error) => {
                tracing::error!(%error, "this node could not join the recovered control plane; restart its daemon")
            }
        }
    }
}
