//! What one daemon asks another: how the volumes that it holds are doing, to unmount, to compare copies, to
//! check a file system, and whether it is there.
//!
//! Small messages on connections of [`Kind::Node`]. The answering side is [`NodeServer`], the asking side [`Nodes`].

use super::checker::Checked;
use super::daemon::Shared;
use super::diagnostics::Diagnosis;
use super::journal::Journal;
use super::mounts::Mounts;
use super::scrubber::{Pass, Scrubber};
use crate::api::{ApiError, Code};
use crate::exec::sync::Mutex;
use crate::replication::{CopyError, MasterStatus, ReplicaHost, Verification};
use crate::rpc::{self, Connection, Identity, Kind, Limits, Payload, Peer, within};
use crate::volume::{Event, NodeId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tarpc::client::RpcError;
use tarpc::context::Context;

/// Requests of one connection handled at once.
const MAX_REQUESTS: usize = 64;
/// Volumes that one question may name.
pub(super) const MAX_VOLUMES: usize = 4096;
/// How long a question about states may take.
const ASK: Duration = Duration::from_secs(2);
/// Nodes that one question about connections may name.
const MAX_NODES: usize = 1024;
/// How long unmounting on another node may take: it closes the file system.
const UNMOUNT: Duration = Duration::from_secs(90);
/// How long a node may take to gather what it tells of itself.
const DIAGNOSE: Duration = Duration::from_secs(10);
/// How long comparing copies, or checking a file system, may take.
const VERIFY: Duration = Duration::from_secs(3600);

/// What another node said, if it said something.
fn answered<T>(address: &str, answer: Result<T, RpcError>) -> Result<T, ApiError> {
    answer.map_err(|error| ApiError::unavailable(format!("the node at {address} did not answer: {error}")))
}

/// An [`ApiError`] on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Refused {
    code: Code,
    message: String,
    hint: Option<String>,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        let ApiError { code, message, hint } = error;
        Self { code, message, hint }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let Refused { code, message, hint } = refused;
        Self { code, message, hint }
    }
}

/// What a node knows of one volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Runtime {
    /// Of the master, if it is active there.
    pub(super) master: Option<MasterStatus>,
    /// Why the node cannot serve as master although it should.
    pub(super) problem: Option<String>,
    /// Bytes that the copy takes on the disk.
    pub(super) copy_bytes: Option<u64>,
    /// Why the copy cannot be used.
    pub(super) copy_failed: Option<String>,
    /// Bytes that files take, if it is mounted there.
    pub(super) used_bytes: Option<u64>,
    /// The present or last scrub by that node.
    pub(super) scrub: Option<Pass>,
}

/// Whether a node was reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Reached {
    /// In so many microseconds, there and back.
    Micros(u64),
    /// Why not.
    Not(String),
}

/// The service; see the module's text.
#[tarpc::service]
pub(super) trait NodeService {
    /// What the node knows of these volumes.
    async fn runtime(volumes: Vec<VolumeId>) -> BTreeMap<VolumeId, Runtime>;
    /// Whether the volume is not mounted there, or is just being unmounted and that ends within the time given.
    async fn ends(volume: VolumeId, wait_ms: u32) -> bool;
    /// Unmounts a volume that is mounted there.
    async fn unmount(volume: VolumeId, force: bool) -> Result<(), Refused>;
    /// Compares the copies of a volume whose master is there.
    async fn verify(volume: VolumeId, deep: bool) -> Result<Verification, Refused>;
    /// Where the scrub of a volume whose master is there stands; with `start`, one is started if none that was asked for runs.
    async fn scrub(volume: VolumeId, start: bool) -> Result<Option<Pass>, Refused>;
    /// The events that the node recorded from a time on.
    async fn events(since: Option<Timestamp>) -> Vec<Event>;
    /// Which of these nodes, at these addresses, it reaches.
    async fn reach(nodes: BTreeMap<NodeId, String>) -> BTreeMap<NodeId, Reached>;
    /// Answers at once.
    async fn ping() -> ();
    /// Checks the file system of a volume that is mounted there, or whose master is there; `mounts` is the number of its last claim.
    async fn check(volume: VolumeId, mounted: bool, mounts: u64) -> Result<Checked, Refused>;
    /// What it tells of itself for a bug report.
    async fn diagnose() -> Result<Payload, Refused>;
}

