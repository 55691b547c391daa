//! What single calls do.

use super::{CALLER, check, fresh, open, until_ok};
use crate::block::{BlockDevice, DeviceError};
use crate::fs::{FileKind, FileSystem, FsError, Ino, ROOT, Seek, SetAttr, device_blocks};
use std::collections::BTreeMap;

fn errno<T: std::fmt::Debug>(result: Result<T, FsError>) -> i32 {
    result.unwrap_err().errno()
}

fn file(fs: &FileSystem, name: &str, data: &[u8]) -> Ino {
    let ino = fs.create(&CALLER, ROOT, name.as_bytes(), 0o644).unwrap().ino;
    assert_eq!(fs.write(ino, 0, data, false).unwrap() as usize, data.len());
    fs.release(ino);
    ino
}

fn content(fs: &FileSystem, ino: Ino) -> Vec<u8> {
    fs.read(ino, 0, u32::MAX).unwrap().to_vec()
}

fn names(fs: &FileSystem, ino: Ino) -> Vec<String> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let before = names.len();
        // Three entries a call, as a small buffer would have it.
        fs.readdir(ino, cookie, &mut |entry| {
            if names.len() == before + 3 {
                return true;
            }
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            cookie = entry.cookie;
            false
        })
        .unwrap();
        if names.len() == before {
            names.sort();
            return names;
        }
    }
}

#[test]
fn files_keep_what_is_written_over_a_remount() {
    let (device, fs) = fresh(16);
    let small = file(&fs, "small", b"hello");
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    let large = file(&fs, "large", &big);
    fs.write(large, 5000, b"patch", false).unwrap();
    fs.close().unwrap();
    let fs = open(&device);
    check(&fs);
    assert_eq!(content(&fs, fs.lookup(ROOT, b"small").unwrap().ino), b"hello");
    let mut expected = big;
    expected[5000..5005].copy_from_slice(b"patch");
    assert_eq!(content(&fs, large), expected);
    assert_eq!(fs.getattr(small).unwrap().blocks, 8);
}

#[test]
fn sparse_files_beyond_four_gib_read_zeros_and_take_little_space() {
    let (_, fs) = fresh(16);
    let ino = file(&fs, "sparse", b"start");
    fs.write(ino, 5 << 30, b"end", false).unwrap();
    let attr = fs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.blocks), ((5 << 30) + 3, 16));
    assert_eq!(&fs.read(ino, (5 << 30) - 4, 100).unwrap()[..], b"\0\0\0\0end");
    assert_eq!(fs.lseek(ino, 1, Seek::Hole).unwrap(), 4096);
    assert_eq!(fs.lseek(ino, 4096, Seek::Data).unwrap(), 5 << 30);
    assert_eq!(errno(fs.lseek(ino, 6 << 30, Seek::Data)), libc::ENXIO);
    assert_eq!(errno(fs.write(ino, 1 << 44, b"x", false)), libc::EFBIG);
    check(&fs);
}

#[test]
fn a_shorter_file_that_grows_again_shows_zeros() {
    let (_, fs) = fresh(16);
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    for (cut, grow_by_write) in [(10, false), (10, true), (5000, false), (5000, true)] {
        let ino = file(&fs, "f", &[9; 9000]);
        fs.setattr(ino, &size(cut)).unwrap();
        if grow_by_write {
            fs.write(ino, 9000, b"!", false).unwrap();
        } else {
            fs.setattr(ino, &size(9001)).unwrap();
        }
        let data = content(&fs, ino);
        assert_eq!(data.len(), 9001);
        assert!(data[..cut as usize].iter().all(|b| *b == 9));
        assert!(data[cut as usize..9000].iter().all(|b| *b == 0), "cut at {cut}");
        check(&fs);
        fs.unlink(ROOT, b"f").unwrap();
        fs.forget(ino, 1);
    }
}

