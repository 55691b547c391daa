//! One small message each way: all that a peer without a certificate can say.
//!
//! A length (4 bytes, little-endian, at most [`MOST`]) and so many bytes. There is no framing beyond that and nothing to wait in a queue: whoever
//! is asked bounds the time of the whole exchange.

use super::server::Connection;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Longest such message.
const MOST: usize = 8 << 10;

async fn send(connection: &mut Connection, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).ok().filter(|_| message.len() <= MOST);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"))?;
    connection.socket.write_all(&length.to_le_bytes()).await?;
    connection.socket.write_all(message).await?;
    connection.socket.flush().await
}

pub(super) async fn receive(socket: &mut (impl AsyncRead + Unpin + ?Sized)) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    let mut message = vec![0; length];
    socket.read_exact(&mut message).await?;
    Ok(message)
}

impl Connection {
    /// Sends one message and returns the answer.
    ///
    /// # Errors
    /// The connection's; a message that is too long; no answer within `deadline`.
    pub async fn ask(mut self, message: &[u8], deadline: Duration) -> io::Result<Vec<u8>> {
        let asked = async {
            send(&mut self, message).await?;
            receive(&mut *self.socket).await
        };
        timeout(deadline, asked).await?
    }

    /// Receives one message and sends what `answer` makes of it.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn answer<R>(mut self, deadline: Duration, answer: impl FnOnce(Vec<u8>) -> R) -> io::Result<()>
    where
        R: Future<Output = Vec<u8>>,
    {
        let served = async {
            let message = receive(&mut *self.socket).await?;
            let answered = answer(message).await;
            send(&mut self, &answered).await?;
            self.socket.shutdown().await
        };
        timeout(deadline, served).await?
    }
}
