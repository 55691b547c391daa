//! Hostile bytes for the messages of replication, and a hostile node at the host of copies; see [`crate::fuzzing`].

use super::host::ReplicaHost;
use super::service::{Blocks, Caller, CopyState, DataRequest, DataResponse, Position, RemoteError, Stamp};
use super::store::{Copies, Copy, CopyError, Found};
use crate::block::fuzzing::MemoryDisk;
use crate::block::{BLOCK_SIZE, sums_of};
use crate::rpc::{self, Identity, Payload, Sums};
use crate::volume::{NodeId, VolumeId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tarpc::server::Serve;
use tokio::runtime::{Builder, Runtime};

/// A call.
pub(crate) fn request(input: &[u8]) -> bool {
    rpc::fuzzing::request::<DataRequest>(input)
}

/// An answer.
pub(crate) fn answer(input: &[u8]) -> bool {
    rpc::fuzzing::answer::<DataResponse>(input)
}

const VOLUME: VolumeId = VolumeId::from_bytes([7; 16]);

fn calls() -> Vec<DataRequest> {
    let stamp = Stamp {
        volume: VOLUME,
        epoch: 3,
        session: 1,
    };
    let position = Position {
        term: 3,
        number: 5,
        settled: 2,
    };
    let caller = Caller {
        attachment: 1,
        session: 1,
    };
    let data = vec![1; BLOCK_SIZE];
    let blocks = Blocks {
        ranges: vec![(0, 1), (9, 1)],
        sums: Sums::from([sums_of(&data), sums_of(&data)].concat()),
        data: vec![Payload::from(data.clone()), Payload::from(data.clone())],
    };
    let volume = VOLUME;
    vec![
        DataRequest::Fence {
            stamp,
            create: Some(2000),
        },
        DataRequest::Write {
            stamp,
            position,
            blocks: blocks.clone(),
            flush: true,
        },
        DataRequest::Flush { stamp },
        DataRequest::Discard {
            stamp,
            position,
            block: 1,
            count: 1500,
        },
        DataRequest::Grow { stamp, blocks: 3000 },
        DataRequest::Repair {
            stamp,
            block: 1,
            data: data.into(),
        },
        DataRequest::Read {
            volume,
            block: 0,
            count: 2,
        },
        DataRequest::ExtentHashes {
            volume,
            extents: vec![0, 1],
        },
        DataRequest::BlockSums {
            volume,
            block: 0,
            count: 12,
        },
        DataRequest::Allocated { volume, from: 0 },
        DataRequest::VerifyExtent { volume, extent: 0 },
        DataRequest::Status { volume },
        DataRequest::DeviceOpen { volume, caller },
        DataRequest::DeviceRead {
            volume,
            caller,
            block: 0,
            count: 2,
        },
        DataRequest::DeviceWrite {
            volume,
            caller,
            blocks,
            flush: false,
        },
        DataRequest::DeviceDiscard {
            volume,
            caller,
            block: 0,
            count: 2,
        },
        DataRequest::DeviceFlush { volume, caller },
        DataRequest::Heartbeat { stamp },
        DataRequest::Ping {},
        DataRequest::DeviceBlocks { volume, caller },
    ]
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    calls().into_iter().map(rpc::fuzzing::request_seed).collect()
}

pub(crate) fn answer_seeds() -> Vec<Vec<u8>> {
    let state = CopyState {
        epoch: 3,
        blocks: 2000,
        incarnation: 9,
        intact: true,
        hot: vec![0, 1],
        failed: Some("why".into()),
    };
    let answers = vec![
        DataResponse::Fence(Ok(state)),
        DataResponse::Write(Err(CopyError::Stale { epoch: 4, session: 5 })),
        DataResponse::Read(Ok((Payload::from(vec![1; 64]), Sums::from(vec![[1; 32]])))),
        DataResponse::ExtentHashes(Ok(Sums::from(vec![[2; 32]]))),
        DataResponse::Allocated(Ok(vec![1, 2, 300])),
        DataResponse::DeviceRead(Err(RemoteError::OutOfRange {
            block: 1,
            count: 2,
            blocks: 1,
        })),
        DataResponse::Ping(()),
    ];
    answers.into_iter().map(rpc::fuzzing::answer_seed).collect()
}

/// The copies of a node, in memory.
struct InMemory(MemoryDisk);

impl InMemory {
    fn directory(volume: VolumeId) -> PathBuf {
        Path::new("/").join(volume.to_string())
    }
}

impl Copies for InMemory {
    fn create(&self, volume: VolumeId, blocks: u64, epoch: u64) -> Result<Arc<dyn Copy>, CopyError> {
        Ok(Arc::new(self.0.create_copy(
            &Self::directory(volume),
            volume,
            blocks,
            epoch,
        )?))
    }

    fn open(&self, volume: VolumeId) -> Result<(Arc<dyn Copy>, Found), CopyError> {
        let (store, opened) = self.0.open_copy(&Self::directory(volume))?;
        Ok((Arc::new(store), opened.into()))
    }

    fn remove(&self, volume: VolumeId) -> Result<(), CopyError> {
        self.0.remove(&Self::directory(volume));
        Ok(())
    }

    fn list(&self) -> Result<Vec<VolumeId>, CopyError> {
        let directories = self.0.copies().into_iter();
        Ok(directories
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
            .collect())
    }
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// Calls of a node that says what it likes, one after the other: the length of each (2 bytes), and its input as for [`request`]. Another volume's copy
/// is as before, and is served.
pub(crate) fn host(mut input: &[u8]) -> bool {
    let copies = Arc::new(InMemory(MemoryDisk::default()));
    let host = ReplicaHost::new(Identity::new(NodeId::from_bytes([1; 16]), None), copies);
    let service = host.service_for(NodeId::from_bytes([2; 16]));
    // Nobody guesses it.
    let other = Stamp {
        volume: VolumeId::random(),
        epoch: 3,
        session: 1,
    };
    let create = Some(2000);
    RUNTIME.with(|runtime| {
        let call = |request: DataRequest| runtime.block_on(service.clone().serve(tarpc::context::current(), request));
        assert!(matches!(
            call(DataRequest::Fence { stamp: other, create }),
            Ok(DataResponse::Fence(Ok(_)))
        ));
        let mut understood = false;
        for _ in 0..64 {
            let Some((length, rest)) = input.split_first_chunk::<2>() else {
                break;
            };
            let (one, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*length))));
            input = rest;
            if let Some(request) = rpc::fuzzing::call::<DataRequest>(one) {
                understood = true;
                let _ = call(request);
            }
        }
        let flushed = call(DataRequest::Flush { stamp: other });
        assert!(
            matches!(flushed, Ok(DataResponse::Flush(Ok(())))),
            "another volume is served"
        );
        host.close();
        understood
    })
}

pub(crate) fn host_seeds() -> Vec<Vec<u8>> {
    let whole = |calls: Vec<DataRequest>| {
        let calls = calls.into_iter().map(rpc::fuzzing::request_seed);
        // Calls of a block or two.
        let calls = calls.map(|call| [&(call.len() as u16).to_le_bytes()[..], &call].concat());
        calls.collect::<Vec<_>>().concat()
    };
    let mut seeds = vec![whole(calls())];
    // Each with what must come before it.
    for (at, _) in calls().iter().enumerate().skip(1) {
        let first = calls().swap_remove(0);
        seeds.push(whole(vec![first, calls().swap_remove(at)]));
    }
    seeds
}
