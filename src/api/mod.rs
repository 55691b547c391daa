//! The doors: one HTTP/JSON API on a Unix socket. Knows nothing of blocks or FUSE.
