//! `storageos node run`: the daemon's process: logs, signals, exit code.

use super::args::{HoldOptions, RunOptions};
use super::config_file::Origin;
use super::mount::parse_time;
use super::volume::labels;
use super::{notify, token};
use crate::api::{ApiError, Code, DEFAULT_SOCKET, SOCKET_IN_DATA_DIR, group_id};
use crate::cluster::Timing;
use crate::docker::DoorError;
use crate::fdstore::{self, FdStoreConfig};
use crate::node::{self, ApiSocket, ControlConfig, Daemon, NodeConfig, RecentLog, Start, StartError};
use crate::replication::Options;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Shortest time after which something may be taken for dead.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long the service manager is made to wait for a node whose cluster does not answer: the rest of the machine's start may wait with it.
const SETTLE: Duration = Duration::from_secs(60);
/// How long threads that are left over get when the daemon has stopped.
const LEFT: Duration = Duration::from_secs(2);

/// Runs the daemon until SIGTERM or SIGINT, or SIGHUP, which leaves its mounts to the next daemon.
/// `origin`: what of its options a file says.
pub(super) fn run(options: RunOptions, debug: bool, origin: &Origin) -> Result<ExitCode, ApiError> {
    let log = Arc::new(RecentLog::default());
    let level = if debug { "debug" } else { "info" };
    let json = options.log_format == "json";
    logs(options.log_filter.as_deref(), level, json, Some(log.clone()));
    let check = options.check;
    let config = config(options, log, origin.words())?;
    if check {
        Daemon::check(&config).map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    keep_large_buffers_apart();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| ApiError::internal(format!("cannot start the async runtime: {e}")))?;
    runtime.block_on(serve(config))?;
    // What a mount waits for may never come.
    runtime.shutdown_timeout(LEFT);
    Ok(ExitCode::SUCCESS)
}

/// `fuser` allocates 16 MiB for each event loop and uses the first of them. As a mapping of its own such a buffer costs what is used; glibc, once one was freed,
/// takes the next from memory that was used before, and clears all of it. The second setting is what glibc has by itself after the first such buffer.
fn keep_large_buffers_apart() {
    #[cfg(target_env = "gnu")]
    for (what, bytes) in [(libc::M_MMAP_THRESHOLD, 8 << 20), (libc::M_TRIM_THRESHOLD, 32 << 20)] {
        // SAFETY: it changes settings of the allocator, before there is a second thread.
        if unsafe { libc::mallopt(what, bytes) } != 1 {
            tracing::debug!(what, "the allocator does not take a setting");
        }
    }
}

