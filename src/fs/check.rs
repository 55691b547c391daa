//! A walk over all metadata that finds what must not be: overlapping or leaked blocks, wrong link counts, names without inodes.

use super::rows::{Content, Dirent, Extent, Inode, extent_of, key_number, number};
use super::{DATA_START, FileSystem, FsError, Ino, ROOT};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CheckReport {
    /// Inodes seen.
    pub inodes: u64,
    /// Blocks in files.
    pub used_blocks: u64,
    /// What is wrong, in words; empty if nothing.
    pub problems: Vec<String>,
}

#[derive(Default)]
struct Walk {
    inodes: HashMap<Ino, Inode>,
    names: Vec<(Ino, Dirent)>,
    orphans: HashSet<Ino>,
    /// Runs of the data area by start: length, and whose they are.
    runs: BTreeMap<u64, (u64, String)>,
    row_blocks: HashMap<Ino, u64>,
    free: u64,
    report: CheckReport,
}

impl Walk {
    fn problem(&mut self, text: String) {
        self.report.problems.push(text);
    }

    fn run(&mut self, start: u64, length: u64, owner: String) {
        if let Some((_, other)) = self.runs.insert(start, (length, owner.clone())) {
            self.problem(format!("block {start} belongs to {other} and to {owner}"));
        }
    }

    fn extent(&mut self, ino: Ino, extent: &Extent) {
        self.report.used_blocks += extent.length;
        *self.row_blocks.entry(ino).or_default() += extent.length;
        self.run(extent.physical, extent.length, format!("inode {ino}"));
    }

    fn row(&mut self, key: &[u8], value: &[u8]) {
        let first = key_number(key, 0);
        let known = match (key.first(), first) {
            (Some(b'I'), Some(ino)) => Inode::decode(value).map(|inode| {
                if let Content::Inline(extents) = &inode.content {
                    for extent in extents {
                        self.extent(ino, extent);
                    }
                }
                self.report.inodes += 1;
                self.inodes.insert(ino, inode);
            }),
            (Some(b'D'), Some(parent)) => Dirent::decode(value).map(|entry| self.names.push((parent, entry))),
            (Some(b'E'), Some(ino)) => extent_of(key, value).map(|extent| self.extent(ino, &extent)),
            (Some(b'F'), Some(start)) => number(value).map(|length| {
                self.free += length;
                self.run(start, length, "free space".into());
            }),
            (Some(b'P'), Some(start)) => {
                number(value).map(|length| self.run(start, length, "freed, not yet discarded".into()))
            }
            (Some(b'O'), Some(ino)) => {
                self.orphans.insert(ino);
                Some(())
            }
            (Some(b'X' | b'M'), _) => Some(()),
            _ => None,
        };
        if known.is_none() {
            self.problem(format!("a row that cannot be read: {key:?}"));
        }
    }

    fn check_names(&mut self) {
        let mut links: HashMap<Ino, u32> = HashMap::new();
        let mut subdirectories: HashMap<Ino, u32> = HashMap::new();
        for (parent, entry) in std::mem::take(&mut self.names) {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            *links.entry(entry.ino).or_default() += 1;
            match self.inodes.get(&entry.ino) {
                None => self.problem(format!("{name} in directory {parent} names no inode ({})", entry.ino)),
                Some(inode) if inode.kind() != entry.file_kind() => {
                    self.problem(format!("{name} in directory {parent} has the wrong type"));
                }
                Some(inode) if inode.is_dir() => {
                    *subdirectories.entry(parent).or_default() += 1;
                    if inode.content != Content::Directory(parent) {
                        self.problem(format!("directory {name} does not name {parent} as its parent"));
                    }
                }
                Some(_) => {}
            }
            if !self.inodes.get(&parent).is_some_and(Inode::is_dir) {
                self.problem(format!("{name} is in {parent}, which is no directory"));
            }
        }
        let mut problems = Vec::new();
        for (ino, inode) in &self.inodes {
            let named = links.get(ino).copied().unwrap_or(0);
            let orphan = self.orphans.contains(ino);
            let expected = match inode.is_dir() {
                true if named == 0 && *ino != ROOT => 0,
                true => 2 + subdirectories.get(ino).copied().unwrap_or(0),
                false => named,
            };
            if inode.nlink != expected {
                problems.push(format!(
                    "inode {ino} counts {} links, there are {expected}",
                    inode.nlink
                ));
            }
            if (named == 0 && *ino != ROOT) != orphan {
                problems.push(format!(
                    "inode {ino} has {named} names and is {}an orphan",
                    if orphan { "" } else { "not " }
                ));
            }
            let blocks = self.row_blocks.get(ino).copied().unwrap_or(0);
            if inode.blocks != blocks {
                problems.push(format!(
                    "inode {ino} counts {} blocks, its extents have {blocks}",
                    inode.blocks
                ));
            }
        }
        self.report.problems.extend(problems);
    }

    fn check_space(&mut self, data_blocks: u64) {
        let mut at = DATA_START;
        for (start, (length, owner)) in std::mem::take(&mut self.runs) {
            if start != at {
                let what = if start > at {
                    "belong to nobody"
                } else {
                    "belong to two"
                };
                self.problem(format!(
                    "blocks {} to {} {what} (before {owner})",
                    start.min(at),
                    start.max(at)
                ));
            }
            at = start + length;
        }
        if at != DATA_START + data_blocks {
            self.problem(format!(
                "space is accounted for up to block {at}, the area ends at {}",
                DATA_START + data_blocks
            ));
        }
    }
}

impl FileSystem {
    /// Walks all metadata. Operations wait meanwhile.
    ///
    /// # Errors
    /// The device's; what is wrong with the metadata is in the report.
    pub fn check(&self) -> Result<CheckReport, FsError> {
        let state = self.core.state()?;
        let mut walk = Walk::default();
        state.store.range(Bound::Unbounded, b"\xff", &mut |key, value| {
            walk.row(key, value);
            true
        })?;
        let (start, length) = state.counters.window;
        if length > 0 {
            walk.run(start, length, "the allocation window".into());
        }
        if walk.free + length != state.counters.free {
            walk.problem(format!(
                "{} blocks counted free, rows and window have {}",
                state.counters.free,
                walk.free + length
            ));
        }
        if walk.report.inodes != state.counters.inodes {
            walk.problem(format!(
                "{} inodes counted, {} there",
                state.counters.inodes, walk.report.inodes
            ));
        }
        walk.check_names();
        walk.check_space(state.data_blocks);
        Ok(walk.report)
    }
}
