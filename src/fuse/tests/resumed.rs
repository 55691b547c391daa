//! Mounts whose daemon dies and that the next one goes on with: open files, unlinked ones, requests under way.
//!
//! A daemon's death is played by a process of its own that serves the mount and is killed: this test's program, started again for
//! [`serve_until_killed`]. The device is a file, so that both processes see it.

use super::{LONG, eventually, need_root, python};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use crate::fdstore::{FdStore, FdStoreConfig, run};
use crate::fs::{FileSystem, Memory, Options, device_blocks};
use crate::fuse::{DEFAULT_LOOPS, LiveMount, MountHandle, ServeOptions, Unmount, resume, serve};
use mount_helper::options::MountOptions;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 64;
/// Where [`serve_until_killed`] works.
const HOME: &str = "STORAGEOS_TEST_RESUMED";
/// Starts and kills daemons. A child of the test itself would have the test's open files until its exec closes them, and wait there for the
/// daemon that it is to become.
const LAUNCHER: &str = r#"
while read -r word; do
  case $word in
  start) "$0" --exact fuse::tests::resumed::serve_until_killed --nocapture </dev/null >/dev/null & ;;
  kill) kill -9 $!; wait $! 2>/dev/null ;;
  esac
  echo "$word"
done"#;

/// Blocks in a file; writes stop while a file `suspend` is beside it.
struct FileDevice {
    file: File,
    home: PathBuf,
}

impl FileDevice {
    fn open(home: &Path) -> Arc<Self> {
        let path = home.join("device");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        file.set_len(device_blocks(MIB << 20) * BLOCK_SIZE as u64).unwrap();
        let home = home.to_owned();
        Arc::new(Self { file, home })
    }

