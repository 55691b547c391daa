//! Adapts FUSE requests to `fs` calls; mount lifecycle. Knows nothing of redb or the network.
//!
//! - `adapter`: each kind of request, and which ones the kernel is taught not to send; `pool`: which thread does it.
//! - `greeting`: the handshake, and going on with a mount that an earlier daemon served.
//! - `mount`: one live mount from greeting to end ([`serve`], [`resume`], [`MountHandle`]).
//! - `handoff`: how the daemon gets a mount from `mount.fuse.storageos` ([`handoff::Handoff`], [`MountBackend`]).
//! - `table`: what is left of mounts whose daemon died ([`detach_dead_mounts`]).

mod adapter;
mod convert;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod greeting;
mod handoff;
mod mount;
mod pool;
mod requests;
mod table;
#[cfg(test)]
mod tests;

pub use handoff::{Handoff, HandoffError, HandoffServer, MountBackend};
pub use mount::{DEFAULT_LOOPS, LiveMount, MountEnd, MountHandle, ServeError, ServeOptions, Unmount, resume, serve};
pub use mount_helper::protocol::{MountRequest, mount_socket};
pub use requests::{Flow, Flows};
pub use table::detach_dead_mounts;
