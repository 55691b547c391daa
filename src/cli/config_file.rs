//! The configuration file of `storageos node run --config FILE` (TOML): each of its keys is an option of `node run` by its long name.
//!
//! The clap definition is the only list of options: what the file says and the command line does not becomes words of the command line, so that both are
//! read, checked and documented once. A word given on the command line or in the environment wins, also over a key that contradicts it. Errors name file, line and key.

use super::args::{Cli, RunOptions};
use super::volume::labels;
use crate::api::{ApiError, Code, group_id};
use crate::volume::{Scope, canonical_labels, check_name};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A key whose option a variable of the environment can say, without clap's doing.
const VARIABLES: [(&str, &str); 1] = [("log-filter", "RUST_LOG")];

/// What must be said, there or on the command line. Clap knows it, but tells only the first that is missing.
const NEEDED: [&str; 2] = ["data-dir", "listen"];

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// It is not there, or not text.
    #[error("{file}: {source}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("{file}:{line}: {why}")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
    /// A key is unknown, or has a wrong value.
    #[error("{file}:{line}: {key}: {why}")]
    Key {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// As in the file.
        key: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Keys are missing.
    #[error("{file}: missing: {keys}")]
    Missing {
        /// The file.
        file: PathBuf,
        /// Which, as people write them.
        keys: String,
    },
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::new(Code::Usage, error.to_string()).hint("storageos-config(5) describes the file")
    }
}

/// What options came from which line of a file; empty without one.
#[derive(Debug, Default)]
pub(super) struct Origin {
    file: PathBuf,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    line: usize,
    words: Vec<String>,
}

/// The options of `node run` that are keys, as clap has them.
pub(super) fn keys() -> Vec<Arg> {
    let command = RunOptions::augment_args(clap::Command::new("run"));
    let is_key = |arg: &&Arg| is_key(arg.get_long().unwrap_or_default());
    command.get_arguments().filter(is_key).cloned().collect()
}

/// A token is a secret, and the file may be read by all; the file itself cannot say where it is, nor that it is not to be used.
fn is_key(option: &str) -> bool {
    !matches!(option, "" | "config" | "check" | "token")
}

/// Adds to the words of a command line what the file says that they name with `node run --config`, and they do not.
///
/// # Errors
/// See [`ConfigError`]. Words that clap does not understand are left to who parses them.
pub(super) fn complete(mut words: Vec<OsString>) -> Result<(Vec<OsString>, Origin), ConfigError> {
    let names_one = |word: &OsString| word == "--config" || word.as_encoded_bytes().starts_with(b"--config=");
    if !words.iter().any(names_one) {
        return Ok((words, Origin::default()));
    }
    let Ok(matches) = Cli::command().try_get_matches_from(&words) else {
        return Ok((words, Origin::default()));
    };
    let run = matches
        .subcommand_matches("node")
        .and_then(|node| node.subcommand_matches("run"));
    let Some((run, file)) = run.and_then(|run| Some((run, run.get_one::<PathBuf>("config")?))) else {
        return Ok((words, Origin::default()));
    };
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable {
        file: file.clone(),
        source,
    })?;
    let mut origin = read(file, &text)?;
    let is_said = |key: &&str| is_overruled(key, run) || origin.entries.iter().any(|entry| entry.key == *key);
    let missing: Vec<&str> = NEEDED.into_iter().filter(|key| !is_said(key)).collect();
    if !missing.is_empty() {
        return Err(ConfigError::Missing {
            file: file.clone(),
            keys: missing.join(", "),
        });
    }
    origin.entries.retain(|entry| !is_overruled(&entry.key, run));
    words.extend(origin.words().into_iter().map(OsString::from));
    Ok((words, origin))
}

/// Whether the command line or the environment says this, or what contradicts it.
fn is_overruled(key: &str, run: &ArgMatches) -> bool {
    let given = |id: &str| matches!(run.value_source(id), Some(from) if from != ValueSource::DefaultValue);
    let by_variable = |(of, name): &(&str, &str)| *of == key && std::env::var_os(name).is_some();
    let command = RunOptions::augment_args(clap::Command::new("run"));
    let all: Vec<&Arg> = command.get_arguments().collect();
    let Some(this) = all.iter().find(|arg| arg.get_long() == Some(key)) else {
        return false;
    };
    let contradicts = |other: &&&Arg| {
        let conflicts = |a: &Arg, b: &Arg| {
            command
                .get_arg_conflicts_with(a)
                .iter()
                .any(|c| c.get_id() == b.get_id())
        };
        other.get_id() == this.get_id() || conflicts(other, this) || conflicts(this, other)
    };
    let by_clap = all.iter().filter(contradicts).any(|arg| given(arg.get_id().as_str()));
    by_clap || VARIABLES.iter().any(by_variable)
}

