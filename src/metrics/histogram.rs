//! A histogram of durations with fixed buckets, cheap enough for every read and write.
//!
//! Invariants: an observation is in exactly one bucket; what is read later never shows less in any bucket. The number of observations is the
//! sum of the buckets, so that it always agrees with them; the sum of the durations may be of a moment earlier or later.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in nanoseconds, each included: 50 µs to 30 s. Beyond the last there is one more bucket.
pub const BOUNDS: [u64; 16] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    30_000_000_000,
];

/// See the module's text.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            nanoseconds: AtomicU64::new(0),
        }
    }
}

/// What a [`Histogram`] holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Observations up to each of [`BOUNDS`], those of the buckets before included; the last is all of them.
    pub cumulative: [u64; BOUNDS.len() + 1],
    /// Nanoseconds of all observations.
    pub nanoseconds: u64,
}

impl Histogram {
    /// Adds an observation.
    pub fn observe(&self, took: Duration) {
        // Enough for five centuries.
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanoseconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// What was observed so far.
    #[must_use]
    pub fn observed(&self) -> Observed {
        let mut total = 0;
        let cumulative = std::array::from_fn(|bucket| {
            total += self.buckets[bucket].load(Ordering::Relaxed);
            total
        });
        Observed {
            cumulative,
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_what_is_longer_than_all_to_the_last() {
        let histogram = Histogram::default();
        for nanoseconds in [0, 50_000, 50_001, 1_000_000, 30_000_000_001] {
            histogram.observe(Duration::from_nanos(nanoseconds));
        }
        let observed = histogram.observed();
        assert_eq!(observed.cumulative, [2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5]);
        assert_eq!(observed.nanoseconds, 30_001_100_002);
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn nothing_is_lost_when_many_threads_observe() {
        let histogram = Arc::new(Histogram::default());
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let histogram = histogram.clone();
                std::thread::spawn(move || {
                    for n in 0..1000 {
                        histogram.observe(Duration::from_micros(n * (thread + 1)));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let observed = histogram.observed();
        assert_eq!(observed.cumulative[BOUNDS.len()], 4000);
        assert_eq!(observed.nanoseconds, 10 * 499_500_000);
    }
}
