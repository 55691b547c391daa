//! Metadata that is damaged on purpose: a check names what is wrong, on a device that nobody has mounted and on a mounted one alike, and
//! writes nothing.

use super::device::CrashDevice;
use super::{CALLER, fresh, open, options};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use crate::fs::backend::{Control, MetaArea};
use crate::fs::layout::{DATA_START, META_START, Superblock};
use crate::fs::rows::*;
use crate::fs::store::Disk;
use crate::fs::{FileKind, FileSystem, FsError, Ino, Options, ROOT, Rows};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The metadata of a stopped file system, to be changed by hand.
struct Patient {
    rows: Rows,
    changes: Changes,
    file: Ino,
    sparse: Ino,
    directory: Ino,
    link: Ino,
}

impl Patient {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    fn inode(&mut self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        let row = self.rows.store.get(&inode_key(ino)).unwrap().unwrap();
        let mut inode = Inode::decode(&row).unwrap();
        change(&mut inode);
        self.put(inode_key(ino), inode.encode());
    }

    fn counters(&mut self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.rows.counters);
        let row = postcard::to_allocvec(&self.rows.counters).unwrap();
        self.put(COUNTERS.to_vec(), row);
    }

    /// The key and value of a row of this kind.
    fn row(&self, kind: u8, that: impl Fn(&[u8], &[u8]) -> bool) -> (Vec<u8>, Vec<u8>) {
        let mut found = None;
        let visit = &mut |key: &[u8], value: &[u8]| {
            if that(key, value) {
                found = Some((key.to_vec(), value.to_vec()));
            }
            found.is_none()
        };
        let from = [kind];
        self.rows
            .store
            .range(std::ops::Bound::Included(&from), &[kind + 1], visit)
            .unwrap();
        found.unwrap()
    }

    /// The row of a name.
    fn name(&self, name: &[u8]) -> (Vec<u8>, Dirent) {
        let (key, value) = self.row(b'D', |_, value| value.get(9..) == Some(name));
        (key, Dirent::decode(&value).unwrap())
    }
}

/// A stopped file system with a bit of everything.
fn stopped() -> (Arc<CrashDevice>, [Ino; 4]) {
    // More than the allocation window takes.
    let (device, fs) = fresh(128);
    let file = fs.create(&CALLER, ROOT, b"file", 0o644).unwrap().ino;
    fs.write(file, 0, &[1; 3 * BLOCK_SIZE], false).unwrap();
    let sparse = fs.create(&CALLER, ROOT, b"sparse", 0o644).unwrap().ino;
    for at in 0..10 {
        fs.write(sparse, at * 3 * BLOCK_SIZE as u64, &[2; BLOCK_SIZE], false)
            .unwrap();
    }
    fs.link(file, ROOT, b"also").unwrap();
    let directory = fs.mkdir(&CALLER, ROOT, b"directory", 0o755).unwrap().ino;
    fs.mkdir(&CALLER, directory, b"below", 0o755).unwrap();
    fs.setxattr(&CALLER, file, b"user.a", b"1", 0).unwrap();
    let link = fs.symlink(&CALLER, directory, b"link", b"../file").unwrap().ino;
    fs.mknod(&CALLER, directory, b"pipe", libc::S_IFIFO | 0o644, 0).unwrap();
    fs.close().unwrap();
    (device, [file, sparse, directory, link])
}

fn check_stopped(device: &Arc<CrashDevice>) -> Result<Vec<String>, FsError> {
    let plain: Arc<dyn BlockDevice> = device.clone();
    let (writes, flushes) = (device.writes(), device.flushes());
    let report = FileSystem::check_device(&plain)?.expect("a file system");
    assert_eq!((device.writes(), device.flushes()), (writes, flushes));
    assert_eq!(report.unlisted, 0);
    Ok(report.problems)
}

