//! The handshake with the kernel, and how a mount is served whose handshake was with an earlier daemon.
//!
//! `fuser` expects the kernel's greeting (INIT) before it serves a descriptor, and the kernel greets once. So the greeting is read here
//! and kept; `fuser` gets it through a socket pair, and once its event loops run and all wait at a gate, the descriptor takes the place of its end of the pair. For a
//! mount that lives on, the kept greeting is played again and the answer is not passed on: the kernel has one. Then the kernel is asked to
//! send again what the earlier daemon had taken and not answered (Linux 6.9 and newer).

use super::adapter::{Adapter, Shared};
use super::mount::ServeError;
use crate::os;
use fuser::{Config, Session, SessionACL};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, fstat, major, minor};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the kernel may take to greet; it does at once when the descriptor is mounted.
const GREETING: Duration = Duration::from_secs(10);
/// What the kernel wants room for before it hands a request over: the largest write and its head.
const REQUEST_MAX: usize = (1 << 20) + 4096;
/// Bytes of a request's or an answer's head.
const HEAD: usize = 40;
const ANSWER_HEAD: usize = 16;
const OPCODE_INIT: u32 = 26;
const OPCODE_FORGET: u32 = 2;
/// An inode that the kernel never speaks of: stops an event loop at the gate.
pub(super) const HALT: u64 = u64::MAX;
/// The only version of the protocol there is.
const MAJOR: u32 = 7;
/// Of `flags2` in the greeting: the kernel can send again (`FUSE_HAS_RESEND`).
const HAS_RESEND: u32 = 1 << 7;
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_RESEND: i32 = 7;
/// `_IOR(229, 0, u32)`, from the kernel's `fuse.h`.
const DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// The kernel's greeting, to the byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting(Vec<u8>);

impl Greeting {
    /// Reads it from a descriptor that was just mounted.
    pub(super) fn read(fd: &OwnedFd) -> Result<Self, ServeError> {
        check_descriptor(fd)?;
        let mut request = vec![0; REQUEST_MAX];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut request[..]))
            .map_err(|error| ServeError::Handshake(error.into()))?;
        request.truncate(length);
        Self::again(request)
    }

    /// One that was kept.
    pub(super) fn again(bytes: Vec<u8>) -> Result<Self, ServeError> {
        let greeting = Self(bytes);
        if greeting.word(4) != OPCODE_INIT || greeting.word(HEAD) != MAJOR || greeting.0.len() > 4096 {
            return Err(ServeError::Handshake(io::ErrorKind::InvalidData.into()));
        }
        Ok(greeting)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A number of it; zero where it is shorter.
    fn word(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    /// Whether the kernel sends requests again that a daemon took and did not answer. If not, they wait for ever.
    pub(super) fn can_resend(&self) -> bool {
        self.word(HEAD + 16) & HAS_RESEND != 0
    }

    /// A session that has greeted, to be connected to the mount once it runs. `first`: the kernel waits for the answer.
    pub(super) fn session(
        &self,
        fd: &OwnedFd,
        first: bool,
        shared: Arc<Shared>,
        config: Config,
    ) -> Result<(Session<Adapter>, Connecting), ServeError> {
        let play = || {
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            rustix::net::send(&ours, &self.0, SendFlags::empty())?;
            // Everybody may come: the kernel checks permissions (`default_permissions`).
            let session = Session::from_fd(Adapter::new(shared), theirs, SessionACL::All, config)?;
            let mut answer = vec![0; 4096];
            let length = rustix::io::read(&ours, &mut answer[..])?;
            if first {
                rustix::io::write(fd, &answer[..length])?;
            }
            // A kernel that cannot send again what was taken: the session reads from a descriptor that nobody keeps, so that it
            // ends such requests with an error when the daemon dies.
            let own = (!self.can_resend()).then(|| clone_device(fd)).transpose()?;
            let device = own.map_or_else(|| fd.try_clone(), Ok)?;
            let number = session.as_fd().as_raw_fd();
            Ok((session, Connecting { ours, device, number }))
        };
        play().map_err(ServeError::Handshake)
    }
}

/// A running session whose event loops still read from the socket pair.
pub(super) struct Connecting {
    ours: OwnedFd,
    /// What the session shall read from.
    device: OwnedFd,
    /// The session's descriptor.
    number: RawFd,
}

impl Connecting {
    /// Connects the session to the mount: each event loop is given a request that stops it at the gate, as large as any, so that the memory
    /// that it reads into is there. Without that a request that is just being read when the daemon is killed would not come again: the kernel
    /// ends it with `EIO` when it cannot get the reader's memory. `before_first` is done before the first request is read.
    pub(super) fn connect(
        self,
        gate: &Gate,
        loops: usize,
        before_first: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), ServeError> {
        let connect = || -> io::Result<()> {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.ours, 2 * loops * REQUEST_MAX)?;
            let halt = halting();
            for _ in 0..loops {
                rustix::net::send(&self.ours, &halt, SendFlags::empty())?;
            }
            if !gate.wait_for(loops, GREETING) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            put_in_place(self.device.as_fd(), self.number)?;
            before_first()
        };
        connect().map_err(ServeError::Handshake)?;
        gate.open();
        Ok(())
    }
}

