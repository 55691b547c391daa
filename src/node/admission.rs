//! How nodes prove who they are: this node's certificate, those that it gives to nodes that join, and the nodes that are locked out.
//!
//! # Getting a certificate
//! A node that makes a cluster makes its authority, too. A node that joins shows a token to a member, over a connection on which it has checked that the other
//! end's certificate is of the authority that the token names, and gets a certificate for the key that it made; the key never leaves it. With etcd (and in
//! tests the memory), whoever reads the records can read the authority's key: such a node needs no token and certifies itself.
//!
//! # Keeping it
//! Every member can read the authority's key, so it renews its own certificate, long before it expires, from its own replica of the records, or from etcd; open
//! connections go on. One that was away until it expired does the same at its start. So no member needs another one to prove itself to it.
//!
//! # Losing it
//! The nodes that were deleted are in the records; the daemon tells its connections' side, which closes theirs and takes none from them. At the start
//! the node's own replica says who they are, before anybody is listened to.

use super::control::Control;
use super::daemon::{Joined, Shared, StartError};
use super::plane::Plane;
use super::service::Refused;
use crate::api::types::{TokenCreate, TokenInfo, TokenMade, TokenUseInfo};
use crate::api::{ApiError, Code};
use crate::cluster::Catalog;
use crate::rpc::{self, ConnectError, Connection, Identity, Refusal};
use crate::trust::{Credentials, Issued, Key, Token, TokenId, pin};
use crate::volume::{ClusterId, NodeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Time for a member to be reached, and for its answer: it asks the control plane.
const REACH: Duration = Duration::from_secs(5);
const ENROL: Duration = Duration::from_secs(20);
/// How long a node that is not let in waits for the answer.
const DENIED: Duration = Duration::from_secs(1);
/// Between two looks at the clock: it may be set.
const LOOK: Duration = Duration::from_secs(3600);
/// Pause after a certificate could not be renewed; doubles up to the second.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Longest text of a token's file.
const LONGEST_FILE: u64 = 4096;

/// Where a token is, if there is one. It is looked for when it is needed, so a file need not be there for ever.
#[derive(Clone, Default)]
pub enum TokenSource {
    /// There is none.
    #[default]
    None,
    /// The text itself.
    Text(String),
    /// In a file.
    File(PathBuf),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl TokenSource {
    fn read(&self) -> Result<Option<Token>, ApiError> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Text(text) => text.clone(),
            Self::File(path) => {
                let failed =
                    |why: &dyn fmt::Display| ApiError::invalid(format!("token file {}: {why}", path.display()));
                match std::fs::metadata(path) {
                    Ok(found) if found.len() > LONGEST_FILE => return Err(failed(&"it is too long")),
                    Ok(_) => {}
                    Err(error) => return Err(failed(&error)),
                }
                std::fs::read_to_string(path).map_err(|e| failed(&e))?
            }
        };
        parse(&text).map(Some)
    }
}

fn parse(text: &str) -> Result<Token, ApiError> {
    text.parse::<Token>().map_err(|error| {
        ApiError::invalid(error.to_string()).hint("make one on a node of the cluster: storageos cluster token create")
    })
}

/// What a joining node says.
#[derive(Serialize, Deserialize)]
pub(super) struct Enrol {
    pub(super) token: [u8; 8],
    pub(super) secret: [u8; 16],
    pub(super) node: NodeId,
    pub(super) public: Vec<u8>,
}

/// What it gets.
#[derive(Serialize, Deserialize)]
pub(super) struct Enrolled {
    cluster: ClusterId,
    issued: Issued,
    authority: Vec<u8>,
}

/// Uses what an earlier daemon kept in the data directory; fails if it is not this node's.
pub(super) fn load(data_dir: &Path, identity: &Identity) -> Result<(), StartError> {
    let Some(credentials) = Credentials::load(data_dir)? else {
        return Ok(());
    };
    if identity.cluster().is_some_and(|cluster| cluster != credentials.cluster) {
        return Err(StartError::OtherCertificate(credentials.cluster));
    }
    identity.set_credentials(&credentials)?;
    Ok(())
}

/// Before anybody is listened to: locks out the deleted nodes that the node's own replica knows, and renews from it what has expired or was lost.
pub(super) fn prepare(plane: &Plane, data_dir: &Path, identity: &Identity) -> Result<(), StartError> {
    identity.lock_out(&plane.known_deleted());
    let Some(cluster) = identity.cluster() else {
        return Ok(());
    };
    let now = Timestamp::now();
    if identity
        .credentials()
        .is_some_and(|credentials| credentials.expires > now)
    {
        return Ok(());
    }
    match plane.known_issuer(cluster) {
        Some(issuer) => {
            let credentials = issuer.certify(identity.node())?;
            keep(data_dir, identity, &credentials)
        }
        // Its records are elsewhere, and it asks for them when they answer.
        None if !plane.is_own() || identity.credentials().is_some() => Ok(()),
        None => Err(StartError::NoCertificate(cluster)),
    }
}

