//! A file system on one local copy, mounted until Ctrl-C or `umount`: the library without network, replicas or daemon.
//!
//! usage (as root): `local_mount COPY_DIRECTORY MOUNTPOINT [GIB] [EVENT_LOOPS]`. The copy is made if it is not there.

use anyhow::{Context, bail};
use mount_helper::options::{MountOptions, READ_AHEAD_KIB};
use std::path::Path;
use std::sync::Arc;
use storageos::block::{BlockDevice, CopyStore, LocalDevice};
use storageos::fs::{FileSystem, Options, device_blocks};
use storageos::fuse::{DEFAULT_LOOPS, ServeOptions, Unmount, serve};
use storageos::volume::VolumeId;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [copy, mountpoint, rest @ ..] = &arguments[..] else {
        bail!("usage: local_mount COPY_DIRECTORY MOUNTPOINT [GIB] [EVENT_LOOPS]");
    };
    let gib: u64 = rest.first().map_or(Ok(5), |n| n.parse()).context("GIB")?;
    let loops = rest
        .get(1)
        .map_or(Ok(DEFAULT_LOOPS), |n| n.parse())
        .context("EVENT_LOOPS")?;
    let (copy, mountpoint) = (Path::new(copy), Path::new(mountpoint).canonicalize()?);

    let store = if copy.join("header").exists() {
        CopyStore::open(copy)?.0
    } else {
        CopyStore::create(copy, VolumeId::random(), device_blocks(gib << 30), 1)?
    };
    let device: Arc<dyn BlockDevice> = Arc::new(LocalDevice::new(store));
    if !FileSystem::is_formatted(&device)? {
        FileSystem::format(&device, gib << 30)?;
    }
    let fs = FileSystem::open(device, Options::default())?;

    let fd = mount_helper::mount_fuse("local/example", &mountpoint, &MountOptions::default())?;
    let options = ServeOptions {
        source: "local/example".into(),
        mountpoint: mountpoint.clone(),
        loops,
    };
    let (ended, end) = tokio::sync::oneshot::channel();
    let mount = serve(fs, fd, options, move |result| {
        let _ = ended.send(result);
    })?;
    if let Some(entry) = mount_helper::mountinfo::mounted_at(&mountpoint)? {
        mount_helper::set_read_ahead(&entry, READ_AHEAD_KIB);
    }
    println!("mounted on {}; Ctrl-C or umount ends it", mountpoint.display());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut end = std::pin::pin!(end);
    let result = loop {
        let wait = async {
            tokio::select! {
                result = &mut end => Some(result),
                _ = tokio::signal::ctrl_c() => None,
            }
        };
        match runtime.block_on(wait) {
            Some(result) => break result?,
            None => {
                if let Err(error) = mount.unmount(Unmount::Clean) {
                    println!("cannot unmount: {error}");
                }
            }
        }
    };
    for (kind, count) in mount.requests() {
        println!("{kind:12} {count}");
    }
    Ok(result?)
}
