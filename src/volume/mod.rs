//! Pure types and rules of volumes: ids, names, labels, failure modes, health, placement.
//!
//! Touches nothing: no I/O, no clock, no randomness of its own. Everything here can be tabled and property-tested,
//! and the control plane, the API and the simulation use the same functions.

mod failure;
mod id;
mod record;

pub use failure::{FailureMode, FailureRule, NotWritable};
pub use id::{ClusterId, NodeId, VolumeId};
pub use record::{Configuration, MountClaim, Node, Volume};
