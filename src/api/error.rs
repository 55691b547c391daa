//! What went wrong, for whoever asked: one code that stands for an HTTP status and for an exit code of the command line.
//!
//! This is the only place that maps errors to either. Layers below keep their own typed errors; the daemon turns them
//! into an [`ApiError`] with the sentence an operator needs, and a hint that says what to do.

use mount_helper::MountError;
use serde::{Deserialize, Serialize};

/// The kinds of failure that a caller can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Code {
    /// The answer is no (unhealthy, copies differ) or the operation failed. Exit code 1.
    Failed,
    /// The request could not be understood. HTTP 400, exit code 2.
    Usage,
    /// The object does not exist. HTTP 404, exit code 3.
    NotFound,
    /// The state of things does not allow it: the name exists, the volume is in use, another update came first, too few
    /// nodes. HTTP 409, exit code 4.
    Conflict,
    /// A value is not allowed. HTTP 422, exit code 5.
    Invalid,
    /// The daemon or the control plane does not answer, or this node is in no cluster. HTTP 503, exit code 6.
    Unavailable,
    /// A mistake of the program or a failing disk. HTTP 500, exit code 7.
    Internal,
    /// A token gives no leave to join: it is used up, expired, revoked, or of another cluster. HTTP 403, exit code 8.
    Denied,
}

impl Code {
    /// The HTTP status of an answer with this code.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Usage => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Invalid => 422,
            Self::Failed | Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// The exit code of a command that ends with this code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Invalid => 5,
            Self::Unavailable => 6,
            Self::Internal => 7,
            Self::Denied => 8,
        }
    }
}

/// An error as the API sends it and the command line prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it is.
    pub code: Code,
    /// What happened, one sentence without a full stop.
    pub message: String,
    /// What to do about it, if there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The command that lists objects of a kind.
#[must_use]
pub(crate) fn list_of(kind: &str) -> String {
    match kind {
        "token" | "client" => format!("storageos cluster {kind} ls"),
        kind => format!("storageos {kind} ls"),
    }
}

impl ApiError {
    /// An error without a hint.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// [`Code::NotFound`] for an object of this kind and name.
    #[must_use]
    pub fn not_found(kind: &str, name: impl std::fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("{kind} {name} does not exist")).hint(format!("see {}", list_of(kind)))
    }

    /// [`Code::Conflict`].
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Code::Conflict, message)
    }

    /// [`Code::Invalid`].
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    /// [`Code::Unavailable`].
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// [`Code::Internal`].
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

/// What the mount helper's library says, for the doors that mount.
impl From<MountError> for ApiError {
    fn from(error: MountError) -> Self {
        let code = match &error {
            MountError::NoDaemon { .. } | MountError::Daemon { .. } => Code::Unavailable,
            MountError::Refused { code, .. } => match code.as_str() {
                "not_found" => Code::NotFound,
                "in_use" => Code::Conflict,
                "invalid" => Code::Invalid,
                "unavailable" => Code::Unavailable,
                _ => Code::Failed,
            },
            MountError::Mountpoint { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_and_statuses_are_the_documented_ones() {
        let table = [
            (Code::Failed, 500, 1),
            (Code::Usage, 400, 2),
            (Code::NotFound, 404, 3),
            (Code::Conflict, 409, 4),
            (Code::Invalid, 422, 5),
            (Code::Unavailable, 503, 6),
            (Code::Internal, 500, 7),
            (Code::Denied, 403, 8),
        ];
        for (code, status, exit) in table {
            assert_eq!((code.http_status(), code.exit_code()), (status, exit), "{code:?}");
        }
    }

    #[test]
    fn an_error_is_the_same_after_its_trip_through_json() {
        let error = ApiError::conflict("volume default/v exists").hint("choose another name");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            text,
            r#"{"code":"conflict","message":"volume default/v exists","hint":"choose another name"}"#
        );
        assert_eq!(serde_json::from_str::<ApiError>(&text).unwrap(), error);
    }
}
