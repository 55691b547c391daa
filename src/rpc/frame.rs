//! The bytes of a frame: `[head length u32][payload length u32][check u32][head][payload]`, little-endian.
//!
//! The head is the postcard encoding of a request or response (types of our own below, so that a tarpc release cannot
//! change the format and a peer's deadline cannot overflow the clock); the payload is the concatenation of the
//! message's [`super::Payload`]s in field order. The check is the first four bytes of blake3 over both lengths and the
//! head; payload bytes carry their own block hashes. Pure functions over buffers; the I/O is in `transport`.

use super::{payload, variant};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    time::{Duration, Instant},
};
use tarpc::{ClientMessage, Request, Response, ServerError, context};

/// Longest head of a frame, in bytes.
pub const MAX_HEAD: usize = 1 << 20;
/// Longest payload of a frame, in bytes: room for the largest write and its hashes.
pub const MAX_PAYLOAD: usize = 8 << 20;
/// Longest deadline that travels; a longer one is cut to this.
pub const MAX_DEADLINE: Duration = Duration::from_secs(3600);
/// Bytes before the head.
pub(super) const PREFIX: usize = 12;
/// Segments up to this are copied next to the head: an iovec entry costs more than the copy.
const INLINE: usize = 512;
/// Most segments of one `writev`.
const MAX_SLICES: usize = 64;

/// What a client sends.
#[derive(Serialize, Deserialize)]
pub enum WireRequest<T> {
    /// A call.
    Request {
        /// Unique on the connection.
        id: u64,
        /// Milliseconds until the caller gives up.
        deadline_ms: u32,
        /// The arguments.
        message: T,
    },
    /// The caller gave up.
    Cancel {
        /// The call's id.
        id: u64,
    },
}

/// What a server sends.
#[derive(Serialize, Deserialize)]
pub struct WireResponse<T> {
    id: u64,
    message: Result<T, ServerError>,
}

#[cfg(any(test, feature = "fuzzing"))]
impl<T> WireResponse<T> {
    /// A call's answer.
    pub(super) fn of(id: u64, message: T) -> Self {
        Self {
            id,
            message: Ok(message),
        }
    }

    /// Whether it is the service's, not an error of the transport's.
    pub(super) fn is_answer(&self) -> bool {
        self.message.is_ok()
    }
}

/// A tarpc message with an encoding of its own on the wire.
pub trait Message: Sized {
    /// The encoded type.
    type Wire: Serialize + DeserializeOwned;
    /// To what is encoded.
    ///
    /// # Errors
    /// A kind of message that the format does not have.
    fn to_wire(self) -> io::Result<Self::Wire>;
    /// From what was decoded.
    fn from_wire(wire: Self::Wire) -> Self;
    /// Whether it begins, ends or is without a call.
    fn step(&self) -> Step;
}

/// What a message does to a call: its id, and the number of the call or answer in its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The call is made.
    Ask(u64, Option<u32>),
    /// The caller gives it up.
    Cancel(u64),
    /// It is answered; `None`: by an error of the transport's.
    Answer(u64, Option<u32>),
}

impl<T: Serialize + DeserializeOwned> Message for ClientMessage<T> {
    type Wire = WireRequest<T>;

    fn to_wire(self) -> io::Result<WireRequest<T>> {
        match self {
            Self::Request(Request { context, id, message }) => {
                let left = context.deadline.saturating_duration_since(Instant::now());
                let left = left.min(MAX_DEADLINE).as_millis();
                Ok(WireRequest::Request {
                    id,
                    deadline_ms: u32::try_from(left).unwrap_or(u32::MAX),
                    message,
                })
            }
            Self::Cancel { request_id, .. } => Ok(WireRequest::Cancel { id: request_id }),
            _ => Err(io::Error::other("a message that the wire format does not have")),
        }
    }

    fn from_wire(wire: WireRequest<T>) -> Self {
        match wire {
            WireRequest::Request {
                id,
                deadline_ms,
                message,
            } => {
                let mut context = context::current();
                let left = Duration::from_millis(u64::from(deadline_ms)).min(MAX_DEADLINE);
                context.deadline = Instant::now() + left;
                Self::Request(Request { context, id, message })
            }
            WireRequest::Cancel { id } => Self::Cancel {
                trace_context: tarpc::trace::Context::default(),
                request_id: id,
            },
        }
    }

    fn step(&self) -> Step {
        match self {
            Self::Request(request) => Step::Ask(request.id, variant::of(&request.message)),
            Self::Cancel { request_id, .. } => Step::Cancel(*request_id),
            // `to_wire` refuses it.
            _ => Step::Cancel(u64::MAX),
        }
    }
}

impl<T: Serialize + DeserializeOwned> Message for Response<T> {
    type Wire = WireResponse<T>;

    fn to_wire(self) -> io::Result<WireResponse<T>> {
        Ok(WireResponse {
            id: self.request_id,
            message: self.message,
        })
    }

    fn from_wire(wire: WireResponse<T>) -> Self {
        Self {
            request_id: wire.id,
            message: wire.message,
        }
    }

    fn step(&self) -> Step {
        Step::Answer(self.request_id, self.message.as_ref().ok().and_then(variant::of))
    }
}

