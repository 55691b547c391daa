//! Bytes that ride beside a message instead of inside it.
//!
//! [`Payload`] is a field of message types. While the codec serialises a message, each payload leaves its bytes (a
//! reference, not a copy) in a thread-local list and writes only its length; while the codec deserialises one, each payload takes
//! its share of the frame's payload segment, again by reference. Outside of the codec both are errors: the
//! thread-local is set only for the duration of one `encode` or `decode` call, which never awaits.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::{cell::RefCell, ops::Deref};

thread_local! {
    /// The segments of the message being encoded on this thread.
    static OUTGOING: RefCell<Option<Vec<Bytes>>> = const { RefCell::new(None) };
    /// What is left of the payload of the frame being decoded on this thread.
    static INCOMING: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Runs `serialise` and returns the segments that the payloads in it left.
pub(super) fn collecting<R>(serialise: impl FnOnce() -> R) -> (R, Vec<Bytes>) {
    OUTGOING.with_borrow_mut(|slot| *slot = Some(Vec::new()));
    let result = serialise();
    let segments = OUTGOING.with_borrow_mut(Option::take).unwrap_or_default();
    (result, segments)
}

/// Runs `deserialise` with `payload` for its payloads to take from; returns what none of them took.
pub(super) fn supplying<R>(payload: Bytes, deserialise: impl FnOnce() -> R) -> (R, Bytes) {
    INCOMING.with_borrow_mut(|slot| *slot = Some(payload));
    let result = deserialise();
    let rest = INCOMING.with_borrow_mut(Option::take).unwrap_or_default();
    (result, rest)
}

/// A segment of bytes carried by a message without being copied by serde.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::from(bytes))
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let length = u32::try_from(self.0.len()).map_err(|_| ser::Error::custom("payload of 4 GiB or more"))?;
        let kept = OUTGOING.with_borrow_mut(|slot| slot.as_mut().map(|segments| segments.push(self.0.clone())));
        if kept.is_none() {
            return Err(ser::Error::custom("a payload can only be sent by the frame codec"));
        }
        serializer.serialize_u32(length)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let length = u32::deserialize(deserializer)? as usize;
        INCOMING.with_borrow_mut(|slot| {
            let payload = slot
                .as_mut()
                .ok_or_else(|| de::Error::custom("a payload can only be received by the frame codec"))?;
            if payload.len() < length {
                return Err(de::Error::custom("payload shorter than the message says"));
            }
            Ok(Self(payload.split_to(length)))
        })
    }
}

/// Hashes of blocks, 32 bytes each, carried as a payload: serde would take a 1 MiB write's 8 KiB of them byte by byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums(Payload);

impl Sums {
    /// The hashes, or `None` when the bytes are not whole hashes.
    #[must_use]
    pub fn get(&self) -> Option<&[[u8; 32]]> {
        let (sums, rest) = self.0.as_chunks::<32>();
        rest.is_empty().then_some(sums)
    }
}

impl From<Vec<[u8; 32]>> for Sums {
    fn from(sums: Vec<[u8; 32]>) -> Self {
        Self(Payload(Bytes::from(sums.into_flattened())))
    }
}
