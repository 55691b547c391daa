//! Full metadata, and devices that fail or refuse.

use super::device::CrashDevice;
use super::{CALLER, check, fresh, open, until_ok, with_metadata_limit};
use crate::block::{BlockDevice, DeviceError};
use crate::fs::{FileSystem, FsError, Options, ROOT};
use std::sync::Arc;

fn errno<T: std::fmt::Debug>(result: Result<T, FsError>) -> i32 {
    result.unwrap_err().errno()
}

#[test]
fn a_full_metadata_area_refuses_what_adds_to_it_and_works_again_after_removals() {
    let (device, fs) = with_metadata_limit(64, 4 << 20);
    let dir = fs.mkdir(&CALLER, ROOT, b"d", 0o755).unwrap().ino;
    let name = |i: u32| format!("{i:0200}").into_bytes();
    let mut made = 0;
    let error = loop {
        match fs.mknod(&CALLER, dir, &name(made), libc::S_IFREG | 0o644, 0) {
            Ok(attr) => fs.forget(attr.ino, 1),
            Err(e) => break e,
        }
        made += 1;
        assert!(made < 100_000);
    };
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(made > 3000, "only {made} files fit");
    assert!(fs.statfs().unwrap().files_free < 1000);
    let ino = fs.lookup(dir, &name(0)).unwrap().ino;
    assert_eq!(errno(fs.link(ino, ROOT, b"l")), libc::ENOSPC);
    assert_eq!(errno(fs.mkdir(&CALLER, ROOT, b"e", 0o755)), libc::ENOSPC);
    assert_eq!(errno(fs.symlink(&CALLER, ROOT, b"s", b"t")), libc::ENOSPC);
    assert_eq!(errno(fs.setxattr(&CALLER, ino, b"user.a", b"1", 0)), libc::ENOSPC);
    assert_eq!(errno(fs.write(ino, 0, b"x", false)), libc::ENOSPC);
    assert_eq!(errno(fs.fallocate(ino, 0, 0, 4096)), libc::ENOSPC);
    fs.sync().unwrap();
    fs.close().unwrap();
    let fs = open(&device);
    check(&fs);
    assert_eq!(errno(fs.mkdir(&CALLER, ROOT, b"e", 0o755)), libc::ENOSPC);
    fs.rename(dir, &name(1), dir, b"short", 0).unwrap();
    for i in 2..made {
        fs.unlink(dir, &name(i)).unwrap();
    }
    fs.mkdir(&CALLER, ROOT, b"e", 0o755).unwrap();
    fs.write(ino, 0, b"x", false).unwrap();
    check(&fs);
    fs.close().unwrap();
    check(&open(&device));
}

/// A file system whose metadata is read from the device each time.
fn uncached(device: &Arc<CrashDevice>) -> Arc<FileSystem> {
    let plain: Arc<dyn BlockDevice> = device.clone();
    let options = Options {
        metadata_cache_bytes: 0,
        ..super::options()
    };
    FileSystem::open(plain, options).unwrap()
}

#[test]
fn a_metadata_read_that_fails_fails_one_operation_and_changes_nothing() {
    let (device, fs) = fresh(8);
    for i in 0..3000 {
        let attr = fs.mknod(&CALLER, ROOT, format!("f{i}").as_bytes(), libc::S_IFREG | 0o644, 0);
        fs.forget(attr.unwrap().ino, 1);
    }
    fs.close().unwrap();
    let fs = uncached(&device);
    let mut failed = 0;
    for round in 0..60_u64 {
        device.fail_read_after(round % 20);
        let name = |n: u64| format!("f{}", (round * 37 + n) % 3000).into_bytes();
        let results = [
            fs.rename(ROOT, &name(0), ROOT, &name(1), 0),
            fs.unlink(ROOT, &name(2)),
            fs.mkdir(&CALLER, ROOT, format!("d{round}").as_bytes(), 0o755)
                .map(|_| ()),
        ];
        failed += results
            .iter()
            .filter(|r| r.as_ref().is_err_and(|e| e.errno() == libc::EIO))
            .count();
        for i in 0..3000 {
            if device.reads_are_good() {
                break;
            }
            let _ = fs.lookup(ROOT, format!("f{i}").as_bytes());
        }
        until_ok(|| fs.getattr(ROOT));
        until_ok(|| fs.check());
    }
    assert!(failed > 10, "only {failed} operations met the failure");
    check(&fs);
    until_ok(|| fs.sync());
    check(&open(&Arc::new(device.image_with_all_writes())));
    fs.close().unwrap();
    check(&open(&device));
}