/// Lets postcard write straight into the outgoing buffer.
struct Append<'a>(&'a mut BytesMut);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.put_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn check(lengths: &[u8], head: &[u8]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(lengths).update(head);
    let hash = hasher.finalize();
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

/// Frames waiting to be written: heads and small segments in shared buffers, large segments by reference.
#[derive(Default)]
pub(super) struct Outgoing {
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    queued: usize,
}

impl Outgoing {
    /// Bytes not written yet.
    pub(super) fn len(&self) -> usize {
        self.queued + self.tail.len()
    }

    /// Adds a frame. On an error nothing was added.
    pub(super) fn push<M: Message>(&mut self, message: M) -> io::Result<()> {
        let wire = message.to_wire()?;
        let start = self.tail.len();
        self.tail.put_bytes(0, PREFIX);
        let tail = &mut self.tail;
        let (encoded, segments) =
            payload::collecting(|| postcard::serialize_with_flavor(&wire, Append(tail)).map_err(invalid));
        let head = self.tail.len() - start - PREFIX;
        let payload: usize = segments.iter().map(Bytes::len).sum();
        if encoded.is_err() || head > MAX_HEAD || payload > MAX_PAYLOAD {
            self.tail.truncate(start);
            encoded?;
            return Err(invalid(format!("message too large: head {head}, payload {payload}")));
        }
        let frame = &mut self.tail[start..];
        // Both were just checked against limits far below 4 GiB.
        frame[0..4].copy_from_slice(&(head as u32).to_le_bytes());
        frame[4..8].copy_from_slice(&(payload as u32).to_le_bytes());
        let sum = check(&frame[0..8], &frame[PREFIX..]);
        frame[8..12].copy_from_slice(&sum);
        for segment in segments {
            if segment.len() <= INLINE {
                self.tail.put_slice(&segment);
            } else {
                self.seal();
                self.queued += segment.len();
                self.queue.push_back(segment);
            }
        }
        Ok(())
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.queued += self.tail.len();
            self.queue.push_back(self.tail.split().freeze());
        }
    }

    /// The next bytes to write, for one vectored write; empty when all is written.
    pub(super) fn slices(&mut self) -> Vec<IoSlice<'_>> {
        self.seal();
        self.queue
            .iter()
            .take(MAX_SLICES)
            .map(|bytes| IoSlice::new(bytes))
            .collect()
    }

    /// Forgets `written` bytes, which must not be more than are queued.
    pub(super) fn advance(&mut self, mut written: usize) {
        self.queued = self.queued.saturating_sub(written);
        while let Some(first) = self.queue.front_mut() {
            if written < first.len() {
                drop(first.split_to(written));
                return;
            }
            written -= first.len();
            self.queue.pop_front();
        }
    }
}

/// A frame without its payload.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sealed(head: &[u8], payload: usize) -> Vec<u8> {
    let mut frame = vec![0; PREFIX];
    frame[0..4].copy_from_slice(&(head.len() as u32).to_le_bytes());
    frame[4..8].copy_from_slice(&(payload as u32).to_le_bytes());
    let sum = check(&frame[0..8], head);
    frame[8..12].copy_from_slice(&sum);
    frame.extend_from_slice(head);
    frame
}

/// The bytes of a message's frame, for golden tests of services.
#[cfg(test)]
pub(crate) fn bytes_of<M: Message>(message: M) -> io::Result<Vec<u8>> {
    let mut outgoing = Outgoing::default();
    outgoing.push(message)?;
    Ok(outgoing.slices().iter().flat_map(|slice| slice.to_vec()).collect())
}

/// The lengths at the start of a frame, checked against the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) head: usize,
    pub(super) payload: usize,
}

impl Lengths {
    /// Reads them from `buffer`; `None` while it is too short.
    pub(super) fn parse(buffer: &[u8]) -> io::Result<Option<Self>> {
        let Some((prefix, _)) = buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [a, b, c, d, e, f, g, h, ..] = *prefix;
        let head = u32::from_le_bytes([a, b, c, d]) as usize;
        let payload = u32::from_le_bytes([e, f, g, h]) as usize;
        if head > MAX_HEAD || payload > MAX_PAYLOAD {
            return Err(invalid(format!("frame too large: head {head}, payload {payload}")));
        }
        Ok(Some(Self { head, payload }))
    }
}

/// Decodes a frame from its prefix and head (`frame`) and its payload.
pub(super) fn decode<M: Message>(frame: &[u8], payload: Bytes) -> io::Result<M> {
    let Some((prefix, head)) = frame.split_first_chunk::<PREFIX>() else {
        return Err(invalid("short frame"));
    };
    if check(&prefix[0..8], head) != prefix[8..12] {
        return Err(invalid("frame fails its check"));
    }
    let (decoded, rest) = payload::supplying(payload, || postcard::take_from_bytes::<M::Wire>(head));
    let (wire, unread) = decoded.map_err(invalid)?;
    if !unread.is_empty() || !rest.is_empty() {
        return Err(invalid("frame longer than its message"));
    }
    Ok(M::from_wire(wire))
}
