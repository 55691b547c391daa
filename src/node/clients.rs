//! Clients of the API over the network: who they are, and what the door to them needs of this node.

use super::daemon::{Joined, Shared};
use crate::api::types::{ClientCreate, ClientInfo, ClientMade};
use crate::api::{ApiError, Gatekeeper, no_client};
use crate::trust::tls::proves_client;
use crate::trust::{ClientId, Credentials};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use std::time::Duration;

impl Joined {
    /// `cluster client create`.
    pub(super) async fn create_client(&self, wanted: &ClientCreate) -> Result<ClientMade, ApiError> {
        let public = STANDARD
            .decode(&wanted.public_key)
            .map_err(|error| ApiError::invalid(format!("publicKey: {error}")))?;
        let life = Duration::from_secs(wanted.ttl_seconds);
        let issued = self.control.catalog.create_client(&wanted.name, &public, life).await?;
        tracing::info!(client = %issued.client, name = wanted.name, expires = %issued.expires, "client of the API made");
        Ok(ClientMade {
            id: issued.client.to_string(),
            cluster: issued.cluster,
            certificate: STANDARD.encode(issued.certificate),
            authority: STANDARD.encode(issued.authority),
            expires_at: issued.expires,
        })
    }

    /// `cluster client ls`.
    pub(super) async fn clients(&self) -> Result<Vec<ClientInfo>, ApiError> {
        let clients = self.control.catalog.clients().await?.into_iter();
        let info = clients.map(|(id, record)| ClientInfo {
            id: id.to_string(),
            name: record.name,
            created_at: record.created_at,
            expires_at: record.expires_at,
        });
        Ok(info.collect())
    }

    /// `cluster client rm`.
    pub(super) async fn remove_client(&self, id: &str) -> Result<(), ApiError> {
        let id: ClientId = id.parse().map_err(|_| ApiError::not_found("client", id))?;
        self.control.catalog.remove_client(id).await?;
        tracing::info!(client = %id, "client of the API removed");
        Ok(())
    }
}

impl Gatekeeper for Shared {
    fn credentials(&self) -> Option<Credentials> {
        self.identity.credentials()
    }

    fn client(&self, certificate: &CertificateDer<'_>) -> Result<String, ApiError> {
        let joined = self.joined()?;
        let view = joined.control.view();
        if view.revision == 0 {
            return Err(ApiError::unavailable(
                "this node has not heard of the cluster's records yet",
            ));
        }
        let mut clients = view.clients.iter();
        let found = clients.find(|(id, _)| proves_client(certificate, **id, joined.cluster));
        let (_, record) = found.ok_or_else(no_client)?;
        Ok(record.name.clone())
    }
}
