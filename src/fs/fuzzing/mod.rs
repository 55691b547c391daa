//! Hostile bytes for a file system's metadata; see [`crate::fuzzing`].

pub(crate) mod volume;

use super::acl::Acl;
use super::backend;
use super::layout::Superblock;
use super::log;
use super::memory::Memory;
use super::rows::{
    COUNTERS, Content, Counters, Dirent, Extent, Inode, dirent_key, extent_key, extent_of, extent_value, free_key,
    inode_key, key_number, number, xattr_key,
};
use super::types::Time;
use super::{ROOT, encode_counters};
use crate::block::BLOCK_SIZE;
use std::fs::File;
use std::os::unix::fs::FileExt;
use volume::Device;

/// A superblock.
pub(crate) fn superblock(input: &[u8]) -> bool {
    let _ = Superblock::decode(input);
    let mut block = input.to_vec();
    block.resize(BLOCK_SIZE, 0);
    Superblock::seal(&mut block);
    Superblock::decode(&block).is_ok_and(|superblock| {
        assert_eq!(Superblock::decode(&superblock.encode()).as_ref(), Ok(&superblock));
        let _ = (superblock.rows_limit(), superblock.memory_key());
        let device = Device::default();
        device.put(0, &block);
        let _ = Superblock::read(&device);
        true
    })
}

pub(crate) fn superblock_seeds() -> Vec<Vec<u8>> {
    vec![Superblock::new(1 << 30, [3; 16]).encode()[..80].to_vec()]
}

/// A record of the metadata area's length.
pub(crate) fn length(input: &[u8]) -> bool {
    let _ = backend::decode(input);
    let mut block = input.to_vec();
    block.resize(56, 0);
    let sum = blake3::hash(&block[..24]);
    block[24..56].copy_from_slice(sum.as_bytes());
    backend::decode(&block).is_some_and(|(sequence, length)| {
        assert_eq!(backend::encode(sequence, length)[..56], block);
        true
    })
}

pub(crate) fn length_seeds() -> Vec<Vec<u8>> {
    vec![backend::encode(5, 1 << 20)[..56].to_vec()]
}

/// A row: the length of its key, key, value.
pub(crate) fn row(input: &[u8]) -> bool {
    let Some((length, rest)) = input.split_first() else {
        return false;
    };
    let (key, value) = rest.split_at(usize::from(*length).min(rest.len()));
    let numbers = (key_number(key, 0), key_number(key, 1));
    match (key.first(), numbers) {
        (Some(b'I'), (Some(ino), _)) => Inode::decode(value).is_some_and(|inode| {
            assert_eq!(Inode::decode(&inode.encode()).as_ref(), Some(&inode));
            let _ = inode.attr(ino);
            inode.is_sound()
        }),
        (Some(b'D'), _) => Dirent::decode(value).is_some_and(|entry| {
            assert_eq!(entry.encode(), value);
            let _ = entry.file_kind();
            true
        }),
        (Some(b'E'), (Some(ino), Some(_))) => extent_of(key, value).is_some_and(|extent| {
            assert_eq!(
                (&extent_key(ino, extent.logical)[..], &extent_value(&extent)[..]),
                (&key[..17], value)
            );
            extent.is_sound()
        }),
        (Some(b'F' | b'P' | b'O'), (Some(_), _)) => number(value).is_some(),
        (Some(b'M'), _) => postcard::from_bytes::<Counters>(value).is_ok_and(|counters| {
            assert_eq!(postcard::from_bytes(&encode_counters(&counters)), Ok(counters));
            true
        }),
        _ => false,
    }
}

fn row_seed(key: Vec<u8>, value: Vec<u8>) -> Vec<u8> {
    // Our keys are short.
    [vec![key.len() as u8], key, value].concat()
}

fn inode(mode: u32, content: Content) -> Inode {
    let time = Time { secs: 5, nanos: 6 };
    Inode {
        mode,
        uid: 1,
        gid: 2,
        nlink: 1,
        rdev: 0,
        size: 8192,
        blocks: 2,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        content,
    }
}

