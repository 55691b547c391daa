//! The daemon's data directory: who the node is, and that one daemon at a time uses it.
//!
//! `lock` is held (flock) for the daemon's life; the kernel gives it back however the daemon ends. `node.json` is written at the
//! first start and when the node becomes a member of a cluster, atomically. `control/` and `volumes/` belong to the control plane and to replication; only
//! their owner may look into them. `tls/` is [`crate::trust::Credentials`]'s.

use crate::os;
use crate::volume::{ClusterId, NodeId};
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Version of the directory's layout.
const FORMAT: u32 = 1;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another daemon uses it.
    #[error("{0} is in use by another daemon")]
    InUse(PathBuf),
    /// `node.json` cannot be trusted.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A later version of the program wrote it.
    #[error("{path} has format {found}, this program knows {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The name given is not the one kept.
    #[error("this node is called {kept}, it cannot be started as {given}")]
    OtherName {
        /// The name in `node.json`.
        kept: String,
        /// The name given.
        given: String,
    },
    /// A first start needs a name.
    #[error("a new node needs a name (--name)")]
    NoName,
    /// The directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What `node.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeFile {
    format: u32,
    id: NodeId,
    name: String,
    /// Of which it is a member.
    cluster: Option<ClusterId>,
    /// blake3 of the other fields, in hex.
    checksum: String,
}

impl NodeFile {
    fn new(id: NodeId, name: &str, cluster: Option<ClusterId>) -> Self {
        let mut file = Self {
            format: FORMAT,
            id,
            name: name.to_owned(),
            cluster,
            checksum: String::new(),
        };
        file.checksum = file.sum();
        file
    }

    fn sum(&self) -> String {
        let cluster = self
            .cluster
            .map_or_else(|| "-".to_owned(), |cluster| cluster.to_string());
        let text = format!("{} {} {} {cluster}", self.format, self.id, self.name);
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

/// An open data directory; the lock is held until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    id: NodeId,
    name: String,
    cluster: Mutex<Option<ClusterId>>,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, or makes it at a node's first start, which needs a name.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(path: &Path, name: Option<&str>) -> Result<Self, DataDirError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { path, source }
        };
        fs::create_dir_all(path).map_err(io_error(path))?;
        // Absolute, since it ends up in logs, in errors and in what other programs are told.
        let path = path.canonicalize().map_err(io_error(path))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io_error(&lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DataDirError::InUse(path)),
            Err(errno) => return Err(io_error(&lock_path)(errno.into())),
        }
        let file = path.join("node.json");
        let node = match fs::read(&file) {
            Ok(bytes) => Self::check(&file, &bytes, name)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let node = NodeFile::new(NodeId::random(), name.ok_or(DataDirError::NoName)?, None);
                write(&file, &node).map_err(io_error(&file))?;
                node
            }
            Err(error) => return Err(io_error(&file)(error)),
        };
        for part in ["control", "volumes"] {
            let part = path.join(part);
            // The authority's key is among the records, and the copies are the users' data.
            fs::create_dir_all(&part)
                .and_then(|()| fs::set_permissions(&part, fs::Permissions::from_mode(0o700)))
                .map_err(io_error(&part))?;
        }
        Ok(Self {
            path,
            id: node.id,
            name: node.name,
            cluster: Mutex::new(node.cluster),
            _lock: lock,
        })
    }

    pub(super) fn check(file: &Path, bytes: &[u8], name: Option<&str>) -> Result<NodeFile, DataDirError> {
        let damaged = |reason: String| DataDirError::Damaged {
            path: file.to_owned(),
            reason,
        };
        // A later format may have other fields.
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if format > u64::from(FORMAT) {
            return Err(DataDirError::Format {
                path: file.to_owned(),
                found: u32::try_from(format).unwrap_or(u32::MAX),
            });
        }
        let node: NodeFile = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        if node.checksum != node.sum() {
            return Err(damaged("its checksum does not match".to_owned()));
        }
        match name {
            Some(given) if given != node.name => Err(DataDirError::OtherName {
                kept: node.name,
                given: given.to_owned(),
            }),
            _ => Ok(node),
        }
    }

    /// A file's text with its checksum made right.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut node: NodeFile = serde_json::from_slice(bytes).ok()?;
        node.checksum = node.sum();
        serde_json::to_vec(&node).ok()
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster of which the node is a member.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.lock()
    }

    /// Keeps, durably, that the node is a member of a cluster.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_cluster(&self, cluster: ClusterId) -> Result<(), DataDirError> {
        let mut kept = self.cluster.lock();
        let path = self.path.join("node.json");
        write(&path, &NodeFile::new(self.id, &self.name, Some(cluster)))
            .map_err(|source| DataDirError::Io { path, source })?;
        *kept = Some(cluster);
        Ok(())
    }

    /// Where the control plane keeps its state.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// Where copies are kept.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file system below, in all and free.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn capacity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.path)?;
        let block = stat.f_frsize;
        Ok((stat.f_blocks.saturating_mul(block), stat.f_bavail.saturating_mul(block)))
    }
}

