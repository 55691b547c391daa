//! `storageos volume mount`: mounts in the caller's namespace and hands the descriptor to the daemon, as `mount(8)` does
//! through `mount.fuse.storageos`.

use crate::api::{ApiError, Client, Code};
use mount_helper::MountArguments;
use mount_helper::options::MountOptions;
use std::path::Path;
use std::time::Duration;

/// Mounts; blocks until the mount can be used.
pub(super) fn mount(
    client: &Client,
    volume: &str,
    directory: &Path,
    options: &str,
    timeout: &str,
) -> Result<(), ApiError> {
    let mut parsed = MountOptions::default();
    parsed
        .add(options, false)
        .map_err(|error| ApiError::new(Code::Usage, error))?;
    if parsed.socket.is_none() {
        parsed.socket = Some(client.socket()?.to_owned());
    }
    parsed.timeout = parse_time(timeout)?;
    let arguments = MountArguments {
        volume: volume.to_owned(),
        mountpoint: directory.to_owned(),
        options: parsed,
        fake: false,
    };
    Ok(mount_helper::mount(&arguments)?)
}

/// A whole number of one of these units, as `20s`.
pub(super) fn in_units(text: &str, units: &[(&str, Duration)]) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, unit) = units.iter().find(|(name, _)| *name == unit)?;
    unit.checked_mul(number.parse().ok()?)
}

/// `20s`, `2m`, `500ms`; a bare number is seconds.
pub(super) fn parse_time(text: &str) -> Result<Duration, ApiError> {
    let second = Duration::from_secs(1);
    let units = [
        ("", second),
        ("s", second),
        ("ms", Duration::from_millis(1)),
        ("m", 60 * second),
    ];
    // An hour is longer than anybody waits, and far from where adding to a clock could overflow.
    in_units(text, &units)
        .filter(|t| !t.is_zero() && *t <= Duration::from_secs(3600))
        .ok_or_else(|| {
            ApiError::new(
                Code::Usage,
                format!("{text:?} is not a time: expected as 20s or 2m, an hour at most"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_time("20s").unwrap(), Duration::from_secs(20));
        assert_eq!(parse_time("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(parse_time("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_time("7").unwrap(), Duration::from_secs(7));
        for wrong in [
            "",
            "s",
            "0",
            "2h",
            "-1",
            "61m",
            "99999999999999999999s",
            "18446744073709551615m",
        ] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
