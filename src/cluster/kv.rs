//! The control store's state machine: deterministic, the same on every node that applies the same commands in order.
//!
//! It has no clock: the leader decides when a lease has run out and commands it. History is kept for watchers, bounded by
//! [`HISTORY`] events.

use super::store::{Change, Event, LeaseId, Outcome, Revision, Row, Transaction};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Events kept for watchers that lag.
const HISTORY: usize = 4096;

/// A change of the state, as the Raft log carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A transaction.
    Transact(Transaction),
    /// A new lease with this time to live.
    Grant(Duration),
    /// A lease ended, by its owner or by time.
    Revoke(LeaseId),
    /// The control plane was recovered from one replica, for the time of this number: revisions begin above all that the lost
    /// members may have seen, and watchers read everything again.
    Recovered(u64),
}

/// Comparisons, and changes, of a transaction: etcd takes no more.
const MAX_PARTS: usize = 100;
/// Longest time to live of a lease.
const MAX_LEASE: Duration = Duration::from_secs(3600);

impl Command {
    /// Whether a node may ask the leader for it. What is in the log every node applies, now and whenever it starts: a number there that no clock can
    /// reach would end them all.
    #[must_use]
    pub fn may_be_proposed(&self) -> bool {
        match self {
            Self::Transact(transaction) => {
                transaction.compares.len() <= MAX_PARTS && transaction.changes.len() <= MAX_PARTS
            }
            Self::Grant(ttl) => *ttl <= MAX_LEASE,
            Self::Revoke(_) => true,
            // Only the recovery itself writes it.
            Self::Recovered(_) => false,
        }
    }
}

/// Numbers (revisions of the store, epochs of volumes) that a control plane can use up before it has to be recovered again.
pub const RECOVERY_STEP: u64 = 1 << 40;

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Of a transaction.
    Outcome(Outcome),
    /// The new lease.
    Granted(LeaseId),
    /// Whether there was such a lease.
    Revoked(bool),
    /// The first revision after the recovery.
    Recovered(Revision),
}

/// The rows, the leases, and the latest events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kv {
    revision: Revision,
    rows: BTreeMap<String, Row>,
    next_lease: LeaseId,
    leases: BTreeMap<LeaseId, Duration>,
    history: VecDeque<Event>,
    /// Events up to this revision are gone.
    compacted: Revision,
}

impl Kv {
    /// Applies a command.
    pub fn apply(&mut self, command: &Command) -> Answer {
        match command {
            Command::Transact(transaction) => Answer::Outcome(self.transact(transaction)),
            Command::Grant(ttl) => {
                self.next_lease += 1;
                self.leases.insert(self.next_lease, *ttl);
                Answer::Granted(self.next_lease)
            }
            Command::Revoke(lease) => Answer::Revoked(self.revoke(*lease)),
            Command::Recovered(number) => {
                let floor = number.saturating_mul(RECOVERY_STEP);
                self.revision = self.revision.max(floor).saturating_add(1);
                self.history.clear();
                self.compacted = self.revision;
                Answer::Recovered(self.revision)
            }
        }
    }

    fn transact(&mut self, transaction: &Transaction) -> Outcome {
        let revision_of = |key: &str| self.rows.get(key).map_or(0, |row| row.revision);
        if transaction.compares.iter().any(|c| revision_of(&c.key) != c.revision) {
            return Outcome::Conflict;
        }
        for change in &transaction.changes {
            if let Change::Put { lease: Some(lease), .. } = change
                && !self.leases.contains_key(lease)
            {
                return Outcome::NoLease(*lease);
            }
        }
        self.revision += 1;
        for change in &transaction.changes {
            match change {
                Change::Put { key, value, lease } => {
                    let row = Row {
                        key: key.clone(),
                        value: value.clone(),
                        revision: self.revision,
                        lease: *lease,
                    };
                    self.rows.insert(key.clone(), row.clone());
                    self.remember(key.clone(), Some(row));
                }
                Change::Delete { key } => self.delete(key),
            }
        }
        Outcome::Committed(self.revision)
    }

    fn revoke(&mut self, lease: LeaseId) -> bool {
        if self.leases.remove(&lease).is_none() {
            return false;
        }
        self.revision += 1;
        let keys: Vec<String> = self
            .rows
            .values()
            .filter(|row| row.lease == Some(lease))
            .map(|row| row.key.clone())
            .collect();
        for key in keys {
            self.delete(&key);
        }
        true
    }

    fn delete(&mut self, key: &str) {
        if self.rows.remove(key).is_some() {
            self.remember(key.to_owned(), None);
        }
    }

