//! Full metadata, and devices that fail or refuse.

use super::{CALLER, check, open, with_metadata_limit};
use crate::fs::{FsError, ROOT};

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
    assert_eq!(errno(fs.setxattr(ino, b"user.a", b"1", 0)), libc::ENOSPC);
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
