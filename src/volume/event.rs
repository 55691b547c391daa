//! Events: what happened to volumes and nodes, in words that operators know, and which changes of a record are events.
//!
//! Pure. A volume's events are recorded by its master's node; that a node was lost or came back by every node that saw it, so
//! that it is known whoever dies, and [`merge`] makes one of the many.

use super::{Configuration, NodeId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $word:literal $sentence:literal;)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub enum EventKind {
            $($(#[$doc])* $kind,)*
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The event in a sentence; `%` stands for the node.
            fn sentence(self) -> &'static str {
                match self { $(Self::$kind => $sentence,)* }
            }
        }

        impl fmt::Display for EventKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$kind => $word,)* })
            }
        }
    };
}

kinds! {
    /// Too few replicas: writes wait for the recovery that is under way.
    VolumeSuspended "volumeSuspended" "writes are suspended";
    /// They waited for `io.timeout` in vain: writes fail from now on.
    VolumeReadOnly "volumeReadOnly" "the volume is read-only";
    /// It may be written again.
    VolumeWritable "volumeWritable" "the volume is writable again";
    /// Another node's copy is the master now.
    MasterPromoted "masterPromoted" "% is the master now";
    /// A copy is not in sync any more.
    ReplicaLost "replicaLost" "the copy on % is lost";
    /// A copy is being brought up to date.
    ReplicaSyncing "replicaSyncing" "the copy on % is being synced";
    /// A copy is up to date.
    ReplicaInSync "replicaInSync" "the copy on % is in sync";
    /// A copy is not part of the volume any more.
    ReplicaRemoved "replicaRemoved" "the copy on % is given up";
    /// A sync makes no progress and is started again.
    SyncStuck "syncStuck" "the sync to % makes no progress and starts again";
    /// Blocks that did not match their hashes were replaced by another copy's.
    BlocksRepaired "blocksRepaired" "corrupt blocks on % were repaired from another copy";
    /// Blocks that do not match their hashes, and no other copy could help.
    BlocksCorrupt "blocksCorrupt" "corrupt blocks on % could not be repaired";
    /// A scrub read and checked every copy.
    ScrubDone "scrubDone" "every copy was read and checked";
    /// An operator made a copy that was out of date the master.
    DataLossAccepted "dataLossAccepted" "the copy on %, which was out of date, was made the master";
    /// A node's lease ran out.
    NodeLost "nodeLost" "node % is offline";
    /// A node has its lease again.
    NodeBack "nodeBack" "node % is online";
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Numbered by the node that recorded it.
    pub number: u64,
    /// When, by that node's clock.
    pub at: Timestamp,
    /// The node that recorded it.
    pub recorder: NodeId,
    /// What happened.
    pub kind: EventKind,
    /// To which volume.
    pub volume: Option<VolumeId>,
    /// Its `namespace/name` then.
    pub volume_name: Option<String>,
    /// On which node, or to which.
    pub node: Option<NodeId>,
    /// Its name then.
    pub node_name: Option<String>,
    /// The whole of it as a sentence, with the reason where one is known.
    pub message: String,
}

/// The sentence of an event.
#[must_use]
pub fn sentence(kind: EventKind, node: Option<&str>, detail: &str) -> String {
    let text = kind.sentence().replace('%', node.unwrap_or("a node"));
    if detail.is_empty() {
        text
    } else {
        format!("{text}: {detail}")
    }
}

/// The events that a change of a configuration is, as its master sees it: copies that were lost, left, are synced or in sync.
#[must_use]
pub fn changes(old: &Configuration, new: &Configuration) -> Vec<(EventKind, NodeId)> {
    let mut found = Vec::new();
    let all = old.in_sync.iter().chain(&old.syncing).chain(old.lost.keys());
    found.extend(
        all.filter(|node| !new.has_copy_on(**node))
            .map(|node| (EventKind::ReplicaRemoved, *node)),
    );
    let lost = new.lost.keys().filter(|node| !old.lost.contains_key(node));
    found.extend(lost.map(|node| (EventKind::ReplicaLost, *node)));
    let syncing = new.syncing.difference(&old.syncing);
    found.extend(syncing.map(|node| (EventKind::ReplicaSyncing, *node)));
    let joined = new.in_sync.difference(&old.in_sync);
    found.extend(joined.map(|node| (EventKind::ReplicaInSync, *node)));
    found
}

/// Within this time two nodes' reports of a third one are of the same event.
const SAME: Duration = Duration::from_secs(20);

