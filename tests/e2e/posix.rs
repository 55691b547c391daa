//! POSIX test suites of others on a mounted volume: pjdfstest (all groups) and fsx (with mmap).

use crate::harness::{Cluster, run};

/// The runner scripts, with the installed suites' versions in them.
pub fn tool(script: &str, arguments: &[&str]) -> String {
    let path = format!("{}/tests/tools/{script}", env!("CARGO_MANIFEST_DIR"));
    run(&path, arguments).ok()
}

#[test]
fn pjdfstest_finds_no_failure() {
    let mut cluster = Cluster::start(1);
    cluster.cli(&["volume", "create", "data"]).ok();
    let mount = cluster.mount(0, "default/data");
    let said = tool("pjdfstest", &[mount.to_str().unwrap()]);
    println!("{said}");
    cluster.unmount(&mount);
}

#[test]
fn fsx_finds_no_mismatch_in_200000_operations() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    let said = tool("fsx", &[mount.to_str().unwrap(), "200000", "1"]);
    println!("{said}");
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}
