//! The records of who may be a node: the cluster's authority with its key, and tokens that let nodes join.
//!
//! The authority's key is a record like the others, so that any node can issue certificates, whichever others are dead; who can read the control store
//! can make certificates. Of a token's secret only the hash is kept. A token is used by a compare-and-swap of its record. It stays until it expires, with who used
//! it, so that a node whose answer was lost is answered again, and nobody else.

use super::catalog::{ATTEMPTS, Catalog, CatalogError, compare, grave_name, not_found, put, read, revision};
use super::clients::IssuedClient;
use super::records::{Key, encode};
use crate::exec;
use crate::trust::{Authority, ClientId, Credentials, Issued, Key as KeyPair, Token, TokenId, TrustError};
use crate::volume::{ClusterId, NodeId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Tokens at once.
const MAX_TOKENS: usize = 1000;
/// Uses of a token.
const MAX_USES: u32 = 1000;
/// Longest life of a token.
const LONGEST: Duration = Duration::from_secs(365 * 86400);
/// Shortest validity of certificates.
const SHORTEST: Duration = Duration::from_secs(10);

/// The authority, as it is kept. It has no `Debug` form.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuthorityRecord {
    /// DER in base64.
    certificate: String,
    /// PKCS #8 in base64.
    key: String,
    /// Of the certificates that it issues.
    validity_seconds: u64,
    /// How often an operator wanted all certificates to be renewed.
    pub(super) renewals: u64,
}

/// Who used a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenUse {
    /// The node.
    pub node: NodeId,
    /// blake3 of its public key, in hex.
    pub key: String,
    /// When.
    pub at: Timestamp,
}

/// A token, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// What its secret hashes to, in hex.
    pub secret_hash: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Nodes that may use it in all.
    pub uses: u32,
    /// Those that did.
    pub used: Vec<TokenUse>,
}

impl From<TrustError> for CatalogError {
    fn from(error: TrustError) -> Self {
        Self::Invalid(error.to_string())
    }
}

