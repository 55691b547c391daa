//! `storageos node run`: the daemon's process: logs, signals, exit code.

use super::args::RunOptions;
use crate::api::ApiError;
use std::process::ExitCode;

pub(super) fn run(options: RunOptions, debug: bool) -> Result<ExitCode, ApiError> {
    logs(if debug { "debug" } else { "info" }, options.log_format == "json");
    Err(ApiError::internal("unwired"))
}

/// Sends logs to stderr for a command that is not the daemon.
pub(super) fn logs_for_people(level: &str) {
    logs(level, false);
}

/// Sends logs to stderr; `RUST_LOG` has the word over `level`.
fn logs(level: &str, json: bool) {
    use tracing_subscriber::EnvFilter;
    // The Raft library's own lines are about its messages, not about what happens to the cluster.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},openraft=warn,fuser=warn,tarpc=warn")));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(super::on_terminal());
    // A second subscriber in one process (tests) is refused; the first one stays.
    let _ = if json {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
}
