//! A simulated world: threads that take turns as a seed decides, and a clock that moves only when all of them wait.
//!
//! Every thread and every task of the world is a *fiber*: a thread of the system that runs only while it holds the world's one baton.
//! A fiber hands it on when it waits (or now and then where it could be interrupted); the next one is drawn from those that can run. When
//! none can, the clock jumps to the next timer. So a run depends on its seed alone, and repeats exactly.
//!
//! A fiber belongs to a *host*, which it inherits from the fiber that starts it. A host can be stopped (its fibers get no turn, as
//! after SIGSTOP) and killed: its fibers unwind at their next turn. What their destructors do then is not to be seen outside: the network
//! and the disks of the simulation take nothing from a killed host.
//!
//! Invariant: the world's lock is never held while a fiber waits for its turn or a waker is called.

use parking_lot::{Condvar, Mutex};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    any::Any,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    sync::{Arc, LazyLock, Weak, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

/// A turn ends by chance once in so many places where it may.
const INTERRUPT: u32 = 12;
/// Turns after which a run has gone wrong.
const MOST_TURNS: u64 = 300_000;

type Id = u64;
/// A simulated machine; 0 is nobody's.
pub(crate) type Host = u32;

/// The end of a killed fiber.
struct Killed;

#[derive(Default)]
struct Baton {
    here: Mutex<bool>,
    passed: Condvar,
}

impl Baton {
    fn pass(&self) {
        *self.here.lock() = true;
        self.passed.notify_one();
    }

    fn take(&self) {
        let mut here = self.here.lock();
        while !*here {
            self.passed.wait(&mut here);
        }
        *here = false;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Running,
    Ready,
    Parked,
}

struct Fiber {
    host: Host,
    name: &'static str,
    turn: Turn,
    /// It was woken while it was not parked.
    woken: bool,
    killed: bool,
    baton: Arc<Baton>,
}

struct Inner {
    rng: StdRng,
    now: Duration,
    fibers: BTreeMap<Id, Fiber>,
    /// Sorted, so that it does not matter in which order they became ready.
    ready: BTreeSet<Id>,
    timers: BTreeMap<(Duration, u64), Waker>,
    stopped: BTreeSet<Host>,
    next: u64,
    turns: u64,
    trace: DefaultHasher,
    /// What went wrong first.
    failure: Option<String>,
    /// What belongs to the world and its fibers ask for.
    belongings: Option<Arc<dyn Any + Send + Sync>>,
}

/// See the module's text. Clones share.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<Inner>>);

/// A fiber, for those who wake it.
#[derive(Clone)]
pub(crate) struct FiberRef {
    world: Weak<Mutex<Inner>>,
    id: Id,
}

impl PartialEq for FiberRef {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

thread_local! {
    static CURRENT: RefCell<Option<(World, Id)>> = const { RefCell::new(None) };
}

fn current() -> Option<(World, Id)> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whether the calling thread is a fiber.
pub(crate) fn in_world() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

impl World {
    /// Runs `work` as the first fiber of a world; when it has ended, all others are killed. Returns its result and a digest of the
    /// order of turns: the same for the same seed.
    pub(crate) fn run<T>(seed: u64, work: impl FnOnce(&Self) -> T) -> (T, u64) {
        assert!(!in_world(), "worlds do not nest");
        let world = Self(Arc::new(Mutex::new(Inner {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            fibers: BTreeMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeMap::new(),
            stopped: BTreeSet::new(),
            next: 0,
            turns: 0,
            trace: DefaultHasher::new(),
            failure: None,
            belongings: None,
        })));
        let (id, _) = world.0.lock().add(0, "main", Turn::Running);
        CURRENT.set(Some((world.clone(), id)));
        let result = catch_unwind(AssertUnwindSafe(|| work(&world)));
        world.end(id);
        CURRENT.set(None);
        let mut inner = world.0.lock();
        let left = (std::mem::take(&mut inner.timers), inner.belongings.take());
        let failure = inner.failure.take();
        let trace = inner.trace.finish();
        drop(inner);
        drop(left);
        match (result, failure) {
            (Ok(result), None) => (result, trace),
            (Err(payload), failure) if !payload.is::<Killed>() => {
                if let Some(failure) = failure {
                    eprintln!("before that: {failure}");
                }
                resume_unwind(payload)
            }
            (_, failure) => panic!("{}", failure.unwrap_or_default()),
        }
    }

    /// Kills all fibers but `id` and waits for their ends.
    fn end(&self, id: Id) {
        let mut inner = self.0.lock();
        inner.stopped.clear();
        let others: Vec<Id> = inner.fibers.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            inner.kill(other);
        }
        // The ends of killed fibers are no failures, and this one is not killed by any.
        if let Some(own) = inner.fibers.get_mut(&id) {
            own.killed = false;
        }
        drop(inner);
        loop {
            let left = self.0.lock().fibers.len();
            if left <= 1 {
                return;
            }
            give_way(self, id);
            let inner = self.0.lock();
            if inner.fibers.len() > 1 && inner.ready.is_empty() {
                // Destructors that wait for each other: their threads stay.
                eprintln!("fibers that do not end: {}", inner.list());
                return;
            }
        }
    }

    /// Gives the world what its fibers then find with [`belongings`].
    pub(crate) fn give(&self, belongings: Arc<dyn Any + Send + Sync>) {
        self.0.lock().belongings = Some(belongings);
    }

    /// The time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.0.lock().now
    }

    /// Lets the host's fibers have no turn until it is resumed.
    pub(crate) fn stop(&self, host: Host) {
        self.0.lock().stopped.insert(host);
    }

    /// See [`Self::stop`].
    pub(crate) fn resume(&self, host: Host) {
        self.0.lock().stopped.remove(&host);
    }

    /// Ends all fibers of a host; not the calling one.
    pub(crate) fn kill(&self, host: Host) {
        let mut inner = self.0.lock();
        inner.stopped.remove(&host);
        let own: Vec<Id> = inner
            .fibers
            .iter()
            .filter(|(_, fiber)| fiber.host == host)
            .map(|(id, _)| *id)
            .collect();
        for id in own {
            inner.kill(id);
        }
    }

    /// How many fibers a host has.
    pub(crate) fn fibers(&self, host: Host) -> usize {
        let inner = self.0.lock();
        inner.fibers.values().filter(|fiber| fiber.host == host).count()
    }

    /// Starts a fiber of another host.
    pub(crate) fn spawn_on(&self, host: Host, name: &'static str, work: impl FnOnce() + Send + 'static) {
        let (id, baton) = self.0.lock().add(host, name, Turn::Ready);
        let world = self.clone();
        pool(Box::new(move || {
            baton.take();
            CURRENT.set(Some((world.clone(), id)));
            let killed = world.0.lock().fibers.get(&id).is_none_or(|fiber| fiber.killed);
            // What it owns is dropped as a fiber, whether it begins or not.
            let outcome = catch_unwind(AssertUnwindSafe(|| if killed { drop(work) } else { work() }));
            CURRENT.set(None);
            world.ended(id, outcome);
        }));
    }

    fn ended(&self, id: Id, outcome: Result<(), Box<dyn Any + Send>>) {
        let mut inner = self.0.lock();
        let name = inner.fibers.remove(&id).map_or("", |fiber| fiber.name);
        if let Err(payload) = outcome
            && !payload.is::<Killed>()
        {
            let text = payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            inner.fail(format!("{name}: {}", text.unwrap_or_default()));
        }
        drop(inner);
        if let Some(next) = self.draw() {
            next.pass();
        }
    }

    /// Ends the run as gone wrong.
    pub(crate) fn fail(&self, why: String) {
        self.0.lock().fail(why);
    }

    /// Whose turn it is next. `None`: nobody's, all wait for ever.
    fn draw(&self) -> Option<Arc<Baton>> {
        loop {
            let mut inner = self.0.lock();
            let Inner {
                ready, fibers, stopped, ..
            } = &*inner;
            let can: Vec<Id> = ready
                .iter()
                .copied()
                .filter(|id| fibers.get(id).is_some_and(|fiber| !stopped.contains(&fiber.host)))
                .collect();
            if let Some(last) = can.len().checked_sub(1) {
                let id = can[inner.rng.random_range(0..=last)];
                inner.turns += 1;
                if inner.turns == MOST_TURNS {
                    let list = inner.list();
                    let now = inner.now;
                    inner.fail(format!("too many turns by {now:?}: {list}"));
                }
                inner.ready.remove(&id);
                let at = inner.now;
                (id, at).hash(&mut inner.trace);
                let fiber = inner.fibers.get_mut(&id)?;
                fiber.turn = Turn::Running;
                return Some(fiber.baton.clone());
            }
            match inner.timers.pop_first() {
                Some(((at, _), waker)) => {
                    inner.now = inner.now.max(at);
                    drop(inner);
                    waker.wake();
                }
                None => {
                    let list = inner.list();
                    // Somebody has to report it.
                    let first = inner.fibers.iter().next().map(|(id, fiber)| (*id, fiber.killed));
                    match first {
                        Some((_, false)) => inner.fail(format!("all wait for ever: {list}")),
                        _ => return None,
                    }
                }
            }
        }
    }
}

impl Inner {
    fn add(&mut self, host: Host, name: &'static str, turn: Turn) -> (Id, Arc<Baton>) {
        let id = self.next;
        self.next += 1;
        let baton = Arc::<Baton>::default();
        let fiber = Fiber {
            host,
            name,
            turn,
            woken: false,
            killed: false,
            baton: baton.clone(),
        };
        self.fibers.insert(id, fiber);
        if turn == Turn::Ready {
            self.ready.insert(id);
        }
        (id, baton)
    }

    fn wake(&mut self, id: Id) {
        let Some(fiber) = self.fibers.get_mut(&id) else { return };
        match fiber.turn {
            Turn::Parked => {
                fiber.turn = Turn::Ready;
                self.ready.insert(id);
            }
            Turn::Running | Turn::Ready => fiber.woken = true,
        }
    }

    fn kill(&mut self, id: Id) {
        if let Some(fiber) = self.fibers.get_mut(&id) {
            fiber.killed = true;
        }
        self.wake(id);
    }

    /// The first fiber of all reports it.
    fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
        self.stopped.clear();
        if let Some(first) = self.fibers.keys().next().copied() {
            self.kill(first);
        }
    }

    fn list(&self) -> String {
        let of = |(id, fiber): (&Id, &Fiber)| format!("{id} {} of host {} {:?}", fiber.name, fiber.host, fiber.turn);
        self.fibers.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

/// Threads of the system that wait to be fibers again.
fn pool(work: Box<dyn FnOnce() + Send>) {
    type Work = Box<dyn FnOnce() + Send>;
    static IDLE: LazyLock<Mutex<Vec<mpsc::Sender<Work>>>> = LazyLock::new(Mutex::default);
    let mut work = work;
    loop {
        let idle = IDLE.lock().pop();
        let Some(idle) = idle else { break };
        match idle.send(work) {
            Ok(()) => return,
            Err(mpsc::SendError(back)) => work = back,
        }
    }
    let builder = thread::Builder::new().name("fiber".to_owned()).stack_size(8 << 20);
    let loops = move || {
        let (sender, receiver) = mpsc::channel::<Work>();
        let mut next = Some(work);
        while let Some(work) = next {
            work();
            IDLE.lock().push(sender.clone());
            next = receiver.recv().ok();
        }
    };
    builder.spawn(loops).expect("a thread for a fiber");
}

/// Starts a fiber of the same host.
pub(super) fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) {
    let (world, id) = current().expect("a fiber");
    let host = world.0.lock().fibers.get(&id).map_or(0, |fiber| fiber.host);
    world.spawn_on(host, name, work);
}

/// What was given to the world of the calling fiber.
pub(crate) fn belongings() -> Option<Arc<dyn Any + Send + Sync>> {
    current().and_then(|(world, _)| world.0.lock().belongings.clone())
}

/// The host of the calling fiber.
pub(crate) fn host() -> Host {
    let host = current().and_then(|(world, id)| world.0.lock().fibers.get(&id).map(|fiber| fiber.host));
    host.unwrap_or_default()
}

/// Waits for a turn.
fn hand_over(world: &World, id: Id) {
    let own = world.0.lock().fibers.get(&id).map(|fiber| fiber.baton.clone());
    let own = own.expect("a fiber that runs is known");
    match world.draw() {
        Some(next) if Arc::ptr_eq(&next, &own) => {}
        Some(next) => {
            next.pass();
            own.take();
        }
        // The end of a world that cannot end.
        None => {}
    }
    let killed = world.0.lock().fibers.get(&id).is_some_and(|fiber| fiber.killed);
    if killed && !thread::panicking() {
        resume_unwind(Box::new(Killed));
    }
}

fn give_way(world: &World, id: Id) {
    let mut inner = world.0.lock();
    if let Some(fiber) = inner.fibers.get_mut(&id) {
        fiber.turn = Turn::Ready;
    }
    inner.ready.insert(id);
    drop(inner);
    hand_over(world, id);
}

/// A place where the turn may end.
pub(super) fn interrupt() {
    let Some((world, id)) = current() else { return };
    if thread::panicking() {
        return;
    }
    if world.0.lock().rng.random_ratio(1, INTERRUPT) {
        give_way(&world, id);
    }
}

/// Waits to be woken, or for the time.
pub(super) fn park(until: Option<Duration>) {
    let (world, id) = current().expect("a fiber");
    let waker = FiberRef::new(&world, id).waker();
    let timer = until.map(|until| world.set_timer(until, waker));
    {
        let mut inner = world.0.lock();
        let fiber = inner.fibers.get_mut(&id).expect("a fiber that runs is known");
        if std::mem::take(&mut fiber.woken) {
            fiber.turn = Turn::Ready;
            inner.ready.insert(id);
        } else {
            fiber.turn = Turn::Parked;
        }
    }
    hand_over(&world, id);
    if let Some(timer) = timer {
        world.0.lock().timers.remove(&timer);
    }
}

impl World {
    fn set_timer(&self, at: Duration, waker: Waker) -> (Duration, u64) {
        let mut inner = self.0.lock();
        let key = (at, inner.next);
        inner.next += 1;
        inner.timers.insert(key, waker);
        key
    }
}

impl FiberRef {
    fn new(world: &World, id: Id) -> Self {
        Self {
            world: Arc::downgrade(&world.0),
            id,
        }
    }

    /// The calling fiber, if the thread is one.
    pub(super) fn current() -> Option<Self> {
        current().map(|(world, id)| Self::new(&world, id))
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn wake(&self) {
        if let Some(world) = self.world.upgrade() {
            world.lock().wake(self.id);
        }
    }

    fn waker(self) -> Waker {
        Waker::from(Arc::new(self))
    }
}

impl Wake for FiberRef {
    fn wake(self: Arc<Self>) {
        Self::wake(&self);
    }
}

/// Runs a future on the calling fiber.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let (world, id) = current().expect("a fiber");
    let waker = FiberRef::new(&world, id).waker();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        park(None);
    }
}

