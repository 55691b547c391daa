//! The names of [`super`] outside of tests.

use std::future::Future;
use tokio::runtime::Handle;

/// Where tasks run that a thread starts or waits for.
#[derive(Clone)]
pub struct Runtime(Handle);

impl Runtime {
    /// A runtime of `tokio`.
    #[must_use]
    pub fn of(handle: Handle) -> Self {
        Self(handle)
    }

    /// Runs a future to its end on this thread, which may block.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(future)
    }

    /// Starts a task.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(future);
    }
}

pub(crate) mod sync {
    pub(crate) use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
}

pub(crate) mod thread {
    pub(crate) use std::thread::{Thread, current, park, sleep};
}

pub(crate) mod task {
    pub(crate) use tokio::task::{JoinHandle, spawn, spawn_blocking};
}

pub(crate) mod time {
    use std::sync::LazyLock;
    pub(crate) use std::time::Instant;
    pub(crate) use tokio::time::{sleep, timeout};

    static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

    /// An instant before which none is asked about.
    pub(crate) fn base() -> Instant {
        *BASE
    }

    /// Waits until then.
    pub(crate) async fn sleep_until(until: Instant) {
        tokio::time::sleep_until(until.into()).await;
    }

    /// The instant of a deadline, for [`tarpc`].
    pub(crate) fn deadline(after: std::time::Duration) -> Instant {
        Instant::now() + after
    }

    /// The clock on the wall.
    pub(crate) fn wall() -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}

pub(crate) mod random {
    pub(crate) use rand::rng;

    /// Any number.
    pub(crate) fn random() -> u64 {
        rand::random()
    }
}
