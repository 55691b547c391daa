//! The memory log: what is acknowledged and not yet on the device, in memory that outlives the process.
//!
//! A mount whose daemon dies goes on with the next daemon, and the kernel has been told of operations that no commit had covered. So each
//! operation appends the rows that it changed to a file in memory (`memfd`) that somebody else holds, too; a commit releases what it has
//! covered. The next daemon puts the rows again, as those of the intent log. A power loss takes this log with all that it is about.
//!
//! The file: two heads in turn, then a ring of records. A head names the first record that counts; records follow each other by number, each
//! with a checksum, and the first that does not fit ends them: an operation whose record is torn was not answered. Rows are put in
//! the order of the operations, so putting more than is missing is harmless.
//!
//! A request that was done but not answered is sent again by the kernel, so a record also says which request it was (`id`), and which earlier
//! ones were answered since the last record. Invariant: a file with a valid head holds every acknowledged operation that the device may lack; when that
//! cannot be kept (no memory, an operation larger than the ring) the file is emptied until a commit has covered everything.

use super::log::{Change, decode_changes, encode_change, word};
use super::{FsError, Ino};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// The last letter is the version.
const MAGIC: &[u8; 8] = b"STOSMEM1";
/// Magic, number, position, sequence, key, checksum.
const HEAD: usize = 80;
/// Where the heads are.
const HEADS: [u64; 2] = [0, 2048];
/// Where the ring begins.
const RING_START: u64 = 4096;
/// Bytes of the ring: what a mount takes of memory at most.
const RING: u64 = 16 << 20;
/// Bytes that are left free for operations that have begun.
const RESERVE: u64 = 1 << 20;
/// Length, changes, answered requests, sequence, id, checksum.
const RECORD_HEAD: usize = 44;
/// Requests that were done and, as far as is known, not answered: more are forgotten, oldest first.
const UNANSWERED_MAX: usize = 4096;

/// Whether the kernel still knows an inode.
type Knows = Box<dyn Fn(Ino) -> bool + Send + Sync>;

/// Memory for a file system that shall survive its process: see [`super::FileSystem::open_in_memory`].
pub struct Memory {
    file: File,
    /// Set for a file system that the kernel has known since before this process.
    pub(super) kernel: Option<Knows>,
}

impl Memory {
    /// Fresh memory, for a new mount.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("storageos-mount", MemfdFlags::CLOEXEC)?);
        Ok(Self { file, kernel: None })
    }

    /// What an earlier process left, for a mount that lives on. `knows` tells whether the kernel still has an inode.
    #[must_use]
    pub fn inherited(file: OwnedFd, knows: impl Fn(Ino) -> bool + Send + Sync + 'static) -> Self {
        Self {
            file: file.into(),
            kernel: Some(Box::new(knows)),
        }
    }

    /// Another descriptor of it, to be held where it survives this process.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Puts what an earlier process left; returns how many records there were and which requests may be sent again although they are done.
    pub(super) fn replay(&self, key: [u8; 16], mut apply: impl FnMut(Change)) -> Result<Replayed, FsError> {
        let lost = || FsError::Format("the memory log of the mount's last daemon is not whole".into());
        let head = read_head(&self.file).filter(|head| head.key == key).ok_or_else(lost)?;
        let (mut at, mut sequence) = (head.position, head.sequence);
        let mut replayed = Replayed::default();
        while let Some(record) = read_record(&self.file, at, sequence).filter(|r| at + r.size - head.position <= RING) {
            at += record.size;
            sequence += 1;
            for change in record.changes {
                apply(change);
            }
            if record.id != 0 {
                replayed.unanswered.insert(record.id);
            }
            for id in &record.answered {
                replayed.unanswered.remove(id);
            }
        }
        replayed.records = sequence - head.sequence;
        replayed.head = head.number;
        replayed.end = at;
        Ok(replayed)
    }

    /// An empty log in it, whatever was there; requests of `replayed` stay known.
    pub(super) fn begin(&self, key: [u8; 16], replayed: &Replayed) -> io::Result<MemoryLog> {
        let mut log = MemoryLog {
            file: self.file.try_clone()?,
            key,
            number: replayed.head,
            head: Position::default(),
            // Behind what was there: until there is a new head the old one counts. Records that are still in the ring must not fit.
            tail: Position {
                at: replayed.end,
                sequence: fresh_sequence(),
            },
            logging: true,
            unanswered: BTreeMap::new(),
            answered: Vec::new(),
            buffer: Vec::new(),
        };
        log.head = log.tail;
        for id in &replayed.unanswered {
            log.append(Some(*id), std::iter::empty());
        }
        log.write_head();
        Ok(log)
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn fresh_sequence() -> u64 {
    // Far from any other log's, so that no old record fits by chance.
    rand::random::<u64>() >> 1
}

/// What a replay found.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    pub(super) records: u64,
    /// Requests that were done and may not have been answered.
    pub(super) unanswered: BTreeSet<u64>,
    head: u64,
    /// Where the records end.
    end: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    at: u64,
    sequence: u64,
}

