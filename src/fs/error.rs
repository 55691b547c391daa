//! Errors, and the one place that maps them to an errno.

use crate::block::DeviceError;

/// Why a file system call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// An answer that POSIX names: the errno.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Posix(i32),
    /// The volume beneath failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The metadata database failed.
    #[error("metadata: {0}")]
    Metadata(String),
    /// What is on the volume is not what this program writes.
    #[error("{0}")]
    Format(String),
    /// The file system has been closed.
    #[error("the file system is closed")]
    Closed,
}

impl FsError {
    /// The errno that an application sees.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Posix(errno) => *errno,
            Self::Device(DeviceError::ReadOnly(_)) => libc::EROFS,
            Self::Device(DeviceError::NoSpace(_)) => libc::ENOSPC,
            Self::Device(_) | Self::Metadata(_) | Self::Format(_) => libc::EIO,
            Self::Closed => libc::ENOTCONN,
        }
    }
}

impl FsError {
    /// What the device said, if that is the cause.
    fn of_redb(error: redb::Error) -> Self {
        if let redb::Error::Io(io) = &error
            && let Some(device) = io.get_ref().and_then(|inner| inner.downcast_ref::<DeviceError>())
        {
            return Self::Device(device.clone());
        }
        Self::Metadata(error.to_string())
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for FsError {
            fn from(error: $error) -> Self {
                Self::of_redb(error.into())
            }
        })*
    };
}

from_redb!(
    redb::Error,
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// A POSIX answer.
pub(crate) const fn posix<T>(errno: i32) -> Result<T, FsError> {
    Err(FsError::Posix(errno))
}
