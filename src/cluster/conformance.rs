//! What every control store must keep, as one suite that each implementation runs ([`all`]).
//!
//! It is given handles of one store, one for each node; every promise is tried across them. Keys are under a
//! prefix of the run's own, so that a store may be used for several runs and beside other users.

use super::store::{Change, Compare, ControlError, ControlStore, Event, LeaseId, Outcome, Revision, Transaction};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Bound of every wait.
const DEADLINE: Duration = Duration::from_secs(30);

/// Handles of one store.
pub(super) type Handles<'a> = &'a [Arc<dyn ControlStore>];

/// Runs every promise. Panics with what was broken.
pub(super) async fn all(stores: Handles<'_>) {
    let run = format!("conformance/{}/", uuid::Uuid::new_v4());
    let prefix = |part: &str| format!("{run}{part}/");
    transactions_are_all_or_nothing(stores, &prefix("atomic")).await;
    comparisons_decide_one_winner(stores, &prefix("race")).await;
    reads_see_what_was_acknowledged(stores, &prefix("read")).await;
    ranges_are_ordered_and_bounded_by_the_prefix(stores, &prefix("range")).await;
    a_large_range_is_whole(stores, &prefix("large")).await;
    watchers_see_every_change_in_order(stores, &prefix("watch")).await;
    a_watch_returns_when_nothing_happens(stores, &prefix("quiet")).await;
    rows_go_with_their_lease(stores, &prefix("revoke")).await;
    an_unknown_lease_is_refused(stores, &prefix("unknown")).await;
    a_lease_lives_while_it_is_kept(stores, &prefix("keep")).await;
    one_node_leads(stores).await;
}

fn put(key: &str, value: &str) -> Change {
    leased(key, value, None)
}

fn leased(key: &str, value: &str, lease: Option<LeaseId>) -> Change {
    Change::Put {
        key: key.to_owned(),
        value: value.to_owned(),
        lease,
    }
}

async fn transact(store: &Arc<dyn ControlStore>, compares: &[(&str, Revision)], changes: Vec<Change>) -> Outcome {
    let compares = compares.iter().map(|(key, revision)| Compare {
        key: (*key).to_owned(),
        revision: *revision,
    });
    let transaction = Transaction {
        compares: compares.collect(),
        changes,
    };
    store.transact(transaction).await.unwrap()
}

fn revision(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed(revision) => revision,
        other => panic!("expected a commit, got {other:?}"),
    }
}

async fn value(store: &Arc<dyn ControlStore>, key: &str) -> Option<String> {
    store.get(key).await.unwrap().map(|row| row.value)
}

async fn transactions_are_all_or_nothing(stores: Handles<'_>, prefix: &str) {
    let (a, b) = (&format!("{prefix}a"), &format!("{prefix}b"));
    let first = &stores[0];
    let made = revision(transact(first, &[(a, 0)], vec![put(a, "1"), put(b, "1")]).await);
    for store in stores {
        assert_eq!(store.get(a).await.unwrap().unwrap().revision, made);
        // One comparison of two fails: nothing happens.
        let both = [(a.as_str(), made), (b.as_str(), 0)];
        assert_eq!(transact(store, &both, vec![put(a, "2")]).await, Outcome::Conflict);
        assert_eq!(value(store, a).await.as_deref(), Some("1"));
    }
    let change = vec![put(a, "2"), Change::Delete { key: b.clone() }];
    let later = revision(transact(first, &[(a, made), (b, made)], change).await);
    assert!(later > made);
    for store in stores {
        assert_eq!(value(store, a).await.as_deref(), Some("2"));
        assert_eq!(value(store, b).await, None);
    }
    // A removed key compares as absent; removing what is not there is no error.
    let again = vec![
        put(b, "3"),
        Change::Delete {
            key: format!("{prefix}c"),
        },
    ];
    revision(transact(first, &[(b, 0)], again).await);
}

async fn comparisons_decide_one_winner(stores: Handles<'_>, prefix: &str) {
    let key = format!("{prefix}k");
    for _ in 0..3 {
        let before = stores[0].get(&key).await.unwrap().map_or(0, |row| row.revision);
        let tasks: Vec<_> = (0..8)
            .map(|i| {
                let (store, key) = (Arc::clone(&stores[i % stores.len()]), key.clone());
                tokio::spawn(async move { transact(&store, &[(&key, before)], vec![put(&key, &i.to_string())]).await })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Outcome::Committed(_) => won += 1,
                Outcome::Conflict => {}
                Outcome::NoLease(_) => panic!("no lease was named"),
            }
        }
        assert_eq!(won, 1);
    }
}

