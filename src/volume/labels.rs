//! Labels: the product's own (`storageos.com/…`), checked and typed, and the users', kept as they are.
//!
//! | label | on | value |
//! | --- | --- | --- |
//! | `storageos.com/replicas` | volume | 0 to 5 |
//! | `storageos.com/failure.mode` | volume | `soft`, `hard`, `alwayson` |
//! | `storageos.com/failure.tolerance` | volume | 0 to 4, at most the replicas |
//! | `storageos.com/hint.master` | volume | a node's name or id |
//! | `storageos.com/throttle` | volume | `true`, `false` |
//! | `storageos.com/io.timeout` | volume | seconds, or with a unit `90s`, `2m`; 1 s to 1 h |
//! | `storageos.com/deployment` | node | `mixed`, `computeonly` |
//! | `iaas/failure-domain`, `topology.kubernetes.io/zone` | node | any |
//!
//! `storageos.feature.X` is another spelling of `storageos.com/X`, `failure-mode` and `failure-tolerance` of those with a
//! dot. Records hold the canonical spelling only; every other key that starts with `storageos.` is refused.

use super::{FailureMode, FailureRule};
use std::{collections::BTreeMap, time::Duration};

/// Key and value.
pub type Labels = BTreeMap<String, String>;

/// Most replicas of a volume.
pub const MAX_REPLICAS: u8 = 5;
/// Longest key of a user's label, in bytes.
pub const MAX_KEY: usize = 253;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 1024;
/// Most labels on one object.
pub const MAX_LABELS: usize = 256;

const REPLICAS: &str = "storageos.com/replicas";
const FAILURE_MODE: &str = "storageos.com/failure.mode";
const FAILURE_TOLERANCE: &str = "storageos.com/failure.tolerance";
/// The label with the node where the master should be.
pub const HINT_MASTER: &str = "storageos.com/hint.master";
const THROTTLE: &str = "storageos.com/throttle";
const IO_TIMEOUT: &str = "storageos.com/io.timeout";
const DEPLOYMENT: &str = "storageos.com/deployment";
const DOMAINS: [&str; 2] = ["iaas/failure-domain", "topology.kubernetes.io/zone"];
const NOT_YET: [&str; 3] = [
    "storageos.com/nocompress",
    "storageos.com/nocache",
    "storageos.com/encryption",
];

/// What carries the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A volume.
    Volume,
    /// A node.
    Node,
    /// A namespace: it has no labels of ours.
    Namespace,
}

impl Scope {
    fn allowed(self) -> &'static [&'static str] {
        match self {
            Self::Volume => &[
                REPLICAS,
                FAILURE_MODE,
                FAILURE_TOLERANCE,
                HINT_MASTER,
                THROTTLE,
                IO_TIMEOUT,
            ],
            Self::Node => &[DEPLOYMENT],
            Self::Namespace => &[],
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Node => "node",
            Self::Namespace => "namespace",
        }
    }
}

/// Why labels were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A `storageos.` key that we do not have there.
    #[error(
        "unknown label `{key}`; a {scope} may have {allowed}, and labels of your own that do not start with `storageos.`"
    )]
    Unknown {
        /// The key as given.
        key: String,
        /// What it was to be put on.
        scope: &'static str,
        /// The keys that it may have.
        allowed: String,
    },
    /// A feature of the product's earlier versions that this one does not have.
    #[error("label `{0}` is not supported by this version; leave it out")]
    Unsupported(String),
    /// The value is not one of those allowed.
    #[error("label `{key}` cannot be `{value}`: expected {expected}")]
    Value {
        /// The canonical key.
        key: String,
        /// The value given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Two spellings of one key with different values.
    #[error("label `{key}` is given as `{first}` and as `{second}`")]
    Twice {
        /// The canonical key.
        key: String,
        /// One value.
        first: String,
        /// The other.
        second: String,
    },
    /// More losses tolerated than there are replicas.
    #[error("`{FAILURE_TOLERANCE}` is {tolerance}, but there are {replicas} replicas: expected 0 to {replicas}")]
    Tolerance {
        /// The tolerance.
        tolerance: u8,
        /// The replicas.
        replicas: u8,
    },
    /// A key that no label can have.
    #[error("`{0}` is not a label's key: expected 1 to {MAX_KEY} printable characters without blanks, `=` and `,`")]
    Key(String),
    /// Too long a value.
    #[error("the value of label `{0}` is longer than {MAX_VALUE} bytes")]
    Long(String),
    /// Too many.
    #[error("more than {MAX_LABELS} labels")]
    Many,
}

