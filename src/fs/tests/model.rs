//! Random operations against a tree in memory, with remounts, crashes and deaths of the daemon between.

use super::survive::{inherit, open_kept};
use super::{CALLER, check, check_device, fresh};
use crate::fs::{FileKind, FileSystem, Ino, ROOT, SetAttr};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A path of one or two names out of a few, so that operations meet.
type Path = Vec<u8>;

#[derive(Clone, Debug)]
enum Op {
    Mkdir(Path),
    Write(Path, u64, usize, u8),
    Truncate(Path, u64),
    Punch(Path, u64, u64),
    /// Zeroes a range and allocates it; true: the file grows over it.
    Zero(Path, u64, u64, bool),
    Allocate(Path, u64, u64, bool),
    /// From a file at one offset into another at a second.
    Copy(Path, u64, Path, u64, u64),
    Symlink(Path, u8),
    Remove(Path),
    Rename(Path, Path),
    RenameNew(Path, Path),
    Exchange(Path, Path),
    Link(Path, Path),
    /// An attribute's name and value; none: it is removed.
    Attribute(Path, u8, Option<u8>),
    Mode(Path, u8),
    Sync,
    Remount,
    /// The daemon dies without a word, the machine lives.
    Kill,
    /// Synced, and then the power goes.
    Crash(u64),
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(0..4_u8, 1..3)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => path().prop_map(Op::Mkdir),
        5 => (path(), 0..50_000_u64, 1..20_000_usize, 1..255_u8).prop_map(|(p, o, l, b)| Op::Write(p, o, l, b)),
        2 => (path(), 0..60_000_u64).prop_map(|(p, s)| Op::Truncate(p, s)),
        1 => (path(), 0..50_000_u64, 1..30_000_u64).prop_map(|(p, o, l)| Op::Punch(p, o, l)),
        1 => (path(), 0..50_000_u64, 1..30_000_u64, any::<bool>()).prop_map(|(p, o, l, g)| Op::Zero(p, o, l, g)),
        1 => (path(), 0..50_000_u64, 1..30_000_u64, any::<bool>()).prop_map(|(p, o, l, g)| Op::Allocate(p, o, l, g)),
        1 => (path(), 0..50_000_u64, path(), 0..50_000_u64, 1..30_000_u64)
            .prop_map(|(p, o, q, to, l)| Op::Copy(p, o, q, to, l)),
        1 => (path(), any::<u8>()).prop_map(|(p, t)| Op::Symlink(p, t)),
        2 => path().prop_map(Op::Remove),
        3 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::RenameNew(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Exchange(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (path(), 0..3_u8, any::<Option<u8>>()).prop_map(|(p, n, v)| Op::Attribute(p, n, v)),
        1 => (path(), any::<u8>()).prop_map(|(p, m)| Op::Mode(p, m)),
        1 => Just(Op::Sync),
        1 => Just(Op::Remount),
        2 => Just(Op::Kill),
        1 => any::<u64>().prop_map(Op::Crash),
    ]
}

/// The reference: names to inodes by number, so that hard links share.
#[derive(Clone, Default)]
struct Tree {
    names: BTreeMap<Path, usize>,
    inodes: BTreeMap<usize, Node>,
}

#[derive(Clone, Debug, PartialEq)]
struct Node {
    kind: Kind,
    mode: u16,
    attributes: BTreeMap<u8, u8>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(u8),
}

impl Kind {
    fn is_dir(&self) -> bool {
        *self == Self::Dir
    }
}

impl Tree {
    fn node(&self, path: &Path) -> Option<&Node> {
        self.inodes.get(self.names.get(path)?)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.node(path).is_some_and(|node| node.kind.is_dir())
    }

