//! The records of the clients of the API over the network: a client without a record is refused, whatever its certificate says.

use super::catalog::{Catalog, CatalogError, put};
use super::records::{Key, encode};
use super::trust::later;
use crate::exec;
use crate::trust::ClientId;
use crate::volume::{ClusterId, check_name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Clients at once: each new connection is compared with all of them.
const MAX_CLIENTS: usize = 256;
/// Longest life of a client's certificate.
const LONGEST: Duration = Duration::from_secs(3650 * 86400);

/// A client, as it is kept. Its certificate is with its owner alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientRecord {
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its certificate ends.
    pub expires_at: Timestamp,
}

/// What a new client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedClient {
    /// Its id.
    pub client: ClientId,
    /// The cluster.
    pub cluster: ClusterId,
    /// DER.
    pub certificate: Vec<u8>,
    /// Until when it holds.
    pub expires: Timestamp,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
}

impl Catalog {
    /// Makes a client of the owner of a public key, and forgets those whose certificates have expired.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`]: the name, the key or the life; [`CatalogError::InUse`]: there are too many; [`CatalogError::Unavailable`]
    pub async fn create_client(&self, name: &str, public: &[u8], life: Duration) -> Result<IssuedClient, CatalogError> {
        check_name(name).map_err(|error| CatalogError::Invalid(format!("the client's name: {error}")))?;
        if life.is_zero() || life > LONGEST {
            return Err(CatalogError::Invalid(
                "a client's certificate holds for ten years at most".to_owned(),
            ));
        }
        let now = exec::time::wall();
        let clients = self.clients().await?.into_iter();
        let clients = clients.map(|(id, client)| (Key::Client(id), client.expires_at));
        let there = self.forget_expired(clients, now).await?;
        if there >= MAX_CLIENTS {
            return Err(CatalogError::InUse(format!(
                "there are {MAX_CLIENTS} clients already; remove some (storageos cluster client ls)"
            )));
        }
        let issued = self
            .issuer()
            .await?
            .issue_client(ClientId::random()?, public, life, now)?;
        let record = ClientRecord {
            name: name.to_owned(),
            created_at: now,
            expires_at: later(now, life),
        };
        let change = put(Key::Client(issued.client).text(), encode(&record));
        self.transact(Vec::new(), vec![change]).await?;
        Ok(issued)
    }

    /// The clients, by their ids.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn clients(&self) -> Result<Vec<(ClientId, ClientRecord)>, CatalogError> {
        let id = |key| match key {
            Key::Client(id) => Some(id),
            _ => None,
        };
        self.grants("clients/", id).await
    }

    /// Takes a client's leave away.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Unavailable`]
    pub async fn remove_client(&self, id: ClientId) -> Result<(), CatalogError> {
        self.take_away(Key::Client(id), "client", id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::MemoryStore;
    use crate::trust::Key as KeyPair;
    use std::sync::Arc;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn clients_come_go_and_expire() {
        let catalog = Catalog::new(Arc::new(MemoryStore::default()));
        let cluster = ClusterId::random();
        catalog.initialise(cluster).await.unwrap();
        catalog.make_authority(cluster, HOUR).await.unwrap();
        let key = KeyPair::generate().unwrap();
        let made = catalog.create_client("laptop", key.public(), HOUR).await.unwrap();
        assert_eq!(made.cluster, cluster);
        let short = catalog
            .create_client("short", key.public(), Duration::from_nanos(1))
            .await;
        let names =
            |clients: Vec<(ClientId, ClientRecord)>| clients.into_iter().map(|(_, c)| c.name).collect::<Vec<_>>();
        assert_eq!(catalog.clients().await.unwrap().len(), 2);
        // Making one takes the expired away.
        let other = catalog.create_client("other", key.public(), HOUR).await.unwrap();
        let mut found = names(catalog.clients().await.unwrap());
        found.sort();
        assert_eq!(found, ["laptop", "other"]);
        for gone in [other.client, short.unwrap().client] {
            let removed = catalog.remove_client(gone).await;
            assert_eq!(removed.is_ok(), gone == other.client);
        }
        assert_eq!(names(catalog.clients().await.unwrap()), ["laptop"]);
        for (name, public, life) in [
            ("not a name", key.public(), HOUR),
            ("n", &[1, 2][..], HOUR),
            ("n", key.public(), Duration::ZERO),
            ("n", key.public(), LONGEST * 2),
        ] {
            let refused = catalog.create_client(name, public, life).await;
            assert!(matches!(refused, Err(CatalogError::Invalid(_))), "{name} {life:?}");
        }
    }

    #[test]
    fn the_record_has_its_documented_form() {
        let record = ClientRecord {
            name: "laptop".into(),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(
            encode(&record),
            r#"{"v":1,"name":"laptop","createdAt":"1970-01-01T00:00:00Z","expiresAt":"1970-01-01T00:00:00Z"}"#
        );
    }
}