fn canonical_key(key: &str, scope: Scope) -> Result<String, LabelError> {
    if !key.starts_with("storageos.") {
        let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '=' | ',' | '!');
        if key.is_empty() || key.len() > MAX_KEY || key.contains(bad) {
            return Err(LabelError::Key(key.chars().take(MAX_KEY).collect()));
        }
        return Ok(key.to_owned());
    }
    let feature = key
        .strip_prefix("storageos.feature.")
        .or_else(|| key.strip_prefix("storageos.com/"));
    let feature = match feature {
        Some("failure-mode") => Some("failure.mode"),
        Some("failure-tolerance") => Some("failure.tolerance"),
        other => other,
    };
    let canonical = feature.map(|feature| format!("storageos.com/{feature}"));
    match canonical {
        Some(canonical) if scope.allowed().contains(&canonical.as_str()) => Ok(canonical),
        Some(canonical) if scope == Scope::Volume && NOT_YET.contains(&canonical.as_str()) => {
            Err(LabelError::Unsupported(canonical))
        }
        _ => Err(LabelError::Unknown {
            key: key.to_owned(),
            scope: scope.word(),
            allowed: if scope.allowed().is_empty() {
                "no `storageos.` labels".to_owned()
            } else {
                scope
                    .allowed()
                    .iter()
                    .map(|k| format!("`{k}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            },
        }),
    }
}

/// The labels in their canonical spelling, each checked.
///
/// # Errors
/// [`LabelError`] names the first label that is wrong and what it may be.
pub fn canonical<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>, scope: Scope) -> Result<Labels, LabelError> {
    let mut result = Labels::new();
    for (key, value) in labels {
        let key = canonical_key(key, scope)?;
        if value.len() > MAX_VALUE {
            return Err(LabelError::Long(key));
        }
        match result.get(&key) {
            Some(first) if first != value => {
                return Err(LabelError::Twice {
                    first: first.clone(),
                    second: value.to_owned(),
                    key,
                });
            }
            _ => result.insert(key, value.to_owned()),
        };
    }
    check(&result, scope)?;
    Ok(result)
}

/// `labels` without those in `remove` and with those in `add` (which replace); keys in any spelling. Removing a label that is
/// not there is no error.
///
/// # Errors
/// The labels would not be valid afterwards.
pub fn apply(labels: &Labels, add: &Labels, remove: &[String], scope: Scope) -> Result<Labels, LabelError> {
    let mut result = labels.clone();
    for key in remove {
        result.remove(&canonical_key(key, scope)?);
    }
    let mut added = Labels::new();
    for (key, value) in add {
        let key = canonical_key(key, scope)?;
        if let Some(first) = added.insert(key.clone(), value.clone())
            && first != *value
        {
            let second = value.clone();
            return Err(LabelError::Twice { key, first, second });
        }
    }
    result.extend(added);
    canonical(result.iter().map(|(k, v)| (k.as_str(), v.as_str())), scope)
}

fn check(labels: &Labels, scope: Scope) -> Result<(), LabelError> {
    if labels.len() > MAX_LABELS {
        return Err(LabelError::Many);
    }
    match scope {
        Scope::Volume => VolumeLabels::parse(labels).map(|_| ()),
        Scope::Node => NodeLabels::parse(labels).map(|_| ()),
        Scope::Namespace => Ok(()),
    }
}

/// Reads one label.
fn value<T>(
    labels: &Labels,
    key: &str,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, LabelError> {
    let Some(text) = labels.get(key) else { return Ok(None) };
    match parse(text) {
        Some(value) => Ok(Some(value)),
        None => Err(LabelError::Value {
            key: key.to_owned(),
            value: text.clone(),
            expected,
        }),
    }
}

/// A small number in plain digits.
fn number(text: &str, most: u8) -> Option<u8> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n <= most)
}

