//! Puts a cluster's exported records into another control store, without a daemon.
//!
//! Into etcd from anywhere; into the embedded store in the data directory of one node of the cluster, which then is the first member of its
//! control plane, and the others join it.

use super::ControlConfig;
use super::data_dir::{DataDir, DataDirError};
use crate::cluster::{Catalog, CatalogError, ControlError, EtcdStore, Export, RaftStore};
use crate::rpc::Identity;
use crate::volume::{ClusterId, NodeId};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why records could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The embedded store is in a data directory.
    #[error("which node begins? Name its data directory (--data-dir)")]
    NoDataDir,
    /// Not a node of this cluster.
    #[error("the node in {directory} belongs to {}, the export is of cluster {export}", .node.map_or_else(|| "no cluster".to_owned(), |c| format!("cluster {c}")))]
    OtherCluster {
        /// The data directory.
        directory: PathBuf,
        /// Its node's cluster.
        node: Option<ClusterId>,
        /// The export's.
        export: ClusterId,
    },
    /// Its record is missing.
    #[error("the export has no record of node {0}")]
    UnknownNode(NodeId),
    /// There are records already.
    #[error("{0} holds a control store already: move it away on every node")]
    Used(PathBuf),
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] ControlError),
    /// It refuses.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Writes exported records into the store of `control`, which must hold no cluster.
///
/// # Errors
/// See [`ImportError`].
pub async fn import(control: &ControlConfig, data_dir: Option<&Path>, export: &Export) -> Result<(), ImportError> {
    match control {
        ControlConfig::Etcd(config) => {
            // Nobody's identity: the fence is for what is there, and nothing is.
            let identity = Identity::new(NodeId::from_bytes([0; 16]), None);
            let store = EtcdStore::new(config.clone(), identity);
            Ok(Catalog::new(Arc::new(store)).import(export).await?)
        }
        ControlConfig::Memory(store) => Ok(Catalog::new(store.clone()).import(export).await?),
        ControlConfig::Embedded(settings) => {
            let directory = data_dir.ok_or(ImportError::NoDataDir)?;
            let data = DataDir::open(directory, None)?;
            if data.cluster() != Some(export.cluster) {
                return Err(ImportError::OtherCluster {
                    directory: directory.to_owned(),
                    node: data.cluster(),
                    export: export.cluster,
                });
            }
            let address = export.address(data.id()).ok_or(ImportError::UnknownNode(data.id()))?;
            let used = std::fs::read_dir(data.control()).is_ok_and(|mut entries| entries.next().is_some());
            if used {
                return Err(ImportError::Used(data.control()));
            }
            let identity = Identity::new(data.id(), data.cluster());
            let store = RaftStore::open(&data.control(), identity, &address, *settings).await?;
            let done = async {
                store.initialise().await?;
                Ok(Catalog::new(Arc::new(store.clone())).import(export).await?)
            };
            let done = done.await;
            store.shutdown().await;
            done
        }
    }
}
