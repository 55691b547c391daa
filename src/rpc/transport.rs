//! A connected socket as a stream and sink of messages: the transport that tarpc's client and server run on.
//!
//! Sending: messages of one ready batch are queued and leave in one vectored write; large payloads are never copied in
//! user space. Receiving: heads come through a small buffer, a large payload is read straight into the one buffer that
//! the message then refers to.

use super::frame::{self, Lengths, Message, Outgoing, PREFIX, Step};
use bytes::{BufMut, BytesMut};
use futures::{Sink, Stream};
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    marker::PhantomData,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Read at once when waiting for a frame: a frame with a 4 KiB block fits, little of a large payload is read twice.
const READ_CHUNK: usize = 16 << 10;
/// Queued bytes above which the sender waits for the socket.
const SEND_HIGH_WATER: usize = 4 << 20;
/// Calls of which it is remembered which they were; connections have far fewer in flight.
const MAX_ASKED: usize = 8192;

/// What a connection runs over: TLS on TCP, a pipe in tests.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A payload on its way in.
struct Partial {
    frame: BytesMut,
    payload: BytesMut,
    length: usize,
}

/// A stream of `In` and sink of `Out` messages over a socket.
pub struct Transport<Out, In> {
    socket: Box<dyn Socket>,
    outgoing: Outgoing,
    /// The socket may hold what it took and did not send yet.
    unsent: bool,
    buffer: BytesMut,
    partial: Option<Partial>,
    /// Calls that were made and not answered or given up, and which of the service's.
    asked: BTreeMap<u64, Option<u32>>,
    /// Nothing is read while so much waits to be sent.
    answers_first: bool,
    messages: PhantomData<fn(Out) -> In>,
}

impl<Out: Message, In: Message> Transport<Out, In> {
    /// A transport over a socket whose hello is done.
    #[must_use]
    pub fn new(socket: Box<dyn Socket>) -> Self {
        Self {
            socket,
            outgoing: Outgoing::default(),
            unsent: false,
            buffer: BytesMut::new(),
            partial: None,
            asked: BTreeMap::new(),
            answers_first: false,
            messages: PhantomData,
        }
    }

    /// For a server: whoever does not take its answers is not asked for more, which would be answers in memory. A client must read whatever it has to
    /// send, or both would wait for each other.
    pub(super) fn answers_first(mut self) -> Self {
        self.answers_first = true;
        self
    }

    /// Takes a whole frame out of what was read, if there is one.
    fn take(&mut self) -> io::Result<Option<In>> {
        if let Some(partial) = &self.partial {
            if partial.payload.len() < partial.length {
                return Ok(None);
            }
        } else {
            let Some(Lengths { head, payload }) = Lengths::parse(&self.buffer)? else {
                return Ok(None);
            };
            if self.buffer.len() < PREFIX + head {
                return Ok(None);
            }
            let frame = self.buffer.split_to(PREFIX + head);
            if self.buffer.len() >= payload {
                // Already here: a reference into the read buffer.
                let payload = self.buffer.split_to(payload).freeze();
                return frame::decode(&frame, payload).map(Some);
            }
            let mut bytes = BytesMut::with_capacity(payload);
            bytes.put_slice(&self.buffer);
            self.buffer.clear();
            self.partial = Some(Partial {
                frame,
                payload: bytes,
                length: payload,
            });
            return Ok(None);
        }
        match self.partial.take() {
            Some(partial) => frame::decode(&partial.frame, partial.payload.freeze()).map(Some),
            None => Ok(None),
        }
    }
}

impl<Out: Message, In: Message> Stream for Transport<Out, In> {
    type Item = io::Result<In>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<In>>> {
        let this = self.get_mut();
        if this.answers_first && this.outgoing.len() >= SEND_HIGH_WATER {
            ready!(Pin::new(&mut *this).poll_flush(cx))?;
        }
        loop {
            if let Some(message) = this.take()? {
                if let Step::Answer(id, answer) = message.step()
                    && let Some(call) = this.asked.remove(&id)
                    && answer.is_some()
                    && answer != call
                {
                    // What tarpc makes of it is a panic.
                    let error = "the answer is that of another call";
                    return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::InvalidData, error))));
                }
                return Poll::Ready(Some(Ok(message)));
            }
            // `read_buf` keeps no state between polls, so making it anew each time loses nothing.
            let read = if let Some(partial) = &mut this.partial {
                let left = partial.length.saturating_sub(partial.payload.len());
                let mut target = (&mut partial.payload).limit(left);
                ready!(pin!(this.socket.read_buf(&mut target)).poll(cx))?
            } else {
                this.buffer.reserve(READ_CHUNK);
                ready!(pin!(this.socket.read_buf(&mut this.buffer)).poll(cx))?
            };
            if read == 0 {
                let clean = this.partial.is_none() && this.buffer.is_empty();
                return Poll::Ready((!clean).then(|| Err(io::ErrorKind::UnexpectedEof.into())));
            }
        }
    }
}

impl<Out: Message, In: Message> Sink<Out> for Transport<Out, In> {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.len() >= SEND_HIGH_WATER {
            return self.poll_flush(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, message: Out) -> io::Result<()> {
        let this = self.get_mut();
        let step = message.step();
        this.outgoing.push(message)?;
        match step {
            Step::Ask(id, call) => {
                this.asked.insert(id, call);
                // Far more than calls in flight: those that ran out of time without a word are forgotten here.
                while this.asked.len() > MAX_ASKED {
                    this.asked.pop_first();
                }
            }
            Step::Cancel(id) => {
                this.asked.remove(&id);
            }
            Step::Answer(..) => {}
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.outgoing.len() > 0 {
            let slices = this.outgoing.slices();
            let written = ready!(Pin::new(&mut this.socket).poll_write_vectored(cx, &slices))?;
            drop(slices);
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.outgoing.advance(written);
            this.unsent = true;
        }
        if this.unsent {
            ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
            this.unsent = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
