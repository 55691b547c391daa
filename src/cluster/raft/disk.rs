//! What the control store keeps on disk: the Raft log, the vote, and the last snapshot, in one redb database.
//!
//! Every change is durable before it returns. Values are postcard; the tables are described in `docs/formats.md`.
//!
//! A handle can be succeeded ([`Disk::successor`]), when the protocol is started anew on the same file: the old handles, which tasks of the
//! stopped protocol may still have, write nothing any more.

use super::service::Incarnation;
use super::types::{Entry, LogId, StorageError, TypeConfig};
use crate::cluster::kv::Command;
use crate::cluster::store::ControlError;
use crate::volume::NodeId;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{
    AnyError, BasicNode, CommittedLeaderId, EntryPayload, ErrorSubject, ErrorVerb, Membership, RaftLogReader,
    StorageIOError, Vote,
};
use parking_lot::RwLock;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const VERSION_KEY: &str = "version";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
/// Which control plane of the cluster's this is a replica of.
pub(super) const INCARNATION: &str = "incarnation";
/// Where members are, for a replica that was emptied and must join again.
pub(super) const REJOIN: &str = "rejoin";
/// Last snapshot: its description and the state machine.
pub(super) const SNAPSHOT: &str = "snapshot";
const VERSION: u32 = 1;

/// The database; clones share it.
#[derive(Clone)]
pub(super) struct Disk {
    /// None while it could not be opened again.
    database: Arc<RwLock<Option<Arc<Database>>>>,
    file: Arc<Path>,
    generation: u64,
    current: Arc<AtomicU64>,
}

impl Disk {
    /// Opens or makes the database of a directory.
    pub(super) fn open(directory: &Path) -> Result<Self, ControlError> {
        let file = directory.join("raft.redb");
        let damaged = |problem: String| {
            ControlError::Damaged(format!(
                "the control store {} cannot be used: {problem}. If the other nodes are well, remove {} and join the cluster again",
                file.display(),
                directory.display()
            ))
        };
        std::fs::create_dir_all(directory).map_err(|e| damaged(e.to_string()))?;
        let database = open_file(&file).map_err(|e| match e {
            redb::Error::DatabaseAlreadyOpen => ControlError::Unavailable(format!(
                "the control store {} is in use: another daemon runs on this data directory",
                file.display()
            )),
            e => damaged(e.to_string()),
        })?;
        let disk = Self {
            database: Arc::new(RwLock::new(Some(Arc::new(database)))),
            file: file.as_path().into(),
            generation: 0,
            current: Arc::default(),
        };
        match disk.read::<u32>(VERSION_KEY) {
            Ok(Some(VERSION)) => Ok(disk),
            Ok(None) => {
                disk.write(VERSION_KEY, &VERSION).map_err(|e| damaged(e.to_string()))?;
                Ok(disk)
            }
            Ok(Some(other)) => Err(damaged(format!("it has version {other}, this program knows {VERSION}"))),
            Err(e) => Err(damaged(e.to_string())),
        }
    }

    /// A handle that takes over from this one and its clones.
    pub(super) fn successor(&self) -> Self {
        Self {
            database: self.database.clone(),
            file: self.file.clone(),
            generation: self.current.fetch_add(1, Ordering::SeqCst) + 1,
            current: self.current.clone(),
        }
    }

    /// Opens the file again after an error, as after a crash. Handles of before use it too. Fails while the disk takes no writes.
    pub(super) fn reopen(&self) -> Result<(), AnyError> {
        let mut database = self.database.write();
        // The file can be open once only.
        database.take();
        *database = Some(Arc::new(open_file(&self.file).map_err(any)?));
        Ok(())
    }

    fn database(&self) -> Result<Arc<Database>, AnyError> {
        let database = self.database.read().clone();
        database.ok_or_else(|| AnyError::error("the control store is not open"))
    }

    /// redb lets one write at a time in: what was begun before a succession ends before the successor's first.
    fn begin_write(&self) -> Result<redb::WriteTransaction, AnyError> {
        let txn = self.database()?.begin_write().map_err(any)?;
        if self.current.load(Ordering::SeqCst) == self.generation {
            Ok(txn)
        } else {
            Err(AnyError::error("the control plane was started anew since"))
        }
    }

    /// Which control plane this is a replica of.
    pub(super) fn incarnation(&self) -> Result<Incarnation, AnyError> {
        Ok(self.read(INCARNATION)?.unwrap_or_default())
    }

    /// Where members are, for a replica that must join again.
    pub(super) fn rejoin(&self) -> Result<Vec<String>, AnyError> {
        Ok(self.read(REJOIN)?.unwrap_or_default())
    }