fn keep(data_dir: &Path, identity: &Identity, credentials: &Credentials) -> Result<(), StartError> {
    // First on the disk: what is proved to others must be there after a restart.
    credentials.save(data_dir)?;
    identity.set_credentials(credentials)?;
    tracing::info!(expires = %credentials.expires, "this node has a new certificate");
    Ok(())
}

impl Shared {
    fn keep(&self, credentials: &Credentials) -> Result<(), ApiError> {
        keep(self.data.path(), &self.identity, credentials)
            .map_err(|error| ApiError::new(Code::Failed, error.to_string()))
    }

    /// A certificate by whoever can read the authority's key, as this node can.
    pub(super) async fn certify(&self, catalog: &Catalog) -> Result<(), ApiError> {
        let credentials = catalog.certify(self.node).await?;
        self.keep(&credentials)
    }

    /// A new certificate for a member: by its own replica of the records, so that it needs nobody, or else by the records elsewhere.
    async fn renew(&self, control: &Control) -> Result<(), ApiError> {
        let issuer = self
            .identity
            .cluster()
            .and_then(|cluster| self.plane.known_issuer(cluster));
        match issuer {
            Some(issuer) => {
                let made = issuer.certify(self.node);
                self.keep(&made.map_err(|error| ApiError::internal(error.to_string()))?)
            }
            None => self.certify(&control.catalog).await,
        }
    }

    /// The token given at the start.
    pub(super) fn token_at_start(&self) -> Result<Option<Token>, ApiError> {
        self.config.token.read()
    }

