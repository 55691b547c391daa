//! A volume's device on a node without its master: forwards to the master's node, and follows when the master changes.
//!
//! Every call is idempotent and is repeated until it succeeds or the volume's `io.timeout` has passed. Before a call is
//! repeated the master it goes to has ended the calls of the session before, so that an old write never lands after a new one.
//!
//! A call that waits asks every second whether its node still answers and whether the record still names it: a master that is cut off from
//! its copies and from the control plane, but not from here, would keep the call until it is too late.

use super::{
    env::ConfigError,
    master::{Environment, batches},
    service::{Caller, MAX_DATA, RemoteError},
    wire::{self, Client, Open},
};
use crate::{
    block::{BLOCK_SIZE, BlockDevice, DeviceError, Write},
    exec::{
        sync::Mutex,
        time::{self, Instant},
    },
    rpc::{Identity, Kind, Limits, within},
    volume::{NodeId, VolumeId},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tarpc::client::RpcError;
use tokio_util::sync::CancellationToken;

/// Pause between attempts to find the master.
const RETRY: Duration = Duration::from_millis(100);
/// How often a call that waits makes sure that the node still answers.
const PING: Duration = Duration::from_secs(1);
/// A node that does not answer a ping by then is given up.
const PING_DEADLINE: Duration = Duration::from_secs(3);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Time for the record; it is asked for again.
const READ_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Link {
    master: NodeId,
    client: Client,
    caller: Caller,
    /// Calls that were answered.
    answered: Arc<AtomicU64>,
    /// When the record was last asked for, so that not every call that waits asks.
    asked: Arc<Mutex<Instant>>,
    stop: CancellationToken,
}

/// See the module's text.
pub struct RemoteDevice {
    volume: VolumeId,
    identity: Identity,
    environment: Environment,
    attachment: u64,
    io_timeout: Duration,
    session: AtomicU64,
    blocks: AtomicU64,
    link: Mutex<Option<Link>>,
    connecting: tokio::sync::Mutex<()>,
}

impl Drop for RemoteDevice {
    fn drop(&mut self) {
        if let Some(link) = self.link.lock().take() {
            link.stop.cancel();
        }
    }
}

impl RemoteDevice {
    /// Connects to the volume's master, waiting for one up to the volume's `io.timeout`. `attachment` is that of the mount
    /// claim (see [`super::VolumeState::attachment`]).
    ///
    /// # Errors
    /// No master answered in time, the volume is gone, or a later mount took over.
    pub async fn open(
        volume: VolumeId,
        identity: Identity,
        environment: Environment,
        attachment: u64,
    ) -> Result<Self, DeviceError> {
        let state = environment
            .config
            .read(volume)
            .await
            .map_err(|error| DeviceError::Unavailable(error.to_string()))?;
        let device = Self {
            volume,
            identity,
            environment,
            attachment,
            io_timeout: state.io_timeout,
            // Beyond those of an earlier device of the same mount, should its daemon have restarted.
            session: AtomicU64::new(u64::try_from(time::wall().as_microsecond()).unwrap_or(1)),
            blocks: AtomicU64::new(state.blocks),
            link: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
        };
        device.retry(async |_, _| Ok(Ok(()))).await?;
        Ok(device)
    }

    /// Asks the master how large the volume is by now. Blocks.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn look_at_size(&self) -> Result<(), DeviceError> {
        let blocks = self
            .run(async |link: &Link, left| link.client.device_blocks(within(left), self.volume, link.caller).await)?;
        self.blocks.fetch_max(blocks, Ordering::SeqCst);
        Ok(())
    }

    /// The connection to the active master, opened anew if it was lost.
    async fn connected(&self) -> Result<Link, RemoteFailure> {
        let _connecting = self.connecting.lock().await;
        if let Some(link) = self.link.lock().clone()
            && !link.stop.is_cancelled()
        {
            return Ok(link);
        }
        let later = |why: String| RemoteFailure::Later(why);
        let state = match self.environment.config.read(self.volume).await {
            Ok(state) => state,
            Err(ConfigError::Gone) => {
                return Err(RemoteFailure::Final(DeviceError::Unavailable(
                    "the volume has been removed".to_owned(),
                )));
            }
            Err(error) => return Err(later(error.to_string())),
        };
        let Some(master) = state.configuration.master else {
            return Err(later("it has no master".to_owned()));
        };
        let peers = &*self.environment.peers;
        let limits = Limits::default();
        let opened = wire::open(peers, master, Kind::Data, &self.identity, limits, CONNECT_DEADLINE).await;
        let Open { client, stop, .. } = opened.map_err(|error| later(error.to_string()))?;
        let link = Link {
            master,
            client,
            caller: Caller {
                attachment: self.attachment,
                session: self.session.fetch_add(1, Ordering::SeqCst) + 1,
            },
            answered: Arc::default(),
            asked: Arc::new(Mutex::new(Instant::now())),
            stop,
        };
        let open = link
            .client
            .device_open(within(self.io_timeout), self.volume, link.caller);
        let failure = match self.watched(&link, open).await {
            Ok(Ok(blocks)) => {
                self.blocks.fetch_max(blocks, Ordering::SeqCst);
                *self.link.lock() = Some(link.clone());
                return Ok(link);
            }
            Ok(Err(RemoteError::NotMaster)) => later(format!("node {master} does not serve it yet")),
            Ok(Err(RemoteError::Unavailable(why))) | Err(why) => later(why),
            Ok(Err(error)) => RemoteFailure::Final(error.into()),
        };
        link.stop.cancel();
        Err(failure)
    }

    /// Waits for a call for as long as its node answers, this call's pings or other calls, and is the master by the record: a call may
    /// take long, a dead node may not. Otherwise the link is given up.
    async fn watched<T>(&self, link: &Link, call: impl Future<Output = Result<T, RpcError>>) -> Result<T, String> {
        let call = async {
            let result = call.await;
            link.answered.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
            result.map_err(|error| error.to_string())
        };
        let mut call = std::pin::pin!(call);
        tokio::select! {
            biased;
            result = &mut call => return result,
            () = time::sleep(PING) => {}
        }
        let why = tokio::select! {
            biased;
            result = call => return result,
            why = Self::silent(link) => why,
            why = self.replaced(link) => why,
        };
        link.stop.cancel();
        Err(why)
    }

    /// Returns when a link's node does not answer any more.
    async fn silent(link: &Link) -> String {
        loop {
            let before = link.answered.load(Ordering::Relaxed);
            // Limited here too: a call can wait before it is sent, and the deadline in it counts only then.
            let ping = time::timeout(PING_DEADLINE, link.client.ping(within(PING_DEADLINE)));
            match ping.await.unwrap_or(Err(RpcError::DeadlineExceeded)) {
                Ok(()) => {}
                // The ping may wait behind much data on a slow link.
                Err(RpcError::DeadlineExceeded) if link.answered.load(Ordering::Relaxed) != before => {}
                Err(error) => return error.to_string(),
            }
            time::sleep(PING).await;
        }
    }

    /// Returns when the record names another master than a link's.
    async fn replaced(&self, link: &Link) -> String {
        loop {
            if let Some(why) = self.successor(link).await {
                return why;
            }
            time::sleep(PING).await;
        }
    }

    /// Who is the master by the record, if somebody asked now and it is another one than a link's.
    async fn successor(&self, link: &Link) -> Option<String> {
        {
            let mut asked = link.asked.lock();
            if asked.elapsed() < PING {
                return None;
            }
            *asked = Instant::now();
        }
        let read = time::timeout(READ_DEADLINE, self.environment.config.read(self.volume));
        // Without a control plane there is no new master either.
        let master = read.await.ok()?.ok()?.configuration.master?;
        (master != link.master).then(|| format!("node {master} is the master now"))
    }

    /// Repeats a call until it succeeds, fails for good, or `io.timeout` has passed.
    async fn retry<T>(
        &self,
        call: impl AsyncFn(&Link, Duration) -> Result<Result<T, RemoteError>, RpcError>,
    ) -> Result<T, DeviceError> {
        let started = Instant::now();
        // Why the master could not, says more than that the time is over.
        let mut reason: Option<String> = None;
        loop {
            let left = self.io_timeout.saturating_sub(started.elapsed());
            let why = match self.connected().await {
                Ok(link) => match self.watched(&link, call(&link, left)).await {
                    Ok(Ok(value)) => return Ok(value),
                    Ok(Err(RemoteError::NotMaster)) => {
                        self.drop_link(&link);
                        format!("node {} is not its master any more", link.master)
                    }
                    Ok(Err(RemoteError::Unavailable(why))) => {
                        // Another one may be able to serve it.
                        if self.successor(&link).await.is_some() {
                            self.drop_link(&link);
                        }
                        reason.insert(why).clone()
                    }
                    Ok(Err(error)) => return Err(error.into()),
                    Err(why) => {
                        self.drop_link(&link);
                        let lost = format!("node {}: {why}", link.master);
                        reason.take().unwrap_or(lost)
                    }
                },
                Err(RemoteFailure::Final(error)) => return Err(error),
                Err(RemoteFailure::Later(why)) => why,
            };
            if started.elapsed() >= self.io_timeout {
                return Err(DeviceError::Unavailable(why));
            }
            tracing::debug!(volume = %self.volume, %why, "device call is tried again");
            time::sleep(RETRY).await;
        }
    }

    /// Gives a connection up. Another call may have opened a new one already.
    fn drop_link(&self, link: &Link) {
        link.stop.cancel();
        self.link.lock().take_if(|open| open.stop.is_cancelled());
    }

    fn run<T>(
        &self,
        call: impl AsyncFn(&Link, Duration) -> Result<Result<T, RemoteError>, RpcError>,
    ) -> Result<T, DeviceError> {
        self.environment.runtime.block_on(self.retry(call))
    }

    fn out_of_range(&self, block: u64, count: u64) -> DeviceError {
        DeviceError::OutOfRange {
            block,
            count,
            blocks: self.blocks(),
        }
    }
}

