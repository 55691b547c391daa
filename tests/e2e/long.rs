//! What takes too long for every run: `tests/long` runs it with a release build and keeps the results. Each prints lines `result NAME VALUE`.

use crate::harness::{Cluster, bash, eventually};
use crate::mixed::exercise_beside_kills;
use crate::posix::tool;
use std::fs;
use std::path::Path;
use std::time::Instant;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

fn result(name: &str, value: impl std::fmt::Display) {
    println!("result {name} {value}");
}

/// Resident memory of a daemon, in MiB.
fn resident(cluster: &Cluster, node: usize) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.nodes[node].pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "long: tests/long"]
fn fsx() {
    let operations = setting("LONG_OPERATIONS", 1_000_000).to_string();
    for seed in setting("LONG_FIRST_SEED", 1)..=setting("LONG_SEEDS", 5) {
        let start = Instant::now();
        let mut cluster = Cluster::start(3);
        cluster.create_with(
            "data",
            &["storageos.com/replicas=1", "storageos.com/failure.mode=alwayson"],
        );
        let mount = cluster.mount(0, "default/data");
        let at = mount.to_str().unwrap().to_owned();
        let (of, number) = (operations.clone(), seed.to_string());
        let worker = std::thread::spawn(move || tool("fsx", &[&at, &of, &number]));
        // With the last seed the replica is killed and comes back, over and over.
        while seed == setting("LONG_SEEDS", 5) && !worker.is_finished() {
            let names = cluster.replicas("data", "healthy");
            let Some(name) = names.first() else { continue };
            let replica = cluster.index(name);
            cluster.nodes[replica].kill();
            eventually("the loss is seen", || {
                (worker.is_finished() || cluster.replicas("data", "healthy").is_empty()).then_some(())
            });
            cluster.nodes[replica].start();
            cluster.wait_for_copies("data", 2);
        }
        worker.join().expect("fsx finds no mismatch");
        cluster.unmount(&mount);
        cluster.cli(&["volume", "check", "data"]).ok();
        cluster.verify_identical("data", 2);
        result(&format!("fsx_seed_{seed}_s"), start.elapsed().as_secs());
    }
}

#[test]
#[ignore = "long: tests/long"]
fn mixed() {
    let steps = setting("LONG_OPERATIONS", 1_000_000);
    for seed in setting("LONG_FIRST_SEED", 1)..=setting("LONG_SEEDS", 5) {
        let start = Instant::now();
        exercise_beside_kills(seed, usize::try_from(steps).expect("64 bits"));
        result(&format!("mixed_seed_{seed}_s"), start.elapsed().as_secs());
    }
}

#[test]
#[ignore = "long: tests/long"]
fn stress_ng() {
    let mut cluster = Cluster::start(3);
    cluster.create_sized("data", "8GiB", &["storageos.com/replicas=1"]);
    let mount = cluster.mount(0, "default/data");
    let seconds = setting("LONG_STRESS", 60);
    let script = format!(
        "mkdir work && stress-ng --temp-path work --class filesystem --all 1 --verify --timeout {seconds}s --metrics-brief 2>&1"
    );
    let said = bash(&mount, &script);
    println!("{}{}", said.out, said.err);
    assert!([0, 3].contains(&said.code), "stress-ng: {}", said.code);
    cluster.unmount(&mount);
    cluster.cli(&["volume", "check", "data"]).ok();
    cluster.verify_identical("data", 2);
    result("stress_ng_code", said.code);
}

const MAKE: &str = r#"
import os, sys
count, each = int(sys.argv[1]), int(sys.argv[2])
for n in range(count):
    if n % each == 0:
        os.makedirs(f'd{n // each}', exist_ok=True)
    os.mknod(f'd{n // each}/{n}', 0o644)
"#;

fn make(mount: &Path, count: u64, each: u64) -> f64 {
    let start = Instant::now();
    bash(
        mount,
        &format!("python3 -c '{}' {count} {each}", MAKE.replace('\'', "\"")),
    )
    .ok();
    start.elapsed().as_secs_f64()
}

