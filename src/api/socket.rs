//! The Unix socket of the API: only root may use it, or a group that an operator names, and a socket file left by a dead daemon is replaced, one of a
//! living daemon never.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
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
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        // A refused connection is a dead daemon's; anything else, a full backlog too, may be a living one.
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {}
            _ => return Err(SocketError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::os::unix::fs::chown(&fresh, None, group)
        .and_then(|()| std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode)))
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|source| {
            // The error that matters is the first one.
            let _ = std::fs::remove_file(&fresh);
            failed(source)
        })?;
    Ok(listener)
}
