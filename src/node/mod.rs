//! The daemon: composition root of a node. Starts, wires and stops the rest; knows no protocol.
//!
//! [`Daemon::start`] with a [`NodeConfig`] gives a running node, in this process; `storageos node run` is no more than that.
//!
//! Inside: [`daemon`] is the life cycle, `doors` who may ask it; `volumes` reacts to the control store's view, with a `keeper` for each volume whose
//! master is here; `mounts` and `unmount` are the life of a mount, over the `switch` device, `kept` its life after a daemon's death; `service` is what daemons ask
//! each other; `admission` is who may be a node at all; `operations` and `inspect` answer the API; `journal` keeps the events, `scrubber` reads all copies again from time
//! to time; `telemetry` (with `process`) gathers the metrics, `readiness` says whether the node can work, `diagnostics` makes the archive for a bug report, with
//! `recent` log lines and without secrets (`redact`); `transfer` puts records into another control store.

mod admission;
mod backend;
mod checker;
mod clients;
pub(crate) mod control;
mod daemon;
mod data_dir;
mod diagnostics;
mod doors;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod inspect;
mod journal;
pub(crate) mod keeper;
mod kept;
mod membership;
mod mounts;
mod operations;
mod plane;
mod process;
mod readiness;
mod recent;
pub(crate) mod records;
mod redact;
pub(crate) mod route;
mod scrubber;
mod service;
pub(crate) mod switch;
mod telemetry;
#[cfg(test)]
mod tests;
mod transfer;
mod unmount;
mod volumes;

use crate::cluster::Timing;
use crate::fdstore::FdStoreConfig;
use crate::replication::Options;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use admission::TokenSource;
pub use daemon::{Attached, Daemon, StartError};
pub use data_dir::DataDirError;
pub use plane::ControlConfig;
pub use recent::RecentLog;
pub use redact::words as without_secrets;
pub use transfer::{ImportError, import};

/// Lease of a node: after so long without a sign of life it counts as dead.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(5);

/// Time of a background scrub's pass.
pub const DEFAULT_SCRUB: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the certificates of nodes hold.
pub const DEFAULT_CERTIFICATE_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// A socket of the API.
#[derive(Clone, Debug)]
pub struct ApiSocket {
    /// Its path.
    pub path: PathBuf,
    /// The daemon goes on without it if it cannot be had.
    pub optional: bool,
}

/// What a node that is in no cluster does at its start. One that is in a cluster goes on in it.
#[derive(Clone, Debug, Default)]
pub enum Start {
    /// Waits to be told through the API.
    #[default]
    Wait,
    /// Makes a cluster of its own.
    Init,
    /// Joins the cluster of one of these members, when one answers.
    Join(Vec<String>),
}

/// How a daemon is to run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Everything that it keeps.
    pub data_dir: PathBuf,
    /// Where it listens for its peers; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The address that peers use, if not that.
    pub advertise: Option<SocketAddr>,
    /// Unique in the cluster; needed at the first start only.
    pub name: Option<String>,
    /// Labels of the node, in any spelling.
    pub labels: BTreeMap<String, String>,
    /// Where the API listens.
    pub sockets: Vec<ApiSocket>,
    /// Where Docker finds this node's volume driver; `None`: it does not. Needs one of `sockets` that is not optional.
    pub docker: Option<PathBuf>,
    /// The group that may use the API, besides root.
    pub socket_group: Option<u32>,
    /// Where the cluster's state is kept.
    pub control: ControlConfig,
    /// What to do when in no cluster.
    pub start: Start,
    /// For [`Start::Join`].
    pub token: TokenSource,
    /// For [`Start::Init`]: how long the certificates of the new cluster's nodes hold.
    pub certificate_validity: Duration,
    /// See [`DEFAULT_LEASE`].
    pub lease: Duration,
    /// Deadlines of replication.
    pub replication: Options,
    /// How long the controller waits before it acts.
    pub timing: Timing,
    /// Time in which every copy is read once and compared with its hashes; `None`: only when asked to.
    pub scrub: Option<Duration>,
    /// Where clients with a certificate may use the API over the network; `None`: nowhere.
    pub api: Option<SocketAddr>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served besides the sockets, without encryption or passwords; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The log's latest lines, for a bug report.
    pub log: Option<Arc<RecentLog>>,
    /// How the daemon was started, for a bug report; see [`without_secrets`].
    pub command_line: Vec<String>,
    /// What holds the mounts when the daemon dies, for the next one; `None`: they end with it.
    pub outlive: Option<FdStoreConfig>,
}

impl NodeConfig {
    /// A node with defaults for everything else; its API listens in the data directory.
    #[must_use]
    pub fn new(data_dir: PathBuf, listen: SocketAddr, name: &str) -> Self {
        let socket = ApiSocket {
            path: data_dir.join(crate::api::SOCKET_IN_DATA_DIR),
            optional: false,
        };
        Self {
            data_dir,
            listen,
            advertise: None,
            name: Some(name.to_owned()),
            labels: BTreeMap::new(),
            sockets: vec![socket],
            docker: None,
            socket_group: None,
            control: ControlConfig::default(),
            start: Start::default(),
            token: TokenSource::default(),
            certificate_validity: DEFAULT_CERTIFICATE_VALIDITY,
            lease: DEFAULT_LEASE,
            replication: Options::default(),
            timing: Timing::default(),
            scrub: Some(DEFAULT_SCRUB),
            api: None,
            metrics: None,
            log: None,
            command_line: Vec::new(),
            outlive: None,
        }
    }
}
