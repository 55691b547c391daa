//! The HTTP/JSON API: its words, the servers on Unix sockets and, for clients with a certificate, on TCP; the client that the command line uses.
//!
//! Knows nothing of blocks, FUSE or the control store: what a request does is behind [`Operations`], which the daemon
//! implements. `docs/api.md` lists the routes.

mod bounded;
mod client;
mod dial;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod monitoring;
mod operations;
mod remote;
mod server;
mod socket;
pub mod types;

pub use client::{Client, escape};
pub(crate) use error::list_of;
pub use error::{ApiError, Code};
pub use monitoring::serve_monitoring;
pub use operations::Operations;
pub use remote::{Gatekeeper, no_client, serve_clients};
pub use server::serve;
pub use socket::{DEFAULT_SOCKET, SOCKET_IN_DATA_DIR, SocketError, bind, group_id};
