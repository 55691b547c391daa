//! The embedded store on real connections: one node, three nodes, any one lost, restarts, a damaged disk.

use super::{RaftSettings, RaftStore, RecoverError};
use crate::cluster::{Change, Compare, ControlStore, Outcome, RECOVERY_STEP, Transaction, conformance};
use crate::rpc::{Identity, Kind, Payload, Server, within};
use crate::volume::{ClusterId, NodeId};
use openraft::{BasicNode, Membership};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const DEADLINE: Duration = Duration::from_secs(60);

fn settings() -> RaftSettings {
    RaftSettings {
        heartbeat: Duration::from_millis(100),
        election: Duration::from_millis(800),
        deadline: Duration::from_secs(30),
        voter_grace: Duration::from_secs(300),
    }
}

struct Member {
    id: NodeId,
    directory: PathBuf,
    address: String,
    store: RaftStore,
    server: Server,
}

/// Waits until a stopped store has closed its file: Raft's tasks may still be finishing.
async fn released(directory: &std::path::Path) {
    let file = directory.join("raft.redb");
    eventually("the file is closed", || async {
        !matches!(
            redb::Database::open(&file),
            Err(redb::DatabaseError::DatabaseAlreadyOpen)
        )
    })
    .await;
}

struct Nodes {
    cluster: ClusterId,
    directory: tempfile::TempDir,
    members: Vec<Option<Member>>,
}

impl Nodes {
    async fn start(count: u8) -> Self {
        Self::start_with(count, None).await
    }

    /// One of them apart, if so given.
    async fn start_with(count: u8, apart: Option<(u8, &Apart)>) -> Self {
        let mut nodes = Self {
            cluster: ClusterId::random(),
            directory: tempfile::tempdir().unwrap(),
            members: Vec::new(),
        };
        for i in 0..count {
            let id = NodeId::from_bytes([i + 1; 16]);
            let directory = nodes.directory.path().join(i.to_string());
            let identity = Identity::sample(id, nodes.cluster);
            let member = match apart.filter(|(index, _)| *index == i) {
                Some((_, apart)) => apart.open(id, directory, identity.clone()).await,
                None => Self::open(id, directory, "127.0.0.1:0", identity.clone(), None).await,
            };
            if i == 0 {
                member.store.initialise().await.unwrap();
            } else {
                let cluster = member.store.join(&[nodes.get(0).address.clone()]).await.unwrap();
                identity.set_cluster(cluster).unwrap();
            }
            nodes.members.push(Some(member));
        }
        nodes
    }

    async fn open(
        id: NodeId,
        directory: PathBuf,
        bind: &str,
        identity: Identity,
        held: Option<Arc<AtomicBool>>,
    ) -> Member {
        let builder = Server::bind(bind, identity.clone()).await.unwrap();
        let mut address = builder.local_address().unwrap().to_string();
        if let Some(held) = held {
            address = network(address, held).await;
        }
        let store = RaftStore::open(&directory, identity, &address, settings())
            .await
            .unwrap();
        let serve = store.clone();
        let server = builder
            .on(Kind::Control, move |connection| {
                let store = serve.clone();
                async move { store.serve(connection).await }
            })
            .start()
            .unwrap();
        Member {
            id,
            directory,
            address,
            store,
            server,
        }
    }

    fn get(&self, index: usize) -> &Member {
        self.members[index].as_ref().unwrap()
    }

    fn handles(&self) -> Vec<Arc<dyn ControlStore>> {
        self.members
            .iter()
            .flatten()
            .map(|m| Arc::new(m.store.clone()) as Arc<dyn ControlStore>)
            .collect()
    }

    async fn stop(&mut self, index: usize) -> (NodeId, PathBuf, String) {
        let member = self.members[index].take().unwrap();
        member.store.shutdown().await;
        member.server.stop().await;
        drop(member.store);
        released(&member.directory).await;
        (member.id, member.directory, member.address)
    }

    async fn restart(&mut self, index: usize, (id, directory, _): (NodeId, PathBuf, String)) {
        // At another address: the members learn it.
        let identity = Identity::sample(id, self.cluster);
        self.members[index] = Some(Self::open(id, directory, "127.0.0.1:0", identity, None).await);
    }

