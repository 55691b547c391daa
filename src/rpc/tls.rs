//! Who may be at the other end: TLS 1.3 with certificates of the cluster's authority on both sides, and the list of nodes that are locked out.
//!
//! The handshake proves that a peer has a certificate of the authority, the hello says which node it is, and [`proves`] that the certificate is
//! this node's. Invariants: but for a connection of kind enrol, nobody is served without all three; a session is never resumed, so that every
//! connection is checked anew; the connections of a node are closed when it is locked out.

use super::secure::Cut;
use crate::trust::Credentials;
use crate::trust::tls::{calls_pinned, nobody, proves};
use crate::volume::{ClusterId, NodeId};
use parking_lot::{Mutex, RwLock};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

/// What both sides must want to speak (ALPN).
const PROTOCOL: &[u8] = b"storageos/1";

/// Why credentials cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's key and certificate cannot be used: {0}")]
pub struct CredentialsError(String);

impl From<Error> for CredentialsError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// A connection to whoever has a certificate of the authority with this hash; ours is not shown.
pub(super) fn call_pinned(hash: [u8; 32]) -> Result<rustls::Connection, Error> {
    Ok(ClientConnection::new(calls_pinned(hash, PROTOCOL)?, nobody()?)?.into())
}

/// What a node with a certificate calls and answers with.
pub(super) struct Keys {
    pub(super) cluster: ClusterId,
    pub(super) credentials: Credentials,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Keys {
    fn new(credentials: &Credentials) -> Result<Self, CredentialsError> {
        let proof = credentials.proof();
        let certificate = CertificateDer::from(proof.certificate());
        if !proves(&certificate, credentials.node, credentials.cluster) {
            return Err(CredentialsError("the certificate is not this node's".to_owned()));
        }
        Ok(Self {
            cluster: credentials.cluster,
            credentials: credentials.clone(),
            client: proof.calls(PROTOCOL)?,
            // A node that is joining has none; what it may do is decided by its hello.
            server: proof.answers(PROTOCOL, true)?,
        })
    }

    pub(super) fn call(&self) -> Result<rustls::Connection, Error> {
        Ok(ClientConnection::new(self.client.clone(), nobody()?)?.into())
    }

    pub(super) fn answer(&self) -> Result<rustls::Connection, Error> {
        Ok(ServerConnection::new(self.server.clone())?.into())
    }
}

/// What a node has to prove itself and to check others; shared by the clones of an identity.
#[derive(Default)]
pub(super) struct Locks {
    keys: RwLock<Option<Arc<Keys>>>,
    locked_out: RwLock<BTreeSet<NodeId>>,
    /// Connections whose peer is known.
    open: Mutex<Vec<Weak<Cut>>>,
}

impl Locks {
    /// The present ones, if there are any.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().clone()
    }

    /// Connections made from now on use these.
    pub(super) fn set(&self, node: NodeId, credentials: &Credentials) -> Result<(), CredentialsError> {
        if credentials.node != node {
            return Err(CredentialsError(format!("they are those of node {}", credentials.node)));
        }
        let keys = Keys::new(credentials)?;
        *self.keys.write() = Some(Arc::new(keys));
        Ok(())
    }

    /// Lets nobody but the others in, and closes the connections of these.
    pub(super) fn lock_out(&self, nodes: &BTreeSet<NodeId>) {
        if *self.locked_out.read() == *nodes {
            return;
        }
        self.locked_out.write().clone_from(nodes);
        for cut in self.open.lock().iter().filter_map(Weak::upgrade) {
            if cut.peer().is_some_and(|peer| nodes.contains(&peer)) {
                cut.cut();
            }
        }
    }

    /// Notes whose a connection is; false: this node is locked out.
    pub(super) fn admit(&self, cut: &Arc<Cut>, peer: NodeId) -> bool {
        cut.set_peer(peer);
        let mut open = self.open.lock();
        if open.len() == open.capacity() {
            open.retain(|cut| cut.strong_count() > 0);
        }
        open.push(Arc::downgrade(cut));
        drop(open);
        // After it can be found, so that one that is locked out at this moment is seen by one of the two.
        !self.locked_out.read().contains(&peer)
    }
}

/// Credentials of an authority that this process has for each cluster.
#[cfg(test)]
pub(crate) fn sample(node: NodeId, cluster: ClusterId) -> Credentials {
    let year = std::time::Duration::from_secs(365 * 86400);
    sample_of(node, cluster, jiff::Timestamp::now(), year)
}

/// The same, as issued at a time for a time.
#[cfg(test)]
pub(crate) fn sample_of(
    node: NodeId,
    cluster: ClusterId,
    at: jiff::Timestamp,
    life: std::time::Duration,
) -> Credentials {
    use crate::trust::{Authority, Key};
    static AUTHORITIES: Mutex<std::collections::BTreeMap<ClusterId, Authority>> =
        Mutex::new(std::collections::BTreeMap::new());
    let long_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1000);
    let authority = AUTHORITIES
        .lock()
        .entry(cluster)
        .or_insert_with(|| Authority::new(cluster, long_ago).unwrap())
        .clone();
    let key = Key::generate().unwrap();
    let issued = authority.issue(node, key.public(), life, 0, at).unwrap();
    Credentials::new(node, cluster, &key, issued, authority.certificate().to_vec())
}
