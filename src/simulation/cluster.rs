//! A simulated cluster with one volume: its nodes' processes, and what can happen to them.

use super::control::{CONTROL, Plane};
use super::disk::{Disk, Mounted};
use super::network::{Network, node};
use crate::cluster::{Catalog, NewVolume, Timing, View, VolumeChange, control, keep_node_alive};
use crate::exec::{Host, Runtime, World, block_on, task, thread, time};
use crate::node::control::Control;
use crate::node::keeper::{Keepers, Serving};
use crate::node::records::{Addresses, Records};
use crate::node::route::Route;
use crate::replication::{Copies, Environment, Options, ReplicaHost};
use crate::rpc::Identity;
use crate::volume::{ClusterId, Labels, Node, NodeId, Volume, VolumeId, VolumeLabels, VolumeRef};
use futures::channel::oneshot;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// As the daemon's default.
const LEASE: Duration = Duration::from_secs(3);
const SIZE: u64 = 16 << 20;
const ROUND: Duration = Duration::from_secs(5);

/// A daemon.
pub(super) struct Process {
    pub(super) serving: Arc<Serving>,
    pub(super) catalog: Catalog,
}

impl Process {
    pub(super) fn route(&self) -> Route {
        Route {
            node: self.serving.node,
            host: self.serving.host.clone(),
            environment: self.serving.environment.clone(),
            control: self.serving.control.clone(),
        }
    }
}

/// See the module's text.
pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) network: Arc<Network>,
    pub(super) plane: Arc<Plane>,
    pub(super) volume: VolumeId,
    name: VolumeRef,
    pub(super) disks: BTreeMap<Host, Arc<Disk>>,
    processes: Mutex<BTreeMap<Host, Arc<Process>>>,
    cluster: ClusterId,
}

fn timing() -> Timing {
    Timing {
        grace: Duration::from_secs(6),
        ..Timing::default()
    }
}

impl Cluster {
    /// Nodes 1 to `nodes`, and a volume with these labels.
    pub(super) fn new(world: &World, nodes: Host, labels: Labels) -> Arc<Self> {
        let network = Network::new(world);
        world.give(network.clone());
        let plane = Plane::new(world, &network);
        let catalog = Catalog::new(plane.store.clone());
        let cluster = ClusterId::from_bytes([9; 16]);
        let name = VolumeRef {
            namespace: "default".to_owned(),
            name: "v".to_owned(),
        };
        let new = NewVolume {
            name: name.clone(),
            description: String::new(),
            size: SIZE,
            labels,
            node_selector: String::new(),
        };
        let volume = block_on(async {
            catalog.initialise(cluster).await.unwrap();
            for host in 1..=nodes {
                let mut record = Node::sample(host as u8);
                record.address = format!("n{host}:5705");
                record.capacity = 1 << 40;
                record.free = 1 << 40;
                catalog.register_node(&record).await.unwrap();
            }
            let lease = catalog.store().grant(Duration::from_secs(5)).await.unwrap();
            for host in 1..=nodes {
                catalog.set_live(node(host), lease).await.unwrap();
            }
            catalog
                .create_volume(&new, crate::exec::random::random())
                .await
                .unwrap()
        });
        let cluster = Arc::new(Self {
            world: world.clone(),
            disks: (1..=nodes).map(|host| (host, Disk::new(host, &network))).collect(),
            network,
            plane,
            volume: volume.id,
            name,
            processes: Mutex::default(),
            cluster,
        });
        for host in 1..=nodes {
            cluster.start(host);
        }
        cluster
    }

    pub(super) fn hosts(&self) -> Vec<Host> {
        self.disks.keys().copied().collect()
    }

    pub(super) fn process(&self, host: Host) -> Option<Arc<Process>> {
        self.processes.lock().get(&host).cloned()
    }

    /// The volume's record, as it is.
    pub(super) fn record(&self) -> Volume {
        let catalog = Catalog::new(self.plane.store.clone());
        // The store is in memory: nothing of it waits.
        block_on(catalog.volume_by_id(self.volume)).unwrap().unwrap()
    }

    /// Starts a node's daemon.
    pub(super) fn start(self: &Arc<Self>, host: Host) {
        let (sender, receiver) = oneshot::channel();
        let cluster = self.clone();
        self.world.spawn_on(host, "daemon", move || {
            let _ = sender.send(cluster.boot(host));
        });
        let process = block_on(receiver).unwrap();
        self.processes.lock().insert(host, Arc::new(process));
    }

