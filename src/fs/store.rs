//! The rows: a redb database, and over it, in memory, the changes since its last checkpoint.
//!
//! A read looks at the running changes, then at those that a checkpoint is just putting into the database, then at the database as it
//! was at the last checkpoint. So nobody waits for a checkpoint, and a failed one loses nothing. The changes are bounded: their
//! volume triggers the next checkpoint. When a read fails in the middle of an operation, what the operation changed is taken back.

use super::backend::MetaArea;
use super::error::FsError;
use super::log::{Change, change_size};
use super::rows::{GENERATION, ROW_BYTES, number};
use redb::{AccessGuard, Database, Range, ReadOnlyTable, ReadableDatabase, TableDefinition, TableError};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

/// A key and its value.
pub(super) type Row = (Vec<u8>, Vec<u8>);
type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
type Base = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The database, shared with the checkpoint thread.
pub(super) struct Disk {
    /// There until it is dropped.
    database: Option<Database>,
    /// Bytes of all rows, kept in a row of its own.
    row_bytes: AtomicU64,
}

/// Does something with the database. redb trusts its pages and asserts where damaged ones contradict themselves; here that is an error like any other.
fn guarded<T>(call: impl FnOnce() -> Result<T, FsError>) -> Result<T, FsError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(FsError::Metadata("the metadata database contradicts itself".into())))
}

