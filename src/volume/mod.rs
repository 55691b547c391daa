//! Pure types and rules of volumes: ids, names, labels, failure modes, health, placement.
//!
//! Touches nothing: no I/O, no clock, no randomness of its own. Everything here can be tabled and property-tested,
//! and the control plane, the API and the simulation use the same functions.

mod event;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod id;
mod labels;
mod last_resort;
mod names;
mod placement;
mod record;
mod size;

pub use event::{Event, EventKind, changes, merge as merge_events, same as same_event, sentence};
pub use failure::{FailureMode, FailureRule, NotWritable};
pub use health::{Assessment, CopyHealth, CopyState, VolumeHealth, VolumeStatus, assess};
pub use id::{ClusterId, NodeId, VolumeId};
pub use labels::{
    HINT_MASTER, LabelError, Labels, MAX_REPLICAS, NodeLabels, Scope, VolumeLabels, apply as apply_labels,
    canonical as canonical_labels,
};
pub use last_resort::{Known, NoPromotion, Staleness, promote as promote_stale};
pub use names::{DEFAULT_NAMESPACE, MAX_NAME, NameError, VolumeRef, check_name};
pub use placement::{Candidate, Obstacle, PlacementError, Selector, SelectorError, TooFew, Wanted, place};
pub use record::{Configuration, Failures, MountClaim, Namespace, Node, Volume};
pub use size::{Bytes, MAX_SIZE, MIN_SIZE, Size, SizeError};
