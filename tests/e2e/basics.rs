//! The main job: a volume in three copies, mounted as a directory, used by ordinary programs.

use crate::harness::{Cluster, STORAGEOS, bash, checksums, eventually, run};
use std::fs;
use std::path::Path;

/// The lines of StorageOS's page on high availability, as printed there, in a shell.
#[test]
fn the_documented_commands_create_replicated_volumes() {
    let cluster = Cluster::start(4);
    let shell = |line: &str| {
        let storageos = Path::new(STORAGEOS).parent().unwrap().display();
        let socket = cluster.nodes[0].socket();
        let script = format!(
            "export PATH={storageos}:$PATH STORAGEOS_HOST={}\n{line}",
            socket.display()
        );
        bash(&cluster.directory, &script).ok()
    };
    let has = |replicas: usize| {
        eventually(&format!("{replicas} replicas"), || {
            let inspected = cluster.inspect("default/volume-name");
            let healthy = inspected["health"] == "healthy";
            (healthy && inspected["replicas"].as_array()?.len() == replicas).then_some(inspected)
        })
    };
    let said = shell(
        "storageos volume create --namespace default --label storageos.com/replicas=2 --label storageos.com/failure.mode=alwayson volume-name",
    );
    assert_eq!(said.trim(), "default/volume-name");
    let inspected = has(2);
    assert_eq!(inspected["labels"]["storageos.com/replicas"], "2");
    assert_eq!(inspected["labels"]["storageos.com/failure.mode"], "alwayson");
    shell("storageos volume rm volume-name");
    shell("storageos volume create --namespace default --label storageos.feature.replicas=2 volume-name");
    has(2);
    let table = shell("storageos volume ls");
    assert!(table.lines().next().unwrap().starts_with("NAMESPACE/NAME"), "{table}");
    assert!(table.contains("2/2"), "{table}");
    shell("storageos volume update --label-add storageos.feature.replicas=1 volume-name");
    has(1);
    shell("storageos volume update --label-add storageos.feature.replicas=2 default/volume-name");
    has(2);
}

#[test]
fn files_written_through_a_mount_are_on_three_identical_copies() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    bash(
        &mount,
        "cp -r /usr/share/doc/bash . && dd if=/dev/urandom of=big bs=1M count=24 status=none && sync big",
    )
    .ok();
    let before = checksums(&mount);
    assert!(before.lines().count() > 2);
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
    // The next mount is on another node: mastership moves there, the files are the same.
    let mount = cluster.mount(1, "default/data");
    assert_eq!(checksums(&mount), before);
    cluster.unmount(&mount);
}

#[test]
fn a_volume_grows_while_it_is_mounted_on_the_master_or_elsewhere_or_not_at_all() {
    let mut cluster = Cluster::start(3);
    cluster.create_sized("data", "65MiB", &["storageos.com/replicas=1"]);
    let without = cluster.without_copy("data")[0];
    let room = |mount: &Path| -> u64 {
        let said = run("df", &["-B1", "--output=size", mount.to_str().unwrap()]).ok();
        said.lines().nth(1).unwrap().trim().parse().unwrap()
    };
    let grow = |size: &str| cluster.cli(&["volume", "update", "--size", size, "data"]).ok();
    let refused = cluster
        .cli(&["volume", "update", "--size", "64MiB", "data"])
        .fails_with(5);
    assert!(refused.contains("cannot be lowered"), "{refused}");

    // Not mounted: the next mount finds it larger.
    grow("80MiB");
    let holder = cluster.index(&cluster.master("data"));
    for (node, bytes) in [(holder, 160_u64 << 20), (without, 320 << 20)] {
        let mount = cluster.mount(node, "default/data");
        eventually("it is as large as before", || (room(&mount) == bytes / 2).then_some(()));
        // With an end, and synced: what the page cache has not written yet does not know that there is no room.
        let fill = bash(
            &mount,
            "dd if=/dev/urandom of=full bs=1M count=200 conv=fsync status=none",
        );
        assert!(fill.err.contains("No space left"), "{}", fill.err);
        let half = (bytes >> 20).to_string() + "MiB";
        cluster.cli(&["volume", "update", "--size", &half, "data"]).ok();
        eventually("df shows the new size", || (room(&mount) == bytes).then_some(()));
        bash(
            &mount,
            "dd if=/dev/urandom of=f bs=1M count=40 oflag=append conv=notrunc,fsync status=none && rm full",
        )
        .ok();
        let before = checksums(&mount);
        cluster.unmount(&mount);
        cluster.verify_identical("data", 2);
        let mount = cluster.mount(node, "default/data");
        assert_eq!(checksums(&mount), before);
        cluster.unmount(&mount);
    }
    assert_eq!(cluster.inspect("data")["size"], 320_u64 << 20);
}