    fn boot(&self, host: Host) -> Process {
        let mounted = Arc::new(Mounted {
            disk: self.disks[&host].clone(),
            life: Mutex::new(0),
        });
        let identity = Identity::new(node(host), Some(self.cluster));
        let data = ReplicaHost::new(identity, mounted.clone());
        *mounted.life.lock() = self.network.born(host, data.clone());
        let catalog = Catalog::new(self.plane.seat(host));
        let stop = CancellationToken::new();
        let view = catalog.watch(stop.clone());
        let control_plane = Control::new(catalog.clone(), view.clone());
        let serving = Arc::new(Serving {
            node: node(host),
            host: data,
            environment: Environment {
                config: Arc::new(Records(control_plane.clone())),
                peers: Arc::new(Addresses(control_plane.clone())),
                observer: Arc::new(()),
                runtime: Runtime::World,
            },
            options: Options::default(),
            control: control_plane,
            problems: Arc::default(),
            activations: Arc::default(),
        });
        task::spawn(keep_node_alive(
            catalog.clone(),
            node(host),
            LEASE,
            Arc::default(),
            stop.clone(),
        ));
        task::spawn(control(catalog.clone(), view.clone(), timing(), stop.clone()));
        task::spawn(rounds(serving.clone(), mounted, view, stop));
        Process { serving, catalog }
    }

    /// Ends a node's processes as SIGKILL does, or as the end of its power.
    pub(super) fn kill(self: &Arc<Self>, host: Host, power: bool) {
        self.processes.lock().remove(&host);
        self.plane.leave(host);
        self.network.died(host, !power);
        self.plane.stopped.lock().remove(&host);
        self.world.kill(host);
        while self.world.fibers(host) > 0 {
            thread::sleep(Duration::from_micros(1));
        }
        if power {
            self.disks[&host].lose_power();
        }
    }

    pub(super) fn stop(&self, host: Host) {
        self.plane.stopped.lock().insert(host);
        self.world.stop(host);
    }

    pub(super) fn resume(&self, host: Host) {
        self.plane.stopped.lock().remove(&host);
        self.world.resume(host);
    }

    /// Cuts a node off from all others and the control plane: in one direction or both.
    pub(super) fn cut_off(&self, host: Host, out: bool, into: bool) {
        for other in self.hosts().into_iter().chain([CONTROL]).filter(|other| *other != host) {
            if out {
                self.network.cut(host, other);
            }
            if into {
                self.network.cut(other, host);
            }
        }
    }

    /// Asks for another number of replicas, as an operator does; the number that is wanted then.
    pub(super) fn ask_for_replicas(&self, replicas: u64) -> usize {
        let catalog = Catalog::new(self.plane.store.clone());
        let wish = VolumeChange {
            add: [("storageos.com/replicas".to_owned(), replicas.to_string())].into(),
            ..VolumeChange::default()
        };
        // It may be refused: too many copies are away.
        let _ = block_on(catalog.change_volume(&self.name, &wish));
        VolumeLabels::of(&self.record().labels).replicas.into()
    }

    /// Has a node emptied.
    pub(super) fn drain(&self, host: Host) {
        self.set_drained(host, true);
    }

    /// Nodes may have copies again.
    pub(super) fn undrain(&self) {
        for host in self.hosts() {
            self.set_drained(host, false);
        }
    }

    fn set_drained(&self, host: Host, drained: bool) {
        let catalog = Catalog::new(self.plane.store.clone());
        let change = catalog.update_node(node(host), |node| {
            node.drained = drained;
            Ok(())
        });
        block_on(change).unwrap();
    }

    /// Whether a node is stopped or cannot reach the control plane.
    pub(super) fn is_away(&self, host: Host) -> bool {
        let cut = self.network.is_cut(host, CONTROL) || self.network.is_cut(CONTROL, host);
        cut || self.plane.stopped.lock().contains(&host)
    }

    /// Whether the volume has all copies in sync and nothing is under way.
    pub(super) fn settled(&self, copies: usize) -> bool {
        let configuration = self.record().configuration;
        configuration.in_sync.len() == copies
            && configuration.syncing.is_empty()
            && configuration.lost.is_empty()
            && configuration.master.is_some_and(|master| self.serves(master))
    }

    fn serves(&self, master: NodeId) -> bool {
        let process = self.process(Host::from(master.as_bytes()[0]));
        let master = process.and_then(|process| process.serving.host.master(self.volume));
        master.is_some_and(|master| {
            let status = master.status();
            status.configuration == self.record().configuration
        })
    }
}

/// Has done what the daemon's `Volumes` has done: keepers, and the removal of copies.
async fn rounds(
    serving: Arc<Serving>,
    mounted: Arc<Mounted>,
    mut view: watch::Receiver<Arc<View>>,
    stop: CancellationToken,
) {
    let keepers = Keepers::new(serving.clone(), stop);
    loop {
        let now = view.borrow_and_update().clone();
        if now.revision > 0 {
            keepers.keep_masters(&now);
            if let Ok(copies) = mounted.list() {
                serving.remove_unwanted(&now, copies).await;
            }
        }
        let _ = time::timeout(ROUND, view.changed()).await;
    }
}