#[test]
fn names_follow_posix() {
    let (_, fs) = fresh(16);
    let dir = fs.mkdir(&CALLER, ROOT, b"dir", 0o755).unwrap().ino;
    let long = [b'n'; 255];
    file(&fs, std::str::from_utf8(&long).unwrap(), b"");
    assert_eq!(errno(fs.mkdir(&CALLER, ROOT, &[b'n'; 256], 0o755)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs.mkdir(&CALLER, ROOT, b"dir", 0o755)), libc::EEXIST);
    assert_eq!(errno(fs.unlink(ROOT, b"dir")), libc::EISDIR);
    assert_eq!(errno(fs.rmdir(ROOT, &long)), libc::ENOTDIR);
    let inner = fs.mkdir(&CALLER, dir, b"inner", 0o755).unwrap().ino;
    assert_eq!(errno(fs.rmdir(ROOT, b"dir")), libc::ENOTEMPTY);
    assert_eq!(errno(fs.rename(ROOT, b"dir", inner, b"x", 0)), libc::EINVAL);
    assert_eq!(fs.getattr(dir).unwrap().nlink, 3);
    fs.rename(dir, b"inner", ROOT, b"outer", 0).unwrap();
    assert_eq!(
        (fs.getattr(dir).unwrap().nlink, fs.getattr(ROOT).unwrap().nlink),
        (2, 4)
    );
    assert_eq!(fs.lookup(inner, b"..").unwrap().ino, ROOT);
    let link = fs.symlink(&CALLER, ROOT, b"link", b"dir/x").unwrap();
    assert_eq!(
        (link.kind, fs.readlink(link.ino).unwrap()),
        (FileKind::Symlink, b"dir/x".to_vec())
    );
    let one = file(&fs, "one", b"1");
    fs.link(one, dir, b"two").unwrap();
    assert_eq!(fs.getattr(one).unwrap().nlink, 2);
    file(&fs, "other", b"2");
    assert_eq!(
        errno(fs.rename(ROOT, b"one", ROOT, b"other", libc::RENAME_NOREPLACE)),
        libc::EEXIST
    );
    fs.rename(ROOT, b"dir", ROOT, b"other", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs.lookup(ROOT, b"other").unwrap().ino, dir);
    fs.rename(ROOT, b"one", ROOT, b"dir", 0).unwrap();
    assert_eq!(content(&fs, fs.lookup(ROOT, b"dir").unwrap().ino), b"1");
    let expected = [
        ".",
        "..",
        "dir",
        "link",
        std::str::from_utf8(&long).unwrap(),
        "other",
        "outer",
    ];
    assert_eq!(names(&fs, ROOT), expected);
    check(&fs);
}

#[test]
fn an_unlinked_open_file_lives_until_it_is_closed_and_forgotten() {
    let (device, fs) = fresh(16);
    let free = fs.statfs().unwrap().free;
    let ino = fs.create(&CALLER, ROOT, b"f", 0o600).unwrap().ino;
    fs.write(ino, 0, &[1; 8192], false).unwrap();
    fs.unlink(ROOT, b"f").unwrap();
    assert_eq!(content(&fs, ino), [1; 8192]);
    check(&fs);
    fs.release(ino);
    fs.forget(ino, 1);
    assert_eq!(errno(fs.getattr(ino)), libc::ENOENT);
    assert_eq!(fs.statfs().unwrap().free, free);
    // One that is still open when the machine stops goes at the next mount.
    let ino = fs.create(&CALLER, ROOT, b"g", 0o600).unwrap().ino;
    fs.write(ino, 0, &[1; 8192], false).unwrap();
    fs.unlink(ROOT, b"g").unwrap();
    fs.close().unwrap();
    let fs = open(&device);
    assert_eq!(errno(fs.getattr(ino)), libc::ENOENT);
    assert_eq!(fs.statfs().unwrap().free, free);
    check(&fs);
}

