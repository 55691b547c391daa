//! The node's part of the control plane, whichever store is behind it.

use super::data_dir::DataDir;
use crate::api::ApiError;
use crate::cluster::{Catalog, ControlError, ControlStore, MemoryStore, RaftSettings, RaftStore};
use crate::rpc::{Connection, Identity};
use crate::volume::{ClusterId, NodeId};
use std::fmt;
use std::sync::Arc;

/// Where the cluster's state is kept.
#[derive(Clone)]
pub enum ControlConfig {
    /// By Raft among the nodes.
    Embedded(RaftSettings),
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
        f.write_str(match self {
            Self::Embedded(_) => "Embedded",
            Self::Memory(_) => "Memory",
        })
    }
}

/// Who leads and who votes.
#[derive(Clone, Debug, Default)]
pub(super) struct PlaneStatus {
    pub(super) leader: Option<NodeId>,
    pub(super) voters: Vec<NodeId>,
}

/// See the module's text. Clones share everything.
#[derive(Clone)]
pub(super) enum Plane {
    Embedded(RaftStore),
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
            ControlConfig::Memory(store) => Ok(Self::Memory(store.clone())),
        }
    }

    /// The records' store.
    pub(super) fn store(&self) -> Arc<dyn ControlStore> {
        match self {
            Self::Embedded(store) => Arc::new(store.clone()),
            Self::Memory(store) => store.clone(),
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
        if catalog.cluster().await?.is_none() {
            catalog.initialise(ClusterId::random()).await?;
        }
        catalog
            .cluster()
            .await?
            .ok_or_else(|| ApiError::internal("the new cluster has no id"))
    }

    /// Joins the cluster of whichever of the addresses answers.
    pub(super) async fn join(&self, addresses: &[String]) -> Result<ClusterId, ApiError> {
        match self {
            Self::Embedded(store) => store.join(addresses).await.map_err(|error| {
                ApiError::unavailable(error.to_string())
                    .hint("give the address where a member's daemon listens (its --listen), as 10.0.0.1:5703")
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
                }
            }
            Self::Memory(_) => PlaneStatus::default(),
        }
    }

    /// Serves a connection of kind Control.
    pub(super) async fn serve(&self, connection: Connection) {
        match self {
            Self::Embedded(store) => store.serve(connection).await,
            // Its daemons share memory and have nothing to say to each other.
            Self::Memory(_) => drop(connection),
        }
    }

    /// Stops taking part.
    pub(super) async fn stop(&self) {
        if let Self::Embedded(store) = self {
            store.shutdown().await;
        }
    }
}
