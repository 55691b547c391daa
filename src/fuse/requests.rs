//! Counts the requests of a mount by kind: a request costs a process switch each way, so how many a system call takes decides how fast
//! it is. Tests and metrics read the counts.

use crate::metrics::Histogram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

macro_rules! kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Kind { $($kind,)* }

        const NAMES: &[&str] = &[$($name,)*];
    };
}

kinds! {
    Lookup = "lookup",
    Forget = "forget",
    Getattr = "getattr",
    Setattr = "setattr",
    Readlink = "readlink",
    Mknod = "mknod",
    Mkdir = "mkdir",
    Unlink = "unlink",
    Rmdir = "rmdir",
    Symlink = "symlink",
    Rename = "rename",
    Link = "link",
    Open = "open",
    Read = "read",
    Write = "write",
    Fsync = "fsync",
    Readdir = "readdir",
    Statfs = "statfs",
    Setxattr = "setxattr",
    Getxattr = "getxattr",
    Listxattr = "listxattr",
    Removexattr = "removexattr",
    Fallocate = "fallocate",
    Copy = "copy",
    Declined = "declined",
}

/// The counts of one mount.
#[derive(Debug)]
pub(super) struct Requests([AtomicU64; NAMES.len()]);

impl Default for Requests {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Requests {
    pub(super) fn count(&self, kind: Kind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Name and count of every kind.
    pub(super) fn all(&self) -> Vec<(&'static str, u64)> {
        NAMES
            .iter()
            .zip(&self.0)
            .map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
            .collect()
    }
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// Requests of one kind that carry data, or make it durable.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: AtomicU64,
    errors: AtomicU64,
    /// How long they took, those that failed included.
    pub seconds: Histogram,
}

impl Flow {
    /// Notes a request that began at `since`: its bytes, or that it failed.
    pub(super) fn done<E>(&self, since: Instant, result: Result<usize, &E>) {
        self.seconds.observe(since.elapsed());
        match result {
            Ok(bytes) => self.bytes.fetch_add(bytes as u64, Ordering::Relaxed),
            Err(_) => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// Bytes of the requests that succeeded, and the number of those that failed.
    #[must_use]
    pub fn totals(&self) -> [u64; 2] {
        [&self.bytes, &self.errors].map(|count| count.load(Ordering::Relaxed))
    }
}

/// What a mount reads, writes and makes durable, from when a request is taken until its answer is known.
#[derive(Debug, Default)]
pub struct Flows {
    /// READ.
    pub read: Flow,
    /// WRITE.
    pub write: Flow,
    /// FSYNC and FSYNCDIR.
    pub sync: Flow,
}
