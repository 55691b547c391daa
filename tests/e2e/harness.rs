//! Clusters of real daemons for tests: start, kill, restart, mount, and wait for conditions with a deadline.
//!
//! Every test has loopback addresses of its own (from its process id), a directory of its own under `/var/tmp`, and
//! takes all of it down when it ends, also when it fails. Nothing here sleeps for a fixed time to let something happen.

use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a condition may take on a loaded machine before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// The daemon and command line under test.
pub const STORAGEOS: &str = env!("CARGO_BIN_EXE_storageos");

/// What a finished command said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "the command failed\nstdout: {}\nstderr: {}",
            self.out, self.err
        );
        self.out
    }

    /// The error text of a command that must have failed with this exit code.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self.err
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> Said {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    Said::from(output)
}

/// Runs a script in bash in a directory; the script stops at its first error.
#[track_caller]
pub fn bash(directory: &Path, script: &str) -> Said {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("bash is installed");
    Said::from(output)
}

/// Waits until `condition` returns something, at most [`DEADLINE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One node: a daemon's process, directory and address.
pub struct Node {
    pub name: String,
    pub directory: PathBuf,
    pub address: String,
    /// More arguments of the daemon.
    pub extra: Vec<String>,
    /// The command that starts the daemon's program, if it is not started directly.
    pub through: Vec<String>,
    /// A member to join; none: it makes the cluster.
    pub join: Option<String>,
    /// The API socket of the node that makes its token.
    pub inviter: PathBuf,
    /// Commands for the cluster are not given to it: its daemon is stopped, or its link is not well.
    pub aside: bool,
    child: Option<Child>,
}

