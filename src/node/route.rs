//! The way from a mount to its volume's master, which may be here or elsewhere, and moves.

use super::control::{Control, name};
use super::switch::{Backend, SwitchDevice};
use crate::api::{ApiError, Code};
use crate::cluster::View;
use crate::exec::{
    task,
    time::{self, Instant},
};
use crate::replication::{Environment, RemoteDevice, ReplicaHost};
use crate::volume::{NodeId, VolumeId};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause between looks for a device.
const LOOK: Duration = Duration::from_millis(50);
/// How long a mount whose master is gone looks for the next before that is told, and the pause before it looks again.
const LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// See the module's text.
pub(crate) struct Route {
    pub(crate) node: NodeId,
    pub(crate) host: Arc<ReplicaHost>,
    pub(crate) environment: Environment,
    pub(crate) control: Control,
}

impl Route {
    /// The way to the volume's master, here or elsewhere, once there is one.
    pub(crate) async fn find(&self, volume: VolumeId, number: u64, limit: Duration) -> Result<Backend, ApiError> {
        let deadline = Instant::now() + limit;
        let mut why = "it has no master yet".to_owned();
        while Instant::now() < deadline {
            let record = match self.control.volume(volume).await {
                Ok(Some(record)) => record,
                Ok(None) => return Err(ApiError::new(Code::NotFound, "the volume has been removed")),
                Err(error) => {
                    why = error.to_string();
                    time::sleep(LOOK).await;
                    continue;
                }
            };
            if record.mounts != number {
                return Err(ApiError::conflict(format!(
                    "volume {} was claimed by another mount",
                    name(&record)
                )));
            }
            if record.configuration.master == Some(self.node) {
                if let Some(master) = self.host.master(volume)
                    && !master.stopped().is_cancelled()
                {
                    let attaching = master.clone();
                    let attached = task::spawn_blocking(move || attaching.attach(number)).await;
                    match attached {
                        Ok(Ok(device)) => return Ok(Backend::Local(device)),
                        Ok(Err(error)) => why = error.to_string(),
                        Err(error) => why = error.to_string(),
                    }
                } else {
                    why = "this node is becoming its master".to_owned();
                }
            } else if record.configuration.master.is_some() {
                let identity = self.host.identity().clone();
                let opening = RemoteDevice::open(volume, identity, self.environment.clone(), number);
                match time::timeout(deadline.saturating_duration_since(Instant::now()), opening).await {
                    Ok(Ok(device)) => return Ok(Backend::Remote(Arc::new(device))),
                    Ok(Err(error)) => why = error.to_string(),
                    Err(_) => why = "its master does not answer".to_owned(),
                }
            }
            time::sleep(LOOK).await;
        }
        Err(
            ApiError::unavailable(format!("the volume did not become usable in time: {why}"))
                .hint("see: storageos volume inspect, storageos cluster health"),
        )
    }

    /// Keeps the device of a mount on the volume's master, wherever that is.
    pub(crate) async fn follow(
        &self,
        volume: VolumeId,
        number: u64,
        name: &str,
        device: &SwitchDevice,
        closed: &CancellationToken,
    ) {
        loop {
            match device.backend() {
                Backend::Local(device) => {
                    tokio::select! {
                        biased;
                        () = closed.cancelled() => return,
                        () = device.master().stopped().cancelled_owned() => {}
                    }
                }
                // A remote device finds the next master by itself; only when that is here is there a shorter way.
                Backend::Remote(_) => {
                    let mut view = self.control.watch();
                    let here = |view: &Arc<View>| {
                        view.volumes
                            .get(&volume)
                            .is_some_and(|v| v.configuration.master == Some(self.node))
                    };
                    tokio::select! {
                        biased;
                        () = closed.cancelled() => return,
                        found = view.wait_for(here) => {
                            if found.is_err() {
                                return;
                            }
                        }
                    }
                }
            }
            let found = tokio::select! {
                biased;
                () = closed.cancelled() => return,
                found = self.find(volume, number, LIMIT) => found,
            };
            match found {
                Ok(backend) => {
                    let place = if matches!(backend, Backend::Local(_)) {
                        "this node"
                    } else {
                        "another node"
                    };
                    tracing::info!(volume = %name, master = place, "the mount goes on with the volume's master");
                    device.switch(backend);
                }
                Err(error) => {
                    tracing::warn!(volume = %name, %error, "the mount has no master to go to");
                    time::sleep(RETRY).await;
                }
            }
        }
    }
}
