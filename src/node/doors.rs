//! The doors of a daemon: the API and the mount helpers' sockets, the addresses for clients with a certificate and for metrics, Docker's driver. Each answers until the daemon has stopped.

use super::daemon::{Daemon, StartError};
use crate::api;
use crate::docker::{Door, Settings};
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Before anything is served, so that an address that is taken ends the start.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

impl Daemon {
    /// Serves the API and the mount helpers on every socket asked for.
    pub(super) fn open_doors(&self) -> Result<(), StartError> {
        let shared = &self.shared;
        for socket in &shared.config.sockets {
            let bound = api::bind(&socket.path, shared.config.socket_group).and_then(|listener| {
                let mounts = super::backend::listen(&shared.handoff, &socket.path)?;
                Ok((listener, mounts))
            });
            let (listener, mounts) = match bound {
                Ok(bound) => bound,
                Err(error) if socket.optional => {
                    tracing::warn!(%error, "the daemon goes on without this API socket");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            tracing::info!(socket = %socket.path.display(), "API");
            let (path, operations, stop) = (socket.path.clone(), shared.clone(), self.api_stop.clone());
            self.api_tasks.spawn(async move {
                if let Err(error) = api::serve(listener, operations, stop).await {
                    tracing::error!(%error, "the API's socket failed");
                }
                drop(mounts);
                // The next daemon would replace it, too.
                let _ = std::fs::remove_file(path);
            });
        }
        self.open_door_for_clients()?;
        self.open_door_for_monitoring()?;
        self.open_door_for_docker()
    }

    /// Serves clients with a certificate on a TCP address, if that was asked for.
    fn open_door_for_clients(&self) -> Result<(), StartError> {
        let Some(address) = self.shared.config.api else {
            return Ok(());
        };
        let listener = listen(address).map_err(|source| StartError::Api { address, source })?;
        tracing::info!(%address, "API for clients with a certificate");
        let (operations, gate) = (self.shared.clone(), self.shared.clone());
        self.api_tasks
            .spawn(api::serve_clients(listener, operations, gate, self.api_stop.clone()));
        Ok(())
    }

    /// Serves metrics on a TCP address, if that was asked for.
    fn open_door_for_monitoring(&self) -> Result<(), StartError> {
        let Some(address) = self.shared.config.metrics else {
            return Ok(());
        };
        let listener = listen(address).map_err(|source| StartError::Metrics { address, source })?;
        tracing::info!(%address, "metrics");
        let serving = api::serve_monitoring(listener, self.shared.clone(), self.api_stop.clone());
        self.api_tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the address for metrics failed");
            }
        });
        Ok(())
    }

    /// Serves Docker, if that was asked for; it mounts through the API's first socket.
    fn open_door_for_docker(&self) -> Result<(), StartError> {
        let shared = &self.shared;
        let Some(socket) = &shared.config.docker else {
            return Ok(());
        };
        let Some(api) = shared.config.sockets.iter().find(|socket| !socket.optional) else {
            tracing::warn!(
                "no volume driver for Docker: it mounts through an API socket, and there is none that is always there"
            );
            return Ok(());
        };
        let door = Door::open(&Settings {
            socket: socket.clone(),
            api_socket: api.path.clone(),
            data_directory: shared.data.path().to_owned(),
        })?;
        tracing::info!(socket = %socket.display(), "Docker volume driver");
        self.api_tasks
            .spawn(door.serve(shared.clone(), self.leaving.clone(), self.api_stop.clone()));
        Ok(())
    }
}
