//! What each call of Docker does: volumes by the operations that the HTTP API has, mounts by the ledger.
//!
//! Docker asks for a volume (`Get`) before it creates one, and takes every error for "not there". So `Create` of a volume that exists is no error as
//! long as nothing else is asked for, and `Get` and `Mount` wait a while for a node that is just starting: containers that Docker starts with the
//! machine would not be started again.

use super::ledger::{Asker, Ledger};
use super::protocol::{Answer, Call, Capabilities, DockerVolume, MAX_ID, Request};
use crate::api::types::{VolumeCreate, VolumeFilter, VolumeInfo};
use crate::api::{ApiError, Code, Operations};
use crate::volume::{Bytes, DEFAULT_NAMESPACE, HINT_MASTER, Labels, Scope, Size, VolumeRef, canonical_labels};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// Size of a volume that is made without one, as by `docker run -v NAME:/data`.
const DEFAULT_SIZE: u64 = 5 << 30;
/// How long a node that is starting is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(250);
/// Mounts and unmounts under way at once; each has a thread.
const AT_ONCE: usize = 64;

/// See the file's text.
pub(super) struct Driver {
    pub(super) operations: Arc<dyn Operations>,
    pub(super) ledger: Arc<Ledger>,
    /// The daemon ends: nothing more is mounted.
    pub(super) leaving: CancellationToken,
    threads: Arc<Semaphore>,
}