    /// The last place in the log.
    pub(super) fn last_log_id(&self) -> Result<Option<LogId>, AnyError> {
        let purged: Option<LogId> = self.read(PURGED)?;
        Ok(self.last()?.map(|entry| entry.log_id).max(purged))
    }

    /// The newest membership in the log, committed or not.
    pub(super) fn last_membership(&self) -> Result<Option<Membership<NodeId, BasicNode>>, AnyError> {
        let entries = self.entries(..)?.into_iter().rev();
        let mut memberships = entries.filter_map(|entry| match entry.payload {
            EntryPayload::Membership(membership) => Some(membership),
            _ => None,
        });
        Ok(memberships.next())
    }

    /// Empties the replica: it belongs to another control plane of its cluster from now on, and learns everything from that one.
    pub(super) fn give_way(&self, to: Incarnation, rejoin: &[String]) -> Result<(), AnyError> {
        let txn = self.begin_write()?;
        {
            let mut log = txn.open_table(LOG).map_err(any)?;
            log.retain(|_, _| false).map_err(any)?;
            let mut meta = txn.open_table(META).map_err(any)?;
            for key in [VOTE, COMMITTED, PURGED, SNAPSHOT] {
                meta.remove(key).map_err(any)?;
            }
            meta.insert(INCARNATION, &postcard::to_allocvec(&to).map_err(any)?[..])
                .map_err(any)?;
            meta.insert(REJOIN, &postcard::to_allocvec(rejoin).map_err(any)?[..])
                .map_err(any)?;
        }
        txn.commit().map_err(any)
    }

    /// Makes this node the only voter, at a higher term, of a new control plane that goes on from this replica. Everything in the log counts, also
    /// what is not known to be committed: it may have been.
    pub(super) fn take_over(
        &self,
        node: NodeId,
        members: BTreeMap<NodeId, BasicNode>,
        incarnation: Incarnation,
    ) -> Result<(), AnyError> {
        let last = self
            .last_log_id()?
            .ok_or_else(|| AnyError::error("this replica is empty"))?;
        let vote: Option<Vote<NodeId>> = self.read(VOTE)?;
        let term = vote.map_or(0, |vote| vote.leader_id.term).max(last.leader_id.term) + 1;
        let payloads = [
            EntryPayload::Membership(Membership::new(vec![BTreeSet::from([node])], members)),
            EntryPayload::Normal(Command::Recovered(incarnation.number)),
        ];
        let txn = self.begin_write()?;
        {
            let mut log = txn.open_table(LOG).map_err(any)?;
            for (index, payload) in (last.index + 1..).zip(payloads) {
                let log_id = LogId::new(CommittedLeaderId::new(term, node), index);
                let bytes = postcard::to_allocvec(&Entry { log_id, payload }).map_err(any)?;
                log.insert(index, &bytes[..]).map_err(any)?;
            }
            let mut meta = txn.open_table(META).map_err(any)?;
            let vote: Vote<NodeId> = Vote::new(term, node);
            meta.insert(VOTE, &postcard::to_allocvec(&vote).map_err(any)?[..])
                .map_err(any)?;
            meta.insert(INCARNATION, &postcard::to_allocvec(&incarnation).map_err(any)?[..])
                .map_err(any)?;
        }
        txn.commit().map_err(any)
    }

    /// A value of the meta table.
    pub(super) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, AnyError> {
        let txn = self.database()?.begin_read().map_err(any)?;
        let table = txn.open_table(META).map_err(any)?;
        let value = table.get(key).map_err(any)?;
        value.map(|v| postcard::from_bytes(v.value()).map_err(any)).transpose()
    }

