//! Writes what the command line's definition says into files: man pages, shell completions and the packaged configuration file.
//! `./package` puts them into the Debian package. usage: reference DIRECTORY
//!
//! An example, so that what it needs (clap_mangen, clap_complete) is no part of the daemon, and `./test` builds it.

use clap_complete::{Shell, generate_to};
use std::fs;
use std::io;
use std::path::Path;
use storageos::cli::reference;

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1) else {
        return Err(io::Error::other("usage: reference DIRECTORY"));
    };
    let directory = Path::new(&directory);
    let pages = directory.join("man");
    fs::create_dir_all(&pages)?;
    // Of every command, as storageos-volume-create.1.
    clap_mangen::generate_to(reference::command(), &pages)?;
    keep_lines(&pages)?;
    fs::write(pages.join("storageos-config.5"), reference::config_manual())?;
    fs::write(directory.join("config.toml"), reference::config_toml())?;
    let completions = directory.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut reference::command(), "storageos", &completions)?;
    }
    Ok(())
}

/// The text after the options has lines, examples, that must not run together.
fn keep_lines(pages: &Path) -> io::Result<()> {
    for page in fs::read_dir(pages)? {
        let path = page?.path();
        let text = fs::read_to_string(&path)?;
        let Some((before, after)) = text.split_once(".SH EXTRA\n") else {
            continue;
        };
        let (extra, rest) = after.split_at(after.find(".SH ").unwrap_or(after.len()));
        fs::write(&path, format!("{before}.SH NOTES\n.nf\n{extra}.fi\n{rest}"))?;
    }
    Ok(())
}
