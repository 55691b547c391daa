//! The master's device for the mount on its own node: ends with the mount's claim.
//!
//! While a call is in progress no other mount's session can begin, as for calls from other nodes: when a later mount has its device, an
//! earlier one writes no more, wherever it is.

use super::{
    master::Master,
    service::{Caller, RemoteError},
};
use crate::block::{BlockDevice, DeviceError, Write};
use std::sync::Arc;

/// See the module's text.
#[derive(Clone)]
pub struct Attached {
    master: Arc<Master>,
    caller: Caller,
}

impl Master {
    /// Makes a mount's claim the one that may use the device; calls of older ones are refused from then on, and have ended. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::Fenced`]: a later claim is known.
    pub fn attach(self: &Arc<Self>, attachment: u64) -> Result<Attached, DeviceError> {
        let caller = Caller {
            attachment,
            // The way over the network that the same mount may have had until now is not needed any more.
            session: u64::MAX,
        };
        self.open_remote(caller)?;
        Ok(Attached {
            master: Arc::clone(self),
            caller,
        })
    }
}

impl Attached {
    /// Whose device it is.
    #[must_use]
    pub fn master(&self) -> &Arc<Master> {
        &self.master
    }

    fn call<T>(&self, call: impl FnOnce(&Master) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        let _gate = self.master.enter_remote(self.caller).map_err(|error| match error {
            RemoteError::Superseded | RemoteError::NotMaster => {
                DeviceError::Fenced("another mount has taken the volume over".to_owned())
            }
            other => DeviceError::from(other),
        })?;
        call(&self.master)
    }
}

impl BlockDevice for Attached {
    fn blocks(&self) -> u64 {
        self.master.blocks()
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.call(|master| master.read(block, buffer))
    }

    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError> {
        self.call(|master| master.write(writes, flush))
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.call(|master| master.discard(block, count))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.call(|master| master.flush())
    }
}
