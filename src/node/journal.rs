//! The node's journal of events: the latest few thousand, in memory and in two files of JSON lines.
//!
//! Kept by each node for itself and not in the control store: events matter most when something fails, and so must need no
//! majority and cost no consensus. Whoever asks for events asks all nodes and merges. Recording never blocks on the disk:
//! a thread of its own writes the lines, and a line that cannot be written costs no more than itself.
//!
//! `events` is appended to until it holds [`KEPT`] lines, then it replaces `events.old`.

use super::control::Control;
use crate::cluster::View;
use crate::replication::Observer;
use crate::volume::{Event, EventKind, NodeId, VolumeId, sentence};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines of one file, and events kept in memory.
const KEPT: usize = 2000;
/// Lines on their way to the file; more are only kept in memory.
const QUEUE: usize = 1024;

struct Inner {
    events: VecDeque<Event>,
    next: u64,
}

/// See the module's text.
pub(super) struct Journal {
    node: NodeId,
    inner: Mutex<Inner>,
    lines: SyncSender<String>,
    /// Events that this daemon recorded, by their kind's place.
    counts: [AtomicU64; EventKind::ALL.len()],
    /// Where names are known, once the node is a member.
    control: RwLock<Option<Control>>,
}

impl Journal {
    /// Reads what an earlier daemon recorded under `directory`. A journal that cannot be read or written is said in the log and
    /// does without.
    pub(super) fn open(directory: &Path, node: NodeId) -> Arc<Self> {
        let mut events = VecDeque::new();
        let mut in_file = 0;
        for name in ["events.old", "events"] {
            in_file = 0;
            match read(&directory.join(name), &mut events) {
                Ok(lines) => in_file = lines,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(file = name, %error, "earlier events cannot be read"),
            }
        }
        let next = events.back().map_or(1, |event: &Event| event.number.saturating_add(1));
        let (lines, queue) = sync_channel(QUEUE);
        let file = directory.join("events");
        // Ends with the journal. Without a thread, events are kept in memory only.
        let writer = std::thread::Builder::new().name("journal".into());
        if let Err(error) = writer.spawn(move || write(&file, in_file, &queue)) {
            tracing::warn!(%error, "events are not written to the disk");
        }
        Arc::new(Self {
            node,
            inner: Mutex::new(Inner { events, next }),
            lines,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            control: RwLock::new(None),
        })
    }

    /// From now on volumes and nodes are known by name.
    pub(super) fn set_control(&self, control: Control) {
        *self.control.write() = Some(control);
    }

    /// Records an event.
    pub(super) fn record(&self, kind: EventKind, volume: Option<VolumeId>, node: Option<NodeId>, detail: &str) {
        let view = self.control.read().as_ref().map(Control::view);
        let node_name = node.map(|node| match &view {
            Some(view) => view.node_name(node),
            None => node.to_string(),
        });
        let volume_name = volume.and_then(|id| {
            let record = view.as_ref()?.volumes.get(&id)?;
            Some(super::control::name(record))
        });
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        let message = sentence(kind, node_name.as_deref(), detail);
        let mut inner = self.inner.lock();
        let event = Event {
            number: inner.next,
            at: Timestamp::now(),
            recorder: self.node,
            kind,
            volume,
            volume_name,
            node,
            node_name,
            message,
        };
        inner.next = inner.next.saturating_add(1);
        if let Ok(line) = serde_json::to_string(&event) {
            // Full: the disk is slow, and memory has it.
            let _ = self.lines.try_send(line);
        }
        inner.events.push_back(event);
        while inner.events.len() > KEPT {
            inner.events.pop_front();
        }
    }

    /// How many events of each kind this daemon recorded.
    pub(super) fn counts(&self) -> impl Iterator<Item = (EventKind, u64)> {
        let count = |kind: &EventKind| (*kind, self.counts[*kind as usize].load(Ordering::Relaxed));
        EventKind::ALL.iter().map(count)
    }

    /// What was recorded from `since` on.
    pub(super) fn since(&self, since: Option<Timestamp>) -> Vec<Event> {
        let inner = self.inner.lock();
        let wanted = |event: &&Event| since.is_none_or(|since| event.at >= since);
        inner.events.iter().filter(wanted).cloned().collect()
    }
}

impl Observer for Journal {
    fn happened(&self, volume: VolumeId, kind: EventKind, node: Option<NodeId>, detail: &str) {
        self.record(kind, Some(volume), node, detail);
    }
}

fn read(file: &Path, events: &mut VecDeque<Event>) -> io::Result<usize> {
    read_lines(BufReader::new(File::open(file)?), events)
}

/// Takes events in; returns how many lines there were.
pub(super) fn read_lines(lines_of: impl BufRead, events: &mut VecDeque<Event>) -> io::Result<usize> {
    let mut lines = 0;
    for line in lines_of.split(b'\n') {
        lines += 1;
        // A line that was cut short by a crash, or of a later version, is left out.
        if let Ok(event) = serde_json::from_slice(&line?) {
            events.push_back(event);
        }
        while events.len() > KEPT {
            events.pop_front();
        }
    }
    Ok(lines)
}

