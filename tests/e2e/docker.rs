//! The volume driver under the real Docker Engine: one `dockerd` for each node, as on machines of their own.
//!
//! An engine looks for drivers in /run/docker/plugins, wherever it runs. So each gets a mount namespace with a /run of its own, in which its node's
//! directory of sockets is bound to that place; the machine's /run, and an engine that it may have, are not touched. The cluster's directory is made
//! a shared mount, so that the engine sees what the node's daemon mounts, as it would in the host's namespace.

use crate::harness::{Cluster, Said, Writer, bash, eventually, run};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the engine's shell does before it becomes the engine. Its /run is kept for the next one: there is the way to containers that go on. The mounts of other tests, which its mount namespace begins with, go: it would keep them in use.
const OWN_RUN: &str = "
own=$(dirname \"$PWD\")
for m in $(awk '$3 == \"fuse.storageos\" { print $2 }' /proc/self/mounts); do
  case $m in \"$own\"/*) ;; *) umount -l -i \"$m\" || true ;; esac
done
mkdir -p run/docker/plugins && mount --bind run /run && mount --bind \"$0\" /run/docker/plugins && exec dockerd \"$@\"";
/// What a container does that is only there.
const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A Docker Engine.
struct Engine {
    directory: PathBuf,
    plugins: PathBuf,
    child: Option<Child>,
}

impl Engine {
    /// Starts one beside a node; `propagation` says whether it sees mounts that are made later (`slave`) or not (`private`).
    #[track_caller]
    fn start(cluster: &Cluster, node: usize, propagation: &str) -> Self {
        let directory = cluster.directory.join(format!("docker-{propagation}-{}", node + 1));
        fs::create_dir_all(&directory).unwrap();
        let mut engine = Self {
            directory,
            plugins: plugins(cluster, node),
            child: None,
        };
        engine.spawn(propagation);
        let image = "mkdir -p image/bin image/data && cp /bin/busybox image/bin/ && ln -s busybox image/bin/sh && \
                     tar -C image -c . | docker -H unix://$PWD/docker.sock import - busybox";
        bash(&engine.directory, image).ok();
        engine
    }

    #[track_caller]
    fn spawn(&mut self, propagation: &str) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .unwrap();
        let place = |name: &str| self.directory.join(name).display().to_string();
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", propagation, "bash", "-c", OWN_RUN])
            .arg(&self.plugins)
            .current_dir(&self.directory)
            .args(["--data-root", &place("data"), "--exec-root", &place("exec")])
            .args(["--host", &format!("unix://{}", place("docker.sock"))])
            .args(["--pidfile", &place("pid"), "--storage-driver", "vfs"])
            .args([
                "--bridge=none",
                "--iptables=false",
                "--ip-forward=false",
                "--ip-masq=false",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("the Docker Engine answers", || {
            let exited = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(exited.is_none(), "dockerd ended: {exited:?}\n{}", self.log());
            (self.docker(&["version"]).code == 0).then_some(())
        });
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// `docker` with these arguments.
    #[track_caller]
    fn docker(&self, arguments: &[&str]) -> Said {
        let host = format!("unix://{}", self.directory.join("docker.sock").display());
        run("docker", &[&["-H", &host], arguments].concat())
    }

    /// A command line as printed somewhere, in a shell.
    #[track_caller]
    fn shell(&self, line: &str) -> Said {
        bash(
            &self.directory,
            &format!("export DOCKER_HOST=unix://$PWD/docker.sock\n{line}"),
        )
    }

    /// Runs a shell's words in a new container that has a volume at /data, and removes the container.
    #[track_caller]
    fn in_container(&self, volume: &str, words: &str) -> Said {
        let volume = format!("{volume}:/data");
        let options = ["run", "--rm", "--network", "none", "--volume-driver", "storageos"];
        self.docker(&[&options[..], &["-v", &volume, "busybox", "sh", "-c", words]].concat())
    }

    /// Starts a container that stays and has a volume at /data.
    #[track_caller]
    fn stays(&self, container: &str, volume: &str) {
        let volume = format!("{volume}:/data");
        let options = ["run", "-d", "--name", container, "--network", "none"];
        let rest = [
            "--volume-driver",
            "storageos",
            "-v",
            &volume,
            "busybox",
            "sh",
            "-c",
            STAY,
        ];
        self.docker(&[&options[..], &rest].concat()).ok();
    }

    /// Runs a shell's words in a container that is there.
    #[track_caller]
    fn exec(&self, container: &str, words: &str) -> Said {
        self.docker(&["exec", container, "sh", "-c", words])
    }

    /// SIGKILL for the engine, with which its containerd ends; its containers go on.
    #[track_caller]
    fn kill(&mut self) {
        let containerd = fs::read_to_string(self.directory.join("exec/containerd/containerd.pid")).unwrap();
        let mut child = self.child.take().expect("the engine runs");
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("containerd ends", || {
            (!Path::new("/proc").join(containerd.trim()).exists()).then_some(())
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of dockerd\n{}", self.log());
        }
        let Some(mut child) = self.child.take() else { return };
        let all = "docker -H unix://$PWD/docker.sock ps -aq | xargs -r docker -H unix://$PWD/docker.sock rm -f";
        let _ = Command::new("bash")
            .args(["-c", all])
            .current_dir(&self.directory)
            .stdout(Stdio::null())
            .status();
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let ended = (0..300).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            child.try_wait().is_ok_and(|status| status.is_some())
        });
        if !ended {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Nodes, and a Docker Engine beside each. The engines end first.
struct Site {
    engines: Vec<Engine>,
    cluster: Cluster,
}

/// Where a node's driver has its socket.
fn plugins(cluster: &Cluster, node: usize) -> PathBuf {
    cluster.directory.join(format!("plugins-{}", node + 1))
}

/// Starts nodes with drivers, without engines.
#[track_caller]
fn nodes(count: usize, extra: &[&str]) -> Cluster {
    let mut cluster = Cluster::prepare(count, |_| extra.iter().map(|word| (*word).to_owned()).collect());
    let directory = cluster.directory.to_str().unwrap().to_owned();
    run("mount", &["--bind", &directory, &directory]).ok();
    run("mount", &["--make-shared", &directory]).ok();
    for node in 0..count {
        let socket = plugins(&cluster, node).join("storageos.sock");
        cluster.nodes[node].extra.push(format!("--docker={}", socket.display()));
        cluster.nodes[node].start();
    }
    cluster.wait_for_live_nodes(count);
    cluster
}

impl Site {
    #[track_caller]
    fn start(count: usize, engines: usize, extra: &[&str]) -> Self {
        let cluster = nodes(count, extra);
        let engines = (0..engines)
            .map(|node| Engine::start(&cluster, node, "slave"))
            .collect();
        Self { engines, cluster }
    }

    /// Waits until no node has the volume mounted.
    #[track_caller]
    fn released(&self, volume: &str) {
        eventually("the volume is not mounted", || {
            (self.cluster.inspect(volume)["mounted"] == false).then_some(())
        });
    }

    /// By which node it is mounted.
    #[track_caller]
    fn mounted_by(&self, volume: &str) -> String {
        self.cluster.inspect(volume)["mountedBy"].as_str().unwrap().to_owned()
    }
}

/// The Docker lines of StorageOS's page on high availability, as printed there, in a shell; then what one does with such a volume.
#[test]
fn the_documented_docker_lines_make_a_replicated_volume() {
    let site = Site::start(3, 1, &[]);
    let docker = &site.engines[0];
    let said = docker
        .shell("docker volume create --driver storageos --opt size=15 --opt storageos.feature.replicas=2 volume-name");
    assert_eq!(said.ok(), "volume-name\n");
    let inspected = site.cluster.inspect("default/volume-name");
    assert_eq!(inspected["size"], 15_u64 << 30);
    assert_eq!(inspected["labels"]["storageos.com/replicas"], "2");
    assert_eq!(inspected["replicas"].as_array().unwrap().len(), 2);
    // The driver asked for the master to be where its Docker is.
    assert_eq!(inspected["labels"]["storageos.com/hint.master"], "n1");
    assert_eq!(site.cluster.master("volume-name"), "n1");

    let listed = docker.docker(&["volume", "ls"]).ok();
    let line = listed.lines().nth(1).unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["storageos", "volume-name"]
    );
    let text = docker.docker(&["volume", "inspect", "volume-name"]).ok();
    let shown: Value = serde_json::from_str(&text).unwrap();
    let (volume, status) = (&shown[0], &shown[0]["Status"]);
    assert_eq!(
        (&volume["Driver"], &volume["Scope"]),
        (&"storageos".into(), &"global".into())
    );
    assert_eq!(
        (&status["size"], &status["master"]),
        (&"15 GiB".into(), &"n1 (healthy)".into()),
        "{text}"
    );
    assert_eq!(status["replicas"].as_array().unwrap().len(), 2);

    // What exists stays as it is.
    let again = docker.docker(&["volume", "create", "-d", "storageos", "-o", "size=16", "volume-name"]);
    assert_eq!(again.ok(), "volume-name\n");
    assert_eq!(site.cluster.inspect("volume-name")["size"], 15_u64 << 30);

    let write = "echo kept > /data/file && df -k /data | tail -1";
    let room = docker.in_container("volume-name", write).ok();
    assert!(room.starts_with("default/volume-name"), "{room}");
    assert!(room.contains(&(15_u64 << 20).to_string()), "{room}");
    // When the container has ended everything is on all copies, and the volume free.
    site.released("volume-name");
    site.cluster.verify_identical("volume-name", 3);
    assert_eq!(docker.in_container("volume-name", "cat /data/file").ok(), "kept\n");
    site.released("volume-name");
    assert_eq!(docker.docker(&["volume", "rm", "volume-name"]).ok(), "volume-name\n");
    assert_eq!(site.cluster.cli(&["volume", "ls", "-q"]).ok(), "");
    assert_eq!(docker.docker(&["volume", "ls", "-q"]).ok(), "");
}

#[test]
fn containers_of_a_node_share_a_mount_until_the_last_one_ends() {
    let mut site = Site::start(1, 1, &[]);
    let docker = &site.engines[0];
    // Made by the first container that names it.
    docker.stays("one", "shared");
    assert_eq!(site.cluster.inspect("shared")["size"], 5_u64 << 30);
    docker.stays("two", "shared");
    docker.exec("one", "echo from one > /data/one").ok();
    assert_eq!(docker.exec("two", "cat /data/one").ok(), "from one\n");
    let text = docker.docker(&["volume", "inspect", "shared"]).ok();
    let place = site.cluster.nodes[0].directory.join("docker/shared");
    assert!(
        text.contains(&format!("\"Mountpoint\": \"{}\"", place.display())),
        "{text}"
    );

    // Not under running containers.
    let refused = site.cluster.cli(&["volume", "unmount", "shared"]).fails_with(4);
    assert!(refused.contains("busy"), "{refused}");
    let refused = site.cluster.cli(&["volume", "rm", "shared"]).fails_with(4);
    assert!(refused.contains("is mounted on node n1"), "{refused}");

    docker.docker(&["rm", "-f", "one"]).ok();
    docker.exec("two", "cat /data/one && echo from two > /data/two").ok();
    assert_eq!(site.mounted_by("shared"), "n1");
    // Docker's word for a container that is there.
    let refused = docker.docker(&["volume", "rm", "shared"]).fails_with(1);
    assert!(refused.contains("volume is in use"), "{refused}");
    docker.docker(&["rm", "-f", "two"]).ok();
    site.released("shared");
    assert!(!place.exists());

    // And the driver's, for a mount that Docker knows nothing of.
    let mount = site.cluster.mount(0, "default/shared");
    assert_eq!(fs::read_to_string(mount.join("two")).unwrap(), "from two\n");
    let docker = &site.engines[0];
    let refused = docker.docker(&["volume", "rm", "shared"]).fails_with(1);
    let at = format!("is mounted on node n1 at {}", mount.display());
    assert!(
        refused.contains(&at) && refused.contains("storageos volume unmount"),
        "{refused}"
    );
    let refused = docker.in_container("shared", "true").fails_with(125);
    assert!(refused.contains("already mounted on this node"), "{refused}");
    site.cluster.unmount(&mount);
    let docker = &site.engines[0];
    assert_eq!(docker.in_container("shared", "cat /data/one").ok(), "from one\n");
    docker.docker(&["volume", "rm", "shared"]).ok();

    // Volumes without a name are Docker's to name and to remove.
    let said = docker.docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--volume-driver",
        "storageos",
        "-v",
        "/data",
        "busybox",
        "sh",
        "-c",
        "df /data",
    ]);
    let said = said.ok();
    assert!(said.contains("default/"), "{said}");
    assert_eq!(docker.docker(&["volume", "ls", "-q"]).ok(), "");
}

#[test]
fn a_container_that_moves_to_another_node_finds_its_data() {
    let mut site = Site::start(3, 2, &["--replace-after", "3s"]);
    let (here, there) = (&site.engines[0], &site.engines[1]);
    here.docker(&[
        "volume",
        "create",
        "-d",
        "storageos",
        "-o",
        "storageos.com/replicas=2",
        "moving",
    ])
    .ok();
    here.stays("app", "moving");
    here.exec("app", "echo one > /data/file").ok();

    let refused = there.in_container("moving", "true").fails_with(125);
    for says in [
        "already mounted on node n1",
        "storageos volume unmount default/moving",
        "stop the container",
    ] {
        assert!(refused.contains(says), "{says}: {refused}");
    }
    let refused = there.docker(&["volume", "rm", "moving"]).fails_with(1);
    assert!(refused.contains("is mounted on node n1"), "{refused}");

    here.docker(&["rm", "-f", "app"]).ok();
    there.stays("app", "moving");
    assert_eq!(
        there
            .exec("app", "cat /data/file && echo two >> /data/file && sync /data/file")
            .ok(),
        "one\n"
    );
    assert_eq!(site.mounted_by("moving"), "n2");

    // The second node dies with its container: the volume is released by itself, and what was synced is there.
    site.cluster.nodes[1].kill();
    let here = &site.engines[0];
    let said = eventually("the volume can be used on the first node", || {
        let said = here.in_container("moving", "cat /data/file");
        assert!(
            said.code == 0 || said.err.contains("node n2"),
            "says where it is in use: {}",
            said.err
        );
        (said.code == 0).then_some(said.out)
    });
    assert_eq!(said, "one\ntwo\n");
    site.released("moving");
    // It returns. That its container ends means nothing for the volume, which is used elsewhere.
    here.stays("app", "moving");
    site.cluster.nodes[1].start();
    site.engines[1].docker(&["rm", "-f", "app"]).ok();
    let here = &site.engines[0];
    assert_eq!(here.exec("app", "cat /data/file").ok(), "one\ntwo\n");
    assert_eq!(site.mounted_by("moving"), "n1");
}

#[test]
fn a_daemon_that_died_counts_anew_and_forgets_nobody() {
    let mut site = Site::start(1, 1, &[]);
    let docker = &site.engines[0];
    docker.stays("one", "data");
    docker.stays("two", "data");
    docker.exec("one", "echo kept > /data/file && sync /data/file").ok();
    site.cluster.nodes[0].kill();
    site.cluster.nodes[0].start();
    let docker = &site.engines[0];
    docker.docker(&["restart", "-t", "1", "one"]).ok();
    assert_eq!(docker.exec("one", "cat /data/file").ok(), "kept\n");
    // That it ends must not take the mount from the one that was started again.
    docker.docker(&["rm", "-f", "two"]).ok();
    assert_eq!(
        docker.exec("one", "cat /data/file && echo more >> /data/file").ok(),
        "kept\n"
    );
    docker.docker(&["rm", "-f", "one"]).ok();
    site.released("data");

    // Now the engine dies. Its container goes on; the next engine ends it, and its use of the volume.
    docker.stays("three", "data");
    site.engines[0].kill();
    site.engines[0].spawn("slave");
    let docker = &site.engines[0];
    site.released("data");
    docker.docker(&["start", "three"]).ok();
    assert_eq!(docker.exec("three", "cat /data/file").ok(), "kept\nmore\n");
    docker.docker(&["rm", "-f", "three"]).ok();
    site.released("data");
}

#[test]
fn a_daemon_that_is_told_to_stop_waits_for_its_containers() {
    let mut site = Site::start(1, 1, &[]);
    site.engines[0].stays("app", "data");
    site.cluster.nodes[0].signal("-TERM");
    eventually("the daemon says that it waits", || {
        site.cluster.nodes[0]
            .whole_log()
            .contains("this mount is busy")
            .then_some(())
    });
    let docker = &site.engines[0];
    docker.exec("app", "echo late > /data/file").ok();
    let refused = docker.in_container("other", "true");
    assert_ne!(refused.code, 0);
    docker.docker(&["rm", "-f", "app"]).ok();
    assert_eq!(site.cluster.nodes[0].stop(), 0);
    assert!(!plugins(&site.cluster, 0).join("storageos.sock").exists());
    site.cluster.nodes[0].start();
    assert_eq!(site.engines[0].in_container("data", "cat /data/file").ok(), "late\n");
}

#[test]
fn an_engine_that_does_not_see_the_mount_is_refused() {
    let cluster = nodes(1, &[]);
    let blind = Engine::start(&cluster, 0, "private");
    let refused = blind.in_container("data", "echo lost > /data/file").fails_with(125);
    for says in ["does not see it", "different mount namespaces", "docs/docker.md"] {
        assert!(refused.contains(says), "{says}: {refused}");
    }
    assert_eq!(cluster.inspect("data")["mounted"], false);
    drop(blind);
}

#[test]
fn what_docker_asks_wrongly_is_answered_readably() {
    let mut site = Site::start(1, 1, &[]);
    let docker = &site.engines[0];
    for (options, says) in [
        (&["-o", "size=big", "v"][..], "`big` is not a size"),
        (&["-o", "storageos.com/replicas=9", "v"], "expected 0 to 5"),
        (&["-o", "storageos.com/replicas=3", "v"], "ask for fewer replicas"),
        (&["-o", "storageos.com/no.such=1", "v"], "unknown label"),
        (&["team/v"], "separates a namespace"),
    ] {
        let refused = docker
            .docker(&[&["volume", "create", "-d", "storageos"], options].concat())
            .fails_with(1);
        assert!(refused.contains(says), "{refused}");
    }
    let refused = docker.docker(&["volume", "inspect", "nothing"]).fails_with(1);
    assert!(refused.to_lowercase().contains("no such volume"), "{refused}");

    let socket = plugins(&site.cluster, 0).join("storageos.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Noise on the socket while a container writes.
    docker.stays("app", "data");
    let file = site.cluster.nodes[0].directory.join("docker/data/lines");
    let writer = Writer::start(&file);
    writer.goes_on(5);
    let mut noise = File::open("/dev/urandom").unwrap();
    for round in 0..200 {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let mut bytes = vec![0; 1 + round * 37];
        std::io::Read::read_exact(&mut noise, &mut bytes).unwrap();
        let head = format!(
            "POST /VolumeDriver.Mount HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        if round % 2 == 0 {
            let _ = stream.write_all(head.as_bytes());
        }
        let _ = stream.write_all(&bytes);
    }
    writer.goes_on(5);
    writer.ends_well();
    assert_eq!(docker.docker(&["volume", "ls", "-q"]).ok(), "data\n");
    docker.docker(&["rm", "-f", "app"]).ok();
    site.released("data");
    assert_eq!(site.cluster.nodes[0].stop(), 0);
}
