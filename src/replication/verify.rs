//! Proof that copies are identical, and what a master says of itself.

use super::{
    link::LinkError,
    master::Master,
    stats::StatsSnapshot,
    store::{CopyError, Sum},
    sync::{SyncError, SyncProgress},
    wire::Open,
};
use crate::{
    block::{BlockDevice, DeviceError, EXTENT_BLOCKS},
    rpc::{Kind, within},
    volume::{Configuration, NodeId},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Extents compared under one lock.
const BATCH: usize = 64;
const DEADLINE: Duration = Duration::from_secs(30);

/// What a comparison found on one copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyReport {
    /// The copy's node.
    pub node: NodeId,
    /// Whether it is the master's, to which the others are compared.
    pub master: bool,
    /// Extents whose hash differs from the master's.
    pub differing_extents: Vec<u64>,
    /// Blocks whose bytes do not match their sum; only looked for by a deep verification.
    pub corrupt_blocks: Vec<u64>,
    /// Why the copy could not be compared, if so.
    pub error: Option<String>,
}

impl CopyReport {
    /// Whether the copy is the same as the master's, as far as was looked.
    #[must_use]
    pub fn identical(&self) -> bool {
        self.differing_extents.is_empty() && self.corrupt_blocks.is_empty() && self.error.is_none()
    }
}

/// What a verification found on all in-sync copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// The epoch at which it ran.
    pub epoch: u64,
    /// Extents compared.
    pub extents: u64,
    /// The master's copy first.
    pub copies: Vec<CopyReport>,
}

impl Verification {
    /// Whether all copies are identical.
    #[must_use]
    pub fn identical(&self) -> bool {
        self.copies.iter().all(CopyReport::identical)
    }
}

/// What a master says of itself, for `volume inspect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasterStatus {
    /// The configuration in force.
    pub configuration: Configuration,
    /// Why the volume may not be written, if so.
    pub blocked: Option<String>,
    /// Seconds that writes still wait for it; `None` with `blocked`: they fail, the volume is read-only.
    pub waits: Option<u64>,
    /// What a change of the configuration waits for, and writes with it, if it does.
    pub waiting: Option<String>,
    /// Why this master ended, if it did.
    pub fenced: Option<String>,
    /// Counters since activation.
    pub stats: StatsSnapshot,
    /// Syncs that run.
    pub syncs: BTreeMap<NodeId, SyncProgress>,
}

impl Master {
    /// What this master does.
    #[must_use]
    pub fn status(&self) -> MasterStatus {
        let view = self.last_view();
        let suspension = self.suspension();
        MasterStatus {
            configuration: view.configuration.clone(),
            blocked: suspension.map(|(why, _)| why.to_string()),
            waits: suspension.and_then(|(_, left)| left).map(|left| left.as_secs()),
            waiting: self.waiting(),
            fenced: self.fenced(),
            stats: self.stats.snapshot(),
            syncs: self.sync_progress(),
        }
    }

    /// Compares every in-sync copy with this one, extent by extent, each while no write to it is in flight; `deep` also reads
    /// all bytes of all copies. Blocks for as long as that takes; I/O goes on meanwhile.
    ///
    /// # Errors
    /// This master has ended, or its own copy failed. What is wrong with another copy stands in its report.
    pub fn verify(&self, deep: bool) -> Result<Verification, DeviceError> {
        let view = self.view()?;
        let local = |error: CopyError| DeviceError::Io(error.to_string());
        let mut own = CopyReport::new(self.node(), true);
        let mut copies = Vec::new();
        let mut extents: BTreeSet<u64> = self
            .local
            .copy()
            .allocated_extents()
            .map_err(local)?
            .into_iter()
            .collect();
        let wait = &self.environment.runtime;
        let end = self.blocks().div_ceil(EXTENT_BLOCKS);
        for replica in view.in_sync_replicas() {
            let mut report = CopyReport::new(replica.node, false);
            // A connection of its own kind: the comparison must not delay writes.
            match wait.block_on(replica.open(Kind::Sync, self.options.replica_deadline)) {
                Ok(Open { client, stop, .. }) => match self.remote_extents(&client) {
                    Ok(theirs) => {
                        extents.extend(theirs.into_iter().filter(|extent| *extent < end));
                        copies.push((report, Some((client, stop.drop_guard()))));
                        continue;
                    }
                    Err(error) => report.error = Some(error.to_string()),
                },
                Err(error) => report.error = Some(error.to_string()),
            }
            copies.push((report, None));
        }
        let all: Vec<u64> = extents.into_iter().collect();
        for batch in all.chunks(BATCH) {
            let ranges = batch
                .iter()
                .map(|extent| (extent * EXTENT_BLOCKS, (extent + 1) * EXTENT_BLOCKS))
                .collect();
            let _range = self.ranges.lock(ranges);
            let hashes: Result<Vec<Sum>, _> = batch
                .iter()
                .map(|extent| self.local.copy().extent_hash(*extent))
                .collect();
            let hashes = hashes.map_err(local)?;
            if deep {
                for extent in batch {
                    own.corrupt_blocks
                        .extend(self.local.copy().verify_extent(*extent).map_err(local)?);
                }
            }
            for (report, link) in &mut copies {
                let Some((client, _)) = link else { continue };
                let compared = self.fetch_hashes(client, batch.to_vec()).and_then(|theirs| {
                    let differ = batch.iter().zip(&hashes);
                    let differ = differ.filter(|(extent, hash)| theirs.get(extent) != Some(hash));
                    report.differing_extents.extend(differ.map(|(extent, _)| *extent));
                    for extent in batch.iter().filter(|_| deep) {
                        let call = client.verify_extent(within(DEADLINE), self.volume, *extent);
                        let bad = super::link::flatten(wait.block_on(call), DEADLINE)?;
                        report.corrupt_blocks.extend(bad);
                    }
                    Ok(())
                });
                if let Err(error) = compared {
                    report.error = Some(error.to_string());
                    *link = None;
                }
            }
        }
        let now = self.view()?;
        let mut reports = vec![own];
        // A copy that left meanwhile is not in sync any more: nothing is promised of it.
        reports.extend(
            copies
                .into_iter()
                .map(|(report, _)| report)
                .filter(|report| now.configuration.in_sync.contains(&report.node)),
        );
        Ok(Verification {
            epoch: now.configuration.epoch,
            extents: all.len() as u64,
            copies: reports,
        })
    }

    /// The extents that another copy holds.
    pub(super) fn remote_extents(&self, client: &super::wire::Client) -> Result<Vec<u64>, SyncError> {
        let mut found: Vec<u64> = Vec::new();
        let mut from = 0;
        loop {
            let call = client.allocated(within(DEADLINE), self.volume, from);
            let part = super::link::flatten(self.environment.runtime.block_on(call), DEADLINE)?;
            let full = part.len() >= super::service::MAX_EXTENTS;
            match part.last() {
                Some(last) if *last >= from => from = last.saturating_add(1),
                Some(_) => {
                    let why = CopyError::Invalid("extents out of order".to_owned());
                    return Err(LinkError::Copy(why).into());
                }
                None => {}
            }
            found.extend(part);
            if !full {
                return Ok(found);
            }
        }
    }
}

impl CopyReport {
    fn new(node: NodeId, master: bool) -> Self {
        Self {
            node,
            master,
            differing_extents: Vec::new(),
            corrupt_blocks: Vec::new(),
            error: None,
        }
    }
}