    /// Gets a certificate from one of the members at these addresses, unless the node has one of that cluster.
    pub(super) async fn enrol(&self, addresses: &[String], token: Option<&Token>) -> Result<(), ApiError> {
        let known = self
            .identity
            .credentials()
            .filter(|known| known.expires > Timestamp::now());
        let token = match (token, known) {
            (None, Some(_)) => return Ok(()),
            (Some(token), Some(known)) if pin(known.proof().authority()) == token.authority => return Ok(()),
            (Some(token), _) => token,
            (None, None) => {
                return Err(ApiError::new(Code::Denied, "a node needs a token to join").hint(
                    "make one on a node of the cluster: storageos cluster token create\nand give it here with --token-file FILE",
                ));
            }
        };
        let mut pending = self.pending.lock().await;
        // The same key again for the same token: the answer of an earlier attempt may have been lost.
        if pending.as_ref().is_none_or(|(of, _)| *of != token.id) {
            let key = Key::generate().map_err(|error| ApiError::internal(error.to_string()))?;
            *pending = Some((token.id, key));
        }
        let Some((_, key)) = &*pending else {
            return Err(ApiError::internal("there is no key"));
        };
        let mut last = ApiError::invalid("which cluster is to be joined?")
            .hint("give the address where a member's daemon listens (its --listen), as 10.0.0.1:5703");
        for address in addresses {
            match self.enrol_at(address, token, key).await {
                Ok(credentials) => {
                    self.keep(&credentials)?;
                    *pending = None;
                    return Ok(());
                }
                // Another member may answer.
                Err(error) if error.code == Code::Unavailable => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn enrol_at(&self, address: &str, token: &Token, key: &Key) -> Result<Credentials, ApiError> {
        let connection = rpc::connect_pinned(address, token.authority, &self.identity, REACH)
            .await
            .map_err(|error| unreached(&error))?;
        let request = Enrol {
            token: token.id.0,
            secret: token.secret,
            node: self.node,
            public: key.public().to_vec(),
        };
        let request = postcard::to_allocvec(&request).map_err(|error| ApiError::internal(error.to_string()))?;
        let silent = |why: &dyn fmt::Display| ApiError::unavailable(format!("{address} did not answer: {why}"));
        let answer = connection.ask(&request, ENROL).await.map_err(|e| silent(&e))?;
        let answer: Result<Enrolled, Refused> = postcard::from_bytes(&answer).map_err(|e| silent(&e))?;
        let Enrolled {
            cluster,
            issued,
            authority,
        } = answer?;
        if pin(&authority) != token.authority {
            return Err(silent(&"its answer is of another authority"));
        }
        Ok(Credentials::new(self.node, cluster, key, issued, authority))
    }

    /// Answers a node that wants a certificate.
    pub(super) async fn admit(&self, connection: Connection) {
        let address = connection.address;
        let answered = connection.answer(ENROL, |request| async move {
            let answer = self.admitted(&request).await;
            if let Err(error) = &answer {
                tracing::warn!(%address, %error, "a node was not let into the cluster");
                // Bounds how often strangers have the control plane asked, and the log written.
                tokio::time::sleep(DENIED).await;
            }
            postcard::to_allocvec(&answer.map_err(Refused::from)).unwrap_or_default()
        });
        if let Err(error) = answered.await {
            tracing::debug!(%address, %error, "a node that wanted to join went away");
        }
    }

    async fn admitted(&self, request: &[u8]) -> Result<Enrolled, ApiError> {
        let request: Enrol =
            postcard::from_bytes(request).map_err(|_| ApiError::new(Code::Usage, "the request cannot be read"))?;
        let joined = self.joined()?;
        let token = TokenId(request.token);
        let (issued, authority) = joined
            .control
            .catalog
            .redeem(token, &request.secret, request.node, &request.public)
            .await?;
        tracing::info!(node = %request.node, %token, "a node got its certificate by a token");
        Ok(Enrolled {
            cluster: joined.cluster,
            issued,
            authority,
        })
    }

    /// Keeps the certificate fresh and deleted nodes out, as long as the node is a member.
    pub(super) async fn keep_locks(self: Arc<Self>, control: Control) {
        let mut view = control.watch();
        let mut pause = RETRY;
        loop {
            let (known, deleted, renewals) = {
                let view = view.borrow_and_update();
                (view.revision > 0, view.deleted.clone(), view.renewals)
            };
            // Before the records were heard of, what the node's own replica knows counts.
            if known {
                self.identity.lock_out(&deleted);
            }
            let wait = self.identity.credentials().map_or(Duration::ZERO, |credentials| {
                if credentials.renewals < renewals {
                    return Duration::ZERO;
                }
                let left = credentials.due().duration_since(Timestamp::now());
                Duration::try_from(left).unwrap_or_default()
            });
            let wait = if wait.is_zero() {
                match self.renew(&control).await {
                    Ok(()) => {
                        pause = RETRY;
                        continue;
                    }
                    Err(error) => tracing::warn!(%error, "this node's certificate cannot be renewed yet, trying again"),
                }
                let wait = pause;
                pause = (pause * 2).min(LONGEST_RETRY);
                wait
            } else {
                wait.min(LOOK)
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = view.changed() => if changed.is_err() {
                    // The daemon ends.
                    return;
                },
            }
        }
    }
}

/// Why a member could not be asked for a certificate.
fn unreached(error: &ConnectError) -> ApiError {
    match error {
        ConnectError::Untrusted { address, reason } => ApiError::new(
            Code::Denied,
            format!("the node at {address} is not of the cluster that the token is for, or the certificate that it shows is not valid: {reason}"),
        )
        .hint("look whether address and token belong together, and at the clocks of both nodes"),
        ConnectError::Refused {
            reason: Refusal::Busy, ..
        }
        | ConnectError::Io { .. }
        | ConnectError::Timeout(_) => {
            ApiError::unavailable(error.to_string()).hint("give the address where a member's daemon listens (its --listen), as 10.0.0.1:5703")
        }
        _ => ApiError::unavailable(error.to_string()),
    }
}

impl Joined {
    /// `cluster token create`.
    pub(super) async fn create_token(&self, wanted: &TokenCreate) -> Result<TokenMade, ApiError> {
        let life = Duration::from_secs(wanted.ttl_seconds);
        let (token, record) = self.control.catalog.create_token(life, wanted.uses).await?;
        tracing::info!(token = %token.id, uses = wanted.uses, expires = %record.expires_at, "token made");
        Ok(TokenMade {
            id: token.id.to_string(),
            token: token.text(),
            expires_at: record.expires_at,
            uses: record.uses,
        })
    }

    /// `cluster token ls`.
    pub(super) async fn tokens(&self) -> Result<Vec<TokenInfo>, ApiError> {
        let view = self.control.view();
        let tokens = self.control.catalog.tokens().await?.into_iter();
        let info = tokens.map(|(id, record)| TokenInfo {
            id: id.to_string(),
            created_at: record.created_at,
            expires_at: record.expires_at,
            uses: record.uses,
            used: record
                .used
                .into_iter()
                .map(|used| TokenUseInfo {
                    node: used.node,
                    node_name: view.node_name(used.node),
                    at: used.at,
                })
                .collect(),
        });
        Ok(info.collect())
    }

    /// `cluster token rm`.
    pub(super) async fn remove_token(&self, id: &str) -> Result<(), ApiError> {
        let id: TokenId = id.parse().map_err(|_| ApiError::not_found("token", id))?;
        self.control.catalog.remove_token(id).await?;
        tracing::info!(token = %id, "token removed");
        Ok(())
    }
}

/// A token as a user gave it.
pub(super) fn given(token: Option<&str>) -> Result<Option<Token>, ApiError> {
    token.map(parse).transpose()
}