/// A `forget`, which has no answer, of [`HALT`]; as long as the longest request.
fn halting() -> Vec<u8> {
    let mut request = vec![0; REQUEST_MAX];
    request[..4].copy_from_slice(&(REQUEST_MAX as u32).to_ne_bytes());
    request[4..8].copy_from_slice(&OPCODE_FORGET.to_ne_bytes());
    request[16..24].copy_from_slice(&HALT.to_ne_bytes());
    request
}

/// Where event loops wait until all have come and the session is connected.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    /// An event loop is here. Returns when the gate is open.
    pub(super) fn pass(&self) {
        let mut state = self.state.lock();
        state.0 += 1;
        self.changed.notify_all();
        let deadline = Instant::now() + 2 * GREETING;
        while !state.1 && !self.changed.wait_until(&mut state, deadline).timed_out() {}
    }

    /// Whether so many came in time.
    fn wait_for(&self, loops: usize, within: Duration) -> bool {
        let mut state = self.state.lock();
        let deadline = Instant::now() + within;
        while state.0 < loops && !self.changed.wait_until(&mut state, deadline).timed_out() {}
        state.0 >= loops
    }

    fn open(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }

    /// Whether the session was connected.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().1
    }
}

/// Makes the session's descriptor another one for the same open file as `device`.
fn put_in_place(device: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: the number is the session's own descriptor. It is open, since the session runs and all its event loops wait at the gate, and
    // stays its own: it is not closed here (`ManuallyDrop`), and nobody uses it while it changes what it refers to.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup3(device, &mut target, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Opens the mount's connection once more; requests belong to the descriptor that they were read from.
fn clone_device(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let mut source = fd.as_raw_fd();
    // SAFETY: the request reads one u32 at the address given, which is valid for the call, and stores no pointer.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), DEV_IOC_CLONE, &raw mut source) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device.into())
}

/// Refuses what would make the handshake wait for ever or read nonsense.
fn check_descriptor(fd: &OwnedFd) -> Result<(), ServeError> {
    check_kind(fd)?;
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let greeted = os::wait::ready(&mut fds, Some(Instant::now() + GREETING)).unwrap_or(false);
    let events = fds[0].revents();
    if greeted && events.contains(PollFlags::IN) && !events.contains(PollFlags::ERR) {
        Ok(())
    } else {
        Err(ServeError::NotFuse)
    }
}

/// Refuses what is not `/dev/fuse`.
pub(super) fn check_kind(fd: &OwnedFd) -> Result<(), ServeError> {
    let stat = fstat(fd).map_err(|_| ServeError::NotFuse)?;
    let is_fuse = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (10, 229);
    if is_fuse { Ok(()) } else { Err(ServeError::NotFuse) }
}

/// Tells the kernel something that it did not ask for.
fn notify(fd: BorrowedFd<'_>, what: i32, body: &[u8]) -> rustix::io::Result<()> {
    let mut message = Vec::with_capacity(ANSWER_HEAD + body.len());
    // A handful of bytes.
    message.extend_from_slice(&((ANSWER_HEAD + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&what.to_ne_bytes());
    message.extend_from_slice(&0_u64.to_ne_bytes());
    message.extend_from_slice(body);
    rustix::io::retry_on_intr(|| rustix::io::write(fd, &message)).map(|_| ())
}

/// Has the kernel send again what an earlier daemon took and did not answer.
pub(super) fn resend(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(notify(fd, NOTIFY_RESEND, &[])?)
}

/// Whether the kernel still has an inode. It drops its copy of the attributes on the way.
pub(super) fn knows(fd: BorrowedFd<'_>, ino: u64) -> bool {
    let mut body = [0; 24];
    body[..8].copy_from_slice(&ino.to_ne_bytes());
    // A negative offset: no data.
    body[8..16].copy_from_slice(&(-1_i64).to_ne_bytes());
    // Whatever else goes wrong, an inode that may be in use is kept.
    !matches!(notify(fd, NOTIFY_INVAL_INODE, &body), Err(rustix::io::Errno::NOENT))
}
