//! How the daemon gets a mount: a Unix socket on which mount helpers ask (`mount_helper::protocol` has the words and the order).
//!
//! One thread per helper, [`HELPERS_MAX`] at most; whatever a helper does or fails to do, its thread ends by a deadline, so garbage,
//! silence, half-open sockets and dead helpers cannot hang the daemon. After a successful [`MountBackend::prepare`] the backend hears
//! [`MountBackend::ended`] exactly once, however the rest goes, and the file system is closed by then.

use super::mount::{DEFAULT_LOOPS, LiveMount, MountEnd, MountHandle, ServeError, ServeOptions, resume, serve};
use crate::fs::FileSystem;
use crate::os;
use mount_helper::protocol::{self, Answer, MountRequest, Request};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Helpers served at once; more are told to come back.
const HELPERS_MAX: usize = 64;
/// How long a helper may take to say what it wants.
const FIRST_LINE: Duration = Duration::from_secs(10);
/// How long a helper may take from `ready` to the descriptor: it only opens a device and mounts it.
const DESCRIPTOR: Duration = Duration::from_secs(30);
/// How long an answer may take to be written.
const WRITE: Duration = Duration::from_secs(10);
/// After an unmount, how long a mount that still gets requests is waited for (see [`MountHandle::wait`]).
const STILL_SERVING: Duration = Duration::from_secs(3);
/// Longest wait that a helper may ask for.
const CLOSED_MAX: Duration = Duration::from_secs(300);
/// Ends with an error that are kept for the `umount` that will ask.
const FAILED_MAX: usize = 32;

/// Why a mount is refused, in words for the person who asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct HandoffError {
    /// What is wrong and what would help.
    pub message: String,
    /// One word for programs, such as `in_use`, `not_found`, `unavailable`.
    pub code: &'static str,
}

/// The daemon's side of mounts. Calls come from threads that may block; [`Self::prepare`] may take as long as the helper waits.
pub trait MountBackend: Send + Sync + 'static {
    /// Claims a volume for this node and opens its file system. Returns the volume's full name too.
    ///
    /// # Errors
    /// Why not; nothing is claimed then.
    fn prepare(&self, request: &MountRequest) -> Result<(String, Arc<FileSystem>), HandoffError>;

    /// The mount is live. Not called when the helper failed after `prepare`.
    fn mounted(&self, request: &MountRequest, mount: &Arc<MountHandle>);

    /// It is over and the file system is closed: the claim can be given back.
    fn ended(&self, request: &MountRequest, end: &MountEnd);
}

/// A mount: volume and mountpoint.
type Key = (String, PathBuf);
type OnEnd = Box<dyn FnOnce(MountEnd) + Send>;

struct Server {
    backend: Arc<dyn MountBackend>,
    /// `None` between `prepare` and the kernel's greeting.
    mounts: Mutex<HashMap<Key, Option<Arc<MountHandle>>>>,
    /// Tells of entries that left `mounts`.
    gone: Condvar,
    /// Mounts that ended with an error which no `umount` has heard of.
    failed: Mutex<VecDeque<(Key, String)>>,
    helpers: AtomicUsize,
}

/// The mounts of a daemon, however it got them.
#[derive(Clone)]
pub struct Handoff(Arc<Server>);

