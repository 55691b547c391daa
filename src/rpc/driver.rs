//! The engine of a connection's calling side: reads and writes the socket, either in its task or in the thread of a caller.
//!
//! A call puts its message into a queue and wakes the task, which writes it to the socket: a wake-up before the message has even left.
//! A thread that makes a call and then waits for the answer can do that work itself: it holds the engine ([`Driver::hold`]), makes the
//! call, and lets go, which writes what was queued. Reading stays with the task.
//!
//! Invariant: a wake-up that comes while the engine is held is not lost: whoever holds it runs the engine or, when letting go, wakes the
//! task.

use futures::{future::BoxFuture, task::AtomicWaker};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use tokio::runtime::Handle;

struct Engine {
    /// The work; `None` once the connection is lost or given up.
    work: Mutex<Option<BoxFuture<'static, ()>>>,
    /// The task that runs it.
    task: AtomicWaker,
    /// Callers that hold it.
    held: AtomicUsize,
    /// There is something to do that nobody was woken for.
    woken: AtomicBool,
    /// The runtime of the socket and the timers.
    home: Handle,
}

impl Wake for Engine {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        // Who lets go last looks again after this.
        if self.held.load(Ordering::SeqCst) == 0 {
            self.wake_task();
        }
    }
}

impl Engine {
    fn wake_task(&self) {
        if self.woken.swap(false, Ordering::SeqCst) {
            self.task.wake();
        }
    }

    /// Runs the work as far as it goes without waiting. Pending: it goes on at the next wake-up.
    fn run(self: &Arc<Self>, work: &mut Option<BoxFuture<'static, ()>>) -> Poll<()> {
        let Some(future) = work else {
            return Poll::Ready(());
        };
        let waker = Waker::from(Arc::clone(self));
        let done = future.as_mut().poll(&mut Context::from_waker(&waker));
        if done.is_ready() {
            *work = None;
        }
        done
    }
}

/// A handle for callers. Clones share the engine.
#[derive(Clone)]
pub struct Driver(Arc<Engine>);

impl Driver {
    /// For work that needs `home`. Also returns the task to spawn there; it ends with the work, and dropping it ends the work.
    pub(super) fn new(work: BoxFuture<'static, ()>, home: Handle) -> (Self, Drive) {
        let engine = Arc::new(Engine {
            work: Mutex::new(Some(work)),
            task: AtomicWaker::new(),
            held: AtomicUsize::new(0),
            woken: AtomicBool::new(false),
            home,
        });
        (Self(Arc::clone(&engine)), Drive(engine))
    }

    /// Calls made while the guard lives leave when it is dropped, from that thread. Do not wait for their answers before.
    #[must_use]
    pub fn hold(&self) -> Held<'_> {
        self.0.held.fetch_add(1, Ordering::SeqCst);
        Held(&self.0)
    }
}

/// See [`Driver::hold`].
pub struct Held<'a>(&'a Arc<Engine>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let engine = self.0;
        // If somebody else is at it, the task is woken below.
        if let Some(mut work) = engine.work.try_lock() {
            let _home = engine.home.enter();
            while engine.woken.swap(false, Ordering::SeqCst) {
                if engine.run(&mut work).is_ready() {
                    // The task shall see that it is over.
                    engine.woken.store(true, Ordering::SeqCst);
                    break;
                }
            }
        }
        engine.held.fetch_sub(1, Ordering::SeqCst);
        engine.wake_task();
    }
}

/// The task of a connection.
pub(super) struct Drive(Arc<Engine>);

impl Future for Drive {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let engine = &self.0;
        engine.task.register(context.waker());
        let mut work = match engine.work.try_lock() {
            Some(work) => work,
            None => {
                // A caller is at it, and does what there is to do or wakes this task when it lets go, unless it just did.
                engine.woken.store(true, Ordering::SeqCst);
                match engine.work.try_lock() {
                    Some(work) => work,
                    None => return Poll::Pending,
                }
            }
        };
        engine.run(&mut work)
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        // Calls in flight fail with it.
        *self.0.work.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(30);

    /// Work that counts what is put into its queue, until the queue closes.
    fn counting() -> (
        tokio::sync::mpsc::UnboundedSender<()>,
        mpsc::Receiver<std::thread::ThreadId>,
        BoxFuture<'static, ()>,
    ) {
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        let (seen, who) = mpsc::channel();
        let work = async move {
            while receive.recv().await.is_some() {
                let _ = seen.send(std::thread::current().id());
            }
        };
        (send, who, Box::pin(work))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_queued_while_held_is_done_by_the_caller_and_the_rest_by_the_task() {
        let (queue, who, work) = counting();
        let (driver, drive) = Driver::new(work, Handle::current());
        let task = tokio::spawn(drive);
        let here = std::thread::current().id();
        // The task has been polled once, so that it waits for the queue.
        queue.send(()).unwrap();
        assert_ne!(who.recv_timeout(LONG).unwrap(), here);
        tokio::task::block_in_place(|| {
            for _ in 0..1000 {
                let held = driver.hold();
                queue.send(()).unwrap();
                drop(held);
                // By this thread, or by the task if it was still at the one before.
                who.recv_timeout(LONG).unwrap();
                queue.send(()).unwrap();
                who.recv_timeout(LONG).unwrap();
            }
        });
        drop(queue);
        task.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_callers_lose_no_wake_up() {
        let (queue, who, work) = counting();
        let (driver, drive) = Driver::new(work, Handle::current());
        let task = tokio::spawn(drive);
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (driver, queue) = (driver.clone(), queue.clone());
                std::thread::spawn(move || {
                    for _ in 0..5000 {
                        let _held = driver.hold();
                        queue.send(()).unwrap();
                    }
                })
            })
            .collect();
        tokio::task::block_in_place(|| {
            for _ in 0..20_000 {
                who.recv_timeout(LONG).unwrap();
            }
        });
        for caller in callers {
            caller.join().unwrap();
        }
        drop(queue);
        task.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dropping_the_task_ends_the_work() {
        let (queue, _who, work) = counting();
        let (driver, drive) = Driver::new(work, Handle::current());
        drop(drive);
        let _held = driver.hold();
        assert!(queue.send(()).is_err());
    }
}
