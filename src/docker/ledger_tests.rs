//! The ledger's rules on a machine that only remembers what is mounted.

use super::*;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What is mounted, and what goes wrong.
#[derive(Default)]
struct Pretended {
    mounted: Mutex<BTreeMap<PathBuf, Place>>,
    /// Calls of `mount`.
    mounts: AtomicUsize,
    refuse: AtomicBool,
    busy: AtomicBool,
    hidden: AtomicBool,
    /// Containers have volumes mounted.
    used: AtomicBool,
    /// The engine that asks started so often.
    engine: AtomicUsize,
    /// Descriptors given out; they are closed when nobody holds the mount.
    holds: AtomicUsize,
}

struct Host(Arc<Pretended>);

impl HostMounts for Host {
    fn look(&self, _: &str, place: &Path) -> io::Result<Place> {
        Ok(self.0.mounted.lock().get(place).cloned().unwrap_or(Place::Empty))
    }

    fn is_mounted(&self, volume: &str, place: &Path) -> io::Result<bool> {
        Ok(matches!(self.look(volume, place)?, Place::Mounted | Place::Dead))
    }

    fn mount(&self, _: &str, place: &Path) -> Result<(), MountError> {
        assert!(place.is_dir());
        self.0.mounts.fetch_add(1, Ordering::Relaxed);
        if self.0.refuse.load(Ordering::Relaxed) {
            return Err(MountError::Refused {
                message: "volume default/v is already mounted on node n2, at /x\n  unmount it there".into(),
                code: "in_use".into(),
            });
        }
        let before = self.0.mounted.lock().insert(place.to_owned(), Place::Mounted);
        assert_eq!(before, None, "mounted over another");
        Ok(())
    }

    fn unmount(&self, place: &Path) -> Result<(), MountError> {
        if self.0.busy.load(Ordering::Relaxed) {
            return Err(MountError::Kernel {
                what: place.display().to_string(),
                source: io::ErrorKind::ResourceBusy.into(),
            });
        }
        self.detach(place).map_err(|_| MountError::NotMounted(place.to_owned()))
    }

    fn detach(&self, place: &Path) -> io::Result<()> {
        let was = self.0.mounted.lock().remove(place);
        was.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn hold(&self, place: &Path) -> io::Result<OwnedFd> {
        self.0.holds.fetch_add(1, Ordering::Relaxed);
        Ok(File::open(place)?.into())
    }

    fn is_visible_to(&self, _: i32, _: &str, _: &Path) -> Option<bool> {
        Some(!self.0.hidden.load(Ordering::Relaxed))
    }

    fn process(&self, pid: i32) -> Option<Process> {
        let started = self.0.engine.load(Ordering::Relaxed) as u64;
        Some(Process { pid, started })
    }

    fn is_used_elsewhere(&self, _: &Path) -> io::Result<bool> {
        Ok(self.0.used.load(Ordering::Relaxed))
    }
}

struct Machine {
    home: tempfile::TempDir,
    host: Arc<Pretended>,
}

impl Machine {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            host: Arc::default(),
        }
    }

    fn open(&self) -> Ledger {
        Ledger::open(self.home.path(), Box::new(Host(self.host.clone()))).unwrap()
    }

    fn place(&self) -> PathBuf {
        self.home.path().join("docker/v")
    }

    fn is_mounted(&self) -> bool {
        self.host.mounted.lock().contains_key(&self.place())
    }

    /// The daemon ends without a word: what it served is dead.
    fn dies(&self) {
        for place in self.host.mounted.lock().values_mut() {
            *place = Place::Dead;
        }
    }

    fn file(&self) -> String {
        fs::read_to_string(self.home.path().join("docker.json")).unwrap()
    }
}

fn mount(ledger: &Ledger, id: &str) -> Result<PathBuf, LedgerError> {
    let asker = Asker {
        id,
        process: Some(1),
        waits: &|| true,
    };
    ledger.mount("v", &asker)
}