fn patch(device: &Arc<CrashDevice>, [file, sparse, directory, link]: [Ino; 4], damage: impl FnOnce(&mut Patient)) {
    let plain: Arc<dyn BlockDevice> = device.clone();
    let superblock = Superblock::read(&*plain).unwrap().unwrap();
    let area = MetaArea::open(plain.clone(), Control::new(Box::new(|_| {}))).unwrap();
    let disk = Disk::open(area, 1 << 20).unwrap();
    let mut patient = Patient {
        rows: Rows::read(&*plain, &disk, &superblock, |_| Ok(0)).unwrap(),
        changes: Changes::new(),
        file,
        sparse,
        directory,
        link,
    };
    damage(&mut patient);
    let Patient { rows, changes, .. } = patient;
    disk.apply(&changes, rows.generation).unwrap();
}

/// What a check says after this was done to the metadata.
#[track_caller]
fn after(damage: impl FnOnce(&mut Patient)) -> Vec<String> {
    let (device, inodes) = stopped();
    assert_eq!(check_stopped(&device).unwrap(), Vec::<String>::new());
    patch(&device, inodes, damage);
    let found = check_stopped(&device).unwrap();
    let read_only = Options {
        read_only: true,
        ..options()
    };
    let mounted = FileSystem::open(device.clone(), read_only).unwrap().check().unwrap();
    assert_eq!(mounted.problems, found);
    found
}

#[track_caller]
fn names(problems: &[String], expected: &[&str]) {
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for text in expected {
        assert!(problems.iter().any(|p| p.contains(text)), "{text}: {problems:#?}");
    }
}

#[test]
fn a_block_with_two_owners_is_named() {
    let found = after(|p| {
        let (key, value) = p.row(b'E', |_, _| true);
        let theirs = extent_of(&key, &value).unwrap().physical;
        p.inode(p.file, |inode| {
            let Content::Inline(extents) = &mut inode.content else {
                panic!()
            };
            extents[0].physical = theirs - 1;
        });
    });
    // What it owned before is nobody's now.
    assert!(found.iter().any(|p| p.contains("belong to nobody")), "{found:#?}");
    assert!(
        found.iter().any(|p| p.contains("belong to inode 2 and to inode 3")),
        "{found:#?}"
    );
}

#[test]
fn blocks_that_are_lost_or_free_twice_are_named() {
    let found = after(|p| {
        let (key, value) = p.row(b'F', |_, _| true);
        let length = number(&value).unwrap();
        p.put(key, (length - 5).to_le_bytes().to_vec());
    });
    names(&found, &["belong to nobody", "blocks are counted as free"]);
    let found = after(|p| {
        let start = DATA_START + 1;
        p.put(free_key(start), 1_u64.to_le_bytes().to_vec());
    });
    names(
        &found,
        &["belong to inode 2 and to the free space", "blocks are counted as free"],
    );
    let found = after(|p| p.put(pending_key(3), 7_u64.to_le_bytes().to_vec()));
    names(
        &found,
        &["blocks 3 to 9 of the space that is freed and not yet discarded are outside"],
    );
    let found = after(|p| p.put(free_key(u64::MAX - 1), u64::MAX.to_le_bytes().to_vec()));
    names(&found, &["outside the data area", "counted as free"]);
    let found = after(|p| p.put(pending_key(DATA_START), 0_u64.to_le_bytes().to_vec()));
    names(&found, &["run of no blocks"]);
    let found = after(|p| {
        let (key, _) = p.row(b'E', |_, _| true);
        p.delete(key);
    });
    names(&found, &["belong to nobody", "counts 10 blocks, its extents have 9"]);
    let found = after(|p| p.counters(|c| c.window = (c.window.0, c.window.1 - 1)));
    names(&found, &["belong to nobody", "counted as free"]);
}

