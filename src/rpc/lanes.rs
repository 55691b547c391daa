//! Lanes: threads that carry block data, each a runtime of its own on one thread.
//!
//! A small write costs little more than its wake-ups. On a work-stealing runtime a message that arrives wakes one worker, which wakes
//! another to look for work, and the next message finds both asleep; on a lane it wakes the one thread that reads, handles and answers.
//! So nothing on a lane may block or compute for long: a handler gives such work to [`tokio::task::spawn_blocking`].
//!
//! The lanes belong to the process, not to a daemon: how many there are depends on the machine. Bulk copying and the control plane stay
//! on the caller's runtime, out of the way.

use super::hello::Kind;
use super::secure::Secure;
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};

/// Most lanes.
const MAX: usize = 4;

static LANES: LazyLock<Vec<Handle>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (0..(cores / 2).clamp(1, MAX)).filter_map(start).collect()
});
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Starts a lane; it ends with the process.
fn start(number: usize) -> Option<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let started = runtime.and_then(|runtime| {
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name(format!("lane-{number}"))
            .spawn(move || runtime.block_on(std::future::pending::<()>()))
            .map(|_| handle)
    });
    started
        .inspect_err(|error| tracing::warn!(%error, "no further thread for block data"))
        .ok()
}

/// The lane whose turn it is; `None`: none could be started.
fn next() -> Option<&'static Handle> {
    let turn = NEXT.fetch_add(1, Ordering::Relaxed).checked_rem(LANES.len())?;
    LANES.get(turn)
}

/// Puts a new connection where connections of its kind belong: block data on the lanes in turn, others on the caller's runtime. Also
/// returns the runtime that the socket's tasks must run on.
pub(super) fn place(kind: Kind, socket: Secure) -> io::Result<(Secure, Handle)> {
    // The others do not start the lanes either.
    let lane = if kind == Kind::Data { next() } else { None };
    match lane {
        None => Ok((socket.moved(Ok)?, Handle::current())),
        Some(lane) => {
            let moved = socket.moved(|tcp| {
                let tcp = tcp.into_std()?;
                let _entered = lane.enter();
                TcpStream::from_std(tcp)
            })?;
            Ok((moved, lane.clone()))
        }
    }
}
