//! Whole daemons in one process, over a control store in memory: the wiring, and what the API answers.

use super::{ControlConfig, Daemon, NodeConfig, Start, StartError};
use crate::api::types::*;
use crate::api::{ApiError, Client, Code};
use crate::cluster::MemoryStore;
use crate::fs::{Caller, FileSystem, Ino};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(30);
const ROOT: Ino = 1;
const USER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

struct Cluster {
    home: TempDir,
    store: Arc<MemoryStore>,
    nodes: Vec<Option<Daemon>>,
}

fn config(home: &Path, store: &Arc<MemoryStore>, index: usize) -> NodeConfig {
    let name = format!("n{}", index + 1);
    let mut config = NodeConfig::new(home.join(&name), ([127, 0, 0, 1], 0).into(), &name);
    config.control = ControlConfig::Memory(store.clone());
    config.start = if index == 0 {
        Start::Init
    } else {
        Start::Join(vec!["-".into()])
    };
    config
}

impl Cluster {
    async fn start(count: usize) -> Self {
        let mut cluster = Self {
            home: tempfile::tempdir().unwrap(),
            store: Arc::default(),
            nodes: Vec::new(),
        };
        for index in 0..count {
            cluster.nodes.push(Some(
                Daemon::start(config(cluster.home.path(), &cluster.store, index))
                    .await
                    .unwrap(),
            ));
        }
        let client = cluster.client(0);
        eventually("all nodes are members and alive", async || {
            let nodes: Vec<NodeInfo> = client.get("/v1/nodes").await.unwrap_or_default();
            nodes.iter().filter(|n| n.health == "healthy").count() == count
        })
        .await;
        cluster
    }

    fn client(&self, index: usize) -> Client {
        let socket = self.home.path().join(format!("n{}", index + 1)).join("storageos.sock");
        Client::new(socket.to_str().unwrap(), None).unwrap()
    }

    fn node(&self, index: usize) -> &Daemon {
        self.nodes[index].as_ref().unwrap()
    }

    async fn stop(&mut self, index: usize) {
        self.nodes[index].take().unwrap().stop(CancellationToken::new()).await;
    }

    async fn restart(&mut self, index: usize) {
        let config = config(self.home.path(), &self.store, index);
        self.nodes[index] = Some(Daemon::start(config).await.unwrap());
    }

    async fn stop_all(mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].is_some() {
                self.stop(index).await;
            }
        }
    }
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn new_volume(name: &str, labels: &[(&str, &str)]) -> VolumeCreate {
    VolumeCreate {
        namespace: "default".into(),
        name: name.into(),
        size: 256 << 20,
        description: String::new(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        node_selector: String::new(),
    }
}

async fn create(client: &Client, name: &str, labels: &[(&str, &str)]) -> Result<VolumeInfo, ApiError> {
    client.post("/v1/volumes", &new_volume(name, labels)).await
}

async fn verify(client: &Client, name: &str) -> VerifyReport {
    client
        .post(
            &format!("/v1/volumes/default/{name}/verify"),
            &VerifyRequest { deep: true },
        )
        .await
        .unwrap()
}

/// Blocking file system work, away from the runtime's threads.
async fn on<T: Send + 'static>(fs: &Arc<FileSystem>, work: impl FnOnce(&FileSystem) -> T + Send + 'static) -> T {
    let fs = fs.clone();
    tokio::task::spawn_blocking(move || work(&fs)).await.unwrap()
}

async fn write_file(fs: &Arc<FileSystem>, name: &'static str, data: &'static [u8]) {
    on(fs, move |fs| {
        let file = fs.create(&USER, ROOT, name.as_bytes(), 0o644).unwrap();
        fs.write(file.ino, 0, data, false).unwrap();
        fs.fsync(file.ino, false).unwrap();
    })
    .await;
}

