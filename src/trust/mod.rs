//! Who is who: the cluster's authority (CA), the certificate that each node has of it, and the tokens by which new nodes get theirs.
//!
//! A certificate proves one thing: that its holder is node N of cluster C ([`name_of`]). The authority gives them for public keys and never learns
//! a node's private key. Nothing here does I/O but [`Credentials::load`] and [`Credentials::save`]; the records in the control store are
//! `cluster::trust`'s, connections `rpc`'s. No secret has a `Debug` form that shows it.

mod authority;
mod credentials;
mod token;

pub use authority::{Authority, Issued, Key};
pub use credentials::{Credentials, DIRECTORY};
pub use token::{PREFIX as TOKEN_PREFIX, Token, TokenError, TokenId};

use crate::volume::{ClusterId, NodeId};

/// Why there is no key, certificate or token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A key or certificate cannot be made or used.
    #[error("a key or certificate cannot be made or used: {0}")]
    Crypto(String),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// A file cannot be read or written, or is not what it should be.
    #[error("{0}")]
    File(String),
}

/// The DNS name in a node's certificate. It stands for the node and is never looked up.
#[must_use]
pub fn name_of(node: NodeId, cluster: ClusterId) -> String {
    format!("{node}.{cluster}.storageos.internal")
}

/// What a token says of the authority's certificate (DER).
#[must_use]
pub fn pin(authority: &[u8]) -> [u8; 32] {
    *blake3::hash(authority).as_bytes()
}

/// Fills a secret with the system's random numbers.
fn random<const N: usize>() -> Result<[u8; N], TrustError> {
    use rand::TryRngCore;
    let mut bytes = [0; N];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| TrustError::Random(error.to_string()))?;
    Ok(bytes)
}