/// The answering side.
#[derive(Clone)]
pub(super) struct NodeServer {
    pub(super) scrubber: Arc<Scrubber>,
    pub(super) host: Arc<ReplicaHost>,
    pub(super) mounts: Arc<Mounts>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) problems: Arc<Mutex<BTreeMap<VolumeId, String>>>,
    pub(super) journal: Arc<Journal>,
    /// Where the copies are.
    pub(super) directory: PathBuf,
    pub(super) shared: Weak<Shared>,
}

impl NodeServer {
    /// Serves a connection until it closes.
    pub(super) async fn on_connection(self, connection: Connection) {
        rpc::serve(connection, self.serve(), MAX_REQUESTS).await;
    }

    /// Bytes that a copy's sparse data file takes on the disk, if there is one. Blocks.
    pub(super) fn copy_bytes(&self, volume: VolumeId) -> Option<u64> {
        let data = self.directory.join(volume.to_string()).join("data");
        Some(std::fs::metadata(data).ok()?.blocks().saturating_mul(512))
    }

    /// What this node knows of volumes. Blocks.
    pub(super) fn look(&self, volumes: &[VolumeId]) -> BTreeMap<VolumeId, Runtime> {
        let problems = self.problems.lock().clone();
        volumes
            .iter()
            .take(MAX_VOLUMES)
            .map(|volume| {
                let mut runtime = Runtime {
                    master: self.host.master(*volume).map(|master| master.status()),
                    problem: problems.get(volume).cloned(),
                    scrub: self.scrubber.pass(*volume),
                    ..Runtime::default()
                };
                runtime.copy_failed = match self.host.state(*volume) {
                    Ok(state) => state.failed,
                    Err(CopyError::Missing) => None,
                    Err(error) => Some(error.to_string()),
                };
                runtime.copy_bytes = self.copy_bytes(*volume);
                if let Some(mount) = self.mounts.get(*volume)
                    && let Ok(space) = mount.fs.statfs()
                {
                    runtime.used_bytes = Some(space.used());
                }
                (*volume, runtime)
            })
            .collect()
    }

    /// See [`NodeService::scrub`].
    pub(super) fn scrubbed(&self, volume: VolumeId, start: bool) -> Result<Option<Pass>, ApiError> {
        if start {
            self.scrubber.start(volume).map(Some)
        } else {
            Ok(self.scrubber.pass(volume))
        }
    }

    /// Compares the copies of a volume whose master is here.
    pub(super) async fn compare(&self, volume: VolumeId, deep: bool) -> Result<Verification, ApiError> {
        let master = self.host.master(volume).ok_or_else(|| {
            ApiError::unavailable("the volume's master is not active at the moment").hint("try again in a few seconds")
        })?;
        tokio::task::spawn_blocking(move || master.verify(deep))
            .await
            .map_err(|error| ApiError::internal(format!("the comparison was interrupted: {error}")))?
            .map_err(|error| ApiError::unavailable(format!("the copies cannot be compared: {error}")))
    }
}

impl NodeService for NodeServer {
    async fn runtime(self, _: Context, volumes: Vec<VolumeId>) -> BTreeMap<VolumeId, Runtime> {
        tokio::task::spawn_blocking(move || self.look(&volumes))
            .await
            .unwrap_or_default()
    }

    async fn ends(self, _: Context, volume: VolumeId, wait_ms: u32) -> bool {
        let wait = Duration::from_millis(wait_ms.into()).min(UNMOUNT);
        self.mounts.ends(volume, Instant::now() + wait).await
    }

