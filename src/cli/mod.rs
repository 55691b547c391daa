//! The command line: clap commands in StorageOS's words, a client of the API. Knows nothing of blocks or FUSE.
