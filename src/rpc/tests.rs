//! What a connection promises, and what hostile bytes do to it.

use super::{
    frame::{self, Outgoing},
    hello::{Hello, LENGTH},
    *,
};
use crate::volume::{ClusterId, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tarpc::{ClientMessage, Request, Response, client::RpcError, context};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const LONG: Duration = Duration::from_secs(30);

#[tarpc::service]
trait Echo {
    async fn echo(data: Vec<Payload>, sums: Sums) -> (Payload, Sums);
    async fn never() -> u8;
    async fn number(n: u64) -> u64;
}

#[derive(Clone, Default)]
struct EchoServer {
    served: Arc<AtomicUsize>,
}

impl Echo for EchoServer {
    async fn echo(self, _: context::Context, data: Vec<Payload>, sums: Sums) -> (Payload, Sums) {
        let joined: Vec<u8> = data.iter().flat_map(|part| part.to_vec()).collect();
        (joined.into(), sums)
    }

    async fn never(self, _: context::Context) -> u8 {
        self.served.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }

    async fn number(self, _: context::Context, n: u64) -> u64 {
        n
    }
}

fn identities() -> (Identity, Identity) {
    let cluster = ClusterId::random();
    (
        Identity::new(NodeId::random(), Some(cluster)),
        Identity::new(NodeId::random(), Some(cluster)),
    )
}

async fn echo_server(identity: Identity, service: EchoServer) -> Server {
    Server::bind("127.0.0.1:0", identity)
        .await
        .unwrap()
        .on(Kind::Data, move |connection| {
            serve(connection, service.clone().serve(), 16)
        })
        .on(Kind::Control, |connection| {
            serve(connection, EchoServer::default().serve(), 16)
        })
        .hello_deadline(Duration::from_millis(300))
        .start()
        .unwrap()
}

fn peer(server: &Server, identity: Identity) -> Arc<Peer<EchoRequest, EchoResponse>> {
    Peer::new(
        server.local_address().to_string(),
        Kind::Data,
        identity,
        Limits::default(),
    )
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Write {
    block: u64,
    data: Payload,
}

fn request(block: u64, data: Bytes) -> ClientMessage<Write> {
    ClientMessage::Request(Request {
        context: context::current(),
        id: 7,
        message: Write {
            block,
            data: Payload(data),
        },
    })
}

fn bytes_of(outgoing: &mut Outgoing) -> Vec<u8> {
    outgoing.slices().iter().flat_map(|slice| slice.to_vec()).collect()
}

#[test]
fn hello_bytes_are_the_documented_ones() {
    let hello = Hello {
        version: 1,
        code: Kind::Data as u8,
        cluster: Some(ClusterId::from_bytes([0x11; 16])),
        node: NodeId::from_bytes([0x22; 16]),
    };
    let bytes = hello.encode();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "53746f724f53720a01000301111111111111111111111111111111112222222222222222222222222222222200000000b4dac87fc4f0b057"
    );
    assert_eq!(Hello::decode(&bytes), Some(hello));
    for bit in 0..LENGTH * 8 {
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Hello::decode(&flipped), None);
    }
}

#[test]
fn frame_bytes_are_the_documented_ones() {
    let mut outgoing = Outgoing::default();
    outgoing
        .push(Response::<(u64, Payload)> {
            request_id: 5,
            message: Ok((300, Payload(Bytes::from_static(b"data")))),
        })
        .unwrap();
    let hex: String = bytes_of(&mut outgoing)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, "0500000004000000240d7adc0500ac020464617461");
}

#[test]
fn a_large_write_is_sent_from_the_callers_own_memory() {
    let data = Bytes::from(vec![7_u8; 1 << 20]);
    let mut outgoing = Outgoing::default();
    outgoing.push(request(3, data.clone())).unwrap();
    outgoing.push(request(4, data.clone())).unwrap();
    let slices = outgoing.slices();
    assert_eq!(slices.len(), 4, "head, data, head, data");
    assert_eq!(slices[1].as_ptr(), data.as_ptr());
    assert_eq!(slices[3].as_ptr(), data.as_ptr());
}

#[test]
fn a_received_payload_is_the_frames_own_memory() {
    let mut outgoing = Outgoing::default();
    outgoing.push(request(3, Bytes::from(vec![7_u8; 8192]))).unwrap();
    let bytes = bytes_of(&mut outgoing);
    let payload = Bytes::copy_from_slice(&bytes[bytes.len() - 8192..]);
    let message: ClientMessage<Write> = frame::decode(&bytes[..bytes.len() - 8192], payload.clone()).unwrap();
    let ClientMessage::Request(Request { message, .. }) = message else {
        panic!("not a request");
    };
    assert_eq!(message.data.as_ptr(), payload.as_ptr());
    assert_eq!(message.data.len(), 8192);
}