/// Whether two nodes recorded the same event: that a node was lost or came back.
#[must_use]
pub fn same(a: &Event, b: &Event) -> bool {
    matches!(a.kind, EventKind::NodeLost | EventKind::NodeBack)
        && (a.kind, a.node) == (b.kind, b.node)
        && a.recorder != b.recorder
        && a.at.duration_since(b.at).unsigned_abs() <= SAME
}

/// Events of several nodes in the order in which they happened, each once.
#[must_use]
pub fn merge(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|e| (e.at, e.recorder, e.number));
    let mut merged: Vec<Event> = Vec::with_capacity(events.len());
    for event in events {
        // Reports of one event are close together.
        let near = merged
            .iter()
            .rev()
            .take_while(|earlier| event.at.duration_since(earlier.at).unsigned_abs() <= SAME);
        if near
            .into_iter()
            .any(|earlier| *earlier == event || same(earlier, &event))
        {
            continue;
        }
        merged.push(event);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use EventKind::{ReplicaInSync, ReplicaLost, ReplicaRemoved, ReplicaSyncing};

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn configuration(in_sync: &[u8], syncing: &[u8], lost: &[u8]) -> Configuration {
        Configuration {
            master: in_sync.first().copied().map(id),
            in_sync: in_sync.iter().copied().map(id).collect(),
            syncing: syncing.iter().copied().map(id).collect(),
            lost: lost.iter().map(|n| (id(*n), Timestamp::UNIX_EPOCH)).collect(),
            ..Configuration::unplaced()
        }
    }

    type Sets<'a> = (&'a [u8], &'a [u8], &'a [u8]);
    type Case<'a> = (Sets<'a>, Sets<'a>, &'a [(EventKind, u8)]);

    #[test]
    fn each_change_of_a_configuration_is_its_event() {
        let table: [Case<'_>; 8] = [
            ((&[1, 2], &[], &[]), (&[1, 2], &[], &[]), &[]),
            ((&[1, 2], &[], &[]), (&[1], &[], &[2]), &[(ReplicaLost, 2)]),
            ((&[1], &[], &[2]), (&[1], &[2], &[]), &[(ReplicaSyncing, 2)]),
            ((&[1], &[2], &[]), (&[1, 2], &[], &[]), &[(ReplicaInSync, 2)]),
            ((&[1], &[2], &[]), (&[1], &[], &[2]), &[(ReplicaLost, 2)]),
            (
                (&[1], &[], &[2]),
                (&[1], &[3], &[]),
                &[(ReplicaRemoved, 2), (ReplicaSyncing, 3)],
            ),
            ((&[1, 2], &[], &[]), (&[1], &[], &[]), &[(ReplicaRemoved, 2)]),
            ((&[1, 2], &[], &[]), (&[2], &[], &[1]), &[(ReplicaLost, 1)]),
        ];
        for (old, new, expected) in table {
            let of = |(a, b, c): Sets<'_>| configuration(a, b, c);
            let expected: Vec<_> = expected.iter().map(|(kind, node)| (*kind, id(*node))).collect();
            assert_eq!(changes(&of(old), &of(new)), expected, "{old:?} {new:?}");
        }
    }

    fn event(recorder: u8, number: u64, second: i64, kind: EventKind, node: u8) -> Event {
        Event {
            number,
            at: Timestamp::from_second(second).unwrap(),
            recorder: id(recorder),
            kind,
            volume: None,
            volume_name: None,
            node: Some(id(node)),
            node_name: None,
            message: String::new(),
        }
    }

    #[test]
    fn what_several_nodes_saw_is_one_event() {
        let lost = EventKind::NodeLost;
        let merged = merge(vec![
            event(3, 7, 105, lost, 1),
            event(2, 1, 104, lost, 1),
            event(2, 2, 110, EventKind::NodeBack, 1),
            event(2, 3, 111, lost, 4),
            event(2, 3, 111, lost, 4),
            event(3, 9, 200, lost, 1),
            // One node's own two events are two.
            event(3, 10, 201, lost, 1),
        ]);
        let seen: Vec<_> = merged
            .iter()
            .map(|e| (e.recorder.as_bytes()[0], e.number, e.kind))
            .collect();
        assert_eq!(
            seen,
            [
                (2, 1, lost),
                (2, 2, EventKind::NodeBack),
                (2, 3, lost),
                (3, 9, lost),
                (3, 10, lost)
            ]
        );
    }

    #[test]
    fn words_and_json_agree_and_sentences_name_the_node() {
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{kind}\""));
        }
        assert_eq!(
            sentence(EventKind::ReplicaLost, Some("n2"), "disk full"),
            "the copy on n2 is lost: disk full"
        );
        assert_eq!(
            sentence(EventKind::VolumeWritable, None, ""),
            "the volume is writable again"
        );
    }
}