#[test]
fn df_and_findmnt_show_the_volume() {
    let mut cluster = Cluster::start(1);
    cluster.create_sized("data", "2GiB", &[]);
    let mount = cluster.mount(0, "default/data");
    let at = mount.to_str().unwrap();
    let found = run("findmnt", &["-n", "-o", "SOURCE,FSTYPE", at]).ok();
    assert_eq!(
        found.split_whitespace().collect::<Vec<_>>(),
        ["default/data", "fuse.storageos"]
    );
    let size = run("df", &["-B1", "--output=size", at]).ok();
    let size: u64 = size.lines().nth(1).unwrap().trim().parse().unwrap();
    assert_eq!(size, 2 << 30);
    let used = || -> u64 {
        let text = run("df", &["-B1", "--output=used", at]).ok();
        text.lines().nth(1).unwrap().trim().parse().unwrap()
    };
    let before = used();
    bash(&mount, "dd if=/dev/urandom of=f bs=1M count=8 status=none; sync f").ok();
    assert!(used() >= before + (8 << 20));
    bash(&mount, "rm f").ok();
    eventually("the space of a removed file is free again", || {
        (used() < before + (1 << 20)).then_some(())
    });
    cluster.unmount(&mount);
}

#[test]
fn a_second_mount_elsewhere_is_refused_and_says_where_the_first_is() {
    let mut cluster = Cluster::start(2);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    let refusal = cluster.mount_with(1, "default/data", "rw").unwrap_err();
    assert!(refusal.contains("n1"), "{refusal}");
    assert!(refusal.contains(mount.to_str().unwrap()), "{refusal}");
    let refusal = cluster.cli(&["volume", "rm", "data"]).fails_with(4);
    assert!(refusal.contains("mounted"), "{refusal}");
    cluster.unmount(&mount);
    let second = cluster.mount_with(1, "default/data", "rw").unwrap();
    cluster.unmount(&second);
    cluster.cli(&["volume", "rm", "data"]).ok();
    cluster.wait_for_copies_on_disks(0);
}

#[test]
fn a_read_only_mount_refuses_writes_and_a_cli_mount_works() {
    let mut cluster = Cluster::start(1);
    cluster.cli(&["volume", "create", "data"]).ok();
    let at = cluster.directory.join("by-cli");
    fs::create_dir(&at).unwrap();
    cluster.cli(&["volume", "mount", "data", at.to_str().unwrap()]).ok();
    fs::write(at.join("file"), "kept").unwrap();
    assert_eq!(cluster.inspect("data")["mountpoint"], at.to_str().unwrap());
    cluster.cli(&["volume", "unmount", "data"]).ok();
    let mount = cluster.mount_with(0, "default/data", "ro,noatime").unwrap();
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "kept");
    let refused = fs::write(mount.join("other"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(30), "EROFS");
    cluster.unmount(&mount);
}

#[test]
fn a_node_without_a_copy_mounts_through_the_master() {
    let mut cluster = Cluster::start_with_compute_only(3, &[2]);
    cluster.create("data", 1);
    let mount = cluster.mount(2, "default/data");
    bash(
        &mount,
        "dd if=/dev/urandom of=f bs=1M count=4 status=none; sync f; cp f g; cmp f g",
    )
    .ok();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 2);
}

#[test]
fn sigterm_unmounts_cleanly_and_the_files_are_there_after_a_restart() {
    let mut cluster = Cluster::start(1);
    cluster.cli(&["volume", "create", "data"]).ok();
    let mount = cluster.mount(0, "default/data");
    fs::write(mount.join("unsynced"), "written, never synced").unwrap();
    assert_eq!(cluster.nodes[0].stop(), 0, "{}", cluster.nodes[0].log());
    cluster.nodes[0].start();
    let mount = cluster.mount(0, "default/data");
    assert_eq!(
        fs::read_to_string(mount.join("unsynced")).unwrap(),
        "written, never synced"
    );
    cluster.unmount(&mount);
}
