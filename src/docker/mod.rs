//! The door for Docker: the volume driver `storageos`, by Docker's volume plugin protocol (JSON over HTTP on a Unix socket).
//!
//! Docker finds a driver by a socket in `/run/docker/plugins`; the socket's name is the driver's. It asks for volumes by name, which live in the
//! namespace `default`, and says for each container that starts or ends that it uses a volume no more or from now on. A volume is mounted once on a
//! node, under `DATA_DIR/docker/NAME`, for all containers there; Docker binds that directory into them.
//!
//! - `protocol`: the words; `server`: HTTP, limits and deadlines; `driver`: what each call does, by the operations that the HTTP API has, too;
//! - `ledger`: which containers use which mount, kept on disk; `host`: the mounts of this machine, made as `mount(8)` makes them.
//!
//! Invariants:
//! 1. A mount lives as long as somebody is in the ledger who uses it; Docker's id counts once, however often it is repeated.
//! 2. Those who use a mount use that one: when it is gone (the daemon died, an operator detached it), they are forgotten, and what they say later
//!    changes nothing for the next mount.
//! 3. Docker is never given a directory in which it does not see the volume: what a container wrote would be on the node's own disk.
//! 4. A mount that Docker was not told of (it gave up waiting) is taken back.
//!
//! Knows nothing of blocks, copies and the kernel's side of FUSE.

mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod host;
mod ledger;
mod protocol;
mod server;

pub use ledger::LedgerError;
pub use server::{Door, DoorError, Settings, is_driver_socket};

/// Where Docker looks for the driver `storageos`.
pub const DEFAULT_SOCKET: &str = "/run/docker/plugins/storageos.sock";
