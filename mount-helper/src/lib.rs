//! The client's side of a mount: mounts in the caller's namespace and hands the `/dev/fuse` descriptor to the daemon; unmounts and waits
//! until the daemon has saved everything. Used by `mount.fuse.storageos`, `umount.fuse.storageos` and `storageos volume mount`.
//!
//! The order of a mount, so that no failure leaves a directory that hangs:
//! 1. ask the daemon to claim and open the volume ([`protocol::Request::Mount`]); it says [`protocol::Answer::Ready`] or why not;
//! 2. open `/dev/fuse`, mount it, pass the descriptor ([`protocol::Request::Fd`]); the daemon greets the kernel and says
//!    [`protocol::Answer::Mounted`];
//! 3. on any failure after the mount: detach it again. A daemon whose helper goes away before step 2 is complete gives the claim back.
//!
//! Everything here has a deadline; nothing here needs the daemon's libraries.

pub mod client;
pub mod mountinfo;
pub mod options;
pub mod protocol;
pub mod record;
pub mod utab;

pub use client::{MountArguments, MountError, UnmountFlags, mount, mount_fuse, set_read_ahead, unmount};