async fn reads_see_what_was_acknowledged(stores: Handles<'_>, prefix: &str) {
    let key = format!("{prefix}k");
    for round in 0..4 {
        for writer in stores {
            let text = format!("{round}");
            let made = revision(transact(writer, &[], vec![put(&key, &text)]).await);
            for reader in stores {
                assert_eq!(value(reader, &key).await.as_deref(), Some(text.as_str()));
                let (rows, at) = reader.range(prefix).await.unwrap();
                assert_eq!((rows.len(), rows[0].revision), (1, made));
                assert!(at >= made);
            }
        }
    }
}

async fn ranges_are_ordered_and_bounded_by_the_prefix(stores: Handles<'_>, prefix: &str) {
    let keys: Vec<_> = ["b", "a", "c/x", "c"].iter().map(|k| format!("{prefix}{k}")).collect();
    let beyond = format!("{}0", prefix.trim_end_matches('/'));
    let mut changes: Vec<_> = keys.iter().map(|k| put(k, "ü")).collect();
    changes.push(put(&beyond, ""));
    transact(&stores[0], &[], changes).await;
    let mut sorted = keys.clone();
    sorted.sort();
    for store in stores {
        let (rows, _) = store.range(prefix).await.unwrap();
        assert!(rows.iter().all(|row| row.value == "ü"));
        assert_eq!(rows.into_iter().map(|row| row.key).collect::<Vec<_>>(), sorted);
        assert_eq!(store.range(&format!("{prefix}none")).await.unwrap().0, []);
    }
}

/// As many bytes as thousands of volumes have, more than any message's head may have.
async fn a_large_range_is_whole(stores: Handles<'_>, prefix: &str) {
    let value = "x".repeat(16 << 10);
    let keys: Vec<_> = (0..160).map(|i| format!("{prefix}{i:03}")).collect();
    for keys in keys.chunks(16) {
        transact(&stores[0], &[], keys.iter().map(|k| put(k, &value)).collect()).await;
    }
    for store in stores {
        let (rows, _) = store.range(prefix).await.unwrap();
        assert!(rows.iter().all(|row| row.value == value));
        assert_eq!(rows.into_iter().map(|row| row.key).collect::<Vec<_>>(), keys);
    }
    let delete = |key: &String| Change::Delete { key: key.clone() };
    for keys in keys.chunks(16) {
        transact(&stores[0], &[], keys.iter().map(delete).collect()).await;
    }
}

/// Reads changes after `after` until `done`.
async fn follow(
    store: &Arc<dyn ControlStore>,
    prefix: &str,
    after: Revision,
    done: impl Fn(&[Event]) -> bool,
) -> Vec<Event> {
    let end = Instant::now() + DEADLINE;
    let (mut events, mut after) = (Vec::new(), after);
    while !done(&events) {
        assert!(Instant::now() < end, "no more changes than {events:?}");
        let (more, next) = store.changes(prefix, after).await.unwrap();
        assert!(next >= after, "a watch went back from {after} to {next}");
        assert!(
            more.iter()
                .all(|event| event.revision > after && event.revision <= next)
        );
        events.extend(more);
        after = next;
    }
    events
}

async fn watchers_see_every_change_in_order(stores: Handles<'_>, prefix: &str) {
    let key = |i: usize| format!("{prefix}{}", i % 3);
    let (_, start) = stores[0].range(prefix).await.unwrap();
    let writer = {
        let stores: Vec<_> = stores.to_vec();
        let keys: Vec<_> = (0..30).map(key).collect();
        let other = format!("{}x", prefix.trim_end_matches('/'));
        tokio::spawn(async move {
            for (i, key) in keys.iter().enumerate() {
                let store = &stores[i % stores.len()];
                transact(store, &[], vec![put(key, &i.to_string()), put(&other, "not watched")]).await;
            }
            transact(&stores[0], &[], vec![Change::Delete { key: keys[0].clone() }]).await;
        })
    };
    for store in stores {
        let events = follow(store, prefix, start, |events| events.len() >= 31).await;
        assert_eq!(events.len(), 31);
        assert!(events.windows(2).all(|pair| pair[0].revision < pair[1].revision));
        for (i, event) in events.iter().take(30).enumerate() {
            let row = event.row.as_ref().unwrap();
            assert_eq!(
                (&event.key, &row.value, row.revision),
                (&key(i), &i.to_string(), event.revision)
            );
        }
        assert_eq!((events[30].key.clone(), events[30].row.clone()), (key(0), None));
    }
    writer.await.unwrap();
}

async fn a_watch_returns_when_nothing_happens(stores: Handles<'_>, prefix: &str) {
    let (_, start) = stores[0].range(prefix).await.unwrap();
    let watch = stores[0].changes(prefix, start);
    let (events, next) = tokio::time::timeout(DEADLINE, watch).await.unwrap().unwrap();
    assert_eq!(events, []);
    assert!(next >= start);
}

