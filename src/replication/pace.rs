//! How fast a sync goes while its volume is in use: so fast that the calls of the foreground do not notice.
//!
//! A sync works in slices and rests between them. What calls achieve while it works is compared with what they achieve while it rests, by
//! their number and by how long they take, and the rests are made so long that all in all calls lose [`COST`]. So they lose no more even
//! if they stand still during slices, and a sync that does not hinder them hardly rests. What a slice leaves behind (bytes on their way to
//! a disk) counts as its own for a moment. A rest has an upper bound, so a sync always gets on; without calls there is no rest at all.
//!
//! Pure: whoever uses it says what time it is.

use std::time::Duration;

/// The part of the foreground's speed that the syncs of a volume may cost.
const COST: f64 = 0.05;
/// The shortest time from one rest to the next.
const SLICE: Duration = Duration::from_millis(10);
/// The same for a sync that costs little.
const LONG_SLICE: Duration = Duration::from_millis(50);
/// After a slice, time in which its effects are felt yet.
const SETTLE: Duration = Duration::from_millis(10);
/// The largest share of slices and what they leave behind: rests are needed to compare with.
const MOST: f64 = 0.8;
/// No call for so long: the volume is not in use.
const IDLE: Duration = Duration::from_millis(50);
/// How long to sleep before looking again whether the volume is in use.
const STEP: Duration = Duration::from_millis(5);
/// Calls from which on a comparison says something.
const ENOUGH: f64 = 16.0;
/// What of the measurements a round leaves to the next one: the last eight or so count.
const KEPT: f64 = 7.0 / 8.0;
/// How fast the share grows from one round to the next; it may fall twice as fast.
const GROWTH: f64 = 1.25;

/// What the calls of the foreground have come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Calls that ended; only grows.
    pub(super) ended: u64,
    /// How long they took together.
    pub(super) took: Duration,
    /// Whether one is in progress.
    pub(super) in_progress: bool,
}

/// Calls in a time.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    seconds: f64,
    calls: f64,
    took: f64,
}

impl Window {
    fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.calls += other.calls;
        self.took += other.took;
    }

    fn fade(&mut self) {
        self.seconds *= KEPT;
        self.calls *= KEPT;
        self.took *= KEPT;
    }
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    Work { since: Duration },
    Settle { since: Duration, until: Duration },
    Rest { until: Duration },
}

/// See the module's text. Times count from any moment.
pub(super) struct Pace {
    longest: Duration,
    turn: Turn,
    /// When it was last asked, and what it was told.
    last: (Duration, Load),
    /// When the volume was last seen in use.
    used: Option<Duration>,
    working: Window,
    resting: Window,
    /// Of the time, what slices and what they leave behind may take.
    share: f64,
}

impl Pace {
    /// For a sync that begins now. `longest`: its longest rest.
    pub(super) fn new(now: Duration, load: Load, longest: Duration) -> Self {
        Self {
            longest,
            turn: Turn::Work { since: now },
            last: (now, load),
            used: None,
            working: Window::default(),
            resting: Window::default(),
            share: COST,
        }
    }

    /// Asked before each piece of work: `None` is to do it, else to sleep for so long and ask again. `syncs` run on the volume.
    pub(super) fn next(&mut self, now: Duration, load: Load, syncs: usize) -> Option<Duration> {
        let (before, known) = std::mem::replace(&mut self.last, (now, load));
        // Exact up to 2⁵³ calls.
        let window = Window {
            seconds: now.saturating_sub(before).as_secs_f64(),
            calls: load.ended.saturating_sub(known.ended) as f64,
            took: load.took.saturating_sub(known.took).as_secs_f64(),
        };
        if load.in_progress || load.ended != known.ended {
            self.used = Some(now);
        }
        if self.used.is_none_or(|used| now.saturating_sub(used) >= IDLE) {
            self.turn = Turn::Work { since: now };
            return None;
        }
        match self.turn {
            Turn::Work { since } => {
                self.working.add(window);
                let slice = if self.share > 0.5 { LONG_SLICE } else { SLICE };
                if now.saturating_sub(since) < slice {
                    return None;
                }
                let until = now + SETTLE.min(self.longest / 2);
                self.turn = Turn::Settle { since, until };
            }
            Turn::Settle { since, until } => {
                self.working.add(window);
                if now >= until {
                    self.share = self.next_share(syncs);
                    let rest = now.saturating_sub(since).mul_f64(1.0 / self.share - 1.0);
                    self.turn = Turn::Rest {
                        until: now + rest.min(self.longest.saturating_sub(SETTLE)),
                    };
                }
            }
            Turn::Rest { until } => {
                self.resting.add(window);
                if now >= until {
                    self.working.fade();
                    self.resting.fade();
                    self.turn = Turn::Work { since: now };
                    return None;
                }
            }
        }
        Some(STEP.min(self.longest))
    }

    /// The part of their speed that calls lose while it works; `None`: not known.
    fn slowdown(&self) -> Option<f64> {
        let (working, resting) = (self.working, self.resting);
        let expected = resting.calls / resting.seconds * working.seconds;
        if resting.calls < ENOUGH || expected < ENOUGH {
            return None;
        }
        let by_number = 1.0 - working.calls / expected;
        let by_time = if working.calls < 1.0 {
            0.0
        } else {
            1.0 - (resting.took / resting.calls) / (working.took / working.calls)
        };
        Some(by_number.max(by_time).clamp(0.0, 1.0))
    }

