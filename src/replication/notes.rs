//! What a master tells its observer: changes of the configuration as they are installed, and, twice a second, what comes in
//! numbers (repaired blocks: one event for many) or with time (a suspended volume that turned read-only).

use super::master::Master;
use crate::exec::{sync::Mutex, time};
use crate::volume::{Configuration, EventKind, NodeId, changes};
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

/// Time between two looks.
const TICK: Duration = Duration::from_millis(500);

/// How many blocks, and the first of them.
type Counted = BTreeMap<NodeId, (u64, u64)>;

/// What has not been told yet.
#[derive(Default)]
pub(super) struct Notes {
    repaired: Mutex<Counted>,
    corrupt: Mutex<Counted>,
    /// What a change of the configuration waits for, and writes with it.
    waiting: Mutex<Option<String>>,
}

fn count(in_all: &Mutex<Counted>, node: NodeId, block: u64) {
    in_all.lock().entry(node).or_insert((0, block)).0 += 1;
}

impl Master {
    pub(super) fn tell(&self, kind: EventKind, node: Option<NodeId>, detail: &str) {
        self.environment.observer.happened(self.volume, kind, node, detail);
    }

    /// What a change of the configuration waits for; `None`: it does not.
    pub(super) fn note_waiting(&self, what: Option<String>) {
        *self.notes.waiting.lock() = what;
    }

    pub(super) fn waiting(&self) -> Option<String> {
        self.notes.waiting.lock().clone()
    }

    /// A corrupt block of the copy on `node` was replaced.
    pub(super) fn note_repaired(&self, node: NodeId, block: u64) {
        self.stats.repaired();
        count(&self.notes.repaired, node, block);
    }

    /// A corrupt block of the copy on `node` could not be replaced.
    pub(super) fn note_corrupt(&self, node: NodeId, block: u64) {
        count(&self.notes.corrupt, node, block);
    }

    /// Tells what a change of the configuration is; `reason` belongs to copies that were lost.
    pub(super) fn tell_changes(&self, old: &Configuration, new: &Configuration, reason: &str) {
        for (kind, node) in changes(old, new) {
            let detail = if kind == EventKind::ReplicaLost { reason } else { "" };
            self.tell(kind, Some(node), detail);
        }
    }

    fn tell_counted(&self) {
        for (counted, kind) in [
            (&self.notes.repaired, EventKind::BlocksRepaired),
            (&self.notes.corrupt, EventKind::BlocksCorrupt),
        ] {
            let counted = std::mem::take(&mut *counted.lock());
            for (node, (blocks, first)) in counted {
                let detail = match blocks {
                    1 => format!("block {first}"),
                    more => format!("{more} blocks, the first is {first}"),
                };
                self.tell(kind, Some(node), &detail);
            }
        }
    }

    fn tell_read_only(&self) {
        if let Some(why) = self.turn_read_only() {
            tracing::warn!(volume = %self.volume, %why, "the volume is read-only until enough replicas are in sync");
            self.tell(EventKind::VolumeReadOnly, None, &why.to_string());
        }
    }
}

/// Tells what a master has to tell until it ends.
pub(super) async fn keep_telling(master: Weak<Master>) {
    if let Some(master) = master.upgrade()
        && let Some(why) = master.last_view().blocked()
    {
        master.tell(EventKind::VolumeSuspended, None, &why.to_string());
    }
    loop {
        let Some(master) = master.upgrade() else { return };
        master.tell_counted();
        let stop = master.stop.clone();
        if stop.is_cancelled() {
            return;
        }
        master.tell_read_only();
        drop::<Arc<Master>>(master);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = time::sleep(TICK) => {}
        }
    }
}
