//! `mount.fuse.storageos` and `umount.fuse.storageos`, as `mount(8)` and `umount(8)` call them; the name it is called by decides.
//! Exit codes are those of `mount(8)`: 0 success, 1 wrong usage, 32 failure.

use mount_helper::options::{self, MountOptions};
use mount_helper::{MountArguments, UnmountFlags};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: u8 = 1;
const FAILURE: u8 = 32;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called)
        .file_name()
        .unwrap_or(OsStr::new("mount.fuse.storageos"));
    let unmounts = name.as_bytes().starts_with(b"umount");
    let arguments: Vec<OsString> = arguments.collect();
    let (name, result) = if unmounts {
        ("umount.fuse.storageos", unmount(&arguments))
    } else {
        ("mount.fuse.storageos", mount(&arguments))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("{name}: {message}");
            ExitCode::from(code)
        }
    }
}

type Outcome = Result<(), (u8, String)>;

fn mount_usage() -> String {
    format!(
        "usage: mount -t fuse.storageos [NAMESPACE/]VOLUME DIRECTORY [-o OPTION,…]\n\
         (mount.fuse.storageos VOLUME DIRECTORY [-fnsv] [-o OPTIONS] [-t TYPE] [-N NAMESPACE])\n\
         options: {}",
        options::known().join(", ")
    )
}

const UNMOUNT_USAGE: &str =
    "usage: umount DIRECTORY   (umount.fuse.storageos DIRECTORY [-flnrv] [-t TYPE] [-N NAMESPACE])";

/// The single-letter flags, the values of those that have one, and the rest, of a command line.
struct Parsed {
    letters: Vec<u8>,
    values: Vec<(u8, OsString)>,
    rest: Vec<OsString>,
}

/// Reads arguments; `letters` are the flags, `valued` the flags that take a value.
fn parse(arguments: &[OsString], letters: &[u8], valued: &[u8]) -> Result<Parsed, String> {
    let mut parsed = Parsed {
        letters: Vec::new(),
        values: Vec::new(),
        rest: Vec::new(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes.len() < 2 || bytes[0] != b'-' {
            parsed.rest.push(argument.clone());
            continue;
        }
        for (at, letter) in bytes.iter().enumerate().skip(1) {
            if valued.contains(letter) {
                let value = match &bytes[at + 1..] {
                    [] => arguments.next().cloned(),
                    rest => Some(OsStr::from_bytes(rest).to_owned()),
                };
                let value = value.ok_or_else(|| format!("-{} needs a value", *letter as char))?;
                parsed.values.push((*letter, value));
                break;
            }
            if !letters.contains(letter) {
                return Err(format!("unknown argument {}", argument.display()));
            }
            parsed.letters.push(*letter);
        }
    }
    Ok(parsed)
}

fn mount(arguments: &[OsString]) -> Outcome {
    let wrong = |message: String| (USAGE, message);
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        println!("{}", mount_usage());
        return Ok(());
    }
    let parsed = parse(arguments, b"fnsv", b"oNt").map_err(|e| wrong(format!("{e}\n{}", mount_usage())))?;
    let [volume, mountpoint] = &parsed.rest[..] else {
        return Err(wrong(mount_usage()));
    };
    let volume = volume
        .to_str()
        .ok_or_else(|| wrong("a volume's name is plain text".into()))?;
    let has = |letter| parsed.letters.contains(&letter);
    let mut options = MountOptions::default();
    for (_, list) in parsed.values.iter().filter(|(letter, _)| *letter == b'o') {
        let list = list.to_str().ok_or_else(|| wrong("options are plain text".into()))?;
        options.add(list, has(b's')).map_err(wrong)?;
    }
    if !rustix::process::geteuid().is_root() {
        return Err((FAILURE, "only root can mount a volume".into()));
    }
    let arguments = MountArguments {
        volume: volume.to_owned(),
        mountpoint: PathBuf::from(mountpoint),
        options,
        fake: has(b'f'),
    };
    mount_helper::mount(&arguments).map_err(|e| (FAILURE, e.to_string()))?;
    if has(b'v') {
        println!(
            "mount.fuse.storageos: {volume} mounted on {}",
            arguments.mountpoint.display()
        );
    }
    Ok(())
}

fn unmount(arguments: &[OsString]) -> Outcome {
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        println!("{UNMOUNT_USAGE}");
        return Ok(());
    }
    let parsed = parse(arguments, b"flnrvs", b"oNt").map_err(|e| (USAGE, format!("{e}\n{UNMOUNT_USAGE}")))?;
    let [target] = &parsed.rest[..] else {
        return Err((USAGE, UNMOUNT_USAGE.into()));
    };
    let has = |letter| parsed.letters.contains(&letter);
    let flags = UnmountFlags {
        lazy: has(b'l'),
        force: has(b'f'),
        read_only: has(b'r'),
    };
    mount_helper::unmount(Path::new(target), flags, None).map_err(|e| (FAILURE, e.to_string()))?;
    if has(b'v') {
        println!("umount.fuse.storageos: {} unmounted", target.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn arguments_in_any_order_are_those_that_mount_passes() {
        for list in [
            &["default/v", "/mnt", "-n", "-v", "-o", "rw,noatime"][..],
            &["-nv", "default/v", "-orw,noatime", "/mnt", "-t", "fuse.storageos"],
        ] {
            let parsed = parse(&arguments(list), b"fnsv", b"oNt").unwrap();
            assert_eq!(parsed.rest, arguments(&["default/v", "/mnt"]));
            assert_eq!(parsed.letters, b"nv");
            assert!(parsed.values.contains(&(b'o', "rw,noatime".into())));
        }
    }

    #[test]
    fn wrong_usage_is_exit_code_1_and_says_how() {
        for list in [
            &["only-one"][..],
            &["a", "b", "-o", "frobnicate"],
            &["a", "b", "-x"],
            &["a", "b", "-o"],
        ] {
            let (code, message) = mount(&arguments(list)).unwrap_err();
            assert_eq!(code, USAGE);
            assert!(
                message.contains("noatime") || message.contains("needs a value"),
                "{message}"
            );
        }
        assert_eq!(unmount(&arguments(&[])).unwrap_err().0, USAGE);
    }
}
