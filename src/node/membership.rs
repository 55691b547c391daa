//! What operators do with nodes as members: look who reaches whom, delete those that are gone for good, and go on without a majority.

use super::daemon::Joined;
use super::operations::find_node;
use super::service::Reached;
use crate::api::ApiError;
use crate::api::types::{Connectivity, Recovery};
use crate::cluster::{CatalogError, RECOVERY_STEP, RecoverError, View};
use crate::volume::{Node, NodeId};
use futures::future::join_all;
use std::collections::BTreeMap;

impl Joined {
    /// Goes on from this node's replica of the control plane, without the voters that are lost.
    pub(super) async fn recover(&self, own: &str) -> Result<Recovery, ApiError> {
        let recoveries = self.recover_plane().await.map_err(|error| self.not_recovered(error))?;
        // The lost members may have given out epochs that this replica does not know; copies that heard of them refuse lower ones.
        let floor = recoveries.saturating_mul(RECOVERY_STEP);
        let view = self.control.now().await?;
        for volume in view.volumes.keys() {
            let raised = self.control.catalog.update_volume(*volume, |volume| {
                let epoch = &mut volume.configuration.epoch;
                *epoch = (*epoch).max(floor).saturating_add(1);
                Ok(())
            });
            match raised.await {
                Ok(_) | Err(CatalogError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tracing::warn!(
            recoveries,
            volumes = view.volumes.len(),
            "the control plane goes on from this node"
        );
        Ok(Recovery {
            node_name: own.to_owned(),
            recoveries,
            volumes: view.volumes.len(),
        })
    }

    fn not_recovered(&self, error: RecoverError) -> ApiError {
        let name = |node: NodeId| self.control.view().node_name(node);
        match error {
            RecoverError::Works => ApiError::conflict(error.to_string()).hint("see: storageos cluster health"),
            RecoverError::Majority => {
                ApiError::conflict(error.to_string()).hint("wait some seconds; see: storageos cluster health")
            }
            RecoverError::Behind(node) => {
                let node = name(node);
                ApiError::conflict(format!("node {node} has a newer replica of the control plane")).hint(format!(
                    "run storageos cluster recover on {node}: nothing that it knows is lost then"
                ))
            }
            RecoverError::Already(node) => ApiError::conflict(format!(
                "the control plane was recovered already, as node {} knows; this node joins it by itself",
                name(node)
            )),
            RecoverError::Elsewhere => ApiError::conflict(error.to_string()),
            RecoverError::NoReplica => ApiError::conflict(error.to_string()).hint("run it on another node"),
            RecoverError::Control(error) => ApiError::unavailable(error.to_string()),
        }
    }

    /// Deletes a node that is offline and holds no copies.
    pub(super) async fn delete_node(&self, node: &str) -> Result<(), ApiError> {
        let view = self.control.now().await?;
        let found = find_node(&view, node)?;
        self.control.catalog.delete_node(found.id).await?;
        tracing::info!(node = %found.name, id = %found.id, "node deleted");
        // The record decides whether the node may come back; a membership that cannot be changed now only keeps an idle learner.
        if let Err(error) = self.remove_member(found.id).await {
            tracing::warn!(node = %found.name, %error, "the deleted node is still a member of the control plane");
        }
        Ok(())
    }

    /// Whom a node reaches.
    pub(super) async fn connectivity_of(&self, node: &str) -> Result<Vec<Connectivity>, ApiError> {
        let view = self.control.look().await?;
        let source = find_node(&view, node)?;
        Ok(self.reached_by(&view, &source).await)
    }

    /// Who reaches whom.
    pub(super) async fn connectivity(&self) -> Result<Vec<Connectivity>, ApiError> {
        let view = self.control.look().await?;
        let mut sources: Vec<_> = view.nodes.values().collect();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let rows = join_all(sources.into_iter().map(|source| self.reached_by(&view, source))).await;
        Ok(rows.into_iter().flatten().collect())
    }

    async fn reached_by(&self, view: &View, source: &Node) -> Vec<Connectivity> {
        let mut targets: Vec<&Node> = view
            .nodes
            .values()
            .map(|node| &**node)
            .filter(|n| n.id != source.id)
            .collect();
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        let addresses: BTreeMap<NodeId, String> = targets.iter().map(|n| (n.id, n.address.clone())).collect();
        let told = if source.id == self.node {
            Ok(self.nodes.reach(addresses).await)
        } else {
            self.nodes.ask_reach(source.id, &source.address, addresses).await
        };
        targets
            .iter()
            .map(|target| row(source, target, told.as_ref()))
            .collect()
    }
}

fn row(source: &Node, target: &Node, told: Result<&BTreeMap<NodeId, Reached>, &ApiError>) -> Connectivity {
    let (status, latency_micros, message) = match told.map(|told| told.get(&target.id)) {
        Ok(Some(Reached::Micros(micros))) => ("ok", Some(*micros), String::new()),
        Ok(Some(Reached::Not(why))) => ("failed", None, why.clone()),
        Ok(None) => ("unknown", None, format!("{} did not try", source.name)),
        Err(error) => ("unknown", None, format!("{} cannot be asked: {error}", source.name)),
    };
    Connectivity {
        source: source.name.clone(),
        name: target.name.clone(),
        address: target.address.clone(),
        latency_micros,
        status: status.to_owned(),
        message,
    }
}
