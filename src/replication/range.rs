//! Range lock: calls that overlap run one after another, in the order in which they came; others do not meet.
//!
//! Held by a write from before it is sent until every copy has it, so that all copies apply overlapping writes in one
//! order; by the copying of an extent; by a repair. A call locks all its ranges at once, so there is no deadlock. Bounded by
//! the number of calling threads.

use crate::exec::sync::{Condvar, Mutex};

struct Entry {
    id: u64,
    ranges: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    /// In order of arrival: an entry holds its ranges when no earlier one overlaps them.
    entries: Vec<Entry>,
    waiting: usize,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct RangeLock {
    queue: Mutex<Queue>,
    released: Condvar,
}

fn overlap(a: &[(u64, u64)], b: &[(u64, u64)]) -> bool {
    a.iter().any(|(a0, a1)| b.iter().any(|(b0, b1)| a0 < b1 && b0 < a1))
}

impl RangeLock {
    /// Waits for `ranges`, each from its first block to before its second.
    pub(super) fn lock(&self, ranges: Vec<(u64, u64)>) -> RangeGuard<'_> {
        let mut queue = self.queue.lock();
        let id = queue.next;
        queue.next += 1;
        queue.entries.push(Entry { id, ranges });
        loop {
            let mine = queue.entries.iter().position(|entry| entry.id == id);
            // The entry is removed only by its guard.
            let Some(mine) = mine else { break };
            let (earlier, rest) = queue.entries.split_at(mine);
            if !earlier.iter().any(|entry| overlap(&entry.ranges, &rest[0].ranges)) {
                break;
            }
            queue.waiting += 1;
            self.released.wait(&mut queue);
            queue.waiting -= 1;
        }
        RangeGuard { lock: self, id }
    }
}

/// Holds ranges until dropped.
pub(super) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    id: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = self.lock.queue.lock();
        if let Some(at) = queue.entries.iter().position(|entry| entry.id == self.id) {
            queue.entries.remove(at);
        }
        if queue.waiting > 0 {
            drop(queue);
            self.lock.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn overlapping_ranges_wait_and_others_do_not() {
        let lock = RangeLock::default();
        let first = lock.lock(vec![(0, 4), (8, 12)]);
        drop(lock.lock(vec![(4, 8), (12, 20)]));
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let _second = lock.lock(vec![(11, 13)]);
                assert!(released.load(Ordering::SeqCst));
            });
            while lock.queue.lock().waiting == 0 {
                std::thread::yield_now();
            }
            released.store(true, Ordering::SeqCst);
            drop(first);
            waiter.join().unwrap();
        });
        assert!(lock.queue.lock().entries.is_empty());
    }
}
