//! Power loss at any moment: the file system mounts, its metadata is whole, what was synced is there, and no file shows another's
//! bytes.

use super::{CALLER, check, fresh, open};
use crate::fs::{FileKind, FileSystem, FsError, ROOT};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Each file holds only its own number, so foreign bytes are seen.
fn bytes_of(file: u8, length: usize) -> Vec<u8> {
    vec![file + 1; length]
}

#[derive(Clone, Debug)]
enum Step {
    Write { file: u8, offset: u64, length: usize },
    Truncate { file: u8, size: u64 },
    Remove { file: u8 },
    Replace { file: u8, by: u8 },
    Fsync { file: u8 },
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let file = 0..6_u8;
    prop_oneof![
        5 => (file.clone(), 0..40_000_u64, 1..30_000_usize)
            .prop_map(|(file, offset, length)| Step::Write { file, offset, length }),
        1 => (file.clone(), 0..40_000_u64).prop_map(|(file, size)| Step::Truncate { file, size }),
        2 => file.clone().prop_map(|file| Step::Remove { file }),
        2 => (file.clone(), file.clone()).prop_map(|(file, by)| Step::Replace { file, by }),
        3 => file.prop_map(|file| Step::Fsync { file }),
        1 => Just(Step::Sync),
    ]
}

/// The content that a sync made durable, by name; `None` when a later unsynced operation may have changed it.
type Promise = BTreeMap<u8, Option<Vec<u8>>>;

fn apply(fs: &FileSystem, promise: &mut Promise, step: &Step) -> Result<(), FsError> {
    let name = |file: u8| vec![b'a' + file];
    let find = |file: u8| match fs.lookup(ROOT, &name(file)) {
        Ok(attr) => {
            fs.forget(attr.ino, 1);
            Ok(Some(attr.ino))
        }
        Err(FsError::Posix(libc::ENOENT)) => Ok(None),
        Err(e) => Err(e),
    };
    let remember = |promise: &mut Promise, file: u8| {
        if let Ok(Some(ino)) = find(file) {
            let content = fs.read(ino, 0, u32::MAX).unwrap().to_vec();
            promise.insert(file, Some(content));
        }
    };
    match *step {
        Step::Write { file, offset, length } => {
            promise.insert(file, None);
            let ino = match find(file)? {
                Some(ino) => ino,
                None => {
                    let ino = fs.create(&CALLER, ROOT, &name(file), 0o644)?.ino;
                    fs.release(ino);
                    fs.forget(ino, 1);
                    ino
                }
            };
            fs.write(ino, offset, &bytes_of(file, length), false)?;
        }
        Step::Truncate { file, size } => {
            if let Some(ino) = find(file)? {
                promise.insert(file, None);
                let set = crate::fs::SetAttr {
                    size: Some(size),
                    ..Default::default()
                };
                fs.setattr(ino, &set)?;
            }
        }
        Step::Remove { file } => {
            promise.insert(file, None);
            match fs.unlink(ROOT, &name(file)) {
                Err(FsError::Posix(libc::ENOENT)) | Ok(()) => {}
                Err(e) => return Err(e),
            }
        }
        Step::Replace { file, by } => {
            // The idiom of editors: write a new file, sync it, rename it over the old one. Either is whole afterwards.
            promise.insert(file, None);
            let fresh = vec![b'A' + by];
            let ino = fs.create(&CALLER, ROOT, &fresh, 0o644)?.ino;
            fs.write(ino, 0, &bytes_of(file, 10_000), false)?;
            fs.fsync(ino, false)?;
            fs.rename(ROOT, &fresh, ROOT, &name(file), 0)?;
            fs.release(ino);
            fs.forget(ino, 1);
        }
        Step::Fsync { file } => {
            if let Some(ino) = find(file)? {
                fs.fsync(ino, false)?;
                remember(promise, file);
            }
        }
        Step::Sync => {
            fs.sync()?;
            for file in 0..6 {
                remember(promise, file);
            }
        }
    }
    Ok(())
}

fn verify(fs: &FileSystem, promise: &Promise) {
    check(fs);
    for file in 0..6_u8 {
        let found = fs
            .lookup(ROOT, &[b'a' + file])
            .map(|attr| fs.read(attr.ino, 0, u32::MAX).unwrap().to_vec());
        if let Ok(content) = &found {
            assert!(
                content.iter().all(|b| *b == 0 || *b == file + 1),
                "file {file} shows another's bytes"
            );
        }
        if let Some(Some(expected)) = promise.get(&file) {
            assert_eq!(&found.unwrap(), expected, "file {file} is not as it was synced");
        }
    }
}

/// New files are zeros but for what is written into them, whatever a crash left in free blocks.
pub(super) fn verify_fresh(fs: &FileSystem) {
    let ino = fs.create(&CALLER, ROOT, b"allocated", 0o644).unwrap().ino;
    let part = fs.create(&CALLER, ROOT, b"part", 0o644).unwrap().ino;
    let free = fs.statfs().unwrap().free;
    for at in 0..free.min(16) {
        if fs.write(part, at * 8192 + 100, b"?", false).is_err() {
            break;
        }
    }
    // All the rest, one block after the other until nothing is left.
    for at in 0..free.min(256) {
        if fs.fallocate(ino, 0, at * 4096, 4096).is_err() {
            break;
        }
    }
    let content = fs.read(ino, 0, u32::MAX).unwrap();
    assert!(content.iter().all(|b| *b == 0), "a new block is not zeros");
    let content = fs.read(part, 0, u32::MAX).unwrap();
    assert!(
        content.iter().all(|b| *b == 0 || *b == b'?'),
        "a partly written new block is not zeros"
    );
}

