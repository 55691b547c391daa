//! What a daemon knows of the cluster: all records, as of one revision, kept fresh by a watch.
//!
//! A view may lag behind the store, never ahead of it. Whatever is decided on one is done by a transaction that compares.

use super::clients::ClientRecord;
use super::records::{self, Key};
use super::store::{ControlError, ControlStore, Event, Revision, Row};
use crate::trust::ClientId;
use crate::volume::{ClusterId, Namespace, Node, NodeId, Volume, VolumeId, VolumeRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_millis(200);

/// All records at one revision.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The store's revision.
    pub revision: Revision,
    /// The cluster; `None` before it was made.
    pub cluster: Option<ClusterId>,
    /// By name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// By id.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// By id.
    pub volumes: BTreeMap<VolumeId, Arc<Volume>>,
    /// Nodes whose lease lives.
    pub live: BTreeSet<NodeId>,
    /// Nodes that were deleted.
    pub deleted: BTreeSet<NodeId>,
    /// Clients that may use the API over the network.
    pub clients: BTreeMap<ClientId, Arc<ClientRecord>>,
    /// How often all certificates were to be renewed at once: those of a lower number are to be.
    pub renewals: u64,
}

impl View {
    pub(super) fn of_rows(rows: &[Row], revision: Revision) -> Self {
        let mut view = Self {
            revision,
            ..Self::default()
        };
        for row in rows {
            view.put(&row.key, Some(&row.value));
        }
        view
    }

    fn put(&mut self, key: &str, value: Option<&str>) {
        // A record that cannot be read (of a later version) is left out, and said in the log by `decode`.
        match Key::parse(key) {
            Some(Key::Cluster) => self.cluster = value.and_then(|v| records::decode(key, v)),
            Some(Key::Namespace(name)) => set(&mut self.namespaces, name, key, value),
            Some(Key::Node(id)) => set(&mut self.nodes, id, key, value),
            Some(Key::Volume(id)) => set(&mut self.volumes, id, key, value),
            Some(Key::Live(id)) => {
                if value.is_some() {
                    self.live.insert(id);
                } else {
                    self.live.remove(&id);
                }
            }
            Some(Key::Deleted(id)) => {
                if value.is_some() {
                    self.deleted.insert(id);
                } else {
                    self.deleted.remove(&id);
                }
            }
            // The rest of it is a secret, and read where it is used.
            Some(Key::Authority) => {
                let record: Option<super::trust::AuthorityRecord> = value.and_then(|v| records::decode(key, v));
                self.renewals = record.map_or(self.renewals, |record| record.renewals);
            }
            Some(Key::Client(id)) => set(&mut self.clients, id, key, value),
            Some(Key::Token(_)) | None => {}
        }
    }

    pub(super) fn apply(&mut self, events: &[Event], revision: Revision) {
        for event in events {
            self.put(&event.key, event.row.as_ref().map(|row| row.value.as_str()));
        }
        self.revision = revision;
    }

    /// The volume of a name.
    #[must_use]
    pub fn volume(&self, name: &VolumeRef) -> Option<&Arc<Volume>> {
        self.volumes
            .values()
            .find(|v| v.namespace == name.namespace && v.name == name.name)
    }

    /// The node with a name, or with an id as text.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        let by_id = name.parse().ok().and_then(|id: NodeId| self.nodes.get(&id));
        by_id.or_else(|| self.nodes.values().find(|n| n.name == name))
    }

    /// A node's name; its id if it is not known.
    #[must_use]
    pub fn node_name(&self, id: NodeId) -> String {
        self.nodes.get(&id).map_or_else(|| id.to_string(), |n| n.name.clone())
    }

    /// Copies of any volume that a node holds or held.
    #[must_use]
    pub fn copies_on(&self, node: NodeId) -> usize {
        let holds = |v: &&Arc<Volume>| v.configuration.has_copy_on(node);
        self.volumes.values().filter(holds).count()
    }
}

fn set<K: Ord, T: serde::de::DeserializeOwned>(map: &mut BTreeMap<K, Arc<T>>, id: K, key: &str, value: Option<&str>) {
    match value.and_then(|v| records::decode(key, v)) {
        Some(record) => {
            map.insert(id, Arc::new(record));
        }
        // Removed, or not readable any more: what it was before must not be taken for what it is.
        None => {
            map.remove(&id);
        }
    }
}

/// Keeps a view fresh until its receivers are gone or `stop` is cancelled.
pub(super) async fn follow(
    store: Arc<dyn ControlStore>,
    sender: watch::Sender<Arc<View>>,
    stop: tokio_util::sync::CancellationToken,
) {
    let work = async {
        let mut view = None;
        loop {
            match step(&*store, view.take()).await {
                Ok(next) => {
                    if sender.send(Arc::new(next.clone())).is_err() {
                        return;
                    }
                    view = Some(next);
                }
                Err((ControlError::Compacted(_), _)) => {}
                Err((error, kept)) => {
                    tracing::debug!(%error, "the view of the cluster is not fresh");
                    view = kept;
                    crate::exec::time::sleep(RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn step(store: &dyn ControlStore, view: Option<View>) -> Result<View, (ControlError, Option<View>)> {
    let Some(mut view) = view else {
        let (rows, revision) = store.range("").await.map_err(|e| (e, None))?;
        return Ok(View::of_rows(&rows, revision));
    };
    match store.changes("", view.revision).await {
        Ok((events, revision)) => {
            view.apply(&events, revision.max(view.revision));
            Ok(view)
        }
        Err(error) => Err((error, Some(view))),
    }
}
