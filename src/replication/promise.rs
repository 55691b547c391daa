//! Promises: what lets a master read its own copy without asking, and never after another master could have written.
//!
//! By answering a heartbeat a copy promises not to serve as a master itself for [`PROMISE`]. Whoever becomes master waits out what its own
//! copy promised, unless the node that was promised to is known to be fenced. A master returns what it read only if every copy that could be
//! promoted (all that are complete) has promised it a time that is not over; otherwise it asks first. Alone, it needs nobody's promise: then nobody
//! else can be promoted. After Lin et al., "PacificA" (2008). Writes need no promise, their epoch fences them.
//!
//! Each side measures on its own monotonic clock: the master from before it asked, the copy from after; the master uses the promise
//! for three quarters of its time, for clocks that do not run alike. Clocks that stand still while the other node's runs (a
//! suspended virtual machine) are beyond that.

use crate::volume::NodeId;
use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// For how long a copy promises. Part of the protocol: the same on every node.
pub(super) const PROMISE: Duration = Duration::from_secs(1);
/// For how long a master uses it.
const USED: Duration = PROMISE.saturating_mul(3).checked_div(4).unwrap();

static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since [`BASE`], which is before any other call's.
fn nanoseconds(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*BASE).as_nanos()).unwrap_or(u64::MAX)
}

/// What a copy promised last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    /// To whom; `None`: it may have been to anybody, by an earlier process on this node.
    pub(super) to: Option<NodeId>,
    pub(super) until: Instant,
}

impl Promise {
    /// Made now.
    pub(super) fn to(node: NodeId) -> Self {
        Self {
            to: Some(node),
            until: Instant::now() + PROMISE,
        }
    }

    /// What a process may have made that had ended by `at`.
    pub(super) fn before(at: Instant) -> Self {
        Self {
            to: None,
            until: at + PROMISE,
        }
    }
}

/// Until when a master may use another copy's promise.
#[derive(Default)]
pub(super) struct Promised(AtomicU64);

impl Promised {
    /// The copy answered what was asked at `asked`.
    pub(super) fn since(&self, asked: Instant) {
        self.0.fetch_max(nanoseconds(asked + USED), Ordering::SeqCst);
    }

    /// Whether it is not over.
    pub(super) fn holds(&self, now: Instant) -> bool {
        nanoseconds(now) < self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_stops_using_a_promise_before_the_copy_stops_keeping_it() {
        let promised = Promised::default();
        assert!(!promised.holds(Instant::now()), "nothing was promised");
        let asked = Instant::now();
        let kept = Promise::to(NodeId::from_bytes([1; 16]));
        promised.since(asked);
        assert!(promised.holds(asked));
        assert!(promised.holds(asked + USED - Duration::from_nanos(1)));
        assert!(!promised.holds(asked + USED));
        assert!(asked + USED < kept.until);
        // An answer that was overtaken by a later one takes nothing back.
        promised.since(asked - Duration::from_millis(300));
        assert!(promised.holds(asked + USED - Duration::from_nanos(1)));
    }
}