#[test]
#[ignore = "long: tests/long"]
fn inodes() {
    let mut cluster = Cluster::start(1);
    cluster.create_sized("data", "100GiB", &[]);
    let mount = cluster.mount(0, "default/data");
    let before = resident(&cluster, 0);
    let (one, all) = (setting("LONG_DIRECTORY", 1_000_000), setting("LONG_INODES", 5_000_000));
    let took = make(&mount, one, one);
    result("one_directory_files", one);
    result("one_directory_created_per_s", (one as f64 / took) as u64);
    let start = Instant::now();
    let listed = bash(&mount, "ls -f d0 | wc -l").ok();
    assert_eq!(listed.trim(), (one + 2).to_string());
    result("one_directory_list_s", start.elapsed().as_secs());
    result("one_directory_memory_mib", resident(&cluster, 0).saturating_sub(before));
    fs::rename(mount.join("d0"), mount.join("one")).unwrap();
    let took = make(&mount, all.saturating_sub(one), 10_000);
    result("inodes", all);
    result("inodes_created_per_s", (all.saturating_sub(one) as f64 / took) as u64);
    result("inodes_memory_mib", resident(&cluster, 0).saturating_sub(before));
    // The kernel forgets inodes when it needs memory, or is told to.
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let few = (5 * all / 100_000).max(200);
    eventually("most of the memory is given back", || {
        (resident(&cluster, 0) < before + few).then_some(())
    });
    result(
        "inodes_forgotten_memory_mib",
        resident(&cluster, 0).saturating_sub(before),
    );
    let start = Instant::now();
    cluster.unmount(&mount);
    result("unmount_s", start.elapsed().as_secs());
    let start = Instant::now();
    let mount = cluster.mount(0, "default/data");
    result("mount_again_ms", start.elapsed().as_millis());
    assert!(mount.join(format!("one/{}", one - 1)).exists());
    let start = Instant::now();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    assert!(mount.join("one/0").exists());
    result("live_restart_ms", start.elapsed().as_millis());
    cluster.unmount(&mount);
    let start = Instant::now();
    cluster.cli(&["volume", "check", "data"]).ok();
    result("check_s", start.elapsed().as_secs());
}

#[test]
#[ignore = "long: tests/long"]
fn sizes_and_many_volumes() {
    let mut cluster = Cluster::start(1);
    cluster.create_sized("large", "4TiB", &[]);
    let mount = cluster.mount(0, "default/large");
    let script = "truncate -s 1T sparse && for g in 0 1 500 1023; do
            printf mark$g | dd of=sparse bs=1 seek=$((g << 30)) conv=notrunc status=none
        done && sync sparse && stat -c '%s %b' sparse && dd if=sparse bs=1 skip=$((1023 << 30)) count=8 status=none";
    let said = bash(&mount, script).ok();
    result(
        "sparse_file_size_and_blocks",
        said.lines().next().unwrap().replace(' ', "/"),
    );
    assert!(
        said.starts_with("1099511627776 ") && said.ends_with("mark1023"),
        "{said}"
    );
    cluster.unmount(&mount);
    let count = setting("LONG_VOLUMES", 100);
    let before = resident(&cluster, 0);
    let mut mounts = Vec::new();
    for n in 0..count {
        cluster.create(&format!("v{n}"), 0);
        let mount = cluster.mount(0, &format!("default/v{n}"));
        fs::write(mount.join("f"), vec![7; 1 << 20]).unwrap();
        mounts.push(mount);
    }
    result("mounted_volumes", count);
    result(
        "memory_grown_by_mib_for_mounts",
        resident(&cluster, 0).saturating_sub(before),
    );
    let start = Instant::now();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    for mount in &mounts {
        assert_eq!(fs::read(mount.join("f")).unwrap(), vec![7; 1 << 20]);
    }
    result("live_restart_of_all_ms", start.elapsed().as_millis());
    for mount in mounts {
        cluster.unmount(&mount);
    }
}