pub(super) fn later(from: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    from.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// The authority in a record's value.
pub(crate) fn issuer_of(cluster: ClusterId, value: &str) -> Option<Issuer> {
    let record: AuthorityRecord = super::records::decode(&Key::Authority.text(), value)?;
    let certificate = STANDARD.decode(&record.certificate).ok()?;
    let key = STANDARD.decode(&record.key).ok()?;
    Some(Issuer {
        cluster,
        authority: Authority::of_parts(cluster, certificate, key),
        validity: Duration::from_secs(record.validity_seconds),
        renewals: record.renewals,
    })
}

/// An authority, and how it issues.
pub(crate) struct Issuer {
    cluster: ClusterId,
    authority: Authority,
    validity: Duration,
    renewals: u64,
}

impl Issuer {
    fn issue(&self, node: NodeId, public: &[u8]) -> Result<Issued, TrustError> {
        let now = exec::time::wall();
        self.authority.issue(node, public, self.validity, self.renewals, now)
    }

    /// A certificate for a client of the API, until then; and the authority's.
    pub(super) fn issue_client(
        &self,
        client: ClientId,
        public: &[u8],
        life: Duration,
        now: Timestamp,
    ) -> Result<IssuedClient, TrustError> {
        let (certificate, expires) = self.authority.issue_client(client, public, life, now)?;
        Ok(IssuedClient {
            client,
            cluster: self.cluster,
            certificate,
            expires,
            authority: self.authority.certificate().to_vec(),
        })
    }

    /// A fresh key for a node, with a certificate.
    pub(crate) fn certify(&self, node: NodeId) -> Result<Credentials, TrustError> {
        let key = KeyPair::generate()?;
        let issued = self.issue(node, key.public())?;
        let authority = self.authority.certificate().to_vec();
        Ok(Credentials::new(node, self.cluster, &key, issued, authority))
    }
}

impl Catalog {
    /// Makes the cluster's authority, whose certificates hold for `validity`. A second time it changes nothing.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`], [`CatalogError::Unavailable`]
    pub async fn make_authority(&self, cluster: ClusterId, validity: Duration) -> Result<(), CatalogError> {
        if validity < SHORTEST {
            return Err(CatalogError::Invalid(format!(
                "certificates must hold for {SHORTEST:?} at least"
            )));
        }
        let authority = Authority::new(cluster, exec::time::wall())?;
        let record = AuthorityRecord {
            certificate: STANDARD.encode(authority.certificate()),
            key: STANDARD.encode(authority.key()),
            validity_seconds: validity.as_secs(),
            renewals: 0,
        };
        let key = Key::Authority.text();
        let change = put(key.clone(), encode(&record));
        self.transact(vec![compare(&key, 0)], vec![change]).await.map(|_| ())
    }

    /// The cluster's authority.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]: it is the control store of a version without one; [`CatalogError::Unavailable`]
    pub(crate) async fn issuer(&self) -> Result<Issuer, CatalogError> {
        let key = Key::Authority.text();
        let row = self.store().get(&key).await?;
        let cluster = self.cluster().await?;
        let found = row.zip(cluster);
        let found = found.and_then(|(row, cluster)| issuer_of(cluster, &row.value));
        found.ok_or_else(|| not_found("record", &key))
    }

    /// A fresh key for a node, with a certificate. The caller is trusted: it can read the authority's key.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; [`CatalogError::Deleted`]
    pub async fn certify(&self, node: NodeId) -> Result<Credentials, CatalogError> {
        self.not_deleted(node).await?;
        Ok(self.issuer().await?.certify(node)?)
    }

    /// All nodes renew their certificates at once.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]: there is no authority; [`CatalogError::Unavailable`]
    pub async fn renew_certificates(&self) -> Result<(), CatalogError> {
        let key = Key::Authority.text();
        for _ in 0..ATTEMPTS {
            let row = self.store().get(&key).await?.ok_or_else(|| not_found("record", &key))?;
            let mut record: AuthorityRecord = read(&key, &row)?;
            record.renewals += 1;
            let change = put(key.clone(), encode(&record));
            if self.transact(vec![compare(&key, row.revision)], vec![change]).await? {
                return Ok(());
            }
        }
        Err(CatalogError::Conflict("the authority's record".to_owned()))
    }

    async fn not_deleted(&self, node: NodeId) -> Result<(), CatalogError> {
        let grave = Key::Deleted(node).text();
        match self.store().get(&grave).await? {
            Some(row) => Err(CatalogError::Deleted(
                grave_name(&grave, &row.value).unwrap_or_default(),
            )),
            None => Ok(()),
        }
    }

    /// Makes a token by which `uses` nodes may join within `life`, and forgets those that have expired.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`], [`CatalogError::Refused`]: there are too many; [`CatalogError::Unavailable`]
    pub async fn create_token(&self, life: Duration, uses: u32) -> Result<(Token, TokenRecord), CatalogError> {
        if life.is_zero() || life > LONGEST {
            return Err(CatalogError::Invalid("a token lives for a year at most".to_owned()));
        }
        if uses == 0 || uses > MAX_USES {
            return Err(CatalogError::Invalid(format!("a token has 1 to {MAX_USES} uses")));
        }
        let now = exec::time::wall();
        let tokens = self.tokens().await?.into_iter();
        let tokens = tokens.map(|(id, token)| (Key::Token(id), token.expires_at));
        let there = self.forget_expired(tokens, now).await?;
        if there >= MAX_TOKENS {
            return Err(CatalogError::InUse(format!(
                "there are {MAX_TOKENS} tokens already; remove some (storageos cluster token ls)"
            )));
        }
        let issuer = self.issuer().await?;
        let token = Token::new(crate::trust::pin(issuer.authority.certificate()))?;
        let record = TokenRecord {
            secret_hash: Token::hash(token.id, &token.secret).to_hex().to_string(),
            created_at: now,
            expires_at: later(now, life),
            uses,
            used: Vec::new(),
        };
        let change = put(Key::Token(token.id).text(), encode(&record));
        self.transact(Vec::new(), vec![change]).await?;
        Ok((token, record))
    }

    /// The tokens, by their names.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`]
    pub async fn tokens(&self) -> Result<Vec<(TokenId, TokenRecord)>, CatalogError> {
        let id = |key| match key {
            Key::Token(id) => Some(id),
            _ => None,
        };
        self.grants("tokens/", id).await
    }

    /// Takes a token away; nodes that joined by it stay.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Unavailable`]
    pub async fn remove_token(&self, id: TokenId) -> Result<(), CatalogError> {
        self.take_away(Key::Token(id), "token", id).await
    }

    /// Uses a token up for a node, and certifies that the owner of this public key is the node. The same node with the same key may ask again: its first
    /// answer may have been lost.
    ///
    /// # Errors
    /// [`CatalogError::Denied`] says why; [`CatalogError::Deleted`], [`CatalogError::InUse`]: there is such a node already, and it is not the one
    /// that used the token; [`CatalogError::Unavailable`]
    pub async fn redeem(
        &self,
        id: TokenId,
        secret: &[u8; 16],
        node: NodeId,
        public: &[u8],
    ) -> Result<(Issued, Vec<u8>), CatalogError> {
        let issuer = self.issuer().await?;
        let now = exec::time::wall();
        // Before the token is used: it is not lost by what is no key.
        let answer = (issuer.issue(node, public)?, issuer.authority.certificate().to_vec());
        let (key, taken, grave) = (Key::Token(id).text(), Key::Node(node).text(), Key::Deleted(node).text());
        for _ in 0..ATTEMPTS {
            let denied = |why: &str| CatalogError::Denied(format!("the token gives no leave to join: {why}"));
            let row = self.store().get(&key).await?;
            // Whoever does not know the secret learns nothing else.
            let unknown = || denied("it is unknown; it was revoked, or has expired");
            let row = row.ok_or_else(unknown)?;
            let mut token: TokenRecord = read(&key, &row)?;
            let kept = blake3::Hash::from_hex(&token.secret_hash).map_err(|_| unknown())?;
            // In constant time.
            if kept != Token::hash(id, secret) {
                return Err(unknown());
            }
            if token.expires_at <= now {
                return Err(denied(&format!("it expired at {}", token.expires_at)));
            }
            let public = blake3::hash(public).to_hex().to_string();
            if token.used.iter().any(|used| used.node == node && used.key == public) {
                self.not_deleted(node).await?;
                return Ok(answer);
            }
            if token.used.len() >= token.uses as usize {
                let used: Vec<String> = token.used.iter().map(|used| used.node.to_string()).collect();
                return Err(denied(&format!("it was used already, by node {}", used.join(", "))));
            }
            self.not_deleted(node).await?;
            let there = self.store().get(&taken).await?;
            if there.is_some() {
                return Err(CatalogError::InUse(format!("node {node} is in the cluster already")));
            }
            token.used.push(TokenUse {
                node,
                key: public,
                at: now,
            });
            let compares = vec![
                compare(&key, row.revision),
                compare(&taken, revision(&there)),
                compare(&grave, 0),
            ];
            if self.transact(compares, vec![put(key.clone(), encode(&token))]).await? {
                return Ok(answer);
            }
        }
        Err(CatalogError::Conflict(format!("token `{id}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::MemoryStore;
    use crate::volume::Node;
    use std::sync::Arc;

    const HOUR: Duration = Duration::from_secs(3600);

    async fn cluster() -> Catalog {
        let catalog = Catalog::new(Arc::new(MemoryStore::default()));
        let cluster = ClusterId::random();
        catalog.initialise(cluster).await.unwrap();
        catalog.make_authority(cluster, HOUR).await.unwrap();
        catalog
    }

    async fn redeem(catalog: &Catalog, token: &Token, node: NodeId, key: &KeyPair) -> Result<Issued, CatalogError> {
        let redeemed = catalog.redeem(token.id, &token.secret, node, key.public()).await;
        redeemed.map(|(issued, _)| issued)
    }

    fn denied<T: std::fmt::Debug>(result: Result<T, CatalogError>, why: &str) {
        match result {
            Err(CatalogError::Denied(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_token_is_used_once_and_the_node_that_used_it_is_answered_again() {
        let catalog = cluster().await;
        let (token, record) = catalog.create_token(HOUR, 1).await.unwrap();
        assert!(!format!("{record:?}").contains(&format!("{:02x}", token.secret[0]).repeat(2)));
        let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let node = NodeId::random();
        // No key, and no use.
        assert!(catalog.redeem(token.id, &token.secret, node, &[1, 2]).await.is_err());
        redeem(&catalog, &token, node, &first).await.unwrap();
        redeem(&catalog, &token, node, &first).await.unwrap();
        denied(redeem(&catalog, &token, node, &second).await, "used already");
        denied(redeem(&catalog, &token, NodeId::random(), &first).await, "used already");
    }

    #[tokio::test]
    async fn of_many_at_once_as_many_get_in_as_a_token_has_uses() {
        let catalog = cluster().await;
        let (token, _) = catalog.create_token(HOUR, 3).await.unwrap();
        let key = KeyPair::generate().unwrap();
        let all = (0..8).map(|_| redeem(&catalog, &token, NodeId::random(), &key));
        let results = futures::future::join_all(all).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    }

    #[tokio::test]
    async fn wrong_expired_revoked_and_other_clusters_tokens_are_denied() {
        let catalog = cluster().await;
        let key = KeyPair::generate().unwrap();
        let (mut token, _) = catalog.create_token(HOUR, 1).await.unwrap();
        let right = token.secret[3];
        token.secret[3] ^= 1;
        denied(redeem(&catalog, &token, NodeId::random(), &key).await, "unknown");
        token.secret[3] = right;
        let (other, _) = cluster().await.create_token(HOUR, 1).await.unwrap();
        denied(redeem(&catalog, &other, NodeId::random(), &key).await, "unknown");
        catalog.remove_token(token.id).await.unwrap();
        denied(redeem(&catalog, &token, NodeId::random(), &key).await, "unknown");
        assert!(matches!(
            catalog.remove_token(token.id).await,
            Err(CatalogError::NotFound { .. })
        ));
        let (short, _) = catalog.create_token(Duration::from_nanos(1), 1).await.unwrap();
        denied(redeem(&catalog, &short, NodeId::random(), &key).await, "expired");
        // Making one takes the expired away.
        catalog.create_token(HOUR, 1).await.unwrap();
        assert_eq!(catalog.tokens().await.unwrap().len(), 1);
        for (life, uses) in [(Duration::ZERO, 1), (HOUR, 0), (HOUR, 1001), (LONGEST * 2, 1)] {
            let made = catalog.create_token(life, uses).await;
            assert!(matches!(made, Err(CatalogError::Invalid(_))));
        }
    }

    #[tokio::test]
    async fn a_token_makes_nobody_a_node_that_is_there_or_was_deleted() {
        let catalog = cluster().await;
        let key = KeyPair::generate().unwrap();
        let (token, _) = catalog.create_token(HOUR, 1).await.unwrap();
        let there = Node::sample(1);
        catalog.register_node(&there).await.unwrap();
        let taken = redeem(&catalog, &token, there.id, &key).await;
        assert!(matches!(taken, Err(CatalogError::InUse(_))));
        catalog.delete_node(there.id).await.unwrap();
        let deleted = redeem(&catalog, &token, there.id, &key).await;
        assert!(matches!(deleted, Err(CatalogError::Deleted(_))));
        assert!(matches!(catalog.certify(there.id).await, Err(CatalogError::Deleted(_))));
        redeem(&catalog, &token, NodeId::random(), &key).await.unwrap();
    }

    #[tokio::test]
    async fn an_export_has_the_authority_and_no_tokens() {
        let catalog = cluster().await;
        catalog.create_token(HOUR, 1).await.unwrap();
        let export = catalog.export().await.unwrap();
        let to = Catalog::new(Arc::new(MemoryStore::default()));
        to.import(&export).await.unwrap();
        let (before, after) = (catalog.issuer().await.unwrap(), to.issuer().await.unwrap());
        assert_eq!(before.authority.certificate(), after.authority.certificate());
        assert_eq!(to.tokens().await.unwrap().len(), 0);
    }

    #[test]
    fn the_records_have_their_documented_form() {
        let at = Timestamp::UNIX_EPOCH;
        let record = AuthorityRecord {
            certificate: "Yw==".into(),
            key: "aw==".into(),
            validity_seconds: 60,
            renewals: 2,
        };
        assert_eq!(
            encode(&record),
            r#"{"v":1,"certificate":"Yw==","key":"aw==","validitySeconds":60,"renewals":2}"#
        );
        let token = TokenRecord {
            secret_hash: "00".into(),
            created_at: at,
            expires_at: at,
            uses: 1,
            used: vec![TokenUse {
                node: NodeId::from_bytes([1; 16]),
                key: "11".into(),
                at,
            }],
        };
        assert_eq!(
            encode(&token),
            concat!(
                r#"{"v":1,"secretHash":"00","createdAt":"1970-01-01T00:00:00Z","expiresAt":"1970-01-01T00:00:00Z","uses":1,"#,
                r#""used":[{"node":"01010101-0101-0101-0101-010101010101","key":"11","at":"1970-01-01T00:00:00Z"}]}"#
            )
        );
    }
}
