//! A volume whose writes are suspended: whoever writes waits, nobody else does.

use super::{LONG, mounted};
use std::fs::{self, File};
use std::sync::mpsc;

#[test]
fn many_stuck_writers_do_not_hold_up_reads_and_lookups() {
    let mount = mounted(256);
    fs::write(mount.path("old"), vec![5; 1 << 20]).unwrap();
    let old = File::open(mount.path("old")).unwrap();
    old.sync_all().unwrap();
    // Out of the kernel's cache, so that reading asks us.
    rustix::fs::fadvise(&old, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    mount.device.suspend(true);
    let (sent, written) = mpsc::channel();
    let writers = 12;
    for i in 0..writers {
        let (path, sent) = (mount.path(&format!("w{i}")), sent.clone());
        std::thread::spawn(move || {
            let result = fs::write(&path, vec![1; 1 << 16]).and_then(|()| File::open(&path)?.sync_all());
            sent.send(result).unwrap();
        });
    }
    super::eventually("the writers are stuck", || mount.count("write") >= writers);
    // In a thread of its own: the test must end even if the promise is broken.
    let (sent_read, read) = mpsc::channel();
    let (path, directory) = (mount.path("old"), mount.directory.path().to_owned());
    std::thread::spawn(move || {
        let content = fs::read(path).unwrap();
        let names = fs::read_dir(&directory).unwrap().count();
        let missing = directory.join("missing").exists();
        fs::create_dir(directory.join("even-a-new-directory")).unwrap();
        sent_read.send((content.len(), names, missing)).unwrap();
    });
    let answer = read.recv_timeout(LONG);
    assert!(
        written.try_recv().is_err(),
        "a write was acknowledged while the volume was suspended"
    );
    mount.device.suspend(false);
    let (length, names, missing) = answer.expect("reads go on");
    assert_eq!((length, missing), (1 << 20, false));
    assert!(names > 1);
    for _ in 0..writers {
        written.recv_timeout(LONG).expect("writes go on").unwrap();
    }
}