    async fn unmount(self, _: Context, volume: VolumeId, force: bool) -> Result<(), Refused> {
        // In a task of its own: an unmount that has begun is brought to its end, whether the caller waits or not.
        let unmounting = tokio::spawn(async move {
            match self.mounts.get(volume) {
                Some(mount) => self.mounts.unmount(&mount, force).await,
                None => Ok(()),
            }
        });
        match unmounting.await {
            Ok(result) => result.map_err(Refused::from),
            Err(error) => Err(ApiError::internal(error.to_string()).into()),
        }
    }

    async fn verify(self, _: Context, volume: VolumeId, deep: bool) -> Result<Verification, Refused> {
        self.compare(volume, deep).await.map_err(Refused::from)
    }

    async fn scrub(self, _: Context, volume: VolumeId, start: bool) -> Result<Option<Pass>, Refused> {
        self.scrubbed(volume, start).map_err(Refused::from)
    }

    async fn events(self, _: Context, since: Option<Timestamp>) -> Vec<Event> {
        self.journal.since(since)
    }

    async fn reach(self, _: Context, nodes: BTreeMap<NodeId, String>) -> BTreeMap<NodeId, Reached> {
        self.nodes.reach(nodes).await
    }

    async fn ping(self, _: Context) {}

    async fn check(self, _: Context, volume: VolumeId, mounted: bool, mounts: u64) -> Result<Checked, Refused> {
        self.checked(volume, mounted, mounts).await.map_err(Refused::from)
    }

    async fn diagnose(self, _: Context) -> Result<Payload, Refused> {
        let stopping = || ApiError::unavailable("the daemon is stopping");
        let shared = self.shared.upgrade().ok_or_else(stopping)?;
        let packed = shared.diagnosis().await.pack();
        packed.map_err(|error| ApiError::internal(error.to_string()).into())
    }
}

type NodePeer = Peer<NodeServiceRequest, NodeServiceResponse>;

/// The asking side: a connection to each node that was asked something.
pub(super) struct Nodes {
    identity: Identity,
    peers: Mutex<BTreeMap<NodeId, Arc<NodePeer>>>,
}

