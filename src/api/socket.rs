//! The Unix socket of the API: only root may use it, or a group that an operator names, and a socket file left by a dead daemon is replaced, one of a
//! living daemon never.

use crate::os;
use std::io;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Where the command line looks for the daemon unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/storageos/storageos.sock";
/// The socket's name in a daemon's data directory.
pub const SOCKET_IN_DATA_DIR: &str = "storageos.sock";

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A daemon answers there.
    #[error("another daemon answers on {0}")]
    InUse(PathBuf),
    /// Something that is no socket has this name.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The path or its directory cannot be used.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SocketError {
    /// Of what [`os::socket`] says of a path.
    pub(crate) fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(path),
            io::ErrorKind::AlreadyExists => Self::NotASocket(path),
            _ => Self::Io { path, source },
        }
    }
}

/// The id of a group, as /etc/group says.
///
/// # Errors
/// The file cannot be read; there is no such group.
pub fn group_id(name: &str) -> io::Result<u32> {
    let groups = std::fs::read_to_string("/etc/group")?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no group {name}")))
}

/// Listens on `path` with mode 0600, or 0660 for a group, making its directory if needed.
///
/// The socket gets its final name only when its mode is set, so nobody else can connect in between.
///
/// # Errors
/// See [`SocketError`].
pub fn bind(path: &Path, group: Option<u32>) -> Result<UnixListener, SocketError> {
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    os::socket::claim(path)
        .and_then(|()| os::socket::in_place(path, mode, group, |fresh| UnixListener::bind(fresh)))
        .map_err(|error| SocketError::of(path, error))
}
