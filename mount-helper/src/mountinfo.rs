//! The kernel's mount table, `/proc/self/mountinfo`, for mounts of our kind. Pure parsing, and one reader.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of our mounts, as `mount(8)` shows it.
pub const FS_TYPE: &str = "fuse.storageos";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number, `MAJOR:MINOR`; the minor is also the number under `/sys/fs/fuse/connections`.
    pub device: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// Type.
    pub fs_type: String,
    /// What: for our mounts `NAMESPACE/NAME`.
    pub source: String,
}

/// Parses a table; lines that are not understood are left out. Later mounts come later.
#[must_use]
pub fn parse(table: &str) -> Vec<Mount> {
    table.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // 36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let device = left.next()?.to_owned();
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(left.nth(1)?)));
    let mut right = right.split(' ');
    let fs_type = right.next()?.to_owned();
    let source = String::from_utf8_lossy(&unescape(right.next()?)).into_owned();
    Some(Mount {
        device,
        mountpoint,
        fs_type,
        source,
    })
}

/// Whether one of the mounts that shared `mount`'s file system `before` it was unmounted (a bind mount, say) is still there. The device
/// number alone does not say it: the kernel gives a free one to the next mount of anybody.
#[must_use]
pub fn still_shared(before: &[Mount], mount: &Mount, after: &[Mount]) -> bool {
    let same: Vec<&Mount> = before.iter().filter(|m| m.device == mount.device).collect();
    // One of them is the mount itself; another one at the same place, with the same source, is not told apart from it.
    let stayed = after.iter().filter(|m| same.contains(m)).count();
    stayed > 0 && same.len() > 1
}

/// Space, tab, newline and backslash stand in the table as `\NNN`, octal.
fn unescape(field: &str) -> Vec<u8> {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

/// This process's table.
///
/// # Errors
/// If `/proc` is not there.
pub fn read() -> io::Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&String::from_utf8_lossy(&table)))
}

/// The topmost mount at exactly this path.
///
/// # Errors
/// If `/proc` is not there.
pub fn mounted_at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(read()?.into_iter().rfind(|mount| mount.mountpoint == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
50 22 0:44 / /mnt/a\\040b rw,nosuid shared:5 master:1 - fuse.storageos default/vol rw,user_id=0
51 22 0:45 / /mnt/c rw - fuse.storageos other/v\\134x rw
nonsense
52 22 0:46 / /mnt/c rw - tmpfs tmpfs rw
";

    #[test]
    fn a_table_is_read_with_escaped_names_and_optional_fields() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/a b"));
        assert_eq!(
            (mounts[1].device.as_str(), mounts[1].source.as_str()),
            ("0:44", "default/vol")
        );
        assert_eq!(mounts[2].source, "other/v\\x");
        assert_eq!(mounts[3].fs_type, "tmpfs");
    }

    #[test]
    fn a_number_that_another_mount_got_meanwhile_keeps_nothing_alive() {
        let mounts = parse(TABLE);
        let mine = &mounts[1];
        let mut bound = mine.clone();
        bound.mountpoint = "/bound".into();
        let mut stranger = mounts[3].clone();
        stranger.device.clone_from(&mine.device);
        let alone = [mine.clone()];
        assert!(!still_shared(&alone, mine, &[]));
        assert!(!still_shared(&alone, mine, &[stranger.clone()]));
        let mut next = mine.clone();
        next.source = "default/next".into();
        assert!(!still_shared(&alone, mine, &[next]));
        let both = [mine.clone(), bound.clone()];
        assert!(still_shared(&both, mine, &[stranger.clone(), bound]));
        assert!(!still_shared(&both, mine, &[stranger]));
        // Mounted twice at one place: the lower one is still there.
        assert!(still_shared(&[mine.clone(), mine.clone()], mine, &alone));
    }

    #[test]
    fn cut_off_and_odd_lines_are_no_panic() {
        for end in 0..TABLE.len() {
            let _ = parse(&TABLE[..end]);
        }
        assert_eq!(unescape("a\\9\\04\\"), b"a\\9\\04\\");
    }
}
