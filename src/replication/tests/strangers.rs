//! Nodes that lie: each proves who it is, and then says what it likes. One that has no part in a volume changes nothing of it; one that holds a copy
//! loses its place, and the others go on.

use super::cluster::{Cluster, LONG, MemoryConfig, eventually, get, put};
use super::flip;
use super::remote::remote;
use crate::{
    block::{BLOCK_SIZE, BlockDevice, sums_of},
    replication::{
        host::DataServer,
        service::{Blocks, Caller, Position, RemoteError, ServeData, Stamp},
        *,
    },
    rpc::{self, Kind, Limits, Payload, Server, Sums, within},
    volume::{FailureMode, NodeId, VolumeId},
};
use async_trait::async_trait;
use std::sync::Arc;
use tarpc::{ServerError, context::Context, server::Serve};

/// The records: who holds copies, and the node that has the volume mounted.
struct Recorded {
    config: Arc<MemoryConfig>,
    volume: VolumeId,
    mount: NodeId,
}

#[async_trait]
impl Parts for Recorded {
    async fn holds(&self, volume: VolumeId, node: NodeId) -> bool {
        let state = self.config.state.lock();
        let now = &state.configuration;
        let counted = now.in_sync.contains(&node) || now.syncing.contains(&node);
        volume == self.volume && (counted || now.lost.contains_key(&node))
    }

    async fn mounts(&self, volume: VolumeId, node: NodeId) -> bool {
        (volume, node) == (self.volume, self.mount)
    }
}

#[test]
fn a_node_without_a_part_in_a_volume_takes_neither_its_copies_nor_its_mount() {
    let cluster = Cluster::new(2, 2, FailureMode::Soft);
    let volume = cluster.volume;
    for node in &cluster.nodes {
        node.host.set_parts(Arc::new(Recorded {
            config: cluster.config.clone(),
            volume,
            mount: cluster.nodes[2].id,
        }));
    }
    let master = cluster.activate(0);
    let mount = remote(&cluster, 2, 1).unwrap();
    put(&mount, 1, 1, 1).unwrap();
    let data = vec![9; BLOCK_SIZE];
    let blocks = Blocks {
        ranges: vec![(1, 1)],
        sums: Sums::from(sums_of(&data)),
        data: vec![Payload::from(data)],
    };
    let stranger = cluster.nodes[3].host.identity();
    for node in &cluster.nodes[..2] {
        let opened = wire::open(
            &*cluster.addresses,
            node.id,
            Kind::Data,
            stranger,
            Limits::default(),
            LONG,
        );
        let open = cluster.runtime.block_on(opened).unwrap();
        let client = open.client;
        let wait = |call| cluster.runtime.block_on(call);
        let mut session = 0;
        for epoch in [1, 2, u64::MAX] {
            for create in [None, Some(1000)] {
                let stamp = Stamp {
                    volume,
                    epoch,
                    session: u64::MAX,
                };
                let fenced = wait(client.fence(within(LONG), stamp, create)).unwrap();
                assert!(matches!(fenced, Err(CopyError::Invalid(_))), "{fenced:?}");
            }
        }
        // It tries every stamp that could be in force.
        while session < 20 {
            let stamp = Stamp {
                volume,
                epoch: 1,
                session,
            };
            let position = Position::default();
            let written = cluster
                .runtime
                .block_on(client.write(within(LONG), stamp, position, blocks.clone(), false));
            assert!(
                matches!(written, Ok(Err(CopyError::Stale { session: 0, .. }))),
                "{written:?}"
            );
            let grown = cluster.runtime.block_on(client.grow(within(LONG), stamp, 1 << 60));
            assert!(matches!(grown, Ok(Err(CopyError::Stale { .. }))), "{grown:?}");
            let promised = cluster.runtime.block_on(client.heartbeat(within(LONG), stamp));
            assert!(matches!(promised, Ok(Err(CopyError::Stale { .. }))), "{promised:?}");
            session += 1;
        }
        let caller = Caller {
            attachment: u64::MAX,
            session: u64::MAX,
        };
        let taken = cluster
            .runtime
            .block_on(client.device_open(within(LONG), volume, caller));
        assert_eq!(taken.unwrap(), Err(RemoteError::NotMaster));
        // A volume that nobody knows of takes no space.
        let unknown = Stamp {
            volume: VolumeId::random(),
            epoch: 1,
            session: 1,
        };
        let made = cluster
            .runtime
            .block_on(client.fence(within(LONG), unknown, Some(1000)));
        assert!(matches!(made, Ok(Err(CopyError::Invalid(_)))), "{made:?}");
        assert_eq!(node.host.list().unwrap().len(), 1);
    }
    put(&mount, 2, 2, 1).unwrap();
    mount.flush().unwrap();
    assert_eq!((get(&mount, 1), get(&mount, 2)), (1, 2));
    assert_eq!(cluster.configuration().in_sync.len(), 2);
    cluster.assert_identical(&master);
}

/// What a copy's node says that is not so.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Extents that no copy has are hot.
    Hot,
    /// It is larger, or smaller.
    Blocks(u64),
    /// Its epoch is another one.
    Epoch,
    /// Reads answer with so many bytes.
    Bytes(usize),
    /// With other bytes than were asked for.
    OtherBytes,
    /// With so many hashes.
    Hashes(usize),
    /// It has something in extents that no copy has.
    Allocated,
    /// Every answer is of another call.
    OtherCall,
}