impl Driver {
    pub(super) fn new(operations: Arc<dyn Operations>, ledger: Arc<Ledger>, leaving: CancellationToken) -> Self {
        Self {
            operations,
            ledger,
            leaving,
            threads: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Does a call; `process` asks.
    pub(super) async fn call(&self, call: Call, request: Request, process: Option<i32>) -> Result<Answer, ApiError> {
        let name = request.name.as_str();
        match call {
            Call::Activate => Ok(Answer {
                implements: Some(["VolumeDriver"]),
                ..Answer::default()
            }),
            Call::Capabilities => Ok(Answer {
                capabilities: Some(Capabilities { scope: "global" }),
                ..Answer::default()
            }),
            Call::Create => self.create(name, request.opts.unwrap_or_default()).await,
            Call::Remove => self.remove(name).await,
            Call::Mount => self.mount(name, request.id, process).await,
            Call::Unmount => self.unmount(name, request.id).await,
            Call::Path => {
                check(name)?;
                Ok(Answer {
                    mountpoint: Some(self.mountpoint(name)),
                    ..Answer::default()
                })
            }
            Call::Get => {
                let found = self.find(name).await?;
                Ok(Answer {
                    volume: Some(self.shown(&found, true)),
                    ..Answer::default()
                })
            }
            Call::List => {
                let filter = VolumeFilter {
                    namespace: Some(DEFAULT_NAMESPACE.to_owned()),
                    selector: None,
                };
                let found = self.operations.volumes(filter).await?;
                Ok(Answer {
                    volumes: Some(found.iter().map(|volume| self.shown(volume, false)).collect()),
                    ..Answer::default()
                })
            }
        }
    }

    async fn create(&self, name: &str, opts: BTreeMap<String, String>) -> Result<Answer, ApiError> {
        check(name)?;
        let asked = Asked::parse(opts)?;
        let mut labels = asked.labels.clone();
        if !labels.contains_key(HINT_MASTER) {
            labels.insert(HINT_MASTER.to_owned(), self.operations.about().await?.node_name);
        }
        let create = VolumeCreate {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            name: name.to_owned(),
            size: asked.size.unwrap_or(DEFAULT_SIZE),
            description: asked.description.clone(),
            labels,
            node_selector: asked.node_selector.clone(),
        };
        match self.operations.volume_create(create).await {
            Ok(_) => Ok(Answer::default()),
            Err(refused) if refused.code == Code::Conflict => {
                // It may exist already: another node was asked for it at the same time, or this one is asked again.
                let Ok(found) = self.operations.volume(DEFAULT_NAMESPACE, name).await else {
                    return Err(refused);
                };
                match asked.differs_from(&found) {
                    None => Ok(Answer::default()),
                    Some(difference) => Err(
                        ApiError::conflict(format!("{}, and {difference}", refused.message)).hint(format!(
                            "change it with: storageos volume update {DEFAULT_NAMESPACE}/{name}, or choose another name"
                        )),
                    ),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, name: &str) -> Result<Answer, ApiError> {
        check(name)?;
        match self.operations.volume_remove(DEFAULT_NAMESPACE, name, false).await {
            // Docker asked whether it is there before: somebody else was faster.
            Err(error) if error.code == Code::NotFound => Ok(Answer::default()),
            Err(error) => Err(error),
            Ok(()) => Ok(Answer::default()),
        }
    }

    async fn mount(&self, name: &str, id: String, process: Option<i32>) -> Result<Answer, ApiError> {
        check_id(&id)?;
        if self.leaving.is_cancelled() {
            return Err(ApiError::unavailable(
                "the storageos daemon of this node is stopping: it mounts nothing more",
            ));
        }
        // That the node is ready, too; it is said better here than by the mount.
        self.find(name).await?;
        let (answer, heard) = oneshot::channel();
        let (ledger, name) = (self.ledger.clone(), name.to_owned());
        self.on_a_thread(move || {
            let asker = Asker {
                id: &id,
                process,
                waits: &|| !answer.is_closed(),
            };
            let done = ledger.mount(&name, &asker);
            if let Err(Ok(_)) = answer.send(done)
                && let Err(error) = ledger.unmount(&name, &id)
            {
                tracing::warn!(volume = %name, %error, "a mount that nobody waits for is still there");
            }
        })
        .await;
        let place = heard.await.map_err(|_| interrupted())??;
        Ok(Answer {
            mountpoint: Some(place.to_string_lossy().into_owned()),
            ..Answer::default()
        })
    }

    async fn unmount(&self, name: &str, id: String) -> Result<Answer, ApiError> {
        check(name)?;
        check_id(&id)?;
        let (answer, heard) = oneshot::channel();
        let (ledger, name) = (self.ledger.clone(), name.to_owned());
        // Goes on when nobody waits for it.
        self.on_a_thread(move || {
            let done = ledger.unmount(&name, &id);
            if let Err(Err(error)) = answer.send(done) {
                tracing::warn!(volume = %name, %error, "an unmount that took long failed");
            }
        })
        .await;
        heard.await.map_err(|_| interrupted())??;
        Ok(Answer::default())
    }

    /// Runs what blocks, when one of the threads for that is free.
    async fn on_a_thread(&self, work: impl FnOnce() + Send + 'static) {
        let Ok(permit) = self.threads.clone().acquire_owned().await else {
            return;
        };
        tokio::task::spawn_blocking(move || {
            work();
            drop(permit);
        });
    }

    /// A volume; waits for a node that is starting.
    async fn find(&self, name: &str) -> Result<VolumeInfo, ApiError> {
        check(name)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match self.operations.volume(DEFAULT_NAMESPACE, name).await {
                Err(error) if error.code == Code::Unavailable => error,
                found => return found,
            };
            // A node that is in no cluster is not on its way into one.
            if Instant::now() > deadline || self.operations.about().await?.cluster.is_none() {
                return Err(error);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn mountpoint(&self, name: &str) -> String {
        let place = self.ledger.used_at(name).unwrap_or_default();
        place.to_string_lossy().into_owned()
    }

    fn shown(&self, volume: &VolumeInfo, whole: bool) -> DockerVolume {
        DockerVolume {
            name: volume.name.clone(),
            mountpoint: self.mountpoint(&volume.name),
            created_at: volume.created_at,
            status: whole.then(|| status(volume)),
        }
    }
}

/// Names become paths.
fn check(name: &str) -> Result<(), ApiError> {
    match VolumeRef::new(DEFAULT_NAMESPACE, name) {
        Ok(_) => Ok(()),
        Err(error) => Err(ApiError::invalid(format!("volume name: {error}"))),
    }
}

fn check_id(id: &str) -> Result<(), ApiError> {
    if id.is_empty() || id.len() > MAX_ID {
        return Err(
            ApiError::new(Code::Usage, format!("a mount needs an id of 1 to {MAX_ID} bytes"))
                .hint("Docker 1.12 or newer is needed"),
        );
    }
    Ok(())
}

fn interrupted() -> ApiError {
    ApiError::internal("the request was interrupted; see the daemon's log")
}

/// What `docker volume create --opt` asks for: the options of `storageos volume create`, everything else is a label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    size: Option<u64>,
    description: String,
    node_selector: String,
    /// In their canonical spelling.
    labels: Labels,
}

impl Asked {
    pub(super) fn parse(opts: BTreeMap<String, String>) -> Result<Self, ApiError> {
        let mut asked = Self::default();
        let mut labels = Vec::new();
        for (key, value) in opts {
            // In any case: `--opt Size=15` as a label would make a volume of 5 GiB.
            match key.to_ascii_lowercase().as_str() {
                "size" => {
                    let size: Size = value
                        .parse()
                        .map_err(|e: crate::volume::SizeError| ApiError::invalid(format!("option size: {e}")))?;
                    asked.size = Some(size.bytes());
                }
                "description" => asked.description = value,
                "node-selector" => asked.node_selector = value,
                "pool" if value == "default" => {}
                "pool" => return Err(ApiError::invalid("option pool: there is one pool, `default`")),
                // As the command line does: a volume is a directory tree.
                "fstype" => {}
                _ => labels.push((key, value)),
            }
        }
        let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        asked.labels = canonical_labels(labels, Scope::Volume).map_err(|e| ApiError::invalid(e.to_string()))?;
        Ok(asked)
    }

    /// In what a volume that exists is not the one asked for; what was not asked for may be anything.
    fn differs_from(&self, found: &VolumeInfo) -> Option<String> {
        if let Some(size) = self.size.filter(|size| *size != found.size) {
            return Some(format!("its size is {}, not {}", Bytes(found.size), Bytes(size)));
        }
        if !self.node_selector.is_empty() && self.node_selector != found.node_selector {
            return Some(format!("its node selector is `{}`", found.node_selector));
        }
        let label = self
            .labels
            .iter()
            .find(|(key, value)| found.labels.get(*key) != Some(value));
        label.map(|(key, value)| match found.labels.get(key) {
            Some(other) => format!("its label {key} is {other}, not {value}"),
            None => format!("it has no label {key}"),
        })
    }
}

/// What `docker volume inspect` shows as the volume's status.
fn status(volume: &VolumeInfo) -> Map<String, Value> {
    let copy = |copy: &crate::api::types::CopyInfo| format!("{} ({})", copy.node_name, copy.health);
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| shown.insert(key.to_owned(), value);
    put("health", json!(volume.health));
    put("status", json!(volume.status));
    if !volume.status_message.is_empty() {
        put("statusMessage", json!(volume.status_message));
    }
    put("size", json!(Bytes(volume.size).to_string()));
    if let Some(used) = volume.used_bytes {
        put("used", json!(Bytes(used).to_string()));
    }
    put("master", json!(volume.master.as_ref().map(copy)));
    put("desiredReplicas", json!(volume.desired_replicas));
    put("replicas", json!(volume.replicas.iter().map(copy).collect::<Vec<_>>()));
    put("labels", json!(volume.labels));
    put(
        "mountedOn",
        json!(
            volume
                .mounted
                .then(|| format!("{}:{}", volume.mounted_by, volume.mountpoint))
        ),
    );
    shown
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
