//! The descriptor store's process: one thread, one daemon at a time, no logs. It ends when a daemon leaves with nothing held, or when none has come
//! for so long that what it holds is of no use.

use super::wire::{self, Answer, Request};
use crate::os;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SocketAddrUnix, SocketFlags};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Whoever started it comes at once.
const FIRST: Duration = Duration::from_secs(10);
/// Names held at most.
const NAMES_MAX: usize = 16_384;

/// Holds what daemons give on `socket`, until a daemon has left with nothing held or none has come for `wait`.
///
/// # Errors
/// The socket's.
pub fn run(socket: &Path, wait: Duration) -> io::Result<()> {
    prepare();
    let listener = listen(socket)?;
    let own = place(socket);
    let mut held: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    let mut daemon: Option<OwnedFd> = None;
    let mut until = Some(Instant::now() + FIRST.min(wait.max(Duration::from_secs(1))));
    loop {
        match next(&listener, daemon.as_ref(), until)? {
            Turn::TimeIsOver => break,
            Turn::Arrival => {
                if let Ok(arrived) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
                    // One daemon at a time has the data directory: the newer one is it.
                    daemon = Some(arrived);
                    until = None;
                }
            }
            Turn::Packet => {
                let Some(connection) = daemon.take() else { continue };
                if serve(&connection, &mut held).is_ok() {
                    daemon = Some(connection);
                } else if held.is_empty() {
                    break;
                } else {
                    until = Some(Instant::now() + wait);
                }
            }
        }
    }
    // Another one may have taken its place.
    if own.is_some() && place(socket) == own {
        let _ = fs::remove_file(socket);
    }
    // Closing what is held ends the mounts.
    Ok(())
}

/// Tells one socket at a path from the next one there.
fn place(socket: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(socket).ok()?;
    Some((found.dev(), found.ino()))
}

/// Makes it likely to live, whatever its daemon is short of.
fn prepare() {
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let resource = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(resource);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(resource, limit);
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    os::socket::in_place(path, 0o600, None, |fresh| {
        let listener = wire::socket()?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(fresh)?)?;
        rustix::net::listen(&listener, 4)?;
        Ok(listener)
    })
}

enum Turn {
    TimeIsOver,
    /// A daemon wants to connect.
    Arrival,
    /// The daemon said something, or is gone.
    Packet,
}

fn next(listener: &OwnedFd, daemon: Option<&OwnedFd>, until: Option<Instant>) -> io::Result<Turn> {
    let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
    fds.extend(daemon.map(|daemon| PollFd::new(daemon, PollFlags::IN)));
    Ok(match os::wait::ready(&mut fds, until)? {
        false => Turn::TimeIsOver,
        // What the daemon said goes first: a newer one takes its place.
        true if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) => Turn::Packet,
        true => Turn::Arrival,
    })
}

/// Answers one packet.
fn serve(daemon: &OwnedFd, held: &mut BTreeMap<String, Vec<OwnedFd>>) -> io::Result<()> {
    // A peer that is gone reads as an empty packet.
    rustix::net::recv(daemon, &mut [0_u8; 1][..], RecvFlags::PEEK)?;
    let (request, descriptors) = wire::receive_now(daemon.as_fd())?;
    match request {
        Request::Keep { name } => {
            if held.len() >= NAMES_MAX && !held.contains_key(&name) {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            held.insert(name, descriptors);
        }
        Request::Drop { name } => drop(held.remove(&name)),
        Request::Take => {
            for (name, descriptors) in held.iter() {
                wire::send(daemon, &Answer::Held { name: name.clone() }, descriptors)?;
            }
            return wire::send(daemon, &Answer::End, &[]);
        }
    }
    wire::send(daemon, &Answer::Done, &[])
}
