//! Who is who: the cluster's authority (CA), the certificate that each node has of it, and the tokens by which new nodes get theirs.
//!
//! A certificate proves one thing: that its holder is node N of cluster C ([`name_of`]), or client I of the API of cluster C ([`client_name_of`]), never both. The authority gives them for public keys and never learns
//! a node's private key. Nothing here does I/O but [`Credentials::load`] and [`Credentials::save`]; the records in the control store are
//! `cluster::trust`'s, connections `rpc`'s. No secret has a `Debug` form that shows it.

mod authority;
mod client;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod proof;
pub(crate) mod tls;
mod token;

pub use authority::{Authority, Issued, Key};
pub use client::{ClientCredentials, ClientId};
pub use credentials::{Credentials, DIRECTORY};
pub use proof::Proof;
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

/// The DNS name in the certificate of a client of the API. It stands for the client and is never looked up.
#[must_use]
pub fn client_name_of(client: ClientId, cluster: ClusterId) -> String {
    format!("{client}.client.{cluster}.storageos.internal")
}

/// The id of a token or client, as its text has it: 16 hexadecimal digits.
fn read_id(text: &str) -> Option<[u8; 8]> {
    let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    number.map(u64::to_be_bytes)
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