/// The log of an open file system; kept behind its lock.
pub(super) struct MemoryLog {
    file: File,
    /// Tells file systems apart.
    key: [u8; 16],
    /// Of the last head.
    number: u64,
    head: Position,
    tail: Position,
    /// Records are being written.
    logging: bool,
    /// Requests that are done and not answered, and where the log says so.
    unanswered: BTreeMap<u64, u64>,
    /// Answered since the last record.
    answered: Vec<u64>,
    buffer: Vec<u8>,
}

impl MemoryLog {
    /// Appends what an operation changed, and which request it was.
    pub(super) fn append<'a>(&mut self, id: Option<u64>, changes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) {
        if !self.logging {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(RECORD_HEAD, 0);
        let answered = std::mem::take(&mut self.answered);
        for id in &answered {
            buffer.extend_from_slice(&id.to_le_bytes());
        }
        let mut count = 0_u32;
        for (key, value) in changes {
            count += 1;
            encode_change(&mut buffer, key, value);
        }
        if count == 0 && id.is_none() {
            (self.buffer, self.answered) = (buffer, answered);
            return;
        }
        finish_record(
            &mut buffer,
            count,
            answered.len() as u32,
            self.tail.sequence,
            id.unwrap_or(0),
        );
        let fits = self.used() + buffer.len() as u64 <= RING;
        if fits && write_ring(&self.file, self.tail.at, &buffer).is_ok() {
            if let Some(id) = id {
                self.unanswered.insert(id, self.tail.at);
                while self.unanswered.len() > UNANSWERED_MAX {
                    self.unanswered.pop_first();
                }
            }
            self.tail.at += buffer.len() as u64;
            self.tail.sequence += 1;
        } else {
            self.give_up();
        }
        self.buffer = buffer;
    }

    /// Nobody may trust the file until a commit has covered everything.
    fn give_up(&mut self) {
        tracing::debug!("a mount's memory log cannot hold what was changed; a commit makes it whole again");
        if let Err(error) = self.file.set_len(0) {
            // Without memory to write to, giving some back does not fail.
            tracing::error!(%error, "a mount's memory log cannot be emptied: this mount must not outlive its daemon");
        }
        self.logging = false;
    }

    /// A request was answered: it will not come again.
    pub(super) fn answered(&mut self, id: u64) {
        if self.unanswered.remove(&id).is_some() {
            self.answered.push(id);
        }
    }

    fn used(&self) -> u64 {
        self.tail.at - self.head.at
    }

    /// Whether a commit should release something soon.
    pub(super) fn wants_commit(&self) -> bool {
        !self.logging || self.used() > RING / 2
    }

    /// Whether operations must wait for a commit.
    pub(super) fn is_full(&self) -> bool {
        self.logging && self.used() > RING - RESERVE
    }

    /// A commit takes everything up to here.
    pub(super) fn mark(&mut self) -> Position {
        if !self.logging {
            // It covers what is missing, too: what comes from now on is logged again.
            self.tail.sequence = fresh_sequence();
            self.head = self.tail;
            self.logging = true;
        }
        self.tail
    }

