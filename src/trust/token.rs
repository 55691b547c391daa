//! A token: leave to become a node of a cluster, and the knowledge which cluster that is.
//!
//! It names itself, pins the authority's certificate by its hash, so that the joining node knows that it speaks with the right cluster before it
//! says anything, and carries a secret, of which the cluster keeps a hash only. The text has a check, so that a slip of a pen is told from a token that
//! is not valid any more.

use super::{TrustError, random, read_id};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::str::FromStr;

/// What the text of a token begins with; the digit is the format's version.
/// How the text of a token begins.
pub const PREFIX: &str = "storageos1_";
const LENGTH: usize = 60;
const CHECKED: usize = 56;

/// Names a token; no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(pub [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        read_id(text).map(Self).ok_or(TokenError)
    }
}

/// Not a token, or not a whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a whole token: it begins with {PREFIX} and has {} characters", PREFIX.len() + LENGTH / 3 * 4)]
pub struct TokenError;

/// See the module's text.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its name.
    pub id: TokenId,
    /// The hash of the authority's certificate; see [`super::pin`].
    pub authority: [u8; 32],
    /// What nobody else knows.
    pub secret: [u8; 16],
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// [`TrustError::Random`]
    pub fn new(authority: [u8; 32]) -> Result<Self, TrustError> {
        Ok(Self {
            id: TokenId(random()?),
            authority,
            secret: random()?,
        })
    }

    /// What the cluster keeps of a secret. It has 128 random bits: a slow hash would not make it harder to guess.
    #[must_use]
    pub fn hash(id: TokenId, secret: &[u8; 16]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&id.0).update(secret);
        hasher.finalize()
    }

    /// The text that is given to the new node; a secret.
    #[must_use]
    pub fn text(&self) -> String {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&self.id.0);
        bytes[8..40].copy_from_slice(&self.authority);
        bytes[40..CHECKED].copy_from_slice(&self.secret);
        let check = blake3::hash(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&check.as_bytes()[..LENGTH - CHECKED]);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(TokenError)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError)?;
        let bytes: [u8; LENGTH] = bytes.try_into().map_err(|_| TokenError)?;
        if blake3::hash(&bytes[..CHECKED]).as_bytes()[..LENGTH - CHECKED] != bytes[CHECKED..] {
            return Err(TokenError);
        }
        let mut token = Self {
            id: TokenId([0; 8]),
            authority: [0; 32],
            secret: [0; 16],
        };
        token.id.0.copy_from_slice(&bytes[..8]);
        token.authority.copy_from_slice(&bytes[8..40]);
        token.secret.copy_from_slice(&bytes[40..CHECKED]);
        Ok(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_text_is_the_documented_one() {
        let token = Token {
            id: TokenId([0x11; 8]),
            authority: [0x22; 32],
            secret: [0x33; 16],
        };
        let text = token.text();
        assert_eq!(
            text,
            "storageos1_EREREREREREiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIjMzMzMzMzMzMzMzMzMzMzMDJ7Qd"
        );
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "Token(1111111111111111)");
        assert_eq!(
            TokenError.to_string(),
            "this is not a whole token: it begins with storageos1_ and has 91 characters"
        );
        assert_eq!(text.len(), 91);
    }

    #[test]
    fn a_slip_of_the_pen_is_noticed() {
        let text = Token::new([7; 32]).unwrap().text();
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(wrong == text || wrong.parse::<Token>().is_err(), "{wrong}");
        }
        for wrong in [
            "",
            "storageos1_",
            "storageos2_x",
            &text[..text.len() - 1],
            &format!("{text}A"),
        ] {
            assert_eq!(wrong.parse::<Token>(), Err(TokenError));
        }
        assert_eq!("00000000000000ff".parse(), Ok(TokenId([0, 0, 0, 0, 0, 0, 0, 255])));
        assert!("+0000000000000ff".parse::<TokenId>().is_err());
    }
}
