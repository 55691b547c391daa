//! The names of [`super`] in the crate's own tests: in a fiber, its world's; elsewhere the real ones.

use super::world;
use std::future::Future;
use tokio::runtime::Handle;

/// Where tasks run that a thread starts or waits for.
#[derive(Clone)]
pub enum Runtime {
    /// `tokio`'s.
    Real(Handle),
    /// The world of whoever calls.
    World,
}

impl Runtime {
    /// A runtime of `tokio`.
    #[must_use]
    pub fn of(handle: Handle) -> Self {
        Self::Real(handle)
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        match self {
            Self::Real(handle) => handle.block_on(future),
            Self::World => world::block_on(future),
        }
    }

    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Real(handle) => drop(handle.spawn(future)),
            Self::World => world::spawn("task", move || world::block_on(future)),
        }
    }
}

/// Locks.
pub(crate) mod sync {
    use super::super::world::{self, FiberRef};
    use super::time::Instant;
    use std::ops::{Deref, DerefMut};

    /// Fibers that wait for something.
    #[derive(Default)]
    struct Waiting(parking_lot::Mutex<Vec<FiberRef>>);

    impl Waiting {
        const fn new() -> Self {
            Self(parking_lot::Mutex::new(Vec::new()))
        }

        fn wake(&self) {
            for fiber in std::mem::take(&mut *self.0.lock()) {
                fiber.wake();
            }
        }

        /// Waits until `attempt` succeeds; it is made again when the fiber is woken.
        fn until<T>(&self, fiber: &FiberRef, mut attempt: impl FnMut() -> Option<T>) -> T {
            world::interrupt();
            loop {
                if let Some(got) = attempt() {
                    return got;
                }
                self.0.lock().push(fiber.clone());
                world::park(None);
            }
        }
    }

    /// See [`parking_lot::Mutex`].
    #[derive(Default)]
    pub(crate) struct Mutex<T> {
        real: parking_lot::Mutex<T>,
        waiting: Waiting,
    }

    /// Holds a lock; wakes those who wait for it when it is dropped.
    pub(crate) struct Guard<'a, G> {
        /// `None` only while it waits for a condition or is dropped.
        real: Option<G>,
        waiting: &'a Waiting,
    }

    pub(crate) type MutexGuard<'a, T> = Guard<'a, parking_lot::MutexGuard<'a, T>>;
    pub(crate) type RwLockReadGuard<'a, T> = Guard<'a, parking_lot::RwLockReadGuard<'a, T>>;
    pub(crate) type RwLockWriteGuard<'a, T> = Guard<'a, parking_lot::RwLockWriteGuard<'a, T>>;

    impl<G> Guard<'_, G> {
        fn release(&mut self) {
            self.real = None;
            self.waiting.wake();
        }

        fn held(&mut self) -> &mut G {
            self.real.as_mut().expect("held")
        }
    }

    impl<G: Deref> Deref for Guard<'_, G> {
        type Target = G::Target;

        fn deref(&self) -> &G::Target {
            self.real.as_ref().expect("held")
        }
    }

    impl<G: DerefMut> DerefMut for Guard<'_, G> {
        fn deref_mut(&mut self) -> &mut G::Target {
            self.held()
        }
    }

    impl<G> Drop for Guard<'_, G> {
        fn drop(&mut self) {
            self.release();
        }
    }

    /// Waits for a mutex.
    fn acquire<'a, T>(real: &'a parking_lot::Mutex<T>, waiting: &Waiting) -> parking_lot::MutexGuard<'a, T> {
        match FiberRef::current() {
            None => real.lock(),
            Some(fiber) => waiting.until(&fiber, || real.try_lock()),
        }
    }

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self {
                real: parking_lot::Mutex::new(value),
                waiting: Waiting::new(),
            }
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard {
                real: Some(acquire(&self.real, &self.waiting)),
                waiting: &self.waiting,
            }
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            Some(MutexGuard {
                real: Some(self.real.try_lock()?),
                waiting: &self.waiting,
            })
        }
    }

    impl<T: std::fmt::Debug> std::fmt::Debug for Mutex<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.real.fmt(f)
        }
    }

    /// See [`parking_lot::Condvar`].
    #[derive(Default)]
    pub(crate) struct Condvar {
        real: parking_lot::Condvar,
        waiting: Waiting,
    }

    /// See [`parking_lot::WaitTimeoutResult`].
    pub(crate) struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        pub(crate) fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl Condvar {
        pub(crate) const fn new() -> Self {
            Self {
                real: parking_lot::Condvar::new(),
                waiting: Waiting::new(),
            }
        }

        pub(crate) fn notify_all(&self) {
            self.real.notify_all();
            self.waiting.wake();
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            match FiberRef::current() {
                None => self.real.wait(guard.held()),
                Some(fiber) => {
                    self.simulated(&fiber, guard, None);
                }
            }
        }

        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, until: Instant) -> WaitTimeoutResult {
            let timed_out = match FiberRef::current() {
                None => self.real.wait_until(guard.held(), until.real()).timed_out(),
                Some(fiber) => self.simulated(&fiber, guard, Some(until)),
            };
            WaitTimeoutResult(timed_out)
        }

        /// Whether the time was over before it was notified.
        fn simulated<T>(&self, fiber: &FiberRef, guard: &mut MutexGuard<'_, T>, until: Option<Instant>) -> bool {
            self.waiting.0.lock().push(fiber.clone());
            let mutex = parking_lot::MutexGuard::mutex(guard.held());
            guard.release();
            let listed = || self.waiting.0.lock().contains(fiber);
            let over = || until.is_some_and(|until| Instant::now() >= until);
            while listed() && !over() {
                world::park(until.map(Instant::simulated));
            }
            let timed_out = listed();
            self.waiting.0.lock().retain(|other| other != fiber);
            guard.real = Some(acquire(mutex, guard.waiting));
            timed_out
        }
    }

    /// See [`parking_lot::RwLock`].
    #[derive(Default)]
    pub(crate) struct RwLock<T> {
        real: parking_lot::RwLock<T>,
        waiting: Waiting,
    }

    impl<T> RwLock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self {
                real: parking_lot::RwLock::new(value),
                waiting: Waiting::new(),
            }
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            let real = match FiberRef::current() {
                None => self.real.read(),
                Some(fiber) => self.waiting.until(&fiber, || self.real.try_read()),
            };
            RwLockReadGuard {
                real: Some(real),
                waiting: &self.waiting,
            }
        }

        /// No reader waits for a waiting writer here.
        pub(crate) fn read_recursive(&self) -> RwLockReadGuard<'_, T> {
            match FiberRef::current() {
                Some(_) => self.read(),
                None => RwLockReadGuard {
                    real: Some(self.real.read_recursive()),
                    waiting: &self.waiting,
                },
            }
        }

        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            Some(RwLockReadGuard {
                real: Some(self.real.try_read()?),
                waiting: &self.waiting,
            })
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            let real = match FiberRef::current() {
                None => self.real.write(),
                Some(fiber) => self.waiting.until(&fiber, || self.real.try_write()),
            };
            RwLockWriteGuard {
                real: Some(real),
                waiting: &self.waiting,
            }
        }
    }
}

