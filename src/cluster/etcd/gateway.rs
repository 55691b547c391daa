//! Requests to etcd's JSON gateway over HTTP: one of the endpoints answers, or the deadline passes.
//!
//! An endpoint that does not answer, or says that it cannot now, is left for the next one; the one that answered is asked first the
//! next time. What etcd refuses for good ([`CallError::Refused`]) is not asked again. A request that got no answer may have been
//! done, and is repeated: see [`ControlStore::transact`](super::super::store::ControlStore::transact).

use super::words::{Failure, Streamed, Unreadable};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Time of one endpoint for one answer.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Pause after every endpoint was asked in vain.
const RETRY: Duration = Duration::from_millis(200);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Largest message of a stream, in bytes: a catch-up of many changes comes in one.
const MAX_MESSAGE: usize = 64 << 20;

/// Codes of gRPC that say "not now": deadline exceeded, resource exhausted, aborted, unavailable.
const NOT_NOW: [u32; 4] = [4, 8, 10, 14];

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CallError {
    /// etcd answered, with a gRPC code; asking again would not help.
    #[error("etcd refused: {message}")]
    Refused {
        /// gRPC's.
        code: u32,
        /// etcd's words.
        message: String,
    },
    /// No endpoint answered.
    #[error("{0}")]
    Away(String),
    /// Not etcd's language.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// See the module's text.
pub(super) struct Gateway {
    endpoints: Vec<String>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Which endpoint answered last.
    current: AtomicUsize,
    deadline: Duration,
}

/// What one endpoint said: an answer, or that the next one should be asked.
enum Attempt<T> {
    Done(T),
    Next(String),
}

impl Gateway {
    pub(super) fn new(endpoints: Vec<String>, deadline: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(10)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self {
            endpoints,
            client,
            current: AtomicUsize::new(0),
            deadline,
        }
    }

    pub(super) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// One request, one answer.
    pub(super) async fn call<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, CallError> {
        let body = Bytes::from(body.to_string());
        let bytes = self.at_any(|endpoint| self.ask(endpoint, path, body.clone())).await?;
        serde_json::from_slice(&bytes).map_err(|e| Unreadable(e.to_string()).into())
    }

    /// A stream of messages, and its first one.
    pub(super) async fn stream<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<(Stream<T>, T), CallError> {
        let body = Bytes::from(body.to_string());
        self.at_any(|endpoint| self.open(endpoint, path, body.clone())).await
    }

    /// What an endpoint says of itself: nothing if it is well.
    pub(super) async fn health(&self, endpoint: &str) -> Result<(), String> {
        let answer = async {
            let response = self.send(endpoint, Method::GET, "/health", Bytes::new()).await?;
            let status = response.status();
            let bytes = whole(response).await?;
            let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            if status.is_success()
                && said
                    .get("health")
                    .is_some_and(|h| h == "true" || *h == Value::Bool(true))
            {
                return Ok(());
            }
            let reason = said.get("reason").and_then(Value::as_str).unwrap_or_default();
            Err(format!("it says that it is not healthy {reason}").trim_end().to_owned())
        };
        timeout_at(Instant::now() + ATTEMPT, answer)
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    /// Asks one endpoint after the other until one has an answer or the deadline passes.
    async fn at_any<'a, T, F>(&'a self, attempt: impl Fn(&'a str) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<Attempt<T>, CallError>>,
    {
        let deadline = Instant::now() + self.deadline;
        loop {
            let first = self.current.load(Ordering::Relaxed);
            let mut why = Vec::new();
            for offset in 0..self.endpoints.len() {
                let index = (first + offset) % self.endpoints.len();
                let endpoint = &self.endpoints[index];
                let until = deadline.min(Instant::now() + ATTEMPT);
                match timeout_at(until, attempt(endpoint)).await {
                    Ok(Ok(Attempt::Done(answer))) => {
                        self.current.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Ok(Ok(Attempt::Next(reason))) => why.push(format!("{endpoint}: {reason}")),
                    Ok(Err(error)) => return Err(error),
                    Err(_) => why.push(format!("{endpoint}: no answer in time")),
                }
            }
            if Instant::now() + RETRY >= deadline {
                return Err(CallError::Away(format!("etcd does not answer ({})", why.join("; "))));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn ask(&self, endpoint: &str, path: &str, body: Bytes) -> Result<Attempt<Bytes>, CallError> {
        let response = match self.send(endpoint, Method::POST, path, body).await {
            Ok(response) => response,
            Err(error) => return Ok(Attempt::Next(error)),
        };
        let status = response.status();
        match whole(response).await {
            Ok(bytes) if status.is_success() => Ok(Attempt::Done(bytes)),
            Ok(bytes) => refused(status, &bytes),
            Err(error) => Ok(Attempt::Next(error)),
        }
    }

    async fn open<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Attempt<(Stream<T>, T)>, CallError> {
        let response = match self.send(endpoint, Method::POST, path, body).await {
            Ok(response) => response,
            Err(error) => return Ok(Attempt::Next(error)),
        };
        let status = response.status();
        if status.is_success() {
            let mut stream = Stream {
                body: response.into_body(),
                buffer: Vec::new(),
                scanned: 0,
                message: std::marker::PhantomData,
            };
            return Ok(match stream.next().await {
                Ok(message) => Attempt::Done((stream, message)),
                Err(error) => Attempt::Next(error),
            });
        }
        match whole(response).await {
            Ok(bytes) => refused(status, &bytes),
            Err(error) => Ok(Attempt::Next(error)),
        }
    }

    async fn send(
        &self,
        endpoint: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, String> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{endpoint}{path}"))
            .header("content-type", "application/json")
            // A member that is cut off from the others says so, instead of answering with old knowledge.
            .header("grpc-metadata-hasleader", "true")
            .body(Full::new(body))
            .map_err(|e| e.to_string())?;
        self.client.request(request).await.map_err(|error| {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                text = inner.to_string();
                cause = inner.source();
            }
            text
        })
    }
}

/// The whole body of an answer.
async fn whole(response: Response<Incoming>) -> Result<Bytes, String> {
    match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(error.to_string()),
    }
}

/// An answer that is none.
fn refused<T>(status: StatusCode, bytes: &[u8]) -> Result<Attempt<T>, CallError> {
    let Ok(failure) = serde_json::from_slice::<Failure>(bytes) else {
        let gone = status.is_server_error();
        let text = format!(
            "{status}, which etcd's gateway does not say: is it etcd 3.4 or newer, with --enable-grpc-gateway?"
        );
        return if gone {
            Ok(Attempt::Next(status.to_string()))
        } else {
            Err(Unreadable(text).into())
        };
    };
    if NOT_NOW.contains(&failure.code) {
        return Ok(Attempt::Next(failure.message));
    }
    Err(CallError::Refused {
        code: failure.code,
        message: failure.message,
    })
}

/// Messages of one request, a line of JSON each.
pub(super) struct Stream<T> {
    body: Incoming,
    buffer: Vec<u8>,
    /// Bytes of it without a line's end.
    scanned: usize,
    message: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Stream<T> {
    /// The next message; may be given up and called again. An error is the stream's end.
    pub(super) async fn next(&mut self) -> Result<T, String> {
        loop {
            let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.scanned + end).collect();
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice::<Streamed<T>>(&line)
                    .map_err(|e| e.to_string())?
                    .result();
            }
            self.scanned = self.buffer.len();
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                    if self.buffer.len() > MAX_MESSAGE {
                        return Err("a message is too long".to_owned());
                    }
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("it ended the stream".to_owned()),
            }
        }
    }
}
