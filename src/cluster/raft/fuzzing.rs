//! Hostile bytes for the control plane's messages and for what it keeps; see [`crate::fuzzing`].

use super::machine::{self, State};
use super::service::{ControlRequest, ControlResponse, Incarnation, Refusal};
use super::types::{Entry, LogId, TypeConfig};
use crate::cluster::kv::{Answer, Command};
use crate::cluster::store::{Change, Compare, Transaction};
use crate::rpc;
use crate::volume::{ClusterId, NodeId};
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload, Membership, SnapshotMeta, Vote};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const NODE: NodeId = NodeId::from_bytes([1; 16]);

/// A call.
pub(crate) fn request(input: &[u8]) -> bool {
    rpc::fuzzing::request::<ControlRequest>(input)
}

/// An answer.
pub(crate) fn answer(input: &[u8]) -> bool {
    rpc::fuzzing::answer::<ControlResponse>(input)
}

/// A value in postcard: comes back as it was read.
fn postcard<T: Serialize + DeserializeOwned>(input: &[u8]) -> bool {
    let Ok(value) = postcard::from_bytes::<T>(input) else {
        return false;
    };
    let bytes = postcard::to_allocvec(&value).expect("what was decoded can be encoded");
    let again: T = postcard::from_bytes(&bytes).expect("what was encoded can be decoded");
    assert_eq!(postcard::to_allocvec(&again).expect("and encoded again"), bytes);
    true
}

/// The bytes of Raft's own within a message, the first byte says which.
pub(crate) fn raft(input: &[u8]) -> bool {
    type Answered<T, E = openraft::error::Infallible> = Result<T, RaftError<NodeId, E>>;
    let Some((kind, input)) = input.split_first() else {
        return false;
    };
    match kind {
        0 => postcard::<AppendEntriesRequest<TypeConfig>>(input),
        1 => postcard::<VoteRequest<NodeId>>(input),
        2 => postcard::<InstallSnapshotRequest<TypeConfig>>(input),
        3 => postcard::<Answered<AppendEntriesResponse<NodeId>>>(input),
        4 => postcard::<Answered<VoteResponse<NodeId>>>(input),
        5 => postcard::<Answered<InstallSnapshotResponse<NodeId>, InstallSnapshotError>>(input),
        6 => machine::decode(input).is_ok(),
        _ => false,
    }
}

/// What `raft.redb` has, the first byte says of what.
pub(crate) fn values(input: &[u8]) -> bool {
    let Some((kind, input)) = input.split_first() else {
        return false;
    };
    match kind {
        0 => postcard::<Entry>(input),
        1 => postcard::<Vote<NodeId>>(input),
        2 => postcard::<Option<LogId>>(input),
        3 => postcard::<Incarnation>(input),
        4 => postcard::<Vec<String>>(input),
        5 => postcard::<machine::Stored>(input),
        6 => postcard::<State>(input),
        _ => false,
    }
}

fn transaction() -> Transaction {
    Transaction {
        compares: vec![Compare {
            key: "a".into(),
            revision: 3,
        }],
        changes: vec![
            Change::Put {
                key: "a".into(),
                value: "{}".into(),
                lease: Some(1),
            },
            Change::Delete { key: "b".into() },
        ],
    }
}

/// Commands, each of some kind.
pub(in crate::cluster) fn sample_commands() -> Vec<Command> {
    vec![
        Command::Grant(Duration::from_secs(5)),
        Command::Transact(Transaction {
            compares: vec![],
            ..transaction()
        }),
        Command::Transact(transaction()),
        Command::Revoke(1),
        Command::Recovered(1),
    ]
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let of = Incarnation { number: 1, id: 2 };
    let mut calls = vec![
        ControlRequest::AppendEntries {
            to: NODE,
            of,
            request: vec![1, 2, 3].into(),
        },
        ControlRequest::ReadIndex {},
        ControlRequest::KeepAlive { lease: 1 },
        ControlRequest::Join {
            node: NODE,
            address: "a:1".into(),
        },
        ControlRequest::Retire { node: NODE },
        ControlRequest::Remove { node: NODE },
        ControlRequest::Standing { asker: NODE },
        ControlRequest::Ping {},
    ];
    let proposals = sample_commands().into_iter();
    calls.extend(proposals.map(|command| ControlRequest::Propose { command }));
    calls.into_iter().map(rpc::fuzzing::request_seed).collect()
}

pub(crate) fn answer_seeds() -> Vec<Vec<u8>> {
    let answers = vec![
        ControlResponse::AppendEntries(Ok(vec![1, 2, 3].into())),
        ControlResponse::Vote(Err("no".into())),
        ControlResponse::Propose(Ok(Answer::Granted(5))),
        ControlResponse::Propose(Err(Refusal::NotLeader(Some("a:1".into())))),
        ControlResponse::Join(Ok(ClusterId::from_bytes([2; 16]))),
        ControlResponse::Ping(()),
    ];
    answers.into_iter().map(rpc::fuzzing::answer_seed).collect()
}

fn entries() -> Vec<Entry> {
    let members = BTreeMap::from([(NODE, BasicNode::new("a:1"))]);
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Command::Transact(transaction())),
        EntryPayload::Membership(Membership::new(vec![BTreeSet::from([NODE])], members)),
    ];
    let entry = |(index, payload)| Entry {
        log_id: LogId::new(CommittedLeaderId::new(2, NODE), index),
        payload,
    };
    (5..).zip(payloads).map(entry).collect()
}

fn numbered<T: Serialize>(kind: u8, value: &T) -> Vec<u8> {
    let mut seed = vec![kind];
    seed.extend(postcard::to_allocvec(value).expect("ours can be encoded"));
    seed
}

fn state() -> State {
    let mut state = State::default();
    for command in sample_commands() {
        state.kv.apply(&command);
    }
    state
}

fn stored() -> machine::Stored {
    machine::Stored {
        meta: SnapshotMeta {
            last_log_id: entries().first().map(|entry| entry.log_id),
            snapshot_id: "s".into(),
            ..SnapshotMeta::default()
        },
        state: postcard::to_allocvec(&state()).expect("ours can be encoded"),
    }
}

pub(crate) fn raft_seeds() -> Vec<Vec<u8>> {
    let vote = Vote::new_committed(2, NODE);
    let last = entries().first().map(|entry| entry.log_id);
    let append: AppendEntriesRequest<TypeConfig> = AppendEntriesRequest {
        vote,
        prev_log_id: last,
        entries: entries(),
        leader_commit: last,
    };
    let install: InstallSnapshotRequest<TypeConfig> = InstallSnapshotRequest {
        vote,
        meta: stored().meta,
        offset: 0,
        data: stored().state,
        done: true,
    };
    let appended: Result<_, RaftError<NodeId>> = Ok(AppendEntriesResponse::<NodeId>::Success);
    vec![
        numbered(0, &append),
        numbered(1, &VoteRequest::new(vote, last)),
        numbered(2, &install),
        numbered(3, &appended),
        numbered(6, &state()),
    ]
}

pub(crate) fn values_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = entries().iter().map(|entry| numbered(0, entry)).collect();
    seeds.extend([
        numbered(1, &Vote::new(2, NODE)),
        numbered(2, &entries().first().map(|entry| entry.log_id)),
        numbered(3, &Incarnation { number: 1, id: 2 }),
        numbered(4, &vec!["a:1".to_owned()]),
        numbered(5, &stored()),
        numbered(6, &state()),
    ]);
    seeds
}
