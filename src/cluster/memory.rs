//! A control store in the memory of one process: for tests and for programs that run a whole cluster in one process.

use super::kv::{Answer, Command, Kv};
use super::store::{ControlError, ControlStore, Event, LeaseId, Outcome, Revision, Row, Transaction};
use crate::exec::{
    sync::Mutex,
    time::{self, Instant},
};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

/// Longest wait of [`ControlStore::changes`].
const WATCH_WAIT: Duration = Duration::from_secs(2);

/// Shortest wait.
const MOMENT: Duration = Duration::from_millis(1);

/// The store.
pub struct MemoryStore {
    kv: Mutex<Kv>,
    /// When each lease runs out; looked at by every call.
    expiry: Mutex<BTreeMap<LeaseId, Instant>>,
    revision: watch::Sender<Revision>,
    leader: watch::Sender<bool>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            kv: Mutex::default(),
            expiry: Mutex::default(),
            revision: watch::Sender::new(0),
            leader: watch::Sender::new(true),
        }
    }
}

impl MemoryStore {
    fn apply(&self, command: &Command) -> Answer {
        let mut kv = self.kv.lock();
        let answer = kv.apply(command);
        let revision = kv.revision();
        drop(kv);
        self.revision.send_replace(revision);
        answer
    }

    fn expire(&self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        self.expiry.lock().retain(|lease, at| {
            let alive = *at > now;
            if !alive {
                expired.push(*lease);
            }
            alive
        });
        for lease in expired {
            self.apply(&Command::Revoke(lease));
        }
    }
}

#[async_trait]
impl ControlStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Row>, ControlError> {
        self.expire();
        Ok(self.kv.lock().get(key).cloned())
    }

    async fn range(&self, prefix: &str) -> Result<(Vec<Row>, Revision), ControlError> {
        self.expire();
        let kv = self.kv.lock();
        Ok((kv.range(prefix), kv.revision()))
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, ControlError> {
        self.expire();
        match self.apply(&Command::Transact(transaction)) {
            Answer::Outcome(outcome) => Ok(outcome),
            other => Err(ControlError::Damaged(format!(
                "a transaction was answered by {other:?}"
            ))),
        }
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<(Vec<Event>, Revision), ControlError> {
        let deadline = Instant::now() + WATCH_WAIT;
        let mut revision = self.revision.subscribe();
        loop {
            self.expire();
            {
                let kv = self.kv.lock();
                let events = kv.events(prefix, after).map_err(ControlError::Compacted)?;
                if !events.is_empty() || Instant::now() >= deadline {
                    return Ok((events, kv.revision()));
                }
            }
            // When the next lease runs out it is looked at again: nobody else does. A new one wakes this.
            let next = self.expiry.lock().values().copied().min();
            let until = next.map_or(deadline, |next| next.min(deadline));
            let wait = until.saturating_duration_since(Instant::now()).max(MOMENT);
            let _ = time::timeout(wait, revision.changed()).await;
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError> {
        match self.apply(&Command::Grant(ttl)) {
            Answer::Granted(lease) => {
                self.expiry.lock().insert(lease, Instant::now() + ttl);
                Ok(lease)
            }
            other => Err(ControlError::Damaged(format!("a grant was answered by {other:?}"))),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, ControlError> {
        self.expire();
        let Some(ttl) = self.kv.lock().leases().get(&lease).copied() else {
            return Ok(false);
        };
        self.expiry.lock().insert(lease, Instant::now() + ttl);
        Ok(true)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ControlError> {
        self.expiry.lock().remove(&lease);
        self.apply(&Command::Revoke(lease));
        Ok(())
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leader.subscribe()
    }
}