    fn wait(&self) {
        while self.home.join("suspend").exists() {
            fs::write(self.home.join("waiting"), "").unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn failed(error: std::io::Error) -> DeviceError {
    DeviceError::Io(error.to_string())
}

impl BlockDevice for FileDevice {
    fn blocks(&self) -> u64 {
        device_blocks(MIB << 20)
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.file
            .read_exact_at(buffer, block * BLOCK_SIZE as u64)
            .map_err(failed)
    }

    fn write(&self, writes: &[Write], _: bool) -> Result<(), DeviceError> {
        self.wait();
        for write in writes {
            self.file
                .write_all_at(&write.data, write.block * BLOCK_SIZE as u64)
                .map_err(failed)?;
        }
        Ok(())
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        let zeros = vec![0; count as usize * BLOCK_SIZE];
        self.file
            .write_all_at(&zeros, block * BLOCK_SIZE as u64)
            .map_err(failed)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn fdstore(home: &Path) -> Arc<FdStore> {
    FdStore::new(FdStoreConfig {
        socket: home.join("fdstore.sock"),
        // It runs in the test's own process.
        program: "/bin/true".into(),
        wait: LONG,
    })
}

fn options(home: &Path) -> ServeOptions {
    ServeOptions {
        source: "test/vol".into(),
        mountpoint: home.join("mnt"),
        loops: DEFAULT_LOOPS,
    }
}

/// Commits only when asked to: what is there after a death is there without a commit.
fn lazily() -> Options {
    Options {
        commit_interval: Duration::from_secs(3600),
        ..Options::default()
    }
}

/// Serves what the store holds, or a new mount; `true`: as on a kernel that cannot send requests again.
fn serve_here(home: &Path, old_kernel: bool) -> (Arc<MountHandle>, Arc<FdStore>) {
    let store = fdstore(home);
    let device: Arc<dyn BlockDevice> = FileDevice::open(home);
    let greeting = home.join("greeting");
    let Some(held) = store.take().unwrap().pop() else {
        let memory = Memory::new().unwrap();
        let kept = memory.try_clone().unwrap();
        let file_system = FileSystem::open_in_memory(device, lazily(), memory).unwrap();
        let fd = mount_helper::mount_fuse("test/vol", &home.join("mnt"), &MountOptions::default()).unwrap();
        let handle = serve(file_system, fd, options(home), |_| ()).unwrap();
        fs::write(greeting, handle.live().greeting()).unwrap();
        let fuse = handle.live().as_fd().try_clone_to_owned().unwrap();
        store.keep("mount", vec![fuse, kept]).unwrap();
        return (handle, store);
    };
    let [fuse, memory]: [OwnedFd; 2] = held.descriptors.try_into().unwrap();
    let mut greeted = fs::read(greeting).unwrap();
    if old_kernel {
        // Of `flags2`.
        greeted[56] &= !(1 << 7);
    }
    let live = LiveMount::new(fuse, greeted).unwrap();
    let asked = live.try_clone().unwrap();
    let memory = Memory::inherited(memory, move |ino| asked.knows(ino));
    let file_system = FileSystem::open_in_memory(device, lazily(), memory).unwrap();
    (resume(file_system, live, options(home), |_| ()).unwrap(), store)
}

/// Not a test of its own: the daemon of the others.
#[test]
fn serve_until_killed() {
    let Some(home) = std::env::var_os(HOME) else { return };
    let home = PathBuf::from(home);
    let (handle, _store) = serve_here(&home, home.join("old").exists());
    fs::write(home.join("serving"), "").unwrap();
    while handle.ended().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A mount, and the daemon that serves it.
struct Outlived {
    home: tempfile::TempDir,
    launcher: Child,
    said: BufReader<ChildStdout>,
    keeping: Option<std::thread::JoinHandle<()>>,
}

impl Outlived {
    fn new() -> Self {
        need_root();
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("mnt")).unwrap();
        let device: Arc<dyn BlockDevice> = FileDevice::open(home.path());
        FileSystem::format(&device, MIB << 20).unwrap();
        let mut launcher = Command::new("bash")
            .args(["-c", LAUNCHER])
            .arg(std::env::current_exe().unwrap())
            .env(HOME, home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(launcher.stdout.take().unwrap());
        let socket = home.path().join("fdstore.sock");
        let keeping = std::thread::spawn(move || run(&socket, LONG).unwrap());
        let mut this = Self {
            home,
            launcher,
            said,
            keeping: Some(keeping),
        };
        let socket = this.at("fdstore.sock");
        eventually("the descriptor store listens", || socket.exists());
        this.start();
        this
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn mount(&self) -> PathBuf {
        self.at("mnt")
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.launcher.stdin.as_mut().unwrap(), "{word}").unwrap();
        let mut said = String::new();
        self.said.read_line(&mut said).unwrap();
        assert_eq!(said.trim(), word);
    }

    fn start(&mut self) {
        self.tell("start");
        let serving = self.at("serving");
        eventually("the daemon serves", || serving.exists());
        fs::remove_file(serving).unwrap();
    }

    fn kill(&mut self) {
        self.tell("kill");
    }

    fn kill_and_start(&mut self) {
        self.kill();
        self.start();
    }
}

impl Drop for Outlived {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.at("suspend"));
        self.kill();
        if std::thread::panicking() {
            // Nobody answers any more.
            let _ = rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::DETACH);
            return;
        }
        // As the last daemon would end it.
        let (handle, store) = serve_here(self.home.path(), false);
        handle.unmount(Unmount::Clean).unwrap();
        handle.wait(LONG, LONG).expect("the mount ends").unwrap();
        store.let_go("mount");
        drop((handle, store));
        self.keeping.take().unwrap().join().unwrap();
        drop(self.launcher.stdin.take());
        let _ = self.launcher.wait();
    }
}

#[test]
fn open_files_and_what_nobody_synced_are_there_with_the_next_daemon() {
    let mut mount = Outlived::new();
    let path = mount.mount().join("f");
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all_at(&[1; 10_000], 0).unwrap();
    let unlinked = mount.mount().join("unlinked");
    let mut gone = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&unlinked)
        .unwrap();
    gone.write_all_at(&[2; 5000], 0).unwrap();
    fs::remove_file(&unlinked).unwrap();
    fs::create_dir_all(mount.mount().join("d/e")).unwrap();
    python(
        &mount.mount(),
        "import os; [open(f'many{n}', 'w').write(str(n)) for n in range(300)]",
    );
    for round in 0..3_u8 {
        mount.kill_and_start();
        file.write_all_at(&[round], 10_000 + u64::from(round)).unwrap();
        gone.seek(SeekFrom::Start(0)).unwrap();
        let mut content = Vec::new();
        gone.read_to_end(&mut content).unwrap();
        assert_eq!(content, [2; 5000]);
        fs::rename(&path, mount.mount().join("g")).unwrap();
        fs::rename(mount.mount().join("g"), &path).unwrap();
    }
    // Past the kernel's caches.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    file.rewind().unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content[..10_000], [1; 10_000]);
    assert_eq!(content[10_000..], [0, 1, 2]);
    let listed = python(
        &mount.mount(),
        "import os; print(sum(open(f'many{n}').read() == str(n) for n in range(300)))",
    );
    assert_eq!(listed, "300");
    assert!(mount.mount().join("d/e").is_dir());
}

/// Requests that the daemon has taken and cannot answer, since its device's writes wait; then it is killed.
fn killed_in_a_write(mount: &mut Outlived) -> std::thread::JoinHandle<std::io::Result<()>> {
    fs::write(mount.at("suspend"), "").unwrap();
    let path = mount.mount().join("slow");
    let writer = std::thread::spawn(move || {
        let file = File::create(path)?;
        file.write_all_at(&vec![7; 3 << 20], 0)?;
        file.sync_all()
    });
    let waiting = mount.at("waiting");
    eventually("a write waits in the daemon", || waiting.exists());
    mount.kill();
    fs::remove_file(mount.at("suspend")).unwrap();
    writer
}

#[test]
fn what_was_under_way_is_done_by_the_next_daemon() {
    let mut mount = Outlived::new();
    let writer = killed_in_a_write(&mut mount);
    mount.start();
    writer.join().unwrap().unwrap();
    assert_eq!(fs::read(mount.mount().join("slow")).unwrap(), vec![7; 3 << 20]);
}

#[test]
fn on_a_kernel_that_cannot_send_again_what_was_under_way_fails_and_the_mount_lives() {
    let mut mount = Outlived::new();
    fs::write(mount.at("old"), "").unwrap();
    mount.kill_and_start();
    let writer = killed_in_a_write(&mut mount);
    // What the dead one had not taken is answered by the next one.
    mount.start();
    let error = writer.join().unwrap().unwrap_err();
    assert!(
        [libc::EIO, libc::ECONNABORTED].contains(&error.raw_os_error().unwrap()),
        "{error}"
    );
    mount.start();
    fs::write(mount.mount().join("after"), "lives").unwrap();
    assert_eq!(fs::read_to_string(mount.mount().join("after")).unwrap(), "lives");
}

#[test]
fn every_name_is_made_once_however_often_the_daemon_dies() {
    let mut mount = Outlived::new();
    let program = "
import os
for n in range(1000):
    os.mkdir('d'); os.rmdir('d')
    open(f'f{n}', 'x').close()
    os.rename(f'f{n}', f'g{n}')
    os.link(f'g{n}', 'l'); os.unlink('l')
    os.symlink('x', 's'); os.unlink('s')
    os.setxattr(f'g{n}', 'user.a', b'1', os.XATTR_CREATE); os.removexattr(f'g{n}', 'user.a')
";
    let directory = mount.mount();
    let worker = std::thread::spawn(move || python(&directory, program));
    for _ in 0..30 {
        mount.kill_and_start();
    }
    worker.join().unwrap();
    let names = python(&mount.mount(), "import os; print(len(os.listdir('.')))");
    assert_eq!(names, "1000");
}
