//! The command line's definition as data, and the texts that are made of it: man pages and the packaged configuration file. `examples/reference.rs`
//! writes them; nothing of this is in the daemon.

use super::args::Cli;
use super::config_file::keys;
use clap::{Arg, ArgAction, CommandFactory};
use std::fmt::Write;

/// The whole command line.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// One key of the configuration file.
#[derive(Clone, Debug)]
pub struct Key {
    /// As in the file, and after `--` on the command line.
    pub name: String,
    /// Its value in TOML: the default, or an example of the right form.
    pub example: String,
    /// The default as people read it, if the value is not it.
    pub default: String,
    /// What it is.
    pub help: String,
}

/// All keys, in the order of the command line's help.
#[must_use]
pub fn config_keys() -> Vec<Key> {
    keys().iter().map(describe).collect()
}

fn describe(arg: &Arg) -> Key {
    let name = arg.get_long().unwrap_or_default().to_owned();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default = arg
        .get_default_values()
        .first()
        .map(|d| d.to_string_lossy().into_owned());
    let form = arg
        .get_value_names()
        .and_then(|names| names.first())
        .map_or("", |n| n.as_str());
    let example = match (&default, name.as_str()) {
        _ if matches!(arg.get_action(), ArgAction::SetTrue) => "false".to_owned(),
        (Some(number), "scrub-days") => number.clone(),
        (Some(text), _) => format!("{text:?}"),
        (None, "label") => "[\"storageos.com/deployment=computeonly\"]".to_owned(),
        (None, "join") => "[\"10.0.0.1:5703\", \"10.0.0.2:5703\"]".to_owned(),
        (None, "docker") => "true".to_owned(),
        (None, "data-dir") => "\"/var/lib/storageos\"".to_owned(),
        (None, "socket") => "\"/run/storageos/storageos.sock\"".to_owned(),
        (None, "token-file") => "\"/etc/storageos/token\"".to_owned(),
        (None, "api") => "\"10.0.0.1:5704\"".to_owned(),
        (None, "metrics") => "\"127.0.0.1:5705\"".to_owned(),
        (None, "log-filter") => "\"info\"".to_owned(),
        (None, "name") => "\"n1\"".to_owned(),
        (None, "socket-group") => "\"storageos\"".to_owned(),
        (None, _) if form == "ADDR:PORT" => "\"10.0.0.1:5703\"".to_owned(),
        (None, _) => format!("\"{form}\""),
    };
    let default = match (default, name.as_str()) {
        (Some(text), _) => text,
        (None, "data-dir" | "listen") => "none, it must be given".to_owned(),
        (None, _) if matches!(arg.get_action(), ArgAction::SetTrue) => "false".to_owned(),
        // Those that matter say it in their help.
        (None, _) => String::new(),
    };
    Key {
        name,
        example,
        default,
        help,
    }
}

const CONFIG_HEAD: &str = "\
# The configuration of this node's daemon: storageos-config(5), and storageos-node-run(1) for more on each option.
#
# A key is an option of `storageos node run`; one that stands there, in the unit, wins over the one here. All keys are here, each with its default or, where
# there is none, an example. Needed are data-dir, listen, and name at the first start. A change counts from the next start of the daemon, which
# programs that use mounts do not notice:
#   storageos node run --config /etc/storageos/config.toml --check && systemctl restart storageos
";

/// The packaged configuration file.
#[must_use]
pub fn config_toml() -> String {
    let mut text = CONFIG_HEAD.to_owned();
    for key in config_keys() {
        text.push('\n');
        let mut about = key.help.replace('\n', " ");
        if !key.default.is_empty() {
            let _ = write!(about, " [default: {}]", key.default);
        }
        for line in wrapped(&about, 130) {
            let _ = writeln!(text, "# {line}");
        }
        // The package has this directory's name in its unit.
        let off = if key.name == "data-dir" { "" } else { "#" };
        let _ = writeln!(text, "{off}{} = {}", key.name, key.example);
    }
    text
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines
            .last_mut()
            .filter(|line| line.chars().count() + word.chars().count() < width);
        match last {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

const MANUAL_HEAD: &str = "\
.TH storageos-config 5 \"\" storageos
.SH NAME
storageos\\-config \\- the configuration file of a node's daemon
.SH SYNOPSIS
.B /etc/storageos/config.toml
.SH DESCRIPTION
A file in TOML that
.B storageos node run \\-\\-config
.I FILE
reads at its start; the packaged unit
.B storageos.service
names /etc/storageos/config.toml. A key is an option of
.BR storageos\\-node\\-run (1)
by its long name: texts in quotes, numbers as they are,
.B true
or
.B false
for an option without a value, a list for one that may be given several times.
.PP
What the command line says wins over the environment (RUST_LOG, STORAGEOS_TOKEN), this over the file, and the file over the defaults. An option on the
command line also wins over a key that contradicts it, as
.B \\-\\-join
over
.BR init ;
.B \\-\\-label
replaces all labels of the file.
.PP
A file that cannot be read, an unknown key and a wrong value are errors that name file, line and key; the daemon does not start, with exit code 2. There is no key
for a token: it is a secret, put it into a file of its own and name that with
.BR token\\-file .
.SH KEYS
";

const MANUAL_TAIL: &str = "\
.SH EXAMPLE
.nf
data\\-dir = \"/var/lib/storageos\"
listen = \"10.0.0.1:5703\"
name = \"n1\"
metrics = \"10.0.0.1:5705\"
label = [\"rack=a\", \"storageos.com/deployment=computeonly\"]
.fi
.SH SEE ALSO
.BR storageos\\-node\\-run (1),
.BR mount.fuse.storageos (8)
";

/// storageos-config(5).
#[must_use]
pub fn config_manual() -> String {
    let mut text = MANUAL_HEAD.to_owned();
    for key in config_keys() {
        let _ = writeln!(text, ".TP\n.BI \"{} = \" \"{}\"", roff(&key.name), roff(&key.example));
        let _ = writeln!(text, "{}.", roff(&key.help.replace('\n', " ")));
        if !key.default.is_empty() {
            let _ = writeln!(text, "Default: {}.", roff(&key.default));
        }
    }
    text + MANUAL_TAIL
}

/// A text in the language of man pages.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('"', "\\(dq");
    if escaped.starts_with(['.', '\'']) {
        format!("\\&{escaped}")
    } else {
        escaped
    }
}
