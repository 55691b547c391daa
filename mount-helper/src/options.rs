//! The options of `mount -o`: which there are, and what each means for mount(2) or for us. Pure.

use rustix::mount::MountFlags;
use std::path::PathBuf;
use std::time::Duration;

/// Options that say something to `mount(8)`, fstab or systemd, or that are always on here.
const ACCEPTED: &[&str] = &[
    "_netdev",
    "allow_other",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "group",
    "noauto",
    "nofail",
    "nogroup",
    "nolazytime",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nouser",
    "nousers",
    "owner",
    "rw",
    "suid",
    "symfollow",
    "user",
    "users",
];

/// Options that are flags of mount(2), and the opposite that clears them.
const FLAGS: &[(&str, &str, MountFlags)] = &[
    ("dirsync", "", MountFlags::DIRSYNC),
    ("lazytime", "nolazytime", MountFlags::LAZYTIME),
    ("noatime", "atime", MountFlags::NOATIME),
    ("nodev", "dev", MountFlags::NODEV),
    ("nodiratime", "diratime", MountFlags::NODIRATIME),
    ("noexec", "exec", MountFlags::NOEXEC),
    ("nosuid", "suid", MountFlags::NOSUID),
    ("nosymfollow", "symfollow", MountFlags::NOSYMFOLLOW),
    ("relatime", "norelatime", MountFlags::RELATIME),
    ("ro", "rw", MountFlags::RDONLY),
    ("strictatime", "nostrictatime", MountFlags::STRICTATIME),
    ("sync", "async", MountFlags::SYNCHRONOUS),
];

/// Options with a value.
const VALUES: &[&str] = &["readahead=KIB", "socket=PATH", "timeout=SECONDS"];

/// Read-ahead unless told otherwise: eight requests of the kernel's usual 128 KiB, one of ours.
pub const READ_AHEAD_KIB: u32 = 1024;

/// What the options ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// Change the flags of what is mounted already.
    pub remount: bool,
    /// The daemon's API socket.
    pub socket: Option<PathBuf>,
    /// Longest time to wait for the daemon to make the volume ready.
    pub timeout: Duration,
    /// What the kernel reads ahead at most, in KiB.
    pub read_ahead_kib: u32,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            remount: false,
            socket: None,
            timeout: Duration::from_secs(120),
            read_ahead_kib: READ_AHEAD_KIB,
        }
    }
}

impl MountOptions {
    /// Takes a comma-separated list in, the later winning; with `sloppy`, unknown options are ignored.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn add(&mut self, list: &str, sloppy: bool) -> Result<(), String> {
        for option in list.split(',').filter(|o| !o.is_empty()) {
            if !self.add_one(option)? && !sloppy {
                return Err(format!("unknown option `{option}`; known are: {}", known().join(", ")));
            }
        }
        Ok(())
    }

    /// Whether the option is known.
    fn add_one(&mut self, option: &str) -> Result<bool, String> {
        if let Some((_, _, flag)) = FLAGS.iter().find(|(name, _, _)| *name == option) {
            self.flags.insert(*flag);
            return Ok(true);
        }
        if let Some((_, _, flag)) = FLAGS.iter().find(|(_, opposite, _)| *opposite == option) {
            self.flags.remove(*flag);
            return Ok(true);
        }
        if let Some((name, value)) = option.split_once('=') {
            match name {
                "socket" if value.is_empty() => return Err("`socket=` needs the path of the daemon's socket".into()),
                "socket" => self.socket = Some(value.into()),
                "timeout" => self.timeout = Duration::from_secs(number(option, value, 1, 3600)?.into()),
                "readahead" => self.read_ahead_kib = number(option, value, 4, 65_536)?,
                // What `mount -o remount` read in the mount table comes back here.
                "comment" | "user_id" | "group_id" | "max_read" => {}
                _ => return Ok(name.starts_with("x-") || name.starts_with("X-")),
            }
            return Ok(true);
        }
        if option == "remount" {
            self.remount = true;
            return Ok(true);
        }
        Ok(ACCEPTED.contains(&option) || option.starts_with("x-") || option.starts_with("X-"))
    }

    /// Whether changes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }
}

fn number(option: &str, value: &str, least: u32, most: u32) -> Result<u32, String> {
    let parsed = value.parse().ok().filter(|n| (least..=most).contains(n));
    parsed.ok_or_else(|| format!("`{option}`: the value must be a number from {least} to {most}"))
}

/// Every known option, sorted.
#[must_use]
pub fn known() -> Vec<&'static str> {
    let flags = FLAGS.iter().map(|(name, _, _)| *name);
    let mut all: Vec<_> = flags
        .chain(ACCEPTED.iter().copied())
        .chain(VALUES.iter().copied())
        .chain(["remount", "comment=TEXT", "x-*"])
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, String> {
        let mut options = MountOptions::default();
        options.add(list, false).map(|()| options)
    }

    #[test]
    fn an_fstab_line_is_understood() {
        let list = "rw,noatime,nosuid,_netdev,nofail,x-systemd.requires=storageos.service,x-gvfs-hide,comment=mine";
        let options = parse(list).unwrap();
        assert_eq!(options.flags, MountFlags::NOATIME | MountFlags::NOSUID);
        assert!(!options.read_only() && !options.remount);
    }

    #[test]
    fn the_later_option_wins() {
        assert!(parse("rw,ro").unwrap().read_only());
        assert!(!parse("ro,rw").unwrap().read_only());
        assert!(parse("nosuid,suid,defaults").unwrap().flags.is_empty());
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_list_unless_sloppy() {
        let error = parse("ro,frobnicate").unwrap_err();
        assert!(
            error.contains("`frobnicate`") && error.contains("noatime") && error.contains("socket=PATH"),
            "{error}"
        );
        assert!(MountOptions::default().add("frobnicate,a=b", true).is_ok());
    }

    #[test]
    fn a_remount_may_repeat_what_the_mount_table_shows() {
        let options =
            parse("rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,_netdev,remount,ro").unwrap();
        assert!(options.remount && options.read_only());
    }

    #[test]
    fn the_manual_has_every_option() {
        let page = include_str!("../man/mount.fuse.storageos.8");
        let words: Vec<&str> = page.split(|c: char| c.is_whitespace() || ",\"".contains(c)).collect();
        for option in known() {
            // A value stands in another font: socket= PATH.
            let (name, value) = option
                .split_once('=')
                .map_or((option, ""), |(name, value)| (name, value));
            let found =
                words.contains(&option) || words.contains(&format!("{name}=").as_str()) && words.contains(&value);
            assert!(found, "{option} is not in the manual");
        }
    }

    #[test]
    fn values_have_bounds() {
        assert_eq!(parse("timeout=5").unwrap().timeout, Duration::from_secs(5));
        assert_eq!(parse("socket=/a/b.sock").unwrap().socket, Some("/a/b.sock".into()));
        for bad in [
            "timeout=0",
            "timeout=x",
            "timeout=99999",
            "readahead=1",
            "readahead=-4",
            "socket=",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