#[test]
fn the_first_mounts_and_the_last_unmounts_however_often_they_say_so() {
    let machine = Machine::new();
    let ledger = machine.open();
    for id in ["a", "b", "a", "a"] {
        assert_eq!(mount(&ledger, id).unwrap(), machine.place());
    }
    assert_eq!(machine.host.mounts.load(Ordering::Relaxed), 1);
    assert_eq!(ledger.used_at("v"), Some(machine.place()));
    assert_eq!(
        machine.file(),
        concat!(
            r#"{"format":1,"volumes":{"v":{"a":{"pid":1,"started":0},"b":{"pid":1,"started":0}}}}"#,
            "\n"
        )
    );
    for id in ["a", "a", "unknown"] {
        ledger.unmount("v", id).unwrap();
        assert!(machine.is_mounted(), "b uses it");
    }
    ledger.unmount("v", "b").unwrap();
    assert!(!machine.is_mounted() && !machine.place().exists());
    assert_eq!(ledger.used_at("v"), None);
    assert_eq!(machine.file(), "{\"format\":1,\"volumes\":{}}\n");
    ledger.unmount("v", "b").unwrap();
}

#[test]
fn a_new_daemon_that_finds_the_mount_goes_on_counting() {
    let machine = Machine::new();
    let ledger = machine.open();
    mount(&ledger, "a").unwrap();
    mount(&ledger, "b").unwrap();
    drop(ledger);
    let ledger = machine.open();
    assert_eq!(machine.host.holds.load(Ordering::Relaxed), 2, "held again");
    ledger.sweep();
    ledger.unmount("v", "a").unwrap();
    assert!(machine.is_mounted(), "b uses it");
    ledger.unmount("v", "b").unwrap();
    assert!(!machine.is_mounted());
}

