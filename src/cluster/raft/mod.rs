//! The embedded control store: a key-value state machine replicated by Raft (openraft) among the cluster's nodes.
//!
//! Every node holds a Raft replica, voters and learners alike, so every node can follow the records on its own; changes and
//! linearizable reads go to the leader. The leader keeps the leases (`leader`): a keepalive is a message and a note in its memory,
//! only grants and ends are commands in the log. It also looks after who votes.
//!
//! # Incarnations
//! When a majority of the voters is lost for good, an operator makes a survivor's replica the control plane ([`RaftStore::recover`]). That one is a new
//! incarnation: it travels in all of Raft's messages, so a member of an earlier one is told apart, empties its replica and joins again. The
//! protocol is then started anew inside the daemon ([`Core`]); everything else goes on.
//!
//! # Failures
//! Without a majority of the voters nothing changes and linearizable reads fail, with an error that says so; what a node knows
//! already it keeps. A proposal whose connection broke may have happened: it is repeated, and the catalog's operations
//! recognise their own first attempt.

mod disk;
mod follower;
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::cluster) mod fuzzing;
mod leader;
mod machine;
mod network;
mod pulse;
mod recover;
mod revive;
mod service;
mod standing;
#[cfg(test)]
mod tests;
mod types;

pub use recover::RecoverError;
pub use service::ControlStatus;

use super::catalog::{deleted_text, grave_name};
use super::kv::{Answer, Command};
use super::records::{Key, decode};
use super::store::{ControlError, ControlStore, Event, LeaseId, Outcome, Revision, Row, Transaction};
use super::trust::{Issuer, issuer_of};
use crate::rpc::{self, Connection, Identity, Payload, within};
use crate::volume::{ClusterId, Node, NodeId};
use async_trait::async_trait;
use disk::Disk;
use leader::Leases;
use machine::Machine;
use network::Peers;
use openraft::error::{ForwardToLeader, RaftError};
use openraft::{BasicNode, ChangeMembers, Config, Membership, ServerState, SnapshotPolicy, TryAsRef};
use parking_lot::{Mutex, RwLock};
use pulse::Pulse;
use serde::{Serialize, de::DeserializeOwned};
use service::{Control, ControlClient, Incarnation, Refusal, Standing};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tarpc::context::Context;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::Raft;

/// Requests served at once on a connection.
const MAX_REQUESTS: usize = 128;
/// Longest wait of [`ControlStore::changes`].
const WATCH_WAIT: Duration = Duration::from_secs(2);
/// Pause between attempts to reach the leader.
const RETRY: Duration = Duration::from_millis(100);

/// Times of the control plane.
#[derive(Clone, Copy, Debug)]
pub struct RaftSettings {
    /// Between the leader's heartbeats.
    pub heartbeat: Duration,
    /// Part of the silence after which a voter stands for election: it is between three and four times this, and no voter elects another
    /// leader in the first two.
    pub election: Duration,
    /// How long a request tries to reach a leader.
    pub deadline: Duration,
    /// How long a voter may be dead before another node votes in its place.
    pub voter_grace: Duration,
}

impl Default for RaftSettings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election: Duration::from_millis(500),
            deadline: Duration::from_secs(10),
            voter_grace: Duration::from_secs(10),
        }
    }
}

/// The control store of one node. Clones share it.
#[derive(Clone)]
pub struct RaftStore {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    address: String,
    identity: Identity,
    settings: RaftSettings,
    core: RwLock<Arc<Core>>,
    config: Arc<Config>,
    /// Held by whoever changes members or voters, which takes two steps: another change between them would stop the second.
    members_change: tokio::sync::Mutex<()>,
    /// One at a time stops the protocol and starts it anew.
    restarting: tokio::sync::Mutex<()>,
    peers: Peers,
    leases: Mutex<Leases>,
    /// Nodes that answered this leader's last ping.
    answering: Mutex<BTreeMap<NodeId, Instant>>,
    /// Nodes that said that they are about to stop, and when: they get no vote for a while.
    retiring: Mutex<BTreeMap<NodeId, Instant>>,
    /// Why this node is no member of the cluster any more.
    expelled: OnceLock<String>,
    /// When a leader last sent something.
    heard: Mutex<Option<Instant>>,
    /// Whether this process stood still.
    pulse: Mutex<Pulse>,
    leader: watch::Sender<bool>,
    /// Belongs to a cluster: made one, joined one, or did so before the last restart.
    member: AtomicBool,
    stop: CancellationToken,
}

