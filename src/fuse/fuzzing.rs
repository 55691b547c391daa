//! Hostile bytes for the kernel's greeting as an earlier daemon kept it; see [`crate::fuzzing`].

use super::greeting::Greeting;

/// A greeting.
pub(crate) fn greeting(input: &[u8]) -> bool {
    Greeting::again(input.to_vec()).is_ok_and(|greeting| {
        assert_eq!(greeting.as_bytes(), input);
        let _ = greeting.can_resend();
        true
    })
}

pub(crate) fn greeting_seeds() -> Vec<Vec<u8>> {
    let mut bytes = vec![0; 104];
    bytes[4] = 26;
    bytes[40] = 7;
    vec![bytes.clone(), bytes[..44].to_vec()]
}
