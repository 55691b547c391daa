//! Hostile bytes for what etcd says; see [`crate::fuzzing`].

use super::words::{Lease, Range, Streamed, Txn, Watched};

const PREFIX: &str = "/storageos/records/";

/// An answer of etcd's, the first byte says to what.
pub(crate) fn etcd(input: &[u8]) -> bool {
    let Some((kind, text)) = input.split_first() else {
        return false;
    };
    let rows = |range: &Range| range.kvs.iter().map(|kv| kv.row(PREFIX)).filter(Result::is_ok).count();
    match kind {
        0 => serde_json::from_slice::<Range>(text).is_ok_and(|range| rows(&range) > 0),
        1 => serde_json::from_slice::<Txn>(text)
            .is_ok_and(|txn| txn.ranges().map(|range| rows(&range)).sum::<usize>() > 0),
        2 => serde_json::from_slice::<Lease>(text).is_ok(),
        3 => serde_json::from_slice::<Streamed<Watched>>(text)
            .is_ok_and(|watched| watched.result().is_ok_and(|watched| watched.events(PREFIX).is_ok())),
        4 => serde_json::from_slice::<Streamed<Lease>>(text).is_ok_and(|lease| lease.result().is_ok()),
        _ => false,
    }
}

pub(crate) fn etcd_seeds() -> Vec<Vec<u8>> {
    // The key is /storageos/records/cluster.
    let row = r#"{"key":"L3N0b3JhZ2Vvcy9yZWNvcmRzL2NsdXN0ZXI=","value":"e30=","mod_revision":"5","lease":"7"}"#;
    let texts = [
        format!(r#"{{"kvs":[{row}],"more":true}}"#),
        format!(
            r#"{{"header":{{"revision":"5"}},"succeeded":true,"responses":[{{"response_range":{{"kvs":[{row}]}}}}]}}"#
        ),
        r#"{"ID":"7","TTL":"5"}"#.to_owned(),
        format!(r#"{{"result":{{"header":{{"revision":"5"}},"events":[{{"type":"DELETE","kv":{row}}}]}}}}"#),
        r#"{"result":{"ID":"7","TTL":"5"}}"#.to_owned(),
    ];
    // Five kinds.
    let numbered = |(kind, text): (usize, String)| [&[kind as u8], text.as_bytes()].concat();
    texts.into_iter().enumerate().map(numbered).collect()
}
