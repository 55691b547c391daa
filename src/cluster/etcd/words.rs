//! The words of etcd's JSON (its gRPC gateway, `/v3/…`): requests built, answers read. Pure.
//!
//! Keys and values are base64, 64-bit numbers are text, fields with their zero value are left out. Only what is used here is read.

use crate::cluster::store::{Event, Row};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// What etcd said cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("etcd's answer cannot be read: {0}")]
pub(super) struct Unreadable(pub(super) String);

/// Bytes as base64.
pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn number<'de, D: Deserializer<'de>, T: TryFrom<i128>>(from: D) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Number(i64),
    }
    let wide: i128 = match Form::deserialize(from)? {
        Form::Text(text) => text.parse().map_err(serde::de::Error::custom)?,
        Form::Number(number) => number.into(),
    };
    T::try_from(wide).map_err(|_| serde::de::Error::custom("a number out of range"))
}

/// Of every answer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(super) revision: u64,
}

/// A key and its value.
#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default, deserialize_with = "number")]
    mod_revision: u64,
    #[serde(default, deserialize_with = "number")]
    lease: u64,
}

fn text(encoded: &str) -> Result<String, Unreadable> {
    let bytes = STANDARD.decode(encoded).map_err(|e| Unreadable(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| Unreadable("a key or value is not text".to_owned()))
}

impl KeyValue {
    /// As a row; `prefix` is taken from its key.
    pub(super) fn row(&self, prefix: &str) -> Result<Row, Unreadable> {
        let key = text(&self.key)?;
        let key = key
            .strip_prefix(prefix)
            .ok_or_else(|| Unreadable(format!("key {key} was not asked for")))?;
        Ok(Row {
            key: key.to_owned(),
            value: text(&self.value)?,
            revision: self.mod_revision,
            lease: (self.lease != 0).then_some(self.lease),
        })
    }
}

/// Of a range.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Range {
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Response {
    response_range: Option<Range>,
}

/// Of a transaction.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Txn {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

impl Txn {
    /// The ranges among its requests, in order.
    pub(super) fn ranges(self) -> impl Iterator<Item = Range> {
        self.responses.into_iter().filter_map(|r| r.response_range)
    }
}

/// Of a grant, a keepalive.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Lease {
    #[serde(default, rename = "ID", deserialize_with = "number")]
    pub(super) id: u64,
    /// Negative or none: there is no such lease.
    #[serde(default, rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: i64,
}

/// One message of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    error: Option<Value>,
}

impl<T> Streamed<T> {
    pub(super) fn result(self) -> Result<T, String> {
        match (self.result, self.error) {
            (Some(result), None) => Ok(result),
            (_, Some(error)) => Err(match error.get("message").and_then(Value::as_str) {
                Some(message) => message.to_owned(),
                None => error.to_string(),
            }),
            (None, None) => Err("an empty message".to_owned()),
        }
    }
}

/// Of a watch.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Watched {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) created: bool,
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default, deserialize_with = "number")]
    pub(super) compact_revision: u64,
    #[serde(default)]
    pub(super) cancel_reason: String,
    #[serde(default)]
    events: Vec<WatchedEvent>,
}

#[derive(Debug, Deserialize)]
struct WatchedEvent {
    #[serde(default, rename = "type")]
    kind: String,
    kv: KeyValue,
}

impl Watched {
    /// Its events; `prefix` is taken from the keys.
    pub(super) fn events(&self, prefix: &str) -> Result<Vec<Event>, Unreadable> {
        let event = |event: &WatchedEvent| {
            let row = event.kv.row(prefix)?;
            Ok(Event {
                key: row.key.clone(),
                revision: row.revision,
                row: (event.kind != "DELETE").then_some(row),
            })
        };
        self.events.iter().map(event).collect()
    }
}

/// An error instead of an answer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Failure {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) code: u32,
}

/// The first key after all that begin with `prefix`, which is not empty.
fn after_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // The bytes of text are never 0xff.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A request within a transaction: one key.
pub(super) fn get(key: &str) -> Value {
    json!({"request_range": {"key": encode(key)}})
}

