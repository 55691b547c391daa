//! The daemon: everything that a node is made of, started, wired and stopped.
//!
//! A node that is in no cluster serves its API, so that it can be told to make or join one, and answers joins of others with a
//! refusal. Once it is a member ([`Joined`]) it takes part in the control plane, holds copies and serves mounts.
//!
//! The end, in order: mounts (everything written becomes durable), masters and copies, the lease, the control plane, the API.

use super::admission;
use super::control::Control;
use super::data_dir::{DataDir, DataDirError};
use super::journal::Journal;
use super::kept::Kept;
use super::mounts::{Mount, Mounts, Wanted};
use super::plane::{Plane, PlaneStatus};
use super::scrubber::Scrubber;
use super::service::{NodeServer, Nodes};
use super::telemetry::Looking;
use super::volumes::Volumes;
use super::{NodeConfig, Start, records};
use crate::api::types::Membership;
use crate::api::{self, ApiError, Code, SocketError};
use crate::cluster::{self, Beats, Catalog, ControlError, RecoverError, View, keep_node_alive};
use crate::docker::DoorError;
use crate::exec::Runtime;
use crate::fdstore::{FdStore, Held};
use crate::fs::{FileSystem, FsError};
use crate::fuse::Handoff;
use crate::replication::{DiskCopies, Environment, ReplicaHost};
use crate::rpc::{CredentialsError, Identity, Kind, Server};
use crate::trust::{Key, Token, TokenId, TrustError};
use crate::volume::{
    ClusterId, DEFAULT_NAMESPACE, LabelError, Labels, NameError, Node, NodeId, Scope, VolumeRef, canonical_labels,
    check_name,
};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pause between attempts to join, or to register, while nobody answers.
const RETRY: Duration = Duration::from_millis(500);
/// Longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Longest time that one step of stopping may take.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long making or joining a cluster waits until the node works in it.
const READY: Duration = Duration::from_secs(10);
/// Pause between looks whether the node is in a cluster by now.
const LOOK: Duration = Duration::from_millis(100);
/// How often the node says how much space it has.
const REPORT: Duration = Duration::from_secs(30);

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The name.
    #[error("node name: {0}")]
    Name(#[from] NameError),
    /// A label.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Peers could not use the address.
    #[error("{0} is not an address that other nodes can use; say with --advertise which one is")]
    Wildcard(SocketAddr),
    /// The port for peers.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The API's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The address for clients of the API.
    #[error("cannot serve the API on {address}: {source}")]
    Api {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The address for metrics.
    #[error("cannot serve metrics on {address}: {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The door for Docker.
    #[error(transparent)]
    Docker(#[from] DoorError),
    /// The copies' directory.
    #[error("{path}: {source}")]
    Volumes {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The node's part of the control plane.
    #[error(transparent)]
    Plane(#[from] ControlError),
    /// Making or joining the cluster.
    #[error("{0}")]
    Cluster(#[from] ApiError),
    /// The node's certificate and key.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// They do not fit.
    #[error("tls/node.pem in the data directory: {0}")]
    Credentials(#[from] CredentialsError),
    /// They are another cluster's.
    #[error("tls/node.pem in the data directory is of another cluster ({0}) than the node")]
    OtherCertificate(ClusterId),
    /// There are none, and no authority is known that could give them.
    #[error(
        "this node is a member of cluster {0} and has no certificate, nor has the cluster an authority as far as this node knows: its data directory is of a \
         version from before nodes had certificates, or tls/ and control/ were removed. Start with a new data directory: make the cluster anew, or delete the \
         node on another member (storageos node delete) and let it join by a token"
    )]
    NoCertificate(ClusterId),
}

/// A running daemon. Dropping it without [`Daemon::stop`] leaves its tasks to the end of the runtime, as a crash would.
pub struct Daemon {
    pub(super) shared: Arc<Shared>,
    server: Server,
    /// Cancelled as soon as the daemon is told to stop.
    pub(super) leaving: CancellationToken,
    pub(super) api_stop: CancellationToken,
    pub(super) api_tasks: TaskTracker,
}

/// What the daemon's parts share.
pub(super) struct Shared {
    this: Weak<Self>,
    pub(super) node: NodeId,
    pub(super) name: String,
    /// For peers.
    pub(super) address: String,
    pub(super) identity: Identity,
    pub(super) config: NodeConfig,
    labels: Labels,
    pub(super) data: DataDir,
    host: Arc<ReplicaHost>,
    pub(super) journal: Arc<Journal>,
    pub(super) plane: Plane,
    pub(super) looking: Arc<Looking>,
    /// The mounts, and what an earlier daemon left of its own.
    pub(super) handoff: Handoff,
    fdstore: Option<Arc<FdStore>>,
    kept: Mutex<Vec<Kept>>,
    joined: RwLock<Option<Arc<Joined>>>,
    /// One at a time makes or joins a cluster.
    entering: tokio::sync::Mutex<()>,
    /// The key for which this node wants a certificate, by this token.
    pub(super) pending: tokio::sync::Mutex<Option<(TokenId, Key)>>,
    /// Why it gave up joining.
    denied: RwLock<Option<ApiError>>,
    stop: CancellationToken,
}

/// What a member of a cluster has besides.
pub(super) struct Joined {
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) control: Control,
    pub(super) mounts: Arc<Mounts>,
    pub(super) server: NodeServer,
    pub(super) nodes: Arc<Nodes>,
    pub(super) volumes: Arc<Volumes>,
    /// How well the lease is kept.
    pub(super) beats: Arc<Beats>,
    plane: Plane,
    /// Cancelled once the node is registered, alive and rid of what an earlier daemon left.
    ready: CancellationToken,
    scrubber: Arc<Scrubber>,
    /// Ends the lease.
    leave: CancellationToken,
    tasks: TaskTracker,
}

impl Joined {
    /// Takes a deleted node out of the control plane's membership.
    pub(super) async fn remove_member(&self, node: NodeId) -> Result<(), ControlError> {
        self.plane.remove_member(node).await
    }

    /// Makes this node's replica the control plane.
    pub(super) async fn recover_plane(&self) -> Result<u64, RecoverError> {
        self.plane.recover().await
    }

    /// The control plane's leader and voters.
    pub(super) fn status(&self) -> PlaneStatus {
        self.plane.status()
    }

    /// What is wrong with the control plane.
    pub(super) async fn plane_problems(&self) -> Vec<String> {
        self.plane.problems().await
    }
}

impl Shared {
    /// The membership, or the error that says how to get one.
    pub(super) fn joined(&self) -> Result<Arc<Joined>, ApiError> {
        let joined = self.joined.read().clone().filter(|joined| joined.ready.is_cancelled());
        joined.ok_or_else(|| self.not_joined())
    }

    /// The same for a member that is not ready yet: what it can tell helps to see why.
    pub(super) fn joining(&self) -> Result<Arc<Joined>, ApiError> {
        self.joined.read().clone().ok_or_else(|| self.not_joined())
    }

    /// Whether it enters no cluster by itself.
    fn needs_a_word(&self) -> bool {
        let waits = self.identity.cluster().is_none() && matches!(self.config.start, Start::Wait);
        waits || self.denied.read().is_some() || self.plane.expelled().is_some()
    }

    fn not_joined(&self) -> ApiError {
        let node = &self.name;
        if let Some(denied) = self.denied.read().clone() {
            return denied;
        }
        if let Some(why) = self.plane.expelled() {
            return ApiError::conflict(why);
        }
        if self.identity.cluster().is_some() || !matches!(self.config.start, Start::Wait) {
            return ApiError::unavailable(format!("node {node} is not a working member of its cluster yet"))
                .hint("it is starting or waiting for the other nodes; see its log");
        }
        ApiError::unavailable(format!("node {node} is in no cluster"))
            .hint("make one: storageos cluster init\nor join one: storageos cluster join --token-file FILE ADDR:PORT")
    }

    /// Keeps that the node is a member of a cluster from now on, and begins to be one; returns when it is, as a rule.
    async fn enter(&self, cluster: ClusterId) -> Result<Membership, ApiError> {
        self.identity
            .set_cluster(cluster)
            .map_err(|error| ApiError::conflict(error.to_string()))?;
        self.data
            .set_cluster(cluster)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        self.become_member(cluster);
        if let Ok(joined) = self.joining() {
            // It becomes one later if the control plane takes longer.
            let _ = tokio::time::timeout(READY, joined.ready.cancelled()).await;
        }
        Ok(Membership {
            cluster,
            node: self.node,
            node_name: self.name.clone(),
        })
    }

    /// `cluster init`.
    pub(super) async fn init(&self) -> Result<Membership, ApiError> {
        let _one = self.entering.lock().await;
        if let Some(cluster) = self.identity.cluster() {
            return Err(ApiError::conflict(format!(
                "node {} is in cluster {cluster} already",
                self.name
            )));
        }
        let cluster = self.plane.init().await?;
        let catalog = Catalog::new(self.plane.store());
        catalog
            .make_authority(cluster, self.config.certificate_validity)
            .await?;
        self.certify(&catalog).await?;
        tracing::info!(%cluster, node = %self.name, "cluster made");
        self.enter(cluster).await
    }

    /// `cluster join`: through the first address that lets it in.
    pub(super) async fn join(&self, addresses: &[String], token: Option<&Token>) -> Result<Membership, ApiError> {
        let _one = self.entering.lock().await;
        if let Some(cluster) = self.identity.cluster() {
            return Err(ApiError::conflict(format!(
                "node {} is in cluster {cluster} already",
                self.name
            )));
        }
        if self.plane.is_own() {
            self.enrol(addresses, token).await?;
        }
        let cluster = self.plane.join(addresses).await?;
        if !self.plane.is_own() {
            self.certify(&Catalog::new(self.plane.store())).await?;
        }
        *self.denied.write() = None;
        tracing::info!(%cluster, node = %self.name, "cluster joined");
        self.enter(cluster).await
    }

    /// The same with the token that was given at the start.
    async fn join_at_start(&self, addresses: &[String]) -> Result<Membership, ApiError> {
        let token = if self.plane.is_own() {
            self.token_at_start()?
        } else {
            None
        };
        self.join(addresses, token.as_ref()).await
    }

    /// This node's record.
    pub(super) fn record(&self) -> Node {
        let (capacity, free) = self.data.capacity().unwrap_or_else(|error| {
            tracing::warn!(%error, "the space under the data directory is unknown");
            (0, 0)
        });
        Node {
            id: self.node,
            name: self.name.clone(),
            address: self.address.clone(),
            labels: self.labels.clone(),
            cordoned: false,
            drained: false,
            capacity,
            free,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: Timestamp::now(),
        }
    }

    /// Starts what a member does. The control plane need not answer yet.
    fn become_member(&self, id: ClusterId) {
        let catalog = Catalog::new(self.plane.store());
        let view = catalog.watch(self.stop.clone());
        self.plane.take_part(view.clone());
        let control = Control::new(catalog.clone(), view.clone());
        self.journal.set_control(control.clone());
        self.host.set_parts(Arc::new(records::KnownParts(control.clone())));
        let environment = Environment {
            config: Arc::new(records::Records(control.clone())),
            peers: Arc::new(records::Addresses(control.clone())),
            observer: self.journal.clone(),
            runtime: Runtime::of(Handle::current()),
        };
        let nodes = Arc::new(Nodes::new(self.identity.clone()));
        let mounts = Mounts::new(
            self.host.clone(),
            environment.clone(),
            control.clone(),
            nodes.clone(),
            self.fdstore.clone(),
        );
        let volumes = Volumes::new(
            self.host.clone(),
            environment,
            self.config.replication,
            control.clone(),
            mounts.clone(),
            self.journal.clone(),
            self.data.volumes(),
        );
        let scrubber = Scrubber::new(
            volumes.clone(),
            self.config.scrub,
            self.data.path().join("scrubs.json"),
            self.stop.child_token(),
        );
        let server = NodeServer {
            scrubber: scrubber.clone(),
            host: self.host.clone(),
            mounts: mounts.clone(),
            nodes: nodes.clone(),
            problems: volumes.serving.problems.clone(),
            journal: self.journal.clone(),
            directory: self.data.volumes(),
            shared: self.this.clone(),
        };
        let joined = Arc::new(Joined {
            node: self.node,
            cluster: id,
            control,
            mounts,
            server,
            nodes,
            volumes: volumes.clone(),
            beats: Arc::default(),
            plane: self.plane.clone(),
            ready: CancellationToken::new(),
            leave: CancellationToken::new(),
            scrubber: scrubber.clone(),
            tasks: TaskTracker::new(),
        });
        // A request in progress holds it.
        if let Some(shared) = self.this.upgrade() {
            let (leave, keep) = (joined.leave.clone(), shared.clone().keep_locks(joined.control.clone()));
            joined.tasks.spawn(async move {
                tokio::select! {
                    () = leave.cancelled() => {}
                    () = keep => {}
                }
            });
            joined
                .tasks
                .spawn(shared.work(joined.clone(), catalog.clone(), view.clone()));
        }
        joined.tasks.spawn(volumes.run());
        joined.tasks.spawn(scrubber.run());
        joined.tasks.spawn(cluster::control(
            catalog,
            view,
            self.config.timing,
            joined.leave.clone(),
        ));
        *self.joined.write() = Some(joined);
    }

    /// Registers the node, cleans up after an earlier daemon, keeps the lease and reports space until told to leave.
    async fn work(self: Arc<Self>, joined: Arc<Joined>, catalog: Catalog, mut view: watch::Receiver<Arc<View>>) {
        let registering = async {
            let mut pause = RETRY;
            while let Err(error) = catalog.register_node(&self.record()).await {
                tracing::warn!(%error, node = %self.name, "this node is not registered in the cluster yet, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_RETRY);
            }
        };
        tokio::select! {
            () = joined.leave.cancelled() => return,
            () = registering => {}
        }
        let (lease, beats) = (self.config.lease, joined.beats.clone());
        let alive = keep_node_alive(catalog.clone(), self.node, lease, beats, joined.leave.clone());
        let begin = async {
            let known = |view: &Arc<View>| view.nodes.contains_key(&self.node) && view.live.contains(&self.node);
            // Its sender ends with the daemon alone.
            let _ = view.wait_for(known).await;
            joined
                .mounts
                .go_on(std::mem::take(&mut *self.kept.lock()), &self.handoff);
            joined.mounts.clean_up().await;
            joined.ready.cancel();
            tracing::info!(
                node = %self.name, cluster = %joined.cluster, address = %self.address,
                "this node is a member of its cluster"
            );
            std::future::pending::<()>().await;
        };
        let report = async {
            loop {
                tokio::time::sleep(REPORT).await;
                let Ok((capacity, free)) = self.data.capacity() else {
                    continue;
                };
                let reported = catalog.update_node(self.node, |node| {
                    (node.capacity, node.free) = (capacity, free);
                    Ok(())
                });
                if let Err(error) = reported.await {
                    tracing::debug!(%error, "the node's free space could not be reported");
                }
            }
        };
        tokio::select! {
            () = alive => {}
            () = begin => {}
            () = report => {}
        }
    }
}

impl Daemon {
    /// Whether a daemon can start with this, as far as that is to be told from it alone; the node's labels.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(config: &NodeConfig) -> Result<Labels, StartError> {
        if let Some(name) = &config.name {
            check_name(name)?;
        }
        let labels = config.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let labels = canonical_labels(labels, Scope::Node)?;
        if config.advertise.unwrap_or(config.listen).ip().is_unspecified() {
            return Err(StartError::Wildcard(config.listen));
        }
        Ok(labels)
    }

    /// Starts a daemon. It may still be joining or waiting for its cluster when this returns; the API says so.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: NodeConfig) -> Result<Self, StartError> {
        let labels = Self::check(&config)?;
        let data = DataDir::open(&config.data_dir, config.name.as_deref())?;
        let identity = Identity::new(data.id(), data.cluster());
        admission::load(data.path(), &identity)?;
        let volumes = data.volumes();
        let copies = DiskCopies::new(&volumes).map_err(|source| StartError::Volumes { path: volumes, source })?;
        let host = ReplicaHost::new(identity.clone(), copies);
        let journal = Journal::open(data.path(), data.id());
        let at = config.listen;
        let listen = |source| StartError::Listen { address: at, source };
        let builder = Server::bind(&config.listen.to_string(), identity.clone())
            .await
            .map_err(listen)?;
        let bound = builder.local_address().map_err(listen)?;
        let address = match config.advertise {
            Some(told) if told.port() == 0 => SocketAddr::new(told.ip(), bound.port()),
            Some(told) => told,
            None => bound,
        };
        let plane = Plane::open(&config.control, &data, &identity, &address.to_string()).await?;
        admission::prepare(&plane, data.path(), &identity)?;
        let fdstore = config.outlive.clone().map(FdStore::new);
        let kept = held(fdstore.clone()).await;
        let shared = Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            handoff: super::backend::handoff(this),
            fdstore,
            kept: Mutex::new(kept),
            node: data.id(),
            name: data.name().to_owned(),
            address: address.to_string(),
            identity,
            labels,
            host,
            journal,
            plane,
            looking: Arc::default(),
            joined: RwLock::new(None),
            entering: tokio::sync::Mutex::new(()),
            pending: tokio::sync::Mutex::new(None),
            denied: RwLock::new(None),
            stop: CancellationToken::new(),
            data,
            config,
        });
        let server = shared.listen(builder).map_err(listen)?;
        let daemon = Self {
            shared,
            server,
            leaving: CancellationToken::new(),
            api_stop: CancellationToken::new(),
            api_tasks: TaskTracker::new(),
        };
        daemon.open_doors()?;
        daemon.begin().await?;
        Ok(daemon)
    }

    /// Returns when the node is a working member of its cluster, so that volumes can be mounted, or when it takes a person's word to become one.
    pub async fn settled(&self) {
        let shared = &self.shared;
        loop {
            match shared.joining() {
                Ok(joined) => return joined.ready.cancelled().await,
                Err(_) if shared.needs_a_word() => return,
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Goes on in the cluster that the node is in, or makes or joins one as told.
    async fn begin(&self) -> Result<(), StartError> {
        let shared = &self.shared;
        if let Some(cluster) = shared.identity.cluster() {
            shared.become_member(cluster);
            if let (Start::Join(addresses), false) = (&shared.config.start, shared.plane.is_member()) {
                self.join_control_plane(cluster, addresses);
            }
            return Ok(());
        }
        match &shared.config.start {
            Start::Wait => {
                tracing::info!(
                    node = %shared.name,
                    "this node is in no cluster: make one with storageos cluster init, or join one with storageos cluster join"
                );
            }
            Start::Init => {
                shared.init().await?;
            }
            Start::Join(addresses) => {
                let (shared, addresses) = (shared.clone(), addresses.clone());
                let stop = shared.stop.clone();
                let joining = async move {
                    while let Err(error) = shared.join_at_start(&addresses).await {
                        if shared.identity.cluster().is_some() {
                            // Somebody was faster, through the API.
                            return;
                        }
                        if matches!(error.code, Code::Denied | Code::Invalid) {
                            tracing::error!(%error, "this node cannot join; give it a token: storageos cluster join --token-file FILE ADDR:PORT");
                            *shared.denied.write() = Some(error);
                            return;
                        }
                        tracing::warn!(%error, "cannot join the cluster yet, trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                };
                self.api_tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = joining => {}
                    }
                });
            }
        }
        Ok(())
    }

    /// A node of the cluster whose part of the control plane is gone (its records moved to another store and back) gets a new one.
    fn join_control_plane(&self, cluster: ClusterId, addresses: &[String]) {
        let (shared, addresses) = (self.shared.clone(), addresses.to_owned());
        self.api_tasks.spawn(async move {
            let joining = async {
                loop {
                    match shared.plane.join(&addresses).await {
                        Ok(_) => return tracing::info!(%cluster, "this node takes part in the control plane again"),
                        Err(error) => tracing::warn!(%error, "cannot take part in the control plane yet, trying again"),
                    }
                    tokio::time::sleep(RETRY).await;
                }
            };
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = joining => {}
            }
        });
    }

    /// The node's address for its peers.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// What the API offers, for programs that run a daemon in their own process.
    #[must_use]
    pub fn operations(&self) -> Arc<dyn api::Operations> {
        self.shared.clone()
    }

    /// Opens a volume in this process, as a mount on this node does but without the kernel: claimed here, and
    /// nowhere else until it is closed.
    ///
    /// # Errors
    /// The node is in no cluster, the volume does not exist, is in use, or did not become usable within `timeout`.
    pub async fn attach(&self, volume: &str, read_only: bool, timeout: Duration) -> Result<Attached, ApiError> {
        let joined = self.shared.joined()?;
        let wanted = Wanted {
            volume: VolumeRef::parse(volume, DEFAULT_NAMESPACE).map_err(|e| ApiError::invalid(e.to_string()))?,
            mountpoint: PathBuf::from("(in process)"),
            read_only,
            timeout,
            outlives: false,
        };
        let mount = joined.mounts.open(&wanted).await?;
        Ok(Attached {
            mounts: joined.mounts.clone(),
            mount,
        })
    }

    /// Stops and leaves the live mounts to the next daemon of this node; until it has started their programs wait. Without a
    /// descriptor store this is [`Daemon::stop`].
    pub async fn hand_over(self, hurry: CancellationToken) {
        if self.shared.fdstore.is_none() {
            tracing::warn!("this daemon's mounts cannot outlive it (--keep-mounts 0s): unmounting them");
            return self.stop(hurry).await;
        }
        tracing::info!(node = %self.shared.name, "stopping, the mounts stay for the next daemon");
        let joined = self.shared.joined.read().clone();
        if let Some(joined) = &joined {
            joined.mounts.leave().await;
        }
        self.end(joined).await;
    }

    /// Stops in order. Busy mounts are waited for, a minute at most, or until `hurry` is cancelled; then they are detached.
    pub async fn stop(self, hurry: CancellationToken) {
        tracing::info!(node = %self.shared.name, "stopping");
        self.leaving.cancel();
        let joined = self.shared.joined.read().clone();
        if let Some(joined) = &joined {
            joined.mounts.stop(&hurry).await;
        }
        self.end(joined).await;
    }

    /// The rest, once the mounts are closed or left to the next daemon.
    async fn end(self, joined: Option<Arc<Joined>>) {
        if let Some(joined) = &joined {
            joined.scrubber.stop();
            // Without the other nodes a change of a volume's record waits for them; the copies are then as after a crash.
            bounded("volumes", joined.volumes.stop()).await;
            joined.leave.cancel();
            joined.tasks.close();
            bounded("tasks", joined.tasks.wait()).await;
        }
        // While the others can still be asked: a voter that is away counts for the majority, one that handed its vote over does not.
        bounded("vote", self.shared.plane.retire()).await;
        self.shared.stop.cancel();
        bounded("control plane", self.shared.plane.stop()).await;
        self.api_stop.cancel();
        bounded("connections", self.server.stop()).await;
        self.api_tasks.close();
        self.api_tasks.wait().await;
        tracing::info!(node = %self.shared.name, "stopped");
    }
}

/// What an earlier daemon left in the descriptor store.
async fn held(fdstore: Option<Arc<FdStore>>) -> Vec<Kept> {
    let Some(fdstore) = fdstore else { return Vec::new() };
    let take = move || {
        let held = fdstore.take().unwrap_or_else(|error| {
            tracing::error!(%error, "the mounts of this node's last daemon cannot be had");
            Vec::new()
        });
        let known = |held: Held| {
            let name = held.name.clone();
            let kept = Kept::of(held);
            if kept.is_none() {
                // Nobody will go on with it: it ends, as without a store.
                fdstore.let_go(&name);
            }
            kept
        };
        held.into_iter().filter_map(known).collect()
    };
    tokio::task::spawn_blocking(take).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the mounts of this node's last daemon cannot be had");
        Vec::new()
    })
}

