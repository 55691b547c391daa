//! The control store as simulated nodes reach it: behind links that can be cut, with answers that are late or lost.
//!
//! The store is linearizable, as Raft and etcd are. A call that is not answered may have been done, or may be done later. One node at
//! a time leads as far as the store knows; one that is cut off goes on believing that it does.

use super::network::{Network, chance};
use crate::cluster::{ControlError, ControlStore, Event, LeaseId, MemoryStore, Outcome, Revision, Row, Transaction};
use crate::exec::{Host, World, block_on, time};
use async_trait::async_trait;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where the store is.
pub(super) const CONTROL: Host = 100;
/// How long a call waits for its answer.
const LIMIT: Duration = Duration::from_secs(2);
/// The same, for a watch.
const WATCH: Duration = Duration::from_secs(5);
/// How long a leader may be away.
const LEADER: Duration = Duration::from_millis(700);

/// See the module's text.
pub(super) struct Plane {
    pub(super) store: Arc<MemoryStore>,
    world: World,
    pub(super) network: Arc<Network>,
    /// It answers nobody.
    pub(super) down: AtomicBool,
    /// Answers are lost now and then, and calls done late.
    pub(super) unreliable: AtomicBool,
    /// A sabotage: a change of a volume is acknowledged two seconds before it is done.
    pub(super) lies: AtomicBool,
    seats: Mutex<BTreeMap<Host, watch::Sender<bool>>>,
    /// Stopped hosts cannot lead.
    pub(super) stopped: Mutex<BTreeSet<Host>>,
}

/// The store as a process of a node sees it.
pub(super) struct Seat {
    host: Host,
    plane: Arc<Plane>,
    leads: watch::Receiver<bool>,
}

impl Plane {
    pub(super) fn new(world: &World, network: &Arc<Network>) -> Arc<Self> {
        let plane = Arc::new(Self {
            store: Arc::default(),
            world: world.clone(),
            network: network.clone(),
            down: AtomicBool::new(false),
            unreliable: AtomicBool::new(false),
            lies: AtomicBool::new(false),
            seats: Mutex::default(),
            stopped: Mutex::default(),
        });
        let electing = plane.clone();
        world.spawn_on(CONTROL, "leader", move || block_on(electing.elect()));
        plane
    }

    /// A process's way to the store.
    pub(super) fn seat(self: &Arc<Self>, host: Host) -> Arc<Seat> {
        let (sender, leads) = watch::channel(false);
        self.seats.lock().insert(host, sender);
        Arc::new(Seat {
            host,
            plane: self.clone(),
            leads,
        })
    }

    /// A process of the host is no more.
    pub(super) fn leave(&self, host: Host) {
        self.seats.lock().remove(&host);
    }

    fn reaches(&self, host: Host) -> bool {
        !self.network.is_cut(host, CONTROL) && !self.network.is_cut(CONTROL, host)
    }

    async fn elect(&self) {
        let mut leader: Option<Host> = None;
        let mut away = Duration::ZERO;
        let step = Duration::from_millis(100);
        loop {
            time::sleep(step).await;
            let seats = self.seats.lock();
            let can =
                |host: Host| seats.contains_key(&host) && self.reaches(host) && !self.stopped.lock().contains(&host);
            if leader.is_some_and(can) {
                away = Duration::ZERO;
            } else {
                away += step;
                if away >= LEADER {
                    let able: Vec<Host> = seats.keys().copied().filter(|host| can(*host)).collect();
                    leader = able.get(chance(able.len() as u64) as usize).copied();
                    away = Duration::ZERO;
                }
            }
            for (host, seat) in seats.iter().filter(|(host, _)| self.reaches(**host)) {
                seat.send_if_modified(|leads| std::mem::replace(leads, leader == Some(*host)) != *leads);
            }
        }
    }
}

impl Seat {
    async fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(Arc<MemoryStore>) -> BoxFuture<'static, Result<T, ControlError>> + Send + 'static,
    ) -> Result<T, ControlError> {
        let (sender, receiver) = oneshot::channel();
        let (plane, host) = (self.plane.clone(), self.host);
        let world = plane.world.clone();
        world.spawn_on(CONTROL, "call", move || {
            block_on(async {
                let never = CancellationToken::new();
                if !plane.network.carry(host, CONTROL, &never).await || plane.down.load(Ordering::SeqCst) {
                    return;
                }
                let unreliable = plane.unreliable.load(Ordering::SeqCst);
                if unreliable && chance(15) == 0 {
                    time::sleep(Duration::from_millis(chance(4000))).await;
                }
                let answer = work(plane.store.clone()).await;
                if unreliable && chance(15) == 0 {
                    return;
                }
                if plane.network.carry(CONTROL, host, &never).await {
                    let _ = sender.send(answer);
                }
            });
        });
        let unavailable = || ControlError::Unavailable("the control plane does not answer".to_owned());
        match time::timeout(limit, receiver).await {
            Ok(Ok(answer)) => answer,
            // It is not told that there will be none.
            Ok(Err(_)) => {
                time::sleep(limit).await;
                Err(unavailable())
            }
            Err(_) => Err(unavailable()),
        }
    }
}

#[async_trait]
impl ControlStore for Seat {
    async fn get(&self, key: &str) -> Result<Option<Row>, ControlError> {
        let key = key.to_owned();
        self.ask(LIMIT, |store| Box::pin(async move { store.get(&key).await }))
            .await
    }

    async fn range(&self, prefix: &str) -> Result<(Vec<Row>, Revision), ControlError> {
        let prefix = prefix.to_owned();
        self.ask(LIMIT, |store| Box::pin(async move { store.range(&prefix).await }))
            .await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, ControlError> {
        if self.plane.lies.load(Ordering::SeqCst) && transaction.changes.len() == 1 {
            let (store, world) = (self.plane.store.clone(), self.plane.world.clone());
            world.spawn_on(CONTROL, "late", move || {
                block_on(async {
                    time::sleep(Duration::from_secs(2)).await;
                    let _ = store.transact(transaction).await;
                });
            });
            return Ok(Outcome::Committed(0));
        }
        self.ask(LIMIT, |store| {
            Box::pin(async move { store.transact(transaction).await })
        })
        .await
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<(Vec<Event>, Revision), ControlError> {
        let prefix = prefix.to_owned();
        self.ask(WATCH, move |store| {
            Box::pin(async move { store.changes(&prefix, after).await })
        })
        .await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError> {
        self.ask(LIMIT, move |store| Box::pin(async move { store.grant(ttl).await }))
            .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, ControlError> {
        self.ask(LIMIT, move |store| {
            Box::pin(async move { store.keep_alive(lease).await })
        })
        .await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ControlError> {
        self.ask(LIMIT, move |store| Box::pin(async move { store.revoke(lease).await }))
            .await
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }
}
