//! Mounting and unmounting, as the lib's text describes. Blocking; every wait has a deadline.

use crate::mountinfo::{self, FS_TYPE, Mount};
use crate::options::MountOptions;
use crate::protocol::{self, Answer, DEFAULT_SOCKET, MountRequest, Request};
use crate::record::{self, Record};
use crate::utab;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::ffi::CString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the daemon may take to serve a descriptor that it has.
const SERVE: Duration = Duration::from_secs(30);
/// How long an unmount waits for the daemon to save everything: longer than a volume suspends writes.
const CLOSE: Duration = Duration::from_secs(120);
/// How long a lazy unmount does.
const CLOSE_LAZY: Duration = Duration::from_secs(1);

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountArguments {
    /// `NAMESPACE/NAME` or `NAME`.
    pub volume: String,
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// The `-o` options.
    pub options: MountOptions,
    /// Check the arguments and the daemon's socket, mount nothing (`-f`).
    pub fake: bool,
}

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory.
    #[error("{path}: {source}")]
    Mountpoint {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is mounted there lost its daemon.
    #[error("{0}: what is mounted there has lost its daemon; `umount -l {0}` first")]
    DeadMount(PathBuf),
    /// Nobody listens.
    #[error(
        "no daemon answers on {socket} ({source}); start it with `storageos node run`, or name another daemon's socket with `-o socket=PATH`"
    )]
    NoDaemon {
        /// The API socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Talking to the daemon failed.
    #[error("the daemon at {socket} {what}: {source}")]
    Daemon {
        /// The API socket.
        socket: PathBuf,
        /// What was going on.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The daemon says no.
    #[error("{message}")]
    Refused {
        /// Its reason.
        message: String,
        /// In one word.
        code: String,
    },
    /// The kernel says no.
    #[error("{what}: {source}")]
    Kernel {
        /// The call.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// There is nothing of ours to unmount.
    #[error("{0}: no storageos volume is mounted there")]
    NotMounted(PathBuf),
    /// It is unmounted, but not all is saved.
    #[error("{0}")]
    NotClosed(String),
}

fn kernel(what: impl Into<String>, error: impl Into<io::Error>) -> MountError {
    MountError::Kernel {
        what: what.into(),
        source: error.into(),
    }
}

/// The API socket: as told, or as `STORAGEOS_HOST` says, or the default.
#[must_use]
pub fn api_socket(told: Option<&Path>) -> PathBuf {
    if let Some(path) = told {
        return path.to_owned();
    }
    let host = std::env::var("STORAGEOS_HOST").unwrap_or_default();
    let path = host.strip_prefix("unix://").unwrap_or(&host);
    // A host that is no path is an address: mounts are made on the machine itself.
    if path.starts_with('/') {
        path.into()
    } else {
        DEFAULT_SOCKET.into()
    }
}

/// Mounts a volume; returns when it can be used.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(arguments: &MountArguments) -> Result<(), MountError> {
    let options = &arguments.options;
    let mountpoint = directory(&arguments.mountpoint)?;
    if options.remount {
        return rustix::mount::mount_remount(&mountpoint, options.flags, "")
            .map_err(|e| kernel(format!("remounting {}", mountpoint.display()), e));
    }
    let api = api_socket(options.socket.as_deref());
    let socket = protocol::mount_socket(&api);
    let failed = |what| {
        let api = api.clone();
        move |source| MountError::Daemon {
            socket: api,
            what,
            source,
        }
    };
    let mut stream = UnixStream::connect(&socket).map_err(|source| MountError::NoDaemon {
        socket: api.clone(),
        source,
    })?;
    if arguments.fake {
        return Ok(());
    }
    let request = Request::Mount(MountRequest {
        volume: arguments.volume.clone(),
        mountpoint: mountpoint.clone(),
        read_only: options.read_only(),
    });
    protocol::send(&mut stream, &request).map_err(failed("does not listen"))?;
    let deadline = Instant::now() + options.timeout;
    let volume = match protocol::receive(&stream, deadline)
        .map_err(failed("did not make the volume ready"))?
        .0
    {
        Answer::Ready { volume } => volume,
        other => return Err(refused(other)),
    };
    let device = mount_fuse(&volume, &mountpoint, options)?;
    // From here on, failing means detaching what was mounted.
    let served = pass(&stream, device).and_then(|()| protocol::receive(&stream, Instant::now() + SERVE));
    let result = match served.map_err(failed("did not serve the mount")) {
        Ok((Answer::Mounted, _)) => Ok(()),
        Ok((other, _)) => Err(refused(other)),
        Err(error) => Err(error),
    };
    if result.is_err() {
        // It was never served, so nothing can be lost; that it is gone already is fine.
        let _ = rustix::mount::unmount(&mountpoint, rustix::mount::UnmountFlags::DETACH);
        return result;
    }
    after_mount(&volume, &mountpoint, &socket, options.read_ahead_kib);
    Ok(())
}

fn refused(answer: Answer) -> MountError {
    match answer {
        Answer::Error { message, code } => MountError::Refused { message, code },
        other => MountError::Refused {
            message: format!("the daemon's answer makes no sense here: {other:?}"),
            code: "protocol".into(),
        },
    }
}

/// The mount point's canonical path, if it is a directory that can be mounted on.
fn directory(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |source: io::Error| match Errno::from_io_error(&source) {
        Some(Errno::NOTCONN) => MountError::DeadMount(path.to_owned()),
        _ => MountError::Mountpoint {
            path: path.to_owned(),
            source,
        },
    };
    let canonical = std::fs::canonicalize(path).map_err(failed)?;
    if !std::fs::metadata(&canonical).map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    Ok(canonical)
}

/// Opens `/dev/fuse` and mounts it; whoever serves the descriptor then serves the mount. The end of the descriptor is the mount's.
///
/// # Errors
/// [`MountError::Kernel`].
pub fn mount_fuse(volume: &str, mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|e| kernel("/dev/fuse", e))?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        std::os::fd::AsRawFd::as_raw_fd(&device),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    // Numbers and words: there is no zero byte in it.
    let data = CString::new(data).unwrap_or_default();
    rustix::mount::mount(volume, mountpoint, FS_TYPE, options.flags, data.as_c_str())
        .map_err(|e| kernel(format!("mounting on {}", mountpoint.display()), e))?;
    Ok(device)
}