    fn remember(&mut self, key: String, row: Option<Row>) {
        if self.history.len() == HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.revision;
        }
        self.history.push_back(Event {
            key,
            row,
            revision: self.revision,
        });
    }

    /// The revision of the last change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The row of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Row> {
        self.rows.get(key)
    }

    /// Rows by prefix, in order.
    #[must_use]
    pub fn range(&self, prefix: &str) -> Vec<Row> {
        let from = self.rows.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, row)| row.clone())
            .collect()
    }

    /// Events of a prefix after a revision; an error with the oldest revision that can be asked for if they are gone.
    ///
    /// # Errors
    /// The revision up to which history is gone.
    pub fn events(&self, prefix: &str, after: Revision) -> Result<Vec<Event>, Revision> {
        if after < self.compacted {
            return Err(self.compacted);
        }
        let first = self.history.partition_point(|event| event.revision <= after);
        Ok(self
            .history
            .range(first..)
            .filter(|e| e.key.starts_with(prefix))
            .cloned()
            .collect())
    }

    /// The leases and how long each lives without a keepalive.
    #[must_use]
    pub fn leases(&self) -> &BTreeMap<LeaseId, Duration> {
        &self.leases
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::Compare;
    use super::*;

    fn put(key: &str, value: &str, lease: Option<LeaseId>) -> Change {
        Change::Put {
            key: key.into(),
            value: value.into(),
            lease,
        }
    }

    fn transact(kv: &mut Kv, compares: &[(&str, Revision)], changes: Vec<Change>) -> Outcome {
        let compares = compares.iter().map(|(key, revision)| Compare {
            key: (*key).into(),
            revision: *revision,
        });
        match kv.apply(&Command::Transact(Transaction {
            compares: compares.collect(),
            changes,
        })) {
            Answer::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_transaction_happens_wholly_or_not_at_all() {
        let mut kv = Kv::default();
        assert_eq!(
            transact(&mut kv, &[("a", 0)], vec![put("a", "1", None), put("b", "1", None)]),
            Outcome::Committed(1)
        );
        assert_eq!(
            transact(&mut kv, &[("a", 0)], vec![put("c", "1", None)]),
            Outcome::Conflict
        );
        assert_eq!(
            transact(&mut kv, &[("a", 1), ("b", 9)], vec![put("c", "1", None)]),
            Outcome::Conflict
        );
        assert_eq!(
            transact(&mut kv, &[], vec![put("c", "1", Some(5))]),
            Outcome::NoLease(5)
        );
        assert_eq!((kv.revision(), kv.range("").len()), (1, 2));
        assert_eq!(
            transact(&mut kv, &[("a", 1)], vec![put("a", "2", None)]),
            Outcome::Committed(2)
        );
        assert_eq!(kv.get("a").unwrap().value, "2");
    }

    #[test]
    fn what_every_node_would_choke_on_cannot_be_proposed() {
        let change = put("a", "1", None);
        let transaction = |count| {
            Command::Transact(Transaction {
                compares: vec![],
                changes: vec![change.clone(); count],
            })
        };
        for good in [
            Command::Grant(Duration::from_secs(5)),
            Command::Revoke(1),
            transaction(100),
        ] {
            assert!(good.may_be_proposed(), "{good:?}");
        }
        for bad in [Command::Grant(Duration::MAX), Command::Recovered(1), transaction(101)] {
            assert!(!bad.may_be_proposed(), "{bad:?}");
        }
    }

    #[test]
    fn the_keys_of_a_lease_go_with_it_and_watchers_see_it() {
        let mut kv = Kv::default();
        let Answer::Granted(lease) = kv.apply(&Command::Grant(Duration::from_secs(1))) else {
            panic!()
        };
        transact(&mut kv, &[], vec![put("n/1", "x", Some(lease)), put("m", "y", None)]);
        assert_eq!(kv.apply(&Command::Revoke(lease)), Answer::Revoked(true));
        assert_eq!(kv.apply(&Command::Revoke(lease)), Answer::Revoked(false));
        assert_eq!(kv.range("n/"), []);
        let events = kv.events("n/", 1).unwrap();
        assert_eq!((events.len(), events[0].row.clone(), events[0].revision), (1, None, 2));
        assert!(kv.events("", 0).unwrap().len() == 3);
    }

    #[test]
    fn after_a_recovery_revisions_are_new_and_watchers_start_again() {
        let mut kv = Kv::default();
        transact(&mut kv, &[], vec![put("k", "v", None)]);
        let first = RECOVERY_STEP + 1;
        assert_eq!(kv.apply(&Command::Recovered(1)), Answer::Recovered(first));
        assert_eq!(kv.events("k", 1), Err(first));
        assert_eq!(kv.events("k", first), Ok(vec![]));
        assert_eq!(kv.get("k").unwrap().value, "v");
        assert_eq!(
            transact(&mut kv, &[("k", 1)], vec![put("k", "w", None)]),
            Outcome::Committed(first + 1)
        );
        assert_eq!(kv.apply(&Command::Recovered(1)), Answer::Recovered(first + 2));
    }

    #[test]
    fn history_is_bounded_and_says_when_it_is_gone() {
        let mut kv = Kv::default();
        for i in 0..HISTORY as u64 + 10 {
            transact(&mut kv, &[], vec![put("k", &i.to_string(), None)]);
        }
        assert_eq!(kv.events("k", 0), Err(10));
        assert_eq!(kv.events("k", 10).unwrap().len(), HISTORY);
    }
}
