//! All records of a cluster as one file, to move them from one control store to another (embedded to etcd and back).
//!
//! It is taken while no volume is mounted, so that no copy can fall behind the records in it before they are used again. What it leaves out goes with
//! leases anyway: who is alive, who leads; and tokens. The authority's private key is in it: the file is a secret.
//!
//! An import goes into a store without a cluster, and raises the epoch of every volume by [`EPOCHS`]: whatever the daemons did with their copies between
//! the export and their stop, the copies have seen lower ones. The cluster's record is written last, so that an import that was cut short is no cluster, and can be done
//! again.

use super::catalog::{Catalog, CatalogError};
use super::records::{Key, decode, encode};
use super::store::{Change, Compare, Outcome, Transaction};
use crate::volume::{ClusterId, Node, NodeId, Volume};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the file.
const FORMAT: u32 = 1;
/// By how much an import raises epochs: more changes than daemons do while they are being stopped.
const EPOCHS: u64 = 1 << 20;
/// Rows written in one transaction.
const CHUNK: usize = 50;

/// The records of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Export {
    format: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// Values by key, as in the store.
    records: BTreeMap<String, String>,
    /// blake3 of the records, in hex.
    checksum: String,
}

/// Why a file cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Not such a file.
    #[error("it is not an export of a cluster's records: {0}")]
    Unreadable(String),
    /// A later version of the program wrote it.
    #[error("it has format {0}, this program knows {FORMAT}")]
    Format(u64),
    /// Changed or cut short.
    #[error("it is damaged: its checksum does not match")]
    Checksum,
}

impl Export {
    /// Reads a file's text.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn parse(text: &[u8]) -> Result<Self, ExportError> {
        let unreadable = |e: serde_json::Error| ExportError::Unreadable(e.to_string());
        // A later format may have other fields.
        let value: serde_json::Value = serde_json::from_slice(text).map_err(unreadable)?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => return Err(ExportError::Format(format)),
            _ => {}
        }
        let export: Self = serde_json::from_value(value).map_err(unreadable)?;
        if export.checksum != sum(&export.records) {
            return Err(ExportError::Checksum);
        }
        Ok(export)
    }

    /// Where a node listened for its peers.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<String> {
        let key = Key::Node(node).text();
        let node: Node = decode(&key, self.records.get(&key)?)?;
        Some(node.address)
    }
}

fn sum(records: &BTreeMap<String, String>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in records {
        hasher
            .update(key.as_bytes())
            .update(b"\0")
            .update(value.as_bytes())
            .update(b"\0");
    }
    hasher.finalize().to_hex().to_string()
}

/// A file's text with its checksum made right.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sealed(text: &[u8]) -> Option<Vec<u8>> {
    let mut export: Export = serde_json::from_slice(text).ok()?;
    export.format = FORMAT;
    export.checksum = sum(&export.records);
    serde_json::to_vec(&export).ok()
}

impl Catalog {
    /// All records, to be moved to another store.
    ///
    /// # Errors
    /// [`CatalogError::InUse`]: a volume is mounted; [`CatalogError::Unavailable`]
    pub async fn export(&self) -> Result<Export, CatalogError> {
        let (rows, _) = self.store().range("").await?;
        let (mut records, mut mounted, mut cluster) = (BTreeMap::new(), Vec::new(), None);
        for row in rows {
            match Key::parse(&row.key) {
                Some(Key::Live(_) | Key::Token(_)) => continue,
                Some(Key::Cluster) => cluster = decode::<ClusterId>(&row.key, &row.value),
                Some(Key::Volume(_)) => {
                    let volume = volume(&row.key, &row.value)?;
                    if volume.mount.is_some() {
                        mounted.push(format!("{}/{}", volume.namespace, volume.name));
                    }
                }
                _ => {}
            }
            records.insert(row.key, row.value);
        }
        if !mounted.is_empty() {
            return Err(CatalogError::InUse(format!(
                "the records cannot be moved while volumes are mounted: {}; unmount them first",
                mounted.join(", ")
            )));
        }
        let cluster = cluster.ok_or_else(|| CatalogError::Invalid("there is no cluster yet".to_owned()))?;
        Ok(Export {
            format: FORMAT,
            cluster,
            checksum: sum(&records),
            records,
        })
    }

    /// Writes an export into a store that holds no cluster.
    ///
    /// # Errors
    /// [`CatalogError::InUse`]: it holds one; [`CatalogError::Unavailable`]
    pub async fn import(&self, export: &Export) -> Result<(), CatalogError> {
        let key = Key::Cluster.text();
        let taken = || CatalogError::InUse("this control store holds a cluster already".to_owned());
        if self.store().get(&key).await?.is_some() {
            return Err(taken());
        }
        let mut changes = Vec::new();
        let mut cluster = None;
        for (key, value) in &export.records {
            let value = match Key::parse(key) {
                Some(Key::Cluster) => {
                    cluster = Some(value.clone());
                    continue;
                }
                Some(Key::Volume(_)) => {
                    let mut volume = volume(key, value)?;
                    volume.configuration.epoch += EPOCHS;
                    encode(&volume)
                }
                _ => value.clone(),
            };
            changes.push(put(key, value));
        }
        let cluster = cluster.ok_or_else(|| CatalogError::Invalid("the export names no cluster".to_owned()))?;
        for chunk in changes.chunks(CHUNK) {
            self.write(&key, chunk.to_vec())
                .await?
                .then_some(())
                .ok_or_else(taken)?;
        }
        self.write(&key, vec![put(&key, cluster)])
            .await?
            .then_some(())
            .ok_or_else(taken)
    }

