//! Whole clusters in a simulated world: the code that replicates, the control plane's clients, the controller and the keepers are the
//! real ones; the network, the disks, the control store and the clock are simulated, and everything follows from a seed.
//!
//! A node is a [`Host`](crate::exec::Host) of the [`World`]. What is not simulated: the file system and FUSE (the workload writes blocks),
//! sockets and frames, the block store (it has crash tests of its own), Raft and etcd (the control store is linearizable,
//! but answers late, or not at all, or after it has done what was asked).
//!
//! `tests` says what must hold, and breaks it on purpose to see it noticed.

mod cluster;
mod control;
mod disk;
mod network;
mod tests;
mod workload;

pub(crate) use network::{Line, network};