fn duration(text: &str) -> Option<Duration> {
    let (digits, factor) = match text.strip_suffix('s') {
        Some(rest) => (rest, 1),
        None => text.strip_suffix('m').map_or((text, 1), |rest| (rest, 60)),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = digits.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=3600).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// What a volume's labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeLabels {
    /// Replicas wanted besides the master's copy, 0 to 5; default 0.
    pub replicas: u8,
    /// Default soft.
    pub failure_mode: FailureMode,
    /// Lost replicas that `soft` tolerates; `None`: one less than wanted.
    pub tolerance: Option<u8>,
    /// Name or id of the node where the master should be, if possible.
    pub hint_master: Option<String>,
    /// Its I/O comes after others'.
    pub throttle: bool,
    /// How long I/O waits for the volume to become usable; default 90 s.
    pub io_timeout: Duration,
}

impl Default for VolumeLabels {
    fn default() -> Self {
        Self {
            replicas: 0,
            failure_mode: FailureMode::default(),
            tolerance: None,
            hint_master: None,
            throttle: false,
            io_timeout: Duration::from_secs(90),
        }
    }
}

impl VolumeLabels {
    /// Reads labels in their canonical spelling.
    ///
    /// # Errors
    /// A value is not allowed.
    pub fn parse(labels: &Labels) -> Result<Self, LabelError> {
        let default = Self::default();
        let replicas = value(labels, REPLICAS, "0 to 5", |t| number(t, MAX_REPLICAS))?;
        let mode = value(labels, FAILURE_MODE, "`soft`, `hard` or `alwayson`", |t| t.parse().ok())?;
        let tolerance = value(labels, FAILURE_TOLERANCE, "0 to 4", |t| number(t, 4))?;
        let hint = value(labels, HINT_MASTER, "a node's name or id", |t| {
            (!t.trim().is_empty()).then(|| t.trim().to_owned())
        })?;
        let throttle = value(labels, THROTTLE, "`true` or `false`", |t| t.parse().ok())?;
        let io = value(labels, IO_TIMEOUT, "1 s to 1 h, as `90s`, `2m` or `90`", duration)?;
        let replicas = replicas.unwrap_or(default.replicas);
        if let Some(tolerance) = tolerance
            && tolerance > replicas
        {
            return Err(LabelError::Tolerance { tolerance, replicas });
        }
        Ok(Self {
            replicas,
            failure_mode: mode.unwrap_or(default.failure_mode),
            tolerance,
            hint_master: hint,
            throttle: throttle.unwrap_or(default.throttle),
            io_timeout: io.unwrap_or(default.io_timeout),
        })
    }

    /// The labels of a record, which were checked when it was written; the defaults should they not be readable (a later
    /// version's values).
    #[must_use]
    pub fn of(labels: &Labels) -> Self {
        Self::parse(labels).unwrap_or_default()
    }

    /// When the volume may be written.
    #[must_use]
    pub fn failure_rule(&self) -> FailureRule {
        FailureRule {
            mode: self.failure_mode,
            replicas: self.replicas,
            tolerance: self.tolerance,
        }
    }
}

/// What a node's labels say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLabels {
    /// The node holds no copies.
    pub compute_only: bool,
    /// A volume's copies are spread over these.
    pub failure_domain: Option<String>,
}

impl NodeLabels {
    /// Reads labels in their canonical spelling.
    ///
    /// # Errors
    /// A value is not allowed.
    pub fn parse(labels: &Labels) -> Result<Self, LabelError> {
        let compute_only = value(labels, DEPLOYMENT, "`mixed` or `computeonly`", |t| match t {
            "mixed" => Some(false),
            "computeonly" => Some(true),
            _ => None,
        })?;
        Ok(Self {
            compute_only: compute_only.unwrap_or(false),
            failure_domain: DOMAINS.iter().find_map(|key| labels.get(*key).cloned()),
        })
    }

    /// As [`VolumeLabels::of`].
    #[must_use]
    pub fn of(labels: &Labels) -> Self {
        Self::parse(labels).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;
