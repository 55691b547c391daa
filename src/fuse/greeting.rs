//! The handshake with the kernel, and how a mount is served whose handshake was with an earlier daemon.
//!
//! `fuser` expects the kernel's greeting (INIT) before it serves a descriptor, and the kernel greets once. So the greeting is read here
//! and kept; `fuser` gets it through a socket pair, and once it has answered, the descriptor takes the place of its end of the pair. For a
//! mount that lives on, the kept greeting is played again and the answer is not passed on: the kernel has one. Then the kernel is asked to
//! send again what the earlier daemon had taken and not answered (Linux 6.9 and newer).

use super::adapter::{Adapter, Shared};
use super::mount::ServeError;
use fuser::{Config, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, major, minor};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
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

    /// A session on the descriptor. `first`: the kernel waits for the answer.
    pub(super) fn session(
        &self,
        fd: &OwnedFd,
        first: bool,
        shared: Arc<Shared>,
        config: Config,
    ) -> Result<Session<Adapter>, ServeError> {
        let play = || -> io::Result<Session<Adapter>> {
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
            put_in_place(own.as_ref().unwrap_or(fd).as_fd(), session.as_fd())?;
            Ok(session)
        };
        play().map_err(ServeError::Handshake)
    }
}

/// Makes the session's descriptor another one for the same open file as `fd`.
fn put_in_place(fd: BorrowedFd<'_>, of_session: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the number is the session's own descriptor, which is open and stays its own: it is neither closed here (`ManuallyDrop`) nor
    // used by anybody while it changes what it refers to, since the session does not run yet.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(of_session.as_raw_fd()) });
    rustix::io::dup3(fd, &mut target, rustix::io::DupFlags::CLOEXEC)?;
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
    let deadline = Instant::now() + GREETING;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(ServeError::NotFuse),
            Ok(_) if fds[0].revents().contains(PollFlags::IN) && !fds[0].revents().contains(PollFlags::ERR) => {
                return Ok(());
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => return Err(ServeError::NotFuse),
        }
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
