//! Hostile bytes for the API's words; see [`crate::fuzzing`].

use super::server;
use super::types::{
    CheckRequest, EventFilter, Force, InitRequest, JoinRequest, NamespaceCreate, NodeUpdate, PromoteRequest,
    RecoverRequest, RotateRequest, ScrubRequest, TokenCreate, VerifyRequest, VolumeCreate, VolumeFilter, VolumeUpdate,
};
use axum::body::Bytes;
use serde::{Serialize, de::DeserializeOwned};

fn one<T: Serialize + DeserializeOwned>(text: &[u8]) -> bool {
    let Ok(request) = server::body::<T>(&Bytes::copy_from_slice(text)) else {
        return false;
    };
    let written = serde_json::to_vec(&request).expect("what was read can be written");
    let again: T = server::body(&Bytes::from(written.clone())).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
    true
}

/// A request's body, the first byte says of which.
pub(crate) fn body(input: &[u8]) -> bool {
    let Some((kind, text)) = input.split_first() else {
        return false;
    };
    match kind {
        0 => one::<InitRequest>(text) | one::<RotateRequest>(text) | one::<RecoverRequest>(text),
        1 => one::<JoinRequest>(text),
        2 => one::<TokenCreate>(text),
        3 => one::<NodeUpdate>(text),
        4 => one::<NamespaceCreate>(text),
        5 => one::<VolumeCreate>(text),
        6 => one::<VolumeUpdate>(text),
        7 => one::<VerifyRequest>(text),
        8 => one::<PromoteRequest>(text),
        9 => one::<ScrubRequest>(text) | one::<CheckRequest>(text),
        _ => false,
    }
}

pub(crate) fn body_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "{}",
        r#"{"address":"10.0.0.1:5703","token":"storageos1_x"}"#,
        r#"{"ttlSeconds":900,"uses":3}"#,
        r#"{"cordoned":true,"drained":false,"labelAdd":{"a":"b"},"labelRemove":["c"]}"#,
        r#"{"name":"n","displayName":"N","description":"d","labels":{"a":"b"}}"#,
        r#"{"namespace":"default","name":"v","size":1073741824,"labels":{"storageos.com/replicas":"2"},"nodeSelector":"a=b"}"#,
        r#"{"description":"d","size":1073741824,"labelAdd":{"a":"b"},"labelRemove":["c"],"force":true,"epoch":4}"#,
        r#"{"deep":true}"#,
        r#"{"copy":"n1","acceptDataLoss":true}"#,
        "",
    ];
    // Ten kinds.
    let numbered = |(kind, text): (usize, &str)| [&[kind as u8], text.as_bytes()].concat();
    texts.into_iter().enumerate().map(numbered).collect()
}

/// A query, the first byte says of which.
pub(crate) fn query(input: &[u8]) -> bool {
    let Some((kind, text)) = input.split_first() else {
        return false;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    match kind {
        0 => server::query::<Force>(Some(text)).is_ok(),
        1 => server::query::<VolumeFilter>(Some(text)).is_ok(),
        2 => server::query::<EventFilter>(Some(text)).is_ok(),
        _ => false,
    }
}

pub(crate) fn query_seeds() -> Vec<Vec<u8>> {
    [
        "\0force=true",
        "\x01namespace=a&selector=b%3Dc%2Cd%21%3De",
        "\x02volume=a%2Fb&node=n1&since=2026-01-31T12%3A00%3A00Z",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
