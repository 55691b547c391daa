//! The configuration file: every option has a key that works, and what is wrong is named with file, line and key.

use super::args::{Cli, NodeCommand, NodeVerb, Noun, RunOptions};
use super::config_file::{complete, keys};
use super::reference;
use clap::{Args, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

struct File(tempfile::TempDir);

impl File {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.toml"), text).unwrap();
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("config.toml")
    }

    /// The options of a daemon with this file and these words, or how it is told what is wrong.
    fn run(&self, words: &str) -> Result<RunOptions, String> {
        let line = ["storageos", "node", "run", "--config", self.path().to_str().unwrap()].map(OsString::from);
        let words = line.into_iter().chain(words.split_whitespace().map(OsString::from));
        let (words, origin) = complete(words.collect()).map_err(|e| e.to_string())?;
        let cli =
            Cli::try_parse_from(words).map_err(|e| origin.explain(&e).map_or(e.to_string(), |e| e.to_string()))?;
        match cli.noun {
            Noun::Node(NodeCommand {
                verb: NodeVerb::Run(options),
            }) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }
}

const NEEDED: &str = "data-dir = '/d'\nlisten = '127.0.0.1:1'\n";

fn with(text: &str) -> Result<RunOptions, String> {
    File::new(&format!("{NEEDED}{text}")).run("")
}

/// What a file with one more line, the third, is told.
fn wrong(line: &str) -> String {
    let file = File::new(&format!("{NEEDED}{line}\n"));
    let said = file.run("").unwrap_err();
    let place = format!("{}:3: ", file.path().display());
    let key = line.split([' ', '=']).next().unwrap();
    assert!(said.starts_with(&format!("{place}{key}: ")), "{line} is told: {said}");
    said
}

#[test]
fn every_option_of_the_daemon_has_a_key_in_the_packaged_file_and_the_manual() {
    let command = RunOptions::augment_args(clap::Command::new("run"));
    let options: Vec<&str> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    let keys = keys();
    let names: Vec<&str> = keys.iter().filter_map(|arg| arg.get_long()).collect();
    let packaged = include_str!("../../packaging/config.toml");
    assert_eq!(
        packaged,
        reference::config_toml(),
        "make it again: cargo run --example reference"
    );
    let manual = reference::config_manual();
    for option in options {
        if ["config", "check", "token"].contains(&option) {
            assert!(!names.contains(&option));
            continue;
        }
        assert!(names.contains(&option), "{option} is no key");
        let line = |line: &str| line.trim_start_matches('#').starts_with(&format!("{option} = "));
        assert!(packaged.lines().any(line), "{option} is not in the packaged file");
        assert!(
            manual.contains(&format!("\"{} = \"", option.replace('-', "\\-"))),
            "{option} is not in the manual"
        );
    }
}

#[test]
fn the_packaged_file_works_with_every_key_alone_and_changes_nothing_where_it_shows_defaults() {
    let plain = format!("{:?}", with("").unwrap());
    for key in reference::config_keys() {
        let needed = ["data-dir", "listen"].contains(&key.name.as_str());
        let line = format!("{} = {}\n", key.name, key.example);
        // The example group is no group of every machine.
        if needed || key.name == "socket-group" {
            continue;
        }
        let options = with(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let same = without_path(&format!("{options:?}")) == without_path(&plain);
        let is_default = key.default.trim_matches('"') == key.example.trim_matches('"');
        assert_eq!(same, is_default, "{line}");
    }
}

fn without_path(debug: &str) -> String {
    debug.split("config.toml").last().unwrap_or_default().to_owned()
}

#[test]
fn no_key_does_nothing() {
    for line in [
        "data-dir = '/e'",
        "listen = '127.0.0.1:2'",
        "advertise = '10.0.0.1:2'",
        "name = 'n7'",
        "label = ['a=b', 'c=d']",
        "socket = 'none'",
        "docker = true",
        "docker = '/run/docker/plugins/x.sock'",
        "socket-group = 'root'",
        "control = 'etcd://a:1'",
        "init = true",
        "certificate-validity = '7d'",
        "lease = '9s'",
        "replica-deadline = 9",
        "voter-grace = '9s'",
        "replace-after = '9s'",
        "join = '10.0.0.1:5703'",
        "join = ['10.0.0.1:5703', '10.0.0.2:5703']",
        "join = true",
        "keep-mounts = '0s'",
        "token-file = '/t'",
        "api = '127.0.0.1:4'",
        "metrics = '127.0.0.1:3'",
        "scrub-days = 0.5",
        "log-format = 'json'",
        "log-filter = 'debug'",
    ] {
        let key = line.split(' ').next().unwrap();
        let needed: String = NEEDED
            .lines()
            .filter(|l| !l.starts_with(key))
            .map(|l| format!("{l}\n"))
            .collect();
        let options = File::new(&format!("{needed}{line}"))
            .run("")
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        let plain = with("").unwrap();
        assert_ne!(
            without_path(&format!("{options:?}")),
            without_path(&format!("{plain:?}")),
            "{line}"
        );
    }
    for arg in keys() {
        let key = arg.get_long().unwrap();
        assert!(
            include_str!("config_file_tests.rs").contains(&format!("\"{key} = ")),
            "{key} is not tried here"
        );
    }
}

#[test]
fn the_command_line_wins_over_the_file() {
    let file = File::new(&format!(
        "{NEEDED}lease = '9s'\ninit = true\nlabel = ['a=b']\ntoken-file = '/t'\n"
    ));
    let options = file
        .run("--lease 3s --join 10.0.0.1:1 --label c=d --listen 127.0.0.9:1 --token x")
        .unwrap();
    assert_eq!(options.lease.as_secs(), 3);
    assert_eq!(options.listen.to_string(), "127.0.0.9:1");
    assert!(!options.init && options.join.is_some());
    assert_eq!(options.label, ["c=d"]);
    assert!(options.token.token_file.is_none() && options.token.token.is_some());
    assert!(file.run("").unwrap().init);
}

#[test]
fn what_is_wrong_is_named_with_file_line_and_key() {
    for (line, says) in [
        ("lese = '5s'", "known are: data-dir, listen"),
        ("data_dir = '/d'", "data-dir"),
        ("config = '/c'", "unknown key"),
        ("check = true", "unknown key"),
        ("token = 'secret'", "token-file"),
        ("lease = '0s'", "20s"),
        ("lease = '100ms'", "at least 1s"),
        ("lease = true", "expected TIME, in quotes"),
        ("lease = ['1s', '2s']", "expected one TIME"),
        ("lease = ''", "expected TIME"),
        ("certificate-validity = '90'", "7d"),
        ("keep-mounts = 'long'", "20s"),
        ("init = 'yes'", "true or false"),
        ("log-format = 'xml'", "text or json"),
        ("log-filter = 'a=b=c'", "expected as debug"),
        ("scrub-days = -1", "0 to 3650"),
        ("control = 'zookeeper'", "embedded"),
        ("docker = '/plain'", "NAME.sock"),
        ("docker = 7", "NAME.sock"),
        ("name = 'a/b'", "/"),
        ("label = ['a']", "KEY=VALUE"),
        ("label = ['storageos.com/nothing=1']", "storageos.com/nothing"),
        ("socket-group = 'no-such-group'", "no-such-group"),
        ("metrics = 'everywhere'", "invalid socket address"),
        ("metrics = 1979-05-27", "expected ADDR:PORT"),
    ] {
        let said = wrong(line);
        assert!(said.contains(says), "{line} should say {says:?}: {said}");
    }
    let said = with("init = true\njoin = '10.0.0.1:1'\n").unwrap_err();
    assert!(said.contains(":3: init: ") || said.contains(":4: join: "), "{said}");
    let said = with("lease = '5s'\nlease = '6s'\n").unwrap_err();
    assert!(said.contains(":4: ") && said.contains("duplicate"), "{said}");
    let said = with("lease = \n").unwrap_err();
    assert!(said.contains(":3: "), "{said}");
    let said = File::new("lease = '5s'\n").run("").unwrap_err();
    assert!(
        said.contains("missing: ") && said.contains("data-dir") && said.contains("listen"),
        "{said}"
    );
    let said = File::new("listen = '127.0.0.1:1'\n").run("").unwrap_err();
    assert!(said.contains("data-dir") && !said.contains("listen"), "{said}");
    let file = File::new("");
    std::fs::remove_file(file.path()).unwrap();
    assert!(file.run("").unwrap_err().contains("config.toml: No such file"));
}

#[test]
fn a_wrong_word_of_the_command_line_is_not_blamed_on_the_file() {
    let said = File::new(NEEDED).run("--lease 0s").unwrap_err();
    assert!(said.contains("--lease") && !said.contains("config.toml:"), "{said}");
}
