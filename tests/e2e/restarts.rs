//! Daemons that die or are restarted under live mounts: programs wait, and go on.

use crate::harness::{Cluster, bash, eventually};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A program that keeps files open, makes, renames, links and removes names, writes, syncs and reads back, until a file `stop` is there;
/// it ends with an error at the first thing that is not as it must be.
const WORK: &str = r#"
import os, sys, hashlib, random
os.chdir(sys.argv[1])
stop, beats = sys.argv[2], sys.argv[3]
random.seed(7)
kept = open('kept', 'w+b'); gone = open('gone', 'w+b'); os.unlink('gone')
content = bytearray(1 << 20); names = {}
log = open('log', 'ab')
n = 0
while not os.path.exists(stop):
    n += 1
    at = random.randrange(len(content) - 9000); part = random.randbytes(random.randrange(1, 9000))
    content[at:at + len(part)] = part
    for f in (kept, gone):
        f.seek(at); f.write(part); f.flush()
    os.mkdir('d'); os.rmdir('d')
    name = f'n{random.randrange(200)}'
    if name in names:
        assert open(name, 'rb').read() == names[name], name
        os.rename(name, name + '.new'); os.link(name + '.new', name); os.unlink(name + '.new')
        if n % 3 == 0:
            os.unlink(name); del names[name]
    else:
        data = random.randbytes(random.randrange(20000))
        with open(name, 'xb') as f: f.write(data)
        names[name] = data
        os.setxattr(name, 'user.sum', hashlib.sha256(data).digest(), os.XATTR_CREATE)
    log.write(b'%d\n' % n); log.flush()
    if n % 5 == 0:
        os.fsync(log.fileno())
    if n % 10 == 0:
        for f in (kept, gone):
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            f.seek(0); read = f.read(); assert read == content[:len(read)] and not any(content[len(read):]), 'content'
        assert sorted(x for x in os.listdir('.') if x[0] == 'n') == sorted(names), 'names'
    with open(beats + '.new', 'w') as f: f.write(str(n))
    os.rename(beats + '.new', beats)
for name, data in names.items():
    assert open(name, 'rb').read() == data and os.getxattr(name, 'user.sum') == hashlib.sha256(data).digest(), name
assert open('log').read() == ''.join(f'{i}\n' for i in range(1, n + 1)), 'log'
"#;

struct Worker {
    child: Child,
    stop: PathBuf,
    beats: PathBuf,
}

impl Worker {
    fn start(cluster: &Cluster, mount: &Path) -> Self {
        let (stop, beats) = (cluster.directory.join("stop"), cluster.directory.join("beats"));
        let child = Command::new("python3")
            .args(["-c", WORK])
            .args([mount, &stop, &beats])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut worker = Self { child, stop, beats };
        worker.goes_on(3);
        worker
    }

    fn done(&self) -> u64 {
        let text = fs::read_to_string(&self.beats).unwrap_or_default();
        text.parse().unwrap_or(0)
    }

    /// Waits until so many more rounds are through.
    #[track_caller]
    fn goes_on(&mut self, rounds: u64) {
        let wanted = self.done() + rounds;
        eventually("the program under load goes on", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the program ended: {ended:?}");
            (self.done() >= wanted).then_some(())
        });
    }

    #[track_caller]
    fn ends_well(mut self) {
        fs::write(&self.stop, "").unwrap();
        let status = eventually("the program ends", || self.child.try_wait().unwrap());
        assert!(status.success(), "the program: {status}");
    }
}

/// How often a test kills; more by `RESTARTS`.
fn kills(usual: usize) -> usize {
    std::env::var("RESTARTS").map_or(usual, |n| n.parse().expect("RESTARTS is a number"))
}

#[test]
fn a_mount_goes_on_when_its_daemon_is_killed_again_and_again() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    let mut worker = Worker::start(&cluster, &mount);
    for _ in 0..kills(6) {
        cluster.nodes[0].kill();
        cluster.nodes[0].start();
        worker.goes_on(3);
    }
    worker.ends_well();
    cluster.cli(&["volume", "check", "data"]).ok();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
    let mount = cluster.mount(1, "default/data");
    assert!(mount.join("log").exists());
    cluster.unmount(&mount);
}

