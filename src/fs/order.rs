//! What keeps a rename from getting ahead of data: a file that takes another's place does so with its content.
//!
//! Programs that write a new file and rename it over the old one expect to find either after a crash, also without an fsync between. A record of
//! the intent log goes to the device with the flush that makes data durable, and may be kept by a crash that the data is not kept by. So files with data
//! that no flush has covered are remembered; when one of them replaces a file, the next record is written only after a flush of
//! its own. Whoever syncs before the rename pays nothing.

use super::{Core, FsError, Ino};
use parking_lot::Mutex;
use std::collections::HashMap;

/// Files with data that is on the device and may not be durable, with the number of the write. At most what is written between two ticks of the timer.
#[derive(Default)]
pub(super) struct Unflushed(Mutex<Files>);

#[derive(Default)]
struct Files {
    writes: u64,
    last: HashMap<Ino, u64>,
}

impl Unflushed {
    /// Data of a file was written.
    pub(super) fn wrote(&self, ino: Ino) {
        let mut files = self.0.lock();
        files.writes += 1;
        let number = files.writes;
        files.last.insert(ino, number);
    }

    /// Whether a file has data that no flush has covered.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.0.lock().last.contains_key(&ino)
    }
}

impl Core {
    /// Does what flushes the device, and remembers what that covered.
    pub(super) fn flushing<T, E: Into<FsError>>(&self, flush: impl FnOnce() -> Result<T, E>) -> Result<T, FsError> {
        let covered = self.unflushed_files.0.lock().writes;
        let done = flush().map_err(Into::into)?;
        self.unflushed_files.0.lock().last.retain(|_, number| *number > covered);
        Ok(done)
    }
}