impl Nodes {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            peers: Mutex::default(),
        }
    }

    async fn client(&self, node: NodeId, address: &str) -> Result<NodeServiceClient, ApiError> {
        let peer = {
            let mut peers = self.peers.lock();
            let known = peers.get(&node).filter(|peer| peer.address() == address).cloned();
            known.unwrap_or_else(|| {
                let limits = Limits {
                    connect: ASK,
                    ..Limits::default()
                };
                let peer = Peer::new(address.to_owned(), Kind::Node, self.identity.clone(), limits);
                peers.insert(node, peer.clone());
                peer
            })
        };
        let channel = peer
            .channel()
            .await
            .map_err(|error| ApiError::unavailable(format!("the node at {address} does not answer: {error}")))?;
        Ok(NodeServiceClient::from(channel))
    }

    /// Which nodes are reached from here, all tried at once.
    pub(super) async fn reach(&self, nodes: BTreeMap<NodeId, String>) -> BTreeMap<NodeId, Reached> {
        let tries = nodes.into_iter().take(MAX_NODES).map(|(node, address)| async move {
            let reached = match tokio::time::timeout(ASK, self.ping(node, &address)).await {
                Ok(Ok(time)) => Reached::Micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
                Ok(Err(error)) => Reached::Not(error.message),
                Err(_) => Reached::Not(format!("the node at {address} does not answer within {ASK:?}")),
            };
            (node, reached)
        });
        futures::future::join_all(tries).await.into_iter().collect()
    }

    /// The time of one request and its answer; the connection is opened before it counts.
    async fn ping(&self, node: NodeId, address: &str) -> Result<Duration, ApiError> {
        let client = self.client(node, address).await?;
        let start = Instant::now();
        client
            .ping(within(ASK))
            .await
            .map_err(|error| ApiError::unavailable(format!("the node at {address} does not answer: {error}")))?;
        Ok(start.elapsed())
    }

    /// Which nodes another node reaches.
    pub(super) async fn ask_reach(
        &self,
        node: NodeId,
        address: &str,
        nodes: BTreeMap<NodeId, String>,
    ) -> Result<BTreeMap<NodeId, Reached>, ApiError> {
        // Its own tries take as long as one that fails here.
        let limit = ASK * 2;
        let asking = async {
            let client = self.client(node, address).await?;
            client
                .reach(within(limit), nodes)
                .await
                .map_err(|error| ApiError::unavailable(format!("the node at {address} does not answer: {error}")))
        };
        tokio::time::timeout(limit, asking)
            .await
            .unwrap_or_else(|_| Err(ApiError::unavailable(format!("the node at {address} does not answer"))))
    }

    /// What a node knows of volumes; `None`: it does not answer in time.
    pub(super) async fn runtime(
        &self,
        node: NodeId,
        address: &str,
        volumes: Vec<VolumeId>,
    ) -> Option<BTreeMap<VolumeId, Runtime>> {
        let asking = async {
            let client = self.client(node, address).await.ok()?;
            client.runtime(within(ASK), volumes).await.ok()
        };
        tokio::time::timeout(ASK, asking).await.ok().flatten()
    }

    /// The events that a node recorded; `None`: it does not answer in time.
    pub(super) async fn events(&self, node: NodeId, address: &str, since: Option<Timestamp>) -> Option<Vec<Event>> {
        let asking = async {
            let client = self.client(node, address).await.ok()?;
            client.events(within(ASK), since).await.ok()
        };
        tokio::time::timeout(ASK, asking).await.ok().flatten()
    }

    /// Whether a volume is not mounted on another node, or is just being unmounted there and that ends within `wait`.
    pub(super) async fn ends(&self, node: NodeId, address: &str, volume: VolumeId, wait: Duration) -> bool {
        let Ok(client) = self.client(node, address).await else {
            return false;
        };
        let wait = wait.min(UNMOUNT);
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        client.ends(within(wait + ASK), volume, wait_ms).await.unwrap_or(false)
    }

    /// Unmounts a volume on another node.
    pub(super) async fn unmount(
        &self,
        node: NodeId,
        address: &str,
        volume: VolumeId,
        force: bool,
    ) -> Result<(), ApiError> {
        // A daemon that hangs is found out soon; one that answers may take its time.
        self.ping(node, address).await?;
        let client = self.client(node, address).await?;
        let unmounted = client.unmount(within(UNMOUNT), volume, force).await;
        Ok(answered(address, unmounted)??)
    }

    /// Where the scrub of a volume whose master is on another node stands, or starts one.
    pub(super) async fn scrub(
        &self,
        node: NodeId,
        address: &str,
        volume: VolumeId,
        start: bool,
    ) -> Result<Option<Pass>, ApiError> {
        let client = self.client(node, address).await?;
        let pass = client.scrub(within(ASK), volume, start).await;
        Ok(answered(address, pass)??)
    }

    /// Checks a file system on another node.
    pub(super) async fn check(
        &self,
        node: NodeId,
        address: &str,
        volume: VolumeId,
        mounted: bool,
        mounts: u64,
    ) -> Result<Checked, ApiError> {
        let client = self.client(node, address).await?;
        let checked = client.check(within(VERIFY), volume, mounted, mounts).await;
        Ok(answered(address, checked)??)
    }

    /// What a node tells of itself for a bug report.
    pub(super) async fn diagnose(&self, node: NodeId, address: &str) -> Result<Diagnosis, ApiError> {
        // One that is gone is found out soon.
        self.ping(node, address).await?;
        let client = self.client(node, address).await?;
        let told = answered(address, client.diagnose(within(DIAGNOSE)).await)??;
        let unpacked = tokio::task::spawn_blocking(move || Diagnosis::unpack(&told)).await;
        let unpacked = unpacked.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        unpacked.map_err(|error| ApiError::internal(format!("what node {address} told cannot be read: {error}")))
    }

    /// Compares the copies of a volume whose master is on another node.
    pub(super) async fn verify(
        &self,
        node: NodeId,
        address: &str,
        volume: VolumeId,
        deep: bool,
    ) -> Result<Verification, ApiError> {
        let client = self.client(node, address).await?;
        let verified = client.verify(within(VERIFY), volume, deep).await;
        Ok(answered(address, verified)??)
    }
}