    /// A transaction while there is no cluster; false: there is one.
    async fn write(&self, cluster: &str, changes: Vec<Change>) -> Result<bool, CatalogError> {
        let compares = vec![Compare {
            key: cluster.to_owned(),
            revision: 0,
        }];
        let outcome = self.store().transact(Transaction { compares, changes }).await?;
        Ok(matches!(outcome, Outcome::Committed(_)))
    }
}

fn volume(key: &str, value: &str) -> Result<Volume, CatalogError> {
    decode(key, value)
        .ok_or_else(|| CatalogError::Invalid(format!("the record {key} is of a newer version of storageos")))
}

fn put(key: &str, value: String) -> Change {
    Change::Put {
        key: key.to_owned(),
        value,
        lease: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{MemoryStore, NewVolume};
    use crate::volume::{Labels, MountClaim, VolumeRef};
    use std::sync::Arc;

    fn catalog() -> Catalog {
        Catalog::new(Arc::new(MemoryStore::default()))
    }

    fn node() -> Node {
        Node {
            address: "10.0.0.1:5703".into(),
            capacity: 1 << 40,
            free: 1 << 40,
            ..Node::sample(1)
        }
    }

    async fn cluster() -> (Catalog, Volume) {
        let catalog = catalog();
        catalog.initialise(ClusterId::from_bytes([9; 16])).await.unwrap();
        catalog.register_node(&node()).await.unwrap();
        let lease = catalog.store().grant(std::time::Duration::from_secs(60)).await.unwrap();
        catalog.set_live(node().id, lease).await.unwrap();
        let new = NewVolume {
            name: VolumeRef::parse("v", "default").unwrap(),
            description: String::new(),
            size: 1 << 30,
            labels: Labels::new(),
            node_selector: String::new(),
        };
        let volume = catalog.create_volume(&new, 1).await.unwrap();
        (catalog, volume)
    }

    #[tokio::test]
    async fn records_move_whole_with_higher_epochs_and_without_leases() {
        let (from, volume) = cluster().await;
        let export = from.export().await.unwrap();
        assert_eq!(export.address(node().id).as_deref(), Some("10.0.0.1:5703"));
        let text = serde_json::to_vec(&export).unwrap();
        let read = Export::parse(&text).unwrap();
        assert_eq!(read, export);
        let to = catalog();
        to.import(&read).await.unwrap();
        let (before, after) = (from.view().await.unwrap(), to.view().await.unwrap());
        assert_eq!(
            (after.cluster, after.nodes.len(), after.live.len()),
            (before.cluster, 1, 0)
        );
        let moved = &after.volumes[&volume.id];
        assert_eq!(moved.configuration.epoch, volume.configuration.epoch + EPOCHS);
        assert_eq!(moved.configuration.in_sync, volume.configuration.in_sync);
        // Names stay unique.
        assert!(matches!(
            to.register_node(&Node {
                id: NodeId::from_bytes([2; 16]),
                ..node()
            })
            .await,
            Err(CatalogError::Exists { .. })
        ));
        assert!(matches!(to.import(&read).await, Err(CatalogError::InUse(_))));
    }

    #[tokio::test]
    async fn nothing_is_exported_while_a_volume_is_mounted_or_without_a_cluster() {
        let (from, volume) = cluster().await;
        let claim = MountClaim {
            node: node().id,
            mountpoint: "/m".into(),
            mounted_at: jiff::Timestamp::UNIX_EPOCH,
            read_only: false,
        };
        let mounted = from.update_volume(volume.id, |v| {
            v.mount = Some(claim.clone());
            Ok(())
        });
        mounted.await.unwrap();
        let error = from.export().await.unwrap_err();
        assert!(error.to_string().contains("default/v"), "{error}");
        assert!(catalog().export().await.is_err());
    }

    #[tokio::test]
    async fn a_file_that_is_damaged_or_newer_is_refused() {
        let export = cluster().await.0.export().await.unwrap();
        let text = serde_json::to_string(&export).unwrap();
        assert!(matches!(Export::parse(b"{"), Err(ExportError::Unreadable(_))));
        let changed = text.replace("10.0.0.1", "10.0.0.2");
        assert_eq!(Export::parse(changed.as_bytes()), Err(ExportError::Checksum));
        let newer = text.replace("\"format\":1", "\"format\":2");
        assert_eq!(Export::parse(newer.as_bytes()), Err(ExportError::Format(2)));
    }
}