#[test]
fn a_block_whose_allocation_a_crash_took_back_is_zeros_for_its_next_owner() {
    for (clean, partial) in [(false, false), (false, true), (true, false), (true, true)] {
        let (device, mut fs) = fresh(8);
        if clean {
            // The window was durable before.
            let ino = fs.create(&CALLER, ROOT, b"first", 0o644).unwrap().ino;
            fs.write(ino, 0, &[1; 100], false).unwrap();
            fs.close().unwrap();
            fs = open(&device);
        }
        let a = fs.create(&CALLER, ROOT, b"a", 0o644).unwrap().ino;
        fs.write(a, 0, &[9; 4096], false).unwrap();
        let image = Arc::new(device.image_with_all_writes());
        let after = open(&image);
        let b = after.create(&CALLER, ROOT, b"b", 0o644).unwrap().ino;
        if partial {
            after.write(b, 10, b"x", false).unwrap();
            after.write(b, 4095, b"x", false).unwrap();
        } else {
            after.fallocate(b, 0, 0, 4096).unwrap();
        }
        let content = after.read(b, 0, 8192).unwrap();
        assert!(content.iter().all(|b| *b == 0 || *b == b'x'));
        check(&after);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_a_power_loss_at_any_write_everything_synced_is_there(
        steps in prop::collection::vec(step(), 1..40), at in 0..400_u64, random: u64,
    ) {
        let (device, fs) = fresh(2);
        device.crash_after(at);
        let mut promise = Promise::new();
        for step in &steps {
            if let Err(error) = apply(&fs, &mut promise, step) {
                // A volume of 2 MiB may also be full.
                if error.errno() != libc::ENOSPC {
                    break;
                }
            }
        }
        for seed in 0..3 {
            let image = Arc::new(device.image(random.wrapping_add(seed)));
            let after = open(&image);
            verify(&after, &promise);
            // What was recovered goes on, and survives the next clean stop.
            after.close().unwrap();
            let again = open(&image);
            verify(&again, &promise);
            verify_fresh(&again);
            check(&again);
            let image = Arc::new(device.image(random.wrapping_add(seed)));
            verify_fresh(&open(&image));
        }
    }
}

#[test]
fn a_crash_at_each_of_the_writes_of_a_checkpoint_is_survived() {
    for at in (0..600).step_by(7) {
        let (device, fs) = fresh(8);
        for i in 0..40 {
            let ino = fs.create(&CALLER, ROOT, format!("f{i}").as_bytes(), 0o644).unwrap().ino;
            fs.write(ino, 0, &[1; 100], false).unwrap();
        }
        fs.sync().unwrap();
        device.crash_after(at);
        let _ = fs.close();
        let image = Arc::new(device.image(at));
        let after = open(&image);
        check(&after);
        for i in 0..40 {
            let ino = after.lookup(ROOT, format!("f{i}").as_bytes()).unwrap().ino;
            assert_eq!(after.read(ino, 0, 200).unwrap(), [1; 100][..]);
        }
    }
}

#[test]
fn a_log_that_fills_up_is_checkpointed_while_work_goes_on() {
    let (device, fs) = fresh(64);
    let name = |i: u32| format!("{i:0200}").into_bytes();
    // Some 60 MiB of records: both halves, several times.
    for i in 0..12_000 {
        let ino = fs.create(&CALLER, ROOT, &name(i), 0o644).unwrap().ino;
        fs.fsync(ino, false).unwrap();
        fs.release(ino);
        fs.forget(ino, 1);
    }
    let after = open(&Arc::new(device.image(3)));
    check(&after);
    for i in 0..12_000 {
        after.lookup(ROOT, &name(i)).unwrap();
    }
}

#[test]
fn a_rename_and_the_whiteout_it_leaves_are_one_operation() {
    let (device, fs) = fresh(8);
    let ino = fs.create(&CALLER, ROOT, b"a", 0o644).unwrap().ino;
    fs.sync().unwrap();
    let before = fs.core.state.lock().op;
    fs.rename(ROOT, b"a", ROOT, b"b", libc::RENAME_WHITEOUT).unwrap();
    // So no commit can come between.
    assert_eq!(fs.core.state.lock().op, before + 1);
    fs.sync().unwrap();
    let after = open(&Arc::new(device.image(0)));
    assert_eq!(after.lookup(ROOT, b"b").unwrap().ino, ino);
    let whiteout = after.lookup(ROOT, b"a").unwrap();
    assert_eq!((whiteout.kind, whiteout.rdev), (FileKind::CharDevice, 0));
    check(&after);
}

#[test]
fn zeroing_and_allocating_a_range_is_one_operation() {
    let (_, fs) = fresh(8);
    let ino = fs.create(&CALLER, ROOT, b"a", 0o644).unwrap().ino;
    fs.write(ino, 0, &[1; 10_000], false).unwrap();
    let before = fs.core.state.lock().op;
    fs.fallocate(ino, libc::FALLOC_FL_ZERO_RANGE, 100, 20_000).unwrap();
    assert_eq!(fs.core.state.lock().op, before + 1);
    let attr = fs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.blocks), (20_100, 5 * 8));
    let content = fs.read(ino, 0, 30_000).unwrap();
    assert!(content[..100].iter().all(|b| *b == 1) && content[100..].iter().all(|b| *b == 0));
    check(&fs);
}
