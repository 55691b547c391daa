//! Whether this process stood still (stopped, its machine paused or overloaded), and what a voter makes of it.
//!
//! A process that wakes finds its timers run out before it reads the messages that came meanwhile. Raft would stand for election at once and
//! depose a healthy leader: its peers follow a higher term, it has no pre-vote. So Raft's own elections are off while a leader is
//! heard, thus also at the moment of waking, and stay off long enough to read what came. They are on early enough for Raft's
//! timeouts, which begin with the leader's last message too, to decide as ever.

use super::Inner;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two beats.
const TICK: Duration = Duration::from_millis(100);
/// A pause between beats that is longer: the process stood still.
const STILL: Duration = Duration::from_secs(1);
/// Time to read what came meanwhile.
const READ: Duration = Duration::from_secs(1);

/// The last beat, and the end of the last standstill.
pub(super) struct Pulse {
    last: Instant,
    woke: Option<Instant>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, woke: None }
    }

    /// A beat; the answer: when the process last woke. Whoever asks first notices it.
    fn beat(&mut self, now: Instant) -> Option<Instant> {
        if now.saturating_duration_since(self.last) > STILL {
            self.woke = Some(now);
        }
        self.last = self.last.max(now);
        self.woke
    }
}

impl Inner {
    /// When this process last woke from a standstill.
    pub(super) fn beat(&self) -> Option<Instant> {
        let mut pulse = self.pulse.lock();
        pulse.beat(Instant::now())
    }
}

/// Runs until the store stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut noted = None;
    loop {
        let woke = inner.beat();
        if woke != noted {
            noted = woke;
            tracing::warn!("this daemon stood still for more than a second");
        }
        let heard = *inner.heard.lock();
        {
            // The protocol may have been started anew.
            let core = inner.core();
            let membership = core.raft.metrics().borrow().membership_config.clone();
            let alone = membership.membership().voter_ids().count() == 1;
            let may = alone || may_elect(Instant::now(), heard, woke, inner.settings.election);
            core.raft.runtime_config().elect(may);
        }
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Pure: whether Raft's own timeouts may start an election, of several voters.
fn may_elect(now: Instant, heard: Option<Instant>, woke: Option<Instant>, election: Duration) -> bool {
    let past = |at: Option<Instant>, time| at.is_none_or(|at| now.saturating_duration_since(at) >= time);
    past(heard, election * 2) && past(woke, READ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_noticed_once_by_whoever_looks_first() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pulse = Pulse::new(start);
        for (now, woke) in [
            (100, None),
            (1100, None),
            (2101, Some(2101)),
            (2102, Some(2101)),
            // Two that look at the same time.
            (2100, Some(2101)),
            (3102, Some(2101)),
            (9000, Some(9000)),
        ] {
            assert_eq!(pulse.beat(at(now)), woke.map(at), "{now}");
        }
    }

    #[test]
    fn a_voter_elects_when_it_hears_nobody_and_has_read_what_came() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for (heard, woke, may) in [
            (None, None, true),
            (Some(8999), None, true),
            (Some(9001), None, false),
            (Some(10_000), None, false),
            (None, Some(9001), false),
            (None, Some(9000), true),
            (Some(1000), Some(9500), false),
            (Some(9500), Some(1000), false),
            (Some(1000), Some(1000), true),
        ] {
            let found = may_elect(at(10_000), heard.map(at), woke.map(at), Duration::from_millis(500));
            assert_eq!(found, may, "{heard:?} {woke:?}");
        }
    }
}