#[test]
fn a_payload_outside_of_the_codec_is_an_error() {
    assert!(postcard::to_stdvec(&Payload(Bytes::from_static(b"x"))).is_err());
    assert!(postcard::from_bytes::<Payload>(&[1]).is_err());
}

#[test]
fn a_message_over_the_limits_is_refused_and_leaves_the_queue_intact() {
    let mut outgoing = Outgoing::default();
    outgoing.push(request(1, Bytes::new())).unwrap();
    let before = outgoing.len();
    assert!(
        outgoing
            .push(request(2, Bytes::from(vec![0; MAX_PAYLOAD + 1])))
            .is_err()
    );
    assert!(
        outgoing
            .push(Response {
                request_id: 1,
                message: Ok("x".repeat(MAX_HEAD))
            })
            .is_err()
    );
    assert_eq!(outgoing.len(), before);
}

#[test]
fn a_partial_write_goes_on_where_it_stopped() {
    let mut outgoing = Outgoing::default();
    outgoing.push(request(1, Bytes::from(vec![1; 2000]))).unwrap();
    outgoing.push(request(2, Bytes::from(vec![2; 100]))).unwrap();
    outgoing.push(request(3, Bytes::from(vec![3; 3000]))).unwrap();
    let all = bytes_of(&mut outgoing);
    let mut seen = Vec::new();
    while outgoing.len() > 0 {
        let now = bytes_of(&mut outgoing);
        let step = now.len().min(77);
        seen.extend_from_slice(&now[..step]);
        outgoing.advance(step);
    }
    assert_eq!(seen, all);
}

proptest::proptest! {
    #[test]
    fn any_bytes_decode_to_an_error_or_a_message(head: Vec<u8>, payload: Vec<u8>) {
        let _ = frame::decode::<ClientMessage<Write>>(&head, Bytes::from(payload));
        let _ = frame::Lengths::parse(&head);
    }

    #[test]
    fn any_head_with_a_right_check_decodes_to_an_error_or_a_message(head: Vec<u8>, payload: Vec<u8>) {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes).update(&head);
        bytes.extend_from_slice(&hasher.finalize().as_bytes()[..4]);
        bytes.extend_from_slice(&head);
        let _ = frame::decode::<ClientMessage<Write>>(&bytes, Bytes::from(payload.clone()));
        let _ = frame::decode::<Response<(u64, Payload)>>(&bytes, Bytes::from(payload));
    }
}

#[tokio::test]
async fn calls_carry_payloads_of_every_size_both_ways() {
    let (a, b) = identities();
    let server = echo_server(a, EchoServer::default()).await;
    let peer = peer(&server, b);
    let client = EchoClient::from(peer.channel().await.unwrap());
    for size in [0, 1, 511, 4096, 16 << 10, (16 << 10) + 1, 1 << 20] {
        let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let sums = vec![[size as u8; 32]; size / 4096];
        let parts = vec![
            Payload::from(data[..size / 3].to_vec()),
            Payload::from(data[size / 3..].to_vec()),
        ];
        let (answer, back) = client.echo(within(LONG), parts, sums.clone().into()).await.unwrap();
        assert!(*answer == *data, "{size} bytes");
        assert_eq!(back.get(), Some(&sums[..]));
    }
    let calls = (0..500).map(|n| client.number(within(LONG), n));
    let answers = futures::future::join_all(calls).await;
    assert!(answers.into_iter().zip(0..).all(|(answer, n)| answer.unwrap() == n));
    server.stop().await;
}