#[test]
fn extents_that_do_not_fit_their_file_are_named() {
    let found = after(|p| {
        let (key, value) = p.row(b'E', |key, _| key_number(key, 1) == Some(0));
        let extent = extent_of(&key, &value).unwrap();
        p.delete(key);
        p.put(extent_key(p.sparse, 3), extent_value(&extent));
        // It took the place of another row: move that one into the first's middle.
        p.inode(p.sparse, |inode| inode.blocks -= 1);
    });
    names(&found, &["belong to nobody"]);
    let found = after(|p| {
        p.inode(p.file, |inode| {
            let Content::Inline(extents) = &mut inode.content else {
                panic!()
            };
            let whole = extents[0];
            *extents = vec![
                Extent { length: 2, ..whole },
                Extent {
                    logical: 1,
                    physical: whole.physical + 2,
                    length: 1,
                },
            ];
        });
    });
    names(&found, &["block 1 of the file twice"]);
    let found = after(|p| p.inode(p.file, |inode| inode.blocks = u64::MAX));
    names(&found, &["its extents have 3"]);
    let found = after(|p| {
        p.inode(p.file, |inode| {
            let Content::Inline(extents) = &mut inode.content else {
                panic!()
            };
            extents[0].logical = u64::MAX;
        });
    });
    names(&found, &["beyond the largest file"]);
    let found = after(|p| {
        p.delete(inode_key(p.sparse));
        p.counters(|c| c.inodes -= 1);
    });
    names(
        &found,
        &["\"sparse\" in directory 1 names inode 3", "extents belong to inode 3"],
    );
}

#[test]
fn a_wrong_link_count_is_named() {
    let found = after(|p| p.inode(p.file, |inode| inode.nlink = 7));
    names(&found, &["inode 2 counts 7 links, there are 2"]);
    let found = after(|p| p.inode(p.directory, |inode| inode.nlink = 2));
    names(&found, &["inode 4 counts 2 links, there are 3"]);
    let found = after(|p| p.inode(ROOT, |inode| inode.nlink = 0));
    names(&found, &["inode 1 counts 0 links, there are 3"]);
}

#[test]
fn a_name_without_an_inode_and_an_inode_without_a_name_are_named() {
    let found = after(|p| {
        p.delete(inode_key(p.link));
        p.counters(|c| c.inodes -= 1);
    });
    names(&found, &["\"link\" in directory 4 names inode 6, which is not there"]);
    let found = after(|p| {
        let (key, _) = p.name(b"link");
        p.delete(key);
    });
    names(
        &found,
        &["inode 6 counts 1 links, there are 0", "no name, and is not marked"],
    );
    // As it is while somebody has it open.
    let found = after(|p| {
        let (key, _) = p.name(b"link");
        p.delete(key);
        p.inode(p.link, |inode| inode.nlink = 0);
        p.put(orphan_key(p.link), Vec::new());
    });
    names(&found, &[]);
    let found = after(|p| {
        p.put(orphan_key(p.file), Vec::new());
        p.put(orphan_key(9000), Vec::new());
    });
    names(
        &found,
        &["inode 2 is marked as an orphan", "inode 9000 is marked as an orphan"],
    );
    let found = after(|p| {
        p.delete(inode_key(p.file));
        p.counters(|c| c.inodes -= 1);
    });
    names(
        &found,
        &[
            "\"file\" in directory 1 names inode 2",
            "\"also\" in directory 1 names inode 2",
            "attributes belong to inode 2",
            "belong to nobody",
        ],
    );
}

#[test]
fn a_damaged_tree_is_named() {
    let found = after(|p| {
        let (key, mut entry) = p.name(b"pipe");
        entry.kind = 8;
        p.put(key, entry.encode());
    });
    names(&found, &["another type than its name says"]);
    let found = after(|p| {
        let (key, mut entry) = p.name(b"pipe");
        entry.name = b"tube".to_vec();
        p.put(key, entry.encode());
    });
    names(&found, &["\"tube\" in directory 4 is not where its name is looked for"]);
    let found = after(|p| {
        let (key, mut entry) = p.name(b"file");
        entry.ino = p.sparse;
        let slot = key_number(&key, 1).unwrap() + 1;
        p.put(dirent_key(ROOT, slot), entry.encode());
        p.inode(p.sparse, |inode| inode.nlink = 2);
    });
    names(&found, &["\"file\" is in directory 1 twice"]);
    // A directory within the one below it: nobody finds either.
    let found = after(|p| {
        let (from, entry) = p.name(b"directory");
        let (_, below) = p.name(b"below");
        p.delete(from.clone());
        p.put(dirent_key(below.ino, key_number(&from, 1).unwrap()), entry.encode());
        p.inode(ROOT, |inode| inode.nlink -= 1);
        p.inode(below.ino, |inode| inode.nlink += 1);
        p.inode(p.directory, |inode| inode.content = Content::Directory(below.ino));
    });
    names(&found, &["is within itself"]);
    let found = after(|p| p.inode(p.directory, |inode| inode.content = Content::Directory(77)));
    names(&found, &["directory 4 takes 77 for its parent, and is in 1"]);
    let found = after(|p| {
        let (key, mut entry) = p.name(b"link");
        p.delete(key.clone());
        entry.name = b"link".to_vec();
        p.put(dirent_key(p.file, key_number(&key, 1).unwrap()), entry.encode());
    });
    names(&found, &["inode 2 has names in it, and is no directory"]);
    let found = after(|p| {
        p.inode(p.link, |inode| {
            inode.size = 1;
            inode.content = Content::Target(b"long".to_vec());
        });
    });
    names(&found, &["symbolic link 6 has another length"]);
    let found = after(|p| p.inode(p.link, |inode| inode.content = Content::None));
    names(&found, &["inode 6 has a content that its type cannot have"]);
    let found = after(|p| p.counters(|c| (c.inodes, c.next_ino) = (50, 3)));
    assert!(
        found.contains(&"50 inodes are counted, 7 are there".to_owned()),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|p| p.contains("inode 3 is there, and the next new one")),
        "{found:#?}"
    );
}

