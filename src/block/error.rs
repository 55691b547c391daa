//! What can go wrong with a copy.

use std::io;
use std::path::{Path, PathBuf};

/// Why a call on a copy failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The message is of an older epoch than the copy has seen: whoever sent it has been replaced.
    #[error("stale epoch: this copy is at epoch {have}")]
    StaleEpoch {
        /// The copy's epoch.
        have: u64,
    },
    /// The message is of an epoch that the copy has not been told of: fence first.
    #[error("epoch {asked} has not been announced, this copy is at epoch {have}")]
    EpochUnknown {
        /// The copy's epoch.
        have: u64,
        /// The message's.
        asked: u64,
    },
    /// The range is not inside the copy.
    #[error("blocks {block}+{count} are outside the copy of {blocks} blocks")]
    OutOfRange {
        /// First block.
        block: u64,
        /// Number of blocks.
        count: u64,
        /// Blocks of the copy.
        blocks: u64,
    },
    /// The block's bytes do not match its sum; the bytes are not returned.
    #[error("block {block} does not match its sum")]
    Corrupt {
        /// The first such block of the call's range.
        block: u64,
    },
    /// The disk is full; the copy has failed.
    #[error("disk full: {0}")]
    NoSpace(String),
    /// The disk failed, now or before; the copy has failed.
    #[error("copy failed: {0}")]
    Failed(String),
    /// There is a copy in the directory already.
    #[error("{0} already holds a copy")]
    Exists(PathBuf),
    /// There is no copy in the directory.
    #[error("{0} holds no copy")]
    Missing(PathBuf),
    /// Another process has the copy open.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// A file of the copy is damaged in a way that the sums cannot tell block by block.
    #[error(
        "{file} is damaged: {problem}. This copy cannot be used; remove its directory and let the volume sync a new one"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The directory could not be read or written while opening or creating.
    #[error("{path}: {problem}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
}

impl StoreError {
    pub(super) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            problem: error.to_string(),
        }
    }

    pub(super) fn damaged(file: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }
}
