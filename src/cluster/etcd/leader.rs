//! Who runs the controller when etcd keeps the records: the node whose id the key `PREFIX/leader` holds, by a lease that it keeps.
//!
//! A node that cannot keep the lease stops leading when the lease would have run out by its own clock, which began before etcd's. Should two lead for a moment,
//! nothing happens: the controller's changes are transactions that compare.
//!
//! The leader also notices killed nodes: it ends the lease of one whose port refuses connections twice in a row, long before it would run out.
//! The others watch the leader's port the same way. Ending a lease too early is safe: what a node may do is fenced by epochs.

use super::{Inner, words};
use crate::cluster::records::{Key, decode, encode_id};
use crate::cluster::store::{ControlError, LeaseId, Revision};
use crate::rpc;
use crate::volume::NodeId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Life of the leader's lease without a keepalive.
const TTL: Duration = Duration::from_secs(5);
/// Between keepalives.
const KEEP: Duration = Duration::from_millis(1250);
/// Between two looks at the nodes' ports.
const PROBE: Duration = Duration::from_millis(500);
/// Time of a port to answer.
const PING: Duration = Duration::from_secs(2);
/// Longest wait for the leader's key to go, before it is read again.
const WAIT: Duration = Duration::from_secs(2);
/// Pause after etcd did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Refused connections in a row that end a node's lease.
const REFUSALS: u32 = 2;

/// Tells where the live nodes listen for their peers.
pub(super) type Addresses = Box<dyn Fn() -> BTreeMap<NodeId, String> + Send + Sync>;

/// Who holds the leader's key, and until when that may be believed.
pub(super) struct Holder {
    node: NodeId,
    until: Instant,
}

impl Holder {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            until: Instant::now() + TTL + WAIT,
        }
    }

    /// The node, unless this was heard too long ago.
    pub(super) fn node(&self) -> Option<NodeId> {
        (Instant::now() < self.until).then_some(self.node)
    }
}

/// How a campaign ended.
enum Campaign {
    /// This node leads by a lease that lives until then at least.
    Won(LeaseId, Instant),
    /// Another one does, by this lease, as of this revision.
    Lost(NodeId, LeaseId, Revision),
}

/// Leads, or waits for its turn to, until the store stops.
pub(super) async fn run(inner: Arc<Inner>, addresses: Addresses) {
    let mut refused = Refused::default();
    while !inner.stop.is_cancelled() {
        let campaign = tokio::select! {
            campaign = campaign(&inner) => campaign,
            () = inner.stop.cancelled() => return,
        };
        match campaign {
            Ok(Campaign::Won(lease, until)) => {
                *inner.holder.lock() = Some(Holder::new(inner.identity.node()));
                inner.leader.send_replace(true);
                tracing::info!(leads = true, "leadership of the control plane");
                tokio::select! {
                    () = keep(&inner, lease, until) => {}
                    () = look_after_nodes(&inner, &addresses) => {}
                    () = inner.stop.cancelled() => {}
                }
                inner.leader.send_replace(false);
                tracing::info!(leads = false, "leadership of the control plane");
                if inner.stop.is_cancelled() {
                    // Best effort: it runs out by itself.
                    let _ = tokio::time::timeout(RETRY, inner.revoke(lease)).await;
                }
            }
            Ok(Campaign::Lost(node, lease, revision)) => {
                *inner.holder.lock() = Some(Holder::new(node));
                tokio::select! {
                    () = gone(&inner, revision) => {}
                    () = killed(&addresses, node, &mut refused) => {
                        tracing::info!(%node, "the leader's daemon is gone: its lease ends");
                        if let Err(error) = inner.revoke(lease).await {
                            tracing::debug!(%error, lease, "a lease could not be ended; trying again");
                        }
                    }
                    () = tokio::time::sleep(WAIT) => {}
                    () = inner.stop.cancelled() => return,
                }
            }
            Err(error) => {
                tracing::debug!(%error, "who leads the control plane is not known; trying again");
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = inner.stop.cancelled() => return,
                }
            }
        }
    }
}

fn key(inner: &Inner) -> String {
    format!("{}/leader", inner.config.prefix)
}