/// The world's time, in a fiber.
pub(super) fn now() -> Option<Duration> {
    CURRENT.with_borrow(|current| current.as_ref().map(|(world, _)| world.now()))
}

/// A number drawn by the seed, in a fiber.
pub(crate) fn draw() -> Option<u64> {
    CURRENT.with_borrow(|current| current.as_ref().map(|(world, _)| world.0.lock().rng.random()))
}

/// Ready at a time of the world.
pub(super) struct Timer {
    at: Duration,
    set: Option<(World, (Duration, u64))>,
}

impl Timer {
    pub(super) fn new(at: Duration) -> Self {
        Self { at, set: None }
    }

    fn unset(&mut self) {
        if let Some((world, key)) = self.set.take() {
            world.0.lock().timers.remove(&key);
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.unset();
        let (world, _) = current().expect("a fiber");
        if world.now() >= self.at {
            return Poll::Ready(());
        }
        let key = world.set_timer(self.at, context.waker().clone());
        self.set = Some((world, key));
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.unset();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{sync, task, thread as threads, time};
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Two that count under a lock, one that waits for them by a condition, and a task that sleeps.
    fn counted(seed: u64) -> (Vec<u32>, u64) {
        World::run(seed, |world| {
            let shared = Arc::new((sync::Mutex::new(Vec::new()), sync::Condvar::new()));
            for number in 0..2 {
                let shared = shared.clone();
                world.spawn_on(1, "counter", move || {
                    for round in 0..5 {
                        shared.0.lock().push(number * 10 + round);
                        shared.1.notify_all();
                        threads::sleep(Duration::from_millis(u64::from(number) + 1));
                    }
                });
            }
            let mut list = shared.0.lock();
            while list.len() < 10 {
                let until = time::Instant::now() + Duration::from_secs(1);
                assert!(!shared.1.wait_until(&mut list, until).timed_out());
            }
            let slept = task::spawn_blocking(|| threads::sleep(Duration::from_secs(3600)));
            block_on(async {
                assert!(time::timeout(Duration::from_secs(1), slept).await.is_err());
            });
            assert!(world.now() > Duration::from_secs(1) && world.now() < Duration::from_secs(2));
            list.clone()
        })
    }

    #[test]
    fn a_seed_repeats_exactly_and_others_differ() {
        let first = counted(7);
        assert_eq!(first, counted(7));
        assert!((0..20).any(|seed| counted(seed).0 != first.0));
    }

    #[test]
    fn a_killed_host_ends_and_a_stopped_one_stands_still() {
        World::run(1, |world| {
            let count = Arc::new(AtomicU32::new(0));
            for host in [1, 2] {
                let count = count.clone();
                world.spawn_on(host, "counter", move || {
                    loop {
                        threads::sleep(Duration::from_millis(10));
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            threads::sleep(Duration::from_millis(105));
            assert_eq!(count.load(Ordering::SeqCst), 20);
            world.kill(1);
            threads::sleep(Duration::from_millis(100));
            assert_eq!((count.load(Ordering::SeqCst), world.fibers(1)), (30, 0));
            world.stop(2);
            threads::sleep(Duration::from_secs(10));
            assert_eq!(count.load(Ordering::SeqCst), 30);
            world.resume(2);
            threads::sleep(Duration::from_millis(100));
            assert!(count.load(Ordering::SeqCst) >= 39);
        });
    }

    #[test]
    #[should_panic(expected = "all wait for ever")]
    fn a_deadlock_is_told() {
        World::run(1, |world| {
            let locks = Arc::new((sync::Mutex::new(()), sync::Mutex::new(())));
            let other = locks.clone();
            world.spawn_on(1, "other", move || {
                let _first = other.1.lock();
                threads::sleep(Duration::from_secs(1));
                let _second = other.0.lock();
            });
            let _first = locks.0.lock();
            threads::sleep(Duration::from_secs(1));
            let _second = locks.1.lock();
        });
    }

    #[test]
    #[should_panic(expected = "counter: went wrong")]
    fn a_panic_of_any_fiber_ends_the_run() {
        World::run(1, |world| {
            world.spawn_on(1, "counter", || panic!("went wrong"));
            threads::sleep(Duration::from_secs(1));
        });
    }
}