/// What to do about a master that was not reached.
enum RemoteFailure {
    Later(String),
    Final(DeviceError),
}

impl BlockDevice for RemoteDevice {
    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }

    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        if buffer.is_empty() || !buffer.len().is_multiple_of(BLOCK_SIZE) {
            return Err(self.out_of_range(block, 0));
        }
        for (index, part) in buffer.chunks_mut(MAX_DATA).enumerate() {
            let first = block.saturating_add((index * (MAX_DATA / BLOCK_SIZE)) as u64);
            let count = (part.len() / BLOCK_SIZE) as u32;
            let data = self.run(async |link: &Link, left| {
                link.client
                    .device_read(within(left), self.volume, link.caller, first, count)
                    .await
            })?;
            if data.len() != part.len() {
                return Err(DeviceError::Io(
                    "the master sent less or more than was asked for".to_owned(),
                ));
            }
            part.copy_from_slice(&data);
        }
        Ok(())
    }

    fn write(&self, writes: &[Write], flush: bool) -> Result<(), DeviceError> {
        let batches =
            batches(writes).ok_or_else(|| self.out_of_range(writes.first().map_or(0, |write| write.block), 0))?;
        if batches.is_empty() && flush {
            return self.flush();
        }
        let last = batches.len().saturating_sub(1);
        for (index, blocks) in batches.iter().enumerate() {
            self.run(async |link: &Link, left| {
                link.client
                    .device_write(
                        within(left),
                        self.volume,
                        link.caller,
                        blocks.clone(),
                        flush && index == last,
                    )
                    .await
            })?;
        }
        Ok(())
    }

    fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.run(async |link: &Link, left| {
            link.client
                .device_discard(within(left), self.volume, link.caller, block, count)
                .await
        })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.run(async |link: &Link, left| link.client.device_flush(within(left), self.volume, link.caller).await)
    }
}
