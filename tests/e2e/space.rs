//! A volume that gets full, and empty again: who writes hears it, nobody else suffers, and every copy gives its disk's space back.

use crate::harness::{Cluster, bash, eventually, run};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// What the files under a directory take of its disk, in bytes.
fn taken(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            // Gone since it was listed: nothing.
            let found = fs::symlink_metadata(&path).ok()?;
            Some(if found.is_dir() {
                taken(&path)
            } else {
                found.blocks() * 512
            })
        })
        .sum()
}

fn copies(cluster: &Cluster) -> Vec<u64> {
    let nodes = cluster.nodes.iter();
    nodes.map(|node| taken(&node.directory.join("volumes"))).collect()
}

/// What `df` says is used, in bytes.
fn used(mount: &Path) -> u64 {
    let said = run("df", &["-B1", "--output=used", mount.to_str().unwrap()]).ok();
    said.lines().nth(1).unwrap().trim().parse().unwrap()
}

#[test]
fn a_full_volume_says_so_stays_well_and_gives_the_space_back_on_every_copy() {
    let mut cluster = Cluster::start(3);
    cluster.create_sized("data", "128MiB", &["storageos.com/replicas=2"]);
    let mount = cluster.mount(0, "default/data");
    fs::write(mount.join("kept"), vec![1; MIB as usize]).unwrap();
    bash(&mount, "sync -f .").ok();
    let (empty, at_first) = (used(&mount), copies(&cluster));

    let fill = bash(
        &mount,
        "mkdir full; for n in $(seq 40); do dd if=/dev/urandom of=full/$n bs=1M count=8 conv=fsync status=none || exit 9; done",
    );
    assert!(fill.code == 9 && fill.err.contains("No space left"), "{}", fill.err);

    // It is well: what is there can be read, changed in place, renamed and taken away; there is room for names.
    let still = "printf 22 | dd of=kept conv=notrunc,fsync status=none && mv kept still && mkdir more && ln -s x more/link &&
        for n in $(seq 200); do : > more/$n; done && sync more && setfattr -n user.a -v b still && rm more/17 && dd if=still bs=2 count=1 status=none";
    assert_eq!(bash(&mount, still).ok(), "22");
    assert_eq!(cluster.inspect("data")["health"], "healthy");

    // df and du agree, within what metadata takes.
    let said = run("du", &["-s", "-B1", mount.to_str().unwrap()]).ok();
    let du: u64 = said.split_whitespace().next().unwrap().parse().unwrap();
    let df = used(&mount);
    assert!(df >= 110 * MIB && df.abs_diff(du) <= 4 * MIB, "df says {df}, du {du}");
    for (full, first) in copies(&cluster).iter().zip(&at_first) {
        assert!(
            *full >= first + 100 * MIB,
            "a copy takes {full}, {first} when it was empty"
        );
    }

    fs::remove_dir_all(mount.join("full")).unwrap();
    eventually("df shows the space", || (used(&mount) <= empty + 4 * MIB).then_some(()));
    eventually("every copy gives its space back", || {
        let now = copies(&cluster);
        now.iter()
            .zip(&at_first)
            .all(|(now, first)| *now <= first + 16 * MIB)
            .then_some(())
    });
    // All of it can be used again.
    bash(
        &mount,
        "dd if=/dev/urandom of=again bs=1M count=100 conv=fsync status=none",
    )
    .ok();
    cluster.unmount(&mount);
    cluster.cli(&["volume", "check", "data"]).ok();
    cluster.verify_identical("data", 3);
}
