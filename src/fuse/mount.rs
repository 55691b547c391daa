//! One live mount: serves a `/dev/fuse` descriptor that somebody else mounted, or that an earlier daemon served, until it is unmounted.
//!
//! Invariant: whoever gave the file system is told of the end exactly once, after every request was answered and
//! [`FileSystem::close`] was run. So "ended" means that nothing unsaved is left (or that the error says what is).

use super::adapter::Shared;
use super::greeting::{self, Gate, Greeting};
use super::pool::Pool;
use super::requests::{Flows, Requests};
use super::table;
use crate::fs::{FileSystem, FsError};
use fuser::Config;
use mount_helper::{record, utab};
use parking_lot::{Condvar, Mutex};
use rustix::mount::UnmountFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Event loops of a mount unless told otherwise: one always stays free (see `pool`).
pub const DEFAULT_LOOPS: usize = 3;
/// Most event loops of a mount.
const MAX_LOOPS: usize = 16;

/// How to serve a mount.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// What is mounted, as `mount(8)` shows it: `NAMESPACE/NAME`.
    pub source: String,
    /// Where, an absolute path in the namespace of who mounted.
    pub mountpoint: PathBuf,
    /// Event loops, 1 to 16.
    pub loops: usize,
}

/// Why a descriptor cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It is something else, or not mounted.
    #[error("the descriptor is not a mounted /dev/fuse")]
    NotFuse,
    /// The kernel's greeting failed.
    #[error("FUSE handshake: {0}")]
    Handshake(#[source] io::Error),
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// As `umount`: fails with `EBUSY` while the mount is in use.
    Clean,
    /// As `umount -l`: gone from the tree now, ended when the last user is.
    Lazy,
    /// As `umount -f -l`: the kernel answers every request with an error from now on. Data not yet written back is lost.
    Abort,
}

/// How a mount ended.
pub type MountEnd = Result<(), FsError>;

/// Where a mount's life is.
#[derive(Clone, Debug)]
enum Phase {
    /// The kernel sends requests.
    Serving,
    /// No more requests will come; what was acknowledged is being made durable.
    Closing,
    /// Over.
    Ended(MountEnd),
}

struct State {
    phase: Mutex<Phase>,
    changed: Condvar,
}

impl State {
    fn set(&self, phase: Phase) {
        *self.phase.lock() = phase;
        self.changed.notify_all();
    }
}

/// A live mount. Dropping the handle changes nothing.
pub struct MountHandle {
    live: LiveMount,
    options: ServeOptions,
    state: Arc<State>,
    shared: Arc<Shared>,
}

/// The kernel's side of a mount: lives as long as somebody holds it, whether it is served or not.
pub struct LiveMount {
    fd: OwnedFd,
    greeting: Greeting,
}

impl LiveMount {
    /// What an earlier daemon served: the descriptor, and what [`Self::greeting`] was then.
    ///
    /// # Errors
    /// [`ServeError::NotFuse`].
    pub fn new(fd: OwnedFd, greeting: Vec<u8>) -> Result<Self, ServeError> {
        greeting::check_kind(&fd)?;
        Ok(Self {
            fd,
            greeting: Greeting::again(greeting)?,
        })
    }

    /// What the kernel said when it was mounted: to be kept with the descriptor.
    #[must_use]
    pub fn greeting(&self) -> &[u8] {
        self.greeting.as_bytes()
    }

    /// Another hold on it.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            greeting: self.greeting.clone(),
        })
    }

    /// Whether the kernel still has an inode.
    #[must_use]
    pub fn knows(&self, ino: u64) -> bool {
        greeting::knows(self.fd.as_fd(), ino)
    }
}

impl AsFd for LiveMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Serves `fd` from threads of its own. Returns when the kernel has greeted; `on_end` is called once, after the file system was closed.
/// On an error the file system is left open and `on_end` is not called.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(
    fs: Arc<FileSystem>,
    fd: OwnedFd,
    options: ServeOptions,
    on_end: impl FnOnce(MountEnd) + Send + 'static,
) -> Result<Arc<MountHandle>, ServeError> {
    let greeting = Greeting::read(&fd)?;
    start(fs, LiveMount { fd, greeting }, true, options, on_end)
}

/// Goes on with a mount that an earlier daemon served, on a file system that was opened in what that daemon left.
///
/// # Errors
/// See [`ServeError`].
pub fn resume(
    fs: Arc<FileSystem>,
    live: LiveMount,
    options: ServeOptions,
    on_end: impl FnOnce(MountEnd) + Send + 'static,
) -> Result<Arc<MountHandle>, ServeError> {
    start(fs, live, false, options, on_end)
}