#[test]
fn a_full_volume_says_so_and_works_again_after_a_removal() {
    let (_, fs) = fresh(4);
    let ino = fs.create(&CALLER, ROOT, b"big", 0o644).unwrap().ino;
    let mut at = 0;
    let error = loop {
        match fs.write(ino, at, &[7; 65536], false) {
            Ok(n) => at += u64::from(n),
            Err(e) => break e,
        }
    };
    assert_eq!((error.errno(), at), (libc::ENOSPC, 4 << 20));
    assert_eq!(fs.statfs().unwrap().free, 0);
    check(&fs);
    fs.mkdir(&CALLER, ROOT, b"metadata has its own reserve", 0o755).unwrap();
    fs.unlink(ROOT, b"big").unwrap();
    fs.release(ino);
    fs.forget(ino, 1);
    let again = file(&fs, "again", &vec![3; 4 << 20]);
    assert_eq!(content(&fs, again), vec![3; 4 << 20]);
    check(&fs);
}

#[test]
fn a_part_of_a_block_up_to_its_end_or_from_its_start_is_punched() {
    for (offset, length) in [(4097, 4095), (8192, 100)] {
        let (_, fs) = fresh(16);
        let ino = file(&fs, "f", &[5; 20_000]);
        fs.fallocate(
            ino,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            length,
        )
        .unwrap();
        check(&fs);
        let (data, hole) = (content(&fs, ino), offset as usize..(offset + length) as usize);
        for (at, byte) in data.iter().enumerate() {
            assert_eq!(*byte, if hole.contains(&at) { 0 } else { 5 }, "byte {at}");
        }
    }
}

#[test]
fn fallocate_punches_zeroes_and_allocates() {
    let (_, fs) = fresh(16);
    let ino = file(&fs, "f", &[5; 20_000]);
    fs.fallocate(
        ino,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        3000,
        10_000,
    )
    .unwrap();
    let data = content(&fs, ino);
    assert!(data[..3000].iter().chain(&data[13_000..]).all(|b| *b == 5));
    assert!(data[3000..13_000].iter().all(|b| *b == 0));
    assert_eq!(fs.getattr(ino).unwrap().blocks, 8 * 3);
    fs.fallocate(ino, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 100, 50)
        .unwrap();
    assert_eq!(&fs.read(ino, 99, 52).unwrap()[..2], [5, 0]);
    fs.fallocate(ino, 0, 0, 30_000).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().size, 30_000);
    fs.fallocate(ino, libc::FALLOC_FL_KEEP_SIZE, 0, 50_000).unwrap();
    let attr = fs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.blocks), (30_000, 8 * 13));
    assert!(content(&fs, ino)[20_000..].iter().all(|b| *b == 0));
    assert_eq!(
        errno(fs.fallocate(ino, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)),
        libc::EOPNOTSUPP
    );
    check(&fs);
}

#[test]
fn extended_attributes_are_kept_and_go_with_the_file() {
    let (device, fs) = fresh(16);
    let ino = file(&fs, "f", b"");
    fs.setxattr(&CALLER, ino, b"user.a", b"1", 0).unwrap();
    fs.setxattr(&CALLER, ino, b"user.b", &[2; 5000], libc::XATTR_CREATE)
        .unwrap();
    assert_eq!(
        errno(fs.setxattr(&CALLER, ino, b"user.b", b"", libc::XATTR_CREATE)),
        libc::EEXIST
    );
    assert_eq!(
        errno(fs.setxattr(&CALLER, ino, b"user.c", b"", libc::XATTR_REPLACE)),
        libc::ENODATA
    );
    assert_eq!(
        errno(fs.setxattr(&CALLER, ino, b"system.posix_acl_access", b"", 0)),
        libc::EINVAL
    );
    assert_eq!(
        errno(fs.setxattr(&CALLER, ino, b"system.other", b"", 0)),
        libc::EOPNOTSUPP
    );
    assert_eq!(fs.listxattr(ino).unwrap(), b"user.a\0user.b\0");
    fs.removexattr(ino, b"user.a").unwrap();
    fs.close().unwrap();
    let fs = open(&device);
    assert_eq!(fs.getxattr(ino, b"user.b").unwrap(), [2; 5000]);
    assert_eq!(errno(fs.getxattr(ino, b"user.a")), libc::ENODATA);
    fs.unlink(ROOT, b"f").unwrap();
    assert_eq!(errno(fs.getxattr(ino, b"user.b")), libc::ENODATA);
    check(&fs);
}

