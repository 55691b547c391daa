//! Unix sockets with a name: a dead process's name is taken, a living one's never, and a socket has its mode before anybody can connect.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Makes the directory of a socket if needed, and sees that nobody answers at its name.
///
/// # Errors
/// `AddrInUse` if somebody does; `AlreadyExists` if something else than a socket is there; the file system's.
pub(crate) fn claim(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(ErrorKind::AlreadyExists.into()),
        // A refused connection is a dead process's; anything else, a full backlog too, may be a living one.
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
            _ => Err(ErrorKind::AddrInUse.into()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a listening socket under another name and moves it into place, in that of whatever is there, once its mode and group are set.
///
/// # Errors
/// `bind`'s, and the file system's.
pub(crate) fn in_place<L>(
    path: &Path,
    mode: u32,
    group: Option<u32>,
    bind: impl FnOnce(&Path) -> io::Result<L>,
) -> io::Result<L> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = bind(&fresh)?;
    chown(&fresh, None, group)
        .and_then(|()| fs::set_permissions(&fresh, Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&fresh, path))
        .inspect_err(|_| {
            // The error that matters is the first one.
            let _ = fs::remove_file(&fresh);
        })?;
    Ok(listener)
}