fn write(file: &PathBuf, mut lines: usize, queue: &Receiver<String>) {
    let mut open: Option<File> = None;
    while let Ok(line) = queue.recv() {
        let mut append = || -> io::Result<()> {
            if lines >= KEPT {
                fs::rename(file, file.with_extension("old"))?;
                (open, lines) = (None, 0);
            }
            let to = match &mut open {
                Some(to) => to,
                none => none.insert(File::options().create(true).append(true).open(file)?),
            };
            lines += 1;
            to.write_all(format!("{line}\n").as_bytes())
        };
        if let Err(error) = append() {
            tracing::warn!(file = %file.display(), %error, "an event could not be written");
            open = None;
        }
    }
}

/// Records what changes between two views: nodes that are lost and back, and volumes whose master came to this node.
pub(super) fn record_changes(journal: &Journal, old: &View, new: &View) {
    let known: BTreeSet<&NodeId> = new.nodes.keys().collect();
    for node in old.live.difference(&new.live).filter(|node| known.contains(node)) {
        journal.record(EventKind::NodeLost, None, Some(*node), "");
    }
    for node in new.live.difference(&old.live).filter(|node| known.contains(node)) {
        journal.record(EventKind::NodeBack, None, Some(*node), "");
    }
    for volume in new.volumes.values() {
        let before = old.volumes.get(&volume.id).and_then(|v| v.configuration.master);
        let (Some(before), Some(now)) = (before, volume.configuration.master) else {
            continue;
        };
        if before == now || now != journal.node {
            continue;
        }
        let from = new.node_name(before);
        let detail = if volume.configuration.lost.contains_key(&before) {
            // The new master does not see how that copy was lost.
            journal.record(
                EventKind::ReplicaLost,
                Some(volume.id),
                Some(before),
                "it was the master's",
            );
            format!("the copy on {from}, which was the master's, is lost")
        } else if volume.mount.as_ref().is_some_and(|claim| claim.node == now) {
            format!("{from} was it before; the volume is mounted here")
        } else {
            format!("{from} was it before")
        };
        journal.record(EventKind::MasterPromoted, Some(volume.id), Some(now), &detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn eventually(condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
    }

    #[test]
    fn events_outlive_the_daemon_and_a_torn_line_costs_itself_only() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("events");
        let node = NodeId::from_bytes([1; 16]);
        let journal = Journal::open(home.path(), node);
        journal.record(EventKind::NodeLost, None, Some(node), "");
        journal.record(EventKind::NodeBack, None, Some(node), "");
        let lines = || fs::read_to_string(&file).unwrap_or_default().matches('\n').count();
        eventually(|| lines() == 2);
        drop(journal);
        File::options()
            .append(true)
            .open(&file)
            .unwrap()
            .write_all(b"{\"number\":9\n")
            .unwrap();
        let journal = Journal::open(home.path(), node);
        journal.record(EventKind::VolumeWritable, None, None, "");
        let numbers: Vec<u64> = journal.since(None).iter().map(|e| e.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        let last = journal.since(None)[2].at;
        assert_eq!(journal.since(Some(last)).len(), 1);
    }

    #[test]
    fn the_journal_has_a_bound_in_memory_and_on_the_disk() {
        let home = tempfile::tempdir().unwrap();
        let node = NodeId::from_bytes([1; 16]);
        let journal = Journal::open(home.path(), node);
        let lines = |name: &str| {
            let text = fs::read_to_string(home.path().join(name)).unwrap_or_default();
            text.matches('\n').count()
        };
        for round in 1..=5 {
            for _ in 0..KEPT / 4 {
                journal.record(EventKind::NodeLost, None, Some(node), "");
            }
            eventually(|| lines("events") + lines("events.old") == round * (KEPT / 4));
        }
        assert_eq!((lines("events.old"), lines("events")), (KEPT, KEPT / 4));
        assert_eq!(journal.since(None).len(), KEPT);
        let again = Journal::open(home.path(), node);
        assert_eq!(again.since(None).len(), KEPT);
        assert_eq!(again.since(None), journal.since(None));
    }

    #[test]
    fn an_event_has_its_documented_form() {
        let event = Event {
            number: 7,
            at: Timestamp::UNIX_EPOCH,
            recorder: NodeId::from_bytes([1; 16]),
            kind: EventKind::NodeLost,
            volume: None,
            volume_name: None,
            node: Some(NodeId::from_bytes([2; 16])),
            node_name: Some("n2".into()),
            message: "node n2 is offline".into(),
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            concat!(
                r#"{"number":7,"at":"1970-01-01T00:00:00Z","recorder":"01010101-0101-0101-0101-010101010101","#,
                r#""kind":"nodeLost","volume":null,"volumeName":null,"node":"02020202-0202-0202-0202-020202020202","#,
                r#""nodeName":"n2","message":"node n2 is offline"}"#
            )
        );
    }
}
