//! One copy of a volume on one node, and the block device interface that the layers above speak.
//! Knows nothing of the network or of other copies.

mod device;

pub use device::{BLOCK_SIZE, BlockDevice, DeviceError, EXTENT_BLOCKS, EXTENT_SIZE, Write};
