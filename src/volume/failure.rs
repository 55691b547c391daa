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

    /// Every mode × replicas 0..=5 × tolerance × lost replicas, against the documentation's sentence for each mode.
    #[test]
    fn the_documented_rule_holds_for_every_combination() {
        for replicas in 0..=5_u8 {
            for lost in 0..=replicas {
                let in_sync = replicas - lost;
                let soft = rule(FailureMode::Soft, replicas, None);
                let default_tolerance = if replicas > 0 { replicas - 1 } else { 0 };
                assert_eq!(soft.may_write(replicas, in_sync).is_ok(), lost <= default_tolerance);
                let hard = rule(FailureMode::Hard, replicas, None);
                assert_eq!(hard.may_write(replicas, in_sync).is_ok(), lost == 0);
                let alwayson = rule(FailureMode::AlwaysOn, replicas, None);
                assert!(alwayson.may_write(replicas, in_sync).is_ok());
                for tolerance in 0..=4 {
                    let soft = rule(FailureMode::Soft, replicas, Some(tolerance));
                    assert_eq!(soft.may_write(replicas, in_sync).is_ok(), lost <= tolerance);
                }
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
