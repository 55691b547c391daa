//! The protocol over the socket, answered by a daemon in this process; what Docker itself makes of it is in `tests/e2e/docker.rs`.

use super::is_driver_socket;
use crate::api::Client;
use crate::cluster::MemoryStore;
use crate::node::{ControlConfig, Daemon, NodeConfig, Start};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

struct Node {
    home: TempDir,
    daemon: Daemon,
}

fn config(home: &Path, name: &str) -> NodeConfig {
    let mut config = NodeConfig::new(home.join(name), ([127, 0, 0, 1], 0).into(), name);
    config.control = ControlConfig::Memory(Arc::<MemoryStore>::default());
    config.start = Start::Init;
    config.docker = Some(home.join("plugins/storageos.sock"));
    config
}

impl Node {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(config(home.path(), "n1")).await.unwrap();
        Self { home, daemon }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("plugins/storageos.sock")
    }

    async fn call(&self, call: &str, request: Value) -> Value {
        let client = Client::new(self.socket().to_str().unwrap(), None).unwrap();
        client.post(call, &request).await.unwrap()
    }

    /// The answer's `Err`.
    async fn error(&self, call: &str, request: Value) -> String {
        self.call(call, request).await["Err"].as_str().unwrap().to_owned()
    }

    /// What comes back for these bytes: the status, and all of it. `end`: nothing comes after them.
    async fn raw(&self, bytes: Vec<u8>, end: bool) -> (u16, String) {
        let socket = self.socket();
        let asked = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            // It may hang up before it has all.
            let _ = stream.write_all(&bytes);
            if end {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        });
        let text = asked.await.unwrap();
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        (status, text)
    }

    async fn post(&self, path: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw([head.as_bytes(), body].concat(), false).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_created_shown_listed_and_removed() {
    let node = Node::start().await;
    assert_eq!(
        node.call("/Plugin.Activate", json!({})).await,
        json!({"Err": "", "Implements": ["VolumeDriver"]})
    );
    assert_eq!(
        node.call("/VolumeDriver.Capabilities", json!({})).await["Capabilities"]["Scope"],
        "global"
    );
    let create = json!({"Name": "data", "Opts": {"size": "15", "storageos.feature.replicas": "0", "app": "db"}});
    assert_eq!(node.error("/VolumeDriver.Create", create.clone()).await, "");
    let implicit = json!({"Name": "implicit", "Opts": null, "Unknown": {"a": 1}});
    assert_eq!(node.error("/VolumeDriver.Create", implicit).await, "");

    let got = node.call("/VolumeDriver.Get", json!({"Name": "data"})).await;
    let volume = &got["Volume"];
    assert_eq!(
        (&volume["Name"], &volume["Mountpoint"]),
        (&json!("data"), &json!("")),
        "{got}"
    );
    let status = &volume["Status"];
    assert_eq!(status["size"], "15 GiB");
    assert_eq!(status["labels"]["app"], "db");
    assert_eq!(status["labels"]["storageos.com/hint.master"], "n1");
    let got = node.call("/VolumeDriver.Get", json!({"Name": "implicit"})).await;
    assert_eq!(got["Volume"]["Status"]["size"], "5 GiB");

    // Again: the same is there already, another one cannot be made.
    assert_eq!(node.error("/VolumeDriver.Create", create).await, "");
    let other = json!({"Name": "data", "Opts": {"size": "16"}});
    let refused = node.error("/VolumeDriver.Create", other).await;
    assert!(
        refused.contains("exists") && refused.contains("its size is 15 GiB, not 16 GiB"),
        "{refused}"
    );
    let hinted = json!({"Name": "hinted", "Opts": {"storageos.com/hint.master": "n7"}});
    assert_eq!(node.error("/VolumeDriver.Create", hinted).await, "");
    let got = node.call("/VolumeDriver.Get", json!({"Name": "hinted"})).await;
    assert_eq!(
        got["Volume"]["Status"]["labels"]["storageos.com/hint.master"], "n7",
        "the user's word"
    );

    let listed = node.call("/VolumeDriver.List", json!({})).await;
    let names: Vec<_> = listed["Volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| volume["Name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["data", "hinted", "implicit"]);
    assert_eq!(
        node.call("/VolumeDriver.Path", json!({"Name": "data"})).await["Mountpoint"],
        ""
    );
    for _ in 0..2 {
        assert_eq!(node.error("/VolumeDriver.Remove", json!({"Name": "data"})).await, "");
    }
    let gone = node.error("/VolumeDriver.Get", json!({"Name": "data"})).await;
    assert!(gone.contains("volume default/data does not exist"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_in_one_line() {
    let node = Node::start().await;
    for (call, request, says) in [
        (
            "/VolumeDriver.Create",
            json!({"Name": "a", "Opts": {"size": "big"}}),
            "is not a size",
        ),
        (
            "/VolumeDriver.Create",
            json!({"Name": "a", "Opts": {"storageos.com/replicas": "2"}}),
            "add nodes",
        ),
        ("/VolumeDriver.Create", json!({"Name": "a/b"}), "volume name"),
        ("/VolumeDriver.Create", json!({}), "must not be empty"),
        ("/VolumeDriver.Get", json!({"Name": "../../etc"}), "volume name"),
        (
            "/VolumeDriver.Mount",
            json!({"Name": "none", "ID": "1"}),
            "does not exist",
        ),
        ("/VolumeDriver.Mount", json!({"Name": "none"}), "Docker 1.12"),
        (
            "/VolumeDriver.Unmount",
            json!({"Name": "../x", "ID": "1"}),
            "volume name",
        ),
    ] {
        let error = node.error(call, request).await;
        assert!(error.contains(says) && !error.contains('\n'), "{call}: {error}");
    }
    // Never mounted: nothing to do.
    let unknown = json!({"Name": "none", "ID": "1"});
    assert_eq!(node.error("/VolumeDriver.Unmount", unknown).await, "");
    let leaving = node.daemon;
    leaving.stop(CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_the_door_stays_open() {
    let node = Node::start().await;
    for (path, body, status) in [
        ("/VolumeDriver.Get", &b"{"[..], 400),
        ("/VolumeDriver.Get", b"[1,2]", 400),
        ("/VolumeDriver.Create", br#"{"Name":7}"#, 400),
        ("/VolumeDriver.Create", br#"{"Name":"a","Opts":{"size":15}}"#, 400),
        ("/VolumeDriver.Mount", b"\xff\xfe\x00", 400),
        ("/VolumeDriver.Nothing", b"{}", 404),
        ("/", b"", 404),
        ("/v1/volumes", b"{}", 404),
    ] {
        let (said, text) = node.post(path, body).await;
        assert_eq!(said, status, "{path}: {text}");
        assert!(text.contains(r#"{"Err":""#), "{text}");
    }
    let (said, text) = node.post("/VolumeDriver.List", b"").await;
    assert_eq!(said, 200, "{text}");
    assert!(
        text.to_lowercase()
            .contains("content-type: application/vnd.docker.plugins.v1.2+json"),
        "{text}"
    );
    let deep = "[".repeat(200_000);
    assert_eq!(node.post("/VolumeDriver.Get", deep.as_bytes()).await.0, 400);
    let large = vec![b' '; 300 * 1024];
    assert_eq!(node.post("/VolumeDriver.Get", &large).await.0, 413);
    // Less than it says.
    let cut = b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\n{\"Name\"".to_vec();
    assert_ne!(node.raw(cut, true).await.0, 200);
    let get = b"GET /VolumeDriver.List HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".to_vec();
    assert_eq!(node.raw(get, false).await.0, 405);
    for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"\r\n\r\n", b"POST\r\n", &[0xff; 70_000]] {
        assert_ne!(node.raw(bytes.to_vec(), true).await.0, 200);
    }
    assert_eq!(node.error("/VolumeDriver.List", json!({})).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_roots_and_one_daemons_and_goes_with_it() {
    let node = Node::start().await;
    let socket = node.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Daemon::start(config(node.home.path(), "n2")).await.err().unwrap();
    assert_eq!(
        second.to_string(),
        format!("Docker volume driver: another daemon answers on {}", socket.display())
    );
    let Node { home, daemon } = node;
    // Docker keeps its connection open.
    let idle = UnixStream::connect(&socket).unwrap();
    daemon.stop(CancellationToken::new()).await;
    assert!(!socket.exists());
    drop(idle);

    // What a dead daemon left is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let daemon = Daemon::start(config(home.path(), "n3")).await.unwrap();
    let node = Node { home, daemon };
    assert_eq!(node.error("/VolumeDriver.List", json!({})).await, "");

    let mut wrong = config(node.home.path(), "n4");
    wrong.docker = Some(node.home.path().join("plugins/storageos.spec"));
    let error = Daemon::start(wrong).await.err().unwrap().to_string();
    assert!(error.contains("NAME.sock"), "{error}");
}

#[test]
fn docker_finds_a_driver_by_a_socket_with_a_name() {
    for good in ["/run/docker/plugins/storageos.sock", "/a/b-2.sock"] {
        assert!(is_driver_socket(Path::new(good)), "{good}");
    }
    for bad in [
        "",
        "/",
        "storageos.sock",
        "/a/storageos",
        "/a/.sock",
        "/a/storageos.spec",
        "/a/b.sock.x",
    ] {
        assert!(!is_driver_socket(Path::new(bad)), "{bad}");
    }
}
