//! The words between a mount helper and the daemon: one JSON object a line over a Unix socket; the descriptor travels beside the
//! `fd` line (`SCM_RIGHTS`).

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Version of these words.
pub const VERSION: u32 = 1;
/// Bytes of the longest line either side takes.
pub const LINE_MAX: usize = 16 * 1024;
/// Where the daemon's API socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/storageos/storageos.sock";

/// The socket for mounts that belongs to an API socket: its name with `.mount` behind.
#[must_use]
pub fn mount_socket(api_socket: &Path) -> PathBuf {
    let mut name = api_socket.as_os_str().to_owned();
    name.push(".mount");
    name.into()
}

/// What a mount asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// `NAMESPACE/NAME` or `NAME`.
    pub volume: String,
    /// Where it will be mounted, as the helper sees it: absolute, without links.
    pub mountpoint: PathBuf,
    /// No changes.
    pub read_only: bool,
}

/// What a helper says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Claim and open a volume.
    Mount(MountRequest),
    /// Serve the descriptor that comes with this line. Only after `ready`.
    Fd,
    /// Wait until the mount has ended and its volume is closed.
    Closed {
        /// As in the mount table.
        volume: String,
        /// As in the mount table.
        mountpoint: PathBuf,
        /// Longest time to wait.
        wait_ms: u64,
    },
}

/// What the daemon says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The volume is claimed and open; now send the descriptor.
    Ready {
        /// The volume's full name, to show as the mount's source.
        volume: String,
    },
    /// The mount is served.
    Mounted,
    /// The volume is closed, or was not mounted there.
    Closed,
    /// The mount is still in use.
    Busy,
    /// It did not work.
    Error {
        /// Why, for a person.
        message: String,
        /// One word for programs, such as `in_use`.
        code: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    v: u32,
    #[serde(flatten)]
    words: T,
}

/// Writes one line.
///
/// # Errors
/// The socket's.
pub fn send<T: Serialize>(stream: &mut UnixStream, words: &T) -> io::Result<()> {
    stream.write_all(&line(words)?)
}

/// One line's bytes.
///
/// # Errors
/// If the words cannot be written as JSON, such as a path that is not Unicode.
pub fn line<T: Serialize>(words: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Line { v: VERSION, words })?;
    line.push(b'\n');
    Ok(line)
}

/// Reads one line, and the descriptor that came with it.
///
/// # Errors
/// `TimedOut` at the deadline; `UnexpectedEof` when the other side is gone; `InvalidData` for anything that is no line of ours.
pub fn receive<T: for<'de> Deserialize<'de>>(
    stream: &UnixStream,
    deadline: Instant,
) -> io::Result<(T, Option<OwnedFd>)> {
    let mut line = Vec::new();
    let mut passed = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut chunk)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // One is asked for; more are closed.
                passed = descriptors.into_iter().next().or(passed);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&chunk[..received.bytes]);
        if line.len() > LINE_MAX {
            return Err(invalid("the line is too long"));
        }
        // The other side says one line and waits, so nothing can follow the end of the line.
        if line.last() == Some(&b'\n') {
            break;
        }
        if line.contains(&b'\n') {
            return Err(invalid("something follows the line"));
        }
    }
    Ok((parse(&line)?, passed))
}

/// What a line says.
///
/// # Errors
/// `InvalidData`: it is none of ours.
pub fn parse<T: for<'de> Deserialize<'de>>(line: &[u8]) -> io::Result<T> {
    let parsed: Line<T> = serde_json::from_slice(line).map_err(|e| invalid(&e.to_string()))?;
    if parsed.v != VERSION {
        return Err(invalid(&format!(
            "version {} of the mount protocol, this is {VERSION}",
            parsed.v
        )));
    }
    Ok(parsed.words)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn the_words_look_like_this() {
        let mount = Request::Mount(MountRequest {
            volume: "default/vol".into(),
            mountpoint: "/mnt".into(),
            read_only: false,
        });
        let closed = Request::Closed {
            volume: "default/vol".into(),
            mountpoint: "/mnt".into(),
            wait_ms: 5,
        };
        let ready = Answer::Ready {
            volume: "default/vol".into(),
        };
        let error = Answer::Error {
            message: "it is mounted on n2".into(),
            code: "in_use".into(),
        };
        let text = |bytes: io::Result<Vec<u8>>| String::from_utf8(bytes.unwrap()).unwrap();
        assert_eq!(
            text(line(&mount)),
            "{\"v\":1,\"op\":\"mount\",\"volume\":\"default/vol\",\"mountpoint\":\"/mnt\",\"read_only\":false}\n"
        );
        assert_eq!(text(line(&Request::Fd)), "{\"v\":1,\"op\":\"fd\"}\n");
        assert_eq!(
            text(line(&closed)),
            "{\"v\":1,\"op\":\"closed\",\"volume\":\"default/vol\",\"mountpoint\":\"/mnt\",\"wait_ms\":5}\n"
        );
        assert_eq!(
            text(line(&ready)),
            "{\"v\":1,\"answer\":\"ready\",\"volume\":\"default/vol\"}\n"
        );
        assert_eq!(
            text(line(&error)),
            "{\"v\":1,\"answer\":\"error\",\"message\":\"it is mounted on n2\",\"code\":\"in_use\"}\n"
        );
    }

    #[test]
    fn a_line_in_pieces_is_one_line() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            for byte in line(&Answer::Mounted).unwrap() {
                a.write_all(&[byte]).unwrap();
            }
            a
        });
        let (answer, fd): (Answer, _) = receive(&b, soon()).unwrap();
        assert_eq!(answer, Answer::Mounted);
        assert!(fd.is_none());
        writer.join().unwrap();
    }

    #[test]
    fn garbage_other_versions_and_endless_lines_are_refused() {
        let endless = vec![b'x'; 2 * LINE_MAX];
        let two = b"{\"v\":1,\"op\":\"fd\"}\n{";
        for garbage in [
            &b"\n"[..],
            b"{}\n",
            b"\xff\xfe\n",
            b"{\"v\":2,\"op\":\"fd\"}\n",
            b"{\"v\":1,\"op\":\"x\"}\n",
            two,
            &endless,
        ] {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(garbage).unwrap();
            let error = receive::<Request>(&b, soon()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{garbage:?}");
        }
    }

    #[test]
    fn silence_ends_at_the_deadline_and_a_closed_socket_at_once() {
        let (a, b) = UnixStream::pair().unwrap();
        let error = receive::<Request>(&b, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(a);
        let error = receive::<Request>(&b, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