/// Sends the descriptor to the daemon, and gives up this process's own: from now on the daemon alone holds the mount.
///
/// # Errors
/// The socket's.
pub fn pass(stream: &UnixStream, device: OwnedFd) -> io::Result<()> {
    let line = protocol::line(&Request::Fd)?;
    let descriptors = [device.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    // The line is far smaller than a socket's buffer, which is empty.
    if sent == line.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Sets how much the kernel reads ahead. Only once the mount is served, since the kernel's greeting sets it too; a mount works without.
pub fn set_read_ahead(mount: &Mount, kib: u32) {
    let place = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    let _ = std::fs::write(place, kib.to_string());
}

/// What makes a mount better but must not fail it.
fn after_mount(volume: &str, mountpoint: &Path, socket: &Path, read_ahead_kib: u32) {
    let Ok(Some(mount)) = mountinfo::mounted_at(mountpoint) else {
        return;
    };
    set_read_ahead(&mount, read_ahead_kib);
    let record = Record {
        volume: volume.to_owned(),
        mountpoint: mountpoint.to_owned(),
        socket: socket.to_owned(),
    };
    let _ = record::write(Path::new(record::DIRECTORY), &mount.device, &record);
    let _ = utab::add(Path::new(utab::DIRECTORY), volume, &mount.mountpoint);
}

/// How to unmount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmountFlags {
    /// `-l`: detach now, end when nobody uses it any more.
    pub lazy: bool,
    /// `-f`: end it even if the daemon hangs; what was not written back is lost.
    pub force: bool,
    /// `-r`: when it is busy, make it read-only.
    pub read_only: bool,
}

/// Unmounts, and waits until the daemon has saved everything and closed the volume. `target` is the directory, or the volume's name.
///
/// # Errors
/// See [`MountError`]; after [`MountError::NotClosed`] it is unmounted.
pub fn unmount(target: &Path, flags: UnmountFlags, socket: Option<&Path>) -> Result<(), MountError> {
    let before = mountinfo::read().map_err(|e| kernel("/proc/self/mountinfo", e))?;
    let mount = find(&before, target)?;
    let records = Path::new(record::DIRECTORY);
    let known = record::read(records, &mount);
    let mut how = rustix::mount::UnmountFlags::NOFOLLOW;
    how.set(rustix::mount::UnmountFlags::DETACH, flags.lazy);
    how.set(rustix::mount::UnmountFlags::FORCE, flags.force);
    match rustix::mount::unmount(&mount.mountpoint, how) {
        Ok(()) => {}
        Err(Errno::BUSY) if flags.read_only => {
            let to = rustix::mount::MountFlags::RDONLY;
            return rustix::mount::mount_remount(&mount.mountpoint, to, "")
                .map_err(|e| kernel(format!("making {} read-only", mount.mountpoint.display()), e));
        }
        Err(error) => return Err(kernel(mount.mountpoint.display().to_string(), error)),
    }
    // A note that stays is ignored.
    let _ = utab::remove(Path::new(utab::DIRECTORY), &mount.mountpoint);
    // Other mounts of the same (a bind mount) keep it alive: nothing to wait for.
    if mountinfo::read().is_ok_and(|after| mountinfo::still_shared(&before, &mount, &after)) {
        return Ok(());
    }
    if let Some(record) = &known {
        record::remove(records, &mount.device, record);
    }
    let (socket, mountpoint) = match known {
        Some(record) if socket.is_none() => (record.socket, record.mountpoint),
        _ => (protocol::mount_socket(&api_socket(socket)), mount.mountpoint.clone()),
    };
    wait_closed(&socket, &mount.source, &mountpoint, flags)
}

/// The topmost mount of ours at a path, or with this source.
fn find(table: &[Mount], target: &Path) -> Result<Mount, MountError> {
    // Compared as it stands first: resolving a path asks the mount itself, which may be dead.
    let absolute = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    let at = |path: &Path| table.iter().rfind(|m| m.mountpoint == path);
    let found = at(&absolute)
        .or_else(|| at(&std::fs::canonicalize(target).ok()?))
        .or_else(|| {
            table
                .iter()
                .rfind(|m| m.fs_type == FS_TYPE && Path::new(&m.source) == target)
        });
    found
        .filter(|m| m.fs_type == FS_TYPE)
        .cloned()
        .ok_or_else(|| MountError::NotMounted(target.to_owned()))
}

fn wait_closed(socket: &Path, volume: &str, mountpoint: &Path, flags: UnmountFlags) -> Result<(), MountError> {
    let wait = if flags.lazy { CLOSE_LAZY } else { CLOSE };
    // A daemon that is gone has nothing left to save.
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return Ok(());
    };
    let request = Request::Closed {
        volume: volume.to_owned(),
        mountpoint: mountpoint.to_owned(),
        wait_ms: wait.as_millis() as u64,
    };
    let asked = protocol::send(&mut stream, &request)
        .and_then(|()| protocol::receive(&stream, Instant::now() + wait + Duration::from_secs(5)));
    match asked {
        Ok((Answer::Closed, _)) => Ok(()),
        // As asked for.
        Ok((Answer::Busy, _)) if flags.lazy => Ok(()),
        Ok((Answer::Busy, _)) => Err(MountError::NotClosed(format!(
            "{volume} is unmounted here, but the daemon has not closed it: another mount namespace still uses it, or its copies do \
             not answer"
        ))),
        Ok((Answer::Error { message, .. }, _)) => Err(MountError::NotClosed(format!(
            "{volume} is unmounted, but closing it failed: {message}"
        ))),
        Ok((other, _)) => Err(MountError::NotClosed(format!(
            "{volume} is unmounted; the daemon said {other:?}"
        ))),
        // It died meanwhile: what it had acknowledged as synced is safe, and there is nobody to ask about the rest.
        Err(_) if flags.lazy || flags.force => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(MountError::NotClosed(format!(
            "{volume} is unmounted, but the daemon ended before it had closed it"
        ))),
        Err(error) => Err(MountError::NotClosed(format!(
            "{volume} is unmounted, but the daemon does not say whether it is closed: {error}"
        ))),
    }
}