#[tokio::test]
async fn a_stopped_server_fails_calls_at_once_and_the_next_call_reconnects() {
    let (a, b) = identities();
    let service = EchoServer::default();
    let server = echo_server(a.clone(), service.clone()).await;
    let address = server.local_address().to_string();
    let peer = peer(&server, b);
    let mut lost = peer.watch_lost();
    let client = EchoClient::from(peer.channel().await.unwrap());
    let call = tokio::spawn(async move { client.never(within(LONG)).await });
    timeout(LONG, async {
        while service.served.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    timeout(LONG, server.stop()).await.unwrap();
    let error = timeout(LONG, call).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, RpcError::Shutdown | RpcError::Channel(_)), "{error}");
    assert!(refuses(&address).await);
    timeout(LONG, lost.changed()).await.unwrap().unwrap();
    assert!(matches!(peer.channel().await, Err(ConnectError::Io { .. })));
    let server = Server::bind(&address, a)
        .await
        .unwrap()
        .on(Kind::Data, move |connection| {
            serve(connection, service.clone().serve(), 16)
        })
        .start()
        .unwrap();
    let client = EchoClient::from(peer.channel().await.unwrap());
    assert_eq!(client.number(within(LONG), 9).await.unwrap(), 9);
    peer.disconnect();
    let error = client.number(within(LONG), 9).await.unwrap_err();
    assert!(matches!(error, RpcError::Shutdown | RpcError::Channel(_)), "{error}");
    assert!(!refuses(&address).await);
    server.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let (a, b) = identities();
    let server = echo_server(a.clone(), EchoServer::default()).await;
    let address = server.local_address().to_string();
    let refusal = |identity: Identity, kind| {
        let address = address.clone();
        async move {
            match connect(&address, kind, &identity, LONG).await {
                Err(ConnectError::Refused { reason, .. }) => Some(reason),
                Ok(_) => None,
                Err(other) => panic!("{other}"),
            }
        }
    };
    let other = Identity::new(NodeId::random(), Some(ClusterId::random()));
    let joining = Identity::new(NodeId::random(), None);
    assert_eq!(refusal(other, Kind::Data).await, Some(Refusal::Cluster));
    assert_eq!(refusal(joining.clone(), Kind::Data).await, Some(Refusal::Cluster));
    assert_eq!(refusal(joining.clone(), Kind::Control).await, None);
    assert_eq!(refusal(b.clone(), Kind::Sync).await, Some(Refusal::Kind));
    assert_eq!(refusal(b.clone(), Kind::Data).await, None);
    let answered = connect(&address, Kind::Control, &joining, LONG).await.unwrap();
    assert_eq!((answered.node, answered.cluster), (a.node(), a.cluster()));
    assert_eq!(joining.set_cluster(a.cluster().unwrap()), Ok(()));
    assert_eq!(refusal(joining.clone(), Kind::Data).await, None);
    assert!(joining.set_cluster(ClusterId::random()).is_err());

    let mut newer = Hello::new(&b, Kind::Data as u8);
    newer.version = PROTOCOL_VERSION + 1;
    let mut socket = TcpStream::connect(&address).await.unwrap();
    socket.write_all(&newer.encode()).await.unwrap();
    let mut answer = [0; LENGTH];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(Hello::decode(&answer).unwrap().refusal(), Some(Refusal::Version));
    server.stop().await;
}

/// The server must close such a connection, and go on serving others.
#[tokio::test]
async fn garbage_oversize_lengths_half_frames_and_silence_close_only_their_connection() {
    let (a, b) = identities();
    let server = echo_server(a, EchoServer::default()).await;
    let hello = Hello::new(&b, Kind::Data as u8).encode().to_vec();
    let oversize = |head: u32, payload: u32| {
        let mut bytes = hello.clone();
        bytes.extend_from_slice(&head.to_le_bytes());
        bytes.extend_from_slice(&payload.to_le_bytes());
        bytes.extend_from_slice(&[0; 64]);
        bytes
    };
    let hostile = [
        (
            b"GET / HTTP/1.1\r\nHost: a-long-enough-name.example\r\n\r\n\r\n\r\n".to_vec(),
            false,
        ),
        (Vec::new(), false),
        (hello[..20].to_vec(), false),
        (oversize(u32::MAX, 0), false),
        (oversize(4, u32::MAX), false),
        (oversize(4, 0), false),
        (oversize(4000, 4000), true),
        ([hello.clone(), vec![1, 2, 3]].concat(), true),
    ];
    for (number, (bytes, half)) in hostile.into_iter().enumerate() {
        let mut socket = TcpStream::connect(server.local_address()).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        if half {
            socket.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        // An error (reset) is as good as the end.
        let _ = timeout(LONG, socket.read_to_end(&mut answer))
            .await
            .unwrap_or_else(|_| panic!("case {number} was left open"));
    }
    let peer = peer(&server, b);
    let client = EchoClient::from(peer.channel().await.unwrap());
    assert_eq!(client.number(within(LONG), 3).await.unwrap(), 3);
    server.stop().await;
}

#[tokio::test]
async fn a_peer_that_never_answers_hello_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, _) = identities();
    let address = silent.local_addr().unwrap().to_string();
    let error = connect(&address, Kind::Data, &a, Duration::from_millis(50)).await;
    assert!(matches!(error, Err(ConnectError::Timeout(_))));
}