async fn read_file(fs: &Arc<FileSystem>, name: &'static str) -> Vec<u8> {
    on(fs, move |fs| {
        let file = fs.lookup(ROOT, name.as_bytes()).unwrap();
        fs.read(file.ino, 0, 1 << 20).unwrap().to_vec()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_written_on_one_node_are_on_three_identical_copies_and_open_on_another() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(1);
    let made = create(&client, "data", &[("storageos.com/replicas", "2")])
        .await
        .unwrap();
    assert_eq!((made.replicas.len(), made.health.as_str()), (2, "healthy"));
    let open = cluster.node(0).attach("data", false, LONG).await.unwrap();
    write_file(open.file_system(), "file", b"kept on three nodes").await;
    let seen: VolumeInfo = client.get("/v1/volumes/default/data").await.unwrap();
    assert_eq!((seen.mounted_by.as_str(), seen.mounted), ("n1", true));
    assert_eq!(seen.master.unwrap().node_name, "n1", "mastership moves to the mount");
    assert!(seen.used_bytes.unwrap() > 0);
    // Nobody else may have it meanwhile.
    let refused = cluster.node(2).attach("data", false, LONG).await.err().unwrap();
    assert_eq!(refused.code, Code::Conflict);
    assert!(refused.message.contains("n1"), "{refused}");
    let refused = client.delete("/v1/volumes/default/data").await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    open.close().await.unwrap();
    let open = cluster.node(2).attach("default/data", true, LONG).await.unwrap();
    assert_eq!(read_file(open.file_system(), "file").await, b"kept on three nodes");
    open.close().await.unwrap();
    let report = verify(&client, "data").await;
    assert_eq!(report.copies.len(), 3);
    assert!(report.copies.iter().all(|c| c.result == "identical"), "{report:?}");
    client.delete("/v1/volumes/default/data").await.unwrap();
    let home = cluster.home.path().to_owned();
    eventually("the copies are removed", async || {
        (1..=3).all(|n| std::fs::read_dir(home.join(format!("n{n}/volumes"))).unwrap().count() == 0)
    })
    .await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_goes_on_where_it_was() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    create(&client, "data", &[]).await.unwrap();
    let open = cluster.node(0).attach("data", false, LONG).await.unwrap();
    write_file(open.file_system(), "file", b"before").await;
    open.close().await.unwrap();
    cluster.stop(0).await;
    let error = client.get::<About>("/v1").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    cluster.restart(0).await;
    eventually("it is a member again", async || {
        client.get::<Vec<NodeInfo>>("/v1/nodes").await.is_ok()
    })
    .await;
    let open = cluster.node(0).attach("data", false, LONG).await.unwrap();
    assert_eq!(read_file(open.file_system(), "file").await, b"before");
    open.close().await.unwrap();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_copy_works_through_the_master() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client(0);
    let made = create(&client, "data", &[("storageos.com/hint.master", "n1")])
        .await
        .unwrap();
    assert_eq!(made.master.unwrap().node_name, "n1");
    let open = cluster.node(1).attach("data", false, LONG).await.unwrap();
    write_file(open.file_system(), "file", b"through the network").await;
    assert_eq!(read_file(open.file_system(), "file").await, b"through the network");
    open.close().await.unwrap();
    let open = cluster.node(0).attach("data", false, LONG).await.unwrap();
    assert_eq!(read_file(open.file_system(), "file").await, b"through the network");
    open.close().await.unwrap();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_refuses_what_is_wrong_and_says_why() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let refused = async |name: &str, labels: &[(&str, &str)], code: Code, says: &str| {
        let error = create(&client, name, labels).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(says), "{error}");
    };
    refused("a/b", &[], Code::Invalid, "/").await;
    refused("bad name", &[], Code::Invalid, "name").await;
    refused("v", &[("storageos.com/replicas", "6")], Code::Invalid, "6").await;
    refused(
        "v",
        &[("storageos.com/replica", "1")],
        Code::Invalid,
        "storageos.com/replicas",
    )
    .await;
    refused(
        "v",
        &[("storageos.com/failure.mode", "never")],
        Code::Invalid,
        "alwayson",
    )
    .await;
    refused("v", &[("storageos.com/replicas", "1")], Code::Conflict, "2").await;
    create(&client, "v", &[]).await.unwrap();
    refused("v", &[], Code::Conflict, "exists").await;
    let not_found = client.get::<VolumeInfo>("/v1/volumes/default/w").await.unwrap_err();
    assert_eq!(not_found.code, Code::NotFound);
    assert!(not_found.message.contains("default/w"), "{not_found}");
    let not_found = client.get::<NodeInfo>("/v1/nodes/nobody").await.unwrap_err();
    assert_eq!(not_found.code, Code::NotFound);
    let unknown = client
        .post::<VolumeInfo>("/v1/volumes", &serde_json::json!({"nmae": "v"}))
        .await
        .unwrap_err();
    assert_eq!(unknown.code, Code::Usage);
    assert!(unknown.message.contains("nmae"), "{unknown}");
    let unknown = client
        .get::<Vec<VolumeInfo>>("/v1/volumes?colour=red")
        .await
        .unwrap_err();
    assert_eq!(unknown.code, Code::Usage);
    assert_eq!(
        client.get::<About>("/v1/nothing").await.unwrap_err().code,
        Code::NotFound
    );
    assert_eq!(client.delete("/v1/nodes").await.unwrap_err().code, Code::Usage);
    assert_eq!(
        client.delete("/v1/namespaces/default").await.unwrap_err().code,
        Code::Conflict
    );
    let large = serde_json::json!({"namespace": "default", "name": "v", "size": 1, "description": "x".repeat(300_000)});
    let refused = client.post::<VolumeInfo>("/v1/volumes", &large).await.unwrap_err();
    assert_eq!(refused.code, Code::Usage, "{refused}");
    let stale = VolumeUpdate {
        description: Some("new".into()),
        epoch: Some(0),
        ..VolumeUpdate::default()
    };
    let conflict = client
        .patch::<VolumeInfo>("/v1/volumes/default/v", &stale)
        .await
        .unwrap_err();
    assert_eq!(conflict.code, Code::Conflict);
    let again = client
        .post::<Membership>("/v1/cluster/init", &InitRequest {})
        .await
        .unwrap_err();
    assert_eq!(again.code, Code::Conflict);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_namespaces_and_filters_work_through_the_api() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let team = NamespaceCreate {
        name: "team".into(),
        display_name: "Team".into(),
        description: String::new(),
        labels: BTreeMap::new(),
    };
    let made: NamespaceInfo = client.post("/v1/namespaces", &team).await.unwrap();
    assert_eq!((made.name.as_str(), made.volumes), ("team", 0));
    create(&client, "a", &[("app", "db")]).await.unwrap();
    create(&client, "b", &[("storageos.feature.failure.mode", "hard")])
        .await
        .unwrap();
    let filter = VolumeFilter {
        namespace: Some("default".into()),
        selector: Some("app=db".into()),
    };
    let found = client.volumes(&filter).await.unwrap();
    assert_eq!(found.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let update = VolumeUpdate {
        label_add: [("storageos.com/failure.mode".to_owned(), "soft".to_owned())].into(),
        label_remove: vec![],
        ..VolumeUpdate::default()
    };
    let changed: VolumeInfo = client.patch("/v1/volumes/default/b", &update).await.unwrap();
    assert_eq!(changed.labels["storageos.com/failure.mode"], "soft");
    client.delete("/v1/namespaces/team").await.unwrap();
    let update = NodeUpdate {
        cordoned: Some(true),
        ..NodeUpdate::default()
    };
    let node: NodeInfo = client.patch("/v1/nodes/n1", &update).await.unwrap();
    assert!(node.cordoned);
    let refused = create(&client, "c", &[]).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_daemon_refuses_what_it_cannot_run_with() {
    let home = tempfile::tempdir().unwrap();
    let store = Arc::new(MemoryStore::default());
    let good = config(home.path(), &store, 0);
    let wildcard = NodeConfig {
        listen: ([0, 0, 0, 0], 0).into(),
        ..good.clone()
    };
    assert!(matches!(Daemon::start(wildcard).await, Err(StartError::Wildcard(_))));
    let name = NodeConfig {
        name: Some("bad/name".into()),
        ..good.clone()
    };
    assert!(matches!(Daemon::start(name).await, Err(StartError::Name(_))));
    let label = NodeConfig {
        labels: [("storageos.com/colour".to_owned(), "red".to_owned())].into(),
        ..good.clone()
    };
    assert!(matches!(Daemon::start(label).await, Err(StartError::Label(_))));
    let daemon = Daemon::start(good.clone()).await.unwrap();
    assert!(matches!(Daemon::start(good).await, Err(StartError::DataDir(_))));
    daemon.stop(CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_node_says_how_to_make_or_join_a_cluster() {
    let home = tempfile::tempdir().unwrap();
    let store = Arc::new(MemoryStore::default());
    let fresh = NodeConfig {
        start: Start::Wait,
        ..config(home.path(), &store, 0)
    };
    let daemon = Daemon::start(fresh).await.unwrap();
    let client = Client::new(home.path().join("n1/storageos.sock").to_str().unwrap(), None).unwrap();
    let error = client.get::<Vec<NodeInfo>>("/v1/nodes").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    let hint = error.hint.unwrap();
    assert!(
        hint.contains("storageos cluster init") && hint.contains("storageos cluster join"),
        "{hint}"
    );
    let about: About = client.get("/v1").await.unwrap();
    assert_eq!(about.cluster, None);
    let member: Membership = client.post("/v1/cluster/init", &InitRequest {}).await.unwrap();
    assert_eq!(member.node_name, "n1");
    eventually("it is a member", async || {
        client
            .get::<Vec<NodeInfo>>("/v1/nodes")
            .await
            .is_ok_and(|n| n.len() == 1)
    })
    .await;
    daemon.stop(CancellationToken::new()).await;
}
