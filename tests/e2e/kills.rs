//! Daemons killed with SIGKILL while files are written: nothing that was acknowledged is lost, copies end identical.

use crate::harness::{Cluster, Writer, bash, check_lines, checksums, eventually};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn a_killed_replica_leaves_the_in_sync_set_and_writing_goes_on() {
    let mut cluster = Cluster::start(3);
    cluster.create_with(
        "data",
        &["storageos.com/replicas=2", "storageos.com/failure.mode=alwayson"],
    );
    let mount = cluster.mount(0, "default/data");
    assert_eq!(cluster.master("data"), "n1");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(20);
    cluster.nodes[1].kill();
    writer.goes_on(20);
    let inspected = cluster.inspect("data");
    assert_ne!(inspected["health"], "healthy", "{inspected}");
    cluster.verify_identical("data", 2);
    // The replica comes back, is brought up to date, and is in sync again.
    cluster.nodes[1].start();
    cluster.wait_for_copies("data", 3);
    writer.goes_on(20);
    writer.ends_well();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

#[test]
fn a_killed_master_is_replaced_and_a_mount_elsewhere_goes_on_without_an_error() {
    // n4 holds no copy: its mount works through the master.
    let mut cluster = Cluster::start_with_compute_only(4, &[3]);
    cluster.create("data", 2);
    let mount = cluster.mount(3, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(20);
    let master = cluster.index(&cluster.master("data"));
    cluster.nodes[master].kill();
    writer.goes_on(20);
    writer.ends_well();
    assert_ne!(cluster.index(&cluster.master("data")), master);
    cluster.verify_identical("data", 2);
    cluster.unmount(&mount);
}

#[test]
fn twenty_random_kills_of_the_mounting_daemon_lose_nothing_that_was_synced() {
    // The mounts die with it: what is there then is what a crash leaves.
    let mut cluster = Cluster::start_with(3, |_| vec!["--keep-mounts".into(), "0s".into()]);
    cluster.create("data", 1);
    let mut seed = u64::from(std::process::id()) | 1;
    let mut expected = Vec::new();
    for round in 0..20 {
        let mount = cluster.mount(0, "default/data");
        for (file, acknowledged) in &expected {
            check_lines(&mount.join(file), *acknowledged);
        }
        let file = format!("lines-{round}");
        let writer = Writer::start(&mount.join(&file));
        writer.goes_on(1);
        // A random moment within a quarter of a second; not a wait for anything.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let until = Instant::now() + Duration::from_micros((seed >> 33) % 250_000);
        while Instant::now() < until && !writer.has_ended() {
            std::thread::yield_now();
        }
        cluster.nodes[0].kill();
        let (_, acknowledged) = writer.stop();
        expected.push((file, acknowledged));
        let _ = bash(&cluster.directory, &format!("umount -l -i {}", mount.display()));
        cluster.nodes[0].start();
    }
    let mount = cluster.mount(0, "default/data");
    for (file, acknowledged) in &expected {
        check_lines(&mount.join(file), *acknowledged);
    }
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}

#[test]
fn a_hard_volume_that_lost_a_replica_turns_read_only_and_comes_back_by_itself() {
    let mut cluster = Cluster::start(2);
    cluster.create_with(
        "data",
        &[
            "storageos.com/replicas=1",
            "storageos.com/failure.mode=hard",
            "storageos.com/io.timeout=2s",
        ],
    );
    let mount = cluster.mount(0, "default/data");
    fs::write(mount.join("before"), "kept").unwrap();
    bash(&mount, "sync before").ok();
    cluster.nodes[1].kill();
    eventually("a synced write is refused", || {
        let said = bash(&mount, "echo x > during && sync during");
        (said.code != 0).then_some(())
    });
    assert_eq!(fs::read_to_string(mount.join("before")).unwrap(), "kept");
    let message = cluster.inspect("data")["statusMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("hard"), "{message}");
    cluster.nodes[1].start();
    eventually("writes work again without a remount", || {
        let said = bash(&mount, "echo y > after && sync after");
        (said.code == 0).then_some(())
    });
    assert_eq!(fs::read_to_string(mount.join("after")).unwrap(), "y\n");
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}

#[test]
fn the_control_plane_survives_any_one_node() {
    let mut cluster = Cluster::start(3);
    cluster.wait_for_voters(&["n1", "n2", "n3"]);
    for index in 0..3 {
        cluster.nodes[index].kill();
        let name = format!("made-without-{index}");
        eventually("a volume can be created while one node is away", || {
            (cluster.cli(&["volume", "create", &name]).code == 0).then_some(())
        });
        cluster.nodes[index].start();
        cluster.wait_for_live_nodes(3);
    }
    assert_eq!(cluster.nodes[2].cli(&["volume", "ls", "-q"]).ok().lines().count(), 3);
}

#[test]
fn a_tree_copied_while_a_replica_dies_is_whole() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    let target = mount.clone();
    let copying = std::thread::spawn(move || bash(&target, "cp -r /usr/share/perl* . && sync -f .").ok());
    eventually("the copy is under way", || {
        (fs::read_dir(&mount).unwrap().count() > 0).then_some(())
    });
    cluster.nodes[2].kill();
    copying.join().unwrap();
    let source = bash(
        Path::new("/usr/share"),
        "find perl* -type f -print0 | sort -z | xargs -0 sha256sum",
    )
    .ok();
    assert_eq!(checksums(&mount).replace("  ./", "  "), source);
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}
