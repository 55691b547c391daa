//! Sizes of volumes: how people write them, what is allowed, and how they are shown.

use std::{fmt, str::FromStr};

/// Smallest volume, in bytes.
pub const MIN_SIZE: u64 = 64 << 20;
/// Largest volume, in bytes.
pub const MAX_SIZE: u64 = 1 << 50;

/// A volume's size in bytes, within [`MIN_SIZE`] and [`MAX_SIZE`] and a multiple of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

/// Why a text or number is no size of a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("`{0}` is not a size: expected a number of GiB, or a number with a unit as `512MiB`, `20GiB`, `2TB`")]
    NotASize(String),
    /// Zero.
    #[error("a volume's size must be greater than 0")]
    Zero,
    /// Below the minimum.
    #[error("a volume of {} is too small, the smallest is {}", Bytes(*.0), Bytes(MIN_SIZE))]
    TooSmall(u64),
    /// Above the maximum.
    #[error("a volume's size is at most {}", Bytes(MAX_SIZE))]
    TooLarge,
}

impl Size {
    /// Checks a number of bytes; rounded up to whole blocks.
    ///
    /// # Errors
    /// It is out of range.
    pub fn from_bytes(bytes: u64) -> Result<Self, SizeError> {
        match bytes {
            0 => Err(SizeError::Zero),
            b if b < MIN_SIZE => Err(SizeError::TooSmall(b)),
            b if b > MAX_SIZE => Err(SizeError::TooLarge),
            b => Ok(Self(b.next_multiple_of(4096))),
        }
    }

    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let bad = || SizeError::NotASize(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        if number.is_empty() {
            return Err(bad());
        }
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "g" | "gib" => 1 << 30,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(bad()),
        };
        // Only digits: it can fail by being too large alone.
        let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
        Self::from_bytes(number.checked_mul(factor).ok_or(SizeError::TooLarge)?)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.0).fmt(f)
    }
}

/// Shows a number of bytes in the largest unit that leaves a whole part: `5 GiB`, `1.5 TiB`, `512 MiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            b if b >= 1 << 50 => (50, "PiB"),
            b if b >= 1 << 40 => (40, "TiB"),
            b if b >= 1 << 30 => (30, "GiB"),
            b if b >= 1 << 20 => (20, "MiB"),
            b if b >= 1 << 10 => (10, "KiB"),
            b => return f.pad(&format!("{b} B")),
        };
        let whole = self.0 >> shift;
        let rest = self.0 - (whole << shift);
        // One decimal, cut: a full volume must not look larger than it is. Below 2^54, no overflow.
        let tenth = (rest * 10) >> shift;
        f.pad(&if tenth == 0 {
            format!("{whole} {unit}")
        } else {
            format!("{whole}.{tenth} {unit}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<u64, SizeError> {
        text.parse::<Size>().map(Size::bytes)
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(of("5"), Ok(5 << 30));
        assert_eq!(of("512MiB"), Ok(512 << 20));
        assert_eq!(of("20 GiB"), Ok(20 << 30));
        assert_eq!(of("1TiB"), Ok(1 << 40));
        assert_eq!(of("65536kib"), Ok(64 << 20));
        assert_eq!(of("2TB"), Ok(2_000_000_000_000));
        assert_eq!(of("100mb"), Ok(100_003_840)); // whole blocks
        assert_eq!(of("0"), Err(SizeError::Zero));
        assert_eq!(of("0MiB"), Err(SizeError::Zero));
        assert_eq!(of("63MiB"), Err(SizeError::TooSmall(63 << 20)));
        assert_eq!(of("1024TiB"), Ok(1 << 50));
        for large in ["1025TiB", "99999999999999999999", "18446744073709551615TB"] {
            assert_eq!(of(large), Err(SizeError::TooLarge), "{large}");
        }
        for bad in ["", "big", "-1", "1.5", "5 XB", "GiB", "0x10"] {
            assert_eq!(of(bad), Err(SizeError::NotASize(bad.into())));
        }
        assert_eq!(
            of("63MiB").unwrap_err().to_string(),
            "a volume of 63 MiB is too small, the smallest is 64 MiB"
        );
    }

    #[test]
    fn sizes_are_shown_in_the_largest_fitting_unit() {
        for (bytes, text) in [
            (5 << 30, "5 GiB"),
            (0, "0 B"),
            (1023, "1023 B"),
            (1536 << 30, "1.5 TiB"),
            (u64::MAX, "16383.9 PiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
