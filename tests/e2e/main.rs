//! End-to-end tests: real daemons (processes of the built binary) on loopback addresses, real FUSE mounts, real faults
//! (SIGKILL by pid, full disks, flipped bits). They need root and `/dev/fuse`, and fail loudly without them.
//!
//! `harness` makes clusters, `etcd_process` an etcd; the other files each keep one promise's tests.

#![allow(clippy::unwrap_used)] // a failed step fails the test

mod applications;
mod bad_input;
mod basics;
mod check;
mod checker;
mod damage;
mod docker;
mod etcd;
mod etcd_process;
mod events;
mod failure_modes;
mod faults;
mod harness;
mod integrity;
mod kills;
mod locks;
mod long;
mod losses;
mod metrics;
mod mixed;
mod mounting;
mod netns;
mod nodes;
mod posix;
mod remote;
mod restarts;
mod space;
mod times;
