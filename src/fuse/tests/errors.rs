//! Errors of the volume as programs see them: once for each open file, as Linux does, and never as silence.

use super::{eventually, mounted};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

#[test]
fn a_lost_write_is_told_once_to_each_open_file_and_then_all_is_well() {
    let mount = mounted(64);
    let path = mount.path("f");
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all(&[1; 8192]).unwrap();
    file.sync_all().unwrap();
    let other = File::options().write(true).open(&path).unwrap();
    mount.device.fail(true);
    file.write_all_at(&[2; 4096], 4096).unwrap();
    assert!(file.sync_all().is_err(), "what was written is not saved");
    assert!(file.sync_all().is_err(), "and still cannot be: the volume fails");
    mount.device.fail(false);
    // The commit that failed is tried again; what the program wrote is lost, and it has been told.
    eventually("the volume takes changes again", || {
        fs::write(mount.path("probe"), "x").is_ok()
    });
    file.sync_all().unwrap();
    assert!(
        other.sync_all().is_err(),
        "who had the file open at that time is told, too"
    );
    other.sync_all().unwrap();
    // And whoever opens it later is not.
    File::open(&path).unwrap().sync_all().unwrap();
    file.write_all_at(&[3; 4096], 4096).unwrap();
    file.sync_all().unwrap();
    drop((file, other));
    let mount = mount.remounted();
    assert_eq!(fs::read(mount.path("f")).unwrap()[4096..], [3; 4096]);
}

#[test]
fn who_neither_syncs_nor_writes_directly_hears_of_a_lost_write_when_closing() {
    let mount = mounted(64);
    let program = "
import os, sys
fd = os.open('f', os.O_CREAT | os.O_WRONLY); os.write(fd, b'x' * 4096); os.fsync(fd)
sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()
os.write(fd, b'y' * 4096)
try: os.close(fd); print('silence')
except OSError: print('told')
";
    let mut child = std::process::Command::new("python3")
        .args(["-c", program])
        .current_dir(mount.directory.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    mount.device.fail(true);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    line.clear();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    child.wait().unwrap();
    assert_eq!(line.trim(), "told");
}
