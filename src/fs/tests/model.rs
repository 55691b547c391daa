//! Random operations against a tree in memory, with remounts between.

use super::{CALLER, check, fresh, open};
use crate::fs::{FileKind, FileSystem, Ino, ROOT, SetAttr};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A path of one or two names out of a few, so that operations meet.
type Path = Vec<u8>;

#[derive(Clone, Debug)]
enum Op {
    Mkdir(Path),
    Write(Path, u64, usize, u8),
    Truncate(Path, u64),
    Punch(Path, u64, u64),
    Remove(Path),
    Rename(Path, Path),
    Link(Path, Path),
    Remount,
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
        2 => path().prop_map(Op::Remove),
        3 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => Just(Op::Remount),
    ]
}

/// The reference: names to nodes; files by number, so that hard links share.
#[derive(Clone, Default)]
struct Tree {
    names: BTreeMap<Path, Node>,
    files: BTreeMap<usize, Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Dir,
    File(usize),
}

impl Tree {
    fn parent_is_dir(&self, path: &Path) -> bool {
        path.len() == 1 || self.names.get(&path[..path.len() - 1]) == Some(&Node::Dir)
    }

    fn children(&self, path: &Path) -> usize {
        self.names
            .keys()
            .filter(|p| p.len() > path.len() && p.starts_with(path))
            .count()
    }

    /// Whether the operation succeeds, done to the reference.
    fn apply(&mut self, op: &Op) -> bool {
        match op {
            Op::Mkdir(path) => {
                let ok = self.parent_is_dir(path) && !self.names.contains_key(path);
                if ok {
                    self.names.insert(path.clone(), Node::Dir);
                }
                ok
            }
            Op::Write(path, offset, length, byte) => {
                if !self.parent_is_dir(path) {
                    return false;
                }
                let next = self.files.keys().last().map_or(0, |n| n + 1);
                let Node::File(number) = *self.names.entry(path.clone()).or_insert(Node::File(next)) else {
                    return false;
                };
                let file = self.files.entry(number).or_default();
                let end = *offset as usize + length;
                file.resize(file.len().max(end), 0);
                file[*offset as usize..end].fill(*byte);
                true
            }
            Op::Truncate(path, size) => match self.names.get(path) {
                Some(Node::File(number)) => {
                    self.files.entry(*number).or_default().resize(*size as usize, 0);
                    true
                }
                _ => false,
            },
            Op::Punch(path, offset, length) => match self.names.get(path) {
                Some(Node::File(number)) => {
                    let file = self.files.entry(*number).or_default();
                    let (from, to) = (*offset as usize, (offset + length) as usize);
                    let to = to.min(file.len());
                    if from < to {
                        file[from..to].fill(0);
                    }
                    true
                }
                _ => false,
            },
            Op::Remove(path) => {
                let ok = self.names.contains_key(path) && self.children(path) == 0;
                if ok {
                    self.names.remove(path);
                }
                ok
            }
            Op::Rename(from, to) => self.rename(from, to),
            Op::Link(from, to) => {
                let ok = self.parent_is_dir(to) && !self.names.contains_key(to);
                match self.names.get(from) {
                    Some(node @ Node::File(_)) if ok => {
                        self.names.insert(to.clone(), *node);
                        true
                    }
                    _ => false,
                }
            }
            Op::Remount => true,
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> bool {
        let (Some(node), true) = (self.names.get(from).copied(), self.parent_is_dir(to)) else {
            return false;
        };
        let target = self.names.get(to).copied();
        if from == to || matches!(node, Node::File(_)) && target == Some(node) {
            return true;
        }
        if node == Node::Dir && to.starts_with(from) {
            return false;
        }
        match (node, target) {
            (Node::Dir, Some(Node::File(_))) | (Node::File(_), Some(Node::Dir)) => return false,
            (Node::Dir, Some(Node::Dir)) if self.children(to) > 0 => return false,
            _ => {}
        }
        // A directory two deep cannot take children of its own with it: paths have two names.
        let moved: Vec<Path> = self.names.keys().filter(|p| p.starts_with(from)).cloned().collect();
        for path in moved {
            if let Some(node) = self.names.remove(&path) {
                let mut new = to.clone();
                new.extend_from_slice(&path[from.len()..]);
                self.names.insert(new, node);
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
        Op::Rename(from, to) => match (walk(fs, from), walk(fs, to)) {
            (Some((a, _)), Some((b, _))) => fs.rename(a, &last(from), b, &last(to), 0).is_ok(),
            _ => false,
        },
        Op::Link(from, to) => match (file(from), walk(fs, to)) {
            (Some(ino), Some((dir, _))) => fs.link(ino, dir, &last(to)).map(|attr| fs.forget(attr.ino, 1)).is_ok(),
            _ => false,
        },
        Op::Remount => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_file_system_behaves_as_a_tree_in_memory(ops in prop::collection::vec(op(), 1..60)) {
        let (device, mut fs) = fresh(16);
        let mut tree = Tree::default();
        for op in &ops {
            if matches!(op, Op::Remount) {
                fs.close().unwrap();
                fs = open(&device);
            }
            // A rename of a directory below another makes paths of three names: left out.
            if let Op::Rename(from, to) = op
                && to.len() > from.len()
                && tree.children(from) > 0
            {
                continue;
            }
            let expected = tree.clone().apply(op);
            prop_assert_eq!(apply(&fs, op), expected, "{:?}", op);
            tree.apply(op);
        }
        for (path, node) in &tree.names {
            let ino = walk(&fs, path).unwrap().1.unwrap();
            match node {
                Node::Dir => prop_assert_eq!(fs.getattr(ino).unwrap().kind, FileKind::Directory),
                Node::File(number) => {
                    prop_assert_eq!(&fs.read(ino, 0, u32::MAX).unwrap()[..], &tree.files[number][..]);
                }
            }
        }
        check(&fs);
    }
}