#[test]
fn rows_that_cannot_be_read_are_named() {
    let found = after(|p| p.put(inode_key(p.link), b"nonsense".to_vec()));
    names(&found, &["the row of inode 6 cannot be read"]);
    let found = after(|p| p.put(b"Zrow".to_vec(), Vec::new()));
    names(&found, &["the row cannot be read: key Zrow"]);
    let found = after(|p| {
        let (key, _) = p.name(b"pipe");
        p.put(key, vec![1, 2]);
    });
    assert!(
        found[0].starts_with("the row of a name in directory 4 cannot be read"),
        "{found:#?}"
    );
    let found = after(|p| p.put(extent_key(p.sparse, 1000), vec![0; 3]));
    names(&found, &["the row of an extent of inode 3 cannot be read"]);
    let found = after(|p| {
        p.delete(inode_key(ROOT));
        p.counters(|c| c.inodes -= 1);
    });
    assert!(found.iter().any(|p| p == "there is no root directory"), "{found:#?}");
}

#[test]
fn a_file_system_that_cannot_be_opened_is_a_problem_and_none_is_none() {
    let (device, inodes) = stopped();
    patch(&device, inodes, |p| p.put(COUNTERS.to_vec(), vec![0xff; 3]));
    names(
        &check_stopped(&device).unwrap(),
        &["the counters' row is missing or damaged"],
    );
    let superblock = |device: &CrashDevice, blocks: &[u64]| {
        for block in blocks {
            let data = Bytes::from(vec![7; BLOCK_SIZE]);
            device.write(&[Write { block: *block, data }], true).unwrap();
        }
    };
    let (device, _) = stopped();
    superblock(&device, &[8]);
    names(
        &check_stopped(&device).unwrap(),
        &["the copy of the superblock in block 8 is damaged"],
    );
    superblock(&device, &[0]);
    names(&check_stopped(&device).unwrap(), &["no file system"]);
    let blank: Arc<dyn BlockDevice> = Arc::new(CrashDevice::new(device.blocks()));
    assert_eq!(FileSystem::check_device(&blank).unwrap(), None);
    // The superblock is there, the metadata is gone.
    let (device, _) = stopped();
    device.discard(16, 2).unwrap();
    names(
        &check_stopped(&device).unwrap(),
        &["the metadata area's length is missing"],
    );
    let opened = FileSystem::open(device, options());
    assert!(matches!(opened.err(), Some(FsError::Format(_))));
}

#[test]
fn damage_in_any_block_of_the_metadata_is_reported_and_never_a_panic() {
    let (device, _) = stopped();
    let mut seen = 0;
    for block in META_START.. {
        let mut content = vec![0; BLOCK_SIZE];
        device.read(block, &mut content).unwrap();
        if content.iter().all(|b| *b == 0) && block > META_START + 300 {
            break;
        }
        for how in 0..3 {
            let image = Arc::new(device.image_with_all_writes());
            let mut bad = content.clone();
            match how {
                0 => bad.fill(0),
                1 => bad.iter_mut().for_each(|b| *b = !*b),
                _ => bad[1..40].fill(0xff),
            }
            let data = Bytes::from(bad);
            image.write(&[Write { block, data }], true).unwrap();
            let found = check_stopped(&image).unwrap();
            seen += usize::from(!found.is_empty());
        }
    }
    assert!(seen > 10, "only {seen} damaged blocks were noticed");
}