    /// Every member says it is alive, so that the leader lets it vote.
    async fn all_vote(&self) {
        for member in self.members.iter().flatten() {
            let lease = member.store.grant(Duration::from_secs(300)).await.unwrap();
            let live = Change::Put {
                key: format!("live/{}", member.id),
                value: "{}".into(),
                lease: Some(lease),
            };
            let outcome = member
                .store
                .transact(Transaction {
                    compares: vec![],
                    changes: vec![live],
                })
                .await
                .unwrap();
            assert!(matches!(outcome, Outcome::Committed(_)));
        }
        eventually("three voters", || async {
            self.get(0).store.status().voters.len() == 3
        })
        .await;
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, wait).await.is_ok(),
        "not in time: {what}"
    );
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction {
        compares: vec![Compare {
            key: key.into(),
            revision: 0,
        }],
        changes: vec![Change::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }],
    }
}

#[test]
fn a_voter_counts_when_the_change_of_voters_is_through() {
    let [a, b, c] = [1, 2, 3].map(|n| NodeId::from_bytes([n; 16]));
    let all = BTreeSet::from([a, b, c]);
    let under_way = Membership::new(vec![BTreeSet::from([a]), all.clone()], None);
    assert_eq!(super::settled_voters(&under_way), BTreeSet::from([a]));
    assert_eq!(super::settled_voters(&Membership::new(vec![all.clone()], None)), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_conforms() {
    let nodes = Nodes::start(1).await;
    conformance::all(&nodes.handles()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_conform() {
    let nodes = Nodes::start(3).await;
    nodes.all_vote().await;
    conformance::all(&nodes.handles()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_go_on_without_any_one_which_catches_up_when_it_returns() {
    let mut nodes = Nodes::start(3).await;
    nodes.all_vote().await;
    for lost in 0..3 {
        let kept = nodes.stop(lost).await;
        let other = (lost + 1) % 3;
        let key = format!("without/{lost}");
        let outcome = nodes.get(other).store.transact(put(&key, "x")).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
        nodes.restart(lost, kept).await;
        let back = &nodes.get(lost).store;
        eventually("the returned node has what it missed", || async {
            back.inner.core().machine.kv().get(&key).is_some()
        })
        .await;
        assert_eq!(back.get(&key).await.unwrap().unwrap().value, "x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_raft_for_another_node_at_this_address_is_refused() {
    let nodes = Nodes::start(1).await;
    let member = nodes.get(0);
    let client = member.store.inner.peers.client(&member.address).await.unwrap();
    let (other, of, nothing) = (NodeId::from_bytes([99; 16]), Default::default(), || {
        Payload(Vec::new().into())
    });
    for answer in [
        client.vote(within(DEADLINE), other, of, nothing()).await.unwrap(),
        client
            .append_entries(within(DEADLINE), other, of, nothing())
            .await
            .unwrap(),
        client
            .install_snapshot(within(DEADLINE), other, of, nothing())
            .await
            .unwrap(),
    ] {
        let refusal = answer.unwrap_err();
        assert!(refusal.contains(&other.to_string()), "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_heard_stays_even_if_its_address_refuses_connections() {
    let nodes = Nodes::start(3).await;
    nodes.all_vote().await;
    let before = nodes.get(0).store.status();
    let leader = before.leader.unwrap();
    let inner = &(0..3)
        .map(|i| nodes.get(i))
        .find(|m| m.id == leader)
        .unwrap()
        .store
        .inner;
    // Nobody listens there.
    inner.add_member(leader, "127.0.0.1:1").await.unwrap();
    tokio::time::sleep(5 * settings().election).await;
    for member in nodes.members.iter().flatten() {
        let now = member.store.status();
        assert_eq!((now.leader, now.term), (before.leader, before.term));
    }
}

/// Where a node can stand still, as one whose machine is paused.
struct Apart {
    /// Of one thread. Never dropped, which an asynchronous test may not do.
    runtime: &'static tokio::runtime::Runtime,
    /// Whether what is sent to the node waits.
    held: Arc<AtomicBool>,
}

impl Apart {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Self {
            runtime: Box::leak(Box::new(runtime.unwrap())),
            held: Arc::default(),
        }
    }

    async fn open(&self, id: NodeId, directory: PathBuf, identity: Identity) -> Member {
        let opened = Nodes::open(id, directory, "127.0.0.1:0", identity, Some(self.held.clone()));
        self.runtime.spawn(opened).await.unwrap()
    }

    /// The node does nothing for a while, and what was sent to it arrives a little later.
    async fn stand_still(&self, time: Duration) {
        self.held.store(true, Ordering::SeqCst);
        let still = self.runtime.spawn(async move { std::thread::sleep(time) });
        still.await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.held.store(false, Ordering::SeqCst);
    }
}

/// A network before an address; the answer is how it is reached.
async fn network(to: String, held: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            if let Ok(far) = TcpStream::connect(&to).await {
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(pass_on(near_in, far_out, held.clone()));
                tokio::spawn(pass_on(far_in, near_out, held.clone()));
            }
        }
    });
    here
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, held: Arc<AtomicBool>) {
    let mut buffer = vec![0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        while held.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_stood_still_leaves_its_leader_alone() {
    let apart = Apart::new();
    let nodes = Nodes::start_with(3, Some((2, &apart))).await;
    nodes.all_vote().await;
    // On a machine that is busy for longer than an election timeout a leader may change by itself: not every time.
    for _ in 0..4 {
        let before = nodes.get(0).store.status();
        apart.stand_still(5 * settings().election).await;
        tokio::time::sleep(2 * settings().election).await;
        let same = |member: &Member| {
            let now = member.store.status();
            (now.leader, now.term) == (before.leader, before.term)
        };
        if before.leader.is_some() && nodes.members.iter().flatten().all(same) {
            return;
        }
    }
    panic!("its leader is deposed each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_voters_that_stopped_halfway_is_finished() {
    let nodes = Nodes::start(3).await;
    nodes.all_vote().await;
    let core = nodes.get(0).store.inner.core();
    let is_joint = |membership: &Membership<NodeId, BasicNode>| membership.get_joint_config().len() > 1;
    let all: BTreeSet<NodeId> = nodes.members.iter().flatten().map(|member| member.id).collect();
    let mut stopped = 0;
    // Whether a change is caught between its steps is chance.
    for round in 0..400 {
        let fewer: BTreeSet<NodeId> = all.iter().copied().take(1 + round % 2).collect();
        let mut metrics = core.raft.metrics();
        // Whoever changes them is gone after the first of the two steps.
        tokio::select! {
            biased;
            _ = metrics.wait_for(|now| is_joint(now.membership_config.membership())) => stopped += 1,
            _ = core.raft.change_membership(fewer, true) => {}
        }
        let through = || async { !is_joint(core.raft.metrics().borrow().membership_config.membership()) };
        eventually("no change is under way", through).await;
        if stopped == 3 {
            return;
        }
    }
    panic!("only {stopped} were stopped halfway");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_ends_no_lease_that_was_kept_meanwhile() {
    let apart = Apart::new();
    let nodes = Nodes::start_with(2, Some((0, &apart))).await;
    let store = nodes.get(1).store.clone();
    let ttl = Duration::from_secs(2);
    let lease = store.grant(ttl).await.unwrap();
    let keeper = tokio::spawn(async move {
        while store.keep_alive(lease).await.unwrap() {
            tokio::time::sleep(ttl / 10).await;
        }
    });
    tokio::time::sleep(ttl / 2).await;
    apart.stand_still(ttl + ttl / 2).await;
    tokio::time::sleep(ttl / 2).await;
    assert!(nodes.get(1).store.keep_alive(lease).await.unwrap());
    assert!(!keeper.is_finished());
    // One that nobody keeps ends in its time.
    keeper.abort();
    eventually("the lease has ended", || async {
        !nodes
            .get(0)
            .store
            .inner
            .core()
            .machine
            .kv()
            .leases()
            .contains_key(&lease)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_even_without_a_clean_stop() {
    let mut nodes = Nodes::start(1).await;
    for i in 0..50 {
        nodes.get(0).store.transact(put(&format!("k/{i}"), "v")).await.unwrap();
    }
    nodes.get(0).store.inner.core().raft.trigger().snapshot().await.unwrap();
    nodes.get(0).store.transact(put("after", "v")).await.unwrap();
    let kept = nodes.stop(0).await;
    nodes.restart(0, kept).await;
    let store = &nodes.get(0).store;
    assert!(store.is_member());
    assert_eq!(store.range("k/").await.unwrap().0.len(), 50);
    assert_eq!(store.get("after").await.unwrap().unwrap().value, "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_store_is_an_error_that_names_the_file() {
    let mut nodes = Nodes::start(1).await;
    nodes.get(0).store.transact(put("k", "v")).await.unwrap();
    let (id, directory, _) = nodes.stop(0).await;
    let file = directory.join("raft.redb");
    for keep in [0, 100, 5000] {
        let length = std::fs::metadata(&file).unwrap().len();
        let whole = std::fs::read(&file).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(length.min(keep))
            .unwrap();
        let identity = Identity::sample(id, nodes.cluster);
        match RaftStore::open(&directory, identity, "127.0.0.1:1", settings()).await {
            // An empty file is a new store: the node must join again.
            Ok(store) => {
                assert!(keep == 0 && !store.is_member());
                store.shutdown().await;
                drop(store);
                released(&directory).await;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("raft.redb") && text.contains("join"), "{text}");
            }
        }
        std::fs::write(&file, whole).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_of_a_killed_node_ends_long_before_its_time() {
    let mut nodes = Nodes::start(3).await;
    nodes.all_vote().await;
    let leader = nodes.get(0).store.status().leader.unwrap();
    let lost = (0..3).find(|i| nodes.get(*i).id != leader).unwrap();
    let (id, ..) = nodes.stop(lost).await;
    let other = &nodes.get((lost + 1) % 3).store;
    // The lease would live five minutes.
    eventually("the lease has ended", || async {
        other.get(&format!("live/{id}")).await.unwrap().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_recovers_the_control_plane_and_the_old_members_join_it() {
    let mut nodes = Nodes::start(3).await;
    nodes.all_vote().await;
    nodes.get(2).store.transact(put("before", "x")).await.unwrap();
    assert!(matches!(nodes.get(2).store.recover().await, Err(RecoverError::Works)));
    eventually("all have it", || async {
        let has = |i| nodes.get(i).store.inner.core().machine.kv().get("before").is_some();
        (0..3).all(has)
    })
    .await;
    let lost = [nodes.stop(0).await, nodes.stop(1).await];
    assert_eq!(nodes.get(2).store.recover().await.unwrap(), 1);
    let survivor = nodes.get(2).store.clone();
    // It leads a moment before the change of voters is through.
    eventually("it votes alone", || async {
        survivor.status().voters == [nodes.get(2).id]
    })
    .await;
    let Outcome::Committed(revision) = survivor.transact(put("after", "y")).await.unwrap() else {
        panic!("a conflict")
    };
    assert!(revision > RECOVERY_STEP);
    assert_eq!(survivor.get("before").await.unwrap().unwrap().value, "x");
    // The old majority returns: it must not go on where it was.
    for (index, kept) in lost.into_iter().enumerate() {
        nodes.restart(index, kept).await;
    }
    for index in 0..2 {
        let store = nodes.get(index).store.clone();
        eventually("the old member has what it missed", || async {
            store.inner.core().machine.kv().get("after").is_some()
        })
        .await;
        assert_eq!(store.inner.core().incarnation, survivor.inner.core().incarnation);
        store.transact(put(&format!("by/{index}"), "z")).await.unwrap();
    }
    nodes.all_vote().await;
    assert_eq!(survivor.range("by/").await.unwrap().0.len(), 2);
    // A restart keeps what it has become.
    let kept = nodes.stop(0).await;
    nodes.restart(0, kept).await;
    assert_eq!(nodes.get(0).store.get("after").await.unwrap().unwrap().value, "y");
}
