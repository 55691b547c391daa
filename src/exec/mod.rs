//! Execution: threads, tasks, locks, time and chance, as the code that replicates and the control plane's clients use them.
//!
//! Nothing but names: locks are `parking_lot`'s, tasks and timers `tokio`'s, threads and clocks the standard library's. In the crate's
//! own tests the same names stand for types that ask whether the calling thread belongs to a simulated world, and
//! then wait by its scheduler and its clock. So the code that is simulated is the code that runs.
//!
//! Rules for code that is to be simulated: it waits by these names alone; its `select!` is `biased` (the other order is by
//! chance); it holds no other lock while it waits; it does nothing in the order of a `HashMap`.

#[cfg(not(test))]
mod real;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod world;

#[cfg(not(test))]
pub use real::Runtime;
#[cfg(not(test))]
pub(crate) use real::{random, sync, task, thread, time};
#[cfg(test)]
pub use simulated::Runtime;
#[cfg(test)]
pub(crate) use simulated::{random, sync, task, thread, time};
#[cfg(test)]
pub(crate) use world::{Host, World, belongings, block_on, draw, host};
