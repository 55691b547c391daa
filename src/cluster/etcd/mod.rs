//! A control store in etcd v3 (3.4 or newer), through the JSON gateway that every etcd serves on its client port.
//!
//! Rows are keys below `PREFIX/records/`; a row's revision is etcd's `mod_revision`, the store's revision is etcd's, which other users of the
//! same etcd raise too. Everything but a watch is one etcd transaction, so it is linearizable.
//!
//! # Fence
//! Once the node is in a cluster, every transaction, reads too, compares that the cluster's record is the one that it joined: an etcd that lost its
//! data, or another one, is never read or written by mistake. Revisions that go back say the same while the daemon runs.
//!
//! # Leader
//! The node that holds the key `PREFIX/leader` by a lease runs the controller (`leader`).
//!
//! # Failures
//! Without etcd nothing changes; a request fails after [`EtcdConfig::deadline`] with an error that names the endpoints. A transaction whose answer
//! was lost is repeated; the catalog's operations recognise their own first attempt.

mod config;
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::cluster) mod fuzzing;
mod gateway;
mod leader;
#[cfg(test)]
mod tests;
mod words;

pub use config::{EtcdAddressError, EtcdConfig};

use super::records::{Key, encode_id};
use super::store::{Change, ControlError, ControlStore, Event, LeaseId, Outcome, Revision, Row, Transaction};
use crate::rpc::Identity;
use crate::volume::NodeId;
use async_trait::async_trait;
use gateway::{CallError, Gateway, Stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use words::{Lease, Range, Txn, Watched};

/// Longest wait of [`ControlStore::changes`].
const WATCH_WAIT: Duration = Duration::from_secs(2);
/// Rows of one answer: etcd has no bound of its own, the daemon's memory has.
const PAGE: usize = 200;
/// Times that a range begins anew because its revision was compacted meanwhile.
const RANGE_ATTEMPTS: usize = 5;
/// gRPC's code of what does not exist: a lease.
const NOT_FOUND: u32 = 5;
/// gRPC's code of a revision that is compacted.
const OUT_OF_RANGE: u32 = 11;

/// The control store of one node. Clones share it.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: EtcdConfig,
    identity: Identity,
    gateway: Gateway,
    /// The highest revision that a linearizable answer named.
    highest: AtomicU64,
    /// What the last watch left, for the next one that goes on where it ended.
    watching: Mutex<Option<Watching>>,
    leader: watch::Sender<bool>,
    holder: Mutex<Option<leader::Holder>>,
    /// Why etcd is not the one that holds this node's cluster, once found.
    lost: Mutex<Option<String>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A watch that goes on.
struct Watching {
    prefix: String,
    after: Revision,
    stream: Stream<Watched>,
}

impl EtcdStore {
    /// A node's store in etcd; nothing is asked yet. The identity's cluster, once set, fences it: see the module's text.
    #[must_use]
    pub fn new(config: EtcdConfig, identity: Identity) -> Self {
        Self {
            inner: Arc::new(Inner {
                gateway: Gateway::new(config.endpoints.clone(), config.deadline),
                config,
                identity,
                highest: AtomicU64::new(0),
                watching: Mutex::default(),
                leader: watch::Sender::new(false),
                holder: Mutex::default(),
                lost: Mutex::default(),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn config(&self) -> &EtcdConfig {
        &self.inner.config
    }

    /// From now on this node leads when nobody else does. `addresses` tells where a node listens for its peers, and which nodes are alive, so that
    /// killed ones are noticed before their leases run out.
    pub fn take_part(&self, addresses: impl Fn() -> BTreeMap<NodeId, String> + Send + Sync + 'static) {
        let inner = self.inner.clone();
        self.inner
            .tasks
            .spawn(async move { leader::run(inner, Box::new(addresses)).await });
    }

    /// The node that leads, as far as this one heard lately.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.holder.lock().as_ref().and_then(leader::Holder::node)
    }

    /// What each endpoint says of itself: nothing if it is well.
    pub async fn health(&self) -> Vec<(String, Result<(), String>)> {
        let gateway = &self.inner.gateway;
        let asked = gateway
            .endpoints()
            .iter()
            .map(|endpoint| async move { (endpoint.clone(), gateway.health(endpoint).await) });
        futures::future::join_all(asked).await
    }

    /// Why etcd does not hold this node's cluster, if it was found not to.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.inner.lost.lock().clone()
    }

    /// Stops taking part: gives the leadership back if this node has it.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl From<CallError> for ControlError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { .. } | CallError::Away(_) => Self::Unavailable(error.to_string()),
            CallError::Unreadable(_) => Self::Damaged(error.to_string()),
        }
    }
}

impl From<words::Unreadable> for ControlError {
    fn from(error: words::Unreadable) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// What a transaction came to.
struct Done {
    succeeded: bool,
    revision: Revision,
    ranges: std::vec::IntoIter<Range>,
}

impl Done {
    fn range(&mut self) -> Range {
        self.ranges.next().unwrap_or_default()
    }
}

impl Inner {
    /// What keys of rows begin with.
    fn root(&self) -> String {
        format!("{}/records/", self.config.prefix)
    }

    fn key(&self, key: &str) -> String {
        format!("{}/records/{key}", self.config.prefix)
    }

    /// A transaction behind the fence.
    async fn txn(&self, compare: Vec<Value>, success: Vec<Value>, failure: Vec<Value>) -> Result<Done, ControlError> {
        self.try_txn(compare, success, failure).await?.map_err(Into::into)
    }

    /// The same; the inner error is etcd's refusal.
    async fn try_txn(
        &self,
        mut compare: Vec<Value>,
        success: Vec<Value>,
        mut failure: Vec<Value>,
    ) -> Result<Result<Done, CallError>, ControlError> {
        let cluster = self.key(&Key::Cluster.text());
        let expected = self.identity.cluster().map(|id| encode_id(&id));
        if let Some(expected) = &expected {
            compare.push(words::has_value(&cluster, expected));
            failure.push(words::get(&cluster));
        }
        let body = json!({"compare": compare, "success": success, "failure": failure});
        let before = self.highest.load(Ordering::Acquire);
        let answer: Txn = match self.gateway.call("/v3/kv/txn", &body).await {
            Ok(answer) => answer,
            Err(error @ CallError::Refused { .. }) => return Ok(Err(error)),
            Err(error) => return Err(error.into()),
        };
        let revision = answer.header.revision;
        if revision < before {
            return Err(self.lost(&format!("its revision went back from {before} to {revision}")));
        }
        self.highest.fetch_max(revision, Ordering::AcqRel);
        let succeeded = answer.succeeded;
        let mut ranges: Vec<Range> = answer.ranges().collect();
        if let (Some(expected), false) = (expected, succeeded) {
            let found = ranges.pop().unwrap_or_default();
            let row = found.kvs.first().map(|kv| kv.row("")).transpose()?;
            match row {
                Some(row) if row.value == expected => {}
                Some(_) => return Err(self.lost("it holds another cluster")),
                None => return Err(self.lost("the cluster's record is not there")),
            }
        }
        if self.lost.lock().take().is_some() {
            tracing::info!(etcd = %self.config, "etcd holds this node's cluster again");
        }
        Ok(Ok(Done {
            succeeded,
            revision,
            ranges: ranges.into_iter(),
        }))
    }

    /// etcd is not the one it was.
    fn lost(&self, what: &str) -> ControlError {
        let cluster = match self.identity.cluster() {
            Some(cluster) => cluster.to_string(),
            None => "of this node".to_owned(),
        };
        let text = format!(
            "{} does not hold cluster {cluster} as this node knows it: {what}. Either it is another etcd or prefix, or it lost its data or was \
             set back: see \"When etcd lost its data\" in docs/operations.md. Nothing is read from it or changed in it",
            self.config
        );
        if self.lost.lock().replace(text.clone()).is_none() {
            tracing::error!("{text}");
        }
        ControlError::Damaged(text)
    }

    /// Opens a watch of keys that begin with `prefix`, for the changes after a revision.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watching, ControlError> {
        let (stream, first) = self
            .gateway
            .stream::<Watched>("/v3/watch", &words::watch(prefix, after + 1))
            .await?;
        check(&first, after)?;
        if !first.created {
            return Err(ControlError::Unavailable("etcd did not begin a watch".to_owned()));
        }
        if first.header.revision < after {
            // A member that lags, or an etcd that began anew: a linearizable answer tells.
            self.txn(Vec::new(), Vec::new(), Vec::new()).await?;
        }
        Ok(Watching {
            prefix: prefix.to_owned(),
            after,
            stream,
        })
    }

    /// Ends a lease; one that is gone already is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), ControlError> {
        let body = json!({"ID": lease.to_string()});
        match self.gateway.call::<Value>("/v3/lease/revoke", &body).await {
            Ok(_) | Err(CallError::Refused { code: NOT_FOUND, .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError> {
        // etcd counts in seconds, and knows no shorter lease than its own failover takes.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let body = json!({"TTL": seconds.max(1).to_string()});
        let lease: Lease = self.gateway.call("/v3/lease/grant", &body).await?;
        if lease.id == 0 {
            return Err(ControlError::Damaged(
                "etcd granted a lease without a number".to_owned(),
            ));
        }
        Ok(lease.id)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, ControlError> {
        let body = json!({"ID": lease.to_string()});
        let (_, answer) = self.gateway.stream::<Lease>("/v3/lease/keepalive", &body).await?;
        Ok(answer.ttl > 0)
    }

    /// The first of these leases that is not alive.
    async fn dead_lease(&self, leases: &[LeaseId]) -> Result<LeaseId, ControlError> {
        for lease in leases {
            let body = json!({"ID": lease.to_string()});
            let answer: Lease = self.gateway.call("/v3/lease/timetolive", &body).await?;
            if answer.ttl <= 0 {
                return Ok(*lease);
            }
        }
        Err(ControlError::Unavailable(
            "etcd refused a lease that is alive".to_owned(),
        ))
    }
}

/// Whether a watch goes on.
fn check(message: &Watched, after: Revision) -> Result<(), ControlError> {
    if message.compact_revision > 0 {
        return Err(ControlError::Compacted(message.compact_revision.max(after + 1)));
    }
    if message.canceled {
        return Err(ControlError::Unavailable(format!(
            "etcd ended a watch: {}",
            message.cancel_reason
        )));
    }
    Ok(())
}

/// The last change of each key: etcd takes one in a transaction.
fn last_changes(changes: &[Change]) -> BTreeMap<String, &Change> {
    let key = |change: &'_ Change| -> String {
        match change {
            Change::Put { key, .. } | Change::Delete { key } => key.clone(),
        }
    };
    changes.iter().map(|change| (key(change), change)).collect()
}

#[async_trait]
impl ControlStore for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Row>, ControlError> {
        let inner = &self.inner;
        let mut done = inner
            .txn(Vec::new(), vec![words::get(&inner.key(key))], Vec::new())
            .await?;
        let root = inner.root();
        Ok(done.range().kvs.first().map(|kv| kv.row(&root)).transpose()?)
    }

    async fn range(&self, prefix: &str) -> Result<(Vec<Row>, Revision), ControlError> {
        let inner = &self.inner;
        let (root, full) = (inner.root(), inner.key(prefix));
        'anew: for _ in 0..RANGE_ATTEMPTS {
            let mut rows: Vec<Row> = Vec::new();
            let mut at = None;
            let mut start = full.clone().into_bytes();
            loop {
                let page = words::page(&full, &start, PAGE, at);
                let mut done = match inner.try_txn(Vec::new(), vec![page], Vec::new()).await? {
                    Ok(done) => done,
                    // Compacted between two pages.
                    Err(CallError::Refused { code: OUT_OF_RANGE, .. }) if at.is_some() => continue 'anew,
                    Err(error) => return Err(error.into()),
                };
                let revision = *at.get_or_insert(done.revision);
                let range = done.range();
                for kv in &range.kvs {
                    rows.push(kv.row(&root)?);
                }
                match rows.last() {
                    Some(last) if range.more && !range.kvs.is_empty() => {
                        start = inner.key(&last.key).into_bytes();
                        start.push(0);
                    }
                    _ => return Ok((rows, revision)),
                }
            }
        }
        Err(ControlError::Unavailable(
            "etcd compacts its history faster than it can be read".to_owned(),
        ))
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, ControlError> {
        let inner = &self.inner;
        let compare = transaction
            .compares
            .iter()
            .map(|c| words::at_revision(&inner.key(&c.key), c.revision))
            .collect();
        let mut leases = Vec::new();
        let success = last_changes(&transaction.changes)
            .into_values()
            .map(|change| match change {
                Change::Put { key, value, lease } => {
                    leases.extend(*lease);
                    words::put(&inner.key(key), value, *lease)
                }
                Change::Delete { key } => words::delete(&inner.key(key)),
            })
            .collect();
        match inner.try_txn(compare, success, Vec::new()).await? {
            Ok(done) if done.succeeded => Ok(Outcome::Committed(done.revision)),
            Ok(_) => Ok(Outcome::Conflict),
            Err(CallError::Refused { code: NOT_FOUND, .. }) if !leases.is_empty() => {
                inner.dead_lease(&leases).await.map(Outcome::NoLease)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<(Vec<Event>, Revision), ControlError> {
        let inner = &self.inner;
        if inner.stop.is_cancelled() {
            return Err(ControlError::Unavailable("the control plane has stopped here".into()));
        }
        let deadline = Instant::now() + WATCH_WAIT;
        let (root, full) = (inner.root(), inner.key(prefix));
        let goes_on = |w: &Watching| w.prefix == full && w.after == after;
        let left = inner.watching.lock().take().filter(goes_on);
        let mut watching = match left {
            Some(watching) => watching,
            None => inner.watch(&full, after).await?,
        };
        loop {
            let message = tokio::select! {
                message = timeout_at(deadline, watching.stream.next()) => message,
                () = inner.stop.cancelled() => return Ok((Vec::new(), after)),
            };
            // A watch on which nothing happens is opened anew: an endpoint that is gone would never say so.
            let Ok(message) = message else {
                return Ok((Vec::new(), after));
            };
            let message = message.map_err(|e| ControlError::Unavailable(format!("etcd's watch broke: {e}")))?;
            check(&message, after)?;
            let events = message.events(&root)?;
            // A revision is never split between messages.
            if let Some(last) = events.last() {
                let next = last.revision;
                watching.after = next;
                *inner.watching.lock() = Some(watching);
                return Ok((events, next));
            }
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, ControlError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ControlError> {
        self.inner.revoke(lease).await
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.inner.leader.subscribe()
    }
}
