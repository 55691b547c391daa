//! File systems that go on in the next process: what was acknowledged is there, what the kernel holds stays, what was done is not done again.

use super::device::CrashDevice;
use super::{CALLER, check, check_device, fresh, options};
use crate::block::BlockDevice;
use crate::fs::{FileSystem, FsError, Ino, Memory, ROOT};
use parking_lot::Mutex;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A file system in memory that is kept: its descriptor, as somebody else holds it.
pub(super) fn open_kept(device: &Arc<CrashDevice>) -> (Arc<FileSystem>, OwnedFd) {
    let memory = Memory::new().unwrap();
    let kept = memory.try_clone().unwrap();
    let device: Arc<dyn BlockDevice> = device.clone();
    (FileSystem::open_in_memory(device, options(), memory).unwrap(), kept)
}

/// What the next process opens.
pub(super) fn inherit(
    device: &Arc<CrashDevice>,
    kept: OwnedFd,
    knows: impl Fn(Ino) -> bool + Send + Sync + 'static,
) -> (Arc<FileSystem>, OwnedFd) {
    let memory = Memory::inherited(kept, knows);
    let kept = memory.try_clone().unwrap();
    let device: Arc<dyn BlockDevice> = device.clone();
    (FileSystem::open_in_memory(device, options(), memory).unwrap(), kept)
}

fn kept() -> (Arc<CrashDevice>, Arc<FileSystem>, OwnedFd) {
    let (device, fs) = fresh(64);
    fs.close().unwrap();
    let (fs, kept) = open_kept(&device);
    (device, fs, kept)
}

/// The memory as it is at this moment.
fn copy(of: &OwnedFd) -> OwnedFd {
    let from = File::from(of.try_clone().unwrap());
    let to = Memory::new().unwrap().try_clone().unwrap();
    let mut bytes = vec![0; from.metadata().unwrap().len() as usize];
    from.read_exact_at(&mut bytes, 0).unwrap();
    let file = File::from(to);
    file.write_all_at(&bytes, 0).unwrap();
    file.into()
}

fn write(fs: &FileSystem, name: &[u8], content: &[u8]) -> Ino {
    let ino = fs.mknod(&CALLER, ROOT, name, libc::S_IFREG | 0o644, 0).unwrap().ino;
    fs.write(ino, 0, content, false).unwrap();
    ino
}

#[test]
fn what_nobody_synced_is_there_in_the_next_process() {
    let (device, fs, kept) = kept();
    let ino = write(&fs, b"a", &[7; 100_000]);
    drop(fs);
    let (fs, kept) = inherit(&device, kept, |_| false);
    assert_eq!(fs.read(ino, 0, u32::MAX).unwrap()[..], [7; 100_000]);
    fs.rename(ROOT, b"a", ROOT, b"b", 0).unwrap();
    fs.write(ino, 50_000, &[8; 10], false).unwrap();
    drop(fs);
    let (fs, _kept) = inherit(&device, kept, |_| false);
    assert_eq!(fs.lookup(ROOT, b"b").unwrap().ino, ino);
    assert_eq!(fs.read(ino, 50_000, 10).unwrap()[..], [8; 10]);
    check(&fs);
    fs.close().unwrap();
    check_device(&device);
}

#[test]
fn a_file_without_a_name_lives_until_the_kernel_forgets_it() {
    let (device, fs, kept) = kept();
    let open = write(&fs, b"open", &[1; 4096]);
    let closed = write(&fs, b"closed", &[2; 4096]);
    let later = write(&fs, b"later", &[3; 4096]);
    fs.unlink(ROOT, b"open").unwrap();
    fs.unlink(ROOT, b"closed").unwrap();
    drop(fs);
    let known = Arc::new(Mutex::new(vec![open, later]));
    let asked = known.clone();
    let (fs, _kept) = inherit(&device, kept, move |ino| asked.lock().contains(&ino));
    assert_eq!(fs.read(open, 0, 4096).unwrap()[..], [1; 4096]);
    assert!(matches!(fs.read(closed, 0, 1), Err(FsError::Posix(libc::ENOENT))));
    fs.unlink(ROOT, b"later").unwrap();
    assert_eq!(fs.read(later, 0, 4096).unwrap()[..], [3; 4096]);
    // Not the last reference.
    fs.forget(open, 1);
    assert_eq!(fs.read(open, 0, 4096).unwrap()[..], [1; 4096]);
    known.lock().clear();
    for ino in [open, later] {
        fs.forget(ino, 1);
        assert!(matches!(fs.read(ino, 0, 1), Err(FsError::Posix(libc::ENOENT))));
    }
    check(&fs);
}

#[test]
fn a_request_that_was_done_and_not_answered_is_known() {
    let (device, fs, kept) = kept();
    fs.request(1, || fs.mkdir(&CALLER, ROOT, b"answered", 0o755)).unwrap();
    let at_death = fs.request(2, || {
        fs.mkdir(&CALLER, ROOT, b"done", 0o755).unwrap();
        copy(&kept)
    });
    let failed = fs.request(3, || fs.mkdir(&CALLER, ROOT, b"done", 0o755));
    assert!(failed.is_err());
    drop(fs);
    let (fs, kept) = inherit(&device, at_death, |_| true);
    assert!(fs.has_done(2) && !fs.has_done(1) && !fs.has_done(3));
    fs.lookup(ROOT, b"done").unwrap();
    drop(fs);
    let (fs, kept) = inherit(&device, kept, |_| true);
    assert!(fs.has_done(2), "it may still come again");
    fs.answered(2);
    fs.mkdir(&CALLER, ROOT, b"more", 0o755).unwrap();
    fs.sync().unwrap();
    drop(fs);
    let (fs, _kept) = inherit(&device, kept, |_| true);
    assert!(!fs.has_done(2));
}

#[test]
fn a_memory_that_lost_something_is_refused() {
    let (device, fs, kept) = kept();
    write(&fs, b"a", b"1");
    drop(fs);
    File::from(kept.try_clone().unwrap()).set_len(0).unwrap();
    let device: Arc<dyn BlockDevice> = device;
    let opened = FileSystem::open_in_memory(device, options(), Memory::inherited(kept, |_| true));
    assert!(matches!(opened, Err(FsError::Format(_))));
}