/// Takes the key if nobody has it.
async fn campaign(inner: &Inner) -> Result<Campaign, ControlError> {
    let (key, own) = (key(inner), inner.identity.node());
    let mut done = inner.txn(Vec::new(), vec![words::get(&key)], Vec::new()).await?;
    if let Some(kv) = done.range().kvs.first() {
        let row = kv.row("")?;
        let lease = row.lease.unwrap_or_default();
        match decode::<NodeId>(&row.key, &row.value) {
            Some(node) if node != own => return Ok(Campaign::Lost(node, lease, done.revision)),
            // This node's own, of before its restart: one daemon at a time has its data directory.
            Some(_) if lease != 0 => inner.revoke(lease).await?,
            _ => {
                let delete = vec![words::delete(&key)];
                inner
                    .txn(vec![words::at_revision(&key, row.revision)], delete, Vec::new())
                    .await?;
            }
        }
    }
    let until = Instant::now() + TTL;
    let lease = inner.grant(TTL).await?;
    let put = words::put(&key, &encode_id(&own), Some(lease));
    let taken = inner.txn(vec![words::at_revision(&key, 0)], vec![put], vec![words::get(&key)]);
    let mut done = match taken.await {
        Ok(done) => done,
        Err(error) => {
            let _ = tokio::time::timeout(RETRY, inner.revoke(lease)).await;
            return Err(error);
        }
    };
    if done.succeeded {
        return Ok(Campaign::Won(lease, until));
    }
    let row = done.range().kvs.first().map(|kv| kv.row("")).transpose()?;
    match row.and_then(|row| Some((decode::<NodeId>(&row.key, &row.value)?, row.lease?))) {
        // A first attempt whose answer was lost.
        Some((node, held)) if node == own && held == lease => Ok(Campaign::Won(lease, until)),
        Some((node, held)) => {
            inner.revoke(lease).await?;
            Ok(Campaign::Lost(node, held, done.revision))
        }
        None => {
            inner.revoke(lease).await?;
            Err(ControlError::Unavailable(
                "the leader's key changed at the same time".to_owned(),
            ))
        }
    }
}

/// Keeps the lease; returns when it is gone or may be.
async fn keep(inner: &Inner, lease: LeaseId, mut until: Instant) {
    loop {
        tokio::time::sleep_until((Instant::now() + KEEP).min(until)).await;
        let sent = Instant::now();
        match timeout_at(until, inner.keep_alive(lease)).await {
            Ok(Ok(true)) => {
                until = sent + TTL;
                *inner.holder.lock() = Some(Holder::new(inner.identity.node()));
            }
            Ok(Err(error)) if sent < until => {
                tracing::debug!(%error, "the leader's lease could not be kept; trying again")
            }
            Ok(Ok(false) | Err(_)) | Err(_) => return,
        }
    }
}

/// Returns when the leader's key is removed after a revision, or its watch breaks.
async fn gone(inner: &Inner, after: Revision) {
    let Ok(mut watching) = inner.watch(&key(inner), after).await else {
        return std::future::pending().await;
    };
    while let Ok(message) = watching.stream.next().await {
        let removed = |events: Vec<super::Event>| events.iter().any(|event| event.row.is_none());
        if message.canceled || message.events("").is_ok_and(removed) {
            return;
        }
    }
}

/// Connections that each node refused in a row.
type Refused = BTreeMap<NodeId, u32>;

/// Whether a node's port refused often enough.
async fn refuses(node: NodeId, address: &str, refused: &mut Refused) -> bool {
    let no = tokio::time::timeout(PING, rpc::refuses(address)).await.unwrap_or(false);
    let count = refused.entry(node).or_default();
    *count = if no { *count + 1 } else { 0 };
    if *count >= REFUSALS {
        *count = 0;
        return true;
    }
    false
}

/// Returns when the leader's daemon is gone.
async fn killed(addresses: &Addresses, node: NodeId, refused: &mut Refused) {
    loop {
        if let Some(address) = addresses().get(&node)
            && refuses(node, address, refused).await
        {
            return;
        }
        tokio::time::sleep(PROBE).await;
    }
}

/// Ends the leases of nodes whose daemons are gone, for ever.
async fn look_after_nodes(inner: &Inner, addresses: &Addresses) {
    let mut refused = Refused::default();
    loop {
        let own = inner.identity.node();
        let known = addresses();
        refused.retain(|node, _| known.contains_key(node));
        let looks = known
            .into_iter()
            .filter(|(node, _)| *node != own)
            .map(|(node, address)| {
                let count = refused.get(&node).copied().unwrap_or_default();
                async move {
                    let mut one = Refused::from([(node, count)]);
                    let gone = refuses(node, &address, &mut one).await;
                    (node, one.remove(&node).unwrap_or_default(), gone)
                }
            });
        for (node, count, gone) in futures::future::join_all(looks).await {
            refused.insert(node, count);
            if gone && let Err(error) = end(inner, node).await {
                tracing::debug!(%error, %node, "a lease could not be ended; trying again");
            }
        }
        tokio::time::sleep(PROBE).await;
    }
}

async fn end(inner: &Inner, node: NodeId) -> Result<(), ControlError> {
    let key = inner.key(&Key::Live(node).text());
    let mut done = inner.txn(Vec::new(), vec![words::get(&key)], Vec::new()).await?;
    let row = done.range().kvs.first().map(|kv| kv.row("")).transpose()?;
    if let Some(lease) = row.and_then(|row| row.lease) {
        tracing::info!(%node, lease, "a lease ends: the node's daemon is gone");
        inner.revoke(lease).await?;
    }
    Ok(())
}
