//! A POSIX file system on a block device. Knows nothing of replication or FUSE.