/// The running protocol, of one incarnation.
struct Core {
    raft: Raft,
    machine: Machine,
    disk: Disk,
    incarnation: Incarnation,
}

impl Core {
    async fn start(
        node: NodeId,
        config: Arc<Config>,
        peers: &Peers,
        disk: Disk,
        machine: Machine,
    ) -> Result<Self, String> {
        let incarnation = disk.incarnation().map_err(|e| e.to_string())?;
        let raft = Raft::new(node, config, peers.of(incarnation), disk.clone(), machine.clone());
        let raft = raft.await.map_err(|e| e.to_string())?;
        Ok(Self {
            raft,
            machine,
            disk,
            incarnation,
        })
    }
}

impl RaftStore {
    /// Opens the control store in a directory (made if missing). `address` is this node's port for its peers. Until [`Self::initialise`]
    /// or [`Self::join`] it is in no cluster; after a restart it goes on as what it was.
    ///
    /// # Errors
    /// [`ControlError::Damaged`] names the file and what to do.
    pub async fn open(
        directory: &Path,
        identity: Identity,
        address: &str,
        settings: RaftSettings,
    ) -> Result<Self, ControlError> {
        let disk = Disk::open(directory)?;
        let election = u64::try_from(settings.election.as_millis()).unwrap_or(u64::MAX / 4);
        let config = Config {
            cluster_name: "storageos".into(),
            heartbeat_interval: u64::try_from(settings.heartbeat.as_millis()).unwrap_or(200),
            election_timeout_min: election,
            election_timeout_max: election * 2,
            max_payload_entries: 64,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(2000),
            max_in_snapshot_log_to_keep: 500,
            snapshot_max_chunk_size: 1 << 20,
            install_snapshot_timeout: 5000,
            ..Config::default()
        };
        let damaged = |e: &dyn std::fmt::Display| {
            ControlError::Damaged(format!(
                "the control store in {} cannot be used: {e}",
                directory.display()
            ))
        };
        let config = Arc::new(config.validate().map_err(|e| damaged(&e))?);
        let peers = Peers::new(identity.clone());
        // Before it votes or leads: another control plane may have begun while this node was away.
        standing::give_way_at_start(&disk, &peers, identity.node())
            .await
            .map_err(|e| damaged(&e))?;
        let machine = Machine::open(disk.clone())?;
        let core = Core::start(identity.node(), config.clone(), &peers, disk, machine).await;
        let core = core.map_err(|e| damaged(&e))?;
        let member = core.raft.is_initialized().await.map_err(|e| damaged(&e))?
            || !core.disk.rejoin().map_err(|e| damaged(&e))?.is_empty();
        let inner = Arc::new(Inner {
            member: AtomicBool::new(member),
            node: identity.node(),
            address: address.to_owned(),
            identity,
            settings,
            core: RwLock::new(Arc::new(core)),
            config,
            members_change: tokio::sync::Mutex::default(),
            restarting: tokio::sync::Mutex::default(),
            peers,
            leases: Mutex::default(),
            answering: Mutex::default(),
            retiring: Mutex::default(),
            expelled: OnceLock::new(),
            heard: Mutex::new(None),
            pulse: Mutex::new(Pulse::new(Instant::now())),
            leader: watch::Sender::new(false),
            stop: CancellationToken::new(),
        });
        tokio::spawn(leader::run(inner.clone()));
        tokio::spawn(follower::run(inner.clone()));
        tokio::spawn(pulse::run(inner.clone()));
        let store = Self { inner };
        tokio::spawn(standing::run(store.clone()));
        tokio::spawn(revive::run(store.clone()));
        if member {
            tokio::spawn(store.clone().announce_address());
        }
        Ok(store)
    }

