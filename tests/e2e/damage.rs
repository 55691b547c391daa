//! Damaged disks: full, flipped bits, wrong sums, truncated control store. Found, named, contained.

use crate::harness::{Cluster, bash, eventually, mount_tmpfs};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The directory of the only copy on a node.
pub fn copy_directory(node: &Path) -> PathBuf {
    let entries: Vec<_> = fs::read_dir(node.join("volumes"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

/// Inverts a byte in the middle of every written 4 KiB page of a sparse file from `from` on.
pub fn flip_bits(path: &Path, from: u64) -> usize {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let (mut at, length, mut flipped) = (from, file.metadata().unwrap().len(), 0);
    let mut page = [0_u8; 4096];
    while at < length {
        let Ok(next) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) else {
            break;
        };
        at = next / 4096 * 4096;
        file.read_exact_at(&mut page, at).unwrap();
        if page.iter().any(|b| *b != 0) {
            file.write_all_at(&[!page[2000]], at + 2000).unwrap();
            flipped += 1;
        }
        at += 4096;
    }
    flipped
}

/// Starts so many nodes; the second one's directory is on a disk of 64 MiB.
fn with_a_small_disk(count: usize) -> Cluster {
    let mut cluster = Cluster::prepare(count, |_| vec![]);
    mount_tmpfs(&cluster.nodes[1].directory, "64m");
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_for_live_nodes(count);
    cluster
}

#[test]
fn a_flipped_bit_on_one_copy_is_never_read_and_verify_names_it() {
    let mut cluster = Cluster::start(2);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    bash(
        &mount,
        "for i in $(seq 200); do seq $i 2000 > f$i; done; sync -f .; sha256sum f* > /dev/null",
    )
    .ok();
    let sums = bash(&mount, "sha256sum f*").ok();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
    let damaged = copy_directory(&cluster.nodes[1].directory);
    assert!(flip_bits(&damaged.join("data"), 0) > 200);
    let said = cluster.cli(&["volume", "verify", "--deep", "data"]);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(said.out.contains("n2") && said.out.contains("extent"), "{}", said.out);
    // A mount on the damaged node makes it master: every bad block is mended from the other copy when it is read.
    let mount = cluster.mount(1, "default/data");
    assert_eq!(bash(&mount, "sha256sum f*").ok(), sums);
    cluster.unmount(&mount);
}

#[test]
fn a_corrupted_sums_file_is_found_and_mended_from_the_other_copy() {
    let mut cluster = Cluster::start(2);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "for i in $(seq 100); do seq $i 3000 > f$i; done; sync -f .").ok();
    let sums = bash(&mount, "sha256sum f*").ok();
    cluster.unmount(&mount);
    // Stop the node, so that it must read its sums again from the disk.
    cluster.nodes[0].stop();
    let damaged = copy_directory(&cluster.nodes[0].directory);
    assert!(flip_bits(&damaged.join("sums"), 0) > 0);
    cluster.nodes[0].start();
    cluster.wait_for_copies("data", 2);
    let mount = cluster.mount(0, "default/data");
    assert_eq!(bash(&mount, "sha256sum f*").ok(), sums);
    cluster.unmount(&mount);
}

#[test]
fn a_replica_whose_disk_is_full_is_dropped_and_writing_goes_on() {
    let mut cluster = with_a_small_disk(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    bash(
        &mount,
        "dd if=/dev/urandom of=big bs=1M count=100 status=none && sync big && sha256sum big >/dev/null",
    )
    .ok();
    let inspected = cluster.inspect("data");
    assert_ne!(inspected["health"], "healthy", "{inspected}");
    assert_eq!(cluster.replicas("data", "healthy"), ["n3"]);
    cluster.unmount(&mount);
    let said = cluster.cli(&["volume", "verify", "data"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    cluster.nodes[1].kill();
}

#[test]
fn a_copy_whose_disk_stays_bad_is_replaced_on_another_node_and_watch_sees_it_through() {
    let mut cluster = with_a_small_disk(4);
    cluster.cli(&["node", "cordon", "n4"]).ok();
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    bash(
        &mount,
        "dd if=/dev/urandom of=big bs=1M count=100 status=none && sync big",
    )
    .ok();
    // Without a free node it is tried again and again, with growing pauses.
    eventually("the copy has failed twice", || {
        let text = cluster
            .cli(&["events", "--volume", "data", "--node", "n2", "--format", "json"])
            .ok();
        let lost = text.matches("replicaLost").count();
        (lost >= 2 && text.contains("disk full")).then_some(())
    });
    cluster.cli(&["node", "uncordon", "n4"]).ok();
    let watched = cluster.cli(&["volume", "watch", "--timeout", "90s", "data"]).ok();
    assert!(
        watched.contains("n4  syncing") || watched.contains("n4  healthy"),
        "{watched}"
    );
    assert!(watched.trim_end().ends_with("default/data  healthy"), "{watched}");
    let mut replicas = cluster.replicas("data", "healthy");
    replicas.sort();
    assert_eq!(replicas, ["n3", "n4"]);
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
    cluster
        .cli(&["volume", "watch", "--timeout", "1s", "nothing"])
        .fails_with(3);
    cluster.nodes[1].kill();
}

#[test]
fn a_truncated_control_store_is_a_clear_error_that_names_it() {
    let mut cluster = Cluster::start(1);
    cluster.cli(&["volume", "create", "data"]).ok();
    cluster.nodes[0].kill();
    let control = cluster.nodes[0].directory.join("control");
    let mut truncated = 0;
    for entry in fs::read_dir(&control).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let length = path.metadata().unwrap().len();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length / 3)
                .unwrap();
            truncated += 1;
        }
    }
    assert!(truncated > 0, "no file in {}", control.display());
    cluster.nodes[0].spawn();
    let log = eventually("the daemon ends with an error", || {
        let log = cluster.nodes[0].log();
        (log.contains("control") && log.contains("error")).then_some(log)
    });
    assert!(log.contains(control.to_str().unwrap()), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    cluster.nodes[0].kill();
}