/// The database's rows in a range, from either end.
struct BaseRows(Range<'static, &'static [u8], &'static [u8]>);

type BaseRow = (AccessGuard<'static, &'static [u8]>, AccessGuard<'static, &'static [u8]>);

impl BaseRows {
    fn of(base: &Base, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Self, FsError> {
        guarded(|| Ok(Self(base.range::<&[u8]>(bounds)?)))
    }

    fn take(
        &mut self,
        next: impl FnOnce(&mut Range<'static, &'static [u8], &'static [u8]>) -> Taken,
    ) -> Result<Option<BaseRow>, FsError> {
        guarded(|| {
            let row = next(&mut self.0).transpose()?;
            if let Some((key, value)) = &row {
                // Once that they can be read, they can be.
                let _ = (key.value(), value.value());
            }
            Ok(row)
        })
    }

    fn next(&mut self) -> Result<Option<BaseRow>, FsError> {
        self.take(Iterator::next)
    }

    fn next_back(&mut self) -> Result<Option<BaseRow>, FsError> {
        self.take(DoubleEndedIterator::next_back)
    }
}

type Taken = Option<Result<BaseRow, redb::StorageError>>;

impl Disk {
    pub(super) fn open(area: MetaArea, cache_bytes: usize) -> Result<Self, FsError> {
        guarded(|| Self::open_database(area, cache_bytes))
    }

    fn open_database(area: MetaArea, cache_bytes: usize) -> Result<Self, FsError> {
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create_with_backend(area)?;
        let disk = Self {
            database: Some(database),
            row_bytes: AtomicU64::new(0),
        };
        match disk.database()?.begin_read()?.open_table(ROWS) {
            Ok(base) => {
                let bytes = base.get(ROW_BYTES)?.and_then(|v| number(v.value())).unwrap_or(0);
                disk.row_bytes.store(bytes, Ordering::Release);
            }
            // A new database: make the table.
            Err(TableError::TableDoesNotExist(_)) => disk.apply_rows(&Rows::new(), 0)?,
            Err(e) => return Err(e.into()),
        }
        Ok(disk)
    }

    fn database(&self) -> Result<&Database, FsError> {
        self.database.as_ref().ok_or(FsError::Closed)
    }

    /// Bytes of all rows, as of the last checkpoint.
    pub(super) fn row_bytes(&self) -> u64 {
        self.row_bytes.load(Ordering::Acquire)
    }

    pub(super) fn base(&self) -> Result<Base, FsError> {
        guarded(|| Ok(self.database()?.begin_read()?.open_table(ROWS)?))
    }

    /// Whether the database matches its checksums. Reads all of it, and repairs it if not. Nothing may be reading it.
    pub(super) fn is_whole(&mut self) -> Result<bool, FsError> {
        guarded(|| {
            let database = self.database.as_mut().ok_or(FsError::Closed)?;
            Ok(database.check_integrity()?)
        })
    }

    pub(super) fn generation(base: &Base) -> Result<u64, FsError> {
        guarded(|| {
            let value = base.get(GENERATION)?;
            Ok(value.and_then(|v| number(v.value())).unwrap_or(0))
        })
    }

    /// Makes rows durable in the database, all or none, and names the log generation that follows.
    pub(super) fn apply(&self, rows: &Rows, generation: u64) -> Result<(), FsError> {
        guarded(|| self.apply_rows(rows, generation))
    }

    fn apply_rows(&self, rows: &Rows, generation: u64) -> Result<(), FsError> {
        let mut txn = self.database()?.begin_write()?;
        txn.set_durability(redb::Durability::Immediate)?;
        txn.set_two_phase_commit(true);
        // Reopening after a crash then costs nothing that grows with the database.
        txn.set_quick_repair(true);
        let mut bytes = self.row_bytes();
        {
            let mut table = txn.open_table(ROWS)?;
            for (key, value) in rows {
                let before = match value {
                    Some(value) => {
                        bytes = bytes.saturating_add(change_size(key, Some(value)) as u64);
                        table.insert(&key[..], &value[..])?
                    }
                    None => table.remove(&key[..])?,
                };
                if let Some(before) = before {
                    bytes = bytes.saturating_sub(change_size(key, Some(before.value())) as u64);
                }
            }
            table.insert(ROW_BYTES, &bytes.to_le_bytes()[..])?;
            table.insert(GENERATION, &generation.to_le_bytes()[..])?;
        }
        txn.commit()?;
        self.row_bytes.store(bytes, Ordering::Release);
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let database = self.database.take();
        // Closing one that contradicts itself is asserted about, too.
        let _ = guarded(|| {
            drop(database);
            Ok(())
        });
    }
}

/// The rows as operations see and change them. Kept behind the file system's lock.
pub(super) struct Store {
    /// `None` while the database is opened again after an error.
    base: Option<Base>,
    frozen: Option<Arc<Rows>>,
    changes: Rows,
    /// Bytes of `changes`, about.
    changed_bytes: usize,
    /// The same of `frozen`.
    frozen_bytes: usize,
    /// Changes that are in no log record yet.
    unlogged: HashMap<Vec<u8>, Option<Vec<u8>>>,
    unlogged_bytes: usize,
    /// What the running operation changed, to take it back when a read fails in its middle.
    undo: Vec<Undo>,
    /// Whether a read of the database failed since the operation began.
    read_failed: Cell<bool>,
}

/// A changed row: its key, and what stood before among the changes and the unlogged ones.
struct Undo {
    key: Vec<u8>,
    change: Option<Option<Vec<u8>>>,
    unlogged: Option<Option<Vec<u8>>>,
}

impl Store {
    pub(super) fn new(base: Base) -> Self {
        Self {
            base: Some(base),
            frozen: None,
            changes: Rows::new(),
            changed_bytes: 0,
            frozen_bytes: 0,
            unlogged: HashMap::new(),
            unlogged_bytes: 0,
            undo: Vec::new(),
            read_failed: Cell::new(false),
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        if let Some(value) = self.changes.get(key) {
            return Ok(value.clone());
        }
        if let Some(value) = self.frozen.as_ref().and_then(|rows| rows.get(key)) {
            return Ok(value.clone());
        }
        let base = self.base()?;
        self.noted(guarded(|| Ok(base.get(key)?.map(|v| v.value().to_vec()))))
    }

    fn base(&self) -> Result<&Base, FsError> {
        let missing = || FsError::Metadata("the metadata database failed and is being opened again".into());
        self.noted(self.base.as_ref().ok_or_else(missing))
    }

    /// The error of a row that makes no sense. What the operation changed so far is taken back.
    pub(super) fn damaged(&self, what: String) -> FsError {
        self.read_failed.set(true);
        FsError::Metadata(what)
    }

    /// Passes a result of the database on, and remembers an error.
    fn noted<T, E: Into<FsError>>(&self, result: Result<T, E>) -> Result<T, FsError> {
        result.map_err(|e| {
            self.read_failed.set(true);
            e.into()
        })
    }

    /// An operation begins.
    pub(super) fn begin(&mut self) {
        self.undo.clear();
        self.read_failed.set(false);
    }

    /// Whether a read failed since the operation began, so that it will be taken back.
    pub(super) fn has_failed(&self) -> bool {
        self.read_failed.get()
    }

    /// What the operation changed, each row once, as it is now.
    pub(super) fn changed(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let keys: BTreeSet<&[u8]> = self.undo.iter().map(|undo| &undo.key[..]).collect();
        // An operation changes no row that is not among the changes.
        keys.into_iter()
            .filter_map(|key| Some((key, self.changes.get(key)?.as_deref())))
    }

    /// The operation ends: takes it back if a read failed on the way, and says so.
    pub(super) fn end(&mut self) -> bool {
        let failed = self.read_failed.replace(false);
        if !failed {
            self.undo.clear();
            return false;
        }
        for Undo { key, change, unlogged } in std::mem::take(&mut self.undo).into_iter().rev() {
            if let Some(new) = match unlogged {
                Some(old) => {
                    self.unlogged_bytes += change_size(&key, old.as_deref());
                    self.unlogged.insert(key.clone(), old)
                }
                None => self.unlogged.remove(&key),
            } {
                self.unlogged_bytes -= change_size(&key, new.as_deref());
            }
            let size = change_size(&key, change.as_ref().and_then(Option::as_deref));
            let new = match change {
                Some(old) => {
                    self.changed_bytes += size;
                    self.changes.insert(key.clone(), old)
                }
                None => self.changes.remove(&key),
            };
            if let Some(new) = new {
                self.changed_bytes -= change_size(&key, new.as_deref());
            }
        }
        true
    }

    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.change(key, Some(value));
    }

    pub(super) fn delete(&mut self, key: Vec<u8>) {
        self.change(key, None);
    }

    fn change(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let size = change_size(&key, value.as_deref());
        self.unlogged_bytes += size;
        self.changed_bytes += size;
        let unlogged = self.unlogged.insert(key.clone(), value.clone());
        if let Some(old) = &unlogged {
            self.unlogged_bytes -= change_size(&key, old.as_deref());
        }
        let change = self.changes.insert(key.clone(), value);
        if let Some(old) = &change {
            self.changed_bytes -= change_size(&key, old.as_deref());
        }
        self.undo.push(Undo { key, change, unlogged });
    }

    /// A change that is in the log already: replay.
    pub(super) fn replayed(&mut self, (key, value): Change) {
        self.changed_bytes += change_size(&key, value.as_deref());
        self.changes.insert(key, value);
    }

    /// The first row in a range, if any.
    pub(super) fn first(&self, from: Bound<&[u8]>, to: &[u8]) -> Result<Option<Row>, FsError> {
        let mut found = None;
        self.range(from, to, &mut |key, value| {
            found = Some((key.to_vec(), value.to_vec()));
            false
        })?;
        Ok(found)
    }

    /// The last row in a range, if any.
    pub(super) fn last(&self, from: &[u8], to: Bound<&[u8]>) -> Result<Option<Row>, FsError> {
        let bounds = (Bound::Included(from), to);
        let mut changes = self.changes.range::<[u8], _>(bounds).rev().peekable();
        let empty = Rows::new();
        let frozen = self.frozen.as_deref().unwrap_or(&empty);
        let mut frozen = frozen.range::<[u8], _>(bounds).rev().peekable();
        let mut base = self.noted(BaseRows::of(self.base()?, bounds))?;
        let mut base_row = self.noted(base.next_back())?;
        loop {
            let highest = [
                changes.peek().map(|(k, _)| &k[..]),
                frozen.peek().map(|(k, _)| &k[..]),
                base_row.as_ref().map(|(k, _)| k.value()),
            ];
            let Some(highest) = highest.into_iter().flatten().max().map(<[u8]>::to_vec) else {
                return Ok(None);
            };
            let mut value = None;
            if base_row.as_ref().is_some_and(|(k, _)| k.value() == highest) {
                value = Some(base_row.take().map(|(_, v)| v.value().to_vec()));
                base_row = self.noted(base.next_back())?;
            }
            if frozen.peek().is_some_and(|(k, _)| **k == highest) {
                value = frozen.next().map(|(_, v)| v.clone());
            }
            if changes.peek().is_some_and(|(k, _)| **k == highest) {
                value = changes.next().map(|(_, v)| v.clone());
            }
            if let Some(Some(value)) = value {
                return Ok(Some((highest, value)));
            }
        }
    }

    /// Visits rows in order, from a bound to a key (exclusive), until the visitor returns false.
    pub(super) fn range(
        &self,
        from: Bound<&[u8]>,
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), FsError> {
        let bounds = (from, Bound::Excluded(to));
        let mut changes = self.changes.range::<[u8], _>(bounds).peekable();
        let empty = Rows::new();
        let frozen = self.frozen.as_deref().unwrap_or(&empty);
        let mut frozen = frozen.range::<[u8], _>(bounds).peekable();
        let mut base = self.noted(BaseRows::of(self.base()?, bounds))?;
        let mut base_row = self.noted(base.next())?;
        loop {
            let c = changes.peek().map(|(k, _)| &k[..]);
            let f = frozen.peek().map(|(k, _)| &k[..]);
            let b = base_row.as_ref().map(|(k, _)| k.value());
            let Some(lowest) = [c, f, b].into_iter().flatten().min() else {
                return Ok(());
            };
            // The newest layer that has the key decides; the older ones skip it.
            let (in_c, in_f, in_b) = (c == Some(lowest), f == Some(lowest), b == Some(lowest));
            let go_on = if in_c {
                match changes.peek() {
                    Some((k, Some(v))) => visit(k, v),
                    _ => true,
                }
            } else if in_f {
                match frozen.peek() {
                    Some((k, Some(v))) => visit(k, v),
                    _ => true,
                }
            } else {
                base_row.as_ref().is_none_or(|(k, v)| visit(k.value(), v.value()))
            };
            if !go_on {
                return Ok(());
            }
            if in_c {
                changes.next();
            }
            if in_f {
                frozen.next();
            }
            if in_b {
                base_row = self.noted(base.next())?;
            }
        }
    }

    /// Bytes of changes since the last checkpoint, about.
    pub(super) fn changed_bytes(&self) -> usize {
        self.changed_bytes
    }

    /// Bytes of changes that are not in the database, about.
    pub(super) fn pending_bytes(&self) -> usize {
        self.changed_bytes + self.frozen_bytes
    }

    /// Bytes that the next log record would carry.
    pub(super) fn unlogged_bytes(&self) -> usize {
        self.unlogged_bytes
    }

    /// Takes what the next log record must carry.
    pub(super) fn take_unlogged(&mut self) -> Vec<Change> {
        self.unlogged_bytes = 0;
        std::mem::take(&mut self.unlogged).into_iter().collect()
    }

    /// Puts back what a failed record carried; newer changes of the same rows stay.
    pub(super) fn give_back(&mut self, changes: Vec<Change>) {
        for (key, value) in changes {
            if !self.unlogged.contains_key(&key) {
                self.unlogged_bytes += change_size(&key, value.as_deref());
                self.unlogged.insert(key, value);
            }
        }
    }

    /// The rows as they are now, to be read while operations go on. `base` is this store's, or the next one.
    pub(super) fn at_this_moment(&self, base: Base) -> Result<Self, FsError> {
        self.base()?;
        let mut store = Self::new(base);
        store.frozen.clone_from(&self.frozen);
        store.changes.clone_from(&self.changes);
        Ok(store)
    }

    /// Freezes the changes for a checkpoint; `None` while one runs.
    pub(super) fn freeze(&mut self) -> Option<Arc<Rows>> {
        if self.frozen.is_some() {
            return None;
        }
        self.frozen_bytes = std::mem::take(&mut self.changed_bytes);
        let rows = Arc::new(std::mem::take(&mut self.changes));
        self.frozen = Some(rows.clone());
        Some(rows)
    }

    /// The database is opened again: none, then as its last finished checkpoint left it. The changes in memory stay above it.
    pub(super) fn set_base(&mut self, base: Option<Base>) {
        self.base = base;
    }

    /// The frozen changes are in the database, which is now this.
    pub(super) fn thaw(&mut self, base: Base) {
        self.base = Some(base);
        self.frozen = None;
        self.frozen_bytes = 0;
    }
}