    /// The commit has succeeded.
    pub(super) fn release(&mut self, mark: Position) {
        if !self.logging {
            return;
        }
        self.head = mark;
        if self.head == self.tail {
            // Over the same memory again: a mount that does little takes little.
            self.tail.at = self.tail.at.next_multiple_of(RING);
            self.head = self.tail;
        }
        let kept: Vec<u64> = self
            .unanswered
            .iter()
            .filter(|(_, at)| **at < mark.at)
            .map(|(id, _)| *id)
            .collect();
        for id in kept {
            self.append(Some(id), std::iter::empty());
        }
        if self.logging {
            self.write_head();
        }
    }

    fn write_head(&mut self) {
        self.number += 1;
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(MAGIC);
        for number in [self.number, self.head.at, self.head.sequence] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.extend_from_slice(&self.key);
        let sum = blake3::hash(&head);
        head.extend_from_slice(sum.as_bytes());
        let place = HEADS[(self.number % 2) as usize];
        if let Err(error) = self.file.write_all_at(&head, place) {
            // The old head stands for more than is missing; without one there is none.
            tracing::debug!(%error, "a mount's memory log has no new head");
        }
    }
}

struct Head {
    number: u64,
    position: u64,
    sequence: u64,
    key: [u8; 16],
}

fn half_word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_head(file: &File) -> Option<Head> {
    let heads = HEADS.iter().filter_map(|at| {
        let mut bytes = [0; HEAD];
        file.read_exact_at(&mut bytes, *at).ok()?;
        let whole = bytes[..8] == *MAGIC && bytes[48..] == *blake3::hash(&bytes[..48]).as_bytes();
        // Far from where counting on could overflow.
        let sound = word(&bytes, 16)? < 1 << 62 && word(&bytes, 24)? < u64::MAX / 2 + (1 << 40);
        (whole && sound).then_some(())?;
        Some(Head {
            number: word(&bytes, 8)?,
            position: word(&bytes, 16)?,
            sequence: word(&bytes, 24)?,
            key: bytes[32..48].try_into().ok()?,
        })
    });
    heads.max_by_key(|head| head.number)
}

/// The parts of a ring's stretch: at most two.
fn parts(at: u64, length: usize) -> [(u64, usize, usize); 2] {
    let offset = at % RING;
    let first = length.min((RING - offset) as usize);
    [(RING_START + offset, 0, first), (RING_START, first, length)]
}

fn write_ring(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    parts(at, bytes.len())
        .into_iter()
        .filter(|(_, from, to)| from < to)
        .try_for_each(|(offset, from, to)| file.write_all_at(&bytes[from..to], offset))
}

fn read_ring(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    parts(at, bytes.len())
        .into_iter()
        .filter(|(_, from, to)| from < to)
        .try_for_each(|(offset, from, to)| file.read_exact_at(&mut bytes[from..to], offset))
}

