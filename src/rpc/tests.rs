//! What a connection promises, and what hostile bytes do to it.

use super::{
    frame::{self, Outgoing},
    hello::{Hello, LENGTH},
    secure::Secure,
    tls::{Locks, call_pinned},
    *,
};
use crate::trust::{Authority, Credentials, Key, pin};
use crate::volume::{ClusterId, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    io,
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

impl EchoServer {
    /// Waits until it is asked what it never answers.
    async fn is_asked(&self) {
        timeout(LONG, async {
            while self.served.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
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
        Identity::sample(NodeId::random(), cluster),
        Identity::sample(NodeId::random(), cluster),
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
    service.is_asked().await;
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

/// TLS to a server, with these credentials or none, and nothing said yet.
async fn handshake(server: &Server, keys: Option<&Credentials>, authority: &Credentials) -> io::Result<Secure> {
    let socket = TcpStream::connect(server.local_address()).await?;
    let session = match keys {
        Some(keys) => {
            let locks = Locks::default();
            locks.set(keys.node, keys).unwrap();
            locks.keys().unwrap().call()
        }
        None => call_pinned(pin(authority.proof().authority())),
    };
    Secure::new(socket, session.unwrap()).await
}

/// Says hello and returns what the other end answers.
async fn greet(socket: &mut Secure, hello: Hello) -> io::Result<Hello> {
    socket.write_all(&hello.encode()).await?;
    let mut answer = [0; LENGTH];
    socket.read_exact(&mut answer).await?;
    Ok(Hello::decode(&answer).unwrap())
}

fn hello(identity: &Identity, kind: Kind) -> Hello {
    Hello::new(identity.node(), identity.cluster(), kind as u8)
}

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let (a, b) = identities();
    let cluster = a.cluster().unwrap();
    let server = echo_server(a.clone(), EchoServer::default()).await;
    let address = server.local_address().to_string();
    let to = |identity: Identity, kind| {
        let address = address.clone();
        async move { connect(&address, kind, &identity, LONG).await }
    };
    let answered = to(b.clone(), Kind::Control).await.unwrap();
    assert_eq!((answered.node, answered.cluster), (a.node(), a.cluster()));
    let other = Identity::sample(NodeId::random(), ClusterId::random());
    let error = to(other, Kind::Data).await.err().unwrap();
    assert!(
        matches!(&error, ConnectError::Untrusted { reason, .. } if reason.contains("UnknownIssuer")),
        "{error}"
    );
    let joining = Identity::new(NodeId::random(), None);
    let error = to(joining.clone(), Kind::Control).await;
    assert!(matches!(error, Err(ConnectError::NoCertificate)));
    let error = to(b.clone(), Kind::Sync).await;
    assert!(matches!(
        error,
        Err(ConnectError::Refused {
            reason: Refusal::Kind,
            ..
        })
    ));

    // Those that do as if they were something else: no certificate, another node's, a hello of another cluster or version.
    let credentials = b.credentials().unwrap();
    let refusals = [
        (None, hello(&b, Kind::Data), Refusal::Unproven),
        (None, hello(&b, Kind::Control), Refusal::Unproven),
        (None, Hello::new(b.node(), None, Kind::Control as u8), Refusal::Cluster),
        (Some(&credentials), hello(&a, Kind::Data), Refusal::Unproven),
        (
            Some(&credentials),
            Hello::new(b.node(), Some(ClusterId::random()), Kind::Data as u8),
            Refusal::Cluster,
        ),
        (
            Some(&credentials),
            Hello::new(b.node(), None, Kind::Data as u8),
            Refusal::Cluster,
        ),
        (
            Some(&credentials),
            Hello {
                version: PROTOCOL_VERSION + 1,
                ..hello(&b, Kind::Data)
            },
            Refusal::Version,
        ),
        (
            Some(&credentials),
            Hello::new(b.node(), Some(cluster), 77),
            Refusal::Kind,
        ),
    ];
    for (keys, said, refusal) in refusals {
        let mut socket = handshake(&server, keys, &credentials).await.unwrap();
        let answer = greet(&mut socket, said).await.unwrap();
        assert_eq!(answer.refusal(), Some(refusal), "{said:?}");
        let mut rest = Vec::new();
        assert_eq!(timeout(LONG, socket.read_to_end(&mut rest)).await.unwrap().unwrap(), 0);
    }

    // Credentials of another authority of the same name.
    let forged = forged(b.node(), cluster);
    let refused = async {
        let mut socket = handshake(&server, Some(&forged), &credentials).await?;
        greet(&mut socket, hello(&b, Kind::Data)).await
    };
    assert!(refused.await.is_err());
    let authority = pin(forged.proof().authority());
    let error = connect_pinned(&address, authority, &joining, LONG).await.err().unwrap();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error}");
    server.stop().await;
}

/// A certificate by an authority that says it is this cluster's.
fn forged(node: NodeId, cluster: ClusterId) -> Credentials {
    let now = jiff::Timestamp::now();
    let authority = Authority::new(cluster, now).unwrap();
    let key = Key::generate().unwrap();
    let issued = authority.issue(node, key.public(), LONG, 0, now).unwrap();
    Credentials::new(node, cluster, &key, issued, authority.certificate().to_vec())
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_a_renewed_one_needs_no_new_connections() {
    let (a, b) = identities();
    let server = echo_server(a.clone(), EchoServer::default()).await;
    let address = server.local_address().to_string();
    let peer = peer(&server, b.clone());
    let client = EchoClient::from(peer.channel().await.unwrap());
    let fresh = |identity: &Identity| tls::sample(identity.node(), identity.cluster().unwrap());
    assert!(b.set_credentials(&fresh(&a)).is_err());
    for identity in [&a, &b] {
        let before = identity.credentials().unwrap();
        identity.set_credentials(&fresh(identity)).unwrap();
        assert_ne!(
            identity.credentials().unwrap().proof().certificate(),
            before.proof().certificate()
        );
        assert_eq!(client.number(within(LONG), 3).await.unwrap(), 3);
        connect(&address, Kind::Data, &b, LONG).await.unwrap();
    }
    let old = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(48);
    b.set_credentials(&tls::sample_of(
        b.node(),
        b.cluster().unwrap(),
        old,
        Duration::from_secs(3600),
    ))
    .unwrap();
    let error = connect(&address, Kind::Data, &b, LONG).await.err().unwrap();
    assert!(
        matches!(&error, ConnectError::Untrusted { reason, .. } if reason.contains("Expired")),
        "{error}"
    );
    // As seen from the other side.
    let backwards = echo_server(b.clone(), EchoServer::default()).await;
    let error = connect(&backwards.local_address().to_string(), Kind::Data, &a, LONG).await;
    assert!(matches!(error, Err(ConnectError::Untrusted { .. })));
    assert_eq!(client.number(within(LONG), 4).await.unwrap(), 4);
    // A clock that is half an hour ahead is no reason.
    let early = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(30);
    b.set_credentials(&tls::sample_of(
        b.node(),
        b.cluster().unwrap(),
        early,
        Duration::from_secs(3600),
    ))
    .unwrap();
    connect(&address, Kind::Data, &b, LONG).await.unwrap();
    server.stop().await;
    backwards.stop().await;
}

#[tokio::test]
async fn a_node_that_is_locked_out_loses_its_connections_and_gets_no_new_ones() {
    let (a, b) = identities();
    let service = EchoServer::default();
    let server = echo_server(a.clone(), service.clone()).await;
    let address = server.local_address().to_string();
    let called = peer(&server, b.clone());
    let client = EchoClient::from(called.channel().await.unwrap());
    assert_eq!(client.number(within(LONG), 3).await.unwrap(), 3);
    a.lock_out(&[NodeId::random()].into());
    assert_eq!(client.number(within(LONG), 3).await.unwrap(), 3);
    let call = tokio::spawn(async move { client.never(within(LONG)).await });
    service.is_asked().await;
    a.lock_out(&[b.node()].into());
    assert!(timeout(LONG, call).await.unwrap().unwrap().is_err());
    let refused = connect(&address, Kind::Data, &b, LONG).await;
    assert!(matches!(
        refused,
        Err(ConnectError::Refused {
            reason: Refusal::Deleted,
            ..
        })
    ));
    // Nor does the one who knows call it.
    let theirs = echo_server(b.clone(), service.clone()).await;
    let refused = connect(&theirs.local_address().to_string(), Kind::Data, &a, LONG).await;
    assert!(matches!(refused, Err(ConnectError::Deleted(_))));
    a.lock_out(&std::collections::BTreeSet::new());
    let there = peer(&theirs, a.clone());
    let client = EchoClient::from(there.channel().await.unwrap());
    assert_eq!(client.number(within(LONG), 5).await.unwrap(), 5);
    a.lock_out(&[b.node()].into());
    assert!(client.number(within(LONG), 5).await.is_err());
    server.stop().await;
    theirs.stop().await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_however_many_there_are() {
    let (a, b) = identities();
    let server = Server::bind("127.0.0.1:0", a).await.unwrap();
    // A long deadline: nobody is saved by its end.
    let server = server
        .on(Kind::Data, |connection| {
            serve(connection, EchoServer::default().serve(), 16)
        })
        .hello_deadline(LONG * 10)
        .start()
        .unwrap();
    let mut silent = Vec::new();
    for _ in 0..700 {
        silent.push(TcpStream::connect(server.local_address()).await.unwrap());
    }
    let peer = peer(&server, b);
    let client = EchoClient::from(peer.channel().await.unwrap());
    assert_eq!(client.number(within(LONG), 3).await.unwrap(), 3);
    // The first ones were given up.
    let mut byte = [0];
    let ended = timeout(LONG, silent[0].read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    server.stop().await;
}

#[tokio::test]
async fn a_node_without_a_certificate_may_say_one_small_message() {
    let (a, _) = identities();
    let authority = pin(a.credentials().unwrap().proof().authority());
    let server = Server::bind("127.0.0.1:0", a.clone()).await.unwrap();
    let server = server
        .on(Kind::Enrol, |connection: Connection| async move {
            let answer = |asked: Vec<u8>| async move { [asked, b"!".to_vec()].concat() };
            let _ = connection.answer(LONG, answer).await;
        })
        .start()
        .unwrap();
    let address = server.local_address().to_string();
    let joining = Identity::new(NodeId::random(), None);
    let open = || connect_pinned(&address, authority, &joining, LONG);
    let answer = open().await.unwrap().ask(b"hello", LONG).await.unwrap();
    assert_eq!(answer, b"hello!");
    assert!(open().await.unwrap().ask(&[0; 9000], LONG).await.is_err());
    let mut liar = open().await.unwrap();
    liar.socket.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    liar.socket.flush().await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(LONG, liar.socket.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    server.stop().await;
}

/// The server must close such a connection, and go on serving others.
#[tokio::test]
async fn garbage_oversize_lengths_half_frames_and_silence_close_only_their_connection() {
    let (a, b) = identities();
    let server = echo_server(a, EchoServer::default()).await;
    let credentials = b.credentials().unwrap();
    let hello = hello(&b, Kind::Data).encode().to_vec();
    let oversize = |head: u32, payload: u32| {
        let mut bytes = hello.clone();
        bytes.extend_from_slice(&head.to_le_bytes());
        bytes.extend_from_slice(&payload.to_le_bytes());
        bytes.extend_from_slice(&[0; 64]);
        bytes
    };
    let http = b"GET / HTTP/1.1\r\nHost: a-long-enough-name.example\r\n\r\n\r\n\r\n".to_vec();
    let long_record = [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat();
    for (number, bytes) in [http.clone(), Vec::new(), vec![0x16, 3, 1], hello.clone(), long_record]
        .into_iter()
        .enumerate()
    {
        let mut socket = TcpStream::connect(server.local_address()).await.unwrap();
        // It may be closed before all was said.
        let _ = socket.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = timeout(LONG, socket.read_to_end(&mut answer))
            .await
            .unwrap_or_else(|_| panic!("case {number} was left open"));
    }
    let hostile = [
        (http, false),
        (Vec::new(), false),
        (hello[..20].to_vec(), false),
        (oversize(u32::MAX, 0), false),
        (oversize(4, u32::MAX), false),
        (oversize(4, 0), false),
        (oversize(4000, 4000), true),
        ([hello.clone(), vec![1, 2, 3]].concat(), true),
    ];
    for (number, (bytes, half)) in hostile.into_iter().enumerate() {
        let mut socket = handshake(&server, Some(&credentials), &credentials).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        socket.flush().await.unwrap();
        if half {
            socket.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        // An error (reset) is as good as the end.
        let _ = timeout(LONG, socket.read_to_end(&mut answer))
            .await
            .unwrap_or_else(|_| panic!("case {number} within TLS was left open"));
    }
    let peer = peer(&server, b);
    let client = EchoClient::from(peer.channel().await.unwrap());
    assert_eq!(client.number(within(LONG), 3).await.unwrap(), 3);
    server.stop().await;
}

#[tokio::test]
async fn keys_change_within_a_connection() {
    let (a, b) = identities();
    let server = echo_server(a, EchoServer::default()).await;
    let credentials = b.credentials().unwrap();
    let mut socket = handshake(&server, Some(&credentials), &credentials).await.unwrap();
    greet(&mut socket, hello(&b, Kind::Data)).await.unwrap();
    for id in 0..5 {
        socket.change_keys();
        let message = EchoRequest::Number { n: id };
        let context = within(LONG);
        let request = ClientMessage::Request(Request { context, id, message });
        socket.write_all(&frame::bytes_of(request).unwrap()).await.unwrap();
        socket.flush().await.unwrap();
        let mut prefix = [0; 12];
        timeout(LONG, socket.read_exact(&mut prefix)).await.unwrap().unwrap();
        let mut head = vec![0; u32::from_le_bytes(prefix[..4].try_into().unwrap()) as usize];
        socket.read_exact(&mut head).await.unwrap();
        let frame = [&prefix[..], &head].concat();
        let answer: Response<EchoResponse> = frame::decode(&frame, Bytes::new()).unwrap();
        assert!(matches!(answer.message, Ok(EchoResponse::Number(n)) if n == id));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte_in_order() {
    let (a, b) = identities();
    let server = echo_server(a, EchoServer::default()).await;
    let peer = peer(&server, b);
    let client = EchoClient::from(peer.channel().await.unwrap());
    // More than the sockets take: what was accepted for writing waits for them.
    let calls = (0..8_u8).map(|n| {
        let client = client.clone();
        async move {
            let data: Vec<u8> = (0..6_000_000_u32).map(|i| (i % 251) as u8 ^ n).collect();
            let (answer, _) = client
                .echo(within(LONG), vec![data.clone().into()], Sums::default())
                .await
                .unwrap();
            assert!(*answer == *data);
        }
    });
    futures::future::join_all(calls).await;
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

/// What tarpc's client code makes of it is a panic, in whatever thread polls it.
#[tokio::test]
async fn an_answer_of_another_call_breaks_its_connection_alone() {
    /// Answers every call as if it had been another one.
    #[derive(Clone)]
    struct Liar;

    impl tarpc::server::Serve for Liar {
        type Req = EchoRequest;
        type Resp = EchoResponse;

        async fn serve(self, _: context::Context, _: EchoRequest) -> Result<EchoResponse, tarpc::ServerError> {
            Ok(EchoResponse::Echo((Payload::default(), Sums::default())))
        }
    }

    let (a, b) = identities();
    let builder = Server::bind("127.0.0.1:0", a).await.unwrap();
    let server = builder
        .on(Kind::Data, |connection| serve(connection, Liar, 16))
        .start()
        .unwrap();
    let peer = peer(&server, b);
    let client = EchoClient::from(peer.channel().await.unwrap());
    let answer = timeout(LONG, client.number(within(LONG), 3)).await.unwrap();
    assert!(answer.is_err(), "{answer:?}");
    // A call that it does fit is answered, on a new connection.
    peer.disconnect();
    let client = EchoClient::from(timeout(LONG, peer.channel()).await.unwrap().unwrap());
    let (echoed, _) = client.echo(within(LONG), Vec::new(), Sums::default()).await.unwrap();
    assert!(echoed.is_empty());
    server.stop().await;
}

/// It is held up by its own socket: the server takes no more of its requests than it has begun, and serves others.
#[tokio::test]
async fn a_peer_that_asks_and_never_reads_fills_its_own_connection_alone() {
    let (a, b) = identities();
    let server = echo_server(a, EchoServer::default()).await;
    let credentials = b.credentials().unwrap();
    let mut socket = handshake(&server, Some(&credentials), &credentials).await.unwrap();
    greet(&mut socket, hello(&b, Kind::Data)).await.unwrap();
    let data = vec![7; 4 << 20];
    let (mut sent, mut full) = (0_usize, false);
    // Far more than the sockets' buffers and the answers under way take.
    while sent < 200 && !full {
        let message = EchoRequest::Echo {
            data: vec![data.clone().into()],
            sums: Sums::default(),
        };
        let request = ClientMessage::Request(Request {
            context: within(LONG),
            id: sent as u64,
            message,
        });
        let bytes = frame::bytes_of(request).unwrap();
        full = timeout(Duration::from_secs(5), socket.write_all(&bytes)).await.is_err();
        sent += 1;
    }
    assert!(full, "{sent} requests of 4 MiB were taken, and no answer read");
    let peer = peer(&server, b);
    let client = EchoClient::from(peer.channel().await.unwrap());
    assert_eq!(timeout(LONG, client.number(within(LONG), 3)).await.unwrap().unwrap(), 3);
    server.stop().await;
}
