//! How many requests a system call costs; each is two process switches.

use super::mounted;
use std::fs::{self, File};

#[test]
fn open_and_close_send_no_request() {
    let mount = mounted(16);
    fs::write(mount.path("f"), b"x").unwrap();
    let asked = || mount.handle.requests().iter().map(|(_, n)| n).sum::<u64>();
    drop(File::open(mount.path("f")).unwrap());
    let before = asked();
    for _ in 0..10 {
        drop(File::open(mount.path("f")).unwrap());
    }
    assert_eq!(asked(), before);
}

#[test]
fn a_name_that_is_not_there_is_asked_for_once() {
    let mount = mounted(16);
    let before = mount.count("lookup");
    for _ in 0..10 {
        assert!(!mount.path("nobody").exists());
    }
    assert_eq!(mount.count("lookup"), before + 1);
    // And it can be made, without being asked for again.
    fs::write(mount.path("nobody"), b"x").unwrap();
    assert_eq!(mount.count("lookup"), before + 1);
    assert_eq!(fs::read(mount.path("nobody")).unwrap(), b"x");
}

#[test]
fn a_new_small_file_costs_six_requests() {
    let mount = mounted(16);
    // The first ones teach the kernel what not to ask.
    fs::write(mount.path("first"), b"x").unwrap();
    let before = mount.handle.requests();
    for i in 0..10 {
        fs::write(mount.path(&format!("f{i}")), vec![1; 4096]).unwrap();
    }
    let after = mount.handle.requests();
    let spent: Vec<_> = before
        .iter()
        .zip(&after)
        .map(|(a, b)| (a.0, b.1 - a.1))
        .filter(|(kind, n)| *n > 0 && *kind != "forget")
        .collect();
    // getattr: the directory's, which the kernel forgets when a name is made in it and needs for the next permission check;
    // getxattr: security.capability, before the first write to an inode; setattr: the times, when the file is closed.
    let six = ["lookup", "getattr", "setattr", "mknod", "write", "getxattr"];
    assert_eq!(spent, six.map(|kind| (kind, 10)));
}

#[test]
fn listing_a_directory_again_sends_no_request() {
    let mount = mounted(16);
    for i in 0..50 {
        File::create(mount.path(&i.to_string())).unwrap();
    }
    let list = || fs::read_dir(mount.directory.path()).unwrap().count();
    assert_eq!((list(), list()), (50, 50));
    let before = mount.count("readdir");
    assert_eq!(list(), 50);
    assert_eq!(mount.count("readdir"), before);
    File::create(mount.path("new")).unwrap();
    assert_eq!(list(), 51);
}
