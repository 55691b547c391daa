//! Scrubs the volumes whose master is here: slowly in the background, a pass in so many days, and at once when asked to.
//!
//! The extents of a pass are spread evenly over its time, by their number; a pass that is behind (the daemon was down) hurries
//! at [`PACE`]. Between extents it lets foreground I/O go first. Where each pass stands is kept in `scrubs.json`, so that a
//! restart goes on where it was; another node that becomes master begins a pass of its own.

use super::volumes::Volumes;
use crate::api::ApiError;
use crate::block::{DeviceError, EXTENT_SIZE};
use crate::replication::{Master, ScrubbedCopy};
use crate::volume::{EventKind, VolumeId};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Shortest time for one extent of background passes, all volumes together: 16 MiB/s of each copy.
const PACE: Duration = Duration::from_millis(250);
/// Time between two looks for what is due.
const TICK: Duration = Duration::from_millis(500);
/// How long an extent of a background pass waits for foreground I/O to pause, and one of a pass that was asked for.
const PATIENCE: Duration = Duration::from_secs(2);
const IMPATIENCE: Duration = Duration::from_millis(50);
/// Extents of one step of a pass that was asked for.
const STEP: usize = 16;
/// Time between two times of writing down where the passes stand.
const SAVE: Duration = Duration::from_secs(30);

/// The present or last pass over a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pass {
    pub(super) started_at: Timestamp,
    /// `None`: it goes on.
    pub(super) finished_at: Option<Timestamp>,
    /// The extent that comes next.
    pub(super) next: u64,
    pub(super) extents_done: u64,
    pub(super) extents_total: u64,
    /// What it found, of each copy.
    pub(super) copies: Vec<ScrubbedCopy>,
    /// Asked for, not of the background.
    pub(super) asked: bool,
    /// Why it ended early.
    pub(super) error: Option<String>,
}

impl Pass {
    fn new(asked: bool) -> Self {
        Self {
            started_at: Timestamp::now(),
            finished_at: None,
            next: 0,
            extents_done: 0,
            extents_total: 0,
            copies: Vec::new(),
            asked,
            error: None,
        }
    }

    /// Notes that extents are done, the last of them being `last`.
    fn advance(&mut self, extents: u64, last: u64) {
        self.extents_done += extents;
        self.next = last + 1;
    }

    /// When the extent that comes next is due.
    fn due(&self, period: Duration) -> Duration {
        let done = self.extents_done as f64 / self.extents_total.max(1) as f64;
        period.mul_f64(done.clamp(0.0, 1.0))
    }
}

/// What has been found, in a sentence.
fn summary(pass: &Pass) -> String {
    let bytes: u64 = pass.copies.iter().map(|copy| copy.bytes_read).sum();
    let corrupt: u64 = pass.copies.iter().map(|copy| copy.corrupt_blocks).sum();
    let repaired: u64 = pass.copies.iter().map(|copy| copy.repaired_blocks).sum();
    format!(
        "{} MiB read, {corrupt} corrupt blocks found, {repaired} repaired",
        bytes >> 20
    )
}

/// See the module's text.
pub(super) struct Scrubber {
    volumes: Arc<Volumes>,
    /// Time of a background pass; `None`: there are none.
    period: Option<Duration>,
    file: PathBuf,
    passes: Mutex<BTreeMap<VolumeId, Pass>>,
    /// What is left of the passes under way, as it was listed when they began or went on here.
    lists: Mutex<HashMap<VolumeId, Vec<u64>>>,
    stop: CancellationToken,
}

