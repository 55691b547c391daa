//! The names of [`super`] outside of tests.

pub(crate) mod sync {
    pub(crate) use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
}

pub(crate) mod thread {
    pub(crate) use std::thread::{Thread, current, park, sleep};
}

pub(crate) mod task {
    pub(crate) use tokio::task::{spawn, spawn_blocking};
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
