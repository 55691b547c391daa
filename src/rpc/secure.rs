//! A TCP connection with TLS over it, as a stream of bytes.
//!
//! Everything happens in the thread that polls: who writes a small message also encrypts it and sends it, in one system call, so the calling
//! thread's short way ([`super::Driver`]) stays short. What is read comes in large reads. Invariants: what was accepted for
//! writing and not sent yet is at most [`UNSENT`], and is sent before more is accepted; a connection that was cut ([`Cut`]) reads and writes no more.

use crate::volume::NodeId;
use futures::task::AtomicWaker;
use std::future::poll_fn;
use std::io::{self, BufRead, ErrorKind, IoSlice, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Read from the socket at once during the handshake, whose messages are short.
const SHORT_READ: usize = 4 << 10;
/// The same afterwards.
const READ: usize = 128 << 10;
/// Accepted for writing at once.
const UNSENT: usize = 256 << 10;

/// Closes a connection from elsewhere.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// Who is at the other end, once it is known.
    peer: OnceLock<NodeId>,
    done: AtomicBool,
    reader: AtomicWaker,
}

impl Cut {
    pub(super) fn peer(&self) -> Option<NodeId> {
        self.peer.get().copied()
    }

    pub(super) fn set_peer(&self, peer: NodeId) {
        // It does not change.
        let _ = self.peer.set(peer);
    }

    /// Nothing is read from now on, and nothing written.
    pub(super) fn cut(&self) {
        self.done.store(true, Ordering::SeqCst);
        self.reader.wake();
    }

    fn check(&self) -> io::Result<()> {
        if self.done.load(Ordering::SeqCst) {
            return Err(io::Error::new(
                ErrorKind::ConnectionAborted,
                "the node at the other end is locked out of the cluster",
            ));
        }
        Ok(())
    }
}

/// See the module's text.
pub(super) struct Secure {
    tcp: TcpStream,
    tls: rustls::Connection,
    /// What was read from the socket and not given to TLS yet is between `start` and `end`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    cut: Arc<Cut>,
}

impl Secure {
    /// Does the handshake.
    pub(super) async fn new(tcp: TcpStream, mut tls: rustls::Connection) -> io::Result<Self> {
        tls.set_buffer_limit(Some(UNSENT));
        let mut secure = Self {
            tcp,
            tls,
            input: vec![0; SHORT_READ],
            start: 0,
            end: 0,
            cut: Arc::default(),
        };
        poll_fn(|context| secure.poll_handshake(context)).await?;
        Ok(secure)
    }

    /// The other end's certificate, which is of the right authority; `None`: it has shown none.
    pub(super) fn certificate(&self) -> Option<&rustls::pki_types::CertificateDer<'static>> {
        self.tls.peer_certificates()?.first()
    }

    pub(super) fn cut(&self) -> &Arc<Cut> {
        &self.cut
    }

    /// As it happens by itself after many records.
    #[cfg(test)]
    pub(super) fn change_keys(&mut self) {
        self.tls.refresh_traffic_keys().unwrap();
    }

    /// The connection on a socket that was moved elsewhere; from now on it may take more memory.
    pub(super) fn moved(self, to: impl FnOnce(TcpStream) -> io::Result<TcpStream>) -> io::Result<Self> {
        let mut input = self.input;
        input.resize(READ, 0);
        Ok(Self {
            tcp: to(self.tcp)?,
            input,
            ..self
        })
    }

    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(context))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            match self.feed() {
                Ok(true) => {}
                Ok(false) => {
                    if ready!(self.poll_fill(context))? == 0 {
                        return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
                    }
                }
                Err(error) => {
                    // The other end shall learn why, if it can be told at once.
                    let _ = self.poll_send(context);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Gives TLS what it takes of what was read; false: there is nothing. Its buffer grows in small steps from nothing and stays large while a part of the
    /// next record is in it, so it is not given whole records but as much as fits.
    fn feed(&mut self) -> io::Result<bool> {
        let mut waiting = &self.input[self.start..self.end];
        if waiting.is_empty() {
            return Ok(false);
        }
        let taken = self.tls.read_tls(&mut waiting)?;
        if taken == 0 {
            return Err(io::Error::new(ErrorKind::InvalidData, "bytes after the end"));
        }
        self.start += taken;
        self.tls
            .process_new_packets()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(true)
    }

    /// Reads from the socket, when all that was read is used up; 0: it has ended.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(&mut self.input);
        if Pin::new(&mut self.tcp).poll_read(context, &mut buffer)?.is_pending() {
            self.cut.reader.register(context.waker());
            self.cut.check()?;
            return Poll::Pending;
        }
        let read = buffer.filled().len();
        (self.start, self.end) = (0, read);
        Poll::Ready(Ok(read))
    }

    /// Sends what is encrypted.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            let mut socket = Outlet {
                tcp: &mut self.tcp,
                context,
            };
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The socket as TLS writes to it.
struct Outlet<'a, 'b> {
    tcp: &'a mut TcpStream,
    context: &'a mut Context<'b>,
}

fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

impl Write for Outlet<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        now(Pin::new(&mut *self.tcp).poll_write(self.context, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        now(Pin::new(&mut *self.tcp).poll_write_vectored(self.context, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Secure {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.cut.check()?;
        let before = into.filled().len();
        loop {
            let mut reader = this.tls.reader();
            match reader.fill_buf() {
                // Closed in order.
                Ok([]) => return Poll::Ready(Ok(())),
                Ok(bytes) => {
                    let length = bytes.len().min(into.remaining());
                    into.put_slice(&bytes[..length]);
                    reader.consume(length);
                    if into.remaining() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) if into.filled().len() > before => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
            match this.feed() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    let _ = this.poll_send(context);
                    return Poll::Ready(Err(error));
                }
            }
            if into.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.poll_fill(context))? == 0 {
                this.tls.read_tls(&mut io::empty())?;
            }
        }
    }
}

impl AsyncWrite for Secure {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.cut.check()?;
        ready!(this.poll_send(context))?;
        let written = this.tls.writer().write_vectored(slices)?;
        // What does not leave now is sent by the next write or flush.
        if let Poll::Ready(sent) = this.poll_send(context) {
            sent?;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // A second time it does nothing.
        this.tls.send_close_notify();
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.tcp).poll_shutdown(context)
    }
}