/// Threads.
pub(crate) mod thread {
    use super::super::world::{self, FiberRef};
    use std::time::Duration;

    /// See [`std::thread::Thread`].
    pub(crate) enum Thread {
        Real(std::thread::Thread),
        Fiber(FiberRef),
    }

    impl Thread {
        pub(crate) fn unpark(&self) {
            match self {
                Self::Real(thread) => thread.unpark(),
                Self::Fiber(fiber) => fiber.wake(),
            }
        }

        pub(crate) fn id(&self) -> String {
            match self {
                Self::Real(thread) => format!("{:?}", thread.id()),
                Self::Fiber(fiber) => format!("fiber {}", fiber.id()),
            }
        }
    }

    pub(crate) fn current() -> Thread {
        match FiberRef::current() {
            Some(fiber) => Thread::Fiber(fiber),
            None => Thread::Real(std::thread::current()),
        }
    }

    pub(crate) fn park() {
        if world::in_world() {
            world::park(None);
        } else {
            std::thread::park();
        }
    }

    pub(crate) fn sleep(time: Duration) {
        match world::now() {
            Some(now) => {
                let until = now + time;
                while world::now().is_some_and(|now| now < until) {
                    world::park(Some(until));
                }
            }
            None => std::thread::sleep(time),
        }
    }
}

