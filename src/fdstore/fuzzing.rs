//! Hostile bytes for the words between a daemon and its descriptor store; see [`crate::fuzzing`].

use super::wire::{self, Answer, Request};
use serde::{Serialize, de::DeserializeOwned};

fn one<T: Serialize + DeserializeOwned>(input: &[u8]) -> bool {
    let Ok(words) = wire::decode::<T>(input) else {
        return false;
    };
    let packet = wire::encode(&words).expect("what was read can be written");
    let again: T = wire::decode(&packet).expect("what was written can be read");
    assert_eq!(wire::encode(&again).ok(), Some(packet));
    true
}

/// A packet of either side.
pub(crate) fn packet(input: &[u8]) -> bool {
    one::<Request>(input) | one::<Answer>(input)
}

pub(crate) fn packet_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"v":1,"op":"keep","name":"a"}"#,
        r#"{"v":1,"op":"take"}"#,
        r#"{"v":1,"answer":"held","name":"a"}"#,
        r#"{"v":1,"answer":"end"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
