//! The words of the API: what requests say and what answers hold, as JSON with camelCase keys.
//!
//! Requests refuse fields they do not know, so that a misspelt one is an error and not ignored. Answers may gain fields.

use crate::volume::{ClusterId, Event, NodeId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of `cluster init`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InitRequest {}

/// Of `cluster join`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// `ADDR:PORT` of members of the cluster; any one that answers will do.
    pub addresses: Vec<String>,
    /// What `cluster token create` printed; not needed if the records are in etcd.
    #[serde(default)]
    pub token: Option<String>,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinRequest({:?})", self.addresses)
    }
}

/// Of `cluster token create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenCreate {
    /// How long it lives.
    pub ttl_seconds: u64,
    /// Nodes that may join by it.
    pub uses: u32,
}

/// The answer to `cluster token create`: the only time that the token is shown.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenMade {
    /// Names it; no secret.
    pub id: String,
    /// What the new node needs; a secret.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Nodes that may join by it.
    pub uses: u32,
}

impl std::fmt::Debug for TokenMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenMade({})", self.id)
    }
}

/// A token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Names it.
    pub id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Nodes that may join by it in all.
    pub uses: u32,
    /// Those that did.
    pub used: Vec<TokenUseInfo>,
}

/// Who used a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenUseInfo {
    /// The node.
    pub node: NodeId,
    /// Its name, or its id while it is none yet.
    pub node_name: String,
    /// When.
    pub at: Timestamp,
}

/// Of `cluster client create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCreate {
    /// What people call it.
    pub name: String,
    /// Its public key: a point of P-256, uncompressed, in base64.
    pub public_key: String,
    /// How long its certificate holds.
    pub ttl_seconds: u64,
}

/// The answer to `cluster client create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientMade {
    /// Names it.
    pub id: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its certificate, DER in base64.
    pub certificate: String,
    /// The authority's certificate, DER in base64.
    pub authority: String,
    /// When its certificate ends.
    pub expires_at: Timestamp,
}

/// A client of the API over the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientInfo {
    /// Names it.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its certificate ends.
    pub expires_at: Timestamp,
}

/// Of `cluster rotate-certificates`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateRequest {}

/// The answer to `cluster init` and `cluster join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// This node's name.
    pub node_name: String,
}

/// Whether the cluster is well.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterHealth {
    /// The cluster.
    pub id: ClusterId,
    /// No problem was found.
    pub healthy: bool,
    /// Name of the control plane's leader; `None`: there is none now.
    pub leader: Option<String>,
    /// Names of the control plane's voters; with etcd, its endpoints.
    pub voters: Vec<String>,
    /// Every node.
    pub nodes: Vec<NodeHealth>,
    /// Number of volumes by their health.
    pub volumes: BTreeMap<String, usize>,
    /// What is not well, one sentence each.
    pub problems: Vec<String>,
}

/// One node in [`ClusterHealth`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeHealth {
    /// The node's name.
    pub name: String,
    /// Its address for peers.
    pub address: String,
    /// `healthy` or `offline`.
    pub health: String,
    /// `leader`, `voter` or `learner`; with etcd, `leader` or `member`.
    pub role: String,
}

/// What the cluster is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInfo {
    /// The cluster.
    pub id: ClusterId,
    /// Name of the control plane's leader.
    pub leader: Option<String>,
    /// Names of its voters; with etcd, its endpoints.
    pub voters: Vec<String>,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of volumes.
    pub volumes: usize,
    /// Number of namespaces.
    pub namespaces: usize,
    /// The answering node.
    pub answered_by: String,
    /// Its version.
    pub version: String,
}

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Kept in the node's data directory.
    pub id: NodeId,
    /// Unique in the cluster.
    pub name: String,
    /// `ADDR:PORT` for its peers.
    pub address: String,
    /// `healthy` or `offline`.
    pub health: String,
    /// Since when, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_since: Option<Timestamp>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes no new copies; a drained node takes none either.
    pub cordoned: bool,
    /// Whether its copies are moved off.
    pub drained: bool,
    /// Whether it takes part in the control plane's votes; `None` with etcd, where no node does.
    #[serde(default)]
    pub voter: Option<bool>,
    /// Volumes whose master it holds.
    pub masters: usize,
    /// Volumes of which it holds a replica.
    pub replicas: usize,
    /// Bytes of the file system with its copies.
    pub capacity: u64,
    /// Bytes free there.
    pub free: u64,
    /// Its daemon's version.
    pub version: String,
    /// When it joined.
    pub created_at: Timestamp,
}

/// Of `node update`, `cordon`, `uncordon`, `drain` and `undrain`; what is absent stays as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeUpdate {
    /// Labels to set.
    #[serde(default)]
    pub label_add: BTreeMap<String, String>,
    /// Labels to take away.
    #[serde(default)]
    pub label_remove: Vec<String>,
    /// Take new copies or not.
    #[serde(default)]
    pub cordoned: Option<bool>,
    /// Move the copies there are to other nodes, and take no new ones; or not any more.
    #[serde(default)]
    pub drained: Option<bool>,
}

