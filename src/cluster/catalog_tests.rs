//! The catalog on the in-memory store.

use super::{
    Catalog, CatalogError, ControlError, ControlStore, Event, LeaseId, MemoryStore, NewVolume, Outcome, Revision, Row,
    Transaction, VolumeChange,
};
use crate::volume::{ClusterId, Labels, Node, NodeId, Scope, VolumeRef, canonical_labels};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    canonical_labels(pairs.iter().copied(), Scope::Volume).unwrap()
}

fn name(text: &str) -> VolumeRef {
    VolumeRef::parse(text, "default").unwrap()
}

fn new(text: &str, replicas: &str) -> NewVolume {
    NewVolume {
        name: name(text),
        description: String::new(),
        size: 1 << 30,
        labels: labels(&[("storageos.com/replicas", replicas)]),
        node_selector: String::new(),
    }
}

async fn catalog(nodes: u8) -> Catalog {
    let catalog = Catalog::new(Arc::new(MemoryStore::default()));
    catalog.initialise(ClusterId::random()).await.unwrap();
    for i in 1..=nodes {
        let node = Node {
            address: format!("127.0.0.{i}:5703"),
            capacity: 1 << 40,
            free: 1 << 40,
            version: "1".into(),
            ..Node::sample(i)
        };
        catalog.register_node(&node).await.unwrap();
        let lease = catalog.store().grant(Duration::from_secs(60)).await.unwrap();
        assert!(catalog.set_live(node.id, lease).await.unwrap());
    }
    catalog
}

#[tokio::test]
async fn a_volume_is_placed_claimed_and_removed() {
    let catalog = catalog(3).await;
    let volume = catalog.create_volume(&new("v", "2"), 1).await.unwrap();
    let configuration = &volume.configuration;
    assert_eq!(
        (
            configuration.epoch,
            configuration.in_sync.len(),
            configuration.established
        ),
        (1, 3, 2)
    );
    assert!(configuration.check());
    let error = catalog.create_volume(&new("default/v", "0"), 1).await.unwrap_err();
    assert_eq!(error.to_string(), "volume `default/v` exists already");
    let error = catalog.create_volume(&new("w", "3"), 1).await.unwrap_err();
    assert!(matches!(&error, CatalogError::Placement(_)), "{error}");
    assert!(
        error.to_string().contains('4') && error.to_string().contains('3'),
        "{error}"
    );
    let error = catalog.create_volume(&new("other/w", "0"), 1).await.unwrap_err();
    assert_eq!(error.to_string(), "namespace `other` does not exist");

    let node = NodeId::from_bytes([2; 16]);
    let claimed = catalog.claim_mount(&name("v"), node, "/data", false).await.unwrap();
    assert_eq!(claimed.mounts, 1);
    for error in [
        catalog
            .claim_mount(&name("v"), NodeId::from_bytes([1; 16]), "/x", false)
            .await
            .unwrap_err(),
        catalog.remove_volume(&name("v"), false).await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("n2") && text.contains("/data"), "{text}");
    }
    catalog
        .release_mount(volume.id, Some(NodeId::from_bytes([1; 16])))
        .await
        .unwrap();
    assert!(catalog.volume(&name("v")).await.unwrap().mount.is_some());
    catalog.release_mount(volume.id, Some(node)).await.unwrap();
    catalog.remove_volume(&name("v"), false).await.unwrap();
    assert!(matches!(
        catalog.volume(&name("v")).await,
        Err(CatalogError::NotFound { .. })
    ));
    catalog.create_volume(&new("v", "0"), 1).await.unwrap();
}

#[tokio::test]
async fn configurations_change_only_from_the_expected_epoch() {
    let catalog = catalog(2).await;
    let volume = catalog.create_volume(&new("v", "1"), 1).await.unwrap();
    let mut next = volume.configuration.clone();
    next.epoch = 2;
    catalog.swap_configuration(volume.id, 1, &next, "a test").await.unwrap();
    let refused = catalog
        .swap_configuration(volume.id, 1, &next, "a test")
        .await
        .unwrap_err();
    assert!(matches!(refused, CatalogError::Epoch(now) if now.epoch == 2));
}

