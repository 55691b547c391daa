//! Master fan-out, replica service, sync, fencing; presents a block device. Knows nothing of files.