#[test]
fn a_mount_of_an_unreplicated_volume_goes_on_when_its_only_copys_daemon_is_killed() {
    let mut cluster = Cluster::start(1);
    cluster.create("data", 0);
    let mount = cluster.mount(0, "default/data");
    let mut worker = Worker::start(&cluster, &mount);
    for _ in 0..kills(3) {
        cluster.nodes[0].kill();
        cluster.nodes[0].start();
        worker.goes_on(3);
    }
    worker.ends_well();
    cluster.unmount(&mount);
}

#[test]
fn a_daemon_that_hands_over_leaves_its_mounts_to_the_next_one() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    let mut worker = Worker::start(&cluster, &mount);
    for _ in 0..3 {
        assert_eq!(cluster.nodes[0].hand_over(), 0);
        cluster.nodes[0].start();
        worker.goes_on(3);
    }
    worker.ends_well();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
    // A daemon that is told to end ends its mounts, also one that it has from another.
    let mount = cluster.mount(0, "default/data");
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    assert!(mount.join("log").exists());
    assert_eq!(cluster.nodes[0].stop(), 0);
    assert!(!mount.join("log").exists());
    cluster.nodes[0].start();
}

/// Rounds of a command, over and over until it is told to stop; a round that fails ends it.
struct Rounds {
    child: Child,
    stop: PathBuf,
    rounds: PathBuf,
    log: PathBuf,
}

impl Rounds {
    /// `command` runs in bash in the mount; what it prints is kept for failures.
    fn start(cluster: &Cluster, mount: &Path, command: &str) -> Self {
        let at = |name: &str| cluster.directory.join(name);
        let (stop, rounds, log) = (at("stop"), at("rounds"), at("rounds.log"));
        let script = format!(
            "cd {} && until [ -e {} ]; do {{ {command}; }} >{log} 2>&1 || exit 1; echo >>{}; done",
            mount.display(),
            stop.display(),
            rounds.display(),
            log = log.display(),
        );
        let child = Command::new("bash")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut this = Self {
            child,
            stop,
            rounds,
            log,
        };
        this.goes_on();
        this
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until a round that began after now is through.
    #[track_caller]
    fn goes_on(&mut self) {
        let rounds = self.rounds.clone();
        let done = || fs::metadata(&rounds).map_or(0, |m| m.len());
        let wanted = done() + 2;
        eventually("rounds go on", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the rounds ended: {ended:?}\n{}", self.said());
            (done() >= wanted).then_some(())
        });
    }

    #[track_caller]
    fn ends_well(mut self) {
        fs::write(&self.stop, "").unwrap();
        let status = eventually("the rounds end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}\n{}", self.said());
    }
}

#[test]
fn fio_verifies_what_it_wrote_while_the_daemon_is_killed() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    let fio = "fio --name=v --filename=v --size=48m --rw=randrw --bsrange=4k-128k --verify=crc32c --verify_fatal=1 \
               --verify_backlog=64 --do_verify=1 --numjobs=1 --fsync=40 --end_fsync=1 \
               && fio --name=d --filename=d --size=16m --rw=randwrite --bs=4k --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1";
    let mut rounds = Rounds::start(&cluster, &mount, fio);
    for kill in 1..=kills(5) {
        cluster.nodes[0].kill();
        cluster.nodes[0].start();
        cluster.wait_until_served_again(0, kill);
    }
    rounds.goes_on();
    rounds.ends_well();
    cluster.unmount(&mount);
    cluster.cli(&["volume", "check", "data"]).ok();
    cluster.verify_identical("data", 2);
}

/// A PostgreSQL server on a mount, and pgbench against it.
const POSTGRES: &str = r#"
export PATH="$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)"):$PATH" PGHOST=$PWD/run PGUSER=postgres PGDATABASE=postgres
as() { runuser -u postgres -- env PATH="$PATH" PGHOST="$PGHOST" PGUSER=postgres PGDATABASE=postgres "$@"; }
"#;

fn postgres(mount: &Path, script: &str) -> crate::harness::Said {
    bash(mount, &format!("{POSTGRES}{script}"))
}

fn start_postgres(mount: &Path) {
    let script = "
        mkdir run pg && chown postgres run pg
        as initdb -D pg --no-instructions >/dev/null
        as pg_ctl -D pg -s -w -l pg/log -o \"-k $PWD/run -c listen_addresses= -c shared_buffers=16MB -c max_wal_size=64MB\" start
        as pgbench -i -q -s 4 2>&1";
    postgres(mount, script).ok();
}

