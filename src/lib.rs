//! `storageos`: a directory kept in identical copies on several nodes.
//!
//! The modules are layers; an arrow may only point down this list:
//! [`cli`], [`api`] and [`docker`] (doors) → [`node`] (composition) → [`fuse`] → [`fs`] → [`replication`] → [`block`];
//! [`cluster`] (control plane) and [`rpc`] (transport) stand beside them, [`trust`] (certificates and tokens), [`volume`] (pure rules), [`metrics`] (counters and
//! their text), [`exec`] (threads, tasks and time) and `os` (what the operating system offers) below all.
//! `ARCHITECTURE.md` is the map.

pub mod api;
pub mod block;
pub mod cli;
pub mod cluster;
pub mod docker;
pub mod exec;
pub mod fdstore;
pub mod fs;
pub mod fuse;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod metrics;
pub mod node;
mod os;
pub mod replication;
pub mod rpc;
#[cfg(test)]
mod simulation;
pub mod trust;
pub mod volume;
