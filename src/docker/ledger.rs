//! Which containers use which mount of this node: `DATA_DIR/docker.json`, and the mounts under `DATA_DIR/docker` that follow from it.
//!
//! An entry is a mount and the ids of those who use it. The first id mounts, the last one that goes unmounts; ids that are repeated or unknown
//! change nothing. The file is written before a mount is made and before Docker hears of an id, so after a crash it never lacks one.
//!
//! The ids belong to the mount that is there: when it is gone, the entry goes, at the daemon's start, at the next call, or in a sweep. A mount that
//! could not be unmounted (a program on the node works in it) stays as an entry without ids, and is tried again in each sweep.
//!
//! An engine that dies does not say what its containers use no more, and its successor only says so of containers that it starts again. So each id
//! is kept with the process that asked: when all of a mount's are dead, and no process has the volume in a mount namespace of a container, a sweep
//! ends the mount.
//!
//! While it has ids, a mount is *held* by an open descriptor. A container has a mount of its own of the same file system, which does not keep the
//! node's mount busy: without the descriptor `storageos volume unmount` would take it away under running containers.
//!
//! Calls for one volume are done one after the other (`Turn`). Everything blocks.

use super::host::{HostMounts, Place, Process};
use crate::api::{ApiError, Code};
use crate::os;
use crate::volume::DEFAULT_NAMESPACE;
use mount_helper::MountError;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version of the file.
const FORMAT: u32 = 1;
/// How long a call waits for the one before it, for the same volume.
const TURN: Duration = Duration::from_secs(100);
/// Most ids of one mount.
const MAX_IDS: usize = 4096;

/// Why a mount could not be made, ended, or kept account of.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be trusted.
    #[error("{path} is damaged: {reason}; if no container uses a volume of this driver, remove the file")]
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
        found: u64,
    },
    /// The file or the directory of mounts cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The volume's place is taken.
    #[error("{place} is the place of a volume, but {found} is mounted there")]
    Foreign {
        /// The directory.
        place: PathBuf,
        /// What is there.
        found: String,
    },
    /// Mounting failed.
    #[error(transparent)]
    Mount(MountError),
    /// Unmounting failed; it is tried again.
    #[error("volume {volume} is not used by containers of this node any more, but cannot be unmounted yet: {source}")]
    Busy {
        /// `namespace/name`.
        volume: String,
        /// Where it is mounted.
        place: PathBuf,
        /// Why.
        source: MountError,
    },
    /// It is unmounted, but the daemon did not say that all is saved.
    #[error(transparent)]
    NotClosed(MountError),
    /// The process that asked has another view of the file systems.
    #[error(
        "volume {volume} was mounted on {place}, but process {process} (dockerd) does not see it: the storageos daemon and dockerd run in different \
         mount namespaces"
    )]
    Hidden {
        /// `namespace/name`.
        volume: String,
        /// Where it was mounted.
        place: PathBuf,
        /// Who asked.
        process: i32,
    },
    /// Another call for the volume takes too long.
    #[error("volume {0} is being mounted or unmounted by another request")]
    Waiting(String),
    /// Whoever asked is not there any more.
    #[error("the request was given up")]
    Abandoned,
    /// Too many containers.
    #[error("volume {0} is used by {MAX_IDS} containers of this node; there cannot be more")]
    TooMany(String),
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        let message = error.to_string();
        match error {
            LedgerError::Mount(error) => {
                let error = Self::from(error);
                if error.code == Code::Conflict {
                    return error.hint("if a container uses it there, stop the container");
                }
                error
            }
            LedgerError::Busy { place, .. } => {
                Self::conflict(message).hint(format!("see who uses it with: fuser -vm {}", place.display()))
            }
            LedgerError::Foreign { place, .. } => {
                Self::conflict(message).hint(format!("unmount it: umount {}", place.display()))
            }
            LedgerError::Hidden { .. } => Self::new(Code::Failed, message)
                .hint("run both in the host's namespace; see \"What Docker must see\" in docs/docker.md"),
            LedgerError::Waiting(_) | LedgerError::NotClosed(_) => Self::unavailable(message),
            LedgerError::TooMany(_) => Self::conflict(message),
            LedgerError::Damaged { .. }
            | LedgerError::Format { .. }
            | LedgerError::Io { .. }
            | LedgerError::Abandoned => Self::internal(message),
        }
    }
}

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
struct LedgerFile {
    format: u32,
    /// Who uses a volume, by its name.
    volumes: BTreeMap<String, Users>,
}

