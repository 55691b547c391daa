//! The store on a real etcd, which each test starts for itself: the promises, an etcd that is away, one that lost its data, lost history.
//!
//! Debian's package `etcd-server` has it. Each etcd has a loopback address of its own.

use super::{EtcdConfig, EtcdStore};
use crate::cluster::records::encode_id;
use crate::cluster::{Change, Compare, ControlError, ControlStore, Outcome, Transaction, conformance};
use crate::rpc::Identity;
use crate::volume::{ClusterId, NodeId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

#[path = "../../../tests/e2e/etcd_process.rs"]
mod etcd_process;
use etcd_process::EtcdProcess;

const DEADLINE: Duration = Duration::from_secs(60);

static SERIAL: AtomicU8 = AtomicU8::new(1);

/// One etcd on an address of its own.
struct Etcd {
    host: String,
    process: EtcdProcess,
}

impl Etcd {
    async fn start() -> Self {
        let pid = std::process::id();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let host = format!("127.{}.{}.{serial}", 16 + (pid >> 8) % 200, pid & 0xff);
        let process = EtcdProcess::on(&host);
        let mut etcd = Self { host, process };
        etcd.run().await;
        etcd
    }

    /// Starts the process and waits until it answers.
    async fn run(&mut self) {
        self.process.spawn();
        let store = self.store(1, Duration::from_secs(1));
        eventually("etcd answers", || async { store.get("x").await.is_ok() }).await;
    }

    fn config(&self, deadline: Duration) -> EtcdConfig {
        EtcdConfig {
            deadline,
            ..format!("etcd://{}", self.process.client).parse().unwrap()
        }
    }

    /// The store of a node that is in no cluster.
    fn store(&self, node: u8, deadline: Duration) -> EtcdStore {
        EtcdStore::new(
            self.config(deadline),
            Identity::new(NodeId::from_bytes([node; 16]), None),
        )
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let end = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction {
        compares: Vec::new(),
        changes: vec![Change::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }],
    }
}

fn leads(store: &EtcdStore) -> bool {
    *store.leadership().borrow()
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_every_promise() {
    let etcd = Etcd::start().await;
    let stores: Vec<EtcdStore> = (1..=3).map(|node| etcd.store(node, DEADLINE)).collect();
    for store in &stores {
        store.take_part(BTreeMap::new);
    }
    let handles: Vec<Arc<dyn ControlStore>> = stores.iter().map(|s| Arc::new(s.clone()) as _).collect();
    conformance::all(&handles).await;
    let compact = async || {
        let (_, revision) = handles[0].range("").await.unwrap();
        let body = json!({"revision": revision.to_string()});
        let gateway = &stores[0].inner.gateway;
        gateway.call::<Value>("/v3/kv/compaction", &body).await.unwrap();
    };
    conformance::a_watch_of_lost_history_is_told(&handles[1], 5, compact).await;
    for store in &stores {
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_leads_when_the_leader_stops_or_its_port_refuses() {
    let etcd = Etcd::start().await;
    let stores: Vec<EtcdStore> = (1..=3).map(|node| etcd.store(node, DEADLINE)).collect();
    // Nobody listens at the first leader's address, so the second must not wait for its lease.
    let refusing = format!("{}:1", etcd.host);
    let first = NodeId::from_bytes([1; 16]);
    stores[0].take_part(BTreeMap::new);
    eventually("the first leads", || async { leads(&stores[0]) }).await;
    for store in &stores[1..] {
        let addresses = BTreeMap::from([(first, refusing.clone())]);
        store.take_part(move || addresses.clone());
    }
    eventually("another one leads", || async { stores[1..].iter().any(leads) }).await;
    let second = if leads(&stores[1]) { 1 } else { 2 };
    eventually("the first knows", || async {
        !leads(&stores[0]) && stores[0].leader() == Some(NodeId::from_bytes([second as u8 + 1; 16]))
    })
    .await;
    stores[0].shutdown().await;
    stores[second].shutdown().await;
    let third = 3 - second;
    eventually("the last one leads", || async { leads(&stores[third]) }).await;
    stores[third].shutdown().await;
    let watching = stores[third].changes("", 1);
    assert!(watching.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_away_is_an_error_in_bounded_time_and_one_that_returns_serves_again() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store(1, Duration::from_secs(2));
    store.take_part(BTreeMap::new);
    eventually("it leads", || async { leads(&store) }).await;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.transact(put("a", "1")).await.unwrap();
    let (_, revision) = store.range("").await.unwrap();
    etcd.process.kill();
    let asked = Instant::now();
    let error = store.transact(put("a", "2")).await.unwrap_err();
    assert!(asked.elapsed() < DEADLINE / 2, "{:?}", asked.elapsed());
    let text = error.to_string();
    assert!(
        matches!(error, ControlError::Unavailable(_)) && text.contains(&etcd.process.client),
        "{text}"
    );
    assert!(store.keep_alive(lease).await.is_err());
    assert!(store.changes("", revision).await.is_err());
    assert!(store.health().await[0].1.is_err());
    eventually("it leads no more", || async { !leads(&store) }).await;
    etcd.run().await;
    assert!(store.keep_alive(lease).await.unwrap());
    assert!(matches!(
        store.transact(put("a", "3")).await.unwrap(),
        Outcome::Committed(_)
    ));
    assert!(!store.changes("", revision).await.unwrap().0.is_empty());
    assert_eq!(store.health().await[0].1, Ok(()));
    eventually("it leads again", || async { leads(&store) }).await;
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_passed_over() {
    let etcd = Etcd::start().await;
    let dead = TcpListener::bind((etcd.host.as_str(), 0))
        .unwrap()
        .local_addr()
        .unwrap();
    // Takes connections and never answers.
    let silent = TcpListener::bind((etcd.host.as_str(), 0)).unwrap();
    let mut config = etcd.config(DEADLINE);
    config.endpoints.insert(0, dead.to_string());
    config.endpoints.insert(1, silent.local_addr().unwrap().to_string());
    let store = EtcdStore::new(config, Identity::new(NodeId::from_bytes([1; 16]), None));
    for value in ["1", "2"] {
        store.transact(put("a", value)).await.unwrap();
        assert_eq!(store.get("a").await.unwrap().unwrap().value, value);
    }
    let well: Vec<bool> = store.health().await.into_iter().map(|(_, said)| said.is_ok()).collect();
    assert_eq!(well, [false, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_lost_its_data_or_holds_another_cluster_is_neither_read_nor_written() {
    let mut etcd = Etcd::start().await;
    let cluster = ClusterId::from_bytes([7; 16]);
    let identity = Identity::new(NodeId::from_bytes([1; 16]), None);
    let store = EtcdStore::new(etcd.config(DEADLINE), identity.clone());
    store.transact(put("cluster", &encode_id(&cluster))).await.unwrap();
    identity.set_cluster(cluster).unwrap();
    store.transact(put("a", "1")).await.unwrap();
    let (rows, revision) = store.range("").await.unwrap();
    assert_eq!(rows.len(), 2);
    let refused = async |store: &EtcdStore, says: &str| {
        let compares = vec![Compare {
            key: "a".into(),
            revision: 0,
        }];
        let conflict = Transaction {
            compares,
            ..put("a", "2")
        };
        for error in [
            store.transact(put("a", "2")).await.unwrap_err(),
            store.transact(conflict).await.unwrap_err(),
            store.get("a").await.unwrap_err(),
            store.range("").await.unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                matches!(error, ControlError::Damaged(_)) && text.contains(says) && text.contains(&cluster.to_string()),
                "{text}"
            );
        }
    };
    etcd.process.lose_data();
    etcd.run().await;
    refused(&store, "went back").await;
    assert!(matches!(
        store.changes("", revision).await,
        Err(ControlError::Damaged(_))
    ));
    // A daemon that starts now knows no revision, but its cluster.
    let restarted = EtcdStore::new(etcd.config(DEADLINE), identity);
    refused(&restarted, "is not there").await;
    let other = etcd.store(9, DEADLINE);
    assert_eq!(other.range("").await.unwrap().0, [], "nothing was written");
    let another = encode_id(&ClusterId::from_bytes([8; 16]));
    other.transact(put("cluster", &another)).await.unwrap();
    refused(&restarted, "another cluster").await;
    other.transact(put("cluster", &encode_id(&cluster))).await.unwrap();
    assert_eq!(restarted.get("a").await.unwrap(), None);
}