/// Tasks.
pub(crate) mod task {
    use super::super::world;
    use futures::channel::oneshot;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll};

    /// See [`tokio::task::JoinHandle`].
    pub(crate) enum JoinHandle<T> {
        Real(tokio::task::JoinHandle<T>),
        Fiber(oneshot::Receiver<T>, Arc<AtomicBool>),
    }

    /// See [`tokio::task::JoinError`].
    #[derive(Debug)]
    pub(crate) struct JoinError(String);

    impl std::fmt::Display for JoinError {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl<T> JoinHandle<T> {
        pub(crate) fn is_finished(&self) -> bool {
            match self {
                Self::Real(handle) => handle.is_finished(),
                Self::Fiber(_, ended) => ended.load(Ordering::SeqCst),
            }
        }
    }

    impl<T> Future for JoinHandle<T> {
        type Output = Result<T, JoinError>;

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            match self.get_mut() {
                Self::Real(handle) => Pin::new(handle).poll(context).map_err(|e| JoinError(e.to_string())),
                Self::Fiber(result, _) => Pin::new(result)
                    .poll(context)
                    .map_err(|_| JoinError("it was killed".to_owned())),
            }
        }
    }

    fn fiber<T: Send + 'static>(name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        struct Ended(Arc<AtomicBool>);
        impl Drop for Ended {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let (sender, receiver) = oneshot::channel();
        let ended = Arc::<AtomicBool>::default();
        let guard = Ended(ended.clone());
        world::spawn(name, move || {
            let _guard = guard;
            // Whoever waited may be gone.
            let _ = sender.send(work());
        });
        JoinHandle::Fiber(receiver, ended)
    }

    pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        if world::in_world() {
            return fiber("blocking", work);
        }
        JoinHandle::Real(tokio::task::spawn_blocking(work))
    }

    pub(crate) fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        if world::in_world() {
            return fiber("task", move || world::block_on(future));
        }
        JoinHandle::Real(tokio::task::spawn(future))
    }
}

/// Time.
pub(crate) mod time {
    use super::super::world::{self, Timer};
    use std::ops::{Add, Sub};
    use std::sync::LazyLock;
    use std::time::Duration;

    /// See [`std::time::Instant`]. A world's time begins a day after [`base`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Instant(std::time::Instant);

    static BASE: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    const DAY: Duration = Duration::from_secs(86400);

    impl Instant {
        pub(crate) fn now() -> Self {
            // Before the first of all.
            let base = *BASE;
            Self(world::now().map_or_else(std::time::Instant::now, |now| base + DAY + now))
        }

        pub(crate) fn elapsed(self) -> Duration {
            Self::now().saturating_duration_since(self)
        }

        pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
            self.0.saturating_duration_since(earlier.0)
        }

        pub(super) fn real(self) -> std::time::Instant {
            self.0
        }

        /// Of the world.
        pub(super) fn simulated(self) -> Duration {
            self.0.saturating_duration_since(*BASE + DAY)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Self;

        fn add(self, time: Duration) -> Self {
            Self(self.0 + time)
        }
    }

    impl Sub<Duration> for Instant {
        type Output = Self;

        fn sub(self, time: Duration) -> Self {
            Self(self.0 - time)
        }
    }

    impl Sub for Instant {
        type Output = Duration;

        fn sub(self, other: Self) -> Duration {
            self.0 - other.0
        }
    }

    pub(crate) fn base() -> Instant {
        Instant(*BASE)
    }

    pub(crate) async fn sleep(time: Duration) {
        match world::now() {
            Some(now) => Timer::new(now + time).await,
            None => tokio::time::sleep(time).await,
        }
    }

    pub(crate) async fn sleep_until(until: Instant) {
        if world::in_world() {
            Timer::new(until.simulated()).await;
        } else {
            tokio::time::sleep_until(until.0.into()).await;
        }
    }

    /// See [`tokio::time::error::Elapsed`].
    #[derive(Debug)]
    pub(crate) struct Elapsed;

    impl std::fmt::Display for Elapsed {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("deadline has elapsed")
        }
    }

    pub(crate) async fn timeout<F: IntoFuture>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
        tokio::select! {
            biased;
            value = future.into_future() => Ok(value),
            () = sleep(time) => Err(Elapsed),
        }
    }

    /// What is left until a deadline.
    pub(crate) fn left(deadline: std::time::Instant) -> Duration {
        deadline.saturating_duration_since(Instant::now().0)
    }

    pub(crate) fn deadline(after: Duration) -> std::time::Instant {
        Instant::now().0 + after
    }

    pub(crate) fn wall() -> jiff::Timestamp {
        match world::now() {
            // A day in 2026.
            Some(now) => jiff::Timestamp::from_second(1_790_000_000).expect("in range") + now,
            None => jiff::Timestamp::now(),
        }
    }
}

/// Chance.
pub(crate) mod random {
    use super::super::world;
    use rand::{RngCore, SeedableRng, rngs::StdRng};

    pub(crate) fn random() -> u64 {
        world::draw().unwrap_or_else(rand::random)
    }

    pub(crate) fn rng() -> Box<dyn RngCore> {
        match world::draw() {
            Some(seed) => Box::new(StdRng::seed_from_u64(seed)),
            None => Box::new(rand::rng()),
        }
    }
}