#[test]
fn a_check_that_cannot_read_is_an_error_and_finds_nothing() {
    let (device, _) = stopped();
    for reads in 0..1000 {
        device.fail_read_after(reads);
        let result = check_stopped(&device);
        if device.reads_are_good() {
            assert!(
                matches!(result, Err(FsError::Device(DeviceError::Unavailable(_)))),
                "{reads}: {result:?}"
            );
        } else {
            assert_eq!(result.unwrap(), Vec::<String>::new());
            assert!(reads > 5);
            return;
        }
    }
    panic!("a check reads more often than that");
}

#[test]
fn a_file_system_after_a_crash_is_checked_with_its_log_and_left_as_it_is() {
    let (device, fs) = fresh(8);
    for i in 0..50 {
        let ino = fs.create(&CALLER, ROOT, format!("f{i}").as_bytes(), 0o644).unwrap().ino;
        fs.write(ino, 0, &[1; 10_000], false).unwrap();
    }
    fs.sync().unwrap();
    let image = Arc::new(device.image(1));
    let plain: Arc<dyn BlockDevice> = image.clone();
    for _ in 0..2 {
        let report = FileSystem::check_device(&plain).unwrap().unwrap();
        assert_eq!((report.inodes, report.used_blocks), (51, 150));
        assert_eq!((report.blocks, report.problems), (2048, vec![]));
    }
    assert_eq!((image.writes(), image.flushes()), (0, 0));
}

#[test]
fn a_file_system_in_use_is_checked_as_it_is_at_one_moment() {
    let (_, fs) = fresh(64);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let ended = &stop;
    std::thread::scope(|threads| {
        for worker in 0..2_u32 {
            let fs = fs.clone();
            threads.spawn(move || {
                let dir = fs
                    .mkdir(&CALLER, ROOT, format!("d{worker}").as_bytes(), 0o755)
                    .unwrap()
                    .ino;
                for i in 0_u64.. {
                    if ended.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("f{}", i % 50).into_bytes();
                    let ino = fs
                        .create(&CALLER, dir, &name, 0o644)
                        .or_else(|_| fs.lookup(dir, &name))
                        .unwrap()
                        .ino;
                    fs.write(ino, i % 7 * 10_000, &[1; 9000], false).unwrap();
                    match i % 5 {
                        0 => fs.unlink(dir, &name).unwrap(),
                        1 => fs.rename(dir, &name, dir, b"other", 0).unwrap(),
                        2 if i % 3 == 0 => fs.fsync(ino, false).unwrap(),
                        _ => {}
                    }
                    fs.release(ino);
                    fs.forget(ino, 10);
                    if i % 40 == 0 {
                        fs.core.checkpoint_all().unwrap();
                        fs.core.reclaim().unwrap();
                    }
                }
            });
        }
        for _ in 0..200 {
            let report = fs.check().unwrap();
            assert_eq!(report.problems, Vec::<String>::new());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    fs.close().unwrap();
    assert!(matches!(fs.check(), Err(FsError::Closed)));
}

#[test]
fn what_is_too_much_to_list_is_counted() {
    let (device, fs) = fresh(8);
    for i in 0..1200 {
        fs.mknod(&CALLER, ROOT, format!("f{i}").as_bytes(), libc::S_IFREG | 0o644, 0)
            .unwrap();
    }
    fs.close().unwrap();
    patch(&device, [0; 4], |p| {
        for ino in 2..1202 {
            p.inode(ino, |inode| inode.nlink = 5);
        }
    });
    let fs = open(&device);
    let report = fs.check().unwrap();
    assert_eq!((report.problems.len(), report.unlisted), (1000, 200));
    assert_eq!(fs.lookup(ROOT, b"f1").unwrap().kind, FileKind::File);
}
