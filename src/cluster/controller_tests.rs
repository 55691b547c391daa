//! The controller on the in-memory store: nodes die and return, the records follow.

use super::*;
use crate::cluster::{LeaseId, MemoryStore, NewVolume, VolumeChange};
use crate::volume::{ClusterId, Labels, Node, NodeId, Scope, Volume, VolumeRef, canonical_labels};

const DEADLINE: Duration = Duration::from_secs(30);

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn name() -> VolumeRef {
    "v".parse().unwrap()
}

struct World {
    catalog: Catalog,
    leases: Vec<LeaseId>,
    view: watch::Receiver<Arc<View>>,
    stop: CancellationToken,
}

impl World {
    /// Live nodes and a volume whose master is on node 1; short waiting times.
    async fn new(nodes: u8, replicas: &str, grace: Duration) -> Self {
        let catalog = Catalog::new(Arc::new(MemoryStore::default()));
        catalog.initialise(ClusterId::random()).await.unwrap();
        let stop = CancellationToken::new();
        let view = catalog.watch(stop.clone());
        let mut world = Self {
            catalog,
            leases: Vec::new(),
            view,
            stop,
        };
        for n in 1..=nodes {
            world.start_node(n).await;
        }
        let labels = [
            ("storageos.com/replicas", replicas),
            ("storageos.com/hint.master", "n1"),
        ];
        let new = NewVolume {
            name: name(),
            description: String::new(),
            size: 1 << 30,
            labels: canonical_labels(labels, Scope::Volume).unwrap(),
            node_selector: String::new(),
        };
        let volume = world.catalog.create_volume(&new, 1).await.unwrap();
        assert_eq!(volume.configuration.master, Some(id(1)));
        let timing = Timing {
            grace,
            drop_after: Duration::ZERO,
            retry: Duration::ZERO,
            settle: Duration::ZERO,
        };
        tokio::spawn(control(
            world.catalog.clone(),
            world.view.clone(),
            timing,
            world.stop.clone(),
        ));
        world
    }

    async fn start_node(&mut self, n: u8) {
        let node = Node::sample(n);
        self.catalog.register_node(&node).await.unwrap();
        let lease = self.catalog.store().grant(Duration::from_secs(600)).await.unwrap();
        assert!(self.catalog.set_live(node.id, lease).await.unwrap());
        self.leases.resize(self.leases.len().max(n.into()), lease);
        self.leases[usize::from(n) - 1] = lease;
    }

    async fn kill_node(&self, n: u8) {
        let lease = self.leases[usize::from(n) - 1];
        self.catalog.store().revoke(lease).await.unwrap();
    }

    /// Waits until the volume is as described.
    async fn until(&mut self, what: &str, done: impl Fn(&Volume) -> bool) -> Volume {
        let wait = self.view.wait_for(|view| view.volume(&name()).is_some_and(|v| done(v)));
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(view) => (**view.unwrap().volume(&name()).unwrap()).clone(),
            Err(_) => panic!("not {what}: {:?}", self.catalog.volume(&name()).await),
        }
    }

    /// What a master does when a copy has caught up.
    async fn synced(&self, node: NodeId) {
        let volume = self.catalog.volume(&name()).await.unwrap();
        let mut new = volume.configuration.clone();
        assert!(new.syncing.remove(&node));
        new.in_sync.insert(node);
        new.epoch += 1;
        let (id, epoch) = (volume.id, volume.configuration.epoch);
        self.catalog
            .swap_configuration(id, epoch, &new, "synced")
            .await
            .unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn a_dead_master_is_replaced_and_its_copy_synced_when_it_returns() {
    let mut world = World::new(3, "2", Duration::from_secs(600)).await;
    world.kill_node(1).await;
    let volume = world.until("promoted", |v| v.configuration.master != Some(id(1))).await;
    assert_eq!(volume.configuration.in_sync, [id(2), id(3)].into());
    assert!(volume.configuration.lost.contains_key(&id(1)));
    world.start_node(1).await;
    world
        .until("syncing", |v| v.configuration.syncing.contains(&id(1)))
        .await;
    world.synced(id(1)).await;
    let volume = world.until("whole", |v| v.configuration.in_sync.len() == 3).await;
    assert_ne!(volume.configuration.master, Some(id(1)));
    assert!(volume.configuration.lost.is_empty());
}

#[tokio::test]
async fn a_replica_that_stays_away_is_replaced_on_another_node() {
    let mut world = World::new(3, "1", Duration::ZERO).await;
    let volume = world.until("there", |_| true).await;
    let of = |volume: &Volume| volume.configuration.in_sync.iter().find(|n| **n != id(1)).copied();
    let replica = of(&volume).unwrap();
    let other = if replica == id(2) { id(3) } else { id(2) };
    world.kill_node(replica.as_bytes()[0]).await;
    let volume = world
        .until("being replaced", |v| v.configuration.syncing == [other].into())
        .await;
    assert!(volume.configuration.lost.contains_key(&replica));
    assert_eq!(volume.configuration.master, Some(id(1)));
    world.synced(other).await;
    let volume = world.until("replaced", |v| v.configuration.lost.is_empty()).await;
    assert_eq!(volume.configuration.in_sync, [id(1), other].into());
}

#[tokio::test]
async fn a_changed_number_of_replicas_is_carried_out() {
    let mut world = World::new(3, "0", Duration::from_secs(600)).await;
    let set = |replicas: &str| VolumeChange {
        add: Labels::from([("storageos.com/replicas".to_owned(), replicas.to_owned())]),
        ..VolumeChange::default()
    };
    world.catalog.change_volume(&name(), &set("2")).await.unwrap();
    world.until("syncing", |v| v.configuration.syncing.len() == 2).await;
    world.synced(id(2)).await;
    world.synced(id(3)).await;
    world.until("whole", |v| v.configuration.in_sync.len() == 3).await;
    world.catalog.change_volume(&name(), &set("0")).await.unwrap();
    let alone = |v: &Volume| v.configuration.in_sync == [id(1)].into() && v.configuration.established == 0;
    let volume = world.until("alone again", alone).await;
    assert_eq!(volume.configuration.master, Some(id(1)));
}

#[tokio::test]
async fn the_mount_of_a_dead_node_is_released_and_a_later_one_is_not() {
    let mut world = World::new(2, "0", Duration::ZERO).await;
    let claimed = world.catalog.claim_mount(&name(), id(2), "/m", false).await.unwrap();
    let stale = Action::Release {
        volume: claimed.id,
        node: id(2),
        mounts: claimed.mounts,
    };
    world.until("mounted", |v| v.mount.is_some()).await;
    world.kill_node(2).await;
    world.until("released", |v| v.mount.is_none()).await;
    world.start_node(2).await;
    world.catalog.claim_mount(&name(), id(2), "/m", false).await.unwrap();
    let late = act(&world.catalog, &stale).await;
    assert!(matches!(late, Err(CatalogError::Conflict(_))), "{late:?}");
}