/// A listening socket and its thread. Dropping it stops taking new mounts there; live ones go on.
pub struct HandoffServer {
    stopping: Arc<AtomicBool>,
    path: PathBuf,
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl Handoff {
    /// No mounts yet.
    #[must_use]
    pub fn new(backend: Arc<dyn MountBackend>) -> Self {
        Self(Arc::new(Server {
            backend,
            mounts: Mutex::default(),
            gone: Condvar::new(),
            failed: Mutex::default(),
            helpers: AtomicUsize::new(0),
        }))
    }

    /// Listens on `socket` (see [`protocol::mount_socket`]), which is made with mode 0600; a dead daemon's is replaced.
    ///
    /// # Errors
    /// `AddrInUse` if another daemon answers there; the file system's.
    pub fn listen(&self, socket: &Path) -> io::Result<HandoffServer> {
        os::socket::claim(socket)?;
        let listener = Arc::new(os::socket::in_place(socket, 0o600, None, |fresh| {
            UnixListener::bind(fresh)
        })?);
        let stopping = Arc::new(AtomicBool::new(false));
        let (serving, accepting, stop) = (self.0.clone(), listener.clone(), stopping.clone());
        let thread = std::thread::Builder::new().name("mount-socket".into());
        let thread = thread.spawn(move || accept(&accepting, &serving, &stop))?;
        Ok(HandoffServer {
            stopping,
            path: socket.to_owned(),
            listener,
            thread: Some(thread),
        })
    }

    /// Goes on with a mount of an earlier daemon, which `request` made and whose volume is `volume`; the file system is open. The backend
    /// hears of it as of any other. On an error it hears of the end alone, with the file system closed.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn resume(
        &self,
        request: MountRequest,
        volume: String,
        fs: &Arc<FileSystem>,
        live: LiveMount,
    ) -> Result<(), ServeError> {
        let key = (volume, request.mountpoint.clone());
        self.0.mounts.lock().insert(key.clone(), None);
        let served = self.0.serve(&request, &key, |options, on_end| {
            resume(fs.clone(), live, options, on_end)
        });
        if served.is_err() {
            self.0.give_back(&request, &key, fs);
        }
        served
    }

    /// The live mounts.
    #[must_use]
    pub fn mounts(&self) -> Vec<Arc<MountHandle>> {
        self.0.mounts.lock().values().flatten().cloned().collect()
    }
}

impl Drop for HandoffServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread, even when the socket's name is gone.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, server: &Arc<Server>, stopping: &AtomicBool) {
    loop {
        let accepted = listener.accept();
        if stopping.load(Ordering::Acquire) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Such as too many open files: the helper waits in the backlog meanwhile.
                tracing::warn!(%error, "the mount socket cannot take a connection");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if server.helpers.fetch_add(1, Ordering::AcqRel) >= HELPERS_MAX {
            server.helpers.fetch_sub(1, Ordering::AcqRel);
            refuse(stream, "too many mounts are being made at once; try again", "busy");
            continue;
        }
        let helping = server.clone();
        let help = move || {
            helping.help(stream);
            helping.helpers.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = std::thread::Builder::new().name("mount-helper".into()).spawn(help) {
            server.helpers.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "no thread for a mount helper");
        }
    }
}

fn answer(stream: &mut UnixStream, words: &Answer) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE))?;
    protocol::send(stream, words)
}

fn refuse(mut stream: UnixStream, message: &str, code: &str) {
    let words = Answer::Error {
        message: message.into(),
        code: code.into(),
    };
    // A helper that does not listen any more needs no answer.
    let _ = answer(&mut stream, &words);
}

impl Server {
    fn help(self: &Arc<Self>, mut stream: UnixStream) {
        let request = match protocol::receive(&stream, Instant::now() + FIRST_LINE) {
            Ok((request, _)) => request,
            Err(error) => return refuse(stream, &format!("not understood: {error}"), "protocol"),
        };
        match request {
            Request::Mount(request) => self.mount(stream, request),
            Request::Fd => refuse(stream, "a descriptor comes after `mount`", "protocol"),
            Request::Closed {
                volume,
                mountpoint,
                wait_ms,
            } => {
                let wait = Duration::from_millis(wait_ms).min(CLOSED_MAX);
                let _ = answer(&mut stream, &self.closed(&(volume, mountpoint), wait));
            }
        }
    }

    fn mount(self: &Arc<Self>, mut stream: UnixStream, request: MountRequest) {
        if !request.mountpoint.is_absolute() {
            return refuse(stream, "the mount point is not an absolute path", "protocol");
        }
        let (volume, fs) = match self.backend.prepare(&request) {
            Ok(prepared) => prepared,
            Err(error) => return refuse(stream, &error.message, error.code),
        };
        let key = (volume, request.mountpoint.clone());
        self.mounts.lock().insert(key.clone(), None);
        match self.take_descriptor(&mut stream, &key.0) {
            Ok(descriptor) => self.serve_helper(stream, &request, &key, &fs, descriptor),
            Err(why) => {
                self.give_back(&request, &key, &fs);
                refuse(stream, &why, "handoff");
            }
        }
    }