fn start(
    fs: Arc<FileSystem>,
    live: LiveMount,
    first: bool,
    options: ServeOptions,
    on_end: impl FnOnce(MountEnd) + Send + 'static,
) -> Result<Arc<MountHandle>, ServeError> {
    let loops = options.loops.clamp(1, MAX_LOOPS);
    let shared = Arc::new(Shared {
        fs,
        pool: Pool::new(loops),
        requests: Requests::default(),
        gate: Gate::default(),
        flows: Flows::default(),
    });
    let mut config = Config::default();
    config.n_threads = Some(loops);
    let (session, connecting) = live.greeting.session(&live.fd, first, shared.clone(), config)?;
    let state = Arc::new(State {
        phase: Mutex::new(Phase::Serving),
        changed: Condvar::new(),
    });
    let handle = Arc::new(MountHandle {
        live,
        options: options.clone(),
        state: state.clone(),
        shared: shared.clone(),
    });
    let run = move || {
        if let Err(error) = session.run() {
            tracing::warn!(source = options.source, %error, "a mount's event loop failed");
        }
        if !shared.gate.is_open() {
            // It never began; the file system is its giver's.
            return;
        }
        state.set(Phase::Closing);
        shared.pool.drain();
        let end = shared.fs.close();
        match &end {
            Ok(()) => tracing::info!(source = options.source, mountpoint = %options.mountpoint.display(), "unmounted"),
            Err(error) => tracing::error!(source = options.source, %error, "unmounted with an error"),
        }
        on_end(end.clone());
        state.set(Phase::Ended(end));
    };
    let thread = std::thread::Builder::new().name("fuse-session".into());
    thread.spawn(run).map_err(ServeError::Thread)?;
    connecting.connect(&handle.shared.gate, loops, || match handle.live.greeting.can_resend() {
        // Before anything is taken: that would be sent again, too.
        true if !first => greeting::resend(handle.live.as_fd()),
        _ => Ok(()),
    })?;
    Ok(handle)
}

impl MountHandle {
    /// What is mounted.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.options.source
    }

    /// Where.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.options.mountpoint
    }

    /// The file system that is served.
    #[must_use]
    pub fn file_system(&self) -> &Arc<FileSystem> {
        &self.shared.fs
    }

    /// The kernel's side, for whoever keeps it beyond this process.
    #[must_use]
    pub fn live(&self) -> &LiveMount {
        &self.live
    }

    /// Requests so far: the kind's name and how many.
    #[must_use]
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        self.shared.requests.all()
    }

    /// What was read, written and made durable so far.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.shared.flows
    }

    /// Unmounts; [`Self::wait`] tells when it has ended. A mount that is gone already is no error.
    ///
    /// # Errors
    /// `EBUSY` while somebody uses it ([`Unmount::Clean`]); `ENOENT` if the mount is in another mount namespace: then whoever
    /// mounted must unmount.
    pub fn unmount(&self, how: Unmount) -> io::Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        let at = &self.options.mountpoint;
        // The topmost mount there must be ours: another's is not touched.
        let mount = table::mounted_at(at)?.filter(|mount| mount.source == self.options.source);
        let mount = mount.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let flags = match how {
            Unmount::Clean => UnmountFlags::empty(),
            Unmount::Lazy => UnmountFlags::DETACH,
            Unmount::Abort => UnmountFlags::DETACH | UnmountFlags::FORCE,
        };
        let records = Path::new(record::DIRECTORY);
        let noted = record::read(records, &mount);
        rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW)?;
        // What the helper noted of it; a note that stays is ignored.
        let _ = utab::remove(Path::new(utab::DIRECTORY), at);
        if let Some(noted) = noted {
            record::remove(records, &mount.device, &noted);
        }
        Ok(())
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<MountEnd> {
        match &*self.state.phase.lock() {
            Phase::Ended(end) => Some(end.clone()),
            Phase::Serving | Phase::Closing => None,
        }
    }

    /// Waits for the end: at most `serving` while the kernel still sends requests, at most `closing` in all. `None` when it takes
    /// longer. An unmount ends the requests before it returns, so after one a mount that still serves is in use elsewhere.
    #[must_use]
    pub fn wait(&self, serving: Duration, closing: Duration) -> Option<MountEnd> {
        let start = Instant::now();
        let mut phase = self.state.phase.lock();
        loop {
            let deadline = match &*phase {
                Phase::Ended(end) => return Some(end.clone()),
                Phase::Serving => start + serving.min(closing),
                Phase::Closing => start + closing,
            };
            if Instant::now() >= deadline {
                return None;
            }
            self.state.changed.wait_until(&mut phase, deadline);
        }
    }
}
