//! `storageos events`: what happened to volumes and nodes, once or as it happens.

use super::args::EventsCommand;
use super::output::{self, Format};
use super::print;
use crate::api::types::{EventFilter, EventList};
use crate::api::{ApiError, Client, Code};
use crate::volume::{Event, same_event};
use jiff::{SignedDuration, Timestamp};
use std::process::ExitCode;
use std::time::Duration;

/// Pause between two looks of `--follow`.
const LOOK: Duration = Duration::from_secs(1);
/// How late another node's event may become known and still be shown by `--follow`.
const LATE: SignedDuration = SignedDuration::from_secs(60);

const COLUMNS: [&str; 4] = ["TIME", "EVENT", "VOLUME", "WHAT"];

pub(super) async fn run(client: &Client, command: EventsCommand) -> Result<ExitCode, ApiError> {
    let mut filter = EventFilter {
        volume: command.volume,
        node: command.node,
        since: command.since.as_deref().map(since).transpose()?,
    };
    let list = client.events(&filter).await?;
    let mut shown = list.events;
    if !command.follow {
        print(&output::list(&command.format, &COLUMNS, &shown, row)?)?;
        warn_of_silent(&list.silent_nodes);
        return Ok(ExitCode::SUCCESS);
    }
    for event in &shown {
        print(&line(&command.format, event)?)?;
    }
    warn_of_silent(&list.silent_nodes);
    loop {
        let recent = Timestamp::now().saturating_sub(LATE).unwrap_or(Timestamp::MIN);
        filter.since = Some(filter.since.map_or(recent, |since| since.max(recent)));
        shown.retain(|event| event.at >= recent);
        tokio::time::sleep(LOOK).await;
        let EventList { events, .. } = match client.events(&filter).await {
            Ok(list) => list,
            // The daemon restarts, or the control plane is away: what happened then is shown when it is back.
            Err(error) if error.code == Code::Unavailable => continue,
            Err(error) => return Err(error),
        };
        for event in events {
            if shown.iter().any(|known| *known == event || same_event(known, &event)) {
                continue;
            }
            print(&line(&command.format, &event)?)?;
            shown.push(event);
        }
    }
}

/// A point in time, or a span before now.
fn since(text: &str) -> Result<Timestamp, ApiError> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let span: SignedDuration = text.parse().map_err(|_| {
        ApiError::new(Code::Usage, format!("{text:?} is not a time"))
            .hint("give a span before now, as 10m or 48h, or a time, as 2026-01-31T12:00:00Z")
    })?;
    Ok(Timestamp::now().saturating_sub(span).unwrap_or(Timestamp::MIN))
}

fn warn_of_silent(nodes: &[String]) {
    if !nodes.is_empty() {
        eprintln!(
            "storageos: note: {} did not answer; what only they recorded is missing",
            nodes.join(", ")
        );
    }
}

/// Seconds are precise enough for people.
fn time(at: Timestamp) -> String {
    let seconds = Timestamp::from_second(at.as_second()).unwrap_or(at);
    seconds.to_string()
}

fn row(event: &Event) -> Vec<String> {
    vec![
        time(event.at),
        event.kind.to_string(),
        event.volume_name.clone().unwrap_or_else(|| "-".to_owned()),
        event.message.clone(),
    ]
}

fn line(format: &Format, event: &Event) -> Result<String, ApiError> {
    match format {
        Format::Table => {
            let [time, kind, volume, what] = &row(event)[..] else {
                return Ok(String::new());
            };
            Ok(format!("{time}  {kind:<16}  {volume}  {what}\n"))
        }
        Format::Json => serde_json::to_string(event)
            .map(|text| text + "\n")
            .map_err(|e| ApiError::internal(format!("the event cannot be written as JSON: {e}"))),
        template @ Format::Template(_) => output::list(template, &COLUMNS, std::slice::from_ref(event), row),
    }
}
