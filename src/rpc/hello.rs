//! The first bytes of a connection: who calls, from which cluster, and for what.
//!
//! The caller sends 56 bytes, the called answers with 56, then frames follow. Both are fixed-size and carry a check, so
//! that a stray client is told apart before anything is parsed. See `docs/formats.md` for the bytes.
//!
//! It travels inside TLS. What it says of the node must be what the certificate says; a caller without one (a node that is joining) may only
//! open [`Kind::Enrol`].

use super::tls::{CredentialsError, Keys, Locks};
use crate::trust::Credentials;
use crate::trust::tls::proves;
use crate::volume::{ClusterId, NodeId};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Version of hello and frames. Raised when a peer of the old version could misread the new.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of a hello and of its answer.
pub(super) const LENGTH: usize = 56;
const MAGIC: [u8; 8] = *b"StorOSr\n";
const CHECKED: usize = 48;

/// What a connection is for. One kind a connection, so that bulk data never delays control messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The control plane: Raft, join.
    Control = 1,
    /// Requests from node to node.
    Node = 2,
    /// Block reads and writes.
    Data = 3,
    /// Bulk copying between copies.
    Sync = 4,
    /// A node that joins asks for its certificate; the only kind that needs none.
    Enrol = 5,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// The called speaks another version.
    #[error("it speaks another protocol version")]
    Version = 1,
    /// The called belongs to another cluster, or to none yet.
    #[error("it belongs to another cluster")]
    Cluster = 2,
    /// The called serves no such kind of connection.
    #[error("it does not serve this kind of connection")]
    Kind = 3,
    /// The called has as many connections as it may have.
    #[error("it has too many connections")]
    Busy = 4,
    /// The caller's certificate does not say that it is the node that its hello says.
    #[error("this node did not prove who it is")]
    Unproven = 5,
    /// The caller was deleted from the cluster.
    #[error("this node was deleted from the cluster")]
    Deleted = 6,
}

impl Refusal {
    fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::Version,
            Self::Cluster,
            Self::Kind,
            Self::Busy,
            Self::Unproven,
            Self::Deleted,
        ];
        all.into_iter().find(|refusal| *refusal as u8 == byte)
    }
}

/// The node's cluster id was already set to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node already belongs to cluster {0}")]
pub struct IdentityError(pub ClusterId);

/// Who this node is. Clones share the cluster id, which a joining node learns once, after its server started, and what proves it, which is
/// renewed from time to time.
#[derive(Clone)]
pub struct Identity {
    node: NodeId,
    cluster: Arc<OnceLock<ClusterId>>,
    locks: Arc<Locks>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {:?})", self.node, self.cluster())
    }
}

impl Identity {
    /// The identity of a node; without a cluster it can only join one.
    #[must_use]
    pub fn new(node: NodeId, cluster: Option<ClusterId>) -> Self {
        let cell = OnceLock::new();
        if let Some(cluster) = cluster {
            // A new cell is empty.
            let _ = cell.set(cluster);
        }
        Self {
            node,
            cluster: Arc::new(cell),
            locks: Arc::default(),
        }
    }

    /// One with a certificate, of an authority that all identities of this cluster in this process share.
    #[cfg(test)]
    pub(crate) fn sample(node: NodeId, cluster: ClusterId) -> Self {
        let identity = Self::new(node, Some(cluster));
        identity.set_credentials(&super::tls::sample(node, cluster)).unwrap();
        identity
    }

    /// What the node proves itself with on connections from now on; those that are open stay.
    ///
    /// # Errors
    /// They do not fit together, or are not this node's.
    pub fn set_credentials(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        self.locks.set(self.node, credentials)
    }

    /// What it proves itself with, if it has something yet.
    #[must_use]
    pub fn credentials(&self) -> Option<Credentials> {
        self.locks.keys().map(|keys| keys.credentials.clone())
    }

    /// Serves and calls any nodes but these, and closes the connections with them.
    pub fn lock_out(&self, nodes: &BTreeSet<NodeId>) {
        self.locks.lock_out(nodes);
    }

    pub(super) fn locks(&self) -> &Locks {
        &self.locks
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its cluster, if it belongs to one yet.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster.get().copied()
    }

    /// Says which cluster the node belongs to. Saying the same again is no error.
    ///
    /// # Errors
    /// The node already belongs to another cluster.
    pub fn set_cluster(&self, cluster: ClusterId) -> Result<(), IdentityError> {
        let set = *self.cluster.get_or_init(|| cluster);
        if set == cluster {
            Ok(())
        } else {
            Err(IdentityError(set))
        }
    }
}

/// Either direction's message: `code` is the kind in a hello, 0 or the refusal in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: u16,
    pub(super) code: u8,
    pub(super) cluster: Option<ClusterId>,
    pub(super) node: NodeId,
}

impl Hello {
    /// A node with a certificate says of which cluster that is, also before it is a member.
    pub(super) fn new(node: NodeId, cluster: Option<ClusterId>, code: u8) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            code,
            cluster,
            node,
        }
    }

    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = self.code;
        bytes[11] = u8::from(self.cluster.is_some());
        if let Some(cluster) = &self.cluster {
            bytes[12..28].copy_from_slice(cluster.as_bytes());
        }
        bytes[28..44].copy_from_slice(self.node.as_bytes());
        Self::seal(&mut bytes);
        bytes
    }

    /// Makes the check fit the rest.
    pub(super) fn seal(bytes: &mut [u8; LENGTH]) {
        let hash = blake3::hash(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&hash.as_bytes()[..LENGTH - CHECKED]);
    }

    /// `None`: not a hello.
    pub(super) fn decode(bytes: &[u8; LENGTH]) -> Option<Self> {
        let hash = blake3::hash(&bytes[..CHECKED]);
        if bytes[0..8] != MAGIC || bytes[CHECKED..] != hash.as_bytes()[..LENGTH - CHECKED] {
            return None;
        }
        let cluster: [u8; 16] = bytes[12..28].try_into().ok()?;
        let node: [u8; 16] = bytes[28..44].try_into().ok()?;
        Some(Self {
            version: u16::from_le_bytes([bytes[8], bytes[9]]),
            code: bytes[10],
            cluster: (bytes[11] == 1).then(|| ClusterId::from_bytes(cluster)),
            node: NodeId::from_bytes(node),
        })
    }

    /// What an answer says; `None`: accepted.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        if self.version != PROTOCOL_VERSION {
            return Some(Refusal::Version);
        }
        match self.code {
            0 => None,
            // An unknown reason comes from a newer version of the same protocol.
            code => Some(Refusal::from_byte(code).unwrap_or(Refusal::Version)),
        }
    }

    /// Whether a node with these keys takes a caller with this hello and this certificate; the kind, and whether it is locked out, are checked apart.
    pub(super) fn admit(&self, keys: &Keys, certificate: Option<&CertificateDer<'_>>) -> Result<(), Refusal> {
        if self.version != PROTOCOL_VERSION {
            return Err(Refusal::Version);
        }
        if self.code == Kind::Enrol as u8 {
            return Ok(());
        }
        if self.cluster != Some(keys.cluster) {
            return Err(Refusal::Cluster);
        }
        match certificate {
            Some(certificate) if proves(certificate, self.node, keys.cluster) => Ok(()),
            Some(_) | None => Err(Refusal::Unproven),
        }
    }
}
