//! What operators do with nodes while volumes are in use: empty them, stop them, take them out of the cluster.

use crate::harness::{Cluster, Writer, eventually};
use serde_json::Value;

/// The nodes that hold a copy in sync, the master's first.
fn holders(cluster: &Cluster, volume: &str) -> Vec<String> {
    let mut nodes = vec![cluster.master(volume)];
    nodes.extend(cluster.replicas(volume, "healthy"));
    nodes
}

/// One node as `node inspect` prints it.
fn node(cluster: &Cluster, name: &str) -> Value {
    let text = cluster.cli(&["node", "inspect", name]).ok();
    let mut list: Value = serde_json::from_str(&text).unwrap();
    list[0].take()
}

#[test]
fn drained_nodes_are_emptied_while_the_volume_is_written() {
    let mut cluster = Cluster::start(4);
    cluster.create("data", 1);
    // The mount takes mastership to its node if that holds a copy.
    let home = cluster.index(&cluster.master("data"));
    let home_name = cluster.nodes[home].name.clone();
    let mount = cluster.mount(home, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(20);

    // The master's node, which also has the mount: it goes on over the network.
    let said = cluster.cli(&["node", "drain", &home_name]);
    assert!(
        said.err.contains("safe to stop") && said.err.contains("default/data mounted"),
        "{}",
        said.err
    );
    assert_eq!(said.ok(), format!("{home_name}\n"));
    writer.goes_on(20);
    let moved = holders(&cluster, "data");
    assert!(moved.len() == 2 && !moved.contains(&home_name), "{moved:?}");
    assert_eq!(node(&cluster, &home_name)["drained"], true);
    assert!(cluster.cli(&["node", "ls"]).ok().contains("(drained,cordoned)"));

    // A master elsewhere, under the same mount.
    let second = moved[0].clone();
    cluster.cli(&["node", "drain", "--timeout", "80s", &second]).ok();
    writer.goes_on(20);
    let moved = holders(&cluster, "data");
    assert!(
        moved.len() == 2 && !moved.contains(&home_name) && !moved.contains(&second),
        "{moved:?}"
    );

    // Two nodes are left for two copies: a third cannot be emptied, and the command says why.
    let third = moved[1].clone();
    let error = cluster.cli(&["node", "drain", &third]).fails_with(4);
    for part in [
        "cannot be emptied: 1 copy left",
        "default/data",
        "0 of 4 nodes can hold one",
        "is drained",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let waiting = cluster
        .cli(&["node", "drain", "--timeout", "100ms", &third])
        .fails_with(1);
    assert!(waiting.contains("is not empty yet"), "{waiting}");
    writer.goes_on(20);

    // With a node more the draining goes on by itself.
    cluster.cli(&["node", "undrain", &home_name]).ok();
    eventually("the third node is empty", || {
        (!holders(&cluster, "data").contains(&third)).then_some(())
    });
    writer.goes_on(20);
    assert_eq!(node(&cluster, &third)["replicas"], 0);

    // What is empty can be stopped without the writer's noticing.
    let third = cluster.index(&third);
    assert_eq!(cluster.nodes[third].stop(), 0);
    writer.goes_on(20);
    writer.ends_well();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}

#[test]
fn a_deleted_nodes_name_is_free_and_it_may_not_come_back() {
    let mut cluster = Cluster::start(4);
    cluster.create("data", 1);
    let copies = holders(&cluster, "data");
    let index = (1..4).find(|i| !copies.contains(&cluster.nodes[*i].name)).unwrap();
    let name = cluster.nodes[index].name.clone();
    let error = cluster.cli(&["node", "delete", &name]).fails_with(4);
    assert!(error.contains("it is online"), "{error}");
    let said = cluster.cli(&["cluster", "connectivity"]);
    assert_eq!(said.out.lines().count(), 1 + 4 * 3, "{}", said.out);
    assert!(said.ok().starts_with("SOURCE  NAME  ADDRESS"));

    cluster.nodes[index].kill();
    let said = cluster.cli(&["node", "connectivity", "n1", "--format", "{{.Name}} {{.Status}}"]);
    assert!(said.out.contains(&format!("{name} failed")), "{}", said.out);
    said.fails_with(1);
    eventually("the node counts as offline and is deleted", || {
        (cluster.cli(&["node", "delete", &name]).code == 0).then_some(())
    });
    assert!(!cluster.cli(&["node", "ls", "-q"]).ok().lines().any(|n| n == name));
    cluster.cli(&["node", "delete", &name]).fails_with(3);

    // The old daemon is told why it is not taken back.
    cluster.nodes[index].spawn();
    eventually("the deleted node is refused", || {
        let said = cluster.nodes[index].cli(&["node", "ls"]);
        (said.code == 4 && said.err.contains("was deleted from the cluster")).then_some(())
    });
    assert_eq!(cluster.cli(&["node", "ls", "-q"]).ok().lines().count(), 3);
    cluster.nodes[index].kill();

    // A new node may have the name.
    cluster.nodes[index].directory = cluster.directory.join("fresh");
    cluster.nodes[index].start();
    cluster.wait_for_live_nodes(4);
    assert!(cluster.cli(&["node", "ls", "-q"]).ok().lines().any(|n| n == name));
}
