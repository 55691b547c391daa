//! A block device in memory that remembers what is done to it, and the images that a power loss may make of that.
//!
//! # What is assumed of the device
//! A flush makes durable what was complete before it began. Of what came later each block may be as it was before or have any content that it was
//! given since, whatever the others have: nothing is ordered. A block may also be torn at 512 bytes, each such sector by itself. Discards are
//! writes of zeros. This is no less than what the block store can leave when every node loses power at once: a copy is written in place through the page
//! cache, which writes pages back in any order, and a flush is one fdatasync; a punched hole may be undone. A block's sum protects from no tear of that
//! kind: after a crash the sums of extents that were in use are computed anew from the data, so a torn block reads as it stands. (Extents
//! that are not in use were synced with their sums before.) Then the master's copy becomes everybody's: what is mounted is one copy's
//! image. Not assumed: disks that lose what they said was flushed, and sectors that are torn themselves.

use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError, Write};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SECTOR: usize = 512;

pub(crate) type Blocks = BTreeMap<u64, Bytes>;

#[derive(Clone)]
pub(crate) enum Event {
    /// A block's new content, or that it is discarded.
    Change(u64, Option<Bytes>),
    /// The end of a flush: it covers what is before this event's number.
    Flush(usize),
}

/// A device in memory that remembers everything that was done to it.
pub(crate) struct Recorder {
    blocks: u64,
    /// Whether calls take time, so that those of several threads overlap.
    slow: bool,
    content: Mutex<(Blocks, Vec<Event>)>,
}

/// Applies a change.
pub(crate) fn change(blocks: &mut Blocks, block: u64, data: Option<Bytes>) {
    match data {
        Some(data) => blocks.insert(block, data),
        None => blocks.remove(&block),
    };
}

impl Recorder {
    pub(crate) fn new(blocks: u64, content: Blocks, slow: bool) -> Arc<Self> {
        Arc::new(Self {
            blocks,
            slow,
            content: Mutex::new((content, Vec::new())),
        })
    }

    /// How much was recorded so far.
    pub(crate) fn now(&self) -> usize {
        self.content.lock().1.len()
    }
}

impl Recorder {
    /// What it holds now.
    pub(crate) fn blocks_now(&self) -> Blocks {
        self.content.lock().0.clone()
    }

    /// What was recorded from a moment on.
    pub(crate) fn events(&self, from: usize) -> Vec<Event> {
        self.content.lock().1[from..].to_vec()
    }
}

impl BlockDevice for Recorder {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let content = self.content.lock();
        for (i, out) in buffer.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            match content.0.get(&(block + i as u64)) {
                Some(data) => out.copy_from_slice(data),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError> {
        let mut changes = Vec::new();
        let mut content = self.content.lock();
        for write in writes {
            for (i, at) in (0..write.data.len()).step_by(BLOCK_SIZE).enumerate() {
                let (block, data) = (write.block + i as u64, write.data.slice(at..at + BLOCK_SIZE));
                assert!(block < self.blocks);
                change(&mut content.0, block, Some(data.clone()));
                changes.push(Event::Change(block, Some(data)));
            }
        }
        if flush {
            content.1.append(&mut changes);
            drop(content);
            return self.flush();
        }
        if self.slow {
            // Until it returns, a flush of somebody else does not cover it.
            drop(content);
            pause();
            content = self.content.lock();
        }
        content.1.append(&mut changes);
        Ok(())
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        let mut content = self.content.lock();
        let (blocks, events) = &mut *content;
        let held: Vec<u64> = blocks.range(block..block + count).map(|(b, _)| *b).collect();
        for block in held {
            change(blocks, block, None);
            events.push(Event::Change(block, None));
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let covers = self.now();
        if self.slow {
            pause();
        }
        self.content.lock().1.push(Event::Flush(covers));
        Ok(())
    }
}

fn pause() {
    std::thread::sleep(Duration::from_micros(100));
}

/// How much of what was not flushed an image has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    Nothing,
    Everything,
    SomeBlocks,
    SomeSectors,
}

/// What is tried of each moment.
pub(crate) const ALL: [Kept; 7] = [
    Kept::Nothing,
    Kept::Everything,
    Kept::SomeBlocks,
    Kept::SomeBlocks,
    Kept::SomeSectors,
    Kept::SomeSectors,
    Kept::SomeSectors,
];

/// Applies a part of unflushed changes.
fn keep(blocks: &mut Blocks, pending: &[Event], kept: Kept, random: &mut StdRng) {
    // Sometimes nearly all of it, sometimes hardly any.
    let odds = [0.1, 0.5, 0.9][random.random_range(0..3)];
    for event in pending {
        let Event::Change(block, data) = event else { continue };
        match kept {
            Kept::Nothing => {}
            Kept::Everything => change(blocks, *block, data.clone()),
            Kept::SomeBlocks if random.random_bool(odds) => change(blocks, *block, data.clone()),
            Kept::SomeBlocks => {}
            Kept::SomeSectors => {
                let mut torn = blocks.get(block).map_or_else(|| vec![0; BLOCK_SIZE], |b| b.to_vec());
                for at in (0..BLOCK_SIZE).step_by(SECTOR) {
                    if random.random_bool(odds) {
                        let to = at..at + SECTOR;
                        match data {
                            Some(data) => torn[to.clone()].copy_from_slice(&data[to]),
                            None => torn[to].fill(0),
                        }
                    }
                }
                change(blocks, *block, Some(Bytes::from(torn)));
            }
        }
    }
}

/// Every image that a loss may leave: `use_image` gets the moment (a number of events) and the blocks.
pub(crate) fn images(
    before: &Blocks,
    events: &[Event],
    kinds: &[Kept],
    random: &mut StdRng,
    mut use_image: impl FnMut(usize, Kept, Blocks, &mut StdRng),
) {
    let mut durable = before.clone();
    let (mut from, mut covered) = (0, 0);
    loop {
        let next = events[from..].iter().position(|e| matches!(e, Event::Flush(_)));
        let end = next.map_or(events.len(), |length| from + length);
        for kept in kinds {
            let moment = match kept {
                Kept::Nothing => from,
                Kept::Everything => end,
                _ => random.random_range(from..=end),
            };
            let pending = &events[covered..moment];
            if !matches!(kept, Kept::Nothing) && !pending.iter().any(|e| matches!(e, Event::Change(..))) {
                continue;
            }
            let mut image = durable.clone();
            keep(&mut image, pending, *kept, random);
            use_image(moment, *kept, image, random);
        }
        let Some(Event::Flush(covers)) = events.get(end) else {
            return;
        };
        if *covers > covered {
            keep(&mut durable, &events[covered..*covers], Kept::Everything, random);
            covered = *covers;
        }
        from = end + 1;
    }
}