/// The same: keys that begin with `prefix`, from `start` on, at most `limit`; as of `revision`, or of now.
pub(super) fn page(prefix: &str, start: &[u8], limit: usize, revision: Option<u64>) -> Value {
    json!({"request_range": {
        "key": encode(start),
        "range_end": encode(after_prefix(prefix)),
        "limit": limit.to_string(),
        "revision": revision.unwrap_or(0).to_string(),
    }})
}

/// The same: sets a key.
pub(super) fn put(key: &str, value: &str, lease: Option<u64>) -> Value {
    json!({"request_put": {"key": encode(key), "value": encode(value), "lease": lease.unwrap_or(0).to_string()}})
}

/// The same: removes a key.
pub(super) fn delete(key: &str) -> Value {
    json!({"request_delete_range": {"key": encode(key)}})
}

/// A comparison: the key's last change was at this revision; 0: there is no such key.
pub(super) fn at_revision(key: &str, revision: u64) -> Value {
    json!({"key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string()})
}

/// A comparison: the key's value is this.
pub(super) fn has_value(key: &str, value: &str) -> Value {
    json!({"key": encode(key), "target": "VALUE", "result": "EQUAL", "value": encode(value)})
}

/// The request of a watch of keys that begin with `prefix`, from a revision on.
pub(super) fn watch(prefix: &str, from: u64) -> Value {
    json!({"create_request": {
        "key": encode(prefix),
        "range_end": encode(after_prefix(prefix)),
        "start_revision": from.to_string(),
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_etcd_writes_them() {
        let txn: Txn = serde_json::from_str(concat!(
            r#"{"header":{"cluster_id":"1","revision":"12","raft_term":"2"},"succeeded":true,"responses":["#,
            r#"{"response_put":{"header":{"revision":"12"}}},{"response_range":{"header":{"revision":"12"},"kvs":["#,
            r#"{"key":"L3MvYQ==","create_revision":"2","mod_revision":"7","version":"1","value":"dg==","lease":"9"},"#,
            r#"{"key":"L3MvYg==","mod_revision":8}],"more":true,"count":"3"}}]}"#
        ))
        .unwrap();
        assert_eq!((txn.header.revision, txn.succeeded), (12, true));
        let range = txn.ranges().next().unwrap();
        assert!(range.more);
        let rows: Vec<Row> = range.kvs.iter().map(|kv| kv.row("/s/").unwrap()).collect();
        let row = |key: &str, value: &str, revision, lease| Row {
            key: key.into(),
            value: value.into(),
            revision,
            lease,
        };
        assert_eq!(rows, [row("a", "v", 7, Some(9)), row("b", "", 8, None)]);
        assert!(range.kvs[0].row("/other/").is_err());

        let text = r#"{"result":{"header":{"revision":"5"},"events":[{"kv":{"key":"L3MvYQ==","mod_revision":"5"}},{"type":"DELETE","kv":{"key":"L3MvYg==","mod_revision":"5"}}]}}"#;
        let watched: Streamed<Watched> = serde_json::from_str(text).unwrap();
        let events = watched.result().unwrap().events("/s/").unwrap();
        assert_eq!((events[0].key.as_str(), events[0].row.is_some()), ("a", true));
        assert_eq!(
            (events[1].key.as_str(), events[1].row.is_some(), events[1].revision),
            ("b", false, 5)
        );

        let text = r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}"#;
        let failed: Streamed<Watched> = serde_json::from_str(text).unwrap();
        assert_eq!(failed.result().unwrap_err(), "etcdserver: no leader");
    }

    #[test]
    fn what_etcd_would_never_say_is_an_error_and_no_panic() {
        for text in [
            r#"{"header":{"revision":"-1"}}"#,
            r#"{"header":{"revision":"x"}}"#,
            r#"{"header":{"revision":"99999999999999999999999"}}"#,
            r#"{"responses":7}"#,
        ] {
            assert!(serde_json::from_str::<Txn>(text).is_err(), "{text}");
        }
        for key in ["*", "/w=="] {
            let kv: KeyValue = serde_json::from_value(json!({"key": key})).unwrap();
            assert!(kv.row("").is_err());
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_beyond_it() {
        assert_eq!(after_prefix("/a/"), b"/a0");
        assert!(after_prefix("ü").as_slice() > "ü~".as_bytes());
    }
}