pub(crate) fn row_seeds() -> Vec<Vec<u8>> {
    let extent = Extent {
        logical: 0,
        physical: super::DATA_START + 5,
        length: 2,
    };
    let entry = Dirent {
        ino: 2,
        kind: 8,
        name: b"name".to_vec(),
    };
    let counters = Counters {
        next_ino: 5,
        inodes: 4,
        free: 100,
        window: (super::DATA_START, 50),
    };
    vec![
        row_seed(inode_key(2), inode(0o100_644, Content::Inline(vec![extent])).encode()),
        row_seed(inode_key(3), inode(0o100_644, Content::Rows).encode()),
        row_seed(inode_key(ROOT), inode(0o040_755, Content::Directory(ROOT)).encode()),
        row_seed(
            inode_key(4),
            inode(0o120_777, Content::Target(b"there".to_vec())).encode(),
        ),
        row_seed(inode_key(5), inode(0o010_644, Content::None).encode()),
        row_seed(dirent_key(ROOT, 9), entry.encode()),
        row_seed(extent_key(3, 0), extent_value(&extent)),
        row_seed(free_key(super::DATA_START), 9_u64.to_le_bytes().to_vec()),
        row_seed(COUNTERS.to_vec(), encode_counters(&counters)),
        row_seed(xattr_key(3, b"user.a"), b"1".to_vec()),
    ]
}

/// The intent log of generation 2, as it is and with the first record's checksum made right.
pub(crate) fn log(input: &[u8]) -> bool {
    let replay = |block: &[u8]| {
        let device = Device::default();
        for (number, part) in block.chunks(BLOCK_SIZE).enumerate() {
            device.put(log::half(2) + number as u64, part);
        }
        let mut changes = Vec::new();
        let records = log::replay(&device, 2, |change| {
            changes.push(change);
            Ok::<(), super::FsError>(())
        });
        (records.expect("the device does not fail"), changes)
    };
    let _ = replay(input);
    let (records, changes) = replay(&log::sealed(input));
    if records == 0 {
        return false;
    }
    // What was in a few records would be in one, too.
    assert_eq!(replay(&log::encode(2, 0, &changes)), (1, changes));
    true
}

pub(crate) fn log_seeds() -> Vec<Vec<u8>> {
    let record = log::encode(2, 0, &[(b"Iab".to_vec(), Some(vec![9])), (b"X".to_vec(), None)]);
    vec![record[..93].to_vec(), [record, log::encode(2, 1, &[])].concat()]
}

/// The memory log: a head at 0, records from 4096 on; checksums are made right.
pub(crate) fn memory(input: &[u8]) -> bool {
    const KEY: [u8; 16] = [7; 16];
    let Ok(memory) = Memory::new() else {
        return false;
    };
    let replay = |bytes: &[u8]| {
        let file = File::from(memory.try_clone().expect("a descriptor"));
        file.set_len(0).expect("memory");
        // A ring is as long as it was written; this one is short.
        file.write_all_at(bytes, 0).expect("memory");
        let mut changes = 0_u64;
        memory
            .replay(KEY, |_| changes += 1)
            .map(|replayed| (replayed.records, changes))
    };
    let _ = replay(input);
    replay(&super::memory::sealed(input, KEY)).is_ok_and(|(records, _)| records > 0)
}

pub(crate) fn memory_seeds() -> Vec<Vec<u8>> {
    let Ok(memory) = Memory::new() else {
        return Vec::new();
    };
    let mut log = memory.begin([7; 16], &Default::default()).expect("memory");
    log.append(Some(9), [(&b"Ia"[..], Some(&b"1"[..])), (&b"Ib"[..], None)].into_iter());
    log.answered(9);
    log.append(None, [(&b"Ic"[..], Some(&b"1"[..]))].into_iter());
    let file = File::from(memory.try_clone().expect("a descriptor"));
    let length = file.metadata().expect("memory").len() as usize;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).expect("memory");
    // The head that counts is the second one: here it is to be the first.
    let head: Vec<u8> = bytes[2048..2128].to_vec();
    bytes[..80].copy_from_slice(&head);
    bytes[2048..2128].fill(0);
    vec![bytes]
}

/// An access list.
pub(crate) fn acl(input: &[u8]) -> bool {
    Acl::decode(input).is_some_and(|acl| {
        let written = acl.encode();
        assert_eq!(Acl::decode(&written).map(|again| again.encode()), Some(written));
        true
    })
}

pub(crate) fn acl_seeds() -> Vec<Vec<u8>> {
    let entry = |tag: u16, permissions: u16, id: u32| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes
    };
    let entries = [
        entry(1, 6, u32::MAX),
        entry(2, 4, 1000),
        entry(4, 4, u32::MAX),
        entry(0x10, 4, u32::MAX),
        entry(0x20, 4, u32::MAX),
    ];
    vec![[2_u32.to_le_bytes().to_vec(), entries.concat()].concat()]
}
