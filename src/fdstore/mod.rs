//! Holds the descriptors of live mounts while no daemon does, so that a mount outlives the death of its daemon.
//!
//! The kernel ends a FUSE mount when nobody holds its descriptor any more. So the daemon gives a copy of it, and of the memory that the
//! next daemon needs, to a tiny process of its own program, the descriptor store (`process`), which does nothing but hold them: it outlives the daemon, gives them to the next one,
//! and lets go when none comes in time. Knows nothing of what it holds.
//!
//! They speak over a Unix socket of kind `SEQPACKET`: a packet is one JSON object (`wire`), with descriptors beside it.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod process;
#[cfg(test)]
mod tests;
mod wire;

pub use process::run;

use crate::os;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use wire::{Answer, Request};

/// How long the descriptor store may take for anything.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause between looks for a descriptor store that is starting.
const LOOK: Duration = Duration::from_millis(10);
/// Descriptors under one name, at most.
pub const DESCRIPTORS_MAX: usize = 8;

/// How a daemon's store is run.
#[derive(Clone, Debug)]
pub struct FdStoreConfig {
    /// The descriptor store's socket.
    pub socket: PathBuf,
    /// A program that runs the descriptor store when its arguments are `node fdstore --socket PATH --wait SECONDS`.
    pub program: PathBuf,
    /// How long it waits for the next daemon before it lets go.
    pub wait: Duration,
}

/// What is held under a name.
#[derive(Debug)]
pub struct Held {
    /// Unique in the descriptor store.
    pub name: String,
    /// In the order in which they were given.
    pub descriptors: Vec<OwnedFd>,
}

/// The daemon's side. Calls block, for [`DEADLINE`] at most, and may be made from any thread.
pub struct FdStore {
    config: FdStoreConfig,
    this: Weak<Self>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<OwnedFd>>,
    /// What the descriptor store holds, or shall hold once there is one again.
    held: BTreeMap<String, Vec<OwnedFd>>,
}

fn clones(descriptors: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    descriptors.iter().map(OwnedFd::try_clone).collect()
}

impl FdStore {
    /// No process is started before there is something to hold.
    #[must_use]
    pub fn new(config: FdStoreConfig) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            config,
            this: this.clone(),
            state: Mutex::default(),
        })
    }

    /// What an earlier daemon left. It stays held, too.
    ///
    /// # Errors
    /// The system's, if there is a descriptor store and it does not answer.
    pub fn take(&self) -> io::Result<Vec<Held>> {
        let mut state = self.state.lock();
        let connection = match wire::connect(&self.config.socket) {
            Ok(connection) => Arc::new(connection),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        wire::send(&*connection, &Request::Take, &[])?;
        let mut all = Vec::new();
        loop {
            match wire::receive(&*connection, DEADLINE)? {
                (Answer::Held { name }, descriptors) => {
                    state.held.insert(name.clone(), clones(&descriptors)?);
                    all.push(Held { name, descriptors });
                }
                (Answer::End, _) => break,
                (other, _) => return Err(wire::unexpected(&other)),
            }
        }
        self.watch(&connection, None)?;
        state.connection = Some(connection);
        Ok(all)
    }

    /// Holds descriptors under a name, in the place of what was under it.
    ///
    /// # Errors
    /// The system's; then they are held as soon as there is a descriptor store again, if another call succeeds.
    pub fn keep(&self, name: &str, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.held.insert(name.to_owned(), descriptors);
        if let Some(connection) = &state.connection
            && let Ok(()) = Self::put(connection, name, &state.held[name])
        {
            return Ok(());
        }
        self.start(&mut state)
    }

    /// Lets go of what is under a name.
    pub fn let_go(&self, name: &str) {
        let mut state = self.state.lock();
        if state.held.remove(name).is_none() {
            return;
        }
        let Some(connection) = &state.connection else { return };
        if let Err(error) = Self::ask(connection, &Request::Drop { name: name.to_owned() }, &[]) {
            // A store that does not answer is watched, and replaced by one without this.
            tracing::warn!(%error, name, "the descriptor store of mounts does not answer");
        }
    }

    fn put(connection: &OwnedFd, name: &str, descriptors: &[OwnedFd]) -> io::Result<()> {
        let request = Request::Keep { name: name.to_owned() };
        Self::ask(connection, &request, descriptors)
    }

    fn ask(connection: &OwnedFd, request: &Request, descriptors: &[OwnedFd]) -> io::Result<()> {
        wire::send(connection, request, descriptors)?;
        match wire::receive(connection, DEADLINE)? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(wire::unexpected(&other)),
        }
    }

    /// Starts a descriptor store and gives it everything.
    fn start(&self, state: &mut State) -> io::Result<()> {
        state.connection = None;
        let mut command = Command::new(&self.config.program);
        command
            .args(["node", "fdstore", "--socket"])
            .arg(&self.config.socket)
            .args(["--wait", &self.config.wait.as_secs().to_string()])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Signals for the daemon's group are not for it.
        let child = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn()?;
        let connection = Arc::new(self.connect_started()?);
        self.watch(&connection, Some(child))?;
        for (name, descriptors) in &state.held {
            Self::put(&connection, name, descriptors)?;
        }
        state.connection = Some(connection);
        Ok(())
    }

    fn connect_started(&self) -> io::Result<OwnedFd> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match wire::connect(&self.config.socket) {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Replaces the descriptor store when it dies while something is held.
    fn watch(&self, connection: &Arc<OwnedFd>, child: Option<Child>) -> io::Result<()> {
        let (store, watched) = (self.this.clone(), connection.try_clone()?);
        let connection = Arc::downgrade(connection);
        let watch = move || {
            let mut fds = [PollFd::new(&watched, PollFlags::RDHUP)];
            // An error is as good as its end: then it is looked at.
            let _ = os::wait::ready(&mut fds, None);
            if let Some(mut child) = child {
                let _ = child.wait();
            }
            let (Some(store), Some(connection)) = (store.upgrade(), connection.upgrade()) else {
                return;
            };
            let mut state = store.state.lock();
            let current = state.connection.as_ref().is_some_and(|c| Arc::ptr_eq(c, &connection));
            if !current || state.held.is_empty() {
                return;
            }
            tracing::warn!("the descriptor store of mounts ended; starting another");
            if let Err(error) = store.start(&mut state) {
                tracing::error!(%error, "no descriptor store of mounts: they would not survive this daemon's death");
            }
        };
        std::thread::Builder::new().name("fdstore-watch".into()).spawn(watch)?;
        Ok(())
    }
}

impl Drop for FdStore {
    fn drop(&mut self) {
        // Wakes the thread that watches.
        if let Some(connection) = &self.state.get_mut().connection {
            let _ = rustix::net::shutdown(connection.as_fd(), rustix::net::Shutdown::Both);
        }
    }
}
