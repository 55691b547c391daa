//! The cluster's authority: a self-signed certificate and its key, and what it issues.
//!
//! Invariants: the names in a certificate are the issuer's words, never the asker's; a certificate says that its holder is one node and no authority.
//! Everything in the authority's certificate but its dates and key follows from the cluster's id, so certificate and key are all there is to keep.

use super::{ClientId, TrustError, client_name_of, name_of};
use crate::volume::{ClusterId, NodeId};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Clocks of nodes may be apart by so much.
const SKEW: SignedDuration = SignedDuration::from_hours(1);
/// How long an authority lasts: longer than the cluster.
const LIFE: SignedDuration = SignedDuration::from_hours(30 * 366 * 24);
/// Bytes of a public key: a point of P-256, uncompressed.
const POINT: usize = 65;

fn crypto(error: impl fmt::Display) -> TrustError {
    TrustError::Crypto(error.to_string())
}

/// A key pair of a node, ECDSA on P-256.
pub struct Key {
    /// The private key, PKCS #8 in DER.
    pub(super) private: Vec<u8>,
    public: Vec<u8>,
}

impl Key {
    /// A fresh one.
    ///
    /// # Errors
    /// [`TrustError::Crypto`]
    pub fn generate() -> Result<Self, TrustError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        Ok(Self {
            private: pair.serialize_der(),
            public: pair.public_key_raw().to_vec(),
        })
    }

    /// The public key: a point, uncompressed.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// A node's public key as the issuer takes it.
struct Public<'a>(&'a [u8]);

impl PublicKeyData for Public<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// A certificate as it was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// DER.
    pub certificate: Vec<u8>,
    /// When.
    pub at: Timestamp,
    /// Until when it holds.
    pub expires: Timestamp,
    /// How often all certificates had been asked to be renewed by then.
    pub renewals: u64,
}

/// The authority of a cluster.
#[derive(Clone)]
pub struct Authority {
    cluster: ClusterId,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// [`TrustError::Crypto`]
    pub fn new(cluster: ClusterId, now: Timestamp) -> Result<Self, TrustError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let mut params = subject(cluster);
        (params.not_before, params.not_after) = dates(now, LIFE)?;
        let certificate = params.self_signed(&pair).map_err(crypto)?;
        Ok(Self {
            cluster,
            certificate: certificate.der().to_vec(),
            key: pair.serialize_der(),
        })
    }

    /// One that was kept.
    #[must_use]
    pub fn of_parts(cluster: ClusterId, certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self {
            cluster,
            certificate,
            key,
        }
    }

    /// Its certificate, in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its private key, PKCS #8 in DER.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Certifies that the owner of a public key is a node of the cluster.
    ///
    /// # Errors
    /// [`TrustError::Crypto`]: not such a key, or this authority's is damaged.
    pub fn issue(
        &self,
        node: NodeId,
        public: &[u8],
        validity: Duration,
        renewals: u64,
        now: Timestamp,
    ) -> Result<Issued, TrustError> {
        let holder = Holder {
            common: node.to_string(),
            name: name_of(node, self.cluster),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        let (certificate, expires) = self.certify(holder, public, validity, now)?;
        Ok(Issued {
            certificate,
            at: now,
            expires,
            renewals,
        })
    }

    /// Certifies that the owner of a public key is a client of the cluster's API; with when that ends. Such a certificate is not good for answering calls.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_client(
        &self,
        client: ClientId,
        public: &[u8],
        validity: Duration,
        now: Timestamp,
    ) -> Result<(Vec<u8>, Timestamp), TrustError> {
        let holder = Holder {
            common: format!("client {client}"),
            name: client_name_of(client, self.cluster),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        self.certify(holder, public, validity, now)
    }

    fn certify(
        &self,
        holder: Holder,
        public: &[u8],
        validity: Duration,
        now: Timestamp,
    ) -> Result<(Vec<u8>, Timestamp), TrustError> {
        if public.len() != POINT || public.first() != Some(&4) {
            return Err(TrustError::Crypto("not a public key of P-256".to_owned()));
        }
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(self.key.as_slice())).map_err(crypto)?;
        let issuer = Issuer::new(subject(self.cluster), pair);
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "storageos");
        name.push(DnType::CommonName, holder.common);
        params.distinguished_name = name;
        params.subject_alt_names = vec![SanType::DnsName(holder.name.try_into().map_err(crypto)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = holder.usages;
        params.is_ca = IsCa::ExplicitNoCa;
        let life = SignedDuration::try_from(validity).map_err(crypto)?;
        (params.not_before, params.not_after) = dates(now, life)?;
        let certificate = params.signed_by(&Public(public), &issuer).map_err(crypto)?;
        let expires = now.checked_add(life).map_err(crypto)?;
        Ok((certificate.der().to_vec(), expires))
    }
}

/// Whose a certificate is.
struct Holder {
    /// For people.
    common: String,
    /// What counts.
    name: String,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.cluster)
    }
}

/// All of an authority's certificate but its dates and key.
fn subject(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "storageos");
    name.push(DnType::CommonName, format!("authority of cluster {cluster}"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// From when to when.
fn dates(now: Timestamp, life: SignedDuration) -> Result<(time::OffsetDateTime, time::OffsetDateTime), TrustError> {
    let date = |at: Timestamp| time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(crypto);
    let from = now.checked_sub(SKEW).map_err(crypto)?;
    let to = now.checked_add(life).map_err(crypto)?;
    Ok((date(from)?, date(to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_issued_for_what_is_no_key() {
        let authority = Authority::new(ClusterId::random(), Timestamp::now()).unwrap();
        let day = Duration::from_secs(86400);
        for wrong in [&[][..], &[4; 64], &[2; 65], &[4; 66]] {
            let issued = authority.issue(NodeId::random(), wrong, day, 0, Timestamp::now());
            assert!(matches!(issued, Err(TrustError::Crypto(_))));
        }
        let key = Key::generate().unwrap();
        let forever = authority.issue(NodeId::random(), key.public(), Duration::MAX, 0, Timestamp::now());
        assert!(forever.is_err());
    }

    #[test]
    fn secrets_have_no_debug_form() {
        let authority = Authority::new(ClusterId::from_bytes([1; 16]), Timestamp::now()).unwrap();
        assert_eq!(
            format!("{authority:?}"),
            "Authority(01010101-0101-0101-0101-010101010101)"
        );
        assert_eq!(format!("{:?}", Key::generate().unwrap()), "Key");
    }
}
