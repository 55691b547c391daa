//! Going on after a majority of the voters is lost for good: this node's replica becomes the control plane.
//!
//! Only an operator can know that the others are gone and not merely cut off, so nothing here happens by itself; what can be told from the nodes that answer
//! is checked. Everything in this node's log counts, also what is not known to be committed. What only the lost nodes knew is lost.

use super::{Incarnation, RaftStore, unavailable};
use crate::cluster::store::ControlError;
use crate::volume::NodeId;
use openraft::ServerState;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long the control plane has to show that it works.
const PROOF: Duration = Duration::from_secs(3);

/// Why a control plane is not recovered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecoverError {
    /// It works.
    #[error("the control plane works: there is nothing to recover")]
    Works,
    /// It may work soon.
    #[error("a majority of the voters answers, and will elect a leader by itself")]
    Majority,
    /// Another survivor's replica has more.
    #[error("node {0} has a newer replica of the control plane")]
    Behind(NodeId),
    /// It was recovered already, elsewhere.
    #[error("the control plane was recovered on node {0} already; this node joins it by itself")]
    Already(NodeId),
    /// The records are not the nodes' own.
    #[error("the records are not kept by the nodes: recover the store that has them, as etcd's documentation says")]
    Elsewhere,
    /// This node never belonged to a control plane.
    #[error("this node has no replica of the control plane")]
    NoReplica,
    /// The disk, or the protocol.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl RaftStore {
    /// Makes this node the only voter of a new incarnation of the control plane, which goes on from its replica. Returns how many recoveries there were.
    ///
    /// # Errors
    /// See [`RecoverError`].
    pub async fn recover(&self) -> Result<u64, RecoverError> {
        let inner = &self.inner;
        let _one = inner.restarting.lock().await;
        if tokio::time::timeout(PROOF, inner.catch_up())
            .await
            .is_ok_and(|end| end.is_ok())
        {
            return Err(RecoverError::Works);
        }
        let core = inner.core();
        let own = inner.standing(inner.node);
        if own.last.is_none() {
            return Err(RecoverError::NoReplica);
        }
        let answers = inner.ask_all().await;
        for (node, standing) in &answers {
            if standing.incarnation.number > own.incarnation.number {
                return Err(RecoverError::Already(*node));
            }
            if standing.incarnation == own.incarnation && standing.last > own.last {
                return Err(RecoverError::Behind(*node));
            }
        }
        let present: BTreeSet<NodeId> = answers
            .iter()
            .filter(|(_, standing)| standing.incarnation == own.incarnation)
            .map(|(node, _)| *node)
            .chain([inner.node])
            .collect();
        let membership = core.raft.metrics().borrow().membership_config.membership().clone();
        let majority = |voters: &BTreeSet<NodeId>| voters.intersection(&present).count() * 2 > voters.len();
        if membership.get_joint_config().iter().all(majority) {
            return Err(RecoverError::Majority);
        }
        let incarnation = Incarnation {
            number: own.incarnation.number + 1,
            id: rand::random(),
        };
        tracing::warn!(
            recovery = incarnation.number,
            "the control plane is recovered from this node's replica"
        );
        let (node, members) = (inner.node, inner.members());
        inner.restart(|disk| disk.take_over(node, members, incarnation)).await?;
        let leads = inner.core().raft.wait(Some(inner.settings.deadline));
        leads
            .state(ServerState::Leader, "the recovered leader")
            .await
            .map_err(unavailable)?;
        Ok(incarnation.number)
    }
}
