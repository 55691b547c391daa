//! Nodes that go one after another: what is left goes on, as far as each volume's failure mode says.

use crate::harness::{Cluster, Writer, bash, eventually};
use serde_json::Value;
use std::path::Path;

/// The control plane as the last node sees it: names of its voters, of its leader, and of the nodes that live.
pub fn plane(cluster: &Cluster, node: usize) -> Option<(Vec<String>, String, Vec<String>)> {
    let said = cluster.nodes[node].cli(&["cluster", "health", "--format", "json"]);
    let health: Value = serde_json::from_str(&said.out).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let voters = health["voters"].as_array()?.iter().filter_map(text).collect();
    let nodes = health["nodes"].as_array()?;
    let live = nodes.iter().filter(|n| n["health"] == "healthy");
    Some((
        voters,
        text(&health["leader"])?,
        live.filter_map(|n| text(&n["name"])).collect(),
    ))
}

/// Waits until so many nodes live, and three of them vote, or one if there are not three.
#[track_caller]
pub fn settled(cluster: &Cluster, node: usize, count: usize) {
    eventually(&format!("{count} nodes live and vote among themselves"), || {
        let (voters, leader, live) = plane(cluster, node)?;
        let wanted = if count < 3 { 1 } else { 3 };
        let of_the_living = voters.iter().chain([&leader]).all(|name| live.contains(name));
        (live.len() == count && voters.len() == wanted && of_the_living).then_some(())
    });
}

/// Whether a file can be written and synced.
fn writable(directory: &Path) -> bool {
    bash(directory, "echo x > probe && sync probe").code == 0
}

#[test]
fn five_nodes_die_one_by_one_and_each_failure_mode_keeps_its_word() {
    let quick = ["--voter-grace", "1s", "--replace-after", "2s"];
    let mut cluster = Cluster::start_with(5, |_| quick.iter().map(|s| (*s).to_owned()).collect());
    // The writer on the first one waits for each recovery; of the others writes are to fail soon.
    for (mode, timeout) in [("alwayson", "90s"), ("soft", "5s"), ("hard", "5s")] {
        let timeout = format!("storageos.com/io.timeout={timeout}");
        let mode_label = format!("storageos.com/failure.mode={mode}");
        cluster.create_sized(mode, "64MiB", &["storageos.com/replicas=2", &mode_label, &timeout]);
    }
    let last = 4;
    let [alwayson, soft, hard] = ["alwayson", "soft", "hard"].map(|mode| cluster.mount(last, mode));
    let writer = Writer::start(&alwayson.join("lines"));
    writer.goes_on(20);
    for (dead, left) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
        cluster.nodes[dead].kill();
        writer.goes_on(20);
        settled(&cluster, last, left);
        eventually(&format!("{left} nodes hold copies in sync"), || {
            assert!(!writer.has_ended(), "the writer ended");
            let inspected = cluster.inspect("alwayson");
            let replicas = inspected["replicas"].as_array()?;
            let well = replicas.iter().filter(|r| r["health"] == "healthy").count();
            let waiting = replicas
                .iter()
                .any(|r| r["health"] == "suspect" || r["health"] == "syncing");
            (inspected["master"]["health"] == "healthy" && well == 2.min(left - 1) && !waiting).then_some(())
        });
        writer.goes_on(20);
        // Two replicas wanted: soft goes on without one of them, hard only with both.
        for (mode, mount, least) in [("soft", &soft, 2), ("hard", &hard, 3)] {
            let expected = left >= least;
            eventually(&format!("{mode} is writable with {left} nodes: {expected}"), || {
                (writable(mount) == expected).then_some(())
            });
        }
    }
    // The control plane of the last node still takes changes.
    cluster.nodes[last].cli(&["volume", "create", "alone"]).ok();
    writer.ends_well();
}

#[test]
fn a_node_that_stops_in_order_gives_its_vote_away_first() {
    let mut cluster = Cluster::start(4);
    settled(&cluster, 3, 4);
    let (voters, leader, _) = plane(&cluster, 3).unwrap();
    // The leader, which has to hand over the lead as well.
    let first = cluster.index(&leader);
    assert_eq!(cluster.nodes[first].stop(), 0);
    // Without its vote the two others of three would be all that is left, and each of them needed.
    let second = voters
        .iter()
        .map(|name| cluster.index(name))
        .find(|i| *i != first)
        .unwrap();
    cluster.nodes[second].kill();
    eventually("a volume can be created", || {
        (cluster.cli(&["volume", "create", "made"]).code == 0).then_some(())
    });
    for index in [first, second] {
        cluster.nodes[index].start();
    }
    settled(&cluster, first, 4);
}

#[test]
fn a_lost_majority_is_recovered_from_a_survivor_and_the_others_join_it() {
    let mut cluster = Cluster::start(5);
    settled(&cluster, 4, 5);
    let (voters, ..) = plane(&cluster, 4).unwrap();
    let voters: Vec<usize> = voters.iter().map(|name| cluster.index(name)).collect();
    let survivors: Vec<usize> = (0..5).filter(|i| !voters.contains(i)).collect();
    let [first, second] = survivors[..] else {
        panic!("{survivors:?}")
    };
    // Copies on both survivors and one voter: cordoned nodes get none.
    for index in &voters[1..] {
        let name = cluster.nodes[*index].name.clone();
        cluster.cli(&["node", "cordon", &name]).ok();
    }
    cluster.create_with(
        "data",
        &["storageos.com/replicas=2", "storageos.com/failure.mode=alwayson"],
    );
    let mount = cluster.mount(first, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(20);
    let refused = cluster.nodes[first].cli(&["cluster", "recover", "--yes"]).fails_with(4);
    assert!(refused.contains("the control plane works"), "{refused}");

    for index in &voters {
        cluster.nodes[*index].kill();
    }
    let refused = cluster.nodes[first].cli(&["cluster", "recover"]).fails_with(2);
    assert!(refused.contains("--yes") && refused.contains("both sides"), "{refused}");
    // The survivor that knows most: the other one says so.
    let mut chosen = first;
    let said = eventually("a survivor recovers the control plane", || {
        let said = cluster.nodes[chosen].cli(&["cluster", "recover", "--yes"]);
        if said.code != 0 && said.err.contains("newer replica") {
            chosen = if chosen == first { second } else { first };
        }
        (said.code == 0).then_some(said)
    });
    assert_eq!(said.ok(), format!("{}\n", cluster.nodes[chosen].name));
    writer.goes_on(20);
    eventually("both survivors belong to the recovered control plane", || {
        let said = cluster.nodes[if chosen == first { second } else { first }].cli(&["volume", "create", "made"]);
        (said.code == 0).then_some(())
    });

    // All three old voters at once: a majority of the old control plane.
    for index in &voters {
        cluster.nodes[*index].spawn();
    }
    settled(&cluster, chosen, 5);
    for index in 0..5 {
        eventually("every node sees the recovered control plane", || {
            let seen = cluster.nodes[index].cli(&["volume", "ls", "-q"]);
            (seen.code == 0 && seen.out.contains("made")).then_some(())
        });
    }
    writer.goes_on(20);
    writer.ends_well();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}
