//! The types that openraft is used with.

use crate::cluster::kv::{Answer, Command};
use crate::volume::NodeId;
use openraft::BasicNode;
use std::io::Cursor;

openraft::declare_raft_types!(
    /// Commands of the key-value state machine, between nodes with our ids; a node's address is its port for peers.
    pub TypeConfig:
        D = Command,
        R = Option<Answer>,
        NodeId = NodeId,
        Node = BasicNode,
);

/// The protocol's handle.
pub(super) type Raft = openraft::Raft<TypeConfig>;
/// A place in the log.
pub(super) type LogId = openraft::LogId<NodeId>;
/// An entry of the log.
pub(super) type Entry = openraft::Entry<TypeConfig>;
/// An error of what is below the protocol; it stops the protocol.
pub(super) type StorageError = openraft::StorageError<NodeId>;
/// The voters and learners.
pub(super) type Membership = openraft::StoredMembership<NodeId, BasicNode>;
