//! The node's part of the control plane, whichever store is behind it.

use super::data_dir::DataDir;
use crate::api::ApiError;
use crate::cluster::{
    Catalog, ControlError, ControlStore, EtcdConfig, EtcdStore, Issuer, MemoryStore, RaftSettings, RaftStore,
    RecoverError, View,
};
use crate::rpc::{Connection, Identity};
use crate::volume::{ClusterId, NodeId};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// Where the cluster's state is kept.
#[derive(Clone)]
pub enum ControlConfig {
    /// By Raft among the nodes.
    Embedded(RaftSettings),
    /// In etcd.
    Etcd(EtcdConfig),
    /// In memory, shared by daemons of one process, gone with it: for tests.
    Memory(Arc<MemoryStore>),
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self::Embedded(RaftSettings::default())
    }
}

impl fmt::Debug for ControlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(_) => f.write_str("Embedded"),
            Self::Etcd(config) => write!(f, "Etcd({config})"),
            Self::Memory(_) => f.write_str("Memory"),
        }
    }
}

/// Who leads and who votes.
#[derive(Clone, Debug, Default)]
pub(super) struct PlaneStatus {
    /// Runs the controller.
    pub(super) leader: Option<NodeId>,
    /// Nodes that vote; none with etcd.
    pub(super) voters: Vec<NodeId>,
    /// With etcd, its endpoints.
    pub(super) etcd: Option<Vec<String>>,
}

/// See the module's text. Clones share everything.
#[derive(Clone)]
pub(super) enum Plane {
    Embedded(RaftStore),
    Etcd(EtcdStore),
    Memory(Arc<MemoryStore>),
}

impl Plane {
    /// `address`: this node's, for its peers.
    pub(super) async fn open(
        config: &ControlConfig,
        data: &DataDir,
        identity: &Identity,
        address: &str,
    ) -> Result<Self, ControlError> {
        match config {
            ControlConfig::Embedded(settings) => RaftStore::open(&data.control(), identity.clone(), address, *settings)
                .await
                .map(Self::Embedded),
            ControlConfig::Etcd(config) => Ok(Self::Etcd(EtcdStore::new(config.clone(), identity.clone()))),
            ControlConfig::Memory(store) => Ok(Self::Memory(store.clone())),
        }
    }

    /// The records' store.
    pub(super) fn store(&self) -> Arc<dyn ControlStore> {
        match self {
            Self::Embedded(store) => Arc::new(store.clone()),
            Self::Etcd(store) => Arc::new(store.clone()),
            Self::Memory(store) => store.clone(),
        }
    }

