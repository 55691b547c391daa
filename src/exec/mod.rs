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
pub(crate) use real::{random, sync, task, thread, time};
#[cfg(test)]
pub(crate) use simulated::{random, sync, task, thread, time};
#[cfg(test)]
pub(crate) use world::{Host, World, belongings, block_on, draw, host};

use std::future::Future;
use tokio::runtime::Handle;

/// Where tasks run that a thread starts or waits for.
#[derive(Clone)]
pub struct Runtime(#[cfg(not(test))] Handle, #[cfg(test)] Option<Handle>);

impl Runtime {
    /// A runtime of `tokio`.
    #[must_use]
    pub fn of(handle: Handle) -> Self {
        #[cfg(not(test))]
        return Self(handle);
        #[cfg(test)]
        Self(Some(handle))
    }

    /// The simulated world of whoever calls.
    #[cfg(test)]
    pub(crate) fn simulated() -> Self {
        Self(None)
    }

    /// Runs a future to its end on this thread, which may block.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        #[cfg(test)]
        let Some(handle) = &self.0 else {
            return world::block_on(future);
        };
        #[cfg(not(test))]
        let handle = &self.0;
        handle.block_on(future)
    }

    /// Starts a task.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        #[cfg(test)]
        let Some(handle) = &self.0 else {
            world::spawn("task", move || world::block_on(future));
            return;
        };
        #[cfg(not(test))]
        let handle = &self.0;
        handle.spawn(future);
    }
}