    fn next_share(&self, syncs: usize) -> f64 {
        let cost = COST / syncs.max(1) as f64;
        let wanted = match self.slowdown() {
            // At most 1: not below `cost`.
            Some(slowdown) => cost / slowdown.max(cost),
            None => cost,
        };
        wanted
            .clamp(self.share / (GROWTH * GROWTH), self.share * GROWTH)
            .clamp(cost, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(1);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A foreground of one caller, and a sync beside it, for a minute of played time.
    struct Play {
        /// A call while the sync rests, in seconds, and while it works.
        call: (f64, f64),
        /// Time between calls.
        think: f64,
        /// A piece of the sync's work.
        piece: Duration,
        syncs: usize,
    }

    /// The foreground's speed in parts of that without a sync, the share of time that the sync worked, and its longest rest.
    struct Played {
        speed: f64,
        worked: f64,
        longest: Duration,
    }

    impl Play {
        fn play(&self) -> Played {
            let end = Duration::from_secs(60);
            let mut now = Duration::ZERO;
            let (mut calls, mut took) = (0.0, 0.0);
            let load = |calls: f64, took: f64| Load {
                ended: calls as u64,
                took: Duration::from_secs_f64(took),
                in_progress: true,
            };
            let mut pace = Pace::new(now, load(0.0, 0.0), LONGEST);
            let (mut worked, mut longest, mut rested) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
            while now < end {
                let (time, call) = match pace.next(now, load(calls, took), self.syncs) {
                    None => {
                        worked += self.piece;
                        rested = Duration::ZERO;
                        (self.piece, self.call.1)
                    }
                    Some(rest) => {
                        rested += rest;
                        longest = longest.max(rested);
                        (rest, self.call.0)
                    }
                };
                let some = time.as_secs_f64() / (call + self.think);
                calls += some;
                took += some * call;
                now += time;
            }
            Played {
                speed: calls * (self.call.0 + self.think) / now.as_secs_f64(),
                worked: worked.as_secs_f64() / now.as_secs_f64(),
                longest,
            }
        }
    }

    #[test]
    fn an_idle_volume_is_synced_without_a_rest() {
        let mut pace = Pace::new(ms(0), Load::default(), LONGEST);
        for at in 0..1000 {
            assert_eq!(pace.next(ms(at), Load::default(), 1), None);
        }
    }

    #[test]
    fn a_volume_that_is_left_alone_is_synced_at_once() {
        let busy = |ended| Load {
            ended,
            ..Load::default()
        };
        let mut pace = Pace::new(ms(0), busy(0), LONGEST);
        assert_eq!(pace.next(ms(9), busy(1), 1), None);
        assert!(pace.next(ms(20), busy(2), 1).is_some());
        assert!(pace.next(ms(69), busy(2), 1).is_some());
        assert_eq!(pace.next(ms(70), busy(2), 1), None);
        // In use again: a slice, then a rest.
        assert_eq!(pace.next(ms(79), busy(3), 1), None);
        assert!(pace.next(ms(81), busy(4), 1).is_some());
    }

    #[test]
    fn a_foreground_that_a_sync_slows_keeps_nine_tenths_of_its_speed() {
        for slower in [1.1, 1.5, 2.0, 4.0, 100.0] {
            let play = Play {
                call: (0.001, 0.001 * slower),
                think: 0.000_1,
                piece: ms(12),
                syncs: 1,
            };
            let Played { speed, worked, longest } = play.play();
            assert!(speed > 0.9, "{slower}: speed {speed}");
            assert!(worked > 0.03, "{slower}: worked {worked}");
            assert!(longest < LONGEST);
        }
    }

    #[test]
    fn a_sync_that_hinders_little_works_most_of_the_time() {
        let play = Play {
            call: (0.001, 0.001_02),
            think: 0.000_1,
            piece: ms(12),
            syncs: 1,
        };
        let Played { speed, worked, .. } = play.play();
        assert!(speed > 0.95, "speed {speed}");
        assert!(worked > 0.6, "worked {worked}");
    }

    #[test]
    fn a_call_that_takes_longer_counts_also_where_calls_are_few() {
        let play = Play {
            call: (0.001, 0.003),
            think: 0.02,
            piece: ms(12),
            syncs: 1,
        };
        assert!(play.play().worked < 0.2);
    }

    #[test]
    fn syncs_of_one_volume_share_what_they_may_cost() {
        let play = |syncs| Play {
            call: (0.001, 0.01),
            think: 0.000_1,
            piece: ms(12),
            syncs,
        };
        let (alone, one_of_two) = (play(1).play(), play(2).play());
        assert!(one_of_two.worked < 0.6 * alone.worked);
    }

    #[test]
    fn no_rest_is_longer_than_allowed_however_slow_the_work_is() {
        let play = Play {
            call: (0.001, 0.1),
            think: 0.000_1,
            piece: ms(700),
            syncs: 3,
        };
        let longest = play.play().longest;
        assert!((ms(900)..=ms(1010)).contains(&longest), "{longest:?}");
    }
}
