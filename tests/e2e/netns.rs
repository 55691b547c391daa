//! Clusters whose nodes live each in a network namespace of its own, so that links can be cut, silenced one way, or slowed.
//!
//! A bridge joins them, in a namespace of its own: the host's network is not touched, and tests run side by side. Only the network is
//! apart: sockets, mounts and files are the host's, which is why daemons are started by `nsenter --net` and not by `ip netns exec`.
//! Each node's directory is a small tmpfs, so that its disk can be filled; its log is beside it. Everything goes when it is dropped.

use crate::damage::{copy_directory, flip_bits};
use crate::harness::{Cluster, bash, eventually, mount_tmpfs, run};
use crate::losses::settled;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};

/// Space of a node's disk.
const DISK: &str = "768m";

/// A cluster and its network.
pub struct Net {
    pub cluster: Cluster,
    /// The namespaces' names begin with it.
    prefix: String,
}

impl Deref for Net {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Net {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

/// Arguments of a daemon that holds no copies.
pub fn computeonly() -> Vec<String> {
    vec!["--label".into(), "storageos.com/deployment=computeonly".into()]
}

impl Net {
    /// Starts `count` nodes, with arguments of their own for their daemons, and waits until three of them vote.
    #[track_caller]
    pub fn start(count: usize, extra: impl Fn(usize) -> Vec<String>) -> Self {
        sweep();
        let cluster = Cluster::prepare(count, extra);
        // Unique, with this process's id in it.
        let prefix = cluster.directory.file_name().unwrap().to_string_lossy().into_owned();
        let mut net = Self { cluster, prefix };
        net.build();
        for index in 0..count {
            net.cluster.nodes[index].start();
        }
        settled(&net.cluster, 0, count);
        net
    }

    fn build(&mut self) {
        let bridge = self.bridge();
        for command in [
            format!("ip netns add {bridge}"),
            format!("ip -n {bridge} link add br0 type bridge"),
            format!("ip -n {bridge} link set br0 up"),
        ] {
            shell(&command);
        }
        for index in 0..self.cluster.nodes.len() {
            self.build_node(index);
        }
    }

    fn build_node(&mut self, index: usize) {
        let (name, bridge) = (self.namespace(index), self.bridge());
        shell(&format!(
            "ip netns add {name}
            ip link add eth0 netns {name} type veth peer name p{index} netns {bridge}
            ip -n {bridge} link set p{index} master br0 up
            ip -n {name} addr add 10.77.0.{}/24 dev eth0
            ip -n {name} link set eth0 up
            ip -n {name} link set lo up",
            index + 1
        ));
        let log = self.cluster.directory.join(format!("n{}.log", index + 1));
        let node = &mut self.cluster.nodes[index];
        node.address = format!("10.77.0.{}:5703", index + 1);
        node.join = (index > 0).then(|| "10.77.0.1:5703".into());
        node.through = vec!["nsenter".into(), format!("--net=/run/netns/{name}")];
        mount_tmpfs(&node.directory, DISK);
        // The log is read by the checks, also when the disk was full.
        std::os::unix::fs::symlink(log, node.directory.join("log")).unwrap();
    }

    fn bridge(&self) -> String {
        format!("{}-bridge", self.prefix)
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-n{}", self.prefix, node + 1)
    }

    /// Cuts a node off, both ways, silently: no connection is reset, nothing is refused.
    pub fn cut(&mut self, node: usize) {
        self.cluster.nodes[node].aside = true;
        shell(&format!("ip -n {} link set p{node} down", self.bridge()));
    }

    /// What is sent to the node does not arrive; what it sends does.
    pub fn deafen(&mut self, node: usize) {
        self.cluster.nodes[node].aside = true;
        self.drop_all(node, "input", "iif");
    }

    /// What the node sends does not arrive; what is sent to it does.
    pub fn mute(&mut self, node: usize) {
        self.cluster.nodes[node].aside = true;
        self.drop_all(node, "output", "oif");
    }

    fn drop_all(&self, node: usize, hook: &str, interface: &str) {
        shell(&format!(
            "nsenter --net=/run/netns/{} nft -f - <<'RULES'
table inet fault {{
  chain {hook} {{
    type filter hook {hook} priority 0
    {interface} eth0 drop
  }}
}}
RULES",
            self.namespace(node)
        ));
    }

    /// Limits what goes to the node and what comes from it to `kbit` kilobits a second each. What is too much waits up to two
    /// seconds, then it is lost.
    pub fn slow(&mut self, node: usize, kbit: u32) {
        self.cluster.nodes[node].aside = true;
        let limit = format!("root tbf rate {kbit}kbit burst 16kb latency 2s");
        shell(&format!(
            "tc -n {} qdisc add dev eth0 {limit}
            tc -n {} qdisc add dev p{node} {limit}",
            self.namespace(node),
            self.bridge()
        ));
    }

