//! How certificates are checked, for whoever speaks TLS: which ciphers, whether the called is a node of the cluster, whose a certificate is.

use super::{ClientId, client_name_of, name_of, pin};
use crate::volume::{ClusterId, NodeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::{Arc, LazyLock};

/// AES-128 first: the fastest where the processor knows AES, and as good.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    })
});

/// Whether a certificate, of the right authority as the handshake has shown, is a node's.
pub(crate) fn proves(certificate: &CertificateDer<'_>, node: NodeId, cluster: ClusterId) -> bool {
    has_name(certificate, name_of(node, cluster))
}

/// The same of a client of the API.
pub(crate) fn proves_client(certificate: &CertificateDer<'_>, client: ClientId, cluster: ClusterId) -> bool {
    has_name(certificate, client_name_of(client, cluster))
}

fn has_name(certificate: &CertificateDer<'_>, name: String) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(certificate), ServerName::try_from(name)) else {
        return false;
    };
    verify_server_name(&parsed, &name).is_ok()
}

/// Which authority the called must have its certificate of.
#[derive(Debug)]
pub(crate) enum Root {
    /// This one.
    Known(RootCertStore),
    /// The one with this hash, which the called shows.
    Pinned([u8; 32]),
}

/// Checks the certificate of whoever is called; for which node it is, the hello tells.
#[derive(Debug)]
pub(crate) struct Called {
    root: Root,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Called {
    /// Checks against this root.
    pub(crate) fn new(root: Root) -> Arc<Self> {
        let algorithms = PROVIDER.signature_verification_algorithms;
        Arc::new(Self { root, algorithms })
    }
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut pinned = RootCertStore::empty();
        let roots = match &self.root {
            Root::Known(roots) => roots,
            Root::Pinned(hash) => {
                let shown = intermediates.iter().find(|certificate| pin(certificate) == *hash);
                let shown = shown.ok_or(CertificateError::UnknownIssuer)?;
                pinned.add(shown.clone())?;
                &pinned
            }
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, self.algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
