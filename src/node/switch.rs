//! The device under a mount: the volume's master if it is on this node, else the way to it over the network. It can be
//! switched from one to the other under a file system that goes on working.
//!
//! A call that finds its master fenced waits for the next device, at most the volume's `io.timeout`, and is done again:
//! every call may be repeated, and a fenced master has ended all of its own. A mount that was superseded by a later one
//! is never switched: its calls fail. From a node elsewhere that looks the same as this mount's own way to a master that has come here: so a
//! call waits for a moment before it is believed.

use crate::block::{BlockDevice, DeviceError, Write};
use crate::exec::sync::{Condvar, Mutex};
use crate::exec::time::Instant;
use crate::replication::{Attached, RemoteDevice};
use std::sync::Arc;
use std::time::Duration;

/// How long it takes at most from a device on this node to the switch to it.
const SWITCHING: Duration = Duration::from_secs(2);

/// What calls go to.
#[derive(Clone)]
pub(crate) enum Backend {
    /// The master is on this node.
    Local(Attached),
    /// It is on another.
    Remote(Arc<RemoteDevice>),
}

impl Backend {
    fn device(&self) -> &dyn BlockDevice {
        match self {
            Self::Local(device) => device,
            Self::Remote(device) => &**device,
        }
    }
}

struct State {
    backend: Backend,
    /// Raised by each switch.
    generation: u64,
}

/// See the module's text.
pub(crate) struct SwitchDevice {
    state: Mutex<State>,
    switched: Condvar,
    io_timeout: Duration,
}

impl SwitchDevice {
    /// `io_timeout`: how long a call waits for the next device.
    pub(crate) fn new(backend: Backend, io_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { backend, generation: 0 }),
            switched: Condvar::new(),
            io_timeout,
        })
    }

    /// What calls go to now.
    pub(crate) fn backend(&self) -> Backend {
        self.state.lock().backend.clone()
    }

    /// Learns of the volume's growth, where that is not known here anyway. Blocks.
    pub(crate) fn look_at_size(&self) -> Result<(), DeviceError> {
        match self.backend() {
            Backend::Local(_) => Ok(()),
            Backend::Remote(device) => device.look_at_size(),
        }
    }

    /// Sends calls to another device from now on, those that wait too.
    pub(crate) fn switch(&self, backend: Backend) {
        let mut state = self.state.lock();
        state.backend = backend;
        state.generation += 1;
        self.switched.notify_all();
    }

    /// Does a call, again on the next device when the master was fenced.
    fn call<T>(&self, mut action: impl FnMut(&dyn BlockDevice) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        let mut deadline = None;
        loop {
            let (backend, generation) = {
                let state = self.state.lock();
                (state.backend.clone(), state.generation)
            };
            let why = match action(backend.device()) {
                Err(DeviceError::Fenced(why)) => why,
                result => return result,
            };
            // The clock is not read by calls that succeed.
            let (until, error) = match &backend {
                Backend::Local(device) if device.master().fenced().is_some() => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.io_timeout);
                    (deadline, DeviceError::Unavailable(why))
                }
                _ => (Instant::now() + SWITCHING, DeviceError::Fenced(why)),
            };
            let mut state = self.state.lock();
            while state.generation == generation {
                if self.switched.wait_until(&mut state, until).timed_out() {
                    return Err(error);
                }
            }
        }
    }
}

impl BlockDevice for SwitchDevice {
    fn blocks(&self) -> u64 {
        self.backend().device().blocks()
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.call(|device| device.read(block, buffer))
    }

    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError> {
        self.call(|device| device.write(writes, flush))
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.call(|device| device.discard(block, count))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.call(BlockDevice::flush)
    }
}