/// Ids, and who asked for each, where that is known.
type Users = BTreeMap<String, Option<Process>>;

#[derive(Default)]
struct Entry {
    ids: Users,
    /// Keeps the mount busy.
    hold: Option<OwnedFd>,
}

/// Who asks for a mount.
pub(super) struct Asker<'a> {
    /// Docker's id for this use of the volume.
    pub(super) id: &'a str,
    /// The process that must see the mount, where known.
    pub(super) process: Option<i32>,
    /// Whether it still waits for the answer.
    pub(super) waits: &'a dyn Fn() -> bool,
}

/// See the file's text.
pub(super) struct Ledger {
    /// Of the mounts.
    directory: PathBuf,
    file: PathBuf,
    host: Box<dyn HostMounts>,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Held while the file is written, so that the later state is written later.
    saving: Mutex<()>,
    /// Volumes whose turn somebody has.
    turns: Mutex<BTreeSet<String>>,
    turn_over: Condvar,
}

/// The right to change one volume's entry and mount.
struct Turn<'a> {
    ledger: &'a Ledger,
    name: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.ledger.turns.lock().remove(self.name);
        self.ledger.turn_over.notify_all();
    }
}

impl Ledger {
    /// Reads the file in a data directory, and holds the mounts that are still there. What is not mounted any more is forgotten.
    pub(super) fn open(data_directory: &Path, host: Box<dyn HostMounts>) -> Result<Self, LedgerError> {
        let ledger = Self {
            directory: data_directory.join("docker"),
            file: data_directory.join("docker.json"),
            host,
            entries: Mutex::default(),
            saving: Mutex::default(),
            turns: Mutex::default(),
            turn_over: Condvar::new(),
        };
        let known = read(&ledger.file)?;
        let before = known.len();
        let mut entries = BTreeMap::new();
        for (name, ids) in known {
            let place = ledger.place(&name);
            // The table only: whoever serves the mount may not do so before this daemon is up.
            if !ledger.host.is_mounted(&full(&name), &place).unwrap_or(true) {
                tracing::info!(volume = %name, "no container uses this volume any more: its mount is gone");
                continue;
            }
            let hold = if ids.is_empty() { None } else { ledger.hold(&place) };
            entries.insert(name, Entry { ids, hold });
        }
        let pruned = entries.len() != before;
        *ledger.entries.lock() = entries;
        if pruned {
            ledger.save()?;
        }
        Ok(ledger)
    }

