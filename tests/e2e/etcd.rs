//! Clusters whose records are in etcd: a real one, of Debian's package `etcd-server`, started and killed by each test.

use crate::etcd_process::EtcdProcess;
use crate::harness::{Cluster, DEADLINE, Writer, eventually, run};
use serde_json::Value;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// One etcd on an address of its own, beside those of the tests' daemons.
struct Etcd {
    process: EtcdProcess,
}

impl Etcd {
    fn start() -> Self {
        let pid = std::process::id();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let host = format!("127.{}.{}.{}", 16 + (pid >> 8) % 200, pid & 0xff, 240 + serial % 10);
        let process = EtcdProcess::on(&host);
        let mut etcd = Self { process };
        etcd.run();
        etcd
    }

    /// Starts the process. Whether it serves, the daemons find out by themselves.
    fn run(&mut self) {
        self.process.spawn();
        eventually("etcd listens", || TcpStream::connect(&self.process.client).ok());
    }

    fn arguments(&self) -> Vec<String> {
        vec!["--control".into(), format!("etcd://{}/tests/one", self.process.client)]
    }
}

fn health(cluster: &Cluster) -> Value {
    let said = cluster.cli(&["cluster", "health", "--format", "json"]);
    serde_json::from_str(&said.out).unwrap_or_default()
}

fn becomes_healthy(cluster: &Cluster) {
    eventually("the cluster is healthy", || {
        (health(cluster)["healthy"] == true).then_some(())
    });
}

fn can_create(cluster: &Cluster, volume: &str) {
    eventually("a volume can be created", || {
        (cluster.cli(&["volume", "create", volume]).code == 0).then_some(())
    });
}

