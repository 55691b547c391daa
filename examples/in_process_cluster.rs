//! A cluster of three nodes in one process: a volume in three copies, files written through the library, a node lost, and the proof
//! that nothing else was. As root it also mounts the volume.
//!
//! `cargo run --example in_process_cluster`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storageos::api::types::{TokenCreate, VerifyRequest, VolumeCreate};
use storageos::fs::{Caller, FileSystem, FsError};
use storageos::node::{Daemon, NodeConfig, Start, TokenSource};
use tokio_util::sync::CancellationToken;

const ROOT: u64 = 1;
const NAMES: [&str; 3] = ["n1", "n2", "n3"];
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let home = tempfile::tempdir()?;
    let mut nodes = start(home.path()).await?;
    println!(
        "three nodes: {}",
        nodes.iter().map(Daemon::address).collect::<Vec<_>>().join(", ")
    );

    let api = nodes[0].operations();
    let made = api
        .volume_create(VolumeCreate {
            namespace: "default".into(),
            name: "data".into(),
            size: 1 << 30,
            description: "made by an example".into(),
            labels: [("storageos.com/replicas".to_owned(), "2".to_owned())].into(),
            node_selector: String::new(),
        })
        .await?;
    println!(
        "volume {}/{}: a master and {} replicas",
        made.namespace,
        made.name,
        made.replicas.len()
    );

    let volume = nodes[0].attach("default/data", false, PATIENCE).await?;
    write(volume.file_system(), 0..100).await?;
    println!("100 files written and synced on all three copies");

    println!("{} leaves; its copy is lost to the volume", NAMES[2]);
    nodes.remove(2).stop(CancellationToken::new()).await;
    write(volume.file_system(), 100..200).await?;
    volume.close().await?;
    println!("100 more files written meanwhile");

    let volume = nodes[1].attach("default/data", true, PATIENCE).await?;
    check(volume.file_system(), 200).await?;
    volume.close().await?;
    println!("all 200 are there, read on {}", NAMES[1]);

    let report = nodes[0]
        .operations()
        .volume_verify("default", "data", VerifyRequest { deep: true })
        .await?;
    for copy in &report.copies {
        println!("copy on {}: {}", copy.node_name, copy.result);
        if copy.result != "identical" {
            return Err("the copies differ".into());
        }
    }
    if rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists() {
        mount(home.path()).await?;
    }
    for node in nodes {
        node.stop(CancellationToken::new()).await;
    }
    Ok(())
}

/// Three daemons, the first of which makes the cluster, and waits until all are alive.
async fn start(home: &Path) -> Result<Vec<Daemon>> {
    let mut nodes: Vec<Daemon> = Vec::new();
    for name in NAMES {
        let mut config = NodeConfig::new(home.join(name), ([127, 0, 0, 1], 0).into(), name);
        config.start = match nodes.first() {
            None => Start::Init,
            Some(first) => {
                let wanted = TokenCreate {
                    ttl_seconds: 60,
                    uses: 1,
                };
                let made = first.operations().cluster_token_create(wanted).await?;
                config.token = TokenSource::Text(made.token);
                Start::Join(vec![first.address().to_owned()])
            }
        };
        nodes.push(Daemon::start(config).await?);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let known = nodes[0].operations().nodes().await.unwrap_or_default();
        if known.iter().filter(|node| node.health == "healthy").count() == NAMES.len() {
            return Ok(nodes);
        }
        if Instant::now() > deadline {
            return Err("the nodes did not find each other".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The file system's calls block: they get a thread that may.
async fn blocking<T: Send + 'static>(
    fs: &Arc<FileSystem>,
    work: impl FnOnce(&FileSystem) -> std::result::Result<T, FsError> + Send + 'static,
) -> Result<T> {
    let fs = fs.clone();
    Ok(tokio::task::spawn_blocking(move || work(&fs)).await??)
}

fn text(number: u32) -> String {
    format!("file number {number}\n").repeat(100)
}

async fn write(fs: &Arc<FileSystem>, numbers: std::ops::Range<u32>) -> Result<()> {
    blocking(fs, move |fs| {
        let owner = Caller {
            uid: 0,
            gid: 0,
            umask: 0o022,
        };
        for number in numbers {
            let file = fs.create(&owner, ROOT, format!("file-{number}").as_bytes(), 0o644)?;
            fs.write(file.ino, 0, text(number).as_bytes(), false)?;
        }
        fs.sync()
    })
    .await
}

async fn check(fs: &Arc<FileSystem>, count: u32) -> Result<()> {
    let wrong = blocking(fs, move |fs| {
        for number in 0..count {
            let file = fs.lookup(ROOT, format!("file-{number}").as_bytes())?;
            if fs.read(file.ino, 0, 1 << 20)? != text(number).as_bytes() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    })
    .await?;
    wrong.map_or(Ok(()), |number| {
        Err(format!("file {number} is not what was written").into())
    })
}

/// Mounts the volume on the first node, as `storageos volume mount` does, and reads a file as any program would.
async fn mount(home: &Path) -> Result<()> {
    let directory = home.join("mnt");
    std::fs::create_dir(&directory)?;
    let arguments = mount_helper::MountArguments {
        volume: "default/data".into(),
        mountpoint: directory.clone(),
        options: mount_helper::options::MountOptions {
            socket: Some(home.join(NAMES[0]).join("storageos.sock")),
            ..Default::default()
        },
        fake: false,
    };
    tokio::task::spawn_blocking(move || -> Result<()> {
        mount_helper::mount(&arguments)?;
        let kept = std::fs::read_to_string(directory.join("file-7"));
        mount_helper::unmount(
            &directory,
            mount_helper::UnmountFlags::default(),
            arguments.options.socket.as_deref(),
        )?;
        if kept? != text(7) {
            return Err("the mounted file is not what was written".into());
        }
        println!("mounted on {}: file-7 reads as written", directory.display());
        Ok(())
    })
    .await?
}