fn check_postgres(mount: &Path) {
    let script = "
        as pg_amcheck --install-missing --heapallindexed -d postgres
        as psql -Atc 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)'
        ! grep -E 'PANIC|FATAL|could not (write|fsync|read)' pg/log
        as pg_ctl -D pg -s -w stop";
    assert_eq!(postgres(mount, script).ok().trim(), "t");
}

const PGBENCH: &str = "as pgbench -n -c 4 -j 2 -t 40 2>&1";

#[test]
fn clients_of_postgresql_see_no_error_while_the_daemon_of_its_mount_is_killed() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    start_postgres(&mount);
    let mut rounds = Rounds::start(&cluster, &mount, &format!("{POSTGRES}{PGBENCH}"));
    for _ in 0..kills(4) {
        cluster.nodes[0].kill();
        cluster.nodes[0].start();
        rounds.goes_on();
    }
    rounds.ends_well();
    check_postgres(&mount);
    cluster.unmount(&mount);
    cluster.cli(&["volume", "check", "data"]).ok();
    cluster.verify_identical("data", 3);
}

#[test]
fn clients_of_postgresql_see_no_error_while_the_master_on_another_node_is_killed() {
    let mut cluster = Cluster::start_with_compute_only(4, &[3]);
    cluster.create("data", 2);
    let mount = cluster.mount(3, "default/data");
    start_postgres(&mount);
    let mut rounds = Rounds::start(&cluster, &mount, &format!("{POSTGRES}{PGBENCH}"));
    for _ in 0..2 {
        let master = cluster.index(&cluster.master("data"));
        cluster.nodes[master].kill();
        rounds.goes_on();
        cluster.nodes[master].start();
        cluster.wait_for_copies("data", 3);
    }
    rounds.ends_well();
    check_postgres(&mount);
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

/// What a program gets from a mount that nobody serves.
fn is_over(mount: &Path) -> bool {
    let read = fs::read_dir(mount);
    read.is_err_and(|error| {
        [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].contains(&error.raw_os_error().unwrap_or(0))
    })
}

#[test]
fn a_mount_whose_claim_was_given_up_meanwhile_ends() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    fs::write(mount.join("f"), "first").unwrap();
    cluster.nodes[0].kill();
    let forced = ["volume", "unmount", "--force", "data"];
    eventually("the claim is given up", || {
        (cluster.nodes[1].cli(&forced).code == 0).then_some(())
    });
    let other = cluster.mount(1, "default/data");
    assert_eq!(fs::read_to_string(other.join("f")).unwrap(), "first");
    cluster.nodes[0].start();
    let at = format!(" {} ", mount.display());
    eventually("the first mount is gone", || {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        (!table.contains(&at)).then_some(())
    });
    fs::write(other.join("f"), "second").unwrap();
    cluster.unmount(&other);
    cluster.verify_identical("data", 3);
}

#[test]
fn without_a_next_daemon_a_mount_ends_after_its_time() {
    let mut cluster = Cluster::start_with(1, |_| vec!["--keep-mounts".into(), "1s".into()]);
    cluster.create("data", 0);
    let mount = cluster.mount(0, "default/data");
    fs::write(mount.join("f"), "x").unwrap();
    cluster.nodes[0].kill();
    eventually("the mount ends", || is_over(&mount).then_some(()));
    cluster.nodes[0].start();
    eventually("the dead mount is detached", || fs::read_dir(&mount).ok());
    let mount = cluster.mount(0, "default/data");
    assert_eq!(fs::read_to_string(mount.join("f")).unwrap(), "x");
    cluster.unmount(&mount);
}

#[test]
fn a_descriptor_store_that_dies_is_replaced() {
    let mut cluster = Cluster::start(1);
    cluster.create("data", 0);
    let mount = cluster.mount(0, "default/data");
    let mut worker = Worker::start(&cluster, &mount);
    cluster.nodes[0].end_descriptor_store();
    eventually("another one is there", || cluster.nodes[0].descriptor_store().ok());
    // Asking took the daemon's connection; it makes another.
    worker.goes_on(3);
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    worker.goes_on(3);
    worker.ends_well();
    cluster.unmount(&mount);
}
