//! The file system on a device in memory that can lose power: behaviour, space, crash recovery, and a model.

mod behaviour;
mod crash;
mod device;
mod model;

use super::{Caller, FileSystem, Options};
use crate::block::BlockDevice;
use device::CrashDevice;
use std::sync::Arc;
use std::time::Duration;

const CALLER: Caller = Caller { uid: 0, gid: 0 };

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

#[track_caller]
fn check(fs: &FileSystem) {
    assert_eq!(fs.check().unwrap().problems, Vec::<String>::new());
}
