//! The control plane: control store, leases, scheduler, failover. Knows nothing of I/O.
//!
//! A [`ControlStore`] holds the records: who is in the cluster, which volumes there are, who holds their copies at which epoch. Every change is
//! a transaction that compares what it was decided on, so a decision made on old knowledge changes nothing. The [`Catalog`] gives
//! the records types; every daemon keeps a [`View`] of them, fed by a watch.

mod catalog;
#[cfg(test)]
mod catalog_tests;
mod clients;
#[cfg(test)]
mod conformance;
mod controller;
mod deaths;
mod drain;
mod etcd;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod grants;
mod kv;
mod liveness;
mod memory;
mod plan;
mod raft;
mod records;
mod store;
mod trust;
mod view;

pub use catalog::{Catalog, CatalogError, NewVolume, VolumeChange, candidates};
pub use clients::{ClientRecord, IssuedClient};
pub use controller::control;
pub use drain::{Remaining, Waiting, remaining};
pub use etcd::{EtcdAddressError, EtcdConfig, EtcdStore};
pub use export::{Export, ExportError};
pub use kv::{Answer, Command, Kv, RECOVERY_STEP};
pub use liveness::{Beats, keep_node_alive};
pub use memory::MemoryStore;
pub use plan::{Action, Facts, Step, Timing, plan};
pub use raft::{ControlStatus, RaftSettings, RaftStore, RecoverError};
pub use store::{Change, Compare, ControlError, ControlStore, Event, LeaseId, Outcome, Revision, Row, Transaction};
pub(crate) use trust::Issuer;
pub use trust::{TokenRecord, TokenUse};
pub use view::View;
