//! Hostile bytes for what the control store holds, and for the control plane's messages; see [`crate::fuzzing`].

use super::etcd::fuzzing as etcd_words;
use super::export::{self, Export};
use super::kv::{Command, Kv};
use super::plan::{Facts, Timing};
use super::raft::fuzzing as raft_words;
use super::records::{self, Deleted, Key, encode, encode_id};
use super::store::Row;
use super::trust::{AuthorityRecord, TokenRecord, TokenUse};
use super::view::View;
use crate::trust::TokenId;
use crate::volume::{
    ClusterId, Configuration, Failures, Labels, MountClaim, Namespace, Node, NodeId, Volume, VolumeId,
};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) use etcd_words::{etcd, etcd_seeds};
pub(crate) use raft_words::{answer, answer_seeds, raft, raft_seeds, request, request_seeds, values, values_seeds};

const NODES: [NodeId; 3] = [
    NodeId::from_bytes([1; 16]),
    NodeId::from_bytes([2; 16]),
    NodeId::from_bytes([3; 16]),
];

/// A key: what it is of is written as it was read.
pub(crate) fn key(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let Some(key) = Key::parse(text) else {
        return false;
    };
    // Ids may be written in several ways.
    assert_eq!(Key::parse(&key.text()), Some(key));
    true
}

pub(crate) fn key_seeds() -> Vec<Vec<u8>> {
    let keys = [
        Key::Cluster,
        Key::Authority,
        Key::Namespace("n".into()),
        Key::Node(NODES[0]),
        Key::Volume(VolumeId::from_bytes([4; 16])),
        Key::Live(NODES[0]),
        Key::Deleted(NODES[0]),
        Key::Token(TokenId([7; 8])),
    ];
    keys.iter().map(|key| key.text().into_bytes()).collect()
}

fn one<T: Serialize + DeserializeOwned>(text: &str) -> bool {
    let Some(record) = records::decode::<T>("k", text) else {
        return false;
    };
    let written = encode(&record);
    let again: T = records::decode("k", &written).expect("a record that was written can be read");
    assert_eq!(encode(&again), written);
    true
}

