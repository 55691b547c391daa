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
mod token;
pub(crate) mod verify;

pub use authority::{Authority, Issued, Key};
pub use client::{ClientCredentials, ClientId};
pub use credentials::{Credentials, DIRECTORY};
pub use token::{PREFIX as TOKEN_PREFIX, Token, TokenError, TokenId};

use crate::volume::{ClusterId, NodeId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

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

/// Adds a PEM block to a text.
fn pem(text: &mut String, label: &str, der: &[u8]) {
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        // base64 is ASCII.
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

/// A PEM file with lines `Name: value` before its blocks, as the format allows: two certificates, the second the authority's, and a key.
struct PemFile {
    certificate: Vec<u8>,
    authority: Vec<u8>,
    key: Vec<u8>,
}

impl PemFile {
    fn parse(text: &str) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        let certificates = certificates.map_err(|e| format!("its certificates cannot be read: {e:?}"))?;
        let [certificate, authority] = certificates.as_slice() else {
            return Err("it does not hold two certificates".to_owned());
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(bytes).map_err(|e| format!("its key cannot be read: {e:?}"))?;
        Ok(Self {
            certificate: certificate.to_vec(),
            authority: authority.to_vec(),
            key: key.secret_pkcs8_der().to_vec(),
        })
    }

    /// A line's value.
    fn line<T: std::str::FromStr>(text: &str, name: &str) -> Result<T, String> {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| format!("no line {name} that can be read"))
    }
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