#[tokio::test]
async fn label_changes_are_checked_against_the_nodes_and_the_present_state() {
    let catalog = catalog(2).await;
    let volume = catalog.create_volume(&new("v", "1"), 1).await.unwrap();
    let wish = |pairs: &[(&str, &str)], force| VolumeChange {
        add: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        force,
        ..VolumeChange::default()
    };
    let refused = catalog
        .change_volume(&name("v"), &wish(&[("storageos.feature.replicas", "2")], false))
        .await;
    assert!(matches!(refused, Err(CatalogError::Placement(_))));
    // One replica lost, which is tolerated: `hard` would make the volume read-only.
    let soft = &[("storageos.com/failure.tolerance", "1")];
    catalog.change_volume(&name("v"), &wish(soft, false)).await.unwrap();
    let mut lost = volume.configuration.clone();
    let replica = *lost.in_sync.iter().find(|n| Some(**n) != lost.master).unwrap();
    lost.in_sync.remove(&replica);
    lost.lost.insert(replica, Timestamp::now());
    lost.epoch = 2;
    catalog.swap_configuration(volume.id, 1, &lost, "a test").await.unwrap();
    let hard = &[("storageos.com/failure.mode", "hard")];
    let refused = catalog.change_volume(&name("v"), &wish(hard, false)).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("1 of 1 replicas lost"), "{refused}");
    catalog.change_volume(&name("v"), &wish(hard, true)).await.unwrap();
    // It is not writable now: what does not change that is not refused for it.
    let patient = &[("storageos.com/io.timeout", "5m")];
    catalog.change_volume(&name("v"), &wish(patient, false)).await.unwrap();
    catalog
        .change_volume(&name("v"), &wish(&[("storageos.com/replicas", "2")], true))
        .await
        .unwrap();
    let back = &[("storageos.com/replicas", "1")];
    catalog.change_volume(&name("v"), &wish(back, false)).await.unwrap();
    let fewer = catalog
        .change_volume(
            &name("v"),
            &VolumeChange {
                remove: vec!["storageos.com/failure.tolerance".into()],
                ..wish(&[("storageos.com/replicas", "0")], false)
            },
        )
        .await
        .unwrap();
    assert_eq!((fewer.configuration.established, fewer.configuration.epoch), (0, 3));
}

#[tokio::test]
async fn names_of_nodes_are_unique_and_operators_settings_are_kept() {
    let catalog = catalog(1).await;
    let view = catalog.view().await.unwrap();
    let mut node = (**view.node("n1").unwrap()).clone();
    catalog
        .update_node(node.id, |n| {
            n.cordoned = true;
            Ok(())
        })
        .await
        .unwrap();
    node.address = "127.0.0.9:5703".into();
    let renewed = catalog.register_node(&node).await.unwrap();
    assert!(renewed.cordoned && renewed.address == "127.0.0.9:5703");
    node.id = NodeId::from_bytes([9; 16]);
    let refused = catalog.register_node(&node).await.unwrap_err();
    assert_eq!(refused.to_string(), "node `n1` exists already");
}

#[tokio::test]
async fn a_namespace_with_volumes_stays() {
    let catalog = catalog(1).await;
    let mut namespace = (*catalog.view().await.unwrap().namespaces["default"]).clone();
    namespace.name = "apps".into();
    catalog.create_namespace(&namespace).await.unwrap();
    assert!(matches!(
        catalog.create_namespace(&namespace).await,
        Err(CatalogError::Exists { .. })
    ));
    catalog.create_volume(&new("apps/v", "0"), 1).await.unwrap();
    assert!(matches!(
        catalog.remove_namespace("apps").await,
        Err(CatalogError::InUse(_))
    ));
    catalog.remove_volume(&name("apps/v"), false).await.unwrap();
    catalog.remove_namespace("apps").await.unwrap();
    assert!(matches!(
        catalog.remove_namespace("default").await,
        Err(CatalogError::InUse(_))
    ));
}

#[tokio::test]
async fn a_watched_view_follows_and_sees_a_lease_end() {
    let catalog = catalog(1).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut view = catalog.watch(stop.clone());
    let lease = catalog.store().grant(Duration::from_millis(200)).await.unwrap();
    let node = NodeId::from_bytes([7; 16]);
    assert!(catalog.set_live(node, lease).await.unwrap());
    let deadline = Duration::from_secs(30);
    let seen = view.wait_for(|view| view.live.contains(&node));
    tokio::time::timeout(deadline, seen).await.unwrap().unwrap();
    let gone = view.wait_for(|view| !view.live.contains(&node));
    tokio::time::timeout(deadline, gone).await.unwrap().unwrap();
    assert!(!catalog.set_live(node, lease).await.unwrap());
    catalog.create_volume(&new("v", "0"), 1).await.unwrap();
    let volume = view.wait_for(|view| view.volume(&name("v")).is_some());
    tokio::time::timeout(deadline, volume).await.unwrap().unwrap();
    stop.cancel();
}

