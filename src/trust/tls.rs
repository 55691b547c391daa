//! How TLS is spoken, between nodes and with clients of the API: 1.3 with certificates of the cluster's authority, no session resumed, so that every
//! connection is checked anew. And whose a certificate is.

use super::{ClientId, Proof, client_name_of, name_of, pin};
use crate::volume::{ClusterId, NodeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::{Arc, LazyLock};

/// The name asked for in a handshake; not sent, and not looked at: that it is a node of the cluster is what counts, and between nodes the hello says which.
const NOBODY: &str = "node.storageos.internal";

/// AES-128 first: the fastest where the processor knows AES, and as good.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
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

/// Whom a call asks for; see [`NOBODY`].
pub(crate) fn nobody() -> Result<ServerName<'static>, Error> {
    ServerName::try_from(NOBODY).map_err(|error| Error::General(error.to_string()))
}

/// Calls to whoever has a certificate of the authority with this hash; nothing is shown.
pub(crate) fn calls_pinned(hash: [u8; 32], protocol: &[u8]) -> Result<Arc<ClientConfig>, Error> {
    let config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Called::new(Root::Pinned(hash)))
        .with_no_client_auth();
    Ok(plain(config, protocol))
}

/// What is the same for all calls.
fn plain(mut config: ClientConfig, protocol: &[u8]) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// `protocol` is what both sides must want to speak (ALPN).
impl Proof {
    /// Calls to nodes of the authority's cluster.
    pub(crate) fn calls(&self, protocol: &[u8]) -> Result<Arc<ClientConfig>, Error> {
        let config = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Called::new(Root::Known(self.roots()?)))
            .with_client_auth_cert(self.chain(), self.private_key())?;
        Ok(plain(config, protocol))
    }

    /// Answers to callers with a certificate of the authority; with `strangers` also to those who show none.
    pub(crate) fn answers(&self, protocol: &[u8], strangers: bool) -> Result<Arc<ServerConfig>, Error> {
        let mut callers = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), PROVIDER.clone());
        if strangers {
            callers = callers.allow_unauthenticated();
        }
        let callers = callers.build().map_err(|error| Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(callers)
            .with_single_cert(self.chain(), self.private_key())?;
        config.alpn_protocols = vec![protocol.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority().to_vec().into())?;
        Ok(roots)
    }

    /// The authority's certificate goes along for those that only have its hash.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate().to_vec().into(), self.authority().to_vec().into()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key().to_vec()).into()
    }
}

/// Which authority the called must have its certificate of.
#[derive(Debug)]
enum Root {
    /// This one.
    Known(RootCertStore),
    /// The one with this hash, which the called shows.
    Pinned([u8; 32]),
}

/// Checks the certificate of whoever is called; for which node it is, the hello tells.
#[derive(Debug)]
struct Called {
    root: Root,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Called {
    fn new(root: Root) -> Arc<Self> {
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
