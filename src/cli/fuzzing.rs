//! Hostile text for what is read from the command line; see [`crate::fuzzing`].

use super::{mount, token, volume};
use crate::cluster::EtcdConfig;

/// A time, a life, etcd's address, a volume's name, a label.
pub(crate) fn text(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let config = text.parse::<EtcdConfig>();
    if let Ok(config) = &config {
        assert_eq!(config.to_string().parse().as_ref(), Ok(config));
    }
    let times = mount::parse_time(text).is_ok() | token::parse_life(text).is_ok();
    let _ = volume::Name::parse(text, None).map(|name| name.path());
    let _ = volume::labels(&[text.to_owned()]);
    config.is_ok() | times
}

pub(crate) fn text_seeds() -> Vec<Vec<u8>> {
    [
        "20s",
        "2m",
        "500ms",
        "365d",
        "etcd://10.0.0.1:2379,[::1]:3/team/one",
        "ns/v",
        "a=b",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
