//! Failure modes: which losses leave a volume writable, what happens when they do not, and labels changed under load.

use crate::harness::{Cluster, Writer, bash, eventually};
use serde_json::Value;

fn update(cluster: &Cluster, arguments: &[&str]) {
    let mut all = vec!["volume", "update"];
    all.extend(arguments);
    all.push("data");
    cluster.cli(&all).ok();
}

fn kinds(cluster: &Cluster) -> Vec<String> {
    let text = cluster.cli(&["events", "--volume", "data", "--format", "json"]).ok();
    let events: Value = serde_json::from_str(&text).unwrap();
    let kind = |event: &Value| event["kind"].as_str().unwrap().to_owned();
    events.as_array().unwrap().iter().map(kind).collect()
}

/// Copies can be on n1, n4 and n5; n1, n2 and n3 are the voters. So the replicas may die and the control plane goes on.
fn with_witnesses() -> Cluster {
    Cluster::start_with_voters_first(5, &[1, 2])
}

#[test]
fn a_soft_volume_goes_on_with_the_losses_it_tolerates_and_suspends_beyond_them() {
    let mut cluster = with_witnesses();
    cluster.create_with(
        "data",
        &[
            "storageos.com/replicas=2",
            "storageos.com/failure.mode=soft",
            "storageos.com/io.timeout=60m",
        ],
    );
    let mount = cluster.mount(0, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(5);
    cluster.nodes[3].kill();
    writer.goes_on(5);
    // The second loss is one too many: the writer waits, and nothing fails.
    cluster.nodes[4].kill();
    let message = eventually("inspect says that writes wait", || {
        let inspected = cluster.inspect("data");
        let message = inspected["statusMessage"].as_str()?.to_owned();
        message.contains("writes wait").then_some(message)
    });
    assert!(message.contains("2 of 2 replicas lost"), "{message}");
    assert!(message.contains("n4") && message.contains("n5"), "{message}");
    assert!(message.contains("storageos.com/failure.mode=alwayson"), "{message}");
    assert_eq!(cluster.inspect("data")["status"], "unavailable");
    // One replica's return frees it.
    cluster.nodes[4].start();
    writer.goes_on(5);
    writer.ends_well();
    let kinds = kinds(&cluster);
    for kind in ["replicaLost", "volumeSuspended", "replicaInSync", "volumeWritable"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind}: {kinds:?}");
    }
    cluster.nodes[3].start();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

#[test]
fn an_alwayson_volume_goes_on_with_its_last_copy() {
    let mut cluster = with_witnesses();
    cluster.create_with(
        "data",
        &["storageos.com/replicas=2", "storageos.com/failure.mode=alwayson"],
    );
    let mount = cluster.mount(0, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(5);
    for replica in [3, 4] {
        cluster.nodes[replica].kill();
        writer.goes_on(5);
    }
    let inspected = cluster.inspect("data");
    assert_eq!(inspected["status"], "active", "{inspected}");
    assert_eq!(inspected["health"], "degraded", "{inspected}");
    for replica in [3, 4] {
        cluster.nodes[replica].start();
    }
    writer.ends_well();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

#[test]
fn a_label_that_the_present_state_cannot_meet_is_refused_and_force_insists() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 1);
    update(&cluster, &["--label-add", "storageos.com/failure.tolerance=1"]);
    let refused = cluster
        .cli(&["volume", "update", "--label-add", "storageos.com/replicas=5", "data"])
        .fails_with(4);
    assert!(refused.contains("nodes"), "{refused}");
    let mount = cluster.mount(0, "default/data");
    let replica = cluster.index(&cluster.replicas("data", "healthy")[0]);
    let spare = 3 - replica;
    cluster.cli(&["node", "cordon", &format!("n{}", spare + 1)]).ok();
    cluster.nodes[replica].kill();
    bash(&mount, "echo x > f && sync f").ok();
    let hard = [
        "volume",
        "update",
        "--label-add",
        "storageos.com/failure.mode=hard",
        "data",
    ];
    let refused = cluster.cli(&hard).fails_with(4);
    assert!(refused.contains("1 of 1 replicas lost"), "{refused}");
    assert!(refused.contains("--force"), "{refused}");
    bash(&mount, "echo y > f && sync f").ok();
    update(&cluster, &["--label-add", "storageos.com/io.timeout=2s"]);
    update(&cluster, &["--label-add", "storageos.com/failure.mode=hard", "--force"]);
    eventually("a synced write is refused", || {
        (bash(&mount, "echo z > f && sync f").code != 0).then_some(())
    });
    let message = eventually("inspect says that it is read-only", || {
        let message = cluster.inspect("data")["statusMessage"].as_str()?.to_owned();
        message.contains("read-only").then_some(message)
    });
    assert!(message.contains("failure mode hard"), "{message}");
    eventually("an event says so", || {
        kinds(&cluster).iter().any(|k| k == "volumeReadOnly").then_some(())
    });
    update(&cluster, &["--label-add", "storageos.com/failure.mode=alwayson"]);
    eventually("writes work again without a remount", || {
        (bash(&mount, "echo w > f && sync f").code == 0).then_some(())
    });
    assert!(kinds(&cluster).iter().any(|k| k == "volumeWritable"));
    update(&cluster, &["--label-rm", "storageos.com/failure.tolerance"]);
    cluster.nodes[replica].start();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}

#[test]
fn replicas_go_up_and_down_on_a_mounted_volume_under_load() {
    let mut cluster = Cluster::start(6);
    cluster.create_with("data", &[]);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "dd if=/dev/urandom of=big bs=1M count=8 status=none; sync big").ok();
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(5);
    for replicas in [1, 5, 2, 4, 0, 3] {
        update(
            &cluster,
            &["--label-add", &format!("storageos.com/replicas={replicas}")],
        );
        eventually(
            &format!("{replicas} replicas are in sync, and no other copy is left"),
            || {
                let inspected = cluster.inspect("data");
                let found = inspected["replicas"].as_array()?;
                let healthy = found.iter().filter(|r| r["health"] == "healthy").count();
                (found.len() == replicas && healthy == replicas && inspected["health"] == "healthy").then_some(())
            },
        );
        writer.goes_on(5);
    }
    update(&cluster, &["--label-rm", "storageos.com/replicas"]);
    update(&cluster, &["--label-add", "storageos.feature.replicas=2"]);
    update(&cluster, &["--label-add", "storageos.com/failure.mode=hard"]);
    writer.goes_on(5);
    writer.ends_well();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
    // Nodes without a copy have removed theirs.
    cluster.wait_for_copies_on_disks(3);
}
