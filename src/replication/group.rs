//! Work that one caller does for all that came before it began: a flush, a round of promises.

use crate::block::DeviceError;
use crate::exec::sync::{Condvar, Mutex};

#[derive(Default)]
struct Rounds {
    started: u64,
    done: u64,
    running: bool,
    last: Option<Result<(), DeviceError>>,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Group {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

impl Group {
    /// The result of a round of `work` that began after this call. Blocks.
    pub(super) fn join(&self, work: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
        let mut rounds = self.rounds.lock();
        // The next round to start is the first that covers this call.
        let wanted = rounds.started + 1;
        loop {
            if rounds.done >= wanted {
                return rounds.last.clone().unwrap_or(Ok(()));
            }
            if !rounds.running {
                break;
            }
            self.ended.wait(&mut rounds);
        }
        rounds.running = true;
        rounds.started += 1;
        let number = rounds.started;
        drop(rounds);
        let result = work();
        let mut rounds = self.rounds.lock();
        rounds.running = false;
        rounds.done = number;
        rounds.last = Some(result.clone());
        drop(rounds);
        self.ended.notify_all();
        result
    }
}
