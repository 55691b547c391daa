//! Hostile bytes for what nodes say to each other, what mount helpers say, and the files of a data directory; see [`crate::fuzzing`].

use super::admission::{Enrol, Enrolled};
use super::data_dir::DataDir;
use super::diagnostics::Diagnosis;
use super::journal;
use super::kept::Note;
use super::redact;
use super::scrubber::Pass;
use super::service::{NodeServiceRequest, NodeServiceResponse, Refused, Runtime};
use crate::api::ApiError;
use crate::os::process::Stat;
use crate::rpc;
use crate::volume::{Event, EventKind, NodeId, VolumeId};
use jiff::Timestamp;
use mount_helper::options::MountOptions;
use mount_helper::protocol::{self, Answer, Request};
use mount_helper::record::Record;
use mount_helper::{mountinfo, utab};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const VOLUME: VolumeId = VolumeId::from_bytes([4; 16]);
const NODE: NodeId = NodeId::from_bytes([1; 16]);

/// A call.
pub(crate) fn request(input: &[u8]) -> bool {
    rpc::fuzzing::request::<NodeServiceRequest>(input)
}

/// An answer.
pub(crate) fn answer(input: &[u8]) -> bool {
    rpc::fuzzing::answer::<NodeServiceResponse>(input)
}

fn event() -> Event {
    Event {
        number: 7,
        at: Timestamp::UNIX_EPOCH,
        recorder: NODE,
        kind: EventKind::ALL[0],
        volume: Some(VOLUME),
        volume_name: Some("default/v".into()),
        node: None,
        node_name: None,
        message: "something happened".into(),
    }
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let calls = [
        NodeServiceRequest::Runtime { volumes: vec![VOLUME] },
        NodeServiceRequest::Ends {
            volume: VOLUME,
            wait_ms: 5,
        },
        NodeServiceRequest::Unmount {
            volume: VOLUME,
            force: true,
        },
        NodeServiceRequest::Events {
            since: Some(Timestamp::UNIX_EPOCH),
        },
        NodeServiceRequest::Reach {
            nodes: BTreeMap::from([(NODE, "a:1".to_owned())]),
        },
        NodeServiceRequest::Check {
            volume: VOLUME,
            mounted: true,
            mounts: 3,
        },
        NodeServiceRequest::Diagnose {},
    ];
    calls.into_iter().map(rpc::fuzzing::request_seed).collect()
}

pub(crate) fn answer_seeds() -> Vec<Vec<u8>> {
    let refused = || Refused::from(ApiError::unavailable("not now"));
    let answers = [
        NodeServiceResponse::Runtime(BTreeMap::from([(VOLUME, Runtime::default())])),
        NodeServiceResponse::Unmount(Err(refused())),
        NodeServiceResponse::Events(vec![event()]),
        NodeServiceResponse::Diagnose(Ok(vec![1, 2, 3].into())),
        NodeServiceResponse::Ping(()),
    ];
    answers.into_iter().map(rpc::fuzzing::answer_seed).collect()
}

/// What a stranger says who wants a certificate, or what it is answered.
pub(crate) fn enrol(input: &[u8]) -> bool {
    postcard::from_bytes::<Enrol>(input).is_ok() | postcard::from_bytes::<Result<Enrolled, Refused>>(input).is_ok()
}

pub(crate) fn enrol_seeds() -> Vec<Vec<u8>> {
    let request = Enrol {
        token: [1; 8],
        secret: [2; 16],
        node: NODE,
        public: vec![4; 65],
    };
    let refused: Result<Enrolled, Refused> = Err(ApiError::unavailable("not now").into());
    [postcard::to_allocvec(&request), postcard::to_allocvec(&refused)]
        .map(|bytes| bytes.expect("ours can be encoded"))
        .to_vec()
}

fn line<T: Serialize + DeserializeOwned>(input: &[u8]) -> bool {
    let Ok(words) = protocol::parse::<T>(input) else {
        return false;
    };
    let written = protocol::line(&words).expect("what was read can be written");
    let again: T = protocol::parse(&written).expect("what was written can be read");
    assert_eq!(protocol::line(&again).ok(), Some(written));
    true
}

/// A line of a mount helper, or of a daemon to it.
pub(crate) fn helper(input: &[u8]) -> bool {
    line::<Request>(input) | line::<Answer>(input)
}

