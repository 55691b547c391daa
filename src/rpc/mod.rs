//! The transport between nodes: one listening port, TLS with certificates on both sides, a hello that says what a connection is for, and frames
//! that carry [`tarpc`] messages whose block data travels beside the serialised part, never through serde.
//!
//! Knows nothing of what messages mean. Invariants: a connection has one [`Kind`], so block data and control traffic
//! never share one; nothing is allocated for a length before it was checked against its limit; whatever bytes a peer
//! sends, the answer is an error of that connection alone; whoever has not proved which node it is gets no further than the hello, or than one
//! small message ([`Connection::ask`]) if it wants a certificate.
//!
//! A service is a `#[tarpc::service]` trait. Its server side is given to [`Builder::on`] with [`serve`], its
//! client side is made from a [`Peer`]'s channel (`FooClient::from(peer.channel().await?)`).
//!
//! Two things of tarpc to keep in mind: the server runs the requests of a connection concurrently, and a passed
//! deadline or a dropped call aborts its handler at an await, so work that must finish runs in a task of its own.

mod driver;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hello;
mod lanes;
mod payload;
mod peer;
mod secure;
mod server;
mod small;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod variant;

pub use driver::{Driver, Held};
#[cfg(test)]
pub(crate) use frame::bytes_of;
pub use frame::{MAX_DEADLINE, MAX_HEAD, MAX_PAYLOAD, Message, WireRequest, WireResponse};
pub use hello::{Identity, IdentityError, Kind, PROTOCOL_VERSION, Refusal};
pub use payload::{Payload, Sums};
pub use peer::{ConnectError, Limits, Peer, call, connect, connect_pinned, refuses, within};
pub use server::{Builder, Connection, Server, serve};
pub use tls::CredentialsError;
pub use transport::{Socket, Transport};
