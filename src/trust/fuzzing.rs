//! Hostile bytes for tokens and for a node's file of certificates; see [`crate::fuzzing`].

use super::{Authority, Credentials, Key, Token, TokenId, TrustError};
use crate::rpc::Identity;
use crate::volume::{ClusterId, NodeId};
use jiff::Timestamp;
use std::time::Duration;

/// A token's text, or the name of one.
pub(crate) fn token(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    if let Ok(id) = text.parse::<TokenId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    text.parse::<Token>().is_ok_and(|token| {
        assert_eq!(token.text(), text.trim());
        true
    })
}

pub(crate) fn token_seeds() -> Vec<Vec<u8>> {
    let token = Token {
        id: TokenId([1; 8]),
        authority: [2; 32],
        secret: [3; 16],
    };
    vec![token.text().into_bytes(), b"0102030405060708".to_vec()]
}

/// The text of `node.pem`.
pub(crate) fn credentials(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let Ok(credentials) = Credentials::parse(text) else {
        return false;
    };
    let written = credentials.text();
    assert_eq!(Credentials::parse(&written).map(|again| again.text()), Ok(written));
    let _ = credentials.due();
    // As at a daemon's start.
    let identity = Identity::new(credentials.node, Some(credentials.cluster));
    let _ = identity.set_credentials(&credentials);
    true
}

pub(crate) fn credentials_seeds() -> Vec<Vec<u8>> {
    let (node, cluster) = (NodeId::from_bytes([1; 16]), ClusterId::from_bytes([2; 16]));
    let now = Timestamp::UNIX_EPOCH;
    let made = || {
        let (authority, key) = (Authority::new(cluster, now)?, Key::generate()?);
        let issued = authority.issue(node, key.public(), Duration::from_secs(9000), 0, now)?;
        let credentials = Credentials::new(node, cluster, &key, issued, authority.certificate().to_vec());
        Ok::<_, TrustError>(vec![credentials.text().into_bytes()])
    };
    made().expect("a fresh key is good")
}
