//! Descriptor stores in threads of this process: what they hold, for whom, and how long.

use super::{FdStore, FdStoreConfig, run};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(30);

fn started(socket: &Path, wait: Duration) -> JoinHandle<()> {
    let path = socket.to_owned();
    let thread = std::thread::spawn(move || run(&path, wait).unwrap());
    let deadline = Instant::now() + LONG;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "the descriptor store listens");
        std::thread::sleep(Duration::from_millis(5));
    }
    thread
}

fn store(socket: &Path) -> Arc<FdStore> {
    FdStore::new(FdStoreConfig {
        socket: socket.to_owned(),
        // It is there already.
        program: PathBuf::from("/bin/true"),
        wait: LONG,
    })
}

/// A pipe's end to give away, and the one that tells whether anybody holds it.
fn pipe() -> (OwnedFd, File) {
    let (read, write) = std::io::pipe().unwrap();
    (write.into(), File::from(OwnedFd::from(read)))
}

#[test]
fn what_one_daemon_gave_the_next_one_gets() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("fdstore.sock");
    let thread = started(&socket, LONG);
    let (end, mut other) = pipe();
    let first = store(&socket);
    assert!(first.take().unwrap().is_empty());
    first
        .keep("a", vec![end.try_clone().unwrap(), end.try_clone().unwrap()])
        .unwrap();
    first.keep("b", vec![end]).unwrap();
    first.let_go("b");
    drop(first);
    let second = store(&socket);
    let mut held = second.take().unwrap();
    assert_eq!(held.len(), 1);
    let mut held = held.remove(0);
    assert_eq!((held.name.as_str(), held.descriptors.len()), ("a", 2));
    File::from(held.descriptors.remove(0)).write_all(b"x").unwrap();
    let mut byte = [0];
    other.read_exact(&mut byte).unwrap();
    drop(held);
    second.let_go("a");
    drop(second);
    thread.join().unwrap();
    assert_eq!(other.read(&mut byte).unwrap(), 0, "nobody holds it");
    assert!(!socket.exists());
}

#[test]
fn without_a_next_daemon_it_lets_go() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("fdstore.sock");
    let thread = started(&socket, Duration::from_secs(1));
    let (end, mut other) = pipe();
    let first = store(&socket);
    first.take().unwrap();
    first.keep("a", vec![end]).unwrap();
    drop(first);
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    thread.join().unwrap();
}

#[test]
fn one_that_ends_leaves_the_socket_of_the_one_that_took_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("fdstore.sock");
    let first = started(&socket, Duration::from_secs(1));
    let path = socket.clone();
    let second = std::thread::spawn(move || run(&path, LONG).unwrap());
    first.join().unwrap();
    let daemon = store(&socket);
    assert!(daemon.take().unwrap().is_empty());
    assert!(socket.exists());
    drop(daemon);
    second.join().unwrap();
    assert!(!socket.exists());
}

#[test]
fn garbage_costs_the_connection_and_nothing_that_is_held() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("fdstore.sock");
    let thread = started(&socket, LONG);
    let first = store(&socket);
    first.take().unwrap();
    first.keep("a", vec![pipe().0]).unwrap();
    for garbage in [&b"{"[..], b"{\"v\":9,\"op\":\"take\"}", &[0xff; 5000]] {
        let stranger = super::wire::connect(&socket).unwrap();
        rustix::net::send(&stranger, garbage, rustix::net::SendFlags::empty()).unwrap();
        // It hangs up.
        assert_eq!(
            rustix::net::recv(&stranger, &mut [0_u8; 16][..], rustix::net::RecvFlags::empty()).map(|r| r.1),
            Ok(0)
        );
    }
    let second = store(&socket);
    assert_eq!(second.take().unwrap().len(), 1);
    second.let_go("a");
    drop((first, second));
    thread.join().unwrap();
}
