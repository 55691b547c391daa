//! `volume check`: on mounted and on stopped volumes, from any node, without a write, and what it says of damage.

use crate::damage::copy_directory;
use crate::harness::{Cluster, STORAGEOS, bash, eventually};
use bytes::Bytes;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use storageos::block::{BLOCK_SIZE, BlockDevice, CopyStore, LocalDevice, Write};

/// First block of the metadata area (docs/formats.md).
const METADATA: u64 = 17_408;

/// When a copy's data was last written.
fn written(node: &Path) -> (i64, i64, u64) {
    let data = fs::metadata(copy_directory(node).join("data")).unwrap();
    (data.mtime(), data.mtime_nsec(), data.blocks())
}

fn check(cluster: &Cluster, node: usize) -> Value {
    let text = cluster.nodes[node]
        .cli(&["volume", "check", "--format", "json", "data"])
        .ok();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_volume_is_checked_mounted_or_not_from_any_node_and_nothing_is_written() {
    let mut cluster = Cluster::start(3);
    cluster.cli(&["volume", "check", "data"]).fails_with(3);
    cluster.create("data", 1);
    let said = cluster.cli(&["volume", "check", "data"]).fails_with(4);
    assert!(said.contains("holds no file system yet"), "{said}");

    let mount = cluster.mount(0, "default/data");
    bash(
        &mount,
        "mkdir -p a/b; for i in $(seq 300); do seq $i 1000 > a/f$i; done; ln a/f1 a/b/again; ln -s f1 a/link; rm a/f2; mkfifo pipe
         truncate -s 1G sparse; sync -f .",
    )
    .ok();
    // On any node, while the volume is being written.
    let script = format!(
        "cd {} && for i in $(seq 200); do seq 2000 > w$i; mv w$i v; done",
        mount.display()
    );
    let writer = std::thread::spawn(move || bash(Path::new("/"), &script).ok());
    for node in (0..3).cycle().take(12) {
        let found = check(&cluster, node);
        assert_eq!(
            (&found["mounted"], &found["nodeName"]),
            (&Value::Bool(true), &Value::from("n1"))
        );
        assert_eq!(found["problems"], Value::Array(vec![]));
    }
    writer.join().unwrap();
    bash(&mount, "rm -f v; sync -f .").ok();
    let used = check(&cluster, 1);
    assert_eq!(used["inodes"], 1 + 2 + 299 + 3);
    assert_eq!(used["capacity"], 5_u64 << 30);
    cluster.unmount(&mount);

    let before: Vec<_> = [0, 1, 2]
        .into_iter()
        .filter(|n| cluster.nodes[*n].directory.join("volumes").read_dir().unwrap().count() > 0)
        .map(|n| (n, written(&cluster.nodes[n].directory)))
        .collect();
    assert_eq!(before.len(), 2);
    let master = cluster.master("data");
    for node in 0..3 {
        let found = check(&cluster, node);
        assert_eq!(
            (&found["mounted"], &found["nodeName"]),
            (&Value::Bool(false), &Value::from(master.clone()))
        );
        assert_eq!(found["problems"], Value::Array(vec![]));
        for field in ["inodes", "usedBytes", "capacity"] {
            assert_eq!(found[field], used[field], "{field}");
        }
    }
    let text = cluster.cli(&["volume", "check", "data"]).ok();
    assert!(
        text.starts_with("default/data: no problem found, 305 inodes, "),
        "{text}"
    );
    assert!(text.contains(" used of 5 GiB "), "{text}");
    for (node, before) in before {
        assert_eq!(written(&cluster.nodes[node].directory), before);
    }
    cluster.verify_identical("data", 2);
}

#[test]
fn a_volume_whose_node_died_is_checked_with_what_was_saved() {
    // The mount dies with its daemon.
    let mut cluster = Cluster::start_with(1, |_| vec!["--keep-mounts".into(), "0s".into()]);
    cluster.create("data", 0);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "for i in $(seq 50); do seq 1000 > f$i; sync f$i; done").ok();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    let found = eventually("the claim of the dead mount is released", || {
        let said = cluster.cli(&["volume", "check", "--format", "json", "data"]);
        (said.code == 0).then(|| serde_json::from_str::<Value>(&said.out).unwrap())
    });
    assert_eq!(
        (&found["mounted"], &found["inodes"]),
        (&Value::Bool(false), &Value::from(51))
    );
    // The log is still to be replayed, as the first check left it.
    let before = written(&cluster.nodes[0].directory);
    assert_eq!(check(&cluster, 0), found);
    assert_eq!(written(&cluster.nodes[0].directory), before);
}

