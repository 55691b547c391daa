//! The state machine under Raft: the key-value state in memory, and snapshots of it on disk.
//!
//! The state itself is not on disk: a start loads the last snapshot and applies the committed log after it.

use super::disk::{Disk, SNAPSHOT, blocking, storage};
use super::types::{Entry, LogId, Membership, StorageError, TypeConfig};
use crate::cluster::kv::{Answer, Kv};
use crate::cluster::store::{ControlError, Revision};
use crate::volume::NodeId;
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, BasicNode, EntryPayload, ErrorSubject, ErrorVerb, RaftSnapshotBuilder, SnapshotMeta};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    applied: Option<LogId>,
    membership: Membership,
    pub(super) kv: Kv,
}

/// A snapshot as it is on disk.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) meta: SnapshotMeta<NodeId, BasicNode>,
    pub(super) state: Vec<u8>,
}

/// The state machine; clones share it.
#[derive(Clone)]
pub(super) struct Machine {
    state: Arc<Mutex<State>>,
    disk: Disk,
    revision: Arc<watch::Sender<Revision>>,
}

impl Machine {
    pub(super) fn open(disk: Disk) -> Result<Self, ControlError> {
        let damaged = |e: AnyError| ControlError::Damaged(format!("the control store's snapshot cannot be read: {e}"));
        let stored: Option<Stored> = disk.read(SNAPSHOT).map_err(damaged)?;
        let state = match stored {
            Some(stored) => decode(&stored.state).map_err(damaged)?,
            None => State::default(),
        };
        Ok(Self {
            revision: Arc::new(watch::Sender::new(state.kv.revision())),
            state: Arc::new(Mutex::new(state)),
            disk,
        })
    }

    /// The same again on another handle, after the protocol was stopped; those who wait for revisions go on waiting.
    pub(super) fn reopen(&self, disk: Disk) -> Result<Self, ControlError> {
        let mut new = Self::open(disk)?;
        new.revision = self.revision.clone();
        new.announce();
        Ok(new)
    }

    /// The key-value state as applied here.
    pub(super) fn kv(&self) -> parking_lot::MappedMutexGuard<'_, Kv> {
        MutexGuard::map(self.state.lock(), |state| &mut state.kv)
    }

    /// The last committed membership. Raft's metrics show the newest entry of the log instead, which may never be committed: that of a
    /// former leader, for one.
    pub(super) fn membership(&self) -> openraft::Membership<NodeId, BasicNode> {
        self.state.lock().membership.membership().clone()
    }

    /// Where a node is, by the last committed membership.
    pub(super) fn address(&self, node: NodeId) -> Option<String> {
        let state = self.state.lock();
        state.membership.membership().get_node(&node).map(|n| n.addr.clone())
    }

    /// Tells of new revisions.
    pub(super) fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    fn announce(&self) {
        let revision = self.state.lock().kv.revision();
        self.revision.send_replace(revision);
    }
}

impl Disk {
    /// The newest membership that the disk knows, in the log or in the snapshot before it.
    pub(super) fn members(&self) -> Result<Option<openraft::Membership<NodeId, BasicNode>>, AnyError> {
        if let Some(membership) = self.last_membership()? {
            return Ok(Some(membership));
        }
        let stored: Option<Stored> = self.read(SNAPSHOT)?;
        Ok(stored.map(|stored| stored.meta.last_membership.membership().clone()))
    }
}

fn encode(state: &State) -> Result<Vec<u8>, AnyError> {
    postcard::to_allocvec(state).map_err(|e| AnyError::new(&e))
}

pub(super) fn decode(bytes: &[u8]) -> Result<State, AnyError> {
    postcard::from_bytes(bytes).map_err(|e| AnyError::new(&e))
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let state = self.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Option<Answer>>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut answers = Vec::new();
        {
            let mut state = self.state.lock();
            for entry in entries {
                state.applied = Some(entry.log_id);
                answers.push(match entry.payload {
                    EntryPayload::Blank => None,
                    EntryPayload::Normal(command) => Some(state.kv.apply(&command)),
                    EntryPayload::Membership(membership) => {
                        state.membership = Membership::new(Some(entry.log_id), membership);
                        None
                    }
                });
            }
        }
        self.announce();
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, BasicNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let failed = |e| storage(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Write, e);
        let bytes = snapshot.into_inner();
        let state = decode(&bytes).map_err(failed)?;
        let (disk, stored) = (
            self.disk.clone(),
            Stored {
                meta: meta.clone(),
                state: bytes,
            },
        );
        blocking(move || disk.write(SNAPSHOT, &stored)).await.map_err(failed)?;
        *self.state.lock() = State {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            ..state
        };
        self.announce();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let failed = |e| storage(ErrorSubject::Snapshot(None), ErrorVerb::Read, e);
        let stored: Option<Stored> = self.disk.read(SNAPSHOT).map_err(failed)?;
        Ok(stored.map(|stored| Snapshot {
            meta: stored.meta,
            snapshot: Box::new(Cursor::new(stored.state)),
        }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let failed = |e| storage(ErrorSubject::StateMachine, ErrorVerb::Read, e);
        let (meta, bytes) = {
            let state = self.state.lock();
            let id = state
                .applied
                .map_or_else(|| "0".into(), |id| format!("{}-{}", id.leader_id, id.index));
            let meta = SnapshotMeta {
                last_log_id: state.applied,
                last_membership: state.membership.clone(),
                snapshot_id: id,
            };
            (meta, encode(&state).map_err(failed)?)
        };
        let stored = Stored {
            meta: meta.clone(),
            state: bytes.clone(),
        };
        let disk = self.disk.clone();
        let result = blocking(move || disk.write(SNAPSHOT, &stored)).await;
        result.map_err(|e| storage(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Write, e))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}