const LIES: [Lie; 11] = [
    Lie::Hot,
    Lie::Blocks(0),
    Lie::Blocks(u64::MAX),
    Lie::Epoch,
    Lie::Bytes(0),
    Lie::Bytes(100),
    Lie::Bytes(5 << 20),
    Lie::OtherBytes,
    Lie::Hashes(0),
    Lie::Hashes(5000),
    Lie::Allocated,
];

/// The service of an honest node, with lies in its answers.
#[derive(Clone)]
struct Liar {
    honest: ServeData<DataServer>,
    lie: Lie,
}

impl Serve for Liar {
    type Req = DataRequest;
    type Resp = DataResponse;

    async fn serve(self, context: Context, request: DataRequest) -> Result<DataResponse, ServerError> {
        let mut answer = self.honest.serve(context, request).await?;
        let sums = |count| Sums::from(vec![[7; 32]; count]);
        match (self.lie, &mut answer) {
            (Lie::Hot, DataResponse::Fence(Ok(state)) | DataResponse::Status(Ok(state))) => {
                state.intact = false;
                state.hot = vec![0, 5000, 1 << 50, u64::MAX];
            }
            (Lie::Blocks(blocks), DataResponse::Fence(Ok(state)) | DataResponse::Status(Ok(state))) => {
                state.blocks = blocks;
            }
            (Lie::Epoch, DataResponse::Fence(Ok(state)) | DataResponse::Status(Ok(state))) => state.epoch = u64::MAX,
            (Lie::Bytes(length), DataResponse::Read(Ok((data, _)))) => *data = Payload::from(vec![1; length]),
            (Lie::OtherBytes, DataResponse::Read(Ok((data, sums)))) => {
                let other = vec![0x66; data.len()];
                *sums = Sums::from(sums_of(&other));
                *data = Payload::from(other);
            }
            (Lie::Hashes(count), DataResponse::Read(Ok((_, hashes)))) => *hashes = sums(count),
            (Lie::Hashes(count), DataResponse::ExtentHashes(Ok(hashes)) | DataResponse::BlockSums(Ok(hashes))) => {
                *hashes = sums(count);
            }
            (Lie::Allocated, DataResponse::Allocated(Ok(extents))) => *extents = vec![u64::MAX, 1 << 50, 3, 3, 0],
            (Lie::Allocated, DataResponse::VerifyExtent(Ok(blocks))) => *blocks = vec![u64::MAX],
            (Lie::OtherCall, answer) => *answer = DataResponse::Ping(()),
            _ => {}
        }
        Ok(answer)
    }
}

/// Puts a liar in the place of a node's server.
fn lies(cluster: &Cluster, node: usize, lie: Lie) -> Server {
    let host = cluster.nodes[node].host.clone();
    let serve = move |connection: rpc::Connection| {
        let honest = host.service_for(connection.node);
        rpc::serve(connection, Liar { honest, lie }, 256)
    };
    let identity = cluster.nodes[node].host.identity().clone();
    cluster.runtime.block_on(async {
        let builder = Server::bind("127.0.0.1:0", identity).await.unwrap();
        let server = builder
            .on(Kind::Data, serve.clone())
            .on(Kind::Sync, serve)
            .start()
            .unwrap();
        cluster
            .addresses
            .set(cluster.nodes[node].id, &server.local_address().to_string());
        server
    })
}

#[test]
fn a_copy_that_answers_with_lies_stops_nobody_but_itself() {
    for lie in LIES.into_iter().chain([Lie::OtherCall]) {
        eprintln!("{lie:?}");
        let cluster = Cluster::new(3, 0, FailureMode::AlwaysOn);
        let _server = lies(&cluster, 1, lie);
        let master = cluster.activate(0);
        put(&*master, 1, 1, 1).unwrap();
        put(&*master, 3000, 2, 40).unwrap();
        master.flush().unwrap();
        // Whatever a comparison finds, it ends.
        let _ = master.verify(true);
        // The liar is to be brought up to date, which may or may not come to something. Writes go on.
        let liar = cluster.nodes[1].id;
        cluster.reconfigure(|configuration| {
            configuration.in_sync.remove(&liar);
            configuration.lost.remove(&liar);
            configuration.syncing.insert(liar);
        });
        cluster.tell(&master).unwrap();
        for round in 0..20 {
            put(&*master, 100 + round, 3, 2).unwrap();
        }
        master.flush().unwrap();
        // A bad block is replaced by the honest copy's, whatever the liar says it holds.
        flip(&cluster, 0, 1);
        assert_eq!(get(&*master, 1), 1, "{lie:?}");
        assert_eq!(get(&*master, 3039), 2, "{lie:?}");
        eventually("the honest copy is in sync", || cluster.is_in_sync(2));
        master.stop();
        // The honest copy is a master as before.
        let heir = cluster.nodes[2].id;
        cluster.reconfigure(|configuration| configuration.master = Some(heir));
        let master = cluster.activate(2);
        assert_eq!((get(&*master, 1), get(&*master, 100)), (1, 3), "{lie:?}");
        put(&*master, 1, 4, 1).unwrap();
        master.stop();
    }
}