fn write(file: &Path, node: &NodeFile) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(node)?;
    text.push(b'\n');
    os::file::replace(file, &text, 0o666)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_name() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(DataDir::open(home.path(), None), Err(DataDirError::NoName)));
        let first = DataDir::open(home.path(), Some("n1")).unwrap();
        let id = first.id();
        assert!(matches!(
            DataDir::open(home.path(), Some("n1")),
            Err(DataDirError::InUse(_))
        ));
        drop(first);
        let again = DataDir::open(home.path(), None).unwrap();
        assert_eq!((again.id(), again.name(), again.cluster()), (id, "n1", None));
        let cluster = ClusterId::random();
        again.set_cluster(cluster).unwrap();
        drop(again);
        let again = DataDir::open(home.path(), None).unwrap();
        assert_eq!((again.id(), again.name(), again.cluster()), (id, "n1", Some(cluster)));
        drop(again);
        let error = DataDir::open(home.path(), Some("n2")).unwrap_err();
        assert_eq!(error.to_string(), "this node is called n1, it cannot be started as n2");
    }

    #[test]
    fn a_damaged_node_file_is_named_and_not_replaced() {
        let home = tempfile::tempdir().unwrap();
        drop(DataDir::open(home.path(), Some("n1")).unwrap());
        let file = home.path().join("node.json");
        let good = fs::read_to_string(&file).unwrap();
        for bad in ["", "{", &good.replace("n1", "n2"), &good[..good.len() / 2]] {
            fs::write(&file, bad).unwrap();
            let error = DataDir::open(home.path(), None).unwrap_err();
            assert!(matches!(error, DataDirError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("node.json"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad);
        }
        fs::write(&file, good.replace("\"format\": 1", "\"format\": 2")).unwrap();
        assert!(matches!(
            DataDir::open(home.path(), None),
            Err(DataDirError::Format { found: 2, .. })
        ));
    }

    #[test]
    fn the_format_of_the_node_file_is_the_documented_one() {
        let (id, cluster) = (
            "3f2b8c1e-0000-4000-8000-0000000000a1",
            "3f2b8c1e-0000-4000-8000-0000000000c1",
        );
        let node = NodeFile::new(id.parse().unwrap(), "n1", None);
        assert_eq!(
            serde_json::to_string(&node).unwrap(),
            format!(
                r#"{{"format":1,"id":"{id}","name":"n1","cluster":null,"checksum":"{}"}}"#,
                blake3::hash(format!("1 {id} n1 -").as_bytes()).to_hex()
            )
        );
        let node = NodeFile::new(id.parse().unwrap(), "n1", Some(cluster.parse().unwrap()));
        assert_eq!(
            node.checksum,
            blake3::hash(format!("1 {id} n1 {cluster}").as_bytes())
                .to_hex()
                .to_string()
        );
    }
}
