//! What the control store keeps on disk: the Raft log, the vote, and the last snapshot, in one redb database.
//!
//! Every change is durable before it returns. Values are postcard; the tables are described in `docs/formats.md`.

use super::types::{Entry, LogId, StorageError, TypeConfig};
use crate::cluster::store::ControlError;
use crate::volume::NodeId;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, ErrorSubject, ErrorVerb, RaftLogReader, StorageIOError, Vote};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const VERSION_KEY: &str = "version";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
/// Last snapshot: its description and the state machine.
pub(super) const SNAPSHOT: &str = "snapshot";
const VERSION: u32 = 1;

/// The database; clones share it.
#[derive(Clone)]
pub(super) struct Disk {
    database: Arc<Database>,
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
        // redb asserts where a damaged file contradicts itself; here that is an error like any other.
        let open = || Self::open_file(&file);
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open));
        let disk = opened
            .map_err(|_| damaged("it is damaged".into()))?
            .map_err(|e| match e {
                redb::Error::DatabaseAlreadyOpen => ControlError::Unavailable(format!(
                    "the control store {} is in use: another daemon runs on this data directory",
                    file.display()
                )),
                e => damaged(e.to_string()),
            })?;
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

    fn open_file(file: &Path) -> Result<Self, redb::Error> {
        let database = Database::builder().set_cache_size(8 << 20).create(file)?;
        let txn = database.begin_write()?;
        txn.open_table(LOG)?;
        txn.open_table(META)?;
        txn.commit()?;
        Ok(Self {
            database: Arc::new(database),
        })
    }

    /// A value of the meta table.
    pub(super) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, AnyError> {
        let txn = self.database.begin_read().map_err(any)?;
        let table = txn.open_table(META).map_err(any)?;
        let value = table.get(key).map_err(any)?;
        value.map(|v| postcard::from_bytes(v.value()).map_err(any)).transpose()
    }

    /// Sets a value of the meta table.
    pub(super) fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), AnyError> {
        let bytes = postcard::to_allocvec(value).map_err(any)?;
        let txn = self.database.begin_write().map_err(any)?;
        txn.open_table(META)
            .map_err(any)?
            .insert(key, &bytes[..])
            .map_err(any)?;
        txn.commit().map_err(any)
    }

    fn append(&self, entries: &[(u64, Vec<u8>)]) -> Result<(), AnyError> {
        let txn = self.database.begin_write().map_err(any)?;
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
        let txn = self.database.begin_write().map_err(any)?;
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
        let txn = self.database.begin_read().map_err(any)?;
        let log = txn.open_table(LOG).map_err(any)?;
        let rows = log.range(range).map_err(any)?;
        rows.map(|row| postcard::from_bytes(row.map_err(any)?.1.value()).map_err(any))
            .collect()
    }

    fn last(&self) -> Result<Option<Entry>, AnyError> {
        let txn = self.database.begin_read().map_err(any)?;
        let log = txn.open_table(LOG).map_err(any)?;
        let last = log.last().map_err(any)?;
        last.map(|(_, bytes)| postcard::from_bytes(bytes.value()).map_err(any))
            .transpose()
    }
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
            let mut txn = disk.database.begin_write().map_err(any)?;
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