/// How far the draining of a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainInfo {
    /// The node's name.
    pub name: String,
    /// Whether its copies are being moved off.
    pub drained: bool,
    /// No copy that counts is on it: it may be stopped.
    pub empty: bool,
    /// Copies still on it.
    pub remaining: Vec<RemainingCopy>,
    /// Volumes that it has mounted: stopping it unmounts them.
    pub mounts: Vec<String>,
}

/// Of `cluster recover`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoverRequest {}

/// The answer to `cluster recover`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// The node whose replica is the control plane now.
    pub node_name: String,
    /// Recoveries of this cluster so far.
    pub recoveries: u64,
    /// Volumes in it.
    pub volumes: usize,
}

/// Whether one node reaches another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connectivity {
    /// Name of the node that tried.
    pub source: String,
    /// Name of the node that it tried to reach.
    pub name: String,
    /// That node's address for peers.
    pub address: String,
    /// Microseconds of one request and its answer, if it was reached.
    pub latency_micros: Option<u64>,
    /// `ok`, `failed`, or `unknown`: the source could not be asked.
    pub status: String,
    /// Why not, if it was not reached.
    pub message: String,
}

/// A copy that is still on a drained node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemainingCopy {
    /// `namespace/name`.
    pub volume: String,
    /// Whether it is the master's.
    pub master: bool,
    /// Nothing moves it before an operator does something or a node returns; `message` says what is missing.
    pub stuck: bool,
    /// What it waits for.
    pub message: String,
}

/// A namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceInfo {
    /// Unique.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Free text.
    pub description: String,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Number of volumes in it.
    pub volumes: usize,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Of `namespace create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceCreate {
    /// Unique.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub display_name: String,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Of `volume create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeCreate {
    /// An existing namespace.
    pub namespace: String,
    /// Unique in it.
    pub name: String,
    /// Bytes for file data.
    pub size: u64,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Labels in any spelling.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Terms that a node's labels must meet to hold a copy.
    #[serde(default)]
    pub node_selector: String,
}

/// Of `volume update`; what is absent stays as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeUpdate {
    /// Free text.
    #[serde(default)]
    pub description: Option<String>,
    /// Bytes; not less than now.
    #[serde(default)]
    pub size: Option<u64>,
    /// Labels to set, in any spelling.
    #[serde(default)]
    pub label_add: BTreeMap<String, String>,
    /// Labels to take away.
    #[serde(default)]
    pub label_remove: Vec<String>,
    /// Also when the volume could not be written then, or when there are not enough nodes for its copies.
    #[serde(default)]
    pub force: bool,
    /// The `epoch` that the caller saw in [`VolumeInfo`]; another one now is a conflict.
    #[serde(default)]
    pub epoch: Option<u64>,
}

/// A copy's progress while it is brought up to date.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncInfo {
    /// Bytes of the volume compared so far.
    pub bytes_done: u64,
    /// Bytes to compare in all.
    pub bytes_total: u64,
    /// Bytes left to compare.
    #[serde(default)]
    pub bytes_left: u64,
    /// Bytes sent, since they differed.
    pub bytes_sent: u64,
    /// Bytes a second since it began.
    pub bytes_per_second: u64,
    /// Seconds left at this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// Times that it was begun.
    #[serde(default)]
    pub attempts: u64,
    /// Seconds since it last got on.
    #[serde(default)]
    pub idle_seconds: u64,
    /// Why it had to start again, if it had to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One copy of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyInfo {
    /// The copy: the volume's id and the node's.
    pub id: String,
    /// The node that holds it.
    pub node: NodeId,
    /// That node's name.
    pub node_name: String,
    /// `healthy`, `syncing`, `provisioned`, `suspect`, `offline`, `lost`.
    pub health: String,
    /// `active`, `syncing`, `unavailable`, `failed`.
    pub status: String,
    /// When the volume was created.
    pub created_at: Timestamp,
    /// Bytes it takes on its disk, where its node answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// How far its sync is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncInfo>,
}