fn finish_record(record: &mut [u8], changes: u32, answered: u32, sequence: u64, id: u64) {
    // A record is bounded by the ring.
    let body = (record.len() - RECORD_HEAD) as u32;
    for (at, number) in [(0, body), (4, changes), (8, answered)] {
        record[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    record[12..20].copy_from_slice(&sequence.to_le_bytes());
    record[20..28].copy_from_slice(&id.to_le_bytes());
    let sum = record_sum(record);
    record[28..RECORD_HEAD].copy_from_slice(&sum);
}

fn record_sum(record: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&record[..28]);
    hasher.update(&record[RECORD_HEAD..]);
    let mut sum = [0; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}

/// A memory log whose first head and records have their checksums made right, as far as their lengths go, and are of the file system with this key.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sealed(log: &[u8], key: [u8; 16]) -> Vec<u8> {
    let mut sealed = log.to_vec();
    if let Some(head) = sealed.get_mut(..HEAD) {
        head[..8].copy_from_slice(MAGIC);
        head[32..48].copy_from_slice(&key);
        let sum = blake3::hash(&head[..48]);
        head[48..].copy_from_slice(sum.as_bytes());
    }
    let (at, mut sequence) = (word(log, 16).unwrap_or(0) % RING, word(log, 24).unwrap_or(0));
    let mut at = (RING_START + at) as usize;
    while let Some(body) = half_word(&sealed, at).map(|body| body as usize)
        && let Some(record) = sealed.get_mut(at..at.saturating_add(RECORD_HEAD).saturating_add(body))
    {
        record[12..20].copy_from_slice(&sequence.to_le_bytes());
        let sum = record_sum(record);
        record[28..RECORD_HEAD].copy_from_slice(&sum);
        at += record.len();
        sequence = sequence.wrapping_add(1);
    }
    sealed
}

struct Record {
    size: u64,
    id: u64,
    answered: Vec<u64>,
    changes: Vec<Change>,
}

fn read_record(file: &File, at: u64, sequence: u64) -> Option<Record> {
    let mut record = vec![0; RECORD_HEAD];
    read_ring(file, at, &mut record).ok()?;
    let body = half_word(&record, 0)? as usize;
    if word(&record, 12)? != sequence || (RECORD_HEAD + body) as u64 > RING {
        return None;
    }
    record.resize(RECORD_HEAD + body, 0);
    read_ring(file, at + RECORD_HEAD as u64, &mut record[RECORD_HEAD..]).ok()?;
    if record[28..RECORD_HEAD] != record_sum(&record) {
        return None;
    }
    let answered_end = RECORD_HEAD + half_word(&record, 8)? as usize * 8;
    let answered = record.get(RECORD_HEAD..answered_end)?.chunks_exact(8);
    Some(Record {
        size: record.len() as u64,
        id: word(&record, 20)?,
        answered: answered.filter_map(|id| word(id, 0)).collect(),
        changes: decode_changes(&record[answered_end..], half_word(&record, 4)?.into())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 16] = [7; 16];

    type Pairs = Vec<(String, Option<String>)>;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn content(memory: &Memory) -> (Pairs, Vec<u64>) {
        let mut found = Vec::new();
        let replayed = memory
            .replay(KEY, |(key, value)| found.push((text(&key), value.as_deref().map(text))))
            .unwrap();
        (found, replayed.unanswered.into_iter().collect())
    }

    fn put(log: &mut MemoryLog, id: Option<u64>, key: &str, value: Option<&str>) {
        log.append(id, std::iter::once((key.as_bytes(), value.map(str::as_bytes))));
    }

    fn pair(key: &str, value: Option<&str>) -> (String, Option<String>) {
        (key.into(), value.map(str::to_owned))
    }

    #[test]
    fn what_no_commit_covered_comes_back_in_order() {
        let memory = Memory::new().unwrap();
        let mut log = memory.begin(KEY, &Replayed::default()).unwrap();
        put(&mut log, Some(3), "a", Some("1"));
        let mark = log.mark();
        put(&mut log, Some(5), "b", Some("2"));
        put(&mut log, None, "a", None);
        log.answered(3);
        let all = [pair("a", Some("1")), pair("b", Some("2")), pair("a", None)];
        assert_eq!(content(&memory), (all.to_vec(), vec![3, 5]));
        log.release(mark);
        assert_eq!(content(&memory), (all[1..].to_vec(), vec![5]));
        let mark = log.mark();
        log.release(mark);
        assert_eq!(content(&memory), (vec![], vec![5]), "its answer is still to come");
        log.answered(5);
        put(&mut log, None, "c", Some("3"));
        assert_eq!(content(&memory), (vec![pair("c", Some("3"))], vec![]));
    }

    #[test]
    fn a_head_and_a_record_have_their_documented_bytes() {
        let memory = Memory::new().unwrap();
        let mut log = memory.begin(KEY, &Replayed::default()).unwrap();
        log.tail.sequence = 5;
        log.unanswered.insert(6, 0);
        log.answered(6);
        put(&mut log, Some(7), "Ia", Some("x"));
        let mut head = [0; HEAD];
        memory.file.read_exact_at(&mut head, HEADS[1]).unwrap();
        assert_eq!(head[..24], *b"STOSMEM1\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(head[32..48], KEY);
        assert_eq!(head[48..], *blake3::hash(&head[..48]).as_bytes());
        let mut record = [0; RECORD_HEAD + 19];
        memory.file.read_exact_at(&mut record, RING_START).unwrap();
        assert_eq!(
            record[..28],
            *b"\x13\0\0\0\x01\0\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0"
        );
        assert_eq!(record[28..44], record_sum(&record));
        assert_eq!(record[44..], *b"\x06\0\0\0\0\0\0\0\x02\0\0\0\x01\0\0\0Iax");
    }

    #[test]
    fn a_torn_record_ends_the_log() {
        let memory = Memory::new().unwrap();
        let mut log = memory.begin(KEY, &Replayed::default()).unwrap();
        put(&mut log, None, "a", Some("1"));
        put(&mut log, None, "b", Some("2"));
        memory.file.write_all_at(&[9], RING_START + log.tail.at - 1).unwrap();
        assert_eq!(content(&memory).0, [pair("a", Some("1"))]);
    }

    #[test]
    fn another_file_systems_memory_is_refused() {
        let memory = Memory::new().unwrap();
        memory.begin([8; 16], &Replayed::default()).unwrap();
        assert!(memory.replay(KEY, |_| ()).is_err());
        assert!(Memory::new().unwrap().replay(KEY, |_| ()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn garbage_behind_a_valid_checksum_is_no_panic(
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
            changes in proptest::prelude::any::<u32>(),
            answered in 0..60_u32,
        ) {
            let memory = Memory::new().unwrap();
            let log = memory.begin(KEY, &Replayed::default()).unwrap();
            let mut record = vec![0; RECORD_HEAD];
            record.extend_from_slice(&body);
            finish_record(&mut record, changes % 20, answered, log.tail.sequence, 1);
            write_ring(&memory.file, log.tail.at, &record).unwrap();
            memory.replay(KEY, |_| ()).unwrap();
            finish_record(&mut record, changes, answered, log.tail.sequence, 1);
            write_ring(&memory.file, log.tail.at, &record).unwrap();
            memory.replay(KEY, |_| ()).unwrap();
        }
    }

    #[test]
    fn the_ring_goes_round() {
        let memory = Memory::new().unwrap();
        let mut log = memory.begin(KEY, &Replayed::default()).unwrap();
        let big = "x".repeat(700_000);
        for round in 0..100 {
            let mark = log.mark();
            put(&mut log, None, &format!("{round}"), Some(&big));
            log.release(mark);
            let (found, _) = content(&memory);
            assert_eq!(found, [pair(&format!("{round}"), Some(&big))]);
        }
        assert!(log.tail.at > 2 * RING);
    }

    #[test]
    fn what_does_not_fit_makes_it_worthless_until_a_commit() {
        let memory = Memory::new().unwrap();
        let mut log = memory.begin(KEY, &Replayed::default()).unwrap();
        let big = "x".repeat(4 << 20);
        for key in ["a", "b", "c"] {
            assert!(!log.is_full());
            put(&mut log, None, key, Some(&big));
        }
        assert!(log.wants_commit());
        let early = log.mark();
        put(&mut log, None, "d", Some(&big));
        assert!(memory.replay(KEY, |_| ()).is_err());
        put(&mut log, None, "e", Some("1"));
        log.release(early);
        assert!(memory.replay(KEY, |_| ()).is_err(), "the commit had begun before");
        let mark = log.mark();
        put(&mut log, None, "f", Some("2"));
        assert!(memory.replay(KEY, |_| ()).is_err());
        log.release(mark);
        assert_eq!(content(&memory).0, [pair("f", Some("2"))]);
    }

    #[test]
    fn the_next_daemon_begins_anew_and_remembers_requests() {
        let memory = Memory::new().unwrap();
        let mut log = memory.begin(KEY, &Replayed::default()).unwrap();
        put(&mut log, Some(9), "a", Some("1"));
        let replayed = memory.replay(KEY, |_| ()).unwrap();
        assert_eq!(replayed.records, 1);
        let mut log = memory.begin(KEY, &replayed).unwrap();
        assert_eq!(content(&memory), (vec![], vec![9]));
        log.answered(9);
        put(&mut log, None, "b", None);
        assert_eq!(content(&memory), (vec![pair("b", None)], vec![]));
    }
}
