//! Scrubbing: every in-sync copy's bytes are read and compared with their hashes; bad blocks are replaced by another copy's.
//!
//! Nothing is locked while a copy reads (it looks again before it calls a block corrupt); the repair of a block holds its range.
//! How fast a pass goes and where it stands is the caller's business: [`Master::scrub_extents`] does a few extents.

use super::{
    link::{LinkError, Replica, flatten},
    master::Master,
    store::CopyError,
    wire::{Client, Open},
};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError, EXTENT_BLOCKS, EXTENT_SIZE},
    rpc::{Kind, Payload, within},
    volume::NodeId,
};
use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio_util::sync::DropGuard;

/// Deadline of reading one extent on a busy disk.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a scrub found on one copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScrubbedCopy {
    /// The copy's node.
    pub node: NodeId,
    /// Bytes read and compared.
    pub bytes_read: u64,
    /// Blocks that did not match their hashes.
    pub corrupt_blocks: u64,
    /// Those of them that were replaced.
    pub repaired_blocks: u64,
    /// Why some of it could not be read, the last time that happened.
    pub error: Option<String>,
}

impl ScrubbedCopy {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            bytes_read: 0,
            corrupt_blocks: 0,
            repaired_blocks: 0,
            error: None,
        }
    }
}

/// The entry of a copy, made if it is not there.
fn of(copies: &mut Vec<ScrubbedCopy>, node: NodeId) -> &mut ScrubbedCopy {
    let at = copies.iter().position(|copy| copy.node == node).unwrap_or_else(|| {
        copies.push(ScrubbedCopy::new(node));
        copies.len() - 1
    });
    &mut copies[at]
}

type Link = (Arc<Replica>, Client, DropGuard);

impl Master {
    /// The extents that there are to scrub, ascending: those that any in-sync copy holds. Blocks.
    ///
    /// # Errors
    /// This master has ended, or its own copy failed.
    pub fn scrub_list(&self) -> Result<Vec<u64>, DeviceError> {
        let own = self.local.copy().allocated_extents();
        let own = own.map_err(|error| DeviceError::Io(error.to_string()))?;
        let mut extents: BTreeSet<u64> = own.into_iter().collect();
        let end = self.blocks().div_ceil(EXTENT_BLOCKS);
        for (replica, client, _close) in self.scrub_links(&mut Vec::new())? {
            match self.remote_extents(&client) {
                Ok(theirs) => extents.extend(theirs.into_iter().filter(|extent| *extent < end)),
                Err(error) => tracing::debug!(volume = %self.volume, node = %replica.node, %error, "listing extents"),
            }
        }
        Ok(extents.into_iter().collect())
    }

    /// Connections to the other in-sync copies; one that cannot be had is said in `copies`.
    fn scrub_links(&self, copies: &mut Vec<ScrubbedCopy>) -> Result<Vec<Link>, DeviceError> {
        let mut links = Vec::new();
        for replica in self.view()?.in_sync_replicas() {
            // Of its own, so that writes do not wait behind it.
            let opened = replica.open(Kind::Sync, self.options.replica_deadline);
            match self.environment.runtime.block_on(opened) {
                Ok(Open { client, stop, .. }) => links.push((Arc::clone(replica), client, stop.drop_guard())),
                Err(error) => of(copies, replica.node).error = Some(error.to_string()),
            }
        }
        Ok(links)
    }

    /// Reads some extents on every in-sync copy and repairs what is bad; adds what it found to `copies`. Before each extent it
    /// lets calls of the foreground go first, for `patience` at most. Blocks.
    ///
    /// # Errors
    /// This master has ended, or its own copy failed.
    pub fn scrub_extents(
        &self,
        extents: &[u64],
        patience: Duration,
        copies: &mut Vec<ScrubbedCopy>,
    ) -> Result<(), DeviceError> {
        let runtime = &self.environment.runtime;
        let links = self.scrub_links(copies)?;
        let mut repaired = false;
        for extent in extents {
            self.check_fenced()?;
            self.give_way(patience);
            let first = extent * EXTENT_BLOCKS;
            if first >= self.blocks() {
                continue;
            }
            let own = of(copies, self.node());
            match self.local.copy().verify_extent(*extent) {
                Ok(bad) => {
                    own.bytes_read += EXTENT_SIZE;
                    for block in bad {
                        own.corrupt_blocks += 1;
                        if self.mend(block).is_ok() {
                            own.repaired_blocks += 1;
                            repaired = true;
                        }
                    }
                }
                Err(error) => return Err(DeviceError::Io(error.to_string())),
            }
            let answers = links
                .iter()
                .map(|(_, client, _)| client.verify_extent(within(DEADLINE), self.volume, *extent));
            let answers = runtime.block_on(join_all(answers));
            for ((replica, _, _), answer) in links.iter().zip(answers) {
                let copy = of(copies, replica.node);
                let bad = match flatten(answer, DEADLINE) {
                    Ok(bad) => bad,
                    // It left meanwhile: nothing is promised of it.
                    Err(_) if replica.is_dropped() => continue,
                    Err(error) => {
                        copy.error = Some(error.to_string());
                        continue;
                    }
                };
                copy.bytes_read += EXTENT_SIZE;
                for block in bad.into_iter().filter(|block| block / EXTENT_BLOCKS == *extent) {
                    copy.corrupt_blocks += 1;
                    self.stats.corrupt();
                    match self.mend_on(replica, block) {
                        Ok(()) => {
                            copy.repaired_blocks += 1;
                            repaired = true;
                        }
                        Err(error) => {
                            tracing::warn!(volume = %self.volume, node = %replica.node, block, %error, "not repaired");
                        }
                    }
                }
            }
        }
        if repaired {
            self.flush()?;
        }
        Ok(())
    }

    /// Replaces a block that is bad on a replica by this node's, which is mended first if it is bad too.
    fn mend_on(&self, replica: &Replica, block: u64) -> Result<(), DeviceError> {
        let runtime = &self.environment.runtime;
        let _range = self.ranges.lock(vec![(block, block + 1)]);
        if let Err(error) = self.mend_locked(block) {
            self.note_corrupt(replica.node, block);
            return Err(error);
        }
        match runtime.block_on(replica.read(block, 1)) {
            // A write came first, or mending this node's block did that one too.
            Ok(_) => return Ok(()),
            Err(LinkError::Copy(CopyError::Corrupt { .. })) => {}
            Err(error) => return Err(DeviceError::Unavailable(error.to_string())),
        }
        let mut good = vec![0; BLOCK_SIZE];
        let read = self.local.copy().read(block, &mut good);
        read.map_err(|error| DeviceError::Io(error.to_string()))?;
        let epoch = self.view()?.configuration.epoch;
        runtime
            .block_on(replica.repair(epoch, block, Payload(Bytes::from(good))))
            .map_err(|error| DeviceError::Unavailable(error.to_string()))?;
        self.note_repaired(replica.node, block);
        tracing::warn!(volume = %self.volume, node = %replica.node, block, "corrupt block of a replica repaired");
        Ok(())
    }
}
