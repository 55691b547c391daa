//! Who gets into a cluster, and who does not: knocks at real daemons' ports with a TLS client of the test's own, tokens good and bad, deleted nodes,
//! certificates that are renewed under load, floods of connections that lead nowhere.

use crate::harness::{Cluster, STORAGEOS, Said, Writer, eventually};
use jiff::{SignedDuration, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use storageos::trust::{Authority, ClientId, Credentials, Issued, Key};
use storageos::volume::{ClusterId, NodeId};

const CONTROL: u8 = 1;
const NODE: u8 = 2;
const DATA: u8 = 3;
const SYNC: u8 = 4;
const ACCEPTED: u8 = 0;
const OTHER_CLUSTER: u8 = 2;
const UNPROVEN: u8 = 5;
const DELETED: u8 = 6;

/// An attacker's client: it trusts anybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The hello of docs/formats.md.
fn hello(kind: u8, cluster: Option<ClusterId>, node: NodeId) -> Vec<u8> {
    let mut bytes = b"StorOSr\n".to_vec();
    bytes.extend([1, 0, kind, u8::from(cluster.is_some())]);
    bytes.extend(cluster.map_or([0; 16], |cluster| *cluster.as_bytes()));
    bytes.extend(node.as_bytes());
    bytes.extend([0; 4]);
    let check = blake3::hash(&bytes);
    bytes.extend(&check.as_bytes()[..8]);
    bytes
}

type Open = StreamOwned<ClientConnection, TcpStream>;

/// A connection with these credentials or none, after this hello; the code of the answer, or why there is none.
fn knock(address: &str, credentials: Option<&Credentials>, said: &[u8]) -> Result<(u8, Open), String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match credentials {
        None => config.with_no_client_auth(),
        Some(credentials) => {
            let chain =
                [credentials.proof().certificate(), credentials.proof().authority()].map(|der| der.to_vec().into());
            let key = PrivatePkcs8KeyDer::from(credentials.proof().key().to_vec());
            config.with_client_auth_cert(chain.into(), key.into()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"storageos/1".to_vec()];
    let name = ServerName::try_from("anybody.example").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut open = StreamOwned::new(session, socket);
    let mut answer = [0; 56];
    open.write_all(said)
        .and_then(|()| open.read_exact(&mut answer))
        .map_err(|error| error.to_string())?;
    Ok((answer[10], open))
}

fn code(address: &str, credentials: Option<&Credentials>, said: &[u8]) -> u8 {
    knock(address, credentials, said).map(|(code, _)| code).unwrap()
}

fn credentials(directory: &Path) -> Credentials {
    Credentials::load(directory)
        .unwrap()
        .expect("the node has a certificate")
}

/// Credentials by an authority that says it is this cluster's.
fn forged(node: NodeId, cluster: ClusterId) -> Credentials {
    let now = Timestamp::now();
    let authority = Authority::new(cluster, now).unwrap();
    let key = Key::generate().unwrap();
    let hour = Duration::from_secs(3600);
    let issued = authority.issue(node, key.public(), hour, 0, now).unwrap();
    Credentials::new(node, cluster, &key, issued, authority.certificate().to_vec())
}

#[test]
fn nobody_gets_in_without_a_certificate_of_the_cluster_that_says_who_it_is() {
    let cluster = Cluster::start(3);
    let mut own = credentials(&cluster.nodes[1].directory);
    let (node, id) = (own.node, own.cluster);
    let first = credentials(&cluster.nodes[0].directory).node;
    let address = &cluster.nodes[0].address;
    for kind in [CONTROL, NODE, DATA, SYNC] {
        // The cluster's own node is served; so what follows is refused for what it is.
        assert_eq!(code(address, Some(&own), &hello(kind, Some(id), node)), ACCEPTED);
        // Without a certificate, whatever it says.
        assert_eq!(code(address, None, &hello(kind, Some(id), node)), UNPROVEN);
        assert_eq!(code(address, None, &hello(kind, None, node)), OTHER_CLUSTER);
        // A node that says it is another one.
        assert_eq!(code(address, Some(&own), &hello(kind, Some(id), first)), UNPROVEN);
        // Another authority of the same name.
        let refused = knock(address, Some(&forged(node, id)), &hello(kind, Some(id), node));
        let Err(error) = refused else {
            panic!("a forged certificate was taken");
        };
        assert!(
            !error.contains("timed out") && !error.contains("temporarily"),
            "{error}"
        );
    }
    // One that has expired, by the right authority: its key is in the records that a node may export.
    let export = cluster.cli(&["cluster", "export"]);
    assert!(export.err.contains("key of the cluster's authority"), "{}", export.err);
    let export: serde_json::Value = serde_json::from_str(&export.ok()).unwrap();
    let record = export["records"]["authority"].as_str().unwrap();
    let record: serde_json::Value = serde_json::from_str(record).unwrap();
    let der = |field: &str| {
        use base64::Engine;
        let text = record[field].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    };
    let authority = Authority::of_parts(id, der("certificate"), der("key"));
    for (hours, good) in [(48, false), (-48, false), (0, true)] {
        let at = Timestamp::now() - SignedDuration::from_hours(hours);
        let key = Key::generate().unwrap();
        let issued = authority
            .issue(node, key.public(), Duration::from_secs(3600), 0, at)
            .unwrap();
        own = Credentials::new(node, id, &key, issued, authority.certificate().to_vec());
        let said = knock(address, Some(&own), &hello(NODE, Some(id), node));
        assert_eq!(said.is_ok_and(|(code, _)| code == ACCEPTED), good, "{hours}");
    }
    // A client of the API, by the right authority.
    let key = Key::generate().unwrap();
    let hour = Duration::from_secs(3600);
    let (certificate, expires) = authority
        .issue_client(ClientId([1; 8]), key.public(), hour, Timestamp::now())
        .unwrap();
    let issued = Issued {
        certificate,
        at: Timestamp::now(),
        expires,
        renewals: 0,
    };
    let client = Credentials::new(node, id, &key, issued, authority.certificate().to_vec());
    for kind in [CONTROL, NODE, DATA, SYNC] {
        assert_eq!(code(address, Some(&client), &hello(kind, Some(id), node)), UNPROVEN);
    }
    // The hello of before TLS, and no TLS at all.
    for bytes in [hello(DATA, Some(id), node), b"GET / HTTP/1.0\r\n\r\n".to_vec()] {
        let mut plain = TcpStream::connect(address).unwrap();
        plain.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        // A TLS alert at most.
        assert!(
            answer.len() <= 7 && answer.first().is_none_or(|byte| *byte == 0x15),
            "{answer:?}"
        );
    }
    cluster.wait_for_live_nodes(3);
}

#[test]
fn a_deleted_node_loses_its_open_connections_and_gets_no_new_ones() {
    let mut cluster = Cluster::start(4);
    let thief = credentials(&cluster.nodes[3].directory);
    let said = hello(NODE, Some(thief.cluster), thief.node);
    let mut open: Vec<Open> = (0..3)
        .map(|i| {
            let (code, open) = knock(&cluster.nodes[i].address, Some(&thief), &said).unwrap();
            assert_eq!(code, ACCEPTED);
            open
        })
        .collect();
    // It is not dead, only silent: its connections stay open.
    cluster.nodes[3].signal("-STOP");
    eventually("the silent node is deleted", || {
        (cluster.nodes[0].cli(&["node", "delete", "n4"]).code == 0).then_some(())
    });
    for (index, open) in open.iter_mut().enumerate() {
        let mut byte = [0];
        let ended = open.read(&mut byte);
        assert!(
            !matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock) && !matches!(ended, Ok(1..)),
            "n{} left the connection open: {ended:?}",
            index + 1
        );
    }
    for index in 0..3 {
        for kind in [CONTROL, NODE, DATA, SYNC] {
            let said = hello(kind, Some(thief.cluster), thief.node);
            assert_eq!(code(&cluster.nodes[index].address, Some(&thief), &said), DELETED);
        }
    }
    // A restarted member knows it from its own replica.
    cluster.nodes[1].kill();
    cluster.nodes[1].start();
    assert_eq!(code(&cluster.nodes[1].address, Some(&thief), &said), DELETED);
    cluster.nodes[3].signal("-CONT");
    eventually("the deleted node says that it is none", || {
        cluster.nodes[3]
            .whole_log()
            .contains("(`n4`) was deleted from the cluster")
            .then_some(())
    });
    cluster.nodes[3].kill();
    cluster.nodes[3].spawn();
    eventually("it knows after a restart", || {
        let said = cluster.nodes[3].cli(&["node", "ls"]);
        (said.code == 4 && said.err.contains("(`n4`) was deleted from the cluster")).then_some(())
    });
    let named = cluster.nodes[0].cli(&["node", "ls", "-q"]).ok();
    assert_eq!(named.lines().count(), 3, "{named}");
    cluster.nodes[3].kill();
}

/// A daemon of a fresh node that waits to be told what to do.
struct Fresh {
    directory: PathBuf,
    child: std::process::Child,
}

impl Fresh {
    fn start(directory: &Path, address: &str, arguments: &[&str]) -> Self {
        fs::create_dir_all(directory).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let child = Command::new(STORAGEOS)
            .args(["node", "run", "--data-dir"])
            .arg(directory)
            .args(["--listen", address, "--name", "fresh", "--socket", "none"])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let fresh = Self {
            directory: directory.to_owned(),
            child,
        };
        eventually("the fresh node answers", || {
            fresh.directory.join("storageos.sock").exists().then_some(())
        });
        fresh
    }

    fn join(&self, token: &str, address: &str) -> Said {
        let mut command = Command::new(STORAGEOS);
        command.env("STORAGEOS_HOST", self.directory.join("storageos.sock"));
        if !token.is_empty() {
            command.env("STORAGEOS_TOKEN", token);
        }
        let output = command.args(["cluster", "join", address]).stdin(Stdio::null()).output();
        let output = output.unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn token(cluster: &Cluster, arguments: &[&str]) -> String {
    let words = [&["cluster", "token", "create"], arguments].concat();
    cluster.cli(&words).ok().trim().to_owned()
}

#[test]
fn a_token_lets_one_node_in_once_whichever_members_are_dead() {
    let mut cluster = Cluster::start(4);
    let other = Cluster::start(1);
    let mut net = Cluster::prepare(3, |_| vec![]);
    let (address, second) = (cluster.nodes[0].address.clone(), cluster.nodes[1].address.clone());
    let fresh = Fresh::start(&net.nodes[0].directory, &net.nodes[0].address, &[]);

    // None, no token, one that was cut short, another cluster's, one that expired, one that was taken back.
    let error = fresh.join("", &address).fails_with(8);
    assert!(error.contains("token create"), "{error}");
    let good = token(&cluster, &[]);
    for wrong in ["x", &good[..90], &format!("{good}A")] {
        let error = fresh.join(wrong, &address).fails_with(5);
        assert!(error.contains("not a whole token"), "{error}");
    }
    let error = fresh.join(&token(&other, &[]), &address).fails_with(8);
    assert!(error.contains("not of the cluster"), "{error}");
    // A cluster that was made to look like the one that the token is for is no such either.
    let error = fresh.join(&good, &other.nodes[0].address).fails_with(8);
    assert!(error.contains("not of the cluster"), "{error}");
    let short = token(&cluster, &["--ttl", "1s"]);
    let error = eventually("the token expires", || {
        let probe = cluster.cli(&["cluster", "token", "ls", "--format", "json"]).ok();
        let tokens: serde_json::Value = serde_json::from_str(&probe).unwrap();
        let gone =
            |t: &serde_json::Value| t["expiresAt"].as_str().unwrap().parse::<Timestamp>().unwrap() < Timestamp::now();
        tokens
            .as_array()
            .unwrap()
            .iter()
            .any(gone)
            .then(|| fresh.join(&short, &address))
    })
    .fails_with(8);
    assert!(error.contains("expired"), "{error}");
    let revoked = token(&cluster, &["--ttl", "2h"]);
    let ids = cluster.cli(&["cluster", "token", "ls", "-q"]).ok();
    // Three for the nodes, and two; the expired one is forgotten.
    assert_eq!(ids.lines().count(), 5, "{ids}");
    let listed = cluster.cli(&["cluster", "token", "ls"]).ok();
    assert!(listed.contains("1/1") && listed.contains("n3"), "{listed}");
    for id in ids.lines() {
        assert_eq!(cluster.cli(&["cluster", "token", "rm", id]).ok().trim(), id);
        cluster.cli(&["cluster", "token", "rm", id]).fails_with(3);
    }
    let error = fresh.join(&revoked, &address).fails_with(8);
    assert!(error.contains("unknown"), "{error}");

    // A good one, while the first node is dead; its data directory is nowhere needed.
    cluster.nodes[0].kill();
    let good = eventually("another node makes a token", || {
        let said = cluster.nodes[1].cli(&["cluster", "token", "create"]);
        (said.code == 0).then(|| said.out.trim().to_owned())
    });
    let said = eventually("the node joins", || {
        let said = fresh.join(&good, &second);
        (said.code != 6).then_some(said)
    });
    said.ok();
    eventually("it is a member", || {
        let said = cluster.nodes[1].cli(&["node", "health", "fresh"]);
        (said.code == 0).then_some(())
    });
    // It was used: another node gets nothing by it, and says so as long as it is asked.
    let late = Fresh::start(
        &net.nodes[1].directory,
        &net.nodes[1].address,
        &["--join", &second, "--token", &good],
    );
    let refused = eventually("the used token is refused", || {
        let said = Command::new(STORAGEOS)
            .env("STORAGEOS_HOST", late.directory.join("storageos.sock"))
            .args(["node", "ls"])
            .output()
            .unwrap();
        (said.status.code() == Some(8)).then(|| String::from_utf8_lossy(&said.stderr).into_owned())
    });
    assert!(refused.contains("used already"), "{refused}");
    assert!(!late.directory.join("tls").exists());
    // From a file, which need not be there at later starts.
    drop(late);
    net.nodes[1].inviter = cluster.nodes[1].socket();
    let file = net.directory.join("token");
    fs::write(&file, token(&cluster, &[])).unwrap();
    let arguments = ["--join", &second, "--token-file", file.to_str().unwrap()];
    for _ in 0..2 {
        let started = Fresh::start(&net.nodes[2].directory, &net.nodes[2].address, &arguments);
        eventually("the node is in", || {
            let said = Command::new(STORAGEOS)
                .env("STORAGEOS_HOST", started.directory.join("storageos.sock"))
                .args(["cluster", "inspect"])
                .output()
                .unwrap();
            said.status.success().then_some(())
        });
        let _ = fs::remove_file(&file);
        drop(started);
        let _ = fs::remove_file(net.nodes[2].directory.join("storageos.sock"));
    }
}

/// Sockets of a process that listen for TCP or take UDP, as `tcp 127.0.0.1:5703`.
pub fn listening(pid: u32) -> BTreeSet<String> {
    let inodes: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut found = BTreeSet::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{protocol}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = !protocol.starts_with("tcp") || fields[3] == "0A";
            if listens && inodes.contains(fields[9]) {
                let (address, port) = fields[1].split_once(':').unwrap();
                let ip = u32::from_str_radix(address, 16)
                    .map(u32::swap_bytes)
                    .map(std::net::Ipv4Addr::from);
                let port = u16::from_str_radix(port, 16).unwrap();
                found.insert(format!(
                    "{protocol} {}:{port}",
                    ip.map_or(address.to_owned(), |ip| ip.to_string())
                ));
            }
        }
    }
    found
}

/// Every file below a directory with its mode.
fn files(directory: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        found.push((entry.path(), metadata.permissions().mode() & 0o777));
        if metadata.is_dir() {
            files(&entry.path(), found);
        }
    }
}

