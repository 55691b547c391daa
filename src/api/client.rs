//! The API's client: one connection for each request, which is what a command line needs.

use super::dial::{SCHEME, Target};
use super::types::*;
use super::{ApiError, Code};
use crate::trust::ClientCredentials;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Largest answer taken, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Speaks to a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
}

impl Client {
    /// A client for a socket's path, `unix:///…` allowed, or for `https://HOST:PORT`, with these credentials; nothing is connected yet.
    ///
    /// # Errors
    /// [`Code::Usage`]: the address is of another scheme, or there are no credentials for it. [`Code::Invalid`]: they cannot be used.
    pub fn new(host: &str, credentials: Option<&ClientCredentials>) -> Result<Self, ApiError> {
        let target = Target::parse(host, credentials)?;
        Ok(Self { target })
    }

    /// Whether a host is reached over the network, for which credentials are needed.
    #[must_use]
    pub fn is_remote(host: &str) -> bool {
        host.starts_with(SCHEME)
    }

    /// The socket's path.
    ///
    /// # Errors
    /// [`Code::Usage`]: the daemon is reached over the network.
    pub fn socket(&self) -> Result<&Path, ApiError> {
        match &self.target {
            Target::Socket(path) => Ok(path),
            Target::Network(..) => Err(ApiError::new(
                Code::Usage,
                format!("a volume cannot be mounted through {}", self.target),
            )
            .hint("it is mounted through the socket of the daemon on this machine: leave -H and STORAGEOS_HOST away")),
        }
    }

    /// `GET`.
    ///
    /// # Errors
    /// What the daemon answered, or that it does not answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.send(Method::GET, path, None).await
    }

    /// `POST`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.send(Method::POST, path, Some(encode(body)?)).await
    }

    /// `PATCH`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.send(Method::PATCH, path, Some(encode(body)?)).await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, path: &str) -> Result<(), ApiError> {
        let _: serde_json::Value = self.send(Method::DELETE, path, None).await?;
        Ok(())
    }

    /// The volumes that a filter lets through.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn volumes(&self, filter: &VolumeFilter) -> Result<Vec<VolumeInfo>, ApiError> {
        let mut path = "/v1/volumes?".to_owned();
        for (key, value) in [("namespace", &filter.namespace), ("selector", &filter.selector)] {
            if let Some(value) = value {
                path.push_str(&format!("{key}={}&", escape(value)));
            }
        }
        self.get(&path).await
    }

    /// The events that a filter lets through.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events(&self, filter: &EventFilter) -> Result<EventList, ApiError> {
        let mut path = "/v1/events?".to_owned();
        let since = filter.since.map(|since| since.to_string());
        for (key, value) in [("volume", &filter.volume), ("node", &filter.node), ("since", &since)] {
            if let Some(value) = value {
                path.push_str(&format!("{key}={}&", escape(value)));
            }
        }
        self.get(&path).await
    }

    /// `GET` of what is no JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, ApiError> {
        self.send_bytes(Method::GET, path, None).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<T, ApiError> {
        let bytes = self.send_bytes(method, path, body).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::internal(format!("the daemon's answer cannot be read: {e}")))
    }

    async fn send_bytes(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes, ApiError> {
        let stream = self.target.dial().await?;
        let lost = |error: &(dyn std::error::Error + 'static)| {
            self.target.refused(error).unwrap_or_else(|| {
                ApiError::unavailable(format!("the daemon on {} stopped answering: {error}", self.target))
                    .hint("what was asked for may or may not have been done; see the daemon's log")
            })
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| lost(&e))?;
        // Ends with the sender; its error also shows up there.
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "storageos")
            .header("content-type", "application/json")
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|e| ApiError::new(Code::Usage, format!("bad request: {e}")))?;
        let answer = sender.send_request(request).await.map_err(|e| lost(&e))?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| lost(&*e))?
            .to_bytes();
        driver.abort();
        if status.is_success() {
            return Ok(bytes);
        }
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            ApiError::internal(format!(
                "the daemon answered {status}: {}",
                String::from_utf8_lossy(&bytes)
            ))
        }))
    }
}

fn encode(body: &impl Serialize) -> Result<Bytes, ApiError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|e| ApiError::internal(format!("the request cannot be written: {e}")))
}

/// Escapes a name for a path's segment or a query's value.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    // A segment of dots alone would be taken for a step in the path.
    if escaped.bytes().all(|b| b == b'.') {
        escaped.replace('.', "%2E")
    } else {
        escaped
    }
}