pub(crate) fn helper_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"v":1,"op":"mount","volume":"default/vol","mountpoint":"/mnt","read_only":false}"#,
        r#"{"v":1,"op":"fd"}"#,
        r#"{"v":1,"op":"closed","volume":"default/vol","mountpoint":"/mnt","wait_ms":5}"#,
        r#"{"v":1,"answer":"ready","volume":"default/vol"}"#,
        r#"{"v":1,"answer":"error","message":"it is mounted on n2","code":"in_use"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The mount table; libmount's notes, which hold a mount's line once after it was added; the notes of mounts.
pub(crate) fn tables(input: &[u8]) -> bool {
    let mounts = mountinfo::parse(&String::from_utf8_lossy(input));
    for mount in &mounts {
        let _ = mountinfo::still_shared(&mounts, mount, &mounts[1..]);
    }
    // Half of it is the file, half a path.
    let (old, path) = input.split_at(input.len() / 2);
    let mountpoint = Path::new(OsStr::from_bytes(path));
    let added = utab::added(old, "default/v", mountpoint);
    assert_eq!(utab::added(&added, "default/v", mountpoint), added);
    let removed = utab::removed(&added, mountpoint);
    assert!(removed.starts_with(&utab::removed(old, mountpoint)));
    let _ = serde_json::from_slice::<Record>(input);
    !mounts.is_empty()
}

pub(crate) fn tables_seeds() -> Vec<Vec<u8>> {
    [
        "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n50 22 0:44 / /mnt/a\\040b rw shared:5 - fuse.storageos default/vol rw\n",
        "50 22 0:44 / /m rw - t SRC=default/w TARGET=/mnt/a\\040b ROOT=/ OPTS=_netdev\n/mnt/a b",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The options of mount(8).
pub(crate) fn options(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let mut options = MountOptions::default();
    let understood = options.add(text, false).is_ok();
    assert!(!understood || MountOptions::default().add(text, true).is_ok());
    understood
}

pub(crate) fn options_seeds() -> Vec<Vec<u8>> {
    vec![b"rw,noatime,_netdev,x-a=b,timeout=5,readahead=4,socket=/s,remount".to_vec()]
}

/// Files of a node and of the system, the first byte says which.
pub(crate) fn files(input: &[u8]) -> bool {
    let Some((kind, text)) = input.split_first() else {
        return false;
    };
    match kind {
        0 => {
            let _ = DataDir::check(Path::new("node.json"), text, None);
            DataDir::sealed(text).is_some_and(|sealed| DataDir::check(Path::new("node.json"), &sealed, None).is_ok())
        }
        1 => {
            let mut events = VecDeque::new();
            journal::read_lines(text, &mut events).is_ok() && !events.is_empty()
        }
        2 => Note::parse(text).is_ok(),
        3 => serde_json::from_slice::<BTreeMap<VolumeId, Pass>>(text).is_ok(),
        4 => Diagnosis::unpack(text).is_ok(),
        5 => std::str::from_utf8(text)
            .ok()
            .and_then(|text| {
                let _ = redact::line(text);
                Stat::of(text)?.started()
            })
            .is_some(),
        _ => false,
    }
}

pub(crate) fn files_seeds() -> Vec<Vec<u8>> {
    let numbered = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let node = r#"{"format":1,"id":"01010101-0101-0101-0101-010101010101","name":"n1","cluster":null,"checksum":""}"#;
    let note = concat!(
        r#"{"v":1,"volume":"04040404-0404-0404-0404-040404040404","name":"default/v","mountpoint":"/mnt","readOnly":false,"#,
        r#""mountedAt":"1970-01-01T00:00:00Z","greeting":[1,2]}"#
    );
    let stat = "7 (a) b) S 1 7 7 0 -1 4 1 0 0 0 1 2 0 0 20 0 5 0 99 1 2";
    let mut seeds = vec![
        numbered(0, node.as_bytes()),
        numbered(2, note.as_bytes()),
        numbered(3, b"{}"),
        numbered(5, stat.as_bytes()),
        numbered(
            5,
            br#"{"level":"INFO","message":"token=storageos1_abc","secret":{"a":1}}"#,
        ),
    ];
    seeds.extend(serde_json::to_vec(&event()).map(|line| numbered(1, &line)));
    seeds.extend(Diagnosis::sample().pack().map(|packed| numbered(4, &packed)));
    seeds
}
