//! Where the client's connections go: a daemon's socket, or the address of a node that lets clients with a certificate in.

use super::remote::PROTOCOL;
use super::{ApiError, Code, DEFAULT_SOCKET};
use crate::trust::ClientCredentials;
use crate::trust::tls::nobody;
use rustls::{AlertDescription, ClientConfig};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Longest time to reach a node over the network.
const REACH: Duration = Duration::from_secs(10);
/// How an address over the network begins.
pub(super) const SCHEME: &str = "https://";

/// Where a daemon is.
#[derive(Clone)]
pub(super) enum Target {
    /// Behind a socket on this machine.
    Socket(PathBuf),
    /// At `HOST:PORT`.
    Network(String, Arc<ClientConfig>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Network(address, _) => write!(f, "{SCHEME}{address}"),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// A connection, whatever it goes through.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Target {
    /// Reads what a user gave: a path, `unix:///PATH`, or `https://HOST:PORT`, for which a certificate is needed.
    pub(super) fn parse(host: &str, credentials: Option<&ClientCredentials>) -> Result<Self, ApiError> {
        if let Some(address) = host.strip_prefix(SCHEME) {
            let address = address.trim_end_matches('/');
            if !address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            {
                return Err(ApiError::new(Code::Usage, format!("{host} has no port"))
                    .hint("give what a node's --api says, as https://10.0.0.1:5704"));
            }
            let credentials = credentials.ok_or_else(|| {
                ApiError::new(Code::Usage, format!("{host} is served to clients with a certificate only")).hint(
                    "make one on a node: storageos cluster client create NAME\nand give it with --client-cert FILE or STORAGEOS_CLIENT_CERT",
                )
            })?;
            let config = credentials
                .proof()
                .calls(PROTOCOL)
                .map_err(|why| ApiError::invalid(format!("the client's key and certificate cannot be used: {why}")))?;
            return Ok(Self::Network(address.to_owned(), config));
        }
        let path = host.strip_prefix("unix://").unwrap_or(host);
        if path.contains("://") {
            return Err(
                ApiError::new(Code::Usage, format!("{host} is neither a socket nor an address")).hint(format!(
                    "give a path or unix:///PATH, as {DEFAULT_SOCKET}, or https://HOST:PORT with --client-cert"
                )),
            );
        }
        Ok(Self::Socket(path.into()))
    }

    /// Connects.
    pub(super) async fn dial(&self) -> Result<Box<dyn Stream>, ApiError> {
        match self {
            Self::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(self.no_daemon(&error)),
            },
            Self::Network(address, config) => {
                let reach = tokio::time::timeout(REACH, reach(address, config.clone()));
                let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {REACH:?}"));
                let reached = reach.await.unwrap_or_else(|_| Err(late()));
                reached.map_err(|error| self.refused(&error).unwrap_or_else(|| self.no_daemon(&error)))
            }
        }
    }

    /// Nothing answers there.
    fn no_daemon(&self, error: &io::Error) -> ApiError {
        match self {
            Self::Socket(_) if error.kind() == io::ErrorKind::PermissionDenied => {
                ApiError::unavailable(format!("may not use {self}")).hint("run the command as root")
            }
            Self::Socket(_) => ApiError::unavailable(format!("no daemon answers on {self}: {error}")).hint(
                "start one with: storageos node run --data-dir DIR --listen ADDR:PORT --name NAME\n\
                 or say where it listens with -H SOCKET or STORAGEOS_HOST",
            ),
            Self::Network(..) => ApiError::unavailable(format!("no node of the cluster answers on {self}: {error}"))
                .hint("the node's daemon has to be started with --api ADDR:PORT"),
        }
    }

    /// One of the two sides does not trust the other; `None`: it is another error. A server's refusal comes only after the handshake.
    pub(super) fn refused(&self, error: &(dyn std::error::Error + 'static)) -> Option<ApiError> {
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let found = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match found {
                Some(rustls::Error::AlertReceived(alert)) => return Some(self.alerted(*alert)),
                Some(rustls::Error::InvalidCertificate(why)) => {
                    let text = format!(
                        "what answers on {self} is no node of the client's cluster, or its certificate is not valid: {why}"
                    );
                    return Some(
                        ApiError::new(Code::Denied, text)
                            .hint("look at the address, and at the clocks of both machines"),
                    );
                }
                _ => {}
            }
            next = inner
                .map(|inner| inner as &(dyn std::error::Error + 'static))
                .or_else(|| error.source());
        }
        None
    }

    fn alerted(&self, alert: AlertDescription) -> ApiError {
        let why = match alert {
            AlertDescription::CertificateExpired => "it has expired".to_owned(),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => "it is of another cluster".to_owned(),
            other => format!("{other:?}"),
        };
        ApiError::new(
            Code::Denied,
            format!("{self} does not take the client's certificate: {why}"),
        )
        .hint("make one on a node of the cluster: storageos cluster client create NAME")
    }
}

async fn reach(address: &str, config: Arc<ClientConfig>) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = nobody().map_err(io::Error::other)?;
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    Ok(Box::new(tls))
}
