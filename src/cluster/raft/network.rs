//! How Raft's messages travel: one connection of kind Control to each node, opened when needed.

use super::service::{ControlClient, ControlRequest, ControlResponse, Incarnation};
use super::types::TypeConfig;
use crate::rpc::{ConnectError, Identity, Kind, Limits, MAX_PAYLOAD, Payload, Peer, within};
use crate::volume::NodeId;
use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{BasicNode, RaftNetwork, RaftNetworkFactory};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Addresses that a connection is kept to; more are forgotten.
const MAX_PEERS: usize = 256;
/// Log entries of a message after one with more did not fit; a transaction is far below 1 MiB.
const SMALL: u64 = 4;
/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Between attempts to reach a node: a voter that restarts must hear its leader before it stands for election.
const AGAIN: Duration = Duration::from_millis(200);

type ControlPeer = Arc<Peer<ControlRequest, ControlResponse>>;
type Failure<E> = RPCError<NodeId, BasicNode, RaftError<NodeId, E>>;

/// Connections by address.
#[derive(Clone)]
pub(super) struct Peers {
    identity: Identity,
    peers: Arc<Mutex<HashMap<String, ControlPeer>>>,
    /// What Raft's messages are of.
    of: Incarnation,
}

impl Peers {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            peers: Arc::default(),
            of: Incarnation::default(),
        }
    }

    /// The same connections, for the messages of one control plane.
    pub(super) fn of(&self, incarnation: Incarnation) -> Self {
        Self {
            of: incarnation,
            ..self.clone()
        }
    }

    fn peer(&self, address: &str) -> ControlPeer {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get(address) {
            return peer.clone();
        }
        if peers.len() >= MAX_PEERS {
            peers.clear();
        }
        let limits = Limits {
            connect: CONNECT,
            ..Limits::default()
        };
        let peer = Peer::new(address.to_owned(), Kind::Control, self.identity.clone(), limits);
        peers.insert(address.to_owned(), peer.clone());
        peer
    }

    /// Whether a connection to an address is open.
    pub(super) fn is_connected(&self, address: &str) -> bool {
        self.peer(address).current().is_some()
    }

    /// A client of the daemon at an address.
    pub(super) async fn client(&self, address: &str) -> Result<ControlClient, ConnectError> {
        Ok(ControlClient::from(self.peer(address).channel().await?))
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Link {
        Link {
            peers: self.clone(),
            target,
            address: node.addr.clone(),
        }
    }
}

/// The way to one node.
pub(super) struct Link {
    peers: Peers,
    target: NodeId,
    address: String,
}

/// Which message.
enum Call {
    Append,
    Vote,
    Snapshot,
}

impl Link {
    async fn call<Req, Resp, E>(&self, call: Call, request: &Req, option: &RPCOption) -> Result<Resp, Failure<E>>
    where
        Req: Serialize,
        Resp: DeserializeOwned,
        E: std::error::Error + DeserializeOwned + 'static,
    {
        let broken = |error: &(dyn std::error::Error + 'static)| {
            RPCError::Network(NetworkError::new(&std::io::Error::other(error.to_string())))
        };
        let client = self
            .peers
            .client(&self.address)
            .await
            .map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))?;
        let bytes = postcard::to_allocvec(request).map_err(|e| broken(&e))?;
        if bytes.len() > MAX_PAYLOAD {
            // Raft sends fewer entries then.
            let error = PayloadTooLarge::new_entries_hint(SMALL);
            return Err(RPCError::PayloadTooLarge(error));
        }
        let (context, payload) = (within(option.hard_ttl()), Payload(bytes.into()));
        let answer = match call {
            Call::Append => {
                client
                    .append_entries(context, self.target, self.peers.of, payload)
                    .await
            }
            Call::Vote => client.vote(context, self.target, self.peers.of, payload).await,
            Call::Snapshot => {
                client
                    .install_snapshot(context, self.target, self.peers.of, payload)
                    .await
            }
        };
        let answer = answer
            .map_err(|e| broken(&e))?
            .map_err(|e| broken(&std::io::Error::other(e)))?;
        let result: Result<Resp, RaftError<NodeId, E>> = postcard::from_bytes(&answer).map_err(|e| broken(&e))?;
        result.map_err(|e| RPCError::RemoteError(RemoteError::new(self.target, e)))
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        self.call(Call::Append, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, Failure<InstallSnapshotError>> {
        self.call(Call::Snapshot, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        self.call(Call::Vote, &request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(AGAIN))
    }
}
