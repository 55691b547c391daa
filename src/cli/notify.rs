//! Tells the service manager how far the daemon is (sd_notify(3)): a datagram to the socket in `NOTIFY_SOCKET`, nothing without one.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends one line, as `READY=1`. A manager that does not listen is none of the daemon's concern.
pub(super) fn send(line: &str) {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let place = place.as_encoded_bytes();
    let address = match place.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(std::path::Path::new(&*String::from_utf8_lossy(place))),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(line.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::debug!(%error, line, "the service manager does not listen");
    }
}