/// What a scrub found on one copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScrubbedCopyInfo {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// Bytes read and compared with their hashes.
    pub bytes_read: u64,
    /// Blocks of 4 KiB that did not match.
    pub corrupt_blocks: u64,
    /// Those of them that were replaced by another copy's.
    pub repaired_blocks: u64,
    /// Why some of it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The present or last scrub of a volume by its master's node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScrubInfo {
    /// It goes on.
    pub running: bool,
    /// It was asked for; otherwise it is the slow one in the background.
    pub asked: bool,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Bytes of the volume done.
    pub bytes_done: u64,
    /// Bytes of the volume in all.
    pub bytes_total: u64,
    /// What it found.
    pub copies: Vec<ScrubbedCopyInfo>,
    /// Why it ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeInfo {
    /// Never reused.
    pub id: VolumeId,
    /// Unique in its namespace.
    pub name: String,
    /// Bytes for file data.
    pub size: u64,
    /// The pool; there is one, `default`.
    pub pool: String,
    /// Free text.
    pub description: String,
    /// Labels in their canonical spelling.
    pub labels: BTreeMap<String, String>,
    /// The namespace.
    pub namespace: String,
    /// Terms that a node's labels must meet to hold a copy.
    pub node_selector: String,
    /// The master's copy; `None` until placed.
    pub master: Option<CopyInfo>,
    /// Whether it is mounted.
    pub mounted: bool,
    /// Where, if it is.
    pub mountpoint: String,
    /// Since when, if it is.
    pub mounted_at: Option<Timestamp>,
    /// By which node, if it is.
    pub mounted_by: String,
    /// Whether that mount is read-only.
    pub read_only: bool,
    /// Replicas that the label asks for.
    pub desired_replicas: u8,
    /// The replicas.
    pub replicas: Vec<CopyInfo>,
    /// `healthy`, `syncing`, `suspect`, `degraded`, `offline`.
    pub health: String,
    /// `pending`, `active`, `unavailable`, `failed`, `deleting`.
    pub status: String,
    /// Why it is not active or not healthy, and what would help.
    pub status_message: String,
    /// The configuration's epoch: raised by each change of who holds copies.
    pub epoch: u64,
    /// Bytes that its files take, where its mount's node answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Blocks found corrupt since its master became active, where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt_blocks: Option<u64>,
    /// Those of them that were replaced by another copy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired_blocks: Option<u64>,
    /// The present or last scrub by its master's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubInfo>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Who created it; there are no users yet, so `storageos`.
    pub created_by: String,
}

/// Of `volume unmount` and `volume rm`, as a query.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Force {
    /// Even when it is in use, or its node is gone.
    #[serde(default)]
    pub force: bool,
}

/// Of `volume promote`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromoteRequest {
    /// The node whose copy is to be the master: a name or id.
    pub copy: String,
    /// What was written since the copy was in sync is given up.
    #[serde(default)]
    pub accept_data_loss: bool,
}

/// The answer to `volume promote`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Promotion {
    /// `namespace/name`.
    pub volume: String,
    /// The new master's node.
    pub node_name: String,
    /// What is lost.
    pub explanation: String,
}

/// Of `volume scrub`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScrubRequest {}

/// Of `volume verify`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifyRequest {
    /// Read all data again and compare it with its sums, on every copy.
    #[serde(default)]
    pub deep: bool,
}

/// One copy in a [`VerifyReport`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedCopy {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// Whether it is the master.
    pub master: bool,
    /// `identical`, `differs`, `corrupt`, `unchecked`.
    pub result: String,
    /// Extents of 4 MiB that differ from the master's copy.
    pub differing_extents: Vec<u64>,
    /// Blocks of 4 KiB whose bytes do not match their sums (deep only).
    pub corrupt_blocks: Vec<u64>,
    /// Why it could not be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The answer to `volume verify`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// `namespace/name`.
    pub volume: String,
    /// Every copy in sync, the master's first.
    pub copies: Vec<VerifiedCopy>,
    /// Whether data was read again.
    pub deep: bool,
    /// Extents compared.
    pub extents: u64,
}

/// Of `volume check`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckRequest {}

/// The answer to `volume check`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeCheck {
    /// `namespace/name`.
    pub volume: String,
    /// The node that did it: the one that has the volume mounted, else its master's.
    pub node_name: String,
    /// Whether it was mounted, and checked as it was at one moment.
    pub mounted: bool,
    /// Files, directories and whatever else has an inode.
    pub inodes: u64,
    /// Bytes that files take.
    pub used_bytes: u64,
    /// Bytes that there are for files.
    pub capacity: u64,
    /// What is wrong with the file system, in words; empty if nothing.
    pub problems: Vec<String>,
    /// Problems beyond those, which are too many to list.
    pub unlisted_problems: u64,
}

/// Which volumes to list, as a query.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeFilter {
    /// Only this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Only volumes whose labels meet these terms: `key=value,key!=value,key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

/// Which events to list, as a query.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventFilter {
    /// Only those of this volume, `name` or `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Only those of this node, or recorded by it; a name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only those from this time on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// The answer to a question for events.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventList {
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// Names of nodes that did not answer: what they alone recorded is missing.
    pub silent_nodes: Vec<String>,
}

/// Whether a node can do its work now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// It can.
    pub ready: bool,
    /// Why not, one sentence each.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Not ready for these reasons; ready if there is none.
    #[must_use]
    pub fn not(reasons: Vec<String>) -> Self {
        Self {
            ready: reasons.is_empty(),
            reasons,
        }
    }
}

/// A node in a [`Manifest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiagnosedNode {
    /// Its name.
    pub name: String,
    /// Its address for peers.
    pub address: String,
    /// Why it did not answer, if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is in the archive of `cluster diagnostics`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The gathering daemon's version.
    pub version: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Name of the gathering node.
    pub answered_by: String,
    /// The cluster; `None`: the node is in none.
    pub cluster: Option<ClusterId>,
    /// The nodes, the gathering one first.
    pub nodes: Vec<DiagnosedNode>,
    /// The other files.
    pub files: Vec<String>,
}

/// Which node answers, and for which cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// The daemon's version.
    pub version: String,
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// Its address for peers.
    pub address: String,
    /// Its cluster; `None`: it is in none yet.
    pub cluster: Option<ClusterId>,
}