#[test]
fn a_daemon_listens_on_one_port_and_its_secrets_are_its_own() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    fs::write(mount.join("file"), "x").unwrap();
    let token = token(&cluster, &[]);
    for node in &cluster.nodes {
        assert_eq!(listening(node.pid()), [format!("tcp {}", node.address)].into());
        for part in ["tls", "control", "volumes"] {
            let mode = fs::metadata(node.directory.join(part)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o700, "{part}");
        }
        let mut found = Vec::new();
        files(&node.directory.join("tls"), &mut found);
        assert_eq!(found, [(node.directory.join("tls/node.pem"), 0o600)]);
        let log = node.whole_log();
        let cmdline = fs::read_to_string(format!("/proc/{}/cmdline", node.pid())).unwrap();
        for text in [log, cmdline] {
            assert!(!text.contains("storageos1_") && !text.contains("PRIVATE"), "{text}");
            assert!(!text.contains(&token), "{text}");
        }
    }
    // What the control store keeps of a token does not give it away.
    let raft = fs::read(cluster.nodes[0].directory.join("control/raft.redb")).unwrap();
    let secret = token.trim_start_matches("storageos1_");
    assert!(!raft.windows(secret.len()).any(|window| window == secret.as_bytes()));
    cluster.unmount(&mount);
}

