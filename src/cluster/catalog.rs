//! Typed operations on the records: namespaces, nodes, volumes, claims, configurations.
//!
//! Each reads what it decides on, and writes by a transaction that compares the revisions of what it read; when somebody was faster it
//! decides again, at most [`ATTEMPTS`] times. Names are unique by a row of their own in the same transaction.
//!
//! A store repeats a transaction whose answer was lost, and then the first attempt may be what the second conflicts with. So an
//! operation that finds its very own doing there has succeeded.

use super::records::{Deleted, Key, decode, encode, encode_id, name_key};
use super::store::{Change, Compare, ControlError, ControlStore, LeaseId, Outcome, Revision, Row, Transaction};
use super::view::{View, follow};
use crate::exec;
use crate::volume::{
    Candidate, ClusterId, Configuration, DEFAULT_NAMESPACE, LabelError, Labels, MountClaim, NameError, Namespace, Node,
    NodeId, PlacementError, Scope, Selector, SelectorError, Volume, VolumeId, VolumeLabels, VolumeRef, Wanted,
    apply_labels, check_name, place,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Times that an operation decides again after a conflict.
pub(super) const ATTEMPTS: usize = 32;

/// Why an operation was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    /// There is no such thing.
    #[error("{kind} `{name}` does not exist")]
    NotFound {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("{kind} `{name}` exists already")]
    Exists {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Somebody else changed it first.
    #[error("{0} was changed by somebody else at the same time; look at it again and repeat")]
    Conflict(String),
    /// A configuration that is not the expected one any more; this is it now.
    #[error("the volume's configuration is at epoch {}", .0.epoch)]
    Epoch(Box<Configuration>),
    /// The wish makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It is in use.
    #[error("{0}")]
    InUse(String),
    /// The present state of the volume does not allow it.
    #[error("{0}")]
    Refused(String),
    /// The node was deleted from the cluster and wants to come back.
    #[error("{}", deleted_text(.0))]
    Deleted(String),
    /// A token gives no leave.
    #[error("{0}")]
    Denied(String),
    /// Not enough nodes for its copies.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The control plane does not answer.
    #[error("the control plane is unavailable: {0}")]
    Unavailable(String),
}

impl From<ControlError> for CatalogError {
    fn from(error: ControlError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

macro_rules! invalid {
    ($($error:ty),*) => {
        $(impl From<$error> for CatalogError {
            fn from(error: $error) -> Self {
                Self::Invalid(error.to_string())
            }
        })*
    };
}

invalid!(LabelError, NameError, SelectorError);

/// A volume to be created.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeRef,
    /// Free text.
    pub description: String,
    /// Bytes of file data.
    pub size: u64,
    /// Canonical labels.
    pub labels: Labels,
    /// Terms that a node's labels must meet.
    pub node_selector: String,
}

/// Changes of a volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeChange {
    /// New description.
    pub description: Option<String>,
    /// New size in bytes; not below the present one.
    pub size: Option<u64>,
    /// Labels to set.
    pub add: Labels,
    /// Keys of labels to remove, in any spelling.
    pub remove: Vec<String>,
    /// Also when the volume could not be written then, or when there are not enough nodes for its copies.
    pub force: bool,
}

/// The records of a cluster.
#[derive(Clone)]
pub struct Catalog {
    store: Arc<dyn ControlStore>,
}

impl Catalog {
    /// The records in a store.
    #[must_use]
    pub fn new(store: Arc<dyn ControlStore>) -> Self {
        Self { store }
    }

    /// The store beneath.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn ControlStore> {
        &self.store
    }

    /// All records as of now.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn view(&self) -> Result<View, CatalogError> {
        let (rows, revision) = self.store.range("").await?;
        Ok(View::of_rows(&rows, revision))
    }

    /// A view that is kept fresh until `stop`. It is empty (revision 0) until the store answered once.
    #[must_use]
    pub fn watch(&self, stop: CancellationToken) -> watch::Receiver<Arc<View>> {
        let (sender, receiver) = watch::channel(Arc::default());
        exec::task::spawn(follow(self.store.clone(), sender, stop));
        receiver
    }

    /// Names the cluster and makes the default namespace. A second time it changes nothing.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn initialise(&self, cluster: ClusterId) -> Result<(), CatalogError> {
        let namespace = Namespace {
            name: DEFAULT_NAMESPACE.into(),
            display_name: String::new(),
            description: "the namespace of volumes that name none".into(),
            labels: Labels::new(),
            created_at: exec::time::wall(),
        };
        let changes = vec![
            put(Key::Cluster.text(), encode_id(&cluster)),
            put(Key::Namespace(namespace.name.clone()).text(), encode(&namespace)),
        ];
        let compares = vec![compare(&Key::Cluster.text(), 0)];
        self.transact(compares, changes).await.map(|_| ())
    }

    /// The cluster's id, if it was named.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn cluster(&self) -> Result<Option<ClusterId>, CatalogError> {
        let key = Key::Cluster.text();
        Ok(self.store.get(&key).await?.and_then(|row| decode(&key, &row.value)))
    }

    // ---- namespaces

    /// Makes a namespace.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`CatalogError::Invalid`] or [`CatalogError::Unavailable`]
    pub async fn create_namespace(&self, namespace: &Namespace) -> Result<(), CatalogError> {
        check_name(&namespace.name)?;
        let key = Key::Namespace(namespace.name.clone()).text();
        let value = encode(namespace);
        let mut own = false;
        for _ in 0..ATTEMPTS {
            match self.store.get(&key).await? {
                Some(row) if own && row.value == value => return Ok(()),
                Some(_) => return Err(exists("namespace", &namespace.name)),
                None => {}
            }
            let change = put(key.clone(), value.clone());
            if self.transact(vec![compare(&key, 0)], vec![change]).await? {
                return Ok(());
            }
            own = true;
        }
        Err(CatalogError::Conflict(format!("namespace `{}`", namespace.name)))
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::InUse`] or [`CatalogError::Unavailable`]
    pub async fn remove_namespace(&self, name: &str) -> Result<(), CatalogError> {
        if name == DEFAULT_NAMESPACE {
            return Err(CatalogError::InUse(
                "the namespace `default` is always there and cannot be removed".into(),
            ));
        }
        for attempt in 0..ATTEMPTS {
            let key = Key::Namespace(name.to_owned()).text();
            let row = match self.store.get(&key).await? {
                Some(row) => row,
                None if attempt > 0 => return Ok(()),
                None => return Err(not_found("namespace", name)),
            };
            let volumes = self
                .view()
                .await?
                .volumes
                .values()
                .filter(|v| v.namespace == name)
                .count();
            if volumes > 0 {
                return Err(CatalogError::InUse(format!(
                    "namespace `{name}` holds {volumes} volumes; remove them first"
                )));
            }
            // Creating a volume touches its namespace's row, so one that is made meanwhile is a conflict.
            if self
                .transact(vec![compare(&key, row.revision)], vec![Change::Delete { key }])
                .await?
            {
                return Ok(());
            }
        }
        Err(CatalogError::Conflict(format!("namespace `{name}`")))
    }

    // ---- nodes

    /// Registers this node or renews its record; what operators set (labels, cordon, drain) is kept. Returns the record.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] if another node has the name, [`CatalogError::Deleted`], [`CatalogError::Unavailable`]
    pub async fn register_node(&self, node: &Node) -> Result<Node, CatalogError> {
        check_name(&node.name)?;
        for _ in 0..ATTEMPTS {
            let key = Key::Node(node.id).text();
            let grave = Key::Deleted(node.id).text();
            if let Some(row) = self.store.get(&grave).await? {
                return Err(CatalogError::Deleted(
                    grave_name(&grave, &row.value).unwrap_or_default(),
                ));
            }
            let held = name_key("nodes", &node.name);
            let holder = self.store.get(&held).await?;
            let holds = holder.as_ref().and_then(|row| decode::<NodeId>(&held, &row.value));
            if holds.is_some_and(|id| id != node.id) {
                return Err(exists("node", &node.name));
            }
            let row = self.store.get(&key).await?;
            let old: Option<Node> = row.as_ref().and_then(|row| decode(&key, &row.value));
            let mut new = node.clone();
            let mut changes = Vec::new();
            if let Some(old) = old {
                let mut labels = old.labels;
                labels.extend(new.labels);
                new.labels = labels;
                (new.cordoned, new.drained, new.created_at) = (old.cordoned, old.drained, old.created_at);
                if old.name != new.name {
                    changes.push(Change::Delete {
                        key: name_key("nodes", &old.name),
                    });
                }
            }
            let compares = vec![
                compare(&key, revision(&row)),
                compare(&held, revision(&holder)),
                compare(&grave, 0),
            ];
            changes.push(put(key, encode(&new)));
            changes.push(put(held, encode_id(&new.id)));
            if self.transact(compares, changes).await? {
                return Ok(new);
            }
        }
        Err(CatalogError::Conflict(format!("node `{}`", node.name)))
    }

    /// Changes a node's record.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], what `change` refuses with, or [`CatalogError::Unavailable`]
    pub async fn update_node(
        &self,
        id: NodeId,
        change: impl Fn(&mut Node) -> Result<(), CatalogError>,
    ) -> Result<Node, CatalogError> {
        let key = Key::Node(id).text();
        for _ in 0..ATTEMPTS {
            let row = self
                .store
                .get(&key)
                .await?
                .ok_or_else(|| not_found("node", &id.to_string()))?;
            let mut node: Node = read(&key, &row)?;
            change(&mut node)?;
            if self
                .transact(vec![compare(&key, row.revision)], vec![put(key.clone(), encode(&node))])
                .await?
            {
                return Ok(node);
            }
        }
        Err(CatalogError::Conflict(format!("node `{id}`")))
    }

    /// Deletes a node that is offline and holds no copy that anybody could miss; its name is free then, and its id never comes back.
    /// Lost copies of it are forgotten by the controller.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::InUse`] with what is in the way, [`CatalogError::Unavailable`]
    pub async fn delete_node(&self, id: NodeId) -> Result<(), CatalogError> {
        for attempt in 0..ATTEMPTS {
            let key = Key::Node(id).text();
            let Some(row) = self.store.get(&key).await? else {
                if attempt > 0 {
                    // Our own first attempt, whose answer was lost.
                    return Ok(());
                }
                return Err(not_found("node", &id.to_string()));
            };
            let node: Node = read(&key, &row)?;
            if let Some(why) = needed(&self.view().await?, &node) {
                return Err(CatalogError::InUse(format!(
                    "node `{}` cannot be deleted: {why}",
                    node.name
                )));
            }
            let grave = Deleted {
                name: node.name.clone(),
                at: exec::time::wall(),
            };
            let changes = vec![
                Change::Delete { key: key.clone() },
                Change::Delete {
                    key: name_key("nodes", &node.name),
                },
                put(Key::Deleted(id).text(), encode(&grave)),
            ];
            // A node that comes back at this very moment is a conflict.
            let compares = vec![compare(&key, row.revision), compare(&Key::Live(id).text(), 0)];
            if self.transact(compares, changes).await? {
                return Ok(());
            }
        }
        Err(CatalogError::Conflict(format!("node `{id}`")))
    }

    /// Says that this node is alive as long as the lease is. False: the lease is not.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn set_live(&self, node: NodeId, lease: LeaseId) -> Result<bool, CatalogError> {
        let change = Change::Put {
            key: Key::Live(node).text(),
            value: encode_id(&node),
            lease: Some(lease),
        };
        self.transact(Vec::new(), vec![change]).await
    }

    /// The lease that says that this node is alive.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn lease_of(&self, node: NodeId) -> Result<Option<LeaseId>, CatalogError> {
        Ok(self.store.get(&Key::Live(node).text()).await?.and_then(|row| row.lease))
    }

    // ---- volumes

    /// Creates a volume: places its copies, all of them in sync since they are empty. `seed` settles ties between nodes.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`CatalogError::NotFound`] (the namespace), [`CatalogError::Invalid`], [`CatalogError::Placement`],
    /// [`CatalogError::Unavailable`]
    pub async fn create_volume(&self, new: &NewVolume, seed: u64) -> Result<Volume, CatalogError> {
        let labels = VolumeLabels::parse(&new.labels)?;
        Selector::parse(&new.node_selector)?;
        let id = VolumeId::random();
        for _ in 0..ATTEMPTS {
            let namespace_key = Key::Namespace(new.name.namespace.clone()).text();
            let namespace = self.store.get(&namespace_key).await?;
            let namespace = namespace.ok_or_else(|| not_found("namespace", &new.name.namespace))?;
            let held = name_key("volumes", &new.name.to_string());
            if let Some(row) = self.store.get(&held).await? {
                if decode::<VolumeId>(&held, &row.value) == Some(id) {
                    // Our own first attempt, whose answer was lost.
                    return self.volume(&new.name).await;
                }
                return Err(exists("volume", &new.name.to_string()));
            }
            let view = self.view().await?;
            let copies = usize::from(labels.replicas) + 1;
            let holders = BTreeSet::new();
            let wanted = Wanted {
                copies,
                holders: &holders,
                selector: &new.node_selector,
                hint: labels.hint_master.as_deref(),
            };
            let nodes = place(&wanted, &candidates(&view), seed)?;
            let volume = Volume {
                id,
                namespace: new.name.namespace.clone(),
                name: new.name.name.clone(),
                description: new.description.clone(),
                size: new.size,
                labels: new.labels.clone(),
                node_selector: new.node_selector.clone(),
                configuration: Configuration {
                    epoch: 1,
                    master: nodes.first().copied(),
                    in_sync: nodes.into_iter().collect(),
                    established: labels.replicas,
                    ..Configuration::unplaced()
                },
                formatted: false,
                mount: None,
                mounts: 0,
                created_at: exec::time::wall(),
            };
            debug_assert!(volume.configuration.check());
            let changes = vec![
                put(Key::Volume(volume.id).text(), encode(&volume)),
                put(held.clone(), encode_id(&volume.id)),
                // Touched, so that the namespace is not removed at the same time.
                put(namespace_key.clone(), namespace.value.clone()),
            ];
            let compares = vec![compare(&held, 0), compare(&namespace_key, namespace.revision)];
            if self.transact(compares, changes).await? {
                return Ok(volume);
            }
        }
        Err(CatalogError::Conflict(format!("namespace `{}`", new.name.namespace)))
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] or [`CatalogError::Unavailable`]
    pub async fn volume(&self, name: &VolumeRef) -> Result<Volume, CatalogError> {
        let held = name_key("volumes", &name.to_string());
        let row = self.store.get(&held).await?;
        let id = row.and_then(|row| decode::<VolumeId>(&held, &row.value));
        let id = id.ok_or_else(|| not_found("volume", &name.to_string()))?;
        self.volume_by_id(id)
            .await?
            .ok_or_else(|| not_found("volume", &name.to_string()))
    }

    /// A volume by its id, as of now; `None`: there is none.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn volume_by_id(&self, id: VolumeId) -> Result<Option<Volume>, CatalogError> {
        let key = Key::Volume(id).text();
        self.store.get(&key).await?.map(|row| read(&key, &row)).transpose()
    }

    /// Changes a volume's record; `change` is called again with the newest one when somebody else was faster.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], what `change` refuses with, or [`CatalogError::Unavailable`]
    pub async fn update_volume(
        &self,
        id: VolumeId,
        change: impl Fn(&mut Volume) -> Result<(), CatalogError>,
    ) -> Result<Volume, CatalogError> {
        let key = Key::Volume(id).text();
        for _ in 0..ATTEMPTS {
            let row = self
                .store
                .get(&key)
                .await?
                .ok_or_else(|| not_found("volume", &id.to_string()))?;
            let mut volume: Volume = read(&key, &row)?;
            let before = volume.clone();
            change(&mut volume)?;
            if volume == before {
                return Ok(volume);
            }
            debug_assert!(volume.configuration.check());
            if self
                .transact(
                    vec![compare(&key, row.revision)],
                    vec![put(key.clone(), encode(&volume))],
                )
                .await?
            {
                return Ok(volume);
            }
        }
        Err(CatalogError::Conflict(format!("volume `{id}`")))
    }

    /// Changes what users may change of a volume.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`] (labels, size), [`CatalogError::Refused`] and [`CatalogError::Placement`] (a rule that the present
    /// state does not meet, if it met the one before; too few nodes for more copies), [`CatalogError::NotFound`],
    /// [`CatalogError::Unavailable`]
    pub async fn change_volume(&self, name: &VolumeRef, wish: &VolumeChange) -> Result<Volume, CatalogError> {
        let view = self.view().await?;
        let volume = self.volume(name).await?;
        self.update_volume(volume.id, |volume| {
            if let Some(description) = &wish.description {
                volume.description.clone_from(description);
            }
            if let Some(size) = wish.size {
                if size < volume.size {
                    return Err(CatalogError::Invalid(format!(
                        "the size of `{name}` cannot be lowered from {} to {size} bytes",
                        volume.size
                    )));
                }
                volume.size = size;
            }
            let before = VolumeLabels::of(&volume.labels);
            volume.labels = apply_labels(&volume.labels, &wish.add, &wish.remove, Scope::Volume)?;
            let labels = VolumeLabels::parse(&volume.labels)?;
            let configuration = &mut volume.configuration;
            let copies = usize::from(labels.replicas) + 1;
            let holders: BTreeSet<NodeId> = configuration.in_sync.union(&configuration.syncing).copied().collect();
            if labels.replicas > before.replicas && copies > holders.len() && !wish.force {
                let wanted = Wanted {
                    copies: copies - holders.len(),
                    holders: &holders,
                    selector: &volume.node_selector,
                    hint: None,
                };
                place(&wanted, &candidates(&view), 0)?;
            }
            let established = configuration.established.min(labels.replicas);
            let in_sync = configuration.replicas_in_sync();
            let was = before.failure_rule().may_write(configuration.established, in_sync);
            if let (Ok(()), Err(refusal), false) =
                (was, labels.failure_rule().may_write(established, in_sync), wish.force)
            {
                return Err(CatalogError::Refused(format!(
                    "`{name}` could not be written then: {refusal}"
                )));
            }
            if configuration.established != established {
                configuration.established = established;
                configuration.epoch += 1;
            }
            Ok(())
        })
        .await
    }

    /// Removes a volume; its nodes then remove their copies.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::InUse`] if it is mounted and not forced, [`CatalogError::Unavailable`]
    pub async fn remove_volume(&self, name: &VolumeRef, force: bool) -> Result<Volume, CatalogError> {
        let mut tried: Option<Volume> = None;
        for _ in 0..ATTEMPTS {
            let id = match self.volume(name).await {
                Ok(volume) => volume.id,
                // Gone since the attempt before: by that attempt, or by somebody who wanted the same.
                Err(error @ CatalogError::NotFound { .. }) => return tried.ok_or(error),
                Err(error) => return Err(error),
            };
            let key = Key::Volume(id).text();
            let Some(row) = self.store.get(&key).await? else {
                return tried.ok_or_else(|| not_found("volume", &name.to_string()));
            };
            let volume: Volume = read(&key, &row)?;
            if tried.as_ref().is_some_and(|tried| tried.id != id) {
                // The name is a new volume's already.
                return tried.ok_or_else(|| not_found("volume", &name.to_string()));
            }
            if let (Some(claim), false) = (&volume.mount, force) {
                return Err(self.mounted(name, claim).await);
            }
            let held = name_key("volumes", &name.to_string());
            let changes = vec![Change::Delete { key: key.clone() }, Change::Delete { key: held }];
            if self.transact(vec![compare(&key, row.revision)], changes).await? {
                return Ok(volume);
            }
            tried = Some(volume);
        }
        Err(CatalogError::Conflict(format!("volume `{name}`")))
    }

    /// Takes the volume for a mount on a node.
    ///
    /// # Errors
    /// [`CatalogError::InUse`] says where it is mounted; [`CatalogError::NotFound`], [`CatalogError::Unavailable`]
    pub async fn claim_mount(
        &self,
        name: &VolumeRef,
        node: NodeId,
        mountpoint: &str,
        read_only: bool,
    ) -> Result<Volume, CatalogError> {
        let id = self.volume(name).await?.id;
        let claim = MountClaim {
            node,
            mountpoint: mountpoint.to_owned(),
            mounted_at: exec::time::wall(),
            read_only,
        };
        let taken = exec::sync::Mutex::new(None);
        let result = self
            .update_volume(id, |volume| {
                if let Some(other) = &volume.mount {
                    if *other == claim {
                        // Our own first attempt, whose answer was lost.
                        return Ok(());
                    }
                    *taken.lock() = Some(other.clone());
                    return Err(CatalogError::InUse(String::new()));
                }
                volume.mount = Some(claim.clone());
                volume.mounts += 1;
                Ok(())
            })
            .await;
        let other = taken.lock().take();
        match (result, other) {
            (Err(CatalogError::InUse(_)), Some(other)) => Err(self.mounted(name, &other).await),
            (result, _) => result,
        }
    }

    /// Takes a volume from whoever has it mounted: what it wrote and did not flush is gone. Returns what is stored now.
    ///
    /// # Errors
    /// [`CatalogError::Epoch`] if its configuration is not at `expected_epoch`; [`CatalogError::NotFound`], [`CatalogError::Unavailable`]
    pub async fn end_mounts(&self, id: VolumeId, expected_epoch: u64) -> Result<Volume, CatalogError> {
        self.update_volume(id, |volume| {
            if volume.configuration.epoch != expected_epoch {
                return Err(CatalogError::Epoch(Box::new(volume.configuration.clone())));
            }
            volume.mount = None;
            volume.mounts += 1;
            Ok(())
        })
        .await
    }

    /// Gives back a node's claim, whoever's if `node` is `None`. A claim that is not there is no error.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Unavailable`]
    pub async fn release_mount(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), CatalogError> {
        let release = |volume: &mut Volume| {
            if volume
                .mount
                .as_ref()
                .is_some_and(|claim| node.is_none_or(|n| n == claim.node))
            {
                volume.mount = None;
            }
            Ok(())
        };
        self.update_volume(id, release).await.map(|_| ())
    }

    /// Replaces a volume's configuration if it still is at the expected epoch.
    ///
    /// # Errors
    /// [`CatalogError::Epoch`] with the present one, [`CatalogError::NotFound`], [`CatalogError::Unavailable`]
    pub async fn swap_configuration(
        &self,
        id: VolumeId,
        expected_epoch: u64,
        new: &Configuration,
        reason: &str,
    ) -> Result<(), CatalogError> {
        let tried = AtomicBool::new(false);
        let volume = self
            .update_volume(id, |volume| {
                let again = tried.swap(true, Ordering::Relaxed);
                if again && volume.configuration == *new {
                    return Ok(());
                }
                if volume.configuration.epoch != expected_epoch {
                    return Err(CatalogError::Epoch(Box::new(volume.configuration.clone())));
                }
                volume.configuration = new.clone();
                Ok(())
            })
            .await?;
        tracing::info!(
            volume = %format_args!("{}/{}", volume.namespace, volume.name),
            epoch = new.epoch,
            in_sync = new.in_sync.len(),
            syncing = new.syncing.len(),
            lost = new.lost.len(),
            reason,
            "configuration changed"
        );
        Ok(())
    }

    /// Notes that a file system was made: from now on a missing copy is a lost one.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Unavailable`]
    pub async fn set_formatted(&self, id: VolumeId) -> Result<(), CatalogError> {
        let set = |volume: &mut Volume| {
            volume.formatted = true;
            Ok(())
        };
        self.update_volume(id, set).await.map(|_| ())
    }

    async fn mounted(&self, name: &VolumeRef, claim: &MountClaim) -> CatalogError {
        let node = match self.view().await {
            Ok(view) => view.node_name(claim.node),
            Err(_) => claim.node.to_string(),
        };
        CatalogError::InUse(format!(
            "volume `{name}` is mounted on node {node} at {}; unmount it there first (storageos volume unmount {name})",
            claim.mountpoint
        ))
    }

    /// True: it happened; false: a comparison (or the lease) did not hold.
    pub(super) async fn transact(&self, compares: Vec<Compare>, changes: Vec<Change>) -> Result<bool, CatalogError> {
        let outcome = self.store.transact(Transaction { compares, changes }).await?;
        Ok(matches!(outcome, Outcome::Committed(_)))
    }
}

