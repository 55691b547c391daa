//! The file system on a device in memory that can lose power: behaviour, space, crash recovery, and a model.

mod behaviour;
mod crash;
mod damage;
mod device;
mod model;
mod power;
pub(crate) mod recorder;
mod survive;
mod trouble;

use super::{Caller, FileSystem, Options};
use crate::block::BlockDevice;
use device::CrashDevice;
use std::sync::Arc;
use std::time::Duration;

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// Commits only when asked to.
fn options() -> Options {
    Options {
        commit_interval: Duration::from_secs(3600),
        ..Options::default()
    }
}

fn open(device: &Arc<CrashDevice>) -> Arc<FileSystem> {
    let device: Arc<dyn BlockDevice> = device.clone();
    FileSystem::open(device, options()).unwrap()
}

/// Repeats what a passing trouble makes fail.
#[track_caller]
fn until_ok<T>(mut call: impl FnMut() -> Result<T, super::FsError>) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        match call() {
            Ok(value) => return value,
            Err(e) => assert!(std::time::Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A new file system of so many MiB.
fn fresh(mib: u64) -> (Arc<CrashDevice>, Arc<FileSystem>) {
    let device = Arc::new(CrashDevice::new(super::device_blocks(mib << 20)));
    let plain: Arc<dyn BlockDevice> = device.clone();
    assert!(!FileSystem::is_formatted(&plain).unwrap());
    FileSystem::format(&plain, mib << 20).unwrap();
    assert!(FileSystem::is_formatted(&plain).unwrap());
    let fs = open(&device);
    (device, fs)
}

/// A new file system whose metadata may grow to so many bytes.
fn with_metadata_limit(mib: u64, meta_limit: u64) -> (Arc<CrashDevice>, Arc<FileSystem>) {
    let (device, fs) = fresh(mib);
    fs.close().unwrap();
    let mut superblock = super::layout::Superblock::read(&*device).unwrap().unwrap();
    superblock.meta_limit = meta_limit;
    superblock.write(&*device).unwrap();
    let fs = open(&device);
    (device, fs)
}

#[track_caller]
fn check(fs: &FileSystem) {
    assert_eq!(fs.check().unwrap().problems, Vec::<String>::new());
}

/// The same of a device that nobody has mounted.
#[track_caller]
fn check_device(device: &Arc<CrashDevice>) {
    let device: Arc<dyn BlockDevice> = device.clone();
    let report = FileSystem::check_device(&device).unwrap().expect("a file system");
    assert_eq!(report.problems, Vec::<String>::new());
}
