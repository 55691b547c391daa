//! POSIX access control lists: what they are as attributes, how they and the mode follow each other, what a new inode inherits. Pure.
//!
//! A list is kept as the kernel hands it over (`system.posix_acl_access`, `system.posix_acl_default`; linux/posix_acl_xattr.h): version 2, then entries of
//! tag, permissions and id, little-endian, in order. The kernel checks permissions with them; what is left to the file system is that the
//! mode's group bits are the list's mask, and that a new inode gets its directory's default list (acl(5), POSIX.1e draft 17).

use std::cmp::Ordering;

pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that name nobody.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A valid list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// `None` if the bytes are no valid list.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, entries) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || !entries.len().is_multiple_of(ENTRY) {
            return None;
        }
        let entries = entries.chunks_exact(ENTRY).map(|e| Entry {
            tag: u16::from_le_bytes([e[0], e[1]]),
            permissions: u16::from_le_bytes([e[2], e[3]]),
            id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
        });
        let acl = Self(entries.collect());
        acl.is_valid().then_some(acl)
    }

    /// One entry each for owner, group and others; a mask if anybody is named; each named once, in order.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let names = count(USER) + count(GROUP) > 0;
        let known = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER];
        let key = |entry: &Entry| match entry.tag {
            USER | GROUP => (entry.tag, entry.id),
            tag => (tag, 0),
        };
        self.0
            .iter()
            .all(|entry| known.contains(&entry.tag) && entry.permissions & !7 == 0)
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
            && count(MASK) <= 1
            && (!names || count(MASK) == 1)
            && self
                .0
                .windows(2)
                .all(|two| key(&two[0]).cmp(&key(&two[1])) == Ordering::Less)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            let id = if [USER, GROUP].contains(&entry.tag) {
                entry.id
            } else {
                NOBODY
            };
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    fn entry(&mut self, tag: u16) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.tag == tag)
    }

    fn permissions(&self, tag: u16) -> Option<u32> {
        let entry = self.0.iter().find(|entry| entry.tag == tag)?;
        Some(entry.permissions.into())
    }

    /// The permission bits of an inode with this access list: the group's are the mask's.
    pub(super) fn mode(&self) -> u32 {
        let group = self.permissions(MASK).or_else(|| self.permissions(GROUP_OBJ));
        // A valid list has the other two.
        self.permissions(USER_OBJ).unwrap_or(0) << 6 | group.unwrap_or(0) << 3 | self.permissions(OTHER).unwrap_or(0)
    }

    /// Whether it says no more than the mode.
    pub(super) fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    /// Follows a chmod.
    pub(super) fn set_mode(&mut self, mode: u32) {
        let group = if self.permissions(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        };
        for (tag, shift) in [(USER_OBJ, 6), (group, 3), (OTHER, 0)] {
            if let Some(entry) = self.entry(tag) {
                entry.permissions = (mode >> shift & 7) as u16;
            }
        }
    }

    /// The access list of an inode that is made with this mode in a directory with this default list: nobody gets more than the mode says.
    pub(super) fn inherited(&self, mode: u32) -> Self {
        let mut acl = self.clone();
        let now = acl.mode() & mode;
        acl.set_mode(now);
        acl
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries.iter().map(|(tag, permissions, id)| Entry {
            tag: *tag,
            permissions: *permissions,
            id: *id,
        });
        Acl(entries.collect()).encode()
    }

    fn named() -> Acl {
        let entries = [
            (USER_OBJ, 7, 0),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, 0),
            (MASK, 6, 0),
            (OTHER, 1, 0),
        ];
        Acl::decode(&bytes(&entries)).unwrap()
    }

    #[test]
    fn a_list_has_the_kernels_bytes() {
        let golden = b"\x02\0\0\0\
            \x01\0\x07\0\xff\xff\xff\xff\
            \x02\0\x06\0\xe8\x03\0\0\
            \x04\0\x05\0\xff\xff\xff\xff\
            \x10\0\x06\0\xff\xff\xff\xff\
            \x20\0\x01\0\xff\xff\xff\xff";
        assert_eq!(named().encode(), golden);
        assert_eq!(Acl::decode(golden).unwrap().encode(), golden);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let three = [(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 1, 0)];
        assert!(Acl::decode(&bytes(&three)).unwrap().is_mode());
        let wrong: [&[(u16, u16, u32)]; 7] = [
            &[],
            &three[..2],
            &[(USER_OBJ, 9, 0), three[1], three[2]],
            // Somebody named without a mask.
            &[three[0], (USER, 6, 1), three[1], three[2]],
            // Out of order, named twice, unknown.
            &[three[1], three[0], three[2]],
            &[three[0], (USER, 6, 1), (USER, 4, 1), three[1], (MASK, 7, 0), three[2]],
            &[three[0], three[1], three[2], (0x40, 1, 0)],
        ];
        for entries in wrong {
            assert_eq!(Acl::decode(&bytes(entries)), None, "{entries:?}");
        }
        let good = bytes(&three);
        for end in 0..good.len() {
            assert_eq!(Acl::decode(&good[..end]), None);
        }
        assert_eq!(Acl::decode(&[&[1][..], &good[1..]].concat()), None);
    }

    #[test]
    fn mode_and_list_follow_each_other() {
        let mut acl = named();
        assert_eq!(acl.mode(), 0o761);
        acl.set_mode(0o640);
        assert_eq!(acl.mode(), 0o640);
        assert_eq!(acl.permissions(MASK), Some(4));
        assert_eq!(acl.permissions(GROUP_OBJ), Some(5), "only the mask follows");
        assert_eq!(named().inherited(0o755).mode(), 0o741);
        let mut plain = Acl::decode(&bytes(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 1, 0)])).unwrap();
        plain.set_mode(0o600);
        assert_eq!(plain.permissions(GROUP_OBJ), Some(0));
    }
}