/// Every node as placement sees it.
#[must_use]
pub fn candidates(view: &View) -> Vec<Candidate<'_>> {
    let nodes = view.nodes.values();
    nodes
        .map(|node| Candidate {
            node,
            alive: view.live.contains(&node.id),
            copies: view.copies_on(node.id),
        })
        .collect()
}

/// Why a node may not be deleted, if so.
fn needed(view: &View, node: &Node) -> Option<String> {
    if view.live.contains(&node.id) {
        return Some("it is online; drain it (storageos node drain), stop its daemon, then delete it".to_owned());
    }
    let (mut holds, mut last) = (Vec::new(), Vec::new());
    for volume in view.volumes.values() {
        let configuration = &volume.configuration;
        let name = format!("{}/{}", volume.namespace, volume.name);
        if configuration.in_sync.contains(&node.id) || configuration.syncing.contains(&node.id) {
            holds.push(name);
        } else if configuration.lost.contains_key(&node.id)
            && !configuration.in_sync.iter().any(|holder| view.live.contains(holder))
        {
            last.push(name);
        }
    }
    if !holds.is_empty() {
        return Some(format!(
            "it holds copies of {}; wait until they are replaced, or remove the volumes",
            holds.join(", ")
        ));
    }
    (!last.is_empty()).then(|| {
        format!(
            "no up-to-date copy of {} is online, and its out-of-date one may be all that is left",
            last.join(", ")
        )
    })
}

