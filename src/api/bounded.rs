//! A TCP listener for whoever asks: a bounded number of connections, which may be bounded in their silence, too.
//!
//! Without it a stranger could take all of the daemon's file descriptors, which its volumes need. Connections beyond the bound wait in the kernel's
//! backlog until a place is free.

use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// See the module's text.
pub(super) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    idle: Option<Duration>,
}

impl Bounded {
    /// At most so many connections; one from which nothing comes for `idle` ends, if that is bounded.
    pub(super) fn new(listener: TcpListener, connections: usize, idle: Option<Duration>) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(connections)),
            idle,
        }
    }
}

impl Listener for Bounded {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        // Errors are left to the listener of axum, which waits and goes on.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // It is never closed. The connection that waits here is one more than the bound.
        let place = self.places.clone().acquire_owned().await.ok();
        let guest = Guest {
            stream,
            idle: self.idle,
            end: self.idle.map(|idle| Box::pin(sleep(idle))),
            _place: place,
        };
        (guest, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection: gives its place back when it is dropped.
pub(super) struct Guest {
    stream: TcpStream,
    idle: Option<Duration>,
    end: Option<Pin<Box<Sleep>>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Guest {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guest = &mut *self;
        let result = Pin::new(&mut guest.stream).poll_read(cx, buffer);
        let (Some(idle), Some(end)) = (guest.idle, &mut guest.end) else {
            return result;
        };
        if result.is_ready() {
            end.as_mut().reset(Instant::now() + idle);
            return result;
        }
        match end.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serving(connections: usize, idle: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", get(|| async { "here" }));
        let bounded = Bounded::new(listener, connections, Some(idle));
        tokio::spawn(async move { axum::serve(bounded, app).await });
        address
    }

    /// The answer, or nothing if the connection ends without one.
    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            let mut part = [0; 1024];
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => break,
                Ok(read) => answer.extend(&part[..read]),
            }
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_for_a_place() {
        let address = serving(2, Duration::from_secs(600)).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut first).await.ends_with("here"));
        assert!(ask(&mut second).await.ends_with("here"));
        let mut third = TcpStream::connect(address).await.unwrap();
        let waiting = tokio::spawn(async move { ask(&mut third).await });
        // They keep their places while they are open, however much they ask.
        assert!(ask(&mut first).await.ends_with("here"));
        assert!(!waiting.is_finished());
        drop(second);
        assert!(waiting.await.unwrap().ends_with("here"));
    }

    #[tokio::test]
    async fn heads_that_are_too_long_are_refused() {
        let address = serving(4, Duration::from_secs(600)).await;
        let many = format!("{}\r\n", "a: b\r\n".repeat(200));
        let long = format!("a: {}\r\n", "b".repeat(1 << 20));
        for head in [many, long] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // It may be refused before all was said.
            let _ = stream.write_all(format!("GET / HTTP/1.1\r\n{head}").as_bytes()).await;
            let mut answer = Vec::new();
            let ended = stream.read_to_end(&mut answer);
            let _ = tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
        let mut next = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut next).await.ends_with("here"));
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_ends() {
        let address = serving(1, Duration::from_millis(50)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        // Half of a request.
        silent.write_all(b"GET / HT").await.unwrap();
        let mut rest = Vec::new();
        // Ends; how does not matter.
        let _ = silent.read_to_end(&mut rest).await;
        let mut next = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut next).await.ends_with("here"));
    }
}
