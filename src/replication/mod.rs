//! Replication: one volume, identical copies on several nodes, and the block device that hides it.
//!
//! # Who may be trusted
//! The control store's [`Configuration`](crate::volume::Configuration) is the only truth about who holds copies. It names the master, the
//! copies in sync (each holds every acknowledged write), those syncing (they hold some) and those lost. Every change is a
//! compare-and-swap that raises the epoch by one. A copy persists the highest epoch that it was fenced at and takes only messages of
//! that epoch, from the session that fenced it. That a copy's epoch is lower than the record's says nothing against it (its
//! master may have died between the change and the fence): membership in `in_sync` does. A copy that is not in `in_sync` is never read, counted
//! or promoted, whatever its epoch.
//!
//! # A write
//! [`Master`] computes the hashes, locks the ranges, sends the blocks to every replica in sync, writes them to its own
//! copy meanwhile, and returns when all have answered. Writes that overlap wait for each other, so all copies apply them in one order;
//! others run side by side. The lock is taken before the view of the configuration, which is what makes joining copies see every write.
//!
//! # A flush
//! Goes to the same copies; a write may carry it. Callers that come while one runs share the next one.
//!
//! # A replica that fails
//! An error of its disk, or no answer within [`Options::replica_deadline`], or a broken connection that one quick attempt does not
//! mend: the replica is given up at once for good (it may lack a write that others have), a swap moves it from `in_sync` to `lost`,
//! the copies that stay are fenced at the new epoch, and only then do the waiting writes return. If too few copies are left for the failure mode, they
//! do not return but wait, without holding their ranges, and are done again when a copy has joined; after `io.timeout` they fail as
//! read-only. If the control plane does not answer, they wait for it as long. Reads go on while every copy in sync answers, or is left out.
//! A call that is repeated after a reconnection cannot meet its first attempt: the fence on the new connection ends the old session,
//! after whatever of it was being executed.
//! While nothing is written, a probe twice a second does the same with more patience: a restart of a daemon costs no sync then.
//! A replica that comes back after its machine restarted, without having been closed, may have lost acknowledged writes that were not
//! flushed: it counts as failed. A restart of its process alone loses nothing.
//!
//! # A master that fails
//! Its own disk: it makes another in-sync copy the master by a swap, and ends. Its node: the controller does that. The old master
//! need not hear of it. It learns of the higher epoch from the first copy that refuses its write, and cannot acknowledge
//! one without that copy. Then it is *fenced*: all its calls fail, for good. It reads nothing after the new one could have written: see `promise`.
//!
//! # Activation
//! Whoever becomes the master (at first, after a promotion, after its own restart) raises the epoch, fences all in-sync copies, and makes the
//! *tail* equal: the extents where copies may differ because a write was under way, or because a machine restarted. Each copy
//! knows its own: the hot extents of its activity log, and the writes that no later message has told it to be settled. The union is compared block by
//! block, the master's copy being the pattern, unless its machine restarted and another copy's did not: then that one. A write in
//! the tail was never acknowledged, so either outcome is right as long as it is the same everywhere. If every copy's machine restarted, writes
//! that were acknowledged and not flushed may be gone: then the mounts of before are ended, since a flush by one of them would cover what is lost. A copy that does not answer within
//! [`Options::activation_deadline`] leaves the set first, as above.
//!
//! # A sync
//! A syncing copy is fenced (and made, if absent) and gets a mark, counted in extents, that falls from above everything. For each
//! extent that either copy holds, under the lock of its range: compare hashes, then the sums of blocks, send what differs, lower the mark. Writes above the
//! mark go to the copy too, though not their flushes; those below skip it and leave their extent on a list; those across wait for the lock. At the end,
//! while no write is in flight, the copy becomes one that gets everything; then it is flushed, all hashes are compared once more, and a swap moves it to
//! `in_sync`. A failed sync leaves nothing behind that a new one would not correct: it starts again, and costs only what still differs. While the volume
//! is in use it rests between extents, so long that the foreground keeps its speed, and never longer than a bound (`pace`).
//!
//! # Reads and repair
//! Reads are local and verified, and need the promise of the other copies in sync (`promise`), which the probe renews.
//! A block that fails its hash is fetched from another in-sync copy, verified, written back
//! here and to every other copy where it is bad too, under its range lock. Only when all are bad does the read fail.
//!
//! # Scrubbing
//! [`Master::scrub_extents`] reads extents on every in-sync copy and repairs what does not match its hash; the node decides when and
//! how fast.
//!
//! # A mount elsewhere
//! [`RemoteDevice`] forwards calls to the master's node and repeats them, all being idempotent, until they succeed. Each
//! connection opens a session; the master ends the calls of the one before first. Mount claims are ordered by
//! [`VolumeState::attachment`]: a call of an older one is refused, also by the next master.
//!
//! # What the node has to do
//! Serve [`ReplicaHost::serve`] on data and sync connections; call [`Master::activate`] when the record names it the
//! master, again if that fails; pass changes of the record to [`Master::configuration_changed`]; remove its copy when it stands
//! in none of the record's sets; move lost copies to `syncing`. Device calls block: they come from threads that may.

mod activate;
mod attached;
mod change;
mod disk;
mod entry;
mod env;
mod fanout;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod group;
mod host;
mod link;
mod master;
mod meters;
mod monitor;
mod notes;
mod pace;
mod promise;
mod range;
mod remote;
mod scrub;
mod service;
mod stats;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod verify;
mod wire;

pub use activate::ActivateError;
pub use attached::Attached;
pub use disk::DiskCopies;
pub use env::{ConfigError, ConfigStore, Observer, Parts, Peers, VolumeState};
pub use host::ReplicaHost;
pub use master::{Environment, Master, Options};
pub use meters::{Meters, Traffic};
pub use remote::RemoteDevice;
pub use scrub::ScrubbedCopy;
pub use service::{CopyState, Data, DataClient, DataRequest, DataResponse};
pub use stats::{Stats, StatsSnapshot};
pub use store::{Copies, Copy, CopyError, CopyWrite, Found};
pub use sync::SyncProgress;
pub use verify::{CopyReport, MasterStatus, Verification};
#[cfg(test)]
pub(crate) use wire::{Client, Open};
