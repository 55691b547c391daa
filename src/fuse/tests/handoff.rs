//! The way from a mount helper to a live mount and back, with helpers that misbehave.

use super::{LONG, MemoryDevice, eventually, need_root};
use crate::fs::{FileSystem, Options};
use crate::fuse::{
    Handoff, HandoffError, HandoffServer, MountBackend, MountEnd, MountHandle, MountRequest, Unmount,
    detach_dead_mounts, mount_socket,
};
use mount_helper::options::MountOptions;
use mount_helper::protocol::{self, Answer, Request};
use mount_helper::{MountArguments, MountError, UnmountFlags};
use parking_lot::Mutex;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// One volume, `default/v`, that one mount at a time may have.
struct OneVolume {
    device: Arc<MemoryDevice>,
    events: Mutex<Vec<&'static str>>,
    claimed: Mutex<bool>,
}

impl MountBackend for OneVolume {
    fn prepare(&self, request: &MountRequest) -> Result<(String, Arc<FileSystem>), HandoffError> {
        let mut claimed = self.claimed.lock();
        if *claimed || !request.volume.ends_with('v') {
            let message = "default/v is mounted on node n2 at /data; unmount it there first".into();
            return Err(HandoffError {
                message,
                code: "in_use",
            });
        }
        *claimed = true;
        self.events.lock().push("prepared");
        let fs = FileSystem::open(self.device.clone(), Options::default()).unwrap();
        Ok(("default/v".into(), fs))
    }

    fn mounted(&self, _: &MountRequest, _: &Arc<MountHandle>) {
        self.events.lock().push("mounted");
    }

    fn ended(&self, _: &MountRequest, end: &MountEnd) {
        self.events
            .lock()
            .push(if end.is_ok() { "ended" } else { "ended badly" });
        *self.claimed.lock() = false;
    }
}

struct Daemon {
    directory: tempfile::TempDir,
    backend: Arc<OneVolume>,
    handoff: Handoff,
    server: Option<HandoffServer>,
}

fn daemon() -> Daemon {
    need_root();
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("mnt")).unwrap();
    let backend = Arc::new(OneVolume {
        device: MemoryDevice::formatted(16),
        events: Mutex::default(),
        claimed: Mutex::new(false),
    });
    let socket = mount_socket(&directory.path().join("api.sock"));
    let handoff = Handoff::new(backend.clone());
    let server = Some(handoff.listen(&socket).unwrap());
    Daemon {
        directory,
        backend,
        handoff,
        server,
    }
}

impl Daemon {
    fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    fn api(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(mount_socket(&self.api())).unwrap()
    }

    fn mount(&self) -> Result<(), MountError> {
        let arguments = MountArguments {
            volume: "v".into(),
            mountpoint: self.mountpoint(),
            options: MountOptions {
                socket: Some(self.api()),
                ..MountOptions::default()
            },
            fake: false,
        };
        mount_helper::mount(&arguments)
    }

    fn unmount(&self) -> Result<(), MountError> {
        mount_helper::unmount(&self.mountpoint(), UnmountFlags::default(), Some(&self.api()))
    }

    fn events(&self) -> Vec<&'static str> {
        self.backend.events.lock().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for mount in self.handoff.mounts() {
            let _ = mount.unmount(Unmount::Abort);
            let _ = mount.wait(LONG, LONG);
        }
    }
}

fn ask(stream: &mut UnixStream, request: &Request) -> Answer {
    protocol::send(stream, request).unwrap();
    protocol::receive(stream, Instant::now() + LONG).unwrap().0
}

fn mount_request(mountpoint: &Path) -> Request {
    Request::Mount(MountRequest {
        volume: "v".into(),
        mountpoint: mountpoint.to_owned(),
        read_only: false,
    })
}

#[test]
fn when_umount_returns_everything_is_saved_and_the_claim_is_free() {
    let daemon = daemon();
    for round in 0..3 {
        daemon.mount().unwrap();
        let file = daemon.mountpoint().join("count");
        let before = fs::read_to_string(&file).map_or(0, |text| text.parse().unwrap());
        assert_eq!(before, round);
        fs::write(&file, (round + 1).to_string()).unwrap();
        daemon.unmount().unwrap();
        assert_eq!(daemon.events(), ["prepared", "mounted", "ended"]);
        daemon.backend.events.lock().clear();
    }
}