#[test]
fn damaged_metadata_is_named_and_a_volume_out_of_reach_is_not_called_damaged() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 0);
    let at = cluster.index(&cluster.master("data"));
    let mount = cluster.mount(at, "default/data");
    bash(&mount, "for i in $(seq 2000); do : > f$i; done; sync -f .").ok();
    cluster.unmount(&mount);
    check(&cluster, 0);
    cluster.nodes[at].stop();
    let other = (at + 1) % 3;
    let said = cluster.nodes[other].cli(&["volume", "check", "data"]);
    assert_eq!(said.code, 6, "{}{}", said.out, said.err);
    assert!(
        said.err.contains("does not answer") && said.out.is_empty(),
        "{}{}",
        said.out,
        said.err
    );

    // Written with the right sums: what a mistake of the program would leave, and no disk's.
    let (store, _) = CopyStore::open(&copy_directory(&cluster.nodes[at].directory)).unwrap();
    let device = LocalDevice::new(store);
    let mut damaged = 0;
    for block in METADATA + 1..METADATA + 400 {
        let mut content = vec![0; BLOCK_SIZE];
        device.read(block, &mut content).unwrap();
        if content.iter().any(|b| *b != 0) {
            content[100..2000].fill(0xa5);
            let data = Bytes::from(content);
            device.write(&[Write { block, data }], true).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 20, "only {damaged} blocks hold metadata");
    device.store().close().unwrap();
    drop(device);
    cluster.nodes[at].start();
    let said = eventually("the damaged volume is checked", || {
        let said = cluster.nodes[other].cli(&["volume", "check", "data"]);
        (said.code != 6).then_some(said)
    });
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(
        said.out.contains("problem") && said.out.contains("metadata"),
        "{}",
        said.out
    );
    let json = cluster.nodes[other].cli(&["volume", "check", "--format", "json", "data"]);
    assert_eq!(json.code, 1);
    let found: Value = serde_json::from_str(&json.out).unwrap();
    assert!(!found["problems"].as_array().unwrap().is_empty(), "{found}");
    // The daemon goes on.
    cluster.nodes[at].cli(&["volume", "inspect", "data"]).ok();
}

#[test]
fn a_volume_that_is_mounted_and_unmounted_meanwhile_is_never_called_damaged() {
    let mut cluster = Cluster::start(2);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "for i in $(seq 500); do : > f$i; done").ok();
    cluster.unmount(&mount);
    let script = format!(
        "for i in $(seq 40); do {STORAGEOS} -H unix://{} volume check data || echo $?; done",
        cluster.nodes[1].socket().display()
    );
    let checks = std::thread::spawn(move || bash(Path::new("/"), &script).ok());
    for round in 0.. {
        if checks.is_finished() {
            assert!(round > 3, "only {round} mounts in the time of the checks");
            break;
        }
        let mount = cluster.mount(round % 2, "default/data");
        bash(
            &mount,
            "mkdir d; for i in $(seq 100); do : > d/$i; done; rm -r d; sync -f .",
        )
        .ok();
        cluster.unmount(&mount);
        let said = cluster.cli(&["volume", "check", "data"]).ok();
        assert!(
            said.contains("no problem found") && said.contains("(not mounted, checked on n"),
            "{said}"
        );
    }
    let said = checks.join().unwrap();
    assert_eq!(said.matches("no problem found").count(), 40, "{said}");
}