    fn file(&mut self, path: &Path) -> Option<&mut Vec<u8>> {
        match &mut self.inodes.get_mut(self.names.get(path)?)?.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    fn parent_is_dir(&self, path: &Path) -> bool {
        path.len() == 1 || self.is_dir(&path[..path.len() - 1].to_vec())
    }

    fn children(&self, path: &Path) -> usize {
        self.names
            .keys()
            .filter(|p| p.len() > path.len() && p.starts_with(path))
            .count()
    }

    fn make(&mut self, path: &Path, kind: Kind, mode: u16) -> bool {
        let ok = self.parent_is_dir(path) && !self.names.contains_key(path);
        if ok {
            let number = self.inodes.keys().last().map_or(0, |n| n + 1);
            let node = Node {
                kind,
                mode,
                attributes: BTreeMap::new(),
            };
            self.inodes.insert(number, node);
            self.names.insert(path.clone(), number);
        }
        ok
    }

    /// Whether the operation succeeds, done to the reference.
    fn apply(&mut self, op: &Op) -> bool {
        match op {
            Op::Mkdir(path) => self.make(path, Kind::Dir, 0o755),
            Op::Symlink(path, target) => self.make(path, Kind::Symlink(*target), 0o777),
            Op::Write(path, offset, length, byte) => {
                self.make(path, Kind::File(Vec::new()), 0o644);
                let (from, to) = (*offset as usize, *offset as usize + length);
                self.file(path).is_some_and(|file| {
                    file.resize(file.len().max(to), 0);
                    file[from..to].fill(*byte);
                    true
                })
            }
            Op::Truncate(path, size) => self.file(path).is_some_and(|file| {
                file.resize(*size as usize, 0);
                true
            }),
            Op::Punch(path, offset, length)
            | Op::Zero(path, offset, length, _)
            | Op::Allocate(path, offset, length, _) => {
                let grows = matches!(op, Op::Zero(.., true) | Op::Allocate(.., true));
                let zeroes = !matches!(op, Op::Allocate(..));
                let (from, to) = (*offset as usize, (offset + length) as usize);
                self.file(path).is_some_and(|file| {
                    if grows {
                        file.resize(file.len().max(to), 0);
                    }
                    let to = to.min(file.len());
                    if zeroes && from < to {
                        file[from..to].fill(0);
                    }
                    true
                })
            }
            Op::Copy(from, offset, to, at, length) => {
                let Some(source) = self.file(from).map(|file| file.clone()) else {
                    return false;
                };
                let same = self.names.get(from) == self.names.get(to);
                if same && *offset < at + length && *at < offset + length {
                    return false;
                }
                let from = source.len().min(*offset as usize);
                let part = &source[from..source.len().min((offset + length) as usize)];
                self.file(to).is_some_and(|file| {
                    let (at, end) = (*at as usize, *at as usize + part.len());
                    if !part.is_empty() {
                        file.resize(file.len().max(end), 0);
                        file[at..end].copy_from_slice(part);
                    }
                    true
                })
            }
            Op::Remove(path) => self.children(path) == 0 && self.names.remove(path).is_some(),
            Op::Rename(from, to) => self.rename(from, to),
            Op::RenameNew(from, to) => !self.names.contains_key(to) && self.rename(from, to),
            Op::Exchange(from, to) => {
                let (Some(a), Some(b)) = (self.names.get(from).copied(), self.names.get(to).copied()) else {
                    return false;
                };
                if a == b {
                    return true;
                }
                // A directory cannot go below itself.
                if self.is_dir(from) && to.starts_with(from) || self.is_dir(to) && from.starts_with(to) {
                    return false;
                }
                let mut moved = Vec::new();
                for (old, new) in [(from, to), (to, from)] {
                    for path in self.names.keys().filter(|p| p.starts_with(old)) {
                        moved.push((path.clone(), [&new[..], &path[old.len()..]].concat()));
                    }
                }
                let numbers: Vec<_> = moved.iter().map(|(old, _)| self.names.remove(old)).collect();
                for ((_, new), number) in moved.into_iter().zip(numbers) {
                    self.names.extend(number.map(|number| (new, number)));
                }
                true
            }
            Op::Link(from, to) => {
                let ok = self.parent_is_dir(to) && !self.names.contains_key(to) && !self.is_dir(from);
                match self.names.get(from).copied().filter(|_| ok) {
                    Some(number) => self.names.insert(to.clone(), number).is_none(),
                    None => false,
                }
            }
            Op::Attribute(path, name, value) => {
                let node = self.names.get(path).and_then(|number| self.inodes.get_mut(number));
                node.is_some_and(|node| match value {
                    Some(value) => {
                        node.attributes.insert(*name, *value);
                        true
                    }
                    None => node.attributes.remove(name).is_some(),
                })
            }
            Op::Mode(path, mode) => {
                let node = self.names.get(path).and_then(|number| self.inodes.get_mut(number));
                node.is_some_and(|node| {
                    node.mode = u16::from(*mode);
                    true
                })
            }
            Op::Sync | Op::Remount | Op::Kill | Op::Crash(_) => true,
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> bool {
        let (Some(number), true) = (self.names.get(from).copied(), self.parent_is_dir(to)) else {
            return false;
        };
        let target = self.names.get(to).copied();
        if target == Some(number) {
            return true;
        }
        let is_dir = self.is_dir(from);
        if is_dir && to.starts_with(from) {
            return false;
        }
        if target.is_some() && (is_dir != self.is_dir(to) || self.children(to) > 0) {
            return false;
        }
        // A directory two deep cannot take children of its own with it: paths have two names.
        let moved: Vec<Path> = self.names.keys().filter(|p| p.starts_with(from)).cloned().collect();
        for path in moved {
            if let Some(number) = self.names.remove(&path) {
                let mut new = to.clone();
                new.extend_from_slice(&path[from.len()..]);
                self.names.insert(new, number);
            }
        }
        true
    }
}

fn name(part: u8) -> Vec<u8> {
    vec![b'a' + part]
}

/// The directory of a path, and the inode if it is there.
fn walk(fs: &FileSystem, path: &Path) -> Option<(Ino, Option<Ino>)> {
    let mut dir = ROOT;
    for part in &path[..path.len() - 1] {
        let attr = fs.lookup(dir, &name(*part)).ok()?;
        fs.forget(attr.ino, 1);
        if attr.kind != FileKind::Directory {
            return None;
        }
        dir = attr.ino;
    }
    let found = fs.lookup(dir, &name(path[path.len() - 1])).ok();
    if let Some(attr) = &found {
        fs.forget(attr.ino, 1);
    }
    Some((dir, found.map(|attr| attr.ino)))
}

fn last(path: &Path) -> Vec<u8> {
    name(path[path.len() - 1])
}

/// The operation on the file system; whether it succeeded.
fn apply(fs: &FileSystem, op: &Op) -> bool {
    let file = |path: &Path| {
        let ino = walk(fs, path)?.1?;
        (fs.getattr(ino).unwrap().kind == FileKind::File).then_some(ino)
    };
    let node = |path: &Path| walk(fs, path)?.1;
    let rename = |from: &Path, to: &Path, flags: u32| match (walk(fs, from), walk(fs, to)) {
        (Some((a, _)), Some((b, _))) => fs.rename(a, &last(from), b, &last(to), flags).is_ok(),
        _ => false,
    };
    match op {
        Op::Mkdir(path) => walk(fs, path).is_some_and(|(dir, _)| {
            let made = fs.mkdir(&CALLER, dir, &last(path), 0o755);
            made.map(|attr| fs.forget(attr.ino, 1)).is_ok()
        }),
        Op::Write(path, offset, length, byte) => {
            let Some((dir, found)) = walk(fs, path) else {
                return false;
            };
            let ino = match found {
                Some(ino) => ino,
                None => {
                    let ino = fs.create(&CALLER, dir, &last(path), 0o644).unwrap().ino;
                    fs.release(ino);
                    fs.forget(ino, 1);
                    ino
                }
            };
            fs.write(ino, *offset, &vec![*byte; *length], false).is_ok()
        }
        Op::Symlink(path, target) => walk(fs, path).is_some_and(|(dir, _)| {
            let made = fs.symlink(&CALLER, dir, &last(path), &[*target]);
            made.map(|attr| fs.forget(attr.ino, 1)).is_ok()
        }),
        Op::Zero(path, offset, length, grows) => file(path).is_some_and(|ino| {
            let mode = libc::FALLOC_FL_ZERO_RANGE | if *grows { 0 } else { libc::FALLOC_FL_KEEP_SIZE };
            fs.fallocate(ino, mode, *offset, *length).is_ok()
        }),
        Op::Allocate(path, offset, length, grows) => file(path).is_some_and(|ino| {
            let mode = if *grows { 0 } else { libc::FALLOC_FL_KEEP_SIZE };
            fs.fallocate(ino, mode, *offset, *length).is_ok()
        }),
        Op::Copy(from, offset, to, at, length) => match (file(from), file(to)) {
            (Some(a), Some(b)) => fs.copy_range(a, *offset, b, *at, *length).is_ok(),
            _ => false,
        },
        Op::RenameNew(from, to) => rename(from, to, libc::RENAME_NOREPLACE),
        Op::Exchange(from, to) => rename(from, to, libc::RENAME_EXCHANGE),
        Op::Attribute(path, name, value) => node(path).is_some_and(|ino| {
            let name = [b"user.", &[b'a' + name][..]].concat();
            match value {
                Some(value) => fs
                    .setxattr(&CALLER, ino, &name, &vec![*value; usize::from(*value)], 0)
                    .is_ok(),
                None => fs.removexattr(ino, &name).is_ok(),
            }
        }),
        Op::Mode(path, mode) => node(path).is_some_and(|ino| {
            let set = SetAttr {
                mode: Some(u32::from(*mode)),
                ..SetAttr::default()
            };
            fs.setattr(ino, &set).is_ok()
        }),
        Op::Truncate(path, size) => file(path).is_some_and(|ino| {
            let set = SetAttr {
                size: Some(*size),
                ..SetAttr::default()
            };
            fs.setattr(ino, &set).is_ok()
        }),
        Op::Punch(path, offset, length) => file(path).is_some_and(|ino| {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            fs.fallocate(ino, mode, *offset, *length).is_ok()
        }),
        Op::Remove(path) => match walk(fs, path) {
            Some((dir, Some(ino))) if fs.getattr(ino).unwrap().kind == FileKind::Directory => {
                fs.rmdir(dir, &last(path)).is_ok()
            }
            Some((dir, _)) => fs.unlink(dir, &last(path)).is_ok(),
            None => false,
        },
        Op::Rename(from, to) => rename(from, to, 0),
        Op::Link(from, to) => match (node(from), walk(fs, to)) {
            (Some(ino), Some((dir, _))) => fs.link(ino, dir, &last(to)).map(|attr| fs.forget(attr.ino, 1)).is_ok(),
            _ => false,
        },
        Op::Sync => fs.sync().is_ok(),
        Op::Remount | Op::Kill | Op::Crash(_) => true,
    }
}

/// Compares everything that can be seen.
fn compare(fs: &FileSystem, tree: &Tree) {
    for (path, number) in &tree.names {
        let node = &tree.inodes[number];
        let ino = walk(fs, path).unwrap().1.unwrap();
        let attr = fs.getattr(ino).unwrap();
        assert_eq!(attr.mode, node.mode, "{path:?}");
        match &node.kind {
            Kind::Dir => assert_eq!(attr.kind, FileKind::Directory),
            Kind::File(content) => assert_eq!(&fs.read(ino, 0, u32::MAX).unwrap()[..], &content[..]),
            Kind::Symlink(target) => assert_eq!(fs.readlink(ino).unwrap(), [*target]),
        }
        if !node.kind.is_dir() {
            let names = tree.names.values().filter(|n| *n == number).count();
            assert_eq!(attr.nlink as usize, names, "{path:?}");
        }
        let list = fs.listxattr(ino).unwrap();
        let mut listed: Vec<u8> = list
            .split(|b| *b == 0)
            .filter_map(|name| name.last().copied())
            .collect();
        listed.sort_unstable();
        assert_eq!(listed, node.attributes.keys().map(|n| b'a' + n).collect::<Vec<_>>());
        for (name, value) in &node.attributes {
            let name = [b"user.", &[b'a' + name][..]].concat();
            assert_eq!(fs.getxattr(ino, &name).unwrap(), vec![*value; usize::from(*value)]);
        }
    }
    // And nothing else is there.
    let mut directories = vec![ROOT];
    let mut found = 0;
    while let Some(dir) = directories.pop() {
        fs.readdir(dir, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                found += 1;
                if entry.kind == FileKind::Directory {
                    directories.push(entry.ino);
                }
            }
            false
        })
        .unwrap();
    }
    assert_eq!(found, tree.names.len());
    check(fs);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_file_system_behaves_as_a_tree_in_memory(ops in prop::collection::vec(op(), 1..60)) {
        let (mut device, fs) = fresh(16);
        fs.close().unwrap();
        let (mut fs, mut kept) = open_kept(&device);
        let mut tree = Tree::default();
        for op in &ops {
            match op {
                Op::Remount => {
                    fs.close().unwrap();
                    check_device(&device);
                    (fs, kept) = open_kept(&device);
                    compare(&fs, &tree);
                }
                Op::Kill => {
                    drop(fs);
                    (fs, kept) = inherit(&device, kept, |_| false);
                    compare(&fs, &tree);
                }
                Op::Crash(random) => {
                    fs.sync().unwrap();
                    device = Arc::new(device.image(*random));
                    check_device(&device);
                    (fs, kept) = open_kept(&device);
                    compare(&fs, &tree);
                }
                // Paths of three names are left out.
                Op::Rename(from, to) | Op::RenameNew(from, to) | Op::Exchange(from, to)
                    if from.len() != to.len() && tree.children(from) + tree.children(to) > 0 =>
                {
                    continue;
                }
                _ => {}
            }
            let expected = tree.clone().apply(op);
            prop_assert_eq!(apply(&fs, op), expected, "{:?}", op);
            tree.apply(op);
        }
        compare(&fs, &tree);
        fs.close().unwrap();
        check_device(&device);
    }
}
