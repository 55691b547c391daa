//! What the API can be asked for. The daemon implements it; tests of the doors put their own behind it.

use super::ApiError;
use super::types::*;
use crate::cluster::Export;
use async_trait::async_trait;

/// Every operation of the API. Names are given as the user typed them; the implementation checks them.
#[async_trait]
#[allow(missing_docs, reason = "each is the route of its name in docs/api.md")]
pub trait Operations: Send + Sync + 'static {
    async fn about(&self) -> Result<About, ApiError>;

    async fn cluster_init(&self) -> Result<Membership, ApiError>;
    async fn cluster_join(&self, request: JoinRequest) -> Result<Membership, ApiError>;
    async fn cluster_tokens(&self) -> Result<Vec<TokenInfo>, ApiError>;
    async fn cluster_token_create(&self, create: TokenCreate) -> Result<TokenMade, ApiError>;
    async fn cluster_token_remove(&self, id: &str) -> Result<(), ApiError>;
    async fn cluster_clients(&self) -> Result<Vec<ClientInfo>, ApiError>;
    async fn cluster_client_create(&self, create: ClientCreate) -> Result<ClientMade, ApiError>;
    async fn cluster_client_remove(&self, id: &str) -> Result<(), ApiError>;
    async fn cluster_rotate(&self) -> Result<(), ApiError>;
    async fn cluster_health(&self) -> Result<ClusterHealth, ApiError>;
    async fn cluster_export(&self) -> Result<Export, ApiError>;
    async fn cluster_inspect(&self) -> Result<ClusterInfo, ApiError>;

    async fn nodes(&self) -> Result<Vec<NodeInfo>, ApiError>;
    async fn node(&self, name: &str) -> Result<NodeInfo, ApiError>;
    async fn node_update(&self, name: &str, update: NodeUpdate) -> Result<NodeInfo, ApiError>;
    async fn cluster_recover(&self) -> Result<Recovery, ApiError>;
    async fn node_delete(&self, name: &str) -> Result<(), ApiError>;
    async fn node_connectivity(&self, name: &str) -> Result<Vec<Connectivity>, ApiError>;
    async fn cluster_connectivity(&self) -> Result<Vec<Connectivity>, ApiError>;
    async fn node_drain(&self, name: &str) -> Result<DrainInfo, ApiError>;

    async fn namespaces(&self) -> Result<Vec<NamespaceInfo>, ApiError>;
    async fn namespace(&self, name: &str) -> Result<NamespaceInfo, ApiError>;
    async fn namespace_create(&self, create: NamespaceCreate) -> Result<NamespaceInfo, ApiError>;
    async fn namespace_remove(&self, name: &str) -> Result<(), ApiError>;

    async fn volumes(&self, filter: VolumeFilter) -> Result<Vec<VolumeInfo>, ApiError>;
    async fn volume(&self, namespace: &str, name: &str) -> Result<VolumeInfo, ApiError>;
    async fn volume_create(&self, create: VolumeCreate) -> Result<VolumeInfo, ApiError>;
    async fn volume_update(&self, namespace: &str, name: &str, update: VolumeUpdate) -> Result<VolumeInfo, ApiError>;
    async fn volume_remove(&self, namespace: &str, name: &str, force: bool) -> Result<(), ApiError>;
    async fn volume_unmount(&self, namespace: &str, name: &str, force: bool) -> Result<(), ApiError>;
    async fn volume_promote(&self, namespace: &str, name: &str, request: PromoteRequest)
    -> Result<Promotion, ApiError>;
    async fn volume_scrub(&self, namespace: &str, name: &str, start: bool) -> Result<ScrubInfo, ApiError>;
    async fn volume_verify(
        &self,
        namespace: &str,
        name: &str,
        request: VerifyRequest,
    ) -> Result<VerifyReport, ApiError>;
    async fn volume_check(&self, namespace: &str, name: &str) -> Result<VolumeCheck, ApiError>;

    async fn events(&self, filter: EventFilter) -> Result<EventList, ApiError>;

    async fn metrics(&self) -> String;
    async fn readiness(&self) -> Readiness;
    async fn diagnostics(&self) -> Result<Vec<u8>, ApiError>;
}