#[test]
fn a_large_directory_is_read_whole_while_it_changes() {
    let (_, fs) = fresh(16);
    let dir = fs.mkdir(&CALLER, ROOT, b"d", 0o755).unwrap().ino;
    for i in 0..20_000 {
        let ino = fs
            .mknod(&CALLER, dir, format!("f{i}").as_bytes(), libc::S_IFREG | 0o644, 0)
            .unwrap()
            .ino;
        fs.forget(ino, 1);
    }
    let mut seen = BTreeMap::new();
    let mut cookie = 0;
    loop {
        let before = seen.len();
        fs.readdir(dir, cookie, &mut |entry| {
            if seen.len() >= before + 1000 {
                return true;
            }
            *seen.entry(entry.name.to_vec()).or_insert(0) += 1;
            cookie = entry.cookie;
            false
        })
        .unwrap();
        if seen.len() == before {
            break;
        }
        // Entries that come and go do not move the others.
        fs.mkdir(&CALLER, dir, format!("new{before}").as_bytes(), 0o755)
            .unwrap();
        fs.rmdir(dir, format!("new{before}").as_bytes()).unwrap();
    }
    assert_eq!(seen.len(), 20_002);
    assert!(seen.values().all(|n| *n == 1));
}

#[test]
fn an_fsync_is_one_flush_and_many_at_once_share_it() {
    let (device, fs) = fresh(64);
    let ino = file(&fs, "f", &[1; 4096]);
    fs.fsync(ino, false).unwrap();
    let (flushes, writes) = (device.flushes(), device.writes());
    fs.write(ino, 0, &[2; 4096], false).unwrap();
    fs.fsync(ino, false).unwrap();
    assert_eq!(
        (device.flushes() - flushes, device.writes() - writes),
        (1, 2),
        "data, and a record with the flush"
    );
    let (flushes, writes) = (device.flushes(), device.writes());
    fs.write(ino, 0, &[3; 4096], false).unwrap();
    fs.fsync(ino, true).unwrap();
    assert_eq!(
        (device.flushes() - flushes, device.writes() - writes),
        (1, 1),
        "times alone are no work for fdatasync"
    );
    let flushes = device.flushes();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let fs = &fs;
            scope.spawn(move || {
                for i in 0..20 {
                    let ino = file(fs, &format!("t{thread}-{i}"), b"x");
                    fs.fsync(ino, false).unwrap();
                }
            });
        }
    });
    assert!(device.flushes() - flushes <= 160, "never more than one flush each");
    check(&fs);
}

#[test]
fn a_device_that_refuses_for_a_while_loses_nothing() {
    let (device, fs) = fresh(16);
    let ino = file(&fs, "before", b"1");
    fs.fsync(ino, false).unwrap();
    device.refuse(Some(DeviceError::ReadOnly("2 of 2 replicas lost".into())));
    let during = fs.create(&CALLER, ROOT, b"during", 0o644).unwrap().ino;
    assert_eq!(errno(fs.fsync(during, false)), libc::EROFS);
    assert_eq!(errno(fs.write(during, 0, b"x", false)), libc::EROFS);
    assert_eq!(errno(fs.mkdir(&CALLER, ROOT, b"refused", 0o755)), libc::EROFS);
    assert_eq!(errno(fs.unlink(ROOT, b"before")), libc::EROFS);
    assert_eq!(content(&fs, ino), b"1");
    device.refuse(None);
    // Without a sync: the timer finds out that the device writes again.
    until_ok(|| fs.write(during, 0, b"2", false));
    fs.fsync(during, false).unwrap();
    let image = std::sync::Arc::new(device.image(1));
    assert!(image.blocks() > 0);
    let after = open(&image);
    assert_eq!(content(&after, after.lookup(ROOT, b"during").unwrap().ino), b"2");
    check(&after);
}