    fn take_descriptor(&self, stream: &mut UnixStream, volume: &str) -> Result<OwnedFd, String> {
        let ready = Answer::Ready { volume: volume.into() };
        answer(stream, &ready).map_err(|e| format!("the mount helper is gone: {e}"))?;
        let received = protocol::receive(stream, Instant::now() + DESCRIPTOR);
        match received.map_err(|e| format!("the mount helper did not send the descriptor: {e}"))? {
            (Request::Fd, Some(descriptor)) => Ok(descriptor),
            (Request::Fd, None) => Err("no descriptor came with `fd`".into()),
            (other, _) => Err(format!("`fd` was to come, not {other:?}")),
        }
    }

    fn serve_helper(
        self: &Arc<Self>,
        mut stream: UnixStream,
        request: &MountRequest,
        key: &Key,
        fs: &Arc<FileSystem>,
        descriptor: OwnedFd,
    ) {
        let served = self.serve(request, key, |options, on_end| {
            serve(fs.clone(), descriptor, options, on_end)
        });
        match served {
            Ok(()) => {
                // If the helper is gone, its mount is there all the same.
                let _ = answer(&mut stream, &Answer::Mounted);
            }
            Err(error) => {
                self.give_back(request, key, fs);
                refuse(stream, &error.to_string(), "handoff");
            }
        }
    }

    fn serve(
        self: &Arc<Self>,
        request: &MountRequest,
        key: &Key,
        start: impl FnOnce(ServeOptions, OnEnd) -> Result<Arc<MountHandle>, ServeError>,
    ) -> Result<(), ServeError> {
        let options = ServeOptions {
            source: key.0.clone(),
            mountpoint: request.mountpoint.clone(),
            loops: DEFAULT_LOOPS,
        };
        // The backend hears of the end only after it heard of the beginning.
        let (announced, announcement) = std::sync::mpsc::channel::<()>();
        let (server, ended_request, ended_key) = (self.clone(), request.clone(), key.clone());
        let on_end = move |end: MountEnd| {
            let _ = announcement.recv();
            server.end(&ended_request, &ended_key, &end);
        };
        let handle = start(options, Box::new(on_end))?;
        self.mounts.lock().insert(key.clone(), Some(handle.clone()));
        self.backend.mounted(request, &handle);
        drop(announced);
        Ok(())
    }

    /// Ends what was prepared but never mounted.
    fn give_back(&self, request: &MountRequest, key: &Key, fs: &FileSystem) {
        let end = fs.close();
        self.end(request, key, &end);
    }

    fn end(&self, request: &MountRequest, key: &Key, end: &MountEnd) {
        self.backend.ended(request, end);
        if let Err(error) = end {
            let mut failed = self.failed.lock();
            if failed.len() >= FAILED_MAX {
                failed.pop_front();
            }
            failed.push_back((key.clone(), error.to_string()));
        }
        self.mounts.lock().remove(key);
        self.gone.notify_all();
    }

    /// Waits for the end of a mount that has been unmounted.
    fn closed(&self, key: &Key, wait: Duration) -> Answer {
        let until = Instant::now() + wait;
        let found = self.mounts.lock().get(key).cloned();
        match found {
            Some(None) => return Answer::Busy,
            Some(Some(handle)) if handle.wait(STILL_SERVING, wait).is_none() => return Answer::Busy,
            _ => {}
        }
        // The file system is closed; the claim must be given back too, or a mount elsewhere would still be refused.
        let mut mounts = self.mounts.lock();
        while mounts.contains_key(key) {
            if self.gone.wait_until(&mut mounts, until).timed_out() {
                return Answer::Busy;
            }
        }
        drop(mounts);
        let mut failed = self.failed.lock();
        match failed
            .iter()
            .position(|(k, _)| k == key)
            .and_then(|at| failed.remove(at))
        {
            Some((_, message)) => Answer::Error {
                message,
                code: "close".into(),
            },
            None => Answer::Closed,
        }
    }
}