    /// Undoes everything that was done to the node's link.
    pub fn heal(&mut self, node: usize) {
        self.cluster.nodes[node].aside = false;
        let (name, bridge) = (self.namespace(node), self.bridge());
        shell(&format!(
            "ip -n {bridge} link set p{node} up
            nsenter --net=/run/netns/{name} nft delete table inet fault 2>/dev/null || true
            tc -n {name} qdisc del dev eth0 root 2>/dev/null || true
            tc -n {bridge} qdisc del dev p{node} root 2>/dev/null || true"
        ));
    }

    /// SIGSTOP: the daemon does nothing until [`Self::continue_daemon`]; its sockets stay open.
    pub fn stop_daemon(&mut self, node: usize) {
        self.cluster.nodes[node].aside = true;
        self.cluster.nodes[node].signal("-STOP");
    }

    /// SIGCONT.
    pub fn continue_daemon(&mut self, node: usize) {
        self.cluster.nodes[node].aside = false;
        self.cluster.nodes[node].signal("-CONT");
    }

    /// Leaves no free byte on the node's disk.
    pub fn fill(&self, node: usize) {
        let file = self.cluster.nodes[node].directory.join("filler");
        // It ends when there is no space left, which is what is wanted.
        let said = run(
            "dd",
            &[
                "if=/dev/zero",
                &format!("of={}", file.display()),
                "bs=64k",
                "status=none",
            ],
        );
        assert!(said.err.contains("No space"), "{}", said.err);
    }

    /// Takes the space back.
    pub fn free(&self, node: usize) {
        fs::remove_file(self.cluster.nodes[node].directory.join("filler")).unwrap();
    }

    /// Inverts bits in every block of the node's copy; the number of blocks.
    pub fn flip(&self, node: usize) -> usize {
        flip_bits(&copy_directory(&self.cluster.nodes[node].directory).join("data"), 0)
    }

    /// Waits until the volume has all its copies in sync and every node lives and answers.
    #[track_caller]
    pub fn wait_for_health(&self, volume: &str) {
        self.cluster.wait_for_live_nodes(self.cluster.nodes.len());
        eventually(&format!("{volume} is healthy"), || {
            let said = self.cluster.cli(&["volume", "inspect", volume]);
            let list: serde_json::Value = serde_json::from_str(&said.out).ok()?;
            (list[0]["health"] == "healthy" && list[0]["status"] == "active").then_some(())
        });
    }

    /// Copies the daemons' whole logs to where they outlive the test.
    fn keep_logs(&self) {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&self.prefix);
        let _ = fs::create_dir_all(&kept);
        for node in &self.cluster.nodes {
            let _ = fs::copy(node.directory.join("log"), kept.join(format!("{}.log", node.name)));
        }
        eprintln!("the daemons' logs are kept in {}", kept.display());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // First the daemons, whatever state they are in: a mount of one that is stopped or cut off would make umount(8) wait.
        for node in &mut self.cluster.nodes {
            if node.runs() {
                node.kill();
            }
        }
        if std::thread::panicking() {
            self.keep_logs();
        }
        for index in 0..self.cluster.nodes.len() {
            remove(&self.namespace(index));
        }
        remove(&self.bridge());
    }
}

/// Runs a script that must succeed.
#[track_caller]
fn shell(script: &str) {
    bash(Path::new("/"), script).ok();
}

fn remove(namespace: &str) {
    let _ = Command::new("ip")
        .args(["netns", "del", namespace])
        .stderr(Stdio::null())
        .status();
}

/// Takes away what test processes left behind that were killed: daemons, namespaces, mounts and files.
fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((prefix, _)) = name.rsplit_once('-').filter(|(prefix, _)| is_abandoned(prefix)) else {
            continue;
        };
        for left in run("ip", &["netns", "pids", &name]).out.lines() {
            run("kill", &["-9", left]);
        }
        remove(&name);
        let directory = Path::new("/var/tmp").join(prefix);
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for place in places.filter(|place| Path::new(place).starts_with(&directory)) {
            run("umount", &["-l", "-i", place]);
        }
        let _ = fs::remove_dir_all(directory);
    }
}

/// Whether it is the prefix `st-PID-SERIAL` of a process that is gone.
fn is_abandoned(prefix: &str) -> bool {
    let pid = prefix.strip_prefix("st-").and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
}
