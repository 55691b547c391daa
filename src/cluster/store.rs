//! The control store: a small, linearizable key-value store with compare-and-swap, watches, leases and a leader.
//!
//! The shape is etcd's, so that etcd can be an implementation. Keys and values are text, values are JSON. Every committed transaction
//! that changes something raises the store's revision; a row remembers the revision of its last change.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::watch;

/// A revision of the store; 0 is before the first change.
pub type Revision = u64;
/// The number of a lease; never used again.
pub type LeaseId = u64;

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Revision of its last change.
    pub revision: Revision,
    /// The lease that it goes with.
    pub lease: Option<LeaseId>,
}

/// Something that must hold for a transaction to happen: the key's last change was at this revision; 0: there is no such key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// The revision of its last change.
    pub revision: Revision,
}

/// A change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Sets a key, which goes when the lease does.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The lease; an unknown one refuses the transaction.
        lease: Option<LeaseId>,
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: String,
    },
}

/// All comparisons hold and all changes happen, or nothing happens. Has at most 100 of either: etcd takes no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What then happens.
    pub changes: Vec<Change>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It happened, at this revision.
    Committed(Revision),
    /// A comparison did not hold; nothing happened.
    Conflict,
    /// A lease that it names is not alive; nothing happened.
    NoLease(LeaseId),
}

/// A change as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The key.
    pub key: String,
    /// Its new row; `None`: it was removed.
    pub row: Option<Row>,
    /// The store's revision after the change.
    pub revision: Revision,
}

/// Why the control store did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    /// No answer within the deadline; a transaction may or may not have happened.
    #[error("{0}")]
    Unavailable(String),
    /// The history that a watch asked for is gone: read everything and watch from there.
    #[error("history before revision {0} is gone")]
    Compacted(Revision),
    /// What is on the disk cannot be used.
    #[error("{0}")]
    Damaged(String),
}

/// A control store. Reads and transactions are linearizable.
#[async_trait]
pub trait ControlStore: Send + Sync + 'static {
    /// The row of a key.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]
    async fn get(&self, key: &str) -> Result<Option<Row>, ControlError>;

    /// Every row whose key begins with `prefix`, in order, and the store's revision then.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]
    async fn range(&self, prefix: &str) -> Result<(Vec<Row>, Revision), ControlError>;

    /// Does a transaction.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]: it may or may not have happened, or may still happen.
    async fn transact(&self, transaction: Transaction) -> Result<Outcome, ControlError>;

    /// The changes of keys that begin with `prefix` after revision `after`: waits until there is one, at most a few seconds, then
    /// returns what there is (possibly nothing) and the revision to go on from. Served from this node's knowledge, which may lag.
    ///
    /// # Errors
    /// [`ControlError::Compacted`], [`ControlError::Unavailable`]
    async fn changes(&self, prefix: &str, after: Revision) -> Result<(Vec<Event>, Revision), ControlError>;

    /// A new lease that lives `ttl` beyond its last keepalive.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError>;

    /// Keeps a lease alive. False: it is gone, and its keys with it.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]
    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, ControlError>;

    /// Ends a lease and removes its keys.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]
    async fn revoke(&self, lease: LeaseId) -> Result<(), ControlError>;

    /// Whether this node is the one that should run the controller now. Two may think so for a moment: the controller's changes are
    /// transactions that compare.
    fn leadership(&self) -> watch::Receiver<bool>;
}