    /// Whether this node belongs to a cluster's control plane.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.inner.member.load(Ordering::Acquire)
    }

    /// Makes a new cluster of this node alone.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`] if it is in one already, or the disk fails.
    pub async fn initialise(&self) -> Result<(), ControlError> {
        let members = BTreeMap::from([(self.inner.node, BasicNode::new(&self.inner.address))]);
        self.inner.core().raft.initialize(members).await.map_err(unavailable)?;
        self.inner.member.store(true, Ordering::Release);
        let leads = self.inner.core().raft.wait(Some(self.inner.settings.deadline));
        leads
            .state(ServerState::Leader, "the first leader")
            .await
            .map(|_| ())
            .map_err(unavailable)
    }

    /// Joins the cluster of the nodes at these addresses (any member will do) and returns its id. Doing it again is harmless.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`] says why none of them took this node.
    pub async fn join(&self, addresses: &[String]) -> Result<ClusterId, ControlError> {
        let inner = &self.inner;
        let deadline = Instant::now() + inner.settings.deadline;
        let mut last = "no address was given".to_owned();
        let mut queue: Vec<String> = Vec::new();
        while Instant::now() < deadline {
            if queue.is_empty() {
                queue.extend(addresses.iter().rev().cloned());
            }
            let Some(address) = queue.pop() else {
                break;
            };
            match inner
                .ask(&address, |client, context| {
                    let (node, own) = (inner.node, inner.address.clone());
                    async move { client.join(context, node, own).await }
                })
                .await
            {
                Ok(Ok(cluster)) => {
                    inner.member.store(true, Ordering::Release);
                    return Ok(cluster);
                }
                Ok(Err(Refusal::NotLeader(Some(leader)))) => queue.push(leader),
                Ok(Err(refusal)) => last = format!("{address}: {refusal}"),
                Err(error) => last = error,
            }
            tokio::time::sleep(RETRY).await;
        }
        Err(ControlError::Unavailable(format!(
            "the cluster could not be joined: {last}"
        )))
    }

    /// Serves one connection of kind Control.
    pub async fn serve(&self, connection: Connection) {
        let server = Server {
            store: self.clone(),
            peer: connection.node,
        };
        rpc::serve(connection, server.serve(), MAX_REQUESTS).await;
    }

    /// Who leads, who votes, who follows, as known here.
    #[must_use]
    pub fn status(&self) -> ControlStatus {
        let (leader, term) = {
            let metrics = self.inner.core().raft.metrics();
            let metrics = metrics.borrow();
            (metrics.current_leader, metrics.current_term)
        };
        let membership = self.inner.core().machine.membership();
        let voters = settled_voters(&membership);
        ControlStatus {
            leader,
            learners: membership
                .nodes()
                .map(|(id, _)| *id)
                .filter(|id| !voters.contains(id))
                .collect(),
            voters: voters.into_iter().collect(),
            term,
        }
    }

    /// Deleted nodes, as far as this node's replica knows.
    #[must_use]
    pub fn known_deleted(&self) -> BTreeSet<NodeId> {
        let core = self.inner.core();
        let rows = core.machine.kv().range("deleted/");
        let deleted = rows.iter().filter_map(|row| match Key::parse(&row.key)? {
            Key::Deleted(node) => Some(node),
            _ => None,
        });
        deleted.collect()
    }

    /// The cluster's authority, as far as this node's replica knows.
    pub(crate) fn known_issuer(&self, cluster: ClusterId) -> Option<Issuer> {
        let core = self.inner.core();
        let kv = core.machine.kv();
        issuer_of(cluster, &kv.get(&Key::Authority.text())?.value)
    }

    /// Why this node is no member of the cluster any more, if so.
    #[must_use]
    pub fn expelled(&self) -> Option<String> {
        self.inner.expelled.get().cloned()
    }

    /// Before a stop in order: hands this node's vote, and the lead with it, to nodes that live. Returns when that is through, or when there
    /// is nobody to take it; the caller bounds the time.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]
    pub async fn retire(&self) -> Result<(), ControlError> {
        let inner = &self.inner;
        let votes = |membership: Membership<NodeId, BasicNode>| membership.voter_ids().any(|voter| voter == inner.node);
        if !votes(inner.core().machine.membership()) {
            return Ok(());
        }
        let local = || inner.retire(inner.node);
        let remote = |client: ControlClient, context| async move { client.retire(context, inner.node).await };
        inner.at_leader(local, remote).await
    }

    /// Takes a deleted node out of the membership.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`]
    pub async fn remove_member(&self, node: NodeId) -> Result<(), ControlError> {
        let inner = &self.inner;
        let local = || inner.remove_member(node);
        let remote = |client: ControlClient, context| async move { client.remove(context, node).await };
        inner.at_leader(local, remote).await
    }

    /// Stops taking part. The store's calls fail afterwards.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        if let Err(error) = self.inner.core().raft.shutdown().await {
            tracing::warn!(%error, "the control plane did not stop cleanly");
        }
    }

    /// A node that comes back at another address tells the leader.
    async fn announce_address(self) {
        loop {
            let known = self.inner.core().machine.address(self.inner.node);
            if known.as_ref() == Some(&self.inner.address) || self.inner.stop.is_cancelled() {
                return;
            }
            let mut others = self.inner.others();
            if others.is_empty() {
                others = self.inner.core().disk.rejoin().unwrap_or_default();
            }
            if others.is_empty() || self.inner.leads() {
                // The others would send this node to the leader, to itself, at its old address.
                let _ = self.inner.add_member(self.inner.node, &self.inner.address).await;
            } else {
                let mut leads = self.inner.leader.subscribe();
                tokio::select! {
                    joined = self.join(&others) => if let Err(error) = joined {
                        tracing::warn!(%error, "this node's new address is not known to the others yet");
                    },
                    // Elected meanwhile: from now on it is this node that everybody would be sent to.
                    _ = leads.wait_for(|leads| *leads) => {}
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Inner {
    fn core(&self) -> Arc<Core> {
        self.core.read().clone()
    }

    /// Where the other members are.
    fn others(&self) -> Vec<String> {
        let members = self.members().into_iter();
        members
            .filter(|(id, _)| *id != self.node)
            .map(|(_, n)| n.addr)
            .collect()
    }

    /// What this node is, and what it knows of another one.
    fn standing(&self, asker: NodeId) -> Standing {
        let core = self.core();
        let last = core.disk.last_log_id().ok().flatten();
        Standing {
            incarnation: core.incarnation,
            last: last.map(|id| (id.leader_id.term, id.index)),
            expelled: self.grave(asker),
        }
    }

    /// Stops the protocol, changes what it has on disk, and starts it anew. Under `restarting`.
    async fn restart(&self, change: impl FnOnce(&Disk) -> Result<(), openraft::AnyError>) -> Result<(), ControlError> {
        let old = self.core();
        if let Err(error) = old.raft.shutdown().await {
            tracing::warn!(%error, "the control plane did not stop cleanly");
        }
        let disk = old.disk.successor();
        let changed = change(&disk);
        let machine = old.machine.reopen(disk.clone())?;
        let core = Core::start(self.node, self.config.clone(), &self.peers, disk, machine).await;
        let core =
            core.map_err(|e| ControlError::Damaged(format!("the control plane could not be started anew: {e}")))?;
        *self.core.write() = Arc::new(core);
        changed.map_err(|e| ControlError::Damaged(format!("the control store cannot be changed: {e}")))
    }

    fn members(&self) -> BTreeMap<NodeId, BasicNode> {
        let metrics = self.core().raft.metrics().borrow().clone();
        metrics
            .membership_config
            .nodes()
            .map(|(id, node)| (*id, node.clone()))
            .collect()
    }

    fn leads(&self) -> bool {
        *self.leader.borrow()
    }

    /// One request to the daemon at an address.
    async fn ask<T, F>(&self, address: &str, call: impl FnOnce(ControlClient, Context) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        let client = self.peers.client(address).await.map_err(|e| e.to_string())?;
        let context = within(self.settings.deadline);
        call(client, context).await.map_err(|e| format!("{address}: {e}"))
    }

    /// Repeats a request until the leader answers it or the deadline passes.
    async fn at_leader<T, L, R>(
        &self,
        local: impl Fn() -> L,
        remote: impl Fn(ControlClient, Context) -> R,
    ) -> Result<T, ControlError>
    where
        L: Future<Output = Result<T, Refusal>>,
        R: Future<Output = Result<Result<T, Refusal>, tarpc::client::RpcError>>,
    {
        let deadline = Instant::now() + self.settings.deadline;
        let mut last = "the control plane has no leader: a majority of its voters must answer".to_owned();
        loop {
            let metrics = self.core().raft.metrics().borrow().clone();
            let answer = match metrics.current_leader {
                // A leader whose majority is gone does not know it: what it proposes waits.
                Some(leader) if leader == self.node => tokio::time::timeout_at(deadline, local()).await.ok(),
                Some(leader) => match self.members().get(&leader) {
                    Some(node) => {
                        let asked = self.while_led_by(leader, self.ask(&node.addr, &remote));
                        match tokio::time::timeout_at(deadline, asked).await {
                            Ok(Some(Ok(answer))) => Some(answer),
                            Ok(Some(Err(error))) => {
                                last = error;
                                None
                            }
                            Ok(None) | Err(_) => None,
                        }
                    }
                    None => None,
                },
                None => None,
            };
            match answer {
                Some(Ok(value)) => return Ok(value),
                Some(Err(Refusal::Failed(text))) => last = text,
                Some(Err(Refusal::NotLeader(_))) | None => {}
            }
            if let Some(why) = self.expelled.get() {
                return Err(ControlError::Unavailable(why.clone()));
            }
            if Instant::now() >= deadline || self.stop.is_cancelled() {
                return Err(ControlError::Unavailable(last));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What comes of a request to a leader, unless another one is heard of first: the old one may be dead or cut off, and not answer for long.
    async fn while_led_by<T>(&self, leader: NodeId, request: impl Future<Output = T>) -> Option<T> {
        let mut metrics = self.core().raft.metrics();
        tokio::select! {
            biased;
            answer = request => Some(answer),
            _ = metrics.wait_for(|metrics| metrics.current_leader != Some(leader)) => None,
        }
    }

    /// Where the leader is, as far as this node knows.
    fn leader_address(&self) -> Option<String> {
        let leader = self.core().raft.metrics().borrow().current_leader?;
        self.members().get(&leader).map(|node| node.addr.clone())
    }

    /// A request of Raft's that only the leader can answer. Raft leaves one open when this node stops leading (a former leader that
    /// restarts takes itself for it until it hears of its successor): then it is refused, and the caller asks the next leader.
    /// What was proposed may still happen.
    async fn while_leading<T, E>(
        &self,
        request: impl Future<Output = Result<T, RaftError<NodeId, E>>>,
    ) -> Result<T, Refusal>
    where
        E: std::error::Error + TryAsRef<ForwardToLeader<NodeId, BasicNode>>,
    {
        let mut metrics = self.core().raft.metrics();
        tokio::select! {
            biased;
            result = request => result.map_err(|error| match error.forward_to_leader() {
                Some(forward) => Refusal::NotLeader(forward.leader_node.as_ref().map(|n| n.addr.clone())),
                None => Refusal::Failed(error.to_string()),
            }),
            _ = metrics.wait_for(|metrics| metrics.state != ServerState::Leader) => {
                Err(Refusal::NotLeader(self.leader_address()))
            }
        }
    }

    /// At the leader: a command into the log.
    async fn propose(&self, command: Command) -> Result<Answer, Refusal> {
        let response = self.while_leading(self.core().raft.client_write(command)).await?;
        response
            .data
            .ok_or_else(|| Refusal::Failed("a command was not answered".into()))
    }

    /// At the leader: the revision of what is committed.
    async fn read_index(&self) -> Result<Revision, Refusal> {
        self.while_leading(self.core().raft.ensure_linearizable()).await?;
        Ok(self.core().machine.kv().revision())
    }

    /// Returns when this node's replica knows all that is committed now: only a number travels, however much is read.
    async fn catch_up(&self) -> Result<(), ControlError> {
        let local = || self.read_index();
        let remote = |client: ControlClient, context| async move { client.read_index(context).await };
        let revision = self.at_leader(local, remote).await?;
        let mut revisions = self.core().machine.revisions();
        let known = revisions.wait_for(|known| *known >= revision);
        match tokio::time::timeout(self.settings.deadline, known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ControlError::Unavailable(
                "this node's replica of the control store does not catch up with the leader".into(),
            )),
        }
    }

    /// At the leader: a lease is kept.
    fn keep_alive(&self, lease: LeaseId) -> Result<bool, Refusal> {
        if !self.leads() {
            return Err(Refusal::NotLeader(None));
        }
        let ttl = self.core().machine.kv().leases().get(&lease).copied();
        if let Some(ttl) = ttl {
            self.leases.lock().keep(lease, ttl);
        }
        Ok(ttl.is_some())
    }

    /// This node's name, as far as it knows.
    fn own_name(&self) -> String {
        let key = Key::Node(self.node).text();
        let core = self.core();
        let kv = core.machine.kv();
        let record = kv.get(&key).and_then(|row| decode::<Node>(&key, &row.value));
        record.map_or_else(|| self.node.to_string(), |node| node.name)
    }

    /// Why a node was expelled, as far as this node knows.
    fn grave(&self, node: NodeId) -> Option<String> {
        let key = Key::Deleted(node).text();
        let core = self.core();
        let kv = core.machine.kv();
        let row = kv.get(&key)?;
        Some(deleted_text(&grave_name(&key, &row.value).unwrap_or_default()))
    }

    /// At the leader: other nodes vote from now on, as far as there are any.
    async fn retire(&self, node: NodeId) -> Result<(), Refusal> {
        self.retiring.lock().insert(node, Instant::now());
        leader::all_answer(self).await;
        let _one = self.members_change.lock().await;
        match leader::voters_without(self, node) {
            Some(voters) => {
                tracing::info!(%node, voters = voters.len(), "a node is about to stop and hands its vote over");
                self.while_leading(self.core().raft.change_membership(voters, true))
                    .await
                    .map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// At the leader: a node is a member no more.
    async fn remove_member(&self, node: NodeId) -> Result<(), Refusal> {
        let _one = self.members_change.lock().await;
        if let Some(voters) = leader::voters_without(self, node) {
            self.while_leading(self.core().raft.change_membership(voters, true))
                .await?;
        }
        if !self.members().contains_key(&node) {
            return Ok(());
        }
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([node]));
        self.while_leading(self.core().raft.change_membership(change, true))
            .await
            .map(|_| ())
    }

    /// At the leader: a node becomes a member, or has a new address.
    async fn add_member(&self, node: NodeId, address: &str) -> Result<(), Refusal> {
        if let Some(why) = self.grave(node) {
            return Err(Refusal::Failed(why));
        }
        if self.core().machine.address(node).as_deref() == Some(address) {
            return Ok(());
        }
        let _one = self.members_change.lock().await;
        let nodes = BTreeMap::from([(node, BasicNode::new(address))]);
        let change = if self.members().contains_key(&node) {
            ChangeMembers::SetNodes(nodes)
        } else {
            ChangeMembers::AddNodes(nodes)
        };
        self.while_leading(self.core().raft.change_membership(change, true))
            .await
            .map(|_| ())
    }
}

/// Those who vote whatever becomes of a change of voters that is under way: until it is through, a majority of the old voters is needed
/// too, so the new ones do not count on yet.
fn settled_voters(membership: &Membership<NodeId, BasicNode>) -> BTreeSet<NodeId> {
    let mut voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    for configuration in membership.get_joint_config() {
        voters.retain(|voter| configuration.contains(voter));
    }
    voters
}

fn unavailable(error: impl std::fmt::Display) -> ControlError {
    ControlError::Unavailable(error.to_string())
}

fn wrong(answer: Answer) -> ControlError {
    ControlError::Unavailable(format!("a command was answered by {answer:?}"))
}

#[async_trait]
impl ControlStore for RaftStore {
    async fn get(&self, key: &str) -> Result<Option<Row>, ControlError> {
        self.inner.catch_up().await?;
        Ok(self.inner.core().machine.kv().get(key).cloned())
    }

    async fn range(&self, prefix: &str) -> Result<(Vec<Row>, Revision), ControlError> {
        self.inner.catch_up().await?;
        let core = self.inner.core();
        let kv = core.machine.kv();
        Ok((kv.range(prefix), kv.revision()))
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, ControlError> {
        match self.propose(Command::Transact(transaction)).await? {
            Answer::Outcome(outcome) => Ok(outcome),
            other => Err(wrong(other)),
        }
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<(Vec<Event>, Revision), ControlError> {
        let deadline = Instant::now() + WATCH_WAIT;
        let mut revisions = self.inner.core().machine.revisions();
        loop {
            if self.inner.stop.is_cancelled() {
                return Err(ControlError::Unavailable("the control plane has stopped here".into()));
            }
            {
                let core = self.inner.core();
                let kv = core.machine.kv();
                let events = kv.events(prefix, after).map_err(ControlError::Compacted)?;
                if !events.is_empty() || Instant::now() >= deadline {
                    // A replica that lags must not send its reader back.
                    return Ok((events, kv.revision().max(after)));
                }
            }
            // A closed channel means that the state machine is gone: the stop above shows next.
            let _ = tokio::time::timeout_at(deadline, revisions.changed()).await;
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError> {
        match self.propose(Command::Grant(ttl)).await? {
            Answer::Granted(lease) => Ok(lease),
            other => Err(wrong(other)),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, ControlError> {
        let local = || async { self.inner.keep_alive(lease) };
        self.inner
            .at_leader(local, |client, context| async move {
                client.keep_alive(context, lease).await
            })
            .await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ControlError> {
        match self.propose(Command::Revoke(lease)).await? {
            Answer::Revoked(_) => Ok(()),
            other => Err(wrong(other)),
        }
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.inner.leader.subscribe()
    }
}

impl RaftStore {
    async fn propose(&self, command: Command) -> Result<Answer, ControlError> {
        let local = || self.inner.propose(command.clone());
        self.inner
            .at_leader(local, |client, context| {
                let command = command.clone();
                async move { client.propose(context, command).await }
            })
            .await
    }
}

/// Serves the other nodes' requests.
#[derive(Clone)]
struct Server {
    store: RaftStore,
    /// Who asks, as its certificate proves.
    peer: NodeId,
}

impl Server {
    /// A message for a node whose old address is this one's now must not be answered for it: a vote would count twice.
    /// And one of another incarnation must not be answered at all; a later one is given way to.
    fn check(&self, to: NodeId, of: Incarnation) -> Result<(), String> {
        let own = self.store.inner.node;
        if to != own {
            return Err(format!("this is node {own}, not {to}"));
        }
        let ours = self.store.inner.core().incarnation;
        if of == ours {
            return Ok(());
        }
        if of.number > ours.number {
            let store = self.store.clone();
            tokio::spawn(async move { store.give_way(of).await });
        }
        Err(format!(
            "node {own} is of the control plane after recovery {}, not {}",
            ours.number, of.number
        ))
    }

    /// What a node says of itself must come from it.
    fn speaks_for(&self, node: NodeId) -> Result<(), Refusal> {
        if node == self.peer {
            return Ok(());
        }
        Err(Refusal::Failed(format!(
            "node {} does not speak for node {node}",
            self.peer
        )))
    }

    /// [`Self::check`] for a leader's message: it has been heard as soon as it is here, however long Raft works on it.
    fn hear(&self, to: NodeId, of: Incarnation) -> Result<(), String> {
        self.check(to, of)?;
        *self.store.inner.heard.lock() = Some(Instant::now());
        Ok(())
    }

    /// Decodes a message of Raft's that passed the check, gives it to Raft, encodes the answer.
    async fn pass<Req, Resp, F>(
        &self,
        request: Payload,
        call: impl FnOnce(Arc<Core>, Req) -> F,
    ) -> Result<Payload, String>
    where
        Req: DeserializeOwned,
        Resp: Serialize,
        F: Future<Output = Resp>,
    {
        let core = self.store.inner.core();
        let request = postcard::from_bytes(&request).map_err(|e| e.to_string())?;
        let answer = call(core, request).await;
        postcard::to_allocvec(&answer)
            .map(|bytes| Payload(bytes.into()))
            .map_err(|e| e.to_string())
    }
}

impl Control for Server {
    async fn append_entries(
        self,
        _: Context,
        to: NodeId,
        of: Incarnation,
        request: Payload,
    ) -> Result<Payload, String> {
        self.hear(to, of)?;
        self.pass(request, |core, request| async move {
            core.raft.append_entries(request).await
        })
        .await
    }

    async fn vote(self, _: Context, to: NodeId, of: Incarnation, request: Payload) -> Result<Payload, String> {
        self.check(to, of)?;
        self.pass(request, |core, request| async move { core.raft.vote(request).await })
            .await
    }

    async fn install_snapshot(
        self,
        _: Context,
        to: NodeId,
        of: Incarnation,
        request: Payload,
    ) -> Result<Payload, String> {
        self.hear(to, of)?;
        self.pass(request, |core, request| async move {
            core.raft.install_snapshot(request).await
        })
        .await
    }

    async fn propose(self, _: Context, command: Command) -> Result<Answer, Refusal> {
        if !command.may_be_proposed() {
            return Err(Refusal::Failed("such a command is not for others to propose".into()));
        }
        self.store.inner.propose(command).await
    }

    async fn read_index(self, _: Context) -> Result<Revision, Refusal> {
        self.store.inner.read_index().await
    }

    async fn keep_alive(self, _: Context, lease: LeaseId) -> Result<bool, Refusal> {
        self.store.inner.keep_alive(lease)
    }

    async fn join(self, _: Context, node: NodeId, address: String) -> Result<ClusterId, Refusal> {
        self.speaks_for(node)?;
        let inner = &self.store.inner;
        let cluster = inner
            .identity
            .cluster()
            .ok_or_else(|| Refusal::Failed("it is in no cluster itself".into()))?;
        inner.add_member(node, &address).await.map(|()| cluster)
    }

    async fn retire(self, _: Context, node: NodeId) -> Result<(), Refusal> {
        self.speaks_for(node)?;
        self.store.inner.retire(node).await
    }

    async fn remove(self, _: Context, node: NodeId) -> Result<(), Refusal> {
        self.store.inner.remove_member(node).await
    }

    async fn standing(self, _: Context, asker: NodeId) -> Standing {
        self.store.inner.standing(asker)
    }

    async fn ping(self, _: Context) {}
}