#[test]
fn a_sync_flushes_data_whose_operation_was_durable_before() {
    let (device, fs) = fresh(16);
    let ino = file(&fs, "f", b"old");
    fs.sync().unwrap();
    // The operation of a write becomes durable with the window's commit, its data after it.
    let flushes = device.flushes();
    fs.sync().unwrap();
    assert!(device.flushes() > flushes);
    fs.write(ino, 0, b"new", false).unwrap();
    fs.core.commit_all().unwrap();
    fs.fsync(ino, false).unwrap();
    let image = std::sync::Arc::new(device.image(1));
    let after = open(&image);
    assert_eq!(content(&after, after.lookup(ROOT, b"f").unwrap().ino), b"new");
}

#[test]
fn a_file_system_grows_with_its_device_and_a_crash_on_the_way_does_no_harm() {
    let (device, fs) = fresh(4);
    let ino = file(&fs, "f", &[1; 100_000]);
    assert_eq!(errno(fs.grow(8 << 20)), libc::EINVAL);
    device.grow(device_blocks(8 << 20));
    for at in 0..6 {
        // Half-way at any point.
        let image = std::sync::Arc::new(device.image_with_all_writes());
        let half = open(&image);
        image.crash_after(at);
        let grown = half.grow(8 << 20).is_ok();
        drop(half);
        let after = open(&std::sync::Arc::new(image.image(at)));
        assert!(!grown || after.statfs().unwrap().blocks == 2048);
        after.grow(8 << 20).unwrap();
        assert_eq!(after.statfs().unwrap().blocks, 2048);
        check(&after);
    }
    fs.grow(8 << 20).unwrap();
    fs.grow(4 << 20).unwrap();
    assert_eq!(
        (fs.statfs().unwrap().blocks, fs.statfs().unwrap().free),
        (2048, 2048 - 25)
    );
    fs.write(ino, 0, &vec![2; 7 << 20], false).unwrap();
    fs.close().unwrap();
    let fs = open(&device);
    check(&fs);
    assert_eq!(content(&fs, ino), vec![2; 7 << 20]);
}

#[test]
fn a_used_device_is_formatted_anew() {
    let (device, fs) = fresh(4);
    file(&fs, "f", &vec![1; 3 << 20]);
    fs.sync().unwrap();
    // Its log is full of records that are not in the database.
    drop(fs);
    let plain: std::sync::Arc<dyn BlockDevice> = device.clone();
    FileSystem::format(&plain, 4 << 20).unwrap();
    let fs = open(&device);
    check(&fs);
    assert_eq!(names(&fs, ROOT), [".", ".."]);
    let ino = fs.create(&CALLER, ROOT, b"g", 0o644).unwrap().ino;
    fs.fallocate(ino, 0, 0, 4 << 20).unwrap();
    assert!(content(&fs, ino).iter().all(|b| *b == 0));
}

#[test]
fn copying_refuses_ranges_that_overlap_or_cannot_be() {
    let (_, fs) = fresh(16);
    let ino = file(&fs, "f", &[5; 20_000]);
    assert_eq!(errno(fs.copy_range(ino, 0, ino, 1000, 2000)), libc::EINVAL);
    assert_eq!(errno(fs.copy_range(ino, u64::MAX, ino, 0, 2)), libc::EINVAL);
    assert_eq!(fs.copy_range(ino, 0, ino, 20_000, 20_000).unwrap(), 20_000);
    assert_eq!(content(&fs, ino), [5; 40_000]);
}

#[test]
fn memory_for_inodes_that_the_kernel_has_forgotten_is_given_back() {
    let (_, fs) = fresh(64);
    let known = 1 << 17;
    for ino in 1000..1000 + known {
        fs.core.state().unwrap().refer(ino);
    }
    for ino in 1000..1000 + known {
        fs.forget(ino, 1);
    }
    let left = fs.core.state().unwrap().references.capacity();
    assert!(left <= (known / 2) as usize, "room for {left} references is kept");
}
