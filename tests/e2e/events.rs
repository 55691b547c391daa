//! The events that operators read after something happened.

use crate::harness::{Cluster, STORAGEOS, bash, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn events(cluster: &Cluster, more: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["events", "--format", "json"];
    arguments.extend(more);
    let text = cluster.cli(&arguments).ok();
    serde_json::from_str::<Value>(&text)
        .unwrap()
        .as_array()
        .unwrap()
        .clone()
}

#[test]
fn a_lost_node_a_promotion_and_the_return_are_events_that_outlive_the_daemons() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "echo x > f; sync f").ok();
    cluster.unmount(&mount);
    let master = cluster.index(&cluster.master("data"));
    let asked = usize::from(master == 0);
    let mut following = Command::new(STORAGEOS)
        .env("STORAGEOS_HOST", cluster.nodes[asked].socket())
        .args(["events", "--follow", "--volume", "data"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    cluster.nodes[master].kill();
    let lost = cluster.nodes[master].name.clone();
    // Ends when the line comes; the harness's own deadline ends a test that hangs.
    let promoted = lines.map_while(Result::ok).find(|line| line.contains("masterPromoted"));
    following.kill().unwrap();
    following.wait().unwrap();
    assert!(promoted.unwrap().contains(&lost));
    eventually("the other nodes' events are one", || {
        let found = events(&cluster, &["--node", &lost]);
        let lost: Vec<_> = found.iter().filter(|e| e["kind"] == "nodeLost").collect();
        (lost.len() == 1).then_some(())
    });
    cluster.nodes[master].start();
    eventually("the copy is in sync again", || {
        let kinds = events(&cluster, &["--volume", "data"]);
        let of = |kind: &str| {
            kinds
                .iter()
                .any(|e| e["kind"] == kind && e["nodeName"] == lost.as_str())
        };
        (of("replicaLost") && of("replicaSyncing") && of("replicaInSync")).then_some(())
    });
    let before = events(&cluster, &["--volume", "default/data"]);
    for node in &mut cluster.nodes {
        node.stop();
    }
    for node in &mut cluster.nodes {
        node.spawn();
    }
    eventually("all daemons answer", || {
        let all = cluster.nodes.iter().all(|n| n.cli(&["node", "ls", "-q"]).code == 0);
        all.then_some(())
    });
    cluster.wait_for_live_nodes(3);
    let after = events(&cluster, &["--volume", "default/data"]);
    assert!(
        before.iter().all(|event| after.contains(event)),
        "{before:?}\n{after:?}"
    );
    let table = cluster.cli(&["events", "--since", "1h"]).ok();
    assert!(table.starts_with("TIME"), "{table}");
    assert!(table.contains("is the master now"), "{table}");
    let wrong = cluster.cli(&["events", "--since", "yesterday"]).fails_with(2);
    assert!(wrong.contains("10m"), "{wrong}");
    cluster.cli(&["events", "--node", "nobody"]).fails_with(3);
}
