//! `storageos volume watch`: how a volume's copies are brought up to date, as bars on a terminal and as lines elsewhere,
//! until it is healthy. The bars also serve `volume scrub`.

use super::output::{bytes, span};
use super::volume::Name;
use super::{on_terminal, print};
use crate::api::types::{CopyInfo, SyncInfo, VolumeInfo};
use crate::api::{ApiError, Client, Code};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Pause between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// Shows states by name: bars on a terminal, a line for each change elsewhere.
pub(super) struct Board {
    bars: Option<MultiProgress>,
    shown: BTreeMap<String, ProgressBar>,
    lines: BTreeMap<String, String>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            bars: on_terminal().then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())),
            shown: BTreeMap::new(),
            lines: BTreeMap::new(),
        }
    }

    /// Shows how far `name` is, in bytes, and a text; `line` is what stands for it where there are no bars.
    pub(super) fn progress(
        &mut self,
        name: &str,
        done: u64,
        total: u64,
        text: &str,
        line: &str,
    ) -> Result<(), ApiError> {
        let Some(bars) = &self.bars else {
            return self.line(name, line);
        };
        let bar = self.shown.entry(name.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:12} [{bar:40}] {percent:>3}%  {msg}");
            let bar = ProgressBar::new(total).with_prefix(name.to_owned());
            // The template is a constant that is known to be good; without it the bar is as it comes.
            let bar = match style {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            };
            bars.add(bar)
        });
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(text.to_owned());
        Ok(())
    }

    /// A state without a bar.
    pub(super) fn line(&mut self, name: &str, line: &str) -> Result<(), ApiError> {
        if let Some(bar) = self.shown.remove(name) {
            bar.finish_and_clear();
        }
        if self.lines.insert(name.to_owned(), line.to_owned()).as_deref() == Some(line) {
            return Ok(());
        }
        match &self.bars {
            Some(bars) => bars
                .println(line)
                .map_err(|error| ApiError::internal(format!("cannot write to the terminal: {error}"))),
            None => print(&format!("{line}\n")),
        }
    }

    /// Takes the bars away.
    pub(super) fn clear(&mut self) {
        for bar in std::mem::take(&mut self.shown).into_values() {
            bar.finish_and_clear();
        }
    }
}

/// Hundredths of what is done.
pub(super) fn percent(done: u64, total: u64) -> u64 {
    done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100)
}

/// What a person wants to know of a sync, beside the percentage.
pub(super) fn rate(sync: &SyncInfo) -> String {
    let mut text = format!(
        "{} of {}, {}/s",
        bytes(sync.bytes_done),
        bytes(sync.bytes_total),
        bytes(sync.bytes_per_second)
    );
    if let Some(left) = sync.seconds_left.and_then(|left| i64::try_from(left).ok()) {
        text.push_str(&format!(", {} left", span(left)));
    }
    if let Some(problem) = &sync.problem {
        text.push_str(&format!("; attempt {}, since: {problem}", sync.attempts));
    }
    text
}

fn copy_line(copy: &CopyInfo) -> String {
    match &copy.sync {
        // A line for each twentieth, so that a log does not fill.
        Some(sync) => {
            let percent = percent(sync.bytes_done, sync.bytes_total) / 5 * 5;
            let problem = sync
                .problem
                .as_ref()
                .map(|p| format!(" (attempt {}, since: {p})", sync.attempts));
            format!("{}  syncing {percent}%{}", copy.node_name, problem.unwrap_or_default())
        }
        None => format!("{}  {}", copy.node_name, copy.health),
    }
}

pub(super) async fn watch(client: &Client, name: &Name, timeout: Option<Duration>) -> Result<ExitCode, ApiError> {
    let started = Instant::now();
    let mut board = Board::new();
    let mut last;
    loop {
        match client.get::<VolumeInfo>(&name.path()).await {
            Ok(volume) => {
                for copy in volume.master.iter().chain(&volume.replicas) {
                    match &copy.sync {
                        Some(sync) => {
                            let (done, total) = (sync.bytes_done, sync.bytes_total);
                            board.progress(&copy.node_name, done, total, &rate(sync), &copy_line(copy))?;
                        }
                        None => board.line(&copy.node_name, &copy_line(copy))?,
                    }
                }
                last = if volume.status_message.is_empty() {
                    format!("{name}  {}", volume.health)
                } else {
                    format!("{name}  {}: {}", volume.health, volume.status_message)
                };
                // The seconds that writes still wait would make a line each.
                let steady = last.split("; writes wait").next().unwrap_or(&last).to_owned();
                board.line("", &steady)?;
                if volume.health == "healthy" && volume.status == "active" {
                    board.clear();
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(error) if error.code == Code::Unavailable => {
                last = format!("{name}  {error}");
                board.line("", &last)?;
            }
            Err(error) => return Err(error),
        }
        if timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            board.clear();
            return Err(ApiError::new(Code::Failed, format!("not healthy in time: {last}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_told_in_a_line() {
        let mut sync = SyncInfo {
            bytes_done: 10 << 20,
            bytes_total: 40 << 20,
            bytes_left: 30 << 20,
            bytes_sent: 0,
            bytes_per_second: 1 << 20,
            seconds_left: Some(30),
            attempts: 2,
            idle_seconds: 0,
            problem: None,
        };
        assert_eq!(rate(&sync), "10 MiB of 40 MiB, 1 MiB/s, 30 seconds left");
        assert_eq!(percent(sync.bytes_done, sync.bytes_total), 25);
        assert_eq!(percent(1, 0), 0);
        sync.problem = Some("no answer".into());
        assert!(rate(&sync).ends_with("; attempt 2, since: no answer"));
    }
}
