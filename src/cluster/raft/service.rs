//! The control plane's messages between nodes, on connections of kind Control.
//!
//! openraft's own messages travel as postcard bytes: their types are openraft's, and a peer of another version shows as a decoding
//! error, not as a wrong message.

use crate::cluster::kv::{Answer, Command};
use crate::cluster::store::{LeaseId, Revision};
use crate::rpc::Payload;
use crate::volume::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

/// Why a request to the leader was refused.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The asked is not the leader; this is, as far as it knows.
    #[error("not the leader")]
    NotLeader(Option<String>),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// Which of a cluster's control planes: each recovery begins a new one, and the members of an earlier one give way to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Incarnation {
    /// Recoveries so far.
    pub(super) number: u64,
    /// Tells two recoveries apart that were made from the same state on two sides of a partition.
    pub(super) id: u64,
}

/// What a node knows of itself and of the one that asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Standing {
    /// Its control plane.
    pub(super) incarnation: Incarnation,
    /// Term and index of the last entry in its log.
    pub(super) last: Option<(u64, u64)>,
    /// Why the asker is no member any more, if so.
    pub(super) expelled: Option<String>,
}

/// The node's view of the control plane.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ControlStatus {
    /// The leader.
    pub leader: Option<NodeId>,
    /// Who votes; a node that is becoming a voter is one when the change is through.
    pub voters: Vec<NodeId>,
    /// Who follows without a vote.
    pub learners: Vec<NodeId>,
    /// The term.
    pub term: u64,
}

/// Requests between the daemons' control planes. Raft's name the node that they are for, which an address alone does not, and the control plane
/// that they are of.
#[tarpc::service]
pub(super) trait Control {
    /// Raft: entries of the log.
    async fn append_entries(to: NodeId, of: Incarnation, request: Payload) -> Result<Payload, String>;
    /// Raft: an election.
    async fn vote(to: NodeId, of: Incarnation, request: Payload) -> Result<Payload, String>;
    /// Raft: a part of a snapshot.
    async fn install_snapshot(to: NodeId, of: Incarnation, request: Payload) -> Result<Payload, String>;
    /// To the leader: put a command into the log and apply it.
    async fn propose(command: Command) -> Result<Answer, Refusal>;
    /// To the leader: the revision as of now; a replica that has it may answer reads.
    async fn read_index() -> Result<Revision, Refusal>;
    /// To the leader: a lease is kept.
    async fn keep_alive(lease: LeaseId) -> Result<bool, Refusal>;
    /// To the leader: a node wants to be a member, at this address.
    async fn join(node: NodeId, address: String) -> Result<ClusterId, Refusal>;
    /// To the leader: a node is about to stop; others vote instead from now on.
    async fn retire(node: NodeId) -> Result<(), Refusal>;
    /// To the leader: a deleted node is a member no more.
    async fn remove(node: NodeId) -> Result<(), Refusal>;
    /// What the asked is, and what it knows of the asker.
    async fn standing(asker: NodeId) -> Standing;
    /// Answers when the daemon lives.
    async fn ping() -> ();
}