/// A step of stopping, which must not wait for what may never come.
async fn bounded(part: &str, step: impl Future<Output = ()>) {
    if tokio::time::timeout(STOP_DEADLINE, step).await.is_err() {
        tracing::warn!(part, "did not end within {STOP_DEADLINE:?}; stopping without it");
    }
}

/// A volume that is open in this process. To be closed with [`Attached::close`]: dropping it leaves it open and claimed.
pub struct Attached {
    mounts: Arc<Mounts>,
    mount: Arc<Mount>,
}

impl Attached {
    /// Its file system.
    #[must_use]
    pub fn file_system(&self) -> &Arc<FileSystem> {
        &self.mount.fs
    }

    /// Makes everything durable and gives the volume back.
    ///
    /// # Errors
    /// Not everything could be made durable; it is given back all the same.
    pub async fn close(self) -> Result<(), FsError> {
        let fs = self.mount.fs.clone();
        let end = tokio::task::spawn_blocking(move || fs.close())
            .await
            .unwrap_or_else(|error| Err(FsError::Metadata(error.to_string())));
        self.mounts.finish(&self.mount, &end).await;
        end
    }
}

impl Shared {
    /// Says who serves which kind of connection, and starts accepting.
    fn listen(self: &Arc<Self>, builder: crate::rpc::Builder) -> std::io::Result<Server> {
        let (data, sync) = (self.host.clone(), self.host.clone());
        let (node, control, enrol) = (Arc::downgrade(self), Arc::downgrade(self), Arc::downgrade(self));
        builder
            .on(Kind::Data, move |connection| data.clone().serve(connection))
            .on(Kind::Sync, move |connection| sync.clone().serve(connection))
            .on(Kind::Node, move |connection| {
                let joined = node.upgrade().and_then(|shared| shared.joined.read().clone());
                async move {
                    // Before it is a member it has nothing to tell.
                    if let Some(joined) = joined {
                        joined.server.clone().on_connection(connection).await;
                    }
                }
            })
            .on(Kind::Enrol, move |connection| {
                let shared = enrol.upgrade();
                async move {
                    if let Some(shared) = shared {
                        shared.admit(connection).await;
                    }
                }
            })
            .on(Kind::Control, move |connection| {
                let shared = control.upgrade();
                async move {
                    if let Some(shared) = shared {
                        shared.plane.serve(connection).await;
                    }
                }
            })
            .start()
    }
}
