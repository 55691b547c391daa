//! What the operating system offers, with the care that several modules need: small files that survive crashes, Unix sockets that appear when they are
//! ready, waiting with a deadline, facts of a process. Knows nothing of storageos.

pub(crate) mod file;
pub(crate) mod process;
pub(crate) mod socket;
pub(crate) mod wait;
