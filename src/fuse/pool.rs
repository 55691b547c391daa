//! Who does a request that may wait: the event loop that read it, or a worker.
//!
//! An event loop that does a request itself saves two context switches and the copy of the data, so that is the rule. But one loop
//! must always be free to read the next request: only all but one of the loops may be inside a request that may wait; the last free
//! one hands such requests to workers. So a volume whose writes are suspended, or a slow network, never keeps others' requests from
//! being read, whatever is stuck.
//!
//! Bounds: each lane has at most [`Lane::threads`] workers and [`QUEUE_MAX`] waiting requests; the kernel's own limit on background
//! requests ([`super::adapter::MAX_BACKGROUND`]) is far below that, so only a crowd of processes can reach it, and those get ENOMEM.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Requests that may wait in a lane for a worker.
pub(super) const QUEUE_MAX: usize = 4096;
/// How long a worker without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// Kinds of requests that must not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// File data, read.
    Read,
    /// Names and attributes, changed: waits only when changes outrun the volume.
    Change,
    /// File data and its durability: waits for every copy.
    Write,
}

impl Lane {
    const ALL: [Self; 3] = [Self::Read, Self::Change, Self::Write];

    /// Most workers: also the most requests of the kind in flight, but for those that event loops do themselves.
    const fn threads(self) -> usize {
        match self {
            Self::Read => 16,
            Self::Change => 8,
            Self::Write => 32,
        }
    }

    const fn thread_name(self) -> &'static str {
        match self {
            Self::Read => "fuse-read",
            Self::Change => "fuse-change",
            Self::Write => "fuse-write",
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
}

#[derive(Default)]
struct LaneState {
    queue: Mutex<Queue>,
    /// A job came, or a worker left.
    changed: Condvar,
}

/// The workers of one mount.
pub(super) struct Pool {
    /// Event loops that may yet go into a request that may wait.
    inline: AtomicUsize,
    lanes: [Arc<LaneState>; 3],
}

/// Held by an event loop while it does a request that may wait.
pub(super) struct Inline<'a>(&'a AtomicUsize);

impl Drop for Inline<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Pool {
    /// For a session with `loops` event loops.
    pub(super) fn new(loops: usize) -> Self {
        Self {
            inline: AtomicUsize::new(loops.saturating_sub(1)),
            lanes: Lane::ALL.map(|_| Arc::default()),
        }
    }

    /// The right to do a request in the event loop, unless this is the last free one.
    pub(super) fn try_inline(&self) -> Option<Inline<'_>> {
        self.inline
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |n| n.checked_sub(1))
            .ok()
            .map(|_| Inline(&self.inline))
    }

    /// Gives a request to a worker, who calls `run`; `refuse` is called here, at once, when the lane is full or no thread can be had.
    pub(super) fn hand_over<T: Send + 'static>(
        &self,
        lane: Lane,
        request: T,
        run: impl FnOnce(T) + Send + 'static,
        refuse: impl FnOnce(T),
    ) {
        let state = &self.lanes[lane as usize];
        let mut queue = state.queue.lock();
        let grow = queue.idle <= queue.jobs.len() && queue.workers < lane.threads();
        if queue.jobs.len() >= QUEUE_MAX || (grow && !start_worker(lane, state, &mut queue) && queue.workers == 0) {
            drop(queue);
            return refuse(request);
        }
        queue.jobs.push_back(Box::new(move || run(request)));
        drop(queue);
        state.changed.notify_one();
    }

    /// Returns when every request that was handed over has been answered.
    pub(super) fn drain(&self) {
        for state in &self.lanes {
            let mut queue = state.queue.lock();
            while !queue.jobs.is_empty() || queue.workers > queue.idle {
                state.changed.wait_for(&mut queue, Duration::from_millis(20));
            }
        }
    }
}

fn start_worker(lane: Lane, state: &Arc<LaneState>, queue: &mut Queue) -> bool {
    let worker = state.clone();
    let started = std::thread::Builder::new()
        .name(lane.thread_name().into())
        .spawn(move || work(&worker));
    if let Err(error) = &started {
        tracing::warn!(%error, "no further worker thread for a mount");
    }
    queue.workers += usize::from(started.is_ok());
    started.is_ok()
}

fn work(state: &LaneState) {
    let mut queue = state.queue.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            // A panic is a bug, but must cost one request (its reply says EIO when dropped), not a worker.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                tracing::error!("a file-system call panicked");
            }
            queue = state.queue.lock();
            continue;
        }
        queue.idle += 1;
        let waited = state.changed.wait_for(&mut queue, IDLE);
        queue.idle -= 1;
        if waited.timed_out() && queue.jobs.is_empty() {
            queue.workers -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_last_free_event_loop_may_not_wait() {
        let pool = Pool::new(3);
        let (a, b) = (pool.try_inline(), pool.try_inline());
        assert!(a.is_some() && b.is_some());
        assert!(pool.try_inline().is_none());
        drop(a);
        assert!(pool.try_inline().is_some());
        assert!(Pool::new(1).try_inline().is_none());
    }

    #[test]
    fn stuck_writes_do_not_hold_up_reads() {
        let pool = Pool::new(2);
        let (release, stuck) = mpsc::channel::<()>();
        let stuck = Arc::new(Mutex::new(stuck));
        for _ in 0..Lane::Write.threads() * 2 {
            let stuck = stuck.clone();
            pool.hand_over(
                Lane::Write,
                (),
                move |()| {
                    let _ = stuck.lock().recv();
                },
                |()| panic!("refused"),
            );
        }
        let (send, done) = mpsc::channel();
        pool.hand_over(Lane::Read, 7, move |n| send.send(n).unwrap(), |_| panic!("refused"));
        assert_eq!(done.recv_timeout(LONG), Ok(7));
        drop(release);
        pool.drain();
    }

    #[test]
    fn a_full_lane_refuses_at_once_and_gives_the_request_back() {
        let pool = Pool::new(2);
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let mut refused = 0;
        for _ in 0..QUEUE_MAX + Lane::Change.threads() + 1 {
            let gate = gate.clone();
            pool.hand_over(
                Lane::Change,
                (),
                move |()| {
                    let mut open = gate.0.lock();
                    while !*open {
                        gate.1.wait(&mut open);
                    }
                },
                |()| refused += 1,
            );
        }
        assert!(refused >= 1);
        *gate.0.lock() = true;
        gate.1.notify_all();
        pool.drain();
    }

    #[test]
    fn a_panic_costs_one_request() {
        let pool = Pool::new(2);
        pool.hand_over(Lane::Read, (), |()| panic!("a bug"), |()| ());
        let (send, done) = mpsc::channel();
        pool.hand_over(Lane::Read, (), move |()| send.send(()).unwrap(), |()| ());
        assert_eq!(done.recv_timeout(LONG), Ok(()));
        pool.drain();
    }
}
