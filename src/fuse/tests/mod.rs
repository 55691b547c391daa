//! Real FUSE mounts of a file system on a device in memory. They need root and `/dev/fuse`, and fail without.

mod errors;
mod handoff;
mod posix;
mod power;
mod requests;
mod resumed;
mod suspended;

use super::{DEFAULT_LOOPS, MountHandle, ServeOptions, Unmount, serve};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use crate::fs::{FileSystem, Options, device_blocks};
use bytes::Bytes;
use mount_helper::options::MountOptions;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a loaded machine.
const LONG: Duration = Duration::from_secs(30);

/// A device in memory whose writes can be suspended, as a volume's are while it may not be written.
struct MemoryDevice {
    blocks: u64,
    data: Mutex<BTreeMap<u64, Bytes>>,
    suspended: Mutex<bool>,
    resumed: Condvar,
    /// Writes and flushes fail.
    failing: AtomicBool,
}

impl MemoryDevice {
    /// Formatted, for `mib` of file data.
    fn formatted(mib: u64) -> Arc<Self> {
        let device = Arc::new(Self {
            blocks: device_blocks(mib << 20),
            data: Mutex::default(),
            suspended: Mutex::new(false),
            resumed: Condvar::new(),
            failing: AtomicBool::new(false),
        });
        FileSystem::format(&(device.clone() as Arc<dyn BlockDevice>), mib << 20).unwrap();
        device
    }

    fn suspend(&self, suspended: bool) {
        *self.suspended.lock() = suspended;
        self.resumed.notify_all();
    }

    fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    fn wait_until_writable(&self) -> Result<(), DeviceError> {
        let mut suspended = self.suspended.lock();
        while *suspended {
            self.resumed.wait(&mut suspended);
        }
        match self.failing.load(Ordering::SeqCst) {
            true => Err(DeviceError::Io("a test's device fails".into())),
            false => Ok(()),
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let data = self.data.lock();
        for (at, part) in (block..).zip(buffer.chunks_mut(BLOCK_SIZE)) {
            match data.get(&at) {
                Some(content) => part.copy_from_slice(content),
                None => part.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, writes: &[Write], _: bool) -> Result<(), DeviceError> {
        self.wait_until_writable()?;
        let mut data = self.data.lock();
        for write in writes {
            for (at, from) in (write.block..).zip((0..write.data.len()).step_by(BLOCK_SIZE)) {
                data.insert(at, write.data.slice(from..from + BLOCK_SIZE));
            }
        }
        Ok(())
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.wait_until_writable()?;
        let mut data = self.data.lock();
        let gone: Vec<u64> = data.range(block..block + count).map(|(at, _)| *at).collect();
        for at in gone {
            data.remove(&at);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.wait_until_writable()
    }
}

/// A live mount in a temporary directory; ended when dropped.
struct Mounted {
    device: Arc<MemoryDevice>,
    handle: Arc<MountHandle>,
    directory: tempfile::TempDir,
}

#[track_caller]
fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests mount file systems: run them as root"
    );
    assert!(
        Path::new("/dev/fuse").exists(),
        "these tests need /dev/fuse (modprobe fuse)"
    );
}

#[track_caller]
fn mounted(mib: u64) -> Mounted {
    mounted_from(MemoryDevice::formatted(mib))
}

#[track_caller]
fn mounted_from(device: Arc<MemoryDevice>) -> Mounted {
    let (handle, directory) = serve_device(device.clone());
    Mounted {
        device,
        handle,
        directory,
    }
}

/// Mounts a formatted device in a temporary directory.
#[track_caller]
fn serve_device(device: Arc<dyn BlockDevice>) -> (Arc<MountHandle>, tempfile::TempDir) {
    need_root();
    let directory = tempfile::tempdir().unwrap();
    let fs = FileSystem::open(device, Options::default()).unwrap();
    let fd = mount_helper::mount_fuse("test/vol", directory.path(), &MountOptions::default()).unwrap();
    let options = ServeOptions {
        source: "test/vol".into(),
        mountpoint: directory.path().to_owned(),
        loops: DEFAULT_LOOPS,
    };
    let handle = serve(fs, fd, options, |_| ()).unwrap();
    (handle, directory)
}

impl Mounted {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn count(&self, kind: &str) -> u64 {
        let all = self.handle.requests();
        all.iter().find(|(name, _)| *name == kind).expect("a kind of request").1
    }

    /// Unmounts cleanly and mounts again what the device holds.
    fn remounted(self) -> Mounted {
        let device = self.device.clone();
        self.handle.unmount(Unmount::Clean).unwrap();
        self.handle.wait(LONG, LONG).expect("the mount ends").unwrap();
        drop(self);
        mounted_from(device)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.device.suspend(false);
        self.device.fail(false);
        if self.handle.ended().is_none() {
            let _ = self.handle.unmount(Unmount::Abort);
            let _ = self.handle.wait(LONG, LONG);
        }
    }
}

/// Runs a Python program with the directory as its working directory; its output.
#[track_caller]
fn python(directory: &Path, program: &str) -> String {
    let said = Command::new("python3")
        .args(["-c", program])
        .current_dir(directory)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{program}\n{error}");
    String::from_utf8(said.stdout).unwrap().trim().to_owned()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