impl Node {
    /// The daemon's API socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("storageos.sock")
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        let deadline = Instant::now() + DEADLINE;
        while self.cli(&["node", "ls", "-q"]).code != 0 {
            let exited = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            assert!(exited.is_none(), "{} ended: {exited:?}\n{}", self.name, self.log());
            assert!(
                Instant::now() < deadline,
                "{} does not answer\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts the daemon's process without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        fs::create_dir_all(&self.directory).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .unwrap();
        let mut words = self.through.iter().map(String::as_str).chain([STORAGEOS]);
        let mut command = Command::new(words.next().unwrap_or(STORAGEOS));
        command
            .args(words)
            .args(["node", "run", "--data-dir"])
            .arg(&self.directory)
            .args(["--listen", &self.address, "--name", &self.name])
            .args(["--socket", "none"])
            .args(&self.extra);
        match &self.join {
            None => command.arg("--init"),
            Some(address) => command.args(["--join", address]),
        };
        if let Some(token) = self.token() {
            command.env("STORAGEOS_TOKEN", token);
        }
        let child = command
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// A token for a node that is to join and has no certificate yet; with etcd it needs none.
    fn token(&self) -> Option<String> {
        let etcd = self.extra.iter().any(|argument| argument.starts_with("etcd://"));
        if self.join.is_none() || etcd || self.directory.join("tls/node.pem").exists() {
            return None;
        }
        let made = eventually("a token is made", || {
            let said = Command::new(STORAGEOS)
                .env("STORAGEOS_HOST", &self.inviter)
                .args(["cluster", "token", "create"])
                .stdin(Stdio::null())
                .output();
            Some(Said::from(said.unwrap())).filter(|said| said.code == 0)
        });
        Some(made.out.trim().to_owned())
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: &str) {
        run("kill", &[signal, &self.pid().to_string()]).ok();
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits until the daemon has ended by itself; returns its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        self.signal("-TERM");
        let mut child = self.child.take().expect("the daemon runs");
        let status = eventually("the daemon ends after SIGTERM", || child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }

    /// SIGHUP: the daemon ends and leaves its mounts; returns its exit code.
    #[track_caller]
    pub fn hand_over(&mut self) -> i32 {
        self.signal("-HUP");
        let mut child = self.child.take().expect("the daemon runs");
        let status = eventually("the daemon ends after SIGHUP", || child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }

    /// The process that holds the daemon's mounts.
    pub fn descriptor_store(&self) -> rustix::io::Result<rustix::process::Pid> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket, sockopt::socket_peercred};
        let connection = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        connect(&connection, &SocketAddrUnix::new(self.directory.join("fdstore.sock"))?)?;
        Ok(socket_peercred(&connection)?.pid)
    }

    /// SIGKILL for it, if there is one.
    pub fn end_descriptor_store(&self) {
        if let Ok(process) = self.descriptor_store() {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    }

    /// Whether the process runs.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// `storageos` with this node's socket.
    pub fn cli(&self, arguments: &[&str]) -> Said {
        let output = Command::new(STORAGEOS)
            .env("STORAGEOS_HOST", self.socket())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Said::from(output)
    }

    /// The daemon's whole log.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The end of the daemon's log, for failure messages.
    pub fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// A cluster of daemons, taken down when dropped.
pub struct Cluster {
    pub directory: PathBuf,
    pub nodes: Vec<Node>,
    mounts: Vec<PathBuf>,
}

fn compute_only_label(wanted: bool) -> Vec<String> {
    let label = ["--label", "storageos.com/deployment=computeonly"].map(str::to_owned);
    if wanted { label.into() } else { Vec::new() }
}

static CLUSTERS: AtomicU32 = AtomicU32::new(0);

impl Cluster {
    /// Starts `count` nodes, `n1` to `nN`, and waits until all are members and healthy.
    #[track_caller]
    pub fn start(count: usize) -> Self {
        Self::start_with(count, |_| Vec::new())
    }

    /// The same, with arguments of their own for the nodes' daemons (by index from 0).
    #[track_caller]
    pub fn start_with(count: usize, extra: impl Fn(usize) -> Vec<String>) -> Self {
        let mut cluster = Self::prepare(count, extra);
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.wait_for_live_nodes(count);
        cluster
    }

    /// Starts `count` nodes; those of these indices (from 0) hold no copies.
    #[track_caller]
    pub fn start_with_compute_only(count: usize, compute_only: &[usize]) -> Self {
        Self::start_with(count, |index| compute_only_label(compute_only.contains(&index)))
    }

    /// The same, and n1, n2 and n3 are the voters.
    #[track_caller]
    pub fn start_with_voters_first(count: usize, compute_only: &[usize]) -> Self {
        let mut cluster = Self::prepare(count, |index| compute_only_label(compute_only.contains(&index)));
        for index in 0..count {
            // Those that vote keep their votes; a fourth node that lives before the third has its vote may get it instead.
            if index == 3 {
                cluster.wait_for_voters(&["n1", "n2", "n3"]);
            }
            cluster.nodes[index].start();
        }
        cluster.wait_for_live_nodes(count);
        cluster
    }

    /// Directories and addresses, no daemon started yet.
    #[track_caller]
    pub fn prepare(count: usize, extra: impl Fn(usize) -> Vec<String>) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount file systems: run them as root"
        );
        assert!(
            Path::new("/dev/fuse").exists(),
            "these tests need /dev/fuse (modprobe fuse)"
        );
        let serial = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let directory = PathBuf::from(format!("/var/tmp/st-{pid}-{serial}"));
        // What a killed test process of the same number left is not this cluster's.
        clear(&directory);
        fs::create_dir_all(&directory).unwrap();
        let host = |index: usize| {
            let b = 16 + (pid >> 8) % 200;
            let c = pid & 0xff;
            let d = 1 + serial * 20 + u32::try_from(index).unwrap();
            format!("127.{b}.{c}.{d}:5703")
        };
        let nodes = (0..count)
            .map(|index| Node {
                name: format!("n{}", index + 1),
                directory: directory.join(format!("n{}", index + 1)),
                address: host(index),
                extra: extra(index),
                through: vec![],
                aside: false,
                join: (index > 0).then(|| host(0)),
                inviter: directory.join("n1/storageos.sock"),
                child: None,
            })
            .collect();
        Self {
            directory,
            nodes,
            mounts: Vec::new(),
        }
    }

    /// Waits until `count` nodes are seen alive by the first running node.
    #[track_caller]
    pub fn wait_for_live_nodes(&self, count: usize) {
        eventually(&format!("{count} live nodes"), || {
            let said = self.any().cli(&["node", "ls", "--format", "json"]);
            let nodes: Value = serde_json::from_str(&said.out).ok()?;
            let alive = nodes.as_array()?.iter().filter(|n| n["health"] == "healthy").count();
            (alive == count).then_some(())
        });
    }

    /// Waits until these nodes vote (their names in order), and no other.
    #[track_caller]
    pub fn wait_for_voters(&self, names: &[&str]) {
        eventually(&format!("{names:?} vote"), || {
            let said = self.cli(&["cluster", "health", "--format", "json"]);
            let health: Value = serde_json::from_str(&said.out).ok()?;
            let mut voters: Vec<_> = health["voters"].as_array()?.iter().filter_map(Value::as_str).collect();
            voters.sort_unstable();
            (voters == names).then_some(())
        });
    }

    /// A node whose daemon runs.
    pub fn any(&self) -> &Node {
        let well = |n: &&Node| n.runs() && !n.aside;
        self.nodes.iter().find(well).expect("a daemon runs")
    }

    /// `storageos` on the first running node.
    pub fn cli(&self, arguments: &[&str]) -> Said {
        self.any().cli(arguments)
    }

    /// Creates a volume with so many replicas.
    #[track_caller]
    pub fn create(&self, volume: &str, replicas: u8) {
        self.create_with(volume, &[&format!("storageos.com/replicas={replicas}")]);
    }

    /// Creates a volume with these labels (`KEY=VALUE`).
    #[track_caller]
    pub fn create_with(&self, volume: &str, labels: &[&str]) {
        self.create_as(volume, &[], labels);
    }

    /// Creates a volume of this size with these labels.
    #[track_caller]
    pub fn create_sized(&self, volume: &str, size: &str, labels: &[&str]) {
        self.create_as(volume, &["--size", size], labels);
    }

    #[track_caller]
    fn create_as(&self, volume: &str, options: &[&str], labels: &[&str]) {
        let mut arguments = vec!["volume", "create"];
        arguments.extend(options);
        for label in labels {
            arguments.extend(["--label", label]);
        }
        arguments.push(volume);
        self.cli(&arguments).ok();
    }

    /// The node's index by its name.
    pub fn index(&self, name: &str) -> usize {
        self.nodes
            .iter()
            .position(|n| n.name == name)
            .expect("a node of this name")
    }

    /// One volume as `volume inspect` prints it.
    #[track_caller]
    pub fn inspect(&self, volume: &str) -> Value {
        let text = self.cli(&["volume", "inspect", volume]).ok();
        let mut list: Value = serde_json::from_str(&text).expect("volume inspect prints JSON");
        list[0].take()
    }

    /// The name of the master's node.
    #[track_caller]
    pub fn master(&self, volume: &str) -> String {
        let inspected = self.inspect(volume);
        inspected["master"]["nodeName"]
            .as_str()
            .expect("the volume has a master")
            .to_owned()
    }

    /// The names of the replicas' nodes, of those in this health.
    #[track_caller]
    pub fn replicas(&self, volume: &str, health: &str) -> Vec<String> {
        let inspected = self.inspect(volume);
        let replicas = inspected["replicas"].as_array().expect("a list of replicas");
        replicas
            .iter()
            .filter(|r| r["health"] == health)
            .map(|r| r["nodeName"].as_str().expect("a name").to_owned())
            .collect()
    }

    /// The indexes of the nodes that hold a copy in sync, the master's first.
    #[track_caller]
    pub fn holders(&self, volume: &str) -> Vec<usize> {
        let mut names = vec![self.master(volume)];
        names.extend(self.replicas(volume, "healthy"));
        names.iter().map(|name| self.index(name)).collect()
    }

    /// The indexes of the nodes that hold no copy in sync.
    #[track_caller]
    pub fn without_copy(&self, volume: &str) -> Vec<usize> {
        let holders = self.holders(volume);
        (0..self.nodes.len()).filter(|i| !holders.contains(i)).collect()
    }

    /// Waits until a volume has so many copies in sync.
    #[track_caller]
    pub fn wait_for_copies(&self, volume: &str, copies: usize) {
        eventually(&format!("{volume} has {copies} in-sync copies"), || {
            (self.replicas(volume, "healthy").len() + 1 == copies).then_some(())
        });
    }

    /// Waits until so many copies, of all volumes, are on the disks of all nodes.
    #[track_caller]
    pub fn wait_for_copies_on_disks(&self, copies: usize) {
        let on = |node: &Node| fs::read_dir(node.directory.join("volumes")).map_or(0, Iterator::count);
        eventually(&format!("{copies} copies are on disks"), || {
            (self.nodes.iter().map(on).sum::<usize>() == copies).then_some(())
        });
    }

    /// Mounts a volume on a node with `mount -t fuse.storageos` and returns the directory. Again, if the leader of the control plane is just
    /// changing.
    #[track_caller]
    pub fn mount(&mut self, node: usize, volume: &str) -> PathBuf {
        let mut refused = String::new();
        for _ in 0..10 {
            match self.mount_with(node, volume, "rw") {
                Err(why) if why.contains("the control plane is unavailable") => refused = why,
                mounted => return mounted.unwrap(),
            }
        }
        panic!("{refused}");
    }

    /// The same with options; the error is what mount(8) printed.
    pub fn mount_with(&mut self, node: usize, volume: &str, options: &str) -> Result<PathBuf, String> {
        install_mount_helper();
        let directory = self
            .directory
            .join(format!("{}-{}", self.nodes[node].name, volume.replace("default/", "")));
        fs::create_dir_all(&directory).unwrap();
        let options = format!("{options},socket={}", self.nodes[node].socket().display());
        let at = directory.to_str().unwrap();
        let said = run("mount", &["-t", "fuse.storageos", volume, at, "-o", &options]);
        if said.code != 0 {
            return Err(said.err);
        }
        self.mounts.push(directory.clone());
        Ok(directory)
    }

    /// Waits until mounts that outlived a node's daemons have gone on so many times.
    #[track_caller]
    pub fn wait_until_served_again(&self, node: usize, times: usize) {
        eventually("the mount goes on", || {
            let said = self.nodes[node].whole_log();
            (said.matches("the mount of this node's last daemon goes on").count() >= times).then_some(())
        });
    }

    /// umount(8), which returns when the daemon has closed the volume.
    #[track_caller]
    pub fn unmount(&mut self, directory: &Path) {
        self.mounts.retain(|m| m != directory);
        run("umount", &[directory.to_str().unwrap()]).ok();
    }

    /// `volume verify`: all copies identical, none missing. Waits for copies that are still syncing.
    #[track_caller]
    pub fn verify_identical(&self, volume: &str, copies: usize) {
        self.wait_for_copies(volume, copies);
        let said = self.cli(&["volume", "verify", volume]);
        assert_eq!(said.code, 0, "copies differ\n{}\n{}", said.out, said.err);
        assert_eq!(said.out.matches("identical").count(), copies, "{}", said.out);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for mount in &self.mounts {
            let _ = Command::new("umount")
                .args(["-l", "-i"])
                .arg(mount)
                .stderr(Stdio::null())
                .status();
        }
        for node in &mut self.nodes {
            if std::thread::panicking() {
                eprintln!("--- log of {}\n{}", node.name, node.log());
            }
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            // Ends what holds the mounts of a dead daemon: so do the mounts.
            node.end_descriptor_store();
        }
        clear(&self.directory);
    }
}

/// Takes away what is left of a cluster's directory, and what is mounted in it.
fn clear(directory: &Path) {
    let _ = Command::new("bash")
        .args([
            "-c",
            "for m in $(grep -o \" $0[^ ]*\" /proc/mounts); do umount -l -i $m; done",
        ])
        .arg(directory)
        .stderr(Stdio::null())
        .status();
    let _ = fs::remove_dir_all(directory);
}

/// Puts a disk of its own, in memory, under a node's directory, which is made.
#[track_caller]
pub fn mount_tmpfs(directory: &Path, size: &str) {
    fs::create_dir_all(directory).unwrap();
    let size = format!("size={size}");
    run(
        "mount",
        &["-t", "tmpfs", "-o", &size, "tmpfs", directory.to_str().unwrap()],
    )
    .ok();
}

/// Puts the built mount helper where mount(8) looks for it. Atomic, since tests run side by side.
#[track_caller]
pub fn install_mount_helper() {
    let built = Path::new(STORAGEOS).with_file_name("mount-fuse-storageos");
    assert!(built.exists(), "build the workspace first: cargo build --workspace");
    for name in ["mount.fuse.storageos", "umount.fuse.storageos"] {
        let place = Path::new("/sbin").join(name);
        if fs::read_link(&place).is_ok_and(|to| to == built) {
            continue;
        }
        let fresh = format!("/sbin/.{name}.{}", std::process::id());
        std::os::unix::fs::symlink(&built, &fresh).unwrap();
        fs::rename(fresh, place).unwrap();
    }
}

/// The blake3 sums of a tree's files, sorted by path, as one text.
#[track_caller]
pub fn checksums(directory: &Path) -> String {
    bash(directory, "find . -type f -print0 | sort -z | xargs -0 -r sha256sum").ok()
}

/// Gives this thread descriptors of its own, none at first. A file of a mount is opened after this: with the process's descriptors every command
/// that the test starts would inherit it for a moment, and wait in its exec to close it while the volume's writes are suspended.
/// And none is kept: the other end of a command's pipe would not see its end.
pub fn own_descriptors() -> std::io::Result<()> {
    let unshare = libc::c_int::try_from(libc::CLOSE_RANGE_UNSHARE).unwrap();
    // SAFETY: the thread opens, uses and closes its own files, and uses no other's descriptor.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, unshare) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Measures the longest time between two ticks.
#[derive(Default)]
pub struct Pauses(std::sync::Mutex<(Option<Instant>, Duration)>);

impl Pauses {
    /// Something was done.
    pub fn tick(&self) {
        let mut known = self.0.lock().unwrap();
        let now = Instant::now();
        if let Some(last) = known.0.replace(now) {
            known.1 = known.1.max(now - last);
        }
    }

    /// The longest pause since the call before, the one that lasts included.
    pub fn longest(&self) -> Duration {
        let mut known = self.0.lock().unwrap();
        let lasting = known.0.map_or(Duration::ZERO, |last| last.elapsed());
        std::mem::take(&mut known.1).max(lasting)
    }
}

/// A writer that appends numbered lines, fsyncs each, and counts those that were acknowledged.
pub struct Writer {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    pauses: Arc<Pauses>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Writer {
    /// Starts it on a file of a mount.
    pub fn start(file: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let pauses = Arc::new(Pauses::default());
        let (path, stop2, count, ticks) = (file.to_owned(), stop.clone(), acknowledged.clone(), pauses.clone());
        let thread = std::thread::spawn(move || {
            own_descriptors()?;
            let mut file = File::options().create(true).append(true).open(path)?;
            for line in 0_u64.. {
                if stop2.load(Ordering::Relaxed) {
                    break;
                }
                writeln!(file, "line {line:012}")?;
                file.sync_all()?;
                count.store(line + 1, Ordering::SeqCst);
                ticks.tick();
            }
            Ok(())
        });
        Self {
            file: file.to_owned(),
            stop,
            acknowledged,
            pauses,
            thread,
        }
    }

    /// Lines that were acknowledged.
    pub fn count(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// The longest time between two acknowledgements; it starts anew with each call.
    pub fn longest_pause(&self) -> Duration {
        self.pauses.longest()
    }

    /// Whether it stopped by itself, because of an error.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until at least this many more lines were acknowledged.
    #[track_caller]
    pub fn goes_on(&self, lines: u64) {
        let target = self.count() + lines;
        eventually("the writer goes on", || {
            assert!(!self.thread.is_finished(), "the writer ended");
            (self.count() >= target).then_some(())
        });
    }

    /// Stops the writer; what it ended with, and the number of acknowledged lines.
    pub fn stop(self) -> (std::io::Result<()>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().unwrap();
        (result, self.acknowledged.load(Ordering::SeqCst))
    }

    /// Stops the writer, which must have met no error; what was acknowledged must be in its file.
    #[track_caller]
    pub fn ends_well(self) {
        let file = self.file.clone();
        let (result, acknowledged) = self.stop();
        result.unwrap();
        check_lines(&file, acknowledged);
    }
}

/// Every acknowledged line is in the file, in order; at most a torn tail follows.
#[track_caller]
pub fn check_lines(file: &Path, acknowledged: u64) {
    let text = fs::read(file).unwrap();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.split_inclusive('\n');
    for expected in 0..acknowledged {
        assert_eq!(
            lines.next(),
            Some(format!("line {expected:012}\n").as_str()),
            "an acknowledged line is missing"
        );
    }
}
