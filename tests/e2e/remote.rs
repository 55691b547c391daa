//! The API over the network: clients with a certificate of the cluster, and everybody else.

use crate::harness::{Cluster, STORAGEOS, Said, eventually, run};
use crate::locks::listening;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PORT: u16 = 5704;

/// A cluster whose nodes serve clients.
fn cluster() -> Cluster {
    let mut cluster = Cluster::prepare(3, |_| vec![]);
    for node in &mut cluster.nodes {
        let host = node.address.rsplit_once(':').unwrap().0.to_owned();
        node.extra.extend(["--api".to_owned(), format!("{host}:{PORT}")]);
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_for_live_nodes(3);
    cluster
}

fn url(cluster: &Cluster, node: usize) -> String {
    let address = &cluster.nodes[node].address;
    format!("https://{}:{PORT}", address.rsplit_once(':').unwrap().0)
}

/// The command line over the network.
fn remote(host: &str, certificate: Option<&Path>, arguments: &[&str]) -> Said {
    let mut command = Command::new(STORAGEOS);
    command.args(["-H", host]);
    if let Some(file) = certificate {
        command.arg("--client-cert").arg(file);
    }
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn client(cluster: &Cluster, name: &str, options: &[&str]) -> PathBuf {
    let file = cluster.directory.join(format!("{name}.pem"));
    let words = ["cluster", "client", "create", "--output", file.to_str().unwrap()];
    cluster.cli(&[&words[..], options, &[name]].concat()).ok();
    file
}

#[test]
fn a_client_with_a_certificate_does_what_the_command_line_does_but_lets_nobody_in() {
    let cluster = cluster();
    let file = client(&cluster, "laptop", &[]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // It is not written over.
    let again = [
        "cluster",
        "client",
        "create",
        "--output",
        file.to_str().unwrap(),
        "laptop",
    ];
    assert!(cluster.cli(&again).fails_with(1).contains("File exists"));
    for node in 0..3 {
        let host = url(&cluster, node);
        let ask = |arguments: &[&str]| remote(&host, Some(&file), arguments);
        let name = format!("v{node}");
        let made = ask(&["volume", "create", "--label", "storageos.com/replicas=1", &name]);
        assert_eq!(made.ok().trim(), format!("default/{name}"));
        assert_eq!(ask(&["node", "ls", "-q"]).ok().lines().count(), 3);
        ask(&["cluster", "health"]).ok();
        assert!(
            ask(&["volume", "inspect", "none"])
                .fails_with(3)
                .contains("does not exist")
        );
        for refused in [
            &["cluster", "token", "create"][..],
            &["cluster", "token", "ls"],
            &["cluster", "token", "rm", "0011223344556677"],
            &["cluster", "client", "create", "--output", "-", "more"],
            &["cluster", "client", "ls"],
            &["cluster", "client", "rm", "0011223344556677"],
            &["cluster", "export"],
            &["cluster", "init"],
            &["cluster", "join", "127.0.0.1:1"],
            &["cluster", "recover", "--yes"],
        ] {
            let error = ask(refused).fails_with(8);
            assert!(error.contains("not served over the network"), "{refused:?}: {error}");
        }
        let error = ask(&["volume", "mount", &name, "/mnt"]).fails_with(2);
        assert!(error.contains("cannot be mounted through"), "{error}");
    }
    // Who did it is in the log.
    let log = cluster.nodes[0].whole_log();
    assert!(
        log.contains("client=\"laptop\" method=POST path=\"/v1/volumes\""),
        "{log}"
    );
    // Any HTTP client can, with the same file.
    let host = url(&cluster, 0);
    let (own, name) = (
        file.to_str().unwrap(),
        format!("{}/v1/volumes", host.replace("https://", "")),
    );
    let inspect: serde_json::Value = serde_json::from_str(&cluster.cli(&["node", "inspect", "n1"]).ok()).unwrap();
    let of_cluster: serde_json::Value = serde_json::from_str(&cluster.cli(&["cluster", "inspect"]).ok()).unwrap();
    let (node, of_cluster) = (
        inspect[0]["id"].as_str().unwrap(),
        of_cluster[0]["id"].as_str().unwrap(),
    );
    let node_name = format!("{node}.{of_cluster}.storageos.internal");
    let authority = cluster.directory.join("authority.pem");
    let text = fs::read_to_string(&file).unwrap();
    let second = text.rmatch_indices("-----BEGIN CERTIFICATE").next().unwrap().0;
    fs::write(&authority, &text[second..]).unwrap();
    let said = run(
        "curl",
        &[
            "--silent",
            "--show-error",
            "--fail",
            "--cacert",
            authority.to_str().unwrap(),
            "--cert",
            own,
            "--connect-to",
            &format!("{node_name}:{PORT}:{}", name.replace("/v1/volumes", "")),
            &format!("https://{node_name}:{PORT}/v1/volumes"),
        ],
    );
    let volumes: serde_json::Value = serde_json::from_str(&said.ok()).unwrap();
    assert_eq!(volumes.as_array().unwrap().len(), 3);
}

#[test]
fn nobody_else_gets_in() {
    let (cluster, other) = (cluster(), Cluster::start(1));
    let host = url(&cluster, 1);
    let good = client(&cluster, "good", &[]);
    for (index, node) in cluster.nodes.iter().enumerate() {
        let doors = [node.address.clone(), url(&cluster, index).replace("https://", "")];
        assert_eq!(listening(node.pid()), doors.map(|door| format!("tcp {door}")).into());
    }
    let works = |file: &Path| remote(&host, Some(file), &["volume", "ls"]);
    works(&good).ok();

    // Without a certificate; and without TLS.
    let error = remote(&host, None, &["volume", "ls"]).fails_with(2);
    assert!(error.contains("client create"), "{error}");
    let plain = run("curl", &["--silent", "--insecure", "--max-time", "20", &host]);
    assert_ne!(plain.code, 0, "{}", plain.out);
    let clear = run(
        "curl",
        &["--silent", "--max-time", "20", &host.replace("https", "http")],
    );
    assert_ne!(clear.code, 0, "{}", clear.out);
    // Another cluster's: neither side trusts the other.
    let foreign = client(&other, "foreign", &[]);
    let error = works(&foreign).fails_with(8);
    assert!(error.contains("is no node of the client's cluster"), "{error}");
    let insecure = |file: &Path| {
        let words = ["--silent", "--show-error", "--insecure", "--max-time", "20", "--cert"];
        run(
            "curl",
            &[&words[..], &[file.to_str().unwrap(), &format!("{host}/v1/volumes")]].concat(),
        )
    };
    assert!(insecure(&good).ok().contains('['));
    let refused = insecure(&foreign);
    assert_ne!(refused.code, 0, "{}", refused.out);
    // A node's is not a client's.
    let said = insecure(&cluster.nodes[1].directory.join("tls/node.pem"));
    assert!(said.out.contains("not that of a client"), "{} {}", said.out, said.err);
    // One that has expired.
    let short = client(&cluster, "short", &["--ttl", "1s"]);
    eventually("the certificate expires", || {
        let said = works(&short);
        (said.code == 8 && said.err.contains("expired")).then_some(())
    });
    // One that was removed, at once, on every node.
    let ids = cluster.cli(&["cluster", "client", "ls", "-q"]).ok();
    let table = cluster.cli(&["cluster", "client", "ls"]).ok();
    let line = table.lines().find(|line| line.contains(" good ")).unwrap();
    let id = line.split_whitespace().next().unwrap();
    assert!(ids.contains(id), "{ids} {table}");
    cluster.cli(&["cluster", "client", "rm", id]).ok();
    for node in 0..3 {
        eventually("the removed client is refused", || {
            let said = remote(&url(&cluster, node), Some(&good), &["volume", "ls"]);
            (said.code == 8 && said.err.contains("was removed")).then_some(())
        });
    }
    for unknown in [id, "laptop"] {
        let error = cluster.cli(&["cluster", "client", "rm", unknown]).fails_with(3);
        assert!(error.contains("storageos cluster client ls"), "{error}");
    }
    // A file that is none.
    let broken = cluster.directory.join("broken.pem");
    fs::write(&broken, "x").unwrap();
    let error = works(&broken).fails_with(5);
    assert!(error.contains("broken.pem"), "{error}");
    // A client's certificate opens no connection of nodes.
    let fresh = client(&cluster, "fresh", &[]);
    let node = &cluster.nodes[1].address;
    let said = run(
        "curl",
        &[
            "--silent",
            "--insecure",
            "--max-time",
            "20",
            "--cert",
            fresh.to_str().unwrap(),
            &format!("https://{node}"),
        ],
    );
    assert_ne!(said.code, 0, "{}", said.out);
}

#[test]
fn clients_are_let_in_by_renewed_nodes_and_restarted_ones_and_silence_holds_up_nobody() {
    let mut cluster = cluster();
    let file = client(&cluster, "laptop", &[]);
    cluster.cli(&["cluster", "rotate-certificates"]).ok();
    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.wait_for_live_nodes(3);
    // As many as there are places for, and more; they say nothing, and lose their places.
    let address = url(&cluster, 2).replace("https://", "");
    let silent: Vec<_> = (0..100)
        .map(|_| std::net::TcpStream::connect(&address).unwrap())
        .collect();
    eventually("the client is served", || {
        let said = remote(&url(&cluster, 2), Some(&file), &["volume", "ls"]);
        (said.code == 0).then_some(())
    });
    drop(silent);
    remote(&url(&cluster, 2), Some(&file), &["cluster", "health"]).ok();
}
