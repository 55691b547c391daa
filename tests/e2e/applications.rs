//! Ordinary applications on a mounted volume with two replicas: SQLite, git, cargo.

use crate::harness::{Cluster, bash};

fn volume() -> (Cluster, std::path::PathBuf) {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    (cluster, mount)
}

#[test]
fn sqlite_works_on_a_volume_in_both_journal_modes() {
    let (mut cluster, mount) = volume();
    for mode in ["wal", "delete"] {
        let script = format!(
            "sqlite3 {mode}.db 'pragma journal_mode={mode}; create table t(id integer primary key, v text);' >/dev/null
             for batch in $(seq 20); do
               sqlite3 {mode}.db \"with recursive n(i) as (select 1 union all select i+1 from n where i<50)
                                   insert into t(v) select hex(randomblob(64)) from n;\"
             done
             sqlite3 {mode}.db 'pragma integrity_check; select count(*) from t;'"
        );
        assert_eq!(bash(&mount, &script).ok(), "ok\n1000\n", "journal mode {mode}");
    }
    cluster.unmount(&mount);
    let mount = cluster.mount(1, "default/data");
    for mode in ["wal", "delete"] {
        let said = bash(
            &mount,
            &format!("sqlite3 {mode}.db 'pragma integrity_check; select count(*) from t;'"),
        )
        .ok();
        assert_eq!(said, "ok\n1000\n", "after a move to another node");
    }
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

#[test]
fn git_commits_two_thousand_files_and_finds_no_fault() {
    let (mut cluster, mount) = volume();
    let script = "git init -q repo && cd repo
        for i in $(seq 2000); do d=src/$((i % 50)); mkdir -p $d; echo \"file $i\" > $d/f$i; done
        git add -A . && git -c user.email=a@b -c user.name=a commit -qm all
        git fsck --strict 2>&1 && git status --porcelain && git ls-files | wc -l";
    let said = bash(&mount, script).ok();
    assert_eq!(said.lines().last(), Some("2000"), "{said}");
    cluster.unmount(&mount);
    let mount = cluster.mount(2, "default/data");
    bash(
        &mount,
        "cd repo && git fsck --strict && test -z \"$(git status --porcelain)\"",
    )
    .ok();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

#[test]
fn cargo_builds_and_tests_a_crate_on_a_volume() {
    let (mut cluster, mount) = volume();
    let script = "cargo init -q --vcs none --name hello hello && cd hello
        cargo build -q --offline && cargo test -q --offline 2>&1 && touch src/main.rs && cargo run -q --offline --release";
    let said = bash(&mount, script).ok();
    assert_eq!(said.lines().last(), Some("Hello, world!"), "{said}");
    cluster.unmount(&mount);
    cluster.cli(&["volume", "check", "data"]).ok();
    cluster.verify_identical("data", 3);
}
