//! Bad input: each a clear error that says what was wrong and what to do, with a stable exit code, and nothing lost.

use crate::harness::{Cluster, STORAGEOS, run};

/// Exit codes, as `docs/operations.md` lists them.
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;
const INVALID: i32 = 5;
const UNAVAILABLE: i32 = 6;

#[test]
fn bad_volume_arguments_are_refused_with_what_is_allowed() {
    let cluster = Cluster::start(1);
    let create = |arguments: &[&str], code: i32, says: &[&str]| {
        let mut all = vec!["volume", "create"];
        all.extend_from_slice(arguments);
        let text = cluster.cli(&all).fails_with(code);
        for word in says {
            assert!(text.contains(word), "{arguments:?} should say {word:?}: {text}");
        }
    };
    create(
        &["--label", "storageos.com/replica=2", "v"],
        INVALID,
        &["storageos.com/replica", "storageos.com/replicas"],
    );
    create(&["--label", "storageos.com/replicas=6", "v"], INVALID, &["6", "5"]);
    create(&["--label", "storageos.com/replicas=two", "v"], INVALID, &["two"]);
    create(
        &["--label", "storageos.com/failure.mode=never", "v"],
        INVALID,
        &["soft", "hard", "alwayson"],
    );
    create(
        &["--label", "storageos.com/nocompress=true", "v"],
        INVALID,
        &["nocompress"],
    );
    create(&["--label", "storageos.com/replicas=2", "v"], CONFLICT, &["3", "1"]);
    create(&["--size", "0", "v"], INVALID, &["size"]);
    create(&["--size", "big", "v"], INVALID, &["big"]);
    create(&["a/b/c"], INVALID, &["/"]);
    create(&["bad name"], INVALID, &["name"]);
    create(&["--namespace", "nowhere", "v"], NOT_FOUND, &["nowhere"]);
    create(&["--no-such-flag", "v"], USAGE, &["--no-such-flag"]);
    cluster.cli(&["volume", "create", "v"]).ok();
    create(&["v"], CONFLICT, &["exists"]);
    assert!(
        cluster
            .cli(&["volume", "inspect", "w"])
            .fails_with(NOT_FOUND)
            .contains("default/w")
    );
    assert_eq!(cluster.cli(&["volume", "ls", "-q"]).ok().trim(), "default/v");
    assert!(
        cluster
            .cli(&[
                "volume",
                "update",
                "--label-add",
                "storageos.com/failure.mode=soon",
                "v"
            ])
            .fails_with(INVALID)
            .contains("alwayson")
    );
    assert!(
        cluster
            .cli(&["namespace", "rm", "default"])
            .fails_with(CONFLICT)
            .contains("default")
    );
}

#[test]
fn without_a_daemon_the_command_line_says_how_to_start_one() {
    let text = run(STORAGEOS, &["-H", "/nonexistent/storageos.sock", "volume", "ls"]).fails_with(UNAVAILABLE);
    assert!(text.contains("/nonexistent/storageos.sock"), "{text}");
    assert!(text.contains("storageos node run"), "{text}");
}

#[test]
fn a_fresh_node_says_that_it_is_in_no_cluster() {
    let mut cluster = Cluster::prepare(1, |_| vec![]);
    let node = &mut cluster.nodes[0];
    std::fs::create_dir_all(&node.directory).unwrap();
    let log = std::fs::File::create(node.directory.join("log")).unwrap();
    let mut child = std::process::Command::new(STORAGEOS)
        .args(["node", "run", "--data-dir"])
        .arg(&node.directory)
        .args(["--listen", &node.address, "--name", "n1", "--socket", "none"])
        .stderr(log)
        .spawn()
        .unwrap();
    let text = crate::harness::eventually("the fresh node answers", || {
        let said = node.cli(&["volume", "ls"]);
        (!said.err.contains("node run")).then_some(said.err)
    });
    assert!(text.contains("storageos cluster init"), "{text}");
    assert!(text.contains("storageos cluster join"), "{text}");
    node.cli(&["cluster", "init"]).ok();
    node.cli(&["volume", "create", "v"]).ok();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_wrong_configuration_file_is_told_with_file_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let path = file.to_str().unwrap();
    let data = directory.path().join("data");
    let refused = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let more = ["--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        run(STORAGEOS, &[&["node", "run", "--config", path][..], &more].concat()).fails_with(USAGE)
    };
    let said = refused("# a comment\nname = \"n1\"\nlese = \"5s\"\n");
    assert!(
        said.contains(&format!("error: {path}:3: lese: unknown key; known are: data-dir, ")),
        "{said}"
    );
    let said = refused("lease = \"10ms\"\n");
    assert!(
        said.contains(&format!("error: {path}:1: lease: \"10ms\": too short, at least 1s")),
        "{said}"
    );
    assert!(said.contains("storageos-config(5)"), "{said}");
    let said = refused("lease 5s\n");
    assert!(said.contains(&format!("error: {path}:1: ")), "{said}");
    // A file can be tried before a restart; what is wrong only together has the code of the command line.
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        run(STORAGEOS, &["node", "run", "--config", path, "--check"])
    };
    let needed = format!("data-dir = {data:?}\n");
    check(&format!("{needed}listen = \"127.0.0.1:5703\"\n")).ok();
    let said = check(&needed).fails_with(USAGE);
    assert!(said.contains(&format!("{path}: missing: listen")), "{said}");
    let said = check(&format!("{needed}listen = \"0.0.0.0:5703\"\n")).fails_with(INVALID);
    assert!(said.contains("--advertise"), "{said}");
    std::fs::remove_file(&file).unwrap();
    let said = run(STORAGEOS, &["node", "run", "--config", path]).fails_with(USAGE);
    assert!(said.contains(&format!("{path}: No such file")), "{said}");
    assert!(!data.exists());
}