#[test]
fn a_checkpoint_that_fails_is_done_again() {
    let (device, fs) = fresh(8);
    let ino = fs.create(&CALLER, ROOT, b"f", 0o644).unwrap().ino;
    fs.sync().unwrap();
    device.refuse(Some(DeviceError::Io("bad disk".into())));
    assert!(fs.core.checkpoint_all().is_err());
    device.refuse(None);
    until_ok(|| fs.core.checkpoint_all());
    fs.write(ino, 0, b"x", false).unwrap();
    check(&fs);
    fs.close().unwrap();
    let fs = open(&device);
    check(&fs);
    assert_eq!(&fs.read(ino, 0, 10).unwrap()[..], b"x");
}

#[test]
fn close_gives_up_on_a_device_that_stays_read_only_and_what_was_synced_is_there() {
    for during_checkpoint in [false, true] {
        let (device, fs) = fresh(8);
        let ino = fs.create(&CALLER, ROOT, b"f", 0o644).unwrap().ino;
        fs.write(ino, 0, b"synced", false).unwrap();
        fs.fsync(ino, false).unwrap();
        device.refuse(Some(DeviceError::ReadOnly("suspended".into())));
        if during_checkpoint {
            // It waits for the device; whoever waits for it does not.
            assert_eq!(errno(fs.core.checkpoint_all()), libc::EROFS);
        }
        assert_eq!(errno(fs.close()), libc::EROFS);
        assert!(matches!(fs.getattr(ino), Err(FsError::Closed)));
        device.refuse(None);
        let fs = open(&device);
        check(&fs);
        assert_eq!(&fs.read(ino, 0, 10).unwrap()[..], b"synced");
    }
}

#[test]
fn opening_on_a_device_that_refuses_writes_fails_and_does_not_wait() {
    let (device, fs) = fresh(8);
    let ino = fs.create(&CALLER, ROOT, b"f", 0o644).unwrap().ino;
    fs.write(ino, 0, b"synced", false).unwrap();
    fs.fsync(ino, false).unwrap();
    drop(fs);
    device.refuse(Some(DeviceError::ReadOnly("suspended".into())));
    let plain: Arc<dyn BlockDevice> = device.clone();
    assert!(FileSystem::open(plain, super::options()).is_err());
    device.refuse(None);
    check(&open(&device));
}

#[test]
fn a_checkpoint_goes_on_by_itself_when_the_device_writes_again() {
    let (device, fs) = fresh(8);
    fs.mkdir(&CALLER, ROOT, b"d", 0o755).unwrap();
    device.refuse(Some(DeviceError::ReadOnly("suspended".into())));
    assert_eq!(errno(fs.core.checkpoint_all()), libc::EROFS);
    fs.lookup(ROOT, b"d").unwrap();
    device.refuse(None);
    until_ok(|| fs.core.checkpoint_all());
    fs.close().unwrap();
    check(&open(&device));
}

#[test]
fn a_checkpoint_that_is_due_just_as_the_one_before_ends_is_made() {
    let (device, fs) = fresh(8);
    fs.close().unwrap();
    let always = Options {
        checkpoint_interval: std::time::Duration::ZERO,
        ..super::options()
    };
    let fs = FileSystem::open(device, always).unwrap();
    let busy: Vec<_> = (0..3)
        .map(|i| {
            let fs = fs.clone();
            let ino = fs.create(&CALLER, ROOT, format!("f{i}").as_bytes(), 0o644).unwrap().ino;
            std::thread::spawn(move || {
                for i in 0..4000_u32 {
                    fs.setxattr(&CALLER, ino, b"user.a", &i.to_le_bytes(), 0).unwrap();
                    fs.fsync(ino, false).unwrap();
                }
            })
        })
        .collect();
    for thread in busy {
        thread.join().unwrap();
    }
    // One that was forgotten would keep all later ones from beginning.
    fs.core.checkpoint_all().unwrap();
    assert_eq!(fs.core.state.lock().store.pending_bytes(), 0);
    check(&fs);
}