async fn rows_go_with_their_lease(stores: Handles<'_>, prefix: &str) {
    let (kept, leaves) = (&format!("{prefix}kept"), &format!("{prefix}leaves"));
    let lease = stores[0].grant(Duration::from_secs(60)).await.unwrap();
    let change = vec![put(kept, ""), leased(leaves, "", Some(lease))];
    let made = revision(transact(&stores[0], &[], change).await);
    for store in stores {
        assert_eq!(store.get(leaves).await.unwrap().unwrap().lease, Some(lease));
    }
    stores[stores.len() - 1].revoke(lease).await.unwrap();
    for store in stores {
        assert_eq!(value(store, leaves).await, None);
        assert_eq!(value(store, kept).await.as_deref(), Some(""));
        let events = follow(store, prefix, made, |events| !events.is_empty()).await;
        assert_eq!((events[0].key.as_str(), &events[0].row), (leaves.as_str(), &None));
        assert!(!store.keep_alive(lease).await.unwrap());
    }
    // Once more is no error.
    stores[0].revoke(lease).await.unwrap();
}

async fn an_unknown_lease_is_refused(stores: Handles<'_>, prefix: &str) {
    let key = format!("{prefix}k");
    let gone = stores[0].grant(Duration::from_secs(60)).await.unwrap();
    stores[0].revoke(gone).await.unwrap();
    for store in stores {
        let outcome = transact(store, &[], vec![leased(&key, "", Some(gone))]).await;
        assert_eq!(outcome, Outcome::NoLease(gone));
        assert_eq!(value(store, &key).await, None);
    }
    let next = stores[0].grant(Duration::from_secs(60)).await.unwrap();
    assert_ne!(next, gone, "numbers of leases are never used again");
    stores[0].revoke(next).await.unwrap();
}

async fn a_lease_lives_while_it_is_kept(stores: Handles<'_>, prefix: &str) {
    let ttl = Duration::from_secs(2);
    let (kept, left) = (&format!("{prefix}kept"), &format!("{prefix}left"));
    let (keep, leave) = (stores[0].grant(ttl).await.unwrap(), stores[0].grant(ttl).await.unwrap());
    let change = vec![leased(kept, "", Some(keep)), leased(left, "", Some(leave))];
    transact(&stores[0], &[], change).await;
    let end = Instant::now() + DEADLINE;
    let mut last = Instant::now();
    let mut turn = 0;
    while value(&stores[0], left).await.is_some() {
        assert!(Instant::now() < end, "a lease that nobody keeps does not run out");
        turn += 1;
        let alive = stores[turn % stores.len()].keep_alive(keep).await.unwrap();
        // On a machine so loaded that a keepalive came late, running out is right.
        assert!(alive || last.elapsed() >= ttl, "a lease ran out although it was kept");
        last = Instant::now();
        tokio::time::sleep(ttl / 8).await;
    }
    for store in stores {
        assert_eq!(value(store, left).await, None);
        assert!(!store.keep_alive(leave).await.unwrap());
    }
    if stores[0].keep_alive(keep).await.unwrap() {
        assert!(value(&stores[0], kept).await.is_some());
    }
    stores[0].revoke(keep).await.unwrap();
}

async fn one_node_leads(stores: Handles<'_>) {
    let end = Instant::now() + DEADLINE;
    while stores.iter().filter(|store| *store.leadership().borrow()).count() != 1 {
        assert!(Instant::now() < end, "no single leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// For stores whose history goes with so many changes, or when `lose` is called: a watch from before is told so.
pub(super) async fn a_watch_of_lost_history_is_told(
    store: &Arc<dyn ControlStore>,
    changes: usize,
    lose: impl AsyncFnOnce(),
) {
    let key = format!("conformance/{}", uuid::Uuid::new_v4());
    let (_, start) = store.range(&key).await.unwrap();
    for _ in 0..changes {
        transact(store, &[], vec![put(&key, "")]).await;
    }
    lose().await;
    let error = store.changes(&key, start).await.unwrap_err();
    assert!(matches!(error, ControlError::Compacted(at) if at > start), "{error}");
    let (rows, now) = store.range(&key).await.unwrap();
    assert_eq!(rows.len(), 1);
    revision(transact(store, &[], vec![put(&key, "")]).await);
    assert_eq!(follow(store, &key, now, |events| !events.is_empty()).await.len(), 1);
}

#[tokio::test]
async fn the_store_in_memory_keeps_every_promise() {
    let store: Arc<dyn ControlStore> = Arc::new(super::MemoryStore::default());
    all(std::slice::from_ref(&store)).await;
    a_watch_of_lost_history_is_told(&store, 4200, async || {}).await;
}