#[test]
fn those_who_used_a_dead_mount_do_not_count_for_the_next_one() {
    let machine = Machine::new();
    let ledger = machine.open();
    mount(&ledger, "a").unwrap();
    machine.dies();
    let ledger = {
        drop(ledger);
        machine.open()
    };
    // Still in the table.
    mount(&ledger, "b").unwrap();
    assert_eq!(
        machine.file(),
        concat!(r#"{"format":1,"volumes":{"v":{"b":{"pid":1,"started":0}}}}"#, "\n")
    );
    ledger.unmount("v", "a").unwrap();
    assert!(machine.is_mounted(), "b uses it");
    // Gone from the table, as after a reboot.
    machine.host.mounted.lock().clear();
    drop(ledger);
    let ledger = machine.open();
    assert_eq!(machine.file(), "{\"format\":1,\"volumes\":{}}\n");
    mount(&ledger, "c").unwrap();
    // Gone while the daemon runs: detached by force.
    machine.host.mounted.lock().clear();
    ledger.sweep();
    assert_eq!(ledger.used_at("v"), None);
    ledger.unmount("v", "c").unwrap();
}

#[test]
fn a_mount_that_is_busy_is_unmounted_later_or_used_again() {
    let machine = Machine::new();
    let ledger = machine.open();
    mount(&ledger, "a").unwrap();
    machine.host.busy.store(true, Ordering::Relaxed);
    let error = ApiError::from(ledger.unmount("v", "a").unwrap_err());
    assert_eq!(error.code, Code::Conflict);
    assert!(error.hint.unwrap().contains("fuser -vm"));
    ledger.sweep();
    assert!(machine.is_mounted());
    // Also over a restart.
    drop(ledger);
    let ledger = machine.open();
    machine.host.busy.store(false, Ordering::Relaxed);
    mount(&ledger, "b").unwrap();
    ledger.sweep();
    assert!(machine.is_mounted(), "b uses it");
    machine.host.busy.store(true, Ordering::Relaxed);
    ledger.unmount("v", "b").unwrap_err();
    machine.host.busy.store(false, Ordering::Relaxed);
    ledger.sweep();
    assert!(!machine.is_mounted());
    assert_eq!(machine.file(), "{\"format\":1,\"volumes\":{}}\n");
}

#[test]
fn what_could_not_be_mounted_leaves_nothing_behind() {
    let machine = Machine::new();
    let ledger = machine.open();
    machine.host.refuse.store(true, Ordering::Relaxed);
    let error = ApiError::from(mount(&ledger, "a").unwrap_err());
    assert_eq!(error.code, Code::Conflict);
    assert!(error.message.contains("on node n2") && error.hint.unwrap().contains("container"));
    assert!(!machine.place().exists());
    assert_eq!(machine.file(), "{\"format\":1,\"volumes\":{}}\n");
    machine.host.refuse.store(false, Ordering::Relaxed);
    mount(&ledger, "a").unwrap();

    let elsewhere = machine.home.path().join("docker/w");
    machine
        .host
        .mounted
        .lock()
        .insert(elsewhere, Place::Foreign("tmpfs".into()));
    let asker = Asker {
        id: "a",
        process: None,
        waits: &|| true,
    };
    assert!(matches!(ledger.mount("w", &asker), Err(LedgerError::Foreign { .. })));
}

#[test]
fn a_mount_that_docker_does_not_see_or_wait_for_is_taken_back() {
    let machine = Machine::new();
    let ledger = machine.open();
    machine.host.hidden.store(true, Ordering::Relaxed);
    assert!(matches!(
        mount(&ledger, "a"),
        Err(LedgerError::Hidden { process: 1, .. })
    ));
    assert!(!machine.is_mounted());
    machine.host.hidden.store(false, Ordering::Relaxed);

    // It hangs up after the mount was made.
    let asked = AtomicUsize::new(0);
    let waits = || asked.fetch_add(1, Ordering::Relaxed) == 0;
    let gone = Asker {
        id: "a",
        process: None,
        waits: &waits,
    };
    assert!(matches!(ledger.mount("v", &gone), Err(LedgerError::Abandoned)));
    assert_eq!(machine.host.mounts.load(Ordering::Relaxed), 2);
    assert!(!machine.is_mounted());

    // A container that uses it already keeps it.
    mount(&ledger, "a").unwrap();
    asked.store(0, Ordering::Relaxed);
    assert!(matches!(ledger.mount("v", &gone), Err(LedgerError::Abandoned)));
    machine.host.hidden.store(true, Ordering::Relaxed);
    assert!(mount(&ledger, "b").is_err());
    assert!(machine.is_mounted());
    ledger.unmount("v", "a").unwrap();
    assert!(!machine.is_mounted());
}

#[test]
fn what_a_dead_engine_left_is_unmounted_when_its_containers_are_gone_too() {
    let machine = Machine::new();
    let ledger = machine.open();
    machine.host.used.store(true, Ordering::Relaxed);
    mount(&ledger, "a").unwrap();
    mount(&ledger, "b").unwrap();
    machine.host.engine.store(1, Ordering::Relaxed);
    ledger.sweep();
    assert!(machine.is_mounted(), "its containers go on");
    // The next engine starts one of them again.
    mount(&ledger, "b").unwrap();
    machine.host.used.store(false, Ordering::Relaxed);
    ledger.sweep();
    assert!(machine.is_mounted(), "it is about to bind it");
    ledger.unmount("v", "b").unwrap();
    assert!(machine.is_mounted(), "a may use it");
    drop(ledger);
    let ledger = machine.open();
    ledger.sweep();
    assert!(!machine.is_mounted());
    ledger.unmount("v", "a").unwrap();

    // Of whom nothing is known, nothing is assumed.
    let asker = Asker {
        id: "c",
        process: None,
        waits: &|| true,
    };
    ledger.mount("v", &asker).unwrap();
    machine.host.engine.store(2, Ordering::Relaxed);
    ledger.sweep();
    assert!(machine.is_mounted());
}

#[test]
fn calls_at_the_same_time_make_one_mount() {
    let machine = Machine::new();
    let ledger = machine.open();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let ledger = &ledger;
            scope.spawn(move || {
                for round in 0..20 {
                    let id = format!("{thread}-{round}");
                    mount(ledger, &id).unwrap();
                    ledger.unmount("v", &id).unwrap();
                }
            });
        }
        scope.spawn(|| (0..100).for_each(|_| ledger.sweep()));
    });
    assert!(!machine.is_mounted());
    assert!(ledger.turns.lock().is_empty());
}

#[test]
fn a_file_that_cannot_be_trusted_is_named_and_left() {
    let machine = Machine::new();
    let file = machine.home.path().join("docker.json");
    let open = || Ledger::open(machine.home.path(), Box::new(Host(machine.host.clone())));
    for bad in [
        "",
        "{",
        "[]",
        r#"{"format":1}"#,
        r#"{"format":1,"volumes":{"../x":{"a":null}}}"#,
        r#"{"format":1,"volumes":{"v":"a"}}"#,
    ] {
        fs::write(&file, bad).unwrap();
        assert!(matches!(open(), Err(LedgerError::Damaged { .. })), "{bad}");
        assert_eq!(fs::read_to_string(&file).unwrap(), bad);
    }
    fs::write(&file, r#"{"format":2,"mounts":[]}"#).unwrap();
    assert!(matches!(open(), Err(LedgerError::Format { found: 2, .. })));
}
