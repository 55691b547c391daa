//! Failure modes: may a volume be written, given how many of its replicas are in sync?
//!
//! The rule is the StorageOS documentation's ("High Availability", failure modes): *soft* tolerates a number of lost
//! replicas (by default one less than there are), *hard* none, *alwayson* any as long as one copy lives. Only in-sync
//! copies count; a replica that is still being added to a live volume is not lost.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The value of the label `storageos.com/failure.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureMode {
    /// Writable while no more replicas are lost than the tolerance says.
    #[default]
    Soft,
    /// Writable while no replica is lost.
    Hard,
    /// Writable while any in-sync copy is alive.
    AlwaysOn,
}

impl fmt::Display for FailureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::AlwaysOn => "alwayson",
        })
    }
}

impl FromStr for FailureMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "soft" => Ok(Self::Soft),
            "hard" => Ok(Self::Hard),
            "alwayson" => Ok(Self::AlwaysOn),
            _ => Err(()),
        }
    }
}

/// What a volume's labels say about losing replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRule {
    /// The mode.
    pub mode: FailureMode,
    /// Replicas wanted, 0 to 5.
    pub replicas: u8,
    /// Lost replicas that `soft` tolerates; `None`: one less than wanted.
    pub tolerance: Option<u8>,
}

/// Why a volume may not be written, in the numbers that an operator needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{lost} of {expected} replicas lost, failure mode {mode} tolerates {tolerated}")]
pub struct NotWritable {
    /// Replicas lost.
    pub lost: u8,
    /// Replicas that were in place.
    pub expected: u8,
    /// The mode that refuses.
    pub mode: FailureMode,
    /// Losses it tolerates.
    pub tolerated: u8,
}

impl FailureRule {
    /// Losses that the mode tolerates; `alwayson` tolerates all.
    #[must_use]
    pub fn tolerated(&self) -> u8 {
        match self.mode {
            FailureMode::Soft => self.tolerance.unwrap_or(self.replicas.saturating_sub(1)),
            FailureMode::Hard => 0,
            FailureMode::AlwaysOn => u8::MAX,
        }
    }

    /// May the volume be written with `in_sync` replicas (the master's copy not counted), when `established` of them
    /// were in place (see [`super::Configuration::established`])?
    ///
    /// # Errors
    /// [`NotWritable`] says how many are lost and how many may be.
    pub fn may_write(&self, established: u8, in_sync: u8) -> Result<(), NotWritable> {
        let expected = established.min(self.replicas);
        let lost = expected.saturating_sub(in_sync);
        let tolerated = self.tolerated();
        if lost <= tolerated {
            return Ok(());
        }
        Err(NotWritable {
            lost,
            expected,
            mode: self.mode,
            tolerated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(mode: FailureMode, replicas: u8, tolerance: Option<u8>) -> FailureRule {
        FailureRule {
            mode,
            replicas,
            tolerance,
        }
    }

    /// The most replicas that may be lost, by hand from the documentation's sentences: one row for each tolerance (none
    /// given, 0 to 4), in it a column for each number of replicas, 0 to 5.
    const SOFT: [(Option<u8>, [u8; 6]); 6] = [
        (None, [0, 0, 1, 2, 3, 4]),
        (Some(0), [0, 0, 0, 0, 0, 0]),
        (Some(1), [0, 1, 1, 1, 1, 1]),
        (Some(2), [0, 1, 2, 2, 2, 2]),
        (Some(3), [0, 1, 2, 3, 3, 3]),
        (Some(4), [0, 1, 2, 3, 4, 4]),
    ];

    /// Every mode × replicas 0..=5 × tolerance × replicas that were in place × replicas lost of them.
    #[test]
    fn the_documented_rule_holds_for_every_combination() {
        let mut combinations = 0;
        for (tolerance, soft) in SOFT {
            for replicas in 0..=5_u8 {
                let table = [
                    (FailureMode::Soft, soft[usize::from(replicas)]),
                    (FailureMode::Hard, 0),
                    (FailureMode::AlwaysOn, replicas),
                ];
                for (mode, may_lose) in table {
                    for in_place in 0..=replicas {
                        for lost in 0..=in_place {
                            let rule = rule(mode, replicas, tolerance);
                            let answer = rule.may_write(in_place, in_place - lost);
                            assert_eq!(answer.is_ok(), lost <= may_lose, "{rule:?}: {lost} of {in_place} lost");
                            if let Err(refusal) = answer {
                                assert_eq!((refusal.lost, refusal.expected), (lost, in_place));
                            }
                            combinations += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(combinations, 6 * 3 * (1 + 3 + 6 + 10 + 15 + 21));
    }

    /// A label that was lowered on a volume with more replicas in place, or in sync, than it asks for now.
    #[test]
    fn replicas_beyond_those_wanted_change_nothing() {
        for mode in [FailureMode::Soft, FailureMode::Hard, FailureMode::AlwaysOn] {
            for replicas in 0..=5_u8 {
                let rule = rule(mode, replicas, None);
                assert!(rule.may_write(5, replicas).is_ok(), "{rule:?}");
                assert!(rule.may_write(5, 5).is_ok(), "{rule:?}");
            }
        }
    }

    #[test]
    fn a_replica_being_added_is_not_lost() {
        let hard = rule(FailureMode::Hard, 2, None);
        assert!(hard.may_write(0, 0).is_ok());
        assert!(hard.may_write(1, 1).is_ok());
        let refusal = hard.may_write(1, 0).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "1 of 1 replicas lost, failure mode hard tolerates 0"
        );
    }
}