fn expiry(directory: &Path) -> Timestamp {
    credentials(directory).expires
}

#[test]
fn certificates_are_renewed_while_a_volume_is_written() {
    const LIFE: i64 = 15;
    let short = format!("{LIFE}s");
    let mut cluster = Cluster::start_with(3, |_| vec!["--certificate-validity".into(), short.clone()]);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(5);
    let first: Vec<Timestamp> = cluster.nodes.iter().map(|node| expiry(&node.directory)).collect();
    assert!(
        first
            .iter()
            .all(|at| *at < Timestamp::now() + SignedDuration::from_secs(LIFE + 1))
    );
    eventually("every node has renewed its certificate twice", || {
        let twice = SignedDuration::from_secs(LIFE);
        let renewed = |(node, first): (&crate::harness::Node, &Timestamp)| expiry(&node.directory) >= *first + twice;
        assert!(!writer.has_ended(), "the writer ended");
        cluster.nodes.iter().zip(&first).all(renewed).then_some(())
    });
    // All first certificates have expired; connections from then go on, and new ones are made.
    writer.goes_on(20);
    cluster.nodes[2].kill();
    let away = expiry(&cluster.nodes[2].directory);
    writer.goes_on(5);
    eventually("the certificate of the node that is away expires", || {
        (Timestamp::now() > away + SignedDuration::from_secs(1)).then_some(())
    });
    // It renews it by itself.
    cluster.nodes[2].start();
    cluster.wait_for_copies("data", 3);
    writer.goes_on(20);
    writer.ends_well();
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

#[test]
fn rotate_certificates_reaches_every_node_also_one_that_is_away() {
    let mut cluster = Cluster::start(3);
    let before: Vec<Credentials> = cluster.nodes.iter().map(|node| credentials(&node.directory)).collect();
    cluster.nodes[2].kill();
    eventually("the control plane goes on", || {
        (cluster.cli(&["cluster", "rotate-certificates"]).code == 0).then_some(())
    });
    let renewed = |index: usize| {
        let now = credentials(&cluster.nodes[index].directory);
        (now.renewals == before[index].renewals + 1 && now.proof().certificate() != before[index].proof().certificate())
            .then_some(())
    };
    eventually("n1 renews", || renewed(0));
    eventually("n2 renews", || renewed(1));
    cluster.nodes[2].start();
    let renewed = |index: usize| {
        let now = credentials(&cluster.nodes[index].directory);
        (now.renewals == before[index].renewals + 1).then_some(())
    };
    eventually("n3 renews", || renewed(2));
    cluster.wait_for_live_nodes(3);
    assert_eq!(cluster.cli(&["cluster", "connectivity", "-q"]).ok(), "");
}

#[test]
fn a_node_that_lost_its_certificate_makes_a_new_one_and_one_that_knows_no_authority_says_so() {
    let mut cluster = Cluster::start(3);
    let node = &mut cluster.nodes[2];
    let before = credentials(&node.directory);
    node.kill();
    fs::remove_dir_all(node.directory.join("tls")).unwrap();
    // The harness would take it for a node that joins.
    node.join = None;
    node.start();
    let after = credentials(&node.directory);
    assert_eq!((after.node, after.cluster), (before.node, before.cluster));
    assert_ne!(after.proof().certificate(), before.proof().certificate());
    assert_eq!(cluster.nodes[2].cli(&["cluster", "connectivity", "-q"]).ok(), "");
    // Of another node: named, and nothing is overwritten.
    cluster.nodes[2].kill();
    fs::copy(
        cluster.nodes[0].directory.join("tls/node.pem"),
        cluster.nodes[2].directory.join("tls/node.pem"),
    )
    .unwrap();
    let error = refused_start(&mut cluster.nodes[2]);
    assert!(
        error.contains("tls/node.pem") && error.contains("those of node"),
        "{error}"
    );
    // As a data directory of before there were certificates.
    for part in ["tls", "control"] {
        fs::remove_dir_all(cluster.nodes[2].directory.join(part)).unwrap();
    }
    let error = refused_start(&mut cluster.nodes[2]);
    assert!(
        error.contains("has no certificate") && error.contains("new data directory"),
        "{error}"
    );
}

/// What a daemon says that does not start.
fn refused_start(node: &mut crate::harness::Node) -> String {
    let known = node.whole_log().len();
    node.spawn();
    let error = eventually("the daemon ends with an error", || {
        let log = node.whole_log().split_off(known);
        log.contains("storageos: error").then_some(log)
    });
    node.kill();
    error
}

#[test]
fn garbage_and_silence_at_the_port_hold_nobody_up() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    let writer = Writer::start(&mount.join("lines"));
    writer.goes_on(5);
    // More than the port has room for, of each sort, and they stay.
    let mut kept = Vec::new();
    for node in &cluster.nodes {
        for number in 0..300_usize {
            let mut socket = TcpStream::connect(&node.address).unwrap();
            let bytes: &[u8] = match number % 4 {
                0 => &[],
                // The beginning of a handshake.
                1 => &[0x16, 3, 1, 2, 0, 1],
                2 => &[0x16, 3, 1, 0xff, 0xff, 9, 9, 9],
                _ => &[0xaa; 400],
            };
            let _ = socket.write_all(bytes);
            kept.push(socket);
        }
    }
    // Handshakes without a hello.
    for node in &cluster.nodes {
        for _ in 0..20 {
            let _ = knock_without_hello(&node.address).map(|open| kept.push(open.sock));
        }
    }
    let flooded = Instant::now();
    writer.goes_on(20);
    // New connections are made meanwhile: a killed replica comes back and is brought up to date.
    let replica = cluster.index(&cluster.replicas("data", "healthy")[0]);
    if replica != 0 {
        cluster.nodes[replica].kill();
        cluster.nodes[replica].start();
    }
    cluster.wait_for_copies("data", 3);
    assert!(flooded.elapsed() < Duration::from_secs(60), "{:?}", flooded.elapsed());
    writer.ends_well();
    drop(kept);
    cluster.unmount(&mount);
    cluster.verify_identical("data", 3);
}

/// TLS without a certificate, and then nothing.
fn knock_without_hello(address: &str) -> Result<Open, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let session = ClientConnection::new(
        Arc::new(config.with_no_client_auth()),
        ServerName::try_from("anybody.example").unwrap(),
    );
    let mut open = StreamOwned::new(session.unwrap(), TcpStream::connect(address).unwrap());
    open.flush().map_err(|error| error.to_string())?;
    Ok(open)
}