/// Holds mounts for a daemon (see [`crate::fdstore`]).
pub(super) fn hold(options: &HoldOptions) -> Result<ExitCode, ApiError> {
    let wait = Duration::from_secs(options.wait);
    fdstore::run(&options.socket, wait).map_err(|error| ApiError::new(Code::Failed, error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: NodeConfig) -> Result<(), ApiError> {
    let no_signals = |e| ApiError::internal(format!("cannot wait for signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut hand_over = signal(SignalKind::hangup()).map_err(no_signals)?;
    let daemon = Daemon::start(config).await.map_err(failed)?;
    let told = async {
        // Who waits for the daemon's start wants to mount then.
        if tokio::time::timeout(SETTLE, daemon.settled()).await.is_err() {
            notify::send("STATUS=waiting for the other nodes");
        }
        notify::send("READY=1");
        std::future::pending().await
    };
    let stays = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = hand_over.recv() => true,
        () = told => false,
    };
    notify::send("STOPPING=1");
    let hurry = CancellationToken::new();
    let hurried = hurry.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        hurried.cancel();
    });
    if stays {
        daemon.hand_over(hurry).await;
    } else {
        daemon.stop(hurry).await;
    }
    Ok(())
}

/// What a failed start is to whoever started the daemon.
fn failed(error: StartError) -> ApiError {
    let code = match &error {
        StartError::Name(_)
        | StartError::Label(_)
        | StartError::Wildcard(_)
        | StartError::Docker(DoorError::Name(_)) => Code::Invalid,
        StartError::DataDir(_)
        | StartError::Volumes { .. }
        | StartError::Plane(_)
        | StartError::Trust(_)
        | StartError::Credentials(_)
        | StartError::OtherCertificate(_)
        | StartError::NoCertificate(_)
        | StartError::Docker(DoorError::Ledger(_)) => Code::Failed,
        StartError::Listen { .. }
        | StartError::Api { .. }
        | StartError::Metrics { .. }
        | StartError::Socket(_)
        | StartError::Docker(DoorError::Socket(_)) => Code::Conflict,
        StartError::Cluster(error) => error.code,
    };
    ApiError::new(code, error.to_string())
}

fn config(options: RunOptions, log: Arc<RecentLog>, from_file: Vec<String>) -> Result<NodeConfig, ApiError> {
    let own = options.data_dir.join(SOCKET_IN_DATA_DIR);
    let mut sockets = vec![ApiSocket {
        path: own.clone(),
        optional: false,
    }];
    match options.socket {
        None => sockets.push(ApiSocket {
            path: DEFAULT_SOCKET.into(),
            optional: true,
        }),
        Some(path) if path.as_os_str() == "none" || same(&path, &own) => {}
        Some(path) => sockets.push(ApiSocket { path, optional: false }),
    }
    let start = if options.init {
        Start::Init
    } else {
        match options.join {
            Some(addresses) if addresses.is_empty() && !matches!(options.control, ControlConfig::Etcd(_)) => {
                return Err(ApiError::new(Code::Usage, "--join needs the address of a member")
                    .hint("as --join 10.0.0.1:5703; only with --control etcd://… none is needed"));
            }
            Some(addresses) => Start::Join(addresses),
            None => Start::Wait,
        }
    };
    let group = options
        .socket_group
        .as_deref()
        .map(|name| group_id(name).map_err(|error| ApiError::invalid(format!("--socket-group {name}: {error}"))));
    let mut control = options.control;
    if let ControlConfig::Embedded(raft) = &mut control {
        raft.voter_grace = options.voter_grace;
    }
    let timing = Timing {
        grace: options.replace_after,
        ..Timing::default()
    };
    let wait = options.keep_mounts;
    let command_line = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let outlive = (!wait.is_zero()).then(|| FdStoreConfig {
        socket: options.data_dir.join("fdstore.sock"),
        // The program that runs, also when its file was replaced.
        program: "/proc/self/exe".into(),
        wait,
    });
    Ok(NodeConfig {
        outlive,
        data_dir: options.data_dir,
        listen: options.listen,
        advertise: options.advertise,
        name: options.name,
        labels: labels(&options.label)?,
        sockets,
        docker: options.docker,
        socket_group: group.transpose()?,
        control,
        start,
        token: token::source(options.token)?,
        certificate_validity: options.certificate_validity,
        lease: options.lease,
        replication: Options {
            replica_deadline: options.replica_deadline,
            ..Options::default()
        },
        timing,
        api: options.api,
        metrics: options.metrics,
        log: Some(log),
        command_line: node::without_secrets(command_line.chain(from_file)),
        scrub: (options.scrub_days.0 > 0.0).then(|| Duration::from_secs_f64(options.scrub_days.0 * 86400.0)),
    })
}

/// A time after which something counts as dead, which must not be too short.
pub(super) fn patient(text: &str) -> Result<Duration, ApiError> {
    let time = parse_time(text)?;
    if time < SHORTEST {
        let why = "too short, at least 1s: a node that is only busy would be taken for dead";
        return Err(ApiError::new(Code::Usage, why));
    }
    Ok(time)
}

/// The value of `--keep-mounts`.
pub(super) fn keep(text: &str) -> Result<Duration, ApiError> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        time => parse_time(time),
    }
}

/// The value of `--log-filter`.
pub(super) fn filter(text: &str) -> Result<String, String> {
    let read = tracing_subscriber::EnvFilter::try_new(text);
    read.map(|_| text.to_owned())
        .map_err(|error| format!("{error}; expected as debug, or storageos::replication=debug,info"))
}

/// Whether two paths name the same file, as far as can be told before it is there.
fn same(a: &std::path::Path, b: &std::path::Path) -> bool {
    let absolute = |path: &std::path::Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute(a) == absolute(b)
}

/// Sends logs to stderr for a command that is not the daemon.
pub(super) fn logs_for_people(level: &str) {
    logs(None, level, false, None);
}

/// Sends logs to stderr, and to `recent` if there is one; `filter` has the word over `RUST_LOG`, and this over `level`.
fn logs(filter: Option<&str>, level: &str, json: bool, recent: Option<Arc<RecentLog>>) {
    use tracing_subscriber::EnvFilter;
    // What the libraries say of themselves is not what happens to the cluster.
    let quiet = "openraft=error,fuser=warn,tarpc=warn";
    let chosen = match filter {
        Some(filter) => filter.to_owned(),
        None => std::env::var("RUST_LOG").unwrap_or_else(|_| level.to_owned()),
    };
    let filter = EnvFilter::try_new(format!("{quiet},{chosen}")).unwrap_or_else(|error| {
        eprintln!("storageos: note: RUST_LOG is not understood ({error}); using {level}");
        EnvFilter::new(format!("{quiet},{level}"))
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Tee(std::io::stderr(), recent.clone()))
        .with_ansi(super::on_terminal());
    // A second subscriber in one process (tests) is refused; the first one stays.
    let _ = if json {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
}

/// The log's way to stderr and to the latest lines in memory.
struct Tee(std::io::Stderr, Option<Arc<RecentLog>>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(recent) = &self.1 {
            recent.as_ref().write_all(bytes)?;
        }
        // Whole: what is left of a line would be kept again.
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
