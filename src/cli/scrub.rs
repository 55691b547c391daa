//! `storageos volume scrub`: starts or joins a scrub, shows how far it is, and what it found and repaired.

use super::output::{self, Format, bytes};
use super::print;
use super::volume::Name;
use super::watch::{Board, LOOK, percent};
use crate::api::types::{ScrubInfo, ScrubRequest, ScrubbedCopyInfo};
use crate::api::{ApiError, Client, Code};
use std::process::ExitCode;

const COLUMNS: [&str; 5] = ["COPY", "READ", "CORRUPT", "REPAIRED", "RESULT"];

pub(super) async fn scrub(client: &Client, name: &Name, format: &Format) -> Result<ExitCode, ApiError> {
    let path = format!("{}/scrub", name.path());
    let mut scrub: ScrubInfo = client.post(&path, &ScrubRequest {}).await.map_err(unclear)?;
    let started = scrub.started_at;
    let mut board = Board::new();
    while scrub.running {
        if super::on_terminal() {
            let text = format!("{} of {}", bytes(scrub.bytes_done), bytes(scrub.bytes_total));
            board.progress("scrubbing", scrub.bytes_done, scrub.bytes_total, &text, "")?;
        } else {
            tracing::debug!(percent = percent(scrub.bytes_done, scrub.bytes_total), "scrubbing");
        }
        tokio::time::sleep(LOOK).await;
        scrub = client.get(&path).await.map_err(unclear)?;
        if scrub.started_at != started {
            board.clear();
            return Err(
                ApiError::unavailable("the volume's master changed, and the scrub ended with the one before")
                    .hint(format!("start it again: storageos volume scrub {name}")),
            );
        }
    }
    board.clear();
    if let Some(error) = &scrub.error {
        return Err(ApiError::unavailable(format!("the scrub ended early: {error}")));
    }
    print(&match format {
        Format::Json => output::json(&scrub)?,
        _ => output::list(format, &COLUMNS, &scrub.copies, row)?,
    })?;
    let left = scrub.copies.iter().any(|c| c.repaired_blocks < c.corrupt_blocks);
    let unread = scrub.copies.iter().any(|c| c.error.is_some());
    Ok(ExitCode::from(if left {
        Code::Failed.exit_code()
    } else if unread {
        Code::Unavailable.exit_code()
    } else {
        0
    }))
}

/// 1 says that bad blocks are left; whatever kept the scrub from ending is another code.
fn unclear(mut error: ApiError) -> ApiError {
    if error.code == Code::Failed {
        error.code = Code::Internal;
    }
    error
}

fn row(copy: &ScrubbedCopyInfo) -> Vec<String> {
    let result = match &copy.error {
        Some(error) => format!("not all of it could be read: {error}"),
        None if copy.repaired_blocks < copy.corrupt_blocks => "corrupt".to_owned(),
        None if copy.corrupt_blocks > 0 => "repaired".to_owned(),
        None => "good".to_owned(),
    };
    vec![
        copy.node_name.clone(),
        bytes(copy.bytes_read),
        copy.corrupt_blocks.to_string(),
        copy.repaired_blocks.to_string(),
        result,
    ]
}
