//! Hostile bytes for what is read from connections; see [`crate::fuzzing`].

use super::frame::{self, Message, WireRequest, WireResponse};
use super::hello::{Hello, Kind, LENGTH};
use super::payload;
use super::small;
use super::transport::Transport;
use crate::trust::tls::proves;
use crate::trust::{Authority, Key};
use crate::volume::{ClusterId, NodeId};
use bytes::Bytes;
use futures::StreamExt;
use rustls::pki_types::CertificateDer;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tarpc::{ClientMessage, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes before the head of an input: the length of the payload that follows.
const PAYLOAD: usize = 2;

/// The head and the payload of an input.
fn parts(input: &[u8]) -> Option<(&[u8], Bytes)> {
    let (length, rest) = input.split_first_chunk::<PAYLOAD>()?;
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (payload, head) = rest.split_at(length);
    Some((head, Bytes::copy_from_slice(payload)))
}

fn write<W: Serialize>(wire: &W) -> (Vec<u8>, Vec<u8>) {
    let (head, segments) = payload::collecting(|| postcard::to_allocvec(wire));
    (head.expect("what was decoded can be encoded"), segments.concat())
}

fn read<W: DeserializeOwned>(head: &[u8], payload: Bytes) -> Option<W> {
    let (decoded, rest) = payload::supplying(payload, || postcard::take_from_bytes::<W>(head));
    let (wire, unread) = decoded.ok()?;
    (unread.is_empty() && rest.is_empty()).then_some(wire)
}

/// A frame's head and payload, the check made right.
fn frame<M: Message>(input: &[u8], comes_back: fn(&M::Wire) -> bool) -> bool {
    let Some((head, payload)) = parts(input) else {
        return false;
    };
    let sealed = frame::sealed(head, payload.len());
    let understood = frame::decode::<M>(&sealed, payload.clone()).is_ok();
    let Some(wire) = read::<M::Wire>(head, payload) else {
        assert!(!understood);
        return false;
    };
    assert!(understood);
    if !comes_back(&wire) {
        return true;
    }
    // A number may have been written longer than need be, so the first bytes are not compared.
    let (head, payload) = write(&wire);
    let again: M::Wire = read(&head, payload.clone().into()).expect("what was encoded can be decoded");
    assert_eq!(write(&again), (head, payload));
    true
}

/// A call of a service.
pub(crate) fn request<T: Serialize + DeserializeOwned>(input: &[u8]) -> bool {
    frame::<ClientMessage<T>>(input, |_| true)
}

/// The call of an input, for a service to do.
pub(crate) fn call<T: Serialize + DeserializeOwned>(input: &[u8]) -> Option<T> {
    let (head, payload) = parts(input)?;
    match read(head, payload)? {
        WireRequest::Request { message, .. } => Some(message),
        WireRequest::Cancel { .. } => None,
    }
}

/// An answer of a service.
pub(crate) fn answer<T: Serialize + DeserializeOwned>(input: &[u8]) -> bool {
    // The kind of an error of tarpc's own is another number each time it is written.
    frame::<Response<T>>(input, WireResponse::is_answer)
}

fn seed<W: Serialize>(wire: &W) -> Vec<u8> {
    let (head, payload) = write(wire);
    // Seeds' payloads are short.
    let mut seed = (payload.len() as u16).to_le_bytes().to_vec();
    seed.extend(payload);
    seed.extend(head);
    seed
}

/// The input of a call.
pub(crate) fn request_seed<T: Serialize>(message: T) -> Vec<u8> {
    seed(&WireRequest::Request {
        id: 7,
        deadline_ms: 5000,
        message,
    })
}

/// The input of an answer.
pub(crate) fn answer_seed<T: Serialize>(message: T) -> Vec<u8> {
    seed(&WireResponse::of(7, message))
}

/// What comes in pieces, and takes everything.
struct Pieces {
    left: Bytes,
    piece: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.piece.min(self.left.len()).min(into.remaining());
        into.put_slice(&self.left.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type Pair = (u8, Vec<crate::rpc::Payload>);

/// Bytes as they come from a socket, in pieces of the size that the first says.
pub(crate) fn stream(input: &[u8]) -> bool {
    let Some((piece, left)) = input.split_first() else {
        return false;
    };
    let socket = Pieces {
        left: Bytes::copy_from_slice(left),
        piece: usize::from(*piece).max(1),
    };
    let mut transport: Transport<Response<Pair>, ClientMessage<Pair>> = Transport::new(Box::new(socket));
    futures::executor::block_on(async {
        let mut understood = false;
        while let Some(message) = transport.next().await {
            match message {
                Ok(_) => understood = true,
                // As the server does.
                Err(_) => break,
            }
        }
        understood
    })
}

pub(crate) fn stream_seeds() -> Vec<Vec<u8>> {
    let message = |length: usize| -> Pair { (5, vec![vec![9; length].into(), vec![8; 3].into()]) };
    [(1, 2), (255, 600)]
        .into_iter()
        .map(|(piece, length): (u8, usize)| {
            let mut seed = vec![piece];
            for id in [1, 2] {
                let wire = WireRequest::Request {
                    id,
                    deadline_ms: 9,
                    message: message(length),
                };
                let (head, payload) = write(&wire);
                seed.extend(frame::sealed(&head, payload.len()));
                seed.extend(payload);
            }
            seed
        })
        .collect()
}

/// 56 bytes.
pub(crate) fn hello(input: &[u8]) -> bool {
    let Some((bytes, _)) = input.split_first_chunk::<LENGTH>() else {
        return false;
    };
    let Some(hello) = Hello::decode(bytes) else {
        return false;
    };
    // What is not used is not kept: bytes 44 to 47, and the id of no cluster.
    assert_eq!(Hello::decode(&hello.encode()), Some(hello));
    let _ = hello.refusal();
    true
}

/// The same, its check made right.
pub(crate) fn sealed_hello(input: &[u8]) -> bool {
    let Some((bytes, _)) = input.split_first_chunk::<LENGTH>() else {
        return false;
    };
    let mut bytes = *bytes;
    Hello::seal(&mut bytes);
    hello(&bytes)
}

pub(crate) fn hello_seeds() -> Vec<Vec<u8>> {
    let node = NodeId::from_bytes([1; 16]);
    let cluster = ClusterId::from_bytes([2; 16]);
    vec![
        Hello::new(node, Some(cluster), Kind::Data as u8).encode().to_vec(),
        Hello::new(node, None, Kind::Enrol as u8).encode().to_vec(),
    ]
}

/// What a stranger may say: a length and so many bytes.
pub(crate) fn small(input: &[u8]) -> bool {
    let mut socket = Pieces {
        left: Bytes::copy_from_slice(input),
        piece: 5,
    };
    futures::executor::block_on(small::receive(&mut socket)).is_ok_and(|message| {
        assert_eq!(message, input[4..4 + message.len()]);
        true
    })
}

pub(crate) fn small_seeds() -> Vec<Vec<u8>> {
    vec![b"\x03\0\0\0abc".to_vec(), b"\x00\x20\0\0abc".to_vec()]
}

/// A certificate in DER: whose is it?
pub(crate) fn certificate(input: &[u8]) -> bool {
    let certificate = CertificateDer::from_slice(input);
    proves(
        &certificate,
        NodeId::from_bytes([1; 16]),
        ClusterId::from_bytes([2; 16]),
    )
}

pub(crate) fn certificate_seeds() -> Vec<Vec<u8>> {
    let cluster = ClusterId::from_bytes([2; 16]);
    let now = jiff::Timestamp::UNIX_EPOCH;
    let made = || {
        let authority = Authority::new(cluster, now)?;
        let (node, key) = (NodeId::from_bytes([1; 16]), Key::generate()?);
        let issued = authority.issue(node, key.public(), Duration::from_secs(9000), 0, now)?;
        Ok::<_, crate::trust::TrustError>(vec![issued.certificate, authority.certificate().to_vec()])
    };
    made().expect("a fresh key is good")
}