/// A record, the first byte says of what.
pub(crate) fn record(input: &[u8]) -> bool {
    let Some((kind, text)) = input.split_first() else {
        return false;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    match kind {
        0 => records::decode::<ClusterId>("cluster", text).is_some_and(|id| {
            assert_eq!(records::decode("cluster", &encode_id(&id)), Some(id));
            true
        }),
        1 => one::<Volume>(text),
        2 => one::<Node>(text),
        3 => one::<Namespace>(text),
        4 => one::<Deleted>(text),
        5 => one::<TokenRecord>(text),
        6 => {
            if let Some(issuer) = super::trust::issuer_of(ClusterId::from_bytes([2; 16]), text) {
                let _ = issuer.certify(NODES[0]);
            }
            one::<AuthorityRecord>(text)
        }
        _ => false,
    }
}

fn volume() -> Volume {
    let failures = Failures {
        count: 2,
        last: Timestamp::UNIX_EPOCH,
    };
    Volume {
        id: VolumeId::from_bytes([4; 16]),
        namespace: "default".into(),
        name: "v".into(),
        description: String::new(),
        size: 1 << 30,
        labels: Labels::from([
            ("storageos.com/replicas".into(), "2".into()),
            ("storageos.com/hint.master".into(), "n1".into()),
        ]),
        node_selector: "a=b".into(),
        configuration: Configuration {
            epoch: 5,
            master: Some(NODES[0]),
            in_sync: BTreeSet::from([NODES[0]]),
            syncing: BTreeSet::from([NODES[1]]),
            lost: BTreeMap::from([(NODES[2], Timestamp::UNIX_EPOCH)]),
            established: 1,
            failures: BTreeMap::from([(NODES[2], failures)]),
        },
        formatted: true,
        mount: Some(MountClaim {
            node: NODES[1],
            mountpoint: "/mnt".into(),
            mounted_at: Timestamp::UNIX_EPOCH,
            read_only: false,
        }),
        mounts: 3,
        created_at: Timestamp::UNIX_EPOCH,
    }
}

fn node(number: usize) -> Node {
    Node {
        id: NODES[number],
        name: format!("n{number}"),
        address: "10.0.0.1:5703".into(),
        labels: Labels::from([("a".into(), "b".into())]),
        cordoned: false,
        drained: number == 2,
        capacity: 1 << 40,
        free: 1 << 39,
        version: "0.1.0".into(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let namespace = Namespace {
        name: "default".into(),
        display_name: String::new(),
        description: String::new(),
        labels: Labels::new(),
        created_at: Timestamp::UNIX_EPOCH,
    };
    let deleted = Deleted {
        name: "n".into(),
        at: Timestamp::UNIX_EPOCH,
    };
    let token = TokenRecord {
        secret_hash: "ab".into(),
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::UNIX_EPOCH,
        uses: 1,
        used: vec![TokenUse {
            node: NODES[0],
            key: "cd".into(),
            at: Timestamp::UNIX_EPOCH,
        }],
    };
    let texts = [
        encode_id(&ClusterId::from_bytes([2; 16])),
        encode(&volume()),
        encode(&node(0)),
        encode(&namespace),
        encode(&deleted),
        encode(&token),
        r#"{"v":1,"certificate":"AAAA","key":"AAAA","validitySeconds":9,"renewals":0}"#.to_owned(),
    ];
    // Seven kinds.
    let numbered = |(kind, text): (usize, String)| [&[kind as u8], text.as_bytes()].concat();
    texts.into_iter().enumerate().map(numbered).collect()
}

/// What the controller makes of records that are anything: rows as lines of key, a space, value.
pub(crate) fn plan(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let rows: Vec<Row> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(key, value)| Row {
            key: key.to_owned(),
            value: value.to_owned(),
            revision: 1,
            lease: None,
        })
        .collect();
    let view = View::of_rows(&rows, 1);
    let dead_since = view.nodes.keys().map(|id| (*id, Timestamp::UNIX_EPOCH)).collect();
    for now in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
        let facts = Facts {
            view: &view,
            dead_since: &dead_since,
            now,
        };
        for action in super::plan::plan(&facts, &Timing::default(), 7) {
            let _ = format!("{action:?}");
        }
        for id in view.nodes.keys() {
            let _ = super::drain::remaining(&view, *id);
        }
    }
    !view.volumes.is_empty()
}

pub(crate) fn plan_seeds() -> Vec<Vec<u8>> {
    let mut lines = vec![
        (Key::Volume(volume().id).text(), encode(&volume())),
        (Key::Live(NODES[0]).text(), encode_id(&NODES[0])),
        (Key::Live(NODES[1]).text(), encode_id(&NODES[1])),
        (Key::Deleted(NODES[2]).text(), "{}".to_owned()),
    ];
    lines.extend((0..3).map(|number| (Key::Node(NODES[number]).text(), encode(&node(number)))));
    let text = |lines: &[(String, String)]| {
        let lines: Vec<String> = lines.iter().map(|(key, value)| format!("{key} {value}")).collect();
        lines.join("\n").into_bytes()
    };
    vec![text(&lines), text(&lines[..2])]
}

/// An exported file, as it is and with its checksum made right.
pub(crate) fn export(input: &[u8]) -> bool {
    let _ = Export::parse(input);
    let Some(sealed) = export::sealed(input) else {
        return false;
    };
    let export = Export::parse(&sealed).expect("its checksum is right");
    let _ = export.address(NODES[0]);
    let text = serde_json::to_vec(&export).expect("what was read can be written");
    assert_eq!(Export::parse(&text), Ok(export));
    true
}

pub(crate) fn export_seeds() -> Vec<Vec<u8>> {
    let key = Key::Node(NODES[0]).text();
    let file = serde_json::json!({
        "format": 1, "cluster": "02020202-0202-0202-0202-020202020202",
        "records": {key: encode(&node(0))}, "checksum": "",
    });
    vec![file.to_string().into_bytes()]
}

/// Commands for the state machine, one after the other, as a node may propose them.
pub(crate) fn commands(input: &[u8]) -> bool {
    let (mut kv, mut rest) = (Kv::default(), input);
    let mut understood = false;
    while let Ok((command, after)) = postcard::take_from_bytes::<Command>(rest) {
        understood = true;
        rest = after;
        if !command.may_be_proposed() {
            continue;
        }
        let before = kv.revision();
        kv.apply(&command);
        assert!(kv.revision() >= before);
        assert!(kv.events("", kv.revision()).is_ok());
    }
    understood
}

pub(crate) fn commands_seeds() -> Vec<Vec<u8>> {
    let commands = raft_words::sample_commands();
    let bytes = commands
        .iter()
        .map(|c| postcard::to_allocvec(c).expect("ours can be encoded"));
    vec![bytes.collect::<Vec<_>>().concat()]
}
