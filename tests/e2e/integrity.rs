//! Scrubs that find and repair flipped bits, and the last resort when no up-to-date copy is left.

use crate::damage::{copy_directory, flip_bits};
use crate::harness::{Cluster, bash, eventually};
use serde_json::Value;
use std::fs;

fn kinds(cluster: &Cluster) -> Vec<(String, String)> {
    let text = cluster.cli(&["events", "--volume", "data", "--format", "json"]).ok();
    let events: Value = serde_json::from_str(&text).unwrap();
    let of = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let events = events.as_array().unwrap().iter();
    events.map(|event| (of(event, "kind"), of(event, "nodeName"))).collect()
}

fn happened(cluster: &Cluster, kind: &str, node: &str) {
    eventually(&format!("{kind} on {node} is an event"), || {
        let found = kinds(cluster).iter().any(|(k, n)| k == kind && n == node);
        found.then_some(())
    });
}

#[test]
fn a_scrub_repairs_flipped_bits_on_a_replica_and_on_the_master() {
    let mut cluster = Cluster::start(2);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "for i in $(seq 50); do seq $i 3000 > f$i; done; sync -f .").ok();
    let sums = bash(&mount, "sha256sum f*").ok();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
    let master = cluster.master("data");
    for node in [1 - cluster.index(&master), cluster.index(&master)] {
        let name = cluster.nodes[node].name.clone();
        let directory = copy_directory(&cluster.nodes[node].directory);
        let flipped = flip_bits(&directory.join("data"), 0);
        assert!(flipped > 50);
        let text = cluster.cli(&["volume", "scrub", "--format", "json", "data"]).ok();
        let scrub: Value = serde_json::from_str(&text).unwrap();
        for copy in scrub["copies"].as_array().unwrap() {
            let expected = if copy["nodeName"] == name.as_str() { flipped } else { 0 };
            assert_eq!(copy["corruptBlocks"], expected, "{text}");
            assert_eq!(copy["repairedBlocks"], expected, "{text}");
            assert!(copy["bytesRead"].as_u64().unwrap() > 0, "{text}");
        }
        happened(&cluster, "blocksRepaired", &name);
        cluster.cli(&["volume", "verify", "--deep", "data"]).ok();
    }
    happened(&cluster, "scrubDone", "");
    let inspected = cluster.inspect("data");
    assert!(inspected["repairedBlocks"].as_u64().unwrap() > 100, "{inspected}");
    assert_eq!(inspected["scrub"]["running"], false, "{inspected}");
    let table = cluster.cli(&["volume", "scrub", "data"]).ok();
    assert_eq!(table.matches("good").count(), 2, "{table}");
    let mount = cluster.mount(0, "default/data");
    assert_eq!(bash(&mount, "sha256sum f*").ok(), sums);
    cluster.unmount(&mount);
    // Bad on both: nothing is left to repair them from, and that is said.
    for node in &cluster.nodes {
        flip_bits(&copy_directory(&node.directory).join("data"), 0);
    }
    let said = cluster.cli(&["volume", "scrub", "data"]);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert_eq!(said.out.matches("corrupt").count(), 2, "{}", said.out);
    happened(&cluster, "blocksCorrupt", &master);
}

#[test]
fn a_background_scrub_repairs_without_being_asked() {
    // A pass in some five seconds.
    let days = || vec!["--scrub-days".to_owned(), "0.00006".to_owned()];
    let mut cluster = Cluster::start_with(2, |_| days());
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "seq 200000 > f; sync -f .").ok();
    let replica = cluster.replicas("data", "healthy")[0].clone();
    let directory = copy_directory(&cluster.nodes[cluster.index(&replica)].directory);
    assert!(flip_bits(&directory.join("data"), 0) > 0);
    happened(&cluster, "blocksRepaired", &replica);
    happened(&cluster, "scrubDone", "");
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}

#[test]
fn a_stale_copy_is_made_the_master_only_by_an_operator_who_accepts_the_loss() {
    // n1 and n2 hold no copies and are, with n3, the voters: the control plane survives the copies.
    let mut cluster = Cluster::start_with_voters_first(4, &[0, 1]);
    cluster.create_with(
        "data",
        &[
            "storageos.com/replicas=1",
            "storageos.com/failure.mode=alwayson",
            "storageos.com/hint.master=n3",
        ],
    );
    assert_eq!(cluster.master("data"), "n3");
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "echo old > old; sync -f .").ok();
    cluster.nodes[3].kill();
    bash(&mount, "echo new > new; sync -f .").ok();
    cluster.unmount(&mount);
    cluster.nodes[2].kill();
    let promote = |more: &[&str]| {
        let mut arguments = vec!["volume", "promote", "--copy", "n4"];
        arguments.extend(more);
        arguments.push("data");
        cluster.nodes[0].cli(&arguments)
    };
    eventually("nobody can serve the volume", || {
        (cluster.inspect("data")["health"] == "offline").then_some(())
    });
    let offline = promote(&["--accept-data-loss"]).fails_with(4);
    assert!(offline.contains("n4"), "{offline}");
    cluster.nodes[3].start();
    let explained = eventually("the loss is explained", || {
        let said = cluster.nodes[0].cli(&["volume", "promote", "--copy", "n4", "data"]);
        assert_eq!(said.code, 4);
        said.err.contains("was in sync until").then_some(said.err)
    });
    assert!(
        explained.contains("--accept-data-loss") && explained.contains("n3"),
        "{explained}"
    );
    // Never by itself, and not while an up-to-date copy is there.
    assert_eq!(cluster.master("data"), "n3");
    let promote = ["volume", "promote", "--copy", "n4", "--accept-data-loss", "data"];
    let said = cluster.nodes[0].cli(&promote);
    assert!(said.err.contains("is lost"), "{}", said.err);
    assert_eq!(said.ok().trim(), "default/data");
    happened(&cluster, "dataLossAccepted", "n4");
    let mount = eventually("the volume can be mounted", || {
        cluster.mount_with(0, "default/data", "rw").ok()
    });
    assert_eq!(fs::read_to_string(mount.join("old")).unwrap(), "old\n");
    assert!(!mount.join("new").exists());
    bash(&mount, "echo newer > newer; sync -f .").ok();
    // The copy that had more returns, and becomes like the master's.
    cluster.nodes[2].start();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
    let refused = cluster.nodes[0].cli(&promote).fails_with(4);
    assert!(refused.contains("up-to-date"), "{refused}");
}
