//! Keys and values of the control store: which record is where, as versioned JSON.
//!
//! Unknown fields are kept out of the way, so that a newer daemon may add some; a higher version is refused.

use crate::trust::{ClientId, TokenId};
use crate::volume::{NodeId, VolumeId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const VERSION: u32 = 1;

/// A record with its version beside its fields.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    #[serde(flatten)]
    record: T,
}

#[derive(Serialize, Deserialize)]
struct Id<T> {
    id: T,
}

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Cluster,
    Namespace(String),
    Node(NodeId),
    Volume(VolumeId),
    /// Goes with the node's lease.
    Live(NodeId),
    /// A node that was deleted and may not come back.
    Deleted(NodeId),
    /// The CA.
    Authority,
    /// Leave to join.
    Token(TokenId),
    /// Leave to use the API over the network.
    Client(ClientId),
}

/// What stays of a deleted node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Deleted {
    pub(super) name: String,
    pub(super) at: jiff::Timestamp,
}

/// The prefix under which names are reserved; see [`name_key`].
const NAMES: &str = "names/";

impl Key {
    pub(super) fn parse(key: &str) -> Option<Self> {
        match key.split_once('/') {
            None if key == "cluster" => Some(Self::Cluster),
            None if key == "authority" => Some(Self::Authority),
            Some(("namespaces", name)) => Some(Self::Namespace(name.to_owned())),
            Some(("nodes", id)) => id.parse().ok().map(Self::Node),
            Some(("volumes", id)) => id.parse().ok().map(Self::Volume),
            Some(("live", id)) => id.parse().ok().map(Self::Live),
            Some(("deleted", id)) => id.parse().ok().map(Self::Deleted),
            Some(("tokens", id)) => id.parse().ok().map(Self::Token),
            Some(("clients", id)) => id.parse().ok().map(Self::Client),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Cluster => "cluster".into(),
            Self::Authority => "authority".into(),
            Self::Token(id) => format!("tokens/{id}"),
            Self::Client(id) => format!("clients/{id}"),
            Self::Namespace(name) => format!("namespaces/{name}"),
            Self::Node(id) => format!("nodes/{id}"),
            Self::Volume(id) => format!("volumes/{id}"),
            Self::Live(id) => format!("live/{id}"),
            Self::Deleted(id) => format!("deleted/{id}"),
        }
    }
}

/// The key that makes a volume's or a node's name unique: it holds the id of who has it.
pub(super) fn name_key(kind: &str, name: &str) -> String {
    format!("{NAMES}{kind}/{name}")
}

/// A record's value.
pub(super) fn encode<T: Serialize>(record: &T) -> String {
    let value = Versioned { v: VERSION, record };
    // Our records are maps with text keys: they always have a JSON form.
    serde_json::to_string(&value).unwrap_or_default()
}

/// A value that is an id alone.
pub(super) fn encode_id<T: Serialize>(id: &T) -> String {
    encode(&Id { id })
}

/// A value's record; `None`, with a line in the log, if it cannot be read.
pub(super) fn decode<T: DeserializeOwned>(key: &str, value: &str) -> Option<T> {
    #[derive(Deserialize)]
    struct Head {
        v: u32,
    }
    match serde_json::from_str::<Head>(value) {
        Ok(head) if head.v > VERSION => {
            tracing::warn!(key, version = head.v, "a record of a newer version is left out");
            return None;
        }
        _ => {}
    }
    // The cluster's record is an id in a map; the others are maps.
    let read = serde_json::from_str::<Versioned<T>>(value).map(|v| v.record);
    match read.or_else(|e| serde_json::from_str::<Id<T>>(value).map(|id| id.id).map_err(|_| e)) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(key, %error, "a record that cannot be read is left out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{ClusterId, Configuration, Volume};

    #[test]
    fn records_have_their_documented_form() {
        let id = VolumeId::from_bytes([1; 16]);
        let volume = Volume {
            id,
            namespace: "default".into(),
            name: "v".into(),
            description: String::new(),
            size: 5 << 30,
            labels: [("storageos.com/replicas".to_owned(), "2".to_owned())].into(),
            node_selector: String::new(),
            configuration: Configuration::unplaced(),
            formatted: false,
            mount: None,
            mounts: 0,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let text = encode(&volume);
        let expected = concat!(
            r#"{"v":1,"id":"01010101-0101-0101-0101-010101010101","namespace":"default","name":"v","description":"","#,
            r#""size":5368709120,"labels":{"storageos.com/replicas":"2"},"nodeSelector":"","#,
            r#""configuration":{"epoch":0,"master":null,"in_sync":[],"syncing":[],"lost":{},"established":0,"failures":{}},"#,
            r#""formatted":false,"mount":null,"mounts":0,"createdAt":"1970-01-01T00:00:00Z"}"#
        );
        assert_eq!(text, expected);
        assert_eq!(decode::<Volume>("volumes/x", &text), Some(volume));
        let newer = text.replace(r#""v":1"#, r#""v":2"#);
        assert_eq!(decode::<Volume>("volumes/x", &newer), None);
        let more = text.replace(r#""v":1"#, r#""v":1,"later":true"#);
        assert!(decode::<Volume>("volumes/x", &more).is_some());
        let older = text.replace(r#","failures":{}"#, "");
        assert!(decode::<Volume>("volumes/x", &older).is_some());
        assert_eq!(decode::<Volume>("volumes/x", "{"), None);
        let cluster = ClusterId::from_bytes([2; 16]);
        let text = encode_id(&cluster);
        assert_eq!(text, r#"{"v":1,"id":"02020202-0202-0202-0202-020202020202"}"#);
        assert_eq!(decode::<ClusterId>("cluster", &text), Some(cluster));
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        for key in [
            Key::Cluster,
            Key::Namespace("a.b".into()),
            Key::Node(NodeId::from_bytes([3; 16])),
            Key::Volume(VolumeId::from_bytes([4; 16])),
            Key::Live(NodeId::from_bytes([5; 16])),
            Key::Deleted(NodeId::from_bytes([6; 16])),
            Key::Authority,
            Key::Token(TokenId([7; 8])),
            Key::Client(ClientId([8; 8])),
        ] {
            assert_eq!(Key::parse(&key.text()), Some(key));
        }
        assert_eq!(Key::parse("nodes/x"), None);
        assert_eq!(Key::parse(&name_key("volumes", "default/v")), None);
    }
}
