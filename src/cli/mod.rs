//! The command line: parses words, speaks to the daemon through [`crate::api`], prints answers.
//!
//! `storageos NOUN VERB`, in the words that StorageOS's users know. Exit codes are those of [`crate::api::Code`]; every
//! error says `storageos: error: …` and, where there is something to do, what.

mod args;
mod client;
mod cluster;
mod config_file;
#[cfg(test)]
mod config_file_tests;
mod connectivity;
mod debug;
mod diagnostics;
mod drain;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod mount;
mod namespace;
mod node;
mod notify;
mod output;
pub mod reference;
mod run;
mod scrub;
#[cfg(test)]
mod tests;
mod token;
mod volume;
mod watch;

use crate::api::{ApiError, Client, Code, DEFAULT_SOCKET};
use args::{Cli, Noun};
use clap::Parser;
use config_file::Origin;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

/// Parses the command line, does what it says, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let (words, origin) = match config_file::complete(words) {
        Ok(completed) => completed,
        Err(error) => {
            report(&error.into());
            return ExitCode::from(Code::Usage.exit_code());
        }
    };
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let Some(error) = origin.explain(&error) else {
                return usage(&error);
            };
            report(&error.into());
            return ExitCode::from(Code::Usage.exit_code());
        }
    };
    match dispatch(cli, &origin) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// Clap's own answers: help and version are no errors.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done if the terminal is gone.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(Code::Usage.exit_code())
    } else {
        ExitCode::SUCCESS
    }
}

/// Prints an error for people.
fn report(error: &ApiError) {
    let mut text = format!("storageos: error: {}\n", error.message);
    if let Some(hint) = &error.hint {
        for line in hint.lines() {
            text.push_str(&format!("  {line}\n"));
        }
    }
    // Nothing can be done if stderr is gone.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn dispatch(cli: Cli, origin: &Origin) -> Result<ExitCode, ApiError> {
    let noun = match cli.noun {
        Noun::Node(args::NodeCommand {
            verb: args::NodeVerb::Run(options),
        }) => return run::run(*options, cli.debug, origin),
        Noun::Node(args::NodeCommand {
            verb: args::NodeVerb::Fdstore(options),
        }) => return run::hold(&options),
        noun => noun,
    };
    if cli.debug {
        run::logs_for_people("debug");
    }
    if let Noun::Debug(command) = noun {
        return debug::run(&command);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ApiError::internal(format!("cannot start the async runtime: {e}")))?;
    let host = cli.host.unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
    let credentials = match cli.client_cert {
        // An empty variable of the environment is none.
        Some(file) if Client::is_remote(&host) && !file.as_os_str().is_empty() => Some(client::credentials(&file)?),
        _ => None,
    };
    let client = Client::new(&host, credentials.as_ref())?;
    tracing::debug!(%host, "asking the daemon");
    runtime.block_on(async {
        match noun {
            Noun::Cluster(command) => cluster::run(&client, command.verb).await,
            Noun::Node(command) => node::run(&client, command.verb).await,
            Noun::Namespace(command) => namespace::run(&client, command.verb).await,
            Noun::Volume(command) => volume::run(&client, command.verb).await,
            Noun::Events(command) => events::run(&client, command).await,
            Noun::Debug(command) => debug::run(&command),
        }
    })
}

/// Prints to stdout; a reader that went away (`| head`) ends the command without noise.
fn print(text: &str) -> Result<(), ApiError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(ApiError::internal(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A text of at most so many bytes; what is longer is cut off.
fn text_of(from: impl Read, longest: u64) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(longest).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a person reads stderr.
fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Goes through names one by one; those that fail are reported and the rest is still done. The first failure's code
/// is the command's.
async fn for_each<F>(names: &[String], mut action: F) -> Result<ExitCode, ApiError>
where
    F: AsyncFnMut(&str) -> Result<(), ApiError>,
{
    let mut first = None;
    for name in names {
        if let Err(error) = action(name).await {
            report(&error);
            first.get_or_insert(error.code);
        }
    }
    Ok(ExitCode::from(first.map_or(0, Code::exit_code)))
}
