//! A client of the API over the network: its name in the cluster, and the file that it proves itself with.
//!
//! The file is like a node's ([`super::Credentials`]): PEM with lines of plain text before it. The key in it is made where the file is, and never sent.

use super::proof::{Proof, line};
use super::{Key, TrustError, random, read_id};
use crate::volume::ClusterId;
use jiff::Timestamp;
use std::fmt;
use std::str::FromStr;

/// Names a client; no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub [u8; 8]);

impl ClientId {
    /// A new one.
    ///
    /// # Errors
    /// [`TrustError::Random`]
    pub fn random() -> Result<Self, TrustError> {
        random().map(Self)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// A text is no client's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a client has 16 hexadecimal digits")]
pub struct ClientIdError;

impl FromStr for ClientId {
    type Err = ClientIdError;

    fn from_str(text: &str) -> Result<Self, ClientIdError> {
        read_id(text).map(Self).ok_or(ClientIdError)
    }
}

/// A client's key and certificate, and the certificate of the authority that nodes must have theirs of.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCredentials {
    /// Whose.
    pub client: ClientId,
    /// What people call it.
    pub name: String,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Until when the certificate holds.
    pub expires: Timestamp,
    proof: Proof,
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientCredentials({} of {})", self.name, self.cluster)
    }
}

impl ClientCredentials {
    /// A key and the certificate (DER) for it, by an authority with this certificate.
    #[must_use]
    pub fn new(
        (client, name): (ClientId, String),
        (cluster, authority): (ClusterId, Vec<u8>),
        (certificate, expires): (Vec<u8>, Timestamp),
        key: &Key,
    ) -> Self {
        Self {
            client,
            name,
            cluster,
            expires,
            proof: Proof::new(key, certificate, authority),
        }
    }

    /// The key and the certificates.
    #[must_use]
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// The file's text; a secret.
    #[must_use]
    pub fn text(&self) -> String {
        self.proof.text(format!(
            "Client: {}\nId: {}\nCluster: {}\nExpires: {}\n",
            self.name, self.client, self.cluster, self.expires
        ))
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self {
            client: line(text, "Id")?,
            name: line(text, "Client")?,
            cluster: line(text, "Cluster")?,
            expires: line(text, "Expires")?,
            proof: Proof::parse(text)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Authority;
    use std::time::Duration;

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let (client, cluster) = (ClientId([7; 8]), ClusterId::from_bytes([1; 16]));
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let authority = Authority::new(cluster, now).unwrap();
        let key = Key::generate().unwrap();
        let issued = authority
            .issue_client(client, key.public(), Duration::from_secs(3000), now)
            .unwrap();
        let made = ClientCredentials::new(
            (client, "laptop".into()),
            (cluster, authority.certificate().to_vec()),
            issued,
            &key,
        );
        let text = made.text();
        assert!(
            text.starts_with(
                "Client: laptop\nId: 0707070707070707\nCluster: 01010101-0101-0101-0101-010101010101\nExpires: 2027-01-15T08:50:00Z\n-----BEGIN CERTIFICATE-----\n"
            ),
            "{text}"
        );
        assert_eq!(ClientCredentials::parse(&text).unwrap(), made);
        for bad in ["", &text[..text.len() / 2], &text.replace("Id: 0", "Id: x")] {
            assert!(ClientCredentials::parse(bad).is_err());
        }
        assert!(!format!("{made:?}").contains("PRIVATE"));
        assert_eq!("0707070707070707".parse(), Ok(client));
        assert_eq!("07".parse::<ClientId>(), Err(ClientIdError));
    }
}
