//! The words between a daemon and its store.

use super::DESCRIPTORS_MAX;
use crate::os;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Version of these words.
const VERSION: u32 = 1;
/// Bytes of the longest packet.
const PACKET_MAX: usize = 4096;

/// What a daemon says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Request {
    /// Hold the descriptors beside this.
    Keep { name: String },
    /// Close them.
    Drop { name: String },
    /// Give a copy of everything: [`Answer::Held`] for each name, then [`Answer::End`].
    Take,
}

/// What the descriptor store says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    /// The descriptors are beside this.
    Held {
        name: String,
    },
    End,
}

#[derive(Serialize, Deserialize)]
struct Packet<T> {
    v: u32,
    #[serde(flatten)]
    words: T,
}

pub(super) fn unexpected(answer: &Answer) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the descriptor store answered {answer:?}"),
    )
}

pub(super) fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

pub(super) fn connect(path: &Path) -> io::Result<OwnedFd> {
    let connection = socket()?;
    rustix::net::connect(&connection, &SocketAddrUnix::new(path)?)?;
    Ok(connection)
}

/// A packet's bytes.
pub(super) fn encode<T: Serialize>(words: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Packet { v: VERSION, words })?)
}

/// What a packet says.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let packet: Packet<T> = serde_json::from_slice(bytes)?;
    if packet.v != VERSION {
        let error = format!("words of version {}, these are {VERSION}", packet.v);
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(packet.words)
}

pub(super) fn send<T: Serialize>(connection: impl AsFd, words: &T, descriptors: &[OwnedFd]) -> io::Result<()> {
    let packet = encode(words)?;
    if packet.len() > PACKET_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    sendmsg(connection, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One packet and the descriptors beside it.
pub(super) fn receive<T: DeserializeOwned>(connection: impl AsFd, within: Duration) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut fds = [PollFd::new(&connection, PollFlags::IN)];
    if !os::wait::ready(&mut fds, Some(Instant::now() + within))? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    receive_now(connection)
}

/// The packet that is there.
pub(super) fn receive_now<T: DeserializeOwned>(connection: impl AsFd) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut bytes = [0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((decode(&bytes[..received.bytes])?, descriptors))
}
