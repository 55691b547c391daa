//! What its owner proves itself with: a private key, the certificate for it, and the authority's; as blocks of PEM in a file.
//!
//! Before the blocks stand lines `Name: value`, as the format allows, that say whose it is; they are the owner's
//! ([`super::Credentials`], [`super::ClientCredentials`]). No `Debug` form: the key is a secret.

use super::Key;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// See the module's text.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof {
    certificate: Vec<u8>,
    authority: Vec<u8>,
    key: Vec<u8>,
}

impl Proof {
    pub(super) fn new(key: &Key, certificate: Vec<u8>, authority: Vec<u8>) -> Self {
        Self {
            certificate,
            authority,
            key: key.private.clone(),
        }
    }

    /// The private key, PKCS #8 in DER.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The certificate, in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The authority's certificate, in DER.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// A file's text: these lines, and the blocks.
    pub(super) fn text(&self, lines: String) -> String {
        let mut text = lines;
        for (label, der) in [
            ("CERTIFICATE", &self.certificate),
            ("CERTIFICATE", &self.authority),
            ("PRIVATE KEY", &self.key),
        ] {
            text.push_str(&format!("-----BEGIN {label}-----\n"));
            for line in STANDARD.encode(der).as_bytes().chunks(64) {
                // base64 is ASCII.
                text.push_str(&String::from_utf8_lossy(line));
                text.push('\n');
            }
            text.push_str(&format!("-----END {label}-----\n"));
        }
        text
    }

    /// The blocks of a file's text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
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
}

/// The value of a line of a file's text.
pub(super) fn line<T: std::str::FromStr>(text: &str, name: &str) -> Result<T, String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| format!("no line {name} that can be read"))
}