    /// Whether the records are kept by the nodes themselves, so that a node without a token cannot read them.
    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }

    /// Deleted nodes, as far as this node knows without asking anybody.
    pub(super) fn known_deleted(&self) -> BTreeSet<NodeId> {
        match self {
            Self::Embedded(store) => store.known_deleted(),
            Self::Etcd(_) | Self::Memory(_) => BTreeSet::new(),
        }
    }

    /// The cluster's authority, the same.
    pub(super) fn known_issuer(&self, cluster: ClusterId) -> Option<Issuer> {
        match self {
            Self::Embedded(store) => store.known_issuer(cluster),
            Self::Etcd(_) | Self::Memory(_) => None,
        }
    }

    /// Makes a cluster of this node, or goes on where an earlier attempt was cut short.
    pub(super) async fn init(&self) -> Result<ClusterId, ApiError> {
        if let Self::Embedded(store) = self
            && !store.is_member()
        {
            store
                .initialise()
                .await
                .map_err(|error| ApiError::unavailable(error.to_string()))?;
        }
        let catalog = Catalog::new(self.store());
        let found = catalog.view().await?;
        if let (Self::Etcd(store), Some(cluster), false) = (self, found.cluster, found.nodes.is_empty()) {
            let at = store.config();
            return Err(ApiError::conflict(format!("{at} holds cluster {cluster} already"))
                .hint("join it: storageos cluster join\nor give another prefix: --control etcd://HOST:PORT/PREFIX"));
        }
        if found.cluster.is_none() {
            catalog.initialise(ClusterId::random()).await?;
        }
        catalog
            .cluster()
            .await?
            .ok_or_else(|| ApiError::internal("the new cluster has no id"))
    }

    /// Joins the cluster of whichever of the addresses answers; with etcd, the one that it holds.
    pub(super) async fn join(&self, addresses: &[String]) -> Result<ClusterId, ApiError> {
        match self {
            Self::Embedded(_) if addresses.is_empty() => Err(ApiError::invalid("which cluster is to be joined?").hint(
                "give the address where a member's daemon listens (its --listen), as 10.0.0.1:5703; only with etcd none is needed",
            )),
            Self::Embedded(store) => store.join(addresses).await.map_err(|error| {
                ApiError::unavailable(error.to_string())
                    .hint("give the address where a member's daemon listens (its --listen), as 10.0.0.1:5703")
            }),
            Self::Etcd(store) => Catalog::new(self.store()).cluster().await?.ok_or_else(|| {
                ApiError::unavailable(format!("there is no cluster in {} yet", store.config()))
                    .hint("make it on one node: storageos cluster init")
            }),
            Self::Memory(store) => Catalog::new(store.clone())
                .cluster()
                .await?
                .ok_or_else(|| ApiError::unavailable("there is no cluster yet")),
        }
    }

    /// Who leads and who votes, as known here.
    pub(super) fn status(&self) -> PlaneStatus {
        match self {
            Self::Embedded(store) => {
                let status = store.status();
                PlaneStatus {
                    leader: status.leader,
                    voters: status.voters,
                    etcd: None,
                }
            }
            Self::Etcd(store) => PlaneStatus {
                leader: store.leader(),
                voters: Vec::new(),
                etcd: Some(store.config().endpoints.clone()),
            },
            Self::Memory(_) => PlaneStatus::default(),
        }
    }

    /// What is wrong with it, a sentence each.
    pub(super) async fn problems(&self) -> Vec<String> {
        match self {
            Self::Etcd(store) => {
                let mut problems: Vec<String> = store
                    .health()
                    .await
                    .into_iter()
                    .filter_map(|(endpoint, said)| Some(format!("etcd at {endpoint}: {}", said.err()?)))
                    .collect();
                if problems.len() < store.config().endpoints.len() {
                    problems.extend(store.lost());
                }
                if self.status().leader.is_none() {
                    problems.push("no node leads the control plane".to_owned());
                }
                problems
            }
            Self::Embedded(_) | Self::Memory(_) => {
                let leader = self.status().leader;
                let missing = leader
                    .is_none()
                    .then_some("the control plane has no leader: a majority of its voters does not answer");
                missing.into_iter().map(str::to_owned).collect()
            }
        }
    }

    /// The node is a member from now on; `view` is what it knows.
    pub(super) fn take_part(&self, view: watch::Receiver<Arc<View>>) {
        if let Self::Etcd(store) = self {
            store.take_part(move || {
                let view = view.borrow();
                let live = view.live.iter().filter_map(|node| view.nodes.get(node));
                live.map(|node| (node.id, node.address.clone())).collect()
            });
        }
    }

    /// Whether this node needs nobody's leave to take part: it is a member of the embedded control plane, or the records are elsewhere.
    pub(super) fn is_member(&self) -> bool {
        match self {
            Self::Embedded(store) => store.is_member(),
            Self::Etcd(_) | Self::Memory(_) => true,
        }
    }

    /// Serves a connection of kind Control.
    pub(super) async fn serve(&self, connection: Connection) {
        match self {
            Self::Embedded(store) => store.serve(connection).await,
            // Its daemons share memory, or etcd, and have nothing to say to each other but that they are there.
            Self::Etcd(_) | Self::Memory(_) => drop(connection),
        }
    }

    /// Why this node is no member any more, if so.
    pub(super) fn expelled(&self) -> Option<String> {
        match self {
            Self::Embedded(store) => store.expelled(),
            Self::Etcd(_) | Self::Memory(_) => None,
        }
    }

    /// Hands this node's vote over, as far as there is somebody to take it.
    pub(super) async fn retire(&self) {
        if let Self::Embedded(store) = self
            && let Err(error) = store.retire().await
        {
            tracing::warn!(%error, "this node's vote could not be handed over");
        }
    }

    /// Takes a deleted node out of the membership.
    pub(super) async fn remove_member(&self, node: NodeId) -> Result<(), ControlError> {
        match self {
            Self::Embedded(store) => store.remove_member(node).await,
            Self::Etcd(_) | Self::Memory(_) => Ok(()),
        }
    }

    /// Makes this node's replica the control plane, alone.
    pub(super) async fn recover(&self) -> Result<u64, RecoverError> {
        match self {
            Self::Embedded(store) => store.recover().await,
            Self::Etcd(_) | Self::Memory(_) => Err(RecoverError::Elsewhere),
        }
    }

    /// Stops taking part.
    pub(super) async fn stop(&self) {
        match self {
            Self::Embedded(store) => store.shutdown().await,
            Self::Etcd(store) => store.shutdown().await,
            Self::Memory(_) => {}
        }
    }
}