#[test]
fn files_are_written_while_etcd_is_away_and_a_killed_master_is_replaced_when_it_is_there() {
    let mut etcd = Etcd::start();
    let mut cluster = Cluster::start_with(3, |_| etcd.arguments());
    becomes_healthy(&cluster);
    let said = health(&cluster);
    assert_eq!(
        said["voters"],
        serde_json::json!([format!("etcd {}", etcd.process.client)])
    );
    let roles: Vec<&str> = said["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles.iter().filter(|r| **r == "leader").count(), 1, "{said}");
    assert_eq!(roles.iter().filter(|r| **r == "member").count(), 2, "{said}");

    let one_copy_is_enough = "storageos.com/failure.mode=alwayson";
    cluster.create_with("data", &["storageos.com/replicas=1", one_copy_is_enough]);
    let node = cluster.without_copy("data")[0];
    let mount = cluster.mount(node, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(20);

    etcd.process.kill();
    writer.goes_on(100);
    let asked = Instant::now();
    let refused = cluster.cli(&["volume", "create", "more"]).fails_with(6);
    assert!(
        refused.contains("etcd") && refused.contains(&etcd.process.client),
        "{refused}"
    );
    assert!(asked.elapsed() < DEADLINE / 2, "{:?}", asked.elapsed());
    eventually("health says that etcd is away", || {
        let said = health(&cluster);
        let problems = said["problems"].to_string();
        (said["healthy"] == false && said["leader"].is_null() && problems.contains(&etcd.process.client)).then_some(())
    });
    assert_eq!(cluster.cli(&["volume", "ls", "-q"]).ok().trim(), "default/data");
    writer.goes_on(100);
    etcd.run();
    can_create(&cluster, "more");
    becomes_healthy(&cluster);
    writer.goes_on(20);

    let master = cluster.index(&cluster.master("data"));
    cluster.nodes[master].kill();
    writer.goes_on(20);
    assert_ne!(cluster.index(&cluster.master("data")), master);
    writer.ends_well();
    cluster.nodes[master].start();
    becomes_healthy(&cluster);
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}

#[test]
fn any_daemon_may_die_and_another_one_leads() {
    let etcd = Etcd::start();
    let mut cluster = Cluster::start_with(3, |_| etcd.arguments());
    for round in 0..3 {
        becomes_healthy(&cluster);
        let leader = health(&cluster)["leader"].as_str().unwrap().to_owned();
        let index = cluster.index(&leader);
        let killed = Instant::now();
        cluster.nodes[index].kill();
        eventually("another node leads", || {
            let said = health(&cluster);
            let other = said["leader"].as_str()?;
            (other != leader).then_some(())
        });
        assert!(killed.elapsed() < Duration::from_secs(60));
        can_create(&cluster, &format!("v{round}"));
        // The same line that started it first: --init, or --join with an address that etcd needs not.
        cluster.nodes[index].start();
    }
    becomes_healthy(&cluster);
}

#[test]
fn an_etcd_that_lost_its_data_is_named_and_never_written() {
    let mut etcd = Etcd::start();
    let mut cluster = Cluster::start_with(1, |_| etcd.arguments());
    cluster.create("data", 0);
    let mount = cluster.mount(0, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(5);
    etcd.process.lose_data();
    etcd.run();
    let refused = eventually("the loss is noticed", || {
        let said = cluster.cli(&["volume", "create", "more"]);
        (said.code == 6 && said.err.contains("does not hold cluster")).then_some(said.err)
    });
    assert!(refused.contains("docs/operations.md"), "{refused}");
    eventually("health says it", || {
        let problems = health(&cluster)["problems"].to_string();
        problems.contains("does not hold cluster").then_some(())
    });
    // What is mounted goes on: its one copy is its master.
    writer.goes_on(20);
    writer.ends_well();
    // A daemon that starts now says it, too, and a fresh one finds no cluster to join.
    cluster.nodes[0].kill();
    let _ = run("umount", &["-l", "-i", mount.to_str().unwrap()]);
    cluster.nodes[0].spawn();
    eventually("the restarted daemon says it", || {
        let log = fs::read_to_string(cluster.nodes[0].directory.join("log")).unwrap_or_default();
        log.contains("the cluster's record is not there").then_some(())
    });
}

#[test]
fn a_second_cluster_in_the_same_place_is_refused() {
    let etcd = Etcd::start();
    let cluster = Cluster::start_with(1, |_| etcd.arguments());
    becomes_healthy(&cluster);
    let start = |name: &str, arguments: &[&str]| {
        let directory = cluster.directory.join(name);
        let mut all = vec!["node", "run", "--data-dir", directory.to_str().unwrap(), "--name", name];
        all.extend(["--listen", "127.0.0.1:0", "--socket", "none"]);
        all.extend(arguments);
        run(crate::harness::STORAGEOS, &all)
    };
    let control = etcd.arguments();
    let said = start("other", &["--init", &control[0], &control[1]]);
    let error = said.fails_with(4);
    assert!(error.contains("holds cluster"), "{error}");
    for (wrong, says) in [
        ("etcds://127.0.0.1:1", "TLS"),
        ("etcd://u:p@127.0.0.1:1", "password"),
        ("etcd://127.0.0.1", "HOST:PORT"),
        ("consul://127.0.0.1:1", "embedded"),
    ] {
        let error = start("wrong", &["--control", wrong]).fails_with(2);
        assert!(error.contains(says), "{error}");
    }
    assert!(!Path::new(&cluster.directory.join("wrong")).exists());
}

/// The procedure of docs/operations.md; `extra` are the daemons' arguments afterwards, `import` those of the import.
#[track_caller]
fn move_records(cluster: &mut Cluster, extra: &[String], import: &[&str]) {
    let records = cluster.directory.join("records.json");
    fs::write(&records, cluster.cli(&["cluster", "export"]).ok()).unwrap();
    for node in &mut cluster.nodes {
        assert_eq!(node.stop(), 0);
        let away = node
            .directory
            .join(format!("control-before-{}", import[1].replace(['/', ':'], "-")));
        fs::rename(node.directory.join("control"), away).unwrap();
        node.extra = extra.to_vec();
    }
    let mut words = vec!["cluster", "import"];
    words.extend(import);
    words.push(records.to_str().unwrap());
    run(crate::harness::STORAGEOS, &words).ok();
    // A second time there is a cluster.
    run(crate::harness::STORAGEOS, &words).fails_with(4);
    for node in &mut cluster.nodes {
        node.start();
    }
    becomes_healthy(cluster);
}

#[test]
fn records_move_to_etcd_and_back_and_the_files_stay() {
    let etcd = Etcd::start();
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    fs::write(mount.join("embedded"), "1").unwrap();
    let refused = cluster.cli(&["cluster", "export"]).fails_with(4);
    assert!(refused.contains("default/data"), "{refused}");
    cluster.unmount(&mount);

    let to = etcd.arguments();
    move_records(&mut cluster, &to, &[&to[0], &to[1]]);
    assert_eq!(
        health(&cluster)["voters"],
        serde_json::json!([format!("etcd {}", etcd.process.client)])
    );
    let mount = cluster.mount(1, "default/data");
    assert_eq!(fs::read_to_string(mount.join("embedded")).unwrap(), "1");
    fs::write(mount.join("etcd"), "2").unwrap();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);

    let directory = cluster.nodes[0].directory.to_str().unwrap().to_owned();
    let to = ["--control", "embedded", "--data-dir", &directory];
    move_records(&mut cluster, &[], &to);
    cluster.wait_for_voters(&["n1", "n2", "n3"]);
    let mount = cluster.mount(2, "default/data");
    assert_eq!(fs::read_to_string(mount.join("embedded")).unwrap(), "1");
    assert_eq!(fs::read_to_string(mount.join("etcd")).unwrap(), "2");
    fs::write(mount.join("again"), "3").unwrap();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}