#[test]
fn a_busy_mount_is_not_unmounted_and_a_lazy_unmount_ends_with_its_last_user() {
    let daemon = daemon();
    daemon.mount().unwrap();
    let user = fs::File::create(daemon.mountpoint().join("f")).unwrap();
    assert!(matches!(daemon.unmount(), Err(MountError::Kernel { .. })));
    let lazy = UnmountFlags {
        lazy: true,
        ..UnmountFlags::default()
    };
    mount_helper::unmount(&daemon.mountpoint(), lazy, Some(&daemon.api())).unwrap();
    assert_eq!(daemon.events(), ["prepared", "mounted"]);
    drop(user);
    eventually("the mount ends", || daemon.events().last() == Some(&"ended"));
}

#[test]
fn a_refused_mount_says_why_and_leaves_nothing_behind() {
    let daemon = daemon();
    daemon.mount().unwrap();
    let error = daemon.mount().unwrap_err();
    assert!(error.to_string().contains("unmount it there first"), "{error}");
    daemon.unmount().unwrap();
    let again = daemon.unmount().unwrap_err();
    assert!(matches!(again, MountError::NotMounted(_)), "{again}");
}

#[test]
fn without_a_daemon_mount_says_how_to_start_it_and_umount_still_works() {
    let mut daemon = daemon();
    daemon.mount().unwrap();
    // No more socket, as if the daemon were gone.
    let mount = daemon.handoff.mounts().remove(0);
    daemon.server = None;
    daemon.unmount().unwrap();
    mount.wait(LONG, LONG).expect("it ends").unwrap();
    let error = daemon.mount().unwrap_err().to_string();
    assert!(error.contains("storageos node run"), "{error}");
}

#[test]
fn the_socket_is_roots_alone_and_a_living_daemons_is_not_taken() {
    let daemon = daemon();
    let socket = mount_socket(&daemon.api());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let error = Handoff::new(daemon.backend.clone())
        .listen(&socket)
        .err()
        .expect("a second server is refused");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn a_helper_that_dies_after_ready_gives_the_claim_back() {
    let daemon = daemon();
    let mut helper = daemon.connect();
    let ready = ask(&mut helper, &mount_request(&daemon.mountpoint()));
    assert_eq!(
        ready,
        Answer::Ready {
            volume: "default/v".into()
        }
    );
    drop(helper);
    eventually("the claim is free", || daemon.events() == ["prepared", "ended"]);
    daemon.mount().unwrap();
    daemon.unmount().unwrap();
}

#[test]
fn helpers_that_talk_nonsense_or_nothing_hold_nobody_up() {
    let daemon = daemon();
    let silent: Vec<_> = (0..10).map(|_| daemon.connect()).collect();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"{}\n", b"\0\0\0\n"] {
        let mut helper = daemon.connect();
        helper.write_all(garbage).unwrap();
        let answer: Answer = protocol::receive(&helper, Instant::now() + LONG).unwrap().0;
        assert!(matches!(answer, Answer::Error { .. }), "{answer:?}");
    }
    let mut helper = daemon.connect();
    assert!(matches!(ask(&mut helper, &Request::Fd), Answer::Error { .. }));
    daemon.mount().unwrap();
    daemon.unmount().unwrap();
    drop(silent);
}

#[test]
fn a_descriptor_that_is_no_mounted_fuse_is_refused_and_the_claim_given_back() {
    let daemon = daemon();
    for wrong in ["/dev/null", "/dev/fuse"] {
        let mut helper = daemon.connect();
        ask(&mut helper, &mount_request(&daemon.mountpoint()));
        let file = fs::OpenOptions::new().read(true).write(true).open(wrong).unwrap();
        mount_helper::client::pass(&helper, file.into()).unwrap();
        let answer: Answer = protocol::receive(&helper, Instant::now() + LONG).unwrap().0;
        assert!(matches!(answer, Answer::Error { .. }), "{wrong}: {answer:?}");
    }
    assert_eq!(daemon.events(), ["prepared", "ended", "prepared", "ended"]);
}

#[test]
fn a_mount_whose_daemon_died_is_found_and_detached_a_living_one_is_not() {
    need_root();
    let (dead, alive) = (tempfile::tempdir().unwrap(), super::mounted(16));
    let fd = mount_helper::mount_fuse("test/dead", dead.path(), &MountOptions::default()).unwrap();
    drop(fd);
    assert!(fs::metadata(dead.path()).is_err());
    let places = [
        dead.path().to_owned(),
        alive.directory.path().to_owned(),
        "/nowhere".into(),
    ];
    assert_eq!(detach_dead_mounts(&places).unwrap(), [dead.path().to_owned()]);
    assert!(fs::metadata(dead.path()).is_ok());
    fs::write(alive.path("f"), b"alive").unwrap();
}
