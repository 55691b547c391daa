//! Connections to nodes with copies.

use super::{
    env::Peers,
    link::LinkError,
    service::{DataRequest, DataResponse},
};
use crate::{
    rpc::{self, Driver, Identity, Kind, Limits},
    volume::NodeId,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Carries calls to a node.
#[cfg(not(test))]
pub(crate) type Line = tarpc::client::Channel<DataRequest, DataResponse>;
#[cfg(test)]
pub(crate) use crate::simulation::Line;

/// The calling side of [`super::Data`].
pub(crate) type Client = super::service::DataClient<Line>;

/// A connection to a node.
#[derive(Clone)]
pub(crate) struct Open {
    pub(crate) client: Client,
    /// Its engine, if callers may run it.
    pub(crate) driver: Option<Driver>,
    /// Ends it; cancelled when it is lost.
    pub(crate) stop: CancellationToken,
}

/// Opens a connection to `node` and drives it until it is lost or its `stop` is cancelled.
pub(super) async fn open(
    peers: &dyn Peers,
    node: NodeId,
    kind: Kind,
    identity: &Identity,
    limits: Limits,
    deadline: Duration,
) -> Result<Open, LinkError> {
    let lost = LinkError::Lost;
    let address = peers
        .address(node)
        .ok_or_else(|| lost(format!("the address of node {node} is unknown")))?;
    #[cfg(test)]
    if let Some(network) = crate::simulation::network() {
        return network.open(node, deadline).await.map_err(lost);
    }
    let connection = rpc::connect(&address, kind, identity, deadline)
        .await
        .map_err(|error| lost(error.to_string()))?;
    if connection.node != node {
        return Err(lost(format!("another node ({}) answers at {address}", connection.node)));
    }
    let stop = CancellationToken::new();
    let (channel, driver) = rpc::call::<DataRequest, DataResponse>(connection, limits, stop.clone());
    #[cfg(test)]
    let channel = Line::Real(channel);
    Ok(Open {
        client: Client::from(channel),
        driver: Some(driver),
        stop,
    })
}
