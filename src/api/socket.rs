//! The Unix socket of the API: only root may use it, and a socket file left by a dead daemon is replaced, one of a
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

/// Listens on `path` with mode 0600, making its directory if needed.
///
/// The socket gets its final name only when its mode is set, so nobody else can connect in between.
///
/// # Errors
/// See [`SocketError`].
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
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
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|source| {
            // The error that matters is the first one.
            let _ = std::fs::remove_file(&fresh);
            failed(source)
        })?;
    Ok(listener)
}
