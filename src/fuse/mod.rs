//! Adapts FUSE requests to `fs` calls; mount lifecycle. Knows nothing of redb or the network.