    /// Where a volume is mounted; the name must be checked.
    fn place(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where a volume is mounted for containers of this node, if it is.
    pub(super) fn used_at(&self, name: &str) -> Option<PathBuf> {
        let entries = self.entries.lock();
        let used = entries.get(name).is_some_and(|entry| !entry.ids.is_empty());
        used.then(|| self.place(name))
    }

    /// Mounts a volume for somebody, or lets one more use the mount; returns where it is.
    pub(super) fn mount(&self, name: &str, asker: &Asker<'_>) -> Result<PathBuf, LedgerError> {
        let _turn = self.turn(name, Instant::now() + TURN)?;
        if !(asker.waits)() {
            return Err(LedgerError::Abandoned);
        }
        let (volume, place) = (full(name), self.place(name));
        let added = match self.host.look(&volume, &place).map_err(at(&place))? {
            Place::Mounted => self.join(name, asker)?,
            Place::Foreign(found) => return Err(LedgerError::Foreign { place, found }),
            Place::Dead => {
                tracing::info!(%volume, place = %place.display(), "a dead mount is taken away for a new one");
                self.host.detach(&place).map_err(at(&place))?;
                self.begin(name, asker)?;
                true
            }
            Place::Empty => {
                self.begin(name, asker)?;
                true
            }
        };
        let refused = match asker.process {
            Some(process) if self.host.is_visible_to(process, &volume, &place) == Some(false) => {
                Some(LedgerError::Hidden {
                    volume,
                    place: place.clone(),
                    process,
                })
            }
            _ if !(asker.waits)() => Some(LedgerError::Abandoned),
            _ => None,
        };
        match refused {
            None => Ok(place),
            Some(error) => {
                if added && let Err(error) = self.leave(name, asker.id) {
                    tracing::warn!(volume = %name, %error, "a mount that nobody waits for is still there");
                }
                Err(error)
            }
        }
    }

    /// Somebody does not use a volume any more; the last one ends the mount.
    pub(super) fn unmount(&self, name: &str, id: &str) -> Result<(), LedgerError> {
        let _turn = self.turn(name, Instant::now() + TURN)?;
        self.leave(name, id)
    }

    /// Forgets mounts that are gone, and tries again to end those that nobody uses.
    pub(super) fn sweep(&self) {
        let names: Vec<String> = self.entries.lock().keys().cloned().collect();
        for name in &names {
            let Ok(_turn) = self.turn(name, Instant::now()) else {
                continue;
            };
            let Some(ids) = self.entries.lock().get(name).map(|entry| entry.ids.clone()) else {
                continue;
            };
            match self.host.is_mounted(&full(name), &self.place(name)) {
                Ok(false) => {
                    tracing::info!(volume = %name, "this volume's mount for containers is gone");
                    self.forget(name);
                }
                Ok(true) if ids.is_empty() || self.is_left(name, &ids) => {
                    if let Some(entry) = self.entries.lock().get_mut(name) {
                        entry.ids.clear();
                    }
                    if let Err(error) = self.take_away(name) {
                        tracing::debug!(volume = %name, %error, "not unmounted yet");
                    }
                }
                Ok(true) => {}
                Err(error) => tracing::debug!(%error, "the mount table cannot be read"),
            }
        }
    }

    /// Whether the engines that asked for a mount are dead, and their containers, too.
    fn is_left(&self, name: &str, ids: &Users) -> bool {
        let lives = |asker: &Option<Process>| match asker {
            Some(process) => self.host.process(process.pid) == Some(*process),
            None => true,
        };
        if ids.values().any(lives) {
            return false;
        }
        let used = self.host.is_used_elsewhere(&self.place(name));
        let left = used.is_ok_and(|used| !used);
        if left {
            tracing::info!(volume = %name, "the Docker Engine that used this volume is gone, and its containers, too");
        }
        left
    }

    /// Waits until nobody else changes this volume's mount.
    fn turn<'a>(&'a self, name: &'a str, deadline: Instant) -> Result<Turn<'a>, LedgerError> {
        let mut turns = self.turns.lock();
        while !turns.insert(name.to_owned()) {
            if self.turn_over.wait_until(&mut turns, deadline).timed_out() {
                return Err(LedgerError::Waiting(full(name)));
            }
        }
        Ok(Turn { ledger: self, name })
    }

    /// One more uses the mount that is there; whether it was not known before.
    fn join(&self, name: &str, asker: &Asker<'_>) -> Result<bool, LedgerError> {
        let (place, id) = (self.place(name), asker.id);
        let process = asker.process.and_then(|pid| self.host.process(pid));
        {
            let mut entries = self.entries.lock();
            let entry = entries.entry(name.to_owned()).or_default();
            if entry.ids.len() >= MAX_IDS && !entry.ids.contains_key(id) {
                return Err(LedgerError::TooMany(full(name)));
            }
            if entry.hold.is_none() {
                entry.hold = self.hold(&place);
            }
            match entry.ids.insert(id.to_owned(), process) {
                Some(known) if known == process => return Ok(false),
                // Another engine knows the container now; it used the mount before.
                Some(_) => {
                    drop(entries);
                    return self.save().map(|()| false);
                }
                None => {}
            }
        }
        self.save().inspect_err(|_| {
            if let Some(entry) = self.entries.lock().get_mut(name) {
                entry.ids.remove(id);
            }
        })?;
        Ok(true)
    }

    /// Mounts anew; whoever used an earlier mount is forgotten.
    fn begin(&self, name: &str, asker: &Asker<'_>) -> Result<(), LedgerError> {
        let (volume, place) = (full(name), self.place(name));
        let process = asker.process.and_then(|pid| self.host.process(pid));
        let fresh = Entry {
            ids: BTreeMap::from([(asker.id.to_owned(), process)]),
            hold: None,
        };
        self.entries.lock().insert(name.to_owned(), fresh);
        let made = self.save().and_then(|()| {
            let mut directories = DirBuilder::new();
            directories.recursive(true).mode(0o700);
            directories.create(&place).map_err(at(&place))?;
            self.host.mount(&volume, &place).map_err(LedgerError::Mount)
        });
        if let Err(error) = made {
            self.forget(name);
            return Err(error);
        }
        let hold = self.hold(&place);
        if let Some(entry) = self.entries.lock().get_mut(name) {
            entry.hold = hold;
        }
        tracing::info!(%volume, place = %place.display(), "mounted for containers");
        Ok(())
    }

    /// Takes an id out, and the mount away if it was the last.
    fn leave(&self, name: &str, id: &str) -> Result<(), LedgerError> {
        let last = {
            let mut entries = self.entries.lock();
            let entry = entries.get_mut(name).filter(|entry| entry.ids.contains_key(id));
            // Of an earlier mount, or told twice.
            let Some(entry) = entry else { return Ok(()) };
            entry.ids.remove(id);
            entry.ids.is_empty()
        };
        if let Err(error) = self.save() {
            // One too many in the file: if the daemon is started again and the mount is still there, it stays for that one.
            tracing::warn!(%error, "that a container does not use a volume any more could not be written down");
        }
        if last { self.take_away(name) } else { Ok(()) }
    }

    /// Ends a mount that nobody uses.
    fn take_away(&self, name: &str) -> Result<(), LedgerError> {
        let (volume, place) = (full(name), self.place(name));
        if let Some(entry) = self.entries.lock().get_mut(name) {
            entry.hold = None;
        }
        let ended = match self.host.look(&volume, &place).map_err(at(&place))? {
            Place::Mounted => match self.host.unmount(&place) {
                Ok(()) | Err(MountError::NotMounted(_)) => Ok(()),
                Err(error @ MountError::NotClosed(_)) => Err(LedgerError::NotClosed(error)),
                // It stays, without ids.
                Err(source) => return Err(LedgerError::Busy { volume, place, source }),
            },
            Place::Dead => self.host.detach(&place).map_err(at(&place)),
            Place::Empty | Place::Foreign(_) => Ok(()),
        };
        self.forget(name);
        tracing::info!(%volume, place = %place.display(), "unmounted: no container uses it any more");
        ended
    }

    /// Removes an entry and its empty directory.
    fn forget(&self, name: &str) {
        self.entries.lock().remove(name);
        if let Err(error) = self.save() {
            tracing::warn!(%error, "that a mount is gone could not be written down; the next start finds out");
        }
        // Left behind it is used again; one with something in it is not ours to remove.
        let _ = fs::remove_dir(self.place(name));
    }

    /// Keeps the mount busy. Without, it works too.
    fn hold(&self, place: &Path) -> Option<OwnedFd> {
        let held = self.host.hold(place);
        held.inspect_err(|error| {
            tracing::warn!(place = %place.display(), %error, "this mount can be unmounted while containers use it");
        })
        .ok()
    }

    /// Writes the file as a whole.
    fn save(&self) -> Result<(), LedgerError> {
        let _saving = self.saving.lock();
        let entries = self.entries.lock();
        let volumes = entries
            .iter()
            .map(|(name, entry)| (name.clone(), entry.ids.clone()))
            .collect();
        drop(entries);
        write(
            &self.file,
            &LedgerFile {
                format: FORMAT,
                volumes,
            },
        )
        .map_err(at(&self.file))
    }
}

/// The volume of a name, as mounts show it.
fn full(name: &str) -> String {
    format!("{DEFAULT_NAMESPACE}/{name}")
}

fn at(path: &Path) -> impl Fn(io::Error) -> LedgerError {
    move |source| LedgerError::Io {
        path: path.to_owned(),
        source,
    }
}

fn read(file: &Path) -> Result<BTreeMap<String, Users>, LedgerError> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(at(file)(error)),
    };
    parse(file, &bytes)
}

/// What the file's text says.
pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Users>, LedgerError> {
    let damaged = |reason: String| LedgerError::Damaged {
        path: file.to_owned(),
        reason,
    };
    // A later format may have other fields.
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if format > u64::from(FORMAT) {
        return Err(LedgerError::Format {
            path: file.to_owned(),
            found: format,
        });
    }
    let known: LedgerFile = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
    // They become paths.
    match known
        .volumes
        .keys()
        .find(|name| crate::volume::check_name(name).is_err())
    {
        Some(name) => Err(damaged(format!("{name:?} is not a volume's name"))),
        None => Ok(known.volumes),
    }
}

fn write(file: &Path, content: &LedgerFile) -> io::Result<()> {
    let mut text = serde_json::to_vec(content)?;
    text.push(b'\n');
    os::file::replace(file, &text, 0o666)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
