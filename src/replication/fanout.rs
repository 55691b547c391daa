//! Calls to several copies at once from one thread that waits for all of them.
//!
//! The thread sleeps until the last answer is there, not to be woken by each. A call that needs another turn before its answer (its
//! connection had no room) has that turn when the others have answered at the latest, which their deadlines bound.

use crate::exec::thread::{self, Thread};
use futures::future::{BoxFuture, FusedFuture, MaybeDone, maybe_done};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::task::{Context, Wake, Waker};

/// Wakes a thread when as many wake-ups have come as it waits for.
struct Latch {
    thread: Thread,
    left: AtomicIsize,
}

impl Wake for Latch {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.left.fetch_sub(1, Ordering::AcqRel) <= 1 {
            self.thread.unpark();
        }
    }
}

/// Calls in flight, begun by this thread.
pub(super) struct Fanout<'a, T> {
    calls: Vec<MaybeDone<BoxFuture<'a, T>>>,
    latch: Arc<Latch>,
}

impl<'a, T> Fanout<'a, T> {
    /// Begins the calls.
    pub(super) fn begin<F: Future<Output = T> + Send + 'a>(calls: impl Iterator<Item = F>) -> Self {
        let mut fanout = Self {
            calls: calls
                .map(|call| maybe_done(Box::pin(call) as BoxFuture<'a, T>))
                .collect(),
            latch: Arc::new(Latch {
                thread: thread::current(),
                left: AtomicIsize::new(0),
            }),
        };
        fanout.turn();
        fanout
    }

    /// Gives every call that has no answer yet a turn; whether all have.
    fn turn(&mut self) -> bool {
        let waiting = self.calls.iter().filter(|call| !call.is_terminated()).count();
        // Set before the turn: a wake-up during it counts.
        self.latch.left.store(waiting as isize, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self.latch));
        let mut context = Context::from_waker(&waker);
        let mut left = waiting;
        for call in self.calls.iter_mut().filter(|call| !call.is_terminated()) {
            if Pin::new(call).poll(&mut context).is_ready() {
                left -= 1;
                self.latch.left.fetch_sub(1, Ordering::AcqRel);
            }
        }
        left == 0
    }

    /// Waits for all answers, in the order of the calls. Must be called by the thread that began them.
    pub(super) fn finish(mut self) -> Vec<T> {
        debug_assert_eq!(
            self.latch.thread.id(),
            thread::current().id(),
            "another thread would be woken"
        );
        while !self.calls.iter().all(FusedFuture::is_terminated) {
            // Above zero: somebody will wake this thread.
            while self.latch.left.load(Ordering::Acquire) > 0 {
                thread::park();
            }
            self.turn();
        }
        self.calls
            .iter_mut()
            .filter_map(|call| Pin::new(call).take_output())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::oneshot;
    use std::thread;

    #[test]
    fn answers_come_in_the_order_of_the_calls_whichever_is_first() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let (mut senders, receivers): (Vec<_>, Vec<_>) = (0..3)
                .map(|_| oneshot::channel::<u8>())
                .map(|(s, r)| (Some(s), r))
                .unzip();
            let fanout = Fanout::begin(receivers.into_iter());
            let answer = thread::spawn(move || {
                for at in order {
                    if let Some(sender) = senders[at].take() {
                        sender.send(at as u8).unwrap();
                    }
                    thread::yield_now();
                }
            });
            let answers: Vec<u8> = fanout.finish().into_iter().map(Result::unwrap).collect();
            assert_eq!(answers, [0, 1, 2]);
            answer.join().unwrap();
        }
    }

    #[test]
    fn calls_that_need_several_turns_get_them() {
        for round in 0..200 {
            let (mut send, receive) = futures::channel::mpsc::channel::<u8>(0);
            let (one, other) = oneshot::channel::<u8>();
            let several = async move {
                use futures::StreamExt;
                receive.fold(0_u32, |sum, n| async move { sum + u32::from(n) }).await
            };
            let single = async move { other.await.map_or(0, u32::from) };
            let calls: Vec<BoxFuture<'_, u32>> = vec![Box::pin(several), Box::pin(single)];
            let fanout = Fanout::begin(calls.into_iter());
            let answer = thread::spawn(move || {
                use futures::SinkExt;
                if round % 2 == 0 {
                    one.send(1).unwrap();
                    futures::executor::block_on(async {
                        for n in 0..5 {
                            send.send(n).await.unwrap();
                        }
                    });
                } else {
                    // Its receiver may get its next turn only after this.
                    send.try_send(10).unwrap();
                    one.send(1).unwrap();
                }
            });
            assert_eq!(fanout.finish(), [10, 1]);
            answer.join().unwrap();
        }
    }

    #[test]
    fn no_calls_are_done_at_once() {
        let none: [std::future::Ready<()>; 0] = [];
        assert!(Fanout::begin(none.into_iter()).finish().is_empty());
    }
}