/// Reads a file's text.
fn read(file: &Path, text: &str) -> Result<Origin, ConfigError> {
    let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        file: file.to_owned(),
        line: line_of(error.span().map_or(0, |span| span.start)),
        why: error.message().to_owned(),
    })?;
    let options = keys();
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let line = line_of(key.span().start);
        let key = key.get_ref().as_ref();
        let wrong = |why: String| ConfigError::Key {
            file: file.to_owned(),
            line,
            key: key.to_owned(),
            why,
        };
        let Some(option) = options.iter().find(|arg| arg.get_long() == Some(key)) else {
            return Err(wrong(unknown(key, &options)));
        };
        let texts = texts(option, value).map_err(wrong)?;
        check(key, &texts).map_err(|error| wrong(error.message))?;
        let word = |text: String| {
            if text.is_empty() {
                format!("--{key}")
            } else {
                format!("--{key}={text}")
            }
        };
        entries.push(Entry {
            key: key.to_owned(),
            line,
            words: texts.into_iter().map(word).collect(),
        });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(Origin {
        file: file.to_owned(),
        entries,
    })
}

fn unknown(key: &str, options: &[Arg]) -> String {
    if key == "token" {
        return "a secret does not belong here, the file may be read by all: put it into a file of its own and name that with token-file".to_owned();
    }
    let known: Vec<&str> = options.iter().filter_map(|arg| arg.get_long()).collect();
    let spelt = key.replace('_', "-");
    match known.iter().find(|known| **known == spelt) {
        Some(right) => format!("unknown key; {right} is one"),
        None => format!("unknown key; known are: {}", known.join(", ")),
    }
}

/// The values of an option, one for each time that it is to be given; empty for one without a value.
fn texts(option: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, String> {
    let value = value.get_ref();
    let is_switch = matches!(option.get_action(), ArgAction::SetTrue);
    let takes_none = is_switch || option.get_num_args().is_some_and(|range| range.min_values() == 0);
    let name = option
        .get_value_names()
        .and_then(|names| names.first())
        .map_or("", |name| name.as_str());
    match value {
        DeValue::Boolean(yes) if takes_none => Ok(if *yes { vec![String::new()] } else { Vec::new() }),
        _ if is_switch => Err(format!("{}: expected true or false", value.type_str())),
        DeValue::Array(all) => {
            let all: Result<Vec<String>, String> = all.iter().map(|one| scalar(name, one.get_ref())).collect();
            match (option.get_value_delimiter(), option.get_action()) {
                (_, ArgAction::Append) if option.get_value_delimiter().is_none() => all,
                (Some(_), _) => all.map(|all| if all.is_empty() { all } else { vec![all.join(",")] }),
                _ => Err(format!("array: expected one {name}")),
            }
        }
        one => Ok(vec![scalar(name, one)?]),
    }
}

fn scalar(name: &str, value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) if text.is_empty() => Err(format!("an empty string: expected {name}")),
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.as_str().replace('_', "")),
        DeValue::Float(number) => Ok(number.as_str().replace('_', "")),
        other => Err(format!("{}: expected {name}, in quotes", other.type_str())),
    }
}

/// What is not checked before the daemon starts when the command line says it (with an exit code of its own); here it can still be said in which line it is.
fn check(key: &str, texts: &[String]) -> Result<(), ApiError> {
    let invalid = |error: &dyn std::fmt::Display| ApiError::invalid(error.to_string());
    match key {
        "name" => texts
            .iter()
            .try_for_each(|name| check_name(name))
            .map_err(|e| invalid(&e)),
        "label" => {
            let labels = labels(texts)?;
            let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            canonical_labels(labels, Scope::Node).map(drop).map_err(|e| invalid(&e))
        }
        "socket-group" => texts
            .iter()
            .try_for_each(|name| group_id(name).map(drop))
            .map_err(|e| invalid(&e)),
        _ => Ok(()),
    }
}

impl Origin {
    /// The words that the file adds.
    pub(super) fn words(&self) -> Vec<String> {
        self.entries.iter().flat_map(|entry| entry.words.clone()).collect()
    }

    /// An error of clap's in words that came from the file; `None`: it is about others.
    pub(super) fn explain(&self, error: &clap::Error) -> Option<ConfigError> {
        let texts = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => vec![text.clone()],
            Some(ContextValue::Strings(texts)) => texts.clone(),
            _ => Vec::new(),
        };
        let about = texts(ContextKind::InvalidArg);
        // As `--lease <TIME>`.
        let option = |text: &String| {
            let word = text.split([' ', '=', '[']).next()?;
            Some(word.trim_start_matches('-').to_owned())
        };
        let named = about.iter().find_map(option)?;
        let entry = self.entries.iter().find(|entry| entry.key == named)?;
        let value = texts(ContextKind::InvalidValue).join(" ");
        let why = match error.kind() {
            ErrorKind::ArgumentConflict => {
                let prior: Vec<String> = texts(ContextKind::PriorArg).iter().filter_map(option).collect();
                format!("cannot stand beside {}", prior.join(", "))
            }
            ErrorKind::InvalidValue => {
                format!("{value:?}: expected {}", texts(ContextKind::ValidValue).join(" or "))
            }
            _ => match std::error::Error::source(error) {
                Some(source) => format!("{value:?}: {source}"),
                None => error.kind().to_string(),
            },
        };
        Some(ConfigError::Key {
            file: self.file.clone(),
            line: entry.line,
            key: entry.key.clone(),
            why,
        })
    }
}