    /// Sets a value of the meta table.
    pub(super) fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), AnyError> {
        let bytes = postcard::to_allocvec(value).map_err(any)?;
        let txn = self.begin_write()?;
        txn.open_table(META)
            .map_err(any)?
            .insert(key, &bytes[..])
            .map_err(any)?;
        txn.commit().map_err(any)
    }

    fn append(&self, entries: &[(u64, Vec<u8>)]) -> Result<(), AnyError> {
        let txn = self.begin_write()?;
        {
            let mut log = txn.open_table(LOG).map_err(any)?;
            for (index, bytes) in entries {
                log.insert(index, &bytes[..]).map_err(any)?;
            }
        }
        txn.commit().map_err(any)
    }

    /// Removes entries; `purged` is kept with it.
    fn remove(&self, range: impl RangeBounds<u64>, purged: Option<&LogId>) -> Result<(), AnyError> {
        let txn = self.begin_write()?;
        txn.open_table(LOG)
            .map_err(any)?
            .retain_in(range, |_, _| false)
            .map_err(any)?;
        if let Some(purged) = purged {
            let bytes = postcard::to_allocvec(purged).map_err(any)?;
            txn.open_table(META)
                .map_err(any)?
                .insert(PURGED, &bytes[..])
                .map_err(any)?;
        }
        txn.commit().map_err(any)
    }

    fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>, AnyError> {
        let txn = self.database()?.begin_read().map_err(any)?;
        let log = txn.open_table(LOG).map_err(any)?;
        let rows = log.range(range).map_err(any)?;
        rows.map(|row| postcard::from_bytes(row.map_err(any)?.1.value()).map_err(any))
            .collect()
    }

    fn last(&self) -> Result<Option<Entry>, AnyError> {
        let txn = self.database()?.begin_read().map_err(any)?;
        let log = txn.open_table(LOG).map_err(any)?;
        let last = log.last().map_err(any)?;
        last.map(|(_, bytes)| postcard::from_bytes(bytes.value()).map_err(any))
            .transpose()
    }
}

/// Opens or makes the database file. redb asserts where a damaged one contradicts itself; here that is an error like any other.
fn open_file(file: &Path) -> Result<Database, redb::Error> {
    let open = || {
        let database = Database::builder().set_cache_size(8 << 20).create(file)?;
        let txn = database.begin_write()?;
        txn.open_table(LOG)?;
        txn.open_table(META)?;
        txn.commit()?;
        Ok(database)
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(open))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("it contradicts itself".to_owned())))
}

fn any(error: impl std::error::Error + 'static) -> AnyError {
    AnyError::new(&error)
}

/// Runs disk work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AnyError> + Send + 'static,
) -> Result<T, AnyError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(AnyError::new(&e)),
    }
}

/// A disk error as openraft has it.
pub(super) fn storage(subject: ErrorSubject<NodeId>, verb: ErrorVerb, error: AnyError) -> StorageError {
    StorageIOError::new(subject, verb, error).into()
}

impl RaftLogReader<TypeConfig> for Disk {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(range)
            .map_err(|e| storage(ErrorSubject::Logs, ErrorVerb::Read, e))
    }
}

impl RaftLogStorage<TypeConfig> for Disk {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let failed = |e| storage(ErrorSubject::Logs, ErrorVerb::Read, e);
        let purged: Option<LogId> = self.read(PURGED).map_err(failed)?;
        let last = self.last().map_err(failed)?.map(|entry| entry.log_id);
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError> {
        let (disk, vote) = (self.clone(), *vote);
        let result = blocking(move || disk.write(VOTE, &vote)).await;
        result.map_err(|e| storage(ErrorSubject::Vote, ErrorVerb::Write, e))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError> {
        self.read(VOTE)
            .map_err(|e| storage(ErrorSubject::Vote, ErrorVerb::Read, e))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // A hint for the next start, which would find it out from the leader anyway: not worth a sync of its own.
        let Some(committed) = committed else {
            return Ok(());
        };
        let disk = self.clone();
        let save = move || {
            let bytes = postcard::to_allocvec(&committed).map_err(any)?;
            let mut txn = disk.begin_write()?;
            txn.set_durability(redb::Durability::None).map_err(any)?;
            txn.open_table(META)
                .map_err(any)?
                .insert(COMMITTED, &bytes[..])
                .map_err(any)?;
            txn.commit().map_err(any)
        };
        blocking(save)
            .await
            .map_err(|e| storage(ErrorSubject::Store, ErrorVerb::Write, e))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.read(COMMITTED)
            .map_err(|e| storage(ErrorSubject::Store, ErrorVerb::Read, e))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let failed = |e| storage(ErrorSubject::Logs, ErrorVerb::Write, e);
        let mut rows = Vec::new();
        for entry in entries {
            let bytes = postcard::to_allocvec(&entry).map_err(|e| failed(any(e)))?;
            rows.push((entry.log_id.index, bytes));
        }
        let disk = self.clone();
        let result = blocking(move || disk.append(&rows)).await;
        callback.log_io_completed(result.clone().map_err(|e| std::io::Error::other(e.to_string())));
        result.map_err(failed)
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let disk = self.clone();
        let result = blocking(move || disk.remove(log_id.index.., None)).await;
        result.map_err(|e| storage(ErrorSubject::Logs, ErrorVerb::Delete, e))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let disk = self.clone();
        let result = blocking(move || disk.remove(..=log_id.index, Some(&log_id))).await;
        result.map_err(|e| storage(ErrorSubject::Logs, ErrorVerb::Delete, e))
    }
}