/// What a deleted node is told.
pub(super) fn deleted_text(name: &str) -> String {
    format!(
        "this node (`{name}`) was deleted from the cluster; to use the machine again, stop the daemon, remove its data directory, and let it \
         join as a new node"
    )
}

/// The name in a deleted node's row.
pub(super) fn grave_name(key: &str, value: &str) -> Option<String> {
    decode::<Deleted>(key, value).map(|grave| grave.name)
}

pub(super) fn put(key: String, value: String) -> Change {
    Change::Put {
        key,
        value,
        lease: None,
    }
}

pub(super) fn compare(key: &str, revision: Revision) -> Compare {
    Compare {
        key: key.to_owned(),
        revision,
    }
}

pub(super) fn revision(row: &Option<Row>) -> Revision {
    row.as_ref().map_or(0, |row| row.revision)
}

pub(super) fn read<T: serde::de::DeserializeOwned>(key: &str, row: &Row) -> Result<T, CatalogError> {
    decode(key, &row.value)
        .ok_or_else(|| CatalogError::Invalid(format!("the record {key} is of a newer version of storageos")))
}

pub(super) fn not_found(kind: &'static str, name: &str) -> CatalogError {
    CatalogError::NotFound {
        kind,
        name: name.to_owned(),
    }
}

fn exists(kind: &'static str, name: &str) -> CatalogError {
    CatalogError::Exists {
        kind,
        name: name.to_owned(),
    }
}
