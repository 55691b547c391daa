//! Sizes as people write them: a number of GiB, or a number with a unit.

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SizeError {
    #[error("expected a number of GiB, or a number with a unit as 512MiB, 20GiB, 2TiB")]
    NotASize,
    #[error("must be greater than 0")]
    Zero,
    #[error("is larger than any volume may be")]
    TooLarge,
}

/// Bytes. `GB` and the like count in thousands, `GiB`, `G` and a bare number in 1024s, as volumes always did.
pub(super) fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if number.is_empty() => return Err(SizeError::NotASize),
        Err(_) => return Err(SizeError::TooLarge),
    };
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "g" | "gib" => 1 << 30,
        "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        _ => return Err(SizeError::NotASize),
    };
    match number.checked_mul(factor) {
        Some(0) => Err(SizeError::Zero),
        Some(bytes) => Ok(bytes),
        None => Err(SizeError::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse("5"), Ok(5 << 30));
        assert_eq!(parse("512MiB"), Ok(512 << 20));
        assert_eq!(parse("20 GiB"), Ok(20 << 30));
        assert_eq!(parse("2TB"), Ok(2_000_000_000_000));
        assert_eq!(parse("4096b"), Ok(4096));
        assert_eq!(parse("0"), Err(SizeError::Zero));
        assert_eq!(parse("big"), Err(SizeError::NotASize));
        assert_eq!(parse("-1"), Err(SizeError::NotASize));
        assert_eq!(parse("1.5"), Err(SizeError::NotASize));
        assert_eq!(parse("99999999999999999999"), Err(SizeError::TooLarge));
        assert_eq!(parse("99999999999PiB"), Err(SizeError::TooLarge));
    }
}
