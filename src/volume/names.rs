//! Names of volumes, nodes and namespaces, and how a volume is referred to: `NAMESPACE/NAME`, or `NAME` in the
//! namespace `default`.
//!
//! A name is 1 to 64 letters, digits, `-`, `_` and `.`, the first a letter or digit: it can stand in a path, in a mount
//! source and in a URL without quoting. Docker names a volume that its user gave no name with 64 digits.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// The namespace that always exists and that a bare volume name is in.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a name must not be empty")]
    Empty,
    /// Too long.
    #[error("`{0}` is longer than {MAX_NAME} characters")]
    Long(String),
    /// Starts with a character that only may stand further on.
    #[error("`{0}` must start with a letter or a digit")]
    Start(String),
    /// A slash, which parts a namespace from a name.
    #[error("`{0}` contains `/`, which separates a namespace from a volume's name and cannot be part of either")]
    Slash(String),
    /// A character that no name has.
    #[error("`{0}` contains {1:?}; a name is made of letters, digits, `-`, `_` and `.`")]
    Character(String, char),
}

/// Checks a name.
///
/// # Errors
/// [`NameError`] says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.contains('/') {
        return Err(NameError::Slash(name.to_owned()));
    }
    if let Some(c) = name
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
    {
        return Err(NameError::Character(name.to_owned(), c));
    }
    match name.as_bytes() {
        [] => Err(NameError::Empty),
        [first, ..] if !first.is_ascii_alphanumeric() => Err(NameError::Start(name.to_owned())),
        bytes if bytes.len() > MAX_NAME => Err(NameError::Long(name.to_owned())),
        _ => Ok(()),
    }
}

/// A volume as users name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeRef {
    /// The namespace's name.
    pub namespace: String,
    /// The volume's name in it.
    pub name: String,
}

impl VolumeRef {
    /// A reference from its two checked parts.
    ///
    /// # Errors
    /// One of them is no name.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        check_name(namespace)?;
        check_name(name)?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Parses `NAMESPACE/NAME`, or `NAME` in the given namespace.
    ///
    /// # Errors
    /// A part is no name.
    pub fn parse(text: &str, namespace: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::new(namespace, text),
        }
    }
}

impl FromStr for VolumeRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text, DEFAULT_NAMESPACE)
    }
}

impl fmt::Display for VolumeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_paths_and_urls_can_carry() {
        for good in ["a", "0", "my-vol_1.x", &"x".repeat(64)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        assert_eq!(check_name(""), Err(NameError::Empty));
        for start in ["-a", ".", "..", "_x"] {
            assert_eq!(check_name(start), Err(NameError::Start(start.into())));
        }
        assert_eq!(check_name(&"x".repeat(65)), Err(NameError::Long("x".repeat(65))));
        for (bad, c) in [("a b", ' '), ("ä", 'ä'), ("a\0", '\0'), ("a:b", ':')] {
            assert_eq!(check_name(bad), Err(NameError::Character(bad.into(), c)));
        }
        assert!(check_name("a/b").unwrap_err().to_string().contains("separates"));
    }

    #[test]
    fn a_bare_name_is_in_the_default_namespace() {
        let of = |text: &str| text.parse::<VolumeRef>().map(|r| r.to_string());
        assert_eq!(of("vol").unwrap(), "default/vol");
        assert_eq!(of("ns/vol").unwrap(), "ns/vol");
        for bad in ["", "/", "ns/", "/vol", "a/b/c"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert_eq!(VolumeRef::parse("v", "ns").unwrap().to_string(), "ns/v");
    }
}