impl Scrubber {
    /// Nothing runs until [`Scrubber::run`].
    pub(super) fn new(
        volumes: Arc<Volumes>,
        period: Option<Duration>,
        file: PathBuf,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let passes = match std::fs::read(&file).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(passes)) => passes,
            // It only costs that passes begin anew.
            Ok(Err(error)) => {
                tracing::warn!(file = %file.display(), %error, "where scrubs stood cannot be read");
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        };
        let mut passes: BTreeMap<VolumeId, Pass> = passes;
        for pass in passes
            .values_mut()
            .filter(|pass| pass.asked && pass.finished_at.is_none())
        {
            pass.finished_at = Some(Timestamp::now());
            pass.error = Some("the daemon was stopped".to_owned());
        }
        Arc::new(Self {
            volumes,
            period,
            file,
            passes: Mutex::new(passes),
            lists: Mutex::default(),
            stop,
        })
    }

    /// Ends passes after the extent that they are at.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// The present or last pass over a volume on this node.
    pub(super) fn pass(&self, volume: VolumeId) -> Option<Pass> {
        self.passes.lock().get(&volume).cloned()
    }

    fn master(&self, volume: VolumeId) -> Option<Arc<Master>> {
        self.volumes.serving.host.master(volume)
    }

    /// Starts a pass at once, unless one that was asked for is under way already; returns where it stands.
    pub(super) fn start(self: &Arc<Self>, volume: VolumeId) -> Result<Pass, ApiError> {
        let master = self.master(volume).ok_or_else(|| {
            ApiError::unavailable("the volume's master is not active at the moment").hint("try again in a few seconds")
        })?;
        let mut passes = self.passes.lock();
        if let Some(running) = passes
            .get(&volume)
            .filter(|pass| pass.asked && pass.finished_at.is_none())
        {
            return Ok(running.clone());
        }
        let pass = Pass::new(true);
        passes.insert(volume, pass.clone());
        drop(passes);
        self.lists.lock().remove(&volume);
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let result = this.whole(&master);
            this.end(volume, result.err());
        });
        Ok(pass)
    }

    /// A whole pass, as fast as it goes. Blocks.
    fn whole(&self, master: &Master) -> Result<(), DeviceError> {
        let volume = master.volume();
        let list = master.scrub_list()?;
        self.change(volume, |pass| pass.extents_total = list.len() as u64);
        for step in list.chunks(STEP) {
            if self.stop.is_cancelled() {
                return Err(DeviceError::Unavailable("the daemon stops".to_owned()));
            }
            self.extents(master, step, IMPATIENCE)?;
        }
        Ok(())
    }

    fn change(&self, volume: VolumeId, change: impl FnOnce(&mut Pass)) {
        if let Some(pass) = self.passes.lock().get_mut(&volume) {
            change(pass);
        }
    }

    /// Some extents of the pass under way. Blocks.
    fn extents(&self, master: &Master, extents: &[u64], patience: Duration) -> Result<(), DeviceError> {
        let volume = master.volume();
        let mut copies = self.pass(volume).map(|pass| pass.copies).unwrap_or_default();
        let result = master.scrub_extents(extents, patience, &mut copies);
        self.change(volume, |pass| {
            pass.copies = copies;
            if let (Ok(()), Some(last)) = (&result, extents.last()) {
                pass.advance(extents.len() as u64, *last);
            }
        });
        result
    }

    fn end(&self, volume: VolumeId, error: Option<DeviceError>) {
        self.change(volume, |pass| {
            pass.finished_at = Some(Timestamp::now());
            pass.error = error.map(|error| error.to_string());
        });
        let Some(pass) = self.pass(volume) else { return };
        let summary = summary(&pass);
        match &pass.error {
            None => {
                tracing::info!(%volume, %summary, "scrub done");
                self.volumes
                    .journal
                    .record(EventKind::ScrubDone, Some(volume), None, &summary);
            }
            Some(error) => tracing::warn!(%volume, %summary, %error, "scrub ended early"),
        }
        self.save();
    }

    /// Background passes until the daemon stops.
    pub(super) async fn run(self: Arc<Self>) {
        let Some(period) = self.period else { return };
        let mut saved = Instant::now();
        loop {
            let mut busy = false;
            for volume in self.here() {
                let this = Arc::clone(&self);
                // One at a time: the disks have better things to do.
                let step = tokio::task::spawn_blocking(move || this.background(volume, period));
                busy |= step.await.unwrap_or(false);
                if self.stop.is_cancelled() {
                    break;
                }
                if busy {
                    tokio::time::sleep(PACE).await;
                }
            }
            if saved.elapsed() >= SAVE {
                self.save();
                saved = Instant::now();
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(if busy { Duration::ZERO } else { TICK }) => {}
            }
        }
        self.save();
    }

    /// Volumes whose master is active here; forgets those that are gone.
    fn here(&self) -> Vec<VolumeId> {
        let view = self.volumes.serving.control.view();
        if view.revision > 0 {
            self.passes.lock().retain(|volume, _| view.volumes.contains_key(volume));
            self.lists.lock().retain(|volume, _| view.volumes.contains_key(volume));
        }
        let active = |volume: &&VolumeId| self.master(**volume).is_some();
        view.volumes.keys().filter(active).copied().collect()
    }

    /// The next extent of a volume's background pass, if it is due. Blocks. Whether there was one.
    fn background(&self, volume: VolumeId, period: Duration) -> bool {
        let Some(master) = self.master(volume) else {
            return false;
        };
        let pass = self.pass(volume);
        let age = |at: Timestamp| Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default();
        let pass = match pass {
            Some(pass) if pass.asked && pass.finished_at.is_none() => return false,
            // Its whole time has to pass, also when it was done early.
            Some(pass) if pass.finished_at.is_some() && age(pass.started_at) < period => return false,
            Some(pass) if pass.finished_at.is_none() => pass,
            _ => {
                let pass = Pass::new(false);
                self.passes.lock().insert(volume, pass.clone());
                self.lists.lock().remove(&volume);
                pass
            }
        };
        if !self.lists.lock().contains_key(&volume) {
            let Ok(list) = master.scrub_list() else { return false };
            self.change(volume, |now| {
                now.extents_total = now.extents_total.max(list.len() as u64)
            });
            let left = list.into_iter().filter(|extent| *extent >= pass.next).collect();
            self.lists.lock().insert(volume, left);
        }
        if age(pass.started_at) < pass.due(period) {
            return false;
        }
        let next = self
            .lists
            .lock()
            .get(&volume)
            .and_then(|list| list.iter().find(|e| **e >= pass.next).copied());
        let Some(extent) = next else {
            self.lists.lock().remove(&volume);
            self.end(volume, None);
            return false;
        };
        match self.extents(&master, &[extent], PATIENCE) {
            Ok(()) => true,
            Err(error) => {
                // The master changes, or its disk fails, which others see to; the pass goes on where it was.
                tracing::debug!(%volume, extent, %error, "scrubbing an extent");
                false
            }
        }
    }

    /// Writes down where the passes stand.
    fn save(&self) {
        let passes = self.passes.lock().clone();
        let write = || -> std::io::Result<()> {
            let fresh = self.file.with_extension("json.new");
            std::fs::write(&fresh, serde_json::to_vec(&passes)?)?;
            std::fs::rename(&fresh, &self.file)
        };
        if let Err(error) = write() {
            tracing::warn!(file = %self.file.display(), %error, "where scrubs stand cannot be written");
        }
    }
}

/// Bytes of a number of extents.
pub(super) fn bytes(extents: u64) -> u64 {
    extents.saturating_mul(EXTENT_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extents_of_a_pass_are_spread_over_its_time() {
        let mut pass = Pass::new(false);
        let period = Duration::from_secs(100);
        assert_eq!(pass.due(period), Duration::ZERO, "nothing to read is done at once");
        pass.extents_total = 4;
        for (done, due) in [(0, 0), (1, 25), (2, 50), (4, 100), (9, 100)] {
            pass.extents_done = done;
            assert_eq!(pass.due(period), Duration::from_secs(due));
        }
        pass.advance(2, 40);
        assert_eq!((pass.extents_done, pass.next), (11, 41));
    }
}