/// A store that loses the answer of every second transaction and repeats the transaction, as a store over a network does.
#[derive(Default)]
struct Forgetful {
    store: MemoryStore,
    lose: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl ControlStore for Forgetful {
    async fn get(&self, key: &str) -> Result<Option<Row>, ControlError> {
        self.store.get(key).await
    }
    async fn range(&self, prefix: &str) -> Result<(Vec<Row>, Revision), ControlError> {
        self.store.range(prefix).await
    }
    async fn transact(&self, transaction: Transaction) -> Result<Outcome, ControlError> {
        if !self.lose.fetch_not(std::sync::atomic::Ordering::SeqCst) {
            self.store.transact(transaction.clone()).await?;
        }
        self.store.transact(transaction).await
    }
    async fn changes(&self, prefix: &str, after: Revision) -> Result<(Vec<Event>, Revision), ControlError> {
        self.store.changes(prefix, after).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, ControlError> {
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), ControlError> {
        self.store.revoke(lease).await
    }
    fn leadership(&self) -> tokio::sync::watch::Receiver<bool> {
        self.store.leadership()
    }
}

#[tokio::test]
async fn an_operation_whose_answer_was_lost_is_not_refused_by_its_own_first_attempt() {
    let store = Arc::new(Forgetful::default());
    let catalog = Catalog::new(store.clone());
    let lose = || store.lose.store(false, std::sync::atomic::Ordering::SeqCst);
    lose();
    catalog.initialise(ClusterId::random()).await.unwrap();
    let mut namespace = (*catalog.view().await.unwrap().namespaces["default"]).clone();
    namespace.name = "apps".into();
    lose();
    catalog.create_namespace(&namespace).await.unwrap();
    lose();
    catalog.remove_namespace("apps").await.unwrap();
    let node = Node::sample(1);
    lose();
    catalog.register_node(&node).await.unwrap();
    let lease = catalog.store().grant(Duration::from_secs(60)).await.unwrap();
    lose();
    assert!(catalog.set_live(node.id, lease).await.unwrap());
    lose();
    let volume = catalog.create_volume(&new("v", "0"), 1).await.unwrap();
    assert_eq!(catalog.volume(&name("v")).await.unwrap(), volume);
    lose();
    let claimed = catalog.claim_mount(&name("v"), node.id, "/m", false).await.unwrap();
    assert_eq!(claimed.mounts, 1);
    let mut next = volume.configuration.clone();
    next.epoch += 1;
    lose();
    catalog.swap_configuration(volume.id, 1, &next, "a test").await.unwrap();
    lose();
    catalog.release_mount(volume.id, Some(node.id)).await.unwrap();
    lose();
    catalog.set_formatted(volume.id).await.unwrap();
    lose();
    assert_eq!(catalog.remove_volume(&name("v"), false).await.unwrap().id, volume.id);
    assert!(catalog.remove_volume(&name("v"), false).await.is_err());
}

#[tokio::test]
async fn only_an_offline_node_without_copies_is_deleted_and_it_stays_so() {
    let catalog = catalog(3).await;
    let volume = catalog.create_volume(&new("v", "1"), 1).await.unwrap();
    let copies = volume.configuration.in_sync.clone();
    let [holder, free] = [true, false].map(|holds| {
        let mut ids = (1..=3).map(|i| NodeId::from_bytes([i; 16]));
        ids.find(|id| copies.contains(id) == holds).unwrap()
    });
    let die = async |id: NodeId| {
        let row = catalog.store().get(&format!("live/{id}")).await.unwrap().unwrap();
        catalog.store().revoke(row.lease.unwrap()).await.unwrap();
    };
    let refused = async |id| catalog.delete_node(id).await.unwrap_err().to_string();
    assert!(refused(free).await.contains("it is online"));
    die(holder).await;
    assert!(refused(holder).await.contains("holds copies of default/v"));
    // A lost copy is no obstacle while another one is online, and is when none is.
    let mut lost = volume.configuration.clone();
    lost.epoch += 1;
    lost.in_sync.remove(&holder);
    lost.lost.insert(holder, Timestamp::now());
    lost.master = lost.in_sync.first().copied();
    catalog.swap_configuration(volume.id, 1, &lost, "a test").await.unwrap();
    let other = lost.master.unwrap();
    die(other).await;
    assert!(refused(holder).await.contains("may be all that is left"));
    let lease = catalog.store().grant(Duration::from_secs(60)).await.unwrap();
    catalog.set_live(other, lease).await.unwrap();
    let record = catalog.view().await.unwrap().nodes[&holder].clone();
    catalog.delete_node(holder).await.unwrap();
    let again = catalog.register_node(&record).await.unwrap_err();
    assert!(
        matches!(&again, CatalogError::Deleted(name) if *name == record.name),
        "{again}"
    );
    let fresh = Node {
        id: NodeId::random(),
        ..Node::clone(&record)
    };
    catalog.register_node(&fresh).await.unwrap();
    assert!(matches!(
        catalog.delete_node(holder).await,
        Err(CatalogError::NotFound { .. })
    ));
}
